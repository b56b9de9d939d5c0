"""No size, curve or rule keeps a run from being compiled: what XLA cannot make one native loop of is an ordinary loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Tabulated
from dgdlb_jax.numerics import native
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractInstantPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation import engine
from dgdlb_jax.simulation.requests.engine import simulate_requests
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import CURVES, DT, POLICIES, SETTINGS, small_network

STATISTICS = {"duration": 6 * DT, "dt": DT, "max_latency": 4 * DT, "save": SaveAt.statistics(resumable=False)}
SAMPLE = ("DGDLB", "MirrorDescent", "Softmin", "LeastLatency", "PowerOfChoices", "WeightedLeastRequest", "HotCold")
ROUNDING = {"rtol": 1e-10, "atol": 1e-12}


def looped(body):
    return lambda x: jax.lax.fori_loop(0, 3, lambda _, x: body(x), x)


def is_native(body, x) -> bool:
    """Whether the loop may become a native function; compiled as it is then, it gives what an ordinary loop gives."""
    found = jax.jit(native.one_native_loop(looped(body)))(x)
    np.testing.assert_allclose(found, jax.jit(looped(body))(x), rtol=1e-12)
    return native.can_be_native(jax.make_jaxpr(looped(body))(x).jaxpr)


SUM, LARGEST = (lambda x: x / jnp.sum(jnp.sin(x))), (lambda x: x - jnp.max(jnp.sin(x)))


@pytest.mark.parametrize(
    ("body", "size", "expected"),
    [
        (SUM, native.TOO_LARGE - 1, True),
        (LARGEST, native.TOO_LARGE - 1, True),
        (SUM, native.TOO_LARGE, False),
        (LARGEST, native.TOO_LARGE, False),
        (lambda x: x + jnp.sum(x > 0.5), 2 * native.TOO_LARGE, True),  # of integers: the library takes none
        (lambda x: jnp.cumsum(x) / x.size, 2 * native.TOO_LARGE, True),
        (jnp.sort, 4, False),
        (lambda x: x.at[jnp.array([1, 3])].set(0.5), 4, False),
        (lambda x: jnp.ones((40, 40)) @ x / 40, 40, False),
        (lambda x: jax.lax.cond(x[0] > 0.5, jnp.sin, jnp.cos, x), 4, True),
        (lambda x: jax.pure_callback(lambda y: np.cos(y), x, x), 4, False),
    ],
)
def test_the_rule_knows_what_xla_can_compile(body, size, expected):
    """The largest that it allows does compile, and what it does not allow runs all the same."""
    assert is_native(body, jnp.linspace(0.1, 1.0, size)) == expected


@pytest.fixture
def seen():
    """What the rule said of every program since."""
    answers = []

    def ask(jaxpr):
        answers.append(native.can_be_native(jaxpr))
        return answers[-1]

    with native.ruled_by(ask):
        yield answers


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in SAMPLE)) for name in POLICIES]
)
def test_every_policy_is_one_native_loop(seen, name):
    """Traced only: forwards, and backwards where there is a gradient; in single precision, whose sums are compensated."""
    network = with_float_type(small_network(np.random.default_rng(0)), np.dtype("float32"))
    policy = POLICIES[name](network)
    rule = lambda n: engine.simulate(n, policy, throw=False, **SETTINGS | {"save": SaveAt.statistics()})
    if policy.differentiable:
        at = lambda n, scale: rule(n.with_latency_scale(scale)).statistics.mean_latency
        jax.eval_shape(jax.grad(at, argnums=1), network, 1.0)
    else:
        jax.eval_shape(rule, network)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", CURVES)
def test_every_curve_is_one_native_loop(seen, name):
    network = small_network(np.random.default_rng(0), name)
    value = lambda n, step: engine.simulate(n, DGDLB(step), throw=False, **SETTINGS).workload.sum()
    jax.eval_shape(jax.grad(value, argnums=1), network, 0.1)
    jax.eval_shape(
        lambda n: engine.simulate_batch(n, DGDLB(0.1), throw=False, frames=400, **SETTINGS), stack([network])
    )
    assert len(seen) >= 2
    assert all(seen)


@pytest.mark.parametrize(
    ("name", "count", "discipline"),
    [("DGDLB", "backend", "ps"), ("DGDLB", "arc", "fcfs"), ("DGDLB", "own", "ps"), ("LeastRequest", None, "ps")],
)
def test_whole_requests_are_one_native_loop(seen, name, count, discipline):
    """With requests followed, as by default: a single operation that is none costs three times the rest."""
    network = with_float_type(small_network(np.random.default_rng(0)), np.dtype("float32"))
    policy = POLICIES[name](network)
    options = {key: SETTINGS[key] for key in ("duration", "dt", "max_latency")}
    options |= {"count": count, "discipline": discipline, "longest_stay": 1.0, "save": SaveAt(2), "throw": False}
    jax.eval_shape(lambda n, key: simulate_requests(n, policy, key, **options), network, jax.random.key(0))
    assert seen
    assert all(seen)


def tabulated(rng, components, B):
    return Tabulated(rng.uniform(1, 2, (components, B)), rng.uniform(2, 20, (components, B)))


def wide(rng, frontends, backends, curve) -> Network:
    """A network of so many arcs at about half its load, latencies of a few steps."""
    network = Network(rng.uniform(1, 2, frontends), rng.uniform(0, 4 * DT, (frontends, backends)), curve(rng, backends))
    return network.with_load(0.5)


def assert_batch_is_single_runs(network, policy, size, gradient):
    """Mean latencies of a batch of networks of different latencies, and their slopes, against runs of the first and the last alone."""
    batch, scales, ends = stack([network] * size), np.linspace(0.8, 1.0, size), sorted({0, size - 1})
    alone = lambda f: engine.simulate(network.with_latency_scale(f), policy, **STATISTICS).statistics.mean_latency
    each = jax.tree.map(lambda leaf: np.stack([leaf] * size) if np.ndim(leaf) else leaf, policy)
    many = lambda f: engine.simulate_batch(batch.with_latency_scale(f), each, **STATISTICS).statistics.mean_latency
    np.testing.assert_allclose(many(scales)[np.array(ends)], [alone(scales[n]) for n in ends], **ROUNDING)
    if gradient and policy.differentiable:
        slopes = jax.grad(lambda f: many(f).sum())(jnp.asarray(scales))[np.array(ends)]
        expected = [jax.grad(alone)(scales[n]) for n in ends]
        np.testing.assert_allclose(slopes, expected, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    ("components", "size", "arcs", "gradient"),
    [
        (7, 8, (44, 12), False),  # more than 4096 numbers over components, arcs and lanes
        pytest.param(7, 8, (44, 12), True, marks=pytest.mark.full),
        pytest.param(12, 2, (20, 20), False, marks=pytest.mark.full),  # the same, summed at once
    ],
)
def test_measured_curves_run_at_large_sizes(rng, components, size, arcs, gradient):
    network = wide(rng, *arcs, lambda rng, B: tabulated(rng, components, B))
    assert_batch_is_single_runs(network, DGDLB(1e-3), size, gradient)


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 5, 37])
@pytest.mark.parametrize("arcs", [(1, 1), (1, 64), (64, 1), (8, 8), (44, 12), (12, 44), (32, 32), (64, 64)], ids=str)
@pytest.mark.parametrize("curve", [name for name in CURVES if name != "Replicas"])
def test_every_curve_at_every_size(rng, curve, arcs, size):
    assert_batch_is_single_runs(wide(rng, *arcs, CURVES[curve]), DGDLB(1e-3), size, gradient=True)


@pytest.mark.full
@pytest.mark.parametrize("size", [1, 37])
@pytest.mark.parametrize("arcs", [(1, 2), (8, 8), (44, 12), (64, 64)], ids=str)
@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_at_every_size(rng, name, arcs, size):
    network = wide(rng, *arcs, CURVES["Hyperbolic"])
    assert_batch_is_single_runs(network, POLICIES[name](network), size, gradient=True)


class Sorting(AbstractInstantPolicy):
    """A user's rule, with operations that no native function has: all to the least of the sorted latencies."""

    def route(self, t, observation, state):
        latency = jnp.where(observation.mask, observation.average_latency + observation.cost_latency, jnp.inf)
        chosen = jnp.argsort(latency)[0]
        return jnp.zeros_like(latency).at[chosen].set(1.0), state


class Mixing(AbstractFlowPolicy):
    """A user's flow, with a product of matrices."""

    mix: jax.Array

    def velocity(self, t, routing, observation, state):
        return -self.mix @ (observation.marginal_latency + observation.cost_latency), state


@pytest.mark.parametrize("policy", [Sorting(), Mixing(0.1 * np.eye(4)[None].repeat(3, 0))], ids=["sort", "product"])
def test_a_rule_of_the_users_may_do_anything(policy):
    network = small_network(np.random.default_rng(0))
    run = engine.simulate(network, policy, **SETTINGS)
    np.testing.assert_allclose(np.asarray(run.routing).sum(-1), 1, atol=1e-12)
    if policy.differentiable:
        same = engine.simulate(network, DGDLB(0.1), **SETTINGS)
        np.testing.assert_allclose(run.workload, same.workload, rtol=1e-10)


def test_a_refusal_of_xla_is_answered_by_an_ordinary_loop(rng):
    """Were the rule too bold for some version of XLA, a call outside `jit` would still run; once known, it is not tried again."""
    network = wide(rng, 64, 65, CURVES["Hyperbolic"])
    value = lambda step: engine.simulate(network, DGDLB(step), **STATISTICS).statistics.mean_latency
    expected = jax.value_and_grad(value)(1e-3)
    tried = []
    with native.ruled_by(lambda jaxpr: tried.append(jaxpr) is None):
        np.testing.assert_allclose(jax.value_and_grad(value)(1e-3), expected, rtol=1e-12)
        assert len(native._refused) == 1
        count = len(tried)
        jax.value_and_grad(value)(1e-3)
        assert len(tried) == count > 0
