"""Kubernetes' autoscaler as a slow and obvious reference: one backend, lists of everything that has ever been recommended and commanded."""

import math


def within_period(events, now, seconds):
    """Events (time, value) less than so many seconds ago."""
    return [value for time, value in events if now - time < seconds - 1e-9]


class Kubernetes:
    """The rule as its documentation tells it, at the defaults: sync period 15 s, tolerance 0.1, 300 s down, 4 pods or 100 % per 15 s up."""

    def __init__(self, target, pods, least=1, most=math.inf):
        self.target, self.least, self.most = target, least, most
        self.recommended = [(-15.0, pods)]  # as always before
        self.changes = []

    def decide(self, now, metric, ready, commanded):
        """The next command, from the mean metric of ready pods."""
        ratio = metric / self.target
        counted = max(ready, commanded) if ratio > 1 else ready  # pods to come count as idle
        over = metric * ready / counted / self.target
        desired = math.ceil(metric * ready / self.target - 1e-6)
        if abs(over - 1) <= 0.1 or (ratio > 1 > over):
            desired = commanded
        self.recommended.append((now, desired))
        low, high = desired, max(within_period(self.recommended, now, 300.0))
        stable = low if commanded < low else min(commanded, high)
        begun = commanded - sum(within_period(self.changes, now, 15.0))
        chosen = min(stable, max(begun + 4, math.ceil(2 * begun - 1e-6), commanded))
        chosen = min(max(chosen, self.least), self.most)
        self.changes.append((now, chosen - commanded))
        return chosen


def run(rule, pods, inflow, workload, serve, metric, startup, dt, steps, interval=15.0):
    """Ready pods, commanded pods and the workload at every grid point, as lists: Heun's method, totals averaged over an interval."""
    commands, used, sampled, ready = [(-math.inf, pods)], 0.0, 0.0, pods
    found = []
    for k in range(steps + 1):
        now = k * dt
        found.append((ready, commands[-1][1], workload))
        if k % round(interval / dt) == 0:
            mean = used / sampled / ready if sampled else metric(workload, ready)
            commands.append((now, rule.decide(now, mean, ready, commands[-1][1])))
            used = sampled = 0.0
        # In force at some time within the start-up delay: not replaced before it began.
        ends = [time for time, _ in commands[1:]] + [math.inf]
        ready = min(count for (_, count), end in zip(commands, ends, strict=True) if end > now - startup + 1e-9)
        first = serve(workload, ready)
        after = workload + dt / 2 * (2 * inflow - first - serve(workload + dt * (inflow - first), ready))
        used += dt / 2 * ready * (metric(workload, ready) + metric(after, ready))
        sampled += dt
        workload = after
    return found
