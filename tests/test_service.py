"""Service curves: values, derivatives, inverses, saturation and composition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model import service as curves
from dgdlb_jax.model.service import align, concatenate
from dgdlb_jax.numerics.results import InputError
from helpers import CURVES

pytestmark = pytest.mark.usefixtures("quick_compilation")

B = 4
WORKLOADS = np.concatenate([[0.0], np.logspace(-6, 3, 37)])


def single(tree, dtype=jnp.float32):
    """The same parameters in single precision."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, tree)


@pytest.fixture(params=CURVES)
def curve(request, rng):
    return CURVES[request.param](rng, B)


METHODS = ("rate", "slope", "curvature", "marginal_latency", "average_latency")


def rows_shared(function):
    """`function(curve, rows)` compiled for one number of rows: fewer are repeated and dropped again."""
    compiled, most = jax.jit(function), WORKLOADS.size

    def padded(curve, rows):
        rows = jnp.asarray(rows)
        found = compiled(curve, jnp.resize(rows, (most, *rows.shape[1:])))
        return jax.tree.map(lambda leaf: np.asarray(leaf[: len(rows)]), found)

    return padded


@rows_shared
def over_workloads(curve, workloads):
    """Every method, and the derivatives by autodiff (`d_rate`, ...), at each of `workloads` for all backends at once."""
    at = jnp.broadcast_to(workloads[:, None], (workloads.size, curve.backends))

    def both(method):
        return jax.vmap(lambda n: jax.jvp(method, (n,), (jnp.ones_like(n),)))(at)

    found = {name: both(getattr(curve, name)) for name in METHODS}
    return {name: pair[0] for name, pair in found.items()} | {f"d_{name}": pair[1] for name, pair in found.items()}


@rows_shared
def over_rates(curve, rates):
    """The inverse at each row of `rates`, its derivative, the slope there, and the rate there."""
    workload, derivative = jax.vmap(lambda r: jax.jvp(curve.inverse, (r,), (jnp.ones_like(r),)))(rates)
    reverse = jax.grad(lambda r: jax.vmap(curve.inverse)(r).sum())(rates)
    return workload, derivative, reverse, jax.vmap(curve.slope)(workload), jax.vmap(curve.rate)(workload)


@pytest.mark.parametrize(
    ("curve", "rate", "capacity"),
    [
        (curves.Hyperbolic([8.0], [20.0]), lambda N: 8 * N / (20 + N), 8.0),
        (curves.Exponential([8.0], [20.0]), lambda N: 8 * (1 - np.exp(-N / 20)), 8.0),
        (curves.Power([8.0], [20.0], [0.5]), lambda N: 8 * (np.sqrt(1 + N / 20) - 1), 72.0),
        (curves.Logarithmic([8.0], [20.0]), lambda N: 8 * np.log(1 + N / 20), 8 * np.log(10)),
        (curves.ManyServer([20.0], [2.5]), lambda N: N / 2.5 / np.sqrt(1 + (N / 20) ** 2), 8.0),
        (curves.ManyServer([20.0], [2.5], 5), lambda N: N / 2.5 / (1 + (N / 20) ** 5) ** 0.2, 8.0),
        (
            curves.Tabulated([[3.0], [5.0]], [[2.0], [20.0]]),
            lambda N: 3 * (1 - np.exp(-N / 2)) + 5 * (1 - np.exp(-N / 20)),
            8.0,
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, curves.AbstractService) else "",
)
def test_closed_forms(curve, rate, capacity):
    workloads = np.linspace(0.5, 200, 50)
    np.testing.assert_allclose(curve.rate(jnp.asarray(workloads)[:, None])[:, 0], rate(workloads), rtol=1e-13)
    np.testing.assert_allclose(curve.nominal_capacity, [capacity], rtol=1e-13)


def test_derivatives_are_those_of_the_rate(curve):
    """Autodiff is an independent way to slope and curvature; it knows the tail of a saturated rate to rounding only."""
    found = over_workloads(curve, jnp.asarray(WORKLOADS))
    np.testing.assert_allclose(found["slope"], found["d_rate"], rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found["curvature"], found["d_slope"], rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found["slope"][0], curve.initial_slope, rtol=1e-14)


def test_empty_increasing_concave(curve):
    found = over_workloads(curve, jnp.asarray(WORKLOADS))
    np.testing.assert_array_equal(found["rate"][0], 0.0)
    assert (found["rate"] <= curve.supremum).all()
    near = WORKLOADS < 30  # further out float64 no longer tells an exponential from its supremum
    assert (np.diff(found["rate"][near], axis=0) > 0).all()
    assert (np.diff(found["slope"][near], axis=0) < 0).all()
    # A sharp corner is straight at the origin; from there on curves bend.
    assert (found["curvature"][0] <= 0).all()
    assert (found["curvature"][near][1:] < 0).all()


@pytest.mark.parametrize(("dtype", "rounding"), [(jnp.float64, 1e-12), (jnp.float32, 2e-5)])
def test_inverse(curve, dtype, rounding):
    """The rate at the inverse is the rate asked for, from nothing to nearly everything, and so are the derivatives."""
    curve = single(curve, dtype)
    top = jnp.where(jnp.isfinite(curve.supremum), curve.supremum, 3 * curve.nominal_capacity)
    rates = jnp.array([0, 1e-9, 1e-4, 0.1, 0.5, 0.9, 0.999], dtype)[:, None] * top
    workload, forward, reverse, slope, again = over_rates(curve, rates)
    assert workload.dtype == dtype
    np.testing.assert_allclose(again, rates, rtol=rounding)
    # Near the supremum rounding of the rate moves the slope by a thousand times as much.
    np.testing.assert_allclose(forward, 1 / slope, rtol=1e3 * rounding)
    np.testing.assert_allclose(reverse, forward, rtol=2 * rounding)  # each has its own


def test_inverse_recovers_workloads_over_decades(curve):
    workloads = np.logspace(-8, 1.5, 30)[:, None]
    rates = over_workloads(curve, jnp.asarray(workloads[:, 0]))["rate"]
    np.testing.assert_allclose(over_rates(curve, rates)[0], np.repeat(workloads, B, 1), rtol=1e-9)


def test_inverse_at_and_above_the_supremum(curve):
    bounded = np.isfinite(curve.supremum)
    rates = jnp.stack([curve.supremum, 2 * curve.supremum])
    workload, derivative, *_ = over_rates(curve, rates)
    np.testing.assert_array_equal(workload, np.inf)
    np.testing.assert_array_equal(np.asarray(derivative)[:, bounded], 0.0)


def test_inverse_differentiates_with_respect_to_the_curve():
    """d/dw of the inverse of a mixture, against central differences of a full solution."""
    scales, rates = jnp.array([[2.0, 3.0], [11.0, 17.0]]), jnp.array([3.0, 6.0])
    weights = jnp.array([[2.0, 3.0], [4.0, 5.0]])

    def workload(weights):
        return curves.Tabulated(weights, scales).inverse(rates).sum()

    found, h = jax.grad(workload)(weights), 1e-5
    for k, j in np.ndindex(2, 2):
        shift = jnp.zeros((2, 2)).at[k, j].set(h)
        expected = (workload(weights + shift) - workload(weights - shift)) / (2 * h)
        np.testing.assert_allclose(found[k, j], expected, rtol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_marginal_latency_saturates(curve, dtype):
    """Values and derivatives stay finite at absurd queues; where the slope is far from 0 it is one over the slope."""
    curve = single(curve, dtype)
    found = over_workloads(curve, jnp.array([0, 10, 1e4, 1e9, 1e18], dtype))
    for values in found.values():
        assert values.dtype == dtype
        assert np.isfinite(values).all()
    assert (found["marginal_latency"] <= 1.00001e12 / curve.initial_slope).all()
    np.testing.assert_allclose(found["marginal_latency"][:2], 1 / found["slope"][:2], rtol=1e-6)


def test_average_latency_is_that_of_littles_law(curve):
    found = over_workloads(curve, WORKLOADS)
    some = WORKLOADS[1:, None] / found["rate"][1:]
    np.testing.assert_allclose(found["average_latency"][1:], some, rtol=1e-14)
    # A lone request takes as long on average as it adds.
    np.testing.assert_allclose(found["average_latency"][0], 1 / curve.initial_slope, rtol=1e-14)
    assert (found["average_latency"] <= found["marginal_latency"] * (1 + 1e-9)).all()


def test_parameters_carry_finite_gradients(curve):
    """Also at an empty backend and far beyond capacity, for every parameter."""

    @jax.jit
    def gradients(curve, workload):
        def total(curve):
            return sum(getattr(curve, name)(workload).sum() for name in METHODS)

        return jax.grad(total, allow_int=True)(curve)

    for n in (0.0, 1.0, 1e6):
        for leaf in jax.tree.leaves(gradients(curve, jnp.full(B, n))):
            assert leaf.dtype == jax.dtypes.float0 or np.isfinite(leaf).all()


@jax.jit
def in_lanes(batch, workload, rates):
    """Every method and the inverse, once under vmap and once with the batch as trailing axis."""
    lanes = jax.tree.map(lambda a: jnp.moveaxis(a, 0, -1), batch)

    def both(name, argument):
        return jax.vmap(lambda c, a: getattr(c, name)(a))(batch, argument), getattr(lanes, name)(argument.T).T

    return [both(name, workload) for name in METHODS] + [both("inverse", rates)]


def test_layouts_agree(curve):
    batch = jax.tree.map(lambda a: jnp.asarray(np.stack([a, a[..., ::-1], a])), curve)
    workload, rates = jnp.linspace(0.1, 30, 3 * B).reshape(3, B), 0.3 * batch.nominal_capacity
    for plain, lanes in in_lanes(batch, workload, rates):
        np.testing.assert_allclose(lanes, plain, rtol=1e-13)


def test_leading_axes_of_workloads_broadcast(curve):
    workloads = jnp.linspace(0, 20, 3 * B).reshape(3, B)
    expected = np.stack([curve.rate(row) for row in workloads])
    np.testing.assert_allclose(curve.rate(workloads), expected, rtol=1e-14)


def test_pad_and_take(curve):
    padded = curve.pad(B + 2)
    assert padded.backends == B + 2
    workload = jnp.linspace(1, 20, B)
    longer = jnp.concatenate([workload, workload[-1:], workload[-1:]])
    expected = curve.rate(workload)
    np.testing.assert_array_equal(padded.rate(longer)[:B], expected)
    np.testing.assert_array_equal(padded.rate(longer)[B:], expected[-1])
    np.testing.assert_array_equal(
        curve.take(np.array([2, 0])).rate(workload[np.array([2, 0])]), expected[np.array([2, 0])]
    )


def test_replicas_share_the_load():
    one = curves.Exponential([2.0, 3.0], [5.0, 6.0])
    many = curves.Replicas(one, [4.0, 1.0])
    workload = jnp.array([8.0, 3.0])
    np.testing.assert_allclose(many.rate(workload), [4 * one.rate(workload / 4)[0], one.rate(workload)[1]], rtol=1e-15)
    np.testing.assert_allclose(many.nominal_capacity, [8.0, 3.0])
    # n replicas of a hyperbola are one hyperbola with both parameters times n.
    hyperbola = curves.Replicas(curves.Hyperbolic(2.0, 5.0), 4.0)
    merged = curves.Hyperbolic(8.0, 20.0)
    for name in METHODS:
        n = jnp.array([7.0])
        np.testing.assert_allclose(getattr(hyperbola, name)(n), getattr(merged, name)(n), rtol=1e-14)
    np.testing.assert_allclose(hyperbola.inverse(jnp.array([3.0])), merged.inverse(jnp.array([3.0])), rtol=1e-14)


def test_concatenate_joins_equal_kinds():
    joined = concatenate(
        [curves.Hyperbolic([1.0], [2.0]), curves.Hyperbolic([3.0, 4.0], [5.0, 6.0], capacity=[2.0, 3.0])]
    )
    assert isinstance(joined, curves.Hyperbolic)
    np.testing.assert_array_equal(joined.max_rate, [1, 3, 4])
    np.testing.assert_array_equal(joined.nominal_capacity, [1, 2, 3])


def test_concatenate_mixes_kinds(rng):
    """Every backend of the mixture behaves as in the curve that it came from, derivatives and all."""
    parts = [
        curves.Tabulated([[3.0], [2.0]], [[4.0], [9.0]], [4.5], [64.0]),
        curves.Hyperbolic([5.0, 6.0], [7.0, 8.0]),
        curves.Tabulated([[3.0]], [[4.0]]),
        curves.Power([2.0], [3.0], [0.4]),
        curves.Replicas(curves.Hyperbolic([2.0], [3.0]), [2.0]),
    ]
    mixture = concatenate(parts)
    assert isinstance(mixture, curves.PerBackend)
    np.testing.assert_array_equal(mixture.index, [0, 1, 1, 0, 2, 3])
    workload = jnp.asarray(rng.uniform(0, 30, 6))
    pieces = np.split(np.arange(6), np.cumsum([part.backends for part in parts])[:-1])
    for name in METHODS:
        expected = np.concatenate([getattr(p, name)(workload[at]) for p, at in zip(parts, pieces, strict=True)])
        np.testing.assert_allclose(getattr(mixture, name)(workload), expected, rtol=1e-14)
    for name in ("nominal_capacity", "supremum", "measured_workload", "initial_slope"):
        np.testing.assert_allclose(
            getattr(mixture, name), np.concatenate([getattr(p, name) for p in parts]), rtol=1e-15
        )
    rates = 0.5 * mixture.nominal_capacity
    np.testing.assert_allclose(mixture.rate(mixture.inverse(rates)), rates, rtol=1e-13)


def test_mixtures_leak_no_nan():
    """A rate that one kind cannot reach is no trouble at a backend of another kind."""
    mixture = curves.PerBackend(
        (curves.Hyperbolic([1.0, 1.0], [1.0, 1.0]), curves.Logarithmic([9.0, 9.0], [1.0, 1.0])), [1, 0]
    )
    rates = jnp.array([5.0, 0.5])
    assert np.isfinite(mixture.inverse(rates)).all()
    assert np.isfinite(jax.grad(lambda r: mixture.inverse(r).sum())(rates)).all()


def test_align_equalises_tables_inside_other_curves():
    two = curves.Tabulated([[1.0], [2.0]], [[3.0], [4.0]])
    three = curves.Replicas(curves.Tabulated([[1.0], [2.0], [3.0]], [[3.0], [4.0], [5.0]]), 2.0)
    aligned = align([two, three])
    assert aligned[0].components == 3
    n = jnp.array([5.0])
    np.testing.assert_allclose(aligned[0].rate(n), two.rate(n), rtol=1e-15)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: curves.Hyperbolic([8.0, -1.0], [20.0, 20.0]),
            r"Hyperbolic.max_rate of backend 1 is -1.*max_rate\[1\]",
        ),
        (lambda: curves.Hyperbolic([8.0, 1.0], [20.0, np.nan]), "Hyperbolic.half_load of backend 1 is nan"),
        (lambda: curves.Hyperbolic([8.0, 1.0], [20.0, 1.0, 2.0]), "shapes"),
        (lambda: curves.Exponential([8.0], [0.0]), "Exponential.scale of backend 0 is 0"),
        (lambda: curves.Exponential([8.0], np.array(["a"])), "Exponential.scale is not an array of numbers"),
        (lambda: curves.Power([1.0], [1.0], [1.0]), "Power.exponent of backend 0 is 1"),
        (lambda: curves.Power([1.0], [1.0], [0.9999]), "Power.capacity of backend 0 is inf"),
        (lambda: curves.ManyServer([1.0], [1.0], 0.5), "ManyServer.sharpness of backend 0 is 0.5"),
        (lambda: curves.Hyperbolic([8.0], [20.0], capacity=[0.0]), "Hyperbolic.capacity of backend 0 is 0"),
        (lambda: curves.Hyperbolic([8.0], [20.0], capacity=[1.0, 2.0]), "Hyperbolic.capacity has shape"),
        (lambda: curves.Tabulated([[1.0, -1.0]], [[1.0, 1.0]]), "Tabulated.weights of backend 1 is -1"),
        (
            lambda: curves.Hyperbolic([8.0, 9.0], [20.0], capacity=[8.0, 9.1]),
            r"backend 1 is 9.1, above 9.*capacity\[1\]",
        ),
        (lambda: curves.Exponential([8.0], [20.0], capacity=8.1), "Exponential.capacity of backend 0 is 8.1, above 8"),
        (lambda: curves.ManyServer([20.0], [2.5], capacity=[8.1]), "ManyServer.capacity of backend 0 is 8.1, above 8"),
        (
            lambda: curves.Tabulated([[1.0], [2.0]], [[1.0]] * 2, [3.1]),
            "Tabulated.capacity of backend 0 is 3.1, above 3",
        ),
        (lambda: curves.Tabulated([[0.0]], [[1.0]]), "sum of weights of backend 0 is 0"),
        (lambda: curves.Tabulated([[1.0]], [[1.0]], measured=[-1.0]), "Tabulated.measured of backend 0 is -1"),
        (lambda: curves.Tabulated([1.0], [1.0]), "components x backends"),
        (lambda: curves.Replicas(curves.Hyperbolic([8.0], [20.0]), [0.0]), "Replicas.count of backend 0 is 0"),
        (lambda: curves.Replicas(curves.Hyperbolic([8.0], [20.0]), [1.0, 2.0]), "one count per backend"),
        (lambda: curves.PerBackend((curves.Hyperbolic([8.0], [20.0]),), [1]), "points to no curve"),
        (lambda: curves.PerBackend((curves.Hyperbolic([8.0], [20.0]),), [0, 0]), "parameters for all backends"),
        (lambda: concatenate([]), "at least one"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(InputError, match=message):
        build()


def test_tracing_looks_at_shapes_only():
    found = jax.jit(lambda mu: curves.Hyperbolic(mu, 20.0).rate(jnp.array([5.0, 5.0])))(jnp.array([8.0, -8.0]))
    np.testing.assert_allclose(found, [1.6, -1.6])
