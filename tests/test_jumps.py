"""Demand and capacity that jump: what is sent and what arrives is exact, the order stays two, and so do derivatives."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.gradients.marginal import marginal_latency
from dgdlb_jax.model.demand import Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.static import FixedRouting
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import DT, SETTINGS, central_difference, small_network, some_of, some_start

pytestmark = pytest.mark.usefixtures("quick_compilation")

# --- counts -----------------------------------------------------------------------------------------------------------

TIMES = np.array([[3.0, 0.77], [3.2, 5.0]])  # two jumps of a frontend within the longest of the steps below
RATES = np.array([[20.0, 2.0], [1.0, 9.0], [6.0, 4.0]])
LATENCY = np.array([[0.013, 0.31], [0.2, 0.0]])
ROUTING = np.array([[0.3, 0.7], [0.6, 0.4]])


def sent_until(t):
    """What each frontend has sent since time 0, piece by piece; before it, at its first rate."""
    t = np.asarray(t)[..., None]
    later = ((RATES[1:] - RATES[:-1]) * np.maximum(t[..., None] - TIMES.T, 0).swapaxes(-1, -2)).sum(-2)
    return RATES[0] * t + later


def bottomless(demand) -> Network:
    """Backends that serve next to nothing, so that their workload counts what has arrived."""
    return Network(demand, LATENCY, Hyperbolic([1e-15, 1e-15], [1.0, 1.0]))


def arrived_until(t):
    """What each backend has received since time 0."""
    return sum(
        ROUTING[i] * (np.stack([sent_until(t - tau)[..., i] for tau in LATENCY[i]], -1) - sent_until(-LATENCY[i])[:, i])
        for i in range(2)
    )


def test_what_is_sent_and_what_arrives_is_exact_at_every_step():
    """Jumps on the grid and off it, at different times of different frontends; latencies of whole steps, above and below one, zero."""
    dt = np.array([0.01, 0.04, 0.037, 0.25])
    runs = simulate_batch(
        stack([bottomless(Jumps(TIMES, RATES))] * 4),
        FixedRouting(np.stack([ROUTING] * 4)),
        duration=8.0,
        dt=dt,
        initial=(np.stack([ROUTING] * 4), np.zeros((4, 2))),
        save=SaveAt(every=1, fields=("workload", "in_flight")),
    )
    time = np.asarray(runs.time)
    np.testing.assert_allclose(runs.workload, arrived_until(time), rtol=1e-11, atol=1e-11)
    sent = sent_until(time)
    np.testing.assert_allclose(runs.statistics.arrivals, sent[:, -1].sum(-1), rtol=1e-12)
    assert float(runs.statistics.arrivals[1]) == pytest.approx(
        3 * 20 + 0.2 + 4.8 * 6 + 0.77 * 2 + 4.23 * 9 + 3 * 4, rel=1e-12
    )
    np.testing.assert_allclose(runs.statistics.mean_routing, np.stack([ROUTING] * 4), rtol=1e-12)
    out = (RATES[0][:, None] * ROUTING * LATENCY).sum() + sent.sum(-1) - arrived_until(time).sum(-1)
    np.testing.assert_allclose(runs.in_flight, out, rtol=1e-11, atol=1e-11)


def test_a_run_goes_on_into_jumps_and_out_of_them():
    """From constant rates into jumps the wires are recounted, out of jumps they stay counted: nothing is lost at either seam."""
    policy, settings = (
        FixedRouting(ROUTING),
        {"dt": 0.04, "max_latency": 0.4, "save": SaveAt(1, fields=("workload", "in_flight"))},
    )
    demands = Constant(RATES[0]), Jumps(TIMES, RATES), Constant(RATES[-1])
    state, times = (ROUTING, np.zeros(2)), [0.0]
    for demand, duration in zip(demands, (0.6, 4.6, 1.0), strict=True):
        run = simulate(bottomless(demand), policy, initial=state, duration=duration, **settings)
        state, times = run.final, np.asarray(run.time)
        np.testing.assert_allclose(run.workload, arrived_until(times), rtol=1e-11, atol=1e-11)
        out = (RATES[0][:, None] * ROUTING * LATENCY).sum() + sent_until(times).sum(-1) - arrived_until(times).sum(-1)
        np.testing.assert_allclose(run.in_flight, out, rtol=1e-11, atol=1e-11)
    assert times[-1] == pytest.approx(6.2)


def jumping_network(rng, **changes) -> Network:
    rates = np.array([[4.0, 6.0, 5.0], [6.0, 2.0, 7.0], [3.0, 5.0, 4.0]])
    factors = np.array([[1.0, 1.0, 1.0, 1.0], [0.5, 1.0, 1.3, 1.0]])
    settings = {"arrival_rate": Jumps([0.413, 0.917], rates), "capacity": Jumps([0.657], factors)}
    return small_network(rng, **settings | changes)


def test_one_long_run_is_two_short_ones_to_the_bit(rng):
    """The jump of capacity falls into the second half, those of demand on both sides of the seam."""
    network = jumping_network(rng)
    policy, start = DGDLB(0.2 * jnp.ones(3)), some_start(rng, network)
    run = lambda steps, start: (
        simulate(network, policy, initial=start, save=SaveAt.final(), **SETTINGS | {"duration": steps * DT}).final
    )
    long, halves = run(60, start), run(30, run(30, start))
    for one, other in zip(jax.tree.leaves(long), jax.tree.leaves(halves), strict=True):
        np.testing.assert_array_equal(one, other)


# --- order of convergence ---------------------------------------------------------------------------------------------

COARSE, GOLDEN = 0.04, (np.sqrt(5) - 1) / 2
REFINED = np.array([1, 2, 4, 8, 32])
ENDS = COARSE * np.array([20, 31, 37, 45, 52, 60])


def jumps_at_irrational_times() -> dict[str, Network]:
    """Jumps of demand and capacity, the third of a frontend's latency beyond a step kept under halving; and latencies below a step."""
    demand = Jumps(GOLDEN * np.array([[1.0, 1.3], [2.1, 2.3]]), [[12.0, 6.0], [6.0, 9.0], [10.0, 3.0]])
    capacity = Jumps(GOLDEN * np.array([[1.7, 1.1]]), [[1.0, 1.0], [0.6, 1.2]])
    latency, feedback = (COARSE * (np.array(steps) + 1 / 3) for steps in ([[7, 4], [5, 9]], [[3, 8], [6, 2]]))
    short = np.full((2, 2), 0.0009), np.full((2, 2), 0.0004)
    curve = Hyperbolic([12.0, 15.0], [4.0, 8.0])
    return {
        "above a step": Network(demand, latency, curve, feedback_latency=feedback, capacity=capacity),
        "below a step": Network(demand, short[0], curve, feedback_latency=short[1], capacity=capacity),
    }


@pytest.fixture(scope="module")
def errors():
    """kind -> largest error of the workloads at several times, for steps that are halved; all runs are one batch."""
    kinds = jumps_at_irrational_times()
    cases = [(network, COARSE / m, end) for network in kinds.values() for m in REFINED for end in ENDS]
    networks, dts, ends = zip(*cases, strict=True)
    runs = simulate_batch(
        stack(networks),
        DGDLB(0.4),
        duration=np.array(ends),
        dt=np.array(dts),
        initial=(np.full((len(cases), 2, 2), 0.5), np.full((len(cases), 2), 8.0)),
        save=SaveAt.final(),
    )
    found = np.asarray(runs.final.workload).reshape(len(kinds), len(REFINED), -1)
    return dict(zip(kinds, np.abs(found[:, :-1] - found[:, -1:]).max(-1), strict=True))


@pytest.mark.parametrize("kind", ["above a step", "below a step"])
def test_order_two(errors, kind):
    """Where in a step a jump falls changes with the step, so errors do not fall by 4 each time: by 64 in three halvings on average.

    A scheme of first order has 8; 35 is an order of 1.7.
    """
    error = errors[kind]
    assert error[0] < 0.02
    assert error[0] / error[-1] > 35


# --- derivatives ------------------------------------------------------------------------------------------------------

TRACE = Trace([0.3137, 0.2471, 0.4093], [[4.0, 6.0, 5.0], [3.0, 2.0, 6.0], [5.0, 5.0, 2.0], [6.0, 4.0, 3.0]])
FACTORS = Trace(0.3331, [[1.0, 0.8, 1.2, 1.0], [0.7, 1.0, 1.1, 0.9], [1.0, 1.2, 0.9, 1.0]])
CYCLES = DailyCycle([4.0, 6.0, 5.0], 0.4, [0.0, 0.4, 0.2], 3.0), DailyCycle(np.ones(4), 0.2, np.zeros(4), 2.0)
MOVING = {
    "jumps of demand, a trace of capacity": {"capacity": FACTORS},
    "a trace of demand, jumps of capacity": {"arrival_rate": TRACE},
    "cycles": {"arrival_rate": CYCLES[0], "capacity": CYCLES[1]},
}


@pytest.mark.parametrize("kind", some_of(MOVING, "jumps of demand, a trace of capacity"))
def test_derivatives_by_demand_and_capacity(rng, kind):
    """Reverse mode, forward mode and differences, by all numbers of both: rates, widths of bins, times of jumps."""
    network = jumping_network(rng, **MOVING[kind])
    weight = np.where(network.mask, rng.uniform(1, 2, (3, 4)), 0)
    start = weight / weight.sum(1, keepdims=True), rng.uniform(2, 6, 4)
    both = (network.demand, network.capacity)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape)) * jnp.abs(leaf), both)

    @jax.jit
    def cost(both):
        other = eqx.tree_at(lambda n: (n.demand, n.capacity), network, both)
        run = simulate(
            other, DGDLB(0.2), initial=start, save=SaveAt.statistics(), throw=False, **SETTINGS | {"duration": 60 * DT}
        )
        return run.statistics.mean_latency + run.final.workload @ jnp.arange(1.0, 5.0)

    gradient = jax.jit(jax.grad(cost))(both)
    forward = jax.jit(lambda d: jax.jvp(cost, (both,), (d,))[1])(direction)
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient))
    assert float(reverse) == pytest.approx(float(forward), rel=1e-11)
    # The error of the difference is 1e-12 from its step squared and 1e-10 from rounding.
    assert float(forward) == pytest.approx(float(central_difference(cost, both, direction, h=1e-6)), rel=1e-7)


@pytest.mark.full
def test_the_marginal_latency_with_counts_is_that_without():
    """Jumps that never come: extra flow is counted on the wires, and costs what it costs where it is not, up to the order of the scheme.

    At the first instant, on an arc shorter than a step, half a step's flow arrives a fraction of a step apart in the two: 6e-4.
    """
    found = []
    for rate in ([4.0, 2.0], Jumps([1e6], [[4.0, 2.0]] * 2)):
        network = Network(rate, [[0.02, 0.153], [0.15, 0.0]], Hyperbolic([8.0, 8.0], [20.0, 20.0]))
        found.append(
            marginal_latency(
                network,
                DGDLB(0.05),
                duration=2.0,
                dt=0.05,
                every=10,
                run_on=200.0,
                initial=(np.full((2, 2), 0.5), [4.0, 5.0]),
            )
        )
    for field in ("open_loop", "closed_loop"):
        one, other = (np.asarray(getattr(each, field)) for each in found)
        np.testing.assert_allclose(one, other, rtol=1e-3, err_msg=field)
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-4, err_msg=field)
