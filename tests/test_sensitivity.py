"""Elasticities of the stability limit against differences of the limit itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.demand import Constant
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.stability.critical import critical_mode, critical_step_size
from dgdlb_jax.stability.sensitivity import limit_elasticities
from helpers import central_difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

STEP = np.array([0.02, 0.03, 0.01])


def network(link=0.0, capacity=0.0) -> Network:
    """Three frontends and backends, feedback and cost of their own, and a capacity that is not 1 to begin with."""
    latency = np.array([[0.1, 0.3, 0.25], [0.3, 0.12, 0.2], [0.2, 0.25, 0.1]]) * np.exp(link)
    return Network(
        np.array([2.0, 3.0, 2.5]), latency, Hyperbolic(np.array([6.0, 5.0, 7.0]), np.array([3.0, 2.0, 4.0])),
        feedback_latency=1.5 * latency, cost_latency=2 * latency,
        capacity=Constant(np.array([0.8, 1.1, 1.0]) * np.exp(capacity)),
    )  # fmt: skip


def test_elasticities_are_those_of_the_limit():
    """The mode at the limit gives what differences of the whole search give, optimum included."""
    base = network()
    optimum = solve_optimum(base)
    link, capacity = limit_elasticities(base, STEP, optimum, critical_mode(base, DGDLB(jnp.asarray(STEP)), optimum))

    def log_limit(**changed):
        return jnp.log(critical_step_size(network(**changed), DGDLB(jnp.asarray(STEP))))

    def difference(name, size, at):
        change = np.zeros(size)
        change[at] = 1.0
        return float(central_difference(lambda h: log_limit(**{name: h * change}), 0.0, 1.0, h=1e-4))

    # Half the digits are left to the conductance that stands for "in use"; differences of 1e-4 are good to 1e-8.
    for arc in ((0, 0), (1, 2), (2, 1)):
        assert link[arc] == pytest.approx(difference("link", (3, 3), arc), abs=3e-6)
    for backend in range(3):
        assert capacity[backend] == pytest.approx(difference("capacity", 3, backend), abs=3e-6)


def test_no_limit_no_elasticities():
    still = Network(np.array([1.0]), np.zeros((1, 1)), Hyperbolic(np.array([2.0]), np.array([1.0])))
    optimum = solve_optimum(still)
    link, capacity = limit_elasticities(still, 1.0, optimum, critical_mode(still, DGDLB(1.0), optimum))
    assert not link.any()
    assert not capacity.any()
