"""From a measured table to a service curve, saying how well it fits and what it does where nothing was measured."""

from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.model.service.base import Numbers
from dgdlb_jax.model.service.tabulated import Tabulated
from dgdlb_jax.numerics.checks import check_entries, positive
from dgdlb_jax.numerics.results import ConvergenceError, InputError, require_values

# Curves of different tables get the same number of components where possible, so that their networks stack.
_COMPONENTS = 6

# A table that no increasing concave curve meets within this relative error is not a service curve at all.
_LARGEST_MISFIT = 0.5

# Two neighbouring slopes of a table count as convex when they differ by more than this: below is rounding of the figures.
_CONVEX = 1e-6

# The grid of scales, relative to the smallest and to the largest workload. An exponential of scale s has the slope
# n / (1 - e^-n) ell(N) / N at 0, n = N / s, and the limit ell(N) / (1 - e^-n), and a mixture is no worse than its worst
# component. With the smallest workload as N the first factor is at most 2 on this grid, with the largest the second is
# at most 4. Four: Llama2-70B on 8 H100, cut off at 8 requests, goes on to 3.9 times what it served there.
_SHORTEST, _LONGEST = 0.6276, 1 / np.log(4 / 3)

# How much a guess outside the measured range weighs beside a measured point. Little: a guess that is wrong by a factor of two
# costs as much as a point that is missed by 0.3 %. A fall says more: the server was given more and served less.
_GUESS, _GUESS_OF_FALLING = 0.003, 0.3

# Beyond these ratios to the nearest measurement, extrapolation below and above is worth a warning.
_FAR_BELOW, _FAR_ABOVE = 1.5, 2.0


class ServiceFit(eqx.Module):
    """A fitted curve and what the table looks like: `print` it for a sentence.

    - `service`: `Tabulated`, for one backend.
    - `misfit`: largest relative error of the fit over the points that were fitted.
    - `left_out`: the measured workloads past the highest throughput, which were not fitted.
    - `falls_at`: the measured workloads at which throughput is below that of a smaller workload, `left_out` included.
    - `convex_at`: the fitted workloads at which throughput per further request rises instead of falling.
    - `smallest`: the smallest measured workload, and the throughput measured there, requests/s.
    - `highest`: the highest measured throughput, requests/s.
    - `points`: what was measured, all of it: `(workload, throughput)`, each `(points,)`, from the smallest workload on.
    """

    service: Tabulated
    misfit: float
    left_out: tuple[float, ...]
    falls_at: tuple[float, ...]
    convex_at: tuple[float, ...]
    smallest: tuple[float, float]
    highest: float
    points: tuple[np.ndarray, np.ndarray]
    name: str = eqx.field(static=True)

    @property
    def lone_request(self) -> float:
        r"""$1 / \ell'(0)$: what the curve says of the service time of a request that is alone, seconds."""
        return 1 / float(self.service.initial_slope[0])

    @property
    def asymptote(self) -> float:
        """What the curve tends to far above the measured range, requests/s."""
        return float(self.service.supremum[0])

    @property
    def is_doubtful(self) -> bool:
        """Whether the table is no service curve somewhere, or says little of what lies outside the measured range."""
        workload, throughput = self.smallest
        far_below = workload / throughput > _FAR_BELOW * self.lone_request
        far_above = self.asymptote > _FAR_ABOVE * self.highest
        return bool(self.falls_at or self.convex_at) or far_below or far_above

    def __str__(self) -> str:
        capacity, largest = float(self.service.nominal_capacity[0]), float(self.service.measured_workload[0])
        smallest, throughput = self.smallest
        parts = [
            f"{self.name}: {capacity:.3g} requests/s, measured up to {largest:g} requests, fitted within {self.misfit:.1%}"
        ]
        if self.left_out:
            what = "1 point" if len(self.left_out) == 1 else f"{len(self.left_out)} points"
            parts.append(f"throughput falls from workload {self.left_out[0]:g} on, {what} left out of the fit")
        dips = [workload for workload in self.falls_at if workload not in self.left_out]
        if dips:
            parts.append(f"throughput falls at workload {_listed(dips)}, the fitted curve does not")
        if self.convex_at:
            parts.append(f"not concave at workload {_listed(self.convex_at)}, the fitted curve is")
        parts.append(
            f"extrapolated below workload {smallest:g}, to {self.lone_request:.3g} s for a lone request "
            f"({smallest / throughput:.3g} s were measured), and above {largest:g}, to at most {self.asymptote:.3g} requests/s "
            f"({self.highest:.3g} were measured)"
        )
        return "; ".join(parts) + "."


def fit_service(
    workload: Numbers, throughput: Numbers, *, candidates: Numbers | None = None, name: str = "service table"
) -> ServiceFit:
    r"""Fit an increasing, concave, smooth curve to a measured table.

    Nonnegative least squares of the relative errors over a grid of scales $s_k$, up to the point $m$ of the highest
    throughput, with a guess on either side of the measured range:
    $$ \min_{w \ge 0} \sum_{i \le m} \Big( \frac{\ell(N_i)}{y_i} - 1 \Big)^2
       + \epsilon_0^2 \Big( \frac{\ell'(0) N_1}{y_1} - 1 \Big)^2
       + \epsilon_\infty^2 \Big( \frac{\ell(\infty)}{y_m} - 1 \Big)^2,
       \quad \ell(N) = \sum_k w_k (1 - e^{-N / s_k}) $$

    The guesses are that a lone request takes as long as at the smallest measured workload, and that no more is served than
    the highest measured throughput. They hardly weigh ($\epsilon = 0.003$), so they decide where the table does not. A table
    that falls past its highest throughput, which this curve cannot, is left out from there on, and
    $\epsilon_\infty = 0.3$.

    **Arguments:**

    - `workload`: $N$, `(points,)`, requests in the server at once; any order.
    - `throughput`: $y$, `(points,)` in requests/s.
    - `candidates`: $s$, the grid of scales in requests; by default 20 per decade from 0.63 times the smallest to 3.5 times
      the largest fitted workload.
    - `name`: what messages call the table.

    **Returns:** a `ServiceFit`, which names what was left out and what is extrapolated. The measured range of its curve ends
    at $N_m$. Its nominal capacity is $\min(y_m, \ell(N_m))$: the highest measured throughput, or what the curve reaches
    within the measured range where the fit ends lower. So capacity is never above the supremum, and is carried at a measured
    workload. With the default grid $\ell'(0) \le 2 \ell(N_1) / N_1$ and $\ell(\infty) \le 4 \ell(N_m)$ for every table.

    **Raises:** `InputError` on fewer than two points, workloads that are repeated or not positive, throughput that is not
    positive or highest at the smallest workload, or a table that is nowhere near a service curve. **Source:** own derivation.
    """
    require_values("fit_service", workload, throughput, candidates)
    points, rates = _table(workload, throughput, name)
    rising = slice(_peak(rates, points, name) + 1)
    fitted, highest = points[rising], float(rates.max())
    left_out = tuple(points[rising.stop :].tolist())
    scales = _grid(fitted) if candidates is None else np.asarray(candidates, float)
    weights = _weights(fitted, rates[rising], scales, _GUESS_OF_FALLING if left_out else _GUESS)
    misfit = float(np.max(np.abs(_basis(fitted, scales) @ weights / rates[rising] - 1)))
    if not misfit <= _LARGEST_MISFIT:
        raise InputError(
            f"{name} is not a service curve: the best increasing and concave curve misses it by {misfit:.0%}; "
            "check that workload and throughput are not exchanged and that throughput is in requests/s."
        )
    return ServiceFit(
        service=_curve(weights, scales, highest, fitted[-1]),
        misfit=misfit,
        left_out=left_out,
        falls_at=_falls_at(points, rates),
        convex_at=_convex_at(fitted, rates[rising]),
        smallest=(float(points[0]), float(rates[0])),
        highest=highest,
        points=(points, rates),
        name=name,
    )


def scatter(fit: ServiceFit) -> np.ndarray | None:
    r"""Relative errors of the measurements: how far each point is from the curve through the others.

    $$ e_i = y_i / \ell_{-i}(N_i) - 1, \quad 1 < i < m $$
    The first point and that of the highest throughput are left out, as the curve would have to be extrapolated there. A curve of six
    exponentials meets a short table exactly, so its own residuals would say that nothing is uncertain.

    **Returns:** `(points,)`, with mean 0; None where fewer than four points were fitted.
    """
    count = fit.points[0].size - len(fit.left_out)
    workload, rates = (column[:count] for column in fit.points)
    if count < 4:
        return None
    scales, falling = _grid(workload), _GUESS_OF_FALLING if fit.left_out else _GUESS
    errors = []
    for k in range(1, count - 1):
        others = np.arange(count) != k
        curve = _weights(workload[others], rates[others], scales, falling)
        errors.append(rates[k] / (_basis(workload[k : k + 1], scales) @ curve)[0] - 1)
    return np.asarray(errors) - np.mean(errors)


def redrawn(fit: ServiceFit, errors: np.ndarray, draw: np.random.Generator) -> ServiceFit:
    """The fit to a table measured again: every point on the curve, times 1 + one of the `errors` (`scatter`), drawn anew for each.

    The bootstrap over residuals, with those of leaving one out (Davison and Hinkley, Bootstrap Methods, 1997, section 6.2.3). Where
    what was drawn is no service curve, the fit as it is.
    """
    count = fit.points[0].size - len(fit.left_out)
    workload = fit.points[0][:count]
    curve = np.asarray(fit.service.rate(jnp.asarray(workload)[:, None]), float)[:, 0]
    try:
        again = fit_service(workload, curve * (1 + draw.choice(errors, count)), name=fit.name)
    except (InputError, ConvergenceError):
        return fit
    return again


def _weights(points: np.ndarray, rates: np.ndarray, scales: np.ndarray, falling: float) -> np.ndarray:
    """Relative least squares over the points, and over the guesses below and above them."""
    from scipy.optimize import nnls  # late: starting up should not cost a quarter of a second more

    below, above = points[0] / rates[0] / scales, np.full_like(scales, 1 / rates[-1])
    weight = np.r_[np.ones_like(rates), _GUESS, falling]
    rows = np.vstack([_basis(points, scales) / rates[:, None], below, above])
    try:
        return nnls(rows * weight[:, None], weight)[0]
    except RuntimeError as error:  # too many iterations
        raise ConvergenceError(
            f"The fit to {points.size} points did not converge: leave out points that lie close together."
        ) from error


def _basis(points: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return -np.expm1(-points[:, None] / scales)


def _curve(weights: np.ndarray, scales: np.ndarray, highest: float, largest: float) -> Tabulated:
    """The mixture, its capacity at most what it reaches within the measured range: in its own precision."""
    used = np.flatnonzero(weights)
    service = Tabulated(weights[used, None], scales[used, None], measured=[largest])
    service = service.with_components(max(_COMPONENTS, used.size))
    capacity = jnp.minimum(service.rate(service.measured), highest)
    return eqx.tree_at(lambda curve: curve.capacity, service, capacity)


def _peak(rates: np.ndarray, points: np.ndarray, name: str) -> int:
    """Where throughput is highest, for the last time."""
    peak = rates.size - 1 - int(np.argmax(rates[::-1]))
    if peak == 0:
        raise InputError(
            f"{name} is not a service curve: throughput is highest at the smallest workload, {points[0]:g}; measure at "
            "smaller workloads, and check that workload and throughput are not exchanged."
        )
    return peak


def _table(workload: Numbers, throughput: Numbers, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The table as sorted columns, checked."""
    points, rates = (np.atleast_1d(np.asarray(column, float)) for column in (workload, throughput))
    if points.shape != rates.shape or points.ndim != 1 or points.size < 2:
        raise InputError(
            f"{name}: workload has shape {points.shape} and throughput {rates.shape}: give two columns of equal length "
            "with at least two points."
        )
    for column, values in (("workload", points), ("throughput", rates)):
        check_entries(
            values,
            positive,
            lambda at, value, column=column: (
                f"{name}: {column} of row {at[0]} is {value:g}, but must be positive and finite: correct or remove the row."
            ),
        )
    order = np.argsort(points)
    points, rates = points[order], rates[order]
    twice = np.flatnonzero(np.diff(points) == 0)
    if twice.size:
        raise InputError(
            f"{name}: workload {points[twice[0]]:g} occurs twice: keep one row (the mean, say) per workload."
        )
    return points, rates


def _grid(points: np.ndarray) -> np.ndarray:
    low, high = np.log10(points[0] * _SHORTEST), np.log10(points[-1] * _LONGEST)
    return np.logspace(low, high, int(np.ceil(20 * (high - low))) + 1)


def _falls_at(points: np.ndarray, rates: np.ndarray) -> tuple[float, ...]:
    before = np.maximum.accumulate(rates)[:-1]
    return tuple(points[1:][rates[1:] < before].tolist())


def _convex_at(points: np.ndarray, rates: np.ndarray) -> tuple[float, ...]:
    """Where the polygon through the origin and the points bends upwards."""
    slopes = np.diff(rates, prepend=0) / np.diff(points, prepend=0)
    bends = slopes[1:] - slopes[:-1] > _CONVEX * slopes[0]
    return tuple(points[:-1][bends].tolist())


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
