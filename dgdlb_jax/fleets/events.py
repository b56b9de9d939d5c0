"""The `[[events]]` of a fleet file: when, what, where, to what."""

import dataclasses
import re

from dgdlb_jax.fleets.document import Section, nearest, shown
from dgdlb_jax.model.events import KINDS, Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics.results import InputError

_PLACES = ("frontend", "backend")
_SECONDS = ("timeout",)


def read_events(document: Section, network: Network) -> tuple[Event, ...]:
    """All events, in the order of the file.

    **Raises:** `InputError` for one that makes no sense in this network.
    """
    found = tuple(_event(section, network) for section in document.tables("events"))
    try:
        signals(network, found)
    except InputError as error:
        raise InputError(f"{document.file}: [[events]] {_CALLED.sub(_in_own_words, str(error))}") from error
    return found


_CALLED = re.compile(r"\b(\w+)\(at=([^()]*)\)(?:\.(\w+))?")


def _in_own_words(found: re.Match[str]) -> str:
    """`"fails" at 5 s` for `Fails(at=5)`, and `"fails" at 5 s: timeout_s` where it is about an argument."""
    field = f": {found[3]}{'_s' * (found[3] in _SECONDS)}" if found[3] else ""
    return f'"{found[1].lower()}" at {found[2]} s{field}'


def _event(section: Section, network: Network) -> Event:
    kind = KINDS[section.choice("what", KINDS)]
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "at"}
    keys = {f"{name}_s" if name in _SECONDS else name: name for name in fields}
    section.only("at_s", "what", *keys)
    given = {
        name: _value(section, key, network)
        for key, name in keys.items()
        if key in section or _is_required(fields[name])
    }
    names = {name: key for key, name in keys.items()}
    return section.build_by(names, kind, section.number("at_s", above=True), **given)


def _is_required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING


def _value(section: Section, name: str, network: Network):
    if name == "news":
        return section.flag(name, False)
    if name not in _PLACES:
        return section.number(name, minimum=None)
    known = (network.frontend_names if name == "frontend" else network.backend_names) or ()
    value = section.get(name, (str, list), f"the name of a {name}, or a list of names")
    for one in [value] if isinstance(value, str) else section.names(name):
        if one not in known:
            raise section.error(name, f"is {shown(one)}", nearest(one, known))
    return value if isinstance(value, str) else tuple(value)
