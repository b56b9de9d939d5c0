"""What the tests share: lists of all curves and policies, small networks to run them in, finite differences."""

import os
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest

import compiling
from dgdlb_jax.model import service as curves
from dgdlb_jax.model.network import Network
from dgdlb_jax.policies import (
    CappedDGDLB,
    CurvatureDGDLB,
    DnsLatency,
    EnvoyLoadAwareLocality,
    FixedRouting,
    HotCold,
    KvCacheScorer,
    LatencyObservationScorer,
    LatencyScorer,
    LeadDGDLB,
    LeastRequest,
    LocalityFailover,
    MirrorDescent,
    OrcaWeights,
    PeakEWMA,
    PowerOfChoices,
    SampledDGDLB,
    Softmin,
    WeightedLeastRequest,
)
from dgdlb_jax.policies.registry import POLICIES as KNOWN_POLICIES
from dgdlb_jax.stability import conditions
from oracles import service, workload_serving

ROOT = Path(__file__).resolve().parents[1]
HISTORY = ("routing", "workload", "arrival_rate", "cost_rate", "in_flight")
# Rounding: some 1e-16 per operation, a hundred operations per step, not amplified in runs that stay bounded.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}


def _between(rng, low, high, *shape):
    return rng.uniform(low, high, shape)


# name -> curve with parameters for B backends, each about 8 requests/s at a workload of a few
CURVES = {
    "Hyperbolic": lambda rng, B: curves.Hyperbolic(_between(rng, 7, 10, B), _between(rng, 4, 8, B)),
    "Exponential": lambda rng, B: curves.Exponential(_between(rng, 7, 10, B), _between(rng, 4, 8, B)),
    "Power": lambda rng, B: curves.Power(_between(rng, 4, 7, B), _between(rng, 2, 4, B), _between(rng, 0.4, 0.7, B)),
    "Logarithmic": lambda rng, B: curves.Logarithmic(_between(rng, 4, 6, B), _between(rng, 2, 4, B)),
    "ManyServer": lambda rng, B: curves.ManyServer(_between(rng, 5, 9, B), _between(rng, 0.7, 1.0, B)),
    "Tabulated": lambda rng, B: curves.Tabulated(
        _between(rng, 2, 4, 3, B),
        np.array([2.0, 5.0, 12.0])[:, None] * _between(rng, 0.8, 1.2, 3, B),
        np.full(B, 6.0),
        np.full(B, 40.0),
    ),
    "PerBackend": lambda rng, B: curves.PerBackend(
        (CURVES["Hyperbolic"](rng, B), CURVES["Logarithmic"](rng, B), CURVES["Exponential"](rng, B)), np.arange(B) % 3
    ),
    "Replicas": lambda rng, B: curves.Replicas(
        curves.Hyperbolic(_between(rng, 2, 3, B), _between(rng, 1, 2, B)), np.array([2.0, 3.0, 4.0, 3.0])[:B]
    ),
}


def routing_table(network) -> np.ndarray:
    """Some routing on the arcs of a network, different for every frontend."""
    mask = np.asarray(network.mask)
    weight = np.where(mask, 1 + np.arange(mask.size).reshape(mask.shape) % 5, 0.0)
    return weight / weight.sum(1, keepdims=True)


def _per_arc(network, low, high) -> np.ndarray:
    """Numbers that differ between backends, the same for every frontend."""
    return np.broadcast_to(np.linspace(low, high, network.backends), network.latency.shape)


# class name -> policy for a network; parameters differ between frontends where they may
_WITH_PARAMETERS = {
    "FixedRouting": lambda network: FixedRouting(routing_table(network)),
    "PowerOfChoices": lambda network: PowerOfChoices(2.0 + np.arange(network.frontends) % 2),
    "HotCold": lambda network: HotCold(
        0.5 + 0.1 * (np.arange(network.frontends) % 5), np.array([np.inf, 2.0, 3.0])[np.arange(network.frontends) % 3]
    ),
    "LeastRequest": lambda network: LeastRequest(2.0),
    "WeightedLeastRequest": lambda network: WeightedLeastRequest(0.7 + 0.2 * np.arange(network.frontends)),
    "PeakEWMA": lambda network: PeakEWMA(0.5 * (1 + np.arange(network.frontends))),
    "MirrorDescent": lambda network: MirrorDescent(0.2 * (1 + np.arange(network.frontends) / 4), 0.01),
    "SampledDGDLB": lambda network: SampledDGDLB(0.05 * (1 + np.arange(network.frontends) / 4), 0.3),
    "CurvatureDGDLB": lambda network: CurvatureDGDLB(0.05, 2.0 * (1 + np.arange(network.frontends) / 4)),
    "CappedDGDLB": lambda network: CappedDGDLB(0.2, 0.1 * (1 + np.arange(network.frontends) / 4)),
    "LeadDGDLB": lambda network: LeadDGDLB(
        0.05 * (1 + np.arange(network.frontends) / 4), network.latency + network.feedback_latency, oldest=10.0
    ),
    "Softmin": lambda network: Softmin(0.3 + 0.1 * np.arange(network.frontends), 2.0),
    "EnvoyLoadAwareLocality": lambda network: EnvoyLoadAwareLocality(
        0.3, 0.5 * (1 + np.arange(network.frontends)), 0.05, 0.1, host_capacity=_per_arc(network, 2.0, 3.0)
    ),
    "OrcaWeights": lambda network: OrcaWeights(
        0.3,
        0.1 * (1 + np.arange(network.frontends)),
        report="concurrency",
        host_capacity=_per_arc(network, 2.0, 3.0),
        max_concurrency=_per_arc(network, 5.0, 9.0),
    ),
    "LocalityFailover": lambda network: LocalityFailover(1.4),
    "DnsLatency": lambda network: DnsLatency(0.5 * (1 + np.arange(network.frontends)), request_interval=0.2),
    "LatencyScorer": lambda network: LatencyScorer(0.9 + 0.2 * np.arange(network.frontends)),
    "KvCacheScorer": lambda network: KvCacheScorer(
        0.3, "weighted-random", host_capacity=_per_arc(network, 2.0, 3.0), max_concurrency=_per_arc(network, 9.0, 12.0)
    ),
    "LatencyObservationScorer": lambda network: LatencyObservationScorer(
        _per_arc(network, 0.2, 0.3), 0.2, 0.5, 0.1, 4.0 + np.arange(network.frontends), 1.5, 1.0
    ),
}


def _example(policy, recipe):
    """A new policy of the registry is tested as the others are; one with parameters of its own is entered above."""
    if recipe == "step size":
        return lambda network: policy(0.05 * (1 + np.arange(network.frontends) / 4))
    return _WITH_PARAMETERS.get(policy.__name__, lambda network: policy())


POLICIES = {entry.load().__name__: _example(entry.load(), entry.recipe) for entry in KNOWN_POLICIES.values()}

# Conditions that give a factor for any direction of step sizes.
SCALAR_CONDITIONS = (
    conditions.theorem_a_largest,
    conditions.theorem_a,
    conditions.theorem_b,
    conditions.theorem_b_diagonal,
    conditions.theorem_c,
    conditions.theorem_c_largest,
    conditions.theorem_c_spectral,
    conditions.two_parameters,
)


def hyperbolic_through(slope, gain, flow) -> curves.Hyperbolic:
    """Hyperbolic curves whose slope and gain are these where they serve this flow.

    ell = m N / (h + N): ell' = m h / (h + N)^2 = a and -ell''/ell'^2 = 2 (h + N) / (m h) = c, so z = h + N = 2 / (a c),
    m h = a z^2, and from flow = m (z - h) / z follows h.
    """
    z = 2 / (slope * gain)
    half = slope * z**2 / (flow + slope * z)
    return curves.Hyperbolic(slope * z**2 / half, half)


# Of the small network. All tests share them, the size of the delay buffer included, and with them compiled code.
DT, STEPS, MAX_LATENCY = 0.02, 200, 0.6
SETTINGS = {"duration": STEPS * DT, "dt": DT, "max_latency": MAX_LATENCY}


def some_of(names, *kept):
    """All of them in full, a few otherwise."""
    return [pytest.param(name, marks=[] if name in kept else [pytest.mark.full]) for name in names]


def small_network(rng, curve="Hyperbolic", **changes) -> Network:
    """3 frontends, 4 backends, one arc missing; latencies of whole steps, with fractions, below a step, and zero."""
    F, B = 3, 4
    mask = np.ones((F, B), bool)
    mask[1, 2] = False
    latency = rng.uniform(0.0, 0.5, (F, B))
    latency[0, 0], latency[0, 1], latency[1, 0], latency[2, 3] = 0.0, 0.3 * DT, 7 * DT, DT
    feedback = rng.uniform(0.0, 0.4, (F, B))
    feedback[0, 1], feedback[1, 1], feedback[2, 2] = 0.0, 0.6 * DT, 5 * DT
    settings = {
        "arrival_rate": np.array([4.0, 6.0, 5.0]),
        "latency": latency,
        "service": CURVES[curve](rng, B),
        "mask": mask,
        "feedback_latency": feedback,
        "cost_latency": latency + rng.uniform(0, 0.1, (F, B)),
    } | changes
    return Network(**settings)


def some_start(rng, network) -> tuple[np.ndarray, np.ndarray]:
    """(routing, workload) away from any equilibrium, some entries of the routing at zero."""
    mask = np.asarray(network.mask)
    weight = np.where(mask & (rng.random(mask.shape) < 0.7), rng.random(mask.shape), 0)
    weight[np.arange(len(mask)), mask.argmax(1)] += 0.1
    return weight / weight.sum(1, keepdims=True), rng.uniform(1, 6, network.backends)


def interior_equilibrium(rng, frontends=3, backends=3, latency=None, feedback=None, demand=None, rates=None):
    """(network, start) at rest under DGD-LB with all arcs in use: cost latencies make the marginal latencies equal.

    With KKT, 1 / ell'_j + cost_ij = nu_i for every arc; the rest of the network is free.
    """
    shape = (frontends, backends)
    rates = rng.uniform(3, 6, frontends) if rates is None else np.asarray(rates)
    routing = rng.dirichlet(np.full(backends, 20.0), frontends)
    curve = curves.Hyperbolic(rates.sum() / backends * rng.uniform(1.6, 2.2, backends), rng.uniform(3, 5, backends))
    inflow = rates @ routing
    workload = np.array([workload_serving(curve, inflow[j], j, backends) for j in range(backends)])
    marginal = 1 / service(curve, workload)[1]
    cost = marginal.max() + rng.uniform(0.1, 0.5, frontends)[:, None] - marginal
    latency = rng.uniform(0.05, 0.4, shape) if latency is None else latency
    feedback = rng.uniform(0.05, 0.4, shape) if feedback is None else feedback
    network = Network(rates if demand is None else demand, latency, curve, feedback_latency=feedback, cost_latency=cost)
    return network, (routing, workload)


def central_difference(function, point, direction, h=1e-5):
    """Directional derivative of `function` at `point`, a pytree of arrays, by a central difference."""
    ahead = jax.tree.map(lambda p, d: p + h * d, point, direction)
    behind = jax.tree.map(lambda p, d: p - h * d, point, direction)
    return jax.tree.map(lambda a, b: (np.asarray(a) - np.asarray(b)) / (2 * h), function(ahead), function(behind))


def own_process(optimisation: int = 0) -> dict[str, str]:
    """Of a process of its own that uses the package: with the tests' compilation cache, and compiled in half the time or less.

    For what is run to see that it runs: compiling takes most of its time. Long computations want some `optimisation`.
    """
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": compiling.flags(optimisation),
        "JAX_COMPILATION_CACHE_DIR": jax.config.values["jax_compilation_cache_dir"] or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(compiling.CACHED),
        "DGDLB_KEEP_PROGRAMS": "1",
    }


@contextmanager
def single_precision():
    """The world of somebody who never enabled float64."""
    with jax.enable_x64(False):
        yield


@contextmanager
def compilations():
    """A list that grows with every trace and every compilation while the context is open: the event, and the function's name."""
    seen, is_open = [], True

    def listen(event, duration, **details):
        del duration
        if is_open and event.startswith("/jax/core/compile/"):
            seen.append(f"{event} {details.get('fun_name', '')}")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seen
    finally:
        is_open = False


def run_notebook(path: Path, folder: Path) -> None:
    """All of a notebook, in a kernel of its own that starts in this folder; an error in it is raised."""
    nbformat = pytest.importorskip("nbformat", reason="install the notebooks extra")
    client = pytest.importorskip("nbclient", reason="install the notebooks extra")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    client.NotebookClient(notebook, timeout=600, resources=resources).execute(env=own_process())
