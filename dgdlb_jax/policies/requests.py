"""Balancers that count the requests they have under way themselves: what a proxy knows without asking anybody."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, best_of, better_of_two, checked
from dgdlb_jax.policies.latency import latency_as_seen
from dgdlb_jax.policies.static import proportional


class Active(eqx.Module):
    r"""A frontend's own requests under way to each backend, $o_j$, and its flow there since it last looked.

    $$ \dot o_j = f_j - o_j / R_j $$
    with $R_j$ the latency as seen: what is under way is answered at the rate that Little's law says. In the limit of a step that is
    short against $R_j$ the count builds up and drains as the real one does; it loses that a request is answered after $R_j$ and not
    before.
    """

    count: Float[Array, "backends *lanes"]
    flow: Float[Array, "backends *lanes"]

    def now(self, observation: Observation) -> Float[Array, "backends *lanes"]:
        """The count now, by an implicit step: never negative, whatever the step."""
        step = observation.time_step
        return (self.count + step * self.flow) / (1 + step / latency_as_seen(observation))


def active_at_start(observation: Observation) -> Active:
    """What is under way when all has been as it is for ever."""
    return Active(observation.outstanding, observation.outstanding / latency_as_seen(observation))


class LeastRequest(AbstractInstantPolicy):
    r"""Least request: draw $d$ backends at random and take the one with the fewest of the frontend's own active requests.

    **Arguments:**

    - `choices`: $d \ge 1$, a scalar or `(frontends,)`; 2 as in Envoy. `inf` is Envoy's full scan, ties at random.

    **Raises:** `InputError` for fewer than one choice.

    **Source:** Envoy's documentation, "Supported load balancers: weighted least request", all weights equal (`choice_count`,
    `selection_method`); a proxy counts its own requests only. The fluid version takes the expectation over the draws, and counts as
    `Active` does.
    """

    takes_lanes: ClassVar[bool] = True

    choices: Float[Array, "*frontends"]

    def __init__(self, choices: Numbers = 2.0):
        self.choices = checked("LeastRequest.choices", choices, lambda d: d >= 1, "at least 1 (inf looks at all)")

    def init(self, observation: Observation) -> Active:
        """Wires are full at the start."""
        return active_at_start(observation)

    def route(self, t, observation: Observation, state: Active):
        """The fewer of its own, the larger the share."""
        del t
        count = state.now(observation)
        routing = best_of(count, observation.mask, self.choices)
        return routing, Active(count, observation.arrival_rate * routing)


class WeightedLeastRequest(AbstractInstantPolicy):
    r"""Weighted least request: shares in proportion to $w_j / (o_j + 1)^b$, with $o_j$ the frontend's own active requests.

    The weights $w_j$ are the nominal capacities.

    **Arguments:**

    - `bias`: $b \ge 0$, a scalar or `(frontends,)`; 1 as in Envoy. 0 is `ProportionalToCapacity`.

    **Raises:** `InputError` for a bias that is negative or not finite.

    **Source:** Envoy's documentation, "Supported load balancers: weighted least request", weights not all equal:
    `weight = load_balancing_weight / (active_requests + 1)^active_request_bias`, picked by an earliest-deadline-first schedule. The
    fluid version takes the schedule's shares; it counts as `Active` does. One request matters, so the rule is not indifferent to the
    unit that requests are counted in.
    """

    differentiable: ClassVar[bool] = True
    takes_lanes: ClassVar[bool] = True

    bias: Float[Array, "*frontends"]

    def __init__(self, bias: Numbers = 1.0):
        self.bias = checked("WeightedLeastRequest.bias", bias, not_negative, "finite and not negative")

    def init(self, observation: Observation) -> Active:
        """Wires are full at the start."""
        return active_at_start(observation)

    def route(self, t, observation: Observation, state: Active):
        """Shares by dynamic weight."""
        del t
        count = state.now(observation)
        routing = proportional(observation.nominal_capacity / (count + 1) ** self.bias, observation.mask)
        return routing, Active(count, observation.arrival_rate * routing)


class PeakEWMA(AbstractInstantPolicy):
    r"""Peak EWMA: of two different backends drawn at random, the one with the lower cost $C_j (o_j + 1)$.

    $C_j$ is a moving average of the latency $R_j$ as seen that jumps to every peak, $o_j$ are the frontend's own requests under way:
    $$ C_j \leftarrow \max\bigl(R_j,\ R_j + (C_j - R_j) e^{-\Delta t / T}\bigr) $$

    **Arguments:**

    - `decay`: $T$, seconds, a scalar or `(frontends,)`; 10 as in Finagle.

    **Raises:** `InputError` for a decay time that is not positive and finite.

    **Source:** Finagle's `PeakEwma.scala` and its power of two choices. The fluid version keeps peaks, decay, and the product with
    own requests (counted as `Active` does, plus the one to be sent). It loses that the estimate of a backend that gets nothing decays
    to zero, so that it is tried again: here every frontend goes on seeing every backend; and the penalty of a backend that has not
    answered yet. One request matters, so the rule is not indifferent to the unit that requests are counted in.
    """

    takes_lanes: ClassVar[bool] = True

    decay: Float[Array, "*frontends"]

    def __init__(self, decay: Numbers = 10.0):
        self.decay = checked("PeakEWMA.decay", decay, positive, "positive and finite, seconds")

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time in which a peak is forgotten."""
        return self.decay

    def init(self, observation: Observation):
        """The average is what is seen."""
        return latency_as_seen(observation), active_at_start(observation)

    def route(self, t, observation: Observation, state):
        """The lower the cost, the larger the share."""
        del t
        average, active = state
        seen, count = latency_as_seen(observation), active.now(observation)
        average = seen + jnp.maximum(average - seen, 0) * jnp.exp(-observation.time_step / self.decay)
        routing = better_of_two(average * (count + 1), observation.mask)
        return routing, (average, Active(count, observation.arrival_rate * routing))
