"""What importers find as tidy tables: one layout for latencies, one for curves, one for demand, with its origin in comments."""

from collections.abc import Sequence

from dgdlb_jax.fleets.importers import Curve, Demand, Latencies, workload
from dgdlb_jax.model.document import csv_text


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
