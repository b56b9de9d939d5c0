"""Demand over time: arrival rates of frontends, or a factor on the capacity of backends."""

import abc
from collections.abc import Sequence
from typing import TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.numerics.checks import Allowed, check_entries, floating, not_negative, positive
from dgdlb_jax.numerics.knots import mean_of_steps, pick, places_within
from dgdlb_jax.numerics.results import InputError, is_concrete

Numbers = ArrayLike | Sequence[float]
Table = ArrayLike | Sequence[Sequence[float]]


class AbstractDemand(eqx.Module):
    r"""A rate $\lambda_i(t) \ge 0$ per frontend.

    Every parameter has the frontend axis last, `(frontends,)` or `(knots, frontends)`. Layouts with further trailing axes
    work too. In a batch each parameter has one leading axis and `rate` is vmapped over it.
    """

    @abc.abstractmethod
    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        """The rates at time `t` in seconds (a scalar, or one time per frontend), `(frontends,)` in requests/s."""

    @property
    @abc.abstractmethod
    def mean_rate(self) -> Float[Array, "..."]:
        """`(frontends,)` in requests/s: what load, optimum and step sizes refer to."""

    @property
    @abc.abstractmethod
    def largest_rate(self) -> Float[Array, "..."]:
        """`(frontends,)` in requests/s: the largest rate of all times. Of a capacity factor, what a time step has to resolve."""

    @abc.abstractmethod
    def scaled(self, factor: Numbers) -> "AbstractDemand":
        """All rates multiplied by `factor`, a scalar or one number per frontend; times stay as they are."""

    @abc.abstractmethod
    def pad(self, frontends: int, fill: float = 0.0) -> "AbstractDemand":
        """The same demand for `frontends` frontends in all; those added have the constant rate `fill`."""

    def scaled_to(self, mean_rate: Numbers) -> "AbstractDemand":
        """The same shape over time with the given mean rates: rates are scaled, requests are not resampled.

        **Raises:** `InputError` when a frontend that never sends anything should get a positive mean.
        """
        own, wanted = self.mean_rate, _floating(type(self).__name__, "mean_rate", mean_rate)
        wanted = jnp.broadcast_to(wanted.astype(own.dtype), own.shape)
        _check(type(self).__name__, "mean_rate", wanted)
        if is_concrete(own, wanted):
            silent = np.argwhere((np.asarray(own) == 0) & (np.asarray(wanted) > 0))
            if silent.size:
                raise InputError(
                    f"{type(self).__name__}.scaled_to: frontend {silent[0][-1]} never sends a request and cannot be scaled "
                    f"to {wanted[tuple(silent[0])]:g} requests/s: give it a demand of its own, or the mean 0."
                )
        return self.scaled(jnp.where(own > 0, wanted / jnp.where(own > 0, own, 1), 0))


class AbstractJumpingDemand(AbstractDemand):
    r"""A demand whose rates jump, and that knows when.

    The simulator counts what such a demand sends in a step, $\int \lambda_i dt$, instead of looking at rates at grid points: counts are
    exact wherever the jumps are, and the order of the scheme stays two.
    """

    @abc.abstractmethod
    def mean_over(self, start: ArrayLike, length: ArrayLike) -> Float[Array, "..."]:
        r"""The exact mean rate from `start` to `start + length` in seconds (scalars, or one per frontend); the rate at `start` for
        length 0."""

    @abc.abstractmethod
    def jumps_within(self, start: ArrayLike, length: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """How many jumps of each frontend there are from `start` to `start + length`, and what part of that time lies before them.

        A jump at an end counts, even if rounding puts it just outside, and so does one of size 0: a run is continuous in its rates.
        Of several jumps it is the mean part, without any it is 0.
        """


class Constant(AbstractDemand):
    """Rates that never change.

    **Arguments:** `rates`: `(frontends,)` in requests/s, not negative.

    **Raises:** `InputError` on values that are negative or not finite.
    """

    rates: Float[Array, "..."]

    def __init__(self, rates: Numbers):
        self.rates = jnp.atleast_1d(_floating("Constant", "rates", rates))
        _check("Constant", "rates", self.rates)

    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        del t
        return self.rates

    @property
    def mean_rate(self) -> Float[Array, "..."]:
        return self.rates

    @property
    def largest_rate(self) -> Float[Array, "..."]:
        return self.rates

    def scaled(self, factor: Numbers) -> "Constant":
        return _replace(self, rates=self.rates * _factor(factor, self.rates))

    def pad(self, frontends: int, fill: float = 0.0) -> "Constant":
        return _replace(self, rates=_pad(self.rates, frontends, fill))


class Trace(AbstractDemand):
    r"""Recorded demand: continuous, piecewise linear, and with exactly the recorded count in every bin.

    With $r_m$ the mean rate in bin $m$, knots lie at bin edges, $e_m = \min((r_{m-1} + r_m) / 2, 2 r_{m-1}, 2 r_m)$, and at
    bin middles, $c_m = 2 r_m - (e_m + e_{m+1}) / 2 \ge 0$. The first and last edge have the rate of their own bin; after the
    end (and before 0) the rate stays where it is.

    Whatever is continuous and keeps the counts passes the mean of a bin that is busier than its neighbours. Here it does by half of what
    the bin is above the mean of the two, and by more, up to $r_m$, where one of them is below a third of it: never beyond $2 r_m$.

    **Arguments:**

    - `bin_width`: in seconds, a scalar or `(frontends,)`.
    - `rates`: $r$, `(bins, frontends)` in requests/s; `Trace.from_counts` takes requests per bin.

    **Raises:** `InputError` on values that are negative or not finite, a width that is not positive, a table without bins.
    **Source:** own derivation.
    """

    bin_width: Float[Array, "..."]
    rates: Float[Array, "..."]

    def __init__(self, bin_width: Numbers, rates: Table):
        self.rates = _table("Trace", "rates", rates)
        width = _floating("Trace", "bin_width", bin_width).astype(self.rates.dtype)
        _check("Trace", "bin_width", width, positive, "positive and finite, in seconds")
        self.bin_width = _per_frontend("Trace", "bin_width", width, self.rates)

    @classmethod
    def from_counts(cls, bin_width: Numbers, counts: Table) -> "Trace":
        """From requests per bin, `(bins, frontends)`."""
        rates = _table("Trace", "counts", counts)
        width = _floating("Trace", "bin_width", bin_width).astype(rates.dtype)
        _check("Trace", "bin_width", width, positive, "positive and finite, in seconds")
        return cls(width, rates / (width[..., None, :] if width.ndim else width))

    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        bins = self.rates.shape[0]
        position = jnp.clip(jnp.asarray(t, self.rates.dtype) / self.bin_width, 0, bins)
        m = jnp.minimum(position.astype(jnp.int32), bins - 1)
        before, here, after = (pick(self.rates, jnp.clip(m + k, 0, bins - 1)) for k in (-1, 0, 1))
        left, right = _edge(before, here), _edge(here, after)
        middle = 2 * here - (left + right) / 2
        place = 2 * (position - m.astype(position.dtype))  # 0 at the left edge, 1 in the middle, 2 at the right edge
        return jnp.where(place < 1, left + (middle - left) * place, middle + (right - middle) * (place - 1))

    @property
    def mean_rate(self) -> Float[Array, "..."]:
        """All requests over the whole duration of the trace."""
        return self.rates.mean(axis=-2)

    @property
    def largest_rate(self) -> Float[Array, "..."]:
        """The largest of all knots: at most twice that of the busiest bin."""
        return self.knots.max(axis=-2)

    @property
    def knots(self) -> Float[Array, "..."]:
        """The rates at edges and in middles of bins, in turn, `(2 bins + 1, frontends)`; in between they are linear."""
        ends = self.rates[..., :1, :], self.rates[..., -1:, :]
        edges = jnp.concatenate([ends[0], _edge(self.rates[..., :-1, :], self.rates[..., 1:, :]), ends[1]], axis=-2)
        middles = 2 * self.rates - (edges[..., :-1, :] + edges[..., 1:, :]) / 2
        pairs = jnp.stack([edges[..., :-1, :], middles], axis=-2)
        return jnp.concatenate([pairs.reshape(*pairs.shape[:-3], -1, pairs.shape[-1]), ends[1]], axis=-2)

    def scaled(self, factor: Numbers) -> "Trace":
        return _replace(self, rates=self.rates * _factor(factor, self.rates, knots=True))

    def pad(self, frontends: int, fill: float = 0.0) -> "Trace":
        width = jnp.concatenate([self.bin_width, jnp.repeat(self.bin_width[-1:], frontends - self.bin_width.size)])
        return _replace(self, bin_width=width, rates=_pad(self.rates, frontends, fill))


class Jumps(AbstractJumpingDemand):
    """Rates that jump at given times.

    The mean rate is the last one: a run after jumps settles, if it does, to the optimum of the rates it ends with. A run has exact
    derivatives with respect to `rates`; those with respect to `times` are exact for the discrete run, in which they are those of
    the counts in a step, and of first order in its length.

    **Arguments:**

    - `times`: `(jumps,)`, or `(jumps, frontends)` if frontends jump at different times; seconds, in rising order. The new
      rate holds from that time on.
    - `rates`: `(jumps + 1, frontends)` in requests/s: before the first jump, between jumps, after the last.

    **Raises:** `InputError` on values that are negative or not finite, times out of order, or one table too short.
    """

    times: Float[Array, "..."]
    rates: Float[Array, "..."]

    def __init__(self, times: Numbers | Table, rates: Table):
        self.rates = _table("Jumps", "rates", rates)
        times = _floating("Jumps", "times", times).astype(self.rates.dtype)
        _check("Jumps", "times", times, not_negative, "finite, not negative, in seconds")
        times = times[:, None] if times.ndim == 1 else times
        if (
            times.ndim < 2
            or times.shape[-2] + 1 != self.rates.shape[-2]
            or times.shape[-1] not in (1, self.rates.shape[-1])
        ):
            raise InputError(
                f"Jumps: times {times.shape} do not fit rates {self.rates.shape}: give one row of rates more than jumps, "
                "and times for one or for all frontends."
            )
        if is_concrete(times) and (np.diff(np.asarray(times), axis=-2) < 0).any():
            raise InputError("Jumps.times are not in rising order: sort the jumps, with their rates, by time.")
        self.times = jnp.broadcast_to(times, (*times.shape[:-1], self.rates.shape[-1]))

    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        return self.mean_over(t, 0.0)

    def mean_over(self, start: ArrayLike, length: ArrayLike) -> Float[Array, "..."]:
        return mean_of_steps(self.times, self.rates, *self._interval(start, length))

    def jumps_within(self, start: ArrayLike, length: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        return places_within(self.times, *self._interval(start, length))

    def _interval(self, start: ArrayLike, length: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        return jnp.asarray(start, self.rates.dtype), jnp.asarray(length, self.rates.dtype)

    @property
    def mean_rate(self) -> Float[Array, "..."]:
        """The rates after the last jump."""
        return self.rates[..., -1, :]

    @property
    def largest_rate(self) -> Float[Array, "..."]:
        return self.rates.max(axis=-2)

    def scaled(self, factor: Numbers) -> "Jumps":
        return _replace(self, rates=self.rates * _factor(factor, self.rates, knots=True))

    def pad(self, frontends: int, fill: float = 0.0) -> "Jumps":
        return _replace(self, times=_pad(self.times, frontends, 0.0), rates=_pad(self.rates, frontends, fill))


class DailyCycle(AbstractDemand):
    r"""A day's cycle.

    $$ \lambda(t) = m \left(1 + a \cos\frac{2 \pi (t - \phi)}{T}\right) $$

    **Arguments:**

    - `mean`: $m$, `(frontends,)` in requests/s.
    - `amplitude`: $a$, relative to the mean, from 0 to 1; a scalar or `(frontends,)`.
    - `phase`: $\phi$, when the peak is, in seconds; a scalar or `(frontends,)`.
    - `period`: $T$ in seconds, a scalar or `(frontends,)`; a day by default.

    **Raises:** `InputError` on values that are not finite or out of range, or whose shapes do not fit.
    """

    mean: Float[Array, "..."]
    amplitude: Float[Array, "..."]
    phase: Float[Array, "..."]
    period: Float[Array, "..."]

    def __init__(self, mean: Numbers, amplitude: Numbers, phase: Numbers = 0.0, period: Numbers = 86400.0):
        self.mean = jnp.atleast_1d(_floating("DailyCycle", "mean", mean))
        _check("DailyCycle", "mean", self.mean)
        self.amplitude = self._like_mean("amplitude", amplitude, lambda a: (a >= 0) & (a <= 1), "between 0 and 1")
        self.phase = self._like_mean("phase", phase, np.isfinite, "finite, in seconds")
        self.period = self._like_mean("period", period, positive, "positive and finite, in seconds")

    def _like_mean(self, name: str, value: Numbers, allowed: Allowed, rule: str) -> Float[Array, "..."]:
        array = _floating("DailyCycle", name, value).astype(self.mean.dtype)
        _check("DailyCycle", name, array, allowed, rule)
        return _per_frontend("DailyCycle", name, array, self.mean[..., None, :])

    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        turn = (jnp.asarray(t, self.mean.dtype) - self.phase) / self.period
        # Whole turns come off first, so that the cosine of a late time is as exact in float32 as that of an early one.
        return self.mean * (1 + self.amplitude * jnp.cos(2 * jnp.pi * (turn - jnp.round(turn))))

    @property
    def mean_rate(self) -> Float[Array, "..."]:
        """The mean over a whole period."""
        return self.mean

    @property
    def largest_rate(self) -> Float[Array, "..."]:
        """At the peak."""
        return self.mean * (1 + self.amplitude)

    def scaled(self, factor: Numbers) -> "DailyCycle":
        return _replace(self, mean=self.mean * _factor(factor, self.mean))

    def pad(self, frontends: int, fill: float = 0.0) -> "DailyCycle":
        fills = {"mean": fill, "amplitude": 0.0, "phase": 0.0, "period": 1.0}
        return _replace(self, **{name: _pad(getattr(self, name), frontends, value) for name, value in fills.items()})


_Demand = TypeVar("_Demand", bound=AbstractDemand)


def _edge(one: Float[Array, "..."], other: Float[Array, "..."]) -> Float[Array, "..."]:
    """The rate where two bins meet: their mean, but no more than either bin can make up for in its middle."""
    return jnp.minimum((one + other) / 2, 2 * jnp.minimum(one, other))


def _floating(kind: str, name: str, value: Numbers | Table) -> Float[Array, "..."]:
    return floating(f"{kind}.{name}", value, "give one number per frontend")


def _table(kind: str, name: str, value: Table) -> Float[Array, "..."]:
    array = _floating(kind, name, value)
    if array.ndim < 2 or 0 in array.shape:
        raise InputError(f"{kind}.{name} has shape {array.shape}: give rows over time, one column per frontend.")
    _check(kind, name, array)
    return array


def _check(
    kind: str,
    name: str,
    array: Float[Array, "..."],
    allowed: Allowed = not_negative,
    rule: str = "finite and not negative, in requests/s",
) -> None:
    """Raise `InputError` for the first entry that is not allowed; traced values are not looked at."""

    def sentence(at: tuple[int, ...], value: float) -> str:
        place = f" (frontend {at[-1]})" if at else ""
        return f"{kind}.{name}{list(at) or ''}{place} is {value:g}, but must be {rule}: correct it."

    check_entries(array, allowed, sentence)


def _per_frontend(kind: str, name: str, array: Float[Array, "..."], table: Float[Array, "..."]) -> Float[Array, "..."]:
    """A scalar or one value per column of `table`, as one value per column."""
    shape = (*table.shape[:-2], table.shape[-1])
    if array.shape not in ((), (1,), shape):
        raise InputError(
            f"{kind}.{name} has shape {array.shape}: give a single number, or {shape[-1]}, one per frontend."
        )
    return jnp.broadcast_to(array, shape)


def _factor(factor: Numbers, leaf: Float[Array, "..."], knots: bool = False) -> Float[Array, "..."]:
    """A scalar or `(..., frontends)` factor, shaped to multiply a leaf with or without an axis of knots."""
    array = jnp.asarray(factor).astype(leaf.dtype)
    return array[..., None, :] if knots and array.ndim else array


def _pad(leaf: Float[Array, "..."], frontends: int, fill: float) -> Float[Array, "..."]:
    extra = ((0, 0),) * (leaf.ndim - 1) + ((0, frontends - leaf.shape[-1]),)
    return jnp.pad(leaf, extra, constant_values=fill)


def _replace(demand: _Demand, **leaves: Float[Array, "..."]) -> _Demand:
    """A copy with other leaves, whose values are known to be good."""
    names = list(leaves)
    return eqx.tree_at(lambda d: [getattr(d, name) for name in names], demand, [leaves[name] for name in names])
