"""Random service curves for the families of `topologies`: `service(key, backends)`.

All kinds share two numbers per backend, so that families differ in the shape of their curves only: the nominal capacity,
log-uniform in 5 to 20 requests/s, and the time a request takes alone, log-uniform within a factor of 2 of `service_time`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, UInt32

from dgdlb_jax.model.service import AbstractService, PerBackend
from dgdlb_jax.model.service import registry as known
from dgdlb_jax.model.service.registry import Curve

RandomKey = Key[Array, ""] | UInt32[Array, "2"]
Scalar = float | Float[Array, ""]
RandomService = Callable[[RandomKey, int], AbstractService]


def log_uniform(key: RandomKey, shape: tuple[int, ...], low: float, high: float) -> Float[Array, "..."]:
    """Numbers whose logarithm is uniform between those of `low` and `high`."""
    return jnp.exp(jax.random.uniform(key, shape, minval=np.log(low), maxval=np.log(high)))


def random_curve(curve: Curve, key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> AbstractService:
    """A curve of one kind with random nominal capacity and service time."""
    assert curve.of_size is not None
    for_capacity, for_time = jax.random.split(key)
    capacity = log_uniform(for_capacity, (backends,), 5, 20)
    return curve.of_size(capacity, service_time * log_uniform(for_time, (backends,), 0.5, 2))


hyperbolic = partial(random_curve, known.CURVES["hyperbolic"])


def mixed(key: RandomKey, backends: int, *, service_time: Scalar = 1.0) -> PerBackend:
    """Hyperbolic, exponential and many-server backends side by side, a random kind each."""
    *keys, for_kind = jax.random.split(key, 4)
    kinds = ("hyperbolic", "exponential", "many-server")
    curves = [
        random_curve(known.CURVES[kind], k, backends, service_time=service_time)
        for kind, k in zip(kinds, keys, strict=True)
    ]
    return PerBackend(curves, jax.random.randint(for_kind, (backends,), 0, len(kinds)))


class _RandomCurves(Mapping[str, RandomService]):
    """What of the registry of curves random topologies can have, registered later included; and `mixed`."""

    def _known(self) -> Mapping[str, RandomService]:
        curves = {key.replace("-", "_"): curve for key, curve in known.CURVES.items() if curve.of_size is not None}
        return {key: partial(random_curve, curve) for key, curve in curves.items()} | {"mixed": mixed}

    def __getitem__(self, key: str) -> RandomService:
        return self._known()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known())

    def __len__(self) -> int:
        return len(self._known())


CURVES: Mapping[str, RandomService] = _RandomCurves()
"""`service(key, backends)` for every kind of curve, by its key with `_` for `-`."""
