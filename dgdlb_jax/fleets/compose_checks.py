"""What can be wrong with the files and choices of which a fleet is made, in their own words: the file that was read, the option to
change."""

import re
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from dgdlb_jax.fleets.answers import Answers
from dgdlb_jax.fleets.document import clipped, listed, nearest
from dgdlb_jax.fleets.importers import Curve, Demand, Latencies, workload
from dgdlb_jax.fleets.importers.base import arrows
from dgdlb_jax.fleets.importers.bins import UNEVEN
from dgdlb_jax.model.service import ServiceFit, fit_service
from dgdlb_jax.numerics.results import InputError

_OPTIONS = {
    "frontends.names": "--frontends",
    "frontends.rate": "--replicas",
    "frontends.load": "--load",
    "backends.names": "--backends",
    "backends.replicas": "--replicas",
    "arcs.forbidden": "--frontends and --backends",
    "demand.trace.shift_s": "--shift-s",
}
"""What changes a field of the fleet file."""


def check_known(names: Sequence[str], said_by: str, latencies: Latencies) -> None:
    """Raise `InputError` for a name that no latency has; `said_by`: the option or the file that it comes from."""
    known = {region for pair in latencies.seconds for region in pair}
    for name in names:
        if name not in known:
            raise InputError(
                f'{said_by} names "{clipped(name)}", of which {latencies.origin} has no latency: {nearest(name, known)}'
            )


def missing_arcs(frontends: Collection[str], backends: Collection[str], latencies: Latencies) -> list[tuple[str, str]]:
    """The pairs of different regions that no file has a latency for: neither one way round nor the other in a list, in a matrix that very
    pair."""
    pairs = latencies.seconds
    unlisted = ((i, j) for i in frontends for j in backends if i != j and (i, j) not in pairs)
    return [(i, j) for i, j in unlisted if (j, i) not in pairs or (i, j) in latencies.holes]


def check_complete(missing: Sequence[tuple[str, str]], latencies: Latencies, *, in_fleet: bool = True) -> None:
    """Raise `InputError` where latencies are missing: large tables have holes, and which regions matter is for the user to say.

    **Arguments:** `in_fleet`: whether regions can be chosen, as only those of a fleet can.
    """
    if missing:
        options = "--frontends and --backends" if in_fleet else "--fleet, --frontends and --backends"
        raise InputError(
            f"{latencies.origin} has no latency for {arrows(missing)}: fill in what was not measured, choose regions that have all of them "
            f"with {options}, or say --sparse if nothing goes that way."
        )


def check_used(choices: Answers) -> None:
    """Raise `InputError` for a choice that the fleet does not depend on: whoever made it expected something of it."""
    for name in choices.unused:
        raise InputError(
            f"--{name.replace('_', '-')} changes nothing in this fleet, whose files say it all: leave it out."
        )


def left_out(
    frontends: Collection[str], backends: Collection[str], latencies: Latencies, demand: Demand | None
) -> list[str]:
    """Which regions of the latencies have no part, or only one, in a fleet, and which frontends send nothing, in sentences."""
    senders, answerers = ({pair[k]: None for pair in latencies.seconds} for k in (0, 1))
    if senders.keys() & answerers.keys():  # regions with each other: each may be both
        senders = answerers = senders | answerers
    silent = [] if demand is None else [name for name in frontends if _is_silent(name, demand)]
    lists = {
        f"not in the fleet, although {latencies.origin} has them": [
            name for name in senders | answerers if name not in frontends and name not in backends
        ],
        "no requests enter at": [name for name in senders if name not in frontends and name in backends],
        "no servers stand at": [name for name in answerers if name not in backends and name in frontends],
        "frontends without a request in the demand": silent,
    }
    return [f"{what}: {listed(names)}" for what, names in lists.items() if names]


def _is_silent(name: str, demand: Demand) -> bool:
    """Whether a demand that names places has no request from this one."""
    if not demand.names:
        return False
    return name not in demand.names or not demand.counts[:, demand.names.index(name)].any()


def check_replicas(replicas: Sequence[float]) -> None:
    """Raise `InputError` for a number of servers that is none."""
    for count in replicas:
        if not 0 < count < np.inf:
            raise InputError(f"--replicas has {count:g}: give positive, finite numbers of servers.")


def check_shifts(shifts: Sequence[float], width: float, origin: str) -> None:
    """Raise `InputError` for a shift that is not a whole number of bins."""
    for shift in shifts:
        bins = shift / width
        if not abs(bins) < 1e9 or abs(bins - round(bins)) > UNEVEN:
            raise InputError(
                f"--shift-s has {shift:g}, and the bins of {origin} are {width:g} s: give multiples of that, or choose bins with --bin."
            )


def by_place(options: Mapping[str, tuple[Sequence[float | str], Sequence[str]]]) -> list[str]:
    """Which place has which entry of the options that give one for each: their order is that of a file, which nobody may remember."""

    def short(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:.12g}"

    return [
        f"{option} by place: {', '.join(f'{clipped(name)} {short(value)}' for name, value in zip(names, values, strict=True))}"
        for option, (values, names) in options.items()
        if len(values) > 1
    ]


def check_common(shifts: Sequence[float] | str, demand: Demand | None) -> None:
    """Raise `InputError` for shifts where there is no common trace that they could move."""
    if shifts and demand is None:
        raise InputError("--shift-s moves one common trace, and no file has a demand: leave it out, or add one.")
    if shifts and demand is not None and demand.names:
        raise InputError(
            f"--shift-s moves one common trace, and {demand.origin} says itself when requests enter at {listed(demand.names)}: leave it "
            "out."
        )


def long_shifts(shifts: Sequence[float] | str, demand: Demand | None) -> list[str]:
    """That a shift is longer than the trace, which repeats: part of it then changes nothing."""
    if isinstance(shifts, str) or demand is None:
        return []
    length = len(demand.counts) * demand.width
    found = [f"{shift:g}" for shift in shifts if abs(shift) >= length]
    what = f"{demand.origin} lasts {length:g} s and begins again"
    return [f"unlikely: --shift-s has {listed(found)}, and {what}; check the unit, it is seconds"] if found else []


def check_served(servers: Sequence[tuple[Curve, float]], rate: float | None, load: float, said_by: str) -> None:
    """Raise `InputError` where requests come faster than all servers together can ever serve them, and for a curve that is none.

    **Arguments:** `servers`: the curve and the replicas of every backend; `rate`: in requests/s, where it is known; `load`: of the
    nominal capacity, where it is not; `said_by`: where either comes from.
    """
    fits = {curve.name: _fitted(curve) for curve, _ in servers}
    nominal, most = (
        sum(count * float(of(fits[curve.name].service)[0]) for curve, count in servers)
        for of in (lambda service: service.nominal_capacity, lambda service: service.supremum)
    )
    wanted = load * nominal if rate is None else rate
    if wanted >= most:
        raise InputError(
            f"{said_by} makes {wanted:.4g} requests/s, and the servers can serve no more than {most:.4g}: give more of them with --replicas"
            f"{', or a lower --load' if rate is None else ''}."
        )


def _fitted(curve: Curve) -> ServiceFit:
    """The curve as a fleet file would fit it; complaints name the file that was read."""
    held = [workload(point) or 0.0 for point in curve.points]
    return fit_service(held, [point.throughput for point in curve.points], name=curve.origin)


def in_own_words(error: InputError, fleet: str, origins: Mapping[str, str]) -> InputError:
    """A complaint about files that are not written yet as one about those that were read, by `origins` of tables."""
    text = str(error)
    for table, origin in origins.items():
        text = re.sub(rf"{re.escape(table)}(:\d+)*", lambda _, origin=origin: origin, text)
    about = re.match(rf"{re.escape(fleet)}(?::\d+)?:? (?:\[([\w.-]+)\]: |([\w.-]+) )", text)
    if about is None:
        return InputError(text)
    option = _OPTIONS.get(about[2] or "")
    remedy = f" Change it with {option}." if option else ""
    return InputError(f"A fleet of these files would not do: {about[1] or about[2]} {text[about.end() :]}{remedy}")
