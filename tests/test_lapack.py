"""LAPACK gets one matrix at a time: with batches, calls at the same time can wait for each other's threads for ever."""

import re
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import conditions
from dgdlb_jax.numerics import lapack

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNG = np.random.default_rng(0)
COMPLEX = RNG.normal(size=(3, 4, 4)) + 1j * RNG.normal(size=(3, 4, 4))
HERMITIAN = COMPLEX + COMPLEX.conj().transpose(0, 2, 1)


def batches(program: str) -> list[str]:
    """Calls of LAPACK in a compiled program that get more than one matrix."""
    calls = re.findall(r"custom-call\(.*?custom_call_target=\"lapack_\w+\".*", program)
    assert calls
    arrays = lambda call: re.findall(r"\w+\[([\d,]+)\]\{", call)
    return [call for call in calls if any(len(shape.split(",")) > 2 for shape in arrays(call))]


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_the_check_finds_what_it_looks_for():
    assert batches(compiled(jnp.linalg.eigvalsh, HERMITIAN))
    assert not batches(compiled(jax.vmap(lapack.eigvalsh), HERMITIAN))


def networks_and_optima():
    networks = dgd.topologies.complete(jax.random.key(3), frontends=3, backends=4, count=3)
    return networks, dgd.solve_optimum(networks)


AVERAGED = dgd.estimates.estimated(dgd.DGDLB(0.01), dgd.estimates.ExponentialAverage(0.1))
PROGRAMS = {
    "critical_mode": lambda nets, best: dgd.critical_mode(nets, optimum=best, throw=False).frequency,
    "with_memory": lambda nets, best: dgd.critical_step_size(nets, AVERAGED, best, throw=False),
    "two_parameters": lambda nets, best: dgd.sufficient_step_size(nets, best, condition=conditions.two_parameters),
    "best_proven": lambda nets, best: dgd.sufficient_step_size(nets, best, condition=conditions.best_proven),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_analyses_give_lapack_one_matrix_at_a_time(name):
    assert not batches(compiled(PROGRAMS[name], *networks_and_optima()))


@pytest.mark.parametrize(
    ("ours", "reference", "matrix"),
    [
        (lapack.eigvalsh, jnp.linalg.eigvalsh, HERMITIAN),
        (lambda m: lapack.solve(m, m[:, 0]), lambda m: jnp.linalg.solve(m, m[:, 0]), COMPLEX),
        (lambda m: lapack.solve(m, m.T), lambda m: jnp.linalg.solve(m, m.T), COMPLEX.real),
        (lambda m: lapack.solve(m, m.T, lapack.lu_factor(jax.lax.stop_gradient(m))), lambda m: jnp.linalg.solve(m, m.T), COMPLEX),
    ],
)  # fmt: skip
def test_values_and_both_derivatives_are_those_of_jax(ours, reference, matrix):
    change = matrix[::-1] @ matrix + (matrix[::-1] @ matrix).conj().swapaxes(1, 2)
    weight = np.cos(np.arange(np.size(jax.eval_shape(jax.vmap(reference), matrix)))).reshape(
        jax.eval_shape(jax.vmap(reference), matrix).shape
    )

    def everything(function):
        many = jax.vmap(function)
        back = jax.grad(lambda m: jnp.real(weight * many(m)).sum())(jnp.asarray(matrix))
        # A Hermitian matrix has one gradient up to how its two triangles share it.
        return *jax.jvp(many, (matrix,), (change,)), back + back.conj().swapaxes(1, 2) if matrix is HERMITIAN else back

    for found, expected in zip(everything(ours), everything(reference), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_others_are_those_of_numpy():
    values, vectors = jax.vmap(lapack.eig)(COMPLEX)
    np.testing.assert_allclose(COMPLEX @ vectors, vectors * values[:, None], atol=1e-10)
    order = lambda values: np.sort_complex(np.asarray(values))
    np.testing.assert_allclose(order(jax.vmap(lapack.eigvals)(COMPLEX)), order(np.linalg.eigvals(COMPLEX)), atol=1e-10)
    np.testing.assert_allclose(jax.vmap(lapack.singular_values)(COMPLEX), np.linalg.svd(COMPLEX)[1], rtol=1e-10)
    np.testing.assert_allclose(jax.vmap(lapack.pseudo_inverse)(HERMITIAN), np.linalg.inv(HERMITIAN), rtol=1e-8)
    np.testing.assert_allclose(jax.vmap(lapack.slogdet)(COMPLEX)[0], np.linalg.slogdet(COMPLEX)[0], rtol=1e-10)
    solved = jax.vmap(lapack.lu_solve_adjoint)(jax.vmap(lapack.lu_factor)(COMPLEX), COMPLEX[:, 0])
    np.testing.assert_allclose(np.einsum("nji,nj->ni", COMPLEX.conj(), solved), COMPLEX[:, 0], atol=1e-10)


@pytest.mark.full
def test_critical_step_sizes_from_two_threads_at_once_come_back():
    """Of 16 networks of 16 x 16: with batches given to LAPACK neither thread came back within a minute."""
    networks = dgd.topologies.complete(jax.random.key(0), frontends=16, backends=16, count=16)
    optimum, found = dgd.solve_optimum(networks), {}
    expected = dgd.critical_step_size(networks, optimum)
    find = lambda k: found.update({k: dgd.critical_step_size(networks, optimum)})
    threads = [threading.Thread(target=find, args=(k,), daemon=True) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(found) == [0, 1]
    for values in found.values():
        np.testing.assert_allclose(values, expected, rtol=1e-12)
