r"""A frontend's own requests on every arc, from dispatch until the answer is back: what a proxy counts.

$$ \dot o_{ij} = f_{ij}(t) - b_{ij}(t - \tau^{fb}_{ij}), \qquad
   \dot n_{ij} = f_{ij}(t - \tau_{ij}) - b_{ij}(t), \qquad b_{ij} = \frac{\ell_j(N_j)}{N_j}\, n_{ij} $$

with $n_{ij}$ those at the backend, whose sum over frontends is $N_j$, and $b_{ij}$ the rate at which they are answered. A backend that
works on all its requests at the same speed (processor sharing) answers each at the rate $\ell_j / N_j$, wherever it came from, so the
answers to a frontend are its share of the requests there. (In order of arrival they would be the mix of a time in service ago. At rest
there is no difference.) Summed over frontends the second equation is that of $N_j$. At rest $o_{ij} = f_{ij} (\tau_{ij} + N_j / \ell_j +
\tau^{fb}_{ij})$: Little's law.

**The scheme.** The count could be read off the histories of flow and answers at any time, at the price of two sums over all delay rows in
every step. Instead it is counted as a proxy counts: up by what is sent in a step, down by what comes back in it. That is safe because
nothing is lost on the way: $n$ moves by the mean of its slopes at both ends of a step, and exactly what has left it goes onto the line of
answers, as the mean of the step; the line hands it on in two parts, since a latency ends within a step. So the count is what is on
the wires, at the backends and on the way back, to rounding, however long the run; and it is of second order as these are.
"""

from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.model.batch import as_batch, each_frontend
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.delay import ChannelState, line
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.dependence import needed_inputs
from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.lanes import Shape


class OwnRequests(eqx.Module):
    """What changes from step to step.

    - `count`: requests from dispatch until the answer is back. `in_service`: those of them at the backend.
    - `arriving`: at the backend now, requests/s; where demand jumps the mean of the last step. `left`: answered in the last step, its
      mean, requests/s.
    """

    count: Total
    in_service: Arcs
    arriving: Arcs
    left: Arcs

    def leaving(self, step: Frontends, now: Arcs, ahead: Arcs) -> Arcs:
        """The rate at which requests are answered, its mean over a step, from the rates per request at both ends."""
        before = now * self.in_service
        predicted = self.in_service + step[None] * (self.arriving - before)
        return (before + ahead * predicted) / 2

    def ahead(self, step: Frontends, flow: Arcs, returned: Arcs) -> Arcs:
        """The count a step ahead, by Euler: what will be sent is not known yet."""
        count = self.count.value + step[None] * (flow - returned)
        return jnp.where(count < 0, 0, count)  # by rounding

    def after(
        self, step: Frontends, sent: Arcs, arrived: Arcs, arriving: Arcs, left: Arcs, returned: Arcs
    ) -> "OwnRequests":
        """After a step in which so much was sent, arrived, left and returned: means, requests/s."""
        count = self.count.plus(step[None] * (sent - returned))
        return OwnRequests(count, self.in_service + step[None] * (arrived - left), arriving, left)


class OwnState(eqx.Module):
    """What counting needs to go on with. In a batch every array has a leading axis.

    - `count` `(frontends, backends)`: own requests from dispatch until the answer is back; `lost`: what rounding took away from it.
    - `in_service`, `arriving`, `left`: as in `OwnRequests`. `line`: of answers, None in a run that is not `resumable`.
    """

    count: Float[Array, "*batch frontends backends"]
    lost: Float[Array, "*batch frontends backends"] | None
    in_service: Float[Array, "*batch frontends backends"]
    arriving: Float[Array, "*batch frontends backends"]
    left: Float[Array, "*batch frontends backends"]
    line: Float[Array, "*batch rows frontends backends"] | None


def reads_outstanding(networks: Network, policy: AbstractPolicy) -> bool:
    """Whether a policy's rule looks at `observation.outstanding`, in a batch of networks: its program is traced, and looked through."""
    leaves, structure = jax.tree.flatten((networks.anonymous(), policy))
    return _reads_outstanding(structure, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves))


def counts_own(network: Network, policy: AbstractPolicy) -> bool:
    """The same of a single network, and a policy with parameters as for `simulate`."""
    ruled = each_frontend(network, policy, type(policy).__name__)
    return reads_outstanding(as_batch(network), as_batch(ruled, shared_scalars=True))


@lru_cache(maxsize=1024)
def _reads_outstanding(structure: Any, shapes: tuple) -> bool:
    networks, policy = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*each) for each in shapes])
    shape = Shape(networks.frontends, networks.backends, networks.latency.shape[0])
    dtype = networks.latency.dtype
    arcs = jax.ShapeDtypeStruct((shape.backends, shape.frontends * shape.lanes), dtype)

    def rule(outstanding, networks, policy):
        field = Field(networks, policy)
        t = jnp.zeros(arcs.shape[1:], dtype)
        zero = jnp.zeros(arcs.shape, dtype)
        observation = field.observe(t, zero, outstanding, t)
        state = field.init(observation)
        return field.velocity(t, zero, observation, state) if field.flows else field.route(t, observation, state)

    return needed_inputs(rule, arcs, networks, policy)[0]


def begin(
    field: Field,
    rows: int,
    t: Backends,
    workload: Backends,
    arriving: Arcs,
    on_the_wires: Arcs,
    replicas: Backends | None = None,
) -> tuple[OwnRequests, ChannelState]:
    """Own requests where workloads and arrivals have always been so, and the line of their answers.

    Of what is at a backend every frontend has its share of what arrives there; where nothing arrives, all who may use it have the same.
    `replicas`: the factor on those of the curves, where it moves.
    """
    shape = field.shape
    users = field.mask.astype(arriving.dtype)
    inflow, count = (shape.spread(shape.arrivals(arcs)) for arcs in (arriving, users))
    share = jnp.where(inflow > 0, arriving / jnp.where(inflow > 0, inflow, 1), users / jnp.maximum(count, 1))
    in_service = share * shape.spread(workload)
    left = shape.spread(field.rate_per_request(t, workload, None, replicas)) * in_service
    own = on_the_wires + in_service + left * field.feedback_latency
    state = OwnRequests(Total(own, Total.zero(own).lost), in_service, arriving, left)
    return state, ChannelState(line.filled(left.reshape(-1), rows))


def suspend(shape: Shape, own: OwnRequests, answers: ChannelState, resumable: bool) -> OwnState:
    """What a later run needs, batch axis first."""
    rows = None
    if resumable:
        rows = shape.from_arcs(answers.line.ring.reshape(answers.line.rows, shape.backends, -1))
    lost = None if own.count.lost is None else shape.from_arcs(own.count.lost)
    in_service, arriving, left = map(shape.from_arcs, (own.in_service, own.arriving, own.left))
    return OwnState(shape.from_arcs(own.count.value), lost, in_service, arriving, left, rows)


def resume(shape: Shape, state: OwnState) -> tuple[OwnRequests, ChannelState]:
    """As it was."""
    assert state.line is not None
    rows = shape.arcs(state.line)
    lost = None if state.lost is None else shape.arcs(state.lost)
    in_service, arriving, left = map(shape.arcs, (state.in_service, state.arriving, state.left))
    own = OwnRequests(Total(shape.arcs(state.count), lost), in_service, arriving, left)
    return own, ChannelState(DelayLine(rows.reshape(-1), len(rows)))
