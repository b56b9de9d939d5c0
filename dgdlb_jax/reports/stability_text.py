"""What an engineer wants to know before choosing a step size: limits, what sets them, and what one would see beyond them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.reports.text_table import columns
from dgdlb_jax.stability import conditions
from dgdlb_jax.stability.critical import CriticalMode, critical_mode
from dgdlb_jax.stability.linearise import Linearisation, linearise
from dgdlb_jax.stability.roots import Spectrum, characteristic_roots
from dgdlb_jax.stability.sensitivity import limit_elasticities
from dgdlb_jax.stability.sufficient import sufficient_step_size
from dgdlb_jax.studies.assess import Setup, assess, set_up
from dgdlb_jax.studies.outcome import backend_names, frontend_names
from dgdlb_jax.studies.time_steps import usual_step
from dgdlb_jax.studies.verdict import Verdict

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
"""Parts of the critical step size that are tried from the run's own start."""
STEP_SIZES = "step sizes in 1/s^2; critical: all frontends sped up in proportion"
_SLOW = 2  # of them: the slower the longer the run, so these are tried only if the next one fails
_PATIENCE = 4.0  # seconds that runs of a few step sizes side by side may take


@dataclass(frozen=True)
class StabilityReport:
    """Stability of DGD-LB in one network. Step sizes `(frontends,)` in 1/s^2.

    - `recommended`: `default_step_size`. `guaranteed`: proven stable near the optimum by the rule named in `rule`; NaN where no rule
      holds. `critical`: exact limit when all frontends are sped up in proportion to the recommended step sizes; inf without one.
    - `limiting`: per frontend the backend whose link sets the guaranteed step size; -1 for frontends without a choice at the optimum.
    - `mode`: the oscillation at the critical step sizes. `spectrum`: roots at the recommended ones; None for a network too large,
      and `no_spectrum` then says so.
    - `by_link` `(frontends, backends)`, `by_backend` `(backends,)`: elasticities of the limit: per cent of change per per cent of
      latency, and of capacity.
    - `chosen`: "recommended", or "given" when the step sizes in `recommended` were.
    - `settled`: the largest fraction of `critical` tried (of `FRACTIONS`) up to which every run from `start` that could be waited for
      came within 1 % of the optimum and stayed (the two slowest are tried only if no faster one arrives); 0 if none, NaN if there is
      no limit or no run could be waited for.
    """

    network: Network
    optimum: Optimum
    linear: Linearisation
    recommended: Float[np.ndarray, " frontends"]
    guaranteed: Float[np.ndarray, " frontends"]
    critical: Float[np.ndarray, " frontends"]
    rule: str
    limiting: np.ndarray
    mode: CriticalMode
    spectrum: Spectrum | None
    by_link: Float[np.ndarray, "frontends backends"]
    by_backend: Float[np.ndarray, " backends"]
    start: str
    settled: float
    chosen: str = "recommended"
    no_spectrum: str = ""

    @property
    def factor(self) -> float:
        """How many times faster than recommended the fleet may be before it oscillates; inf if there is no limit."""
        return float(self.mode.step_size)

    def text(self) -> str:
        """What a person reads."""
        return "\n\n".join([self.summary(), _table(self)])

    def summary(self) -> str:
        """The same without the table."""
        return "\n".join(_headlines(self))

    def table_cells(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Header and rows of the table of step sizes, a row per frontend."""
        names = backend_names(self.network)
        header = ("frontend", self.chosen, "guaranteed", "critical", "limited by link to")
        rows = []
        for i, name in enumerate(frontend_names(self.network)):
            j = self.limiting[i]
            values = (self.recommended[i], self.guaranteed[i], self.critical[i])
            shown = [number(value) if math.isfinite(value) else "none" for value in values]
            rows.append((name, *shown, names[j] if j >= 0 else "(one backend at the optimum)"))
        return header, rows

    def document(self) -> dict[str, Any]:
        """What a script reads: plain numbers, null where there is none, with the reason beside."""
        return _document(self)


def stability_report(
    network: Network,
    *,
    step_size: ArrayLike | None = None,
    start: str = "proportional",
    from_start: bool = True,
) -> StabilityReport:
    """Assess the stability of DGD-LB in a network at its mean rates.

    **Arguments:** a single `network`; `step_size`: 1/s^2, `default_step_size` by default; `start`:
    where the runs of `settled` begin, as for `compare`; `from_start`: whether to make them.

    **Returns:** a `StabilityReport`.

    **Raises:** `InputError` when there is no demand or it exceeds capacity, or for an unknown start.
    """
    require_single(network, "stability_report")
    require_traffic(network)
    network = network.with_arrival_rate(network.arrival_rate)
    setup = set_up(network, step_size=step_size, start=start)
    optimum, step = setup.optimum, setup.step_size
    mode = critical_mode(network, DGDLB(step), optimum)
    guaranteed, rule = _guaranteed(network, optimum)
    linear = linearise(network, DGDLB(step), optimum)
    spectrum, no_spectrum = _spectrum(network, DGDLB(step), optimum)
    by_link, by_backend = limit_elasticities(network, step, optimum, mode)
    return StabilityReport(
        network=network,
        optimum=optimum,
        linear=linear,
        recommended=np.asarray(step),
        guaranteed=guaranteed,
        critical=np.asarray(step) * float(mode.step_size)
        if np.isfinite(mode.step_size)
        else np.full(step.shape, np.inf),
        rule=rule,
        limiting=_limiting(network, linear),
        mode=mode,
        spectrum=spectrum,
        by_link=by_link,
        by_backend=by_backend,
        start=start,
        settled=_settled(setup, float(mode.step_size)) if from_start else float("nan"),
        chosen="recommended" if step_size is None else "given",
        no_spectrum=no_spectrum,
    )


def _spectrum(network: Network, policy: DGDLB, optimum: Optimum) -> tuple[Spectrum | None, str]:
    """The rightmost roots, or why there are none: everything else is known without them."""
    try:
        return characteristic_roots(network, policy, optimum), ""
    except InputError as refusal:
        return None, str(refusal)


def _guaranteed(network: Network, optimum: Optimum) -> tuple[np.ndarray, str]:
    for rule in (conditions.distributed, conditions.distributed_a):
        try:
            return np.asarray(sufficient_step_size(network, optimum, condition=rule)), rule.__name__
        except InputError:
            continue
    return np.full(network.frontends, np.nan), "none holds: feedback and forward latencies differ"


def _limiting(network: Network, linear: Linearisation) -> np.ndarray:
    """The arc on which own round trip times gain is largest, per frontend with a choice."""
    on = np.asarray(linear.support)
    total = np.where(on, np.asarray(linear.arrival_rate)[:, None], 0).sum(0)
    trip = np.asarray(network.latency + network.feedback_latency)
    gain, slope = (np.where(on.any(0), value, 1) for value in (linear.gain, linear.slope))  # a dead backend has neither
    load = np.where(on, trip * (gain / slope) * total, -1.0)
    return np.where(on.any(1), load.argmax(1), -1)


def _settled(setup: Setup, factor: float) -> float:
    """The largest tried fraction of the limit up to which every run arrives; slow ones are not asked where a faster one does.

    Runs that are cut short and still on their way decide nothing; NaN when all of them do.
    """
    if not math.isfinite(factor):
        return float("nan")
    undecided = True
    for tried in (FRACTIONS[_SLOW:], FRACTIONS[:_SLOW]):
        arrived, failed = _arrived([replace(setup, step_size=part * factor * setup.step_size) for part in tried])
        good = arrived[: int(np.argmax(failed)) if failed.any() else len(tried)]
        if good.any():
            return tried[int(np.flatnonzero(good)[-1])]
        undecided &= not failed.any()
    return float("nan") if undecided else 0.0


def _arrived(setups: list[Setup]) -> tuple[np.ndarray, np.ndarray]:
    """Which step sizes bring the network within 1 % of the optimum and keep it there, and which do not however long one waits."""
    network, policies = setups[0].networks, [DGDLB(one.step_size) for one in setups]
    wanted = np.array([float(one.settling) for one in setups])
    dt = np.array([float(one.time_step(policy)) for one, policy in zip(setups, policies, strict=True)])
    duration = np.minimum(wanted, dt * patience(_PATIENCE) / usual_step(len(setups) * network.latency.size))
    together = lambda *leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    policy, optimum, start = (
        jax.tree.map(together, *each) for each in (policies, [s.optimum for s in setups], [s.initial for s in setups])
    )
    found = assess(stack([network] * len(setups)), policy, optimum=optimum, start=start, dt=dt, duration=duration)
    arrived = found.arrived()
    waiting = (duration < wanted) & (found.undecided | (found.verdict == Verdict.settled))
    return arrived, ~arrived & ~waiting


def _headlines(report: StabilityReport) -> list[str]:
    network = report.network
    moving = int(np.asarray(report.linear.support).any(1).sum())
    lines = [
        f"{network.name or 'network'}: {moving} of {network.frontends} frontends use two backends or more at the optimum"
    ]
    if not math.isfinite(report.factor):
        lines.append(f"no limit: {_no_limit(report)}")
    else:
        lines.append(
            f"limit: {number(report.factor)} times the {report.chosen} step sizes; beyond it an oscillation with a period of "
            f"{seconds(float(report.mode.period))}: {_who(report)}"
        )
        lines.append(f"what sets it: {_causes(report)}")
    lines.append(_decay(report))
    if math.isfinite(report.settled):
        tried = f"from {report.start} routing"
        lines.append(
            f"{tried}: settles up to {number(report.settled)} of the limit, the largest tried up to which all do"
            if report.settled > 0
            else f"{tried}: no run settled, down to {FRACTIONS[0]} of the limit"
        )
    region = float(report.linear.linear_region)
    if region < 0.1:
        lines.append(
            f"caution: all this holds near the optimum; a workload {100 * region:.2g} % away from it already brings another arc into use"
        )
    lines.append(f"guaranteed: near the optimum, by the rule '{report.rule}'")
    return lines


def _no_limit(report: StabilityReport) -> str:
    if not bool(np.asarray(report.linear.support).any()):
        return "no frontend has two active backends at the optimum"
    return "no latency delays the loop"


def _who(report: StabilityReport) -> str:
    """Who swings against whom: backends by the sign of their phase."""
    shape, names = np.asarray(report.mode.workload), backend_names(report.network)
    strong = np.flatnonzero(np.abs(shape) > 0.3)
    first = [names[j] for j in strong if shape[j].real >= 0]
    second = [names[j] for j in strong if shape[j].real < 0]
    return " and ".join(first) + (f" against {' and '.join(second)}" if second else "")


def _causes(report: StabilityReport) -> str:
    fronts, backs = frontend_names(report.network), backend_names(report.network)
    i, j = np.unravel_index(np.argmin(report.by_link), report.by_link.shape)
    k = int(np.argmax(np.abs(report.by_backend)))
    link, backend = report.by_link[i, j], report.by_backend[k]
    return f"link {fronts[i]} - {backs[j]} ({link:+.2g} % per % of latency) and backend {backs[k]} ({backend:+.2g} % per % of capacity)"


def _decay(report: StabilityReport) -> str:
    if report.spectrum is None:
        return f"how fast small deviations die out is not known: {report.no_spectrum}"
    settling, period = float(report.spectrum.settling_time), float(report.spectrum.period)
    swinging = f"swinging with a period of {seconds(period)}" if math.isfinite(period) else "without swinging"
    return f"at the {report.chosen} step sizes small deviations fall to 1 % in {seconds(settling)}, {swinging}"


def _table(report: StabilityReport) -> str:
    return f"{columns(*report.table_cells(), right=(1, 2, 3))}\n{STEP_SIZES}"


def _document(report: StabilityReport) -> dict[str, Any]:
    fronts, backs = frontend_names(report.network), backend_names(report.network)
    found: dict[str, Any] = {
        "fleet": report.network.name,
        "limit_over_recommended": report.factor,
        "period": float(report.mode.period),
        "settling_time": math.nan if report.spectrum is None else float(report.spectrum.settling_time),
        "abscissa": math.nan if report.spectrum is None else float(report.spectrum.abscissa),
        "largest_settled_fraction": report.settled,
        "start": report.start,
        "linear_region": float(report.linear.linear_region),
        "neutral_directions": int(report.linear.neutral),
        "rule": report.rule,
        "frontends": {},
        "limit_per_link_latency": {
            f: {b: float(report.by_link[i, j]) for j, b in enumerate(backs)} for i, f in enumerate(fronts)
        },
        "limit_per_capacity": {b: float(report.by_backend[j]) for j, b in enumerate(backs)},
        "units": {"step_size": "1/s^2", "time": "s"},
    }
    for i, name in enumerate(fronts):
        j = int(report.limiting[i])
        found["frontends"][name] = {
            "recommended": float(report.recommended[i]),
            "guaranteed": float(report.guaranteed[i]),
            "critical": float(report.critical[i]),
            "limited_by": backs[j] if j >= 0 else None,
        }
    reason = _no_limit(report) if not math.isfinite(report.factor) else "nothing moves, or it was not looked for"
    missing = sorted(_nullify(found))
    if missing:
        found["null_because"] = dict.fromkeys(missing, reason)
        if report.spectrum is None:
            found["null_because"] |= dict.fromkeys(("abscissa", "settling_time"), report.no_spectrum)
    return found


def _nullify(entry: dict[str, Any], prefix: str = "") -> list[str]:
    """Replace numbers that are not finite by None; returns where."""
    places = []
    for key, value in entry.items():
        if isinstance(value, dict):
            places += _nullify(value, f"{prefix}{key}.")
        elif isinstance(value, float) and not math.isfinite(value):
            entry[key] = None
            places.append(f"{prefix}{key}")
    return places


def nullified(value: Any) -> Any:
    """The same document with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {key: nullified(each) for key, each in value.items()}
    if isinstance(value, list):
        return [nullified(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
