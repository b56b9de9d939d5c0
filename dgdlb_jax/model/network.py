"""The network: frontends, backends, latencies, service, and batches of networks."""

from collections.abc import Sequence
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from dgdlb_jax.model.demand import AbstractDemand, Constant
from dgdlb_jax.model.document import write_fleet
from dgdlb_jax.model.magnitudes import check_magnitudes
from dgdlb_jax.model.service import AbstractService, Replicas, Scaled
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.checks import check_entries, check_positive, floating, not_negative
from dgdlb_jax.numerics.precision import float_type, with_float_type
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.text import clipped
from dgdlb_jax.numerics.types import Matrices, Numbers


class Network(eqx.Module):
    r"""Frontends that send requests to distant backends.

    $$ \dot N_j = \sum_i \lambda_i x_{ij}(t - \tau^{fwd}_{ij}) - \ell_j(N_j) $$

    **Arguments:**

    - `arrival_rate`: $\lambda$, `(frontends,)` in requests/s, or a demand over time (`Trace`, `Jumps`, `DailyCycle`).
    - `latency`: $\tau$, `(frontends, backends)` in seconds, one way; what the other two are unless given.
    - `service`: $\ell$, a curve with one set of parameters per backend.
    - `mask`: `(frontends, backends)`, which arcs exist; all of them by default.
    - `feedback_latency`: after how long a frontend sees a backend's workload, seconds.
    - `cost_latency`: the network time charged to a request and used in the policy's signal, seconds.
    - `capacity`: a factor on the service rate over time, `(backends,)` (a demand-like function); 1 by default. Whoever asks how fast
      a backend is asks `service_at(t)`, `mean_service` or `fastest_service`, which know it; `service` is the curve without it.
    - `frontend_names`, `backend_names`, `name`: for people; they never reach compiled code.

    Latencies may be asymmetric and need not obey the triangle inequality; on masked arcs they are ignored. The three of them are
    three arrays: to change a link, in a derivative as well, use `with_latency`, which replaces all three; `dataclasses.replace` or
    `eqx.tree_at` on `latency` alone would leave feedback and cost as they were.
    Arrays of different floating-point types are promoted to the largest of them, the network's type. A policy's parameters and
    everything else that a run is given are converted to it in turn.
    In a batch every array has one leading axis (see `stack`).

    **Raises:** `InputError` on shapes that do not fit, values that are negative or not finite, a frontend without arcs, magnitudes
    that the precision cannot compute with (see `model.magnitudes`).

    **Source:** the model of arXiv:2504.10693, as reconstructed in this project's README.
    """

    demand: AbstractDemand
    service: AbstractService
    latency: Float[Array, "*batch frontends backends"]
    feedback_latency: Float[Array, "*batch frontends backends"]
    cost_latency: Float[Array, "*batch frontends backends"]
    mask: Bool[Array, "*batch frontends backends"]
    capacity: AbstractDemand | None
    frontend_names: tuple[str, ...] | None = eqx.field(static=True)
    backend_names: tuple[str, ...] | None = eqx.field(static=True)
    name: str | None = eqx.field(static=True)

    def __init__(
        self,
        arrival_rate: Numbers | AbstractDemand,
        latency: Matrices,
        service: AbstractService,
        *,
        mask: Matrices | None = None,
        feedback_latency: Matrices | None = None,
        cost_latency: Matrices | None = None,
        capacity: AbstractDemand | None = None,
        frontend_names: Sequence[str] | None = None,
        backend_names: Sequence[str] | None = None,
        name: str | None = None,
    ):
        demand = arrival_rate if isinstance(arrival_rate, AbstractDemand) else Constant(arrival_rate)
        forward = _matrix(latency, "latency")
        self.mask = jnp.ones(forward.shape, bool) if mask is None else jnp.asarray(mask, bool)
        _check_shape("mask", self.mask.shape, forward.shape)
        latencies = [
            self._latency(field, forward if values is None else values)
            for field, values in (
                ("latency", None),
                ("feedback_latency", feedback_latency),
                ("cost_latency", cost_latency),
            )
        ]
        parts = demand, service, capacity, latencies
        self.demand, self.service, self.capacity, latencies = with_float_type(parts, float_type(parts))
        self.latency, self.feedback_latency, self.cost_latency = latencies
        self.frontend_names = None if frontend_names is None else tuple(frontend_names)
        self.backend_names = None if backend_names is None else tuple(backend_names)
        self.name = name
        self._check()

    def _latency(self, field: str, values: Matrices) -> Float[Array, "..."]:
        matrix = _matrix(values, field)
        _check_shape(field, matrix.shape, self.mask.shape)
        latency = jnp.where(self.mask, matrix, 0)
        check_entries(
            latency,
            not_negative,
            lambda at, value: (
                f"Network.{field}{list(at)} is {value}: latencies are finite and not negative, in seconds; "
                "leave an arc out with mask=False."
            ),
        )
        return latency

    def _check(self) -> None:
        frontends, backends = self.frontends, self.backends
        for field, found, expected in (
            ("arrival_rate", self.demand.mean_rate.shape[-1], frontends),
            ("service", self.service.nominal_capacity.shape[-1], backends),
            ("capacity", backends if self.capacity is None else self.capacity.mean_rate.shape[-1], backends),
            ("frontend_names", frontends if self.frontend_names is None else len(self.frontend_names), frontends),
            ("backend_names", backends if self.backend_names is None else len(self.backend_names), backends),
        ):
            if found != expected:
                raise InputError(
                    f"Network.{field} has {found} entries, but latency is {frontends} frontends x {backends} backends: "
                    "give one entry each."
                )
        _check_names(self.frontend_names, self.backend_names, self.name)
        if self.batch is None and is_concrete(self.mask):
            lonely = np.flatnonzero(~np.asarray(self.mask).any(axis=1))
            if lonely.size:
                who = self.frontend_names[lonely[0]] if self.frontend_names else str(lonely[0])
                raise InputError(f"Network.mask leaves frontend {who} without an arc: allow it at least one backend.")
        check_magnitudes(self)

    @property
    def frontends(self) -> int:
        """How many frontends, padded ones included."""
        return self.latency.shape[-2]

    @property
    def backends(self) -> int:
        """How many backends, padded ones included."""
        return self.latency.shape[-1]

    @property
    def batch(self) -> int | None:
        """How many networks stand behind the leading axis; None for a single network."""
        return self.latency.shape[0] if self.latency.ndim == 3 else None

    @property
    def varies(self) -> bool:
        """Whether demand or capacity is a function of time that may change."""
        return self.capacity is not None or not isinstance(self.demand, Constant)

    @property
    def arrival_rate(self) -> Float[Array, "*batch frontends"]:
        """Mean arrival rate of each frontend, requests/s."""
        return self.demand.mean_rate

    @property
    def backend_mask(self) -> Bool[Array, "*batch backends"]:
        """The backends that some frontend can reach."""
        return self.mask.any(axis=-2)

    @property
    def nominal_capacity(self) -> Float[Array, "*batch backends"]:
        """Nominal capacity of each backend, requests/s; 0 where no frontend can reach it."""
        return jnp.where(self.backend_mask, self.service.nominal_capacity, 0)

    def service_at(self, t: ArrayLike) -> AbstractService:
        """The curves of one network at a time, seconds: `service` times the capacity factor then."""
        return self.service if self.capacity is None else Scaled(self.service, self.capacity.rate(t))

    @property
    def mean_service(self) -> AbstractService:
        """The curves times the mean capacity factor: what optimum and step sizes refer to, as they do to the mean arrival rate."""
        return self.service if self.capacity is None else Scaled(self.service, self.capacity.mean_rate)

    @property
    def fastest_service(self) -> AbstractService:
        """The curves times the largest capacity factor of all times: what a time step has to resolve."""
        return self.service if self.capacity is None else Scaled(self.service, self.capacity.largest_rate)

    @property
    def load(self) -> Float[Array, "*batch"]:
        """Total arrival rate over total nominal capacity."""
        return self.arrival_rate.sum(-1) / self.nominal_capacity.sum(-1)

    def anonymous(self) -> "Network":
        """The same network without names: what compiled code gets, so that names never cause a recompilation."""
        return _replace(self, frontend_names=None, backend_names=None, name=None)

    def in_one_type(self) -> "Network":
        """The same network, all of it in one floating-point type, for when its arrays were exchanged below the constructor."""
        return with_float_type(self, float_type(self))

    def with_arrival_rate(self, arrival_rate: Numbers | AbstractDemand) -> "Network":
        """The same network under another demand: rates `(frontends,)` in requests/s, or a demand over time."""
        demand = arrival_rate if isinstance(arrival_rate, AbstractDemand) else Constant(arrival_rate)
        _check_shape("arrival_rate", demand.mean_rate.shape, self.arrival_rate.shape)
        return _checked(_replace(self, demand=demand).in_one_type())

    def with_load(self, load: Numbers) -> "Network":
        """Arrival rates scaled so that their sum is `load` times the total nominal capacity (a scalar, or one per network)."""
        check_entries(
            load,
            not_negative,
            lambda at, value: (
                f"with_load({load}): a load is a finite number that is not negative, 0.7 for 70 % of nominal capacity."
            ),
        )
        if is_concrete(self.load, load) and np.any((np.asarray(self.load) == 0) & (np.asarray(load) > 0)):
            raise InputError(
                f"with_load({load}): no frontend sends anything, so there are no rates to scale: with_arrival_rate(...) sets them."
            )
        factor = jnp.where(self.load > 0, jnp.asarray(load) / jnp.where(self.load > 0, self.load, 1), 0)
        return _checked(_replace(self, demand=self.demand.scaled(factor[:, None] if factor.ndim else factor)))

    def with_scale(self, scale: Numbers) -> "Network":
        r"""Rates and replicas times `scale` (a scalar, or one per network): $n \lambda_i$ and $n\, \ell_j(N_j / n)$.

        Optimum, routing and fluid latencies stay; with whole requests, the larger the scale the less noise.
        """
        check_positive("scale", scale, "give a positive finite number, 10 for ten times the requests and replicas")
        factor = jnp.asarray(scale, self.latency.dtype)
        each = factor[:, None] if factor.ndim else factor
        service = Replicas(self.service, jnp.broadcast_to(each, self.nominal_capacity.shape))
        return _checked(_replace(self, demand=self.demand.scaled(each), service=service))

    def with_latency(
        self,
        latency: Matrices,
        *,
        feedback_latency: Matrices | None = None,
        cost_latency: Matrices | None = None,
        round_trip: bool = False,
    ) -> "Network":
        r"""The same network over other links: all three latencies are replaced, so that none of them stays behind.

        **Arguments:**

        - `latency`: `(frontends, backends)` in seconds, one way.
        - `feedback_latency`, `cost_latency`: as for `Network`: equal to `latency` unless given.
        - `round_trip`: charge twice the latency, $\text{cost} = 2 \tau$, instead of `cost_latency`.

        Differentiable: the derivative with respect to `latency` is that of a slower link, in all it does.

        **Raises:** `InputError` as `Network`, or when both `cost_latency` and `round_trip` are given.
        """
        if round_trip and cost_latency is not None:
            raise InputError(
                "with_latency: round_trip=True makes the cost latency twice the latency: leave cost_latency out."
            )
        forward = _matrix(latency, "latency").astype(self.latency.dtype)
        given = {
            "latency": forward,
            "feedback_latency": forward if feedback_latency is None else feedback_latency,
            "cost_latency": 2 * forward if round_trip else forward if cost_latency is None else cost_latency,
        }
        changes = {field: self._latency(field, values).astype(self.latency.dtype) for field, values in given.items()}
        return _checked(_replace(self, **changes))

    def with_latency_scale(self, factor: Numbers) -> "Network":
        """All three latencies multiplied by `factor` (a scalar, or one per network)."""
        check_entries(
            factor,
            not_negative,
            lambda at, value: f"with_latency_scale({factor}): the factor is a finite number that is not negative.",
        )
        scale = jnp.asarray(factor, self.latency.dtype)
        scale = scale[..., None, None] if scale.ndim else scale
        fields = ("latency", "feedback_latency", "cost_latency")
        return _checked(_replace(self, **{field: getattr(self, field) * scale for field in fields}))

    def with_names(
        self, frontends: Sequence[str] | None, backends: Sequence[str] | None, name: str | None = None
    ) -> "Network":
        """The same network with other names."""
        frontend_names = None if frontends is None else tuple(frontends)
        _check_names(frontend_names, backends, name)
        return _replace(
            self, frontend_names=frontend_names, backend_names=None if backends is None else tuple(backends), name=name
        )

    def to_toml(self, path: str | Path) -> Path:
        """Write the network as a fleet file that `load_fleet` reads back: one TOML file, CSV tables beside it."""
        return write_fleet(self, path)

    def __getitem__(self, index: int) -> "Network":
        """One network of a batch, padding included."""
        if self.batch is None:
            raise InputError("This network is not a batch: network[...] picks one network out of a stack.")
        return jax.tree.map(lambda leaf: leaf[index], self)


def stack(networks: Sequence[Network]) -> Network:
    """One batch from networks of different sizes: padded to a common shape, with masks.

    A padded frontend has rate 0 and no arcs, a padded backend no arcs; neither counts anywhere. Names are dropped.
    All networks need the same kinds of demand and of curve (`PerBackend` holds different curves).

    **Raises:** `InputError` when the list is empty or kinds differ.
    """
    networks = [network.anonymous() for network in networks]
    if not networks:
        raise InputError("stack([]) has no network in it: give at least one.")
    frontends = max(network.frontends for network in networks)
    backends = max(network.backends for network in networks)
    padded = [pad(network, frontends, backends) for network in networks]
    kinds = [jax.tree.structure(network) for network in padded]
    shapes = [[leaf.shape for leaf in jax.tree.leaves(network)] for network in padded]
    for k, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
        if kind != kinds[0] or shape != shapes[0]:
            raise InputError(
                f"stack: network {k} has another kind or size of curve or demand ({type(padded[k].service).__name__}, "
                f"{type(padded[k].demand).__name__}) than network 0 ({type(padded[0].service).__name__}, "
                f"{type(padded[0].demand).__name__}): use the same kinds, PerBackend for different curves."
            )
    if device.at_hand(padded):
        return jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *padded)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *padded)


def pad(network: Network, frontends: int, backends: int) -> Network:
    """A single network with further frontends (rate 0, no arcs) and backends (no arcs), up to these sizes; none of them counts."""
    extra = ((0, frontends - network.frontends), (0, backends - network.backends))
    if not np.any(extra):
        return network
    arrays = {f: jnp.pad(getattr(network, f), extra) for f in ("latency", "feedback_latency", "cost_latency", "mask")}
    return _replace(
        network,
        demand=network.demand.pad(frontends),
        service=network.service.pad(backends),
        capacity=None if network.capacity is None else network.capacity.pad(backends),
        **arrays,
    )


def _check_names(frontends: Sequence[str] | None, backends: Sequence[str] | None, name: str | None) -> None:
    """Raise `InputError` for a name that is no text, has control characters (terminals, tables and files act on those), or spaces
    around it (which tables lose)."""
    for found in (*(frontends or ()), *(backends or ()), name or ""):
        if not isinstance(found, str) or not found.isprintable():
            raise InputError(f"The name {clipped(repr(found))} is not a printable text: use printable characters only.")
        if found != found.strip():
            raise InputError(
                f"The name {clipped(repr(found))} has spaces around it, which tables lose: leave them out."
            )


def _replace(network: Network, **changes) -> Network:
    """A copy with some fields changed, without running the constructor's checks again (values are known to be good)."""
    new = object.__new__(Network)
    for field in Network.__dataclass_fields__:
        object.__setattr__(new, field, changes.get(field, getattr(network, field)))
    return new


def _checked(network: Network) -> Network:
    check_magnitudes(network)
    return network


def _matrix(values: Matrices, field: str) -> Float[Array, "..."]:
    matrix = floating(f"Network.{field}", values, "give seconds as frontends x backends")
    if matrix.ndim not in (2, 3):
        raise InputError(f"Network.{field} has shape {matrix.shape}: give a matrix, frontends x backends, in seconds.")
    return matrix


def _check_shape(field: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise InputError(f"Network.{field} has shape {found}, but the network needs {expected}.")
