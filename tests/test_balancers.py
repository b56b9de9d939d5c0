"""Every policy of the registry through the same list: rest points computed by hand, units, order, jit, vmap, steps, derivatives."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies import (
    AbstractFlowPolicy,
    AbstractInstantPolicy,
    EnvoyLoadAwareLocality,
    FixedRouting,
    HotCold,
    LatencyObservationScorer,
    LeastRequest,
    MirrorDescent,
    PeakEWMA,
    PowerOfChoices,
    Softmin,
    WeightedLeastRequest,
    spillover,
)
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.balancers import BALANCERS, DEFAULT, balancers
from dgdlb_jax.studies.settings import settings, with_settings
from helpers import DT, MAX_LATENCY, POLICIES, SETTINGS, small_network, some_of, some_start

# Which also rounds scores in another way wherever they are computed: see `at_most`.
pytestmark = pytest.mark.usefixtures("quick_compilation")

CONSTANT = {"Uniform", "ProportionalToCapacity", "Nearest", "FixedRouting"}
JUMPING = set(POLICIES) - CONSTANT
SAFE = {"LeadDGDLB", "LogDGDLB", "ReciprocalDGDLB", "CurvatureDGDLB", "CappedDGDLB"}
SMOOTH = {"DGDLB", "MirrorDescent", "Softmin"} | SAFE  # of second order in the step: see test_engine_order
EXACT = {"rtol": 1e-10, "atol": 1e-10}


# --- the answer by hand: one frontend, two backends, news at once, network charged -------------------------------------

RATE, MAX_RATE, HALF_LOAD, COST = 6.0, np.array([8.0, 5.0]), np.array([4.0, 6.0]), np.array([0.6, 0.2])
PAIR = Network(
    [RATE],
    np.zeros((1, 2)),
    Hyperbolic(MAX_RATE, HALF_LOAD),
    feedback_latency=np.zeros((1, 2)),
    cost_latency=COST[None],
)


def _workload(r):
    """N with 8 N / (4 + N) = r, and the like."""
    return HALF_LOAD * r / (MAX_RATE - r)


def _marginal(r):
    """1 / ell'."""
    return HALF_LOAD * MAX_RATE / (MAX_RATE - r) ** 2


def _seen(r):
    """Network and service, N / ell."""
    return COST + HALF_LOAD / (MAX_RATE - r)


# What is equal on both arcs when the policy is at rest with flows r.
BALANCED = {
    "DGDLB": lambda r: _marginal(r) + COST,
    "MirrorDescent": lambda r: _marginal(r) + COST,
    "SampledDGDLB": lambda r: _marginal(r) + COST,
    "LogDGDLB": lambda r: _marginal(r) + COST,
    "LeadDGDLB": lambda r: _marginal(r) + COST,
    "ReciprocalDGDLB": lambda r: _marginal(r) + COST,
    "CurvatureDGDLB": lambda r: _marginal(r) + COST,
    "CappedDGDLB": lambda r: _marginal(r) + COST,
    "LeastMarginalLatency": lambda r: _marginal(r) + COST,
    "GreatestMarginalRate": _marginal,
    "Softmin": lambda r: _marginal(r) + COST + 0.3 * np.log(r),
    "LeastWorkload": _workload,
    "PowerOfChoices": _workload,
    "ShortestExpectedDelay": lambda r: (_workload(r) + 1) / MAX_RATE,
    "LeastLatency": _seen,
    "HotCold": _seen,
    "LeastRequest": _workload,
    "PeakEWMA": lambda r: _seen(r) * (_workload(r) + 1),
    "WeightedLeastRequest": lambda r: r * (_workload(r) + 1) ** 0.7 / MAX_RATE,
    "EnvoyLoadAwareLocality": lambda r: r / (MAX_RATE / [2, 3] * (1 - r / MAX_RATE)),
    "OrcaWeights": lambda r: _workload(r) / (MAX_RATE / [2, 3] * [5, 9]),
    "LatencyScorer": _seen,  # nobody meets the objective of 0.9 s
    "LatencyObservationScorer": _seen,
    "KvCacheScorer": lambda r: (1 - _workload(r) / (MAX_RATE / [2, 3] * [9, 12])) / r,
    "Uniform": lambda r: r,
    "ProportionalToCapacity": lambda r: r / MAX_RATE,
    "FixedRouting": lambda r: r * np.array([2.0, 1.0]),
}


TO_NEAREST = {"Nearest", "DnsLatency", "LocalityFailover"}
# Rules that have another rest point with the parameters of the other tests, or none.
AT_REST = {
    "HotCold": HotCold(0.84),
    "EnvoyLoadAwareLocality": EnvoyLoadAwareLocality(0.3, 0.5, local="none", host_capacity=[[2.0, 3.0]]),
    "LatencyObservationScorer": LatencyObservationScorer([[0.5, 1.2]]),  # its window long beside its chatter
}


@pytest.mark.parametrize("policy", [*BALANCED, *sorted(TO_NEAREST)])
def test_rest_point_by_hand(policy):
    """Rules that jump chatter within a step, so their mean is right to first order in dt: 1 % at 20 ms, a quarter of it here."""
    if policy in TO_NEAREST:
        flow = 0.0
    else:
        score = BALANCED[policy]
        flow = brentq(
            lambda r: np.subtract(*score(np.array([r, RATE - r]))), RATE - MAX_RATE[1] + 1e-9, RATE - 1e-9, xtol=1e-13
        )
    rule = AT_REST.get(policy) or POLICIES[policy](PAIR)
    start = np.array([[0.5, 0.5]]), np.array([4.0, 4.0])
    save = SaveAt.statistics(after=240.0)
    if policy in TO_NEAREST:  # sends 6 requests/s to a backend that serves less than 5
        run = simulate(PAIR, rule, duration=300.0, dt=0.005, initial=start, save=save)
        np.testing.assert_allclose(run.statistics.mean_routing, [[0, 1]], atol=1e-12)
        assert run.statistics.growth[0] * RATE == pytest.approx(RATE - MAX_RATE[1], rel=0.1)
        return
    run = simulate(PAIR, rule, duration=300.0, dt=0.005, initial=start, save=save)
    tolerance = 1e-7 if isinstance(rule, AbstractFlowPolicy) or policy in CONSTANT else 5e-3
    expected = np.array([flow, RATE - flow])
    np.testing.assert_allclose(run.statistics.mean_routing[0] * RATE, expected, rtol=tolerance)
    np.testing.assert_allclose(run.statistics.mean_workload, _workload(expected), rtol=max(2 * tolerance, 2e-4))


def test_all_have_an_answer_by_hand():
    assert set(BALANCED) | TO_NEAREST == set(POLICIES)


# --- symmetries -------------------------------------------------------------------------------------------------------

# Powers of the unit of time that parameters are measured in.
UNITS = {"step_size": -2, "temperature": 1, "rate": -1, "decay": 1, "interval": 1, "reference": 1, "speed": -1}
UNITS |= {"weight_update_period": 1, "smoothing_time_constant": 1, "blackout_period": 1, "host_capacity": -1}
UNITS |= {
    "slo": 1,
    "ttl": 1,
    "request_interval": 1,
    "interval_duration": 1,
    "floor_latency": 1,
    "max_observation_age": 1,
    "round_trip": 1,
}
# To these one request is one request.
COUNTS_ONE = {"ShortestExpectedDelay", "WeightedLeastRequest", "PeakEWMA", "LatencyObservationScorer"}


def in_units(policy, time):
    """The same rule with seconds `time` times as many."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * time ** UNITS.get(path[-1].name, 0), policy)


def scaled_run(policy, time=1.0, requests=1.0):
    """A run in other units, told in the old ones. Powers of two change no digit of any number."""
    rng = np.random.default_rng(11)
    network = small_network(rng)
    routing, workload = some_start(rng, network)
    other = Network(
        network.arrival_rate * requests / time,
        network.latency * time,
        Hyperbolic(network.service.max_rate * requests / time, network.service.half_load * requests),
        mask=network.mask,
        feedback_latency=network.feedback_latency * time,
        cost_latency=network.cost_latency * time,
    )
    rule = in_units(POLICIES[policy](network), time)
    settings = {name: value * time for name, value in SETTINGS.items()}
    run = simulate(other, rule, initial=(routing, workload * requests), **settings)
    return run.routing, run.workload / requests, run.mean_latency / time


@pytest.mark.parametrize("policy", some_of(POLICIES, "DGDLB", "MirrorDescent", "PeakEWMA", "WeightedLeastRequest"))
def test_the_unit_of_time_does_not_matter(policy):
    for one, other in zip(scaled_run(policy), scaled_run(policy, time=4.0), strict=True):
        np.testing.assert_allclose(other, one, **EXACT)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_unit_of_requests_matters_only_to_rules_that_count_one(policy):
    routing, workload, latency = scaled_run(policy)
    other_routing, other_workload, other_latency = scaled_run(policy, requests=2.0)
    if policy in COUNTS_ONE:
        assert np.abs(other_routing - routing).max() > 1e-3
        return
    np.testing.assert_allclose(other_routing, routing, **EXACT)
    np.testing.assert_allclose(other_workload, workload, **EXACT)
    np.testing.assert_allclose(other_latency, latency, **EXACT)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_order_of_frontends_and_backends_does_not_matter(rng, policy):
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
    rule = POLICIES[policy](network)
    other_rule = jax.tree.map(
        lambda leaf: leaf if leaf.ndim == 0 else leaf[f][:, b] if leaf.ndim == 2 else leaf[f], rule
    )
    run = simulate(network, rule, initial=(routing, workload), **SETTINGS)
    other = simulate(shuffled, other_rule, initial=(routing[arcs], workload[b]), **SETTINGS)
    np.testing.assert_allclose(other.routing, np.asarray(run.routing)[:, f][:, :, b], **EXACT)
    np.testing.assert_allclose(other.workload, np.asarray(run.workload)[:, b], **EXACT)


# --- jit, vmap, one compilation, shorter steps, derivatives -------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", some_of(POLICIES, "DGDLB", "HotCold", "PowerOfChoices", "FixedRouting", "LeastRequest")
)
def test_jit_vmap_and_one_compilation(rng, policy):
    """`jit(vmap(simulate))` over starts and parameters is `simulate` for each, and other numbers compile nothing."""
    network = small_network(rng)
    starts = [some_start(rng, network) for _ in range(2)]
    rules = [POLICIES[policy](network)]
    rules.append(jax.tree.map(lambda leaf: leaf[::-1] if leaf.ndim else 1.25 * leaf, rules[0]))
    traces = []

    @jax.jit
    @jax.vmap
    def routing(rule, start):
        traces.append(policy)
        return simulate(network, rule, initial=start, throw=False, **SETTINGS).routing

    def each(pairs):
        return jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves]), *pairs)

    both = routing(each(rules), each(starts))
    again = routing(each(rules[::-1]), each(starts))
    assert len(traces) == 1
    for k in range(2):
        alone = simulate(network, rules[k], initial=starts[k], throw=False, **SETTINGS)
        np.testing.assert_allclose(both[k], alone.routing, **EXACT)
    assert np.isfinite(again).all()


@pytest.mark.parametrize("policy", some_of(sorted(JUMPING - SMOOTH), "LeastRequest", "HotCold", "PeakEWMA"))
def test_the_mean_latency_does_not_depend_on_the_step(policy):
    """They chatter at the rate of the latencies, not of the step; averages settle."""
    network = small_network(np.random.default_rng(8))
    runs = simulate_batch(
        stack([network] * 3),
        jax.tree.map(lambda leaf: jnp.stack([leaf] * 3) if leaf.ndim else leaf, POLICIES[policy](network)),
        duration=30.0,
        dt=DT / np.array([1.0, 2.0, 4.0]),
        max_latency=MAX_LATENCY,
        save=SaveAt.statistics(after=10.0),
    )
    np.testing.assert_allclose(runs.statistics.mean_latency, runs.statistics.mean_latency[2], rtol=0.03)


def cost_of(policy, network, start):
    """The cost of a short run as a function of the policy's parameters."""

    def cost(rule):
        run = simulate(network, rule, duration=40 * DT, dt=DT, initial=start, max_latency=MAX_LATENCY, throw=False)
        return jnp.sum(run.cost_rate) * DT

    return cost


@pytest.mark.parametrize("policy", ["MirrorDescent", "Softmin", "WeightedLeastRequest"])
def test_derivative_with_respect_to_parameters_is_that_of_differences(rng, policy):
    network = small_network(rng)
    rule = POLICIES[policy](network)
    start = np.where(network.mask, 1.0, 0) / network.mask.sum(1, keepdims=True), rng.uniform(2, 4, 4)
    cost = jax.jit(cost_of(policy, network, start))
    gradient = jax.jit(jax.grad(cost_of(policy, network, start)))(rule)
    for k, leaf in enumerate(jax.tree.leaves(rule)):
        step = 1e-5 * leaf
        ahead, behind = (
            eqx.tree_at(lambda r, k=k: jax.tree.leaves(r)[k], rule, leaf + sign * step) for sign in (1, -1)
        )
        # Central differences with a relative step of 1e-5: truncation 1e-10 and rounding 1e-11 of the value, over 1e-5 or so.
        expected = float(cost(ahead) - cost(behind))
        assert float(2 * jnp.sum(jax.tree.leaves(gradient)[k] * step)) == pytest.approx(expected, rel=1e-5, abs=1e-12)


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in SMOOTH])
def test_rules_that_jump_refuse_a_gradient(rng, policy):
    """With a sentence that names the smooth relative; rules that are smooth do not."""
    network = small_network(rng)
    rule = POLICIES[policy](network)
    if rule.differentiable:
        assert policy in CONSTANT | {"WeightedLeastRequest", "SampledDGDLB"}
        return
    with pytest.raises(InputError, match=r"[sS]oftmin"):
        jax.grad(lambda rate: cost_of(policy, network.with_arrival_rate(rate), some_start(rng, network))(rule))(
            network.arrival_rate
        )


# --- what single rules promise ------------------------------------------------------------------------------------------


def test_choices_of_one_and_of_all_are_uniform_and_least(rng):
    network = small_network(rng)
    start = some_start(rng, network)
    for choices, same in ((1.0, "Uniform"), (np.inf, "LeastWorkload")):
        run = simulate(network, PowerOfChoices(choices), initial=start, **SETTINGS)
        other = simulate(network, POLICIES[same](network), initial=start, **SETTINGS)
        np.testing.assert_allclose(run.routing[1:], other.routing[1:], rtol=0, atol=1e-14)


def test_least_request_scans_all_when_asked(rng):
    """Full scan: one backend at a time (ties have measure zero here), never one that has more than another."""
    network = small_network(rng)
    run = simulate(network, LeastRequest(np.inf), initial=some_start(rng, network), **SETTINGS)
    np.testing.assert_array_equal(np.sort(run.routing[1:], axis=-1)[..., -1], 1)


def test_hot_cold_with_all_cold_is_least_latency_and_with_one_cold_is_least_workload(rng):
    network = small_network(rng)
    start = some_start(rng, network)
    for quantile, same in ((1.0, "LeastLatency"), (0.0, "LeastWorkload")):
        run = simulate(network, HotCold(quantile), initial=start, **SETTINGS)
        other = simulate(network, POLICIES[same](network), initial=start, **SETTINGS)
        np.testing.assert_array_equal(run.routing[1:], other.routing[1:])


def test_mirror_descent_without_floor_keeps_what_it_has(rng):
    """The replicator equation: arcs at zero stay there, with a floor they come back."""
    start = np.array([[0.0, 1.0]]), np.array([4.0, 4.0])
    stuck = simulate(PAIR, MirrorDescent(0.5, 0.0), duration=20.0, dt=0.02, initial=start, save=SaveAt.final())
    np.testing.assert_array_equal(stuck.final.routing, [[0, 1]])
    free = simulate(PAIR, MirrorDescent(0.5, 1e-3), duration=20.0, dt=0.02, initial=start, save=SaveAt.final())
    assert free.final.routing[0, 0] > 0.3


def test_softmin_becomes_the_jump(rng):
    """A small temperature and a fast rate: the mean of least marginal latency."""
    statistics = {
        name: simulate(PAIR, rule, duration=100.0, dt=0.01, save=SaveAt.statistics(after=50.0)).statistics
        for name, rule in (("softmin", Softmin(1e-3, 50.0)), ("jump", POLICIES["LeastMarginalLatency"](PAIR)))
    }
    np.testing.assert_allclose(statistics["softmin"].mean_routing, statistics["jump"].mean_routing, rtol=5e-3)


def test_spillover_by_hand():
    """Room for 8 and 4; 6 + 4 requests/s. Both frontends want backend 0 first and get 4/5 of it in proportion to what they ask."""
    network = Network([6.0, 4.0], [[0.1, 0.2], [0.1, 0.3]], Hyperbolic([10.0, 5.0], [1.0, 1.0]))
    np.testing.assert_allclose(spillover(network, 0.8).routing, [[0.8, 0.2], [0.8, 0.2]], rtol=1e-12)
    nearest = network.with_arrival_rate([2.0, 4.0])
    np.testing.assert_allclose(spillover(nearest, 0.8).routing, [[1, 0], [1, 0]], atol=1e-12)
    # 11 + 4 with room for 12: 8 go to the first, 4 to the second, the rest 3 in proportion to capacity.
    over = network.with_arrival_rate([11.0, 4.0])
    flow = np.array([8 + 2, 4 + 1]) / 15
    np.testing.assert_allclose(spillover(over, 0.8).routing, np.tile(flow, (2, 1)), rtol=1e-12)


def test_spillover_shares_ties_and_keeps_to_masks():
    network = Network(
        [3.0, 0.0], [[0.1, 0.1, 0.0], [0.3, 0.1, 0.2]], Hyperbolic([10.0, 10.0, 10.0], [1.0, 1.0, 1.0]),
        mask=[[True, True, False], [True, True, True]],
    )  # fmt: skip
    np.testing.assert_allclose(spillover(network).routing, [[0.5, 0.5, 0], [0, 1, 0]], atol=1e-12)
    batch = stack([network, PAIR])
    tables = spillover(batch).routing
    np.testing.assert_allclose(tables[0], spillover(network).routing, atol=1e-14)
    np.testing.assert_allclose(tables[1, :1, :2], spillover(PAIR).routing, atol=1e-14)
    with pytest.raises(InputError, match="cap"):
        spillover(network, -1.0)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: PowerOfChoices(0.5), "choices"),
        (lambda: LeastRequest(np.nan), "choices"),
        (lambda: HotCold(1.5), "quantile"),
        (lambda: HotCold(0.8, probes=0), "probes"),
        (lambda: PeakEWMA(0.0), "decay"),
        (lambda: WeightedLeastRequest(-1.0), "bias"),
        (lambda: MirrorDescent(np.inf), "step_size"),
        (lambda: MirrorDescent(1.0, -0.1), "floor"),
        (lambda: Softmin(0.0, 1.0), "temperature"),
        (lambda: Softmin([0.1, -0.2], 1.0), "temperature"),
        (lambda: Softmin(1.0, np.nan), "rate"),
    ],
)
def test_bad_parameters_are_named(make, field):
    with pytest.raises(InputError, match=field):
        make()


# --- the registry by name -----------------------------------------------------------------------------------------------


def test_every_balancer_can_be_asked_for_by_name_in_one_network_and_in_a_batch(rng):
    """In a batch its parameters fit the batch, and every network gets what it would get alone."""
    networks = [small_network(rng), small_network(rng)]
    batch = stack(networks)
    optima = solve_optimum(batch)
    step = jnp.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]])
    for key, balancer in BALANCERS.items():
        together = balancer.make(batch, optima, step)
        for k, network in enumerate(networks):
            alone = balancer.make(network, solve_optimum(network), step[k])
            for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
                picked = other[k] if other.ndim > one.ndim else other
                np.testing.assert_allclose(picked, one, rtol=1e-9, atol=1e-9, err_msg=key)
    assert {type(balancer.make(batch, optima, step)).__name__ for balancer in BALANCERS.values()} >= set(POLICIES)


def test_labels_differ_and_unknown_names_are_answered_with_the_nearest(rng):
    assert len({balancer.label for balancer in BALANCERS.values()}) == len(BALANCERS)
    network = small_network(rng)
    optimum = solve_optimum(network)
    assert list(balancers(network, optimum, jnp.ones(3))) == [BALANCERS[key].label for key in DEFAULT]
    with pytest.raises(InputError, match="did you mean peak-ewma"):
        balancers(network, optimum, jnp.ones(3), ["peak-emwa"])
    with pytest.raises(InputError, match="'uniform' is asked for twice"):
        balancers(network, optimum, jnp.ones(3), ["uniform", "gmsr", "uniform"])


def test_the_oracle_is_the_optimum(rng):
    network = small_network(rng)
    optimum = solve_optimum(network)
    rule = BALANCERS["oracle"].make(network, optimum, jnp.ones(3))
    assert isinstance(rule, FixedRouting)
    np.testing.assert_allclose(rule.routing, optimum.routing, atol=1e-12)


def test_every_policy_can_be_made_anew_from_its_settings(rng):
    """Also those that keep their arguments in parts: a lead behind DGD-LB. Deprecated arguments are no settings."""
    network = small_network(rng)
    optimum = solve_optimum(network)
    for key, balancer in BALANCERS.items():
        policy = balancer.make(network, optimum, jnp.ones(3))
        found = settings(policy)
        assert set(inspect.signature(type(policy)).parameters) - set(found) <= {"integers"}, key
        assert eqx.tree_equal(type(policy)(**found), policy), key
    lead = BALANCERS["lead-dgd-lb"].make(network, optimum, jnp.ones(3))
    changed = with_settings(lead, {"lag": "2.5", "step_size": "0.25"})
    (estimate,) = changed.estimates
    assert (float(estimate.lag), float(changed.policy.step_size)) == (2.5, 0.25)
    np.testing.assert_array_equal(estimate.round_trip, lead.estimates[0].round_trip)


class _Forgetful(AbstractInstantPolicy):
    """Keeps only one of its arguments."""

    gain: float

    def __init__(self, gain: float, base: float):
        self.gain = gain * base

    def route(self, t, observation, state):
        del t
        return observation.mask / observation.mask.sum(0), state


def test_a_policy_that_forgets_an_argument_is_not_made_anew():
    with pytest.raises(InputError, match="_Forgetful does not keep its argument base"):
        with_settings(_Forgetful(1.0, 2.0), {"gain": "3"})
