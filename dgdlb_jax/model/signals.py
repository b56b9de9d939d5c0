"""Events as functions of time: what the simulator reads while it steps, and the network as it is after some of them."""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.model import events as kinds
from dgdlb_jax.model.demand import Constant, Jumps
from dgdlb_jax.model.events import Event, places
from dgdlb_jax.model.modulated import Modulated
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Replicas
from dgdlb_jax.numerics.knots import NEVER, Steps
from dgdlb_jax.numerics.results import InputError, is_concrete

Change = tuple[Event, np.ndarray, object]  # when, which columns, the new value
Which = Callable[[Any], bool] | None


class Signals(eqx.Module):
    """All events of a network; None for what never changes. In a batch every array has a leading axis: `jax.tree.map(jnp.stack, ...)`.

    - `demand` `(frontends,)`: a factor on the arrival rates. `replicas` `(backends,)`: a factor on the replicas.
    - `up` `(backends,)`: 1 while a backend runs, 0 while it has failed. `serving` `(backends,)`: 1 while frontends are to use it; they
      know after the feedback latency.
    - `allowed` `(frontends, backends)`: 1 where the mask allows it. `latency` and `intact` `(frontends, backends)`: a factor on the latency
      of what is sent, and on how much of it arrives. `news` `(frontends, backends)`: a factor on the latency of news.
    - `timeout` `(backends,)`: seconds after which frontends send again what a backend that failed has lost; inf where they do not.
    """

    demand: Steps | None
    replicas: Steps | None
    up: Steps | None
    serving: Steps | None
    allowed: Steps | None
    latency: Steps | None
    intact: Steps | None
    news: Steps | None = None
    timeout: Float[Array, "*batch backends"] | None = None

    def demand_of(self, network: Network) -> Network:
        """The network, one or a batch, with its demand as these events change it."""
        if self.demand is None:
            return network
        if not isinstance(network.demand, Constant):
            return eqx.tree_at(lambda n: n.demand, network, Modulated(network.demand, self.demand))
        rates = network.arrival_rate[..., None, :] * self.demand.values
        return eqx.tree_at(lambda n: n.demand, network, Jumps(self.demand.times, rates))

    def with_longest(self, network: Network) -> Network:
        """The network, one or a batch, with the longest latencies of all times on every arc: what delay lines need room for."""
        longest = lambda steps: 1.0 if steps is None else steps.values.max(-3)
        ways = network.latency * longest(self.latency), network.feedback_latency * longest(self.news)
        if self.timeout is not None:
            waits = jnp.where(jnp.isfinite(self.timeout), self.timeout, 0)[..., None, :]
            ways = jnp.maximum(ways[0], waits), ways[1]
        return eqx.tree_at(lambda n: (n.latency, n.feedback_latency), network, ways)

    def network_at(self, network: Network, t: float) -> Network:
        """A single network as it is from time `t` on, when everybody knows: what an optimum and step sizes refer to."""
        dtype = network.latency.dtype
        now = lambda steps: None if steps is None else steps.at(jnp.full(steps.times.shape[1:], t, dtype))
        demand, replicas, serving = map(now, (self.demand, self.replicas, self.serving))
        allowed, latency, intact, news = map(now, (self.allowed, self.latency, self.intact, self.news))
        mask = network.mask
        for known in (serving, allowed, intact):
            mask = mask if known is None else mask & (known > 0.5)
        rate = network.arrival_rate if demand is None else demand * network.arrival_rate
        service = network.service if replicas is None else Replicas(network.service, replicas)
        changed = eqx.tree_at(lambda n: (n.mask, n.service), network, (mask, service))
        if latency is not None:
            ways = lambda n: (n.latency, n.cost_latency)
            changed = eqx.tree_at(ways, changed, tuple(latency * way for way in ways(network)))
        if news is not None:
            changed = eqx.tree_at(lambda n: n.feedback_latency, changed, news * changed.feedback_latency)
        return changed if demand is None else changed.with_arrival_rate(rate)


def signals(network: Network, events: Iterable[Event]) -> Signals:
    """Events as functions of time, for a network or, shared by all, for a batch.

    **Arguments:** `events`: of `model.events`, in any order; of those at the same time and place the last one counts.

    **Returns:** `Signals`, in a batch with a leading axis.

    **Raises:** `InputError` for a place that there is not, a recovery of what has not failed, broken or closed, and a frontend that is left
    without a backend.
    """
    ordered = sorted(events, key=lambda event: event.at)
    found = _Tables(network, ordered).signals()
    _check_recoveries(network, ordered)
    _check_links(network, ordered)
    _check_reach(network, ordered, found)
    if network.batch is None:
        return found
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (network.batch, *leaf.shape)), found)


def as_signals(network: Network, events: Iterable[Event] | Signals) -> Signals:
    """`signals`, unless they are some already."""
    return events if isinstance(events, Signals) else signals(network, events)


class _Tables:
    """The changes of every signal, in the order of time."""

    def __init__(self, network: Network, ordered: Sequence[Event]):
        self.network, self.ordered = network, ordered
        self.dtype = network.latency.dtype

    def signals(self) -> Signals:
        for event in self.ordered:
            if type(event) not in kinds.KINDS.values():
                raise InputError(f"{event!r} is no event: use the classes of dgdlb_jax.events.")
        backends = self.network.backends
        return Signals(
            demand=self._steps((kinds.Demand,), self.network.frontends),
            replicas=self._steps((kinds.Replicas,), backends),
            up=self._steps((kinds.Fails, kinds.Recovers), backends, needs=kinds.Fails),
            serving=self._steps((kinds.Fails, kinds.Drains, kinds.Recovers), backends),
            allowed=self._arcs((kinds.Closes, kinds.Opens)),
            latency=self._arcs((kinds.Latency,)),
            intact=self._arcs((kinds.Breaks, kinds.Mends), needs=kinds.Breaks),
            news=self._arcs((kinds.Latency,), only=lambda event: event.news),
            timeout=self._timeouts(),
        )

    def _timeouts(self) -> Array | None:
        """Those of failures, one for each backend; None without any."""
        found = np.full(self.network.backends, np.inf)
        known: dict[int, float | None] = {}
        for event in self.ordered:
            if not isinstance(event, kinds.Fails):
                continue
            for backend in self._change(event)[1].tolist():
                if known.setdefault(backend, event.timeout) != event.timeout:
                    raise InputError(
                        f"Fails(at={event.at:g}).timeout is {event.timeout}, but {known[backend]} when backend "
                        f"{_name(self.network.backend_names, backend)} fails before: give one timeout for each backend."
                    )
                found[backend] = np.inf if event.timeout is None else event.timeout
        return jnp.asarray(found, self.dtype) if np.isfinite(found).any() else None

    def _arcs(self, chosen: tuple[type, ...], needs: type | None = None, only: Which = None) -> Steps | None:
        shape = self.network.frontends, self.network.backends
        found = self._steps(chosen, shape[0] * shape[1], needs, only)
        return jax.tree.map(lambda table: table.reshape(-1, *shape), found)

    def _steps(
        self, chosen: tuple[type, ...], columns: int, needs: type | None = None, only: Which = None
    ) -> Steps | None:
        """The signal that these kinds of events change, all or `only` some of them; None without any."""
        changes = [
            self._change(event) for event in self.ordered if isinstance(event, chosen) and (only is None or only(event))
        ]
        if not any(isinstance(event, needs or chosen) for event, *_ in changes):
            return None
        times = [[] for _ in range(columns)]
        numbers = [[0] for _ in range(columns)]  # of changes, from 1 on: which one a column has its value from
        for number, (event, where, _) in enumerate(changes, start=1):
            for column in where:
                if times[column][-1:] == [event.at]:
                    numbers[column][-1] = number
                    continue
                times[column].append(event.at)
                numbers[column].append(number)
        jumps = max(map(len, times))
        filled = np.array([own + [NEVER] * (jumps - len(own)) for own in times])
        held = np.array([own + own[-1:] * (jumps + 1 - len(own)) for own in numbers])
        values = jnp.stack([jnp.asarray(value, self.dtype) for value in (1.0, *(value for *_, value in changes))])
        return Steps(jnp.asarray(filled.T, self.dtype), values[held.T])

    def _change(self, event: Event) -> Change:
        network = self.network
        backends = places(event, "backend", event.backends, network.backend_names, network.backends)
        frontends = places(event, "frontend", event.frontends, network.frontend_names, network.frontends)
        match event:
            case kinds.Fails() | kinds.Drains():
                return event, backends, 0.0
            case kinds.Recovers():
                return event, backends, 1.0
            case kinds.Replicas(factor=factor):
                return event, backends, factor
            case kinds.Demand(factor=factor):
                return event, frontends, factor
        arcs = (frontends[:, None] * network.backends + backends).ravel()
        if isinstance(event, kinds.Latency):
            return event, arcs, event.factor
        return event, arcs, float(isinstance(event, kinds.Opens | kinds.Mends))


def _check_recoveries(network: Network, ordered: Sequence[Event]) -> None:
    out: set[int] = set()
    for event in ordered:
        if isinstance(event, kinds.Fails | kinds.Drains | kinds.Recovers):
            where = set(places(event, "backend", event.backends, network.backend_names, network.backends).tolist())
            if isinstance(event, kinds.Recovers) and not where <= out:
                who = _name(network.backend_names, min(where - out))
                raise InputError(
                    f"Recovers(at={event.at:g}): backend {who} is not out of service then: let it fail or drain before."
                )
            out = out - where if isinstance(event, kinds.Recovers) else out | where


_LINKS = (
    (kinds.Breaks, kinds.Mends, "broken then: let it break before"),
    (kinds.Closes, kinds.Opens, "closed then: close it before"),
)
"""What is done to links, and undone."""


def _check_links(network: Network, ordered: Sequence[Event]) -> None:
    """Raise `InputError` where something is undone that was not done to any of the links."""
    for does, undoes, lacks in _LINKS:
        done: set[tuple[int, int]] = set()
        for event in ordered:
            if not isinstance(event, does | undoes):
                continue
            frontends = places(event, "frontend", event.frontends, network.frontend_names, network.frontends).tolist()
            backends = places(event, "backend", event.backends, network.backend_names, network.backends).tolist()
            where = set(product(frontends, backends))
            if isinstance(event, undoes) and not where & done:
                raise InputError(f"{event.name}(at={event.at:g}): no such link is {lacks}.")
            done = done - where if isinstance(event, undoes) else done | where


def _check_reach(network: Network, ordered: Sequence[Event], found: Signals) -> None:
    """Raise `InputError` where a frontend has no backend left."""
    if not is_concrete(network.mask, found) or network.batch is not None:
        return
    for event in ordered:
        lonely = np.flatnonzero(~np.asarray(found.network_at(network, event.at).mask).any(axis=1))
        if lonely.size:
            who = _name(network.frontend_names, int(lonely[0]))
            raise InputError(
                f"{event.name}(at={event.at:g}) leaves frontend {who} without a backend: allow it another one, or drop the event."
            )


def _name(names: Sequence[str] | None, number: int) -> str:
    return names[number] if names else str(number)


def closest_pair(times: Float[Array, "*batch jumps columns"]) -> float:
    """The shortest time between two jumps of one signal, seconds; huge without two."""
    gaps = np.diff(np.asarray(times, float), axis=-2)  # huge where the later one never comes
    return float(np.min(np.where(gaps > 0, gaps, np.inf), initial=np.inf))
