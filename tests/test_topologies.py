"""Families of random networks: reproducible, batched alike, and what their names promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model import topologies
from dgdlb_jax.model.service import Replicas
from dgdlb_jax.model.topologies import CURVES, FAMILIES
from dgdlb_jax.numerics.results import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEY = jax.random.key(7)
SIZES = {"frontends": 6, "backends": 5}


def draw(family, key=KEY, **options):
    sizes = {"backends": SIZES["backends"]} if family == "one_frontend" else SIZES
    return FAMILIES[family](key, **sizes, **options)


@pytest.fixture(scope="module")
def batches():
    return {family: draw(family, count=4) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_same_key_same_network(family):
    one, other, different = draw(family), draw(family), draw(family, key=jax.random.key(8))
    assert jax.tree.structure(one) == jax.tree.structure(other)
    assert all(jnp.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    assert not jnp.array_equal(one.arrival_rate, different.arrival_rate)


def test_a_batch_is_its_networks(family, batches):
    for k, key in enumerate(jax.random.split(KEY, 4)[:2]):
        alone, together = draw(family, key=key).anonymous(), batches[family][k]
        assert jax.tree.structure(alone) == jax.tree.structure(together)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14)


def test_networks_are_complete_and_feasible_in_total(family, batches):
    batch = batches[family]
    assert batch.batch == 4
    assert batch.mask.shape == (4, 1 if family == "one_frontend" else 6, 5)
    assert (batch.arrival_rate > 0).all()
    assert (batch.latency >= 0).all()
    assert batch.mask.any(-1).all()
    assert batch.mask.any(-2).all()
    assert family == "sparse" or batch.mask.all()
    if family == "near_critical":
        assert ((batch.load >= 0.95) & (batch.load <= 0.99)).all()
        assert len(np.unique(batch.load)) == 4
    else:
        np.testing.assert_allclose(batch.load, 0.7, rtol=1e-12)


def test_load_and_latency_scale(family):
    plain, other = draw(family, load=0.4), draw(family, load=0.8, latency=3.0)
    np.testing.assert_allclose(plain.load, 0.4, rtol=1e-12)
    np.testing.assert_allclose(other.arrival_rate, 2 * plain.arrival_rate, rtol=1e-12)
    np.testing.assert_allclose(other.latency, 3 * plain.latency, rtol=1e-12)


def test_one_frontend(batches):
    assert batches["one_frontend"].frontends == 1


def test_symmetric_is_symmetric(batches):
    batch = batches["symmetric"]
    for values in (batch.latency, batch.arrival_rate, batch.service.max_rate, batch.service.half_load):
        flat = np.asarray(values).reshape(4, -1)
        np.testing.assert_array_equal(flat, np.repeat(flat[:, :1], flat.shape[1], 1))
    assert len(np.unique(batch.latency)) == 4


def test_equal_latencies_are_equal_and_nothing_else_is(batches):
    batch = batches["equal_latencies"]
    assert all(len(np.unique(one)) == 1 for one in np.asarray(batch.latency))
    assert len(np.unique(batch.latency)) == 4
    assert all(len(np.unique(one)) == 5 for one in np.asarray(batch.service.max_rate))


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_sparse_feasible_for_every_group_of_frontends(density):
    """Hall's condition: no group of frontends asks for more than its backends' capacity, not even at a load of 0.99."""
    batch = topologies.sparse(KEY, frontends=6, backends=5, count=20, load=0.99, density=density)
    mask, rate, capacity = (np.asarray(a) for a in (batch.mask, batch.arrival_rate, batch.nominal_capacity))
    assert mask.sum(-1).min() >= 2
    assert mask.any(-2).all()
    assert mask.mean() == 1 if density == 1 else mask.mean() < 0.75
    for group in range(1, 2**6):
        members = np.array([group >> i & 1 for i in range(6)], bool)
        reachable = mask[:, members].any(axis=1)
        assert (rate[:, members].sum(-1) <= 0.99 * (capacity * reachable).sum(-1) * (1 + 1e-12)).all()


def test_sparse_with_a_single_backend():
    assert topologies.sparse(KEY, frontends=3, backends=1).mask.all()


def test_geographic_follows_its_rule():
    network = topologies.geographic(KEY, frontends=12, backends=12)
    assert len(set(network.frontend_names)) == 12
    assert set(network.frontend_names) <= set(topologies.CITIES)
    for i, origin in enumerate(network.frontend_names):
        for j, target in enumerate(network.backend_names):
            (north, east), (north2, east2) = (
                np.radians(topologies.CITIES[origin]),
                np.radians(topologies.CITIES[target]),
            )
            # The angle between two unit vectors: another formula than the one used.
            one = [np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)]
            two = [np.cos(north2) * np.cos(east2), np.cos(north2) * np.sin(east2), np.sin(north2)]
            angle = np.arctan2(np.linalg.norm(np.cross(one, two)), np.dot(one, two))
            assert network.latency[i, j] == pytest.approx(1e-3 + 1.6 * 6371 * angle / 2e5, rel=1e-9)


@pytest.mark.parametrize(
    ("origin", "target", "one_way"),
    # Half of measured round trips between Azure regions (Microsoft, P50, June 2025, CC BY 4.0).
    [("Tokyo", "São Paulo", 0.135), ("Sydney", "London", 0.1235)],
)
def test_geographic_latencies_are_near_measured_ones(origin, target, one_way):
    places = jnp.array([list(topologies.CITIES).index(name) for name in (origin, target)])
    distance = topologies._distances(places[:1], places[1:])[0, 0]
    rule = topologies.LAST_MILE + topologies.DETOUR * distance / topologies.LIGHT_IN_FIBRE
    assert 0.8 < one_way / rule < 1.73


def test_geographic_repeats_cities_when_they_run_out():
    many = len(topologies.CITIES) + 1
    assert topologies.geographic(KEY, frontends=many, backends=2).frontends == many


def test_heterogeneous_latencies_span_three_decades():
    latency = np.asarray(topologies.heterogeneous_latencies(KEY, count=20).latency)
    assert latency.min() >= 0.01
    assert latency.max() <= 10
    assert latency.max() / latency.min() > 900
    # 2000 draws: the mean of a uniform logarithm is known to 3 / sqrt(12 * 2000) decades.
    assert abs(np.log10(latency).mean() + 0.5) < 4 * 3 / np.sqrt(12 * 2000)


def test_hub_and_spoke_passes_the_hub():
    tau = np.asarray(topologies.hub_and_spoke(KEY, frontends=4, backends=4).latency)
    np.testing.assert_allclose(np.diag(tau), 0.05)
    # Through a hub, tau_ij + tau_kl = tau_il + tau_kj.
    assert tau[0, 1] + tau[2, 3] == pytest.approx(tau[0, 3] + tau[2, 1], rel=1e-12)
    off = tau[~np.eye(4, dtype=bool)]
    assert 0.2 <= off.min() <= off.max() <= 1.8


def test_heterogeneous_capacities():
    batch = topologies.heterogeneous_capacities(KEY, count=20)
    assert isinstance(batch.service, Replicas)
    assert batch.nominal_capacity.max() / batch.nominal_capacity.min() > 1000


@pytest.mark.parametrize("curve", CURVES)
def test_curves_share_capacity_and_service_time(curve):
    """Nominal capacity within 5 to 20 requests/s and service time within a factor of 2, whatever the kind."""
    service = CURVES[curve](KEY, 10)
    assert ((service.nominal_capacity >= 5 * (1 - 1e-12)) & (service.nominal_capacity <= 20 * (1 + 1e-12))).all()
    assert ((service.initial_slope >= 0.5 * (1 - 1e-12)) & (service.initial_slope <= 2 * (1 + 1e-12))).all()
    network = draw("complete", service=CURVES[curve])
    np.testing.assert_allclose(network.load, 0.7, rtol=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frontends": 0}, "frontends=0 is empty"),
        ({"backends": 0}, "backends=0 is empty"),
        ({"count": 0}, "count=0 is empty"),
        ({"load": -0.5}, "load=-0.5 makes no sense"),
        ({"latency": float("nan")}, "latency=nan makes no sense"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        topologies.complete(KEY, **options)


def test_bad_density():
    with pytest.raises(InputError, match="density is 2"):
        topologies.sparse(KEY, density=2.0)
