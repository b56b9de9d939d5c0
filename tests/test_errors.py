"""Errors say whose fault it is: the input's, or a solver's that did not converge."""

from argparse import Namespace

import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import _answer
from dgdlb_jax.numerics.results import raise_on_failure
from dgdlb_jax.numerics.winding import turn


def test_a_solver_that_stopped_early_is_not_a_fault_of_the_input():
    assert not issubclass(dgd.ConvergenceError, dgd.InputError)
    with pytest.raises(dgd.ConvergenceError, match="solve_optimum: The solver stopped before it reached its tolerance"):
        raise_on_failure(jnp.int32(dgd.Result.not_converged), "solve_optimum")
    with pytest.raises(dgd.InputError, match=r"element 1 \(2 of 3 failed.*demand exceeds"):
        raise_on_failure(jnp.array([0, dgd.Result.infeasible, dgd.Result.not_converged]), "solve_optimum")


def test_turns_that_cannot_be_counted():
    """A curve that turns through a right angle between any two points, however close."""
    noise = np.random.default_rng(0)
    with pytest.raises(dgd.ConvergenceError, match="too close to the imaginary axis"):
        turn(lambda points: (noise.uniform(0, 6, points.size), np.zeros(points.size)), 0.1, 1.0)


@pytest.mark.parametrize(("error", "code"), [(dgd.InputError, 2), (dgd.ConvergenceError, 1)])
def test_the_command_line_answers_in_one_sentence(error, code, capsys):
    def command(options):
        raise error("Something is wrong: do something else.")

    assert _answer(Namespace(command=command, imports=[])) == code
    assert capsys.readouterr().err == "dgdlb: error: Something is wrong: do something else.\n"
