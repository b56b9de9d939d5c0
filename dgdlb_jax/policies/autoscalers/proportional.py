"""An autoscaler whose command follows its aim smoothly."""

from typing import ClassVar

import equinox as eqx

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.autoscalers.base import (
    AbstractContinuousAutoscaler,
    Backends,
    Form,
    Measured,
    Metric,
    Parameter,
    base_of,
    common,
    within,
)
from dgdlb_jax.policies.base import checked


class Proportional(AbstractContinuousAutoscaler):
    r"""Commands that move in proportion to what is missing.

    $$ \theta\, \dot C = \mathrm{clip}\bigl(B\, m / m^*\bigr) - C, \qquad R(t) = C(t - L) $$

    with $B$ the ready replicas $R$ (form `coded`) or the commanded ones $C$ (`documented`: then $C$ integrates the relative error of the
    metric). It is the smooth relative of Kubernetes' rule: no rounding, no dead band, no interval. A run with it has a gradient, also with
    respect to the start-up delay.

    **Arguments:** numbers are scalars or `(backends,)`.

    - `target`: $m^*$, of the metric per ready replica. `startup`: $L$, seconds; removal takes as long. `time_constant`: $\theta$, seconds.
    - `metric`, `form`: as in `policies.autoscalers.base`. `least`, `most`: limits of the aim, replicas.

    **Raises:** `InputError` for a value that is not allowed.

    **Source:** own definition; limits in `stability.autoscaling`.
    """

    differentiable: ClassVar[bool] = True

    metric: Metric = eqx.field(static=True)
    form: Form = eqx.field(static=True)
    target: Parameter
    startup: Parameter
    time_constant: Parameter
    least: Parameter
    most: Parameter

    def __init__(
        self,
        target: Numbers,
        startup: Numbers,
        time_constant: Numbers = 60.0,
        *,
        metric: str = "utilization",
        form: str = "coded",
        least: Numbers = 1.0,
        most: Numbers = float("inf"),
    ):
        name = "Proportional"
        self.metric, self.form, self.target, self.startup, self.least, self.most = common(
            name, metric, form, target, startup, least, most
        )
        self.time_constant = checked(
            f"{name}.time_constant", time_constant, positive, "positive and finite (seconds); HPA acts at once"
        )

    def velocity(self, measured: Measured) -> Backends:
        """Towards the aim."""
        aim = base_of(self.form, measured) * measured.metric / self.target
        return (within(self.least, aim, self.most) - measured.commanded) / self.time_constant
