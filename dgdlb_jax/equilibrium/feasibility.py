"""Networks without a comparison or an optimum: nobody sends anything, or somebody asks for more than can be served."""

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import ConvergenceError, InputError, Result

_MOST_NAMED = 6
_SATURATED = 3e-6  # of capacity: closer to it the slope of a hyperbolic curve is below its floor (SMALLEST_SLOPE)


def require_traffic(network: Network) -> None:
    """Raise `InputError` for a single network in which nobody sends anything: it has no latency to speak of."""
    if not np.any(np.asarray(network.arrival_rate) > 0):
        raise InputError(
            f"{network.name or 'The network'} has no traffic: the mean arrival rate of every frontend is 0 requests/s, so there is "
            "no latency to speak of; give at least one frontend a rate above 0."
        )


def explain_infeasible(network: Network, results: Int[Array, "*batch"]) -> None:
    """Raise when a network that was not solved asks for more than its backends can serve; return when none does.

    **Raises:** `InputError`, one sentence: which frontends and backends are short, by how much, and what to do.
    """
    codes = np.atleast_1d(np.asarray(results))
    for element in np.flatnonzero(codes != Result.successful):
        single = network if network.batch is None else network[int(element)]
        message = _shortage(single)
        if message:
            place = "" if network.batch is None else f"Element {element} of the batch: "
            raise InputError(place + message)


def _shortage(network: Network) -> str | None:
    rate, mask = np.asarray(network.arrival_rate, float), np.asarray(network.mask)
    supremum = np.asarray(network.mean_service.supremum, float)
    for margin in (0.0, _SATURATED):
        senders, backends = _bottleneck(rate, mask, (1 - margin) * supremum)
        asked, offered = rate[senders].sum(), supremum[backends].sum()
        if senders.any() and asked >= (1 - margin) * offered:
            if asked >= offered:
                trouble = f"short by {asked - offered:.4g} requests/s"
            else:
                trouble = (
                    f"only {1 - asked / offered:.2g} of that is left, too close to saturation for the slope of a curve"
                )
            return (
                f"{_named('frontend', senders, network.frontend_names)} ({asked:.6g} requests/s) can only use "
                f"{_named('backend', backends, network.backend_names)}, which cannot serve more than {offered:.6g} requests/s: "
                f"{trouble}; add capacity there, reduce these rates, or allow further arcs in the mask."
            )
    return None


def missing_capacity(
    rate: Float[np.ndarray, " frontends"],
    mask: Bool[np.ndarray, "frontends backends"],
    supremum: Float[np.ndarray, " backends"],
) -> float:
    """By how much the demand of a fleet exceeds what it can serve in any way, requests/s; 0 if it can be served."""
    senders, backends = _bottleneck(rate, mask, supremum)
    return max(0.0, float(rate[senders].sum() - supremum[backends].sum()))


def _bottleneck(
    rate: Float[np.ndarray, " frontends"],
    mask: Bool[np.ndarray, "frontends backends"],
    supremum: Float[np.ndarray, " backends"],
) -> tuple[Bool[np.ndarray, " frontends"], Bool[np.ndarray, " backends"]]:
    r"""The frontends that ask for most above what all their backends can serve, and those backends.

    The largest $\sum_{i \in S} \lambda_i - \sum_{j \in R(S)} \sup \ell_j$ over sets $S$ with reachable backends $R(S)$ is a minimum cut,
    the dual of a maximum flow: $\max \lambda^T s - c^T t$ with $s_i \le t_j$ on arcs, $0 \le s, t \le 1$, which has 0-1 solutions.
    """
    from scipy.optimize import linprog  # late: only needed to explain a failure
    from scipy.sparse import coo_matrix

    frontends, backends = mask.shape
    open_ended = np.isinf(supremum)
    rate, most = np.where(mask[:, open_ended].any(1), 0, rate), np.where(open_ended, 0, supremum)
    i, j = np.nonzero(mask & (rate > 0)[:, None])
    count = np.arange(i.size)
    entries = np.concatenate([np.ones(i.size), -np.ones(i.size)])
    arcs = coo_matrix(
        (entries, (np.tile(count, 2), np.concatenate([i, frontends + j]))), (i.size, frontends + backends)
    )
    # A millionth more demand, so that demand equal to capacity, which no finite workload serves, counts as short too.
    scale = max(rate.sum(), 1e-300)
    objective = np.concatenate([-rate * (1 + 1e-9), most]) / scale
    solution = linprog(objective, A_ub=arcs.tocsr(), b_ub=np.zeros(i.size), bounds=(0, 1), method="highs-ds")
    if solution.x is None:
        raise ConvergenceError(
            f"Which part of the network is short of capacity could not be found ({solution.message}): rescale the arrival rates and "
            "capacities to be of the order of 1."
        )
    chosen = solution.x > 0.5
    senders = chosen[:frontends] & (rate > 0)
    return senders, np.asarray(mask[senders].any(axis=0))


def _named(kind: str, chosen: Bool[np.ndarray, " entries"], names: tuple[str, ...] | None) -> str:
    """`frontends Oslo, Bergen`; by number where the network has no names."""
    who = [names[k] if names else str(k) for k in np.flatnonzero(chosen)]
    if not who:
        return f"no {kind}"
    listed = ", ".join(who[:_MOST_NAMED]) + (f" and {len(who) - _MOST_NAMED} more" if len(who) > _MOST_NAMED else "")
    return f"{kind}{'s' if len(who) > 1 else ''} {listed}"
