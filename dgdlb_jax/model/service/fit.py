"""From a measured table to a service curve, saying how well it fits."""

from collections.abc import Sequence

import equinox as eqx
import numpy as np

from dgdlb_jax.model.service.base import Numbers
from dgdlb_jax.model.service.tabulated import Tabulated
from dgdlb_jax.numerics.results import InputError

# Curves of different tables get the same number of components where possible, so that their networks stack.
_COMPONENTS = 6

# A table that no increasing concave curve meets within this relative error is not a service curve at all.
_LARGEST_MISFIT = 0.5

# Two neighbouring slopes of a table count as convex when they differ by more than this: below is rounding of the figures.
_CONVEX = 1e-6


class ServiceFit(eqx.Module):
    """A fitted curve and what the table looks like: `print` it for a sentence.

    - `service`: `Tabulated`, for one backend.
    - `misfit`: largest relative error of the fit over the points of the table.
    - `falls_at`: the measured workloads at which throughput is below that of a smaller workload.
    - `convex_at`: the measured workloads at which throughput per further request rises instead of falling.
    """

    service: Tabulated
    misfit: float
    falls_at: tuple[float, ...]
    convex_at: tuple[float, ...]
    name: str = eqx.field(static=True)

    def __str__(self) -> str:
        highest, largest = float(self.service.nominal_capacity[0]), float(self.service.measured_workload[0])
        parts = [
            f"{self.name}: {highest:.3g} requests/s, measured up to {largest:g} requests, fitted within {self.misfit:.1%}"
        ]
        if self.falls_at:
            parts.append(f"throughput falls at workload {_listed(self.falls_at)}, the fitted curve does not")
        if self.convex_at:
            parts.append(f"not concave at workload {_listed(self.convex_at)}, the fitted curve is")
        return "; ".join(parts) + "."


def fit_service(
    workload: Numbers, throughput: Numbers, *, candidates: Numbers | None = None, name: str = "service table"
) -> ServiceFit:
    r"""Fit an increasing, concave, smooth curve to a measured table.

    Nonnegative least squares of the relative errors over a grid of scales $s_k$:
    $$ \min_{w \ge 0} \sum_i \Big( \frac{\sum_k w_k (1 - e^{-N_i / s_k})}{y_i} - 1 \Big)^2 $$

    **Arguments:**

    - `workload`: $N$, `(points,)`, requests in the server at once; any order.
    - `throughput`: $y$, `(points,)` in requests/s.
    - `candidates`: $s$, the grid of scales in requests; by default 20 per decade from half the smallest to ten times the
      largest workload.
    - `name`: what messages call the table.

    **Returns:** a `ServiceFit`. Its nominal capacity is the highest measured throughput. Outside the measured range the
    curve is a guess, and runs that go there should say so.

    **Raises:** `InputError` on fewer than two points, workloads that are repeated or not positive, throughput that is not
    positive, or a table that is nowhere near a service curve. **Source:** own derivation.
    """
    from scipy.optimize import nnls  # late: starting up should not cost a quarter of a second more

    points, rates = _table(workload, throughput, name)
    scales = _grid(points) if candidates is None else np.asarray(candidates, float)
    basis = -np.expm1(-points[:, None] / scales)
    weights, _ = nnls(basis / rates[:, None], np.ones_like(rates))
    misfit = float(np.max(np.abs(basis @ weights / rates - 1)))
    if not misfit <= _LARGEST_MISFIT:
        raise InputError(
            f"{name} is not a service curve: the best increasing and concave curve misses it by {misfit:.0%}; "
            "check that workload and throughput are not exchanged and that throughput is in requests/s."
        )
    used = np.flatnonzero(weights)
    service = Tabulated(weights[used, None], scales[used, None], [rates.max()], [points.max()])
    service = service.with_components(max(_COMPONENTS, used.size))
    return ServiceFit(service, misfit, _falls_at(points, rates), _convex_at(points, rates), name)


def _table(workload: Numbers, throughput: Numbers, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The table as sorted columns, checked."""
    points, rates = (np.atleast_1d(np.asarray(column, float)) for column in (workload, throughput))
    if points.shape != rates.shape or points.ndim != 1 or points.size < 2:
        raise InputError(
            f"{name}: workload has shape {points.shape} and throughput {rates.shape}: give two columns of equal length "
            "with at least two points."
        )
    for column, values in (("workload", points), ("throughput", rates)):
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if bad.size:
            raise InputError(
                f"{name}: {column} of row {bad[0]} is {values[bad[0]]:g}, but must be positive and finite: "
                "correct or remove the row."
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
    low, high = np.log10(points.min() / 2), np.log10(points.max() * 10)
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
