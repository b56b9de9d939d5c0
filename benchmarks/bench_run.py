"""How long `dgdlb run` takes, the first time and again, held against `import jax, equinox` on the same machine.

    python benchmarks/bench_run.py [FLEET ...]

Every run is a process of its own; the first of a fleet begins with an empty compilation cache, the second finds what the first has
compiled. The import is timed before and after each, and the ratio is to the mean of both. Python keeps its bytecode, as it does unless
told otherwise.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine

FLEETS = (
    "two-by-two",
    "small-models",
    "global-llm",
    str(Path(__file__).parent.parent / "tests/cases/ibm-405b-70.toml"),
)


def timed(*command: str, **environment: str) -> tuple[float, float]:
    """Seconds that a process takes, and until its first line."""
    began = time.perf_counter()
    usual = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [sys.executable, *command], env=usual | environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    process.stdout.readline()
    first = time.perf_counter() - began
    process.stdout.read()
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return time.perf_counter() - began, first


def imports() -> float:
    """Seconds that the libraries themselves take."""
    return timed("-c", "import jax, equinox; print()")[0]


def main() -> None:
    """Print a table."""
    print(machine())
    print("| fleet | import jax, equinox, s | first, s | ratio | first line, s | again, s | ratio | first line, s |")
    print("|---|---|---|---|---|---|---|---|")
    for fleet in sys.argv[1:] or FLEETS:
        with tempfile.TemporaryDirectory() as folder:
            cache, output = f"{folder}/cache", f"{folder}/out"
            command = ("-m", "dgdlb_jax", "run", fleet, "--output", output)
            cells = []
            before = imports()
            for _ in range(2):
                seconds, first = timed(*command, JAX_COMPILATION_CACHE_DIR=cache)
                after = imports()
                cells.append(f"{seconds:.1f} | {2 * seconds / (before + after):.1f} | {first:.1f}")
                before = after
        print(f"| {Path(fleet).stem} | {after:.2f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
