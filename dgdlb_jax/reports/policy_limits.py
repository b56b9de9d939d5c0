"""The limit of any balancer by its name, as far as there is one: which analysis it takes, and a sentence where there is none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import number, ranging, seconds
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.policies.estimates.policy import EstimatedFlow
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.policies.observed import LatencyObservationScorer
from dgdlb_jax.policies.registry import POLICIES
from dgdlb_jax.policies.sampled import SampledDGDLB
from dgdlb_jax.policies.smooth import Softmin
from dgdlb_jax.reports.held_text import HeldReport, held_report
from dgdlb_jax.reports.news_text import NewsReport, simulated_document, simulated_words
from dgdlb_jax.reports.observed_text import SlidingReport
from dgdlb_jax.reports.softmin_text import SoftminReport
from dgdlb_jax.reports.stability_text import StabilityReport, nullified
from dgdlb_jax.stability.critical import CriticalMode, critical_mode
from dgdlb_jax.stability.defaults import default_step_size
from dgdlb_jax.stability.observed import slow_loop
from dgdlb_jax.studies.balancers import BALANCERS, check_keys
from dgdlb_jax.studies.news import news_limit
from dgdlb_jax.studies.onset import Onset, simulated_onset
from dgdlb_jax.studies.settings import with_settings
from dgdlb_jax.studies.softmin import softmin_stability


@runtime_checkable
class Report(Protocol):
    """What the command line prints and writes."""

    def text(self) -> str:
        """What a person reads."""
        ...

    def document(self) -> dict[str, Any]:
        """What a script reads."""
        ...


@dataclass(frozen=True)
class FactorReport:
    """How many times faster than in `dgdlb run` a rule that follows the gradient may be: exact, near the optimum."""

    network: Network
    label: str
    policy: AbstractPolicy
    optimum: Optimum
    mode: CriticalMode
    simulated: Onset | None

    @property
    def limited(self) -> bool:
        """Whether there is a limit."""
        return math.isfinite(float(self.mode.step_size))

    def text(self) -> str:
        """One sentence."""
        begin = f"{self.network.name or 'network'}: {self.label}"
        factor = float(self.mode.step_size)
        if not self.limited:
            return f"{begin}: no limit: nothing in the network delays a loop"
        ruled = self.policy.policy if isinstance(self.policy, EstimatedFlow) else self.policy
        sizes = np.asarray(getattr(ruled, "step_size", np.nan))
        now = f" (now {ranging(float(sizes.min()), float(sizes.max()))} 1/s^2)" if np.isfinite(sizes).all() else ""
        beyond = f"beyond it swings with a period of {seconds(float(self.mode.period))}"
        return f"{begin}, limit of step_size{now}: {number(factor)} times that; {beyond}; {simulated_words(self.simulated)}"

    def document(self) -> dict[str, Any]:
        """Null where there is no limit."""
        found = {"fleet": self.network.name, "policy": self.label, "limit_over_now": float(self.mode.step_size)}
        found |= {"period": float(self.mode.period), "units": {"time": "s"}}
        return nullified(found | simulated_document(self.simulated))


@dataclass(frozen=True)
class NoLimit:
    """A rule without a loop."""

    network: Network
    label: str

    def text(self) -> str:
        """One sentence."""
        return f"{self.network.name or 'network'}: {self.label} looks at no load: there is no loop, hence no limit, and nothing swings"

    def document(self) -> dict[str, Any]:
        """Null, with the reason."""
        reason = {"limit_over_now": "looks at no load"}
        return {"fleet": self.network.name, "policy": self.label, "limit_over_now": None, "null_because": reason}


def policy_report(network: Network, key: str, settings: Mapping[str, str], news: Scraped | None = None) -> Report:
    """The limit of a balancer with the parameters of `dgdlb run`, but for the settings given.

    **Arguments:** a single `network`; `key` of `BALANCERS`; `settings`: name -> value as text; `news`: how frontends get their reports.

    **Raises:** `InputError` for an unknown key or setting, and for a rule that jumps: simulate it.
    """
    require_single(network, "policy_report")
    check_keys([key])
    require_traffic(network)
    label = BALANCERS[key].label
    made = partial(_with_settings, network, key, settings)
    draft = made(_equal_split(network), jnp.ones(()))  # complaints come before any work
    if news is not None and isinstance(draft, AbstractHeldPolicy | SampledDGDLB):
        knob = draft.period_knob if isinstance(draft, AbstractHeldPolicy) else "interval"
        raise InputError(
            f"{label} reads its reports at a period of its own ({knob}), and its limit is known where they are there at once: give "
            "--news none, or dgdlb run to simulate both."
        )
    looks_at_no_load = POLICIES[key].kind in ("static", "reference")
    if news is not None and isinstance(draft, Softmin):
        raise InputError(
            f"{label} does not rest at the optimum, which limits behind reports that are held are computed at: give --news none, or "
            "dgdlb run to simulate both."
        )
    if isinstance(draft, LatencyObservationScorer):  # it measures answers, no reports
        return SlidingReport(network, label, slow_loop(network, draft))
    if not (isinstance(draft, AbstractHeldPolicy | Softmin) or looks_at_no_load):
        _check_limit(network, label, draft, key)
    optimum = solve_optimum(network)
    older = 0.0 if news is None else news.oldest
    policy = made(optimum, default_step_size(network, optimum, averaging=older))
    if isinstance(policy, AbstractHeldPolicy):
        return held_report(network, policy, label)
    if isinstance(policy, Softmin):
        return SoftminReport(label, softmin_stability(network, policy, optimum))
    if looks_at_no_load:
        return NoLimit(network, label)
    if news is not None:
        return NewsReport(label, news_limit(network, policy, news, optimum), optimum)
    mode = critical_mode(network, policy, optimum)
    limit, period, simulated = float(mode.step_size), float(mode.period), None
    if math.isfinite(limit) and limit > 0:
        simulated = simulated_onset(network, policy, optimum, limit, period)
    return FactorReport(network, label, policy, optimum, mode, simulated)


def _with_settings(
    network: Network, key: str, settings: Mapping[str, str], optimum: Any, step_size: Float[Array, " *frontends"]
) -> AbstractPolicy:
    policy = BALANCERS[key].make(network, optimum, step_size)
    return with_settings(policy, settings) if settings else policy


def _equal_split(network: Network) -> Any:
    """What a policy may look at in an optimum, of the equal split: enough to learn whether a policy can be made at all."""
    mask = jnp.asarray(network.mask, network.latency.dtype)
    return SimpleNamespace(routing=mask / mask.sum(-1, keepdims=True), workload=jnp.ones(network.backends))


def _check_limit(network: Network, label: str, policy: AbstractPolicy, key: str) -> None:
    """Raise `InputError` for a rule whose limit is not known at the optimum."""
    simulate = f"dgdlb run {network.name or 'FLEET'} --policies {key} shows what it does."
    if not isinstance(policy, AbstractFlowPolicy):
        raise InputError(
            f"{label} jumps from one routing to another, so it has no limit that could be computed: {simulate}"
        )
    if POLICIES[key].kind != "gradient":
        raise InputError(f"{label} does not rest at the optimum, which its limit would be computed at: {simulate}")


def drawable(report: Report) -> bool:
    """Whether there is a picture of it."""
    if isinstance(report, HeldReport):
        return bool(report.found.limits)
    if isinstance(report, FactorReport):  # a rule with a period of its own has no limit behind reports with another one
        return report.limited and not isinstance(report.policy, SampledDGDLB)
    return isinstance(report, StabilityReport | SoftminReport) or (
        isinstance(report, NewsReport) and math.isfinite(report.found.factor)
    )


def save_pictures(report: Report, folder: Path) -> list[Path]:
    """What there is to draw of a report, written into a folder. **Returns:** the paths."""
    from dgdlb_jax.reports.held_plots import save_stable_region  # late: they load matplotlib
    from dgdlb_jax.reports.onset import save_step_size_region
    from dgdlb_jax.reports.softmin_plots import save_softmin_region
    from dgdlb_jax.reports.stability_plots import save_stability_pictures

    if not drawable(report):
        return []
    if isinstance(report, StabilityReport):
        return save_stability_pictures(report, folder)
    if isinstance(report, SoftminReport):
        return save_softmin_region(report, folder)
    if isinstance(report, FactorReport):
        case = report.network, report.policy, report.optimum, report.label, float(report.mode.period)
        return save_step_size_region(folder, *case, onset=report.simulated)
    if isinstance(report, NewsReport):
        found = report.found
        case = found.network, found.policy, report.optimum, report.label, found.period
        return save_step_size_region(folder, *case, news=found.news, onset=found.simulated)
    return save_stable_region(report, folder) if isinstance(report, HeldReport) else []
