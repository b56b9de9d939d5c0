"""Policies: each against its definition for one frontend, ties, masks, and policies of a user's own."""

import dataclasses
import importlib
import pkgutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from dgdlb_jax import policies
from dgdlb_jax.model.demand import Jumps
from dgdlb_jax.model.network import stack
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import (
    AbstractFlowPolicy,
    AbstractInstantPolicy,
    Observation,
    best_of,
    least,
    takes_lanes,
)
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.greedy import (
    GreatestMarginalRate,
    LeastMarginalLatency,
    LeastWorkload,
    PowerOfChoices,
    ShortestExpectedDelay,
)
from dgdlb_jax.policies.latency import HotCold, LeastLatency
from dgdlb_jax.policies.static import FixedRouting, Nearest, ProportionalToCapacity, Uniform
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.engine import simulate
from helpers import CURVES, DT, POLICIES, SETTINGS, STEPS, small_network, some_of, some_start

INSTANT = [
    Uniform(), ProportionalToCapacity(), Nearest(), LeastWorkload(), ShortestExpectedDelay(), PowerOfChoices(2.0),
    LeastLatency(), HotCold(0.6), GreatestMarginalRate(), LeastMarginalLatency(),
]  # fmt: skip


def name(policy) -> str:
    return type(policy).__name__


def observation(backends=5, **values) -> Observation:
    """What one frontend sees, everything equal and unremarkable but for what is given."""
    defaults = dict.fromkeys(
        (
            "workload",
            "service_rate",
            "marginal_latency",
            "average_latency",
            "cost_latency",
            "outstanding",
            "nominal_capacity",
        ),
        np.ones(backends),
    )
    scalars = {"arrival_rate": jnp.asarray(1.0), "time_step": jnp.asarray(0.1)}
    given = defaults | {"mask": np.ones(backends, bool)} | scalars | values
    return Observation(**{key: jnp.asarray(value) for key, value in given.items()})


def random_observation(rng, backends=5) -> tuple[Observation, SimpleNamespace]:
    """The same sight for the package and for the reference."""
    mask = rng.random(backends) < 0.7
    mask[rng.integers(backends)] = True
    workload, rate, slope, cost, capacity = rng.uniform(0.1, 3, (5, backends))
    seen = observation(
        backends,
        workload=workload,
        service_rate=rate,
        marginal_latency=1 / slope,
        average_latency=workload / rate,
        cost_latency=cost,
        nominal_capacity=capacity,
        mask=mask,
    )
    plain = SimpleNamespace(
        workload=workload, rate=rate, slope=slope, cost_latency=cost, nominal_capacity=capacity, mask=mask
    )
    return seen, plain


@pytest.mark.parametrize("policy", INSTANT, ids=name)
def test_route_is_the_definition(rng, policy):
    for _ in range(20):
        seen, plain = random_observation(rng)
        routing, state = policy.route(jnp.asarray(0.0), seen, policy.init(seen))
        np.testing.assert_allclose(routing, oracles.INSTANT[name(policy)](policy, 0, plain), rtol=1e-14)
        assert state == ()


def test_gradient_descent_goes_against_the_marginal_latency(rng):
    for _ in range(20):
        seen, plain = random_observation(rng)
        velocity, _ = DGDLB(0.7).velocity(jnp.asarray(0.0), jnp.full(5, 0.2), seen, ())
        np.testing.assert_allclose(velocity, oracles.gradient_velocity(DGDLB(0.7), 0, plain), rtol=1e-14)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        (LeastWorkload(), "workload"),
        (Nearest(), "cost_latency"),
        (GreatestMarginalRate(), "marginal_latency"),
        (LeastLatency(), "cost_latency"),
        (HotCold(0.9), "cost_latency"),
        (ShortestExpectedDelay(), "workload"),
        (LeastMarginalLatency(), "cost_latency"),
        (PowerOfChoices(np.inf), "workload"),
    ],
    ids=lambda value: value if isinstance(value, str) else name(value),
)
def test_ties_are_shared_equally_and_masked_arcs_get_nothing(policy, field):
    mask = np.array([True, True, False, True, True])
    seen = observation(mask=mask, **{field: np.array([2.0, 0.5, 0.1, 0.5, 0.7])})
    np.testing.assert_array_equal(policy.route(jnp.asarray(0.0), seen, ())[0], [0, 0.5, 0, 0.5, 0])
    all_equal = observation(mask=mask)
    np.testing.assert_array_equal(policy.route(jnp.asarray(0.0), all_equal, ())[0], mask / 4)


@pytest.mark.parametrize("policy", [*INSTANT, FixedRouting(np.full((3, 5), 0.2))], ids=name)
def test_a_frontend_without_arcs_routes_nothing(policy):
    """As padding makes them; nothing may become NaN."""
    seen = observation(mask=np.zeros(5, bool))
    rule = FixedRouting(jnp.zeros(5).at[0].set(1.0)) if isinstance(policy, FixedRouting) else policy
    routing = rule.route(jnp.asarray(0.0), seen, ())[0]
    assert np.isfinite(routing).all()
    if not isinstance(policy, FixedRouting):
        np.testing.assert_array_equal(routing, np.zeros(5))


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, [0.1, -1.0]])
def test_bad_step_sizes_are_named(value):
    with pytest.raises(InputError, match="step_size"):
        DGDLB(value)


@pytest.mark.parametrize("row", [[0.5, 0.4], [1.5, -0.5], [np.nan, 1.0]])
def test_bad_routing_tables_are_named(row):
    with pytest.raises(InputError, match="routing"):
        FixedRouting([[0.5, 0.5], row])


def test_a_routing_table_of_the_wrong_size_is_named(rng):
    with pytest.raises(InputError, match="routing"):
        simulate(small_network(rng), FixedRouting(np.full((3, 3), 1 / 3)), **SETTINGS)


def test_step_sizes_of_the_wrong_size_are_named(rng):
    with pytest.raises(InputError, match="step_size"):
        simulate(small_network(rng), DGDLB([0.1, 0.2]), **SETTINGS)


def test_news_travels_no_faster_than_the_feedback_latency():
    """Two worlds that differ from t = 1 on at backend 0 alone: a frontend acts on it after its own feedback latency."""
    feedback = np.tile(np.array([[0.11], [0.25], [0.43]]), (1, 4))
    runs = []
    for later in (1.0, 0.3):
        capacity = Jumps([1.0001], [[1.0, 1.0, 1.0, 1.0], [later, 1.0, 1.0, 1.0]])
        network = small_network(np.random.default_rng(2), capacity=capacity, feedback_latency=feedback)
        runs.append(simulate(network, DGDLB(0.02 * np.ones(3)), **SETTINGS))
    moved = np.abs(np.asarray(runs[0].routing) - runs[1].routing).max(-1) > 1e-13
    first = np.asarray(runs[0].time)[moved.argmax(0)]
    assert moved.any(0).all()
    assert (first > 1.0 + feedback[:, 0]).all()
    assert (first < 1.0 + feedback[:, 0] + 2 * DT).all()


@pytest.mark.full
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("seed", range(5))
def test_every_curve_with_every_policy_is_the_slow_reference(curve, policy, seed):
    rng = np.random.default_rng(seed)
    network = small_network(rng, curve)
    policy, start = POLICIES[policy](network), some_start(rng, network)
    expected = oracles.simulate(network, policy, STEPS, DT, start)
    run = simulate(network, policy, initial=start, **SETTINGS)
    np.testing.assert_allclose(run.routing, expected.routing, rtol=0, atol=1e-11)
    np.testing.assert_allclose(run.workload, expected.workload, rtol=1e-11, atol=1e-11)


# --- a user's own -----------------------------------------------------------------------------------------------------


class SlowShares(AbstractInstantPolicy):
    """Less to backends with a large moving average of the workload: memory, and a parameter per frontend."""

    memory: jax.Array

    def init(self, observation):
        return observation.workload

    def route(self, t, observation, state):
        average = state + observation.time_step / self.memory * (observation.workload - state)
        weight = jnp.where(observation.mask, 1 / (1 + average), 0)
        return weight / weight.sum(0), average


class LogarithmicDescent(AbstractFlowPolicy):
    """Descent along the logarithm of the marginal latency, with momentum kept as memory."""

    step_size: jax.Array

    def init(self, observation):
        return jnp.zeros_like(observation.workload)

    def velocity(self, t, routing, observation, state):
        push = -self.step_size * jnp.log(observation.marginal_latency + observation.cost_latency)
        momentum = state + observation.time_step * (push - state)
        return momentum, momentum


@pytest.mark.parametrize(
    "policy", [SlowShares(jnp.array([0.5, 1.0, 2.0])), LogarithmicDescent(jnp.array([0.3, 0.5, 0.4]))], ids=name
)
def test_policies_with_memory_go_on_to_the_bit(rng, policy):
    network = small_network(rng)
    start = some_start(rng, network)
    long = simulate(network, policy, initial=start, **SETTINGS)
    half = SETTINGS | {"duration": STEPS // 2 * DT}
    first = simulate(network, policy, initial=start, **half)
    second = simulate(network, policy, initial=first.final, **half)
    np.testing.assert_array_equal(second.routing[-1], long.routing[-1])
    np.testing.assert_array_equal(second.workload[-1], long.workload[-1])
    for one, other in zip(
        jax.tree.leaves(second.final.policy_state), jax.tree.leaves(long.final.policy_state), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_allclose(np.asarray(long.routing).sum(-1), 1, rtol=0, atol=1e-14)


def test_a_policy_with_memory_is_the_slow_reference(rng):
    """The moving average of what each frontend saw, recomputed from the history; feedback takes whole steps here."""
    feedback = DT * rng.integers(1, 12, (3, 4))
    network = small_network(rng, feedback_latency=feedback)
    memory = np.array([0.5, 1.0, 2.0])
    run = simulate(network, SlowShares(jnp.asarray(memory)), initial=some_start(rng, network), **SETTINGS)
    workload, mask = np.asarray(run.workload), np.asarray(network.mask)
    lag = np.rint(feedback / DT).astype(int)
    average = np.tile(workload[0], (3, 1))
    for k in range(1, STEPS + 1):
        seen = np.array([[workload[max(k - lag[i, j], 0), j] for j in range(4)] for i in range(3)])
        average = average + DT / memory[:, None] * (seen - average)
        weight = np.where(mask, 1 / (1 + average), 0)
        np.testing.assert_allclose(run.routing[k], weight / weight.sum(1, keepdims=True), rtol=1e-10)


def test_the_registry_lists_every_policy():
    """Whatever is in `dgdlb_jax.policies` goes through the tests of the registry."""
    found = pkgutil.walk_packages(policies.__path__, f"{policies.__name__}.")
    modules = [importlib.import_module(info.name) for info in found]
    members = {
        member.__name__
        for module in modules
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, AbstractFlowPolicy | AbstractInstantPolicy)
    }
    wrappers = {"EstimatedFlow", "EstimatedInstant"}
    assert members - wrappers - {"AbstractFlowPolicy", "AbstractInstantPolicy", "AbstractHeldPolicy"} == set(POLICIES)


# Runs of these are held against references for one frontend at a time, which know no lanes: see test_engine.
IN_OPERATION = {
    "EnvoyLoadAwareLocality",
    "OrcaWeights",
    "LatencyScorer",
    "LocalityFailover",
    "DnsLatency",
    "KvCacheScorer",
}


def of_one_frontend(rule):
    """The same rule in a class of its own, which does not say that it takes lanes."""
    plain = object.__new__(type("Plain", (type(rule),), {"__doc__": None}))
    for field in dataclasses.fields(rule):
        object.__setattr__(plain, field.name, getattr(rule, field.name))
    return plain


@pytest.mark.parametrize("policy", some_of(POLICIES, *(set(POLICIES) - IN_OPERATION)))
def test_a_rule_that_takes_lanes_is_the_rule_of_one_frontend(rng, policy):
    """Called once for all frontends of two networks, or mapped over them."""
    networks = stack([small_network(rng), small_network(rng)]).anonymous()
    rules = [POLICIES[policy](networks[k]) for k in range(2)]
    rule = jax.tree.map(lambda *leaves: jnp.stack(leaves) if jnp.ndim(leaves[0]) else jnp.asarray(leaves[0]), *rules)
    field, mapped = Field(networks, rule), Field(networks, of_one_frontend(rule))
    assert takes_lanes(rule)
    assert not takes_lanes(mapped.policy)
    arcs, columns = field.mask.shape
    t, step = jnp.linspace(0, 1, columns), jnp.full(columns, 0.02)
    x = jnp.where(field.mask, jnp.asarray(rng.random((arcs, columns))), 0)
    x = x / x.sum(0)
    sights = [field.observe(t, jnp.asarray(rng.uniform(0, 5, x.shape)), field.arrival_rate(t) * x, step) for _ in "ab"]

    def moved(field):
        state = field.init(sights[0])
        return jax.tree.leaves(
            field.velocity(t, x, sights[1], state) if field.flows else field.route(t, sights[1], state)
        )

    for found, expected in zip(moved(field), moved(mapped), strict=True):
        np.testing.assert_allclose(
            np.where(np.isfinite(expected), found, 0), np.nan_to_num(expected), rtol=1e-12, atol=1e-14
        )


def test_a_rule_of_ones_own_has_to_say_that_it_takes_lanes():
    class Lazy(DGDLB):
        """Half as fast."""

        def velocity(self, t, routing, observation, state):
            assert routing.ndim == 1
            return super().velocity(t, routing, observation, state)[0] / 2, state

    assert not takes_lanes(Lazy(0.1))
    network = small_network(np.random.default_rng(0))
    slow, same = (simulate(network, rule, throw=False, **SETTINGS).routing for rule in (Lazy(0.1), DGDLB(0.05)))
    np.testing.assert_allclose(slow, same, rtol=1e-12, atol=1e-13)


def test_scores_that_differ_by_rounding_are_equal():
    """Whichever of them is the least of all when it is computed once more."""
    eps = np.finfo(float).eps
    score, mask = jnp.array([2.0, 2 + 2 * eps, 2 + 1e-12, 1.0]), jnp.array([True, True, True, False])
    np.testing.assert_array_equal(least(score, mask), [0.5, 0.5, 0, 0])
    np.testing.assert_array_equal(least(jnp.array([jnp.inf, 5.0]), mask[:2]), [0, 1])
    # Two draws with replacement: both the third with 1/9, else one of the two.
    np.testing.assert_allclose(best_of(score, mask, jnp.asarray(2.0)), [4 / 9, 4 / 9, 1 / 9, 0], rtol=1e-12)
