"""Small sweeps that the tests share, and with them compiled code."""

import subprocess
import sys
from pathlib import Path

import compiling
from helpers import own_process

MEASURES = ["excess", "verdict", "settle_time", "swing", "optimum_latency"]
FIXED = {"family": "complete", "frontends": 2, "backends": 2}
RUN = {"chunk": 8, "batch": 8, "max_steps": 1500}


def small(seeds=12, **changes):
    """24 cases in 3 chunks: `seeds` topologies of 2 x 2, two step sizes each."""
    return {
        "name": "small",
        "measures": MEASURES,
        "axes": {"seed": {"count": seeds}, "step_size_over_default": [1.0, 6.0]},
        "fixed": FIXED,
        "run": RUN,
    } | changes


def write_toml(path: Path, spec) -> Path:
    """A specification as a TOML file."""

    def text(value):
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {text(entry)}" for key, entry in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(text, value)) + "]"
        return f'"{value}"' if isinstance(value, str) else str(value)

    path.write_text("\n".join(f"{key} = {text(value)}" for key, value in spec.items()))
    return path


def start(*arguments, devices=1, **environment) -> subprocess.Popen:
    """`dgdlb ...` as a process of its own."""
    # Compiled as in the test modules with `quick_compilation` and with as many devices: the last bits depend on both.
    command = [sys.executable, "-m", "dgdlb_jax", *map(str, arguments)]
    settings = own_process() | {"XLA_FLAGS": compiling.flags() + f" --xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        command, env=settings | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def files(store: Path) -> dict[str, bytes]:
    """Every file of a store but those that say when, where and by whom it was computed."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in sorted(store.rglob("*"))
        if file.is_file() and "manifest" not in file.parts
    }


def complete(store: Path) -> int:
    """How many chunks are complete."""
    return len(list(store.glob("manifest/chunk-*.json")))
