"""The `[autoscaler]` of a fleet file: which rule, and its settings, for all backends or one number for each."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgdlb_jax.fleets.document import Section, shown
from dgdlb_jax.model.network import Network
from dgdlb_jax.policies.autoscalers import AUTOSCALERS, AbstractAutoscaler, Behavior, Rate

_WORDS = {
    "startup_s": "startup", "interval_s": "interval", "time_constant_s": "time_constant", "min_replicas": "least",
    "max_replicas": "most",
}  # fmt: skip
"""What a file calls an argument of a rule; others have their own names."""


def read_autoscaler(document: Section, network: Network) -> AbstractAutoscaler | None:
    """The autoscaler of all backends; None without one.

    **Raises:** `InputError` that names file, line, field and remedy.
    """
    if "autoscaler" not in document:
        return None
    section = document.section("autoscaler")
    kind = AUTOSCALERS[section.choice("kind", AUTOSCALERS, "hpa")].autoscaler
    arguments = inspect.signature(kind).parameters
    files = {argument: word for word, argument in _WORDS.items()}
    section.only("kind", *(files.get(name, name) for name in arguments))
    given = {key: _WORDS.get(key, key) for key in section.content if key != "kind"}
    for name, argument in arguments.items():
        if argument.default is inspect.Parameter.empty and name not in given.values():
            raise section.error(files.get(name, name), "is missing", f"give it for kind = {shown(_name(kind))}.")
    values = {name: _value(section, key, arguments[name].annotation, network) for key, name in given.items()}
    return section.build_by(files, kind, **values)


def _name(kind: type) -> str:
    return next(entry.key for entry in AUTOSCALERS.values() if entry.autoscaler is kind)


def _value(section: Section, key: str, wanted: Any, network: Network) -> Any:
    """A setting, by what its rule wants: a table of rates, a word, a flag, a number, or one for each backend; of a rule that does not say,
    what stands there."""
    value = section.content[key]
    says = wanted is not inspect.Parameter.empty and not isinstance(wanted, str)
    if wanted is Behavior:
        return _behavior(section.section(key))
    if wanted is str or (not says and isinstance(value, str)):
        return section.text_of(key)
    if wanted in (bool, bool | None) or (not says and isinstance(value, bool)):
        return section.flag(key, False)
    if isinstance(value, list) and wanted is not float:
        return np.array(section.numbers(key, network.backends, minimum=None))
    return section.number(key, minimum=None)


def _behavior(section: Section) -> Behavior:
    section.only("stabilization_window_s", "policies", "select")
    rates = []
    for table in section.tables("policies"):
        table.only("kind", "value", "period_s")
        kind = table.choice("kind", ("pods", "percent"))
        rates.append(table.build(Rate, kind, table.number("value", above=True), table.number("period_s", above=True)))
    select = section.choice("select", ("max", "min", "disabled"), "max")
    return section.build(Behavior, section.number("stabilization_window_s", 0.0), tuple(rates), select)


def settings(autoscaler: AbstractAutoscaler) -> Mapping[str, Any]:
    """Word in a file -> value, of the settings that are numbers or words: for people and scripts."""
    files = {argument: word for word, argument in _WORDS.items()}
    found = {}
    for name in inspect.signature(type(autoscaler)).parameters:
        value = getattr(autoscaler, name, None)
        if isinstance(value, str | bool | float | int):
            found[files.get(name, name)] = value
        elif hasattr(value, "shape"):
            found[files.get(name, name)] = np.asarray(value, float).tolist()
    return found
