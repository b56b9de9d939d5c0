"""Characteristic roots: closed forms, tdcpy, the critical step size, the decay of a simulated perturbation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.numerics.collocation import generator
from oracles import rightmost_root

pytestmark = pytest.mark.usefixtures("quick_compilation")


def one(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def test_scalar_delay_equation_by_lambert_w():
    """z' = -b z(t - 1): roots are W_k(-b)."""
    special = pytest.importorskip("scipy.special")
    b = 0.9
    found = np.linalg.eigvals(generator(np.array([[[-b]]]), np.array([1.0]), 24))
    found = found[np.argsort(-found.real)][:4]
    expected = np.array([special.lambertw(-b, k) for k in (0, -1, 1, -2)])
    for root in expected:
        assert np.abs(found - root).min() < 1e-8 * abs(root)


@pytest.fixture(scope="module")
def networks():
    nets = dgd.topologies.complete(jax.random.key(3), frontends=3, backends=4, count=3)
    return nets, dgd.solve_optimum(nets)


def test_symmetric_group():
    service = dgd.Hyperbolic(jnp.full(4, 10.0), jnp.full(4, 8.0))
    network = dgd.Network([9.0, 7.0, 12.0], jnp.full((3, 4), 2.0), service)
    a, c = 80 / (8 + 56 / 3) ** 2, 2 * (8 + 56 / 3) / 80
    step = 0.01
    spectrum = dgd.characteristic_roots(network, dgd.DGDLB(step))
    expected = rightmost_root(a, step * c * 28, 4.0)
    assert complex(spectrum.dominant) == pytest.approx(expected, rel=1e-9)
    assert int(spectrum.neutral) == 3 * 4 - 3 - 4 + 1
    assert float(np.nanmax(spectrum.residual)) < 1e-9


def test_critical_step_size_puts_a_root_on_the_axis(networks):
    nets, optimum = networks
    mode = dgd.critical_mode(nets, optimum=optimum)
    scale = np.asarray(mode.frequency)
    for factor, sign in ((1 - 1e-6, -1), (1.0, 0), (1 + 1e-6, 1)):
        spectrum = dgd.characteristic_roots(nets, dgd.DGDLB(factor * mode.step_size[:, None]), optimum)
        growth = np.asarray(spectrum.abscissa) / scale
        assert np.all(np.abs(growth) < 1e-6)
        assert np.all(np.sign(growth) == sign) if sign else np.all(np.abs(growth) < 1e-10)
    assert np.asarray(spectrum.dominant.imag) == pytest.approx(scale, rel=1e-5)


def test_against_tdcpy(networks):
    tdcpy = pytest.importorskip("tdcpy", reason="install the test extra")
    nets, optimum = networks
    network, best = nets[0], one(optimum, 0)
    policy = dgd.DGDLB(0.5 * dgd.critical_step_size(network, optimum=best))
    linear = dgd.linearise(network, policy, best)
    matrices, delays = full_system(linear, np.asarray(policy.step_size))
    found = dgd.characteristic_roots(network, policy, best)
    left = 2 * float(found.abscissa)
    expected, _ = tdcpy.roots(tdcpy.RDDE(A=np.moveaxis(matrices, 0, -1), hA=np.array(delays)), r=left)
    expected = expected[np.abs(expected) > 1e-6]
    ours = np.asarray(found.roots)
    for root in expected:
        assert np.nanmin(np.abs(ours - root)) < 1e-8 * max(1, abs(root))
    assert float(found.abscissa) == pytest.approx(expected.real.max(), rel=1e-8)


def full_system(linear, step):
    """Matrices and delays of routing and workload by the closed formulas of DGD-LB: x of every arc in use, N of every backend."""
    on, rate = np.asarray(linear.support), np.asarray(linear.arrival_rate)
    slope, gain, tau = np.asarray(linear.slope), np.asarray(linear.gain), np.asarray(linear.latency)
    arcs = [tuple(at) for at in np.argwhere(on)]
    size = len(arcs) + slope.size
    still = np.zeros((size, size))
    still[len(arcs) :, len(arcs) :] = -np.diag(slope)
    matrices, delays = [still], [0.0]
    for n, (i, j) in enumerate(arcs):
        sent, seen = np.zeros((2, size, size))
        sent[len(arcs) + j, n] = rate[i]
        for m, (k, _) in enumerate(arcs):
            if k == i:
                seen[m, len(arcs) + j] = -step * gain[j] * ((m == n) - 1 / on[i].sum())
        matrices.append(sent + seen)
        delays.append(float(tau[i, j]))
    return np.array(matrices), delays


def test_a_simulated_perturbation_decays_as_predicted(networks):
    nets, optimum = networks
    network, best = nets[1], one(optimum, 1)
    mode = dgd.critical_mode(network, optimum=best)
    policy = dgd.DGDLB(0.9 * mode.step_size)
    spectrum = dgd.characteristic_roots(network, policy, best)
    period = float(spectrum.period)
    start = best.routing, best.workload * (1 + 1e-5 * np.random.default_rng(0).normal(size=4))
    dt = period / 200
    run = dgd.simulate(
        network, policy, duration=30 * period, dt=dt, initial=start, save=dgd.SaveAt(every=1, fields=("workload",))
    )
    away = np.asarray(run.workload) - np.asarray(best.workload)
    signal = away[:, np.abs(away[2000:3000]).max(0).argmax()]
    # Swings ten periods apart: the ratio of their energies over whole periods.
    early, late = (np.sqrt(np.mean((part - part.mean()) ** 2)) for part in (signal[2000:3000], signal[4000:5000]))
    assert np.log(late / early) / (10 * period) == pytest.approx(float(spectrum.abscissa), rel=0.01)


def test_no_values_no_roots(networks):
    with pytest.raises(dgd.InputError, match="outside jit"):
        jax.jit(lambda step: dgd.characteristic_roots(networks[0][0], dgd.DGDLB(step)).abscissa)(0.1)


def test_best_step_size_settles_fastest(networks):
    nets, optimum = networks
    network, best = nets[2], one(optimum, 2)
    found = dgd.best_step_size(network, best)
    assert float(found.margin) > 1
    policy_at = lambda factor: dgd.DGDLB(factor * found.step_size)
    for factor in (0.8, 0.95, 1.05, 1.25):
        other = dgd.characteristic_roots(network, policy_at(factor), best)
        assert float(other.abscissa) >= float(found.abscissa) - 1e-4 * abs(float(found.abscissa))


def test_best_step_size_for_each_frontend():
    """One number per frontend settles faster than one for all here, by a tenth; it is a vector that is stable."""
    network = dgd.topologies.heterogeneous_latencies(jax.random.key(1), frontends=3, backends=4)
    best = dgd.solve_optimum(network)
    same = dgd.best_step_size(network, best)
    found = dgd.best_step_size(network, best, for_each=True)
    assert float(found.abscissa) < 1.1 * float(same.abscissa)
    assert float(found.margin) > 1
    assert float(found.settling_time) == pytest.approx(np.log(100) / -float(found.abscissa))
    spectrum = dgd.characteristic_roots(network, dgd.DGDLB(found.step_size), best)
    assert float(spectrum.abscissa) == pytest.approx(float(found.abscissa), rel=1e-6)
