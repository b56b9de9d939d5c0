"""The optimum against a general convex solver, its own optimality conditions, and the limits of what is feasible."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model import topologies
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.random_service import CURVES as RANDOM_CURVES
from dgdlb_jax.model.service import Exponential, Hyperbolic
from dgdlb_jax.numerics.results import InputError, Result
from helpers import CURVES, central_difference, single_precision, small_network

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZES = {"frontends": 4, "backends": 3}


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate:UserWarning")
@pytest.mark.parametrize("curve", CURVES)
def test_a_general_convex_solver_agrees(rng, curve):
    pytest.importorskip("cvxpy")
    network = small_network(rng, curve)
    mean_latency, workload = oracles.optimum(network)
    found = solve_optimum(network)
    # Clarabel's own accuracy: 1e-8 or so in the objective, its square root in the variables.
    assert float(found.mean_latency) == pytest.approx(mean_latency, rel=1e-7)
    np.testing.assert_allclose(found.workload, workload, rtol=2e-3, atol=1e-3)
    assert float(found.mean_latency) <= mean_latency * (1 + 1e-8)
    assert float(found.gap) <= 1e-9


def stationarity(network, found):
    """(largest relative slack on arcs with traffic, most negative relative slack on any arc, largest relative imbalance)."""
    _, slope = jax.vmap(lambda n, w: (n.service.rate(w), n.service.slope(w)))(network, found.workload)
    served = jax.vmap(lambda n, w: n.service.rate(w))(network, found.workload)
    inflow = (network.arrival_rate[..., None] * found.routing).sum(1)
    used = np.asarray(network.backend_mask) & np.asarray(inflow > 0)
    seen = 1 / slope[:, None] + network.cost_latency
    slack = np.asarray((seen - found.multiplier[..., None]) / found.multiplier[..., None])
    mask, traffic = np.asarray(network.mask), np.asarray(found.routing) > 1e-9
    imbalance = np.abs(np.asarray(inflow - served)) / np.asarray(inflow.sum(-1, keepdims=True))
    return slack[mask & traffic].max(), slack[mask].min(), np.where(used, imbalance, 0).max()


def test_latencies_far_below_the_time_in_service():
    """All arcs are nearly tied, and some backends idle: bold steps alone went in circles in half of these networks."""
    rng = np.random.default_rng(0)
    count, frontends, backends = 24, 16, 8
    scale = 10 ** rng.uniform(0, 2, (count, backends)) * rng.integers(1, 20, (count, backends))
    most = scale / rng.uniform(0.7, 1.4, (count, backends))
    latency = 10 ** rng.uniform(-6, -1, (count, 1, 1)) * rng.uniform(0.02, 1, (count, frontends, backends))
    weight = rng.exponential(1.0, (count, frontends)) + 0.05
    rate = weight * rng.uniform(0.05, 0.3, (count, 1)) * (most.sum(1) / weight.sum(1))[:, None]
    networks = Network(rate, latency, Exponential(most, scale))
    found = solve_optimum(networks)
    assert float(found.gap.max()) <= 1e-9
    _, under, imbalance = stationarity(networks, found)
    assert under > -1e-7
    assert imbalance < 1e-9
    # What the arcs in use cost above the cheapest, weighted by what they carry: a gap of its own, relative to the marginal latency.
    seen = 1 / jax.vmap(lambda n, w: n.service.slope(w))(networks, found.workload)[:, None] + latency
    above = (found.routing * (seen / found.multiplier[..., None] - 1) * rate[..., None]).sum((1, 2)) / rate.sum(1)
    np.testing.assert_allclose(above, 0, atol=1e-9)


@pytest.mark.parametrize("family", topologies.FAMILIES)
def test_optimality_conditions_hold_in_every_family(family):
    sizes = {"backends": 3} if family == "one_frontend" else SIZES
    networks = topologies.FAMILIES[family](jax.random.key(3), count=50, **sizes)
    found = solve_optimum(networks)
    assert float(found.gap.max()) <= 1e-9
    np.testing.assert_allclose(found.routing.sum(-1), 1, rtol=1e-12)
    over, under, imbalance = stationarity(networks, found)
    assert over < 1e-7
    assert under > -1e-7
    assert imbalance < 1e-9


# The mixed one has these in it.
IN_THE_MIX = {"exponential", "many_server"}


@pytest.mark.parametrize(
    "curve", [pytest.param(curve, marks=[pytest.mark.full] * (curve in IN_THE_MIX)) for curve in RANDOM_CURVES]
)
@pytest.mark.parametrize("load", [0.2, 0.9])
def test_every_curve_is_certified_at_every_load(curve, load):
    networks = topologies.complete(jax.random.key(4), count=50, load=load, service=RANDOM_CURVES[curve], **SIZES)
    assert float(solve_optimum(networks).gap.max()) <= 1e-9


def test_close_to_saturation():
    """One part in ten thousand below the supremum; rounding alone takes 1e-9 at one part in a hundred thousand."""
    networks = topologies.complete(jax.random.key(5), count=50, load=1 - 1e-4, **SIZES)
    found = solve_optimum(networks)
    assert float(found.gap.max()) <= 1e-9


def test_closed_form_of_equal_backends():
    """Equal hyperbolic backends at one latency: N = kappa r / (mu - r) each, mean latency N B / lambda + tau."""
    network = Network([3.0, 5.0], np.full((2, 4), 0.2), Hyperbolic(np.full(4, 6.0), np.full(4, 10.0)))
    found = solve_optimum(network)
    each = 10 * 2 / (6 - 2)
    np.testing.assert_allclose(found.workload, each, rtol=1e-10)
    assert float(found.mean_latency) == pytest.approx(4 * each / 8 + 0.2, rel=1e-12)
    np.testing.assert_allclose(found.multiplier, 0.2 + (10 + each) ** 2 / 60, rtol=1e-10)


def test_single_batch_and_vmap_agree():
    networks = topologies.sparse(jax.random.key(6), count=50, **SIZES)
    batch = solve_optimum(networks)
    mapped = jax.vmap(lambda network: solve_optimum(network, throw=False))(networks)
    for n in range(3):
        one = solve_optimum(networks[n])
        for name in ("workload", "multiplier", "mean_latency"):
            np.testing.assert_allclose(getattr(batch, name)[n], getattr(one, name), rtol=1e-9)
            np.testing.assert_allclose(getattr(mapped, name)[n], getattr(one, name), rtol=1e-9)


def test_padding_changes_nothing(rng):
    small = small_network(rng)
    large = topologies.complete(jax.random.key(8), frontends=5, backends=6)
    found, alone = solve_optimum(stack([small, large])), solve_optimum(small)
    assert float(found.mean_latency[0]) == pytest.approx(float(alone.mean_latency), rel=1e-12)
    np.testing.assert_allclose(found.workload[0, :4], alone.workload, rtol=1e-9)
    np.testing.assert_array_equal(found.workload[0, 4:], 0)


def test_a_frontend_without_traffic_points_to_its_cheapest_arc(rng):
    network = small_network(rng, arrival_rate=np.array([4.0, 0.0, 5.0]))
    found = solve_optimum(network)
    seen = np.where(network.mask[1], 1 / network.service.slope(found.workload) + network.cost_latency[1], np.inf)
    np.testing.assert_array_equal(found.routing[1], np.arange(4) == seen.argmin())
    assert float(found.multiplier[1]) == pytest.approx(seen.min(), rel=1e-12)


@pytest.mark.parametrize("rate", [6.0, 6.5])
def test_an_infeasible_fleet_is_told_who_is_short(rate):
    """Frontend a reaches backend p only, which serves less than 6/s; c has room enough."""
    network = Network(
        [rate, 1.0],
        np.zeros((2, 2)),
        Hyperbolic([6.0, 50.0], [1.0, 1.0]),
        mask=[[True, False], [True, True]],
        frontend_names=["a", "c"],
        backend_names=["p", "q"],
    )
    with pytest.raises(InputError, match=rf"frontend a .*backend p.*short by {rate - 6:.4g} requests/s"):
        solve_optimum(network)
    # Exactly at the supremum there is no optimum either, but no prices that prove it.
    assert int(solve_optimum(network, throw=False).result) in (Result.infeasible, Result.not_converged)


def test_one_infeasible_network_does_not_stop_a_batch(rng):
    network = small_network(rng)
    networks = stack([network, network.with_arrival_rate([400.0, 6.0, 5.0]), network])
    found = solve_optimum(networks, throw=False)
    np.testing.assert_array_equal(found.result, [Result.successful, Result.infeasible, Result.successful])
    np.testing.assert_allclose(found.workload[2], solve_optimum(network).workload, rtol=1e-9)
    with pytest.raises(InputError, match="Element 1"):
        solve_optimum(networks)


def test_derivatives_are_those_of_solving_again(rng):
    network = small_network(rng)

    def mean_latency(rate, cost):
        changed = Network(rate, network.latency, network.service, mask=network.mask, cost_latency=cost)
        return solve_optimum(changed, throw=False).mean_latency

    point = network.arrival_rate, network.cost_latency
    direction = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=(3, 4)))
    expected = central_difference(lambda p: mean_latency(*p), point, direction, h=1e-5)
    _, forward = jax.jvp(mean_latency, point, direction)
    gradient = jax.grad(mean_latency, argnums=(0, 1))(*point)
    reverse = sum(jnp.vdot(g, d) for g, d in zip(gradient, direction, strict=True))
    assert float(forward) == pytest.approx(float(expected), rel=1e-6)
    assert float(reverse) == pytest.approx(float(forward), rel=1e-10)


def test_single_precision():
    with single_precision():
        networks = topologies.geographic(jax.random.key(9), count=50, **SIZES)
        found = solve_optimum(networks)
        assert found.workload.dtype == jnp.float32
        assert float(found.gap.max()) < 1e-3
        rough = np.asarray(found.mean_latency)
        inputs = jax.tree.map(np.asarray, networks)
    exact = solve_optimum(
        jax.tree.map(lambda leaf: jnp.asarray(leaf, float) if leaf.dtype == np.float32 else leaf, inputs)
    )
    np.testing.assert_allclose(rough, exact.mean_latency, rtol=1e-4)


@pytest.mark.full
def test_near_ties_that_once_went_in_circles():
    """Two frontends with four backends each within 1e-4 of a tie: bold steps alone never arrive."""
    key = jax.random.split(jax.random.key(0), 2000)[1711]
    assert float(solve_optimum(topologies.geographic(key)).gap) <= 1e-9
