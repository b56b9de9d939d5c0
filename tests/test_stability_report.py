"""`dgdlb stability` and the studies behind the figures of the README, in small."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.reports.stability_plots import cycle_map_plot
from dgdlb_jax.reports.stability_text import FRACTIONS, stability_report
from dgdlb_jax.studies.cycle_map import cycle_map
from dgdlb_jax.studies.stability import (
    far_starts,
    from_far,
    observe_limit,
    rules_of_equal_gain,
    study_networks,
    tightness,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def report():
    return stability_report(dgd.load_fleet("two-by-two"))


def test_the_report_agrees_with_the_functions(report):
    network = report.network
    step = dgd.default_step_size(network)
    assert np.asarray(report.recommended) == pytest.approx(np.asarray(step))
    limit = float(dgd.critical_step_size(network, dgd.DGDLB(step)))
    assert report.factor == pytest.approx(limit, rel=1e-12)
    assert report.critical == pytest.approx(limit * np.asarray(step), rel=1e-12)
    assert report.settled in FRACTIONS
    # Everything twice as far away: the limit falls by as much as the elasticities of all links say, for a small change.
    farther = network.with_latency_scale(1.001)
    change = float(dgd.critical_step_size(farther, dgd.DGDLB(step))) / limit
    assert np.log(change) / np.log(1.001) == pytest.approx(report.by_link.sum(), rel=0.01)


def test_the_command_writes_and_prints(tmp_path, monkeypatch, capsys, report):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dgdlb_jax.reports.stability_text.stability_report", lambda *args, **options: report)
    assert main(["stability", "two-by-two", "--output", "out"]) == 0
    printed = capsys.readouterr().out
    for word in ("recommended", "guaranteed", "critical", "period", "west", "link", "settles up to"):
        assert word in printed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"roots.png", "locus.png"}
    assert main(["stability", "two-by-two", "--no-files", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["limit_over_recommended"] == pytest.approx(report.factor)
    assert document["frontends"]["west"]["critical"] == pytest.approx(float(report.critical[0]))


def test_no_limit_is_null_with_a_reason():
    network = dgd.Network([2.0, 2.0], [[0.1, 9.0], [9.0, 0.1]], dgd.Hyperbolic([8.0, 8.0], [8.0, 8.0]))
    document = stability_report(network).document()
    assert document["limit_over_recommended"] is None
    assert "two active backends" in document["null_because"]["limit_over_recommended"]
    json.dumps(document, allow_nan=False)


def test_observed_limits_agree_with_exact_ones():
    """Bisection in simulation ends in an interval 0.7 % wide; the step of the simulation adds less than 0.3 %."""
    networks = study_networks("geographic", 4, seed=1)
    optimum = dgd.solve_optimum(networks)
    mode = dgd.critical_mode(networks, optimum=optimum)
    exact = np.asarray(mode.step_size)
    assert observe_limit(networks, optimum, exact, np.asarray(mode.period)) / exact == pytest.approx(1, abs=0.01)


@pytest.mark.full
@pytest.mark.parametrize("curve", dgd.topologies.CURVES)
@pytest.mark.parametrize("size", [2, 5, 8])
def test_observed_limits_agree_with_exact_ones_for_every_curve(curve, size):
    draw = dgd.topologies.complete
    networks = draw(jax.random.key(size), frontends=size, backends=size, count=6, service=dgd.topologies.CURVES[curve])
    result = tightness(networks.with_load(0.6), observe=6)
    limited = np.isfinite(result.exact)
    assert limited.sum() >= 4
    assert result.observed[limited] / result.exact[limited] == pytest.approx(1, abs=0.01)


def test_far_starts_settle_or_not():
    """Two equal exponential backends, latency 3 s: at load 0.3 the far start settles, at 0.9 it swings for ever."""
    curve = dgd.Exponential(np.ones(2), np.ones(2))
    networks = dgd.stack([dgd.Network([2 * load], np.full((1, 2), 3.0), curve) for load in (0.3, 0.9)])
    optimum = dgd.solve_optimum(networks)
    workload = optimum.workload
    start = jnp.tile(jnp.array([[[1.0, 0.0]]]), (2, 1, 1)), jnp.stack([3 * (workload[:, 0] + 1), 0 * workload[:, 1]], 1)
    rules = {name: rules_of_equal_gain()[name] for name in ("DGD-LB", "log")}
    found = from_far(networks, fractions=(0.3,), rules=rules, starts=[start], periods=60.0)
    assert found.failed[0, 0, 0].tolist() == [False, True]
    assert found.failed[1, 0, 0, 0] == np.False_
    assert found.excess[0, 0, 0, 1] > 0.1
    assert [x.shape for x, _ in far_starts(networks)] == [(2, 1, 2)] * 4


def test_an_assessment_by_default():
    """Step size, start, time step and duration of each network are those that the functions of one network suggest."""
    curve = dgd.Hyperbolic(np.array([8.0, 8.0]), np.array([8.0, 16.0]))
    several = [dgd.Network([rate, 2.0], [[0.02, 0.15], [0.15, 0.02]], curve) for rate in (3.0, 6.0)]
    networks = dgd.stack(several)
    found = dgd.assess(networks)
    for k, network in enumerate(several):
        step, optimum = dgd.default_step_size(network), dgd.solve_optimum(network)
        assert round_down(float(found.run.final.time_step[k])) == dgd.suggest_dt(network, step, optimum)
        assert round_up(float(found.run.final.step[k] * found.run.final.time_step[k])) == dgd.suggest_duration(network)
        np.testing.assert_allclose(found.best_latency[k], optimum.mean_latency, rtol=1e-9)
    assert found.arrived().all()
    assert not found.undecided.any()
    np.testing.assert_allclose(found.mean_latency, (1 + found.excess) * found.best_latency, rtol=1e-12)
    with pytest.raises(dgd.InputError, match="assess takes a batch"):
        dgd.assess(networks[0])
    with pytest.raises(dgd.InputError, match="did you mean dgd-lb"):
        dgd.assess(networks, "dgd-bl")


@pytest.mark.full
def test_a_map_of_cycles():
    """Far starts cycle at high load and large steps, near ones do not."""
    found = cycle_map((0.3, 0.9), (3.0,), (0.02, 1.0), (0.05, 0.9), count=2, periods=60.0)
    assert found.failed.shape == (2, 1, 2, 2, 2)
    assert np.all(found.share[:, :, 0] <= found.share[:, :, 1])
    assert found.share[1, 0, 1, 1] == 1
    assert found.share[0, 0, 0].max() == 0
    assert np.all((found.proven > 0) & (found.proven <= 1))
    assert set(found.smallest[1].ravel().tolist()) <= {0.05, 0.9}
    figure = cycle_map_plot(found)
    assert len(figure.axes) == 3
