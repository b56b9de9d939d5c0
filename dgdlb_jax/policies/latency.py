"""Balancers that compare latencies as seen."""

import jax.numpy as jnp

from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, State, least


class LeastLatency(AbstractInstantPolicy):
    r"""Least latency as seen: $\arg\min_j \tau^{cost}_{ij} + N_j / \ell_j(N_j)$ at $t - \tau^{fb}_{ij}$; ties shared equally.

    The average latency of a backend, where the optimum compares marginal ones: its equilibrium is that of selfish routing.
    """

    def route(self, t, observation: Observation, state: State):
        """All to the least latency."""
        del t
        return least(observation.cost_latency + time_in_service(observation), observation.mask), state


def time_in_service(observation: Observation):
    r"""Seconds a request spends at each backend by Little's law, $N / \ell(N)$; at an empty backend the limit $1 / \ell'(0)$."""
    busy = (observation.workload > 0) & (observation.service_rate > 0)
    ratio = jnp.where(busy, observation.workload, 1) / jnp.where(busy, observation.service_rate, 1)
    return jnp.where(busy, ratio, observation.marginal_latency)
