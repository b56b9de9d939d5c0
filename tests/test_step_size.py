"""Step sizes, time steps and durations: formulas by hand, and what DGD-LB does with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.model import topologies
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.random_service import hyperbolic
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.stability.defaults import (
    default_step_size,
    default_step_size_set_by,
    drain_time,
    slowest_decay_rate,
    suggest_dt,
    suggest_duration,
)
from dgdlb_jax.studies.starts import start_state

pytestmark = pytest.mark.usefixtures("quick_compilation")


def symmetric(latency=0.3) -> Network:
    """One frontend, two equal backends: N = 1 each, a = 8 * 4 / 25, c = 2 (4 + 1) / (8 * 4)."""
    return Network([3.2], [[latency, latency]], Hyperbolic([8.0, 8.0], [4.0, 4.0]))


A, C = 8 * 4 / 25, 2 * 5 / 32


def test_the_default_by_hand():
    expected = 0.25 * A / (2 * C * 3.2 * 0.3)
    np.testing.assert_allclose(default_step_size(symmetric()), [expected], rtol=1e-9)


def test_what_decides_the_default_is_named():
    """Frontend by frontend the step falls as the latency that is named grows, and no other; two frontends of 2 x 2 in closed form."""
    latency = np.array([[0.1, 0.4], [0.3, 0.2]])
    network = Network([6.0, 2.0], latency, Hyperbolic([8.0, 8.0], [4.0, 2.0]), cost_latency=np.zeros((2, 2)))
    optimum = solve_optimum(network)
    step, (response, longest) = default_step_size(network, optimum), default_step_size_set_by(network, optimum)
    np.testing.assert_array_equal(longest, [1, 0])
    # Both use both backends, so the smaller a / c decides: with l' = k v / (k + N)^2 that is k v / (2 (k + N)).
    ratio = np.array([4.0, 2.0]) * 8 / (2 * (np.array([4.0, 2.0]) + np.asarray(optimum.workload)))
    np.testing.assert_array_equal(response, [ratio.argmin()] * 2)
    for i, j in np.ndindex(2, 2):
        longer = latency.copy()
        longer[i, j] *= 1.01
        changed = Network([6.0, 2.0], longer, network.service, feedback_latency=latency, cost_latency=np.zeros((2, 2)))
        now = default_step_size(changed, optimum)
        expected = np.where((np.arange(2) == i) & (np.asarray(longest) == j), 1 / 1.005, 1.0)
        np.testing.assert_allclose(now / step, expected, rtol=1e-9)


def test_update_intervals_count_as_latency():
    expected = 0.25 * A / (2 * C * 3.2 * 1.0)
    np.testing.assert_allclose(default_step_size(symmetric(), update_interval=1.0), [expected], rtol=1e-9)


def test_a_frontend_without_a_choice_has_no_step_size():
    network = Network([1.0, 2.0], np.full((2, 2), 0.1), Hyperbolic([8.0, 8.0], [4.0, 4.0]), mask=[[1, 0], [1, 1]])
    step = default_step_size(network)
    assert float(step[0]) == 0
    assert float(step[1]) > 0


def test_decay_by_hand():
    """The routing mode decays at c lambda eta / a when slow (both backends swing against each other)."""
    step = 0.01
    assert float(slowest_decay_rate(symmetric(), step)) == pytest.approx(C * 3.2 * step / A, rel=1e-9)
    assert float(slowest_decay_rate(symmetric(), 1e6)) == pytest.approx(A, rel=1e-9)


def test_drain_by_hand():
    """One frontend, a second backend that is 5 s away and stays empty: its arc drains at eta z / 2."""
    network = Network([1.0], [[0.1, 5.0]], Hyperbolic([8.0, 8.0], [4.0, 4.0]))
    found = solve_optimum(network)
    slack = 4 / 8 + 5.0 - float(found.multiplier[0])
    assert float(drain_time(network, 0.1)) == pytest.approx(2 / (0.1 * slack), rel=1e-9)
    assert float(drain_time(network, 0.1, negligible=1e3)) == 0


def crossing(a: float, gain: float) -> float:
    """The positive root of w sqrt(w^2 + a^2) = K, from the quadratic in w^2."""
    return np.sqrt((-(a**2) + np.sqrt(a**4 + 4 * gain**2)) / 2)


def test_suggestions_are_round_and_respect_their_terms():
    network = symmetric()
    step = default_step_size(network)
    assert suggest_dt(network) == 0.05  # 0.1 / (8 / 4); the loop, 0.05 / 0.39, allows more
    assert suggest_duration(network) >= 10 / float(slowest_decay_rate(network, step))
    batch = stack([network, symmetric(0.05)])
    assert suggest_dt(batch).shape == (2,)
    fast = 0.05 / crossing(A, 0.25 * A / (2 * 0.05))  # c lambda eta at the default step size for 50 ms
    np.testing.assert_allclose(suggest_dt(batch), [0.05, fast], rtol=1e-9)


def test_the_step_of_a_fast_loop_by_hand():
    """At rest on both backends, N = 1, the start is the optimum."""
    fast = 0.05 / crossing(A, C * 3.2 * 20.0)
    assert fast < 0.05
    np.testing.assert_allclose(suggest_dt(stack([symmetric()]), 20.0), [fast], rtol=1e-9)


def test_a_steeper_start_makes_the_step_shorter():
    """At N = 12 a = 8 * 4 / 16^2 and c = 2 * 16 / 32: nothing but the start has changed."""
    steep = 0.05 / crossing(8 * 4 / 16**2, 1.0 * 3.2 * 20.0)
    assert steep < 0.05 / crossing(A, C * 3.2 * 20.0)
    found = suggest_dt(stack([symmetric()]), 20.0, workload=jnp.full((1, 2), 12.0))
    np.testing.assert_allclose(found, [steep], rtol=1e-9)


@pytest.mark.parametrize(("latency", "expected"), [(0.3, 0.3 / 20), (0.01, 4e-3 * 1.0 / 1.6), (0.0, 4e-3 * 1.0 / 1.6)])
def test_the_step_of_rules_that_jump_by_hand(latency, expected):
    """A twentieth of the latency, or 0.4 % of the time in service N / Lambda = 1 / 1.6 where that is longer."""
    np.testing.assert_allclose(suggest_dt(stack([symmetric(latency)]), jumps=True), [expected], rtol=1e-9)


# --- DGD-LB settles at the optimum ------------------------------------------------------------------------------------

FAMILIES = {
    "equal": functools.partial(topologies.equal_latencies, load=0.7),
    "geographic": functools.partial(
        topologies.geographic, load=0.5, service=functools.partial(hyperbolic, service_time=0.03)
    ),
}
MOST_STEPS = {False: 1e6, True: 1.2e7}  # short runs leave more undecided


def settle(family: str, count: int, most_steps: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(excess at the end, swing over the last part, steps) of DGD-LB at the default step size; NaN where it would take too long.

    Twenty decay times, since e^-15 of a start that is far away is not yet below 1e-6, and the time that arcs take to drain.
    """
    networks = FAMILIES[family](jax.random.key(7), frontends=3, backends=3, count=count)
    optima = solve_optimum(networks)
    step = default_step_size(networks, optima)
    dt = np.asarray(suggest_dt(networks, step, optima))
    duration = 20 / np.asarray(slowest_decay_rate(networks, step, optima))
    duration += np.asarray(drain_time(networks, step, optima, negligible=1e-6))
    steps, excess, swing = duration / dt, np.full(count, np.nan), np.full(count, np.nan)
    for group in np.array_split(np.argsort(steps)[: (steps < most_steps).sum()], 2):
        some = jax.tree.map(lambda leaf, group=group: leaf[group], networks)
        runs = simulate_batch(
            some,
            DGDLB(step[group]),
            duration=duration[group],
            dt=dt[group],
            save=SaveAt.statistics(after=0.9 * duration[group]),
        )
        cost = runs.final.workload.sum(-1) + (runs.final.flow * some.cost_latency).sum((1, 2))
        excess[group] = np.asarray(cost / some.arrival_rate.sum(-1) / optima.mean_latency[group] - 1)
        swing[group] = runs.statistics.swing
    return excess, swing, steps


@pytest.mark.parametrize("count", [pytest.param(20, id="20"), pytest.param(100, id="100", marks=pytest.mark.full)])
@pytest.mark.parametrize("family", FAMILIES)
def test_dgdlb_settles_at_the_optimum(family, count):
    """All that run to their end reach an excess of 1e-6; those that would take too long are counted, none cycles."""
    full = count == 100
    excess, swing, steps = settle(family, count, MOST_STEPS[full])
    reached = excess < 1e-6
    cycling = ~reached & (swing > 0.02)
    not_yet = ~reached & ~cycling
    print(f"{family}: {reached.sum()} reached, {cycling.sum()} cycling, {not_yet.sum()} not yet of {count}")
    for n in np.flatnonzero(~reached):
        print(f"  topology {n}: excess {excess[n]:.2g}, swing {swing[n]:.2g}, {steps[n]:.3g} steps needed")
    assert cycling.sum() == 0
    assert reached[np.isfinite(excess)].all()
    assert not_yet.sum() <= (0.05 if full else 0.35) * count
    assert np.nanmin(excess) > -1e-9  # the certificate: nobody beats the optimum at rest


@pytest.mark.parametrize(
    "fleet",
    ["global-llm", *(pytest.param(name, marks=pytest.mark.full) for name in ("global-prefill", "small-models"))],
)
def test_real_fleets_settle_from_every_start(fleet):
    """Excess below 0.2 %, swing of 1 % over the last fifth: after 100 s, 900 s with seconds of service.

    The largest swing, 1.01 % in small-models from uniform, is a frontend that leaves a backend at 96 s: a step, not a cycle.
    """
    network = load_fleet(fleet, demand="constant")
    optimum = solve_optimum(network)
    duration = 900.0 if fleet == "global-llm" else 100.0
    starts = [start_state(network, start) for start in ("proportional", "nearest", "uniform")]
    initial = tuple(jnp.stack([jnp.asarray(part) for part in parts]) for parts in zip(*starts, strict=True))
    runs = simulate_batch(
        stack([network] * 3),
        DGDLB(jnp.tile(default_step_size(network, optimum), (3, 1))),
        duration=duration,
        dt=float(suggest_dt(network)),
        initial=initial,
        save=SaveAt.statistics(after=0.8 * duration),
    )
    excess = np.asarray(runs.statistics.mean_latency / optimum.mean_latency - 1)
    print(fleet, excess, runs.statistics.swing)
    assert (excess < 2e-3).all()
    assert (np.asarray(runs.statistics.swing) < 0.0105).all()
