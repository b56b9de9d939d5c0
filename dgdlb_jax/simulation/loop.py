"""The loop over time steps, and the looks at the state between them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.step import Carry, Clock, time


def repeat(
    step: Callable[[Carry], Carry], look: Callable[[Carry], PyTree], carry: Carry, steps: int, every: int | None
) -> tuple[Carry, PyTree]:
    """`steps` steps, with a look at the start, after every `every` of them, and at the end; without `every` at the end only.

    Looks come back with time as second axis, behind the batch.
    """

    def several(carry, count):
        return jax.lax.scan(lambda c, _: (step(c), None), carry, length=count)[0]

    def frame(carry, _):
        carry = several(carry, every)
        return carry, look(carry)

    if every is None:
        carry = several(carry, steps)
        return carry, jax.tree.map(lambda last: last[:, None], look(carry))
    every = min(every, steps)
    looks = [jax.tree.map(lambda first: first[None], look(carry))]
    carry, frames = jax.lax.scan(frame, carry, length=steps // every)
    looks.append(frames)
    if steps % every:
        carry = several(carry, steps % every)
        looks.append(jax.tree.map(lambda last: last[None], look(carry)))
    return carry, jax.tree.map(lambda *parts: jnp.moveaxis(jnp.concatenate(parts), 0, 1), *looks)


def repeat_as_told(
    step: Callable[[Carry], Carry],
    look: Callable[[Carry], PyTree],
    carry: Carry,
    steps: Int[Array, ""],
    every: Int[Array, ""] | None,
    frames: int,
) -> tuple[Carry, PyTree]:
    """`repeat` with `steps` and `every` that are data: looks have room for `frames` instants, what is left over repeats the last one.

    The step number goes on to a whole multiple of `every`; lanes stand still at their end.
    """

    def several(carry, count):
        return jax.lax.fori_loop(0, count, lambda _, c: step(c), carry)

    if every is None:
        carry = several(carry, steps)
        return carry, jax.tree.map(lambda last: last[:, None], look(carry))

    def frame(number, state):
        carry, looks = state
        carry = several(carry, every)
        return carry, jax.tree.map(lambda kept, now: kept.at[number].set(now), looks, look(carry))

    first = look(carry)
    looks = jax.tree.map(lambda now: jnp.zeros((frames, *now.shape), now.dtype).at[0].set(now), first)
    used = -(-steps // every) + 1
    carry, looks = jax.lax.fori_loop(1, used, frame, (carry, looks))
    place = jnp.minimum(jnp.arange(frames), used - 1)
    return carry, jax.tree.map(lambda kept: jnp.moveaxis(kept[place], 0, 1), looks)


def observe_fields(field: Field, clock: Clock, fields: tuple[str, ...], carry: Carry) -> dict[str, Array]:
    """What is saved of one instant, batch axis first: its time and the fields asked for."""
    shape = field.shape
    looks = {
        "routing": lambda: shape.from_arcs(carry.routing),
        "workload": lambda: shape.from_last(carry.workload),
        "arrival_rate": lambda: shape.from_last(field.arrival_rate(time(carry.k, clock.frontends))),
        "cost_rate": lambda: (
            shape.per_lane(carry.workload) + shape.per_lane(jnp.sum(carry.flow * field.cost_latency, axis=0))
        ),
        "in_flight": lambda: carry.in_flight,
    }
    return {"time": time(carry.k, clock.lanes)} | {name: looks[name]() for name in fields}
