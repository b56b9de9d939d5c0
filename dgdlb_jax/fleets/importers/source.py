"""A file or a folder that somebody hands over, looked at as JSON, as JSON lines or as a table."""

import json
from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from dgdlb_jax.fleets.document import Folder, read_text
from dgdlb_jax.fleets.importers.cell_units import with_cell_units
from dgdlb_jax.fleets.importers.date_and_time import with_one_time
from dgdlb_jax.fleets.importers.header_multiples import with_plain_units
from dgdlb_jax.fleets.importers.label_sets import with_label_sets
from dgdlb_jax.fleets.importers.unit_column import with_units
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.files import is_folder
from dgdlb_jax.numerics.results import InputError

# A folder of results is no deeper and no larger than this; the root of a disk is.
_DEEPEST, _MOST_FILES = 4, 5000


class Source:
    """What lies at a path, parsed at most once.

    - `name`: what messages call it; `wanted_by`: who asks for it, in front of complaints that it cannot be read.
    """

    def __init__(self, path: Folder, name: str, wanted_by: str = ""):
        self.path, self.name, self.wanted_by = path, name, wanted_by

    @property
    def is_folder(self) -> bool:
        return is_folder(self.path)

    @cached_property
    def files(self) -> tuple["Source", ...]:
        """All JSON and CSV files in a folder and below it, by name; for a file the file itself."""
        if not self.is_folder:
            return (self,)
        found = tuple(islice(_below(self), _MOST_FILES + 1))
        if len(found) > _MOST_FILES:
            raise InputError(
                f"{self.wanted_by}{self.name} holds more than {_MOST_FILES} files: give the folder of one load test."
            )
        return found

    @cached_property
    def text(self) -> str:
        return read_text(self.path, self.wanted_by)

    @cached_property
    def document(self) -> Any:
        """The JSON value of the file, or None where it begins with neither `{` nor `[`, or holds a value in every line.

        **Raises:** `InputError` for a list that is no JSON, as one that was cut off.
        """
        if self.is_folder or self.text.lstrip()[:1] not in ("{", "["):
            return None
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError) as error:
            if self.text.lstrip()[0] == "{":
                return None
            raise InputError(f"{self.name}: not valid JSON ({error}): export it again.") from error

    @cached_property
    def records(self) -> list[dict[str, Any]] | None:
        """The objects of a JSON list, of the only list in a JSON object, or of JSON lines, or None where the file holds none of them.

        **Raises:** `InputError` for a line that is no object in a file whose other lines are.
        """
        found = self.document if isinstance(self.document, list) else _only_list(self.document)
        if isinstance(found, list):
            return found if found and all(isinstance(record, dict) for record in found) else None
        if self.document is not None or self.is_folder or not self.text.lstrip().startswith("{"):
            return None
        return [self._record(number, line) for number, line in enumerate(self.text.splitlines(), 1) if line.strip()]

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.name}:{number}: not valid JSON ({error}): correct the line.") from error
        if not isinstance(record, dict):
            raise InputError(f"{self.name}:{number}: not a JSON object: write one object per line.")
        return record

    @cached_property
    def table(self) -> Table | None:
        """The table in the file, or its JSON records as one, with one column of times; None for a folder and for any other JSON."""
        if self.records is not None:
            return _prepared(Table.of_records(self.name, self.records))
        if self.is_folder or self.document is not None:
            return None
        return _prepared(Table(self.name, self.text))

    @property
    def notes(self) -> tuple[str, ...]:
        """What there is to say of the table, where the file was read as one."""
        return () if self.__dict__.get("table") is None else self.__dict__["table"].notes


def _only_list(document: Any) -> list[Any] | None:
    """The list of an object that else says what it is a list of, such as CloudWatch's `{"Label": ..., "Datapoints": [...]}`."""
    if not isinstance(document, dict):
        return None
    lists = [value for value in document.values() if isinstance(value, list)]
    others = [value for value in document.values() if not isinstance(value, str | int | float | list | None)]
    return lists[0] if len(lists) == 1 and not others and isinstance(next(iter(lists[0]), None), dict) else None


def _prepared(table: Table) -> Table:
    """A table with one column of times, short names, and units where they belong: in the names of its columns."""
    return with_plain_units(with_units(with_cell_units(with_one_time(with_label_sets(table)))))


def _below(source: Source, depth: int = 0) -> Iterator[Source]:
    """Files that may hold results, level by level; links to folders are not followed, they could lead anywhere."""
    try:
        paths = sorted(source.path.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise InputError(
            f"{source.wanted_by}{source.name} cannot be read ({error.strerror}): check the folder."
        ) from error
    for path in paths:
        inner = Source(path, f"{source.name}/{path.name}", source.wanted_by)
        if path.is_dir():
            linked = isinstance(path, Path) and path.is_symlink()
            if depth < _DEEPEST and not linked:
                yield from _below(inner, depth + 1)
        elif path.name.endswith((".json", ".jsonl", ".csv")):
            yield inner
