"""Pictures: axes in, axes out, nothing on top of anything else, nothing global."""

import dataclasses
import itertools
import sys

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib import colors
from matplotlib.figure import Figure

import dgdlb_jax
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic, fit_service
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports import plots
from dgdlb_jax.reports.axes import IN_TURNS, as_written, new_axes, tell_apart
from dgdlb_jax.reports.curve_plots import measured_curve
from dgdlb_jax.simulation.trajectory import SimulationState, Statistics, Trajectory
from dgdlb_jax.studies.balancers import BALANCERS, DEFAULT
from dgdlb_jax.studies.compare import DGD, Comparison

pytestmark = pytest.mark.usefixtures("quick_compilation")

FRONTENDS, BACKENDS, INSTANTS = 20, 8, 400


@pytest.fixture(scope="module")
def comparison():
    """A large comparison made of numbers, without a simulation: pictures must cope with 20 regions and 8 backends."""
    draw = np.random.default_rng(0)
    rate = draw.uniform(1, 20, FRONTENDS)
    network = Network(
        rate,
        draw.uniform(0.002, 0.15, (FRONTENDS, BACKENDS)),
        Hyperbolic(np.full(BACKENDS, rate.sum() / 4), np.full(BACKENDS, 30.0)),
        frontend_names=[f"southeastasia-{i}" for i in range(FRONTENDS)],
        backend_names=[f"northcentralus-{j}" for j in range(BACKENDS)],
        name="a-large-fleet",
    )
    routing = draw.dirichlet(np.full(BACKENDS, 0.2), FRONTENDS)
    workload = draw.uniform(5, 20, BACKENDS)
    optimum = Optimum(
        **_fill(
            Optimum,
            routing=routing,
            workload=workload,
            multiplier=np.ones(FRONTENDS),
            mean_latency=0.1,
            network_share=0.2,
            gap=1e-12,
            result=np.int32(0),
        )
    )
    runs = {}
    for k, name in enumerate(BALANCERS[key].label for key in DEFAULT):
        runs[name] = _run(draw, rate, routing, workload, level=0.1 * (1 + k), diverges=name == "nearest")
    return Comparison(network, optimum, jnp.ones(FRONTENDS), 0.01, 60.0, "proportional", runs)


def _fill(kind, **known):
    """All that has to be given, None where it is not known here."""
    missing = dataclasses.MISSING
    needed = [f for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]
    return dict.fromkeys([f.name for f in needed]) | {name: jnp.asarray(value) for name, value in known.items()}


def _run(draw, rate, routing, workload, level, diverges):
    time = np.linspace(0, 60, INSTANTS)
    wobble = 1 + 0.1 * draw.standard_normal((INSTANTS, BACKENDS))
    series = workload * wobble
    if diverges:  # all that arrives, four times what it can serve, is sent to one backend
        routing = np.eye(BACKENDS)[np.zeros(FRONTENDS, int)]
        series = 1e-3 * series + 0.75 * rate.sum() * time[:, None] * np.eye(BACKENDS)[0]
        workload = series.mean(0)
    growth = np.full((2, BACKENDS), 1.0 if diverges else 0.0)
    statistics = Statistics(
        **_fill(
            Statistics,
            duration=12.0,
            arrivals=12 * rate.sum(),
            cost=12 * rate.sum() * level,
            network_cost=rate.sum() * level,
            mean_workload=workload,
            lowest_workload=workload * 0.999,
            highest_workload=workload,
            mean_routing=routing,
            workload_growth=growth,
            distance=0.0,
            peak_workload=workload,
        )
    )
    fields = {
        "time": time,
        "routing": np.broadcast_to(routing, (INSTANTS, FRONTENDS, BACKENDS)),
        "workload": series,
        "arrival_rate": np.broadcast_to(rate, (INSTANTS, FRONTENDS)),
        "cost_rate": rate.sum() * level * (1 + np.exp(-time)),
        "in_flight": np.ones(INSTANTS),
        "result": np.int32(0),
    }
    return Trajectory(**_fill(Trajectory, **fields) | {"statistics": statistics, "final": _final(routing, workload)})


def _final(routing, workload):
    arcs, lines = np.zeros_like(routing), np.zeros((3, *routing.shape))
    numbers = {
        "step": np.int32(0),
        "row": np.int32(0),
        "time_step": 0.01,
        "routing": routing,
        "workload": workload,
        "in_flight": 0.0,
    }
    numbers |= dict.fromkeys(("inflow", "peak_workload"), workload) | dict.fromkeys(
        ("flow", "velocity", "reading"), arcs
    )
    numbers |= {"flow_line": lines, "workload_line": lines[:, 0]}
    return SimulationState(**_fill(SimulationState, **numbers) | {"policy_state": ()})


def boxes(artists, figure):
    renderer = figure.canvas.get_renderer()
    return [artist.get_window_extent(renderer) for artist in artists]


def drawn(ax):
    ax.figure.canvas.draw()
    return ax.figure


PICTURES = [plots.latency_over_time, plots.routing_by_frontend, plots.workloads_over_time]


@pytest.mark.parametrize("picture", PICTURES)
def test_axes_go_in_and_come_out(picture, comparison):
    ax = Figure().subplots()
    assert picture(comparison, ax=ax) is ax
    assert ax.get_title(loc="left")
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("picture", PICTURES)
def test_nothing_overlaps(picture, comparison):
    """Tick labels keep clear of each other, the legend of the axes, and everything stays inside the figure."""
    ax = picture(comparison)
    figure = drawn(ax)
    inside = figure.bbox
    (legend,) = boxes([ax.get_legend()], figure)
    assert legend.x0 >= ax.bbox.x1
    assert legend.x1 <= inside.x1 + 1
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        shown = boxes([label for label in labels if label.get_text()], figure)
        for one, two in itertools.pairwise(shown):
            assert not one.overlaps(two)
    for label in boxes(ax.get_yticklabels(), figure):
        assert label.x0 >= -1
    (title,) = boxes([ax._left_title], figure)
    assert title.x1 <= inside.x1


def test_routing_bars_are_the_shares(comparison):
    ax = plots.routing_by_frontend(comparison)
    widths = np.array([bar.get_width() for bar in ax.patches if bar.get_height() == 0.36])
    np.testing.assert_allclose(widths.reshape(BACKENDS, FRONTENDS).T, comparison.optimum.routing, atol=1e-12)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == list(comparison.network.backend_names)


def test_latency_lines_are_on_a_log_axis_with_the_optimum_dashed(comparison):
    ax = plots.latency_over_time(comparison)
    assert ax.get_yscale() == "log"
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[0] == "optimum: 100 ms"
    assert texts[1] == f"{DGD}: 0.000 %"
    assert "nearest: diverging" in texts
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--" and len(line.get_ydata()) == 2]
    assert dashed[0].get_ydata()[0] == pytest.approx(0.1)


def test_the_time_axis_is_logarithmic_and_shows_the_beginning(comparison):
    ax = plots.latency_over_time(comparison)
    assert ax.get_xscale() == "log"
    assert ax.get_xlim() == pytest.approx((60 / (INSTANTS - 1), 60.0))


def test_lines_that_coincide_take_turns():
    """Three lines, of which two are the same: both get dashes in the other's gaps, the third stays as it is."""
    ax = Figure().subplots()
    x = np.linspace(0, 1, 50)
    lines = [ax.plot(x, y)[0] for y in (x, x, 1 - x)]
    assert tell_apart(ax, lines)
    (first, on), (second, _), alone = (line._unscaled_dash_pattern for line in lines)
    assert abs(second - first) == on[0]
    assert on[0] == on[1]
    assert alone == (0, None)
    assert not tell_apart(ax, lines[1:])


def test_lines_in_turns_are_explained_in_the_legend(comparison):
    """Two balancers with the same latency, and two backends with the same workload."""
    one = comparison.runs[DGD]
    level = jnp.full_like(one.workload, 12.0)
    runs = {
        **comparison.runs,
        "uniform": comparison.runs["proportional"],
        DGD: dataclasses.replace(one, workload=level),
    }
    same = dataclasses.replace(comparison, runs=runs)
    note = IN_TURNS.replace(": ", ":\n")
    for picture in (plots.latency_over_time, plots.workloads_over_time):
        legend = picture(same).get_legend()
        assert legend.get_texts()[-1].get_text() == note
        assert {handle.get_linestyle() for handle in legend.legend_handles[:-1]} <= {"-", "--"}  # no dashes of a turn
        assert note not in [text.get_text() for text in picture(comparison).get_legend().get_texts()]
    assert IN_TURNS in plots.workloads_of_all(same).legends[0].get_title().get_text()
    calm = dataclasses.replace(comparison, runs={DGD: one})
    assert IN_TURNS not in plots.workloads_of_all(calm).legends[0].get_title().get_text()


def test_a_measured_curve_shows_its_points_and_its_range():
    """The point past the highest throughput is hollow, and the fitted curve ends at the highest."""
    fit = fit_service([1, 2, 4, 8, 16], [1.0, 1.8, 3.0, 4.0, 3.5])
    ax = measured_curve(fit, operating=[3.0])
    shown = {line.get_label(): line for line in ax.get_lines()}
    np.testing.assert_allclose(shown["measured"].get_xdata(), [1, 2, 4, 8])
    np.testing.assert_allclose(shown["left out"].get_xydata(), [[16, 3.5]])
    np.testing.assert_allclose(shown["fitted"].get_xdata()[[0, -1]], [1, 8])
    assert 1.8 < shown["at the optimum"].get_ydata()[0] < 3.0  # between its neighbours


def test_workload_bands_hold_the_series(comparison):
    ax = plots.workloads_over_time(comparison)
    run = np.asarray(comparison.runs[DGD].workload)
    for j, band in enumerate(ax.collections):
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == pytest.approx(run[:, j].min())
        assert heights.max() == pytest.approx(run[:, j].max())


def test_pictures_are_saved_without_global_state(comparison, tmp_path):
    from matplotlib import _pylab_helpers

    before = len(_pylab_helpers.Gcf.figs)
    paths = plots.save_pictures(comparison, tmp_path, prefix="x-")
    assert sorted(path.name for path in paths) == ["x-latency.png", "x-routing.png", "x-workloads.png"]
    assert all(path.stat().st_size > 20_000 for path in paths)
    assert len(_pylab_helpers.Gcf.figs) == before


def test_balancer_colours_differ():
    shown = [colors.to_rgb(plots._BALANCER_COLOURS[BALANCERS[key].label]) for key in DEFAULT]
    distance = np.abs(np.subtract(np.asarray(shown)[:, None], np.asarray(shown))).sum(-1) + 10 * np.eye(len(shown))
    assert distance.min() > 0.2


def test_without_matplotlib_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "dgdlb_jax.reports.gallery", raising=False)
    monkeypatch.delitem(vars(dgdlb_jax), "plots", raising=False)
    with pytest.raises(InputError, match=r"plots needs matplotlib; type: pip install \"dgdlb_jax\[cli\]\"\."):
        _ = dgdlb_jax.plots


def test_names_stand_as_they_are_and_powers_of_ten_as_powers():
    ax = new_axes((4, 3))
    ax.plot([1, 1e4], [1, 2])
    ax.set_xscale("log")
    ax.set_yticks([1, 2], ["$a$", "b"])
    ax.set_title("$b$")
    as_written(ax).figure.canvas.draw()
    assert not ax.title.get_parse_math()
    assert not any(label.get_parse_math() for label in ax.get_yticklabels())
    assert all(label.get_parse_math() for label in ax.get_xticklabels())
