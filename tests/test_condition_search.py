"""A search for networks that break the sufficient conditions: whatever it finds, none is above the exact limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.numerics.results import Result
from helpers import SCALAR_CONDITIONS, hyperbolic_through

pytestmark = pytest.mark.usefixtures("quick_compilation")  # as test_conditions, whose compiled code it shares

FRONTENDS, BACKENDS = 4, 5


def build(genes: np.ndarray) -> dgd.Network:
    """Networks whose optimum uses every arc, from logarithms of slopes, gains, rates and slacks of multipliers.

    tau_ij = nu_i - 1/a_j makes all arcs equally good.
    """
    slope, gain, rate, slack = np.split(np.exp(genes), np.cumsum([BACKENDS, BACKENDS, FRONTENDS]), axis=1)
    multiplier = (1 / slope).max(1, keepdims=True) * (1 + slack)
    latency = multiplier[:, :, None] - 1 / slope[:, None, :]
    service = hyperbolic_through(slope, gain, rate.sum(1, keepdims=True) / BACKENDS)
    mask = jnp.ones(latency.shape, bool)
    build = lambda rate, latency, service, mask: dgd.Network(rate, latency, service, mask=mask)
    return jax.vmap(build)(jnp.asarray(rate), jnp.asarray(latency), service, mask)


def climb(each: int, generations: int, seed: int) -> dict[str, float]:
    """The largest sufficient / exact that a random climb finds for each condition: `each` climbers, steps that shrink on failure."""
    rng = np.random.default_rng(seed)
    count = each * len(SCALAR_CONDITIONS)
    own = np.repeat(np.arange(len(SCALAR_CONDITIONS)), each)
    start = np.concatenate(
        [rng.normal(0, 1, (count, 2 * BACKENDS + FRONTENDS)), rng.normal(-2, 2, (count, FRONTENDS))], 1
    )
    genes, best, size = start, np.full(count, -np.inf), np.ones(count)
    for generation in range(generations):
        change = rng.normal(0, 1, genes.shape) * (rng.random(genes.shape) < 0.4)
        trial = genes if generation == 0 else genes + size[:, None] * change
        networks = build(trial)
        # A climb may end in corners where slopes differ by so much that rounding hides the optimum or the crossing.
        optimum = dgd.solve_optimum(networks, throw=False)
        limit = np.asarray(dgd.critical_step_size(networks, optimum=optimum, throw=False))
        solved = (np.asarray(optimum.result) == Result.successful) & np.isfinite(limit)
        assert solved.mean() > 0.9
        steps = [
            dgd.sufficient_step_size(networks, optimum, condition=condition)[:, 0] for condition in SCALAR_CONDITIONS
        ]
        with np.errstate(invalid="ignore"):  # what is not solved
            ratio = np.stack(steps)[own, np.arange(count)] / limit
        assert np.isfinite(ratio[solved]).all()
        better = solved & (ratio > best)
        genes, best = np.where(better[:, None], trial, genes), np.where(better, ratio, best)
        size = np.clip(np.where(better, 1.5 * size, 0.9 * size), 1e-4, 2)
    return {condition.__name__: best[own == k].max() for k, condition in enumerate(SCALAR_CONDITIONS)}


@pytest.mark.parametrize(
    ("each", "generations"), [pytest.param(5, 6, id="small"), pytest.param(32, 150, id="large", marks=pytest.mark.full)]
)
def test_nothing_breaks_the_conditions(each, generations):
    found = climb(each, generations, seed=1)
    print({name: round(value, 6) for name, value in found.items()})
    assert max(found.values()) <= 1 + 1e-9
    if generations > 100:  # the search is good enough to find the cases in which conditions are exact
        assert found["theorem_b"] > 0.999
        assert found["two_parameters"] > 0.999
