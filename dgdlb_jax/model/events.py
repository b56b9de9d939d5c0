"""What happens to a network while it runs: failures, drains, recoveries, replicas, demand, links, masks.

An event is one line: when, what, where, to what. `signals(network, events)` (or the argument `events=` of `simulate`) makes functions of
time of them. Times are seconds since the start of a run and are no arguments of a derivative: what a failure costs is not smooth in its
time. Factors and latencies may be differentiated. Backends and frontends are named, or numbered from 0; a tuple means several at once.

What people are told when: a backend that fails or drains is used by a frontend until the news has travelled, `feedback_latency` later, and
so it is with one that recovers, and with a link that breaks. A frontend knows its own demand, and a mask is its own configuration, at once.

```python
network = dgd.Network([4.0, 2.0], [[0.02, 0.15], [0.15, 0.02]], dgd.Hyperbolic([8.0, 8.0], [20.0, 20.0]))
happenings = [dgd.events.Fails(60.0, backend=1), dgd.events.Recovers(120.0, backend=1), dgd.events.Demand(150.0, 1.2)]
run = dgd.simulate(network, dgd.DGDLB(0.05), duration=200.0, dt=0.1, events=happenings)
run.lost[-1]                                     # requests lost by each backend
dgd.compare(network, events=happenings).recoveries
```
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from dgdlb_jax.numerics.checks import in_range
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.text import did_you_mean

Where = str | int | Sequence[str | int]


@dataclass(frozen=True)
class Event:
    """Something that happens `at` so many seconds after the start."""

    at: float

    def __post_init__(self):
        if not in_range(self.at, 0, above=True):
            raise InputError(
                f"{self.name}.at is {self.at}: give a finite time above 0, in seconds; what holds from the start is part of the network."
            )

    @property
    def name(self) -> str:
        """For messages."""
        return type(self).__name__

    @property
    def backends(self) -> tuple[str | int, ...]:
        """Where it happens, as given; empty for all of them."""
        return _several(getattr(self, "backend", None))

    @property
    def frontends(self) -> tuple[str | int, ...]:
        """Where it happens, as given; empty for all of them."""
        return _several(getattr(self, "frontend", None))


@dataclass(frozen=True)
class Fails(Event):
    """A backend fails: what it holds is lost, and so is what reaches it, until it recovers.

    With a `timeout` in seconds the frontends send it again, so long after it was lost, by the routing that they have then: every request,
    at its time to within a step. What a backend holds belongs to frontends in proportion to what arrives from them. No run goes on from
    one with timeouts.
    """

    backend: Where
    timeout: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.timeout is not None and not in_range(self.timeout, 0, above=True):
            raise InputError(
                f"Fails(at={self.at:g}).timeout is {self.timeout}: give a finite time above 0, in seconds, or None for requests that are "
                "lost for good."
            )


@dataclass(frozen=True)
class Drains(Event):
    """A backend is taken out of service: it gets no more requests, and completes those that it has and those on their way to it."""

    backend: Where


@dataclass(frozen=True)
class Recovers(Event):
    """A backend that failed comes back cold, without requests; one that drained goes on with what it still has."""

    backend: Where


@dataclass(frozen=True)
class Replicas(Event):
    r"""A backend has another number of replicas: `factor` times as many as at first, $\ell(N) \to r\,\ell(N / r)$.

    Requests in lost replicas are taken over by the others.
    """

    backend: Where
    factor: ArrayLike

    def __post_init__(self):
        super().__post_init__()
        _check(
            self,
            "factor",
            self.factor,
            above=True,
            remedy="give a finite factor above 0; a backend that has none left Fails",
        )


@dataclass(frozen=True)
class Demand(Event):
    """The arrival rate of a frontend (of all by default) is `factor` times what it is without this event: of a constant rate, or of one
    that moves in time."""

    factor: ArrayLike
    frontend: Where | None = None

    def __post_init__(self):
        super().__post_init__()
        _check(self, "factor", self.factor, above=False, remedy="give a finite factor that is not negative")


@dataclass(frozen=True)
class Closes(Event):
    """Frontends (all by default) may not use backends (all by default) any more: a change of the mask, known to them at once."""

    frontend: Where | None = None
    backend: Where | None = None


@dataclass(frozen=True)
class Opens(Event):
    """Frontends may use backends again that `Closes` forbade them."""

    frontend: Where | None = None
    backend: Where | None = None


@dataclass(frozen=True)
class Latency(Event):
    """Requests take another way: the latency from frontends (all by default) to backends (all by default), and what is charged for it, is
    `factor` times that at first.

    A request keeps the latency with which it was sent. News have ways of their own, which stay as they are, unless `news` says that they
    take the same way: then their latency is `factor` times that at first as well. They keep the one with which they were sent, too: when
    a link slows, nothing new is heard for a while. Through the news a frontend learns what its requests take now.
    """

    factor: ArrayLike
    frontend: Where | None = None
    backend: Where | None = None
    news: bool = False

    def __post_init__(self):
        super().__post_init__()
        _check(self, "factor", self.factor, above=False, remedy="give a finite factor that is not negative")


@dataclass(frozen=True)
class Breaks(Event):
    """Links break: what is sent on them from now on is lost, until the frontend knows; what is on its way arrives."""

    frontend: Where | None = None
    backend: Where | None = None


@dataclass(frozen=True)
class Mends(Event):
    """Links that broke carry requests again."""

    frontend: Where | None = None
    backend: Where | None = None


KINDS: dict[str, type[Event]] = {
    "fails": Fails,
    "drains": Drains,
    "recovers": Recovers,
    "replicas": Replicas,
    "demand": Demand,
    "closes": Closes,
    "opens": Opens,
    "latency": Latency,
    "breaks": Breaks,
    "mends": Mends,
}
"""What happens, in a fleet file's words."""


def places(event: Event, kind: str, given: Sequence[str | int], names: Sequence[str] | None, count: int) -> np.ndarray:
    """Which of `count` frontends or backends are meant: all of them where none are given.

    **Raises:** `InputError` for a name or a number that there is not.
    """
    if not given:
        return np.arange(count)
    known = list(names) if names is not None else []
    found = []
    for one in given:
        if isinstance(one, str) and one in known:
            found.append(known.index(one))
        elif not isinstance(one, str) and 0 <= one < count:
            found.append(int(one))
        else:
            hint = did_you_mean(str(one), known, f": give one of {', '.join(known) or f'0 to {count - 1}'}.")
            raise InputError(f"{event.name}(at={event.at:g}): there is no {kind} {one!r}{hint}")
    return np.array(found)


def _several(where: Any) -> tuple[str | int, ...]:
    if where is None:
        return ()
    if isinstance(where, str):
        return (where,)
    return (int(where),) if np.ndim(where) == 0 else tuple(where)


def _check(event: Event, field: str, value: ArrayLike, *, above: bool, remedy: str) -> None:
    if is_concrete(value) and (np.ndim(value) > 0 or not in_range(float(np.asarray(value)), 0, above)):
        raise InputError(f"{event.name}(at={event.at:g}).{field} is {value}: {remedy}.")
