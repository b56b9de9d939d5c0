"""Families of random networks: seeded, batched over keys, each with a stated rule.

Every family takes a key of `jax.random` and returns one network, or with `count=n` a batch of `n`, one per key of
`jax.random.split(key, n)`. The same key gives the same network. What families have in common unless they say otherwise:

- arrival rates in proportions drawn log-uniformly over a factor of 4, scaled to `load` times the total nominal capacity
  (total demand below total capacity is all that a complete graph needs to be feasible);
- latencies in seconds, all three alike; `latency` sets their scale;
- `service(key, backends)` draws the curves: one of `CURVES`, perhaps with `functools.partial(..., service_time=0.1)`, or a
  function of your own. The default is `hyperbolic`.

**Raises:** `InputError` on sizes below 1, or a load or a latency that is not positive.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.cities import CITIES
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.random_service import CURVES as CURVES
from dgdlb_jax.model.random_service import RandomKey, RandomService, hyperbolic, log_uniform
from dgdlb_jax.model.service import AbstractService, Replicas
from dgdlb_jax.numerics.results import InputError, is_concrete

Matrix = Float[Array, "frontends backends"]

EARTH_RADIUS = 6371.0  # km
LIGHT_IN_FIBRE = 2e5  # km/s, two thirds of the speed in vacuum
DETOUR = 1.6  # cables and routers against the great circle; see `geographic`
LAST_MILE = 1e-3  # s

_quick = functools.partial(hyperbolic, service_time=0.1)


def one_frontend(
    key: RandomKey,
    *,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """One frontend, many backends; latencies uniform between 0 and 2 `latency`. The only family without `frontends`."""
    return complete(key, frontends=1, backends=backends, count=count, load=load, latency=latency, service=service)


def symmetric(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    r"""Identical backends, equal arrival rates, one latency for all arcs: log-uniform in 0.1 to 10 `latency` per network.

    The loop is $s (s + a) + K e^{-2 \tau s} = 0$ with $K = \eta c \sum_i \lambda_i$, critical at
    $K_c = \frac{a}{2 \tau} \frac{\theta}{\sin\theta}$, $\theta \tan\theta = 2 a \tau$ (own derivation; two or more backends).
    """

    def draw(key: RandomKey) -> Network:
        for_service, for_latency = jax.random.split(key)
        curve = service(for_service, 1).pad(backends)
        tau = latency * log_uniform(for_latency, (1, 1), 0.1, 10)
        rates = jnp.ones(frontends, tau.dtype)
        return _network(jnp.broadcast_to(tau, (frontends, backends)), curve, rates, load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def complete(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """Every arc exists; its latency is uniform between 0 and 2 `latency`, independently (not a metric)."""

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_rates = jax.random.split(key, 3)
        tau = 2 * latency * jax.random.uniform(for_latency, (frontends, backends))
        return _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def sparse(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
    density: float = 0.3,
) -> Network:
    """A random compatibility graph: an arc exists with probability `density`, latencies as in `complete`.

    Further arcs give every frontend at least two backends (one if there is one) and every backend at least one frontend.
    Arrival rates come from a random flow in which every backend serves `load` times its nominal capacity, split among its
    frontends at random. So a load below 1 is feasible whatever the graph.
    """
    if not 0 <= density <= 1:
        raise InputError(f"sparse: density is {density}, but is a probability: give a number between 0 and 1.")

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_mask, for_flow = jax.random.split(key, 4)
        shape = frontends, backends
        mask = _random_graph(for_mask, shape, density)
        curve = service(for_service, backends)
        shares = jnp.where(mask, log_uniform(for_flow, shape, 0.5, 2), 0)
        flows = load * curve.nominal_capacity[None] * shares / shares.sum(axis=0, keepdims=True)
        tau = 2 * latency * jax.random.uniform(for_latency, shape)
        return Network(flows.sum(axis=1), tau, curve, mask=mask)

    return _draw(draw, key, count, frontends, backends, load, latency)


def geographic(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = _quick,
) -> Network:
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

    def draw(key: RandomKey) -> Network:
        for_service, for_frontends, for_backends, for_rates = jax.random.split(key, 4)
        origin, target = places(for_frontends, frontends), places(for_backends, backends)
        tau = latency * (LAST_MILE + DETOUR * _distances(origin, target) / LIGHT_IN_FIBRE)
        network = _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)
        return network.with_names(_names(origin), _names(target)) if is_concrete(origin, target) else network

    return _draw(draw, key, count, frontends, backends, load, latency)


def heterogeneous_latencies(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """Latencies over three decades: log-uniform per arc between 0.01 and 10 `latency`."""

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_rates = jax.random.split(key, 3)
        tau = latency * log_uniform(for_latency, (frontends, backends), 0.01, 10)
        return _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def equal_latencies(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """Different backends and rates, one latency for all arcs: log-uniform in 0.1 to 10 `latency` per network."""

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_rates = jax.random.split(key, 3)
        tau = jnp.broadcast_to(latency * log_uniform(for_latency, (1, 1), 0.1, 10), (frontends, backends))
        return _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def frontend_latencies(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """Every frontend is equally far from all backends: one latency per frontend, log-uniform between 0.01 and 10 `latency`."""

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_rates = jax.random.split(key, 3)
        tau = jnp.broadcast_to(latency * log_uniform(for_latency, (frontends, 1), 0.01, 10), (frontends, backends))
        return _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def hub_and_spoke(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    r"""Sites around a hub that all traffic between sites passes.

    Frontend $i$ and backend $j$ sit at sites $i$ and $j$ (the larger of the two numbers is the number of sites). A spoke $u$
    is uniform between 0.1 and 0.9 `latency`; $\tau_{ij} = u_i + u_j$ between sites, 0.05 `latency` within one.
    """

    def draw(key: RandomKey) -> Network:
        for_service, for_latency, for_rates = jax.random.split(key, 3)
        spoke = latency * jax.random.uniform(for_latency, (max(frontends, backends),), minval=0.1, maxval=0.9)
        tau = spoke[:frontends, None] + spoke[None, :backends]
        tau = jnp.where(jnp.eye(frontends, backends, dtype=bool), 0.05 * latency, tau)
        return _network(tau, service(for_service, backends), _proportions(for_rates, frontends), load)

    return _draw(draw, key, count, frontends, backends, load, latency)


def heterogeneous_capacities(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float = 0.7,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """Backends of all sizes: 1 to 1000 replicas of a random curve, log-uniformly; otherwise as `complete`."""

    def many(key: RandomKey, backends: int) -> Replicas:
        for_curve, for_count = jax.random.split(key)
        return Replicas(service(for_curve, backends), log_uniform(for_count, (backends,), 1, 1000))

    return complete(key, frontends=frontends, backends=backends, count=count, load=load, latency=latency, service=many)


def near_critical(
    key: RandomKey,
    *,
    frontends: int = 10,
    backends: int = 10,
    count: int | None = None,
    load: float | None = None,
    latency: float = 1.0,
    service: RandomService = hyperbolic,
) -> Network:
    """As `complete`, at a load uniform between 0.95 and 0.99 per network, or the one given."""

    def draw(key: RandomKey) -> Network:
        for_network, for_load = jax.random.split(key)
        network = complete(for_network, frontends=frontends, backends=backends, latency=latency, service=service)
        return network.with_load(jax.random.uniform(for_load, (), minval=0.95, maxval=0.99) if load is None else load)

    return _draw(draw, key, count, frontends, backends, 1.0 if load is None else load, latency)


FAMILIES: dict[str, Callable[..., Network]] = {
    "one_frontend": one_frontend,
    "symmetric": symmetric,
    "complete": complete,
    "sparse": sparse,
    "geographic": geographic,
    "heterogeneous_latencies": heterogeneous_latencies,
    "equal_latencies": equal_latencies,
    "frontend_latencies": frontend_latencies,
    "hub_and_spoke": hub_and_spoke,
    "heterogeneous_capacities": heterogeneous_capacities,
    "near_critical": near_critical,
}
"""All families by name; all but `one_frontend` take `frontends`."""


def _draw(
    draw: Callable[[RandomKey], Network],
    key: RandomKey,
    count: int | None,
    frontends: int,
    backends: int,
    load: float,
    latency: float,
) -> Network:
    """One network, or a batch of `count` from as many keys."""
    for name, size in (("frontends", frontends), ("backends", backends), ("count", 1 if count is None else count)):
        if size < 1:
            raise InputError(f"A topology with {name}={size} is empty: give at least 1.")
    for name, value in (("load", load), ("latency", latency)):
        if is_concrete(value) and not (np.isfinite(value) and value > 0):
            raise InputError(f"A topology with {name}={value} makes no sense: give a positive, finite number.")
    return draw(key) if count is None else jax.vmap(draw)(jax.random.split(key, count))


def _proportions(key: RandomKey, frontends: int) -> Float[Array, " frontends"]:
    return log_uniform(key, (frontends,), 0.5, 2)


def _network(tau: Matrix, curve: AbstractService, proportions: Float[Array, " frontends"], load: float) -> Network:
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
