"""Balancers that go to the backend that looks best by its workload, the same for all frontends but for what they can see."""

from typing import ClassVar

from jaxtyping import Array, Float

from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, best_of, checked, least


class LeastWorkload(AbstractInstantPolicy):
    r"""Join the shortest queue as seen: $\arg\min_j N_j(t - \tau^{fb}_{ij})$; ties shared equally.

    The fluid version of "least outstanding requests" with global counts. It ignores both the network and differences in speed.

    **Source:** Winston (1977), "Optimality of the shortest line discipline". The fluid version keeps the rule and the age of the
    counts; it loses chance, so identical queues stay identical.
    """

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state):
        """All to the least workload."""
        del t
        return least(observation.workload, observation.mask), state


class ShortestExpectedDelay(AbstractInstantPolicy):
    r"""Shortest expected delay as seen: $\arg\min_j (N_j(t - \tau^{fb}_{ij}) + 1) / \mu_j$; ties shared equally.

    $\mu_j$ is the nominal capacity: the rule takes a backend for a queue that is worked off at full speed whatever its length.

    **Source:** Whitt (1986), "Deciding which queue to join: some counterexamples". The one is one request, so this rule is not
    indifferent to the unit that requests are counted in; the fluid version keeps that and loses chance.
    """

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state):
        """All to the shortest expected delay."""
        del t
        return least((observation.workload + 1) / observation.nominal_capacity, observation.mask), state


class PowerOfChoices(AbstractInstantPolicy):
    r"""Power of $d$ choices: every request draws $d$ backends at random and joins the shortest queue of these, as seen.

    With $n$ backends within reach, $G_j$ of them with a queue at least as long and $H_j$ with a longer one,
    $$ x_{ij} = \frac{(G_j / n)^d - (H_j / n)^d}{G_j - H_j} $$

    **Arguments:**

    - `choices`: $d \ge 1$, a scalar or `(frontends,)`; 1 is `Uniform`, `inf` is `LeastWorkload`. Need not be a whole number (a
      mixture).

    **Raises:** `InputError` for fewer than one choice.

    **Source:** Mitzenmacher (2001), "The power of two choices in randomized load balancing": draws with replacement. The fluid
    version takes the expectation over the draws and loses their variance; with whole requests (`simulate_requests`) each draws for
    itself. Measured with two choices on two frontends and two backends at 37 % load, latencies of 0.05 to 0.2 s: that adds 12 % to the
    fluid latency at 10 requests/s, 1.2 % at 100, 0.2 % at 1000.
    """

    takes_lanes: ClassVar[bool] = True

    choices: Float[Array, "*frontends"]

    def __init__(self, choices: Numbers = 2.0):
        self.choices = checked("PowerOfChoices.choices", choices, lambda d: d >= 1, "at least 1 (inf looks at all)")

    def route(self, t, observation: Observation, state):
        """The better ranked, the larger the share."""
        del t
        return best_of(observation.workload, observation.mask, self.choices), state


class GreatestMarginalRate(AbstractInstantPolicy):
    r"""Greatest marginal service rate (GMSR): $\arg\max_j \ell_j'(N_j(t - \tau^{fb}_{ij}))$; ties shared equally.

    Optimal without network latencies; it ignores them.

    **Source:** Zhang, Balseiro, Kleinberg, Mirrokni, Sivan, Wydrowski (2024), arXiv:2411.17103: jobs go to a connected server where
    they have the largest marginal impact on the service rate. The paper's fluid limit is this rule without latencies.
    """

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state):
        """All to the greatest marginal service rate, which is the least marginal latency."""
        del t
        return least(observation.marginal_latency, observation.mask), state


class LeastMarginalLatency(AbstractInstantPolicy):
    r"""GMSR with the network: $\arg\min_j 1 / \ell_j'(N_j(t - \tau^{fb}_{ij})) + \tau^{cost}_{ij}$; ties shared equally.

    The signal of DGD-LB, followed at once instead of step by step: its rest points are optimal, but with news of any age it does not
    come to rest.

    **Source:** own variant of arXiv:2411.17103.
    """

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state):
        """All to the least marginal latency."""
        del t
        return least(observation.marginal_latency + observation.cost_latency, observation.mask), state
