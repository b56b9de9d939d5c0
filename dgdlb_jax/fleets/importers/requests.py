"""Demand as single requests: a line for each, in CSV or as JSON lines, with a column of times.

Layouts that were read, each from its own description: Azure LLM inference traces (`AzureLLMInferenceDataset2023.md`,
`...2024.md` and `AzureLMMInferenceDataset2025.md` of Azure/AzurePublicDataset at commits 1a61e6c6, 04e28b8a and 517b239f:
`TIMESTAMP,ContextTokens,GeneratedTokens`), BurstGPT (`README.md` of HPMLL/BurstGPT at ff1a7c63: `Timestamp` in seconds from the first
midnight, `Model`, `Request tokens`, `Response tokens`, which are 0 where the request failed), Mooncake (`FAST25-release/README.md` of
kvcache-ai/Mooncake at 40ea55f8 and its traces: JSON lines, `timestamp` in milliseconds, `input_length`, ...), Qwen-Bailian (`README.md`
of alibaba-edu/qwen-bailian-usagetraces-anon at 03a51e31: the same fields and `chat_id`, `timestamp` in seconds), and any other with a
time.
"""

import math

import numpy as np

from dgdlb_jax.fleets.document import clipped, counted, listed, nearest, nearest_column
from dgdlb_jax.fleets.importers.base import Demand, Importer, Options, check_names, selected
from dgdlb_jax.fleets.importers.bins import UNEVEN, only_figures
from dgdlb_jax.fleets.importers.failures import failed_requests
from dgdlb_jax.fleets.importers.rate_units import period, tokens_of
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.times import BURSTGPT, read_times, time_column
from dgdlb_jax.fleets.importers.unnamed_counts import check_no_bins
from dgdlb_jax.fleets.importers.words import PLACES, first_of, words
from dgdlb_jax.fleets.tables import Row, Table
from dgdlb_jax.numerics.results import InputError

WIDTHS = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 21600, 43200, 86400)
"""Round bin widths, seconds."""
_MOST_BINS = 1_000_000
_IN_A_BIN = 20  # the count of a bin is then known to 22 % or so
_OF_REQUESTS = {"request", "requests", "req", "arrival", "query"}
_FEW = 10  # fewer bins than these of a round width might leave out more than a tenth of the trace at its end


def read_requests(table: Table, options: Options) -> Demand:
    """Requests per bin, the first bin beginning at the first request.

    The trace lasts until the next request would have come: for the mean time between two of them after the last one. What then is left at
    its end and fills no bin is left out. Where nobody says the width, it is the least round one with 20 requests in a bin on average;
    traces for which that makes fewer than 10 bins are cut into equal parts with 20 requests or more, at least two, and nothing is left.

    **Raises:** `InputError` where there is no column of times, its unit is not known, all requests come at once, or a column that
    names frontends names others too.
    """
    column = time_column(table)
    table = table.only(selected(table.name, table.rows, lambda row: row.cells, options))
    table, told = _without_other_metrics(_without_failures(table))
    if column is None:
        hint = nearest_column("time_s", table.columns)
        raise InputError(
            f'{table.name}: column "time_s" is missing ({hint}): a trace has the column time_s and requests or one column '
            "per frontend, or a line per request with a column of times such as timestamp_ms."
        )
    _check_no_rate(table)
    times = read_times(table, column, options)
    if not told:
        check_no_bins(table, times.seconds, options)
    by = _place_column(table, column, options)
    last, length = float(times.seconds.max()), _length(times.seconds)
    wanted = options.use("bin_s")
    width, rule = (wanted, "") if wanted else _width(len(table.rows), length)
    # No bin begins after the last request, although the trace may last longer where requests are rare.
    bins = math.floor(min(length / width * (1 + 1e-12), last / width + 1, 2 * _MOST_BINS)) if last else 0
    if bins < 2:
        raise InputError(
            f"{table.name}: its requests span {last:.4g} s, less than two bins: give a longer trace, or narrower bins."
        )
    if bins > _MOST_BINS:
        raise InputError(
            f"{table.name}: bins of {width:g} s would be {bins:.2g}: give wider ones with bin_s (dgdlb import: --bin)."
        )
    names = () if by is None else tuple(dict.fromkeys(_named(table, row, by) for row in table.rows))
    column_of = [0] * len(table.rows) if by is None else [names.index(row.cells[by]) for row in table.rows]
    index = np.floor(times.seconds / width).astype(int)
    counts = np.zeros((int(index.max()) + 1, max(len(names), 1)))
    np.add.at(counts, (index, np.array(column_of)), 1.0)
    left = int(counts[bins:].sum())
    notes = [
        f"{counted(len(table.rows), 'request', 'requests')}, {times.written}",
        f"{counted(bins, 'bin', 'bins')} of {width:.6g} s" + (f" ({rule})" if rule else ""),
    ]
    notes += [*table.notes, *told, *failed_requests(table)]
    steps = np.diff(np.sort(times.seconds))
    even = len(steps) > 1 and np.ptp(steps) <= UNEVEN * steps.max()
    if even or only_figures(table):
        why = (
            "its times are evenly spaced"
            if even
            else f"there are figures only, in {listed([c for c in table.columns if c != column])}"
        )
        notes.append(f"{why}: if these are bins and no single requests, call the column that counts them requests")
    if left:
        end = f"{counted(left, 'request', 'requests')} in {length - bins * width:.3g} of {length:.4g} s"
        notes.append(f"the end, {end}, fills no bin and is left out")
    if by is None and (place := first_of(table.columns, PLACES)):
        notes.append(f'"{clipped(place)}" names no frontend, so all share one demand')
    if by is not None:
        notes.append(f'"{clipped(by)}" says where they enter: {listed(names)}')
    return Demand(names, float(width), counts[:bins], table.name, tuple(notes))


def _without_failures(table: Table) -> Table:
    """The lines of a trace of BurstGPT that were answered; its description calls those without response tokens failures, and its files
    "without fails" lack them. Any other table as it is."""
    if not set(BURSTGPT) <= set(table.columns):
        return table
    rows = [row for row in table.rows if not table.is_number(row.cells[BURSTGPT[1]]) or table.number(row, BURSTGPT[1])]
    failed = len(table.rows) - len(rows)
    if not rows:
        raise InputError(
            f"{table.name}: all of its {BURSTGPT[1]} are 0, so every request failed: give a trace with answers."
        )
    answered = table.only(rows)
    if failed:
        what = counted(failed, "request", "requests")
        answered.notes = (*table.notes, f"{what} of {len(table.rows)} without response tokens failed and are left out")
    return answered


def _without_other_metrics(table: Table) -> tuple[Table, tuple[str, ...]]:
    """The lines of requests in the CSV file of k6, which has one for every sample of every metric; any other table as it is."""
    if not {"metric_name", "metric_value"} <= set(table.columns):
        return table, ()
    rows = [row for row in table.rows if row.cells["metric_name"] == "http_reqs"]
    if not rows:
        raise InputError(f"{table.name}: no line has the metric_name http_reqs: give a file of k6 with its requests.")
    return table.only(rows), (f"{len(rows)} of {len(table.rows)} lines are requests (metric_name http_reqs)",)


def _check_no_rate(table: Table) -> None:
    """Lines with a rate are bins, and counting them would give a wrong demand; tokens/s may be those of one request."""
    for column in table.columns:
        found = set(words(column))
        if (period(column) and not tokens_of(column)) or ("rate" in found and found & _OF_REQUESTS):
            raise InputError(
                f'{table.name}: "{clipped(column)}" is a rate, so its lines are no single requests: give one rate, or the requests in a '
                'column "requests", of every bin, beside its time and, where there are several, the place.'
            )


def _length(seconds: np.ndarray) -> float:
    """How long a trace lasts that begins with its first request, seconds."""
    return float(seconds.max()) * len(seconds) / max(len(seconds) - 1, 1)


def _width(requests: int, length: float) -> tuple[float, str]:
    """The width of the bins where nobody says it, and why."""
    wanted = _IN_A_BIN * length / requests
    width = next((width for width in WIDTHS if width >= wanted), None)
    if width is not None and length >= _FEW * width:
        return float(width), f"the least round width with {_IN_A_BIN} requests in a bin on average"
    parts = requests // _IN_A_BIN
    if parts >= 2:
        return length / parts, f"equal parts of the trace with {_IN_A_BIN} requests or more on average"
    return length / 2, f"halves of the trace, as {requests} requests are too few for {_IN_A_BIN} in every bin"


def _place_column(table: Table, times: str, options: Options) -> str | None:
    """The column that says where requests enter: as told, by its values where frontends are known, or by its name."""
    if (told := options.use("by")) is not None:
        if told not in table.columns:
            raise InputError(f'{table.name}: there is no column "{clipped(told)}": {nearest(told, table.columns)}')
        found = told
    elif options.names:
        naming = [c for c in table.columns if c != times and _values(table, c) & set(options.names)]
        if len(naming) > 1:
            raise InputError(
                f"{table.name}: the columns {listed(naming)} all name frontends: say which one counts with by (dgdlb import: --by)."
            )
        found = naming[0] if naming else None
    else:
        found = first_of(table.columns, PLACES)
    if found is not None and options.names:
        check_names(table, found, options.use("names"))
    return found


def _named(table: Table, row: Row, by: str) -> str:
    if not row.cells[by]:
        raise table.error(row, by, "names no place", "complete or remove the line, or count by another column.")
    return row.cells[by]


def _values(table: Table, column: str) -> set[str]:
    return {row.cells[column] for row in table.rows}


def _recognises(source: Source, options: Options) -> bool:
    del options
    return source.table is not None and time_column(source.table) is not None


def _read(source: Source, options: Options) -> tuple[Demand]:
    assert source.table is not None
    return (read_requests(source.table, options),)


IMPORTER = Importer("table of requests", "demand", _recognises, _read)
