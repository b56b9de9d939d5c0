"""How long whole requests take, as a picture."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from dgdlb_jax.numerics.formatting import seconds
from dgdlb_jax.reports.axes import as_written, finish, new_figure
from dgdlb_jax.reports.plots import balancer_style
from dgdlb_jax.studies.requests import DISCIPLINES, LEVELS, RequestStudy


def latency_distribution(study: RequestStudy) -> Figure:
    """The share of requests that takes longer than a latency, by balancer, down to one in a thousand; both axes logarithmic."""
    figure = new_figure((8, 4.5))
    ax = figure.subplots()
    later = 1 - np.asarray(LEVELS)
    for row in study.rows:
        known = np.isfinite(row.distribution)
        if known.any():
            ax.plot(
                np.asarray(row.distribution)[known],
                later[known],
                label=row.balancer,
                lw=1.6,
                **balancer_style(row.balancer),
            )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(later.min(), 1)
    marks = (0.5, 0.05, 0.01)
    for mark in marks:
        ax.axhline(mark, color="0.8", lw=0.8, zorder=0)
    ax.set_yticks([1, *marks, 0.001], ["all", "half (p50)", "5 % (p95)", "1 % (p99)", "0.1 %"])
    ax.minorticks_off()
    finish(ax, "latency, network time included", "requests that take longer", _title(study))
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value).replace(".00", "").replace(".0 ", " ")))
    ax.legend(frameon=False, loc="lower left")
    as_written(ax)
    return figure


def _title(study: RequestStudy) -> str:
    return f"Whole requests at scale {study.scale:g}, {DISCIPLINES[study.discipline]}"
