"""What every benchmark prints beside its figures, and how it takes a time."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median

import jax


def machine() -> str:
    """Processor, cores, device, versions and commit, in one line."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as lines:
            model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jax", "jaxlib", "numpy"))
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    return f"{model}, {os.cpu_count()} cores, {device}, Python {platform.python_version()}, {packages}, commit {commit or 'unknown'}"


def seconds(run: Callable, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the first call beyond a usual one (compilation), and the median of the calls after it."""
    begin = time.perf_counter()
    jax.block_until_ready(run())
    first = time.perf_counter() - begin
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - begin)
    return first - median(taken), median(taken)
