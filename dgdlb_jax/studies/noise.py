"""What randomness costs, from an exact identity that varies much less than the cost itself."""

import numpy as np
from jaxtyping import Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.simulation.requests.trajectory import RequestTrajectory


def stationary_latency(
    run: RequestTrajectory, network: Network, optimum: Optimum, scale: float = 1.0
) -> Float[np.ndarray, "*batch"]:
    r"""Mean latency of a stationary run of whole requests at constant rates, estimated with little variance.

    For every stationary balancer, with $N^*$, $L^*$ of the fluid optimum, $a_j = \ell_j'(N^*_j)$ and $\Lambda = \sum \lambda_i$,

    $$ \Lambda \, (E L - L^*) = \sum_j E D_j(N_j) + \sum_{ij} E f_{ij}\, s_{ij}, \qquad
       D_j(N) = N - N^*_j - \frac{\ell_j(N) - \ell_j(N^*_j)}{a_j} \ge 0, \quad s_{ij} = \frac{1}{a_j} + \tau^{cost}_{ij} - \nu_i \ge 0, $$

    where $\nu_i$ is the least marginal latency of a frontend: insert $E \ell_j(N_j) = \sum_i E f_{ij}$ and
    $\sum_j E f_{ij} = \lambda_i$. Both sums are small where a balancer is good, and so is their scatter; that of workloads and of what is
    sent cancels.

    **Arguments:** `run`: one, or a batch of one network; `network`, `optimum`: at scale 1; `scale`: that of the run.

    **Returns:** seconds, one number for each run.

    **Source:** own derivation, from the optimality conditions and stationarity alone.
    """
    assert run.parts is not None
    assert run.statistics is not None
    service, best = network.mean_service, np.asarray(optimum.workload, float)
    slope, served = (
        np.asarray(service.slope(optimum.workload), float),
        np.asarray(service.rate(optimum.workload), float),
    )
    marginal = 1 / slope + np.asarray(network.cost_latency, float)
    allowed = np.where(np.asarray(network.mask), marginal, np.inf)
    slack = np.where(np.asarray(network.mask), marginal - allowed.min(-1, keepdims=True), 0)

    weight = np.asarray(run.parts.duration, float)[..., None]
    mean = lambda parts: (np.asarray(parts, float) * weight).sum(-2) / weight.sum(-2)
    workload, rate = mean(run.parts.workload), mean(run.parts.service_rate)
    curved = (workload - scale * best - (rate - scale * served) / slope).sum(-1)
    sent = np.asarray(run.parts.arrivals, float).sum(-2) / weight.sum(-2)
    detours = (sent[..., None] * np.asarray(run.statistics.mean_routing, float) * slack).sum((-2, -1))
    total = scale * float(np.asarray(network.arrival_rate, float).sum())
    return float(optimum.mean_latency) + (curved + detours) / total
