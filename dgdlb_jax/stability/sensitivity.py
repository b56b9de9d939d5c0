"""How the limit of stability changes with latencies and capacities, from the mode at the limit: nothing is searched again."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Complex, Float

from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.demand import Constant
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.stability.critical import CriticalMode, limit_near
from dgdlb_jax.stability.linearise import linearise_one
from dgdlb_jax.stability.loop_transfer import LoopTransfer

_STIFF = 1e7  # conductance of an arc in use relative to the largest to the ground: half the digits

Links = Float[Array, "frontends backends"]
Backends = Float[Array, " backends"]


def limit_elasticities(
    network: Network, step_size: ArrayLike, optimum: Optimum, mode: CriticalMode
) -> tuple[Float[np.ndarray, "frontends backends"], Float[np.ndarray, " backends"]]:
    r"""Per cent by which the limit of DGD-LB rises per per cent of a link's latency, and of a backend's capacity.

    $$ \frac{\partial \log \eta_c}{\partial \log \tau_{ij}}, \qquad \frac{\partial \log \eta_c}{\partial \log n_j}
       \quad \text{with} \quad \ell_j \to n_j \ell_j $$

    The optimum moves along. All three latencies of a link change in proportion; the directions of `step_size` stay.

    **Arguments:** a single `network`; `step_size` 1/s^2, a scalar or `(frontends,)`; its `optimum`; the `mode` at the limit, from
    `critical_mode(network, DGDLB(step_size), optimum)`.

    **Returns:** `(frontends, backends)` and `(backends,)`, without unit; zeros when there is no limit.

    **Source:** first-order perturbation of an eigenvalue, and the implicit function theorem for the optimum; own derivation.
    """
    shape = network.latency.shape
    if not (np.isfinite(mode.step_size) and mode.frequency > 0):  # nothing swings
        return np.zeros(shape), np.zeros(shape[1])
    policy = DGDLB(jnp.broadcast_to(jnp.asarray(step_size, network.latency.dtype), shape[:1]))
    network, frequency = network.anonymous(), mode.frequency
    matrix = np.asarray(_matrix(network, policy, optimum, frequency))
    left = jax.device_put(_left_vector(matrix, np.asarray(mode.workload)))
    direct = _gradient(network, policy, optimum, frequency, mode.workload, left)
    link, capacity, workload = map(np.asarray, direct)
    more_link, more_capacity = _through_optimum(network, optimum, workload)
    return link + more_link, capacity + more_capacity


def _left_vector(matrix: Complex[np.ndarray, "n n"], right: Complex[np.ndarray, " n"]) -> Complex[np.ndarray, " n"]:
    """The left eigenvector of the eigenvalue that a right one belongs to, scaled so that their product is 1."""
    value = np.vdot(right, matrix @ right) / np.vdot(right, right)
    values, vectors = np.linalg.eig(matrix.conj().T)
    left = vectors[:, np.argmin(np.abs(values.conj() - value))]
    return left / np.vdot(left, right).conj()


@compiled
def _matrix(network: Network, policy: DGDLB, optimum: Optimum, frequency: Float[Array, ""]) -> Complex[Array, "n n"]:
    return LoopTransfer(linearise_one(network, policy, optimum)).matrix(frequency)


@compiled
def _gradient(
    network: Network,
    policy: DGDLB,
    optimum: Optimum,
    frequency: Float[Array, ""],
    right: Complex[Array, " backends"],
    left: Complex[Array, " backends"],
) -> tuple[Links, Backends, Backends]:
    """Of the logarithm of the limit: by links, by capacities and by workloads, each while the others stay."""

    def log_limit(link: Links, capacity: Backends, workload: Backends) -> Float[Array, ""]:
        changed = _changed(network, jnp.exp(link), jnp.exp(capacity))
        moved = eqx.tree_at(lambda best: best.workload, optimum, workload)
        return jnp.log(limit_near(LoopTransfer(linearise_one(changed, policy, moved)), frequency, right, left)[0])

    still = jnp.zeros_like(network.latency)
    return jax.grad(log_limit, argnums=(0, 1, 2))(still, still[0], optimum.workload)


def _through_optimum(
    network: Network, optimum: Optimum, weight: Float[np.ndarray, " backends"]
) -> tuple[Float[np.ndarray, "frontends backends"], Float[np.ndarray, " backends"]]:
    r"""The derivatives of $\sum_j w_j N_j$ at the optimum with respect to the logarithms of links and capacities.

    On the arcs in use $\nu_i = \text{cost}_{ij} + p_j$, which is linearised as a network of resistors: potentials $\nu_i$, $p_j$,
    flows $df_{ij} = D_{ij} (d\nu_i - dp_j - d\text{cost}_{ij})$ with a conductance $D$ so large that what is left over does not
    matter (where the routing is not unique it shares the flow out), and $a_j / c_j$ from each backend to the ground. The matrix is
    symmetric, so one solution serves for all derivatives.
    """
    used, slope, gain = map(np.asarray, _at_optimum(network, optimum))
    reached = used.any(0) & (slope > 0) & (gain > 0)
    used = used & reached
    slope, gain = np.where(reached, slope, 1), np.where(reached, gain, 1)
    ground = np.where(reached, slope / gain, 1)
    inflow = np.asarray(network.arrival_rate) @ np.asarray(optimum.routing)
    conductance = np.where(used, _STIFF * ground.max(), 0)
    frontends = used.shape[0]
    matrix = np.zeros((sum(used.shape),) * 2)
    matrix[:frontends, frontends:], matrix[frontends:, :frontends] = -conductance, -conductance.T
    diagonal = np.concatenate([conductance.sum(1), conductance.sum(0) + ground])
    np.fill_diagonal(matrix, np.where(diagonal > 0, diagonal, 1))
    pull = np.where(reached, weight / gain, 0)
    potential = np.linalg.solve(matrix, np.concatenate([np.zeros(frontends), pull]))
    across = conductance * (potential[:frontends, None] - potential[frontends:])
    # With more capacity the price falls in proportion and the rate rises: the workload that has the same price serves more.
    served = np.where(reached, 1 / gain + inflow, 0)
    return np.asarray(network.cost_latency) * across, pull / slope - served * potential[frontends:]


@compiled
def _at_optimum(network: Network, optimum: Optimum) -> tuple[Bool[Array, "frontends backends"], Backends, Backends]:
    point = OperatingPoint(network, optimum)
    return point.used, point.slope, point.gain


def _changed(network: Network, link: Links, capacity: Backends) -> Network:
    """A backend with c times the capacity serves ell(N) c: the factor that capacity over time would be."""
    mean = 1.0 if network.capacity is None else network.capacity.mean_rate
    return Network(
        network.arrival_rate, network.latency * link, network.service, mask=network.mask,
        feedback_latency=network.feedback_latency * link, cost_latency=network.cost_latency * link,
        capacity=Constant(capacity * mean),
    )  # fmt: skip
