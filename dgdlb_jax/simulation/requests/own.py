r"""Own requests of every frontend, in whole numbers: from dispatch until the answer is back.

Two stages and a channel of answers more, and arcs that arrive each by itself (as `simulation.own` for flows):

- `answer`: those who have left a backend in the last step are on their way back, in two parts, since the latency ends within a step;
- dispatch **one by one**, for a rule that looks at its own requests: the requests of a step are a Poisson number at times that are uniform
  in it. In their order, each goes by the shares that the rule has for the count as it is then: all who went before it are in. What the
  rule draws at random (two backends, say) each request draws for itself. So this is the rule as it stands in a proxy, not its mean.
  A frontend with more than `PORTIONS` requests a step sends them in so many portions, which do not see themselves;
- who leaves is drawn arc by arc. All requests of a backend have the same chance, so their sum has the law of one draw.

The answers that a step sees are those until its middle, which is right on average over the times of dispatch. Answers that take less than
half a step count as if they took that.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from dgdlb_jax.numerics.sampling import binomial, poisson
from dgdlb_jax.policies.base import Observation, State
from dgdlb_jax.simulation.dynamics import Arcs, Field, Frontends
from dgdlb_jax.simulation.requests.hazard import Chances
from dgdlb_jax.simulation.requests.streams import LARGEST, PORTIONS, Purpose, Streams

Draw = Callable[[UInt32[Array, ""], Arcs], Arcs]
"""From a row of a line and means to whole numbers."""


class OwnCounts(eqx.Module):
    """What changes from step to step, whole numbers over arcs.

    - `count`: own requests until the answer is back. `in_service`: those at the backend. `left`: who left it in the last step. `late`:
      of those before them, what comes back a step after the rest.
    """

    count: Arcs
    in_service: Arcs
    left: Arcs
    late: Arcs


class Requests(NamedTuple):
    """Of a step: how many are sent on every arc, and of these those that arrive a step after the rest."""

    sent: Arcs
    late: Arcs


def age_of_answers(field: Field, step: Frontends) -> Arcs:
    """In steps, from the end of the step in which they left to the middle of that which sees them."""
    return jnp.maximum(field.feedback_latency / step[None] - 0.5, 0)


def send_back(own: OwnCounts, streams: Streams, k: Int[Array, ""], part: Arcs) -> tuple[OwnCounts, Arcs]:
    """Whose answers go onto the line in step `k`; `part`: the fraction of a step in their age."""
    late = binomial(streams.for_arcs(k, Purpose.answer)[0], own.left, part, 1 - part).astype(part.dtype)
    return OwnCounts(own.count, own.in_service, jnp.zeros_like(late), late), own.left - late + own.late


def one_by_one(
    field: Field,
    streams: Streams,
    k: Int[Array, ""],
    t: Frontends,
    observation: Observation,
    policy: State,
    mean: Frontends,
    part: Arcs,
) -> Requests:
    """The requests of a step, `mean` of each frontend on average; `part`: of a step, after which one comes a step later than the rest."""
    start = observation.outstanding
    still = eqx.tree_at(lambda o: o.time_step, observation, jnp.zeros_like(observation.time_step))
    many = mean > PORTIONS
    u = streams.for_frontends(k, Purpose.dispatch, jnp.uint32(0))[0]
    number = poisson(u, jnp.where(many, 0, mean)).astype(mean.dtype)
    portion, some_many = jnp.where(many, mean / PORTIONS, 0), jnp.any(many)

    def send(m, loop):
        sent, late, left = loop
        seen = eqx.tree_at(lambda o: o.outstanding, still, start + sent)
        shares = jnp.where(field.mask, field.route(t, seen, policy)[0], 0)
        u, v = streams.for_frontends(k, Purpose.send, m)
        # Of n uniform times that are left, the first lies where (1 - t)^n is uniform.
        left = left * v.astype(left.dtype) ** (1 / jnp.maximum(number - m.astype(number.dtype), 1))
        one = jnp.where(m.astype(number.dtype) < number, _drawn(shares, u), 0)
        late = late + jnp.where((1 - left)[None] > part, one, 0)

        def portions(counts):
            u, v = streams.for_portions(k, m)
            # Which part of this portion lies behind `part`.
            after = jnp.clip(m.astype(part.dtype) + 1 - PORTIONS * part, 0, 1)
            # Both in one call, as twice the code takes twice as long to compile.
            means = (portion[None] * shares)[None] * jnp.stack([1 - after, after])
            soon, more = poisson(jnp.stack([u, v]), means).astype(one.dtype)
            return counts[0] + soon + more, counts[1] + more

        sent, late = jax.lax.cond(some_many & (m < PORTIONS), portions, lambda counts: counts, (sent + one, late))
        return sent, late, left

    rounds = jnp.maximum(jnp.max(number).astype(jnp.int32), jnp.where(some_many, PORTIONS, 0))
    zero = jnp.zeros_like(start)
    sent, late, _ = jax.lax.fori_loop(0, jnp.minimum(rounds, LARGEST - 1), send, (zero, zero, jnp.ones_like(mean)))
    return Requests(sent, late)


def _drawn(shares: Arcs, u: Float[Array, " frontend_lanes"]) -> Arcs:
    """1 where one request of each frontend goes by these shares, 0 elsewhere."""
    backend = jax.lax.broadcasted_iota(jnp.int32, (shares.shape[0], shares.shape[0], 1), 0)
    before = backend <= jax.lax.broadcasted_iota(jnp.int32, backend.shape, 1)
    below = jnp.sum(jnp.where(before, shares[:, None], 0), axis=0)
    mark = u.astype(below.dtype) * (below[-1] * (1 - 1e-6))  # which rounding does not move to the end, where nobody is
    chosen = jnp.sum(below <= mark[None], axis=0, dtype=backend.dtype)
    return (backend[:, 0] == chosen[None]).astype(shares.dtype)


def leaving(
    field: Field, own: OwnCounts, streams: Streams, k: Int[Array, ""], arrived: Arcs, chance: Chances
) -> tuple[Arcs, Arcs]:
    """Who of those that are there leaves, and who of those that arrive."""
    of_arcs = lambda values: values.reshape(field.shape.backends, -1, field.shape.lanes)
    of_backends = lambda values: values.reshape(field.shape.backends, 1, field.shape.lanes)
    u, v = map(of_arcs, streams.for_arcs(k, Purpose.serve))
    # A backend's chance is one for all its arcs: spread over them first, its exponentials would be taken arc by arc.
    old = binomial(u, of_arcs(own.in_service), of_backends(chance.leave), of_backends(chance.stay))
    new = binomial(v, of_arcs(arrived), of_backends(chance.new_leave), of_backends(chance.new_stay))
    old, new = (each.astype(arrived.dtype).reshape(arrived.shape) for each in (old, new))
    return old, new


def begin(
    in_service: Arcs, on_wires: Arcs, drawn: Draw, rows: int, mean: Arcs, part: Arcs, lag: Arcs
) -> tuple[OwnCounts, Float[Array, "rows backends frontend_lanes"]]:
    """The first counts, and the rows of the line of answers; `drawn(row, mean)` draws, `mean`: answers in a step."""
    line = jax.lax.map(lambda row: drawn(row, mean), jnp.arange(rows, dtype=jnp.uint32))
    left, late = drawn(jnp.uint32(rows), mean), drawn(jnp.uint32(rows + 1), part * mean)
    age = jnp.mod(-jnp.arange(rows), rows)[:, None, None].astype(lag.dtype)
    back = jnp.where(age < lag[None], line, 0).sum(0)
    return OwnCounts(on_wires + in_service + left + late + back, in_service, left, late), line
