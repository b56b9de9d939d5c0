"""Which inputs a function needs, against functions whose answer is plain to see."""

import jax
import jax.numpy as jnp

from dgdlb_jax.numerics.dependence import dependence, depends_on, needed_inputs


def test_rows_are_outputs_and_columns_inputs():
    def function(pair, c):
        a, b = pair
        return {"copy": c, "sum": a + b, "constant": jnp.ones(2)}

    rows = dependence(function, (1.0, 2.0), jnp.zeros(3))  # leaves of a dictionary are sorted: constant, copy, sum
    assert rows == [[False, False, False], [False, False, True], [True, True, False]]
    assert needed_inputs(function, (1.0, 2.0), jnp.zeros(3)) == [True, True, True]


def test_loops_are_looked_into():
    """`b` reaches `a` through the loop, `c` reaches itself only."""

    def function(a, b, c):
        step = lambda state, _: ((state[0] + state[1], 2 * state[1], state[2] + 1), None)
        a, b, c = jax.lax.scan(step, (a, b, c), length=3)[0]
        return a, c

    assert dependence(function, 1.0, 1.0, 1.0) == [[True, True, False], [False, False, True]]


def test_what_is_computed_in_vain_does_not_count():
    def function(x):
        jnp.sin(x)
        return jnp.zeros(())

    assert not depends_on(function, 1.0)
    assert depends_on(lambda x: 0 * x, 1.0)
    assert depends_on(lambda x: jax.jit(jnp.sin)(x), jax.ShapeDtypeStruct((2,), jnp.float32))
