"""The balancers by name: what a command line or a sweep can ask for, with parameters chosen for the network at hand."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.analysis.optimum import Optimum
from dgdlb_jax.analysis.step_size import default_step_size
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies import (
    DGDLB,
    AbstractPolicy,
    CappedDGDLB,
    CurvatureDGDLB,
    FixedRouting,
    GreatestMarginalRate,
    HotCold,
    LeastLatency,
    LeastMarginalLatency,
    LeastRequest,
    LeastWorkload,
    LogDGDLB,
    MirrorDescent,
    Nearest,
    PeakEWMA,
    PowerOfChoices,
    ProportionalToCapacity,
    ReciprocalDGDLB,
    SampledDGDLB,
    ShortestExpectedDelay,
    Softmin,
    Uniform,
    WeightedLeastRequest,
    spillover,
)

DGD = "DGD-LB"
ORACLE = "optimum (oracle)"
"""Names of DGD-LB and of the optimum as a routing table in tables and pictures."""

StepSize = Float[Array, "*batch"]
Make = Callable[[Network, Optimum, StepSize], AbstractPolicy]


class Balancer(NamedTuple):
    """A name for people, and how to make the policy for a network (or a batch), its optimum, and a step size in 1/s^2."""

    label: str
    make: Make


def _plain(policy: Callable[[], AbstractPolicy]) -> Make:
    return lambda network, optimum, step_size: policy()


def calm_softmin(network: Network) -> Softmin:
    r"""`Softmin` in units of the network: $r = 1 / u$ and $T = 3 u$, with $u$ the longest latency plus the fastest service time.

    A frontend that adapts within about the time its news takes. The factor 3 is near the best on random geographic networks with
    latencies of 0.1, 1 and 10 service times: at half of it the rule swings, at twice it is too uniform (measured).
    """

    def unit(one: Network) -> Float[Array, ""]:
        slope = jnp.where(one.backend_mask, one.mean_service.initial_slope, 0).max()
        return jnp.maximum(one.latency, one.feedback_latency).max() + 1 / slope

    anonymous = network.anonymous()
    time = unit(anonymous) if network.batch is None else jax.vmap(unit)(anonymous)
    return Softmin(3 * time, 1 / time)


def sampled_every_second(network: Network, optimum: Optimum, step_size: StepSize) -> SampledDGDLB:
    """DGD-LB whose frontends update once a second, with a step size that is cautious enough for that."""
    cautious = default_step_size(network.anonymous(), optimum, update_interval=1.0)
    return SampledDGDLB(jnp.minimum(step_size, cautious), 1.0)


def follow_curvature(network: Network, optimum: Optimum, step_size: StepSize) -> CurvatureDGDLB:
    """DGD-LB that slows down where queues are longer than at the optimum, with the step size of plain DGD-LB there."""
    anonymous = network.anonymous()
    price = lambda one, workload: one.mean_service.marginal_latency(workload)
    price = (price if network.batch is None else jax.vmap(price))(anonymous, optimum.workload)
    return CurvatureDGDLB(step_size, (optimum.routing * price[..., None, :]).sum(-1))


def cap_speed(network: Network, optimum: Optimum, step_size: StepSize) -> CappedDGDLB:
    """DGD-LB that moves at most a tenth of its traffic in the time that its longest arc takes."""
    del optimum
    longest = jnp.maximum(network.latency, network.feedback_latency).max(-1)
    return CappedDGDLB(step_size, 0.1 / jnp.maximum(longest, 1e-9))


BALANCERS: dict[str, Balancer] = {
    "dgd-lb": Balancer(DGD, lambda network, optimum, step: DGDLB(step)),
    "least-latency": Balancer("least latency", _plain(LeastLatency)),
    "gmsr": Balancer("GMSR", _plain(GreatestMarginalRate)),
    "least-workload": Balancer("least workload", _plain(LeastWorkload)),
    "proportional": Balancer("proportional", _plain(ProportionalToCapacity)),
    "uniform": Balancer("uniform", _plain(Uniform)),
    "nearest": Balancer("nearest", _plain(Nearest)),
    "mirror-descent": Balancer("mirror descent", lambda network, optimum, step: MirrorDescent(2 * step)),
    "sampled-dgd-lb": Balancer("DGD-LB every second", sampled_every_second),
    "log-dgd-lb": Balancer("DGD-LB, log", lambda network, optimum, step: LogDGDLB(step)),
    "reciprocal-dgd-lb": Balancer("DGD-LB, reciprocal", lambda network, optimum, step: ReciprocalDGDLB(step)),
    "curvature-dgd-lb": Balancer("DGD-LB, curvature", follow_curvature),
    "capped-dgd-lb": Balancer("DGD-LB, capped speed", cap_speed),
    "softmin": Balancer("softmin", lambda network, optimum, step: calm_softmin(network)),
    "gmsr-network": Balancer("GMSR + network", _plain(LeastMarginalLatency)),
    "peak-ewma": Balancer("peak EWMA", _plain(PeakEWMA)),
    "prequal": Balancer("Prequal hot-cold", _plain(HotCold)),
    "shortest-delay": Balancer("shortest expected delay", _plain(ShortestExpectedDelay)),
    "two-choices": Balancer("two choices", _plain(PowerOfChoices)),
    "least-request": Balancer("least request", _plain(LeastRequest)),
    "weighted-least-request": Balancer("weighted least request", _plain(WeightedLeastRequest)),
    "spillover": Balancer("spillover", lambda network, optimum, step: spillover(network)),
    "oracle": Balancer(ORACLE, lambda network, optimum, step: FixedRouting(optimum.routing)),
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
    check_keys(chosen)
    return {BALANCERS[key].label: BALANCERS[key].make(network, optimum, step_size) for key in chosen}


def check_keys(keys: Sequence[str]) -> None:
    """Raise `InputError` for an unknown key of `BALANCERS`, with the nearest known one."""
    for key in keys:
        if key not in BALANCERS:
            close = get_close_matches(key, list(BALANCERS), n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise InputError(f"No balancer is called {key!r}: choose from {', '.join(BALANCERS)}{hint}")
