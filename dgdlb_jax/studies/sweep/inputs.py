"""What a case is made of: the inputs that a specification may fix or vary, and what values they take."""

import inspect
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgdlb_jax.fleets import fleet_names
from dgdlb_jax.fleets.document import Section, nearest, rule_for, shown, to_float
from dgdlb_jax.model.topologies import CURVES, FAMILIES
from dgdlb_jax.numerics.checks import in_range
from dgdlb_jax.numerics.files import exists, is_folder
from dgdlb_jax.studies.balancers import BALANCERS
from dgdlb_jax.studies.starts import STARTS

RANDOM_START, NEAR_OPTIMUM = "random", "near-optimum"
ALL_STARTS = (*STARTS, RANDOM_START, NEAR_OPTIMUM)
"""The starts of `compare`, a random routing (`start_seed`), and the optimum moved towards one (`start_distance`)."""

Value = int | float | str


@dataclass(frozen=True)
class Input:
    """One input of a case.

    - `meaning`, `units`: for people, and for the attributes of a store.
    - `kind`: `int`, `float` or `str`; numbers are at least `minimum`, or above it; `below` is an upper bound (included).
    - `choices`: the known texts; none when any will do.
    """

    meaning: str
    kind: type
    units: str = "1"
    minimum: float = 0.0
    above: bool = False
    below: float = math.inf
    choices: Collection[str] = ()


_LARGEST_SEED, _LARGEST_SIZE = 2**31 - 1, 10_000
_JUST_BELOW_ONE = math.nextafter(1.0, 0.0)
NEWS = "news."
"""What the inputs of `Scraped` reports begin with."""
NEEDS_DOUBLE = ("step_size_over_critical",)
STEP_SIZES = ("step_size", "step_size_over_default", "step_size_over_critical", "step_size_over_sufficient")

INPUTS: dict[str, Input] = {
    "fleet": Input("built-in fleet or path of a fleet file", str),
    "family": Input("family of random topologies", str, choices=FAMILIES),
    "seed": Input("seed of the random topology", int, below=_LARGEST_SEED),
    "frontends": Input("frontends of the random topology", int, minimum=1, below=_LARGEST_SIZE),
    "backends": Input("backends of the random topology", int, minimum=1, below=_LARGEST_SIZE),
    "curve": Input("kind of the random service curves", str, choices=CURVES),
    "service_time": Input("mean time that a request alone takes in random service curves", float, "s", above=True),
    "density": Input("probability of an arc in the sparse family", float, below=1),
    "load": Input("total arrival rate over total nominal capacity", float, above=True),
    "latency_scale": Input("factor on all latencies", float),
    "scale": Input("factor on all rates and replicas, which whole requests feel", float, above=True),
    "policy": Input("balancer", str, choices=BALANCERS),
    "news.interval": Input(
        "time between two reports that a frontend reads and holds; 0: every report at once", float, "s"
    ),
    "news.offset": Input("when it reads the first one", float, "s"),
    "news.jitter": Input("by which part an interval may be shorter or longer", float, below=_JUST_BELOW_ONE),
    "news.lost": Input("probability that a report is lost", float, below=_JUST_BELOW_ONE),
    "news.late": Input("by how much later than the feedback latency a report may be", float, "s"),
    "news.seed": Input("seed of what is random about reports", int, below=_LARGEST_SEED),
    "step_size": Input("step size of all frontends", float, "1/s^2", above=True),
    "step_size_over_default": Input("step size over the default one of each frontend", float, above=True),
    "step_size_over_critical": Input(
        "step size over the exact critical one, the same for all frontends", float, above=True
    ),
    "step_size_over_sufficient": Input("step size over the sufficient one of each frontend", float, above=True),
    "start": Input("where the run starts", str, choices=ALL_STARTS),
    "start_seed": Input("seed of the random routing at the start", int, below=_LARGEST_SEED),
    "start_distance": Input("how far the start is from the optimum, towards a random routing", float, below=1),
    "dt": Input("time step", float, "s", above=True),
    "dt_over_suggested": Input("time step over the suggested one", float, above=True),
    "duration": Input("simulated time", float, "s", above=True),
    "duration_over_suggested": Input("simulated time over the suggested one", float, above=True),
}
"""All inputs with a name of their own; `PARAMETERS` are the others."""

PARAMETERS = {
    "policy": "parameter of the policy, a number or a word",
    "curve": "parameter of the service curves, the same for all backends",
    "curve_factor": "factor on a parameter of the service curves",
}
"""What stands before the dot in inputs such as `policy.temperature`."""

DEFAULTS: dict[str, Value] = {
    "seed": 0,
    "latency_scale": 1.0,
    "policy": "dgd-lb",
    "start": "proportional",
    "start_seed": 0,
    "start_distance": 0.01,
}

_ONE_OF = (STEP_SIZES, ("dt", "dt_over_suggested"), ("duration", "duration_over_suggested"), ("fleet", "family"))
_ONLY_RANDOM = ("seed", "frontends", "backends", "curve", "service_time", "density")
_NEEDS_START = {"start_seed": (RANDOM_START, NEAR_OPTIMUM), "start_distance": (NEAR_OPTIMUM,)}
_PARAMETER = re.compile(r"(policy|curve|curve_factor)\.[A-Za-z_]\w*")


def input_named(section: Section, name: str) -> Input:
    """The input of this name.

    **Raises:** `InputError` for an unknown one, with the nearest known name.
    """
    if name in INPUTS:
        return INPUTS[name]
    if _PARAMETER.fullmatch(name):
        return Input(f"{PARAMETERS[name.split('.')[0]]}: {name.split('.')[1]}", float, "", minimum=-math.inf)
    parts = name.split(".")
    if len(parts) > 2 and parts[0] in PARAMETERS:  # such as policy.orca-weights.interval
        remedy = f'write "{parts[0]}.{parts[-1]}", and whose it is under "{parts[0]}".'
        raise section.error(name, "is no input of a case", remedy)
    raise section.error(name, "is no input of a case", nearest(name, INPUTS))


def checked(section: Section, key: str, name: str, value: Any) -> Value:
    """A value that the input can take, as an `int`, `float` or `str`.

    **Raises:** `InputError` that names the place `key` in the section.
    """
    rule = input_named(section, name)
    if rule.kind is str:
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise section.error(key, f"contains {shown(value)}", "give a name in quotes.")
        if rule.choices and value not in rule.choices:
            raise section.error(key, f"contains {shown(value)}", nearest(value, rule.choices))
        if name == "fleet" and not _is_fleet(value):
            raise section.error(key, f"contains {shown(value)}", f"no such file, {nearest(value, fleet_names())}")
        return value
    if isinstance(value, str) and name.startswith("policy.") and value.strip() and "\0" not in value:
        return value  # such as a report's kind: the policy knows its words
    wanted = int if rule.kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise section.error(key, f"contains {shown(value)}", f"give {'whole ' if rule.kind is int else ''}numbers.")
    number = to_float(value)
    if not in_range(number, rule.minimum, rule.above):
        raise section.error(key, f"contains {shown(value)}", f"give {rule_for(rule.minimum, rule.above)}.")
    if number > rule.below:
        most = "less than 1" if rule.below == _JUST_BELOW_ONE else f"at most {rule.below:.10g}"
        raise section.error(key, f"contains {shown(value)}", f"give {most}.")
    return value if rule.kind is int else number


def check_together(section: Section, given: Mapping[str, tuple[Value, ...]]) -> None:
    """Inputs that contradict each other, or say nothing without another one.

    **Arguments:** `section` for the place; `given`: name -> the values it takes.

    **Raises:** `InputError` that names both.
    """
    for group in _ONE_OF:
        found = [name for name in group if name in given]
        if len(found) > 1:
            raise section.error(found[1], f"contradicts {found[0]}", "keep one of the two.")
    if "fleet" not in given and "family" not in given:
        raise section.error("fixed.family", "is missing", f"give a family ({', '.join(FAMILIES)}) or a fleet.")
    for name in _ONLY_RANDOM if "fleet" in given else ():
        if name in given:
            raise section.error(name, "has no meaning with fleet", "remove it, or use family instead of fleet.")
    families = [str(family) for family in given.get("family", ())]
    for name in ("frontends", "backends", "density"):
        if name in given and families and not any(takes(family, name) for family in families):
            having = [family for family in FAMILIES if takes(family, name)]
            few = len(having) <= len(families)
            which = f"without the family {' or '.join(having)}" if few else f"with the family {' or '.join(families)}"
            raise section.error(name, f"has no meaning {which}", "remove it.")
    for name in given:
        if name.startswith(NEWS) and f"{NEWS}interval" not in given:
            raise section.error(
                name, "has no meaning without news.interval", "give the interval of the reports as well."
            )
    for name, starts in _NEEDS_START.items():
        if name in given and not set(given.get("start", (DEFAULTS["start"],))) & set(starts):
            raise section.error(name, "has no meaning with this start", f'use start = "{starts[0]}", or remove it.')


def takes(family: str, parameter: str) -> bool:
    """Whether a family of random topologies has a parameter."""
    return parameter in inspect.signature(FAMILIES[family]).parameters


def _is_fleet(name: str) -> bool:
    return name in fleet_names() or (exists(Path(name)) and not is_folder(Path(name)))
