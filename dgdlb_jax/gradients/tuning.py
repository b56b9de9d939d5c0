"""Tuning a policy's parameters by gradients through whole runs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dgdlb_jax.model.batch import as_batch
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.delay import ReverseMode
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.numerics.types import Matrices, Matrix, Numbers
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt, Trajectory

Objective = Callable[[Trajectory], Array]


class Tuned(eqx.Module):
    """What came of tuning.

    - `policy`: with the best parameters that were seen.
    - `value`: their objective. `history` `(iterations + 1,)`: the objective before every iteration and at the end.
    """

    policy: AbstractFlowPolicy
    value: Float[Array, ""]
    history: Float[np.ndarray, " values"]


def transient_latency(runs: Trajectory) -> Float[Array, "*batch"]:
    """Mean latency over the whole run, its transient included, seconds."""
    if runs.statistics is None:
        raise InputError("transient_latency needs runs with statistics: save with SaveAt.statistics().")
    return runs.statistics.mean_latency


@standard_promotion
def tune(
    networks: Network,
    policy: AbstractPolicy,
    optimizer: optax.GradientTransformation,
    objective: Objective = transient_latency,
    *,
    duration: Numbers,
    dt: Numbers,
    initial: tuple[Matrices, Matrix] | None = None,
    iterations: int = 100,
    save: SaveAt | None = None,
    adjoint: ReverseMode | None = None,
) -> Tuned:
    r"""Choose the positive parameters of a policy, such as step sizes, so that runs cost least.

    $$ \min_\theta\ \frac1M \sum_m J\bigl(\text{run } m \text{ of the policy with parameters } e^\theta\bigr) $$
    In these coordinates parameters stay positive, and a learning rate of 0.1 is a change of 10 %. Parameters that are 0 stay 0.

    **Arguments:**

    - `networks`: one network, or a batch: several demands or topologies that the same parameters have to suit.
    - `policy`: a flow policy; parameters are scalars or `(frontends,)`, shared by the batch, or `(batch, frontends)`, one row each
      (all networks are then tuned side by side).
    - `optimizer`: any of optax, such as `optax.adam(0.1)`.
    - `objective`: from a `Trajectory` to what is to be small, a number for each network; mean latency of the run by default.

    Other arguments: `duration`, `dt`, `initial`, `save` (statistics by default), `adjoint` as for `simulate` (`simulate_batch` for a
    batch); `iterations`: how many steps the optimizer takes.

    **Returns:** a `Tuned`.

    **Raises:** `InputError` for a policy that jumps, a parameter that is negative, an objective that is not finite at the start.

    **Source:** own.
    """
    if not isinstance(policy, AbstractFlowPolicy):
        raise InputError(
            f"{type(policy).__name__} jumps, so a run has no gradient to tune it by: use its smooth relative, Softmin."
        )
    require_values("tune", networks, policy, initial)
    if any(np.any(np.asarray(leaf) < 0) for leaf in jax.tree.leaves(eqx.filter(policy, eqx.is_inexact_array))):
        raise InputError(f"{type(policy).__name__} has a negative parameter: tune works on positive ones.")
    if networks.batch is None:
        networks = as_batch(networks.anonymous())
        initial = None if initial is None else as_batch((jnp.asarray(initial[0]), jnp.asarray(initial[1])))
    save = SaveAt.statistics(resumable=False) if save is None else save
    settings: dict[str, Any] = {
        "duration": duration,
        "dt": dt,
        "initial": initial,
        "save": save,
        "adjoint": adjoint,
        "throw": False,
    }

    @compiled
    def value_and_slope(point, fixed):
        def value(point):
            policy = _shared(_exponentials(point, fixed))
            return jnp.mean(objective(simulate_batch(networks, policy, **settings)))

        return jax.value_and_grad(value)(point)

    start, fixed = _logarithms(policy)
    point, memory, best = start, optimizer.init(start), (jnp.inf, start)
    history = []
    for k in range(iterations + 1):
        value, slope = value_and_slope(point, fixed)
        history.append(float(value))
        if not np.isfinite(history[-1]):
            if k == 0:
                raise InputError(
                    f"The objective is {history[0]} at the start: begin with smaller parameters, default_step_size proposes step sizes."
                )
            break
        best = (value, point) if value < best[0] else best
        if k < iterations:
            change, memory = optimizer.update(slope, memory, point)
            point = optax.apply_updates(point, change)
    return Tuned(_exponentials(best[1], fixed), jnp.asarray(best[0]), np.asarray(history))


def _shared(policy: AbstractFlowPolicy) -> AbstractFlowPolicy:
    """The policy for a batch: `(frontends,)` parameters are shared, as `(1, frontends)` says however many networks there are."""
    return jax.tree.map(lambda leaf: leaf[None] if jnp.ndim(leaf) == 1 else leaf, policy)


def _logarithms(policy: AbstractFlowPolicy):
    """(logarithms of the real parameters, all the rest): those that are 0 have a logarithm that does not matter."""
    real, rest = eqx.partition(policy, eqx.is_inexact_array)
    zero = jax.tree.map(lambda leaf: leaf == 0, real)
    return jax.tree.map(lambda leaf, none: jnp.log(jnp.where(none, 1, leaf)), real, zero), (rest, zero)


def _exponentials(point, fixed) -> AbstractFlowPolicy:
    rest, zero = fixed
    return eqx.combine(jax.tree.map(lambda leaf, none: jnp.where(none, 0, jnp.exp(leaf)), point, zero), rest)
