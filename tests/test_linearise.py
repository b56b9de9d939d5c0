"""The linearisation comes from the vector field; here it is held against closed formulas and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.policies.safe import CappedDGDLB, CurvatureDGDLB, LogDGDLB, ReciprocalDGDLB
from dgdlb_jax.stability.loop_transfer import LoopTransfer
from helpers import CURVES

pytestmark = pytest.mark.usefixtures("quick_compilation")

# One formula per backend, as the hyperbola; the others have parts or tables.
ALIKE = {"Exponential", "Logarithmic", "ManyServer", "Power"}


@pytest.mark.parametrize(
    "curve", [pytest.param(curve, marks=[pytest.mark.full] * (curve in ALIKE)) for curve in CURVES]
)
def test_closed_formulas(rng, curve):
    """V = -eta P C with c = -ell'' / ell'^2, and a = ell'."""
    network = dgd.Network([4.0, 6.0, 5.0], rng.uniform(0.1, 0.4, (3, 4)), CURVES[curve](rng, 4))
    optimum = dgd.solve_optimum(network)
    step = np.array([0.1, 0.2, 0.3])
    linear = dgd.linearise(network, dgd.DGDLB(step), optimum)
    slope = np.asarray(network.service.slope(optimum.workload))
    gain = -np.asarray(network.service.curvature(optimum.workload)) / slope**2
    assert np.asarray(linear.slope) == pytest.approx(slope, rel=1e-12)
    assert np.asarray(linear.gain) == pytest.approx(gain, rel=1e-9)
    for i in range(3):
        on = np.asarray(linear.support)[i].astype(float)
        assert on.sum() >= 2 or on.sum() == 0
        projector = np.diag(on) - np.outer(on, on) / max(on.sum(), 1)
        assert np.asarray(linear.response)[i] == pytest.approx(-step[i] * projector * gain, rel=1e-9, abs=1e-12)
    assert linear.self_response is None


def test_three_different_latencies(rng):
    """MATHS 1 with D_forward on the left, D_feedback on the right; the cost latency only moves the optimum."""
    forward, feedback, cost = (rng.uniform(0.1, 0.4, (3, 4)) for _ in range(3))
    service = CURVES["Hyperbolic"](rng, 4)
    network = dgd.Network([4.0, 6.0, 5.0], forward, service, feedback_latency=feedback, cost_latency=cost)
    optimum = dgd.solve_optimum(network)
    loop = LoopTransfer(dgd.linearise(network, dgd.DGDLB(0.2), optimum))
    slope = np.asarray(service.slope(optimum.workload))
    gain = -np.asarray(service.curvature(optimum.workload)) / slope**2
    used = np.asarray(optimum.routing) > 1e-6
    assert used.sum() >= 6  # as many as a tree has
    for s in (0.3j, 2j, 0.1 + 9j):
        expected = np.zeros((4, 4), complex)
        for i in range(3):
            on = used[i].astype(float)
            projector = np.diag(on) - np.outer(on, on) / on.sum()
            sent = np.diag(np.exp(-s * forward[i])) @ projector @ np.diag(np.exp(-s * feedback[i]))
            expected += network.arrival_rate[i] * 0.2 * sent @ np.diag(gain)
        expected /= (s * (s + slope))[:, None]
        found = np.asarray(loop.at(jnp.asarray(s)))
        # L may be written for workloads or for what they are seen as: similar matrices have the same eigenvalues.
        assert np.poly(found) == pytest.approx(np.poly(expected), rel=1e-9, abs=1e-9)


def test_relatives_have_the_same_linearisation(rng):
    network = dgd.Network([4.0, 6.0, 5.0], rng.uniform(0.1, 0.4, (3, 4)), CURVES["Hyperbolic"](rng, 4))
    optimum = dgd.solve_optimum(network)
    slope = np.asarray(network.service.slope(optimum.workload))
    reference = (np.asarray(optimum.routing) / slope).sum(1)
    plain = dgd.linearise(network, dgd.DGDLB(0.1), optimum)
    limit = float(dgd.critical_step_size(network, dgd.DGDLB(0.1), optimum))
    for policy in (LogDGDLB(0.1), ReciprocalDGDLB(0.1), CurvatureDGDLB(0.1, reference), CappedDGDLB(0.1, 1.0)):
        linear = dgd.linearise(network, policy, optimum)
        assert np.asarray(linear.response) == pytest.approx(np.asarray(plain.response), rel=1e-6, abs=1e-9)
    assert float(dgd.critical_step_size(network, LogDGDLB(0.1), optimum)) == pytest.approx(limit, rel=1e-6)


class Relaxing(dgd.AbstractFlowPolicy):
    """Moves towards a softmin of what it sees: a rule that looks at its own routing."""

    rate: float

    def velocity(self, t, routing, observation, state):
        seen = observation.marginal_latency + observation.cost_latency
        return self.rate * (jax.nn.softmax(-4 * seen) - routing), state


def test_a_rule_that_looks_at_its_own_routing():
    """Equal backends and latencies: s^2 + (a + r) s + a r + K r e^{-2 tau s} = 0 for differences, K = 4 c lambda / 2."""
    service = dgd.Hyperbolic(jnp.full(2, 10.0), jnp.full(2, 8.0))
    network = dgd.Network([12.0], jnp.full((1, 2), 1.5), service)
    optimum = dgd.solve_optimum(network)
    linear = dgd.linearise(network, Relaxing(1.0), optimum)
    assert linear.self_response is not None
    a, c = float(linear.slope[0]), float(linear.gain[0])
    gain = 4 * c * 12 / 2
    # s = jw: (jw + a)(jw + r) = -K r e^{-2 tau jw}; the largest r without a solution, by following the angle.
    w = np.linspace(1e-4, np.pi, 2_000_000)
    # 1 / r = -(1 + K e^{-2 tau jw} / (jw + a)) / (jw): real and positive at the crossing
    inverse = -(1 + gain * np.exp(-3j * w) / (1j * w + a)) / (1j * w)
    crossing = np.flatnonzero((np.diff(np.sign(inverse.imag)) != 0) & (inverse.real[1:] > 0))
    expected = 1 / inverse.real[crossing].max()
    limit = float(dgd.critical_step_size(network, Relaxing(1.0), optimum))
    assert limit == pytest.approx(expected, rel=1e-5)
    spectrum = dgd.characteristic_roots(network, Relaxing(limit), optimum)
    assert float(spectrum.abscissa) == pytest.approx(0, abs=1e-9)


def test_neutral_directions_and_dropped_frontends():
    service = dgd.Hyperbolic(jnp.full(4, 10.0), jnp.full(4, 8.0))
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]], bool)
    linear = dgd.linearise(dgd.Network([5.0, 5.0, 1.0], jnp.full((3, 4), 0.2), service, mask=mask))
    assert int(linear.neutral) == 8 - 4 - 2 + 1
    assert np.asarray(linear.support).sum(1).tolist() == [4, 4, 0]
    assert np.isinf(linear.linear_region)


def test_near_ties_are_flagged():
    """The second backend is just too far to be used: 1 / ell' rises by c per request, so slack / c requests bring it in."""
    service = dgd.Hyperbolic(jnp.full(2, 10.0), jnp.full(2, 8.0))
    alone = 8 / (10 * 8 / (8.0) ** 2 * 8)  # 1 / ell'(0) of an empty backend, 0.8 s
    workload = 8 * 4 / (10 - 4)
    marginal = (8 + workload) ** 2 / 80
    tie = marginal - alone
    for beyond, near in ((1e-5, True), (0.5, False)):
        network = dgd.Network([4.0], [[0.0, tie + beyond]], service, mask=[[True, True]])
        linear = dgd.linearise(network)
        gain = 2 * (8 + workload) / 80
        assert float(linear.linear_region) == pytest.approx(beyond / (gain * workload), rel=1e-4)
        assert bool(linear.near_tie[0, 1]) == near
