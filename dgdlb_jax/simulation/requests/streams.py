"""Random numbers of networks, arcs and backends: a function of the network's key, the step, the arc or backend, and the purpose."""

from enum import IntEnum

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, UInt32

from dgdlb_jax.numerics.counter_random import Numbers, Words, uniforms
from dgdlb_jax.simulation.lanes import Shape

_FRONTEND_BITS, _PURPOSE_BITS = 14, 28
LARGEST = 1 << _FRONTEND_BITS
"""Frontends, or backends, that a network may have: more could not be told apart in a counter."""


Step = Int[Array, ""] | UInt32[Array, ""]


class Purpose(IntEnum):
    """What random numbers are for."""

    dispatch = 0
    arrive = 1
    serve = 2
    answer = 3
    start = 4
    send = 5
    portion = 8  # and the seven numbers behind it


PORTIONS = 8
"""Of a step, for which there are random numbers on every arc."""


class Streams(eqx.Module):
    """The random numbers of a tile of networks."""

    frontend_key: Words
    backend_key: Words
    frontend: UInt32[Array, " frontend_lanes"]
    arc: UInt32[Array, "backends frontend_lanes"]
    backend: UInt32[Array, " backend_lanes"]

    def __init__(self, shape: Shape, words: UInt32[Array, "lanes 2"]):
        first, last = words.T
        self.frontend_key = shape.over_frontends(first), shape.over_frontends(last)
        self.backend_key = shape.over_backends(first), shape.over_backends(last)
        backend = jnp.arange(shape.backends, dtype=jnp.uint32)
        frontend = jnp.repeat(jnp.arange(shape.frontends, dtype=jnp.uint32), shape.lanes)
        self.frontend = frontend << jnp.uint32(_FRONTEND_BITS)
        self.arc = backend[:, None] + self.frontend[None]
        self.backend = jnp.repeat(backend, shape.lanes)

    def for_arcs(self, k: Step, purpose: Purpose) -> tuple[Numbers, Numbers]:
        """Two uniform numbers for every arc in step `k`."""
        return uniforms(self.frontend_key, _counter(self.arc, k, purpose))

    def one_for_arcs(self, k: Step, purpose: Purpose) -> Numbers:
        """One uniform number for every arc in step `k`; a counter serves two backends, one with each of its words."""
        place = _counter(self.arc[: (len(self.arc) + 1) // 2], k, purpose)
        both = jnp.stack(uniforms(self.frontend_key, place), axis=1)
        return both.reshape(-1, both.shape[-1])[: len(self.arc)]

    def for_portions(self, k: Step, portion: Step) -> tuple[Numbers, Numbers]:
        """Two uniform numbers for every arc in a portion of step `k`."""
        place = self.arc + (
            (jnp.uint32(int(Purpose.portion)) + portion.astype(jnp.uint32)) << jnp.uint32(_PURPOSE_BITS)
        )
        return uniforms(self.frontend_key, (place, jnp.broadcast_to(k.astype(jnp.uint32), place.shape)))

    def for_frontends(self, k: Step, purpose: Purpose, number: Step) -> tuple[Numbers, Numbers]:
        """Two uniform numbers for every frontend in step `k`; `number` below `LARGEST` tells several draws of a step apart."""
        return uniforms(self.frontend_key, _counter(self.frontend + number.astype(jnp.uint32), k, purpose))

    def for_backends(self, k: Step, purpose: Purpose) -> tuple[Numbers, Numbers]:
        """Two uniform numbers for every backend in step `k`."""
        return uniforms(self.backend_key, _counter(self.backend, k, purpose))


def _counter(index: UInt32[Array, "..."], k: Step, purpose: Purpose) -> Words:
    place = index + jnp.uint32(int(purpose) << _PURPOSE_BITS)
    return place, jnp.broadcast_to(k.astype(jnp.uint32), place.shape)
