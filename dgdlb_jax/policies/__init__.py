"""How frontends route: one interface, many members."""

from dgdlb_jax.policies.base import AbstractFlowPolicy as AbstractFlowPolicy
from dgdlb_jax.policies.base import AbstractInstantPolicy as AbstractInstantPolicy
from dgdlb_jax.policies.base import AbstractPolicy as AbstractPolicy
from dgdlb_jax.policies.base import Observation as Observation
from dgdlb_jax.policies.gradient import DGDLB as DGDLB
from dgdlb_jax.policies.greedy import GreatestMarginalRate as GreatestMarginalRate
from dgdlb_jax.policies.greedy import LeastWorkload as LeastWorkload
from dgdlb_jax.policies.latency import LeastLatency as LeastLatency
from dgdlb_jax.policies.safe import CappedDGDLB as CappedDGDLB
from dgdlb_jax.policies.safe import CurvatureDGDLB as CurvatureDGDLB
from dgdlb_jax.policies.safe import LogDGDLB as LogDGDLB
from dgdlb_jax.policies.safe import ReciprocalDGDLB as ReciprocalDGDLB
from dgdlb_jax.policies.sampled import SampledDGDLB as SampledDGDLB
from dgdlb_jax.policies.static import FixedRouting as FixedRouting
from dgdlb_jax.policies.static import Nearest as Nearest
from dgdlb_jax.policies.static import ProportionalToCapacity as ProportionalToCapacity
from dgdlb_jax.policies.static import Uniform as Uniform
