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


MEMORY = {"PeakEWMA": _PeakEWMA}
COUNTING = {"LeastRequest", "WeightedLeastRequest", "PeakEWMA"}
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

    def __init__(self, policy, i):
        self.policy, self.i, self.waited = policy, i, 0.0

    def velocity(self, seen, x):
        interval = max(float(_own(self.policy.interval, self.i)), seen.dt)
        self.waited += seen.dt
        if self.waited < float(_own(self.policy.interval, self.i)) - seen.dt / 2:
            return np.zeros(len(x))
        self.waited -= interval
        return gradient_velocity(self.policy, self.i, seen) * interval / seen.dt


FLOWS_WITH_MEMORY = {"SampledDGDLB": _Sampled}
