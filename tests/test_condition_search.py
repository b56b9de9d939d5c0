"""A search for networks that break the sufficient conditions: whatever it finds, none is above the exact limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import conditions

SCALAR = (
    conditions.theorem_a_largest,
    conditions.theorem_a,
    conditions.theorem_b,
    conditions.theorem_b_diagonal,
    conditions.theorem_c,
    conditions.theorem_c_largest,
    conditions.theorem_c_spectral,
    conditions.two_parameters,
)
FRONTENDS, BACKENDS = 4, 5


def build(genes: np.ndarray) -> dgd.Network:
    """Networks whose optimum uses every arc, from logarithms of slopes, gains, rates and slacks of multipliers.

    Hyperbolic curves fitted to the point: ell' = m h / (h + N)^2 = a and -ell''/ell'^2 = 2 (h + N) / (m h) = c, so that
    z = h + N = 2 / (a c), and h follows from the flow m (z - h) / z. tau_ij = nu_i - 1/a_j makes all arcs equally good.
    """
    slope, gain, rate, slack = np.split(np.exp(genes), np.cumsum([BACKENDS, BACKENDS, FRONTENDS]), axis=1)
    z, flow = 2 / (slope * gain), rate.sum(1, keepdims=True) / BACKENDS
    half = slope * z**2 / (flow + slope * z)
    multiplier = (1 / slope).max(1, keepdims=True) * (1 + slack)
    latency = multiplier[:, :, None] - 1 / slope[:, None, :]
    service = dgd.Hyperbolic(jnp.asarray(slope * z**2 / half), jnp.asarray(half))
    mask = jnp.ones(latency.shape, bool)
    build = lambda rate, latency, service, mask: dgd.Network(rate, latency, service, mask=mask)
    return jax.vmap(build)(jnp.asarray(rate), jnp.asarray(latency), service, mask)


def climb(each: int, generations: int, seed: int) -> dict[str, float]:
    """The largest sufficient / exact that a random climb finds for each condition: `each` climbers, steps that shrink on failure."""
    rng = np.random.default_rng(seed)
    count = each * len(SCALAR)
    own = np.repeat(np.arange(len(SCALAR)), each)
    start = np.concatenate(
        [rng.normal(0, 1, (count, 2 * BACKENDS + FRONTENDS)), rng.normal(-2, 2, (count, FRONTENDS))], 1
    )
    genes, best, size = start, np.full(count, -np.inf), np.ones(count)
    for generation in range(generations):
        change = rng.normal(0, 1, genes.shape) * (rng.random(genes.shape) < 0.4)
        trial = genes if generation == 0 else genes + size[:, None] * change
        networks = build(trial)
        optimum = dgd.solve_optimum(networks)
        limit = np.asarray(dgd.critical_step_size(networks, optimum=optimum))
        steps = [dgd.sufficient_step_size(networks, optimum, condition=condition)[:, 0] for condition in SCALAR]
        ratio = np.stack(steps)[own, np.arange(count)] / limit
        assert np.isfinite(ratio).all()
        better = ratio > best
        genes, best = np.where(better[:, None], trial, genes), np.where(better, ratio, best)
        size = np.clip(np.where(better, 1.5 * size, 0.9 * size), 1e-4, 2)
    return {condition.__name__: best[own == k].max() for k, condition in enumerate(SCALAR)}


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
