"""Which magnitudes a network may have: one place for all of them, in either precision."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError, is_concrete

if TYPE_CHECKING:
    from dgdlb_jax.model.network import Network


class Range(NamedTuple):
    """The smallest and the largest magnitude that counts; 0 is allowed where `zero`."""

    least: float
    most: float
    zero: bool


class Quantity(NamedTuple):
    """Numbers of a network that have a range: what they are, whose they are, their unit and what to do about a bad one."""

    what: str
    side: str
    values: Float[Array, "..."] | Float[np.ndarray, "..."]
    unit: str
    allowed: Range
    remedy: str


def check_magnitudes(network: "Network") -> None:
    r"""Refuse numbers with which a formula would overflow or underflow; traced values are not looked at.

    Rates and workloads stand in squares ($\kappa \mu$) and in cubes once they are differentiated, so they range over
    $\text{max}^{1/3}$ and its inverse, with max the largest number of the network's precision: 1.8e-103 to 5.6e102, in float32 1.4e-13 to
    7e12. Times stand in $a^4$ and in $(10^{12} / a)^2$, so they range over $\text{max}^{1/6}$ and its inverse: 4e-52 to 2e51 s, in float32
    4e-7 to 2.6e6 s. A rate or a latency may be 0.

    **Raises:** `InputError` that names the value, whose it is, the range and the remedy.
    """
    if not is_concrete(network):
        return
    for quantity in _quantities(network):
        values, allowed = np.asarray(quantity.values, float), quantity.allowed
        good = (values >= allowed.least) & (values <= allowed.most) | (allowed.zero & (values == 0))
        if quantity.side == "backend":
            good |= ~np.asarray(network.backend_mask)
        if not good.all():
            at = tuple(int(index) for index in np.argwhere(~good)[0])
            raise InputError(_sentence(network, quantity, float(values[at]), at))


def _quantities(network: "Network") -> Iterator[Quantity]:
    most = float(jnp.finfo(network.latency.dtype).max)
    size, time = most ** (1 / 3), most ** (1 / 6)
    rates, sizes, times = Range(1 / size, size, True), Range(1 / size, size, False), Range(1 / time, time, False)
    upto = Range(0, time, True)
    units = "give all rates and workloads in another unit, or 0 for no traffic"
    curve = "correct the curve or the replicas, or leave the backend out with mask=False"
    yield Quantity("arrival rate", "frontend", network.arrival_rate, "requests/s", rates, units)
    service = network.service
    of_one = lambda service: service.initial_slope
    of_each = of_one if network.batch is None else jax.vmap(of_one)  # a measured curve sums over its leading axis
    capacity, slope = service.nominal_capacity, of_each(service)
    yield Quantity("nominal capacity", "backend", capacity, "requests/s", sizes, curve)
    with np.errstate(divide="ignore", over="ignore", under="ignore", invalid="ignore"):
        alone = 1 / np.asarray(slope, float)
        scale = np.asarray(capacity, float) * alone
    yield Quantity("service time of a lone request", "backend", alone, "s", times, curve)
    yield Quantity("workload at capacity if nothing slowed down", "backend", scale, "requests", sizes, curve)
    if network.capacity is not None:
        remedy = "correct the capacity factor"
        yield Quantity("capacity factor", "backend", network.capacity.mean_rate, "times nominal", upto, remedy)
    for field in ("latency", "feedback_latency", "cost_latency"):
        yield Quantity(
            field, "arc", getattr(network, field), "s", upto, "correct it, or leave the arc out with mask=False"
        )


def _sentence(network: "Network", quantity: Quantity, value: float, at: tuple[int, ...]) -> str:
    what, side, _, unit, allowed, remedy = quantity
    own = at[-2:] if side == "arc" else at[-1:]
    names = {"frontend": network.frontend_names, "backend": network.backend_names}.get(side)
    whose = names[own[0]] if names else ", ".join(map(str, own))
    place = f" of network {at[0]}" if len(at) > len(own) else ""
    zero = "0 or " if allowed.zero and allowed.least > 0 else ""
    return (
        f"The {what} of {side} {whose}{place} is {value:g} {unit}, but {network.latency.dtype} can compute with "
        f"{zero}{allowed.least:.2g} to {allowed.most:.2g}: {remedy}."
    )
