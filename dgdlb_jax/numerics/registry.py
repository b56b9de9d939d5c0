"""Members of a family by name, to which a user can add."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Entry(Protocol):
    """What a registry holds: anything with a key."""

    @property
    def key(self) -> str:
        """What it is asked for by."""
        ...


Member = TypeVar("Member", bound=Entry)
Value = TypeVar("Value")


class Registry(Mapping[str, Member]):
    """Entries by their keys, in the order in which they were entered: first what the package brings, then what users add.

    **Arguments:** `what`: what an entry is, for error messages. `built_in`: entries whose keys nobody else can take;
    `reserved`: other keys that mean something already.
    """

    def __init__(self, what: str, built_in: Iterable[Member], reserved: Iterable[str] = ()):
        self._what = what
        self._entries = {entry.key: entry for entry in built_in}
        self._built_in = frozenset(self._entries).union(reserved)

    def register(self, entry: Member) -> None:
        """Add an entry; one that was registered under the same key is replaced, so that a cell of a notebook can run again.

        **Raises:** `InputError` for a key that the package uses itself, or that no command line can pass on.
        """
        from dgdlb_jax.numerics.results import InputError  # late: names are known without loading JAX

        key = entry.key
        if key in self._built_in:
            raise InputError(f"The {self._what} {key!r} is built in: choose another key.")
        if not key or key != key.strip() or "," in key or not key.isprintable():
            raise InputError(
                f"{key!r} is no key for a {self._what}: give printable text without commas and without spaces around it."
            )
        self._entries[key] = entry

    def __getitem__(self, key: str) -> Member:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def check_class(what: str, found: Any, base: type, parameters: Iterable[str] = ()) -> None:
    """Raise `InputError` for what is no class derived from `base`, or whose constructor lacks one of the parameters."""
    from dgdlb_jax.numerics.results import InputError

    if not (isinstance(found, type) and issubclass(found, base)):
        raise InputError(f"{what}: {found!r} is no class derived from {base.__name__}: give the class itself.")
    known = inspect.signature(found).parameters
    unknown = next((name for name in parameters if name not in known), None)
    if unknown is not None:
        raise InputError(f"{what}: {found.__name__} has no parameter {unknown!r}: choose from {', '.join(known)}.")


class View(Mapping[str, Value], Generic[Member, Value]):
    """What something makes of the entries of a registry, those registered later included: key -> `value(entry)`."""

    def __init__(self, registry: Mapping[str, Member], value: Callable[[Member], Value]):
        self._registry, self._value = registry, value

    def __getitem__(self, key: str) -> Value:
        return self._value(self._registry[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._registry)

    def __len__(self) -> int:
        return len(self._registry)
