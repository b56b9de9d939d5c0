"""Replicas added, taken and lost: against optima of networks written down anew."""

import numpy as np
import pytest

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic, Replicas
from dgdlb_jax.reports.text import change
from dgdlb_jax.studies.what_if import what_if

pytestmark = pytest.mark.usefixtures("quick_compilation")

LATENCY = np.array([[0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
RATE = np.array([4.0, 5.0])
ONE = Hyperbolic(np.full(3, 2.0), np.full(3, 1.5))
COUNT = np.array([4.0, 2.0, 1.0])


def network(count, keep=(True, True, True)) -> Network:
    """Servers of 2 requests/s each."""
    kept = np.flatnonzero(keep)
    curve = Replicas(Hyperbolic(np.full(kept.size, 2.0), np.full(kept.size, 1.5)), np.asarray(count)[kept])
    return Network(RATE, LATENCY[:, kept], curve, backend_names=tuple("abc"[j] for j in kept))


def latency(*arguments) -> float:
    return float(solve_optimum(network(*arguments)).mean_latency)


@pytest.fixture(scope="module")
def found():
    fleet = network(COUNT)
    return {one.backend: one for one in what_if(fleet, solve_optimum(fleet))}


def test_more_and_less_are_optima_of_their_own(found):
    """Certified to 1e-9 of the latency, as are those they are held against."""
    now = latency(COUNT)
    for j, name in enumerate("abc"):
        step = np.arange(3) == j
        assert found[name].more.latency == pytest.approx(latency(COUNT + step) - now, abs=1e-8)
        assert found[name].more.latency < 0
        if COUNT[j] > 1:
            less = found[name].less
            assert less is not None
            assert less.latency == pytest.approx(latency(COUNT - step) - now, abs=1e-8)
    assert found["c"].less is None


def test_without_a_backend(found):
    """14 requests/s in all and 9 asked for: without the largest backend 6 are left, 3 short."""
    assert found["a"].without.short_by == pytest.approx(3.0, rel=1e-9)
    assert np.isnan(found["a"].without.latency)
    assert change(found["a"].without) == "short by 3.00 req/s"
    kept = (True, True, False)
    assert found["c"].without.latency == pytest.approx(latency(COUNT, kept) - latency(COUNT), abs=1e-8)
    assert next(iter(found)) == "a"  # the loss that cannot be borne comes first


def test_a_curve_without_replicas_counts_as_one():
    plain = Network(np.array([1.0, 1.5]), LATENCY, ONE)
    optimum = solve_optimum(plain)
    first = what_if(plain, optimum)[0]
    assert first.less is None
    doubled = Network(
        np.array([1.0, 1.5]), LATENCY, Replicas(ONE, np.where(np.arange(3) == int(first.backend[-1]), 2, 1))
    )
    wanted = float(solve_optimum(doubled).mean_latency) - float(optimum.mean_latency)
    assert first.more.latency == pytest.approx(wanted, abs=1e-8)
