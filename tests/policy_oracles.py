"""What one frontend does under every policy, as slow and obvious references: enumeration, plain loops, no JAX.

`seen` is what a frontend sees: workload, rate, slope, mask, nominal_capacity, cost_latency, outstanding, arrival_rate, dt. Three lists by
the name of the policy: `INSTANT` rules without memory, `MEMORY` makes a rule with memory for one frontend, `FLOWS` are velocities, and
`FLOWS_WITH_MEMORY` makes a velocity with memory for one frontend.
"""

from itertools import product

import numpy as np


def _to_least(score, mask):
    least = min(s for s, m in zip(score, mask, strict=True) if m)
    best = [j for j in range(len(mask)) if mask[j] and score[j] == least]
    return np.array([1 / len(best) if j in best else 0.0 for j in range(len(mask))])


def _shares(weight, mask):
    weight = np.where(mask, weight, 0)
    return weight / weight.sum()


def _best_of_draws(score, mask, draws):
    """Every sequence of draws is equally likely; the best drawn wins, equals share."""
    share = np.zeros(len(mask))
    for drawn in draws:
        share += _to_least([score[j] if j in drawn else np.inf for j in range(len(mask))], mask)
    return share / len(draws)


def _with_replacement(mask, count):
    return list(product(np.flatnonzero(mask), repeat=int(count)))


def _different_pairs(mask):
    there = np.flatnonzero(mask)
    return [(a, b) for a in there for b in there if a != b] or [(there[0],)]


def _time_in_service(seen):
    return np.array([N / r if N > 0 else 1 / s for N, r, s in zip(seen.workload, seen.rate, seen.slope, strict=True)])


def _latency_as_seen(seen):
    return seen.cost_latency + _time_in_service(seen)


def _own(parameter, i):
    values = np.asarray(parameter)
    return values if values.ndim == 0 else values[i]


def _hot_cold(policy, i, seen):
    quantile, queues = _own(policy.quantile, i), seen.workload[seen.mask]
    for limit in sorted(queues):
        if np.mean(queues <= limit) >= quantile:
            break
    cold = [j for j in range(len(seen.mask)) if seen.mask[j] and seen.workload[j] <= limit]
    latency, probes = _latency_as_seen(seen), _own(policy.probes, i)
    if np.isinf(probes):
        return _to_least([latency[j] if j in cold else np.inf for j in range(len(seen.mask))], seen.mask)
    hot_last = [latency[j] if j in cold else 1e6 + seen.workload[j] for j in range(len(seen.mask))]
    return _best_of_draws(hot_last, seen.mask, _with_replacement(seen.mask, probes))


INSTANT = {
    "Uniform": lambda policy, i, seen: _shares(np.ones(seen.mask.size), seen.mask),
    "ProportionalToCapacity": lambda policy, i, seen: _shares(seen.nominal_capacity, seen.mask),
    "Nearest": lambda policy, i, seen: _to_least(seen.cost_latency, seen.mask),
    "LeastWorkload": lambda policy, i, seen: _to_least(seen.workload, seen.mask),
    "ShortestExpectedDelay": lambda policy, i, seen: _to_least((seen.workload + 1) / seen.nominal_capacity, seen.mask),
    "PowerOfChoices": lambda policy, i, seen: _best_of_draws(
        seen.workload, seen.mask, _with_replacement(seen.mask, _own(policy.choices, i))
    ),
    "LeastLatency": lambda policy, i, seen: _to_least(_latency_as_seen(seen), seen.mask),
    "HotCold": _hot_cold,
    "GreatestMarginalRate": lambda policy, i, seen: _to_least(-seen.slope, seen.mask),
    "LeastMarginalLatency": lambda policy, i, seen: _to_least(1 / seen.slope + seen.cost_latency, seen.mask),
    "FixedRouting": lambda policy, i, seen: np.asarray(policy.routing)[i],
    "LeastRequest": lambda policy, i, seen: _best_of_draws(
        seen.outstanding, seen.mask, _with_replacement(seen.mask, _own(policy.choices, i))
    ),
    "WeightedLeastRequest": lambda policy, i, seen: _shares(
        seen.nominal_capacity / (1 + seen.outstanding) ** _own(policy.bias, i), seen.mask
    ),
}


def _failover(policy, i, seen):
    """Everything is healthy: all to the level that is nearest."""
    return _shares(np.where(_to_least(seen.cost_latency, seen.mask) > 0, seen.nominal_capacity, 0), seen.mask)


def _scorer(policy, i, seen):
    headroom = _own(policy.slo, i) - _latency_as_seen(seen)
    scored = [j for j in range(len(seen.mask)) if seen.mask[j]]
    if any(headroom[j] >= 0 for j in scored):
        scored = [j for j in scored if headroom[j] >= 0]
    wanted = {j: -abs(headroom[j]) for j in scored}
    low, high = min(wanted.values()), max(wanted.values())
    score = np.zeros(len(seen.mask))
    for j in scored:
        score[j] = 1.0 if high == low else (wanted[j] - low) / (high - low)
    return score / score.sum()


INSTANT |= {
    "LocalityFailover": _failover,
    "LatencyScorer": _scorer,
    "DnsLatency": lambda policy, i, seen: _to_least(seen.cost_latency, seen.mask),
}


class _Held:
    """Reads every period, averages, and holds what it decided; the first report counts as it is."""

    def __init__(self, policy, i, seen):
        self.policy, self.i, self.waited, self.t = policy, i, 0.0, 0.0
        self.report = self.read(seen)
        self.routing = self.decide(seen)

    def route(self, seen):
        self.t += seen.dt
        self.waited += seen.dt
        period = float(_own(self.policy.period, self.i))
        if self.waited >= period - seen.dt / 2:
            self.waited -= period
            self.report = self.averaged(self.read(seen), period)
            self.routing = self.decide(seen)
        return self.routing

    def hosts(self, seen):
        return np.where(seen.mask, seen.nominal_capacity / _own(self.policy.host_capacity, self.i), 0)


class _Envoy(_Held):
    """Headroom of throughput over capacity, nearest first."""

    def read(self, seen):
        return seen.rate / seen.nominal_capacity

    def averaged(self, new, period):
        alpha = 1 - np.exp(-period / _own(self.policy.smoothing_time_constant, self.i))
        return alpha * new + (1 - alpha) * self.report

    def decide(self, seen):
        hosts, used = self.hosts(seen), self.report
        weight = hosts * np.maximum(0, 1 - used)
        near = int(np.argmin(np.where(seen.mask, seen.cost_latency, np.inf)))
        remotes = [j for j in range(len(hosts)) if j != near and seen.mask[j]]
        elsewhere = sum(hosts[j] * used[j] for j in remotes) / sum(hosts[j] for j in remotes) if remotes else 0.0
        if weight[near] > 0 and used[near] <= elsewhere + _own(self.policy.utilization_variance_threshold, self.i):
            weight = np.where(np.arange(len(hosts)) == near, 1.0, 0.0)
        wanted = weight.sum() * _own(self.policy.remote_probe_fraction, self.i)
        missing = min(max(wanted - sum(weight[j] for j in remotes), 0), weight[near])
        for j in remotes:
            weight[j] += missing * hosts[j] / sum(hosts[k] for k in remotes)
        if remotes:
            weight[near] -= missing
        return _shares(weight if weight.sum() > 0 else hosts, seen.mask)


class _Orca(_Held):
    """Requests/s of a host over its part of slots in use."""

    def read(self, seen):
        hosts = seen.nominal_capacity / _own(self.policy.host_capacity, self.i)
        used = seen.workload / (hosts * _own(self.policy.max_concurrency, self.i))
        return np.array([r / h / u if r > 0 and u > 0 else 0.0 for r, h, u in zip(seen.rate, hosts, used, strict=True)])

    def averaged(self, new, period):
        return new

    def decide(self, seen):
        hosts, blackout = self.hosts(seen), _own(self.policy.blackout_period, self.i)
        usable = [j for j in np.flatnonzero(seen.mask) if self.report[j] > 0 and self.t >= blackout - 1e-12]
        if not usable:
            return _shares(hosts, seen.mask)
        mean = sum(hosts[j] * self.report[j] for j in usable) / sum(hosts[j] for j in usable)
        return _shares(hosts * [self.report[j] if j in usable else mean for j in range(len(hosts))], seen.mask)


class _KvCache(_Held):
    """The part of slots that is free."""

    def read(self, seen):
        hosts = seen.nominal_capacity / _own(self.policy.host_capacity, self.i)
        return seen.workload / (hosts * _own(self.policy.max_concurrency, self.i))

    def averaged(self, new, period):
        return new

    def decide(self, seen):
        return _shares(np.maximum(0, 1 - self.report), seen.mask)


class _LatencyObservation:
    """A list of parts of the window for each backend, newest first, of (answers, own requests, latency); probes by enumeration."""

    PARTS = 16

    def __init__(self, policy, i, seen):
        self.policy, self.i, self.waited = policy, i, 0.0
        self.most, self.oldest = _own(policy.max_requests, i), _own(policy.max_observation_age, i)
        self.answered = [list(pair) for pair in zip(seen.outstanding, _latency_as_seen(seen), strict=True)]
        self.window = [
            [(min(self.most, self.oldest * o / latency) / self.PARTS, o, latency)] * self.PARTS
            for o, latency in self.answered
        ]
        self.newest, self.age = [[] for _ in self.window], [0.0] * len(self.window)
        self.publish()

    def publish(self):
        self.known = []
        for newest, age, window in zip(self.newest, self.age, self.window, strict=True):
            filled = self.PARTS * max(sum(n for n, *_ in newest) / self.most, age / self.oldest)
            parts = [
                _mean_of(newest),
                *window[:-1],
                (window[-1][0] * (1 - min(filled, 1)), *window[-1][1:]),
            ]
            typical = _mean_of(parts)
            low = _mean_of([part for part in parts if part[0] > 0 and part[2] < typical[2]])
            self.known.append((typical, low if low[0] > 0 else typical))

    def route(self, seen):
        for j, (o, latency) in enumerate(zip(seen.outstanding, _latency_as_seen(seen), strict=True)):
            self.answered[j] = [
                old + (1 - np.exp(-seen.dt / latency)) * (new - old)
                for old, new in zip(self.answered[j], (o, latency), strict=True)
            ]
            self.newest[j].append((seen.dt * o / latency, *self.answered[j]))
            self.age[j] += seen.dt
            number = sum(n for n, *_ in self.newest[j])
            if number >= self.most / self.PARTS or self.age[j] >= self.oldest / self.PARTS:
                self.window[j] = [_mean_of(self.newest[j]), *self.window[j][:-1]]
                self.newest[j], self.age[j] = [], 0.0
        self.waited += seen.dt
        interval = _own(self.policy.interval_duration, self.i)
        if self.waited >= interval - seen.dt / 2:
            self.waited -= interval
            self.publish()
        return self.choose(seen)

    def choose(self, seen):
        floor = seen.cost_latency + _own(self.policy.floor_latency, self.i)
        there, trusted, predicted = np.flatnonzero(seen.mask), [], {}
        for j in there:
            typical, low = self.known[j]
            points = [(0.0, floor[j]), (low[1], low[2]), (typical[1], typical[2])]
            if not (
                low[1] > 0
                and low[2] > floor[j]
                and typical[2] > low[2]
                and typical[1] - low[1] >= _own(self.policy.min_inflight_gap, self.i)
            ):
                del points[1]
            predicted[j] = floor[j]
            if typical[0] >= _own(self.policy.min_requests, self.i) and typical[1] > 0 and typical[2] > floor[j]:
                trusted.append(j)
                (a, b) = points[-2:] if seen.outstanding[j] >= points[-2][0] else points[:2]
                slope = (b[1] - a[1]) / (b[0] - a[0])
                predicted[j] = max(floor[j], a[1] + slope * (seen.outstanding[j] - a[0]))
        best = min(trusted or there, key=predicted.get)
        unknown = [j for j in there if j not in trusted and j != best]
        share, rate = np.zeros(len(seen.mask)), _own(self.policy.exploration_rate, self.i)
        for drawn in product((False, True), repeat=len(unknown)):
            chosen = [j for j, heads in zip(unknown, drawn, strict=True) if heads]
            if not chosen or predicted[best] <= min(predicted.values()):
                chosen = [best, *chosen]
            chance = np.prod([rate if heads else 1 - rate for heads in drawn])
            share[chosen] += chance / len(chosen)
        return share


def _mean_of(parts):
    """(answers, mean own requests, mean latency)"""
    number = sum(n for n, *_ in parts)
    return (number, *(sum(n * part[k] for n, *part in parts) / number if number > 0 else 0.0 for k in (0, 1)))


class _PeakEWMA:
    """An average that jumps to every peak, times the own requests and one more."""

    def __init__(self, policy, i, seen):
        self.policy, self.i, self.average = policy, i, _latency_as_seen(seen)

    def route(self, seen):
        latency = _latency_as_seen(seen)
        weight = np.exp(-seen.dt / _own(self.policy.decay, self.i))
        decayed = weight * self.average + (1 - weight) * latency
        self.average = np.where(latency > self.average, latency, decayed)
        return _best_of_draws(self.average * (seen.outstanding + 1), seen.mask, _different_pairs(seen.mask))


MEMORY = {
    "PeakEWMA": _PeakEWMA,
    "EnvoyLoadAwareLocality": _Envoy,
    "OrcaWeights": _Orca,
    "KvCacheScorer": _KvCache,
    "LatencyObservationScorer": _LatencyObservation,
}
COUNTING = {"LeastRequest", "WeightedLeastRequest", "PeakEWMA", "LatencyObservationScorer"}
"""Rules that look at their own requests."""


def gradient_velocity(policy, i, seen, x=None):
    """DGD-LB: minus the step size times (1 / slope + network latency)."""
    return -_own(policy.step_size, i) * (1 / seen.slope + seen.cost_latency)


def _mirror(policy, i, seen, x):
    gradient = 1 / seen.slope + seen.cost_latency
    mean = sum(x[j] * gradient[j] for j in range(len(x)))
    moving = np.maximum(x, _own(policy.floor, i))
    return -_own(policy.step_size, i) * moving * (gradient - mean)


def _softmin(policy, i, seen, x):
    gradient = 1 / seen.slope + seen.cost_latency
    return _own(policy.rate, i) * (_shares(np.exp(-gradient / _own(policy.temperature, i)), seen.mask) - x)


def _gradient_and_least(seen):
    gradient = 1 / seen.slope + seen.cost_latency
    return gradient, min(g for g, m in zip(gradient, seen.mask, strict=True) if m)


def _log(policy, i, seen, x):
    gradient, least = _gradient_and_least(seen)
    return -_own(policy.step_size, i) * least * np.log(gradient)


def _reciprocal(policy, i, seen, x):
    gradient, least = _gradient_and_least(seen)
    return -_own(policy.step_size, i) * least * (1 - least / gradient)


def _curvature(policy, i, seen, x):
    mean = sum(x[j] / seen.slope[j] for j in range(len(x)) if seen.mask[j])
    return (_own(policy.reference, i) / mean) ** 2 * gradient_velocity(policy, i, seen)


def _capped(policy, i, seen, x):
    gradient, least = _gradient_and_least(seen)
    velocity = gradient_velocity(policy, i, seen)
    moving = [j for j in range(len(x)) if seen.mask[j] and (x[j] > 0 or gradient[j] <= least)]
    length = np.linalg.norm(velocity[moving] - velocity[moving].mean())
    return velocity * min(1.0, _own(policy.speed, i) / max(length, 1e-300))


FLOWS = {
    "DGDLB": gradient_velocity,
    "MirrorDescent": _mirror,
    "Softmin": _softmin,
    "LogDGDLB": _log,
    "ReciprocalDGDLB": _reciprocal,
    "CurvatureDGDLB": _curvature,
    "CappedDGDLB": _capped,
}


class _Sampled:
    """Waits for the interval to be over, then makes all of its move within one step."""

    def __init__(self, policy, i, seen):
        self.policy, self.i, self.waited = policy, i, 0.0

    def velocity(self, seen, x):
        interval = max(float(_own(self.policy.interval, self.i)), seen.dt)
        self.waited += seen.dt
        if self.waited < float(_own(self.policy.interval, self.i)) - seen.dt / 2:
            return np.zeros(len(x))
        self.waited -= interval
        return gradient_velocity(self.policy, self.i, seen) * interval / seen.dt


class _Lead:
    """The logarithm of the marginal latency, extrapolated by how far it is from what follows it."""

    def __init__(self, policy, i, seen):
        self.step_size, lead = _own(policy.policy.step_size, i), policy.estimates[0]
        self.trip, self.lag, self.largest, self.oldest = (
            _own(each, i) for each in (lead.round_trip, lead.lag, lead.largest, lead.oldest)
        )
        self.follower = np.log(_gradient_and_least(seen)[0])

    def velocity(self, seen, x):
        now, ahead = np.log(_gradient_and_least(seen)[0]), np.zeros(len(x))
        for j, trip in enumerate(np.maximum(self.trip, 1e-9)):  # what is this close is not extrapolated to any digit
            rate, time = seen.slope[j], self.lag * trip
            behind = now[j] + (self.follower[j] - now[j]) * np.exp(-seen.dt / time / 2)  # memory is half a step ahead
            self.follower[j] = now[j] + (self.follower[j] - now[j]) * np.exp(-seen.dt / time)
            ratio = ((1 + rate * time) * np.exp(rate * trip) - 1) / (rate * time)
            ratio = min(ratio, self.largest) if rate * trip <= self.oldest else 1
            marginal = np.exp(now[j] + (ratio - 1) * (now[j] - behind)) - seen.cost_latency[j]
            ahead[j] = max(marginal, 1e-3 / rate) + seen.cost_latency[j]
        return -self.step_size * min(ahead[seen.mask]) * np.log(ahead)


FLOWS_WITH_MEMORY = {"SampledDGDLB": _Sampled, "LeadDGDLB": _Lead}
