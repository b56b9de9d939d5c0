"""Events in a run: exact in time, of second order, conserved, differentiable; and what people are told of them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax import events as happen
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.simplex import project_simplex
from dgdlb_jax.policies.base import AbstractFlowPolicy
from dgdlb_jax.policies.failover import DnsLatency
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.static import FixedRouting, Nearest
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import central_difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

# --- counts -----------------------------------------------------------------------------------------------------------

RATE, TABLE = np.array([20.0, 6.0]), np.array([[0.3, 0.7], [0.6, 0.4]])
LATENCY, NEWS = np.array([[0.113, 0.31], [0.2, 0.05]]), np.array([[0.07, 0.2], [0.123, 0.0]])
FAILS, RECOVERS, END = 0.777, 2.503, 4.0


def bottomless() -> Network:
    """Backends that serve next to nothing, so that their workload counts what has arrived since it was last lost."""
    return Network(RATE, LATENCY, Hyperbolic([1e-15, 1e-15], [1.0, 1.0]), feedback_latency=NEWS)


def arrived_at_the_first(t):
    """What the first backend has received until `t`: everything that was sent until the frontends knew, and again since they know."""
    sent = [
        TABLE[i, 0] * RATE[i] * (
            min(t, FAILS + NEWS[i, 0] + LATENCY[i, 0]) + max(0.0, t - RECOVERS - NEWS[i, 0] - LATENCY[i, 0])
        )
        for i in range(2)
    ]  # fmt: skip
    return sum(sent)


def test_what_is_lost_is_exact_at_every_step():
    """A table, a failure and a recovery between grid points: what a backend loses is what it held and what reached it until it came back;
    what frontends send meanwhile goes to the other one. Nothing is lost otherwise."""
    dt = np.array([0.01, 0.04, 0.037, 0.09])
    runs = simulate_batch(
        stack([bottomless()] * 4),
        FixedRouting(np.stack([TABLE] * 4)),
        duration=END,
        dt=dt,
        initial=(np.stack([TABLE] * 4), np.zeros((4, 2))),
        events=[happen.Fails(FAILS, 0), happen.Recovers(RECOVERS, 0)],
        save=SaveAt(every=1, fields=("workload", "in_flight")),
    )
    lost = arrived_at_the_first(RECOVERS)
    np.testing.assert_allclose(runs.lost[:, -1], [[lost, 0]] * 4, rtol=1e-11)
    end = np.asarray(runs.time)[:, -1]
    np.testing.assert_allclose(runs.workload[:, -1, 0], [arrived_at_the_first(t) - lost for t in end], rtol=1e-10)
    on_the_way = (RATE[:, None] * TABLE * LATENCY).sum()
    sent = RATE.sum() * np.asarray(runs.time)
    held = np.asarray(runs.workload).sum(-1) + np.asarray(runs.lost).sum(-1) + np.asarray(runs.in_flight)
    np.testing.assert_allclose(held, on_the_way + sent, rtol=1e-11)


def test_dns_goes_on_sending_to_a_dead_backend():
    """Checks at 3, 6, 9, 12 s; it fails after 4 s, which is known 0.2 s later: out of the answer at 12 s, out of caches 6 s later. Lost
    is what reaches it until it is back, and it gets no more. Everybody else leaves it with the news."""
    network = Network([5.0], [[0.1, 0.3]], Hyperbolic([20.0, 20.0], [1.0, 1.0]), feedback_latency=[[0.2, 0.2]])
    options = {"duration": 25.0, "dt": 0.05, "events": [happen.Fails(4.0, 0)], "save": SaveAt(every=100)}
    start = np.array([[1.0, 0.0]]), np.array([1 / 3, 0.0])
    dns = simulate(network, DnsLatency(6.0, request_interval=3.0), initial=start, **options)
    # What was on the wires and at the backend, and all that is sent until 12 s, then half of it for 6 s.
    assert float(dns.lost[-1, 0]) == pytest.approx(1 / 3 + 5 * 0.1 + 5 * (12 - 4) + 5 * 6 / 2, rel=2e-3)
    nearest = simulate(network, Nearest(), initial=start, **options)
    assert float(nearest.lost[-1, 0]) == pytest.approx(1 / 3 + 5 * 0.1 + 5 * 0.2, rel=1e-6)


def test_requests_of_a_failed_backend_are_sent_again():
    """After the timeout, to the backend that is left: all of them are there in the end, whatever the step, and none is lost on the way.
    They cost the timeout, and the network once more."""
    dts, timeout = np.array([0.1, 0.05, 0.03, 0.0125]), 0.613
    network = stack([bottomless()] * dts.size)
    runs = simulate_batch(
        network, FixedRouting(np.stack([TABLE] * 4)), duration=3.0, dt=dts, initial=(np.stack([TABLE] * 4), np.zeros((4, 2))),
        events=[happen.Fails(FAILS, 0, timeout=timeout)], save=SaveAt(every=1, fields=("workload", "in_flight", "cost_rate")),
    )  # fmt: skip
    time, there = np.asarray(runs.time), (RATE[:, None] * TABLE * LATENCY).sum()
    held = np.asarray(runs.workload).sum(-1) + np.asarray(runs.in_flight)
    np.testing.assert_allclose(held, there + RATE.sum() * time, rtol=1e-10)
    assert np.abs(runs.lost).max() < 1e-9
    np.testing.assert_allclose(runs.workload[:, -1, 0], 0, atol=1e-9)
    np.testing.assert_allclose(runs.in_flight[:, -1], (RATE * LATENCY[:, 1]).sum(), rtol=1e-9)
    lost = RATE * TABLE[:, 0] * (FAILS + LATENCY[:, 0] + NEWS[:, 0])  # all that was sent to it
    sent = np.stack([TABLE[:, 0] * (FAILS + NEWS[:, 0]), TABLE[:, 1] * 3 + TABLE[:, 0] * (3 - FAILS - NEWS[:, 0])], 1)
    network_cost = (RATE[:, None] * sent * LATENCY).sum() + (lost * (timeout + LATENCY[:, 1])).sum()
    np.testing.assert_allclose(runs.statistics.network_cost, network_cost, rtol=1e-9)
    np.testing.assert_allclose(runs.statistics.arrivals, 3 * RATE.sum(), rtol=1e-9)
    beside = np.asarray(runs.cost_rate) - np.asarray(runs.workload).sum(
        -1
    )  # on the network, or waiting to be sent again
    np.testing.assert_allclose(np.trapezoid(beside, time, axis=1), network_cost, rtol=0.02)
    error = np.abs(np.trapezoid(beside, time, axis=1) - network_cost)
    assert error[-1] < 0.25 * error[0]  # its jumps are on no grid


def test_a_request_keeps_the_latency_it_was_sent_with():
    """The first frontend's links get slower, a link of the second breaks: what arrives by then, and what is lost, in closed form."""
    slow, at, breaks, mends = 1.9, 0.913, 1.207, 2.111
    dt = np.array([0.01, 0.04, 0.037, 0.09])
    runs = simulate_batch(
        stack([bottomless()] * 4),
        FixedRouting(np.stack([TABLE] * 4)),
        duration=END,
        dt=dt,
        initial=(np.stack([TABLE] * 4), np.zeros((4, 2))),
        events=[happen.Latency(at, slow, 0), happen.Breaks(breaks, 1, 0), happen.Mends(mends, 1, 0)],
        save=SaveAt(every=1, fields=("workload", "in_flight", "cost_rate")),
    )
    time = np.asarray(runs.time)
    first, slower = time[..., None] - LATENCY[0], time[..., None] - slow * LATENCY[0]
    of_the_first = TABLE[0] * RATE[0] * (np.minimum(first + LATENCY[0], at + LATENCY[0]) + np.maximum(slower - at, 0))
    # The second frontend uses its other link from `known` to `again`.
    known, again = breaks + NEWS[1, 0], mends + NEWS[1, 0]
    until = lambda t, begin, end: np.clip(t, begin, end) - begin
    t = time[..., None] - LATENCY[1]
    sent = TABLE[1] * RATE[1] * (t + LATENCY[1])
    away = until(t[..., 0], breaks, again)
    more = TABLE[1, 0] * RATE[1] * until(t[..., 1], known, again)
    of_the_second = sent + np.stack([-TABLE[1, 0] * RATE[1] * away, more], -1)
    np.testing.assert_allclose(runs.workload, of_the_first + of_the_second, rtol=1e-10, atol=1e-10)
    lost = TABLE[1, 0] * RATE[1] * NEWS[1, 0]
    np.testing.assert_allclose(runs.lost[:, -1], [[lost, 0]] * 4, rtol=1e-10)
    held = np.asarray(runs.workload).sum(-1) + np.asarray(runs.lost).sum(-1) + np.asarray(runs.in_flight)
    np.testing.assert_allclose(held, (RATE[:, None] * TABLE * LATENCY).sum() + RATE.sum() * time, rtol=1e-11)
    charged = (RATE[:, None] * TABLE * LATENCY) * [[slow], [1.0]]
    end = np.asarray(runs.cost_rate)[:, -1] - np.asarray(runs.workload)[:, -1].sum(-1)
    np.testing.assert_allclose(end, charged.sum(), rtol=1e-12)


# --- order of convergence ---------------------------------------------------------------------------------------------

COARSE = 0.04
REFINED = np.array([1, 2, 4, 8, 32])
ENDS = COARSE * np.array([20, 31, 37, 45, 60])
SERVED = Hyperbolic([12.0, 15.0, 13.0], [4.0, 8.0, 5.0])
FORWARD = np.array([[0.287, 0.173, 0.223], [0.213, 0.371, 0.107]])
BACK = np.array([[0.1313, 0.333, 0.217], [0.2539, 0.093, 0.111]])
START = np.full((2, 3), 1 / 3), np.full(3, 8.0)


def everything(replicas=0.7, demand=1.2, way=1.6) -> list[happen.Event]:
    """One of each, at times that are on no grid."""
    return [
        happen.Fails(0.618, "a"),
        happen.Breaks(0.7, "q", "b"),
        happen.Mends(0.95, "q", "b"),
        happen.Replicas(1.1, "b", replicas),
        happen.Latency(1.25, way, "p", news=True),
        happen.Closes(1.313, "q", "c"),
        happen.Recovers(1.507, "a"),
        happen.Drains(1.717, "b"),
        happen.Demand(1.903, demand, "p"),
        happen.Opens(1.987, "q", "c"),
    ]


def fleet(rate=(12.0, 6.0), latency=FORWARD, back=BACK) -> Network:
    names = {"frontend_names": ["p", "q"], "backend_names": ["a", "b", "c"]}
    return Network(jnp.asarray(rate), latency, SERVED, feedback_latency=back, **names)


def test_news_keeps_the_latency_it_was_sent_with():
    """What a frontend sees of a backend that fills up at a constant rate, when links slow down and get fast again: the workload at which
    the newest report left that has arrived. Jumps are on no grid, and the first frontend's link is not changed."""
    slow, fast = 0.5, 1.6
    seen_by = lambda time, fb, jumps: max(
        s
        for (begin, factor), end in zip([(-9.0, 1.0), *jumps], [*(j[0] for j in jumps), 99.0], strict=True)
        if (s := min(time - factor * fb, end - 1e-12)) >= begin
    )
    network = Network([10.0], [[0.0, 0.0]], Hyperbolic([1e-15] * 2, [1.0] * 2), feedback_latency=[[0.23, 0.31]])
    changed = [happen.Latency(slow, 3.0, backend=1, news=True), happen.Latency(fast, 0.5, backend=1, news=True)]
    watch = Watch(jnp.asarray(0.0))
    run = simulate(network, watch, duration=2.6, dt=0.04, initial=([[0.5, 0.5]], [0.0, 0.0]), events=changed)
    seen = np.asarray(run.final.policy_state)  # one sum over steps of what was seen, for each backend
    times = 0.04 * np.arange(1, 66)
    for j, (fb, jumps) in enumerate(((0.23, []), (0.31, [(slow, 3.0), (fast, 0.5)]))):
        expected = sum(5 * max(0.0, seen_by(t, fb, jumps)) for t in times)
        assert seen[0, j] == pytest.approx(expected, rel=1e-3)
    assert np.abs(run.workload[-1] - 13).max() < 1e-9


class Watch(AbstractFlowPolicy):
    """A rule that stays where it is, and adds up what it sees."""

    nothing: jax.Array

    def init(self, observation):
        return jnp.zeros_like(observation.workload)

    def velocity(self, t, routing, observation, state):
        return jnp.zeros_like(routing), state + observation.workload


def test_order_two():
    """Where in a step an event falls changes with the step, so errors do not fall by 4 each time: by 64 in three halvings on average.

    A scheme of first order has 8; 27 is an order of 1.6.
    """
    cases = [(COARSE / m, end) for m in REFINED for end in ENDS]
    dts, ends = zip(*cases, strict=True)
    runs = simulate_batch(
        stack([fleet()] * len(cases)).with_names(["p", "q"], ["a", "b", "c"]),
        DGDLB(0.4),
        duration=np.array(ends),
        dt=np.array(dts),
        initial=tuple(np.stack([one] * len(cases)) for one in START),
        events=everything(),
        save=SaveAt.final(),
    )
    for found in (runs.final.workload, runs.final.lost, runs.final.routing):
        values = np.asarray(found).reshape(len(REFINED), -1)
        error = np.abs(values[:-1] - values[-1]).max(-1)
        assert error[0] < 0.05
        assert error[0] / error[-1] > 27, error


def test_a_demand_that_moves_is_multiplied():
    """Counts over intervals, against fine sums; and a run under a flat trace, which is one at constant rates."""
    cycle = DailyCycle([4.0, 2.0], 0.6, phase=1.0, period=7.0)
    network = fleet().with_arrival_rate(cycle)
    changed = [happen.Demand(0.333, 1.5), happen.Demand(1.25, 0.2, "p")]
    demand = signals(network, changed).demand_of(network).demand
    now = lambda t: np.stack([np.where(t < 0.333, 1, np.where(t < 1.25, 1.5, 0.2)), np.where(t < 0.333, 1, 1.5)])
    for start, end in ((0.0, 0.3), (0.3, 0.4), (0.0, 2.0)):
        t = np.linspace(start, end, 200_001)
        t = (t[1:] + t[:-1]) / 2
        expected = (now(t) * np.asarray(jax.vmap(cycle.rate, out_axes=1)(t))).mean(1)
        pieces = np.linspace(start, end, 65)
        means = [demand.mean_over(begin, pieces[1] - pieces[0]) for begin in pieces[:-1]]
        np.testing.assert_allclose(np.mean(means, 0), expected, rtol=1e-4)
    np.testing.assert_allclose(demand.rate(1.5), [0.2, 1.5] * np.asarray(cycle.rate(1.5)), rtol=1e-12)
    np.testing.assert_allclose(demand.mean_rate, [0.8, 3.0], rtol=1e-12)
    np.testing.assert_allclose(demand.pad(3).scaled(2.0).rate(1.5)[:2], 2 * demand.rate(1.5), rtol=1e-12)

    flat = fleet().with_arrival_rate(Trace(0.5, np.broadcast_to([12.0, 6.0], (8, 2))))
    run = lambda network: simulate(network, DGDLB(0.4), initial=START, duration=2.0, dt=COARSE, events=changed)
    there, here = run(flat), run(fleet())
    np.testing.assert_allclose(there.workload, here.workload, rtol=1e-9)
    np.testing.assert_allclose(there.arrival_rate, here.arrival_rate, rtol=1e-12)


# --- by hand ----------------------------------------------------------------------------------------------------------


def test_a_run_split_by_hand_at_the_event():
    """Without the option: a run, the backend emptied, its arcs taken away, another run. Frontends know at once, as news take no time.
    (Jumps of demand that never come make the wires of these runs carry counts.)

    The two differ in the one step that ends with the event, by the square of its length.
    """
    dt, at = 0.01, 0.6
    network, policy = fleet(back=np.zeros((2, 3))).with_arrival_rate(Jumps([1e6], [[12.0, 6.0]] * 2)), DGDLB(0.4)
    run = lambda network, start, duration, **options: (
        simulate(
            network, policy, initial=start, duration=duration, dt=dt, max_latency=0.5, save=SaveAt.final(), **options
        ).final
    )
    whole = run(network, START, 1.2, events=[happen.Fails(at, "a")])
    first = run(network, START, at)
    mask = np.array([[False, True, True]] * 2)
    routing = project_simplex(first.routing.T, mask.T).T
    emptied = first.workload.at[0].set(0.0)
    then = eqx.tree_at(
        lambda s: (s.workload, s.routing, s.flow), first, (emptied, routing, network.arrival_rate[:, None] * routing)
    )
    second = run(eqx.tree_at(lambda n: n.mask, network, jnp.asarray(mask)), then, at)
    np.testing.assert_allclose(
        whole.workload[1:], second.workload[1:], atol=1e-4
    )  # 4e-5, and a quarter of that at half the step
    np.testing.assert_allclose(whole.routing, second.routing, atol=1e-6)


def test_one_long_run_is_two_short_ones_to_the_bit():
    """The seam lies in the step after the failure, when frontends still hear of the workload before it, and wires are in use that the
    run did not begin with."""
    happenings = [happen.Fails(0.618, "a"), happen.Latency(0.31, 1.6, "p")]
    network, start = stack([fleet()]).with_names(["p", "q"], ["a", "b", "c"]), tuple(one[None] for one in START)
    run = lambda steps, start: (
        simulate_batch(
            network,
            DGDLB(0.4),
            initial=start,
            duration=steps * COARSE,
            dt=COARSE,
            events=happenings,
            save=SaveAt.final(),
            frames=1,
        ).final
    )
    for one, other in zip(jax.tree.leaves(run(32, start)), jax.tree.leaves(run(16, run(16, start))), strict=True):
        np.testing.assert_array_equal(one, other)


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.full
def test_derivatives_by_factors_rates_and_latencies(rng):
    """Reverse mode, forward mode and differences.

    No latency is a whole number of steps, where it has two derivatives, and no news of an event comes at a grid point.
    """

    @jax.jit
    def cost(given):
        rate, latency, back, *factors, step_size, workload = given
        run = simulate(
            fleet(rate, latency, back), DGDLB(step_size), initial=(START[0], workload), duration=2.4, dt=COARSE,
            events=everything(*factors), save=SaveAt.statistics(), max_latency=0.5, throw=False,
        )  # fmt: skip
        return run.statistics.mean_latency + run.final.workload @ jnp.arange(1.0, 4.0) + run.final.lost.sum()

    given = jax.tree.map(
        jnp.asarray, ([12.0, 6.0], FORWARD, BACK, 0.7, 1.2, 1.6, 0.4, START[1]), is_leaf=lambda x: isinstance(x, list)
    )
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape)) * jnp.abs(leaf), given)
    gradient = jax.jit(jax.grad(cost))(given)
    forward = jax.jit(lambda d: jax.jvp(cost, (given,), (d,))[1])(direction)
    assert all(np.abs(leaf).max() > 1e-6 for leaf in jax.tree.leaves(gradient))
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    assert float(reverse) == pytest.approx(float(forward), rel=1e-11)
    assert float(forward) == pytest.approx(float(central_difference(cost, given, direction, h=1e-6)), rel=1e-7)


@pytest.mark.full
def test_derivatives_where_requests_are_sent_again():
    """By rates, the latency and the workload at the start, in reverse mode and by differences."""
    again = [happen.Fails(0.618, "a", timeout=0.4321), happen.Recovers(1.507, "a")]

    @jax.jit
    def cost(given):
        rate, latency, workload = given
        run = simulate(
            fleet(rate, latency), DGDLB(0.4), initial=(START[0], workload), duration=2.4, dt=COARSE, events=again,
            save=SaveAt.statistics(), max_latency=0.5, throw=False,
        )  # fmt: skip
        return run.statistics.mean_latency + run.final.workload @ jnp.arange(1.0, 4.0)

    given = jnp.asarray([12.0, 6.0]), jnp.asarray(FORWARD), jnp.asarray(START[1])
    gradient = jax.jit(jax.grad(cost))(given)
    direction = jax.tree.map(lambda leaf: 0.1 * leaf, given)
    reverse = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction)))
    assert float(reverse) == pytest.approx(float(central_difference(cost, given, direction, h=1e-6)), rel=1e-7)


# --- the network in between, and what is refused ----------------------------------------------------------------------


def test_the_network_as_it_is_after_some_events():
    found = signals(fleet(), everything())
    between, last = found.network_at(fleet(), 1.4), found.network_at(fleet(), 2.0)
    np.testing.assert_array_equal(between.mask, [[False, True, True], [False, True, False]])
    np.testing.assert_array_equal(last.mask, [[True, False, True]] * 2)
    np.testing.assert_allclose(last.arrival_rate, [1.2 * 12, 6])
    np.testing.assert_allclose(last.service.supremum, [12, 0.7 * 15, 13])
    np.testing.assert_allclose(
        last.service.initial_slope, SERVED.initial_slope
    )  # a lone request takes as long as before


WRONG = {
    "no backend 'aa'; did you mean a": [happen.Fails(1.0, "aa")],
    "there is no backend 3: give one of a, b, c": [happen.Fails(1.0, 3)],
    "backend a is not out of service then: let it fail": [happen.Recovers(1.0, "a")],
    "no such link is broken then: let it break": [happen.Breaks(1.0, "p", "b"), happen.Mends(2.0, "p", "a")],
    "no such link is closed then: close it": [
        happen.Closes(1.0, "p", "b"),
        happen.Opens(2.0, "p", "b"),
        happen.Opens(3.0),
    ],
    "leaves frontend p without a backend": [happen.Fails(1.0, ["a", "b"]), happen.Closes(2.0, "p", "c")],
    "0.02 s apart, which dt = 0.04 s does not resolve": [happen.Fails(1.0, "a"), happen.Recovers(1.02, "a")],
    "Fails\\(at=1.5\\).timeout is 2.0, but None when backend a fails before": [
        happen.Fails(1.0, "a"),
        happen.Recovers(1.2, "a"),
        happen.Fails(1.5, "a", timeout=2.0),
    ],
    "is no event: use the classes of dgdlb_jax.events": [happen.Event(1.0)],
}


@pytest.mark.parametrize("sentence", WRONG)
def test_what_makes_no_sense_is_refused(sentence):
    with pytest.raises(InputError, match=sentence):
        simulate(fleet(), DGDLB(0.4), duration=1.0, dt=COARSE, events=WRONG[sentence])


def test_values_out_of_range_are_refused():
    for wrong, sentence in (
        (lambda: happen.Fails(0.0, "a"), "Fails.at is 0.0: give a finite time above 0"),
        (lambda: happen.Replicas(1.0, "a", 0.0), "a backend that has none left Fails"),
        (lambda: happen.Demand(1.0, -2.0), "finite factor that is not negative"),
    ):
        with pytest.raises(InputError, match=sentence):
            wrong()
