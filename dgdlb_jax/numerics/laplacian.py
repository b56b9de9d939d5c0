"""Linear systems of resistor networks, solved without cancellation."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Up to this many nodes the elimination is written out; beyond, compiling that takes longer than it saves.
_WRITTEN_OUT = 12


def solve_bipartite(
    conductance: Float[Array, "left right *lanes"],
    ground: Float[Array, "right *lanes"],
    left: Float[Array, "left *lanes"],
    right: Float[Array, "right *lanes"],
) -> tuple[Float[Array, "left *lanes"], Float[Array, "right *lanes"]]:
    r"""Potentials of a bipartite resistor network whose right nodes are also connected to the ground.

    $$ \sum_j D_{ij} (u_i - w_j) = b_i, \qquad \sum_i D_{ij} (w_j - u_i) + g_j w_j = e_j $$

    **Arguments:**

    - `conductance`: $D \ge 0$, over twenty orders of magnitude if need be.
    - `ground`: $g > 0$.
    - `left`, `right`: the currents $b$, $e$ that enter.

    **Returns:** $u$, $w$; 0 for left nodes without connections. Trailing axes are independent systems.

    The larger side goes first: its nodes are connected through the smaller side only. **Source:** own derivation.
    """
    if conductance.shape[0] <= conductance.shape[1]:
        total = ground + conductance.sum(0)
        share = conductance / total[None]
        reduced = _connect(share, conductance, axis=1)
        u = solve_grounded(reduced, (share * ground[None]).sum(1), left + (share * right[None]).sum(1))
        return u, (right + (conductance * u[:, None]).sum(0)) / total
    total = conductance.sum(1)
    total = jnp.where(total > 0, total, 1)
    share = conductance / total[:, None]
    reduced = _connect(share, conductance, axis=0)
    w = solve_grounded(reduced, ground, right + (share * left[:, None]).sum(0))
    return (left + (conductance * w[None]).sum(1)) / total, w


def _connect(share: Float[Array, "..."], conductance: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """What connects the nodes of one side after those of the other have been eliminated (star-mesh transform)."""
    if axis == 1:
        return (share[:, None] * conductance[None]).sum(2)
    return (share[:, :, None] * conductance[:, None]).sum(0)


def solve_grounded(
    conductance: Float[Array, "nodes nodes *lanes"],
    ground: Float[Array, "nodes *lanes"],
    current: Float[Array, "nodes *lanes"],
) -> Float[Array, "nodes *lanes"]:
    r"""Potentials of a resistor network: $\sum_k D_{ik} (u_i - u_k) + g_i u_i = b_i$.

    `conductance` is symmetric and not negative, its diagonal is ignored. A node without any connection gets 0.

    Gaussian elimination in which pivots are sums of what is left instead of differences, so that every entry of the
    factors is accurate to a few roundings however badly the matrix is scaled. **Source:** Grassmann, Taksar, Heyman (1985).
    """
    nodes = ground.shape[0]
    if nodes > _WRITTEN_OUT:
        return _solve_rolled(conductance, ground, current)
    shares, potentials = [], []
    for _ in range(nodes):
        row = conductance[0, 1:]
        pivot = _positive(ground[0] + row.sum(0))
        share = row / pivot[None]
        shares.append(share)
        potentials.append(current[0] / pivot)
        conductance = conductance[1:, 1:] + share[:, None] * row[None]
        ground, current = ground[1:] + share * ground[:1], current[1:] + share * current[:1]
    solved = jnp.zeros_like(current)
    for share, potential in zip(reversed(shares), reversed(potentials), strict=True):
        solved = jnp.concatenate([(potential + (share * solved).sum(0))[None], solved])
    return solved


def _solve_rolled(
    conductance: Float[Array, "nodes nodes *lanes"],
    ground: Float[Array, "nodes *lanes"],
    current: Float[Array, "nodes *lanes"],
) -> Float[Array, "nodes *lanes"]:
    """The same elimination in two loops over full rows, with zeros where the written-out form has nothing."""
    nodes = ground.shape[0]
    order = jnp.arange(nodes).reshape((nodes,) + (1,) * (ground.ndim - 1))

    def eliminate(state, k):
        conductance, ground, current = state
        row = jnp.where(order > k, conductance[k], 0)
        pivot = _positive(ground[k] + row.sum(0))
        share = row / pivot[None]
        grounded, entered = ground + share * ground[k][None], current + share * current[k][None]
        return (conductance + share[:, None] * row[None], grounded, entered), (share, current[k] / pivot)

    def substitute(solved, step):
        k, share, potential = step
        return solved.at[k].set(potential + (share * solved).sum(0)), None

    _, (shares, potentials) = jax.lax.scan(eliminate, (conductance, ground, current), jnp.arange(nodes))
    steps = (jnp.arange(nodes), shares, potentials)
    return jax.lax.scan(substitute, jnp.zeros_like(current), steps, reverse=True)[0]


def _positive(pivot: Float[Array, "..."]) -> Float[Array, "..."]:
    return jnp.where(pivot > 0, pivot, 1)
