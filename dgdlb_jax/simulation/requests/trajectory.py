"""What a run of whole requests leaves behind: a `Trajectory` of counts, how far its means can be trusted, and latencies by quantile."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.simulation.trajectory import Trajectory

_POINTS = 4001  # of the grid on which quantiles are sought; between its points survival is a straight line


class Parts(eqx.Module):
    """Sums over equal parts of the window, one after the other. In a batch every array has a leading axis.

    - `duration`: of each, seconds. `arrivals` `(parts, frontends)`: requests sent.
    - `cost`: request-seconds, at the backends and charged for the network.
    - `workload`, `service_rate` `(parts, backends)`: means over each part, requests and requests/s.
    """

    duration: Float[Array, "*batch parts"]
    arrivals: Float[Array, "*batch parts frontends"]
    cost: Float[Array, "*batch parts"]
    workload: Float[Array, "*batch parts backends"]
    service_rate: Float[Array, "*batch parts backends"]


class Sojourns(eqx.Module):
    """How many requests are still at their backend at an age. In a batch every array has a leading axis.

    - `age`: seconds since a request arrived there. `left` `(ages, backends)`: the share that has not been answered by then.
    - `followed`: how many requests this is known of, `(backends,)`.
    """

    age: Float[Array, "*batch ages"]
    left: Float[Array, "*batch ages backends"]
    followed: Float[Array, "*batch backends"]


class RequestTrajectory(Trajectory):
    """A run of whole requests: a `Trajectory` whose workloads are counts.

    - `parts`: sums over equal parts of the window. `sojourns`: how long requests stay; None when none were followed.
    - `cost_latency`: network time charged to a request, seconds, as in the network.

    `final` is the state at the end; a run of requests does not go on from it.
    """

    parts: Parts | None = None
    sojourns: Sojourns | None = None
    cost_latency: Float[Array, "*batch frontends backends"] | None = None

    @property
    def standard_error(self) -> Float[Array, "*batch"]:
        r"""Of `statistics.mean_latency`, seconds: from the scatter of its parts (batch means of a ratio).

        With $C_b$, $A_b$ cost and arrivals of $B$ parts and $R = \sum C / \sum A$:
        $\; s = \sqrt{\tfrac{B}{B - 1} \sum (C_b - R A_b)^2} \,/ \sum A$. Parts have to be long against the time in which a workload
        forgets its past; a run that is too short makes it too small.
        """
        assert self.parts is not None
        cost, arrivals = self.parts.cost, self.parts.arrivals.sum(-1)
        total = arrivals.sum(-1)
        rest = cost - (cost.sum(-1) / total)[..., None] * arrivals
        count = cost.shape[-1]
        return (count / (count - 1) * (rest**2).sum(-1)) ** 0.5 / total

    def across_runs(self) -> tuple[float, float]:
        """Mean latency of a batch of equal runs with different keys, and its standard error from their scatter, seconds.

        **Raises:** `InputError` for a single run.
        """
        assert self.statistics is not None
        means = np.asarray(self.statistics.mean_latency, float)
        if means.ndim == 0 or means.size < 2:
            raise InputError("across_runs needs a batch of runs: give simulate_requests_batch several keys.")
        return float(means.mean()), float(means.std(ddof=1) / np.sqrt(means.size))

    def latency_quantiles(self, q: Numbers, by: str = "all") -> Float[np.ndarray, "..."]:
        """Latencies that a part `q` of the requests does not exceed, seconds; all runs of a batch together.

        **Arguments:** `q`: one part, or several. `by`: of all requests, of those of each frontend, or of each backend.

        **Returns:** the shape of `q`, behind a leading axis of frontends or backends; NaN where nothing was sent, or where more than
        1 - q of the requests had not been answered at the greatest age that was looked at.

        **Raises:** `InputError` for parts outside [0, 1), and for a run whose requests were not followed.
        """
        parts = np.asarray(q, float)
        if not np.all((parts >= 0) & (parts < 1)):
            raise InputError(f"latency_quantiles({q}): give parts from 0 to below 1, 0.99 for the 99th percentile.")
        if by not in ("all", "frontend", "backend"):
            raise InputError(f"latency_quantiles(by={by!r}): choose from all, frontend, backend.")
        if self.sojourns is None or self.statistics is None or self.cost_latency is None:
            raise InputError("latency_quantiles needs requests that were followed: leave out follow=False.")
        sent = self._sent()
        frontends, backends = sent.shape
        chosen = {
            "all": [np.ones_like(sent)],
            "frontend": [np.arange(frontends)[:, None] == i for i in range(frontends)],
            "backend": [np.arange(backends) == j for j in range(backends)],
        }[by]
        found = np.array([self._quantiles(np.where(which, sent, 0), parts) for which in chosen])
        return found[0] if by == "all" else found

    def _sent(self) -> Float[np.ndarray, "frontends backends"]:
        """Requests sent on every arc in the window, of all runs together."""
        assert self.parts is not None
        assert self.statistics is not None
        each = np.asarray(self.parts.arrivals, float).sum(-2)[..., None] * np.asarray(self.statistics.mean_routing)
        return each.reshape(-1, *each.shape[-2:]).sum(0)

    def _quantiles(
        self, sent: Float[np.ndarray, "frontends backends"], q: Float[np.ndarray, "*q"]
    ) -> Float[np.ndarray, "*q"]:
        """Of the mixture of arcs with these weights: network time, and a time at the backend whose survival is known at ages."""
        age, left = self._survival()
        network = np.asarray(self.cost_latency, float).reshape(-1, *sent.shape)[0]
        if sent.sum() <= 0:
            return np.full(q.shape, np.nan)
        grid = np.linspace(0, age[-1] + network.max(), _POINTS)
        later = np.zeros_like(grid)
        for i, j in zip(*np.nonzero(sent), strict=True):
            later += sent[i, j] / sent.sum() * np.interp(grid - network[i, j], age, left[:, j], left=1.0)
        later = np.minimum.accumulate(later)
        found = np.interp(1 - q, later[::-1], grid[::-1])
        return np.where(1 - q < later[-1], np.nan, found)

    def _survival(self) -> tuple[Float[np.ndarray, " ages"], Float[np.ndarray, "ages backends"]]:
        """Ages from 0 on, and the share of requests that is left then; a backend that got nothing answers at once."""
        assert self.sojourns is not None
        one = lambda values, rank: np.asarray(values, float).reshape(-1, *np.shape(values)[-rank:])
        age, left, followed = one(self.sojourns.age, 1), one(self.sojourns.left, 2), one(self.sojourns.followed, 1)
        weight = followed[:, None] / np.maximum(followed.sum(0), 1)
        survival = (left * weight).sum(0)
        return np.concatenate([[0.0], age[0]]), np.concatenate([(followed.sum(0) > 0)[None] * 1.0, survival])
