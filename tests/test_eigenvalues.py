"""Calls of LAPACK come one after the other: side by side they can wait for each other's threads, for ever."""

import re

import jax
import jax.numpy as jnp
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import conditions
from dgdlb_jax.numerics.eigenvalues import in_turn

pytestmark = pytest.mark.usefixtures("quick_compilation")


def side_by_side(program: str) -> list[tuple[str, str]]:
    """Pairs of operations of a compiled program that call LAPACK and do not depend on one another."""
    parts = re.split(r"\n(?=(?:ENTRY )?%\S+ \()", program)
    operations = {re.match(r"\s*(?:ENTRY )?%?(\S+)", part)[1]: _operations(part) for part in parts}

    def calls_lapack(line: str) -> bool:
        inner = [name for name in re.findall(r"%([\w.\-]+)", line.partition("(")[2]) if name in operations]
        return "lapack_" in line or any(calls_lapack(line) for name in inner for line in operations[name].values())

    found = []
    for lines in operations.values():
        known: dict[str, set[str]] = {}
        for name, line in lines.items():
            needs = [other for other in re.findall(r"%([\w.\-]+)", line) if other in known]
            known[name] = set(needs).union(*(known[other] for other in needs))
        calling = [name for name, line in lines.items() if calls_lapack(line)]
        found += [(a, b) for k, b in enumerate(calling) for a in calling[:k] if a not in known[b]]
    return found


def _operations(part: str) -> dict[str, str]:
    """Name and right-hand side of each operation of a computation, in the order of use."""
    return dict(re.findall(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*)$", part, re.M))


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_the_check_finds_what_it_looks_for():
    matrices = jnp.stack([jnp.eye(3), 2 * jnp.eye(3)])
    largest = lambda matrices: jnp.linalg.eigvalsh(matrices).max()
    assert side_by_side(compiled(lambda m: largest(m) + largest(m + 1), matrices))
    assert not side_by_side(compiled(lambda m: largest(m) + largest(in_turn(largest(m), m + 1)), matrices))


@pytest.mark.parametrize("condition", ["critical", "two_parameters", "best_proven"])
def test_lapack_is_called_in_turn(condition):
    networks = dgd.topologies.complete(jax.random.key(3), frontends=3, backends=4, count=3)
    optimum = dgd.solve_optimum(networks)
    if condition == "critical":
        program = compiled(lambda nets, best: dgd.critical_mode(nets, optimum=best), networks, optimum)
    else:
        rule = getattr(conditions, condition)
        program = compiled(lambda nets, best: dgd.sufficient_step_size(nets, best, condition=rule), networks, optimum)
    assert "lapack_" in program
    assert not side_by_side(program)
