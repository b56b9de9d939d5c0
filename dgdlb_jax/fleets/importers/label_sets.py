"""Tables whose columns are called after all labels of a series, `{region="paris", job="gw"}`, as Grafana writes them."""

import re
from collections.abc import Mapping

from dgdlb_jax.fleets.importers.fields import telling
from dgdlb_jax.fleets.importers.unit_column import renamed
from dgdlb_jax.fleets.importers.words import PLACES
from dgdlb_jax.fleets.tables import Table

_SET = re.compile(r'([A-Za-z_:][\w:]*)?\{((?:\s*\w+="(?:[^"\\]|\\.)*"\s*,?)+)\}')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def with_label_sets(table: Table) -> Table:
    """A table whose columns are called after all of their labels as one whose columns are called after those that tell them apart, a
    place before others; any other table as it is."""
    sets = {column: labels for column in table.columns[1:] if (labels := _labels(column))}
    if not sets:
        return table
    keys = sorted({key for labels in sets.values() for key in labels}, key=_order)
    chosen = telling(keys, list(sets.values())) or [key for key in keys if key in PLACES][:1]
    names = {column: "-".join(filter(None, (labels.get(key, "") for key in chosen))) for column, labels in sets.items()}
    if not all(names.values()) or len({*names.values(), *table.columns} - {*names}) < len(table.columns):
        return table
    return renamed(table, names, (f"columns are called after their labels {', '.join(chosen)}",))


def _labels(column: str) -> Mapping[str, str]:
    """The labels in the name of a column, that of the metric as Prometheus calls it; none in any other name."""
    found = _SET.fullmatch(column.strip())
    return {} if found is None else {"__name__": found[1] or "", **dict(_LABEL.findall(found[2]))}


def _order(key: str) -> tuple[bool, int, str]:
    """Places first, metrics last."""
    return key == "__name__", PLACES.index(key) if key in PLACES else len(PLACES), key
