"""Random fleets of all kinds that `dgdlb run` may meet: sizes, curves, service times, latencies, loads."""

import numpy as np

from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Exponential, Hyperbolic, Replicas, concatenate, fit_service

SIZES = ((2, 2), (4, 3))
"""Frontends and backends: few shapes, which share compiled code."""
LARGE = (*SIZES, (8, 6), (16, 8), (44, 12), (64, 64))
_WORKLOAD = np.array([1, 2, 4, 8, 16, 32, 64.0])
_MEASURED = np.array([0.95, 1.8, 3.2, 5.3, 7.7, 9.6, 10.6])  # requests/s at a service time of a second, flattening


def random_fleet(seed: int, sizes=SIZES) -> Network:
    """One fleet: service 10 ms to 1000 s, latencies 0.1 ms to 1 s, loads of 5 to 99 %."""
    rng = np.random.default_rng(seed)
    frontends, backends = sizes[rng.integers(len(sizes))]
    service_time = 10 ** rng.uniform(-2, 3) * rng.uniform(0.7, 1.4, backends)
    longest = 10 ** rng.uniform(-4, 0)
    latency = longest * rng.uniform(0.02, 1, (frontends, backends))
    replicas = rng.integers(1, 20, backends).astype(float)
    network = Network(
        rng.exponential(1.0, frontends) + 0.05, latency, _service(rng, service_time, replicas), name=f"random-{seed}"
    )
    return network.with_load(rng.uniform(0.05, 0.99))


def _service(rng: np.random.Generator, service_time: np.ndarray, replicas: np.ndarray):
    kind = rng.integers(3)
    if kind == 0:
        half = 10 ** rng.uniform(0, 2, replicas.size) * replicas
        return Hyperbolic(half / service_time, half)
    if kind == 1:
        scale = 10 ** rng.uniform(0, 2, replicas.size) * replicas
        return Exponential(scale / service_time, scale)
    curves = [fit_service(_WORKLOAD, _MEASURED / time).service for time in service_time]
    return Replicas(concatenate(curves), replicas)
