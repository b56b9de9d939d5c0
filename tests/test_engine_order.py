"""The engine against delay equations with known answers, its order of convergence, and an independent delay solver."""

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dgdlb_jax.model.demand import DailyCycle
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import interior_equilibrium
from oracles import critical_gain, gradient_flow, oscillation, rightmost_root, service, workload_serving

# --- the scalar delay equation of one frontend and two equal backends -------------------------------------------------

RATE, TAU, MAX_RATE, HALF_LOAD = 9.0, 0.37, 8.0, 5.0


def symmetric_network() -> tuple[Network, float, float, float]:
    """(network, workload at rest, a = ell', c = -ell'' / ell'^2)."""
    network = Network([RATE], [[TAU, TAU]], Hyperbolic([MAX_RATE] * 2, [HALF_LOAD] * 2))
    workload = workload_serving(network.service, RATE / 2, 0, 2)
    slope = MAX_RATE * HALF_LOAD / (HALF_LOAD + workload) ** 2
    return network, workload, slope, 2 * (HALF_LOAD + workload) / (MAX_RATE * HALF_LOAD)


def test_growth_and_frequency_are_those_of_the_characteristic_root():
    """s (s + a) + K exp(-2 tau s) = 0 with K = eta c lambda, below, at and above the critical gain."""
    network, workload, a, c = symmetric_network()
    gains = critical_gain(a, 2 * TAU) * np.array([0.4, 1.0, 1.5])
    roots = np.array([rightmost_root(a, K, 2 * TAU) for K in gains])
    assert abs(roots[1].real) < 1e-10
    assert roots[0].real < -0.08
    assert roots[2].real > 0.05
    measured = []
    for dt in (0.03, 0.015):  # tau is not a multiple of either
        every, tilt = round(0.09 / dt), 1e-5
        start = (np.tile([[0.5 + tilt, 0.5 - tilt]], (3, 1, 1)), np.full((3, 2), workload))
        run = simulate_batch(
            stack([network] * 3),
            DGDLB((gains / (c * RATE))[:, None]),
            duration=18.0,
            dt=dt,
            initial=start,
            save=SaveAt(every, fields=("workload",)),
        )
        late = np.asarray(run.workload)[:, 100:]  # after 9 s the other roots have died out
        measured.append([oscillation(late[n, :, 0] - late[n, :, 1], every * dt) for n in range(3)])
    coarse, fine = np.abs(np.array(measured) - roots)
    assert (fine < 1e-4 * np.abs(roots)).all()
    np.testing.assert_allclose(coarse / fine, 4, rtol=0.1)


# --- order of convergence ---------------------------------------------------------------------------------------------

DURATION, COARSE = 3.0, 0.03


def kinds_of_latency(rng) -> dict[str, np.ndarray]:
    """Latencies in steps. Thirds stay thirds under halving: the interpolation error keeps its constant."""
    thirds = rng.integers(5, 14, (3, 3)) + 1 / 3
    short = np.full((3, 3), 0.005)
    mixed = np.where(np.eye(3) == 1, 0.0, thirds)
    mixed[0, 1], mixed[1, 2] = 0.005, 0.0
    return {"fractions of a step": thirds, "shorter than a step": short, "zero": np.zeros((3, 3)), "mixed": mixed}


@pytest.fixture(scope="module")
def refined():
    """kind -> (network, start, runs at dt, dt/2, dt/4): at rest at first, then a cycle of demand that starts smoothly.

    Nothing jumps at the start, so that the error expands in powers of dt. All runs are one batch.
    """
    rng = np.random.default_rng(5)
    rates = np.array([4.0, 5.0, 3.0])
    networks, starts = [], []
    for latency in kinds_of_latency(rng).values():
        network, start = interior_equilibrium(
            np.random.default_rng(6),
            latency=COARSE * latency,
            feedback=COARSE * latency.T,
            rates=rates,
            demand=cycle(rates),
        )
        networks.append(network)
        starts.append(start)
    dts = COARSE / np.array([1.0, 2.0, 4.0])
    batch = stack([network for network in networks for _ in dts])
    initial = tuple(np.stack([start[part] for start in starts for _ in dts]) for part in (0, 1))
    runs = simulate_batch(
        batch, DGDLB(STEP_SIZE), duration=DURATION, dt=np.tile(dts, len(networks)), initial=initial, save=SaveAt.final()
    )
    ends = np.concatenate(
        [np.asarray(runs.final.routing).reshape(len(dts) * len(networks), -1), runs.final.workload], axis=1
    )
    return {kind: (networks[n], starts[n], ends[3 * n : 3 * n + 3]) for n, kind in enumerate(kinds_of_latency(rng))}


STEP_SIZE, PERIOD, SWING = 0.4, 4.0, 0.3


def cycle(rates) -> DailyCycle:
    """A cycle that starts with zero slope at the top."""
    return DailyCycle(rates / (1 + SWING), SWING, 0.0, PERIOD)


def rates_over_time(rates, t):
    return rates * (1 + SWING * np.cos(2 * np.pi * t / PERIOD)) / (1 + SWING)


@pytest.mark.parametrize("kind", ["fractions of a step", "shorter than a step", "zero", "mixed"])
def test_order_two(refined, kind):
    _, (routing, workload), (coarse, middle, fine) = refined[kind]
    moved = np.abs(fine - np.concatenate([routing.ravel(), workload]))
    assert moved[:9].max() > 0.02
    assert moved[9:].max() > 0.1
    assert (fine[:9] > 0.01).all()  # and the routing stayed inside
    ratio = np.linalg.norm(coarse - middle) / np.linalg.norm(middle - fine)
    assert ratio == pytest.approx(4, rel=0.1)


def test_without_latency_it_is_the_solution_of_the_ode(refined):
    scipy = pytest.importorskip("scipy.integrate")
    network, (routing, workload), ends = refined["zero"]
    rates = np.array([4.0, 5.0, 3.0])

    def derivative(t, y):
        dx, dN = gradient_flow(network, STEP_SIZE, rates_over_time(rates, t), y[9:], y[:9].reshape(3, 3))
        return np.concatenate([dx.ravel(), dN])

    start = np.concatenate([routing.ravel(), workload])
    exact = scipy.solve_ivp(derivative, (0, DURATION), start, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    errors = [np.linalg.norm(end - exact) for end in ends]
    assert errors[2] < 5e-5
    np.testing.assert_allclose(np.array(errors[:2]) / errors[1:], 4, rtol=0.1)
    extrapolated = (4 * ends[2] - ends[1]) / 3
    assert np.linalg.norm(extrapolated - exact) < 0.05 * errors[2]


# --- an independent solver of delay equations -------------------------------------------------------------------------


@pytest.mark.skipif(find_spec("jitcdde") is None, reason="JiTCDDE is not installed")
@pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))) and find_spec("sympy") is None,
    reason="JiTCDDE needs a C compiler or sympy",
)
def test_against_jitcdde(tmp_path):
    """DGD-LB from a start that is not at rest, 3 frontends and 3 backends, 18 different latencies, to 1e-6."""
    step_size, duration, dt = 0.2, 4.0, 2.5e-4
    network, (routing, _) = interior_equilibrium(np.random.default_rng(7))
    routing = 0.7 * routing + 0.3 * np.roll(routing, 1, axis=1)
    inflow = np.asarray(network.arrival_rate) @ routing
    workload = np.array([0.8, 1.0, 1.2]) * [workload_serving(network.service, inflow[j], j, 3) for j in range(3)]
    run = simulate(
        network,
        DGDLB(step_size),
        duration=duration,
        dt=dt,
        initial=(routing, workload),
        save=SaveAt(round(0.5 / dt), fields=("routing", "workload")),
    )
    np.savez(
        tmp_path / "problem.npz",
        step_size=step_size,
        rates=network.arrival_rate,
        latency=network.latency,
        feedback=network.feedback_latency,
        cost=network.cost_latency,
        max_rate=network.service.max_rate,
        half_load=network.service.half_load,
        start=np.concatenate([routing.ravel(), workload]),
        times=run.time[1:],
    )
    solver = [sys.executable, Path(__file__).with_name("jitcdde_solver.py"), "problem.npz", "solution.npy"]
    done = subprocess.run(solver, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = np.load(tmp_path / "solution.npy")
    np.testing.assert_allclose(np.asarray(run.routing)[1:].reshape(-1, 9), expected[:, :9], rtol=0, atol=1e-6)
    np.testing.assert_allclose(run.workload[1:], expected[:, 9:], rtol=0, atol=1e-6)
    assert np.asarray(run.routing).min() > 0.05
    assert np.abs(np.asarray(run.routing)[-1] - routing).max() > 0.05


def test_the_equilibrium_of_the_helpers_is_one():
    network, (routing, workload) = interior_equilibrium(np.random.default_rng(7))
    served, slope = service(network.service, workload)
    np.testing.assert_allclose(np.asarray(network.arrival_rate) @ routing, served, rtol=1e-12)
    level = 1 / slope + np.asarray(network.cost_latency)
    np.testing.assert_allclose(level, level[:, :1] * np.ones(3), rtol=1e-12)
    run = simulate(network, DGDLB(0.5), duration=2.0, dt=0.02, initial=(routing, workload))
    np.testing.assert_allclose(run.routing[-1], routing, rtol=0, atol=1e-12)
    np.testing.assert_allclose(run.workload[-1], workload, rtol=1e-12)
