"""The step size with which small deviations die out fastest."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.equilibrium.arguments import known_optimum
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import per_frontend, require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.patience import require_patience
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.stability.critical import critical_step_size
from dgdlb_jax.stability.linearise import linearise
from dgdlb_jax.stability.roots import characteristic_roots, count_equations

_GRID = np.geomspace(0.01, 0.95, 14)  # of the critical step size
_ROOTS, _OF = 38.0, 400  # seconds that the roots of so many equations take on one core; others by the third power
_GOLDEN = (np.sqrt(5) - 1) / 2
_REFINEMENTS = 12
_TRIALS = (1.6, 1.25, 1.1)  # factors by which single frontends are made faster or slower


class BestStepSize(eqx.Module):
    """The fastest settling step sizes.

    - `step_size` `(frontends,)`: 1/s^2.
    - `abscissa`: real part of the rightmost root there, 1/s. `settling_time`: seconds in which a small deviation falls to 1 %.
    - `margin`: by which factor all of them may be multiplied before the network oscillates.
    """

    step_size: Float[Array, " frontends"]
    abscissa: Float[Array, ""]
    settling_time: Float[Array, ""]
    margin: Float[Array, ""]


@standard_promotion
def best_step_size(
    network: Network,
    optimum: Optimum | None = None,
    *,
    direction: ArrayLike | None = None,
    for_each: bool = False,
) -> BestStepSize:
    r"""The step sizes of DGD-LB whose rightmost characteristic root lies farthest to the left.

    $$ \max_{\eta} \; -\max \mathrm{Re}\, s(\eta) $$

    First along a direction (a grid from a hundredth of the critical step size on, then golden section), then frontend by frontend if
    asked for (a local search that only accepts what is better). It settles small deviations fastest; from far starts it is no safer
    than any other.

    **Arguments:**

    - `network`: a single network, outside `jit`.
    - `optimum`: of that network; solved when left out.
    - `direction`: `(frontends,)`; equal step sizes by default.
    - `for_each`: whether to tune each frontend for itself as well.

    **Returns:** a `BestStepSize`.

    **Raises:** `InputError` for a batch, for a network of more than some 330 backends in use and arcs in use beyond one per frontend, or
    when nothing limits the step size.

    **Source:** own derivation.
    """
    require_single(network, "best_step_size")
    require_values("best_step_size", network, optimum, direction)
    optimum = known_optimum("best_step_size", network, optimum)
    along = per_frontend(network, 1.0 if direction is None else direction, "direction")
    equations = count_equations(linearise(network, optimum=optimum))
    require_patience(
        f"best_step_size computes the roots of {equations:,} equations some 40 times",
        40 * _ROOTS * (equations / _OF) ** 3,
        "take a part of critical_step_size(network), 0.1 or 0.2 of it, or default_step_size(network)",
    )
    limit = float(critical_step_size(network, optimum=optimum, direction=along))
    if not np.isfinite(limit):
        raise InputError(
            "Nothing limits the step size of this network, so there is no best one: use default_step_size(network)."
        )

    def abscissa(step: Float[Array, " frontends"]) -> float:
        return float(characteristic_roots(network, DGDLB(step), optimum, count=6).abscissa)

    def at(logarithm: float) -> float:
        return abscissa(along * limit * np.exp(logarithm))

    grid = np.log(_GRID)
    k = int(np.argmin([at(value) for value in grid]))
    left, right = grid[max(k - 1, 0)], grid[min(k + 1, grid.size - 1)]
    for _ in range(_REFINEMENTS):
        inner = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        left, right = (left, inner[1]) if at(inner[0]) < at(inner[1]) else (inner[0], right)
    step = np.asarray(along) * limit * np.exp((left + right) / 2)
    found = abscissa(jnp.asarray(step))
    if for_each:
        step, found = _one_by_one(abscissa, step, found)
    return BestStepSize(
        step_size=jnp.asarray(step),
        abscissa=jnp.asarray(found),
        settling_time=jnp.asarray(np.log(100) / -found if found < 0 else np.inf),
        margin=critical_step_size(network, DGDLB(step), optimum),
    )


def _one_by_one(
    abscissa: Callable[[Array], float], step: Float[np.ndarray, " frontends"], found: float
) -> tuple[Float[np.ndarray, " frontends"], float]:
    for factor in _TRIALS:
        for i in range(step.size):
            for trial in (factor, 1 / factor):
                changed = step.copy()
                changed[i] *= trial
                value = abscissa(jnp.asarray(changed))
                if value < found:
                    step, found = changed, value
                    break
    return step, found
