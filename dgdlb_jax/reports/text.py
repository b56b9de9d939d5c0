"""What people read: the facts, the tables and the conclusion of a comparison, as plain text."""

import math
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.fleets.load import FleetInfo
from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import enumerated, number, percent, ranging, seconds
from dgdlb_jax.reports.text_table import GrowingTable, columns
from dgdlb_jax.studies.balancers import CURRENT, DGD
from dgdlb_jax.studies.conclusion import about_extrapolation, conclusion, excess
from dgdlb_jax.studies.event_words import happening
from dgdlb_jax.studies.news import news_words
from dgdlb_jax.studies.outcome import Outcome, backend_names, frontend_names
from dgdlb_jax.studies.time_steps import ACCURATE
from dgdlb_jax.studies.verdict import Verdict
from dgdlb_jax.studies.what_if import Change

if TYPE_CHECKING:
    from dgdlb_jax.studies.compare import Comparison

_SAME = 0.015  # difference of two shares that a table does not mention
_LITTLE = 0.01  # by which a rate may pass its busiest bin without a word
_WIDEST = (22, 8, 8, 24, 8)  # characters that a cell of the table may take, after the name
_MOST_BACKENDS = 12  # whose flow the terminal shows; the report has all
_MOST_ROWS = 40  # of inputs that the terminal shows
_MOST_CHANGES = 8  # backends that the terminal shows; the report has all
_VISIBLE = 0.005  # smallest share of a frontend's traffic that a table shows


def report(comparison: "Comparison") -> str:
    """Everything a person wants to see of a comparison: facts, table, routing, conclusion."""
    return "\n\n".join([facts(comparison), f"{table(comparison)}\n{resolution(comparison)}", *after_table(comparison)])


def after_table(comparison: "Comparison") -> list[str]:
    """What stands below the table of the balancers: routing, what changes are worth, conclusion."""
    parts = [events(comparison)] if comparison.phases else []
    parts += [] if comparison.moving else [flows(comparison), routing(comparison), changes(comparison)]
    return [*parts, textwrap.fill(conclusion(comparison), 100)]


def facts(comparison: "Comparison") -> str:
    """Which world this network lives in, and with what the balancers ran."""
    return "\n".join([network_facts(comparison.given), *run_facts(comparison), *reference_facts(comparison)])


def network_facts(network: Network) -> str:
    """The network in one line: known before anything is computed."""
    return (
        f"{network.name or 'network'}: {network.frontends} frontends, {network.backends} backends, "
        f"{number(float(network.arrival_rate.sum()))} requests/s, {percent(float(network.load))} of nominal capacity"
    )


def run_facts(comparison: "Comparison") -> list[str]:
    """The optimum, and how long the balancers ran with which step size."""
    best = comparison.optimum
    which = "optimum at the mean rates" if comparison.moving else "optimum, the best routing that never changes"
    lines = []
    if comparison.phases:
        which = "optimum after the last event"
        lines.append(f"events: {'; '.join(map(happening, comparison.phases[1:]))}")
    if comparison.news is not None:
        lines.append(f"news: {news_words(comparison.news)}")
    lines += [
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
    shortest, longest = (of(steps.values(), default=comparison.dt) for of in (min, max))
    lines = [f"  time steps: {ranging(shortest, longest, seconds)}{_causes(comparison)}{_trust(comparison)}"]
    if DGD in comparison.runs and comparison.step_size_set_by:
        lines.insert(0, f"  step size: {comparison.step_size_set_by}")
    for name, change in changes.items():
        if change > ACCURATE:
            lines.append(
                f"  {name}: with twice its time step of {seconds(steps[name])} the mean latency differs by {percent(change)}: "
                f"figures are no finer than that; a shorter --dt resolves more and takes longer"
            )
    return "\n".join(lines)


def _causes(comparison: "Comparison") -> str:
    """What set the time steps, and for how many where that differs."""
    count = Counter(comparison.set_by.values())
    if not count:
        return ""
    return ", set by " + "; ".join(cause if len(count) == 1 else f"{cause} ({n})" for cause, n in count.most_common())


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


def events(comparison: "Comparison") -> str:
    """How every balancer gets over every event: the worst latency, what is lost, and when it is back."""
    return columns(*event_cells(comparison), right=(2, 3, 4, 5))


def event_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of that table, event by event."""
    header = ("after", "balancer", "optimum then", "worst latency", "requests lost", "within 1 % of it after")
    rows = []
    for phase in comparison.phases[1:]:
        found = {one.balancer: one for one in comparison.recoveries if one.phase is phase}
        best = seconds(phase.latency) or f"short by {number(phase.short_by)} req/s"
        rows.append((happening(phase), "", best, "", "", ""))
        for row in comparison.table():
            one = found[row.balancer]
            rows.append(("", row.balancer, "", seconds(one.worst_latency), number(one.lost), seconds(one.time) or "-"))
    return header, rows


def flows(comparison: "Comparison") -> str:
    """What every backend gets: first of all, since many routings may share it."""
    header, rows = flow_cells(comparison)
    text = columns(header, rows[:_MOST_BACKENDS], right=range(1, len(header)))
    more = len(rows) - _MOST_BACKENDS
    return text if more <= 0 else f"{text}\n  {more} more, which get less"


def flow_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of that table, requests/s, the backend that gets most at the optimum first."""
    network, runs = comparison.network, comparison.runs
    rate = np.asarray(network.arrival_rate, float)
    shares = {"at the optimum": comparison.optimum.routing}
    shares |= {f"under {name}": comparison.mean_routing(name) for name in (DGD, CURRENT) if name in runs}
    inflow = {label: rate @ np.asarray(one, float) for label, one in shares.items()}
    capacity, names = np.asarray(network.nominal_capacity, float), backend_names(network)
    order = np.argsort(-inflow["at the optimum"], kind="stable")
    rows = [(names[j], number(float(capacity[j])), *(number(float(one[j])) for one in inflow.values())) for j in order]
    return ("backend gets (requests/s)", "capacity", *inflow), rows


def routing(comparison: "Comparison") -> str:
    """Where each frontend sends its traffic: at the optimum, and under DGD-LB at the end of its run."""
    said = textwrap.wrap(about_extrapolation(comparison), 100, initial_indent="  ", subsequent_indent="  ")
    return "\n".join([columns(*routing_cells(comparison), right=(1,)), *said])


def routing_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows of the routing table."""
    network, best = comparison.network, np.asarray(comparison.optimum.routing)
    last = comparison.mean_routing(DGD) if DGD in comparison.runs else None
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


def changes(comparison: "Comparison") -> str:
    """What one replica more or less, and losing a backend, would change in the optimal mean latency."""
    header, rows = change_cells(comparison)
    text = columns(header, rows[:_MOST_CHANGES], right=(1, 2, 3))
    more = len(rows) - _MOST_CHANGES
    return text if more <= 0 else f"{text}\n  {more} more, whose loss costs less"


def change_cells(comparison: "Comparison") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of that table, the backend whose loss costs most first."""
    rows = [(one.backend, change(one.more), change(one.less), change(one.without)) for one in comparison.changes]
    return ("optimal mean latency with", "a replica more", "one less", "none at all"), rows


def change(found: Change | None) -> str:
    """What a change does to the optimum: seconds with a sign, or by how much the fleet is short."""
    if found is None:
        return "-"
    if math.isfinite(found.latency):
        return f"{'+' if found.latency > 0 else ''}{seconds(found.latency)}"
    return f"short by {number(found.short_by)} req/s" if found.short_by > 0 else "no optimum found"


def inputs(network: Network, changing: bool = False) -> str:
    """What was given, as far as it has room: see `input_cells`; `changing`: events change it later."""
    header, rows = input_cells(network)
    wide = len(header) - _MOST_BACKENDS - 2
    if wide > 0 or len(rows) > _MOST_ROWS:
        latency = 1e3 * np.asarray(network.latency, float)[np.asarray(network.mask)]
        kept = "those after the last one" if changing else "all of them"
        between = f"one-way latencies of {ranging(latency.min(), latency.max())} ms"
        return f"{inputs_heading(changing).lower()}: {between}; {kept} are in run.nc"
    heading = f"{inputs_heading(changing)}\n" if changing else ""
    return heading + columns(header, rows, right=range(1, len(header)))


def inputs_heading(changing: bool) -> str:
    """What stands above them."""
    return f"Inputs{', before any event' * changing}"


def input_cells(network: Network) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of a table of one-way latencies in ms, frontends down, backends across, with rates and capacities."""
    latency, mask = 1e3 * np.asarray(network.latency, float), np.asarray(network.mask)
    capacity, rates = np.asarray(network.nominal_capacity, float), np.asarray(network.arrival_rate, float)
    rows = [("(capacity, requests/s)", "", *map(number, capacity))]
    for i, name in enumerate(frontend_names(network)):
        cells = (number(value) if there else "-" for value, there in zip(latency[i], mask[i], strict=True))
        rows.append((name, number(rates[i]), *cells))
    return ("one-way latency (ms) from", "requests/s", *backend_names(network)), rows


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
            ranging(*fleet.service_time, seconds),
            ", ".join(fleet.demands),
            fleet.description,
        )
        for fleet in fleets
    ]
    return columns(header, rows, right=(1, 2, 3, 4))


def latency(row: Outcome) -> str:
    """A row's mean latency, or what stands in its place."""
    if row.verdict is Verdict.diverging:
        return f"short by {number(row.short_by)} req/s"
    return "failed" if row.verdict is Verdict.failed else seconds(row.mean_latency)


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


def notes(comparison: "Comparison") -> list[str]:
    """What has to be said of single rows."""
    found = []
    for row in comparison.table():
        if row.verdict is Verdict.diverging:
            found.append(f"{row.balancer}: queues grow without end at {enumerated(row.short_backends)}")
        elif row.verdict is Verdict.failed:
            found.append(f"{row.balancer}: {row.result.sentence}")
        if row.balancer in comparison.longer:
            first, then = seconds(comparison.duration), seconds(row.duration)
            found.append(
                f"{row.balancer}: not decided after {first}, so it ran for {then}; its figures are of the end of that"
            )
        if row.verdict in (Verdict.too_short, Verdict.moving):
            found.append(f"{row.balancer}: {row.reason}")
        if row.verdict in (Verdict.diverging, Verdict.failed):
            continue
        where = "the measured range of the service curve"
        if row.still_beyond_measured:
            found.append(f"{row.balancer}: {enumerated(row.still_beyond_measured)} outside {where}")
        elif row.beyond_measured:
            found.append(f"{row.balancer}: {enumerated(row.beyond_measured)} left {where} on the way")
    return [f"  {note}" for note in found]


def reference_facts(comparison: "Comparison") -> list[str]:
    """What a demand that moves is held against; nothing under a constant one."""
    best = comparison.reference
    if best is None:
        return []
    kind = "" if comparison.unmeasurable is None else " (queues cannot follow it here)"
    lines = [
        f"demand moves between {number(best.total_rate.min())} and {number(best.total_rate.max())} requests/s; the "
        f"quasi-static optimum (as if always at rest) is a reference, not a bound{kind}"
    ]
    if isinstance(comparison.network.demand, Trace):
        lines += _overshoot(comparison.network.demand)
    if best.missing:
        lines.append(f"it leaves out {best.missing} of {best.time.size} instants, which have no certified optimum")
    return lines


def _overshoot(demand: Trace) -> list[str]:
    """By how much a continuous rate passes the counts that it keeps, where that is anything to speak of."""
    highest, busiest = np.asarray(demand.largest_rate, float), np.asarray(demand.rates, float).max(0)
    excess = np.max(highest / np.where(busiest > 0, busiest, np.inf) - 1, initial=0)
    said = f"rates are continuous and keep the count of every bin: they rise to at most {percent(excess)} above a frontend's busiest bin"
    return [said] if excess > _LITTLE else []


def _step_sizes(comparison: "Comparison") -> str:
    steps = np.asarray(comparison.step_size)
    steps = steps[steps > 0] if (steps > 0).any() else steps
    return ranging(steps.min(), steps.max())
