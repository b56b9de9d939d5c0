"""The probability that a request is answered within a step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool

from dgdlb_jax.simulation.dynamics import Backends, Field

_TINY = 1e-30


class Chances(NamedTuple):
    """The probability of leaving in a step, and of staying: for who is there when it begins, and for who arrives in it."""

    leave: Backends
    stay: Backends
    new_leave: Backends
    new_stay: Backends


def chances(hazard: Backends) -> Chances:
    r"""From the hazard $h$ of a request over a step: $1 - e^{-h}$ leave; of those who arrive at a uniform time $1 - (1 - e^{-h}) / h$."""
    leave, stay = -jnp.expm1(-hazard), jnp.exp(-hazard)
    new_stay = jnp.where(hazard > 1e-12, leave / jnp.maximum(hazard, _TINY), 1)
    series = hazard / 2 - hazard**2 / 6 + hazard**3 / 24
    return Chances(leave, stay, jnp.where(hazard < 0.05, series, 1 - new_stay), new_stay)


def hazard_of_step(
    field: Field,
    t: Backends,
    step: Backends,
    workload: Backends,
    arriving: Backends,
    coin: Bool[Array, " backend_lanes"],
) -> tuple[Backends, Backends]:
    r"""The hazard of a request over a step from `workload` requests in which others arrive, and the service rate at its start.

    With $\ell_n$ the service rate at $n$ requests, $\mu = \ell_n / n$, $\Delta = \ell_n - \ell_{n-1}$, and $a$ arrivals:

    $$ h = \Delta t\, \frac{(\ell_n + \ell_{n+a}) / 2}{n + a/2}\,
       \Bigl( 1 + \frac{\Delta t}{2}\, \frac{n}{n-1} (\mu - \Delta) \Bigr) (1 \pm s), \qquad s^2 = \frac{1 - \Delta / \mu}{n - 1}, $$

    the sign by a fair coin for all requests of a backend; for $n < 2$ the last two factors are 1. The law of the count after the step
    is then that of the birth-death process up to terms of third order:

    - $P(2 \text{ leave}) = \binom n2 h^2 (1 + s^2)$ has to be $\tfrac12 \Delta t^2 \ell_n \ell_{n-1}$, which gives $s$;
    - $P(0 \text{ leave})$ has to be $1 - \Delta t\, \ell_n + \tfrac12 \Delta t^2 \ell_n^2$, which gives the middle factor;
    - $P(1 \text{ arrives}, 1 \text{ leaves})$ has to be $\tfrac12 \Delta t^2 \lambda (\ell_n + \ell_{n+1})$, which gives the first factor.

    Departures that are independent at a mean hazard lack variance: who leaves early changes the hazard of the others.

    **Source:** own derivation; `tests/test_requests.py` measures the orders on the matrix of a step.
    """
    several = workload >= 2
    rate = field.service_rate(t, workload)
    both = rate + field.service_rate(t, workload + arriving)
    one_less = field.service_rate(t, jnp.maximum(workload - 1, 0))
    each = rate / jnp.maximum(workload, 1)
    bend = jnp.maximum(each - (rate - one_less), 0)
    others = jnp.maximum(workload - 1, 1)
    hazard = step * both / jnp.maximum(2 * workload + arriving, 1)
    hazard = hazard * jnp.where(several, 1 + step / 2 * bend * workload / others, 1)
    spread = jnp.where(several, jnp.sqrt(bend / (jnp.maximum(each, _TINY) * others)), 0)
    return hazard * (1 + jnp.where(coin, 1, -1) * spread), rate
