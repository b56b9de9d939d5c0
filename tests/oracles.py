"""Slow, obvious, independent references in NumPy: loops over frontends, backends and steps, full histories, no JAX.

Nothing here uses the package; networks, curves and policies are only asked for their plain parameters.
"""

from copy import copy
from itertools import combinations, pairwise
from types import SimpleNamespace

import numpy as np

from own_oracle import OwnRequests
from policy_oracles import COUNTING, FLOWS, FLOWS_WITH_MEMORY, INSTANT, MEMORY
from policy_oracles import gradient_velocity as gradient_velocity

# --- projections ------------------------------------------------------------------------------------------------------


def project_simplex(values, mask=None):
    """Nearest point of the simplex to one vector: sort, find how many entries stay, cut."""
    values = np.asarray(values, float)
    mask = np.ones(values.shape, bool) if mask is None else np.asarray(mask, bool)
    if not mask.any():
        return np.zeros(values.shape)
    shifted = values[mask] - values[mask].max()  # the projection does not see a common shift; huge entries lose nothing
    ordered = np.sort(shifted)[::-1]
    cuts = (np.cumsum(ordered) - 1) / np.arange(1, ordered.size + 1)
    cut = cuts[np.flatnonzero(ordered > cuts)[-1]]
    point = np.zeros(values.shape)
    point[mask] = np.maximum(shifted - cut, 0)
    return point


def project_tangent_cone(velocity, point, mask=None):
    """Nearest feasible direction at a point of the simplex: try every set of boundary entries that stay put."""
    velocity, point = np.asarray(velocity, float), np.asarray(point, float)
    mask = np.ones(velocity.shape, bool) if mask is None else np.asarray(mask, bool)
    boundary = [j for j in range(velocity.size) if mask[j] and point[j] == 0]
    best, distance = np.zeros(velocity.shape), np.inf
    for count in range(len(boundary) + 1):
        for fixed in combinations(boundary, count):
            free = np.array([mask[j] and j not in fixed for j in range(velocity.size)])
            if not free.any():
                continue
            direction = np.where(free, velocity - velocity[free].mean(), 0)
            feasible = all(direction[j] >= 0 for j in boundary)
            if feasible and np.sum((direction - velocity)[mask] ** 2) < distance:
                best, distance = direction, np.sum((direction - velocity)[mask] ** 2)
    return best


# --- service curves: rate and slope by the name of the curve ----------------------------------------------------------


def _hyperbolic(c, N):
    return c.max_rate * N / (c.half_load + N), c.max_rate * c.half_load / (c.half_load + N) ** 2


def _exponential(c, N):
    return c.max_rate * (1 - np.exp(-N / c.scale)), c.max_rate / c.scale * np.exp(-N / c.scale)


def _power(c, N):
    grown = 1 + N / c.scale
    return c.unit_rate * (grown**c.exponent - 1), c.unit_rate * c.exponent / c.scale * grown ** (c.exponent - 1)


def _logarithmic(c, N):
    return c.unit_rate * np.log(1 + N / c.scale), c.unit_rate / (c.scale + N)


def _many_server(c, N):
    bend = 1 + (N / c.servers) ** c.sharpness
    return N / c.service_time * bend ** (-1 / c.sharpness), bend ** (-1 / c.sharpness - 1) / c.service_time


def _tabulated(c, N):
    return (
        sum(w * (1 - np.exp(-N / s)) for w, s in zip(c.weights, c.scales, strict=True)),
        sum(w / s * np.exp(-N / s) for w, s in zip(c.weights, c.scales, strict=True)),
    )


def _replicas(c, N):
    rate, slope = service(c.curve, N / c.count)
    return c.count * rate, slope


def _per_backend(c, N):
    both = [service(curve, N) for curve in c.curves]
    rate = np.array([both[k][0][j] for j, k in enumerate(c.index)])
    slope = np.array([both[k][1][j] for j, k in enumerate(c.index)])
    return rate, slope


def service(curve, workload):
    """(service rate, its slope) at a workload `(backends,)`."""
    formulas = {
        "Hyperbolic": _hyperbolic,
        "Exponential": _exponential,
        "Power": _power,
        "Logarithmic": _logarithmic,
        "ManyServer": _many_server,
        "Tabulated": _tabulated,
        "Replicas": _replicas,
        "PerBackend": _per_backend,
    }
    return formulas[type(curve).__name__](_plain(curve), np.asarray(workload, float))


def _plain(curve):
    """The curve's fields as NumPy arrays; nested curves stay what they are."""
    fields = {name: getattr(curve, name) for name in curve.__dataclass_fields__}
    nested = ("curve", "curves")
    return SimpleNamespace(**{name: value if name in nested else np.asarray(value) for name, value in fields.items()})


def workload_serving(curve, rate, backend, backends):
    """Workload of one backend that serves a rate, by bisection."""

    def served(N):
        return float(service(curve, np.full(backends, N))[0][backend])

    low, high = 0.0, 1.0
    while served(high) < rate:
        high *= 2
        if high > 1e12:
            return np.inf
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if served(middle) < rate else (low, middle)
    return (low + high) / 2


# --- the simulator ----------------------------------------------------------------------------------------------------


class Steps:
    """Rates that jump, all columns at the same times: a plain function of time that also knows means and where its jumps are."""

    def __init__(self, times, rates):
        self.times, self.rates = list(times), np.asarray(rates, float)

    def __call__(self, t):
        return self.rates[sum(t >= jump for jump in self.times)]

    def mean(self, start, length):
        """Piece by piece between the jumps."""
        cuts = [start, *(jump for jump in self.times if start < jump < start + length), start + length]
        return sum((b - a) * self((a + b) / 2) for a, b in pairwise(cuts)) / length if length > 0 else self(start)

    def part_before(self, start, length):
        """What part of the time lies before its one jump, at the ends as well; None without any."""
        for jump in self.times:
            if -1e-12 <= jump - start <= length + 1e-12:
                return np.clip((jump - start) / length, 0, 1)
        return None


def simulate(network, policy, steps, dt, initial, arrival_rate=None, capacity=None):
    """The discrete scheme of the engine, word by word, with lists that remember everything.

    `arrival_rate(t)` and `capacity(t)` are plain functions of time, or `Steps`; without them the network's mean rates and 1.
    `initial` is (routing, workload). Returns arrays over `steps + 1` instants.
    """
    F, B = np.asarray(network.mask).shape
    mask, forward, feedback, cost = (
        np.asarray(value) for value in (network.mask, network.latency, network.feedback_latency, network.cost_latency)
    )
    nominal = np.asarray(network.nominal_capacity)
    curve, kind = network.service, type(policy).__name__
    mean = np.asarray(network.arrival_rate)
    demand = arrival_rate or (lambda t: mean)
    factor = capacity or (lambda t: np.ones(B))

    lag_fb = np.floor(feedback / dt).astype(int)
    frac_fb = feedback / dt - lag_fb
    x = [np.array(initial[0], float)]
    N = [np.array(initial[1], float)]
    f = [demand(0.0)[:, None] * x[0]]

    def past(history, k, start):
        return history[k] if k >= 0 else start

    def seen_by(i, k, raw, before, outstanding):
        """What frontend i sees at step k; `raw` was read now, `before` one step ago."""
        workload = raw[i] + frac_fb[i] * (before[i] - raw[i])
        rate, slope = np.empty(B), np.empty(B)
        for j in range(B):
            every_rate, every_slope = service(curve, np.full(B, workload[j]))
            then = 1.0 if capacity is None else factor(max(k * dt - feedback[i, j], 0.0))[j]
            rate[j], slope[j] = then * every_rate[j], then * every_slope[j]
        return SimpleNamespace(
            workload=workload,
            rate=rate,
            slope=slope,
            mask=mask[i],
            nominal_capacity=nominal,
            cost_latency=cost[i],
            outstanding=outstanding[i],
            arrival_rate=demand(k * dt)[i],
            dt=dt,
        )

    def per_request(workload):
        rate, slope = service(curve, workload)
        return np.array([r / n if n > 0 else s for r, n, s in zip(rate, workload, slope, strict=True)])

    raw = np.tile(N[0], (F, 1))
    own, outstanding = None, np.full((F, B), np.nan)
    if kind in COUNTING:
        own = OwnRequests(forward, feedback, mask, dt, N[0], f[0], factor(0.0) * per_request(N[0]))
        outstanding = own.now()
    at_start = [seen_by(i, 0, raw, raw, outstanding) for i in range(F)]
    minds = [MEMORY[kind](policy, i, at_start[i]) if kind in MEMORY else None for i in range(F)]
    velocities = [
        FLOWS_WITH_MEMORY[kind](policy, i, at_start[i]) if kind in FLOWS_WITH_MEMORY else None for i in range(F)
    ]

    def velocity(i, seen, routing, mind):
        return FLOWS[kind](policy, i, seen, routing) if mind is None else mind.velocity(seen, routing)

    v = [None]
    if kind in FLOWS or kind in FLOWS_WITH_MEMORY:
        v = [np.array([velocity(i, at_start[i], x[0][i], copy(velocities[i])) for i in range(F)])]
    counts, sent = isinstance(demand, Steps), [0.0]
    inflow, done = [delivered(f, forward, dt, 0)], [0.0]
    for k in range(steps):
        now, then = k * dt, (k + 1) * dt
        factors = [factor.mean(now, dt)] * 2 if isinstance(factor, Steps) else [factor(now), factor(then)]
        rate_now = factors[0] * service(curve, N[k])[0]
        predicted = N[k] + dt * (inflow[k] - rate_now)
        if own is not None:
            own.leave(factors[0] * per_request(N[k]), factors[1] * per_request(predicted))
            outstanding = own.expected(f[k])
        before, raw = raw, np.empty((F, B))
        for i in range(F):
            for j in range(B):
                at = k + 1 - lag_fb[i, j]
                raw[i, j] = predicted[j] if at == k + 1 else past(N, at, N[0])[j]
        x_new, v_new = np.zeros((F, B)), np.zeros((F, B))
        for i in range(F):
            seen = seen_by(i, k + 1, raw, before, outstanding)
            if kind in INSTANT:
                x_new[i] = INSTANT[kind](policy, i, seen)
            elif kind in MEMORY:
                x_new[i] = minds[i].route(seen)
            else:
                expected = project_simplex(x[k][i] + dt * v[k][i], mask[i])
                v_new[i] = velocity(i, seen, expected, velocities[i])
                old = weights_of_start(demand, factor, mask[i], now, feedback[i], dt)
                x_new[i] = project_simplex(x[k][i] + dt * (old * v[k][i] + (1 - old) * v_new[i]), mask[i])
        x.append(x_new)
        v.append(v_new)
        f.append(demand(then)[:, None] * x_new)
        if counts:
            inflow.append(counted(demand, x, forward, dt, k))
            sent.append(sent[-1] + dt * (demand.mean(now, dt)[:, None] * (x[k] + x[k + 1]) / 2).sum())
            arriving = inflow[k + 1]
            if own is not None:
                arcs = counted(demand, x, forward, dt, k, each=True)
                own.go_on(demand.mean(now, dt)[:, None] * (x[k] + x[k + 1]) / 2, arcs, arcs)
        else:
            inflow.append(delivered(f, forward, dt, k + 1))
            sent.append(sent[-1] + dt / 2 * (f[k] + f[k + 1]).sum())
            arriving = (inflow[k] + inflow[k + 1]) / 2
            if own is not None:
                arcs = arriving_arcs(f, forward, dt, k + 1)
                own.go_on((f[k] + f[k + 1]) / 2, (own.inflow + arcs) / 2, arcs)
        rate_then = factors[1] * service(curve, predicted)[0]
        N.append(N[k] + dt * (arriving - (rate_now + rate_then) / 2))
        done.append(done[-1] + dt / 2 * (rate_now + rate_then).sum())
    x, N, f = np.array(x), np.array(N), np.array(f)
    return SimpleNamespace(
        time=np.arange(steps + 1) * dt,
        routing=x,
        workload=N,
        flow=f,
        arrival_rate=np.array([demand(k * dt) for k in range(steps + 1)]),
        cost_rate=N.sum(1) + (f * cost).sum((1, 2)),
        network_rate=(f * cost).sum((1, 2)),
        in_flight=still_out(np.array(sent), np.array(inflow), (f[0] * forward).sum(), dt)
        if counts
        else on_the_wires(f, forward, dt),
        sent=np.array(sent),
        served=np.array(done),
    )


def weights_of_start(demand, factor, mask, now, feedback, dt):
    """How much the velocity at the start of a step counts, arc by arc: half, or the part of the step before what is seen jumps."""
    part = demand.part_before(now, dt) if isinstance(demand, Steps) else None
    weight = np.full(len(mask), 0.5 if part is None else part)
    if isinstance(factor, Steps):
        seen = [factor.part_before(now - feedback[j], dt) if mask[j] else None for j in range(len(mask))]
        if any(part is not None for part in seen):
            weight[:] = np.mean([part for part in seen if part is not None])
        for j, part in enumerate(seen):
            weight[j] = weight[j] if part is None else part
    return weight


def counted(demand, routing, latency, dt, k, each=False):
    """The mean of what reaches every backend in step k, requests/s, when demand jumps: dispatched in two pieces of two steps.

    `each`: arc by arc.
    """

    def dispatched(i, j, step, begin, end):
        """Between two parts of a step, while the routing moves on a straight line from one grid point to the next."""
        x, y = (routing[max(n, 0)][i, j] for n in (step, step + 1))
        mean = demand(0.0) if step < 0 else demand.mean((step + begin) * dt, (end - begin) * dt)
        return (end - begin) * mean[i] * (x + (begin + end) / 2 * (y - x))

    inflow = np.zeros(latency.shape)
    for i in range(latency.shape[0]):
        for j in range(latency.shape[1]):
            lag = int(np.floor(latency[i, j] / dt))
            cut = 1 - (latency[i, j] / dt - lag)
            # The second piece of a step is all of it less the first: the routing bends nothing at the cut.
            earlier = dispatched(i, j, k - lag - 1, 0, 1) - dispatched(i, j, k - lag - 1, 0, cut)
            inflow[i, j] = earlier + dispatched(i, j, k - lag, 0, cut)
    return inflow if each else inflow.sum(0)


def still_out(sent, inflow, at_start, dt):
    """Requests on the forward wires from what was sent and the means of what arrived in every step."""
    return at_start + sent - np.concatenate([[0], np.cumsum(dt * inflow[1:].sum(1))])


def on_the_wires(flow, latency, dt):
    """Requests on the forward wires at every instant: what was sent less what has come out, from all flows so far."""
    steps, F, B = flow.shape
    total = np.zeros(steps)
    for i in range(F):
        for j in range(B):
            lag = int(np.floor(latency[i, j] / dt))
            frac = latency[i, j] / dt - lag
            sent = [0.0]
            for k in range(1, steps):
                sent.append(sent[-1] + dt / 2 * (flow[k - 1, i, j] + flow[k, i, j]))
            for k in range(steps):
                out = [sent[m] if m >= 0 else m * dt * flow[0, i, j] for m in (k - lag, k - lag - 1)]
                total[k] += sent[k] - (1 - frac) * out[0] - frac * out[1]
    return total


def served(curve, flow, workload, latency, dt):
    """Requests served since the start, from the histories of flow and workload: the scheme's own trapezoid."""
    total = [0.0]
    arriving = [delivered(flow, latency, dt, k) for k in range(len(flow))]
    for k in range(len(flow) - 1):
        rate = service(curve, workload[k])[0]
        predicted = workload[k] + dt * (arriving[k] - rate)
        total.append(total[-1] + dt / 2 * (rate + service(curve, predicted)[0]).sum())
    return np.array(total)


def delivered(flow, latency, dt, k):
    """Requests/s that reach every backend at step k."""
    return arriving_arcs(flow, latency, dt, k).sum(0)


def arriving_arcs(flow, latency, dt, k):
    """Requests/s that reach the backend of every arc at step k."""
    inflow = np.zeros(latency.shape)
    for i in range(latency.shape[0]):
        for j in range(latency.shape[1]):
            lag = int(np.floor(latency[i, j] / dt))
            frac = latency[i, j] / dt - lag
            inflow[i, j] = (1 - frac) * flow[max(k - lag, 0)][i, j] + frac * flow[max(k - lag - 1, 0)][i, j]
    return inflow


def statistics(run, dt, first, reference=None):
    """Time integrals and extremes over the instants from `first` on, by the trapezoid rule and plain min and max."""

    def integral(values):
        return dt * (values[first:-1] + values[first + 1 :]).sum(0) / 2

    N, arrivals = run.workload[first:], integral(run.arrival_rate.sum(1))
    duration = dt * (len(N) - 1)
    away = integral(np.abs(run.workload - reference).sum(1)) if reference is not None else np.nan
    return SimpleNamespace(
        duration=duration,
        arrivals=arrivals,
        cost=integral(run.cost_rate),
        mean_latency=integral(run.cost_rate) / arrivals,
        network_share=integral(run.network_rate) / integral(run.cost_rate),
        mean_workload=integral(run.workload) / duration,
        lowest_workload=N.min(0),
        highest_workload=N.max(0),
        peak_workload=run.workload.max(0),
        mean_routing=integral(run.flow) / integral(run.arrival_rate)[:, None],
        swing=((N.max(0) - N.min(0)) / (integral(run.workload) / duration)).max(),
        distance=away / duration / (np.nan if reference is None else reference.sum()),
    )


# --- delay equations with known answers -------------------------------------------------------------------------------


def rightmost_root(a, K, delay):
    """Rightmost root of s (s + a) + K exp(-delay s) = 0 above the real axis: Newton from many starts."""
    real, imag = np.meshgrid(np.linspace(-4 / delay, 2 / delay, 40), np.linspace(1e-3, 12 / delay, 60))
    s = (real + 1j * imag).ravel()
    with np.errstate(all="ignore"):
        for _ in range(60):
            value, slope = s * (s + a) + K * np.exp(-delay * s), 2 * s + a - delay * K * np.exp(-delay * s)
            s = s - value / slope
        found = s[(np.abs(s * (s + a) + K * np.exp(-delay * s)) < 1e-10 * (1 + np.abs(s) ** 2)) & (s.imag > 1e-6)]
    return found[np.argmax(found.real)]


def critical_gain(a, delay):
    """The K that puts a root on the imaginary axis: theta tan(theta) = a delay, K = (a / delay) theta / sin(theta)."""
    low, high = 1e-9, np.pi / 2 - 1e-12
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle * np.tan(middle) < a * delay else (low, middle)
    return a / delay * low / np.sin(low)


def oscillation(signal, spacing):
    """Growth rate and angular frequency of a signal exp(s t) + its conjugate, from its linear recurrence (Prony)."""
    (p, q), *_ = np.linalg.lstsq(np.stack([signal[1:-1], signal[:-2]], 1), signal[2:], rcond=None)
    root = np.roots([1, -p, -q]).astype(complex)
    return np.log(root[np.argmax(root.imag)]) / spacing


def gradient_flow(network, step_size, arrival_rate, workload, routing):
    """Time derivatives (routing, workload) of DGD-LB without latencies inside the simplex; all arcs exist."""
    served, slope = service(network.service, workload)
    velocity = -step_size * (1 / slope + np.asarray(network.cost_latency))
    return velocity - velocity.mean(1, keepdims=True), arrival_rate @ routing - served


# --- the static optimum by a general convex solver --------------------------------------------------------------------


def concave_rate(curve, workload, j, backends):
    """The service rate of backend j as a concave cvxpy expression of its workload."""
    import cvxpy as cp

    def at(value, *index):
        value = np.asarray(value)
        return value[(*index, j if value.shape[-1] == backends else 0)]

    name = type(curve).__name__
    if name == "Hyperbolic":
        return at(curve.max_rate) - at(curve.max_rate) * at(curve.half_load) * cp.inv_pos(
            at(curve.half_load) + workload
        )
    if name == "Exponential":
        return at(curve.max_rate) * (1 - cp.exp(-workload / at(curve.scale)))
    if name == "Power":
        return at(curve.unit_rate) * (
            cp.power(1 + workload / at(curve.scale), float(at(curve.exponent)), approx=False) - 1
        )
    if name == "Logarithmic":
        return at(curve.unit_rate) * cp.log(1 + workload / at(curve.scale))
    if name == "ManyServer":
        # N (1 + (N/n)^p)^(-1/p) is the norm of (N/n, 1) of the negative order -p.
        pair = cp.hstack([workload / at(curve.servers), 1])
        return at(curve.servers) / at(curve.service_time) * cp.pnorm(pair, -float(at(curve.sharpness)), approx=False)
    if name == "Tabulated":
        parts = range(np.asarray(curve.weights).shape[0])
        return sum(at(curve.weights, k) * (1 - cp.exp(-workload / at(curve.scales, k))) for k in parts)
    if name == "Replicas":
        return at(curve.count) * concave_rate(curve.curve, workload / at(curve.count), j, backends)
    return concave_rate(curve.curves[int(np.asarray(curve.index)[j])], workload, j, backends)


def optimum(network):
    """(mean latency, workload) of the optimum by cvxpy and Clarabel."""
    import cvxpy as cp

    rate, cost, mask = (np.asarray(array) for array in (network.arrival_rate, network.cost_latency, network.mask))
    flow, workload = cp.Variable(cost.shape, nonneg=True), cp.Variable(cost.shape[1], nonneg=True)
    constraints = [cp.sum(flow, axis=1) == rate, cp.multiply(flow, ~mask) == 0]
    for j in range(cost.shape[1]):
        constraints.append(cp.sum(flow[:, j]) <= concave_rate(network.service, workload[j], j, cost.shape[1]))
    problem = cp.Problem(cp.Minimize(cp.sum(workload) + cp.sum(cp.multiply(flow, cost))), constraints)
    tight = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}
    problem.solve(solver=cp.CLARABEL, **tight)
    return problem.value / rate.sum(), workload.value
