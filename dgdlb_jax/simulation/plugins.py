"""What a user adds to a run: observables, statistics, and state variables that observe the network with a delay.

All three are written for **one network**, and for one instant or one step. The simulator applies them to many networks at once, and
differentiates them like everything else: in both modes, with respect to their own numbers as well.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.labelled import Label
from dgdlb_jax.numerics.totals import Total


class View(eqx.Module):
    """One network at one instant. (Before they are handed on, those of a tile lie side by side, with a leading axis.)

    - `time`: seconds since the start.
    - `routing` `(frontends, backends)`: shares. `workload` `(backends,)`: requests.
    - `flow` `(frontends, backends)`: what frontends send now, requests/s. `inflow` `(backends,)`: what arrives at backends now.
      Where demand jumps, both are those of the step that ends now: `inflow` is its mean.
    - `service_rate` `(backends,)`, `arrival_rate` `(frontends,)`: requests/s.
    - `network`: latencies, curves, masks; without names. Padding of a batch is in it, and masked.
    - `extensions`: the state of every extension of the run, by its name.
    - `replicas` `(backends,)`: those that serve: an autoscaler's, or those of the curves.
    """

    time: Float[Array, "*batch"]
    routing: Float[Array, "*batch frontends backends"]
    workload: Float[Array, "*batch backends"]
    flow: Float[Array, "*batch frontends backends"]
    inflow: Float[Array, "*batch backends"]
    service_rate: Float[Array, "*batch backends"]
    arrival_rate: Float[Array, "*batch frontends"]
    network: Network
    extensions: dict[str, PyTree]
    replicas: Float[Array, "*batch backends"]


def label_of(plugin: Any) -> Label:
    """How the value of an observable or a statistic is called in labelled arrays."""
    return Label(plugin.name, tuple(plugin.dims), plugin.units, plugin.description)


class Observable(eqx.Module):
    """A function of an instant with a name, dimensions and units, for labelled arrays.

    **Arguments:** `fn`: `fn(t, view) -> array`, with the time in seconds and a `View`; a function, or an `eqx.Module` with numbers to
    differentiate with respect to. `name`: by default that of the function. `dims`: of the array, such as `("backend",)` or
    `("frontend", "backend")`; `units`; `description`.
    """

    fn: Any
    name: str = eqx.field(static=True)
    dims: tuple[str, ...] = eqx.field(static=True)
    units: str = eqx.field(static=True)
    description: str = eqx.field(static=True)

    def __init__(
        self,
        fn: Callable,
        *,
        name: str | None = None,
        dims: tuple[str, ...] | str = (),
        units: str = "",
        description: str = "",
    ):
        # A plain function is compiled in, one with numbers of its own is not.
        self.fn = fn if isinstance(fn, eqx.Module) else _Plain(fn)
        self.name = getattr(fn, "__name__", type(fn).__name__).strip("<>") if name is None else name
        self.dims = (dims,) if isinstance(dims, str) else tuple(dims)
        self.units, self.description = units, description

    def __call__(self, t: Float[Array, ""], view: View) -> PyTree:
        """Its value at an instant."""
        return self.fn(t, view)


class _Plain(eqx.Module):
    fn: Callable = eqx.field(static=True)

    def __call__(self, t, view):
        return self.fn(t, view)


class AbstractStatistic(eqx.Module):
    r"""A number, or several, that a run accumulates without keeping its history.

    $$ s_0 = init, \qquad s_{k+1} = update(s_k, view_k, view_{k+1}, h_k), \qquad result = finish(s_{end}, T) $$

    over the steps of the window of length $T$ (from `SaveAt(after=...)` to the end). Steps outside the window change nothing.
    Its fields are shared by all networks of a batch; `name`, `dims`, `units` and `description` label the result.
    """

    name: eqx.AbstractVar[str]
    dims: eqx.AbstractVar[tuple[str, ...]]
    units: eqx.AbstractVar[str]
    description: eqx.AbstractVar[str]

    @abstractmethod
    def init(self, network: Network) -> PyTree:
        """The state before the window: arrays."""

    @abstractmethod
    def update(self, state: PyTree, before: View, after: View, step: Float[Array, ""]) -> PyTree:
        """The state after a step of `step` seconds between two instants."""

    def finish(self, state: PyTree, duration: Float[Array, ""]) -> PyTree:
        """The result, from the state at the end and the length of the window in seconds."""
        del duration
        return state


class _OfObservable(AbstractStatistic):
    """A reduction of an observable over time."""

    observable: Observable
    name: str = eqx.field(static=True)
    dims: tuple[str, ...] = eqx.field(static=True)
    units: str = eqx.field(static=True)
    description: str = eqx.field(static=True)

    def __init__(self, fn: Callable, **labels: Any):
        """`fn` and labels as for `Observable`."""
        self.observable = fn if isinstance(fn, Observable) else Observable(fn, **labels)
        self.name, self.dims, self.units, self.description = label_of(self.observable)

    def at(self, view: View) -> Array:
        """The observable's value."""
        return jnp.asarray(self.observable(view.time, view), view.workload.dtype)

    def like(self, network: Network) -> Array:
        """Zeros in the shape of the observable."""
        value = eqx.filter_eval_shape(self.at, _blank_view(network))
        return jnp.zeros(value.shape, value.dtype)


class TimeIntegral(_OfObservable):
    r"""$\int y(t)\,dt$ over the window, by the trapezoidal rule; units are those of the result."""

    def init(self, network: Network) -> Total:
        """Zero."""
        return Total.zero(self.like(network))

    def update(self, state: Total, before: View, after: View, step: Float[Array, ""]) -> Total:
        """One step more."""
        return state.plus(step / 2 * (self.at(before) + self.at(after)))

    def finish(self, state: Total, duration: Float[Array, ""]) -> Array:
        """The sum."""
        del duration
        return state.value


class TimeMean(TimeIntegral):
    r"""$\frac1T \int y(t)\,dt$ over the window."""

    def finish(self, state: Total, duration: Float[Array, ""]) -> Array:
        """The integral over the length of the window."""
        return state.value / duration


class Maximum(_OfObservable):
    """The largest value at an instant of the window."""

    def init(self, network: Network) -> Array:
        """Below everything."""
        return self.like(network) - jnp.inf

    def update(self, state: Array, before: View, after: View, step: Float[Array, ""]) -> Array:
        """Of the largest so far and both ends of the step."""
        del step
        return jnp.maximum(jnp.maximum(state, self.at(before)), self.at(after))


class Minimum(_OfObservable):
    """The smallest value at an instant of the window."""

    def init(self, network: Network) -> Array:
        """Above everything."""
        return self.like(network) + jnp.inf

    def update(self, state: Array, before: View, after: View, step: Float[Array, ""]) -> Array:
        """Of the smallest so far and both ends of the step."""
        del step
        return jnp.minimum(jnp.minimum(state, self.at(before)), self.at(after))


class AbstractExtension(eqx.Module):
    r"""A state variable that observes the network through delays, and may change how fast backends serve.

    $$ \dot z = velocity(view(t), z, y), \qquad y_a = signal_{s(a)}(t - delay_a), \qquad \ell_j \to capacity_j(z)\,\ell_j $$

    Written for one network. `signal` is an array of any shape; `delay` has that shape, or more axes before it: then every entry of the
    signal is read several times, each with a delay of its own. Second order in the time step, for delays that are any real number of
    steps, zero included. The history before the start is constant. Balancers do not know of the factor; they see workloads.
    """

    name: eqx.AbstractVar[str]

    @abstractmethod
    def init(self, network: Network) -> PyTree:
        """The state at the start: floating-point arrays."""

    @abstractmethod
    def delay(self, network: Network) -> Array:
        """Seconds, at least 0."""

    @abstractmethod
    def signal(self, view: View, state: PyTree) -> Array:
        """What is sent through the delays."""

    @abstractmethod
    def velocity(self, view: View, state: PyTree, received: Array) -> PyTree:
        """The time derivative of the state; `received` has the shape of `delay`. (`view.extensions` is empty here and in `signal`.)"""

    def capacity(self, state: PyTree) -> Float[Array, " backends"] | None:
        """A factor of every backend's service rate; None leaves it alone."""
        del state
        return None


def _blank_view(network: Network) -> View:
    """A view of the shapes of a network, for `eval_shape`."""
    arcs, backends = jnp.zeros_like(network.latency), jnp.zeros_like(network.latency[0])
    frontends, instant = jnp.zeros_like(network.latency[:, 0]), jnp.zeros_like(network.latency[0, 0])
    return View(instant, arcs, backends, arcs, backends, backends, frontends, network, {}, backends)
