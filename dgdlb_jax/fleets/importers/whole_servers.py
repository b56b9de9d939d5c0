"""Throughput per GPU as that of a whole server, and what a column of GPUs, nodes or replicas means for a curve."""

import copy
import re
from collections.abc import Sequence

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.words import first_of
from dgdlb_jax.fleets.tables import Cells, Row, Table
from dgdlb_jax.numerics.results import InputError

_GPUS = (
    "gpus",
    "num_gpus",
    "n_gpus",
    "gpu_count",
    "num_gpu",
    "chips",
    "num_chips",
    "chip_count",
    "accelerators",
    "num_accelerators",
)
_SERVERS = (
    "nodes",
    "num_nodes",
    "instances",
    "num_instances",
    "replicas",
    "num_replicas",
    "servers",
    "pods",
    "workers",
)
_PER_GPU = re.compile(r"[ _]*(?:per|/)[ _]*(?:gpu|chip|accelerator)(?![a-z])", re.IGNORECASE)


def whole_name(column: str) -> str:
    """The name of the same figure of a whole server: `tokens/s` for `tokens/s/GPU`, any other name as it is."""
    return _PER_GPU.sub("", column)


def of_whole_servers(table: Table, columns: Sequence[str]) -> Table:
    """A table whose figures per GPU, in some columns, are multiplied by the column that counts these.

    **Raises:** `InputError` where no column counts them.
    """
    whole = {column: whole_name(column) for column in columns}
    if not whole:
        return table
    gpus = first_of(table.columns, _GPUS)
    if gpus is None:
        raise InputError(
            f'{table.name}: "{clipped(next(iter(whole)))}" is that of one GPU, and no column says how many a server has: add a column gpus.'
        )
    changed = copy.copy(table)
    changed.columns = [whole.get(column, column) for column in table.columns]
    places = {column: k for k, column in enumerate(changed.columns)}
    changed.positions = {whole.get(column, column): at for column, at in table.positions.items()}
    changed.rows = [
        Row(
            row.line,
            Cells(places, [_times(table, row, c, gpus) if c in whole else row.cells[c] for c in table.columns]),
        )
        for row in table.rows
    ]
    changed.notes = (*table.notes, *(f'"{clipped(column)}" times "{clipped(gpus)}"' for column in whole))
    return changed


def _times(table: Table, row: Row, column: str, gpus: str) -> str:
    if not table.is_number(row.cells[column]):
        return row.cells[column]
    value = table.number(row, column) * table.number(row, gpus, above=True)
    return repr(value).replace(".", table.numerals.decimal)


def together(table: Table, *, by_gpu: bool) -> tuple[str, ...]:
    """That throughput is taken for that of all GPUs (`by_gpu`), or all replicas, of which a column has one number of several."""
    notes = []
    for spellings in (*([_GPUS] if by_gpu else []), _SERVERS):
        column = first_of(table.columns, spellings)
        cells = sorted({row.cells[column] for row in table.rows}) if column else []
        if column and len(cells) == 1 and cells[0] != "1" and table.is_number(cells[0]):
            name, count = clipped(column), cells[0]
            notes.append(
                f'"{name}" is {count}: the throughput is taken for that of all {count} together, as one server of the fleet'
            )
    return tuple(notes)
