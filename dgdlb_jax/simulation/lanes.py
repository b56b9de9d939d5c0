"""Lanes: several networks side by side in the layout that the time step runs in.

The networks of a tile are its *lanes*, and lanes are the fastest axis everywhere. Arrays over arcs are `(backends, frontends * lanes)`,
arrays over backends `(backends * lanes,)`, arrays over frontends `(frontends * lanes,)`: two axes at most, so that nothing inside the
loop reshapes (which would cost a division per element). Outside, the batch axis comes first. The functions here convert; they are
transpositions and copies, no arithmetic.

The contract of everything that works on arcs here: **axis 0 is the backends, what follows passes through.** A policy is written for one
frontend, and what follows is nothing; one that holds to the contract by its own account (`takes_lanes`) is called once for all frontends
and networks, every other one is mapped over them. A curve works element by element, whatever the axes. The solver of the optimum is no
part of this: it keeps frontends and lanes apart (`equilibrium.flow_problem`, where arrays over arcs are called `Flows`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from dgdlb_jax.numerics.delay import Complete


class Shape(eqx.Module):
    """The sizes of a tile."""

    frontends: int = eqx.field(static=True)
    backends: int = eqx.field(static=True)
    lanes: int = eqx.field(static=True)

    def arcs(self, values: Shaped[Array, "lanes *rest frontends backends"]) -> Shaped[Array, "..."]:
        """`(lanes, ..., frontends, backends)` as `(..., backends, frontends * lanes)`."""
        moved = jnp.swapaxes(jnp.moveaxis(values, 0, -1), -3, -2)
        return moved.reshape(*moved.shape[:-2], self.frontends * self.lanes)

    def from_arcs(self, values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The inverse of `arcs`."""
        split = values.reshape(*values.shape[:-1], self.frontends, self.lanes)
        return jnp.moveaxis(jnp.swapaxes(split, -3, -2), -1, 0)

    def last(self, values: Shaped[Array, "lanes *rest axis"]) -> Shaped[Array, "..."]:
        """`(lanes, ..., axis)` as `(..., axis * lanes)`: arrays over frontends or over backends."""
        moved = jnp.moveaxis(values, 0, -1)
        return moved.reshape(*moved.shape[:-2], -1)

    def from_last(self, values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The inverse of `last`."""
        return jnp.moveaxis(values.reshape(*values.shape[:-1], -1, self.lanes), -1, 0)

    def first(self, values: Shaped[Array, "lanes frontends *rest"]) -> Shaped[Array, "..."]:
        """`(lanes, frontends, ...)` as `(..., frontends * lanes)`: what a policy keeps for each frontend."""
        moved = jnp.moveaxis(values, (0, 1), (-1, -2))
        return moved.reshape(*moved.shape[:-2], -1)

    def from_first(self, values: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """The inverse of `first`."""
        split = values.reshape(*values.shape[:-1], self.frontends, self.lanes)
        return jnp.moveaxis(split, (-1, -2), (0, 1))

    def over_frontends(self, values: Shaped[Array, " lanes"]) -> Shaped[Array, "..."]:
        """One number per lane, repeated for every frontend."""
        return _repeated(values, self.frontends)

    def over_backends(self, values: Shaped[Array, " lanes"]) -> Shaped[Array, "..."]:
        """One number per lane, repeated for every backend."""
        return _repeated(values, self.backends)

    def backend_to_arcs(self, values: Shaped[Array, "lanes *rest backends"]) -> Shaped[Array, "..."]:
        """`(lanes, ..., backends)` as `(..., backends, frontends * lanes)`, the same for every frontend."""
        return _repeated(jnp.moveaxis(values, 0, -1), self.frontends)

    @property
    def ends(self) -> Complete:
        """The backend of every arc."""
        return Complete(self.backends, self.frontends, self.lanes)

    def spread(self, values: Shaped[Array, " backend_lanes"]) -> Shaped[Array, "backends frontend_lanes"]:
        """One number per backend, repeated for every frontend: from backends to arcs within the layout."""
        return _repeated(values.reshape(self.backends, self.lanes), self.frontends)

    def arrivals(self, arcs: Shaped[Array, "backends frontend_lanes"]) -> Shaped[Array, " backend_lanes"]:
        """What comes together at every backend, summed over frontends."""
        return self.ends.total(self.ends.by_end(arcs))

    def per_lane(self, values: Shaped[Array, "..."]) -> Shaped[Array, "... lanes"]:
        """`(..., axis * lanes)` summed over the axis."""
        return values.reshape(*values.shape[:-1], -1, self.lanes).sum(-2)

    def policy(self, parameters: PyTree) -> PyTree:
        """A policy's parameters: scalars stay, `(lanes,)` is repeated over frontends, `(lanes, frontends, ...)` goes frontends last."""

        def convert(leaf):
            if leaf.ndim == 0:
                return leaf
            return self.over_frontends(leaf) if leaf.ndim == 1 else self.first(leaf)

        return jax.tree.map(convert, parameters)


def _repeated(values: Shaped[Array, "*rest lanes"], times: int) -> Shaped[Array, "*rest axis_lanes"]:
    """`(..., lanes)` as `(..., times * lanes)`: `jnp.tile`, of which no kernel can be made."""
    *rest, lanes = values.shape
    return jnp.broadcast_to(values[..., None, :], (*rest, times, lanes)).reshape(*rest, times * lanes)
