"""All demands by name: what a fleet file calls them, and what it says about them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dgdlb_jax.model.demand import AbstractDemand, Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.numerics.registry import Registry, check_class


@dataclass(frozen=True)
class DemandKind:
    """One kind of demand.

    - `key`: its `kind` in a fleet file. `maker`: the class.
    - `write(demand)`: the fields of its section; a table of rates, which gets a file of its own, stands under `table`.
    - `parameters`: of a registered one, the keywords of its constructor, one number per frontend each.
    """

    key: str
    maker: type[AbstractDemand]
    write: Callable[[Any], dict[str, Any]]
    parameters: tuple[str, ...] = ()


def _constant(demand: Constant) -> dict[str, Any]:
    return {"factor": demand.rates}


def _trace(demand: Trace) -> dict[str, Any]:
    return {"table": demand.rates, "bin_width_s": demand.bin_width, "scaled": False}


def _jumps(demand: Jumps) -> dict[str, Any]:
    return {"times_s": demand.times, "rate": demand.rates}


def _daily_cycle(demand: DailyCycle) -> dict[str, Any]:
    return {"amplitude": demand.amplitude, "peak_s": demand.phase, "period_s": demand.period, "mean": demand.mean}


DEMANDS: Registry[DemandKind] = Registry(
    "demand",
    (
        DemandKind("constant", Constant, _constant),
        DemandKind("trace", Trace, _trace),
        DemandKind("jumps", Jumps, _jumps),
        DemandKind("daily cycle", DailyCycle, _daily_cycle),
    ),
)
"""Every demand by its key."""


def register_demand(key: str, maker: type[AbstractDemand], parameters: Sequence[str]) -> None:
    """Make a demand known by name: `kind = key` in a fleet file, for demands and for capacities over time.

    **Arguments:** `maker`: the class. `parameters`: the keywords of its constructor that a fleet file gives, any finite numbers, one
    for each frontend (or one for all); also the names of the fields that hold them.

    **Raises:** `InputError` for the key of a built-in demand, or a class that is no demand with these parameters.
    """
    check_class("register_demand", maker, AbstractDemand, parameters)
    names = tuple(parameters)
    DEMANDS.register(DemandKind(key, maker, lambda demand: {name: getattr(demand, name) for name in names}, names))
