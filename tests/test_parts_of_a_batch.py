"""A batch in parts on several threads is the batch on one."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import stack
from dgdlb_jax.numerics.parallel import VARIABLE, in_order, workers_for
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.threads import LEAST, in_threads, parts_for
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import SETTINGS, compilations, small_network


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_put_together_in_order(parts):
    """17 items, which none of these numbers but 1 divides; scalars are shared."""
    batch = {"value": jnp.arange(17.0), "matrix": jnp.arange(34.0).reshape(17, 2), "shared": jnp.asarray(3.0)}
    square = jax.jit(lambda part: (part["value"] ** 2 + part["shared"], part["matrix"]))
    values, matrix = in_threads(square, batch, parts)
    np.testing.assert_array_equal(values, np.arange(17.0) ** 2 + 3)
    np.testing.assert_array_equal(matrix, batch["matrix"])


def test_every_part_has_a_thread_and_the_callers_contexts():
    seen, all_here = [], threading.Barrier(3)

    def look(part):
        all_here.wait(10)  # for the other parts, in vain if one of them began after this one
        settings = jax.enable_x64.value, jax.debug_nans.value, jax.numpy_rank_promotion.value
        seen.append((settings, parts_for(10**6, part, 8)))
        return part

    with jax.enable_x64(False), jax.debug_nans(True), jax.numpy_rank_promotion("raise"):
        in_threads(look, jnp.arange(9, dtype=jnp.float32), 3)
    assert seen == [((False, True, "raise"), 1)] * 3  # nested calls are one part


def test_compiled_once_for_all_threads():
    with compilations() as seen:
        in_threads(jax.jit(lambda x: jnp.sin(x) + 1), jnp.arange(12.0), 4)
    assert len([name for name in seen if "backend_compile" in name and "lambda" in name]) == 1


def test_the_first_exception_by_index_wins():
    """The second and third part fail, the third before the second."""
    third = threading.Event()

    def fail(part):
        begin = int(part[0])
        if begin == 6:
            third.set()
        if begin == 3:
            third.wait(10)
        if begin:
            raise ValueError(f"part that begins at {begin}")
        return part

    with pytest.raises(ValueError, match="begins at 3"):
        in_threads(fail, jnp.arange(9), 3)


def test_how_many_parts(monkeypatch):
    batch = jnp.zeros(100)
    assert [parts_for(size, batch, 4) for size in (1, 2 * LEAST - 1, 2 * LEAST, 10**4)] == [1, 1, 2, 4]
    monkeypatch.setenv(VARIABLE, "3")
    assert parts_for(100, batch) == workers_for() == 3
    assert parts_for(100, batch, 2) == 2
    assert jax.jit(lambda x: x + parts_for(100, batch))(0) == 1  # numbers that are known, under jit
    assert jax.grad(lambda x: x * parts_for(100, x * batch))(1.0) == 1
    for value in ("0", "two", "-1", "1.5"):
        monkeypatch.setenv(VARIABLE, value)
        with pytest.raises(InputError, match=rf"DGDLB_THREADS is '{value}': give a positive integer"):
            parts_for(100, batch)
    with pytest.raises(InputError, match="threads is 0"):
        parts_for(100, batch, 0)


def test_runs_and_optima_do_not_depend_on_threads(monkeypatch):
    """Twenty networks: equal to rounding for any number of threads, to the bit for the same"""
    batch = stack([small_network(np.random.default_rng(n)) for n in range(20)])
    policy = DGDLB(0.1 * (1 + np.arange(60.0).reshape(20, 3) / 60))

    def both(threads):
        monkeypatch.setenv(VARIABLE, str(threads))
        return simulate_batch(batch, policy, **(SETTINGS | {"save": SaveAt(every=20)})), solve_optimum(batch)

    one, two, again = both(1), both(2), both(2)
    for expected, found, same in zip(*map(jax.tree.leaves, (one, two, again)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        np.testing.assert_array_equal(found, same)


def test_results_come_in_the_order_of_the_jobs_whichever_ends_first():
    other_ended = threading.Event()
    jobs = {"first": lambda: other_ended.wait(30), "second": lambda: other_ended.set() or 2}
    assert list(in_order(jobs, workers=2)) == [("first", True), ("second", 2)]
    with pytest.raises(ZeroDivisionError):
        list(in_order({"first": lambda: 1, "second": lambda: 1 / 0}, workers=1))
