"""All autoscalers by name: fleet files and tests read them from here."""

from dataclasses import dataclass

from dgdlb_jax.numerics.registry import Registry, check_class
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.autoscalers.hpa import HPA
from dgdlb_jax.policies.autoscalers.proportional import Proportional


@dataclass(frozen=True)
class Entry:
    """One autoscaler: `key` is its `kind` in a fleet file, `autoscaler` the class, whose constructor takes what the file says."""

    key: str
    autoscaler: type[AbstractAutoscaler]


AUTOSCALERS: Registry[Entry] = Registry("autoscaler", (Entry("hpa", HPA), Entry("proportional", Proportional)))
"""Every autoscaler by its key."""


def register_autoscaler(key: str, autoscaler: type[AbstractAutoscaler]) -> None:
    """Make an autoscaler known by name: `kind = "key"` under `[autoscaler]` in a fleet file, its other lines the constructor's arguments.

    **Raises:** `InputError` for a key of a built-in one, or what is no class derived from `AbstractAutoscaler`.
    """
    check_class("register_autoscaler", autoscaler, AbstractAutoscaler)
    AUTOSCALERS.register(Entry(key, autoscaler))
