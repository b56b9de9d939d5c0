"""The time grid of a tile of networks: what time it is at a step, and how long the step is."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.simulation.dynamics import Backends, Frontends

Lanes = Float[Array, " lanes"]


class Clock(eqx.Module):
    """How long a step is and how many there are, lane by lane, repeated in the shapes that the step needs."""

    lanes: tuple[Lanes, Int[Array, " lanes"]]
    frontends: tuple[Frontends, Int[Array, " frontend_lanes"]]
    backends: tuple[Backends, Int[Array, " backend_lanes"]]

    def __init__(self, shape, dt: Lanes, last: Int[Array, " lanes"]):
        self.lanes = dt, last
        self.frontends = shape.over_frontends(dt), shape.over_frontends(last)
        self.backends = shape.over_backends(dt), shape.over_backends(last)


def time(k: Int[Array, ""], clock) -> Float[Array, "..."]:
    """The time of step k, from integers; it stands still when a lane has made its last step."""
    dt, last = clock
    return jnp.minimum(k, last).astype(dt.dtype) * dt


def length(k: Int[Array, ""], clock) -> Float[Array, "..."]:
    """The length of step k -> k+1: dt, or 0 in lanes that have made their last step."""
    dt, last = clock
    return jnp.where(k < last, dt, 0)
