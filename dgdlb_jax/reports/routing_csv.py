"""A user's own routing: the file behind `dgdlb run --current`, a CSV table or any other format that `--export` writes."""

import csv
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dgdlb_jax.fleets.document import clipped, read_text
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import cell_text, did_you_mean
from dgdlb_jax.policies.static import FixedRouting
from dgdlb_jax.reports.exporters import EXPORTERS, ByName, Exporter, Names, slugs
from dgdlb_jax.reports.exporters.tables import COLUMNS
from dgdlb_jax.studies.outcome import backend_names, frontend_names

_ROUNDING = 2e-3


def read_routing(path: str | Path, network: Network) -> FixedRouting:
    """Read shares from a file: a table with the columns `frontend,backend,share` (separated by commas, by semicolons or tabs), or what
    any format of `--export` writes.

    Every frontend's shares sum to 1, or to 100 %; sums that differ by rounding (up to 0.2 %) are scaled to 1, as weights are. What
    is not listed is 0.

    **Arguments:** `path` of the file, with `#NAME` behind it for one of several routings in a JSON file; `network`, whose names
    the file uses, or what a format makes of them.

    **Returns:** a `FixedRouting` with a table `(frontends, backends)`.

    **Raises:** `InputError`, naming file and line, for anything else.
    """
    path, chosen = _chosen(Path(path))
    if path.suffix in (".yaml", ".yml"):
        raise InputError(f"{path}: YAML is not read; give the same as JSON (kubectl get ... -o json).")
    text = read_text(path, "--current: ")
    if text.lstrip()[:1] in ("{", "["):
        return _from_document(path, chosen, text, network)
    rows = _rows(path, text)
    frontends, backends = frontend_names(network), backend_names(network)
    mask = np.asarray(network.mask)
    shares, seen = np.zeros(mask.shape), {}
    for line, row in rows:
        i = _index(path, line, "frontend", row["frontend"], frontends)
        j = _index(path, line, "backend", row["backend"], backends)
        share = _share(path, line, row["share"])
        if (i, j) in seen:
            raise InputError(
                f"{path}:{line}: {frontends[i]} to {backends[j]} already stands in line {seen[i, j]}; keep one of them."
            )
        if share > 0 and not mask[i, j]:
            raise InputError(
                f"{path}:{line}: {frontends[i]} cannot reach {backends[j]} in this fleet; send its share elsewhere."
            )
        seen[i, j] = line
        shares[i, j] = share
    return _routing(path, shares, frontends)


def _routing(path: Path, shares: np.ndarray, frontends: tuple[str, ...]) -> FixedRouting:
    sums = shares.sum(1)
    for name, total in zip(frontends, sums, strict=True):
        if not abs(total - 1) <= _ROUNDING:
            raise InputError(f"{path}: the shares of frontend {name} sum to {total:.6g}; make them sum to 1.")
    return FixedRouting(shares / sums[:, None])


def _chosen(path: Path) -> tuple[Path, str | None]:
    """`routing.json#optimum` is the routing called optimum in `routing.json`."""
    stem, mark, name = path.name.rpartition("#")
    return (path.with_name(stem), name) if mark and stem and not path.exists() else (path, None)


def _from_document(path: Path, chosen: str | None, text: str, network: Network) -> FixedRouting:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); correct it.") from error
    exporter, found = _recognised(path, _pick(path, chosen, document))
    names = Names(frontend_names(network), backend_names(network))
    (frontends, backends), labels = names, exporter.labels(names)
    mask, shares, seen = np.asarray(network.mask), np.zeros((len(frontends), len(backends))), set()
    for origin, row in found.items():
        i = _named(path, "frontend", origin, frontends, labels.frontends)
        if i in seen:
            raise InputError(f"{path}: frontend {frontends[i]} occurs twice; keep one of them.")
        seen.add(i)
        for target, share in row.items():
            j = _named(path, "backend", target, backends, labels.backends)
            if not 0 <= share <= 1 + _ROUNDING:
                raise InputError(f"{path}: {origin} has the share {share!r} for {target}; shares lie between 0 and 1.")
            if share > 0 and not mask[i, j]:
                raise InputError(
                    f"{path}: {frontends[i]} cannot reach {backends[j]} in this fleet; send its share elsewhere."
                )
            shares[i, j] += share
    return _routing(path, shares, frontends)


def _pick(path: Path, chosen: str | None, document: Any) -> Any:
    """One of several routings in a file."""
    read = EXPORTERS["json"].read
    assert read is not None
    several = document if isinstance(document, dict) and document and all(map(read, document.values())) else {}
    if chosen is None:
        if len(several) > 1:
            raise InputError(f"{path} holds {len(several)} routings; choose one as {path}#{next(iter(several))}.")
        return next(iter(several.values())) if several else document
    if chosen not in several:
        known = f"it has {', '.join(several)}" if several else "it holds one routing, leave the # out"
        raise InputError(f"{path} has no routing called {chosen!r}; {known}.")
    return several[chosen]


def _recognised(path: Path, document: Any) -> tuple[Exporter, ByName]:
    for exporter in EXPORTERS.values():
        try:
            found = None if exporter.read is None else exporter.read(document)
        except InputError as error:
            raise InputError(f"{path}, read as {exporter.name}: {error}") from error
        if found is not None:
            return exporter, found
    known = ", ".join(name for name, exporter in EXPORTERS.items() if exporter.read is not None)
    raise InputError(
        f"{path}: no routing found; give a table {','.join(COLUMNS)}, or JSON as --export writes it ({known})."
    )


def _named(path: Path, what: str, name: str, known: tuple[str, ...], labels: tuple[str, ...]) -> int:
    """The place of a name: as its format writes it, as it is, or as a label of an address."""
    for spelled in (labels, known, slugs(known)):
        if name in spelled:
            return spelled.index(name)
    raise InputError(f"{path}: no {what} is called {name!r}{_hint(name, known)}")


def _rows(path: Path, text: str) -> list[tuple[int, dict[str, str]]]:
    try:
        separator = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=separator)
        _check_header(path, reader.fieldnames or [])
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file in UTF-8 ({error}); save it as such.") from error
    for line, row in rows:
        if None in row or any(row[column] is None for column in COLUMNS):
            raise InputError(f"{path}:{line}: not as many values as columns; every line has {','.join(COLUMNS)}.")
    return rows


def _check_header(path: Path, found: Sequence[str]) -> None:
    for column in found:
        if column not in COLUMNS:
            hint = did_you_mean(column, COLUMNS, ".")
            raise InputError(f"{path}:1: unknown column {clipped(column)!r}, the columns are {','.join(COLUMNS)}{hint}")
    for column in COLUMNS:
        if column not in found:
            raise InputError(f"{path}:1: no column {column!r}; the columns are {','.join(COLUMNS)}.")


def _index(path: Path, line: int, what: str, name: str, known: tuple[str, ...]) -> int:
    name = name.strip()
    for same in (cell_text(name), name):
        if same in known:
            return known.index(same)
    raise InputError(f"{path}:{line}: no {what} is called {clipped(name)!r}{_hint(name, known)}")


def _hint(name: str, known: tuple[str, ...]) -> str:
    return did_you_mean(name, known, f"; this fleet has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}.")


def _share(path: Path, line: int, text: str) -> float:
    try:
        number, percent, rest = text.strip().partition("%")
        # Beside semicolons and tabs, numbers may have decimal commas.
        share = math.nan if rest else float(number.replace(",", ".")) / (100 if percent else 1)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 + _ROUNDING:
        raise InputError(
            f"{path}:{line}: the share {clipped(text)!r} is not a number from 0 to 1, or from 0 % to 100 %."
        )
    return share
