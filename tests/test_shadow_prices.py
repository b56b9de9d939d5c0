"""Shadow prices against solving again with a little more, and against the envelope theorem."""

import equinox as eqx
import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.equilibrium.prices import shadow_prices
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic, Replicas
from dgdlb_jax.numerics.results import InputError
from helpers import small_network

pytestmark = pytest.mark.usefixtures("quick_compilation")


def priced_network(rng, curve="Replicas"):
    return small_network(rng, curve, arrival_rate=[4.0, 6.0, 5.0])


def solved(network) -> float:
    return float(solve_optimum(network).mean_latency)


@pytest.mark.parametrize("curve", ["Replicas", "Hyperbolic"])
def test_prices_are_those_of_solving_again(rng, curve):
    """Central differences: truncation h^2, the gap of 1e-9 over h, so about 1e-5 of a price at h = 1e-3 of a rate."""
    network, h = priced_network(rng, curve), 1e-4
    prices = shadow_prices(network)
    for i in range(network.frontends):
        step = h * np.eye(3)[i]
        ends = [solved(network.with_arrival_rate(network.arrival_rate + sign * step)) for sign in (1, -1)]
        assert float(prices.request[i]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)
    for i, j in ((0, 1), (1, 0), (2, 3)):
        ends = [
            solved(eqx.tree_at(lambda n: n.cost_latency, network, network.cost_latency.at[i, j].add(sign * h)))
            for sign in (1, -1)
        ]
        assert float(prices.latency[i, j]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-6)
    for j in range(network.backends):
        step = h * np.eye(4)[j]
        ends = []
        for sign in (1, -1):
            curve_ = network.service
            more = (
                Replicas(curve_.curve, curve_.count + sign * step)
                if isinstance(curve_, Replicas)
                else Replicas(curve_, 1 + sign * step)
            )
            ends.append(solved(eqx.tree_at(lambda n, more=more: n.service, network, more)))
        assert float(prices.replica[j]) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)


def test_prices_obey_the_envelope_theorem(rng):
    """By hand: (nu - L) / Lambda, f / Lambda and (N - p r) / (n Lambda)."""
    network = priced_network(rng)
    best, prices = solve_optimum(network), shadow_prices(network)
    total = float(network.arrival_rate.sum())
    flow = np.asarray(network.arrival_rate)[:, None] * np.asarray(best.routing)
    np.testing.assert_allclose(prices.request, (best.multiplier - best.mean_latency) / total, rtol=1e-7)
    np.testing.assert_allclose(prices.latency, flow / total, rtol=1e-6, atol=1e-9)
    price, rate = network.service.marginal_latency(best.workload), network.service.rate(best.workload)
    gain = (best.workload - price * rate) / (network.service.count * total)
    np.testing.assert_allclose(prices.replica, gain, rtol=1e-6)
    assert (np.asarray(prices.replica) <= 0).all()


def test_the_first_request_of_a_silent_frontend_has_a_price(rng):
    network = small_network(rng, arrival_rate=[4.0, 0.0, 5.0])
    price, h = float(shadow_prices(network).request[1]), 1e-4
    ends = [solved(network.with_arrival_rate([4.0, rate, 5.0])) for rate in (h, 0.0)]
    assert price == pytest.approx((ends[0] - ends[1]) / h, rel=1e-3)


def test_a_batch_has_the_prices_of_each_and_none_where_there_is_no_optimum(rng):
    network = priced_network(rng, "Hyperbolic")
    too_much = network.with_arrival_rate([40.0, 60.0, 50.0])
    prices, alone = shadow_prices(stack([network, too_much]), throw=False), shadow_prices(network)
    for field in ("request", "latency", "replica"):
        both = np.asarray(getattr(prices, field))
        np.testing.assert_allclose(both[0], getattr(alone, field), rtol=1e-6, atol=1e-9, err_msg=field)
        assert np.isnan(both[1]).all(), field
    with pytest.raises(InputError, match="cannot serve more"):
        shadow_prices(too_much)


def test_two_equal_backends_by_hand():
    """One frontend, two equal backends: L = N / r with r = lambda / 2, so more of one replica helps as much as of the other."""
    network = Network([6.0], [[0.1, 0.1]], Hyperbolic([8.0, 8.0], [4.0, 4.0]))
    prices = shadow_prices(network)
    workload = 4 * 3 / (8 - 3)
    price = (4 + workload) ** 2 / (8 * 4)
    latency = 2 * workload / 6 + 0.1
    assert float(prices.request[0]) == pytest.approx((price + 0.1 - latency) / 6, rel=1e-8)
    np.testing.assert_allclose(prices.replica, (workload - price * 3) / 6, rtol=1e-7)
