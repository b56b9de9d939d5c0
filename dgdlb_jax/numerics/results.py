"""How a computation ended: sentences for people, one integer per element for batches."""

import enum
import itertools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


class InputError(ValueError):
    """A user's input is at fault; the message names the value, the place and the remedy in one sentence."""


class ConvergenceError(RuntimeError):
    """A solver stopped before it reached its tolerance, on inputs that look sound; the message says what to try."""


class Result(enum.IntEnum):
    """Result codes. Arrays of them (int32) travel through `jit` and `vmap`; the failure of one element never stops a batch."""

    successful = 0
    not_finite = 1
    latency_overflow = 2
    step_too_large = 3
    infeasible = 4
    not_converged = 5
    not_settled = 6
    unstable = 7

    @property
    def sentence(self) -> str:
        """What happened and what to do about it."""
        return _SENTENCES[self]


_SENTENCES = {
    Result.successful: "The computation was successful.",
    Result.not_finite: "A value became NaN or infinite: check the inputs for NaN, and try a smaller step size or dt.",
    Result.latency_overflow: (
        "A latency does not fit the delay buffer: raise max_latency to the largest latency, or leave it out outside jit."
    ),
    Result.step_too_large: (
        "The time step is too large for the fastest backend (dt * service slope > 1): "
        "lower dt, suggest_dt(network) proposes a value."
    ),
    Result.infeasible: "The demand exceeds what the backends can serve: lower arrival rates, add capacity or allow more arcs.",
    Result.not_settled: (
        "The reaction to one more request has not died out at the end of the run: "
        "run on for longer, or use a smaller step size if the run itself does not come to rest."
    ),
    Result.unstable: (
        "The policy oscillates by itself: make it slower, critical_step_size(network, policy) says by which factor at least."
    ),
    Result.not_converged: "The solver stopped before it reached its tolerance: rescale the inputs or use float64.",
}


def code(result: Result) -> Int[Array, ""]:
    """One result as an array."""
    return jnp.asarray(int(result), jnp.int32)


def first_failure(*results: Int[Array, "..."]) -> Int[Array, "..."]:
    """The first code that is not `successful`, elementwise."""
    merged = results[0]
    for result in results[1:]:
        merged = jnp.where(merged == Result.successful, result, merged)
    return merged


def is_concrete(*trees) -> bool:
    """Whether no leaf is a tracer, so that values may be looked at."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in itertools.chain(*map(jax.tree.leaves, trees)))


def under_jit() -> bool:
    """Whether what is computed here is traced, even with numbers that are known."""
    return not is_concrete(jnp.zeros(()) + 0)


def require_values(what: str, *trees) -> None:
    """Raise `InputError` for a function that has to look at values, where a transformation of JAX hides them."""
    if not is_concrete(*trees):
        raise InputError(f"{what} needs values: call it outside jit, vmap and grad.")


def raise_on_failure(results: Int[Array, "..."], what: str) -> None:
    """Raise the error that fits the first failure, with its sentence and its place in a batch. Does nothing under tracing.

    **Raises:** `ConvergenceError` where a solver did not reach its tolerance, `InputError` for every other failure.
    """
    if not is_concrete(results):
        return
    codes = np.asarray(results)
    failed = np.flatnonzero(codes != Result.successful)
    if failed.size == 0:
        return
    place = (
        ""
        if codes.ndim == 0
        else f", element {failed[0]} ({failed.size} of {codes.size} failed; throw=False keeps the others)"
    )
    result = Result(int(codes.flat[failed[0]]))
    error = ConvergenceError if result == Result.not_converged else InputError
    raise error(f"{what}{place}: {result.sentence}")
