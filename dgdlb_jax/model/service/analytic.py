"""Service curves given by a formula."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.service.base import (
    SMALLEST_SLOPE,
    AbstractService,
    Numbers,
    below,
    check,
    measurement,
    parameters,
)
from dgdlb_jax.numerics.checks import positive


class AbstractAnalytic(AbstractService):
    """A curve given by a formula, which holds at every workload."""

    capacity: eqx.AbstractVar[Float[Array, "..."]]

    @property
    def nominal_capacity(self) -> Float[Array, "..."]:
        """The highest measured throughput if it was given, else what the curve's own rule says."""
        return self.capacity

    @property
    def measured_workload(self) -> Float[Array, "..."]:
        """inf: nothing limits the range of the formula."""
        return jnp.full_like(self.capacity, jnp.inf)


class Hyperbolic(AbstractAnalytic):
    r"""A server whose batches saturate slowly.

    $$ \ell(N) = \mu \frac{N}{\kappa + N} $$

    **Arguments:**

    - `max_rate`: $\mu$, `(backends,)` in requests/s, never quite reached.
    - `half_load`: $\kappa$, `(backends,)` in requests: the workload that is served at half the maximal rate.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s; `max_rate` by default.

    **Raises:** `InputError` on parameters that are not positive and finite, whose shapes differ, or a capacity above `max_rate`.
    """

    max_rate: Float[Array, "..."]
    half_load: Float[Array, "..."]
    capacity: Float[Array, "..."]

    def __init__(self, max_rate: Numbers, half_load: Numbers, *, capacity: Numbers | None = None):
        self.max_rate, self.half_load = parameters("Hyperbolic", max_rate=max_rate, half_load=half_load)
        self.capacity = measurement("Hyperbolic", "capacity", capacity, self.max_rate, self.supremum)

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.max_rate * workload / (self.half_load + workload)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.initial_slope / (1 + workload / self.half_load) ** 2

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return -2 * self.initial_slope / self.half_load / (1 + workload / self.half_load) ** 3

    def marginal_latency(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$(\kappa + N)^2 / (\kappa \mu)$, in seconds, saturating as that of every curve; all divisions are of parameters."""
        far, last = self.half_load + workload, self.half_load * SMALLEST_SLOPE**-0.5
        far = jnp.where(far > last, last, far)  # the derivative of a minimum would be a division
        return far * (far * (1 / (self.half_load * self.max_rate)))  # the square may overflow

    def average_latency(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$(\kappa + N) / \mu$, in seconds."""
        return (self.half_load + workload) * (1 / self.max_rate)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(rate, self.max_rate, lambda r: self.half_load * r / (self.max_rate - r))

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self.max_rate / self.half_load

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self.max_rate


class Exponential(AbstractAnalytic):
    r"""A server whose batches saturate fast.

    $$ \ell(N) = \mu (1 - e^{-N / \kappa}) $$

    **Arguments:**

    - `max_rate`: $\mu$, `(backends,)` in requests/s, never quite reached.
    - `scale`: $\kappa$, `(backends,)` in requests.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s; `max_rate` by default.

    **Raises:** `InputError` on parameters that are not positive and finite, whose shapes differ, or a capacity above `max_rate`.
    """

    max_rate: Float[Array, "..."]
    scale: Float[Array, "..."]
    capacity: Float[Array, "..."]

    def __init__(self, max_rate: Numbers, scale: Numbers, *, capacity: Numbers | None = None):
        self.max_rate, self.scale = parameters("Exponential", max_rate=max_rate, scale=scale)
        self.capacity = measurement("Exponential", "capacity", capacity, self.max_rate, self.supremum)

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return -self.max_rate * jnp.expm1(-workload / self.scale)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.initial_slope * jnp.exp(-workload / self.scale)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return -self.initial_slope / self.scale * jnp.exp(-workload / self.scale)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(rate, self.max_rate, lambda r: -self.scale * jnp.log1p(-r / self.max_rate))

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self.max_rate / self.scale

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self.max_rate


class Power(AbstractAnalytic):
    r"""A service that scales out with diminishing returns and without a limit.

    $$ \ell(N) = \mu \left( (1 + N / \kappa)^p - 1 \right) $$

    **Arguments:**

    - `unit_rate`: $\mu$, `(backends,)` in requests/s.
    - `scale`: $\kappa$, `(backends,)` in requests.
    - `exponent`: $p$, `(backends,)` strictly between 0 and 1.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s. By default the rate at which the slope
      has fallen to a tenth of its value at an empty backend, $\mu (10^{p / (1 - p)} - 1)$.

    **Raises:** `InputError` on parameters that are not positive and finite, an exponent outside (0, 1), shapes that
    differ, or an exponent so close to 1 that the default capacity overflows.
    """

    unit_rate: Float[Array, "..."]
    scale: Float[Array, "..."]
    exponent: Float[Array, "..."]
    capacity: Float[Array, "..."]

    def __init__(self, unit_rate: Numbers, scale: Numbers, exponent: Numbers, *, capacity: Numbers | None = None):
        self.unit_rate, self.scale, self.exponent = parameters(
            "Power", unit_rate=unit_rate, scale=scale, exponent=exponent
        )
        check("Power", "exponent", self.exponent, lambda value: value < 1, "strictly between 0 and 1")
        tenth = self.unit_rate * jnp.expm1(
            jnp.log(10.0).astype(self.exponent.dtype) * self.exponent / (1 - self.exponent)
        )
        self.capacity = measurement("Power", "capacity", capacity, tenth)
        check(
            "Power",
            "capacity",
            self.capacity,
            positive,
            "finite (give it when exponent is near 1)",
        )

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.unit_rate * jnp.expm1(self.exponent * jnp.log1p(workload / self.scale))

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.initial_slope * (1 + workload / self.scale) ** (self.exponent - 1)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        steepness = self.initial_slope * (self.exponent - 1) / self.scale
        return steepness * (1 + workload / self.scale) ** (self.exponent - 2)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(
            rate, self.supremum, lambda r: self.scale * jnp.expm1(jnp.log1p(r / self.unit_rate) / self.exponent)
        )

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self.unit_rate * self.exponent / self.scale

    @property
    def supremum(self) -> Float[Array, "..."]:
        return jnp.full_like(self.unit_rate, jnp.inf)


class Logarithmic(AbstractAnalytic):
    r"""A service that scales out with quickly diminishing returns and without a limit.

    $$ \ell(N) = \mu \log(1 + N / \kappa) $$

    **Arguments:**

    - `unit_rate`: $\mu$, `(backends,)` in requests/s.
    - `scale`: $\kappa$, `(backends,)` in requests.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s. By default the rate at which the slope
      has fallen to a tenth of its value at an empty backend, $\mu \log 10$.

    **Raises:** `InputError` on parameters that are not positive and finite, or whose shapes differ.
    """

    unit_rate: Float[Array, "..."]
    scale: Float[Array, "..."]
    capacity: Float[Array, "..."]

    def __init__(self, unit_rate: Numbers, scale: Numbers, *, capacity: Numbers | None = None):
        self.unit_rate, self.scale = parameters("Logarithmic", unit_rate=unit_rate, scale=scale)
        self.capacity = measurement("Logarithmic", "capacity", capacity, self.unit_rate * 2.302585092994046)

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.unit_rate * jnp.log1p(workload / self.scale)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.initial_slope / (1 + workload / self.scale)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return -self.initial_slope / self.scale / (1 + workload / self.scale) ** 2

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(rate, self.supremum, lambda r: self.scale * jnp.expm1(r / self.unit_rate))

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self.unit_rate / self.scale

    @property
    def supremum(self) -> Float[Array, "..."]:
        return jnp.full_like(self.unit_rate, jnp.inf)


class ManyServer(AbstractAnalytic):
    r"""Many parallel servers: a smooth $\min(N, n) / s$.

    $$ \ell(N) = \frac{N / s}{(1 + (N / n)^p)^{1/p}} $$

    **Arguments:**

    - `servers`: $n$, `(backends,)` in requests that can be served at once.
    - `service_time`: $s$, `(backends,)` in seconds.
    - `sharpness`: $p \ge 1$, `(backends,)`: 1 is a hyperbola, large values approach the corner at $N = n$.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s; `servers / service_time` by default.

    **Raises:** `InputError` on parameters that are not positive and finite, a sharpness below 1 (its curvature at an
    empty backend is infinite), shapes that differ, or a capacity above `servers / service_time`.
    """

    servers: Float[Array, "..."]
    service_time: Float[Array, "..."]
    sharpness: Float[Array, "..."]
    capacity: Float[Array, "..."]

    def __init__(
        self, servers: Numbers, service_time: Numbers, sharpness: Numbers = 2.0, *, capacity: Numbers | None = None
    ):
        self.servers, self.service_time, self.sharpness = parameters(
            "ManyServer", servers=servers, service_time=service_time, sharpness=sharpness
        )
        check("ManyServer", "sharpness", self.sharpness, lambda value: value >= 1, "at least 1")
        self.capacity = measurement("ManyServer", "capacity", capacity, self.supremum, self.supremum)

    def _folded(
        self, workload: Float[Array, "..."]
    ) -> tuple[Bool[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
        """Whether all servers are busy, $z = N/n$ or its inverse, whichever is at most 1, and $1 + z^p$.

        Powers of numbers above 1 never occur, so nothing overflows however long the queue.
        """
        fill = workload / self.servers
        busy = fill > 1
        folded = jnp.where(busy, 1 / jnp.where(busy, fill, 1), fill)
        return busy, folded, 1 + folded**self.sharpness

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        busy, folded, root = self._folded(workload)
        return self.supremum * jnp.where(busy, 1, folded) * root ** (-1 / self.sharpness)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        busy, folded, root = self._folded(workload)
        tail = jnp.where(busy, folded ** (self.sharpness + 1), 1)
        return self.initial_slope * tail * root ** (-1 / self.sharpness - 1)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        busy, folded, root = self._folded(workload)
        tail = folded ** jnp.where(busy, self.sharpness + 2, self.sharpness - 1)
        return -self.initial_slope / self.servers * (self.sharpness + 1) * tail * root ** (-1 / self.sharpness - 2)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(rate, self.supremum, self._inverse)

    def _inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        share = rate / self.supremum
        # Just below the supremum the power may round to 1: one rounding error below is as good an answer.
        idle = jnp.maximum(1 - share**self.sharpness, jnp.finfo(share.dtype).epsneg)
        return self.servers * share * idle ** (-1 / self.sharpness)

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return 1 / self.service_time

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self.servers / self.service_time
