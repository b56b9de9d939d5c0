"""Kubernetes' Horizontal Pod Autoscaler."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import in_range
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.autoscalers.base import (
    MOST_DECISIONS,
    AbstractSampledAutoscaler,
    Backends,
    Form,
    Measured,
    Metric,
    Parameter,
    Removal,
    base_of,
    common,
    within,
)
from dgdlb_jax.policies.held import one_of

_ROUNDING = 1e-6  # of a number of pods: below it a product that is not whole is a whole number

Select = Literal["max", "min", "disabled"]
Commands = Float[Array, "earlier *backends"]
Recommendations = Float[Array, "past *backends"]


@dataclass(frozen=True)
class Rate:
    """At most so many `"pods"`, or so many `"percent"`, within a period of seconds: one entry of `policies`."""

    kind: str
    value: float
    period: float

    def __post_init__(self):
        if self.kind not in ("pods", "percent"):
            raise InputError(f"Rate.kind is {self.kind!r}: choose from pods, percent.")
        for name, number in (("value", self.value), ("period", self.period)):
            if not in_range(number, 0, above=True):
                raise InputError(f"Rate.{name} is {number}: give a positive finite number.")


@dataclass(frozen=True)
class Behavior:
    """How fast an HPA may move in one direction.

    - `window`: `stabilizationWindowSeconds`. `policies`: several `Rate`; none: any change at once.
    - `select`: `selectPolicy`: `"max"` for the one that allows the largest change, `"min"`, or `"disabled"` for no change at all.
    """

    window: float = 0.0
    policies: tuple[Rate, ...] = ()
    select: Select = "max"

    def __post_init__(self):
        one_of("Behavior.select", self.select, Select)
        if not in_range(self.window, 0):
            raise InputError(f"Behavior.window is {self.window}: give a finite number of seconds that is not negative.")


UP = Behavior(0.0, (Rate("percent", 100.0, 15.0), Rate("pods", 4.0, 15.0)))
DOWN = Behavior(300.0, (Rate("percent", 100.0, 15.0),))
AT_ONCE = Behavior()


class HPA(AbstractSampledAutoscaler):
    r"""Kubernetes' Horizontal Pod Autoscaler, with its defaults.

    Every `interval` it recommends $\lceil B\,(m/m^*)^p \rceil$ replicas, $B$ the ready ones (`form="coded"`, so that the recommendation is
    the total over the target) or the commanded ones (`"documented"`), unless $m/m^*$ is within `tolerance` of 1. Of the recommendations
    of the last seconds it takes the least on the way up and the largest on the way down (stabilisation), then it limits the rate, then it
    keeps within `least` and `most`. On the way up replicas that are not ready yet count with a metric of 0, when it is compared with the
    tolerance; on the way down they are left out.

    **Arguments:** `target`, `startup`, `least`, `most` are scalars or `(backends,)`, everything else is shared.

    - `target`: $m^*$, of the metric per ready replica. `startup`: seconds from a command to ready replicas.
    - `metric`: `"utilization"` (of nominal capacity; averaged over the interval), `"concurrency"` or `"queue"` (of the instant).
      `averages`: whether it is the mean over the interval, if not as said.
    - `interval`: `--horizontal-pod-autoscaler-sync-period`, seconds; best a whole number of time steps. `tolerance`: 0.1 in Kubernetes.
    - `scale_up`, `scale_down`: a `Behavior` each. `rounding`: to whole replicas.
    - `removal`: `"at once"`, or `"delayed"` by the start-up delay (which the linear analysis assumes). `exponent`: $p$, 1 in Kubernetes.

    A run with it has no gradient: it jumps. `HPA.smooth(...)` is its law alone.

    **Raises:** `InputError` for a value that is not allowed.

    **Source:** kubernetes/website `horizontal-pod-autoscale.md`; kubernetes `replica_calculator.go` and `horizontal.go` as of 2026-11.
    """

    metric: Metric = eqx.field(static=True)
    form: Form = eqx.field(static=True)
    target: Parameter
    startup: Parameter
    least: Parameter
    most: Parameter
    interval: float = eqx.field(static=True)
    averages: bool = eqx.field(static=True)
    tolerance: float = eqx.field(static=True)
    scale_up: Behavior = eqx.field(static=True)
    scale_down: Behavior = eqx.field(static=True)
    rounding: bool = eqx.field(static=True)
    removal: Removal = eqx.field(static=True)
    exponent: float = eqx.field(static=True)

    def __init__(
        self,
        target: Numbers,
        startup: Numbers,
        *,
        metric: str = "utilization",
        form: str = "coded",
        least: Numbers = 1.0,
        most: Numbers = float("inf"),
        interval: float = 15.0,
        averages: bool | None = None,
        tolerance: float = 0.1,
        scale_up: Behavior = UP,
        scale_down: Behavior = DOWN,
        rounding: bool = True,
        removal: str = "at once",
        exponent: float = 1.0,
    ):
        self.metric, self.form, self.target, self.startup, self.least, self.most = common(
            "HPA", metric, form, target, startup, least, most
        )
        for name, number, above in (
            ("interval", interval, True),
            ("tolerance", tolerance, False),
            ("exponent", exponent, True),
        ):
            if not in_range(float(number), 0, above):
                bound = "positive" if above else "not negative"
                raise InputError(f"HPA.{name} is {number}: give a finite number that is {bound}.")
        self.interval, self.tolerance, self.exponent = float(interval), float(tolerance), float(exponent)
        self.averages = metric == "utilization" if averages is None else averages
        self.scale_up, self.scale_down, self.rounding = scale_up, scale_down, rounding
        self.removal = one_of("HPA.removal", removal, Removal)

    @classmethod
    def smooth(cls, target: Numbers, startup: Numbers, **settings: Any) -> "HPA":
        """The law alone: no rounding, no dead band, no cool-down, removal as slow as start-up. What the linear analysis is about."""
        law: dict[str, Any] = {"tolerance": 0.0, "rounding": False, "removal": "delayed", "least": 1e-6}
        law |= {"scale_up": AT_ONCE, "scale_down": AT_ONCE}
        return cls(target, startup, **(law | settings))

    @property
    def past(self) -> int:
        """Commands that the longest period of a rate looks back on."""
        rates = (*self.scale_up.policies, *self.scale_down.policies)
        return max((self._earlier(rate.period) for rate in rates), default=0)

    def init(self, commanded: Backends) -> Recommendations:
        """Recommendations of the past: what was commanded."""
        rows = max(1, self._earlier(self.scale_up.window), self._earlier(self.scale_down.window))
        return jnp.broadcast_to(commanded, (rows, *commanded.shape))

    def aim(self, measured: Measured) -> Backends:
        """The law."""
        return base_of(self.form, measured) * (measured.metric / self.target) ** self.exponent

    def decide(
        self, measured: Measured, earlier: Commands, memory: Recommendations
    ) -> tuple[Backends, Recommendations]:
        """Recommendation, stabilisation, rate, limits, in this order."""
        known = jnp.concatenate([self._recommended(measured)[None], memory])
        lowest = known[: 1 + self._earlier(self.scale_up.window)].min(0)
        highest = known[: 1 + self._earlier(self.scale_down.window)].max(0)
        stable = jnp.minimum(jnp.maximum(measured.commanded, lowest), highest)
        commands = jnp.concatenate([measured.commanded[None], earlier])
        moved = jnp.maximum(stable, self._farthest(commands, self.scale_down, -1))
        moved = jnp.minimum(moved, self._farthest(commands, self.scale_up, 1))
        return within(self.least, moved, self.most), known[: len(memory)]

    def _recommended(self, measured: Measured) -> Backends:
        """The law, rounded up; the present command within the tolerance, or where replicas to come turn more into fewer."""
        ratio = measured.metric / self.target
        ready, commanded = measured.ready, measured.commanded
        counted = jnp.where(ratio > 1, jnp.maximum(commanded, ready), ready) if self.form == "coded" else ready
        rebalanced = ratio * ready / counted
        keeps = (jnp.abs(rebalanced - 1) <= self.tolerance) | ((ratio > 1) & (rebalanced < 1))
        return jnp.where(keeps & (self.tolerance > 0), commanded, self._up(self.aim(measured)))

    def _farthest(self, commands: Commands, behavior: Behavior, sign: int) -> Backends:
        """How far up (`sign` 1) or down (-1) the rates let the command go; `commands`: the present one, then those before."""
        now = commands[0]
        if behavior.select == "disabled":
            return now
        if not behavior.policies:
            return jnp.full_like(now, sign * jnp.inf)
        limits = []
        for rate in behavior.policies:
            start = commands[self._earlier(rate.period)]  # what the period began with
            change = rate.value if rate.kind == "pods" else self._up(start * rate.value / 100)
            limits.append(sign * (start - now) + change)
        farthest = jnp.stack(limits).max(0) if behavior.select == "max" else jnp.stack(limits).min(0)
        return now + sign * jnp.maximum(farthest, 0)

    def _earlier(self, seconds: float) -> int:
        """How many decisions lie less than so many seconds back, the present one apart."""
        if seconds > MOST_DECISIONS * self.interval:
            raise InputError(
                f"HPA looks back on {seconds:.4g} s, {seconds / self.interval:.2g} intervals of {self.interval:.4g} s, more than "
                f"the {MOST_DECISIONS} decisions that can be kept: shorten that window or period, or lengthen the interval."
            )
        return max(0, math.ceil(seconds / self.interval - 1e-9) - 1)

    def _up(self, replicas: Backends) -> Backends:
        """Rounded up, if at all; rounding errors apart."""
        return jnp.ceil(replicas * (1 - _ROUNDING)) if self.rounding else replicas
