"""Pictures, as `dgdlb_jax.plots`: functions that take axes and return them; without axes they make a figure (`axes.figure`).

- of a comparison: `latency_over_time`, `workloads_over_time`, `workloads_of_all`, `routing_by_frontend`
- of measured service curves: `measured_curve`
- of stability: `roots_plot`, `locus_plot`, `tightness_plot`
- of gradients: `three_gradients`, `error_heatmap`, `error_against`
- of a sweep: `curves`, `verdicts`, `heatmap`, `distribution`
"""

from dgdlb_jax.numerics.results import InputError

try:
    import matplotlib as _matplotlib  # noqa: F401 - an extra
except ImportError as error:
    raise InputError('dgdlb_jax.plots needs matplotlib; type: pip install "dgdlb_jax[cli]".') from error

from dgdlb_jax.reports.curve_plots import measured_curve as measured_curve
from dgdlb_jax.reports.gradient_plots import error_against as error_against
from dgdlb_jax.reports.gradient_plots import error_heatmap as error_heatmap
from dgdlb_jax.reports.gradient_plots import three_gradients as three_gradients
from dgdlb_jax.reports.plots import latency_over_time as latency_over_time
from dgdlb_jax.reports.plots import routing_by_frontend as routing_by_frontend
from dgdlb_jax.reports.plots import workloads_of_all as workloads_of_all
from dgdlb_jax.reports.plots import workloads_over_time as workloads_over_time
from dgdlb_jax.reports.stability_plots import locus_plot as locus_plot
from dgdlb_jax.reports.stability_plots import roots_plot as roots_plot
from dgdlb_jax.reports.stability_plots import tightness_plot as tightness_plot
from dgdlb_jax.reports.sweep_plots import curves as curves
from dgdlb_jax.reports.sweep_plots import distribution as distribution
from dgdlb_jax.reports.sweep_plots import heatmap as heatmap
from dgdlb_jax.reports.sweep_plots import verdicts as verdicts
