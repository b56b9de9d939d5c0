"""Verdicts on series whose answer is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model.demand import Constant, DailyCycle, Jumps
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Exponential, PerBackend, Power
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.rounding import enough
from dgdlb_jax.policies.static import Uniform
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.verdict import Verdict, classify, look_every, moving_mean, time_to_settle

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATE = 10.0  # requests/s, all frontends together
TIME = np.linspace(0.0, 100.0, 2001)  # of a run; its last 20 s are judged
EXPONENTIAL, POWER = 0, 1


def two_backends(kind=EXPONENTIAL, rate=(4.0, 6.0), latency=0.1, scale=40.0, **changes):
    """Suprema of 8 requests/s, of which 70 % are served at a workload of 50; or none."""
    scale = [scale, scale]
    curves = Exponential([8.0, 8.0], scale), Power([8.0, 8.0], scale, [0.5, 0.5])
    return Network(rate, np.full((2, 2), latency), PerBackend(curves, [kind, kind]), **changes)


def full_backends(**changes):
    """Suprema that are reached to exp(-25) at a workload of 100."""
    return two_backends(scale=4.0, **changes)


@pytest.fixture(scope="module")
def template():
    """A run whose series are replaced by others; its statistics cover all of it, so that they are not used for the window."""
    return simulate(two_backends(), Uniform(), duration=0.1, dt=0.1, save=SaveAt(fields=("workload",)))


@pytest.fixture(scope="module")
def judged(template):
    """The assessment of a workload of one backend, beside a steady one of 30 requests."""

    def judge(workload, network=None, time=TIME, beside=30.0):
        series = np.stack([np.full_like(time, beside), workload], axis=1)
        run = dataclasses.replace(template, time=jnp.asarray(time), workload=jnp.asarray(series))
        return classify(two_backends() if network is None else network, run)

    return judge


def wave(swing, mean=50.0, period=2.0, factor=1.0):
    """A workload whose (max - min) / mean is `swing` when the window begins, and `factor` times that with every period."""
    envelope = factor ** ((TIME - 80) / period)
    return mean * (1 + swing / 2 * envelope * np.sin(2 * np.pi * TIME / period))


def ramp(change, mean=50.0):
    """A workload that changes by this part of its mean in the window."""
    return mean * (1 + change * (TIME - 90) / 20)


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (50.0 + np.exp(-TIME / 10), "settled"),  # a range of (e^-8 - e^-10) / 50 = 6e-6
        (wave(0.019), "settled"),
        (wave(0.021), "oscillating"),
        (wave(0.5), "oscillating"),
        (wave(0.5, period=0.2), "oscillating"),
        (wave(0.5, factor=1.05), "oscillating"),
        (wave(0.5, factor=0.96), "oscillating"),
        (wave(0.5, factor=0.94), "moving"),
        (wave(0.5, period=7.9), "oscillating"),  # two turns each way in 20 s
        (wave(0.5, period=25.0), "too_short"),  # one turn each way at most
        (ramp(0.019), "settled"),
        (ramp(0.021), "moving"),
        (ramp(-0.5), "moving"),
        (ramp(0.2) * wave(0.1) / 50, "moving"),  # the drift is the larger
        (ramp(0.1) * wave(0.2) / 50, "oscillating"),  # the swing is
        (50 + 5 - 0.5 * np.abs(TIME - 90), "too_short"),  # up by a tenth, down again
        (5 + 0.1 * np.maximum(TIME - 90, 0), "moving"),
        (np.full_like(TIME, np.nan), "failed"),
        (np.zeros_like(TIME), "settled"),  # an unused backend
        (2e-3 * wave(1.9), "oscillating"),  # of 0.1 requests: 0.3 % of all, which matters
        (2e-7 * wave(1.9), "settled"),  # of 1e-5 requests: nobody cares
        (2e-5 * np.exp(-TIME / 20), "settled"),  # an idle backend that drains
    ],
)
def test_verdicts(judged, workload, expected):
    assert Verdict(int(judged(workload).verdict)).name == expected


@pytest.mark.parametrize(
    ("workload", "beside", "expected"),
    [
        (wave(0.5, factor=0.9), wave(0.4), "oscillating"),  # one dies out, the other goes on
        (wave(0.5, period=25.0), wave(0.4), "oscillating"),  # one has no two turns, the other has
        (ramp(0.5), wave(0.4), "oscillating"),
        (wave(0.5, factor=0.9), wave(0.03), "moving"),  # what goes on is small beside what dies out
        (wave(0.5, period=25.0), wave(0.03), "too_short"),
        (ramp(0.5), wave(0.03), "moving"),
        (wave(0.5, factor=0.9), wave(0.4, factor=0.9), "moving"),
    ],
)
def test_a_fleet_swings_on_where_one_of_its_largest_swings_does(judged, workload, beside, expected):
    assert Verdict(int(judged(workload, beside=beside).verdict)).name == expected


def test_slowly_fading_swings_are_told_from_steady_ones(judged):
    """Over ten periods 0.97 makes 0.74, below the fifth that counts, and 0.99 makes 0.90."""
    fading = {factor: bool(judged(wave(0.5, factor=factor)).fading) for factor in (0.97, 0.99, 1.0, 1.03)}
    assert fading == {0.97: True, 0.99: False, 1.0: False, 1.03: False}
    assert not judged(wave(0.5, factor=0.9)).fading  # moving, which says as much
    assert not judged(wave(0.01, factor=0.97)).fading  # settled


def test_the_swing_is_that_of_backends_that_matter(judged):
    assert float(judged(2e-7 * wave(1.9)).swing) == 0
    assert float(judged(wave(0.3)).swing) == pytest.approx(0.3, rel=1e-3)
    assert float(judged(ramp(0.3)).drift) == pytest.approx(0.3, rel=1e-9)


def growing(slope, at=0.0):
    """A queue in front of a backend that serves 8 requests/s already."""
    return 100 + slope * np.maximum(TIME - at, 0)


def test_diverging_is_short_by_what_arrives_above_the_supremum(judged):
    """It serves 8 and grows by 0.8 requests/s, with a wobble on it: 8.8 requests/s arrive, at a fixed share."""
    found = judged(growing(0.8) + 0.03 * np.sin(2 * np.pi * TIME), full_backends())
    assert Verdict(int(found.verdict)) is Verdict.diverging
    np.testing.assert_allclose(found.shortfall, [0.0, 0.8], rtol=1e-3)
    assert float(found.short_by) == pytest.approx(0.8, rel=1e-3)


def test_nothing_diverges_without_a_supremum(judged):
    assert Verdict(int(judged(growing(0.8), full_backends(kind=POWER)).verdict)) is Verdict.moving


def test_growing_below_the_supremum_is_moving(judged):
    """From 5 to 9 requests at 0.04 requests/s: 8 (1 - exp(-9 / 4)) = 7.2 served at most, well below 8."""
    assert Verdict(int(judged(5 + 0.04 * TIME, full_backends()).verdict)) is Verdict.moving


def test_a_share_that_changes_is_moving_unless_the_fleet_as_a_whole_is_short(judged):
    """The queue begins to grow half-way through the second half: 8 requests/s before, 8.8 after. 10 of 16 can be served, 17 cannot."""
    assert Verdict(int(judged(growing(0.8, at=75.0), full_backends()).verdict)) is Verdict.moving
    short = judged(growing(0.8, at=75.0), full_backends(rate=(8.0, 9.0)))
    assert Verdict(int(short.verdict)) is Verdict.diverging


def test_two_backends_that_hand_a_queue_to_each_other_do_not_diverge(template):
    series = np.stack([105 - 0.5 * np.abs(TIME - 90), 95 + 0.5 * np.abs(TIME - 90)], axis=1)
    run = dataclasses.replace(template, time=jnp.asarray(TIME), workload=jnp.asarray(series))
    found = classify(two_backends(), run)
    assert Verdict(int(found.verdict)) is Verdict.too_short
    np.testing.assert_array_equal(found.shortfall, [0.0, 0.0])


def test_windows_have_to_last(judged):
    """Twice the largest latency, and one time in service of what is not overloaded; what is missing is said.

    30 / (8 (1 - exp(-30 / 40))) = 7.11 s.
    """
    steady = np.full_like(TIME, 30.0)
    found = judged(steady, two_backends(latency=11.0))
    assert Verdict(int(found.verdict)) is Verdict.too_short
    assert found.reason == "the last fifth, 20 s, is shorter than twice the largest latency of 11 s: run at least 110 s"
    short = judged(steady, time=TIME / 10)
    assert short.reason == "the last fifth, 2 s, is shorter than one time in service of 7.11 s: run at least 35.6 s"
    assert "turns fewer than twice each way" in judged(wave(0.5, period=25.0)).reason
    assert judged(ramp(0.5)).reason.startswith("in the last fifth, 20 s, a workload drifts by 50 % of its mean")
    assert judged(steady).reason is None


@pytest.mark.parametrize(
    ("demand", "expected"),
    [
        (Constant([4.0, 6.0]), "settled"),
        (DailyCycle([4.0, 6.0], 0.5), "varying_inputs"),
        (DailyCycle([4.0, 6.0], 0.0), "settled"),
        (Jumps([79.0], [[1.0, 1.0], [4.0, 6.0]]), "settled"),
        (Jumps([81.0], [[1.0, 1.0], [4.0, 6.0]]), "varying_inputs"),
        (Jumps([101.0], [[4.0, 6.0], [1.0, 1.0]]), "settled"),
    ],
)
def test_inputs_that_vary_in_the_window(judged, demand, expected):
    steady = np.full_like(TIME, 30.0)
    assert Verdict(int(judged(steady, two_backends(rate=demand)).verdict)).name == expected
    if isinstance(demand, Jumps):  # the factor on the capacity likewise
        factor = Jumps(demand.times[:, :1], demand.rates / 10)
        assert Verdict(int(judged(steady, two_backends(capacity=factor)).verdict)).name == expected


def test_a_backend_without_capacity_diverges(judged):
    """Whatever arrives where nothing is served is too much."""
    found = judged(growing(0.8), full_backends(capacity=Constant([1.0, 0.0])))
    assert Verdict(int(found.verdict)) is Verdict.diverging
    assert float(found.short_by) == pytest.approx(0.8, rel=1e-6)


def test_a_batch_is_judged_one_by_one(template):
    many = [wave(0.1), growing(0.8), ramp(-0.3)]
    runs = [
        dataclasses.replace(
            template, time=jnp.asarray(TIME), workload=jnp.asarray(np.stack([np.full_like(TIME, 30.0), series], 1))
        )
        for series in many
    ]
    # A run in a batch may end before the others: its last instant is repeated.
    runs[0] = dataclasses.replace(runs[0], time=jnp.minimum(runs[0].time, 90.0))
    runs[0] = dataclasses.replace(runs[0], workload=runs[0].workload.at[1801:].set(runs[0].workload[1800]))
    batch = classify(stack([full_backends()] * 3), jax.tree.map(lambda *leaves: jnp.stack(leaves), *runs))
    alone = [classify(full_backends(), run) for run in runs]
    np.testing.assert_array_equal(batch.verdict, [Verdict.oscillating, Verdict.diverging, Verdict.moving])
    np.testing.assert_array_equal(batch.verdict, [one.verdict for one in alone])
    np.testing.assert_allclose(batch.swing, [one.swing for one in alone])
    np.testing.assert_allclose(batch.short_by, [one.short_by for one in alone])
    np.testing.assert_allclose(batch.window, [18.0, 20.0, 20.0])


def test_a_verdict_needs_workloads(template):
    with pytest.raises(InputError, match="needs the workload over time: save it"):
        classify(two_backends(), dataclasses.replace(template, workload=None))


def test_instants_are_enough_for_the_shortest_run():
    assert look_every(400) == 1
    assert look_every(np.array([10_000, 900_000])) == 20


def test_moving_mean_of_a_ramp():
    """The mean of a ramp over a trailing window is its value half a window ago; weights are arrivals."""
    time = np.linspace(0, 10, 501)
    smooth = moving_mean(time, RATE * time, np.full_like(time, RATE), 2.0)
    np.testing.assert_allclose(smooth[time >= 2], time[time >= 2] - 1.0, atol=1e-12)
    np.testing.assert_allclose(smooth[time < 2], time[time < 2] / 2, atol=1e-12)


def test_moving_mean_weighs_by_arrivals():
    time = np.linspace(0, 1, 101)
    rate = 1 + time
    smooth = moving_mean(time, 3.0 * rate, rate, 0.5)
    np.testing.assert_allclose(smooth, 3.0, rtol=1e-12)


def test_time_to_settle_of_an_exponential():
    """An excess of e^{-t} comes within 0.1 % at t = ln 1000 and within twice a final 5 % when e^{-t} = 0.05."""
    time = np.linspace(0, 20, 20001)
    optimum = 0.2
    found = time_to_settle(time, optimum * (1 + np.exp(-time)), optimum, optimum)
    assert found == pytest.approx(np.log(1000), abs=2e-3)
    found = time_to_settle(time, optimum * (1.05 + np.exp(-time)), optimum, 1.05 * optimum)
    assert found == pytest.approx(-np.log(0.05), abs=2e-3)


def test_time_to_settle_counts_from_below_as_well_and_needs_the_end():
    time = np.linspace(0, 10, 1001)
    below = 1 - 0.5 * (time < 3)
    assert time_to_settle(time, below, 1.0, 1.0) == pytest.approx(3.0)
    assert time_to_settle(time, np.ones_like(time), 1.0, 1.0) == 0.0
    assert np.isnan(time_to_settle(time, np.where(time > 9.9, 2.0, 1.0), 1.0, 1.0))


@pytest.mark.parametrize(
    ("value", "expected"), [(20.0436, 20.1), (20.0, 20.0), (0.0123401, 0.0124), (1e6, 1e6), (99.96, 100.0)]
)
def test_what_is_asked_for_is_enough(value, expected):
    """Three digits, never below: 20 s asked of somebody who gave 20 s would be too short again."""
    assert enough(value) == pytest.approx(expected, rel=1e-12)
    assert float(f"{enough(value):.3g}") >= value * (1 - 1e-9)
