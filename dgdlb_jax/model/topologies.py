"""Families of random networks: seeded, batched over keys, each with a stated rule.

Every family takes a key of `jax.random` and returns one network, or with `count=n` a batch of `n`, one per key of
`jax.random.split(key, n)`. The same key gives the same network. What families have in common unless they say otherwise:

- arrival rates in proportions drawn log-uniformly over a factor of 4, scaled to `load` times the total nominal capacity
  (total demand below total capacity is all that a complete graph needs to be feasible);
- latencies in seconds, all three alike; `latency` sets their scale;
- `service(key, backends)` draws the curves: one of `CURVES`, perhaps with `functools.partial(..., service_time=0.1)`, or a
  function of your own. The default is `hyperbolic`.

A family of your own is a rule for one network, decorated with `family`; `register_topology` gives it a name for sweeps:

```python
@family()
def star(key, common):
    service = common.service(key, common.backends)
    ...
    return Network(rates, latency, service)
```

**Raises:** `InputError` on sizes below 1, or a load or a latency that is not positive.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.cities import CITIES
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.random_service import CURVES as CURVES
from dgdlb_jax.model.random_service import RandomKey, RandomService, hyperbolic, log_uniform
from dgdlb_jax.model.service import AbstractService, Replicas
from dgdlb_jax.numerics.checks import check_entries, positive
from dgdlb_jax.numerics.registry import Registry, View
from dgdlb_jax.numerics.results import InputError, is_concrete

Matrix = Float[Array, "frontends backends"]

EARTH_RADIUS = 6371.0  # km
LIGHT_IN_FIBRE = 2e5  # km/s, two thirds of the speed in vacuum
DETOUR = 1.6  # cables and routers against the great circle; see `geographic`
LAST_MILE = 1e-3  # s


class Common(NamedTuple):
    """What every family is told: sizes, the load, the scale of latencies (s), and what draws the service curves."""

    frontends: int = 10
    backends: int = 10
    load: Any = 0.7
    latency: float = 1.0
    service: RandomService = hyperbolic


_USUAL = Common()


@runtime_checkable
class Family(Protocol):
    """A family as the user calls it."""

    def __call__(
        self,
        key: RandomKey,
        *,
        frontends: int = ...,
        backends: int = ...,
        count: int | None = ...,
        load: float = ...,
        latency: float = ...,
        service: RandomService = ...,
        **own: Any,
    ) -> Network:
        """One network, or a batch of `count` from as many keys."""
        ...


class _Entry(NamedTuple):
    key: str
    make: Family


def family(usual: Common = _USUAL, *, without: Sequence[str] = ()) -> Callable[[Callable[..., Network]], Family]:
    """Turn a rule `(key, common, *, own parameters) -> Network` for one network into a family: with `count`, checked, documented.

    **Arguments:** `usual`: what `common` holds unless the caller says otherwise. `without`: fields of it that callers cannot change.
    """

    def wrap(rule: Callable[..., Network]) -> Family:
        shared, own = _parameters(rule, usual, without)

        @functools.wraps(rule)
        def make(key: RandomKey, *, count: int | None = None, **given: Any) -> Network:
            unknown = next((name for name in given if name not in shared and name not in own), None)
            if unknown is not None:
                raise TypeError(f"{rule.__name__}() has no parameter {unknown!r}")  # as any function would
            common = usual._replace(**{name: given.pop(name) for name in shared if name in given})
            _check_common(common, count)
            draw = lambda key: rule(key, common, **given)
            return draw(key) if count is None else jax.vmap(draw)(jax.random.split(key, count))

        first = inspect.Parameter("key", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=RandomKey)
        last = inspect.Parameter("count", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=int | None)
        parameters = [first, *shared.values(), last, *own.values()]
        make.__signature__ = inspect.Signature(parameters, return_annotation=Network)  # pyright: ignore[reportAttributeAccessIssue]
        return make

    return wrap


def _parameters(
    rule, usual: Common, without: Sequence[str]
) -> tuple[dict[str, inspect.Parameter], dict[str, inspect.Parameter]]:
    """Of a family: those that it shares with all others, and its own."""
    shared = {
        name: inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=Common.__annotations__[name]
        )
        for name, value in usual._asdict().items()
        if name not in without
    }
    own = [each for each in inspect.signature(rule).parameters.values() if each.kind is each.KEYWORD_ONLY]
    return shared, {each.name: each for each in own}


def _check_common(common: Common, count: int | None) -> None:
    sizes = {"frontends": common.frontends, "backends": common.backends, "count": 1 if count is None else count}
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"A topology with {name}={size} is empty: give at least 1.")
    for name, value in (("load", 1.0 if common.load is None else common.load), ("latency", common.latency)):
        check_entries(
            value,
            positive,
            lambda at, value, name=name: (
                f"A topology with {name}={value:g} makes no sense: give a positive, finite number."
            ),
        )


@family(Common(frontends=1), without=["frontends"])
def one_frontend(key: RandomKey, common: Common) -> Network:
    """One frontend, many backends; latencies uniform between 0 and 2 `latency`. The only family without `frontends`."""
    return _complete(key, common)


@family()
def symmetric(key: RandomKey, common: Common) -> Network:
    r"""Identical backends, equal arrival rates, one latency for all arcs: log-uniform in 0.1 to 10 `latency` per network.

    The loop is $s (s + a) + K e^{-2 \tau s} = 0$ with $K = \eta c \sum_i \lambda_i$, critical at
    $K_c = \frac{a}{2 \tau} \frac{\theta}{\sin\theta}$, $\theta \tan\theta = 2 a \tau$ (own derivation; two or more backends).
    """
    for_service, for_latency = jax.random.split(key)
    curve = common.service(for_service, 1).pad(common.backends)
    tau = common.latency * log_uniform(for_latency, (1, 1), 0.1, 10)
    rates = jnp.ones(common.frontends, tau.dtype)
    return _network(jnp.broadcast_to(tau, (common.frontends, common.backends)), curve, rates, common.load)


@family()
def complete(key: RandomKey, common: Common) -> Network:
    """Every arc exists; its latency is uniform between 0 and 2 `latency`, independently (not a metric)."""
    return _complete(key, common)


@family()
def sparse(key: RandomKey, common: Common, *, density: float = 0.3) -> Network:
    """A random compatibility graph: an arc exists with probability `density`, latencies as in `complete`.

    Further arcs give every frontend at least two backends (one if there is one) and every backend at least one frontend.
    Arrival rates come from a random flow in which every backend serves `load` times its nominal capacity, split among its
    frontends at random. So a load below 1 is feasible whatever the graph.
    """
    if not 0 <= density <= 1:
        raise InputError(f"sparse: density is {density}, but is a probability: give a number between 0 and 1.")
    for_service, for_latency, for_mask, for_flow = jax.random.split(key, 4)
    shape = common.frontends, common.backends
    mask = _random_graph(for_mask, shape, density)
    curve = common.service(for_service, common.backends)
    shares = jnp.where(mask, log_uniform(for_flow, shape, 0.5, 2), 0)
    flows = common.load * curve.nominal_capacity[None] * shares / shares.sum(axis=0, keepdims=True)
    tau = 2 * common.latency * jax.random.uniform(for_latency, shape)
    return Network(flows.sum(axis=1), tau, curve, mask=mask)


@family(Common(service=functools.partial(hyperbolic, service_time=0.1)))
def geographic(key: RandomKey, common: Common) -> Network:
    r"""Frontends and backends in real cities (`CITIES`), drawn without repetition while there are enough.

    One way, with $d$ the great-circle distance,
    $$ \tau = \mathtt{latency} \cdot \Big( 1\,\mathrm{ms} + \frac{1.6\,d}{200\,\mathrm{km/ms}} \Big) $$
    With `latency=1`, half of the round trips measured between Azure regions (Microsoft, P50, June 2025, CC BY 4.0) are
    0.80 to 1.73 times that for nine pairs in ten, 1.05 times in the median. The default service time is 0.1 s, so that the
    network counts.

    A single network carries the names of its cities; names cannot be batched.
    """

    def places(key: RandomKey, size: int) -> Array:
        return jax.random.choice(key, len(CITIES), (size,), replace=size > len(CITIES))

    for_service, for_frontends, for_backends, for_rates = jax.random.split(key, 4)
    origin, target = places(for_frontends, common.frontends), places(for_backends, common.backends)
    tau = common.latency * (LAST_MILE + DETOUR * _distances(origin, target) / LIGHT_IN_FIBRE)
    network = _random_network(tau, for_service, for_rates, common)
    return network.with_names(_names(origin), _names(target)) if is_concrete(origin, target) else network


@family()
def heterogeneous_latencies(key: RandomKey, common: Common) -> Network:
    """Latencies over three decades: log-uniform per arc between 0.01 and 10 `latency`."""
    for_service, for_latency, for_rates = jax.random.split(key, 3)
    tau = common.latency * log_uniform(for_latency, (common.frontends, common.backends), 0.01, 10)
    return _random_network(tau, for_service, for_rates, common)


@family()
def equal_latencies(key: RandomKey, common: Common) -> Network:
    """Different backends and rates, one latency for all arcs: log-uniform in 0.1 to 10 `latency` per network."""
    for_service, for_latency, for_rates = jax.random.split(key, 3)
    tau = common.latency * log_uniform(for_latency, (1, 1), 0.1, 10)
    tau = jnp.broadcast_to(tau, (common.frontends, common.backends))
    return _random_network(tau, for_service, for_rates, common)


@family()
def frontend_latencies(key: RandomKey, common: Common) -> Network:
    """Every frontend is equally far from all backends: one latency per frontend, log-uniform between 0.01 and 10 `latency`."""
    for_service, for_latency, for_rates = jax.random.split(key, 3)
    tau = common.latency * log_uniform(for_latency, (common.frontends, 1), 0.01, 10)
    tau = jnp.broadcast_to(tau, (common.frontends, common.backends))
    return _random_network(tau, for_service, for_rates, common)


@family()
def hub_and_spoke(key: RandomKey, common: Common) -> Network:
    r"""Sites around a hub that all traffic between sites passes.

    Frontend $i$ and backend $j$ sit at sites $i$ and $j$ (the larger of the two numbers is the number of sites). A spoke $u$
    is uniform between 0.1 and 0.9 `latency`; $\tau_{ij} = u_i + u_j$ between sites, 0.05 `latency` within one.
    """
    for_service, for_latency, for_rates = jax.random.split(key, 3)
    frontends, backends = common.frontends, common.backends
    spoke = common.latency * jax.random.uniform(for_latency, (max(frontends, backends),), minval=0.1, maxval=0.9)
    tau = spoke[:frontends, None] + spoke[None, :backends]
    tau = jnp.where(jnp.eye(frontends, backends, dtype=bool), 0.05 * common.latency, tau)
    return _random_network(tau, for_service, for_rates, common)


@family()
def heterogeneous_capacities(key: RandomKey, common: Common) -> Network:
    """Backends of all sizes: 1 to 1000 replicas of a random curve, log-uniformly; otherwise as `complete`."""

    def many(key: RandomKey, backends: int) -> Replicas:
        for_curve, for_count = jax.random.split(key)
        return Replicas(common.service(for_curve, backends), log_uniform(for_count, (backends,), 1, 1000))

    return _complete(key, common._replace(service=many))


@family(Common(load=None))
def near_critical(key: RandomKey, common: Common) -> Network:
    """As `complete`, at a load uniform between 0.95 and 0.99 per network, or the one given."""
    for_network, for_load = jax.random.split(key)
    network = _complete(for_network, common._replace(load=0.7))
    drawn = jax.random.uniform(for_load, (), minval=0.95, maxval=0.99) if common.load is None else common.load
    return network.with_load(drawn)


_REGISTRY: Registry[_Entry] = Registry(
    "topology family",
    (
        _Entry("one_frontend", one_frontend),
        _Entry("symmetric", symmetric),
        _Entry("complete", complete),
        _Entry("sparse", sparse),
        _Entry("geographic", geographic),
        _Entry("heterogeneous_latencies", heterogeneous_latencies),
        _Entry("equal_latencies", equal_latencies),
        _Entry("frontend_latencies", frontend_latencies),
        _Entry("hub_and_spoke", hub_and_spoke),
        _Entry("heterogeneous_capacities", heterogeneous_capacities),
        _Entry("near_critical", near_critical),
    ),
)
FAMILIES: Mapping[str, Family] = View(_REGISTRY, lambda entry: entry.make)
"""All families by name; all but `one_frontend` take `frontends`."""


def register_topology(key: str, make: Family) -> None:
    """Make a family known by name: `FAMILIES[key]`, `family = key` in a sweep.

    **Arguments:** `make`: a function that `family` has decorated.

    **Raises:** `InputError` for the key of a built-in family.
    """
    _REGISTRY.register(_Entry(key, make))


def _complete(key: RandomKey, common: Common) -> Network:
    for_service, for_latency, for_rates = jax.random.split(key, 3)
    tau = 2 * common.latency * jax.random.uniform(for_latency, (common.frontends, common.backends))
    return _random_network(tau, for_service, for_rates, common)


def _random_network(tau: Matrix, for_service: RandomKey, for_rates: RandomKey, common: Common) -> Network:
    """The complete graph with these latencies, random curves, and rates within a factor of 4 of each other."""
    curve, proportions = (
        common.service(for_service, common.backends),
        log_uniform(for_rates, (common.frontends,), 0.5, 2),
    )
    return _network(tau, curve, proportions, common.load)


def _network(tau: Matrix, curve: AbstractService, proportions: Float[Array, " frontends"], load: Any) -> Network:
    """The complete graph whose rates have the given proportions and sum to `load` times the nominal capacity."""
    return Network(proportions * (load * curve.nominal_capacity.sum() / proportions.sum()), tau, curve)


def _random_graph(key: RandomKey, shape: tuple[int, int], density: float) -> Bool[Array, "frontends backends"]:
    """Arcs whose random score is low, plus the lowest two of every frontend and the lowest of every backend."""
    score = jax.random.uniform(key, shape)
    by_row, by_column = (jnp.argsort(jnp.argsort(score, axis=axis), axis=axis) for axis in (1, 0))
    return (score < density) | (by_row < 2) | (by_column < 1)


def _distances(origin: Array, target: Array) -> Matrix:
    """Great-circle distances between cities in km, by the haversine formula."""
    table = np.radians(np.array(list(CITIES.values())))
    latitude, longitude = jnp.asarray(table, float).T
    north = jnp.sin((latitude[origin][:, None] - latitude[target][None]) / 2) ** 2
    east = jnp.sin((longitude[origin][:, None] - longitude[target][None]) / 2) ** 2
    cosines = jnp.cos(latitude[origin])[:, None] * jnp.cos(latitude[target])[None]
    return 2 * EARTH_RADIUS * jnp.arcsin(jnp.sqrt(north + cosines * east))


def _names(places: Array) -> tuple[str, ...]:
    cities = list(CITIES)
    return tuple(cities[int(place)] for place in places)
