"""A policy's settings by their names, as on a command line."""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.policies.base import AbstractPolicy

_FIELD = {"report": "kind"}  # settings that a policy keeps under another name


def settings(module: Any) -> dict[str, Any]:
    """What a policy, or a service curve, was made with: the arguments of its class that it keeps, itself or in its parts, by name."""
    kept = _kept(module)
    names = {key: _FIELD.get(key, key) for key in inspect.signature(type(module)).parameters}
    return {key: kept[name] for key, name in names.items() if name in kept}


def _kept(module: Any) -> dict[str, Any]:
    """Fields by name, and those of modules that it is made of, such as a policy behind an estimate; its own go first."""
    own = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    parts = jax.tree.leaves(own, is_leaf=lambda part: isinstance(part, eqx.Module))
    inner = (_kept(part) for part in parts if isinstance(part, eqx.Module))
    return {name: value for fields in inner for name, value in fields.items()} | own


def with_settings(policy: AbstractPolicy, given: Mapping[str, str]) -> AbstractPolicy:
    """The same kind of policy with some of its settings as given; the others stay.

    **Arguments:** `given`: name -> number, word, `true` or `false`, as text.

    **Raises:** `InputError` for an unknown setting, or a value that the policy does not allow.
    """
    name, current = type(policy).__name__, settings(policy)
    for key, text in given.items():
        if key not in current:
            has = (
                f"it has {', '.join(current)}{did_you_mean(key, current, '.')}" if current else "it is taken as it is."
            )
            raise InputError(f"{name} has no setting {key!r}: {has}")
        current[key] = _value(f"{name}.{key}", text, current[key])
    lost = [
        key
        for key, one in inspect.signature(type(policy)).parameters.items()
        if one.default is one.empty and key not in current
    ]
    if given and lost:
        raise InputError(
            f"{name} does not keep its argument {lost[0]}, so it cannot be made anew with other settings: keep it as a field."
        )
    return type(policy)(**current)


def _value(name: str, text: str, old: Any) -> Any:
    if isinstance(old, bool):
        if text not in ("true", "false"):
            raise InputError(f"{name} is {text!r}: give true or false.")
        return text == "true"
    if isinstance(old, str):
        return text
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} is {text!r}: give a number.") from None
