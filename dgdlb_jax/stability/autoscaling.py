r"""The loop of an autoscaler near rest: alone, and as part of a balancer's loop.

At rest a backend has $R$ replicas with $n^* = N / R$ requests each, at which its metric is on target. With $a = \phi'(n^*)$, the elasticity
$e = n \phi' / \phi$, $G = (1 - e) / e$ and $e_m$ that of the metric, relative deviations $\nu$ of the workload, $r$ of ready and $c$ of
commanded replicas obey

$$ \dot\nu = \text{inflow} - a\,(\nu + G\,r), \qquad r = E\,c, \quad E = e^{-sL}\,\tfrac{1 - e^{-sT}}{sT}, \qquad
   \alpha\,c = \beta\,r + \mu\,e_m (\nu - r) $$

where $\beta, \mu$ are derivatives of the rule's law with respect to ready replicas and the metric, and $\alpha = 1 - \gamma e^{-sT}$ of a
rule that decides every $T$ (a hold delays by half of it), $\alpha = s - \gamma$ of one that moves all the time ($T = 0$). What a frontend
sees is $\nu - r$. To a balancer the backend is, in place of $1 / (s + a)$,

$$ H(s) = \frac{\alpha - \beta E}{(s + a)(\alpha - (\beta - \mu e_m) E) + a G \mu e_m E} $$

and alone the autoscaler is stable when its denominator has no zero in the right half plane. Decisions every $T$ are also followed
exactly, from one to the next (`ReplicaLoop.multipliers`). For Kubernetes' rule as coded ($\beta = \mu = 1$, $\gamma = 0$) on concurrency
it is $s + a + a G e^{-sL}$. A total $R m$ that is averaged over $T$ delays by half of it as well.

Rounding, dead band, limits and cool-down are left out, and removal takes as long as start-up: with removal at once a rise that is too
large is taken back at once, and the rule as coded never cycles; a stabilisation window on the way down brings the delay back.

**Source:** own derivation; the modified z-transform.
"""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Replicas, replicas
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.autoscalers.base import (
    AbstractAutoscaler,
    AbstractContinuousAutoscaler,
    AbstractSampledAutoscaler,
    Measured,
    per_replica,
)
from dgdlb_jax.stability.memory import even_average
from dgdlb_jax.stability.ranges import stable_ranges

Backends = Float[Array, "*batch backends"]

_NEWTON = 60
_NEUTRAL = 1e-9
_FREQUENCIES = 4000  # at which crossings are looked for
_WIDEST, _WIDEST_ABOVE = 100.0, 10.0  # how far below the slowest and above the fastest rate of a loop
_DECISIONS = 128  # within a start-up delay, at most, where limits are looked for


class ReplicaLoop(eqx.Module):
    r"""The linearised loop of every backend's autoscaler, `(backends,)` each.

    - `slope` $a$, 1/s; `excess` $G = (1 - e) / e$; `metric` $e_m$; `by_ready` $\beta$; `by_command` $\gamma$; `by_metric` $\mu$.
    - `startup` $L$, `interval` $T$, seconds; 0 of a rule that moves all the time, whose $\beta, \gamma, \mu$ are 1/s.
    - `averages`: whether the metric is its mean over the interval.
    """

    slope: Backends
    excess: Backends
    metric: Backends
    by_ready: Backends
    by_command: Backends
    by_metric: Backends
    startup: Backends
    interval: float = eqx.field(static=True)
    averages: bool = eqx.field(static=True)

    def plant(self, s: Complex[Array, ""]) -> Complex[Array, " backends"]:
        """$H(s)$: deviations as frontends see them per arrivals, seconds."""
        ready, _ = self._answers(s)
        return (self._own(s) - ready * self._late(s)) / self.characteristic(s)

    def characteristic(self, s: Complex[Array, ""]) -> Complex[Array, " backends"]:
        """The denominator of $H$, whose zeros are the roots of the autoscaler alone."""
        late, (ready, answer) = self._late(s), self._answers(s)
        through = self._own(s) - (ready - answer) * late
        slope, pull = as_complex(self.slope), as_complex(self.slope * self.excess)
        return (s + slope) * through + pull * answer * late

    def _late(self, s: Complex[Array, ""]) -> Complex[Array, " backends"]:
        return jnp.exp(-s * as_complex(self.startup)) * self._held(s)

    def _held(self, s: Complex[Array, ""]) -> Complex[Array, ""]:
        return even_average(s, jnp.asarray(self.interval, self.slope.dtype))

    def _answers(self, s: Complex[Array, ""]) -> tuple[Complex[Array, " backends"], Complex[Array, " backends"]]:
        """To ready replicas, and to requests in each."""
        mean = self._held(s) if self.averages else jnp.ones_like(s)
        ready = as_complex(self.by_ready) - (1 - mean) * as_complex(self.by_metric)
        return ready, mean * as_complex(self.by_metric * self.metric)

    def _own(self, s: Complex[Array, ""]) -> Complex[Array, " backends"]:
        command = as_complex(self.by_command)
        return 1 - command * jnp.exp(-s * self.interval) if self.interval else s - command

    def critical_gain(self, delay: Float[Array, ""]) -> Backends:
        r"""The gain $K$ at which equal backends, so many seconds there and back from their frontends, begin to swing, 1/s^2.

        $$ 1 / K = \max \{ -z : z = H(jw)\, e^{-jwd} / (jw) \text{ real and negative} \} $$
        on a grid of frequencies: conservative where it does not resolve the start-up delay.
        """
        frequency = self._frequencies(delay)

        def response(w: Float[Array, ""]) -> Complex[Array, " backends"]:
            s = imaginary(w)
            return self.plant(s) * jnp.exp(-s * as_complex(delay)) / s

        loop = jax.vmap(response)(frequency)
        size = jnp.maximum(-loop.real[1:], -loop.real[:-1])
        crosses = (loop.imag[1:] * loop.imag[:-1] <= 0) & (size > 0)
        largest = jnp.where(crosses, size, 0).max(0)
        return jnp.where(largest > 0, 1 / jnp.where(largest > 0, largest, 1), jnp.inf)

    def _frequencies(self, delay: Float[Array, ""]) -> Float[Array, " frequencies"]:
        slowest = self.slope.min() / (1 + (self.slope * (self.startup + self.interval + delay)).max())
        fastest = self.slope.max() + jnp.pi / jnp.maximum(delay, 1 / self.slope.max())
        first, last = jnp.log(slowest / _WIDEST), jnp.log(_WIDEST_ABOVE * fastest)
        return jnp.exp(jnp.linspace(first, last, _FREQUENCIES))

    def at(self, backend: int) -> "ReplicaLoop":
        """Of one backend."""
        return jax.tree.map(lambda leaf: leaf[backend : backend + 1], self)

    def with_startup(self, seconds: float) -> "ReplicaLoop":
        """The same with another start-up delay."""
        return replace(self, startup=jnp.full_like(self.startup, seconds))

    def with_interval(self, seconds: float) -> "ReplicaLoop":
        """The same with another interval between decisions."""
        return replace(self, interval=float(seconds))

    def multipliers(self) -> Complex[np.ndarray, " found"]:
        r"""How deviations of one backend develop from one decision to the next, exactly: the largest first.

        With $L = mT + \theta$ the replicas ready are those commanded $m + 1$ decisions ago for $\theta$, then those of $m$ ago; workloads
        answer to each by an exponential.
        """
        a, excess, metric, ready, command, through = self._numbers()
        length, startup = self.interval, float(self.startup[0])
        whole = math.floor(startup / length + 1e-9)
        first = max(startup - whole * length, 0.0)
        size = whole + 3  # workload, commands c[k - 1] ... c[k - 1 - whole], mean of the total
        state = np.eye(size)
        workload, commands, total = state[0], [*state[1 : size - 1]], state[size - 1]
        now = commands[-1]
        seen = total - now if self.averages else metric * (workload - now)
        commands = [ready * now + command * commands[0] + through * seen, *commands]
        area = np.zeros(size)
        for seconds, now in ((first, commands[-1]), (length - first, commands[-2])):
            decay, settled = math.exp(-a * seconds), -excess * now
            of_workload = (1 - decay) / a * (workload - settled) + seconds * settled
            area = area + metric * of_workload + seconds * (1 - metric) * now
            workload = decay * workload + (1 - decay) * settled
        ahead = np.stack([workload, *commands[: whole + 1], area / length])
        found = np.linalg.eigvals(ahead).astype(complex)
        return found[np.argsort(-np.abs(found), kind="stable")]

    def radius(self) -> float:
        """The largest modulus of a multiplier of one backend: deviations die out below 1."""
        return float(np.abs(self.multipliers()[0]))

    def critical_startup(self) -> tuple[float, float]:
        r"""The start-up delay from which on one backend swings, and the period with which it begins to, seconds; inf without a limit.

        All the time: $|W(jw)| = 1$ for $W = ((\mu e_m - \beta)(s + a) + a G \mu e_m) / (\alpha (s + a))$ is a quadratic equation in $w^2$,
        and $wL = \pi + \arg W$.
        """
        if self.interval:
            return self._critical_startup_sampled()
        a, excess, metric, ready, own, through = self._numbers()
        answer = through * metric
        direct = answer - ready
        rest = direct + excess * answer
        squares = np.roots([1.0, own**2 + a**2 - direct**2, a**2 * (own**2 - rest**2)])
        found = [(np.inf, np.inf)]
        for w in np.sqrt(squares[(np.abs(squares.imag) <= 1e-12 * np.abs(squares)) & (squares.real > 0)].real):
            transfer = (direct * (1j * w + a) + a * excess * answer) / ((1j * w - own) * (1j * w + a))
            turn = (np.pi + np.angle(transfer)) % (2 * np.pi)
            found.append((float(turn / w), float(2 * np.pi / w)))
        return min(found)

    def _critical_startup_sampled(self) -> tuple[float, float]:
        radius = lambda seconds: self.with_startup(seconds).radius()
        if radius(0.0) >= 1:
            return 0.0, self.with_startup(0.0).swing()
        low, longest = self.interval / 16, _DECISIONS * self.interval
        while low < longest:  # short ones first: matrices grow with the delay
            high = min(8 * low, longest)
            ranges = stable_ranges(radius, low, high, points=12)
            edge = low if not ranges or ranges[0][0] > low else ranges[0][1]
            if edge < high:
                return edge, self.with_startup(edge).swing()
            low = high
        return np.inf, np.inf

    def _numbers(self) -> tuple[float, ...]:
        """Of one backend."""
        parts = self.slope, self.excess, self.metric, self.by_ready, self.by_command, self.by_metric
        return tuple(float(each[0]) for each in parts)

    def swing(self) -> float:
        """The period of the largest deviation of one backend that swings, seconds; inf if none does."""
        found = self.multipliers()
        angle = np.abs(np.angle(found))
        swinging = (angle > 1e-6) & (np.abs(found) > 1e-12)
        return float(2 * np.pi * self.interval / angle[swinging][0]) if swinging.any() else np.inf


def replica_loop(network: Network, autoscaler: AbstractAutoscaler) -> ReplicaLoop:
    """The loop of an autoscaler where its metric is on target, whatever the traffic; derivatives of the curve and of the rule itself.

    **Arguments:** one nameless `network`; `autoscaler`: parameters are scalars or `(backends,)`. Can be mapped and differentiated.

    **Raises:** `InputError` for a rule of neither kind.
    """
    count = replicas(network.service)
    each = requests_at_target(network, autoscaler)
    rate, slope = network.mean_service.rate(count * each) / count, network.mean_service.slope(count * each)
    elasticity = each * slope / rate
    ones = jnp.ones_like(count)
    over_backends = lambda value: jnp.broadcast_to(value, ones.shape).astype(ones.dtype)
    target = over_backends(autoscaler.target)
    metric, along = jax.jvp(lambda n: _metric(network, autoscaler, n), (each,), (ones,))
    rule = eqx.tree_at(lambda rule: (rule.least, rule.most), autoscaler, (jnp.zeros(()), jnp.full((), jnp.inf)))
    interval, averages = 0.0, False
    if isinstance(rule, AbstractContinuousAutoscaler):
        law = rule.velocity
    elif isinstance(rule, AbstractSampledAutoscaler):
        law, interval, averages = rule.aim, rule.interval, rule.averages
    else:
        raise InputError(f"{autoscaler!r} is no autoscaler: derive its class from AbstractAutoscaler.")
    by = lambda ready, commanded, value: law(Measured(ones * ready, ones * commanded, target * value))
    derivative = lambda n: jax.jvp(by, (1.0, 1.0, 1.0), tuple(float(n == k) for k in range(3)))[1]  # n-th of them
    ready, commanded, through = (derivative(n) for n in range(3))
    return ReplicaLoop(
        slope=slope,
        excess=(1 - elasticity) / elasticity,
        metric=each * along / metric,
        by_ready=ready,
        by_command=commanded,
        by_metric=through,
        startup=over_backends(autoscaler.startup),
        interval=interval,
        averages=averages,
    )


def frozen(loop: ReplicaLoop, where: Bool[Array, " backends"], slope: Backends) -> ReplicaLoop:
    """The loop in which replicas stand still at some backends, which answer with a `slope` of their own: at a limit, or out of use."""
    still = lambda value, there: jnp.where(where, there, value)
    command = -1.0 if loop.interval == 0 else 0.0
    return replace(
        loop,
        slope=still(loop.slope, slope),
        by_ready=still(loop.by_ready, 0),
        by_command=still(loop.by_command, command),
        by_metric=still(loop.by_metric, 0),
    )


def requests_at_target(network: Network, autoscaler: AbstractAutoscaler) -> Backends:
    """$n^*$: requests in each replica where the metric is on target, `(backends,)`."""
    service, count = network.mean_service, replicas(network.service)
    target = jnp.broadcast_to(autoscaler.target, count.shape).astype(count.dtype)
    if autoscaler.metric == "utilization":
        return service.inverse(target * service.nominal_capacity) / count
    if autoscaler.metric == "concurrency":
        return target

    def newton(_, n):
        found, along = jax.jvp(lambda n: _metric(network, autoscaler, n), (n,), (jnp.ones_like(n),))
        return n + (target - found) / along

    return jax.lax.fori_loop(0, _NEWTON, newton, target)  # convex: from the second step on from above


def _metric(network: Network, autoscaler: AbstractAutoscaler, each: Backends) -> Backends:
    """With so many requests in each replica."""
    service, count = network.mean_service, replicas(network.service)
    rate = service.rate(count * each)
    capacity, alone = service.nominal_capacity / count, 1 / service.initial_slope
    return per_replica(autoscaler.metric, count, count * each, rate, capacity, alone)


def on_target(
    network: Network, autoscaler: AbstractAutoscaler, optimum: Optimum
) -> tuple[Network, Optimum, Bool[Array, " backends"]]:
    """A network whose replicas the autoscaler has adapted to the flows of an optimum: the network, where it rests, and which backends'
    autoscalers are free to move (not at a limit, and in use)."""
    count, flow = replicas(network.service), network.arrival_rate @ optimum.routing
    each, used = requests_at_target(network, autoscaler), flow > 0
    wanted = flow * count / network.mean_service.rate(count * each)
    limited = jnp.clip(wanted, autoscaler.least, autoscaler.most)
    factor = jnp.where(used, limited, count) / count
    scaled = eqx.tree_at(lambda n: n.service, network, Replicas(network.service, factor))
    workload = jnp.where(used, scaled.mean_service.inverse(flow), 0)
    free = used & (limited == wanted)
    return scaled, eqx.tree_at(lambda o: o.workload, optimum, workload), free
