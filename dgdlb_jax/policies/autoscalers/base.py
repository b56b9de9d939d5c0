r"""What an autoscaler is: the rule of **one backend**, from what it measures there to how many replicas it asks for.

Replicas are real numbers: a backend with $R$ of them serves $R\,\phi(N / R)$, $\phi$ the curve of one. What is commanded becomes ready
after the start-up delay $L$. A rule measures its own backend, at once: a metric $m$ per ready replica,

- `utilization`: $\ell / (R\,c)$, throughput over the nominal capacity $c$ of a replica;
- `concurrency`: $N / R$, requests;
- `queue`: $(N - \ell\,s_0) / R$, requests beyond those that would be in service, with $s_0$ the time of a lone request.

Most rules steer by the ratio of this metric to its target. What they multiply with it is their *form*:

- `coded`: the ready replicas, $R\,(m / m^*)$: the total over the target, whatever $R$ is. So Kubernetes' autoscaler computes.
- `documented`: the commanded replicas, $C\,(m / m^*)$, the formula on paper.

A rule is written element by element: its arguments are arrays over the backends of many networks side by side, its parameters scalars or
such arrays. To add one, derive from `AbstractContinuousAutoscaler` (commands move with a velocity: it can be differentiated) or from
`AbstractSampledAutoscaler` (it decides every so often), and write one method; `register_autoscaler` gives it a name for fleet files.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.policies.base import checked
from dgdlb_jax.policies.held import one_of

Backends = Float[Array, "*backends"]
Parameter = Float[Array, "..."]
"""A scalar, or over backends."""
MOST_DECISIONS = 100_000
"""Decisions that a run keeps: start-up delays and windows, in intervals."""

Metric = Literal["utilization", "concurrency", "queue"]
Form = Literal["coded", "documented"]
Removal = Literal["at once", "delayed"]


class Measured(eqx.Module):
    """What an autoscaler knows of its backend at one instant.

    - `ready`, `commanded`: replicas that serve, and those asked for.
    - `metric`: per ready replica, as the rule wants it measured; of a rule that averages, the mean of the total since its last decision,
      over the replicas that are ready now.
    """

    ready: Backends
    commanded: Backends
    metric: Backends


class AbstractAutoscaler(eqx.Module):
    """A rule for replicas. Derive from `AbstractContinuousAutoscaler` or `AbstractSampledAutoscaler`.

    - `metric`: what it measures. `target`: what that should be.
    - `startup`: seconds from a command to ready replicas. `least`, `most`: limits of what it asks for, replicas.
    - `differentiable`: whether a run with it has a gradient.
    """

    differentiable: ClassVar[bool] = False

    metric: eqx.AbstractVar[Metric]
    target: eqx.AbstractVar[Parameter]
    startup: eqx.AbstractVar[Parameter]
    least: eqx.AbstractVar[Parameter]
    most: eqx.AbstractVar[Parameter]


class AbstractContinuousAutoscaler(AbstractAutoscaler):
    """A rule whose command moves all the time. Removal takes as long as start-up."""

    @abstractmethod
    def velocity(self, measured: Measured) -> Backends:
        """The time derivative of the commanded replicas, 1/s."""


class AbstractSampledAutoscaler(AbstractAutoscaler):
    """A rule that decides at $t = 0, T, 2T, \\ldots$, and holds its command in between.

    - `interval`: $T$, seconds. `averages`: whether the metric is its mean over the interval, or that of the instant.
    - `removal`: `"at once"`, or `"delayed"` by as long as start-up takes. Replicas that are removed before they were ready never are.
    """

    interval: eqx.AbstractVar[float]
    averages: eqx.AbstractVar[bool]
    removal: eqx.AbstractVar[Removal]

    @property
    def past(self) -> int:
        """Of how many earlier decisions it needs the commands."""
        return 0

    def init(self, commanded: Backends) -> PyTree:
        """Its memory when so many replicas have always been commanded, arrays whose last axis is the backends; none by default."""
        del commanded
        return ()

    @abstractmethod
    def aim(self, measured: Measured) -> Backends:
        """What it would ask for by its law alone, without rounding, dead band, limits and cool-down: what the linear analysis takes."""

    @abstractmethod
    def decide(
        self, measured: Measured, earlier: Float[Array, "earlier *backends"], memory: PyTree
    ) -> tuple[Backends, PyTree]:
        """The new command and memory; `earlier`: commands before the present one, the last first, one for each interval."""


def per_replica(
    metric: Metric, ready: Backends, workload: Backends, service_rate: Backends, capacity: Backends, alone: Backends
) -> Backends:
    """A metric per ready replica.

    **Arguments:** `ready` replicas that hold `workload` requests and serve `service_rate` requests/s all together; `capacity`: of one
    replica, requests/s; `alone`: the time of a lone request, seconds.
    """
    if metric == "utilization":
        return service_rate / (ready * capacity)
    if metric == "concurrency":
        return workload / ready
    return (workload - service_rate * alone) / ready


def base_of(form: Form, measured: Measured) -> Backends:
    """The replicas that a ratio multiplies."""
    return measured.ready if form == "coded" else measured.commanded


class Common(NamedTuple):
    """The parameters that all rules have, checked."""

    metric: Metric
    form: Form
    target: Parameter
    startup: Parameter
    least: Parameter
    most: Parameter


def common(rule: str, metric: str, form: str, target: Any, startup: Any, least: Any, most: Any) -> Common:
    """Check the parameters that all rules have.

    **Raises:** `InputError` naming the rule, the parameter and the value.
    """
    above = "positive and finite"
    found = Common(
        metric=one_of(f"{rule}.metric", metric, Metric),
        form=one_of(f"{rule}.form", form, Form),
        target=checked(f"{rule}.target", target, positive, above),
        startup=checked(f"{rule}.startup", startup, not_negative, "finite and not negative (seconds)"),
        least=checked(f"{rule}.least", least, positive, f"{above} (replicas)"),
        most=checked(f"{rule}.most", most, lambda values: values > 0, "positive (replicas; inf for no limit)"),
    )
    if metric == "utilization" and is_concrete(found.target) and bool((found.target >= 1).any()):
        raise InputError(
            f"{rule}.target is {float(found.target.max()):g}, but a utilization is a part of capacity: give a number below 1, such as 0.7."
        )
    if is_concrete(found.least, found.most) and not bool((found.least <= found.most).all()):
        raise InputError(
            f"{rule}.least is {float(found.least.max()):g}, above most = {float(found.most.min()):g}: exchange them."
        )
    return found


def within(least: Parameter, replicas: Backends, most: Parameter) -> Backends:
    """Within limits."""
    return jnp.minimum(jnp.maximum(replicas, least), most)
