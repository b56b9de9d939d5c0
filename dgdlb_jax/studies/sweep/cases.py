"""From a row of inputs to what a simulation needs: network, policy, start, time step, duration; many rows at once."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int, UInt32

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.network import Network, pad
from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.model.topologies import CURVES, FAMILIES
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.start import workload_carrying
from dgdlb_jax.stability.defaults import default_step_size
from dgdlb_jax.studies.assess import Setup
from dgdlb_jax.studies.balancers import BALANCERS, behind
from dgdlb_jax.studies.settings import settings, with_settings
from dgdlb_jax.studies.starts import STARTS, start_state
from dgdlb_jax.studies.sweep import optional
from dgdlb_jax.studies.sweep.fleet import fleet_network
from dgdlb_jax.studies.sweep.inputs import NEAR_OPTIMUM, NEWS, STEP_SIZES, takes
from dgdlb_jax.studies.sweep.measures import CRITICAL, DEFAULT, SUFFICIENT

Columns = Mapping[str, np.ndarray]


class KindError(InputError):
    """No case of a kind can be prepared, whatever its numbers."""


_KINDS = ("fleet", "family", "frontends", "backends", "curve", "density", "policy", "start")
_SHARED = ("policy", "given")  # by all cases of a kind
_FINEST = (1, 2, 3)  # sizes below 4 are padded to these, larger ones to 2^k and 1.5 * 2^k


@dataclass(frozen=True)
class Cases:
    """Prepared cases of one kind; every array has a leading axis, and lies outside any device.

    - `networks`, `optimum`, `routing`, `workload`: where the runs take place, what is best there, where they start.
    - `step_size` `(cases, frontends)` 1/s^2; `dt`, `duration` `(cases,)` seconds.
    - `default`, `sufficient` `(cases, frontends)`, `critical` `(cases,)`: step sizes, when something needs them.
    - `result`: how the preparation ended; `defined`: whether the step size is finite.
    - `given`: names of inputs that have a value.
    - `parameters`: of the policy, beyond its step size. `news`: how reports come, as for `Scraped`; empty where each counts at once.
    """

    policy: str
    given: frozenset[str]
    parameters: dict[str, np.ndarray]
    news: dict[str, np.ndarray]
    networks: Network
    optimum: Optimum
    step_size: Float[np.ndarray, "cases frontends"]
    routing: Float[np.ndarray, "cases frontends backends"]
    workload: Float[np.ndarray, "cases backends"]
    dt: Float[np.ndarray, " cases"]
    duration: Float[np.ndarray, " cases"]
    default: Float[np.ndarray, "cases frontends"] | None
    sufficient: Float[np.ndarray, "cases frontends"] | None
    critical: Float[np.ndarray, " cases"] | None
    result: Int[np.ndarray, " cases"]
    defined: Bool[np.ndarray, " cases"]

    def take(self, rows: np.ndarray) -> "Cases":
        """Some of the cases."""
        chosen = {
            field.name: jax.tree.map(lambda leaf: leaf[rows], getattr(self, field.name))
            for field in fields(self)
            if field.name not in _SHARED
        }
        return replace(self, **chosen)

    def balancer(self, networks: Network, optimum: Optimum) -> AbstractPolicy:
        """The policy of these cases, parameters with a leading axis; networks and optimum as they lie on the device."""
        made = _balancer(self.policy, self.parameters, networks, optimum, jnp.asarray(self.step_size))
        return behind(made, _scraped(self.news))


def kinds(columns: Columns) -> list[np.ndarray]:
    """The rows of every kind of case: those that differ in numbers only and can be prepared and run together."""
    size = len(next(iter(columns.values())))
    keys: dict[tuple, list[int]] = {}
    named = [name for name, values in columns.items() if name in _KINDS or _is_word(values)]
    for k in range(size):
        keys.setdefault(tuple(columns[name][k] for name in named), []).append(k)
    return [np.array(rows) for rows in keys.values()]


def padded_size(size: int) -> int:
    """The size that networks of this size are padded to, so that neighbours share compiled code."""
    if size <= _FINEST[-1]:
        return size
    power = 2 ** (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def padded_arcs(columns: Columns) -> int:
    """How many arcs the padded random networks of one kind have."""
    sizes = [padded_size(int(columns[name][0])) for name in ("frontends", "backends") if name in columns]
    return math.prod(sizes)


def prepare(columns: Columns, max_steps: int, needs: set[str]) -> Cases:
    """Prepare cases of one kind.

    **Arguments:** `columns`: input -> values; `max_steps`: where suggested durations end; `needs`: which step sizes have to be there.

    **Raises:** `KindError` for a parameter that the policy or the curve does not have; `InputError` for what some case is refused for.
    """
    given = set(columns)
    networks = _networks(columns)
    optimum = solve_optimum(networks, throw=False)
    given_news = {key.removeprefix(NEWS): columns[key] for key in columns if key.startswith(NEWS)}
    news = _scraped(given_news)
    default = default_step_size(networks, optimum, averaging=0.0 if news is None else news.delay)
    sufficient = critical = None
    if SUFFICIENT in needs or "step_size_over_sufficient" in given:
        sufficient = optional.sufficient_step_size(networks, optimum)
    if CRITICAL in needs or "step_size_over_critical" in given:
        critical = optional.critical_step_size(networks, optimum)
    step = _step_size(columns, default, sufficient, critical)
    setup = Setup(networks, optimum, step, _start(columns, networks, optimum), news)
    name = str(columns["policy"][0])
    parameters = {key.split(".")[1]: columns[key] for key in given if key.startswith("policy.")}
    usable = jnp.where(jnp.isfinite(step), step, 0)  # a case without a finite step size is not run
    policy = behind(_balancer(name, parameters, networks, optimum, usable), news)
    dt, duration = _times(columns, np.asarray(setup.time_step(policy)), np.asarray(setup.settling), max_steps)
    result = np.asarray(optimum.result)
    finite = np.isfinite(np.asarray(step)).all(-1) & np.isfinite(dt) & np.isfinite(duration) & (dt > 0)
    host = functools.partial(jax.tree.map, np.asarray)
    return Cases(
        policy=name,
        given=frozenset(given),
        parameters=parameters,
        news=given_news,
        networks=host(networks),
        optimum=host(optimum),
        step_size=np.asarray(step),
        routing=np.asarray(setup.initial[0]),
        workload=np.asarray(setup.initial[1]),
        dt=dt,
        duration=duration,
        default=np.asarray(default) if DEFAULT in needs else None,
        sufficient=host(sufficient),
        critical=host(critical),
        result=result,
        defined=finite,
    )


def _scraped(news: Mapping[str, np.ndarray]) -> Scraped | None:
    """Reports of every case; None where each counts at once."""
    return Scraped(**{name: values[:, None] for name, values in news.items()}) if news else None


def _balancer(
    name: str, parameters: Mapping[str, np.ndarray], networks: Network, optimum: Optimum, step_size: Array
) -> AbstractPolicy:
    policy = BALANCERS[name].make(networks, optimum, step_size)
    words = {parameter: str(values[0]) for parameter, values in parameters.items() if _is_word(values)}
    policy = _with_words(policy, words, name)
    for parameter, values in parameters.items():
        if parameter in words:
            continue
        policy = _with_parameter(policy, parameter, functools.partial(_replaced, jnp.asarray(values)[:, None]), name)
    return policy


def _is_word(values: np.ndarray) -> bool:
    return values.dtype.kind == "U"


def _with_words(policy: AbstractPolicy, words: Mapping[str, str], place: str) -> AbstractPolicy:
    if not words:
        return policy
    try:
        return with_settings(policy, words)
    except InputError as error:
        raise KindError(f"{place}: {error}") from None


def join(parts: list[Cases], count: int) -> Cases:
    """Cases of one kind after each other; only the first `count`, the rest is padding."""

    def joined(*leaves):
        return np.concatenate(leaves)[:count]

    whole = {
        field.name: jax.tree.map(joined, *(getattr(part, field.name) for part in parts))
        for field in fields(Cases)
        if field.name not in _SHARED
    }
    return replace(parts[0], **whole)


def _networks(columns: Columns) -> Network:
    """The batch of networks, padded."""
    size = len(columns["seed"])
    fleet = str(columns["fleet"][0]) if "fleet" in columns else None
    factors = {name: columns[name] for name in columns if name.startswith(("curve.", "curve_factor."))}
    if fleet is not None:
        network = fleet_network(fleet)
        network = pad(network, padded_size(network.frontends), padded_size(network.backends))
        networks = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (size, *leaf.shape)), network)
    else:
        networks = _random_networks(columns)
    for name, values in factors.items():
        networks = _with_curve(networks, name, values, fleet or str(columns["family"][0]))
    if "load" in columns:  # rates are proportional to it in every family
        networks = networks.with_load(columns["load"])
    if "scale" in columns:
        networks = networks.with_scale(columns["scale"])
    return networks.with_latency_scale(columns["latency_scale"])


def _random_networks(columns: Columns) -> Network:
    family = str(columns["family"][0])
    chosen: dict[str, Any] = {
        name: kind(columns[name][0])
        for name, kind in (("frontends", int), ("backends", int), ("density", float))
        if name in columns and takes(family, name)
    }
    draw = _drawer(family, tuple(chosen.items()), str(columns["curve"][0]) if "curve" in columns else None)
    time = columns.get("service_time")
    return draw(jnp.asarray(columns["seed"], jnp.uint32), None if time is None else jnp.asarray(time))


@functools.cache
def _drawer(family: str, settings: tuple[tuple[str, Any], ...], curve: str | None) -> Callable[..., Network]:
    """A compiled function from seeds and service times (None: the usual ones) to a padded batch of the family."""
    make = FAMILIES[family]
    usual: Any = inspect.signature(make).parameters["service"].default
    chosen = CURVES[curve] if curve else usual

    def draw(seed: UInt32[Array, ""], service_time: Float[Array, ""] | None) -> Network:
        keywords = dict(getattr(usual, "keywords", {})) | (
            {} if service_time is None else {"service_time": service_time}
        )
        network = make(jax.random.key(seed), service=functools.partial(chosen, **keywords), **dict(settings))
        return pad(network, padded_size(network.frontends), padded_size(network.backends))

    return jax.jit(jax.vmap(draw))


def _replaced(new: Array, old: Array) -> Array:
    del old
    return new


def _with_curve(networks: Network, name: str, values: np.ndarray, place: str) -> Network:
    kind, parameter = name.split(".")
    factor = jnp.asarray(values, networks.latency.dtype)

    def change(leaf: Array) -> Array:
        shaped = factor.reshape(-1, *[1] * (leaf.ndim - 1))
        return leaf * shaped if kind == "curve_factor" else jnp.broadcast_to(shaped, leaf.shape)

    service = _with_parameter(networks.service, parameter, change, place)
    return eqx.tree_at(lambda network: network.service, networks, service)


def _with_parameter(module: Any, name: str, change: Callable[[Array], Array], place: str) -> Any:
    """A module with the parameter of this name changed, wherever in it that stands.

    **Raises:** `KindError` when there is none.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    names = {getattr(path[-1], "name", "") for path, _ in leaves} - {""}
    if name not in names:
        known = (
            f"its parameters are {', '.join(sorted(names))}{did_you_mean(name, names, '.')}"
            if names
            else "it has none."
        )
        raise KindError(f"{place} has no parameter {name!r}: {known}")
    return _changed(module, name, change)


def _changed(module: Any, name: str, change: Callable[[Array], Array]) -> Any:
    """A module in which every part that has the parameter is made anew, so that its own rules are held to."""

    def has_it(part: Any) -> bool:
        return isinstance(part, eqx.Module) and name in {field.name for field in fields(part)}

    return jax.tree.map(
        lambda part: _made_anew(part, name, change(getattr(part, name))) if has_it(part) else part,
        module,
        is_leaf=has_it,
    )


def _made_anew(part: Any, name: str, value: Array) -> Any:
    """`part` with another value of a parameter: from its class, if that takes its parameters as they are kept.

    A nominal capacity that follows from the other parameters goes on to follow from them.

    **Raises:** `InputError` for a value that the class does not take.
    """
    own = settings(part)
    taken = {key: setting for key, setting in own.items() if key != "capacity"}
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(taken)}
    if isinstance(part, AbstractService) and shapes != {part.nominal_capacity.shape}:  # components as well
        return eqx.tree_at(lambda one: getattr(one, name), part, value)
    stated = {}
    if "capacity" in own and not np.allclose(own["capacity"], getattr(type(part)(**taken), "capacity"), rtol=1e-6):  # noqa: B009
        stated = {"capacity": own["capacity"]}
    return type(part)(**taken | stated | {name: value})


def _step_size(
    columns: Columns, default: Array, sufficient: Array | None, critical: Array | None
) -> Float[Array, "cases frontends"]:
    name = next((name for name in STEP_SIZES if name in columns), None)
    if name is None:
        return default
    value = jnp.asarray(columns[name], default.dtype)[:, None]
    if name == "step_size":
        return jnp.broadcast_to(value, default.shape)
    if name == "step_size_over_critical":
        return jnp.broadcast_to(value * critical[:, None], default.shape)  # pyright: ignore[reportOptionalSubscript]
    if name == "step_size_over_default":
        return value * default
    # A frontend that no condition limits, as it has one active backend, takes its default.
    return value * jnp.where(jnp.isfinite(sufficient), sufficient, default)  # pyright: ignore[reportArgumentType]


def _start(columns: Columns, networks: Network, optimum: Optimum) -> tuple[ArrayLike, ArrayLike]:
    start = str(columns["start"][0])
    if start in STARTS:
        return start_state(networks, start)
    seeds = jnp.asarray(columns["start_seed"], jnp.uint32)
    distance = jnp.asarray(columns["start_distance"], networks.latency.dtype)
    return _random_starts(start == NEAR_OPTIMUM, networks, optimum, seeds, distance)


@compiled
def _random_starts(
    near: bool, networks: Network, optimum: Optimum, seeds: Array, distance: Array
) -> tuple[Array, Array]:
    def one(network: Network, best: Optimum, seed: Array, away: Array) -> tuple[Array, Array]:
        weight = jnp.where(network.mask, jax.random.exponential(jax.random.key(seed), network.mask.shape), 0)
        total = weight.sum(1, keepdims=True)
        routing = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
        if near:
            routing = best.routing + away * (routing - best.routing)
        return routing, workload_carrying(network, routing)

    return jax.vmap(one)(networks, optimum, seeds, distance)


def _times(
    columns: Columns, dt: Float[np.ndarray, " cases"], duration: Float[np.ndarray, " cases"], max_steps: int
) -> tuple[Float[np.ndarray, " cases"], Float[np.ndarray, " cases"]]:
    """Time steps and durations: as given, or as suggested and then at most `max_steps` steps."""
    dt = np.asarray(columns["dt"], float) if "dt" in columns else dt * columns.get("dt_over_suggested", 1.0)
    if "duration" in columns:
        return dt, np.asarray(columns["duration"], float)
    return dt, np.minimum(duration * columns.get("duration_over_suggested", 1.0), max_steps * dt)


def runnable(cases: Cases) -> np.ndarray:
    """The rows that can be simulated: an optimum, a finite step size."""
    return np.flatnonzero((cases.result == Result.successful) & cases.defined)
