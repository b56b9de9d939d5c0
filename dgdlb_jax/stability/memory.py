r"""What a policy remembers, near rest: a linear filter between what a frontend sees and how its routing moves.

A policy's memory follows $z \leftarrow F(z, \text{news}; h)$ over a step h. What moves smoothly has the rate $\partial F / \partial h$ at
$h \to 0$; its Jacobians, and those of the velocity, make

$$ \dot z_i = A_i z_i + B_i n + E_i \xi_i, \qquad \dot \xi_i = P_i \big[ V_i n + W_i \xi_i + M_i z_i \big] $$

**Source:** own derivation.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Complex, Float

from dgdlb_jax.numerics.dependence import dependence
from dgdlb_jax.numerics.lapack import singular_values, solve
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.numerics.results import InputError

_INSTANT = 1e-12  # seconds: a step so short that only what jumps has moved, and yet a step
_STILL = 1e-6  # relative: memory that moves less is at rest
_FREQUENCIES = 120  # at which the largest response is looked for, over
_DECADES = (-6, 4)  # around the fastest rate of the memory


class Filter(eqx.Module):
    """The memory of every frontend. Where it is made by `vmap`, every array has a leading axis.

    - `rate` $A$ `(frontends, memory, memory)`: 1/s.
    - `seen` $B$ `(frontends, memory, backends)`: per request seen. `own` $E$: per share of its own, None where memory does not depend on
      the routing.
    - `output` $P M$ `(frontends, backends, memory)`.
    - `largest`, `largest_own` `(frontends, backends, backends)`: bounds of the whole response at any frequency, that without memory
      included.
    """

    rate: Float[Array, "*batch frontends memory memory"]
    seen: Float[Array, "*batch frontends memory backends"]
    own: Float[Array, "*batch frontends memory backends"] | None
    output: Float[Array, "*batch frontends backends memory"]
    largest: Float[Array, "*batch frontends backends backends"]
    largest_own: Float[Array, "*batch frontends backends backends"] | None

    def response(self, s: Complex[Array, ""]) -> Complex[Array, "frontends backends backends"]:
        """$P M (s - A)^{-1} B$: velocity per request seen."""
        return self._through(s, self.seen)

    def self_response(self, s: Complex[Array, ""]) -> Complex[Array, "frontends backends backends"]:
        """$P M (s - A)^{-1} E$: velocity per share of its own."""
        assert self.own is not None
        return self._through(s, self.own)

    def _through(
        self, s: Complex[Array, ""], inputs: Float[Array, "frontends memory columns"]
    ) -> Complex[Array, "frontends backends columns"]:
        return as_complex(self.output) @ jax.vmap(solve)(self._away(s), as_complex(inputs))

    def _away(self, s: Complex[Array, ""]) -> Complex[Array, "frontends memory memory"]:
        """$s - A$."""
        return s * jnp.eye(self.rate.shape[-1], dtype=s.dtype)[None] - as_complex(self.rate)

    def delay(self, frequency: Float[Array, ""]) -> Float[Array, ""]:
        """How fast phases turn at a frequency, at most, seconds: the largest norm of the resolvent."""
        s = imaginary(frequency)
        resolvent = jax.vmap(solve, (0, None))(self._away(s), jnp.eye(self.rate.shape[-1], dtype=s.dtype))
        return jnp.abs(resolvent).sum(-1).max()

    def distance(self, s: Complex[Array, ""]) -> Float[Array, ""]:
        """How far the nearest root of a frontend's memory is from s, 1/s: the smallest singular value of $s - A$."""
        return jax.vmap(singular_values)(self._away(s))[:, -1].min()

    @property
    def longest(self) -> Float[Array, ""]:
        """The longest time constant, seconds, up to 1000 times the shortest."""
        return self.delay(1e-3 * jnp.maximum(jnp.abs(self.rate).sum(-1).max(), 1e-300))

    def scaled(self, factors: Float[Array, " frontends"]) -> "Filter":
        """Of a policy whose frontend i is `factors[i]` times as fast."""
        wide = factors[:, None, None]
        own = None if self.largest_own is None else wide * self.largest_own
        return Filter(self.rate, self.seen, self.own, wide * self.output, wide * self.largest, own)


Velocity = Callable[..., tuple[Float[Array, "backends frontends"], Any]]
"""`velocity(change, moved, state, step)`: the raw velocity `(backends, frontends)` and the new memory, when every workload seen and every
share has changed by so much, over a step of so many seconds."""


class Responses(NamedTuple):
    """How the raw velocity answers at once (`seen` $V$, `own` $W$ or None), through memory (`filter`, without projection), and
    whether memory rests."""

    seen: Float[Array, "backends frontends backends"]
    own: Float[Array, "backends frontends backends"] | None
    rate: Float[Array, "memory frontends memory"]
    memory_seen: Float[Array, "memory frontends backends"]
    memory_own: Float[Array, "memory frontends backends"] | None
    output: Float[Array, "backends frontends memory"]
    rests: Bool[Array, ""]


def needed_memory(velocity: Velocity, state: Any, still: Float[Array, " backends"]) -> list[int]:
    """Which leaves of a policy's memory its routing depends on, also by way of others.

    **Raises:** `InputError` for one that is not made of real numbers.
    """
    leaves, tree = jax.tree.flatten(state)
    if not leaves:
        return []
    step = jnp.zeros((), still.dtype)
    run = lambda *own: jax.tree.leaves(velocity(still, still, jax.tree.unflatten(tree, own), step))
    first, *rest = dependence(run, *leaves)
    needed = {k for k, uses in enumerate(first) if uses}
    while more := {k for m in needed for k, uses in enumerate(rest[m]) if uses} - needed:
        needed |= more
    if not all(jnp.issubdtype(leaves[k].dtype, jnp.floating) for k in needed):
        raise InputError(
            "A policy whose memory holds whole numbers or flags does not move smoothly, so it has no linearisation: simulate it."
        )
    return sorted(needed)


def responses(velocity: Velocity, state: Any, kept: list[int], still: Float[Array, " backends"]) -> Responses:
    """Jacobians of a policy with memory at rest.

    **Arguments:** `state`: the memory at rest, frontends last. `kept`: which leaves of it matter (`needed_memory`). `still`: no change.
    """
    leaves, tree = jax.tree.flatten(state)
    frontends = leaves[0].shape[-1]
    sizes = [leaves[k].size // frontends for k in kept]
    ends = np.cumsum([0, *sizes])

    def follow(change, moved, changed, step):
        own = list(leaves)
        for place, k in enumerate(kept):
            part = changed[ends[place] : ends[place + 1]].reshape(*leaves[k].shape[:-1], 1)
            own[k] = leaves[k] + part
        raw, after = velocity(change, moved, jax.tree.unflatten(tree, own), step)
        after = jax.tree.leaves(after)
        flat = [after[k].reshape(-1, frontends) for k in kept]
        return raw, jnp.concatenate(flat)

    instant = jnp.asarray(_INSTANT, still.dtype)
    unmoved = jnp.zeros(ends[-1], still.dtype)

    def derivatives(change, moved, changed):
        (raw, after), (_, rate) = jax.jvp(
            lambda step: follow(change, moved, changed, step), (instant,), (jnp.ones_like(instant),)
        )
        return raw, after, rate

    at_rest = derivatives(still, still, unmoved)
    by_seen, by_own, by_memory = (jax.jacfwd(derivatives, argnums=k)(still, still, unmoved) for k in range(3))
    own_matters, memory_by_own = _looks_at_itself(derivatives, still, unmoved)
    return Responses(
        seen=by_seen[0],
        own=by_own[0] if own_matters or memory_by_own else None,
        rate=by_memory[2],
        memory_seen=by_seen[2],
        memory_own=by_own[2] if memory_by_own else None,
        output=by_memory[0],
        rests=_rests(jnp.concatenate([leaves[k].reshape(-1, frontends) for k in kept]), at_rest, by_memory),
    )


def _looks_at_itself(
    derivatives: Callable, still: Float[Array, " backends"], unmoved: Float[Array, " memory"]
) -> tuple[bool, bool]:
    """Whether the velocity, and whether the memory, depends on the routing."""
    rows = dependence(lambda moved: derivatives(still, moved, unmoved), still)
    return rows[0][0], rows[2][0]


def _rests(memory: Float[Array, "memory frontends"], at_rest: tuple, by_memory: tuple) -> Bool[Array, ""]:
    """Whether memory stays where it is: it neither drifts nor jumps."""
    size = memory.shape[0]
    kept = jnp.moveaxis(by_memory[1], 1, 0)
    jumps = jnp.abs(kept - jnp.eye(size, dtype=kept.dtype)[None]).max(initial=0) > _STILL
    own = jnp.abs(jnp.moveaxis(by_memory[2], 1, 0)).sum(-1).T * jnp.abs(memory)
    drifts = (jnp.abs(at_rest[2]) > _STILL * own).any()
    return ~jumps & ~drifts


def filter_of(
    found: Responses,
    project: Callable[[Float[Array, "backends frontends columns"]], Float[Array, "frontends backends columns"]],
    direct: Float[Array, "frontends backends backends"],
    own: Float[Array, "frontends backends backends"] | None,
) -> Filter:
    """The filter of a policy's responses. **Arguments:** `project` takes the mean over the support off; `direct`, `own`: what it makes
    of the velocity's own answers."""
    first = lambda jacobian: jnp.moveaxis(jacobian, 1, 0)
    nothing = jnp.zeros_like(direct)
    made = Filter(
        rate=first(found.rate),
        seen=first(found.memory_seen),
        own=None if found.memory_own is None else first(found.memory_own),
        output=project(found.output),
        largest=nothing,
        largest_own=None,
    )
    fixed = stop_gradient(made)
    largest = _largest(fixed, fixed.response, stop_gradient(direct))
    if own is None:
        return eqx.tree_at(lambda f: f.largest, made, largest)
    largest_own = jnp.abs(own) if made.own is None else _largest(fixed, fixed.self_response, stop_gradient(own))
    return eqx.tree_at(
        lambda f: (f.largest, f.largest_own), made, (largest, largest_own), is_leaf=lambda leaf: leaf is None
    )


def _largest(
    made: Filter, response: Callable, direct: Float[Array, "frontends backends backends"]
) -> Float[Array, "frontends backends backends"]:
    """The largest entries of the whole response over frequencies."""
    fastest = jnp.maximum(jnp.abs(made.rate).sum(-1).max(), 1e-300)
    frequencies = fastest * jnp.logspace(*_DECADES, _FREQUENCIES, dtype=fastest.dtype)
    sizes = jax.lax.map(lambda w: jnp.abs(as_complex(direct) + response(imaginary(w))), frequencies)
    return jnp.maximum(sizes.max(0), jnp.abs(direct))


def even_average(s: Complex[Array, ""], window: Float[Array, "..."]) -> Complex[Array, "..."]:
    r"""$(1 - e^{-sW}) / (sW)$, 1 at 0: the transfer function of an average over the last W seconds."""
    x = s * as_complex(window)
    small = jnp.abs(x) < 1e-4
    safe = jnp.where(small, 1, x)
    return jnp.where(small, 1 - x / 2 + x * x / 6, -jnp.expm1(-safe) / safe)
