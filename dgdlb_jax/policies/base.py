"""What a policy is: the rule of **one frontend**, from what it can see to where it routes.

A policy is written with vectors over the backends of one frontend and nothing else in sight; that is what distributed means. The
simulator maps it over frontends and networks, or, where the rule says that it takes them (`takes_lanes`), hands it all of them at once:
axis 0 is the backends, what follows passes through. What there is once for a frontend lacks axis 0: it gets it, by `[None]` or by
`per_backend`, where it meets arrays over backends. Its parameters are scalars, or arrays whose leading axis is the frontends (one number
or one vector per frontend); inside the rule that axis is gone.

To add one, derive from `AbstractFlowPolicy` (routing moves with a velocity; can be linearised and differentiated) or from
`AbstractInstantPolicy` (routing jumps to where the rule says), and write one method; `register_policy` gives it a name for sweeps and
the command line. One of this package is entered in `registry`.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from dgdlb_jax.numerics.checks import Allowed, first_refused, not_negative
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Matrix

_ROUNDING = 8  # units in the last place by which scores may differ and still be equal

State = PyTree[Any]


class Observation(eqx.Module):
    """What one frontend sees at one instant; news of a backend is as old as the feedback latency of its arc.

    - `workload`: $N_j(t - \\tau^{fb}_{ij})$, `(backends,)`, requests.
    - `service_rate`: $\\ell_j$ there, requests/s.
    - `marginal_latency`: $1 / \\ell_j'$ there, seconds: what one more request would add to the time in the system.
    - `average_latency`: $N_j / \\ell_j$ there, seconds: the mean time in the system, if the backend were at rest.
    - `cost_latency`: network time charged to a request, seconds.
    - `outstanding`: the frontend's own requests that have not been answered: counted from dispatch until the answer is back, as a proxy
      does, the return trip (the feedback latency) included. Its one number that needs no news. Only runs of a policy that looks at it
      count.
    - `nominal_capacity`: of each backend, requests/s.
    - `mask`: which backends it may use. Entries of the others have no meaning, but are finite.
    - `arrival_rate`: of this frontend now, requests/s, a scalar.
    - `time_step`: seconds since the last call, a scalar; for rules with memory.
    - `healthy`: which backends answered a feedback latency ago; for policies that check health themselves (`checks_health`), where events
      take backends out of service, else None.

    A rule that takes lanes sees many frontends in one such object, along the axes behind that of the backends; any other sees one.
    """

    workload: Float[Array, "backends *lanes"]
    service_rate: Float[Array, "backends *lanes"]
    marginal_latency: Float[Array, "backends *lanes"]
    average_latency: Float[Array, "backends *lanes"]
    cost_latency: Float[Array, "backends *lanes"]
    outstanding: Float[Array, "backends *lanes"]
    nominal_capacity: Float[Array, "backends *lanes"]
    mask: Bool[Array, "backends *lanes"]
    arrival_rate: Float[Array, "*lanes"]
    time_step: Float[Array, "*lanes"]
    healthy: Bool[Array, "backends *lanes"] | None = None


class AbstractPolicy(eqx.Module):
    """A routing rule. Derive from `AbstractFlowPolicy` or `AbstractInstantPolicy`.

    `differentiable`: whether a run has a gradient, which a rule that jumps has not.
    `takes_lanes`: whether axes behind that of the backends pass through the rule (it sums over axis 0, and nothing in it assumes
    vectors). The simulator then calls it once for all frontends instead of mapping it over them, which leaves XLA more
    freedom: up to twice as fast. A subclass has to say so anew, since its own rule may not be.
    """

    differentiable: ClassVar[bool] = True
    takes_lanes: ClassVar[bool] = False

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The shortest time constant of the rule itself, seconds, which a time step has to resolve; inf by default."""
        return jnp.asarray(jnp.inf)

    @property
    def checks_health(self) -> bool:
        """Whether it finds out itself which backends have failed. The mask then leaves those open, and what is sent there is lost."""
        return False

    @property
    def windows(self) -> tuple[Float[Array, "*parameters"], ...]:
        """Seconds over which it averages the news evenly, once for every average; none by default.

        No finite memory has the transfer function of such an average, so the linear analysis takes `without_windows` and puts it in.
        """
        return ()

    @property
    def without_windows(self) -> "AbstractPolicy":
        """The same rule on news that is not averaged."""
        return self

    def init(self, observation: Observation) -> State:
        """The policy's memory at the start; none by default."""
        del observation
        return ()


class AbstractFlowPolicy(AbstractPolicy):
    """A rule that says in which direction the routing moves."""

    @abstractmethod
    def velocity(
        self, t: Float[Array, ""], routing: Float[Array, "backends *lanes"], observation: Observation, state: State
    ) -> tuple[Float[Array, "backends *lanes"], State]:
        """The raw velocity of the routing (1/s) and the new memory. The simulator projects it; the rule need not."""


class AbstractInstantPolicy(AbstractPolicy):
    """A rule that says where the routing is. It jumps, so it has no linearisation and no gradient.

    A rule that is smooth all the same says `differentiable: ClassVar[bool] = True`.
    """

    differentiable: ClassVar[bool] = False

    @abstractmethod
    def route(
        self, t: Float[Array, ""], observation: Observation, state: State
    ) -> tuple[Float[Array, "backends *lanes"], State]:
        """The routing, a point of the simplex, and the new memory."""


def takes_lanes(policy: AbstractPolicy) -> bool:
    """Whether the class itself, not one that it derives from, says that its rule takes lanes."""
    return vars(type(policy)).get("takes_lanes", False)


def for_each_frontend(policy: AbstractPolicy, rule: Callable, *arguments: Any) -> Any:
    """`rule(policy, *arguments)`, mapped over the frontends on the last axis of all arguments unless the policy takes lanes."""
    if takes_lanes(policy):
        return rule(policy, *arguments)
    axes = jax.tree.map(lambda leaf: None if leaf.ndim == 0 else -1, policy)
    return jax.vmap(rule, in_axes=(axes, *(-1 for _ in arguments)), out_axes=-1)(policy, *arguments)


def parameter(value: Matrix) -> Float[Array, "..."]:
    """A policy's parameter as a floating-point array."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def checked(name: str, value: Matrix, allowed: Allowed, rule: str) -> Float[Array, "..."]:
    """A policy's parameter, every entry of it allowed; traced values are not looked at.

    **Raises:** `InputError` with the name, the index and the value of the first entry that is not allowed, and the rule.
    """
    array = parameter(value)
    refused = first_refused(array, allowed)
    if refused is not None:
        at, found, count = refused
        more = f" ({count} of {array.size} entries are not)" if count > 1 else ""
        raise InputError(f"{name}{list(at) if at else ''} is {found:g}, but must be {rule}{more}.")
    return array


def checked_step_size(policy: str, value: Matrix) -> Float[Array, "..."]:
    """`checked` for the step sizes of a policy, of one network or of many. A limit that is infinite is no step size."""
    return checked(
        f"{policy}.step_size",
        value,
        not_negative,
        "finite and not negative (1/s^2): default_step_size(network) proposes one, and where the limit of a network is inf "
        "(nothing in it can oscillate) jnp.where(jnp.isfinite(limit), limit, ...) puts a number there",
    )


def per_backend(number: Float[Array, "..."], like: Shaped[Array, "backends *lanes"]) -> Float[Array, "..."]:
    """A parameter as it goes with arrays over backends: axis 0 in front of one per frontend; one for all, or for each arc, as it is."""
    return number if number.ndim in (0, like.ndim) else number[None]


def somewhere(chosen: Bool[Array, "backends *lanes"]) -> Bool[Array, "*lanes"]:
    """Whether any backend is marked: `any(0)`, of which no kernel can be made (fused.py)."""
    return jnp.max(chosen.astype(jnp.int32), axis=0) > 0


def share_equally(best: Bool[Array, "backends *lanes"], dtype) -> Float[Array, "backends *lanes"]:
    """All traffic in equal parts to the backends marked as best; none if there are none."""
    chosen = best.astype(dtype)
    return chosen * (1 / jnp.maximum(jnp.sum(chosen, axis=0), 1))[None]


def at_most(score: Float[Array, "..."], other: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a score is not above another, but for rounding.

    XLA may compute a score in several places and round it differently in each: compared to the bit, the least score may be less than
    all scores, and the requests go nowhere.
    """
    return score <= other + _ROUNDING * jnp.finfo(score.dtype).eps * jnp.abs(other)


def least(
    score: Float[Array, "backends *lanes"], mask: Bool[Array, "backends *lanes"]
) -> Float[Array, "backends *lanes"]:
    """All traffic to the backends with the least score, ties shared equally."""
    allowed = jnp.where(mask, score, jnp.inf)
    return share_equally(mask & at_most(allowed, jnp.min(allowed, axis=0)[None]), score.dtype)


def best_of(
    score: Float[Array, "backends *lanes"], mask: Bool[Array, "backends *lanes"], choices: Float[Array, "*#lanes"]
) -> Float[Array, "backends *lanes"]:
    r"""The shares of taking the least score among `choices` backends drawn at random, with replacement; ties shared equally.

    $$ x_j = \frac{(G_j / n)^d - (H_j / n)^d}{G_j - H_j} $$
    with $n$ backends within reach, $G_j$ of them not better than $j$ and $H_j$ worse: all draws have to fall among the $G_j$, and not
    all among the $H_j$. One choice shares equally, `inf` takes the least of all.
    """
    return _share_by_rank(score, mask, lambda count, n: (count / n) ** per_backend(choices, score))


def better_of_two(
    score: Float[Array, "backends *lanes"], mask: Bool[Array, "backends *lanes"]
) -> Float[Array, "backends *lanes"]:
    """The shares of taking the lesser score of two different backends drawn at random; ties shared equally."""
    return _share_by_rank(
        score, mask, lambda count, n: jnp.where(n > 1, count * (count - 1) / jnp.maximum(n * (n - 1), 1), count)
    )


def _share_by_rank(score, mask, all_among):
    """`all_among(count, n)`: the probability that all draws fall among the `count` worst of n."""
    allowed = jnp.where(mask, score, jnp.inf)
    n = jnp.maximum(jnp.sum(mask, axis=0), 1).astype(score.dtype)[None]
    own, others = allowed[:, None], allowed[None]
    not_better = jnp.sum(mask[None] & at_most(own, others), axis=1).astype(score.dtype)
    worse = n - jnp.sum(mask[None] & at_most(others, own), axis=1).astype(score.dtype)
    share = (all_among(not_better, n) - all_among(worse, n)) / jnp.maximum(not_better - worse, 1)
    return jnp.where(mask, share, 0)
