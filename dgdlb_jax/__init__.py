"""A differentiable simulator of load balancing with network latencies, after DGD-LB (arXiv:2504.10693).

Names are resolved on first use, so that `import dgdlb_jax` costs nothing beyond what is used.

What is where; imports run upwards in this table only:

| in `dgdlb_jax/` | |
|---|---|
| `numerics` | projections, systems with delays and their derivatives: nothing about load balancing |
| `model` | service curves, demands, networks, topologies: what is simulated |
| `policies` | the balancers, one rule each, and their registry |
| `simulation` | the engine: networks and a policy in, a trajectory out |
| `equilibrium` | the certified optimum, feasibility, prices of demand and capacity |
| `stability` | linearisation, critical step sizes, roots, and the defaults derived from them |
| `gradients` | exact marginal latencies, tuning |
| `fleets` | from files to a network, and importers of files that people have |
| `studies` | comparisons, verdicts, sweeps, claims: what is asked of networks |
| `reports` | text, tables, pictures, pages, exports: what people read |
| `cli` | one module per command |
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dgdlb_jax.equilibrium.at_rest import latency_at_rest as latency_at_rest
    from dgdlb_jax.equilibrium.optimum import Optimum as Optimum
    from dgdlb_jax.equilibrium.optimum import solve_optimum as solve_optimum
    from dgdlb_jax.equilibrium.prices import ShadowPrices as ShadowPrices
    from dgdlb_jax.equilibrium.prices import shadow_prices as shadow_prices
    from dgdlb_jax.fleets import list_fleets as list_fleets
    from dgdlb_jax.fleets import load_autoscaler as load_autoscaler
    from dgdlb_jax.fleets import load_events as load_events
    from dgdlb_jax.fleets import load_fleet as load_fleet
    from dgdlb_jax.fleets import load_news as load_news
    from dgdlb_jax.gradients.marginal import MarginalLatency as MarginalLatency
    from dgdlb_jax.gradients.marginal import marginal_latency as marginal_latency
    from dgdlb_jax.gradients.tuning import Tuned as Tuned
    from dgdlb_jax.gradients.tuning import transient_latency as transient_latency
    from dgdlb_jax.gradients.tuning import tune as tune
    from dgdlb_jax.model import events as events
    from dgdlb_jax.model import topologies as topologies
    from dgdlb_jax.model.demand import AbstractDemand as AbstractDemand
    from dgdlb_jax.model.demand import Constant as Constant
    from dgdlb_jax.model.demand import DailyCycle as DailyCycle
    from dgdlb_jax.model.demand import Jumps as Jumps
    from dgdlb_jax.model.demand import Trace as Trace
    from dgdlb_jax.model.demand_kinds import register_demand as register_demand
    from dgdlb_jax.model.network import Network as Network
    from dgdlb_jax.model.network import stack as stack
    from dgdlb_jax.model.service import AbstractService as AbstractService
    from dgdlb_jax.model.service import Exponential as Exponential
    from dgdlb_jax.model.service import Hyperbolic as Hyperbolic
    from dgdlb_jax.model.service import Logarithmic as Logarithmic
    from dgdlb_jax.model.service import ManyServer as ManyServer
    from dgdlb_jax.model.service import PerBackend as PerBackend
    from dgdlb_jax.model.service import Power as Power
    from dgdlb_jax.model.service import Replicas as Replicas
    from dgdlb_jax.model.service import ServiceFit as ServiceFit
    from dgdlb_jax.model.service import Tabulated as Tabulated
    from dgdlb_jax.model.service import concatenate as concatenate
    from dgdlb_jax.model.service import fit_service as fit_service
    from dgdlb_jax.model.service import register_curve as register_curve
    from dgdlb_jax.model.signals import Signals as Signals
    from dgdlb_jax.model.signals import signals as signals
    from dgdlb_jax.model.topologies import register_topology as register_topology
    from dgdlb_jax.numerics.delay import Checkpoints as Checkpoints
    from dgdlb_jax.numerics.delay import FullStorage as FullStorage
    from dgdlb_jax.numerics.results import ConvergenceError as ConvergenceError
    from dgdlb_jax.numerics.results import InputError as InputError
    from dgdlb_jax.numerics.results import Result as Result
    from dgdlb_jax.numerics.simplex import project_simplex as project_simplex
    from dgdlb_jax.numerics.simplex import project_tangent_cone as project_tangent_cone
    from dgdlb_jax.policies import DGDLB as DGDLB
    from dgdlb_jax.policies import AbstractFlowPolicy as AbstractFlowPolicy
    from dgdlb_jax.policies import AbstractHeldPolicy as AbstractHeldPolicy
    from dgdlb_jax.policies import AbstractInstantPolicy as AbstractInstantPolicy
    from dgdlb_jax.policies import CappedDGDLB as CappedDGDLB
    from dgdlb_jax.policies import CurvatureDGDLB as CurvatureDGDLB
    from dgdlb_jax.policies import DnsLatency as DnsLatency
    from dgdlb_jax.policies import EnvoyLoadAwareLocality as EnvoyLoadAwareLocality
    from dgdlb_jax.policies import FixedRouting as FixedRouting
    from dgdlb_jax.policies import GreatestMarginalRate as GreatestMarginalRate
    from dgdlb_jax.policies import HotCold as HotCold
    from dgdlb_jax.policies import KvCacheScorer as KvCacheScorer
    from dgdlb_jax.policies import LatencyObservationScorer as LatencyObservationScorer
    from dgdlb_jax.policies import LatencyScorer as LatencyScorer
    from dgdlb_jax.policies import LeadDGDLB as LeadDGDLB
    from dgdlb_jax.policies import LeastLatency as LeastLatency
    from dgdlb_jax.policies import LeastMarginalLatency as LeastMarginalLatency
    from dgdlb_jax.policies import LeastRequest as LeastRequest
    from dgdlb_jax.policies import LeastWorkload as LeastWorkload
    from dgdlb_jax.policies import LocalityFailover as LocalityFailover
    from dgdlb_jax.policies import LogDGDLB as LogDGDLB
    from dgdlb_jax.policies import MirrorDescent as MirrorDescent
    from dgdlb_jax.policies import Nearest as Nearest
    from dgdlb_jax.policies import Observation as Observation
    from dgdlb_jax.policies import OrcaWeights as OrcaWeights
    from dgdlb_jax.policies import PeakEWMA as PeakEWMA
    from dgdlb_jax.policies import PowerOfChoices as PowerOfChoices
    from dgdlb_jax.policies import ProportionalToCapacity as ProportionalToCapacity
    from dgdlb_jax.policies import ReciprocalDGDLB as ReciprocalDGDLB
    from dgdlb_jax.policies import SampledDGDLB as SampledDGDLB
    from dgdlb_jax.policies import ShortestExpectedDelay as ShortestExpectedDelay
    from dgdlb_jax.policies import Softmin as Softmin
    from dgdlb_jax.policies import Uniform as Uniform
    from dgdlb_jax.policies import WeightedLeastRequest as WeightedLeastRequest
    from dgdlb_jax.policies import autoscalers as autoscalers
    from dgdlb_jax.policies import estimates as estimates
    from dgdlb_jax.policies import register_policy as register_policy
    from dgdlb_jax.policies import spillover as spillover
    from dgdlb_jax.policies.autoscalers import HPA as HPA
    from dgdlb_jax.policies.autoscalers import AbstractContinuousAutoscaler as AbstractContinuousAutoscaler
    from dgdlb_jax.policies.autoscalers import AbstractSampledAutoscaler as AbstractSampledAutoscaler
    from dgdlb_jax.policies.autoscalers import Proportional as Proportional
    from dgdlb_jax.policies.autoscalers import register_autoscaler as register_autoscaler
    from dgdlb_jax.policies.base import least as least
    from dgdlb_jax.policies.estimates import estimated as estimated
    from dgdlb_jax.policies.latency import latency_as_seen as latency_as_seen
    from dgdlb_jax.reports import gallery as plots  # noqa: F401 - an alias of another name
    from dgdlb_jax.reports.export import write_export as write_export
    from dgdlb_jax.reports.reproduce import reproduce as reproduce
    from dgdlb_jax.reports.routing_csv import read_routing as read_routing
    from dgdlb_jax.reports.stability_text import stability_report as stability_report
    from dgdlb_jax.reports.text import report as report
    from dgdlb_jax.reports.text import table as table
    from dgdlb_jax.simulation.engine import simulate as simulate
    from dgdlb_jax.simulation.engine import simulate_batch as simulate_batch
    from dgdlb_jax.simulation.plan import Execution as Execution
    from dgdlb_jax.simulation.plan import Plan as Plan
    from dgdlb_jax.simulation.plan import plan as plan
    from dgdlb_jax.simulation.plugins import AbstractExtension as AbstractExtension
    from dgdlb_jax.simulation.plugins import AbstractStatistic as AbstractStatistic
    from dgdlb_jax.simulation.plugins import Maximum as Maximum
    from dgdlb_jax.simulation.plugins import Minimum as Minimum
    from dgdlb_jax.simulation.plugins import Observable as Observable
    from dgdlb_jax.simulation.plugins import TimeIntegral as TimeIntegral
    from dgdlb_jax.simulation.plugins import TimeMean as TimeMean
    from dgdlb_jax.simulation.plugins import View as View
    from dgdlb_jax.simulation.requests.engine import simulate_requests as simulate_requests
    from dgdlb_jax.simulation.requests.engine import simulate_requests_batch as simulate_requests_batch
    from dgdlb_jax.simulation.requests.trajectory import RequestTrajectory as RequestTrajectory
    from dgdlb_jax.simulation.statistics import Statistics as Statistics
    from dgdlb_jax.simulation.trajectory import SaveAt as SaveAt
    from dgdlb_jax.simulation.trajectory import SimulationState as SimulationState
    from dgdlb_jax.simulation.trajectory import Trajectory as Trajectory
    from dgdlb_jax.stability import conditions as conditions
    from dgdlb_jax.stability.best import BestStepSize as BestStepSize
    from dgdlb_jax.stability.best import best_step_size as best_step_size
    from dgdlb_jax.stability.critical import CriticalMode as CriticalMode
    from dgdlb_jax.stability.critical import count_unstable_roots as count_unstable_roots
    from dgdlb_jax.stability.critical import critical_mode as critical_mode
    from dgdlb_jax.stability.critical import critical_step_size as critical_step_size
    from dgdlb_jax.stability.defaults import default_step_size as default_step_size
    from dgdlb_jax.stability.defaults import drain_time as drain_time
    from dgdlb_jax.stability.defaults import slowest_decay_rate as slowest_decay_rate
    from dgdlb_jax.stability.defaults import suggest_dt as suggest_dt
    from dgdlb_jax.stability.defaults import suggest_duration as suggest_duration
    from dgdlb_jax.stability.held import HeldLoop as HeldLoop
    from dgdlb_jax.stability.held import held_loop as held_loop
    from dgdlb_jax.stability.linearise import Linearisation as Linearisation
    from dgdlb_jax.stability.linearise import linearise as linearise
    from dgdlb_jax.stability.noise import Noise as Noise
    from dgdlb_jax.stability.noise import noise as noise
    from dgdlb_jax.stability.noise_step_size import suggest_step_size as suggest_step_size
    from dgdlb_jax.stability.rest_point import RestPoint as RestPoint
    from dgdlb_jax.stability.rest_point import rest_point as rest_point
    from dgdlb_jax.stability.roots import Spectrum as Spectrum
    from dgdlb_jax.stability.roots import characteristic_roots as characteristic_roots
    from dgdlb_jax.stability.sufficient import sufficient_step_size as sufficient_step_size
    from dgdlb_jax.studies.assess import Assessment as Assessment
    from dgdlb_jax.studies.assess import assess as assess
    from dgdlb_jax.studies.balancers import BALANCERS as BALANCERS
    from dgdlb_jax.studies.claims import read_claims as read_claims
    from dgdlb_jax.studies.compare import Comparison as Comparison
    from dgdlb_jax.studies.compare import compare as compare
    from dgdlb_jax.studies.noise import stationary_latency as stationary_latency
    from dgdlb_jax.studies.stability import study_networks as study_networks
    from dgdlb_jax.studies.stability import tightness as tightness
    from dgdlb_jax.studies.sweep import open_sweep as open_sweep
    from dgdlb_jax.studies.sweep import sweep as sweep
    from dgdlb_jax.studies.sweep.measures import register_measure as register_measure

_HOME = {
    "stability.best": ("BestStepSize", "best_step_size"),
    "stability.sufficient": ("sufficient_step_size",),
    "stability.critical": ("CriticalMode", "count_unstable_roots", "critical_mode", "critical_step_size"),
    "gradients.marginal": ("MarginalLatency", "marginal_latency"),
    "stability.held": ("HeldLoop", "held_loop"),
    "stability.linearise": ("Linearisation", "linearise"),
    "equilibrium.optimum": ("Optimum", "solve_optimum"),
    "stability.noise": ("Noise", "noise"),
    "stability.noise_step_size": ("suggest_step_size",),
    "stability.rest_point": ("RestPoint", "rest_point"),
    "stability.roots": ("Spectrum", "characteristic_roots"),
    "equilibrium.prices": ("ShadowPrices", "shadow_prices"),
    "stability.defaults": ("default_step_size", "drain_time", "slowest_decay_rate", "suggest_dt", "suggest_duration"),
    "gradients.tuning": ("Tuned", "transient_latency", "tune"),
    "studies.compare": ("Comparison", "compare"),
    "studies.noise": ("stationary_latency",),
    "studies.sweep": ("open_sweep", "sweep"),
    "studies.sweep.measures": ("register_measure",),
    "model.demand": ("AbstractDemand", "Constant", "DailyCycle", "Jumps", "Trace"),
    "fleets": ("list_fleets", "load_autoscaler", "load_events", "load_fleet", "load_news"),
    "model.demand_kinds": ("register_demand",),
    "model.network": ("Network", "stack"),
    "model.signals": ("Signals", "signals"),
    "model.service": (
        "AbstractService", "Exponential", "Hyperbolic", "Logarithmic", "ManyServer", "PerBackend", "Power", "Replicas",
        "ServiceFit", "Tabulated", "concatenate", "fit_service", "register_curve",
    ),
    "model.topologies": ("register_topology",),
    "numerics.results": ("ConvergenceError", "InputError", "Result"),
    "numerics.simplex": ("project_simplex", "project_tangent_cone"),
    "policies": (
        "AbstractFlowPolicy", "AbstractHeldPolicy", "AbstractInstantPolicy", "CappedDGDLB", "CurvatureDGDLB",
        "DGDLB", "DnsLatency", "EnvoyLoadAwareLocality", "FixedRouting", "GreatestMarginalRate", "HotCold",
        "KvCacheScorer", "LatencyObservationScorer", "LatencyScorer", "LeadDGDLB", "LeastLatency",
        "LeastMarginalLatency", "LeastRequest", "LeastWorkload", "LocalityFailover", "LogDGDLB", "MirrorDescent",
        "Nearest", "Observation", "OrcaWeights", "PeakEWMA", "PowerOfChoices", "ProportionalToCapacity",
        "ReciprocalDGDLB", "SampledDGDLB", "ShortestExpectedDelay", "Softmin", "Uniform", "WeightedLeastRequest",
        "register_policy", "spillover",
    ),
    "equilibrium.at_rest": ("latency_at_rest",),
    "policies.autoscalers": (
        "AbstractContinuousAutoscaler", "AbstractSampledAutoscaler", "HPA", "Proportional", "register_autoscaler",
    ),
    "policies.base": ("least",),
    "policies.estimates": ("estimated",),
    "policies.latency": ("latency_as_seen",),
    "reports.export": ("write_export",),
    "reports.reproduce": ("reproduce",),
    "reports.routing_csv": ("read_routing",),
    "reports.stability_text": ("stability_report",),
    "reports.text": ("report", "table"),
    "studies.assess": ("Assessment", "assess"),
    "studies.balancers": ("BALANCERS",),
    "studies.claims": ("read_claims",),
    "studies.stability": ("study_networks", "tightness"),
    "simulation.engine": ("simulate", "simulate_batch"),
    "simulation.plan": ("Execution", "Plan", "plan"),
    "simulation.requests.engine": ("simulate_requests", "simulate_requests_batch"),
    "simulation.requests.trajectory": ("RequestTrajectory",),
    "numerics.delay": ("Checkpoints", "FullStorage"),
    "simulation.plugins": (
        "AbstractExtension", "AbstractStatistic", "Maximum", "Minimum", "Observable", "TimeIntegral", "TimeMean", "View",
    ),
    "simulation.statistics": ("Statistics",),
    "simulation.trajectory": ("SaveAt", "SimulationState", "Trajectory"),
}  # fmt: skip
_MODULE = {name: module for module, names in _HOME.items() for name in names}
_MODULES = {
    "autoscalers": "policies.autoscalers",
    "conditions": "stability.conditions",
    "estimates": "policies.estimates",
    "events": "model.events",
    "plots": "reports.gallery",
    "topologies": "model.topologies",
}

__all__ = sorted([*_MODULE, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


_ROOMS = ("equilibrium", "fleets", "gradients", "model", "policies", "reports", "simulation", "stability", "studies")
"""Packages that are loaded when somebody asks for them."""


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        value = importlib.import_module(f"{__name__}.{name}")
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    elif name in _MODULE:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
