"""The engine against the slow reference, its invariants, its symmetries, its derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.latency import LeastLatency
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import (
    CURVES,
    DT,
    HISTORY,
    MAX_LATENCY,
    POLICIES,
    ROUNDING,
    SETTINGS,
    STEPS,
    central_difference,
    compilations,
    single_precision,
    small_network,
    some_start,
)

# As a user compiles: test_resuming, test_engine_order, test_native.
pytestmark = pytest.mark.usefixtures("quick_compilation")


def assert_same(run, other, **tolerance):
    """Every saved history of two runs agrees."""
    for field in HISTORY:
        np.testing.assert_allclose(getattr(run, field), getattr(other, field), err_msg=field, **(tolerance or ROUNDING))


# --- the slow reference -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", CURVES)
def test_every_curve_is_the_slow_reference(rng, curve):
    network = small_network(rng, curve)
    policy, start = POLICIES["DGDLB"](network), some_start(rng, network)
    run = simulate(network, policy, initial=start, **SETTINGS)
    expected = oracles.simulate(network, policy, STEPS, DT, start)
    np.testing.assert_allclose(run.time, expected.time, rtol=1e-15)
    assert_same(run, expected)
    assert np.abs(expected.routing[-1] - expected.routing[0]).max() > 0.1
    assert (expected.routing[1:] == 0).any(), "the reference should meet the boundary of the simplex"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_the_slow_reference(rng, policy):
    network = small_network(rng)
    policy, start = POLICIES[policy](network), some_start(rng, network)
    assert_same(
        simulate(network, policy, initial=start, **SETTINGS), oracles.simulate(network, policy, STEPS, DT, start)
    )


def test_statistics_are_those_of_the_history(rng):
    network = small_network(rng)
    policy, start, reference = POLICIES["DGDLB"](network), some_start(rng, network), np.array([1.0, 2.0, 3.0, 4.0])
    found = simulate(
        network, policy, initial=start, save=SaveAt.statistics(after=1.0, reference=reference), **SETTINGS
    ).statistics
    first = round(1.0 / DT)
    run = oracles.simulate(network, policy, STEPS, DT, start)
    for name, value in vars(oracles.statistics(run, DT, first, reference)).items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-10, err_msg=name)
    middle = (first + STEPS) // 2
    between = (run.workload[1:] + run.workload[:-1]) / 2
    halves = [np.polyfit(DT * np.arange(a, b), between[a:b], 1)[0] for a, b in ((first, middle), (middle, STEPS))]
    np.testing.assert_allclose(found.workload_growth, halves, rtol=1e-8)
    np.testing.assert_allclose(found.growth, np.max(halves, axis=1) / 15.0, rtol=1e-8)


# --- demand and capacity that change in time --------------------------------------------------------------------------


def test_demand_over_time(rng):
    """A trace and a cycle, each against the reference that asks the demand for one instant at a time, and jumps, which it counts."""
    start = some_start(rng, small_network(rng))
    rates = np.array([4.0, 6.0, 5.0])
    jumps = [1.0, 2.51], np.stack([rates, 0.3 * rates[::-1], 1.4 * rates])
    for demand in (
        Trace(0.45, rng.uniform(0, 2, (8, 3)) * rates),
        Jumps(*jumps),
        DailyCycle(rates, [0.5, 0.3, 0.9], [0.0, 0.3, 0.7], 3.0),
    ):
        network = small_network(np.random.default_rng(3), arrival_rate=demand)
        policy = POLICIES["DGDLB"](network)
        slow = oracles.Steps(*jumps) if isinstance(demand, Jumps) else lambda t, d=demand: np.asarray(d.rate(t))
        expected = oracles.simulate(network, policy, STEPS, DT, start, arrival_rate=slow)
        run = simulate(network, policy, initial=start, **SETTINGS)
        assert_same(run, expected)
        assert np.ptp(expected.arrival_rate.sum(1)) > 1
        kept = expected.in_flight - expected.in_flight[0] + expected.workload.sum(1) - expected.workload[0].sum()
        np.testing.assert_allclose(expected.sent, kept + expected.served, rtol=0, atol=1e-11)
        assert float(run.statistics.arrivals) == pytest.approx(expected.sent[-1], rel=1e-12)


def test_capacity_over_time(rng):
    """The service rate of a backend falls to a fifth and comes back; frontends hear of it later."""
    factors = np.array([[1.0, 1.0, 1.0, 1.0], [0.2, 1.0, 1.0, 1.0], [1.0, 0.7, 1.0, 1.0]])
    capacity = Jumps([1.003, 2.507], factors)
    network = small_network(rng, capacity=capacity)
    policy, start = POLICIES["DGDLB"](network), some_start(rng, network)

    expected = oracles.simulate(network, policy, STEPS, DT, start, capacity=oracles.Steps([1.003, 2.507], factors))
    assert_same(simulate(network, policy, initial=start, **SETTINGS), expected)
    steady = oracles.simulate(network, policy, STEPS, DT, start)
    assert np.abs(expected.workload - steady.workload).max() > 1


# --- invariants -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["DGDLB", "LeastWorkload"])
def test_arrived_is_in_flight_plus_workload_plus_served(rng, policy):
    """At every instant, with what was served computed from flows and workloads alone."""
    network = small_network(rng)
    policy, start = POLICIES[policy](network), some_start(rng, network)
    run = simulate(network, policy, initial=start, **SETTINGS)
    flow = np.asarray(run.arrival_rate)[:, :, None] * np.asarray(run.routing)
    workload = np.asarray(run.workload)
    arrived = np.concatenate([[0], np.cumsum(DT / 2 * (flow[1:] + flow[:-1]).sum((1, 2)))])
    served = oracles.served(network.service, flow, workload, np.asarray(network.latency), DT)
    in_flight = np.asarray(run.in_flight)
    assert in_flight[0] == pytest.approx((flow[0] * np.asarray(network.latency)).sum(), rel=1e-14)
    np.testing.assert_allclose(
        arrived, in_flight - in_flight[0] + workload.sum(1) - workload[0].sum() + served, rtol=0, atol=1e-11
    )
    np.testing.assert_allclose(in_flight, oracles.on_the_wires(flow, np.asarray(network.latency), DT), rtol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_stay_on_the_simplex(rng, policy):
    network = small_network(rng)
    run = simulate(network, POLICIES[policy](network), initial=some_start(rng, network), **SETTINGS)
    routing = np.asarray(run.routing)
    np.testing.assert_allclose(routing.sum(-1), 1, rtol=0, atol=1e-14)
    assert (routing >= 0).all()
    assert (routing[:, ~np.asarray(network.mask)] == 0).all()


def test_huge_step_sizes_stay_on_the_simplex_and_workloads_above_zero(rng):
    """The rule may be absurd and the start empty: the routing jumps between vertices, nothing leaves its set."""
    network = small_network(rng)
    routing, workload = some_start(rng, network)
    run = simulate(network, DGDLB(1e12 * np.ones(3)), initial=(routing, 0 * workload), **SETTINGS)
    np.testing.assert_allclose(np.asarray(run.routing).sum(-1), 1, rtol=0, atol=1e-14)
    assert np.asarray(run.routing).min() >= 0
    assert np.asarray(run.workload).min() >= 0
    assert int(run.result) == Result.successful


def test_a_frontend_without_requests_does_not_count(rng):
    """With rate 0 the others run as if it were not there."""
    network = small_network(rng, arrival_rate=[4.0, 0.0, 5.0])
    (routing, workload), rest = some_start(rng, network), np.array([0, 2])
    without = Network(
        [4.0, 5.0],
        network.latency[rest],
        network.service,
        mask=network.mask[rest],
        feedback_latency=network.feedback_latency[rest],
        cost_latency=network.cost_latency[rest],
    )
    run = simulate(network, DGDLB([0.1, 0.2, 0.3]), initial=(routing, workload), **SETTINGS)
    other = simulate(without, DGDLB([0.1, 0.3]), initial=(routing[rest], workload), **SETTINGS)
    np.testing.assert_allclose(run.routing[:, rest], other.routing, **ROUNDING)
    for field in ("workload", "cost_rate", "in_flight", "mean_latency"):
        np.testing.assert_allclose(getattr(run, field), getattr(other, field), err_msg=field, **ROUNDING)
    assert np.isfinite(run.statistics.mean_routing).all()


def test_default_start_is_proportional_to_capacity_and_carries_itself(rng):
    network = small_network(rng)
    run = simulate(network, POLICIES["DGDLB"](network), **SETTINGS)
    weight = np.where(network.mask, np.asarray(network.nominal_capacity), 0)
    routing = weight / weight.sum(1, keepdims=True)
    np.testing.assert_allclose(run.routing[0], routing, rtol=1e-14)
    inflow = np.asarray(network.arrival_rate) @ routing
    expected = [oracles.workload_serving(network.service, inflow[j], j, 4) for j in range(4)]
    np.testing.assert_allclose(run.workload[0], expected, rtol=1e-12)


def test_default_start_is_empty_where_a_backend_cannot_carry_it(rng):
    """Backend 0 alone serves frontend 0 and gets more than it can: it starts empty, the others carry their share."""
    mask = np.array([[True, False, False, False], [False, True, True, True], [False, True, True, True]])
    network = small_network(rng, arrival_rate=[40.0, 5.0, 5.0], mask=mask)
    run = simulate(network, POLICIES["DGDLB"](network), **SETTINGS)
    assert run.workload[0, 0] == 0
    assert (np.asarray(run.workload[0, 1:]) > 0).all()
    assert np.asarray(run.statistics.peak_workload)[0] > 100


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saving_less_is_saving_part(rng):
    network = small_network(rng)
    policy, start = POLICIES["DGDLB"](network), some_start(rng, network)
    everything = simulate(network, policy, initial=start, **SETTINGS)
    some = simulate(network, policy, initial=start, save=SaveAt(every=30, fields=("workload", "routing")), **SETTINGS)
    steps = [0, 30, 60, 90, 120, 150, 180, 200]
    np.testing.assert_allclose(some.time, DT * np.array(steps), rtol=1e-15)
    np.testing.assert_allclose(some.workload, np.asarray(everything.workload)[steps], rtol=1e-13)
    np.testing.assert_allclose(some.routing, np.asarray(everything.routing)[steps], rtol=0, atol=1e-13)
    assert some.cost_rate is None
    assert some.in_flight is None
    last = simulate(network, policy, initial=start, save=SaveAt.final(), **SETTINGS)
    assert last.workload is None
    assert last.statistics is None
    np.testing.assert_allclose(last.final.workload, everything.workload[-1], rtol=1e-13)
    np.testing.assert_allclose(last.final.routing, everything.routing[-1], rtol=0, atol=1e-13)


# --- symmetries -------------------------------------------------------------------------------------------------------


def scaled(network, *, time=1.0, requests=1.0) -> Network:
    """The same network in other units: seconds `time` times as many, requests `requests` times as many."""
    service = network.service
    return Network(
        np.asarray(network.arrival_rate) * requests / time,
        np.asarray(network.latency) * time,
        Hyperbolic(np.asarray(service.max_rate) * requests / time, np.asarray(service.half_load) * requests),
        mask=network.mask,
        feedback_latency=np.asarray(network.feedback_latency) * time,
        cost_latency=np.asarray(network.cost_latency) * time,
    )


@pytest.mark.parametrize(("time", "requests"), [(3.0, 1.0), (1.0, 2.0)])
def test_units_do_not_matter(rng, time, requests):
    """The step size is 1 / time^2: marginal latencies know nothing of the unit of requests."""
    network = small_network(rng)
    policy, (routing, workload) = POLICIES["DGDLB"](network), some_start(rng, network)
    run = simulate(network, policy, initial=(routing, workload), **SETTINGS)
    other = simulate(
        scaled(network, time=time, requests=requests),
        DGDLB(np.asarray(policy.step_size) / time**2),
        initial=(routing, workload * requests),
        **{key: value * time for key, value in SETTINGS.items()},
    )
    np.testing.assert_allclose(other.routing, run.routing, **ROUNDING)
    for field, factor in (
        ("workload", requests),
        ("cost_rate", requests),
        ("in_flight", requests),
        ("mean_latency", time),
    ):
        np.testing.assert_allclose(
            getattr(other, field), factor * np.asarray(getattr(run, field)), err_msg=field, **ROUNDING
        )


@pytest.mark.parametrize("policy", ["DGDLB", "LeastLatency"])
def test_order_of_frontends_and_backends_does_not_matter(rng, policy):
    network = small_network(rng)
    (routing, workload), f, b = some_start(rng, network), np.array([2, 0, 1]), np.array([3, 1, 0, 2])
    arcs = np.ix_(f, b)
    shuffled = Network(
        network.arrival_rate[f],
        network.latency[arcs],
        network.service.take(b),
        mask=network.mask[arcs],
        feedback_latency=network.feedback_latency[arcs],
        cost_latency=network.cost_latency[arcs],
    )
    policies = (
        (DGDLB(np.array([0.1, 0.2, 0.3])), DGDLB(np.array([0.1, 0.2, 0.3])[f]))
        if policy == "DGDLB"
        else (LeastLatency(),) * 2
    )
    run = simulate(network, policies[0], initial=(routing, workload), **SETTINGS)
    other = simulate(shuffled, policies[1], initial=(routing[arcs], workload[b]), **SETTINGS)
    np.testing.assert_allclose(other.routing, np.asarray(run.routing)[:, f][:, :, b], **ROUNDING)
    np.testing.assert_allclose(other.workload, np.asarray(run.workload)[:, b], **ROUNDING)
    np.testing.assert_allclose(other.cost_rate, run.cost_rate, **ROUNDING)


# --- compiled once, single precision, derivatives ---------------------------------------------------------------------


def test_names_and_values_do_not_recompile(rng):
    def once(number, names):
        network = small_network(
            np.random.default_rng(number), frontend_names=names, backend_names=list("wxyz"), name=names[0]
        )
        return simulate(network, DGDLB(0.1 * number * np.ones(3)), **SETTINGS)

    first = once(1, ["Paris", "Rome", "Oslo"])
    with compilations() as seen:
        second = once(2, ["a", "b", "c"])
    assert seen == []
    assert first.frontend_names == ("Paris", "Rome", "Oslo")
    assert second.frontend_names == ("a", "b", "c")


def test_single_precision_follows_double_precision():
    """Rounding of 6e-8 per step over 200 steps, not amplified: 2e-5 of the size of things."""
    network = small_network(np.random.default_rng(4))
    start = some_start(np.random.default_rng(5), network)
    double = simulate(network, POLICIES["DGDLB"](network), initial=start, **SETTINGS)
    with single_precision():
        network = small_network(np.random.default_rng(4))
        single = simulate(network, POLICIES["DGDLB"](network), initial=start, **SETTINGS)
        assert int(single.result) == Result.successful
        for field in HISTORY:
            values = getattr(single, field)
            assert values.dtype == jnp.float32, field
            scale = np.abs(getattr(double, field)).max()
            np.testing.assert_allclose(values, getattr(double, field), rtol=0, atol=2e-5 * scale, err_msg=field)


def cost_at_the_end(parameters):
    """Integrated cost of a short run as a function of everything that a user may want to differentiate."""
    network = Network(
        parameters["rates"],
        parameters["latency"],
        Hyperbolic(parameters["max_rate"], jnp.full(4, 5.0)),
        feedback_latency=parameters["feedback"],
    )
    start = (parameters["routing"], parameters["workload"])
    run = simulate(
        network,
        DGDLB(parameters["step_size"]),
        duration=40 * DT,
        dt=DT,
        initial=start,
        max_latency=MAX_LATENCY,
        throw=False,
    )
    return jnp.sum(run.cost_rate) * DT


def test_gradient_is_that_of_finite_differences(rng):
    """With respect to rates, latencies (between grid points), curves, step sizes and the start."""
    F, B = 3, 4
    lags = DT * (rng.integers(0, 10, (2, F, B)) + rng.uniform(0.2, 0.8, (2, F, B)))
    point = {
        "rates": np.array([4.0, 6.0, 5.0]),
        "latency": lags[0],
        "feedback": lags[1],
        "max_rate": np.array([8.0, 9.0, 7.0, 8.0]),
        "routing": rng.dirichlet(np.full(B, 20.0), F),
        "workload": rng.uniform(2, 6, B),
        "step_size": np.array([0.1, 0.2, 0.3]),
    }
    point = jax.tree.map(jnp.asarray, point)
    gradient = jax.jit(jax.grad(cost_at_the_end))(point)
    value = jax.jit(cost_at_the_end)
    slope = jax.jit(lambda p, d: jax.jvp(cost_at_the_end, (p,), (d,))[1])
    nowhere = jax.tree.map(jnp.zeros_like, point)
    for name, leaf in point.items():
        direction = nowhere | {name: jnp.asarray(rng.normal(size=leaf.shape))}
        backward = np.vdot(gradient[name], direction[name])
        # Central differences with h = 1e-5: truncation and rounding both near 1e-10 of the value.
        expected = float(central_difference(value, point, direction))
        assert backward == pytest.approx(expected, rel=1e-6, abs=1e-8), name
        assert float(slope(point, direction)) == pytest.approx(backward, rel=1e-11), name
        assert np.abs(gradient[name]).max() > 1e-3, name
