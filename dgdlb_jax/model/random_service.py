"""Random service curves for the families of `topologies`: `service(key, backends)`.

All kinds share two numbers per backend, so that families differ in the shape of their curves only: the nominal capacity,
log-uniform in 5 to 20 requests/s, and the time a request takes alone, log-uniform within a factor of 2 of `service_time`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from dgdlb_jax.model.service import (
    AbstractService,
    Exponential,
    Hyperbolic,
    Logarithmic,
    ManyServer,
    PerBackend,
    Power,
)

RandomKey = Key[Array, ""] | UInt32[Array, "2"]
Scalar = float | Float[Array, ""]
RandomService = Callable[[RandomKey, int], AbstractService]


def log_uniform(key: RandomKey, shape: tuple[int, ...], low: float, high: float) -> Float[Array, "..."]:
    """Numbers whose logarithm is uniform between those of `low` and `high`."""
    return jnp.exp(jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high)))


def _backend_numbers(key: RandomKey, backends: int, service_time: Scalar) -> tuple[Float[Array, " backends"], ...]:
    """Nominal capacity in requests/s and service time in seconds."""
    for_capacity, for_time = jax.random.split(key)
    capacity = log_uniform(for_capacity, (backends,), 5, 20)
    return capacity, service_time * log_uniform(for_time, (backends,), 0.5, 2)


def hyperbolic(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> Hyperbolic:
    """`Hyperbolic` curves with random capacity and service time."""
    capacity, alone = _backend_numbers(key, backends, service_time)
    return Hyperbolic(capacity, capacity * alone)


def exponential(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> Exponential:
    """`Exponential` curves with random capacity and service time."""
    capacity, alone = _backend_numbers(key, backends, service_time)
    return Exponential(capacity, capacity * alone)


def power(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> Power:
    """`Power` curves of exponent 1/2 with random nominal capacity and service time."""
    capacity, alone = _backend_numbers(key, backends, service_time)
    unit_rate = capacity / 9  # the nominal capacity of exponent 1/2 is (10 - 1) times the unit rate
    return Power(unit_rate, unit_rate * alone / 2, 0.5)


def logarithmic(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> Logarithmic:
    """`Logarithmic` curves with random nominal capacity and service time."""
    capacity, alone = _backend_numbers(key, backends, service_time)
    unit_rate = capacity / np.log(10).item()
    return Logarithmic(unit_rate, unit_rate * alone)


def many_server(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> ManyServer:
    """`ManyServer` curves of sharpness 2 with random capacity and service time."""
    capacity, alone = _backend_numbers(key, backends, service_time)
    return ManyServer(capacity * alone, alone)


def mixed(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> PerBackend:
    """Hyperbolic, exponential and many-server backends side by side, a random kind each."""
    *keys, for_kind = jax.random.split(key, 4)
    kinds = (hyperbolic, exponential, many_server)
    curves = [kind(k, backends, service_time=service_time) for kind, k in zip(kinds, keys, strict=True)]
    return PerBackend(curves, jax.random.randint(for_kind, (backends,), 0, len(kinds)))


CURVES: dict[str, RandomService] = {
    "hyperbolic": hyperbolic,
    "exponential": exponential,
    "power": power,
    "logarithmic": logarithmic,
    "many_server": many_server,
    "mixed": mixed,
}
