"""The specification of a sweep: TOML, or the same as a dict, checked and turned into axes."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from dgdlb_jax.fleets.document import Section, clipped, nearest, parse
from dgdlb_jax.numerics.files import exists
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import repeated
from dgdlb_jax.studies.sweep import inputs
from dgdlb_jax.studies.sweep.inputs import DEFAULTS, Value
from dgdlb_jax.studies.sweep.measures import MEASURES

LARGEST_SWEEP = 10**9
LARGEST_AXIS = 10**6
_LONGEST_NAME = 100  # letters
_OUTERMOST = ("fleet", "family", "frontends", "backends", "curve", "policy")  # what needs compiled code of its own
_TOP = ("name", "description", "measures", "axes", "zip", "fixed", "run")
_RANGE_OF_INTEGERS, _RANGE_OF_NUMBERS = ("count", "first"), ("from", "to", "count", "spacing")


@dataclass(frozen=True)
class Axis:
    """One dimension of a sweep: its name, and for every input on it the values along it."""

    name: str
    values: dict[str, tuple[Value, ...]]

    @property
    def size(self) -> int:
        """How many entries it has."""
        return len(next(iter(self.values.values())))


@dataclass(frozen=True)
class Spec:
    """A checked specification; `read_spec` makes one.

    - `axes`: in the order of the store's dimensions; those that need compiled code of their own come first.
    - `fixed`: input -> value. `measures`: names of `MEASURES`.
    - `chunk`: cases that are computed and stored together. `batch`: cases that run side by side; None leaves it to the device.
    - `max_steps`: where suggested durations end.
    """

    name: str
    description: str
    axes: tuple[Axis, ...]
    fixed: dict[str, Value]
    measures: tuple[str, ...]
    chunk: int = 512
    batch: int | None = None
    max_steps: int = 200_000

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(axis.size for axis in self.axes)

    @property
    def size(self) -> int:
        """How many cases there are."""
        return math.prod(self.shape)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return tuple(axis.name for axis in self.axes)

    @cached_property
    def block(self) -> tuple[int, ...]:
        """The shape of a chunk: whole inner axes while they fit into `chunk` cases, then a part of the next one."""
        room, block = self.chunk, []
        for size in reversed(self.shape):
            block.append(min(size, max(1, room)))
            room //= block[-1]
        return tuple(reversed(block))

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many chunks there are along every dimension."""
        return tuple(-(-size // block) for size, block in zip(self.shape, self.block, strict=True))

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return math.prod(self.blocks)

    def values_of(self, name: str) -> tuple[Value, ...]:
        """All values that an input takes; none where the specification does not name it."""
        given = (axis.values[name] for axis in self.axes if name in axis.values)
        return next(given, (self.fixed[name],) if name in self.fixed else ())

    def region(self, chunk: int) -> tuple[slice, ...]:
        """The part of every dimension that a chunk covers."""
        place = np.unravel_index(chunk, self.blocks) if self.axes else ()
        return tuple(
            slice(int(k) * block, min((int(k) + 1) * block, size))
            for k, block, size in zip(place, self.block, self.shape, strict=True)
        )

    def cases(self, region: tuple[slice, ...]) -> dict[str, np.ndarray]:
        """Input -> its values for the cases of a region, flat, last dimension fastest; defaults included."""
        shape = tuple(part.stop - part.start for part in region)
        size = math.prod(shape)
        columns = {name: np.full(size, value) for name, value in {**DEFAULTS, **self.fixed}.items()}
        for k, (axis, part) in enumerate(zip(self.axes, region, strict=True)):
            along = [1] * len(shape)
            along[k] = shape[k]
            for name, values in axis.values.items():
                columns[name] = np.broadcast_to(np.array(values[part]).reshape(along), shape).reshape(-1)
        return columns

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> "Spec":
        """The specification that `document` has described."""
        axes = (
            Axis(axis["name"], {name: tuple(values) for name, values in axis["values"].items()})
            for axis in document["axes"]
        )
        known = {name: document[name] for name in ("name", "description", "fixed")}
        return cls(**known, **document["run"], axes=tuple(axes), measures=tuple(document["measures"]))

    def document(self) -> dict[str, Any]:
        """All of it as plain values: what a store keeps, and what two specifications are compared by."""
        return {
            "name": self.name,
            "description": self.description,
            "measures": list(self.measures),
            "axes": [{"name": axis.name, "values": {k: list(v) for k, v in axis.values.items()}} for axis in self.axes],
            "fixed": self.fixed,
            "run": {"chunk": self.chunk, "batch": self.batch, "max_steps": self.max_steps},
        }


def read_spec(source: "str | Path | Mapping[str, Any] | Spec") -> Spec:
    """A specification from a TOML file, the name of a ready sweep, or a dict with the same keys.

    **Raises:** `InputError` for unknown inputs, measures or keys (with the nearest known name), axes of length zero, inputs that
    contradict each other, values out of range; it names file, line, field and remedy.
    """
    if isinstance(source, Spec):
        return source
    return _read(_open(source), "sweep" if isinstance(source, Mapping) else _as_name(Path(source).stem))


def ready_sweeps() -> dict[str, str]:
    """Name -> description of the sweeps that come with the package."""
    files = sorted(_folder().iterdir(), key=lambda file: file.name)
    found = [_read(parse(file), file.name) for file in files if file.name.endswith(".toml")]
    return {spec.name: spec.description for spec in found}


def _folder():
    return resources.files("dgdlb_jax") / "data" / "sweeps"


def _open(source: str | Path | Mapping[str, Any]) -> Section:
    if isinstance(source, Mapping):
        try:
            content = json.loads(json.dumps(dict(source), default=_plain))
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"The specification is not made of plain values ({error}): use dicts, lists, texts and numbers."
            ) from error
        return Section(content, "specification", "", ())
    ready = _folder() / f"{source}.toml"
    if isinstance(source, str) and "/" not in source and "\0" not in source and len(source) < 100 and ready.is_file():
        return parse(ready)
    path = Path(source)
    if path.suffix != ".toml" and not exists(path):
        names = [file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml")]
        raise InputError(f"{clipped(str(source))} is neither a file nor a ready sweep: {nearest(str(source), names)}")
    return parse(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | range):
        return list(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def _read(section: Section, nameless: str) -> Spec:
    """The specification; `nameless`: what it is called if it does not say."""
    section.only(*_TOP)
    fixed_in, axes_in, zips_in = (section.section(key, {}) for key in ("fixed", "axes", "zip"))
    fixed = {name: inputs.checked(fixed_in, name, name, value) for name, value in fixed_in.content.items()}
    axes = [Axis(name, {name: _values(axes_in, name)}) for name in axes_in.content]
    axes += [_zipped(zips_in.section(name)) for name in zips_in.content]
    _check_names(section, fixed, axes)
    given = {name: (value,) for name, value in fixed.items()} | {k: v for axis in axes for k, v in axis.values.items()}
    inputs.check_together(section, given)
    axes.sort(key=lambda axis: not any(map(_compiles, axis.values.items())))  # stable: the given order otherwise
    run = section.section("run", {})
    run.only("chunk", "batch", "max_steps")
    spec = Spec(
        name=section.text_of("name", nameless),
        description=section.text_of("description", ""),
        axes=tuple(axes),
        fixed=fixed,
        measures=_measures(section),
        chunk=_count(run, "chunk", 512),
        batch=_count(run, "batch", None),
        max_steps=_count(run, "max_steps", 200_000),
    )
    if not spec.name.strip() or spec.name != _as_name(spec.name):
        raise section.error(
            "name", f"is {clipped(spec.name)!r}", f"use up to {_LONGEST_NAME} letters, digits, dots and dashes."
        )
    if spec.size > LARGEST_SWEEP:
        raise section.error("axes", f"make {spec.size:.3g} cases", f"a sweep takes up to {LARGEST_SWEEP:.0e}.")
    return spec


def _as_name(text: str) -> str:
    """What a sweep may be called, and a folder after it; of other letters dashes are made."""
    return "".join(c if c.isalnum() or c in "-_. " else "-" for c in text)[:_LONGEST_NAME]


def _compiles(values: tuple[str, tuple[Value, ...]]) -> bool:
    return values[0] in _OUTERMOST or any(isinstance(value, str) for value in values[1])


def _values(section: Section, key: str) -> tuple[Value, ...]:
    """The values along an axis: a list, or a range."""
    inputs.input_named(section, key)
    content = section.content[key]
    values = _range(section.section(key), inputs.INPUTS.get(key)) if isinstance(content, dict) else content
    if not isinstance(values, list):
        raise section.error(key, "is not a list", "give a list, or a table such as { from = 1, to = 10, count = 4 }.")
    if not values:
        raise section.error(key, "is an axis of length zero", "give at least one value.")
    if len(values) > LARGEST_AXIS:
        raise section.error(key, f"has {len(values)} values", f"give at most {LARGEST_AXIS}.")
    if isinstance(content, dict):  # a range is as good as its ends
        inputs.checked(section, key, key, values[0])
        inputs.checked(section, key, key, values[-1])
        return tuple(values)
    taken = tuple(inputs.checked(section, key, key, value) for value in values)
    if len({isinstance(value, str) for value in taken}) > 1:
        raise section.error(key, "mixes numbers and words", "give one or the other.")
    return taken


def _range(section: Section, rule: inputs.Input | None) -> list[Value]:
    if rule is not None and rule.kind is str:
        section.only()  # whatever is in it is wrong
        return []
    whole = rule is not None and rule.kind is int and "from" not in section
    section.only(*(_RANGE_OF_INTEGERS if whole else _RANGE_OF_NUMBERS))
    count = section.get("count", int, "a whole number of values")
    if count < 1:
        raise section.error("count", f"is {clipped(str(count))}, an axis of length zero", "give at least 1.")
    if count > LARGEST_AXIS:
        raise section.error("count", f"is {clipped(str(count))}", f"give at most {LARGEST_AXIS}.")
    if whole:
        first = section.get("first", int, "a whole number", 0)
        return list(range(first, first + count))
    low, high = (section.number(key, minimum=-math.inf) for key in ("from", "to"))
    spacing = section.choice("spacing", ("linear", "log"), "linear")
    if spacing == "log" and min(low, high) <= 0:
        raise section.error("from", f"is {min(low, high):g} with logarithmic spacing", "give positive bounds.")
    if count > 1 and low == high:
        raise section.error("to", "is the same as from", "give a range, or count = 1.")
    numbers = np.geomspace(low, high, count) if spacing == "log" else np.linspace(low, high, count)
    if rule is not None and rule.kind is int:
        return list(dict.fromkeys(round(float(number)) for number in numbers))
    return [float(f"{number:.12g}") for number in numbers]


def _zipped(section: Section) -> Axis:
    name = section.path[-1]
    values = {key: _values(section, key) for key in section.content}
    if not values:
        raise section.error(name, "has no inputs", "give at least one list of values.")
    lengths = {key: len(found) for key, found in values.items()}
    first = next(iter(lengths))
    for key, length in lengths.items():
        if length != lengths[first]:
            raise section.error(
                key, f"has {length} values, {first} has {lengths[first]}", "give lists of equal length."
            )
    return Axis(name, values)


def _check_names(section: Section, fixed: dict[str, Value], axes: list[Axis]) -> None:
    """Every input stands in one place, every axis has its own name and no value twice."""
    seen = {name: "fixed" for name in fixed}
    for axis in axes:
        place = "axes" if list(axis.values) == [axis.name] else f"zip.{axis.name}"
        for name in axis.values:
            if name in seen:
                raise section.error(f"{place}.{name}", f"already stands in [{seen[name]}]", "keep one of the two.")
            seen[name] = place
        if axis.name not in axis.values and (
            axis.name in inputs.INPUTS or axis.name in MEASURES or not axis.name.isidentifier()
        ):
            raise section.error(f"zip.{clipped(axis.name)}", "cannot be the name of an axis", "use another word.")
        rows = Counter(zip(*axis.values.values(), strict=True))
        if len(rows) < axis.size:
            twice = ", ".join(map(str, rows.most_common(1)[0][0]))
            raise section.error(f"{place}.{axis.name}", f"contains {clipped(twice)} twice", "remove one.")
    if len({axis.name for axis in axes}) < len(axes):
        raise section.error("zip", "has an axis of the same name as [axes]", "use another word.")


def _measures(section: Section) -> tuple[str, ...]:
    names = section.names("measures", default=["mean_latency", "excess", "verdict"])
    for name in names:
        if name not in MEASURES:
            raise section.error("measures", f'contains "{clipped(name)}"', nearest(name, MEASURES))
    if (twice := repeated(names)) is not None:
        raise section.error("measures", f'contains "{twice}" twice', "remove one.")
    return names


def _count(section: Section, key: str, default: int | None) -> Any:
    value = section.get(key, int, "a whole number", default)
    if value is not None and not 1 <= value <= 10**9:
        raise section.error(key, f"is {clipped(str(value))}", "give a whole number from 1 to 1e9.")
    return value
