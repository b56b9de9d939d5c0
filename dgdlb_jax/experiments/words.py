"""What people read: the facts, the tables and the conclusion of a comparison, as plain text."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.experiments.balancers import CURRENT, DGD, ORACLE
from dgdlb_jax.experiments.outcome import Outcome, backend_names, frontend_names, statistics_of
from dgdlb_jax.experiments.text_table import GrowingTable, columns
from dgdlb_jax.experiments.time_steps import ACCURATE
from dgdlb_jax.experiments.verdict import Verdict
from dgdlb_jax.experiments.worth import worth_table
from dgdlb_jax.model.fleets.load import FleetInfo
from dgdlb_jax.model.network import Network

if TYPE_CHECKING:
    from dgdlb_jax.experiments.compare import Comparison

_ARRIVED = 0.002  # excess below which DGD-LB counts as being there
_SAME = 0.015  # difference of two shares that a table does not mention
_WIDEST = (22, 8, 8, 24, 8)  # characters that a cell of the table may take, after the name
_VISIBLE = 0.005  # smallest share of a frontend's traffic that a table shows


def report(comparison: "Comparison") -> str:
    """Everything a person wants to see of a comparison: facts, table, routing, conclusion."""
    return "\n\n".join([facts(comparison), f"{table(comparison)}\n{resolution(comparison)}", *after_table(comparison)])


def after_table(comparison: "Comparison") -> list[str]:
    """What stands below the table of the balancers: routing, what changes are worth, conclusion."""
    parts = [] if comparison.moving else [routing(comparison), worth(comparison)]
    return [*parts, textwrap.fill(conclusion(comparison), 100)]


def facts(comparison: "Comparison") -> str:
    """Which world this network lives in, and with what the balancers ran."""
    return "\n".join([network_facts(comparison.network), *run_facts(comparison), *reference_facts(comparison)])


def network_facts(network: Network) -> str:
    """The network in one line: known before anything is computed."""
    return (
        f"{network.name or 'network'}: {network.frontends} frontends, {network.backends} backends, "
        f"{number(float(network.arrival_rate.sum()))} requests/s, {percent(float(network.load))} of nominal capacity"
    )


def run_facts(comparison: "Comparison") -> list[str]:
    """The optimum, and how long the balancers ran with which step size."""
    best = comparison.optimum
    which = "optimum at the mean rates" if comparison.moving else "optimum"
    lines = [
        f"{which}: {seconds(float(best.mean_latency))} per request, {percent(float(best.network_share))} of it on the "
        f"network; largest latency x service slope on an arc in use {number(comparison.steepest_latency)}",
        f"run: {seconds(comparison.duration)} from {comparison.start} routing, step size "
        f"{_step_sizes(comparison)} 1/s^2",
    ]
    if not comparison.moving and comparison.duration < 0.99 * comparison.settling:
        lines.append(
            f"settling may take {seconds(comparison.settling)}: give --duration {comparison.settling:.6g} to wait for it"
        )
    return lines


def resolution(comparison: "Comparison") -> str:
    """Time steps, and how far the mean latencies can be trusted."""
    steps, changes = comparison.time_steps, comparison.accuracy
    shortest, longest = (seconds(of(steps.values(), default=comparison.dt)) for of in (min, max))
    lines = [f"  time steps: {shortest if shortest == longest else f'{shortest} to {longest}'}{_trust(comparison)}"]
    for name, change in changes.items():
        if change > ACCURATE:
            lines.append(
                f"  {name}: with twice its time step of {seconds(steps[name])} the mean latency differs by {percent(change)}: "
                f"figures are no finer than that; a shorter --dt resolves more and takes longer"
            )
    return "\n".join(lines)


def _trust(comparison: "Comparison") -> str:
    known = [change for change in comparison.accuracy.values() if math.isfinite(change)]
    fine = [change for change in known if change <= ACCURATE]
    if not fine:
        return ""
    most = max(max(fine), 1e-5)  # less shows rounding
    others = "" if len(fine) == len(comparison.accuracy) else " of the others"
    return f"; twice as long ones change the mean latencies{others} by at most {percent(most)}"


def table(comparison: "Comparison") -> str:
    """One line per balancer, below the optimum (or the reference)."""
    return "\n".join([columns(*table_cells(comparison)), *notes(comparison)])


def table_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of the table: the optimum (or the reference) first."""
    rows = [row_cells(row, comparison.moving) for row in comparison.table()]
    return table_header(comparison.moving), [best_cells(comparison), *rows]


def table_header(moving: bool) -> tuple[str, ...]:
    """What stands above the columns of the table, under a constant demand or one that moves."""
    if moving:
        return "balancer", "mean latency", "over reference", "on the network", "highest latency", "verdict"
    return "balancer", "mean latency", "over optimum", "on the network", "verdict", "settled after"


def best_cells(comparison: "Comparison") -> tuple[str, ...]:
    """The row of the optimum, or of the reference."""
    best, moving = comparison.optimum, comparison.reference
    if moving is not None:
        return (
            "quasi-static optimum",
            seconds(moving.mean_latency),
            "",
            "",
            seconds(float(np.nanmax(moving.latency))),
            "",
        )
    return "optimum", seconds(float(best.mean_latency)), "", percent(float(best.network_share)), "", ""


def row_cells(row: Outcome, moving: bool) -> tuple[str, ...]:
    """The row of a balancer."""
    cells = row.balancer, latency(row), excess(row), percent(row.network_share)
    if moving:
        return *cells, seconds(row.highest_latency), verdict(row)
    return *cells, verdict(row), seconds(row.settle_time)


def growing_table(names: Sequence[str], moving: bool) -> GrowingTable:
    """The table of balancers of these names, whose rows are not known yet."""
    first = max(map(len, (*names, "quasi-static optimum")))
    return GrowingTable(table_header(moving), [first, *_WIDEST[: len(table_header(moving)) - 1]])


def routing(comparison: "Comparison") -> str:
    """Where each frontend sends its traffic: at the optimum, and under DGD-LB at the end of its run."""
    return columns(*routing_cells(comparison), right=(1,))


def routing_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows of the routing table."""
    network, best = comparison.network, np.asarray(comparison.optimum.routing)
    run = comparison.runs.get(DGD)
    last = None if run is None else np.asarray(statistics_of(run).mean_routing)
    names, rates = backend_names(network), np.asarray(network.arrival_rate)
    header = ("frontend", "requests/s", "sends at the optimum", *(() if last is None else (f"under {DGD}",)))
    rows = []
    for i, name in enumerate(frontend_names(network)):
        row = [name, number(rates[i]), _shares(names, best[i])]
        if last is not None:
            same = np.abs(last[i] - best[i]).max() < _SAME
            row.append("the same" if same else _shares(names, last[i]))
        rows.append(row)
    return header, rows


def worth(comparison: "Comparison") -> str:
    """What a little more of this or less of that would change in the optimal mean latency."""
    rows = [
        (what, where, f"{seconds(change)}")
        for what, where, change in worth_table(comparison.network, comparison.prices)
    ]
    shown = [(what if k == 0 or rows[k - 1][0] != what else "", *rest) for k, (what, *rest) in enumerate(rows)]
    return columns(("what it would be worth", "where", "mean latency"), shown, right=(2,))


def conclusion(comparison: "Comparison") -> str:
    """One or two sentences, computed from the figures."""
    rows = comparison.outcomes
    sentences = [_about_dgd(comparison, rows[DGD])] if DGD in rows else []
    sentences.append(_about_rivals([row for row in rows.values() if row.balancer not in (DGD, ORACLE, CURRENT)]))
    if CURRENT in rows:
        sentences.append(_about_current(rows[CURRENT]))
    return " ".join(filter(None, sentences))


def side_by_side(comparisons: "Sequence[Comparison]") -> str:
    """Mean latency over the optimum, balancers down, networks across."""
    names = list(dict.fromkeys(row.balancer for comparison in comparisons for row in comparison.table()))
    header = ("over optimum", *(comparison.network.name or f"network {k}" for k, comparison in enumerate(comparisons)))
    rows = [("(optimum)", *(seconds(comparison.best_latency) for comparison in comparisons))]
    for name in names:
        found = [comparison.outcomes.get(name) for comparison in comparisons]
        rows.append((name, *("" if row is None else f"{excess(row) or latency(row)} {verdict(row)}" for row in found)))
    return columns(header, rows)


def fleet_table(fleets: Sequence[FleetInfo]) -> str:
    """The built-in fleets, one line each."""
    header = ("fleet", "frontends", "backends", "requests/s", "load", "alone in", "demands", "")
    rows = [
        (
            fleet.name,
            str(fleet.frontends),
            str(fleet.backends),
            number(fleet.total_rate),
            percent(fleet.load),
            " to ".join(dict.fromkeys(map(seconds, fleet.service_time))),
            ", ".join(fleet.demands),
            fleet.description,
        )
        for fleet in fleets
    ]
    return columns(header, rows, right=(1, 2, 3, 4))


def seconds(value: float) -> str:
    """A time with a unit that suits it, three digits."""
    if not math.isfinite(value):
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= 0.9995 * size:
            return f"{number(value / size)} {unit}"
    return "0 s" if value == 0 else f"{value:.2e} s"


def percent(value: float) -> str:
    """A part of one in percent, with the digits that matter."""
    if not math.isfinite(value):
        return ""
    digits = 0 if abs(value) >= 0.0995 else 1 if abs(value) >= 0.00995 else 2 if abs(value) >= 0.000995 else 3
    return f"{100 * value:.{digits}f} %"


def latency(row: Outcome) -> str:
    """A row's mean latency, or what stands in its place."""
    if row.verdict is Verdict.diverging:
        return f"short by {number(row.short_by)} req/s"
    return "failed" if row.verdict is Verdict.failed else seconds(row.mean_latency)


def number(value: float) -> str:
    """A number with three digits."""
    value = float(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}" if abs(value) >= 0.9995 else f"{value:.3g}"


def excess(row: Outcome) -> str:
    """A row's excess over the optimum or the reference, with its sign; empty when there is none."""
    if not math.isfinite(row.excess):
        return ""
    return "0.000 %" if abs(row.excess) < 5e-6 else f"{'+' if row.excess > 0 else ''}{percent(row.excess)}"


def verdict(row: Outcome) -> str:
    """A row's verdict in a few words."""
    match row.verdict:
        case Verdict.oscillating if not row.resolved:
            return f"chatter below the time step ({percent(row.swing)})"
        case Verdict.oscillating:
            return f"oscillating ({percent(row.swing)})"
        case Verdict.moving if row.drift > 0:
            return f"moving (drift {percent(row.drift)})"
        case Verdict.moving:
            return f"moving (swing {percent(row.swing)}, getting smaller)"
    return row.verdict.words


def _shares(names: Sequence[str], shares: np.ndarray, most: int = 3) -> str:
    """The largest shares, and what is left over."""
    used = [j for j in np.argsort(-shares, kind="stable") if shares[j] >= _VISIBLE]
    parts = [f"{names[j]} {percent(float(shares[j]))}" for j in used[:most]]
    if len(used) > most:
        parts.append(f"{len(used) - most} more {percent(float(shares[used[most:]].sum()))}")
    return ", ".join(parts) or "nothing"


def _list(names: Sequence[str], most: int = 4) -> str:
    shown, more = names[:most], len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def notes(comparison: "Comparison") -> list[str]:
    """What has to be said of single rows."""
    found = []
    for row in comparison.table():
        if row.verdict is Verdict.diverging:
            found.append(f"{row.balancer}: queues grow without end at {_list(row.short_backends)}")
        elif row.verdict is Verdict.failed:
            found.append(f"{row.balancer}: {row.result.sentence}")
        if row.verdict in (Verdict.too_short, Verdict.moving):
            found.append(f"{row.balancer}: {row.reason}")
        if row.verdict in (Verdict.diverging, Verdict.failed):
            continue
        if row.still_beyond_measured:
            found.append(
                f"{row.balancer}: {_list(row.still_beyond_measured)} outside the measured range of the service curve"
            )
        elif row.beyond_measured:
            found.append(
                f"{row.balancer}: {_list(row.beyond_measured)} left the measured range of the service curve on the way"
            )
    return [f"  {note}" for note in found]


def reference_facts(comparison: "Comparison") -> list[str]:
    """What a demand that moves is held against; nothing under a constant one."""
    best = comparison.reference
    if best is None:
        return []
    lines = [
        f"demand moves between {number(best.total_rate.min())} and {number(best.total_rate.max())} requests/s; the "
        "quasi-static optimum (as if always at rest) is a reference, not a bound"
    ]
    if best.missing:
        lines.append(f"it leaves out {best.missing} of {best.time.size} instants, which have no certified optimum")
    return lines


def _step_sizes(comparison: "Comparison") -> str:
    steps = np.asarray(comparison.step_size)
    steps = steps[steps > 0] if (steps > 0).any() else steps
    low, high = number(steps.min()), number(steps.max())
    return low if low == high else f"{low} to {high}"


def _about_dgd(comparison: "Comparison", row: Outcome) -> str:
    target = "the quasi-static reference" if comparison.moving else "the optimum"
    reached = f"{seconds(row.mean_latency)}, {excess(row)} against {target} of {seconds(comparison.best_latency)}"
    if row.verdict is Verdict.diverging:
        return f"{DGD} lets queues grow at {_list(row.short_backends)}: give it more time or a larger step size."
    if row.verdict is Verdict.failed:
        return f"{DGD} failed: {row.result.sentence}"
    if row.verdict is Verdict.oscillating:
        swing = percent(row.swing)
        return f"{DGD} has not come to rest (swing {swing}): {reached}. Try a longer duration or a smaller step size."
    if comparison.moving:
        return f"Under this demand {DGD} averages {reached}."
    if row.verdict is Verdict.too_short:
        return f"The run is too short to judge {DGD}: {reached}; {row.reason}."
    if abs(row.excess) <= _ARRIVED:
        return f"{DGD} finds the optimum by itself despite the network latencies: {reached}."
    return f"{DGD} is still on its way: {reached}. Give it a longer duration or a larger step size."


def _about_rivals(rivals: Sequence[Outcome]) -> str:
    working = sorted((row for row in rivals if math.isfinite(row.mean_latency)), key=lambda row: row.mean_latency)
    drowning = [row.balancer for row in rivals if row.verdict is Verdict.diverging]
    parts = []
    if working:
        first, last = working[0], working[-1]
        text = f"{first.balancer} comes closest of the others ({excess(first)})"
        parts.append(text if last is first else f"{text}, {last.balancer} costs most ({excess(last)})")
    if drowning:
        parts.append(
            f"{_list(drowning)} send{'s' if len(drowning) == 1 else ''} some backends more than they can serve"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _about_current(row: Outcome) -> str:
    if row.verdict is Verdict.diverging:
        return f"Your current routing is short by {number(row.short_by)} requests/s at {_list(row.short_backends)}."
    return f"Your current routing costs {seconds(row.mean_latency)} ({excess(row)})."
