"""Reading TOML with errors that a person can act on: file, line, field, value, remedy."""

import contextlib
import math
import re
import stat
import tomllib
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from dgdlb_jax.fleets.encoding import decoded
from dgdlb_jax.numerics.checks import in_range
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import clipped as clipped
from dgdlb_jax.numerics.text import closest

Folder = Path | Traversable

LARGEST_FILE = 256_000_000
"""Bytes of a text file that is read as a whole."""
LONGEST_NAME = 200
"""Letters of a name of a fleet, a frontend or a backend."""
_MOST_NAMES = 12  # all that a section may be: every kind of event, demand or curve
_LONGEST_PATH = 300


class FleetWarning(UserWarning):
    """What was made of a file that does not say all by itself, or that is not quite a service curve."""


def nearest(word: object, known: Collection[str], near: str = "did you mean", there: str = "known here:") -> str:
    """`did you mean "known"?`, if anything is near; and what there is, all of it or where nothing is near some."""
    if not known:
        return "nothing is known here."
    close = closest(clipped(str(word)), map(clipped, known), cutoff=0.5)
    names = f"{there} {listed(sorted(known))}."
    if close is None:
        return names
    hint = f'{near} "{close}"?'
    return hint if len(known) > _MOST_NAMES else f"{hint} {names[0].upper()}{names[1:]}"


def nearest_column(wanted: str, columns: Collection[str]) -> str:
    """The same of a column that a table lacks, within a sentence."""
    return nearest(wanted, columns, "is it", "it has the columns").rstrip(".")


def listed(names: Sequence[str]) -> str:
    """A few names, and how many more there are."""
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(clipped(name) for name in names[:_MOST_NAMES]) + more


def counted(number: int, one: str, many: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {one if number == 1 else many}"


@contextlib.contextmanager
def about(file: str, options: Collection[str] = ()) -> Iterator[None]:
    """Complaints about what a fleet's file says get its name in front, as when it was read.

    **Arguments:** `options`: arguments that were given on the command line, and are called so there.
    """
    try:
        yield
    except InputError as error:
        name, text = Path(file).name, str(error)
        for one in options:
            text = re.sub(rf"\b{one}(?= (?:=|is) )", f"--{one.replace('_', '-')}", text)
        raise InputError(text if text.startswith(name) else f"{name}: {text}") from error


def read_text(file: Folder, wanted_by: str = "") -> str:
    """The text of a file, or an `InputError` that names it; a `FleetWarning` where its encoding had to be assumed."""
    name = str(file) if len(str(file)) <= _LONGEST_PATH else clipped(file.name)
    try:
        _check_readable(file)
        data = file.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{wanted_by}{name} does not exist: check the name, or create the file.") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{wanted_by}{name} cannot be read ({why}): give the name of a readable text file.") from error
    text, note = decoded(data, name)
    if note:
        warnings.warn(note, FleetWarning, stacklevel=2)
    return text


def _check_readable(file: Folder) -> None:
    """Raise `OSError` for what is no regular file, as reading a pipe or a device might never end, and for what is too large."""
    if not isinstance(file, Path):
        return
    status = file.stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise OSError("a pipe or a device, not a file")
    if status.st_size > LARGEST_FILE:
        raise OSError(f"{status.st_size / 1e6:.0f} MB, more than the {LARGEST_FILE / 1e6:.0f} MB that are read")


def parse(file: Folder) -> "Section":
    """The whole TOML file as its outermost section."""
    text = read_text(file)
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{file} is not valid TOML: {str(error).removesuffix('.')}; correct it there.") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{file} is not valid TOML ({error}): simplify or correct it.") from error
    return Section(content, file.name, text, ())


class Section:
    """A table of a TOML file that checks what it hands out and remembers which keys were asked for.

    `wanted` counts in the methods: how many numbers or names there have to be (None: any number, at least one).
    """

    def __init__(
        self, content: dict[str, Any], file: str, text: str, path: tuple[str, ...], notes: list[str] | None = None
    ):
        self.content, self.file, self.text, self.path = content, file, text, path
        self.notes: list[str] = [] if notes is None else notes  # what readers have to say; one list for the whole file

    def __contains__(self, key: str) -> bool:
        return key in self.content

    def error(self, key: str, problem: str, remedy: str) -> InputError:
        """The exception to raise about `key`: `fleet.toml:7: frontends.rate <problem>: <remedy>`."""
        return InputError(f"{self._where(key)} {problem}: {remedy}")

    def _where(self, key: str) -> str:
        """`fleet.toml:7: frontends.rate`."""
        line = _line_of(self.text, self.path, key)
        place = f"{self.file}:{line}" if line else self.file
        return f"{place}: {clipped('.'.join([*self.path, key]))}"

    def only(self, *known: str) -> None:
        """Raise for the first key that is not among the known ones."""
        for key in self.content:
            if key not in known:
                raise self.error(key, "is not a known key", nearest(key, known))

    def get(self, key: str, kind: type | tuple[type, ...], described: str, default: Any = ...) -> Any:
        """A value of the given type; a missing key without default is an error. (A bool never counts as a number.)"""
        if key not in self.content:
            if default is ...:
                raise self.error(key, "is missing", f"give {described}.")
            return default
        value = self.content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(key, f"is {shown(value)}", f"give {described}.")
        return value

    def text_of(self, key: str, default: Any = ...) -> Any:
        return self.get(key, str, "a text in quotes", default)

    def name_of(self, key: str, default: Any = ...) -> Any:
        """A text that names something: printable, and not too long for a table."""
        value = self.text_of(key, default)
        self._check_name(key, value, "is")
        return value

    def _check_name(self, key: str, name: str, verb: str) -> None:
        if not name.isprintable():  # a terminal, a picture and a table would each do something else with it
            raise self.error(key, f"{verb} {clipped(name)!r}", "use printable characters only.")
        if name != name.strip():
            raise self.error(key, f"{verb} {shown(name)}", "leave out the spaces around it, which tables lose.")
        if len(name) > LONGEST_NAME:
            raise self.error(key, f"{verb} {shown(name)}", f"use up to {LONGEST_NAME} letters.")

    def flag(self, key: str, default: bool) -> bool:
        return self.get(key, bool, "true or false", default)

    def section(self, key: str, default: Any = ...) -> "Section":
        """A table within this table; an empty one when it is missing and `default` says so."""
        content = self.get(key, dict, f"a table, [{'.'.join([*self.path, key])}]", default)
        return Section(content, self.file, self.text, (*self.path, key), self.notes)

    def sections(self) -> dict[str, "Section"]:
        """All tables within this table, by name."""
        return {key: self.section(key) for key, value in self.content.items() if isinstance(value, dict)}

    def choice(self, key: str, known: Collection[str], default: Any = ...) -> str:
        value = self.text_of(key, default)
        if value not in known:
            raise self.error(key, f"is {shown(value)}", nearest(value, known))
        return value

    def names(self, key: str, wanted: int | None = None, default: Any = ...) -> tuple[str, ...]:
        """A list of texts."""
        values = self.get(key, list, "a list of names", default)
        for value in values:
            if not isinstance(value, str) or not value.strip():
                raise self.error(key, f"contains {shown(value)}", "give a list of names in quotes.")
            self._check_name(key, value, "contains")
        self._check_count(key, values, wanted)
        return tuple(values)

    def number(self, key: str, default: Any = ..., *, minimum: float | None = 0.0, above: bool = False) -> float:
        """One finite number of at least (or above) `minimum`; any number with None, where whoever is given it checks it."""
        value = self.get(key, (int, float), "a number", default)
        return value if value is default else self._number(key, value, minimum, above)

    def numbers(
        self,
        key: str,
        wanted: int | None = None,
        default: Any = ...,
        *,
        minimum: float | None = 0.0,
        above: bool = False,
    ) -> list[float]:
        """A list of numbers like `number`; one number alone stands for all when the count is known."""
        values = self.get(key, (list, int, float), "numbers", default)
        if values is default:
            return values
        if not isinstance(values, list):
            values = [values] * (wanted or 1)
        self._check_count(key, values, wanted)
        return [self._number(key, value, minimum, above) for value in values]

    def matrix(self, key: str, rows: int | None, columns: int) -> list[list[float]]:
        """Rows of numbers."""
        values = self.get(key, list, "a list of rows of numbers")
        self._check_count(key, values, rows, ("row", "rows"))
        for k, row in enumerate(values):
            if not isinstance(row, list) or len(row) != columns:
                raise self.error(key, f"has row {k} = {shown(row)}", f"give {columns} numbers in every row.")
        return [[self._number(key, value, 0.0, False) for value in row] for row in values]

    def tables(self, key: str) -> list["Section"]:
        """The tables `[[key]]` within this table, numbered from 1; none when it is missing."""
        values = self.get(key, list, f"tables, [[{key}]]", [])
        for value in values:
            if not isinstance(value, dict):
                raise self.error(key, f"contains {shown(value)}", f"give tables, [[{key}]].")
        return [
            Section(value, self.file, self.text, (*self.path, f"{key}[{number}]"), self.notes)
            for number, value in enumerate(values, start=1)
        ]

    def build(self, maker: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`maker(...)`, whose complaints get this section's place in front."""
        return self.build_by({}, maker, *args, **kwargs)

    def build_by(self, keys: Mapping[str, str], maker: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same where keys are not called after arguments: `keys` by argument."""
        try:
            return maker(*args, **kwargs)
        except InputError as error:
            raise self._in_own_words(str(error), getattr(maker, "__name__", ""), keys) from error

    def _in_own_words(self, complaint: str, maker: str, keys: Mapping[str, str]) -> InputError:
        """A complaint about an argument, `Fails(at=5).timeout is 0: ...`, as one about its key."""
        text = complaint.replace(", or None for", ", or leave it out for")
        for argument, key in keys.items():
            text = re.sub(rf"\b{argument}(?= = )", key, text)
        found = re.match(rf"{maker}(?:\(at=[^()]*\))?\.(\w+)(?=(?:\[[\d, ]+\])? )", text)
        key = keys.get(found[1], found[1]) if found else ""
        if found is None or key not in self.content:
            return InputError(f"{self.place}: {text.removeprefix(f'{maker}: ')}")
        return InputError(f"{self._where(key)}{text[found.end() :]}")

    @property
    def place(self) -> str:
        """`fleet.toml [curves.h100]`."""
        return f"{self.file} [{'.'.join(self.path)}]" if self.path else self.file

    def _check_count(
        self, key: str, values: Sequence[Any], wanted: int | None, things: tuple[str, str] = ("entry", "entries")
    ) -> None:
        if not values or (wanted is not None and len(values) != wanted):
            raise self.error(key, f"has {counted(len(values), *things)}", f"give {wanted or 'at least 1'}.")

    def _number(self, key: str, value: Any, minimum: float | None, above: bool) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(key, f"contains {shown(value)}", "give numbers, without quotes.")
        number = to_float(value)
        if minimum is not None and not in_range(number, minimum, above):
            rule = rule_for(minimum, above)
            raise self.error(key, f"contains {shown(value)}", f"give {rule}.")
        return number


def rule_for(minimum: float, above: bool) -> str:
    """What a number has to be, in words."""
    if minimum == -math.inf:
        return "a finite number"
    if minimum == 0:
        return "a positive, finite number" if above else "a finite number that is not negative"
    return f"a finite number {'above' if above else 'of at least'} {minimum:g}"


def to_float(value: int | float) -> float:
    """A float; integers beyond its range become infinite instead of an exception."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def shown(value: object) -> str:
    """A value as it appears in a message."""
    try:
        return clipped(f'"{value}"' if isinstance(value, str) else str(value))
    except (RecursionError, ValueError):
        return f"a {type(value).__name__}"


def _line_of(text: str, path: tuple[str, ...], key: str) -> int | None:
    """Where `key` of the table `path` is set, as far as a plain look at the lines can tell; else where the table starts."""
    header, table = re.compile(r"^\s*(\[?)\[([^\[\]]+)\]\]?\s*(#.*)?$"), ()
    start, seen = None, Counter[str]()
    for number, line in enumerate(text.splitlines(), start=1):
        if found := header.match(line):
            seen[found[2]] += 1
            name = f"{found[2]}[{seen[found[2]]}]" if found[1] else found[2]
            table = tuple(part.strip().strip("\"'") for part in name.split("."))
            if table in (path, (*path, key)):
                start = number
        elif table == path and re.match(rf"^\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return start
