"""The step size that settles soon and yet follows the noise of single requests little."""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.equilibrium.arguments import known_optimum
from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum, require_served
from dgdlb_jax.model.batch import each_network, of_batch, per_frontend, require_double
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.checks import check_positive
from dgdlb_jax.numerics.lapack import pseudo_inverse
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.start import default_start
from dgdlb_jax.stability.critical import critical_step_size
from dgdlb_jax.stability.defaults import default_step_size


@standard_promotion
def suggest_step_size(
    network: Network,
    optimum: Optimum | None = None,
    *,
    horizon: float | ArrayLike,
    scale: float | ArrayLike = 1.0,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    direction: ArrayLike | None = None,
) -> Float[Array, "*batch frontends"]:
    r"""The step sizes with which DGD-LB costs least over a horizon: large ones settle sooner, small ones follow the noise less.

    $$ \frac{\eta}{\eta_c} = \frac{1}{1 + \sqrt{1 + \rho}}, \qquad \rho = \frac{T J_1 + n W_0}{n W_1} $$
    $$ J_1 = \tfrac12 \sum_{ij} \Big(\frac{c_j}{a_j}\Big)^2 r_j \lambda_i \eta_{c,i} \Big(1 - \frac{1}{k_i}\Big)
       \big(1 - e^{-a_j (\tau_{ij} + \tau^{fb}_{ij})}\big), \quad
       W_1 = \tfrac14 \sum_{ij} \frac{\lambda_i}{\eta_{c,i}} \Delta x_{ij}^2, \quad W_0 = \tfrac14 \sum_j c_j \Delta N_j^2 $$

    with deviations of the start, $\Delta x$ from the nearest optimal routing; sums of $J_1$ run over arcs of frontends with two of them
    in use.
    Never more than half of the critical step sizes $\eta_c$.

    **Arguments:**

    - `network`: one network or a batch; `optimum`: of that network, solved when left out.
    - `horizon`: $T$, seconds until the network changes again. `scale`: $n$: rates and replicas are multiplied by it.
    - `start`: routing `(frontends, backends)` and workload `(backends,)`, at scale 1; by default traffic in proportion to capacity.
    - `direction`: `(frontends,)`, in proportion to which step sizes are chosen; `default_step_size` by default.

    **Returns:** `(frontends,)` in 1/s^2, with a leading axis for a batch; 0 where the start is an optimal routing, so that nothing has to
    move, and inf where nothing limits the step size.

    **Raises:** `InputError` in single precision, for a horizon or scale that is not positive, or demand above capacity.

    **Source:** own derivation: exact for small step sizes and deviations, a fit between; within 2 % of the least total where that can be
    computed. From far starts smaller step sizes can be needed: a start is safe where `dgdlb stability` says so.
    """
    require_double(network, "suggest_step_size")
    check_positive("horizon", horizon)
    check_positive("scale", scale)
    best = known_optimum("suggest_step_size", network, optimum)
    require_served(network, best)
    along = default_step_size(network, best) if direction is None else per_frontend(network, direction, "direction")
    limit = critical_step_size(network, DGDLB(along), best)
    begin = (
        of_batch(default_start, network) if start is None else tuple(jnp.asarray(each, limit.dtype) for each in start)
    )
    times = jnp.asarray(horizon, limit.dtype) / jnp.asarray(scale, limit.dtype)
    return each_network(_suggested, network, best, along, limit, begin, times)


def _suggested(
    network: Network,
    optimum: Optimum,
    along: Float[Array, " frontends"],
    limit: Float[Array, ""],
    start: tuple[Float[Array, "frontends backends"], Float[Array, " backends"]],
    time: Float[Array, ""],
) -> Float[Array, " frontends"]:
    point = OperatingPoint(network, optimum)
    finite = jnp.isfinite(limit)
    critical = along * jnp.where(finite, limit, 1.0)
    routing, workload = start
    settle = _way_to_go(network, point, critical, routing - optimum.routing)
    extra = (point.gain * (workload - optimum.workload) ** 2).sum() / 4
    ratio = (time * first_order(point, optimum, critical) + extra) / jnp.where(settle > 0, settle, 1)
    part = jnp.where(settle > 0, 1 / (1 + jnp.sqrt(1 + ratio)), 0)
    return jnp.where(finite, part * critical, jnp.inf)


def first_order(point: OperatingPoint, optimum: Optimum, step_size: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$J_1$ of `suggest_step_size`, requests: the cost of jitter per second, to first order in the step size."""
    rate = (point.arrival_rate[:, None] * optimum.routing).sum(0)
    fresh = -jnp.expm1(-point.slope[None] * (point.latency + point.feedback_latency))
    choices = jnp.maximum(point.support.sum(1, dtype=rate.dtype), 1)[:, None]
    strength = point.strength(step_size) * (1 - 1 / choices)
    return (((point.gain / point.slope) ** 2 * rate)[None] * strength * fresh).sum() / 2


def _way_to_go(
    network: Network,
    point: OperatingPoint,
    step_size: Float[Array, " frontends"],
    deviation: Float[Array, "frontends backends"],
) -> Float[Array, ""]:
    r"""$W_1$: what is left of a deviation of routing once the part is taken off that changes no backend's flow, weighted by
    $\lambda_i / (4 \eta_i)$. With $\beta$ of $\sum_i s_i P_i \beta = \sum_i \lambda_i P_i \Delta x_i$ it is
    $\eta_i P_i \beta$, plus the mean over the arcs in use of what came from others."""
    on = point.support
    count = jnp.maximum(on.sum(1, dtype=deviation.dtype), 1)[:, None]
    mean = lambda values: jnp.where(on, values, 0).sum(1)[:, None] / count
    own = jnp.where(on, deviation - mean(deviation), 0)
    modes = point.modes(point.strength(step_size))
    levels = pseudo_inverse(modes) @ (point.arrival_rate[:, None] * own).sum(0)
    needed = mean(deviation) + step_size[:, None] * (levels[None] - mean(jnp.broadcast_to(levels, on.shape)))
    left = jnp.where(on, needed, jnp.where(network.mask, deviation, 0))
    weight = jnp.where(step_size > 0, point.arrival_rate / jnp.where(step_size > 0, step_size, 1), 0)
    return (weight[:, None] * left**2).sum() / 4
