"""Slow, obvious references for runs of whole requests: exact events one after the other, and chains of counts as matrices."""

import heapq

import numpy as np
from scipy import stats

from oracles import project_simplex


def stationary_counts(rate, arrivals: float, most: int) -> np.ndarray:
    """The stationary law of a birth-death chain: births at `arrivals`, deaths at `rate(n)` from n, up to `most`."""
    n = np.arange(1, most + 1)
    logarithm = np.concatenate([[0.0], np.cumsum(np.log(arrivals) - np.log(rate(n)))])
    law = np.exp(logarithm - logarithm.max())
    return law / law.sum()


def chain_of_steps(chances, arrivals: float, most: int) -> np.ndarray:
    """The matrix of one step of a count: Poisson arrivals with mean `arrivals`, then departures with the probabilities that
    `chances(n, a, coin)` gives for who is there and who arrives, for both faces of a fair coin."""
    law = np.zeros((most + 1, most + 1))
    largest = int(stats.poisson.isf(1e-13, arrivals)) + 1
    for n in range(most + 1):
        for a in range(largest + 1):
            for coin in (False, True):
                leave, new_leave = chances(n, a, coin)
                old, new = stats.binom.pmf(np.arange(n + 1), n, leave), stats.binom.pmf(np.arange(a + 1), a, new_leave)
                stay = np.convolve(old, new)[::-1]  # by what is left
                weight = stats.poisson.pmf(a, arrivals) / 2
                kept = np.minimum(np.arange(stay.size), most)
                np.add.at(law[n], kept, weight * stay)
    return law / law.sum(1, keepdims=True)


def stationary(law: np.ndarray) -> np.ndarray:
    """The stationary distribution of a chain."""
    system = np.vstack([law.T - np.eye(len(law)), np.ones(len(law))])
    return np.linalg.lstsq(system, np.concatenate([np.zeros(len(law)), [1.0]]), rcond=None)[0]


def simulate_events(
    network, rate, routing, workload, duration, *, seed, after, tick=None, rule=None, choose=None, in_order=False
):
    """Requests event by event: mean cost rate, mean and variance of workloads in time, and sojourn times at the backends.

    `rate(j, n)`: the total service rate. `rule(seen, routing)`: the routing that frontends choose every `tick` seconds from the
    workloads that they see, `(frontends, backends)`; by default it stays. `choose(i, own, seen, rng)`: where a request of frontend i goes,
    by the workloads that it sees and its own requests, which count from dispatch until the answer is back.
    """
    rng = np.random.default_rng(seed)
    demand, latency = np.asarray(network.arrival_rate, float), np.asarray(network.latency, float)
    feedback, cost = np.asarray(network.feedback_latency, float), np.asarray(network.cost_latency, float)
    x, n = np.array(routing, float), np.floor(np.asarray(workload) + rng.random(len(workload))).astype(int)
    owners = demand[:, None] * x / np.maximum(demand @ x, 1e-300)
    of = np.random.default_rng(seed + 1_000_000).choice
    present = [[(-np.inf, of(demand.size, p=owners[:, j])) for _ in range(count)] for j, count in enumerate(n)]
    own = np.zeros(x.shape, int)
    for j, there in enumerate(present):
        np.add.at(own[:, j], [i for _, i in there], 1)
    back, own_time = [], np.zeros(x.shape)
    history = [[(-np.inf, int(count))] for count in n]  # (since when, count), for what is seen later
    wires, t, sums = [], 0.0, np.zeros((3, n.size))
    network_cost, sent, sojourns = 0.0, 0, [[] for _ in n]
    for i, total in enumerate(demand):  # what is on the wires at the start
        for j in range(n.size):
            for age in rng.uniform(0, latency[i, j], rng.poisson(total * x[i, j] * latency[i, j])):
                heapq.heappush(wires, (latency[i, j] - age, j, i))
                own[i, j] += 1
    ticks = np.inf if tick is None else 0.0
    while t < duration:
        rates = np.array([rate(j, int(n[j])) for j in range(n.size)])
        total = demand.sum() + rates.sum()
        ahead = t + rng.exponential(1 / total)
        at = min(ahead, wires[0][0] if wires else np.inf, back[0][0] if back else np.inf, ticks, duration)
        if at > after:
            own_time += (at - max(t, after)) * own
            sums += (at - max(t, after)) * np.array([np.ones(n.size), n, n.astype(float) ** 2])
        t = at
        if t >= duration:
            break
        if wires and at == wires[0][0]:
            _, j, i = heapq.heappop(wires)
            n[j] += 1
            present[j].append((t, i))
            history[j].append((t, int(n[j])))
        elif back and at == back[0][0]:
            _, j, i = heapq.heappop(back)
            own[i, j] -= 1
        elif at == ticks:
            ticks += tick
            seen = np.array([[_at(history[j], t - feedback[i, j]) for j in range(n.size)] for i in range(demand.size)])
            x = rule(seen, x)
        else:
            u = rng.random() * total
            if u < demand.sum():
                i = min(int(np.searchsorted(np.cumsum(demand), u)), demand.size - 1)
                if choose is None:
                    j = rng.choice(n.size, p=x[i])
                else:
                    j = choose(i, own[i], np.array([_at(history[j], t - feedback[i, j]) for j in range(n.size)]), rng)
                own[i, j] += 1
                heapq.heappush(wires, (t + latency[i, j], j, i))
                if t > after:
                    network_cost, sent = network_cost + cost[i, j], sent + 1
            else:
                j = min(int(np.searchsorted(np.cumsum(rates), u - demand.sum())), n.size - 1)
                leaver = 0 if in_order else rng.integers(n[j])
                since, i = present[j].pop(leaver)
                if choose is not None:
                    heapq.heappush(back, (t + feedback[i, j], j, i))
                if since > after:
                    sojourns[j].append(t - since)
                n[j] -= 1
                history[j].append((t, int(n[j])))
    time, mean = sums[0, 0], sums[1] / sums[0]
    return {
        "mean_latency": (sums[1].sum() + network_cost) / sent,
        "mean": mean,
        "variance": sums[2] / sums[0] - mean**2,
        "own": own_time / time,
        "sojourns": sojourns,
        "time": time,
    }


def _at(history, t):
    """The count at a time, searched from the end; older entries are dropped."""
    k = len(history) - 1
    while k > 0 and history[k][0] > t:
        k -= 1
    if k > 1000:
        del history[: k - 1]
        k = 1
    return history[k][1]


def gradient_rule(step_size: float, tick: float, marginal, cost):
    """DGD-LB every `tick` seconds: a projected step along the marginal latencies as seen."""

    def rule(seen, routing):
        price = marginal(seen) + cost
        return np.array([project_simplex(x - tick * step_size * p) for x, p in zip(routing, price, strict=True)])

    return rule
