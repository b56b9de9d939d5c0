"""The package promotes neither ranks nor types: every broadcast is written out, counts become rates where it says so. Traced only, but
for what decides on the host."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import events as happen
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.promotion import standard_promotion, strictly
from dgdlb_jax.policies import estimates
from dgdlb_jax.stability import conditions
from dgdlb_jax.stability.autoscaling import replica_loop
from dgdlb_jax.stability.defaults import default_step_size_set_by
from dgdlb_jax.stability.observed import slow_loop
from dgdlb_jax.stability.sensitivity import limit_elasticities
from dgdlb_jax.stability.softmin import softmin_loop
from helpers import CURVES, DT, POLICIES, SETTINGS, STEPS, hyperbolic_through, small_network, some_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

DTYPES = ("float32", pytest.param("float64", marks=pytest.mark.full))


@pytest.fixture(autouse=True)
def strict():
    with strictly():
        yield


def one(dtype="float32", curve="Hyperbolic", **changes) -> Network:
    return with_float_type(small_network(np.random.default_rng(0), curve, **changes), np.dtype(dtype))


def two(dtype="float32", curve="Hyperbolic") -> Network:
    return stack([one(dtype, curve)] * 2)


def trace(policy, networks: Network, **settings) -> None:
    settings = {"throw": False} | SETTINGS | settings
    jax.eval_shape(lambda n: dgd.simulate_batch(n, policy, **settings), networks)


def shared(policy):
    """Numbers per frontend for both networks of a batch."""
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]) if jnp.ndim(leaf) else leaf, policy)


@pytest.mark.parametrize("name", some_of(POLICIES, "PeakEWMA", "OrcaWeights"))
def test_every_policy(name):
    trace(shared(POLICIES[name](one())), two())


ESTIMATES = {
    "lag": lambda: estimates.ExponentialAverage(0.2),
    "window": lambda: estimates.MovingAverage(0.3, bins=4),
    "curve": lambda: estimates.LearntCurve(two().service, 5.0),
    "regression": lambda: estimates.Regression(1.0),
    "scraped": lambda: estimates.Scraped(0.2),
}


@pytest.mark.parametrize("name", some_of(ESTIMATES, "window"))
@pytest.mark.parametrize("rule", [lambda: dgd.DGDLB(0.1), dgd.LeastLatency])
def test_estimates(name, rule):
    trace(dgd.estimated(rule(), ESTIMATES[name]()), two())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("curve", some_of(CURVES, "PerBackend"))
def test_every_curve(curve, dtype):
    trace(dgd.DGDLB(0.1), two(dtype, curve))


@pytest.mark.parametrize("dtype", DTYPES)
def test_optima(dtype):
    jax.eval_shape(lambda n: solve_optimum(n, throw=False), two(dtype))


EVENTS = {
    "links": [happen.Latency(0.5, 1.7, 0), happen.Breaks(0.7, 1, 0), happen.Mends(0.9, 1, 0)],
    "news": [happen.Latency(0.5, 1.7, 0, news=True), happen.Closes(0.6, 2, 1), happen.Opens(0.8, 2, 1)],
    "failures": [happen.Fails(0.618, 0, timeout=0.4), happen.Recovers(0.9, 0)],
    "demand": [happen.Demand(0.5, 1.2, 0), happen.Replicas(0.7, 0, 0.8), happen.Drains(0.9, 1)],
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", some_of(EVENTS, "failures"))
@pytest.mark.parametrize(
    "rule", [lambda: dgd.DGDLB(0.1), lambda: dgd.DnsLatency(2.0, request_interval=0.2)], ids=["flow", "jumps"]
)
def test_events(name, rule, dtype):
    trace(rule(), two(dtype), events=EVENTS[name])


JUMPS = dgd.Jumps([1.0, 2.0], [[0.9, 1.0, 1.0, 0.8], [1.0] * 4, [1.1] * 4])
IN_TIME = {
    "trace": {"arrival_rate": dgd.Trace(1.0, [[4.0, 5.0, 6.0]] * 3)},
    "cycle": {"arrival_rate": dgd.DailyCycle([4.0, 6.0, 5.0], 0.3, period=4.0)},
    "jumps": {"arrival_rate": dgd.Jumps([1.0, 2.0], [[4.0, 5.0, 6.0]] * 3), "capacity": JUMPS},
}


@pytest.mark.parametrize("name", some_of(IN_TIME, "jumps"))
def test_demand_and_capacity_in_time(name):
    networks = stack([one(**IN_TIME[name])] * 2)
    trace(dgd.DGDLB(0.1), networks)
    trace(dgd.LeastLatency(), networks, events=EVENTS["demand"])
    jax.eval_shape(lambda n: dgd.spillover(n), networks)


class Growing(dgd.AbstractExtension):
    """A state of every arc."""

    name: str = eqx.field(static=True, default="growing")

    def init(self, network):
        return jnp.zeros_like(network.latency)

    def delay(self, network):
        return network.latency

    def signal(self, view, state):
        return view.flow

    def velocity(self, view, state, received):
        return received


def test_what_is_saved():
    """Instants and statistics of the user's own, a run that goes on, frames, networks that stop at other times."""
    queue = dgd.Observable(lambda t, view: view.workload, name="queue", dims="backend", units="requests")
    kinds = dgd.TimeMean, dgd.TimeIntegral, dgd.Maximum, dgd.Minimum
    own = tuple(
        kind(dgd.Observable(queue.fn, name=f"queue_{number}", dims="backend")) for number, kind in enumerate(kinds)
    )
    networks = two()
    trace(
        dgd.DGDLB(0.1), networks, save=dgd.SaveAt(every=7, fn=queue, after=1.0, statistics=own), extensions=(Growing(),)
    )
    trace(dgd.DGDLB(0.1), networks, save=dgd.SaveAt(every=7, reference=np.ones((2, 4)), resumable=False), frames=50)
    trace(dgd.LeastRequest(2.0), networks, frames=60, duration=np.array([0.9, 0.4]), dt=np.array([DT, DT / 2]))

    def again(n):
        first = dgd.simulate_batch(n, dgd.PeakEWMA(0.5), throw=False, **SETTINGS)
        return dgd.simulate_batch(n, dgd.PeakEWMA(0.5), initial=first.final, throw=False, **SETTINGS)

    jax.eval_shape(again, networks)


@pytest.mark.parametrize("name", some_of(["Proportional", "HPA"], "HPA"))
def test_autoscalers(name):
    rule = {"Proportional": dgd.Proportional(0.7, 0.3, least=0.5), "HPA": dgd.HPA(0.7, 0.3, interval=0.5)}[name]
    trace(dgd.DGDLB(0.1), two(curve="Replicas"), autoscaler=rule)


# Balancers, disciplines and ways to count.
REQUESTS = {
    "fluid": (lambda: dgd.DGDLB(0.05), {}),
    "in order": (lambda: dgd.LeastLatency(), {"discipline": "fcfs", "count": "arc"}),
    "own": (lambda: dgd.WeightedLeastRequest(1.0), {"discipline": "fcfs"}),
    "own flow": (lambda: dgd.DGDLB(0.05), {"count": "own", "save": dgd.SaveAt(every=10)}),
    "recorded": (lambda: dgd.HotCold(), {"arrivals": "recorded", "follow": False}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", some_of(REQUESTS, "own"))
def test_whole_requests(name, dtype):
    policy, settings = REQUESTS[name]
    settings = {"throw": False, "longest_stay": 5.0} | SETTINGS | settings
    run = partial(dgd.simulate_requests_batch, policy=policy(), **settings)
    keys = jax.random.split(jax.random.key(0), 2)
    jax.eval_shape(lambda n, keys: run(n, keys=keys), two(dtype), keys)


GRADIENTS = {
    "stored": {"adjoint": dgd.FullStorage()},
    "checkpoints": {"adjoint": dgd.Checkpoints(every=50), "save": dgd.SaveAt(every=10)},
    "autoscaler": {"autoscaler": dgd.Proportional(0.7, 0.3, least=0.5)},
    "events": {"events": [happen.Latency(0.5, 1.7, 0), happen.Breaks(0.7, 1, 0)]},
    "extra flow": {"extra_flow": np.zeros((STEPS + 1, 3, 4))},
}


@pytest.mark.parametrize("name", some_of(GRADIENTS, "checkpoints"))
def test_gradients_of_runs(name):
    """Reverse and forward."""

    def cost(network, step):
        run = dgd.simulate(network, dgd.DGDLB(step), throw=False, **SETTINGS | GRADIENTS[name])
        return run.statistics.mean_latency

    network = one(curve="Replicas" if name == "autoscaler" else "Hyperbolic")
    step = jnp.full(3, 0.1, jnp.float32)
    jax.eval_shape(eqx.filter_grad(lambda both: cost(*both)), (network, step))
    jax.eval_shape(lambda step: jax.jvp(lambda step: cost(network, step), (step,), (step,)), step)


def test_marginal_latencies():
    settings = SETTINGS | {"run_on": 1.0, "every": 20, "throw": False}
    found = lambda n: dgd.marginal_latency(n, dgd.DGDLB(0.1), **settings)
    jax.eval_shape(lambda n: (found(n), found(n).relative_error(), found(n).angle(), found(n).uphill()), one())


def test_optimum_by_gradients():
    best = lambda n: dgd.solve_optimum(n, throw=False).mean_latency
    jax.eval_shape(eqx.filter_grad(best), one())
    jax.eval_shape(lambda n: dgd.shadow_prices(n, throw=False), one())


# Linear rules: memory, averages, own routing, updates at instants.
LINEAR = {
    "DGDLB": lambda: dgd.DGDLB(0.1),
    "MirrorDescent": lambda: dgd.MirrorDescent(0.1, 0.01),
    "SampledDGDLB": lambda: dgd.SampledDGDLB(0.1, 0.3),
    "LeadDGDLB": lambda: dgd.LeadDGDLB(0.1, 0.4, oldest=10.0),
    "lag": lambda: dgd.estimated(dgd.DGDLB(0.1), estimates.ExponentialAverage(0.2)),
    "window": lambda: dgd.estimated(dgd.DGDLB(0.1), estimates.MovingAverage(0.3)),
}


@pytest.fixture(scope="module")
def rest():
    """A network and its optimum, latencies of which allow all conditions."""
    network = dgd.Network(
        [4.0, 6.0, 5.0], np.linspace(0.05, 0.4, 12).reshape(3, 4), CURVES["Hyperbolic"](np.random.default_rng(0), 4)
    )
    return network, dgd.solve_optimum(network)


@pytest.mark.parametrize("name", some_of(LINEAR, "SampledDGDLB"))
def test_limits_of_stability(name, rest):
    """One and a batch, with noise and derivatives."""
    network, optimum = rest
    limit = lambda n, o: dgd.critical_mode(n, LINEAR[name](), o, throw=False)
    jax.eval_shape(limit, network, optimum)
    jax.eval_shape(limit, *(stack([network] * 2), jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), optimum)))
    jax.eval_shape(eqx.filter_grad(lambda n: limit(n, optimum).step_size), network)
    if name != "SampledDGDLB":
        jax.eval_shape(lambda n, o: dgd.noise(n, LINEAR[name](), o, throw=False), network, optimum)


def test_step_sizes_and_steps(rest):
    network, optimum = rest
    scaled = eqx.tree_at(lambda n: n.service, network, dgd.Replicas(network.service, np.full(4, 2.0)))
    rule = dgd.Proportional(0.7, 0.3, least=0.5)

    def every(n, o):
        steps = [dgd.sufficient_step_size(n, o, condition=each) for each in conditions.NEEDS]
        steps += [dgd.default_step_size(n, o, averaging=0.1), dgd.suggest_step_size(n, o, horizon=60.0)]
        return steps, dgd.suggest_dt(n, 0.1, o), dgd.suggest_dt(n, 0.1, o, jumps=True), dgd.suggest_duration(n, 0.1, o)

    def beside(n, o):
        return dgd.default_step_size(n, o, autoscaler=rule), dgd.critical_step_size(n, o, autoscaler=rule, throw=False)

    jax.eval_shape(every, network, optimum)
    jax.eval_shape(beside, scaled, optimum)
    jax.eval_shape(default_step_size_set_by, network, optimum)


@pytest.fixture(scope="module")
def smallest():
    """One frontend, two backends."""
    curve = hyperbolic_through(np.array([0.5, 0.6]), np.array([0.1, 0.12]), np.array([2.0, 2.1]))
    network = dgd.Network([4.1], [[0.2, 0.3]], dgd.Replicas(curve, [1.0, 1.0]))
    return network, dgd.solve_optimum(network)


def behind(interval):
    return lambda n, o: dgd.critical_step_size(n, dgd.estimated(dgd.DGDLB(0.1), estimates.Scraped(interval)), o)


def shape_of(spectrum) -> tuple:
    return spectrum.damping, spectrum.period, spectrum.settling_time


ON_THE_HOST = {
    "roots": lambda n, o: shape_of(dgd.characteristic_roots(n, dgd.DGDLB(0.1), o)),
    "roots with memory": lambda n, o: dgd.characteristic_roots(n, LINEAR["lag"](), o),
    "count": lambda n, o: dgd.count_unstable_roots(n, dgd.DGDLB(0.1), o),
    "best": lambda n, o: dgd.best_step_size(n, o),
    "elasticities": lambda n, o: limit_elasticities(n, 0.1, o, dgd.critical_mode(n, dgd.DGDLB(0.1), o)),
    "scrapes": behind(0.5),
    "scrapes that never meet": behind([[0.5, 0.5 * np.sqrt(2)]]),
    "softmin": lambda n, o: softmin_loop(n, dgd.Softmin(0.3, 2.0)).critical(),
    "held": lambda n, o: dgd.held_loop(n, dgd.OrcaWeights(0.3)).radius(),
    "observed": lambda n, o: slow_loop(n, dgd.LatencyObservationScorer()),
    "replicas": lambda n, o: replica_loop(n, dgd.HPA(0.7, 0.3)).radius(),
    "at rest": lambda n, o: dgd.latency_at_rest(n, o.routing),
}


@pytest.mark.parametrize("name", some_of(ON_THE_HOST, "roots", "replicas"))
def test_what_decides_on_the_host(name, smallest):
    """Run, at the smallest size."""
    ON_THE_HOST[name](*smallest)


def test_strictness_is_strict():
    """Otherwise everything above would pass."""
    product = standard_promotion(lambda some, others: some * others)
    with pytest.raises(ValueError, match="rank_promotion"):
        product(jnp.ones(2), jnp.ones((3, 2)))
    with pytest.raises(Exception, match="promotion"):
        product(jnp.arange(2), jnp.ones(2, jnp.float32))
