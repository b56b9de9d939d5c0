"""`sufficient_step_size`: one of the proven conditions, applied where it holds."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from dgdlb_jax.equilibrium.arguments import known_optimum
from dgdlb_jax.equilibrium.operating_point import SAME, OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum, require_served
from dgdlb_jax.model.batch import each_network, per_frontend
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.stability.conditions import NEEDS, RULES, Condition, Rule, distributed


@standard_promotion
def sufficient_step_size(
    network: Network,
    optimum: Optimum | None = None,
    *,
    condition: Condition | Rule = distributed,
    direction: ArrayLike | None = None,
) -> Float[Array, "*batch frontends"]:
    r"""Step sizes for DGD-LB with a proof that small deviations from the optimum die out, in spite of the latencies.

    **Arguments:**

    - `network`: one network or a batch.
    - `optimum`: of that network; solved when left out.
    - `condition`: which proof, a function of `dgdlb_jax.conditions`; the distributed rule by default.
    - `direction`: `(frontends,)`, step sizes in proportion to which the result shall be. By default the rule's own vector, or equal
      step sizes where the condition has none.

    **Returns:** `(frontends,)` in 1/s^2, with a leading axis for a batch; inf where nothing limits them (no latency, or no frontend
    with two active backends). Frontends with one active backend have no loop of their own: they get the number that the rule gives
    for that backend. Never above `critical_step_size` in the same direction. Where a condition does not hold under
    `jit`, the result is 0.

    **Raises:** `InputError` where the condition does not hold for the latencies, with the one to use instead, and for a single network
    whose demand exceeds its capacity.

    **Source:** own derivations, see `dgdlb_jax.conditions`; local, so a start far away may still oscillate.
    """
    optimum = known_optimum("sufficient_step_size", network, optimum)
    require_served(network, optimum)
    if condition not in NEEDS:
        known = ", ".join(function.__name__ for function in NEEDS)
        raise InputError(f"condition={condition!r} is not one of dgdlb_jax.conditions: choose from {known}.")
    factors = None if direction is None else per_frontend(network, direction, "direction")
    step, holds = each_network(_sufficient, network, optimum, condition, factors)
    if is_concrete(holds) and not np.all(holds):
        raise InputError(_refusal(condition, network, int(np.argmin(np.atleast_1d(np.asarray(holds))))))
    return step


def _sufficient(
    network: Network, optimum: Optimum, condition: Callable, direction: Float[Array, " frontends"] | None
) -> tuple[Float[Array, " frontends"], Bool[Array, ""]]:
    point = OperatingPoint(network, optimum)
    if condition in RULES:
        step = condition(point)
        if direction is not None:
            active = point.support.any(1) & (direction > 0)
            step = direction * jnp.where(active, step / jnp.where(direction > 0, direction, 1), jnp.inf).min()
    else:
        along = jnp.ones_like(point.arrival_rate) if direction is None else direction
        step = along * condition(point, along)
    holds = _holds(point, condition)
    return jnp.where(holds, step, 0), holds


def _holds(point: OperatingPoint, condition: Callable) -> Bool[Array, ""]:
    tau, on = point.latency, point.support
    largest = tau.max(1, where=on, initial=0)[:, None]
    level = jnp.where(on, largest - tau <= SAME * largest, True).all()
    return {
        "feedback": point.equal_feedback,
        "per frontend": point.equal_feedback & level,
        "optimum": point.trips == 1,
        "optimum or round trip": point.trips > 0,
    }[NEEDS[condition]]


def _refusal(condition: Callable, network: Network, which: int) -> str:
    place = "this network" if network.batch is None else f"network {which} of the batch"
    reason = {
        "feedback": "forward = feedback latency on the arcs in use; critical_step_size(network) has the exact limit",
        "per frontend": "equal latencies on all arcs of a frontend; use condition=dgdlb_jax.conditions.theorem_a",
        "optimum": "forward = feedback = cost latency, up to a constant per frontend; with forward = feedback use "
        "condition=dgdlb_jax.conditions.distributed_a or theorem_a, otherwise critical_step_size(network)",
        "optimum or round trip": "forward = feedback latency, and a cost latency of once or twice that; use "
        "condition=dgdlb_jax.conditions.theorem_a, or critical_step_size(network)",
    }[NEEDS[condition]]
    return f"{condition.__name__} is not proven for {place}: it needs {reason}."
