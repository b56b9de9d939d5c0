"""Replicas over time, as a picture."""

import numpy as np
from matplotlib.figure import Figure

from dgdlb_jax.reports.axes import finish, new_figure
from dgdlb_jax.reports.plots import balancer_style
from dgdlb_jax.studies.autoscaling import AutoscalingStudy


def replicas_over_time(study: AutoscalingStudy) -> Figure:
    """All replicas that serve, and below them the momentary mean latency, by balancer."""
    figure = new_figure((8, 6.5))
    above, below = figure.subplots(2, sharex=True)
    for row in study.rows:
        time = np.asarray(row.run.time)
        style = balancer_style(row.balancer)
        above.plot(time, np.asarray(row.run.replicas).sum(-1), label=row.balancer, lw=1.4, **style)
        below.plot(time, np.asarray(row.run.mean_latency), lw=1.4, **style)
    finish(above, "", "replicas", f"Replicas: {study.network.name or 'network'} with {type(study.autoscaler).__name__}")
    above.legend(fontsize=8)
    finish(below, "time (s)", "mean latency (s)", "")
    return figure
