"""How many replicas a backend has: autoscalers, a loop of their own beside the balancer's.

| `kind` in a fleet file | class | how it acts |
|---|---|---|
| `hpa` | `HPA` | Kubernetes' autoscaler, every 15 s, rounded, with tolerance, stabilisation and rates |
| `proportional` | `Proportional` | all the time, in proportion to what is missing: smooth |

`simulate(network, policy, autoscaler=HPA(0.7, startup=120.0))`: see `base` for what a rule is, and how to add one.
"""

from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler as AbstractAutoscaler
from dgdlb_jax.policies.autoscalers.base import AbstractContinuousAutoscaler as AbstractContinuousAutoscaler
from dgdlb_jax.policies.autoscalers.base import AbstractSampledAutoscaler as AbstractSampledAutoscaler
from dgdlb_jax.policies.autoscalers.base import Measured as Measured
from dgdlb_jax.policies.autoscalers.hpa import HPA as HPA
from dgdlb_jax.policies.autoscalers.hpa import Behavior as Behavior
from dgdlb_jax.policies.autoscalers.hpa import Rate as Rate
from dgdlb_jax.policies.autoscalers.proportional import Proportional as Proportional
from dgdlb_jax.policies.autoscalers.registry import AUTOSCALERS as AUTOSCALERS
from dgdlb_jax.policies.autoscalers.registry import register_autoscaler as register_autoscaler
