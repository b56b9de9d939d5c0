"""The engine and the optimum mix no types: counts become rates where it says so, under JAX's strict promotion. Traced only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import events as happen
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.simulation.engine import simulate_batch
from helpers import CURVES, POLICIES, SETTINGS, small_network

simulate_strictly, solve_strictly = simulate_batch.__wrapped__, solve_optimum.__wrapped__
SAMPLE = ("DGDLB", "HotCold", "PeakEWMA", "OrcaWeights")
DTYPES = ("float32", pytest.param("float64", marks=pytest.mark.full))


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"):
        yield


def two(dtype="float32", curve="Hyperbolic") -> Network:
    network = with_float_type(small_network(np.random.default_rng(0), curve), np.dtype(dtype))
    return stack([network, network])


def trace(policy, networks: Network, **settings) -> None:
    jax.eval_shape(lambda n: simulate_strictly(n, policy, throw=False, **SETTINGS | settings), networks)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name not in SAMPLE)) for name in POLICIES]
)
def test_every_policy(name):
    networks = two()
    policy = POLICIES[name](jax.tree.map(lambda leaf: leaf[0], networks))
    trace(jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]) if jnp.ndim(leaf) else leaf, policy), networks)


@pytest.mark.parametrize("dtype", DTYPES)
def test_curves_optima_and_events(dtype):
    for curve in CURVES:
        trace(dgd.DGDLB(0.1), two(dtype, curve))
    jax.eval_shape(lambda n: solve_strictly(n, throw=False), two(dtype))
    slow = [happen.Latency(0.5, 1.7, 0), happen.Breaks(0.7, 1, 0), happen.Mends(0.9, 1, 0)]
    again = [happen.Fails(0.618, 0, timeout=0.4), happen.Recovers(0.9, 0)]
    for events in (slow, again):
        trace(dgd.DGDLB(0.1), two(dtype), events=events)


def test_users_may_be_stricter_than_the_package():
    product = standard_promotion(lambda rates, arcs: rates * arcs)
    with jax.numpy_rank_promotion("raise"):
        assert product(jnp.arange(2), jnp.ones((3, 2), np.float32)).shape == (3, 2)
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones(2) * jnp.ones((3, 2))
