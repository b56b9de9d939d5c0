"""All policies by name: the command line, tables, pictures, sweeps, claims and tests read them from here.

Nothing heavy is loaded for it: a class of the package is given by the module that holds it.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dgdlb_jax.numerics.registry import Registry, check_class
from dgdlb_jax.numerics.text import did_you_mean

if TYPE_CHECKING:
    from dgdlb_jax.policies.base import AbstractPolicy

Kind = Literal["gradient", "rival", "static", "reference"]
"""Rules that follow the gradient as DGD-LB does; rules that follow something else; fixed routings; what others are measured by."""
Recipe = str | Callable[[Any, Any, Any], "AbstractPolicy"]

RECIPES = (
    "no parameters",
    "step size",
    "twice the step size",
    "step size and round trip",
    "every second",
    "curvature",
    "capped speed",
    "softmin",
    "hosts",
    "slots",
    "empty backends",
    "spillover",
    "optimum",
)
"""Names of the ways to choose the parameters of a policy for a network; `studies.balancers` has the functions."""


@dataclass(frozen=True)
class Entry:
    """One policy.

    - `key`: on the command line and in sweeps. `label`: in tables and pictures.
    - `policy`: the class, or `module:class` in this package.
    - `recipe`: how its parameters are chosen for a network: one of `RECIPES`, or a function
      `(network, optimum, step_size) -> policy`.
    - `usual`: whether a comparison runs it when nothing else is asked for.
    """

    key: str
    label: str
    policy: "str | type[AbstractPolicy]"
    recipe: Recipe = "no parameters"
    kind: Kind = "rival"
    usual: bool = False

    def load(self) -> "type[AbstractPolicy]":
        """The class."""
        if not isinstance(self.policy, str):
            return self.policy
        module, name = self.policy.split(":")
        return getattr(importlib.import_module(f"dgdlb_jax.policies.{module}"), name)


POLICIES: Registry[Entry] = Registry(
    "policy",
    (
        Entry("dgd-lb", "DGD-LB", "gradient:DGDLB", "step size", "gradient", usual=True),
        Entry("least-latency", "least latency", "latency:LeastLatency", usual=True),
        Entry("gmsr", "GMSR", "greedy:GreatestMarginalRate", usual=True),
        Entry("least-workload", "least workload", "greedy:LeastWorkload", usual=True),
        Entry("proportional", "proportional", "static:ProportionalToCapacity", kind="static", usual=True),
        Entry("uniform", "uniform", "static:Uniform", kind="static", usual=True),
        Entry("nearest", "nearest", "static:Nearest", kind="static", usual=True),
        Entry("mirror-descent", "mirror descent", "smooth:MirrorDescent", "twice the step size", "gradient"),
        Entry("sampled-dgd-lb", "DGD-LB every second", "sampled:SampledDGDLB", "every second", "gradient"),
        Entry("log-dgd-lb", "DGD-LB, log", "safe:LogDGDLB", "step size", "gradient"),
        Entry("lead-dgd-lb", "DGD-LB, lead", "estimates.lead:LeadDGDLB", "step size and round trip", "gradient"),
        Entry("reciprocal-dgd-lb", "DGD-LB, reciprocal", "safe:ReciprocalDGDLB", "step size", "gradient"),
        Entry("curvature-dgd-lb", "DGD-LB, curvature", "safe:CurvatureDGDLB", "curvature", "gradient"),
        Entry("capped-dgd-lb", "DGD-LB, capped speed", "safe:CappedDGDLB", "capped speed", "gradient"),
        Entry("softmin", "softmin", "smooth:Softmin", "softmin"),
        Entry("gmsr-network", "GMSR + network", "greedy:LeastMarginalLatency"),
        Entry("peak-ewma", "peak EWMA", "requests:PeakEWMA"),
        Entry("prequal", "Prequal hot-cold", "latency:HotCold"),
        Entry("shortest-delay", "shortest expected delay", "greedy:ShortestExpectedDelay"),
        Entry("two-choices", "two choices", "greedy:PowerOfChoices"),
        Entry("least-request", "least request", "requests:LeastRequest"),
        Entry("weighted-least-request", "weighted least request", "requests:WeightedLeastRequest"),
        Entry("envoy-load-aware", "Envoy load-aware locality", "locality:EnvoyLoadAwareLocality", "hosts"),
        Entry("orca-weights", "ORCA weights", "orca:OrcaWeights", "slots"),
        Entry("latency-scorer", "latency scorer (llm-d)", "scorer:LatencyScorer"),
        Entry("kv-cache-scorer", "KV-cache scorer (llm-d)", "scorer:KvCacheScorer", "hosts"),
        Entry(
            "latency-observation-scorer",
            "latency observation (llm-d)",
            "observed:LatencyObservationScorer",
            "empty backends",
        ),
        Entry("locality-failover", "locality failover", "failover:LocalityFailover", kind="static"),
        Entry("dns-latency", "DNS latency", "failover:DnsLatency", kind="static"),
        Entry("spillover", "spillover", "static:FixedRouting", "spillover", "static"),
        Entry("oracle", "optimum (oracle)", "static:FixedRouting", "optimum", "reference"),
    ),
)
"""Every policy by its key. The order is that of tables and pictures."""


def register_policy(
    key: str,
    policy: "type[AbstractPolicy]",
    *,
    label: str | None = None,
    recipe: Recipe = "no parameters",
    kind: Kind = "rival",
) -> None:
    """Make a policy known by name: `compare(network, ["dgd-lb", key])`, `policy = key` in a sweep, `--policies key`.

    **Arguments:**

    - `key`: what it is asked for by. `label`: what tables and pictures call it; the key by default.
    - `policy`: a class derived from `AbstractFlowPolicy` or `AbstractInstantPolicy`.
    - `recipe`: `"no parameters"` calls the class without arguments, `"step size"` with the step size of DGD-LB in 1/s^2; or a
      function `(network, optimum, step_size) -> policy` for one network or a batch.
    - `kind`: `"gradient"` for a relative of DGD-LB, `"rival"`, `"static"` or `"reference"`.

    **Raises:** `InputError` for a key of a built-in policy, a label that is taken, a recipe that does not exist, or what is no policy.
    """
    from dgdlb_jax.numerics.results import InputError  # late, as they load JAX
    from dgdlb_jax.policies.base import AbstractPolicy

    if isinstance(recipe, str) and recipe not in RECIPES:
        hint = did_you_mean(recipe, RECIPES, ".")
        raise InputError(
            f"The policy {key!r} has the recipe {recipe!r}: choose from {', '.join(RECIPES)}, or give a function{hint}"
        )
    check_class("register_policy", policy, AbstractPolicy)
    label = key if label is None else label
    if any(entry.label == label for entry in POLICIES.values() if entry.key != key):
        raise InputError(f"register_policy: another policy has the label {label!r}: choose another one.")
    POLICIES.register(Entry(key, label, policy, recipe, kind))
