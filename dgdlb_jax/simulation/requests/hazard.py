"""The probability that a request is answered within a step."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Array

from dgdlb_jax.simulation.dynamics import Backends, Field

_TINY = 1e-30


class Chances(NamedTuple):
    """The probability of leaving in a step, and of staying: for who is there when it begins, and for who arrives in it."""

    leave: Backends
    stay: Backends
    new_leave: Backends
    new_stay: Backends


def chances(hazard: Backends) -> Chances:
    r"""From the hazard $h$ of a request over a step: $1 - e^{-h}$ leave, and $1 - (1 - e^{-h}) / h$ of those who arrive at a uniform time."""
    leave, stay = -jnp.expm1(-hazard), jnp.exp(-hazard)
    new_stay = jnp.where(hazard > 1e-12, leave / jnp.maximum(hazard, _TINY), 1)
    series = hazard / 2 - hazard**2 / 6 + hazard**3 / 24
    return Chances(leave, stay, jnp.where(hazard < 0.05, series, 1 - new_stay), new_stay)


def hazard_of_step(
    field: Field, t: Backends, step: Backends, workload: Backends, arriving: Backends, coin: Bool[Array, " backend_lanes"]
) -> tuple[Backends, Backends]:
    r"""The hazard of a request over a step from `workload` requests in which others arrive, and the service rate at its start.

    In the mean, the workload changes to the middle of the step by arrivals and by what leaves of the *others*: a request that may
    still leave is there itself. With $\mu = \ell(N) / N$,

    $$ h = \Delta t\, \frac{\ell(M)}{M}, \qquad M = N + \frac{A}{2} - \frac{\Delta t}{2} \mu (N - 1). $$

    Whoever leaves early changes the hazard of all who stay, by $\mu - (\ell(N) - \ell(N - 1))$ in all. Departures that are independent
    at the mean hazard lack that variance, an error of first order. One coin for all requests of a backend puts it back: $h (1 \pm s)$
    with $s^2 = (1 - (\ell(N) - \ell(N - 1)) / \mu) / N$, and a correction by which the mean of $1 - e^{-h}$ stays. The mean and the
    variance of departures are then of second order. (Own derivation; `tests/test_requests.py` measures the orders.)
    """
    some = jnp.maximum(workload, 1)
    rate, one_less = field.service_rate(t, some), field.service_rate(t, some - 1)
    each = rate / some
    middle = jnp.maximum(some + arriving / 2 - step / 2 * each * (some - 1), 1)
    hazard = step * field.service_rate(t, middle) / middle
    spread = jnp.maximum(1 - (rate - one_less) / jnp.maximum(each, _TINY), 0) / some
    hazard = hazard * (1 + jnp.minimum(hazard, 1) * spread / 2)
    varied = hazard * (1 + jnp.where(coin, 1, -1) * jnp.sqrt(spread))
    return varied, jnp.where(workload > 0, rate, 0)
