"""A linear map that brings its own transpose.

`jax.custom_vjp` gives a function a reverse mode and takes its forward mode away. A `jax.custom_jvp` rule that ends in a linear map
with a transpose of its own has both. `jax.custom_derivatives.linear_call` is such a map, but knows no `vmap`; this one does.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Primitive
from jax.interpreters import ad, batching, mlir

from dgdlb_jax.numerics.promotion import standard_promotion

Arrays = Sequence[Any]  # of arrays; in some transformations JAX has other things in their place
Linear = Callable[[Arrays, Arrays], Arrays]
"""From what it depends on otherwise, and what it is linear in."""


def linear_map(forward: Linear, transpose: Linear, given: Arrays, values: Arrays) -> list[Any]:
    r"""Apply a linear map whose transpose is known: $y = A(given)\, x$, and $x' = A(given)^T y'$ in reverse mode.

    **Arguments:**

    - `forward(given, values)`: the map, as a list of arrays. It must not close over traced values.
    - `transpose(given, cotangents)`: its transpose; one cotangent for each output of the map, None where it is zero, and
      one result for each of `values`.
    - `given`: what the map depends on otherwise; it has no derivative with respect to these.
    - `values`: what it is linear in.

    **Returns:** the list of outputs.

    **Raises:** `NotImplementedError` when a second derivative asks for that with respect to `given`.
    """
    shapes = jax.eval_shape(forward, list(given), list(values))
    return _linear_map.bind(*given, *values, forward=forward, transpose=transpose, split=len(given), count=len(shapes))


def traced(equation: JaxprEqn) -> Jaxpr | None:
    """The operations that an equation stands for if it is such a map, else None."""
    if equation.primitive is not _linear_map:
        return None
    avals: list[Any] = [each.aval for each in equation.invars]
    arrays = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in avals]
    return jax.make_jaxpr(partial(_apply, **equation.params))(*arrays).jaxpr


_linear_map = Primitive("linear_map")
_linear_map.multiple_results = True


@_linear_map.def_impl
@standard_promotion
def _apply(*arrays, forward, transpose, split, count):
    del transpose, count
    return list(forward(list(arrays[:split]), list(arrays[split:])))


@_linear_map.def_abstract_eval
@standard_promotion
def _shapes(*arrays, forward, transpose, split, count):
    del transpose, count
    arrays = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    outputs = jax.eval_shape(forward, arrays[:split], arrays[split:])
    return [jax.core.ShapedArray(output.shape, output.dtype) for output in outputs]


def _jvp(primals, tangents, *, split, **map_):
    if any(not isinstance(tangent, ad.Zero) for tangent in tangents[:split]):
        raise NotImplementedError(
            "Second derivatives of a simulation are not available: take differences of its gradients instead."
        )
    moved = [ad.instantiate_zeros(tangent) for tangent in tangents[split:]]
    bind = partial(_linear_map.bind, *primals[:split], split=split, **map_)
    return bind(*primals[split:]), bind(*moved)


@standard_promotion
def _transpose(cotangents, *arrays, forward, transpose, split, count):
    del count
    given, values = arrays[:split], arrays[split:]
    there = tuple(k for k, cotangent in enumerate(cotangents) if not isinstance(cotangent, ad.Zero))
    size = len(cotangents)

    def back(given: Arrays, some: Arrays) -> Arrays:
        every: list[Any] = [None] * size
        for k, cotangent in zip(there, some, strict=True):
            every[k] = cotangent
        return transpose(given, every)

    def again(given: Arrays, cotangents: Arrays) -> Arrays:
        outputs = forward(given, cotangents)
        return [outputs[k] for k in there]

    found = linear_map(back, again, given, [cotangents[k] for k in there])
    assert len(found) == len(values)
    return [None] * split + found


@standard_promotion
def _batch(arrays, dims, *, forward, transpose, split, count):
    del count
    size = next(array.shape[dim] for array, dim in zip(arrays, dims, strict=True) if dim is not None)
    axes = list(dims[:split])
    values = [
        jnp.broadcast_to(value, (size, *np.shape(value))) if dim is None else jnp.moveaxis(value, dim, 0)
        for value, dim in zip(arrays[split:], dims[split:], strict=True)
    ]
    # In a transpose a cotangent may be None; vmap does not mind, None has no leaves.
    outputs = linear_map(
        jax.vmap(forward, in_axes=(axes, 0)), jax.vmap(transpose, in_axes=(axes, 0)), arrays[:split], values
    )
    return outputs, [0] * len(outputs)


ad.primitive_jvps[_linear_map] = _jvp
ad.primitive_transposes[_linear_map] = _transpose
batching.primitive_batchers[_linear_map] = _batch
mlir.register_lowering(_linear_map, mlir.lower_fun(_apply, multiple_results=True))
