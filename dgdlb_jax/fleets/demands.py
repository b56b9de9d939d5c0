"""The `[demand]` and `[capacity]` sections: how rates, or a factor on the service rate, change in time."""

import dataclasses
import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import Folder, Section, clipped, nearest
from dgdlb_jax.fleets.importers import Demand, Options, Source, check_kind, prometheus
from dgdlb_jax.fleets.importers.bins import UNEVEN, bin_width, only_figures, rebinned
from dgdlb_jax.fleets.importers.counts import counted_columns, is_counts
from dgdlb_jax.fleets.importers.long_counts import Wide, widened
from dgdlb_jax.fleets.importers.plausible import doubts
from dgdlb_jax.fleets.importers.rate_units import period
from dgdlb_jax.fleets.importers.requests import read_requests
from dgdlb_jax.fleets.importers.times import time_column
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.model.demand import AbstractDemand, Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.model.demand_kinds import DEMANDS, DemandKind
from dgdlb_jax.numerics.results import InputError


class Base(NamedTuple):
    """What a demand scales: names (of frontends, or backends) and the figure each has on average."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, " names"]


def read_demand(section: Section, key: str | None, base: Base, folder: Folder) -> AbstractDemand:
    """The demand called `key` of the `[demand]` section; the one that `use` names when `key` is None."""
    known = section.sections()
    section.only("use", *known)
    read = {name: read_pattern(one, base, folder) for name, one in known.items() if name != "constant"}
    if "constant" in known:
        raise section.error("constant", "is a name with a meaning of its own (the mean rates)", "choose another name.")
    if key is None:
        key = section.choice("use", ("constant", *known), "constant")
    if key == "constant":
        return Constant(base.mean)
    if key not in read:
        raise InputError(f'{section.file} has no demand "{key}": {nearest(key, ("constant", *known))}')
    return read[key]


def read_pattern(section: Section, base: Base, folder: Folder) -> AbstractDemand:
    """One demand."""
    kind = DEMANDS[section.choice("kind", DEMANDS)]
    return _READERS.get(kind.key, partial(_registered, kind))(section, base, folder)


def _constant(section: Section, base: Base, folder: Folder) -> Constant:
    del folder
    section.only("kind", "factor")
    return Constant(base.mean * np.array(section.numbers("factor", len(base.names), [1.0] * len(base.names))))


def _daily_cycle(section: Section, base: Base, folder: Folder) -> DailyCycle:
    del folder
    section.only("kind", "amplitude", "peak_s", "period_s", "mean")
    count = len(base.names)
    return section.build(
        DailyCycle,
        np.array(section.numbers("mean", count, base.mean.tolist())),
        np.array(section.numbers("amplitude", count, minimum=None)),
        np.array(section.numbers("peak_s", count, [0.0] * count, minimum=-math.inf)),
        np.array(section.numbers("period_s", count, [86400.0] * count, above=True)),
    )


def _jumps(section: Section, base: Base, folder: Folder) -> Jumps:
    """`factor` multiplies the mean rates; `rate` gives requests/s outright. Before, between and after the jumps."""
    del folder
    section.only("kind", "times_s", "factor", "rate")
    times = section.get("times_s", list, "a list of times in seconds")
    nested = bool(times) and isinstance(times[0], list)
    times = section.matrix("times_s", None, len(base.names)) if nested else section.numbers("times_s")
    rows = len(times) + 1
    if "rate" in section:
        rates = np.array(section.matrix("rate", rows, len(base.names)))
    elif any(isinstance(row, list) for row in section.get("factor", list, "a list, one factor more than jumps")):
        rates = np.array(section.matrix("factor", rows, len(base.names))) * base.mean
    else:
        rates = np.array(section.numbers("factor", rows))[:, None] * base.mean
    return section.build(Jumps, np.array(times), rates)


def _trace(section: Section, base: Base, folder: Folder) -> Trace:
    """The table gives the shape, scaled to the mean rates; `scaled = false` takes requests/s as they are, and columns of frontends for
    such."""
    section.only("kind", "table", "bin_width_s", "shift_s", "scaled", "bin_s", "time_unit", "by")
    scaled = section.flag("scaled", True)
    width, rates = _bins(section, base, folder, scaled)
    rates = _shifted(section, rates, np.broadcast_to(width, len(base.names)))
    if not scaled:
        return section.build(Trace, width, rates)
    means = rates.mean(axis=0)
    silent = [name for name, mean, wanted in zip(base.names, means, base.mean, strict=True) if mean == 0 and wanted > 0]
    if silent:
        raise section.error("table", f'has no request for "{silent[0]}"', "give it a positive figure, or the rate 0.")
    # Shares first: large counts times large rates would overflow.
    return section.build(Trace, width, rates / np.where(means > 0, means, 1) * base.mean)


def _bins(section: Section, base: Base, folder: Folder, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """Width of the bins, and what is in them: `(bins, names)`, from counts, from single requests or from Prometheus."""
    name = section.text_of("table")
    source = Source(folder / name, name, f"{section.place}: the table ")
    options = Options(
        bin_s=section.number("bin_s", above=True) if "bin_s" in section else None,
        time_unit=section.choice("time_unit", ("s", "ms", "us", "ns")) if "time_unit" in section else None,
        by=section.text_of("by", None),
        names=base.names,
    )
    found = _read_bins(section, base, folder, source, options, scaled)
    for key in ("bin_s", "time_unit", "by"):
        if key in options.unused:
            raise section.error(key, f"changes nothing in how {clipped(name)} is read", "remove it.")
    return found


def _read_bins(
    section: Section, base: Base, folder: Folder, source: Source, options: Options, scaled: bool
) -> tuple[np.ndarray, np.ndarray]:
    if prometheus.IMPORTER.recognises(source, options):
        arrivals = prometheus.series(source, dataclasses.replace(options, role="arrivals"))[0]
        return _columns(section, base, rebinned(prometheus.demand(arrivals), options.use("bin_s")), scaled)
    wide = widened(source.table or Table.read(folder, source.name, section.place), options)
    named_bins = "time_s" in wide.table.columns and only_figures(wide.table)
    if "bin_width_s" in section or named_bins or is_counts(wide.table, options):
        wide = wide.in_order(options) if time_column(wide.table) is not None and "bin_width_s" not in section else wide
        section.notes.extend(f"{source.name}: {note}." for note in wide.notes)
        return _counts(section, base, wide, options, scaled)
    if time_column(wide.table) is None:
        check_kind(source, Options(), "demand", f"{section.place}: {clipped(source.name)}")
    return _columns(section, base, read_requests(wide.table, options), scaled)


def _counts(section: Section, base: Base, wide: Wide, options: Options, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    table = wide.table
    given = "bin_width_s" in section
    width = np.array(
        section.numbers("bin_width_s", len(base.names), above=True) if given else bin_width(table, options)
    )
    if given and "time_s" in table.columns and (width != bin_width(table, options)).any():
        at = f"is {width[0]:g}, and the lines of {clipped(table.name)} are {bin_width(table, options):g} s apart"
        raise section.error("bin_width_s", at, "remove it, or the column time_s.")
    columns = counted_columns(table, base.names)
    if not scaled and len(columns) == 1 < len(base.names):
        table.column(*base.names)  # which is missing
    seconds = [wide.seconds or (None if column in base.names else period(column)) for column in columns]
    figures = np.array([table.numbers(c, counts=scaled and s is None) for c, s in zip(columns, seconds, strict=True)]).T
    are_rates = seconds[0] is not None  # of all columns, then
    if are_rates:
        figures = figures / np.array(seconds, float)
    elif not scaled and (wide.is_long or columns[0] not in base.names):
        figures, are_rates = figures / width, True
    if not given:
        found = Demand((), float(width), figures * (width if are_rates else 1.0), table.name)
        section.notes.extend(f"{table.name}: {doubt}." for doubt in doubts(found))
    return width, np.broadcast_to(figures, (len(figures), len(base.names)))


def _columns(section: Section, base: Base, found: Demand, scaled: bool) -> tuple[np.ndarray, np.ndarray]:
    """The columns of all names in their order, from a demand that was read; requests/s where it is not scaled."""
    section.notes.extend(f"{found.origin}: {note}." for note in (*found.notes, *doubts(found)))
    if not found.names and not scaled and len(base.names) > 1:
        raise section.error(
            "scaled", "is false, but the table names no frontends", "say by which column, or leave it out."
        )
    unknown = [name for name in found.names if name not in base.names]
    if unknown:
        raise section.error("table", f'has requests of "{clipped(unknown[0])}"', nearest(unknown[0], base.names))
    columns = [found.names.index(name) if name in found.names else None for name in base.names]
    silent = np.zeros(len(found.counts))
    counts = (
        [silent if k is None else found.counts[:, k] for k in columns]
        if found.names
        else [found.counts[:, 0]] * len(columns)
    )
    return np.array(found.width), np.stack(counts, axis=1) / (1.0 if scaled else found.width)


def _shifted(section: Section, rates: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Every column rolled by its own shift (positive: later), whole bins, wrapping round."""
    if "shift_s" not in section:
        return rates
    columns = []
    for k, shift in enumerate(section.numbers("shift_s", rates.shape[1], minimum=-math.inf)):
        bins = shift / width[k]
        if not abs(bins) < 1e9 or abs(bins - round(bins)) > UNEVEN:
            raise section.error("shift_s", f"contains {shift:g}", f"give multiples of the bin width, {width[k]:g} s.")
        columns.append(np.roll(rates[:, k], round(bins)))
    return np.stack(columns, axis=1)


def _registered(kind: DemandKind, section: Section, base: Base, folder: Folder) -> AbstractDemand:
    """A demand of the user's own: numbers, one for each name or one for all."""
    del folder
    section.only("kind", *kind.parameters)
    numbers = {name: section.numbers(name, len(base.names), minimum=-math.inf) for name in kind.parameters}
    return section.build(kind.maker, **{name: np.array(values) for name, values in numbers.items()})


_READERS = {"constant": _constant, "trace": _trace, "jumps": _jumps, "daily cycle": _daily_cycle}
