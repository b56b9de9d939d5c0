"""What importers find in a line, and as tidy tables: one layout for latencies, one for curves, one for demand, with its origin."""

from collections.abc import Sequence

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers import Curve, Demand, Latencies, workload
from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.document import csv_text


def summary(found: Latencies | Curve | Demand) -> str:
    """How much was found, and between which figures it lies: what shows at a glance that a unit was mistaken."""
    if isinstance(found, Latencies):
        low, high = (1e3 * bound(found.seconds.values()) for bound in (min, max))
        pairs = f"{counted(len(found.seconds), 'pair', 'pairs')} of regions, {low:.5g} to {high:.5g} ms one way"
        return "; ".join((pairs, *_one_sided(found)))
    if isinstance(found, Curve):
        first, last = (workload(found.points[k]) or 0.0 for k in (0, -1))
        rates = [point.throughput for point in found.points]
        best = rates.index(max(rates))
        falls = f", falling beyond {workload(found.points[best]):.4g}" if best < len(rates) - 1 else ""
        return (
            f"{clipped(found.name)}: {counted(len(rates), 'point', 'points')}, {first:.4g} to {last:.4g} requests in the server, "
            f"{min(rates):.4g} to {max(rates):.4g} requests/s{falls}"
        )
    total, busiest = float(found.counts.sum()), float(found.counts.sum(axis=1).max()) / found.width
    peak = float(Trace.from_counts(found.width, found.counts).knots.sum(axis=1).max())
    mean = total / (len(found.counts) * found.width)
    found_in = f"{total:,.6g} requests in bins, {mean:.4g} requests/s on average, {busiest:.4g} in the busiest bin"
    above = f", rising to {peak:.4g} within it, as rates are continuous and keep the count of every bin"
    return found_in + (above if peak > 1.01 * busiest else "")


def _one_sided(found: Latencies) -> list[str]:
    """Which regions only send and which only answer, among regions that do both: a table may lack a part."""
    senders, answerers = (dict.fromkeys(pair[k] for pair in found.seconds) for k in (0, 1))
    if not senders.keys() & answerers.keys():
        return []
    alone = {"only sending": senders.keys() - answerers.keys(), "only answering": answerers.keys() - senders.keys()}
    return [f"{what}: {listed(sorted(names))}" for what, names in alone.items() if names]


def latency_csv(found: Latencies) -> str:
    """Columns `from,to,one_way_s`."""
    return _table(found, ["from", "to", "one_way_s"], [[*pair, seconds] for pair, seconds in found.seconds.items()])


def curve_csv(found: Curve) -> str:
    """Columns `workload,throughput`, and the scatter of the throughput where several measurements make a point."""
    rows: list[list[str | float]] = [[workload(point) or 0.0, point.throughput] for point in found.points]
    columns = ["workload", "throughput"]
    if any(point.samples > 1 for point in found.points):
        columns += ["throughput_low", "throughput_high", "samples"]
        for row, point in zip(rows, found.points, strict=True):
            low, high = (point.throughput if value is None else value for value in (point.low, point.high))
            row += [low, high, point.samples]
    return _table(found, columns, rows)


def demand_csv(found: Demand) -> str:
    """Columns `time_s` and `requests`, or one for each frontend: requests per bin."""
    columns = ["time_s", *(found.names or ("requests",))]
    return _table(found, columns, [[k * found.width, *row] for k, row in enumerate(found.counts.tolist())])


def _table(found: Latencies | Curve | Demand, columns: list[str], rows: Sequence[list[str | float]]) -> str:
    comments = "".join(f"# {' '.join(text.split())}\n" for text in (f"From {found.origin}.", *found.notes))
    return comments + csv_text(columns, list(rows))
