"""From what importers find to a fleet that runs, with a comment beside every figure that says where it came from."""

import math
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from dgdlb_jax.fleets.answers import Answers
from dgdlb_jax.fleets.compose_checks import (
    by_place,
    check_common,
    check_complete,
    check_known,
    check_replicas,
    check_served,
    check_shifts,
    check_used,
    in_own_words,
    left_out,
    long_shifts,
    missing_arcs,
)
from dgdlb_jax.fleets.document import clipped, counted, listed, nearest
from dgdlb_jax.fleets.importers import Curve, Demand, Finding, Latencies
from dgdlb_jax.fleets.load import load_fleet
from dgdlb_jax.fleets.longitudes import sun_shifts
from dgdlb_jax.fleets.tidy import curve_csv, demand_csv, latency_csv
from dgdlb_jax.model.document import check_not_inputs, toml_value, write_all
from dgdlb_jax.numerics.results import InputError

_SUN = "how much later the sun is than over {}, by longitude and in whole bins: a modelling choice, everybody has the same day"
_MADE = "made by dgdlb import"  # stands in every fleet file that is written here
_INSIDE_MS = 0.5  # one way between a frontend and a backend of one region, where nobody says it
_LOAD = 0.7  # of the highest measured throughput, where nobody says how many servers there are

F = TypeVar("F", Latencies, Demand, Curve)


@dataclass(frozen=True)
class Choices(Answers):
    """What files do not say of a fleet; what is left out is assumed, and a comment says so.

    - `frontends`, `backends`: names; by default those of the demand, and every region that latencies lead to.
    - `curves`: the curve of each backend, by its name; `replicas`: servers behind each backend, one number for all or one for each.
    - `weights`: shares of the traffic, one for each frontend; `shift_s`: how much later each of them sees one common day, or
      `"longitude"`: an hour for every 15 degrees that it lies west of the first of them.
    - `load`: total rate over nominal capacity, where no file has a demand or no replicas are given; 0.7 when left out.
    - `inside_ms`: one way, inside a region. `sparse`: pairs without a latency are arcs that are not used; else they are refused.
    """

    frontends: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    replicas: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()
    shift_s: tuple[float, ...] | str = ()
    load: float | None = None
    inside_ms: float | None = None
    sparse: bool = False

    @property
    def wanted_load(self) -> float:
        """The load, or what is assumed for it."""
        return self.use("load") or _LOAD


class Composed(NamedTuple):
    """The files of a fleet that was written, and what its user should know: what was assumed and what was left out, in sentences."""

    paths: list[Path]
    notes: list[str]


class _Page:
    """A fleet file in the making: lines `key = value`, each with its origin above; `assumed`: those whose origin is no file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.assumed: list[str] = []
        self._section = ""

    def section(self, name: str, comment: str = "") -> None:
        self._section = f"{name}."
        self.lines += ["", f"[{name}]" + (f"  # {_plain(comment)}" if comment else "")]

    def put(self, key: str, value: Any, comment: str) -> None:
        wrapped = textwrap.wrap(_plain(comment), 118, break_long_words=False)
        self.lines += [*(f"# {line}" for line in wrapped), f"{key} = {toml_value(value)}"]
        if "assumed" in comment:
            self.assumed.append(f"{self._section}{key} = {clipped(toml_value(value))}: {_plain(comment)}")

    @property
    def text(self) -> str:
        return "\n".join(self.lines).lstrip("\n") + "\n"


def compose_fleet(findings: Sequence[Finding], path: Path, choices: Choices, *, keep: Sequence[Path] = ()) -> Composed:
    """Write a fleet file and its tables beside it. It is loaded on trial first, so that only a fleet that loads is written.

    **Arguments:** `findings`: latencies, at least one curve, and a demand or none; `path`: of the `.toml` file, replaced if
    made here; `keep`: files that must not be replaced, those that were read.

    **Returns:** the paths, and what was assumed.

    **Raises:** `InputError` where something is missing, is there twice, or does not fit together.
    """
    if path.suffix != ".toml":
        raise InputError(f"{str(path)!r} is no name for a fleet: give a path that ends in .toml.")
    _check_not_by_hand(path)
    latencies = _merged([one for one in findings if isinstance(one, Latencies)])
    curves = _by_slug([one for one in findings if isinstance(one, Curve)])
    demand = _only([one for one in findings if isinstance(one, Demand)], "demand")
    if not curves:
        raise InputError(
            "No file says how fast the servers are: add results of a load test, or a table workload,throughput."
        )
    if choices.load is not None and demand is not None and choices.replicas:
        raise InputError("--load has nothing to say beside a demand and --replicas: leave it, or --replicas, out.")
    check_common(choices.shift_s, demand)
    page, files = _Page(), {}
    page.put("name", path.stem, f"{_MADE}; every figure has its origin in the comment above it")
    frontends = _frontends(page, choices, latencies, demand)
    backends, chosen = _backends(page, choices, latencies, curves)
    rate = _rates(page, choices, frontends, demand)
    replicas = _servers(page, choices, backends, chosen, rate, curves)
    servers = [(curves[name], count) for name, count in zip(chosen, replicas, strict=True)]
    check_served(
        servers, rate, choices.wanted_load, f"--load {choices.wanted_load:g}" if demand is None else demand.origin
    )
    origins: dict[str, str] = {}
    for name in dict.fromkeys(chosen):
        table = f"{path.stem}.{name}.csv"
        files[table], origins[table] = curve_csv(curves[name]), curves[name].origin
        page.section(f"curves.{name}")
        page.put("kind", "measured", _said(curves[name]))
        page.put("table", table, "columns workload,throughput: requests in a server, requests/s")
    table = f"{path.stem}.latency.csv"
    files[table], origins[table] = latency_csv(latencies), latencies.origin
    _latency(page, choices, latencies, table, frontends, backends)
    if demand is not None:
        table = f"{path.stem}.demand.csv"
        files[table], origins[table] = demand_csv(demand), demand.origin
        _trace(page, choices, demand, table, frontends)
    _sources(page, [latencies, *curves.values(), *([] if demand is None else [demand])])
    check_used(choices)
    options = {
        "--replicas": (choices.replicas, backends),
        "--curves": (choices.curves, backends),
        "--weights": (choices.weights, frontends),
        "--shift-s": (() if isinstance(choices.shift_s, str) else choices.shift_s, frontends),
    }
    files[path.name] = page.text
    try:
        _try(path.name, files, demand is not None)
    except InputError as error:
        raise in_own_words(error, path.name, origins) from error
    check_not_inputs([path.parent / name for name in files], keep)
    write_all(path.parent, files)
    notes = [
        *page.assumed,
        *by_place(options),
        *long_shifts(choices.shift_s, demand),
        *left_out(frontends, backends, latencies, demand),
    ]
    return Composed([path.parent / name for name in files], notes)


def _check_not_by_hand(path: Path) -> None:
    """Raise `InputError` for a fleet file that somebody wrote: it would be lost."""
    if path.is_file() and _MADE.encode() not in path.read_bytes():
        raise InputError(
            f'{path} is there and was not made by this command (it lacks "{_MADE}"): give another name, or delete it first.'
        )


def _only(found: Sequence[F], what: str) -> F | None:
    if len(found) > 1:
        origins = listed([one.origin for one in found])
        raise InputError(f"{len(found)} files give a {what} ({origins}): keep one of them, or join them.")
    return found[0] if found else None


def _merged(found: Sequence[Latencies]) -> Latencies:
    """Latencies of several files; a pair that stands in two of them has to have one latency."""
    if not found:
        raise InputError("No file says how far apart the regions are: add a table from,to,rtt_ms or a matrix.")
    seconds: dict[tuple[str, str], float] = {}
    for one in found:
        for pair, value in one.seconds.items():
            if not math.isclose(seconds.setdefault(pair, value), value, rel_tol=1e-9):
                raise InputError(
                    f"{one.origin} contradicts another file for {' -> '.join(map(clipped, pair))}: keep one of the two."
                )
    notes = tuple(note for one in found for note in one.notes)
    holes = tuple(pair for one in found for pair in one.holes if pair not in seconds)
    senders, answerers = (tuple(name for one in found for name in one.ends(k)) for k in (0, 1))
    origin = ", ".join(dict.fromkeys(one.origin for one in found))
    return Latencies(seconds, origin, notes, holes, (senders, answerers))


def _by_slug(found: Sequence[Curve]) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for one in found:
        if curves.setdefault(slug(one.name), one) is not one:
            raise InputError(
                f'Two curves are called "{slug(one.name)}": rename one of the files, or take one with --select.'
            )
    return curves


def _frontends(page: _Page, choices: Choices, latencies: Latencies, demand: Demand | None) -> tuple[str, ...]:
    page.section("frontends")
    if choices.use("frontends"):
        names, why = choices.frontends, "as told"
    elif demand is not None and demand.names:
        names, why = demand.names, f"from {demand.origin}"
    else:
        names = latencies.ends(0)
        why = f"every region that {latencies.origin} has latencies from (assumed)"
    if demand is not None and demand.names:
        for name in demand.names:
            if name not in names:
                raise InputError(
                    f'{demand.origin} has requests of "{clipped(name)}", which is no frontend: {nearest(name, names)}'
                )
    check_known(names, "--frontends" if choices.frontends or demand is None else demand.origin, latencies)
    page.put("names", list(names), why)
    return names


def _backends(
    page: _Page, choices: Choices, latencies: Latencies, curves: dict[str, Curve]
) -> tuple[tuple[str, ...], list[str]]:
    """Names, and the curve of each."""
    regions = latencies.ends(1)
    own = tuple(name for name in regions if slug(name) in curves)
    names = choices.use("backends") or (own if len(own) == len(curves) else regions)
    check_known(names, "--backends", latencies)
    if choices.use("curves"):
        chosen = [slug(name) for name in _for_each(choices.curves, names, "--curves")]
    elif len(curves) == 1:
        chosen = [*curves] * len(names)
    else:
        chosen = [slug(name) for name in names]
    for name in chosen:
        if name not in curves:
            raise InputError(
                f'There is no curve "{clipped(name)}" ({listed(list(curves))} were read): say which backend has which with --curves, or '
                "choose places with --backends."
            )
    return names, chosen


def _for_each(given: tuple[Any, ...], names: tuple[str, ...], option: str) -> tuple[Any, ...]:
    """What an option gives, for every place."""
    if len(given) not in (1, len(names)):
        entries, places = counted(len(given), "entry", "entries"), counted(len(names), "place", "places")
        raise InputError(f"{option} has {entries} for {places} ({listed(names)}): give one, or one for each.")
    return given * len(names) if len(given) == 1 else given


def _rates(page: _Page, choices: Choices, frontends: tuple[str, ...], demand: Demand | None) -> float | None:
    """Write the rates, or weights and a load; the total rate in requests/s where it is known."""
    equal = not choices.use("weights")
    weights = np.array(_for_each(choices.weights or (1.0,), frontends, "--weights"), float)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.sum() > 0):
        raise InputError(
            f"--weights {weights.tolist()} are no shares: give numbers that are not negative, one above 0."
        )
    shares = "in equal parts (assumed: no file says where requests enter)" if equal else "by the weights as told"
    if demand is None:
        page.put("weight", weights.tolist(), shares)
        why = "assumed: no file says how many requests there are" if choices.load is None else "as told"
        page.put("load", choices.wanted_load, f"{why}; total rate over nominal capacity")
        return None
    if not demand.counts.any():
        raise InputError(f"{demand.origin} has no request: give a longer trace, or leave it out.")
    mean = demand.counts.mean(axis=0) / demand.width
    origin = (
        f"requests/s, mean of {counted(len(demand.counts), 'bin', 'bins')} of {demand.width:g} s in {demand.origin}"
    )
    if demand.names:
        if choices.weights:
            raise InputError(f"{demand.origin} says itself where requests enter: leave the weights out.")
        by_name = dict(zip(demand.names, mean.tolist(), strict=True))
        page.put("rate", [by_name.get(name, 0.0) for name in frontends], origin)
    else:
        page.put("rate", (float(mean[0]) * weights / weights.sum()).tolist(), f"{origin}, {shares}")
    return float(mean.sum())


def _servers(
    page: _Page,
    choices: Choices,
    backends: tuple[str, ...],
    chosen: list[str],
    rate: float | None,
    curves: dict[str, Curve],
) -> list[float]:
    """Write the backends and their replicas; these."""
    page.section("backends")
    page.put(
        "names",
        list(backends),
        "as told" if choices.backends else "every region that latencies lead to and servers are known for",
    )
    every = "assumed: the one kind of server that was measured stands everywhere"
    page.put(
        "curve",
        chosen,
        "as told" if choices.curves else every if len(curves) == 1 else "servers by the name of the place",
    )
    if choices.use("replicas"):
        check_replicas(choices.replicas)
        replicas, why = list(_for_each(choices.replicas, backends, "--replicas")), "as told"
    elif rate is None:
        replicas, why = [1.0] * len(backends), "assumed: one server behind each backend"
    else:
        capacity = sum(max(point.throughput for point in curves[name].points) for name in chosen)
        count = float(max(1, math.ceil(rate / (choices.wanted_load * capacity) * (1 - 1e-12))))
        replicas = [count] * len(backends)
        part = f"{choices.wanted_load:g} of the highest measured throughput"
        why = f"assumed: the fewest equal replicas at which the mean rate is at most {part}"
    page.put("replicas", replicas, why)
    return replicas


def _latency(
    page: _Page, choices: Choices, latencies: Latencies, table: str, frontends: Iterable[str], backends: Iterable[str]
) -> None:
    page.section("latency")
    page.put("table", table, _said(latencies))
    both = set(frontends) & set(backends)
    pairs = latencies.seconds
    missing = missing_arcs(list(frontends), list(backends), latencies)
    if missing and not choices.use("sparse"):
        check_complete(missing, latencies)
    if any((name, name) not in pairs for name in both):
        told = choices.use("inside_ms")
        why = (
            "assumed: one way inside a region, which was not measured"
            if told is None
            else "as told: one way inside a region"
        )
        page.put("inside_ms", _INSIDE_MS if told is None else told, why)
    if any((i, j) not in pairs and (j, i) in pairs for i in frontends for j in backends):
        page.put("symmetric", True, "assumed: pairs that are listed one way round only take the same time in both")
    if missing:
        page.section("arcs")
        page.put("forbidden", [list(pair) for pair in missing], f"as told: {latencies.origin} has no latency for these")


def _trace(page: _Page, choices: Choices, demand: Demand, table: str, frontends: tuple[str, ...]) -> None:
    page.section("demand.trace", "dgdlb run FLEET --demand trace; without it the mean rates")
    page.put("kind", "trace", _said(demand))
    page.put("table", table, "requests per bin, scaled to the mean rates")
    shifts = choices.use("shift_s")
    if isinstance(shifts, str):
        page.put("shift_s", sun_shifts(frontends, demand.width), _SUN.format(frontends[0]))
    elif shifts:
        shifts = list(_for_each(shifts, frontends, "--shift-s"))
        check_shifts(shifts, demand.width, demand.origin)
        page.put("shift_s", shifts, "how much later each frontend sees the day, as told: a modelling choice")


def _sources(page: _Page, found: Iterable[Latencies | Curve | Demand]) -> None:
    for k, origin in enumerate(dict.fromkeys(one.origin for one in found)):
        page.section(f"sources.file-{k + 1}")
        page.put("title", origin, "read by dgdlb import")
        page.put("licence", "not stated in the file", "say here under which licence you have it")


def _said(found: Latencies | Curve | Demand) -> str:
    return "; ".join((f"from {found.origin}", *found.notes))


def _plain(text: str) -> str:
    """A comment on one line, without characters that a comment cannot hold."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def slug(name: str) -> str:
    """A curve's name as a bare key of TOML and as a part of a file's name."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in name).strip("-") or "curve"


def _try(name: str, files: dict[str, str], has_trace: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_all(Path(folder), files)
        load_fleet(Path(folder) / name, demand="trace" if has_trace else None)
