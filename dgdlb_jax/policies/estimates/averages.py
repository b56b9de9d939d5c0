"""Reports averaged over time: by a lag, and over a window."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import Observation, State, per_backend
from dgdlb_jax.policies.estimates.base import AbstractEstimate, follow, reports, seconds, with_reports


class ExponentialAverage(AbstractEstimate):
    r"""Reports smoothed by a first-order lag: $T \dot y = u - y$, for every number that a backend reports.

    With a lag in place of the raw report, one symmetric group is critical at
    $2 w \tau + \arctan(w/a) + \arctan(wT) = \pi/2$, $K_c = w \sqrt{w^2 + a^2} \sqrt{1 + w^2 T^2}$; to count T as feedback latency is safe.

    **Arguments:** `time_constant`: T, seconds, a scalar, `(frontends,)` or `(frontends, backends)`.

    **Raises:** `InputError` for a time that is not positive and finite.

    **Source:** own derivation.
    """

    time_constant: Float[Array, "*frontends"]

    def __init__(self, time_constant: Numbers):
        self.time_constant = seconds("ExponentialAverage.time_constant", time_constant)

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return self.time_constant

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return self.time_constant

    def init(self, observation: Observation) -> State:
        """The reports themselves."""
        return reports(observation)

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The average now."""
        lag = per_backend(self.time_constant, observation.mask)
        seen, after = follow(state, reports(observation), observation.time_step[None], lag)
        return with_reports(observation, seen), after


class MovingAverage(AbstractEstimate):
    r"""Reports averaged over the last W seconds: $y(t) = \frac1W \int_{t-W}^t u$.

    One symmetric group is critical at $2 w \tau + \arctan(w/a) + wW/2 = \pi/2$,
    $K_c = w \sqrt{w^2 + a^2} \, \frac{wW/2}{\sin(wW/2)}$; to count W/2 as feedback latency is safe.

    **Arguments:**

    - `window`: W, seconds, a scalar or `(frontends,)`.
    - `bins`: in how many parts of the window a frontend keeps the past; a time step longer than a part makes parts of its length.

    **Raises:** `InputError` for a window that is not positive and finite, or fewer than one bin.

    **Source:** own derivation.
    """

    window: Float[Array, "*frontends"]
    bins: int = eqx.field(static=True)

    def __init__(self, window: Numbers, bins: int = 16):
        self.window = seconds("MovingAverage.window", window)
        if bins < 1:
            raise InputError(f"MovingAverage.bins is {bins}, but must be at least 1.")
        self.bins = bins

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The window."""
        return self.window

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """Half the window."""
        return self.window / 2

    @property
    def averages_over(self) -> Float[Array, "*parameters"]:
        """The window."""
        return self.window

    def init(self, observation: Observation) -> State:
        """The age of the bin that is being filled, 0; what it has collected; and the means of those that are full, the newest first."""
        now = reports(observation)
        full = jax.tree.map(lambda u: jnp.broadcast_to(u, (self.bins, *u.shape)), now)
        age = jnp.zeros_like(observation.time_step[None] + per_backend(self.window, observation.mask))
        return age, jax.tree.map(jnp.zeros_like, now), full

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The average now: the mean of those half a step before and after, as memory is kept half a step ahead (see `follow`)."""
        step, (age, filling, full) = observation.time_step[None], state
        window = per_backend(self.window, observation.mask)
        length = jnp.maximum(window / self.bins, step)
        reached = age + step
        closes = reached >= length
        rest = jnp.where(closes, reached - length, reached)
        now = reports(observation)
        whole = jax.tree.map(lambda p, u: (p + (length - age) * u) / length, filling, now)
        after = (
            rest,
            jax.tree.map(lambda p, u: jnp.where(closes, rest * u, p + step * u), filling, now),
            jax.tree.map(lambda b, w: jnp.where(closes, jnp.concatenate([w[None], b[:-1]]), b), full, whole),
        )
        mean = lambda state: self._mean(window, length, *state)
        return with_reports(observation, jax.tree.map(lambda y, z: (y + z) / 2, mean(state), mean(after))), after

    def _mean(self, window, length, age, filling, full):
        """Over the last W seconds; of the bin that reaches beyond, its part."""
        newest = jnp.where(age > window, window / jnp.where(age > 0, age, 1), 1)
        begin = [age + place * length for place in range(self.bins)]
        parts = [jnp.clip(window - at, 0, length) for at in begin]
        return jax.tree.map(
            lambda p, bins: (newest * p + sum(part * bin for part, bin in zip(parts, bins, strict=True))) / window,
            filling,
            tuple(full),
        )
