"""The world the tests run in: double precision, a compilation cache that outlives a run."""

import gc
import os
import signal
import zlib

import jax
import numpy as np
import pytest

import compiling


def pytest_configure(config: pytest.Config) -> None:
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as shells start what runs in the background; processes of tests inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    jax.config.update("jax_enable_x64", True)
    # Tests of internals replace some, which programs kept for others must not have in them; processes of their own keep theirs.
    os.environ["DGDLB_KEEP_PROGRAMS"] = "0"
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(config.rootpath / ".pytest_cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", compiling.CACHED)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.devices()  # started now: the command line, run in this process first, would make a device of every core


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_code():
    """Compiled code goes with the module it was for: thousands of loaded programs exhaust the memory maps of a process."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def quick_compilation():
    """For modules that compute little and compile much: XLA without most of its optimisations, which takes a third of the time.

    What it computes is the same but for rounding. Not for the simulator, whose compiled loop is itself under test.
    """
    with compiling.quickly():
        yield


@pytest.fixture(scope="module")
def older_emitters():
    """For modules that compile much and compute much: as the command line compiles a single fleet."""
    with compiling.quickly(optimised=True):
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A random generator of the test's own: it depends on the test's name and on nothing else."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))
