"""The `[latency]` and `[arcs]` sections: who reaches whom, and how long that takes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dgdlb_jax.fleets.document import Folder, Section, clipped, nearest
from dgdlb_jax.fleets.importers import LATENCIES as UNITS  # keys of matrices, and seconds one way in one of each
from dgdlb_jax.fleets.importers import Options, read_latency
from dgdlb_jax.fleets.importers.base import Latencies as Listed
from dgdlb_jax.fleets.importers.plausible import doubts
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

_SHOWN_PAIRS = 3


class Places(NamedTuple):
    """Frontends and backends: their names, and the regions under which latency tables list them."""

    frontends: tuple[str, ...]
    backends: tuple[str, ...]
    frontend_regions: tuple[str, ...]
    backend_regions: tuple[str, ...]


class Latencies(NamedTuple):
    """`(frontends, backends)` in seconds, and which arcs there are. Where there is none the latencies are 0."""

    forward: Float[np.ndarray, "frontends backends"]
    feedback: Float[np.ndarray, "frontends backends"]
    cost: Float[np.ndarray, "frontends backends"]
    mask: Bool[np.ndarray, "frontends backends"]


def read_latencies(document: Section, places: Places, folder: Folder) -> Latencies:
    """The three latencies and the mask."""
    mask = _read_arcs(document.section("arcs", {}), places, folder)
    section = document.section("latency")
    section.only("table", "unit", *UNITS, "symmetric", "inside_ms", "feedback", "cost")
    _lookup_rules(section)
    forward = _forward(section, places, mask, folder)
    return Latencies(
        forward,
        _other(section, "feedback", forward, places, mask, folder, {"one way": 1.0}),
        _other(section, "cost", forward, places, mask, folder, {"one way": 1.0, "round trip": 2.0}),
        mask,
    )


def _forward(section: Section, places: Places, mask: np.ndarray, folder: Folder) -> np.ndarray:
    given = [key for key in ("table", *UNITS) if key in section]
    if len(given) != 1:
        raise section.error(
            given[1] if given else "table",
            f"stands beside {given[0]}" if given else "is missing",
            f"give the latencies once, as one of table, {', '.join(UNITS)}.",
        )
    if given == ["table"]:
        return _from_table(section, "table", places, mask, folder)
    shape = (len(places.frontends), len(places.backends))
    matrix = np.array(section.matrix(given[0], *shape), float)
    if given[0] != "one_way_s":  # which networks are written in, and those need not be real
        seconds = dict(zip(_used(places, mask), matrix[mask] * UNITS[given[0]], strict=True))
        section.notes.extend(f"{section.place}: {doubt}." for doubt in doubts(Listed(seconds, section.place)))
    for key in ("unit", "symmetric", "inside_ms"):
        if key in section and not any(section.text_of(name, "").endswith(".csv") for name in ("feedback", "cost")):
            raise section.error(key, f"is about tables, and {given[0]} is none", "remove it.")
    return np.where(mask, matrix * UNITS[given[0]], 0.0)


def _other(
    section: Section,
    key: str,
    forward: np.ndarray,
    places: Places,
    mask: np.ndarray,
    folder: Folder,
    factors: dict[str, float],
) -> np.ndarray:
    """A latency given as a multiple of the forward one, or as a table of its own."""
    value = section.text_of(key, "one way")
    if value in factors:
        return forward * factors[value]
    if not value.endswith(".csv"):
        known = ", ".join(f'"{name}"' for name in factors)
        raise section.error(key, f'is "{value}"', f"give {known} or the name of a table that ends in .csv.")
    return _from_table(section, key, places, mask, folder)


def _lookup_rules(section: Section) -> tuple[bool, float | None]:
    """Whether pairs may be looked up the other way round, and the latency inside a region in seconds."""
    inside = section.number("inside_ms") / 1e3 if "inside_ms" in section else None
    return section.flag("symmetric", False), inside


def _from_table(section: Section, key: str, places: Places, mask: np.ndarray, folder: Folder) -> np.ndarray:
    """Latencies of all arcs from a table with columns `from, to` and a figure; raises with the pairs that are missing."""
    name = section.text_of(key)
    unit = section.choice("unit", UNITS) if "unit" in section else None
    options = Options(latency=unit, names=places.frontend_regions, backends=places.backend_regions)
    found = read_latency(folder, name, section.place, options)
    section.notes.extend(f"{found.origin}: {note}." for note in found.notes)
    listed = found.seconds
    symmetric, inside = _lookup_rules(section)

    def look_up(origin: str, target: str) -> float | None:
        if (origin, target) in listed:
            return listed[origin, target]
        if symmetric and (target, origin) in listed:
            return listed[target, origin]
        return inside if origin == target else None

    made = _matrix(places, mask, look_up, lambda pairs: _missing(found, section, pairs))
    own = [pair for pair in _used(places, mask) if pair[0] == pair[1]]
    if inside is not None and own and all(pair in listed for pair in own):
        section.notes.append(f"{section.place}: inside_ms is not used, as {found.origin} has latencies inside regions.")
    return made


def _matrix(
    places: Places,
    mask: np.ndarray,
    look_up: Callable[[str, str], float | None],
    complain: Callable[[list[tuple[str, str]]], InputError],
) -> np.ndarray:
    matrix = np.zeros(mask.shape)
    missing = []
    for (i, j), pair in zip(np.argwhere(mask), _used(places, mask), strict=True):
        value = look_up(*pair)
        if value is None:
            missing.append(pair)
        else:
            matrix[i, j] = value
    if missing:
        raise complain(missing)
    return matrix


def _used(places: Places, mask: np.ndarray) -> list[tuple[str, str]]:
    """The regions of all arcs, row by row."""
    return [(places.frontend_regions[i], places.backend_regions[j]) for i, j in np.argwhere(mask)]


def _missing(found: Listed, section: Section, pairs: list[tuple[str, str]]) -> InputError:
    regions = {region for pair in found.seconds for region in pair}
    unknown = [region for pair in pairs for region in pair if region not in regions]
    if unknown:
        hint = f'"{clipped(unknown[0])}" does not occur in the table: {nearest(unknown[0], regions)}'
    elif pairs[0] in found.holes:
        hint = "its cell holds no figure: fill it in, or list the pair under [arcs] forbidden."
    elif pairs[0][0] == pairs[0][1]:
        hint = f"give the latency inside a region as {section.place} inside_ms, or add the lines."
    else:
        hint = "add the lines, state symmetric = true if both ways take the same time, or list the pairs under "
        hint += "[arcs] forbidden."
    more = f" and {len(pairs) - _SHOWN_PAIRS} more" if len(pairs) > _SHOWN_PAIRS else ""
    listed = ", ".join(_arrow(pair) for pair in pairs[:_SHOWN_PAIRS])
    return InputError(f"{found.origin} has no latency for {listed}{more}: {hint}")


def _arrow(pair: tuple[str, str]) -> str:
    return f"{clipped(pair[0])} -> {clipped(pair[1])}"


def _read_arcs(section: Section, places: Places, folder: Folder) -> np.ndarray:
    """Which arcs exist: all of them, all but the forbidden ones, or only the allowed ones."""
    section.only("allowed", "forbidden")
    shape = len(places.frontends), len(places.backends)
    if "allowed" in section and "forbidden" in section:
        raise section.error("forbidden", "stands beside allowed", "keep one of the two, the other arcs follow from it.")
    if "allowed" not in section and "forbidden" not in section:
        return np.ones(shape, bool)
    key = "allowed" if "allowed" in section else "forbidden"
    mask = np.full(shape, key == "forbidden")
    for frontend, backend in _pairs(section, key, folder):
        for kind, name, known in (("frontend", frontend, places.frontends), ("backend", backend, places.backends)):
            if name not in known:
                raise section.error(key, f'names the {kind} "{name}", which does not exist', nearest(name, known))
        mask[places.frontends.index(frontend), places.backends.index(backend)] = key == "allowed"
    lonely = np.flatnonzero(~mask.any(axis=1))
    if lonely.size:
        raise section.error(
            key,
            f'leaves the frontend "{places.frontends[lonely[0]]}" without an arc',
            "let it reach at least one backend.",
        )
    return mask


def _pairs(section: Section, key: str, folder: Folder) -> list[tuple[str, str]]:
    """Pairs of frontend and backend names: a list in the file, or a table with columns `from, to`."""
    value = section.get(key, (list, str), 'a list of pairs [["frontend", "backend"]] or the name of a table')
    if isinstance(value, str):
        table = Table.read(folder, value, section.place)
        origin, target = table.column("from"), table.column("to")
        return [(row.cells[origin], row.cells[target]) for row in table.rows]
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise section.error(key, f"contains {pair}", 'give pairs ["frontend", "backend"].')
    return [(pair[0], pair[1]) for pair in value]
