"""Requests that a frontend has under way: second order, Little's law at rest, resumed, beside extensions, in single precision."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation.own import reads_outstanding
from helpers import DT, MAX_LATENCY, single_precision, small_network, some_start

pytestmark = pytest.mark.usefixtures("quick_compilation")

RULE = dgd.WeightedLeastRequest(1.0)


class Fading(dgd.AbstractExtension):
    """Backends that tire: the capacity factor follows the workload seen half a second ago."""

    name: ClassVar[str] = "fading"

    def init(self, network):
        return jnp.ones_like(network.latency[0])

    def delay(self, network):
        return jnp.full_like(network.latency[0], 0.51)

    def signal(self, view, state):
        return view.workload

    def velocity(self, view, state, received):
        return 1 / (1 + 0.01 * received) - state

    def capacity(self, state):
        return state


class Reading(dgd.AbstractInstantPolicy):
    """Goes by shares of what is under way and of a fixed weight, from outside the package."""

    differentiable: ClassVar[bool] = True

    weight: jax.Array

    def route(self, t, observation, state):
        return proportional(self.weight / (1 + observation.outstanding), observation.mask), state


def test_the_plan_knows_who_looks(rng):
    """By the program of the rule, whoever wrote it; others have no further delay line."""
    networks = dgd.stack([small_network(rng)])
    assert reads_outstanding(networks, Reading(jnp.asarray(2.0)))
    assert reads_outstanding(networks, RULE)
    assert not reads_outstanding(networks, dgd.LeastLatency())
    for policy, counts in ((RULE, True), (dgd.LeastLatency(), False)):
        made = dgd.plan(networks, duration=1.0, dt=DT, policy=policy)
        assert made.program.counts_own == counts
    assert dgd.plan(networks, duration=1.0, dt=DT, policy=RULE).memory.bytes > 1.2 * made.memory.bytes


# --- at rest, and away from it -----------------------------------------------------------------------------------------

SWING, PERIOD = 0.3, 4.0
COARSE = 0.03


def equilibrium(network, rule):
    """Routing and workload at rest."""
    final = dgd.simulate(network, rule, duration=120.0, dt=COARSE, save=dgd.SaveAt.final()).final
    return np.asarray(final.routing), np.asarray(final.workload)


def little(network, run, factor=1.0):
    """What is under way where all is at rest: flow x (latency + time at the backend + return)."""
    flow = np.asarray(run.routing) * np.asarray(network.arrival_rate)[:, None]
    stay = np.asarray(network.service.average_latency(run.workload) / factor)
    return flow * (np.asarray(network.latency) + stay + np.asarray(network.feedback_latency))


@pytest.fixture(scope="module")
def refined():
    """The same run at dt, dt/2, dt/4, for latencies with a third of a step, below a step and zero; from rest, demand sets in smoothly."""
    rng, rates = np.random.default_rng(5), np.array([4.0, 5.0, 3.0])
    thirds = rng.integers(5, 14, (3, 3)) + 1 / 3
    kinds = (thirds, np.full((3, 3), 1 / 3), np.where(np.eye(3) == 1, 0.0, thirds))
    dts, networks, starts = COARSE / np.array([1.0, 2.0, 4.0]), [], []
    for latency in kinds:
        curve = dgd.Hyperbolic([8.0, 7.0, 9.0], [4.0, 5.0, 6.0])
        settings = {"latency": COARSE * latency, "service": curve, "feedback_latency": COARSE * latency.T}
        starts += [equilibrium(dgd.Network(rates, **settings), RULE)] * 3
        networks += [dgd.Network(dgd.DailyCycle(rates / (1 + SWING), SWING, 0.0, PERIOD), **settings)] * 3
    initial = tuple(np.stack([start[part] for start in starts]) for part in (0, 1))
    runs = dgd.simulate_batch(
        dgd.stack(networks), RULE, duration=3.0, dt=np.tile(dts, 3), initial=initial, save=dgd.SaveAt.final()
    )
    return runs.final


def test_order_two(refined):
    ends = [np.asarray(each).reshape(3, 3, -1) for each in (refined.own.count, refined.routing, refined.workload)]
    assert np.abs(ends[0][:, 0] - ends[0][:, 2]).max() > 1e-5
    for each in ends:
        coarse, middle, fine = np.swapaxes(each, 0, 1)
        ratio = np.linalg.norm(coarse - middle, axis=1) / np.linalg.norm(middle - fine, axis=1)
        np.testing.assert_allclose(ratio, 4, rtol=0.1)


def test_requests_at_a_backend_are_those_of_its_frontends(refined):
    np.testing.assert_allclose(refined.own.in_service.sum(1), refined.workload, rtol=1e-12)


def test_beside_an_extension_a_run_goes_on_to_the_bit_and_little_holds_at_rest():
    """Latencies of zero and below a step, an arc that is missing; tired backends answer more slowly by their factor."""
    rng = np.random.default_rng(8)
    network = small_network(rng)
    settings = {"dt": DT, "max_latency": MAX_LATENCY, "save": dgd.SaveAt.final(), "extensions": (Fading(),)}
    run = lambda duration, initial: dgd.simulate(network, RULE, duration=duration, initial=initial, **settings).final
    start = some_start(rng, network)
    whole, rest = run(120.0, start), run(60.0, run(60.0, start))
    jax.tree.map(np.testing.assert_array_equal, whole, rest)
    np.testing.assert_allclose(rest.own.count, little(network, rest, rest.extensions[0].state), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rest.own.in_service.sum(0), rest.workload, rtol=1e-12)


def test_whatever_is_sent_is_counted_once():
    """Flow besides what is routed, at the start and later, and demand that jumps: in the end Little's law has nothing left over."""
    jumps = dgd.Jumps([[1.003, 2.5, 0.5], [2.2, 3.01, 0.51]], [[4.0, 6.0, 5.0], [8.0, 1.0, 5.0], [4.0, 6.0, 5.0]])
    network = small_network(np.random.default_rng(8))
    extra = np.zeros((13, *network.latency.shape))
    extra[:2] = np.where(network.mask, 30.0, 0)
    run = dgd.simulate(
        network.with_arrival_rate(jumps), RULE, duration=120.0, dt=DT, initial=some_start(np.random.default_rng(9), network),
        max_latency=MAX_LATENCY, save=dgd.SaveAt(every=500), extra_flow=extra,
    ).final  # fmt: skip
    np.testing.assert_allclose(run.own.count, little(network, run), rtol=1e-9, atol=1e-11)


def test_a_run_that_has_not_counted_begins_to():
    """With what is on its wires, and shares of the backends as they arrive: where all is at rest, nothing moves."""
    network = small_network(np.random.default_rng(8))
    at_rest = equilibrium(network, RULE)
    settings = {"dt": DT, "max_latency": MAX_LATENCY, "save": dgd.SaveAt.final()}
    before = dgd.simulate(network, dgd.FixedRouting(at_rest[0]), duration=1.0, initial=at_rest, **settings).final
    assert before.own is None
    after = dgd.simulate(network, RULE, duration=1.0, initial=before, **settings).final
    np.testing.assert_allclose(after.own.count, little(network, after), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after.routing, at_rest[0], rtol=1e-9, atol=1e-12)


def test_in_single_precision_the_count_does_not_drift():
    """200 000 steps of a demand that never rests: the count is a sum of all of them, its error that of the time of day.

    4000 s are rounded to 2.4e-4 s, in which demand moves by 0.1 %.
    """
    network = small_network(
        np.random.default_rng(8), arrival_rate=dgd.DailyCycle([4.0, 6.0, 5.0], 0.4, [0.0, 0.4, 0.2], 3.0)
    )
    run = lambda: (
        dgd.simulate(network, RULE, duration=4000.0, dt=DT, max_latency=MAX_LATENCY, save=dgd.SaveAt.final()).final
    )
    exact = run()
    with single_precision():
        network = jax.tree.map(lambda leaf: leaf.astype(np.float32) if leaf.dtype == np.float64 else leaf, network)
        rough = run()
    assert rough.own.count.dtype == np.float32
    np.testing.assert_allclose(rough.own.count, exact.own.count, rtol=2e-4)


def test_linearisation_refuses_what_it_does_not_know():
    class Pressed(dgd.AbstractFlowPolicy):
        def velocity(self, t, routing, observation, state):
            return -0.01 * (observation.marginal_latency + observation.outstanding), state

    with pytest.raises(dgd.InputError, match="Pressed looks at the requests that it has under way"):
        dgd.linearise(small_network(np.random.default_rng(8)), Pressed())


def test_events_and_own_requests_are_not_combined():
    network = dgd.topologies.complete(jax.random.key(0), frontends=2, backends=2)
    with pytest.raises(dgd.InputError, match=r"^LeastRequest looks at its frontend's own requests, which events"):
        dgd.simulate(network, dgd.LeastRequest(), duration=1.0, dt=0.1, events=[dgd.events.Fails(0.5, 0)])


def test_a_comparison_with_events_names_who_cannot_take_them_before_any_run():
    network = dgd.topologies.complete(jax.random.key(0), frontends=2, backends=2)
    with pytest.raises(dgd.InputError, match=r"^least request, two choices of mine cannot be run with events"):
        dgd.compare(
            network, ["least-request", "proportional"], also={"two choices of mine": dgd.LeastRequest(2.0)},
            events=[dgd.events.Fails(0.5, 0)],
        )  # fmt: skip
