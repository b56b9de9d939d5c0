r"""How long requests stay at a backend: cohorts of those that arrive within a short time, followed until they are old.

At any time there are `COHORTS` of them per backend, begun at equal distances; what is left of each is noted at equal distances of age,
and a cohort is of those that arrive in the first of these, so that with small steps it is not a request or none.

- Under *processor sharing* all $N$ requests of a backend are alike. When $D$ of them leave, each is among them with probability $D / N$,
  so of a cohort $\prod (1 - D_k / N_k)$ is left in expectation, given how many have left. One number per backend,
  $C = \sum \log(1 - D / N)$, serves all cohorts.
- *First come, first served*: a cohort is at the end of the line when it arrives, and of the $P$ requests up to its last one
  $P - D$ are left after $D$ departures. Again one number per backend, the departures, serves all cohorts.

Both are the law of the time in the system of a backend whose total service rate is $\ell(N)$ and whose requests are alike.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.simulation.dynamics import Backends
from dgdlb_jax.simulation.requests.blocks import add_row

COHORTS = 20
PHASES = 12
"""Ages of a cohort between two births at which it is looked at: there are `COHORTS * PHASES` ages in all."""
Followed = Float[Array, "cohorts backend_lanes"]
Ages = Float[Array, "phases cohorts backend_lanes"]

_LEAST = 1e-6  # of a cohort that is left where nothing is: its logarithm is finite


class Following(eqx.Module):
    """How requests are followed: the steps between two looks, from which step on, and in which order requests are answered."""

    spacing: Int[Array, ""]
    first: Int[Array, ""]
    in_order: bool = eqx.field(static=True)

    @property
    def between_births(self) -> Int[Array, ""]:
        """Steps from one cohort's birth to the next one's."""
        return PHASES * self.spacing


class Cohorts(eqx.Module):
    """What is known of them: the newest first. Marks are relative to `since`, which begins anew with every birth."""

    size: Followed
    mark: Followed
    since: Backends
    alive: Ages  # seen at each age
    born: Ages  # how many these have been at birth

    @classmethod
    def none(cls, like: Backends) -> "Cohorts":
        """Before the first is born."""
        some = jnp.zeros((COHORTS, like.size), like.dtype)
        ages = jnp.zeros((PHASES, *some.shape), like.dtype)
        return cls(some, some, jnp.zeros_like(like), ages, ages)


def follow(
    plan: Following,
    cohorts: Cohorts,
    k: Int[Array, ""],
    workload: Backends,
    arrived: Backends,
    old: Backends,
    new: Backends,
) -> Cohorts:
    """One step, in which `old` of the `workload` requests leave, and `new` of those that `arrived` in it.

    With $s$ steps between two looks a cohort arrives in $s$ of them, so that at look $p$ it is $(p + 1/2) s$ steps old on average.
    """
    age = jax.lax.rem(k - plan.first, plan.between_births)
    begun = k >= plan.first
    if plan.in_order:
        since = cohorts.since + old + new
        remain = workload + arrived - old - new  # up to the last one that arrived
    else:
        left = jnp.maximum(1 - old / jnp.maximum(workload, 1), _LEAST)
        since = cohorts.since + jnp.log(left)
        remain = arrived - new

    def bear(followed: tuple[Followed, Followed, Backends]) -> tuple[Followed, Followed, Backends]:
        """A new one; the marks of the others begin anew, so that no difference of large numbers is taken."""
        size, mark, since = followed
        shifted = lambda first, rest: jnp.concatenate([first[None], rest[:-1]])
        mark = mark - since[None] if plan.in_order else mark * jnp.exp(since)[None]
        return shifted(arrived, size), shifted(remain, mark), jnp.zeros_like(since)

    def join(newest: tuple[Backends, Backends]) -> tuple[Backends, Backends]:
        """Who arrives now belongs to the newest."""
        size, youngest = newest
        in_line, shared = jnp.where(arrived > 0, remain + since, youngest), youngest + remain * jnp.exp(-since)
        return size + arrived, in_line if plan.in_order else shared

    def look(seen: tuple[Ages, Ages]) -> tuple[Ages, Ages]:
        phase = age // plan.spacing
        shared, in_line = mark * jnp.exp(since)[None], jnp.clip(mark - since[None], 0, size)
        left = in_line if plan.in_order else shared
        return add_row(seen[0], phase, left), add_row(seen[1], phase, size)

    # One branch after the other, each with what it changes: what passes through a branch inside another one is copied in every step.
    keep = lambda some: some
    size, mark, since = jax.lax.cond(begun & (age == 0), bear, keep, (cohorts.size, cohorts.mark, since))
    joins = begun & (age > 0) & (age < plan.spacing)
    newest = jax.lax.cond(joins, join, keep, (size[0], mark[0]))
    # Not `.at[0].set`, a scatter, which a native loop has no code for.
    size, mark = (
        jax.lax.dynamic_update_slice_in_dim(whole, first[None], 0, 0)
        for whole, first in zip((size, mark), newest, strict=True)
    )
    looks = begun & (jax.lax.rem(age + 1, plan.spacing) == 0)
    return Cohorts(size, mark, since, *jax.lax.cond(looks, look, keep, (cohorts.alive, cohorts.born)))
