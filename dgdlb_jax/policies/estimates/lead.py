"""Reports extrapolated to now: a lead that makes up for their age, and DGD-LB behind it."""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import not_negative
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import Observation, State, checked, checked_step_size, per_backend
from dgdlb_jax.policies.estimates.base import AbstractEstimate, aligned, follow, seconds
from dgdlb_jax.policies.estimates.policy import EstimatedFlow
from dgdlb_jax.policies.safe import LogDGDLB

_STEEPEST = 1e-3  # of what is reported: an extrapolated marginal latency is not less


class Lead(AbstractEstimate):
    r"""A lead on the logarithm of what one more request would cost, $u = \log g$, $g_{ij} = 1/\ell_j' + \tau^{cost}_{ij}$.

    $$ y = u + (\rho - 1)(u - z), \qquad T \dot z = u - z, \qquad
       \frac{1 + \rho a T}{1 + a T} = e^{a R} \text{ with } 1 \le \rho \le \rho_{\max} $$
    and $\rho = 1$ where $a R > h$; $a = \ell_j'$ as reported, R the round trip, $T = m R$. Near the optimum it is the filter
    $(1 + s \rho T) / (1 + s T)$ in front of the policy, and with this $\rho$ jitter vanishes to first order in the step size.

    It pays where news is young beside the time in which backends forget, $a R$ below 0.3 on the arcs in use, as with seconds of service:
    there the limit is several times as high, jitter a tenth or less, and far fewer runs from far starts end in a cycle. With h = 1 it
    lowers the limit where $a R$ is between 0.3 and 1 (benchmarks/README.md). Made for `LogDGDLB`: the logarithm keeps it from amplifying
    a marginal latency that explodes.

    **Arguments:**

    - `round_trip`: R, seconds, a scalar, `(frontends,)` or `(frontends, backends)`: `network.latency + network.feedback_latency`.
    - `lag`: m, how much of a round trip it looks back. `largest`: $\rho_{\max}$, at least 1. `oldest`: h, beside the time in which
      backends forget. Scalars or `(frontends,)`.

    **Raises:** `InputError` for a round trip that is negative or not finite, a lag that is not positive, or a bound below 1.

    **Source:** own derivation.
    """

    round_trip: Float[Array, "*frontends"]
    lag: Float[Array, "*frontends"]
    largest: Float[Array, "*frontends"]
    oldest: Float[Array, "*frontends"]

    def __init__(self, round_trip: Matrix, lag: Numbers = 1.0, largest: Numbers = 4.0, oldest: Numbers = 0.3):
        self.round_trip = checked("Lead.round_trip", round_trip, not_negative, "finite and not negative, seconds")
        self.lag = seconds("Lead.lag", lag)
        self.largest = checked("Lead.largest", largest, lambda ratio: ratio >= 1, "at least 1 (1 is no lead)")
        self.oldest = checked("Lead.oldest", oldest, not_negative, "finite and not negative")

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The shortest time that it looks back."""
        lag, trip = aligned(self.lag, self.round_trip)
        return jnp.where(trip > 0, lag * trip, jnp.inf)

    def init(self, observation: Observation) -> State:
        """The logarithm itself."""
        return _logarithm(observation)

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The marginal latency ahead of its report."""
        u, seen = _logarithm(observation), observation.marginal_latency
        trip, lag, largest, oldest = (
            per_backend(each, seen) for each in (self.round_trip, self.lag, self.largest, self.oldest)
        )
        late = trip > 0
        trip = jnp.where(late, trip, 1)
        z, after = follow(state, u, observation.time_step[None], lag * trip)
        age, memory = trip / seen, lag * trip / seen
        ratio = ((1 + memory) * jnp.exp(jnp.minimum(age, oldest)) - 1) / memory
        ratio = jnp.where(late & (age <= oldest), jnp.clip(ratio, 1, largest), 1)
        ahead = jnp.exp(u + (ratio - 1) * (u - z)) - observation.cost_latency
        return eqx.tree_at(lambda o: o.marginal_latency, observation, jnp.maximum(ahead, _STEEPEST * seen)), after


class LeadDGDLB(EstimatedFlow):
    r"""DGD-LB on the logarithm of the marginal latency, extrapolated to now: `estimated(LogDGDLB(step_size), Lead(round_trip))`.

    $$ v_{ij} = -\eta_i\, e^{\min_j y_{ij}}\, y_{ij}, \qquad y \text{ as in } \texttt{Lead} $$

    Where news is young, $a R < 0.3$ on the arcs in use (seconds of service, tenths of a second of latency), it has a limit several times
    that of `DGDLB`, hardly any jitter, and settles from far starts at step sizes at which `DGDLB` cycles. Where news is older the lead
    is off and it is `LogDGDLB`: nothing won on fleets that serve a request faster than news travels. `critical_step_size(network,
    LeadDGDLB(1.0, round_trip))` is its limit; its default step size is that of `DGDLB`, which is cautious for it.

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2, as for `DGDLB`.
    - `round_trip`, `lag`, `largest`, `oldest`: as for `Lead`.

    **Raises:** `InputError` for a step size that is negative or not finite, and as `Lead`.

    **Source:** own derivation.
    """

    takes_lanes: ClassVar[bool] = True

    def __init__(
        self,
        step_size: Matrix,
        round_trip: Matrix,
        lag: Numbers = 1.0,
        largest: Numbers = 4.0,
        oldest: Numbers = 0.3,
    ):
        self.policy = LogDGDLB(checked_step_size("LeadDGDLB", step_size))
        self.estimates = (Lead(round_trip, lag, largest, oldest),)


def _logarithm(observation: Observation) -> Float[Array, "backends *lanes"]:
    return jnp.log(observation.marginal_latency + observation.cost_latency)
