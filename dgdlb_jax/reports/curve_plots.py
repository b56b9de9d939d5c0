"""Measured service curves as a picture."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.fleets import Service
from dgdlb_jax.model.service import ServiceFit
from dgdlb_jax.reports.axes import COLOURS, as_written, finish, new_axes, new_figure


def measured_curve(fit: ServiceFit, *, operating: Sequence[float] = (), ax: Axes | None = None) -> Axes:
    """Measured points, hollow where they were left out; the fitted curve, dotted where it is extrapolated.

    **Arguments:** `fit`; `operating`: workloads of one server, requests, marked on the curve; `ax`: axes to draw on, a new figure by
    default. **Returns:** the axes.
    """
    ax = new_axes((6, 4)) if ax is None else ax
    workload, rate = fit.points
    fitted = ~np.isin(workload, fit.left_out)
    held = np.asarray(operating, float)
    beyond = 2 * max(float(workload[-1]), *held[np.isfinite(held)], 0.0)
    low, high = float(workload[fitted][0]), float(workload[fitted][-1])
    for left, right, style in ((low / 3, low, ":"), (low, high, "-"), (high, beyond, ":")):
        at = np.geomspace(left, right, 200)
        ax.plot(at, _rate(fit, at), style, color=COLOURS[0], label="fitted" if style == "-" else None)
    ax.plot([], [], ":", color=COLOURS[0], label="extrapolated")
    ax.plot(workload[fitted], rate[fitted], "o", ms=5, color="black", label="measured", zorder=3)
    if not fitted.all():
        ax.plot(workload[~fitted], rate[~fitted], "o", ms=5, mfc="none", color="black", label="left out", zorder=3)
    if held.size:
        ax.plot(held, _rate(fit, held), "D", ms=6, color=COLOURS[5], label="at the optimum", zorder=4)
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if beyond < 300 * low else (1,)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    finish(ax, "requests in one server", "requests/s of one server", fit.name)
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="lower right")
    return as_written(ax)


def measured_curves(service: Service, optimum: Optimum) -> Figure:
    """`measured_curve` for every measured curve of a fleet, with the workloads of its backends at the optimum."""
    fits = service.fits
    replicas = 1.0 if service.replicas is None else service.replicas
    held = np.asarray(optimum.workload, float) / replicas
    wide = min(len(fits), 2)
    tall = -(-len(fits) // wide)
    figure = new_figure((9.0, 3.6 * tall) if wide > 1 else (6.5, 4.0))
    grid = figure.subplots(tall, wide, squeeze=False)
    for k, ax in enumerate(grid.flat):
        if k >= len(fits):
            ax.set_axis_off()
            continue
        curve = list(fits)[k]
        used = [float(held[j]) for j, chosen in enumerate(service.chosen) if chosen == curve and held[j] > 0]
        measured_curve(fits[curve], operating=used, ax=ax)
        ax.set_title(curve, loc="left")
        ax.set_ylabel(ax.get_ylabel() if k % wide == 0 else "")
    return as_written(figure)


def _rate(fit: ServiceFit, workload: np.ndarray) -> np.ndarray:
    return np.asarray(fit.service.rate(jnp.asarray(workload)[:, None]), float)[:, 0]
