"""Where this package leans on an internal of XLA, and the only place.

On CPU, XLA runs a loop as a sequence of some twenty kernels per iteration, unless it is small: then the whole loop becomes one native
function. The mark below asks for that. It changes speed, not values; without it, or on other devices, everything works the same.

The compiler of such functions is an older one, which knows less. What it lacks shows only when the outermost `jit` is compiled, often
in the user's hands; so what it is given is looked at beforehand.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Primitive
from jax.interpreters import ad, mlir
from jaxtyping import Array, PyTree

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.linear_map import traced

# Sums and extremes of so many floating-point numbers XLA gives to a library (YNNPACK), which a native function cannot call.
TOO_LARGE = 4096

# Operations that it has code for. Others (sorting, scattering, products of matrices, linear algebra, calls back to Python) are calls
# of libraries as well, or missing.
_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil clamp clz complex
    conj convert_element_type cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag
    integer_pow is_finite le lgamma log log1p logistic lt max min mul ne neg nextafter not or polygamma population_count pow real
    reduce_precision regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign
    sin sinh sqrt square stop_gradient sub tan tanh xor zeta
"""
_MOVING = """
    broadcast_in_dim concatenate copy copy_p dynamic_slice dynamic_update_slice empty expand_dims gather iota optimization_barrier pad
    reshape rev slice split squeeze stack tile transpose unstack
"""
_SUMMING = """
    argmax argmin cumlogsumexp cummax cummin cumprod cumsum reduce reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor
"""
_RANDOM = "random_bits random_fold_in random_seed random_split random_unwrap random_wrap threefry2x32"
_CONTROL = "checkpoint closed_call cond custom_jvp_call custom_vjp_call jit pjit remat scan while"
_EMITTED = frozenset(" ".join((_ELEMENTWISE, _MOVING, _SUMMING, _RANDOM, _CONTROL)).split())

_refused: set[Hashable] = set()
_T = TypeVar("_T")


def one_native_loop(function: Callable[..., Any], wanted: bool = True) -> Callable[..., Any]:
    """The same function, compiled on CPU as one native function if XLA can. Not for code that is differentiated.

    Left as it is if not `wanted`; under `vmap`, where kernels have enough to do; with an operation that XLA cannot put into a native
    function, a sum over 4096 numbers or more among them; and where XLA divides it between devices, which have to talk to each other.
    """
    if not wanted or not device.on_cpu():
        return function

    @jax.jit
    def inner(*arguments):
        return function(*arguments), _touch(arguments)

    @jax.custom_batching.custom_vmap
    def call(*arguments):
        arguments = jax.lax.optimization_barrier(arguments)
        outputs = inner(*arguments)
        if _RULE.get()(inner.trace(*arguments).jaxpr.jaxpr):
            outputs = jax.tree.map(_made_natively.bind, outputs)
        return jax.lax.optimization_barrier(outputs)[0]

    @call.def_vmap
    def many(count, batched, *arguments):
        del count
        arguments = jax.tree.map(jnp.asarray, arguments)  # constants come as something else
        some = any(jax.tree.leaves(batched))
        axes = jax.tree.map(lambda on: 0 if on else None, batched)
        outputs = jax.vmap(function, in_axes=axes)(*arguments) if some else function(*arguments)
        return outputs, jax.tree.map(lambda _: some, outputs)

    return call


def can_be_native(jaxpr: Jaxpr) -> bool:
    """Whether XLA can make one native function of this, all that is called from it included."""
    return not jaxpr.effects and all(_is_emitted(equation) for equation in jaxpr.eqns)


_RULE: ContextVar[Callable[[Jaxpr], bool]] = ContextVar("rule", default=can_be_native)


@contextlib.contextmanager
def ruled_by(rule: Callable[[Jaxpr], bool]) -> Iterator[None]:
    """Within it, another rule than `can_be_native` decides; it knows nothing of what was compiled or refused before, and leaves nothing."""
    before = _RULE.set(rule)
    _forget()
    try:
        yield
    finally:
        _RULE.reset(before)
        _forget()


def _forget() -> None:
    _refused.clear()
    jax.clear_caches()


def or_without(run: Callable[[bool], _T], key: Hashable) -> _T:
    """`run(True)`, with native loops; should XLA refuse them all the same, `run(False)`, now and whenever `key` comes again.

    For the outermost function that is compiled. Further out, in a `jit` of the user's, nothing can be caught.
    """
    if key in _refused or not device.on_cpu():
        return run(False)
    try:
        return run(True)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(("UNIMPLEMENTED", "INTERNAL")):
            raise
    found = run(False)
    _refused.add(key)
    return found


def _is_emitted(equation: JaxprEqn) -> bool:
    linear = traced(equation)
    if linear is not None:
        return can_be_native(linear)
    name = equation.primitive.name
    if name not in _EMITTED:
        return False
    if name.startswith("reduce") and name != "reduce_precision":
        operands: list[Any] = [each.aval for each in equation.invars]
        if any(jnp.issubdtype(aval.dtype, jnp.inexact) and aval.size >= TOO_LARGE for aval in operands):
            return False
    inside = [leaf for leaf in jax.tree.leaves(list(equation.params.values())) if isinstance(leaf, ClosedJaxpr | Jaxpr)]
    return all(can_be_native(leaf.jaxpr if isinstance(leaf, ClosedJaxpr) else leaf) for leaf in inside)


_made_natively = Primitive("made_natively")  # marks the call that its operand comes from
_made_natively.def_impl(lambda value: value)  # outside `jit` there is nothing to mark
_made_natively.def_abstract_eval(lambda value: value)
# A derivative is none of its business: what it marks says for itself what it can do.
ad.primitive_jvps[_made_natively] = lambda primals, tangents: (_made_natively.bind(*primals), tangents[0])


def _mark(context: mlir.LoweringRuleContext, value):
    if _is_divided(context.module_context.axis_context):
        return [value]
    mark = lambda value: set_xla_metadata(value, xla_cpu_small_call="true", inlineable="false")
    return mlir.lower_fun(mark, multiple_results=False)(context, value)


mlir.register_lowering(_made_natively, _mark, cacheable=False)


def _is_divided(axes: Any) -> bool:
    """Whether XLA divides the program between devices: more than one, and not by `shard_map`, which has done it already."""
    if isinstance(axes, mlir.SPMDAxisContext):
        return axes.mesh.size > 1 and set(axes.manual_axes) != set(axes.mesh.axis_names)
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices > 1


def _touch(arguments: PyTree) -> Array:
    """A number of every array: XLA cannot compile a native function with an argument that nothing looks at."""
    numbers = [
        leaf
        for leaf in map(jnp.asarray, jax.tree.leaves(arguments))
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    ]
    first = [jax.lax.slice(leaf.reshape(-1), (0,), (1,)) for leaf in numbers if leaf.size]
    return jnp.concatenate([number.astype(jnp.float32) for number in first])
