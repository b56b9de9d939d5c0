"""Balancers that send everything to the backend that looks best by its workload."""

from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, State, least


class LeastWorkload(AbstractInstantPolicy):
    r"""Join the shortest queue as seen: $\arg\min_j N_j(t - \tau^{fb}_{ij})$; ties shared equally.

    The fluid version of "least outstanding requests" with global counts. It ignores both the network and differences in speed.
    """

    def route(self, t, observation: Observation, state: State):
        """All to the least workload."""
        del t
        return least(observation.workload, observation.mask), state


class GreatestMarginalRate(AbstractInstantPolicy):
    r"""Greatest marginal service rate (GMSR): $\arg\max_j \ell_j'(N_j(t - \tau^{fb}_{ij}))$; ties shared equally.

    Optimal without network latencies; it ignores them.

    **Source:** arXiv:2411.17103.
    """

    def route(self, t, observation: Observation, state: State):
        """All to the greatest marginal service rate, which is the least marginal latency."""
        del t
        return least(observation.marginal_latency, observation.mask), state
