"""How frontends route: one interface, many members. Classes are loaded on first use; `registry` knows them by name.

| family | `--policies` | what a frontend looks at |
|---|---|---|
| static | `uniform`, `proportional`, `nearest`, `spillover`, `oracle` (the optimum itself) | nothing that changes |
| by queue | `least-workload`, `shortest-delay`, `two-choices` | workloads, as old as the feedback latency |
| by own requests | `least-request`, `weighted-least-request` (Envoy), `peak-ewma` (Finagle) | what it has under way itself |
| by latency | `least-latency`, `prequal` (hot and cold) | workload over throughput, plus the network |
| by margin | `gmsr`, `gmsr-network`, `softmin` | what one more request would cost |
| gradient | `dgd-lb`, `sampled-dgd-lb` (once a second), `mirror-descent`, `log-dgd-lb` | the same, followed step by step |
| by reports | `envoy-load-aware`, `orca-weights` (gRPC, Envoy) | what backends report every so often, averaged and held |
| by score (llm-d) | `latency-scorer`, `latency-observation-scorer`, `kv-cache-scorer` | an objective, answers to its own requests, caches |
| by health | `locality-failover` (Envoy, Istio), `dns-latency` (Route 53) | what is near, and not down |
| ahead | `lead-dgd-lb` | the same, extrapolated to now |
| safer | `reciprocal-dgd-lb`, `curvature-dgd-lb`, `capped-dgd-lb` | the same, in other steps |

Rules are fluid: shares instead of single requests, expectations instead of chance. Rules that jump have no gradient and say so;
`Softmin` is their smooth relative. What frontends see may be estimated: averages, learnt curves, regressions, a lead, reports that
are read every so often (`estimates`).
"""

import importlib
from typing import TYPE_CHECKING, Any

from dgdlb_jax.policies.registry import POLICIES as POLICIES
from dgdlb_jax.policies.registry import register_policy as register_policy

if TYPE_CHECKING:
    from dgdlb_jax.policies.base import AbstractFlowPolicy as AbstractFlowPolicy
    from dgdlb_jax.policies.base import AbstractInstantPolicy as AbstractInstantPolicy
    from dgdlb_jax.policies.base import AbstractPolicy as AbstractPolicy
    from dgdlb_jax.policies.base import Observation as Observation
    from dgdlb_jax.policies.estimates.lead import LeadDGDLB as LeadDGDLB
    from dgdlb_jax.policies.failover import DnsLatency as DnsLatency
    from dgdlb_jax.policies.failover import LocalityFailover as LocalityFailover
    from dgdlb_jax.policies.gradient import DGDLB as DGDLB
    from dgdlb_jax.policies.greedy import GreatestMarginalRate as GreatestMarginalRate
    from dgdlb_jax.policies.greedy import LeastMarginalLatency as LeastMarginalLatency
    from dgdlb_jax.policies.greedy import LeastWorkload as LeastWorkload
    from dgdlb_jax.policies.greedy import PowerOfChoices as PowerOfChoices
    from dgdlb_jax.policies.greedy import ShortestExpectedDelay as ShortestExpectedDelay
    from dgdlb_jax.policies.held import AbstractHeldPolicy as AbstractHeldPolicy
    from dgdlb_jax.policies.latency import HotCold as HotCold
    from dgdlb_jax.policies.latency import LeastLatency as LeastLatency
    from dgdlb_jax.policies.locality import EnvoyLoadAwareLocality as EnvoyLoadAwareLocality
    from dgdlb_jax.policies.observed import LatencyObservationScorer as LatencyObservationScorer
    from dgdlb_jax.policies.orca import OrcaWeights as OrcaWeights
    from dgdlb_jax.policies.requests import LeastRequest as LeastRequest
    from dgdlb_jax.policies.requests import PeakEWMA as PeakEWMA
    from dgdlb_jax.policies.requests import WeightedLeastRequest as WeightedLeastRequest
    from dgdlb_jax.policies.safe import CappedDGDLB as CappedDGDLB
    from dgdlb_jax.policies.safe import CurvatureDGDLB as CurvatureDGDLB
    from dgdlb_jax.policies.safe import LogDGDLB as LogDGDLB
    from dgdlb_jax.policies.safe import ReciprocalDGDLB as ReciprocalDGDLB
    from dgdlb_jax.policies.sampled import SampledDGDLB as SampledDGDLB
    from dgdlb_jax.policies.scorer import KvCacheScorer as KvCacheScorer
    from dgdlb_jax.policies.scorer import LatencyScorer as LatencyScorer
    from dgdlb_jax.policies.smooth import MirrorDescent as MirrorDescent
    from dgdlb_jax.policies.smooth import Softmin as Softmin
    from dgdlb_jax.policies.static import FixedRouting as FixedRouting
    from dgdlb_jax.policies.static import Nearest as Nearest
    from dgdlb_jax.policies.static import ProportionalToCapacity as ProportionalToCapacity
    from dgdlb_jax.policies.static import Uniform as Uniform
    from dgdlb_jax.policies.static import spillover as spillover

_HOME = {"AbstractFlowPolicy": "base", "AbstractInstantPolicy": "base", "AbstractPolicy": "base", "Observation": "base"}
_HOME |= {"spillover": "static", "AbstractHeldPolicy": "held"}
_HOME |= {name: module for module, name in (str(entry.policy).split(":") for entry in POLICIES.values())}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    return value
