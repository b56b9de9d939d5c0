"""The balancers by name: what a command line or a sweep can ask for, with parameters chosen for the network at hand."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.analysis.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies import (
    DGDLB,
    AbstractPolicy,
    FixedRouting,
    GreatestMarginalRate,
    HotCold,
    LeastLatency,
    LeastMarginalLatency,
    LeastRequest,
    LeastWorkload,
    MirrorDescent,
    Nearest,
    PeakEWMA,
    PowerOfChoices,
    ProportionalToCapacity,
    ShortestExpectedDelay,
    Softmin,
    Uniform,
    WeightedLeastRequest,
    spillover,
)

DGD = "DGD-LB"
"""Name of DGD-LB in tables and pictures."""

StepSize = Float[Array, "*batch"]
Make = Callable[[Network, Optimum, StepSize], AbstractPolicy]


class Balancer(NamedTuple):
    """A name for people, and how to make the policy for a network (or a batch), its optimum, and a step size in 1/s^2."""

    label: str
    make: Make


def _plain(policy: Callable[[], AbstractPolicy]) -> Make:
    return lambda network, optimum, step_size: policy()


def softmin_at(network: Network, temperature: float) -> Softmin:
    r"""`Softmin` in units of the network: the temperature in fastest service times, the rate one over the longest latency.

    The fastest service time is $\min_j 1 / \ell_j'(0)$. The rate is $1 / (\tau_{max} + \text{that})$: a frontend that adapts within about
    the time its news takes.
    """

    def alone(one: Network) -> tuple[Float[Array, ""], Float[Array, ""]]:
        slope = jnp.where(one.backend_mask, one.service.initial_slope, 0).max()
        return 1 / slope, jnp.maximum(one.latency, one.feedback_latency).max()

    anonymous = network.anonymous()
    service, latency = alone(anonymous) if network.batch is None else jax.vmap(alone)(anonymous)
    return Softmin(temperature * service, 1 / (latency + service))


BALANCERS: dict[str, Balancer] = {
    "dgd-lb": Balancer(DGD, lambda network, optimum, step: DGDLB(step)),
    "least-latency": Balancer("least latency", _plain(LeastLatency)),
    "gmsr": Balancer("GMSR", _plain(GreatestMarginalRate)),
    "least-workload": Balancer("least workload", _plain(LeastWorkload)),
    "proportional": Balancer("proportional", _plain(ProportionalToCapacity)),
    "uniform": Balancer("uniform", _plain(Uniform)),
    "nearest": Balancer("nearest", _plain(Nearest)),
    "mirror-descent": Balancer("mirror descent", lambda network, optimum, step: MirrorDescent(2 * step)),
    "softmin": Balancer("softmin", lambda network, optimum, step: softmin_at(network, 0.3)),
    "gmsr-network": Balancer("GMSR + network", _plain(LeastMarginalLatency)),
    "peak-ewma": Balancer("peak EWMA", _plain(PeakEWMA)),
    "prequal": Balancer("Prequal hot-cold", _plain(HotCold)),
    "shortest-delay": Balancer("shortest expected delay", _plain(ShortestExpectedDelay)),
    "two-choices": Balancer("two choices", _plain(PowerOfChoices)),
    "least-request": Balancer("least request", _plain(LeastRequest)),
    "weighted-least-request": Balancer("weighted least request", _plain(WeightedLeastRequest)),
    "spillover": Balancer("spillover", lambda network, optimum, step: spillover(network)),
    "oracle": Balancer("optimum (oracle)", lambda network, optimum, step: FixedRouting(optimum.routing)),
}
"""Every balancer by its key on the command line."""
DEFAULT = ("dgd-lb", "least-latency", "gmsr", "least-workload", "proportional", "uniform", "nearest")
"""What a comparison runs when nothing else is asked for: DGD-LB, its rivals in use today, and three static routings."""


def balancers(
    network: Network, optimum: Optimum, step_size: StepSize, keys: Sequence[str] | None = None
) -> dict[str, AbstractPolicy]:
    """Name -> policy for some keys of `BALANCERS` (`DEFAULT` by default), the gradient rules with this step size (1/s^2).

    **Raises:** `InputError` for an unknown key, with the nearest known one.
    """
    chosen = list(DEFAULT if keys is None else keys)
    for key in chosen:
        if key not in BALANCERS:
            close = get_close_matches(key, list(BALANCERS), n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise InputError(f"No balancer is called {key!r}: choose from {', '.join(BALANCERS)}{hint}")
    return {BALANCERS[key].label: BALANCERS[key].make(network, optimum, step_size) for key in chosen}
