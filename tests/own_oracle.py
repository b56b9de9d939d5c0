"""A frontend's own requests as a slow and obvious reference: what is on the wires, at the backends and on the way back, from lists of
everything that has ever been sent and answered."""

import numpy as np


class OwnRequests:
    """All arrays are over arcs. `rate` is the rate per request at the start, one number for each backend."""

    def __init__(self, latency, feedback, mask, dt, workload, flow, rate):
        self.latency, self.feedback, self.dt = latency, feedback, dt
        self.inflow = self.first_flow = flow
        total = flow.sum(0)
        even = mask / np.maximum(mask.sum(0), 1)
        share = np.array(
            [
                [flow[i, j] / total[j] if total[j] > 0 else even[i, j] for j in range(len(total))]
                for i in range(len(flow))
            ]
        )
        self.in_service = share * workload
        self.first_left = rate * self.in_service
        self.sent, self.arrived, self.left = [], [], []

    def leave(self, rate, rate_ahead):
        """Of the step that begins now: what leaves the backends, a mean."""
        leaves = rate * self.in_service
        ahead = self.in_service + self.dt * (self.inflow - leaves)
        self.left.append((leaves + rate_ahead * ahead) / 2)

    def expected(self, flow):
        """At the end of the step, as far as is known at its start; what it sends is not."""
        k = len(self.sent)
        returned = (self.answered_by(k + 1) - self.answered_by(k)) / self.dt
        return self.now() + self.dt * (flow - returned)

    def go_on(self, sent, arrived, inflow):
        """The step is over: the means of what was sent and what arrived in it, and what arrives now."""
        self.in_service = self.in_service + self.dt * (arrived - self.left[-1])
        self.sent.append(sent)
        self.arrived.append(arrived)
        self.inflow = inflow

    def now(self):
        """Those on the wires, at the backends, on the way back."""
        k = len(self.sent)
        wires = self.first_flow * self.latency + self.dt * (sum(self.sent) - sum(self.arrived))
        on_the_way_back = self.dt * sum(self.left[:k]) - self.answered_by(k)
        return wires + self.in_service + on_the_way_back

    def answered_by(self, k):
        """Answers that frontends have got between the start and step k, and those who were under way at the start as less than none."""
        lag = np.floor(self.feedback / self.dt).astype(int)
        part = self.feedback / self.dt - lag
        total = np.zeros(lag.shape)
        for i, j in np.ndindex(*lag.shape):
            for weight, until in ((1 - part[i, j], k - lag[i, j]), (part[i, j], k - lag[i, j] - 1)):
                all_left = (
                    sum(left[i, j] for left in self.left[: max(until, 0)]) + min(until, 0) * self.first_left[i, j]
                )
                total[i, j] += weight * self.dt * all_left
        return total
