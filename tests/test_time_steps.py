"""Runs whose accuracy is measured: how fine a step is, what it depends on, and what is said of it."""

import dataclasses
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.patience import patience, within_patience
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies import DGDLB, LeastLatency, PeakEWMA, SampledDGDLB, Softmin, Uniform
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.reports.text import notes, resolution, run_facts
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.compare import ComparisonInProgress, compare
from dgdlb_jax.studies.starts import start_state
from dgdlb_jax.studies.time_steps import ACCURATE, Grid, ResolvedRun, time_step, what_sets, what_sets_step_size

pytestmark = pytest.mark.usefixtures("quick_compilation")

LATENCY = [[0.02, 0.15], [0.15, 0.02]]
GRID = Grid(duration=20.0, interval=0.5, after=10.0)


def pair(**changes) -> Network:
    inputs = {"arrival_rate": [6.0, 2.0], "latency": LATENCY, "service": Hyperbolic([8.0, 8.0], [4.0, 4.0])}
    return Network(**(inputs | changes))


def resolved(policy, dt: float, finest: float) -> ResolvedRun:
    network = pair()
    reference = solve_optimum(network).workload
    return ResolvedRun(network, policy, start_state(network, "uniform"), dt=dt, finest=finest, reference=reference)


def test_the_result_is_the_run_with_the_shorter_step_and_its_accuracy_the_difference():
    network, policy = pair(), DGDLB(0.05)
    run = resolved(policy, 0.05, 0.05)
    run.compile(GRID.instants + 1)
    found = run.run(GRID)
    alone = [
        simulate(
            network, policy, duration=20.0, dt=dt, initial=start_state(network, "uniform"),
            save=SaveAt(round(0.5 / dt), after=10.0),
        )
        for dt in (0.1, 0.05)
    ]  # fmt: skip
    np.testing.assert_allclose(found.time, alone[1].time, rtol=1e-12)
    np.testing.assert_allclose(found.workload, alone[1].workload, rtol=1e-11)
    np.testing.assert_allclose(found.routing, alone[1].routing, atol=1e-12)
    coarse, fine = (float(one.statistics.mean_latency) for one in alone)
    assert run.accuracy == pytest.approx(abs(coarse / fine - 1), rel=1e-6)
    assert found.time.shape == (GRID.instants,) == (41,)


def test_a_step_is_halved_until_the_latency_is_known_or_it_is_the_finest():
    """Least latency chatters with the step: of first order, so halving is worth it."""
    once = resolved(LeastLatency(), 0.1, 0.1)
    fine = resolved(LeastLatency(), 0.1, 0.1 / 8)
    for run in (once, fine):
        run.compile(GRID.instants + 1)
        run.run(GRID)
    assert once.accuracy > ACCURATE
    assert once.dt == pytest.approx(0.1)
    assert fine.dt == pytest.approx(0.1 / 8) or fine.accuracy <= ACCURATE
    assert fine.dt < 0.1
    little = resolved(LeastLatency(), 0.1, 0.1 / 8)
    little.compile(GRID.instants + 1)
    little.run(GRID, most_work=1.5 * little.work(GRID))
    assert little.dt == pytest.approx(0.1)  # the next run would be twice the work


def test_a_rule_with_a_clock_of_its_own_is_resolved():
    networks = stack([pair()])
    optimum = solve_optimum(networks)
    step = jnp.full((1, 2), 1e-3)
    service = 0.1 / (8 / 4)
    for policy, expected in (
        (DGDLB(1e-3), service),
        (Uniform(), service),
        (SampledDGDLB(1e-3, interval=0.2), 0.02),
        (Softmin(1.0, rate=4.0), 0.025),
        (LeastLatency(), 0.15 / 20),
        (PeakEWMA(decay=0.01), 0.001),
    ):
        np.testing.assert_allclose(time_step(networks, policy, step, optimum), [expected], rtol=1e-9)


def test_what_sets_a_step_is_said():
    """A tenth of the fastest service or of the rule's own clock where that is the step, the loop or the jumps where it is shorter."""
    own = PeakEWMA(decay=0.01)
    assert what_sets(own, 0.001, 1.0) == "the rule's own time constant"
    assert what_sets(DGDLB(0.05), 0.1, 1.0) == "the fastest service"
    assert what_sets(DGDLB(0.05), 0.05, 1.0) == "the loop of news and reaction"
    assert what_sets(LeastLatency(), 0.05, 1.0) == "the jumps of the rule"
    said = ComparisonInProgress(pair(), ["dgd-lb"], duration=1.0)
    assert set(said.comparison.set_by) == set()  # nothing has run
    assert said._set_by == {DGD: "the fastest service"}


def test_what_sets_a_step_size_is_said():
    """The frontend with the smallest step, its slowest link and the backend whose response decides; nothing when it was given."""
    network = pair(latency=[[0.1, 0.4], [0.2, 0.1]], frontend_names=["f", "g"], backend_names=["a", "b"])
    said = ComparisonInProgress(network, ["dgd-lb"], duration=1.0).comparison.step_size_set_by
    assert (
        "set where it is smallest by the latency of 400 ms from f to b and by how fast the marginal latency of" in said
    )
    assert ComparisonInProgress(network, ["dgd-lb"], duration=1.0, step_size=0.1).comparison.step_size_set_by == ""
    alike = ComparisonInProgress(network.with_latency([[0.1, 0.4], [0.4, 0.1]]), ["dgd-lb"], duration=1.0)
    assert ", set by the latency of 400 ms from" in alike.comparison.step_size_set_by
    still = network.with_latency([[0.1, 0.4], [0.2, 0.1]])
    assert what_sets_step_size(still, np.zeros(2), solve_optimum(still)) == ""


def test_steps_that_nobody_can_wait_for_are_refused_by_what_makes_them_short():
    """Before anything is compiled. The loop crosses at sqrt(c sum(lambda eta)), up to a factor of some tens between start and optimum."""
    with pytest.raises(InputError) as caught:
        compare(pair(), ["least-latency", "dgd-lb"], step_size=1e30)
    found = re.fullmatch(
        r"step_size is 1e\+30 1/s\^2, which takes time steps of (\S+) s, so that (\S+) s are (\S+) steps, more than the 1e\+09 that a run "
        r"may have: lower it, the default is (\S+)\.",
        str(caught.value),
    )
    dt, duration, steps, default = map(float, found.groups())
    assert 1e-18 < dt < 1e-15
    assert steps == pytest.approx(duration / dt, rel=0.05)
    usual = ComparisonInProgress(pair(), ["dgd-lb"], duration=1.0)
    assert default == pytest.approx(float(usual.step_size.max()), rel=0.05)
    with pytest.raises(
        InputError, match=r"duration is 1e\+12 s, but a run has at most 1e\+09 steps, here with a dt of 0\.05 s"
    ):
        compare(pair(), duration=1e12)
    with pytest.raises(
        InputError, match=r"duration = 10 s at dt = 1e-09 s is 1e\+10 steps, .*: shorten it to 1 s, or raise dt"
    ):
        compare(pair(), duration=10.0, dt=1e-9)
    with pytest.raises(
        InputError, match=r"set by the rule's own time constant, .*: give its settings, or the intervals of its reports"
    ):
        ComparisonInProgress(pair(), ["dgd-lb"], news=Scraped(1e-12))
    lines, dt = usual._runs[DGD].bytes, usual._runs[DGD].dt
    assert 1 < lines / (2 * 1.5 * (0.15 / dt) * 2 * (2 + 1) * usual.network.latency.dtype.itemsize) < 2
    with device.assumed(memory=1.5 * lines / 0.8):
        assert ComparisonInProgress(pair(), ["dgd-lb", "uniform"], duration=1.0, workers=2)._workers == 1
    sentence = r"DGD-LB takes time steps of .*, set by the fastest service, .* from frontend 0 to backend 1 is 0\.15 s"
    with device.assumed(memory=0.5 * lines), pytest.raises(InputError, match=sentence):
        ComparisonInProgress(pair(), ["dgd-lb"], duration=1.0)


@pytest.mark.parametrize("fixed", [0.001, 1.0])
def test_what_a_run_takes_is_not_put_down_to_its_steps(fixed, monkeypatch):
    """Long delay lines take a while to make, however few the steps; here 1 ms or 1 s, in turn 10 % more and less, and a step 1 us."""
    run, more = resolved(DGDLB(0.05), 0.05, 0.05), itertools.cycle([1.1, 0.9])
    monkeypatch.setattr(run, "_pilot", lambda steps: next(more) * fixed + 2e-6 * steps)
    run.compile(GRID.instants + 1)
    longer = Grid(duration=1e8, interval=100.0, after=0.0)
    assert run.seconds(longer) == pytest.approx(run.steps(longer) * 1e-6, rel=0.3)


def test_a_given_step_is_used_as_it_is():
    found = compare(pair(), ["dgd-lb", "least-latency"], dt=0.03, duration=6.0)
    assert found.time_steps == {DGD: 0.03, "least latency": 0.03}
    assert not found.set_by
    assert "step size:" not in resolution(
        dataclasses.replace(found, step_size_set_by="what decided it").select("least latency")
    )
    assert "  step size: what decided it\n  time steps:" in resolution(
        dataclasses.replace(found, step_size_set_by="what decided it")
    )
    told = dataclasses.replace(
        found, set_by={DGD: "the fastest service", "least latency": "the jumps of the rule, halved"}
    )
    assert "set by the fastest service (1); the jumps of the rule, halved (1)" in resolution(told)
    for run in found.runs.values():
        assert float(run.final.time_step) == 0.03


def test_long_runs_end_early_and_say_so(monkeypatch):
    """What is cut depends on the size of the work and not on the machine."""
    whole = ComparisonInProgress(pair(), ["dgd-lb"])
    monkeypatch.setenv("DGDLB_PATIENCE", "1e-5")
    work = ComparisonInProgress(pair(), ["dgd-lb"])
    assert work.grid.duration < 0.5 * whole.grid.duration == 0.5 * whole.settling
    assert work.grid.duration >= 5 * 2 * 0.15
    assert f"give --duration {whole.settling:.6g} to wait for it" in "\n".join(run_facts(work.comparison))
    assert "wait for it" not in "\n".join(run_facts(whole.comparison))
    given = ComparisonInProgress(pair(), ["dgd-lb"], duration=1000.0)
    # What the estimate leaves out: runs with half the time step, and longer ones.
    settled = ComparisonInProgress(pair(), ["dgd-lb"], duration=1000.0, dt=0.1)
    assert (work.may_repeat, given.may_repeat, settled.may_repeat) == (True, True, False)
    assert given.grid.duration == 1000.0


def test_patience_is_a_factor(monkeypatch):
    assert (patience(15.0), within_patience(900), within_patience(901)) == (15.0, True, False)
    monkeypatch.setenv("DGDLB_PATIENCE", "0.5")
    assert (patience(15.0), within_patience(451)) == (7.5, False)
    for value in ("long", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("DGDLB_PATIENCE", value)
        with pytest.raises(InputError, match=f"DGDLB_PATIENCE is '{value}': give a positive finite factor"):
            patience(15.0)


def test_all_of_a_long_trace_is_run_with_twice_the_step(monkeypatch):
    trace = Trace(10.0, np.full((20, 2), [6.0, 2.0]))
    whole = ComparisonInProgress(pair(arrival_rate=trace), ["dgd-lb"])
    monkeypatch.setenv("DGDLB_PATIENCE", "1e-5")
    work = ComparisonInProgress(pair(arrival_rate=trace), ["dgd-lb"])
    assert work.grid == whole.grid
    assert work.comparison.dt == 2 * whole.comparison.dt
    assert ComparisonInProgress(pair(arrival_rate=trace), ["dgd-lb"], dt=0.05).comparison.dt == 0.05


def test_without_a_verdict_a_balancer_runs_longer(monkeypatch):
    """From 3 s, too short for anybody, four times as long and again; its figures are those of that run, its series those of all."""
    network = pair()
    monkeypatch.setattr("dgdlb_jax.studies.assess.suggest_duration", lambda *_: 3.0)
    found = compare(network, ["dgd-lb", "uniform"])
    row = found.outcomes[DGD]
    assert (found.duration, row.verdict.name) == (3.0, "settled")
    assert row.duration in (12.0, 48.0, 192.0)
    assert [float(runs[DGD].time[-1]) for runs in (found.runs, found.judged)] == [3.0, row.duration]
    same = compare(network, ["dgd-lb"], duration=row.duration, dt=found.time_steps[DGD]).outcomes[DGD]
    assert row.mean_latency == pytest.approx(same.mean_latency, rel=1e-9)
    assert "DGD-LB: not decided after 3.00 s, so it ran for" in "\n".join(notes(found))
    monkeypatch.setenv("DGDLB_PATIENCE", "1e-10")
    assert not compare(network, ["dgd-lb"]).longer
    assert not compare(network, ["dgd-lb"], duration=3.0).longer


def test_what_is_known_so_far_is_a_comparison():
    work = ComparisonInProgress(pair(), ["dgd-lb", "uniform"], dt=0.05, duration=20.0)
    work.compile()
    assert work.estimate > 0
    first = next(iter(work.finished()))
    assert list(work.comparison.outcomes) == [first]
    assert work.comparison.table()[0].balancer == first


def test_the_accuracy_is_said():
    found = compare(pair(), {"DGD-LB": DGDLB(0.05), "jumps": LeastLatency()}, dt=0.1, duration=20.0)
    assert found.accuracy["DGD-LB"] <= ACCURATE < found.accuracy["jumps"]
    text = resolution(found)
    assert "time steps: 100 ms; twice as long ones change the mean latencies of the others by at most" in text
    assert "jumps: with twice its time step of 100 ms the mean latency differs by" in text
