"""What every service curve can do, and how curves check their parameters."""

import abc
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from dgdlb_jax.numerics import checks
from dgdlb_jax.numerics.checks import Allowed, check_entries, positive
from dgdlb_jax.numerics.results import InputError, is_concrete

Numbers = ArrayLike | Sequence[float] | Sequence[Sequence[float]]

# The slope that `marginal_latency` never falls below, relative to the slope of an empty backend:
# small enough to be out of reach of any sensible run, large enough for its inverse square in float32.
SMALLEST_SLOPE = 1e-12
SMALLEST_FACTOR = 1e-12
"""Of a capacity, as far as latencies go: a backend that stands still has none that is finite."""

# A capacity that exceeds the supremum by less than this is equal to it but for the rounding of sums in float32.
_ROUNDING = 1e-5


class AbstractService(eqx.Module):
    r"""A service curve $\ell_j$ per backend: $\ell(0) = 0$, increasing, concave, smooth, with a finite slope at 0.

    Every parameter has the backend axis last and every method is elementwise in workloads $N \ge 0$ of shape
    `(..., backends)`; layouts with further trailing axes work too, as long as parameters and workload share them.
    In a batch each parameter has one leading axis and the methods are vmapped over it.

    **Source:** the assumptions on $\ell$ follow arXiv:2504.10693.
    """

    @abc.abstractmethod
    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\ell(N)$, requests/s."""

    @abc.abstractmethod
    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\ell'(N) > 0$, 1/s."""

    @abc.abstractmethod
    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$\ell''(N) \le 0$, 1/(s request)."""

    @abc.abstractmethod
    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The workload that is served at `rate` (requests/s, not negative): $\ell^{-1}$; inf at or above the supremum."""

    @property
    @abc.abstractmethod
    def initial_slope(self) -> Float[Array, "..."]:
        r"""$\ell'(0)$, 1/s: one over the service time of a request that is alone."""

    @property
    @abc.abstractmethod
    def supremum(self) -> Float[Array, "..."]:
        r"""$\lim_{N \to \infty} \ell(N)$, requests/s; may be inf."""

    @property
    @abc.abstractmethod
    def nominal_capacity(self) -> Float[Array, "..."]:
        """What "70 % load" refers to, requests/s; never above the supremum."""

    @property
    @abc.abstractmethod
    def measured_workload(self) -> Float[Array, "..."]:
        """The largest workload at which the curve was measured; inf for a curve given by a formula."""

    def marginal_latency(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$1 / \max(\ell'(N), 10^{-12} \ell'(0))$ in seconds: what one more request costs at rest, network apart.

        It saturates, with derivative 0, instead of overflowing far beyond capacity.
        """
        return 1 / jnp.maximum(self.slope(workload), SMALLEST_SLOPE * self.initial_slope)

    def average_latency(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""$N / \ell(N)$ in seconds: mean time in the system at rest, network apart, by Little's law. Its limit $1 / \ell'(0)$ at 0."""
        rate = self.rate(workload)
        busy = (workload > 0) & (rate > 0)
        return jnp.where(busy, jnp.where(busy, workload, 1) / jnp.where(busy, rate, 1), self.marginal_latency(workload))

    @property
    def backends(self) -> int:
        """How many backends the parameters describe."""
        return self.nominal_capacity.shape[-1]

    def take(self, backends: Int[ArrayLike, " chosen"]) -> "AbstractService":
        """The curve of the chosen backends, in that order; repetitions are allowed."""
        return jax.tree.map(lambda leaf: leaf[..., backends], self)

    def pad(self, backends: int) -> "AbstractService":
        """The curve for `backends` backends in all, the last one repeated as often as needed."""
        return self.take(np.minimum(np.arange(backends), self.backends - 1))


def parameters(curve: str, **values: Numbers) -> list[Float[Array, "..."]]:
    """Parameters as floating arrays of one shape, `(backends,)` at least, checked to be positive and finite.

    **Raises:** `InputError` naming the curve, the parameter, the backend and the value.
    """
    arrays = _same_dtype([floating(curve, name, value) for name, value in values.items()])
    try:
        arrays = [jnp.atleast_1d(array) for array in jnp.broadcast_arrays(*arrays)]
    except ValueError as error:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in zip(values, arrays, strict=True))
        raise InputError(
            f"{curve}: the shapes {shapes} do not fit: give one number per backend, or one for all."
        ) from error
    for name, array in zip(values, arrays, strict=True):
        check(curve, name, array, positive, "positive and finite")
    return arrays


def floating(curve: str, name: str, value: Numbers) -> Float[Array, "..."]:
    """A parameter of a curve as a floating array."""
    return checks.floating(f"{curve}.{name}", value, "give one number per backend")


def check(curve: str, name: str, array: Float[Array, "..."], allowed: Allowed, rule: str) -> None:
    """Raise `InputError` for the first entry that is not allowed; traced values are not looked at."""

    def sentence(at: tuple[int, ...], value: float) -> str:
        return f"{curve}.{name} of backend {at[-1]} is {value:g}, but must be {rule}: correct {name}{list(at)}."

    check_entries(array, allowed, sentence)


def measurement(
    curve: str,
    name: str,
    given: Numbers | None,
    default: Float[Array, "..."],
    supremum: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
    """What the user measured, checked to be positive, finite and at most the supremum, or `default` in its absence."""
    if given is None:
        return default
    array = floating(curve, name, given).astype(default.dtype)
    if array.shape not in ((), (1,), default.shape):
        raise InputError(f"{curve}.{name} has shape {array.shape}, not {default.shape}: give one number per backend.")
    array = jnp.broadcast_to(array, default.shape)
    check(curve, name, array, positive, "positive and finite")
    if supremum is not None:
        _check_reachable(curve, name, array, supremum)
    return array


def _check_reachable(curve: str, name: str, array: Float[Array, "..."], supremum: Float[Array, "..."]) -> None:
    """Raise `InputError` for the first entry above the supremum; traced values are not looked at."""
    if not is_concrete(array, supremum):
        return
    values, most = np.asarray(array), np.asarray(supremum)
    above = np.argwhere(values > most * (1 + _ROUNDING))
    if above.size:
        at = tuple(int(index) for index in above[0])
        raise InputError(
            f"{curve}.{name} of backend {at[-1]} is {values[at]:g}, above {most[at]:g}, the most that the curve can serve: "
            f"lower {name}{list(at)}."
        )


def below(
    rate: Float[Array, "..."],
    supremum: Float[Array, "..."],
    formula: Callable[[Float[Array, "..."]], Float[Array, "..."]],
) -> Float[Array, "..."]:
    """`formula(rate)` below the supremum, inf elsewhere, with derivatives that stay finite on both sides."""
    reachable = rate < supremum
    return jnp.where(reachable, formula(jnp.where(reachable, rate, 0)), jnp.inf)


def _same_dtype(arrays: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    dtype = np.result_type(*(array.dtype for array in arrays))
    return [array.astype(dtype) for array in arrays]
