"""Requests that a failed backend has lost, and that their frontends send again after a timeout.

What a backend holds when it fails belongs to frontends in proportion to what arrives from them then, as at rest; to all that may use it
equally where nothing does. A channel from the last stage of a step brings what is lost in it back to the frontends, a timeout later but
one step, and they send it in the next step by the routing of that time. Every request comes back, in the two steps around its time.
"""

from dataclasses import replace

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.numerics.delay.line import split
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.timeline import Wires, total


class Retries(eqx.Module):
    """What changes from step to step, all in requests/s, means of a step.

    - `back`: what comes back, to be sent in the next step. `lost`: what was lost in the last step, and will come back; `tail`: what of that
      comes a step after the rest. `waiting`: how many wait to be sent again, requests.
    """

    back: Frontends
    lost: Arcs
    tail: Arcs
    waiting: Frontends

    def after(self, step: Frontends, lost: Arcs) -> "Retries":
        """After a step in which so much was lost, requests on arcs, and in which all that was back was sent."""
        waiting = self.waiting + jnp.sum(lost, axis=0) - step * self.back
        return Retries(self.back, lost / jnp.where(step > 0, step, 1)[None], self.tail, waiting)

    def enter(self, late: Arcs) -> tuple["Retries", Arcs]:
        """After the losses of a step have been put on their way, and what enters the channel."""
        return replace(self, tail=late * self.lost), self.tail + (1 - late) * self.lost


def no_retries(like: Arcs) -> Retries:
    """Where nothing has been lost yet."""
    return Retries(jnp.zeros_like(like[0]), jnp.zeros_like(like), jnp.zeros_like(like), jnp.zeros_like(like[0]))


def retry_delay(field: Field, step: Frontends) -> Arcs:
    """How many steps a request is in the channel; then it waits for the next step to begin."""
    assert field.events is not None
    assert field.events.timeout is not None
    timeout = field.events.timeout
    return jnp.where(jnp.isfinite(timeout), jnp.maximum(timeout / step[None] - 1, 0), 0)


def late_part(field: Field, step: Frontends, rows: int) -> Arcs:
    """The fraction of a step in that delay."""
    return split(retry_delay(field, step), rows)[1]


def returns(field: Field) -> Bool[Array, " backend_lanes"]:
    """Of which backends requests are sent again."""
    assert field.events is not None
    assert field.events.timeout is not None
    return jnp.isfinite(field.events.timeout[:, : field.shape.lanes].reshape(-1))


def by_arc(field: Field, arriving: Float[Array, " wires"]) -> Arcs:
    """What arrives on every arc, from what arrives on its wires."""
    assert field.events is not None
    wires: Wires = arriving.reshape(field.shape.backends, -1)
    return total(jnp.split(wires, field.events.wires, axis=-1))


def lost_for_a_while(field: Field, lost: Backends, arriving: Arcs) -> Arcs:
    """What of the losses of backends will come back, arc by arc."""
    assert field.events is not None
    assert field.events.timeout is not None
    shape, users = field.shape, field.mask.astype(arriving.dtype)
    inflow, count = (shape.spread(shape.arrivals(arcs)) for arcs in (arriving, users))
    share = jnp.where(inflow > 0, arriving / jnp.where(inflow > 0, inflow, 1), users / jnp.maximum(count, 1))
    return jnp.where(jnp.isfinite(field.events.timeout), share * shape.spread(lost), 0)


def cost_of_retries(field: Field, retries: Retries, routing: Arcs, cost_latency: Arcs) -> Float[Array, " lanes"]:
    """What they add to the cost rate at an instant: those that wait, and the network of those that are sent again."""
    network = jnp.sum(retries.back[None] * routing * cost_latency, axis=0)
    return field.shape.per_lane(retries.waiting + network)


def waiting_cost(field: Field, retries: Retries, again: Arcs) -> Frontends:
    """What requests that are sent again cost beside their time in service, in a second: the timeout, charged when they are lost, and the
    network once more, charged when they are sent."""
    assert field.events is not None
    assert field.events.timeout is not None
    waiting = jnp.where(retries.lost > 0, retries.lost * field.events.timeout, 0)
    return jnp.sum(again * field.cost_latency + waiting, axis=0)
