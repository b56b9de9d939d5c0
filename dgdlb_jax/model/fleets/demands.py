"""The `[demand]` and `[capacity]` sections: how rates, or a factor on the service rate, change in time."""

import math
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dgdlb_jax.model.demand import AbstractDemand, Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.model.demand_kinds import DEMANDS, DemandKind
from dgdlb_jax.model.fleets.document import Folder, Section, nearest
from dgdlb_jax.model.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Bin edges of a trace may be off an even spacing by this fraction of a bin: rounded timestamps, not missing lines.
_UNEVEN = 1e-6


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
        np.array(section.numbers("amplitude", count)),
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
    """The table gives the shape, scaled to the mean rates; `scaled = false` takes requests/s as they are."""
    section.only("kind", "table", "bin_width_s", "shift_s", "scaled")
    scaled = section.flag("scaled", True)
    table = Table(folder, section.text_of("table"), section.place)
    width = np.array(
        section.numbers("bin_width_s", len(base.names), above=True) if "bin_width_s" in section else _width(table)
    )
    shared = scaled and "requests" in table.columns
    columns = ["requests"] * len(base.names) if shared else [table.column(name) for name in base.names]
    values = {column: table.numbers(column) for column in dict.fromkeys(columns)}
    rates = np.array([values[column] for column in columns]).T
    rates = _shifted(section, rates, np.broadcast_to(width, len(base.names)))
    if not scaled:
        return section.build(Trace, width, rates)
    means = rates.mean(axis=0)
    silent = [name for name, mean, wanted in zip(base.names, means, base.mean, strict=True) if mean == 0 and wanted > 0]
    if silent:
        raise section.error("table", f'has no request for "{silent[0]}"', "give it a positive figure, or the rate 0.")
    # Shares first: large counts times large rates would overflow.
    return section.build(Trace, width, rates / np.where(means > 0, means, 1) * base.mean)


def _width(table: Table) -> float:
    """The bin width from the column of times, which have to be evenly spaced."""
    column = table.column("time_s")
    times = table.numbers(column, minimum=-math.inf)
    if len(times) < 2:
        raise table.error(table.rows[0], column, "is the only line", "give at least two bins, or bin_width_s.")
    width = times[1] - times[0]
    for k, row in enumerate(table.rows):
        if not width > 0 or abs(times[k] - times[0] - k * width) > _UNEVEN * width * max(k, 1):
            raise table.error(row, column, "breaks the even spacing of the bins", "give one line per bin, in order.")
    return width


def _shifted(section: Section, rates: np.ndarray, width: np.ndarray) -> np.ndarray:
    """Every column rolled by its own shift (positive: later), whole bins, wrapping round."""
    if "shift_s" not in section:
        return rates
    columns = []
    for k, shift in enumerate(section.numbers("shift_s", rates.shape[1], minimum=-math.inf)):
        bins = shift / width[k]
        if not abs(bins) < 1e9 or abs(bins - round(bins)) > _UNEVEN:
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
