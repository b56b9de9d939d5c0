"""What every benchmark prints beside its figures, and how it takes a time."""

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd


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


def random_networks(count: int, F: int, B: int, rows: int, dtype) -> tuple[np.ndarray, ...]:
    """Rates, latencies in steps that fill a buffer of so many rows, largest service rates and half loads, as plain arrays."""
    rng = np.random.default_rng(0)
    draw = lambda low, high, *shape: np.ascontiguousarray(rng.uniform(low, high, (count, *shape)), dtype)
    return draw(0.5, 1.5, F) * B / F, draw(1, rows - 3, F, B), draw(2, 4, B), draw(0.5, 1.5, B)


def simulation(arrays: tuple[np.ndarray, ...], steps: int, rows: int, dt: float, **more) -> Callable:
    """The product's run of a policy in these networks: statistics only, equal shares and one request per backend at the start."""
    rate, delay, mu, kappa = map(jnp.asarray, arrays)
    batch = jax.vmap(lambda r, d, m, k: dgd.Network(r, d * dt, dgd.Hyperbolic(m, k)))(rate, delay, mu, kappa)
    start = jnp.full(delay.shape, 1 / delay.shape[2], delay.dtype), jnp.ones_like(mu)
    settings = {"duration": steps * dt, "dt": dt, "initial": start, "max_latency": (rows - 2) * dt, "throw": False}
    settings = settings | {"save": dgd.SaveAt.statistics(resumable=False)} | more
    return lambda policy: dgd.simulate_batch(batch, policy, **settings)
