"""Recorded arrivals: so many requests come in a step, and each goes to a backend by itself.

How many go where is a multinomial number. It is drawn like a knock-out played backwards: all of them are split between the two halves of
the backends, those of each half between its halves, and so on, each time by a binomial number, with as many rounds as the number of
backends has binary digits.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.counter_random import Numbers
from dgdlb_jax.numerics.sampling import binomial
from dgdlb_jax.simulation.dynamics import Arcs, Frontends


def whole(due: Frontends | None, come: Frontends) -> tuple[Frontends, Frontends]:
    """How many whole requests have come when these parts of some come to those that are due; and what is due then.

    So the requests of a bin of a record come at equal distances, and over the whole record as many as it has.
    """
    assert due is not None
    total = due + come
    number = jnp.floor(total)
    return number, total - number


def shared_out(u: Numbers, number: Frontends, shares: Arcs) -> Arcs:
    """So many requests of every frontend, each sent to a backend with the probability of its share.

    **Arguments:** `u`: as many independent uniform numbers as there are arcs; the last of each frontend is not used.
    """
    rounds: list[Float[Array, "teams frontend_lanes"]] = [shares]
    while len(rounds[-1]) > 1:
        rounds.append(_pairs(rounds[-1]))
    counts, used = number[None], 0
    for weights in rounds[-2::-1]:
        pairs = len(weights) // 2
        first, second = weights[: 2 * pairs : 2], weights[1 : 2 * pairs : 2]
        both = first + second
        chance = jnp.where(both > 0, first / jnp.where(both > 0, both, 1), 1)
        other = jnp.where(both > 0, second / jnp.where(both > 0, both, 1), 0)
        left = binomial(u[used : used + pairs], counts[:pairs], chance, other).astype(shares.dtype)
        split = jnp.stack([left, counts[:pairs] - left], axis=1).reshape(2 * pairs, -1)
        counts, used = jnp.concatenate([split, counts[pairs:]]), used + pairs
    return counts


def _pairs(weights: Float[Array, "teams frontend_lanes"]) -> Float[Array, "half frontend_lanes"]:
    """The sums of neighbours; an odd last one stays alone."""
    even = len(weights) // 2 * 2
    return jnp.concatenate([weights[:even:2] + weights[1:even:2], weights[even:]])
