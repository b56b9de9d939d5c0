"""Curves made of other curves: replicas, curves times a factor, and different curves behind one network."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from dgdlb_jax.model.service.base import SMALLEST_FACTOR, AbstractService, Numbers, parameters
from dgdlb_jax.model.service.tabulated import Tabulated
from dgdlb_jax.numerics.results import InputError, is_concrete


class Replicas(AbstractService):
    r"""Several copies of a server that share the workload evenly.

    $$ \ell(N) = n \, \ell_1(N / n) $$

    **Arguments:**

    - `curve`: $\ell_1$, the curve of one copy, for every backend.
    - `count`: $n$, `(backends,)`, or one number for all; not necessarily whole.

    **Raises:** `InputError` on counts that are not positive and finite, or whose shape does not fit the curve.
    """

    curve: AbstractService
    count: Float[Array, "..."]

    def __init__(self, curve: AbstractService, count: Numbers):
        self.curve = curve
        (count,) = parameters("Replicas", count=count)
        single = curve.nominal_capacity
        if count.shape not in ((1,), single.shape):
            raise InputError(
                f"Replicas.count has shape {count.shape}, but the curve has {single.shape}: give one count per backend."
            )
        self.count = jnp.broadcast_to(count.astype(single.dtype), single.shape)

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.count * self.curve.rate(workload / self.count)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.curve.slope(workload / self.count)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.curve.curvature(workload / self.count) / self.count

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.count * self.curve.inverse(rate / self.count)

    @property
    def nominal_capacity(self) -> Float[Array, "..."]:
        return self.count * self.curve.nominal_capacity

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self.curve.initial_slope

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self.count * self.curve.supremum

    @property
    def measured_workload(self) -> Float[Array, "..."]:
        return self.count * self.curve.measured_workload


class Scaled(AbstractService):
    r"""A curve times a factor per backend: what a capacity that changes in time makes of it at one moment.

    $$ \ell(N) = c \, \ell_1(N) $$

    **Arguments:**

    - `curve`: $\ell_1$, for every backend.
    - `factor`: $c \ge 0$, `(backends,)`. Where it is 0 nothing can be served, and a latency, which has no finite value, is that of a
      factor of 1e-12.
    """

    curve: AbstractService
    factor: Float[Array, "..."]

    def __init__(self, curve: AbstractService, factor: Float[Array, "..."]):
        self.curve, self.factor = curve, factor

    @property
    def _some(self) -> Float[Array, "..."]:
        return jnp.maximum(self.factor, SMALLEST_FACTOR)

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.factor * self.curve.rate(workload)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._some * self.curve.slope(workload)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._some * self.curve.curvature(workload)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        serves = self.factor > 0
        return jnp.where(serves | (rate == 0), self.curve.inverse(jnp.where(serves, rate / self._some, 0)), jnp.inf)

    @property
    def nominal_capacity(self) -> Float[Array, "..."]:
        return self.factor * self.curve.nominal_capacity

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self._some * self.curve.initial_slope

    @property
    def supremum(self) -> Float[Array, "..."]:
        return jnp.where(self.factor > 0, self._some * self.curve.supremum, 0)

    @property
    def measured_workload(self) -> Float[Array, "..."]:
        return self.curve.measured_workload


class PerBackend(AbstractService):
    """Different kinds of curves behind one network.

    **Arguments:**

    - `curves`: the kinds; each carries parameters for *all* backends, any valid ones where it is not used.
    - `index`: `(backends,)`, which of the curves a backend follows.

    **Raises:** `InputError` when there is no curve, sizes differ, or an index points to no curve. `concatenate` builds it
    from curves of a few backends each.
    """

    curves: tuple[AbstractService, ...]
    index: Int[Array, "..."]

    def __init__(self, curves: Sequence[AbstractService], index: Int[ArrayLike, "..."] | Sequence[int]):
        self.curves = tuple(curves)
        self.index = jnp.asarray(index, jnp.int32)
        shapes = [curve.nominal_capacity.shape for curve in self.curves]
        if not shapes or any(shape != self.index.shape for shape in shapes):
            raise InputError(
                f"PerBackend: curves of shapes {shapes} do not fit an index of shape {self.index.shape}: "
                "every curve carries parameters for all backends (concatenate([...]) fills them in)."
            )
        if is_concrete(self.index):
            bad = np.argwhere((np.asarray(self.index) < 0) | (np.asarray(self.index) >= len(shapes)))
            if bad.size:
                raise InputError(
                    f"PerBackend.index of backend {bad[0][-1]} points to no curve: use 0 to {len(shapes) - 1}."
                )

    def _select(self, values: Sequence[Float[Array, "..."]]) -> Float[Array, "..."]:
        selected = values[0]
        for k, value in enumerate(values[1:], start=1):
            selected = jnp.where(self.index == k, value, selected)
        return selected

    def _apply(
        self,
        method: Callable[[AbstractService, Float[Array, "..."]], Float[Array, "..."]],
        argument: Float[Array, "..."],
    ) -> Float[Array, "..."]:
        """Each curve sees 0 at backends that are not its own, where values and derivatives of any curve are finite."""
        own = [self.index == k for k in range(len(self.curves))]
        return self._select([method(c, jnp.where(mine, argument, 0)) for c, mine in zip(self.curves, own, strict=True)])

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._apply(lambda curve, n: curve.rate(n), workload)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._apply(lambda curve, n: curve.slope(n), workload)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._apply(lambda curve, n: curve.curvature(n), workload)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return self._apply(lambda curve, r: curve.inverse(r), rate)

    @property
    def nominal_capacity(self) -> Float[Array, "..."]:
        return self._select([curve.nominal_capacity for curve in self.curves])

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return self._select([curve.initial_slope for curve in self.curves])

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self._select([curve.supremum for curve in self.curves])

    @property
    def measured_workload(self) -> Float[Array, "..."]:
        return self._select([curve.measured_workload for curve in self.curves])


def replicas(service: AbstractService) -> Float[Array, "..."]:
    """How many copies of one server each backend is, `(backends,)`; 1 where its curve is that of a single one, or of nobody knows what."""
    if isinstance(service, Replicas):
        return service.count * replicas(service.curve)
    if isinstance(service, Scaled):
        return replicas(service.curve)
    if isinstance(service, PerBackend):
        return service._select([replicas(curve) for curve in service.curves])
    return jnp.ones_like(service.nominal_capacity)


def concatenate(curves: Sequence[AbstractService]) -> AbstractService:
    """One curve over all the backends of the given curves, in their order.

    Curves of one kind are joined into that kind; different kinds become a `PerBackend`, in which every kind repeats the
    parameters of its first backend where another kind is meant.

    **Raises:** `InputError` for an empty list.
    """
    if not curves:
        raise InputError("concatenate([]) has no curve in it: give at least one.")
    curves = align(curves)
    kinds = list(dict.fromkeys(jax.tree.structure(curve) for curve in curves))
    joined = [_join([curve for curve in curves if jax.tree.structure(curve) == kind]) for kind in kinds]
    if len(kinds) == 1:
        return joined[0]
    index = np.concatenate([np.full(curve.backends, kinds.index(jax.tree.structure(curve))) for curve in curves])
    own = [index == k for k in range(len(kinds))]
    place = [np.where(mine, np.cumsum(mine) - 1, 0) for mine in own]
    return PerBackend([curve.take(where) for curve, where in zip(joined, place, strict=True)], index)


def align(curves: Sequence[AbstractService]) -> list[AbstractService]:
    """The same curves, with as many components in every `Tabulated` among them, so that their arrays fit together."""
    tables = [node for node in jax.tree.leaves(list(curves), is_leaf=_is_table) if _is_table(node)]
    most = max((table.components for table in tables), default=0)
    return [
        jax.tree.map(lambda node: node.with_components(most) if _is_table(node) else node, curve, is_leaf=_is_table)
        for curve in curves
    ]


def _is_table(node: object) -> bool:
    return isinstance(node, Tabulated)


def _join(curves: Sequence[AbstractService]) -> AbstractService:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=-1), *curves)
