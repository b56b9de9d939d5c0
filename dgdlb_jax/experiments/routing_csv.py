"""A user's own routing table: the CSV behind `dgdlb run --current`."""

import csv
import io
import math
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from dgdlb_jax.experiments.outcome import backend_names, frontend_names
from dgdlb_jax.model.fleets.document import clipped, read_text
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import cell_text
from dgdlb_jax.policies.static import FixedRouting

COLUMNS = ("frontend", "backend", "share")
_ROUNDING = 2e-3


def read_routing(path: str | Path, network: Network) -> FixedRouting:
    """Read shares from a CSV file with the columns `frontend,backend,share`; what is not listed is 0.

    Every frontend's shares sum to 1; sums that differ by rounding (up to 0.2 %) are scaled to 1.

    **Arguments:** `path` of the file; `network`, whose names the file uses.

    **Returns:** a `FixedRouting` with a table `(frontends, backends)`.

    **Raises:** `InputError`, naming file and line, for anything else.
    """
    path = Path(path)
    rows = _rows(path)
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
    sums = shares.sum(1)
    for name, total in zip(frontends, sums, strict=True):
        if abs(total - 1) > _ROUNDING:
            raise InputError(f"{path}: the shares of frontend {name} sum to {total:.6g}; make them sum to 1.")
    return FixedRouting(shares / sums[:, None])


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    text = read_text(path, "--current: ").removeprefix("\ufeff")
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
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
            close = get_close_matches(column, COLUMNS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"the columns are {','.join(COLUMNS)}."
            raise InputError(f"{path}:1: unknown column {clipped(column)!r}; {hint}")
    for column in COLUMNS:
        if column not in found:
            raise InputError(f"{path}:1: no column {column!r}; the columns are {','.join(COLUMNS)}.")


def _index(path: Path, line: int, what: str, name: str, known: tuple[str, ...]) -> int:
    name = name.strip()
    for same in (name, cell_text(name)):
        if same in known:
            return known.index(same)
    close = get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {close[0]}?"
        if close
        else f"this fleet has {', '.join(known[:8])}{' ...' if len(known) > 8 else ''}."
    )
    raise InputError(f"{path}:{line}: no {what} is called {clipped(name)!r}; {hint}")


def _share(path: Path, line: int, text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 <= share <= 1 + _ROUNDING:
        raise InputError(f"{path}:{line}: the share {clipped(text)!r} is not a number from 0 to 1.")
    return share
