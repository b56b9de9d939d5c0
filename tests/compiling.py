"""How the tests compile, which is most of what they take. The package is imported after this module, so only by its functions."""

from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest

CACHED = 0.1
"""Seconds from which on a compiled program is kept for other tests and other processes."""


def flags(optimisation: int = 0) -> str:
    """`XLA_FLAGS` of a process of its own that compiles quickly; with 0, to the same bits as `quickly`."""
    chosen = {"xla_backend_optimization_level": optimisation, "xla_llvm_disable_expensive_passes": optimisation == 0}
    return " ".join(f"--{name}={str(value).lower()}" for name, value in (chosen | _emitters()).items())


@contextmanager
def quickly(optimised: bool = False) -> Iterator[None]:
    """Meanwhile everything in this process is compiled quickly; `optimised` where much is computed as well."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", before or not optimised)
    with pytest.MonkeyPatch.context() as patch:
        if emitters := _emitters():
            _compile_with(emitters, patch)
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def _emitters() -> dict[str, bool | int]:
    """The flags by which the command line compiles a single fleet: in a third of the time, and as fast at the sizes of tests."""
    from dgdlb_jax.cli.common import OLDER_EMITTERS, OLDER_UNTIL

    return OLDER_EMITTERS if jax.__version_info__ < OLDER_UNTIL else {}


def _compile_with(chosen: dict, patch: pytest.MonkeyPatch) -> None:
    # JAX takes XLA's options for a single `jit`, or for a whole process from the environment. A worker that runs these tests also
    # runs those of the simulator, which is to be compiled as a user does.
    from jax._src import compiler

    original = compiler.get_compile_options

    def with_chosen(**options):
        overrides = chosen | (options.pop("env_options_overrides", None) or {})
        return original(**options, env_options_overrides=overrides)

    patch.setattr(compiler, "get_compile_options", with_chosen)
