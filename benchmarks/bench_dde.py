"""One network to an accuracy of 1e-6, against JiTCDDE, a general solver of delay equations with a step size of its own.

    python benchmarks/bench_dde.py

Both get looser until their error against a much finer run of the rival passes 1e-6; building and compiling are apart.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import jax
import numpy as np

import dgdlb_jax as dgd
from common import machine, seconds

SOLVER = Path(__file__).parents[1] / "tests" / "jitcdde_solver.py"
ACCURACY, DURATION, STEP_SIZE = 1e-6, 4.0, 0.2
TIMES = np.arange(1, 9) * DURATION / 8


def problem() -> tuple[dgd.Network, tuple[np.ndarray, np.ndarray]]:
    """Three frontends, three backends, eighteen latencies, and a start away from rest whose routing stays inside the simplex."""
    rng = np.random.default_rng(7)
    service = dgd.Hyperbolic(rng.uniform(6, 9, 3), rng.uniform(3, 5, 3))
    latency = rng.uniform(0.05, 0.4, (3, 3))
    network = dgd.Network(
        [4.0, 5.0, 3.0], latency, service, feedback_latency=rng.uniform(0.05, 0.4, (3, 3)), cost_latency=0 * latency
    )
    return network, (np.array([[0.5, 0.3, 0.2], [0.3, 0.4, 0.3], [0.25, 0.25, 0.5]]), np.array([3.0, 5.0, 4.0]))


def rival(network: dgd.Network, start, rtol: float) -> tuple[np.ndarray, float, float]:
    """States at the wanted times, seconds to build, seconds to integrate."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder, "problem.npz"), rtol=rtol, max_step=DURATION, step_size=STEP_SIZE,
            rates=network.arrival_rate, latency=network.latency, feedback=network.feedback_latency,
            cost=network.cost_latency, max_rate=network.service.max_rate, half_load=network.service.half_load,
            start=np.concatenate([start[0].ravel(), start[1]]), times=TIMES,
        )  # fmt: skip
        command = [sys.executable, SOLVER, "problem.npz", "solution.npy"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        built, taken = map(float, done.stdout.split()[-2:])
        return np.load(Path(folder, "solution.npy")), built, taken


def ours(network: dgd.Network, start, steps: int):
    """A run of that many steps between two of the wanted times."""
    dt = TIMES[0] / steps
    save = dgd.SaveAt(steps, fields=("routing", "workload"))
    return dgd.simulate(network, dgd.DGDLB(STEP_SIZE), duration=DURATION, dt=dt, initial=start, save=save)


def states(run) -> np.ndarray:
    """As the rival gives them."""
    return np.concatenate([np.asarray(run.routing)[1:].reshape(len(TIMES), -1), np.asarray(run.workload)[1:]], axis=1)


def main() -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    print(machine(), "\n")
    network, start = problem()
    reference = rival(network, start, 1e-11)[0]
    assert reference[:, :9].min() > 0.02, (
        "the routing leaves the inside of the simplex, where JiTCDDE has no projection"
    )

    def error(found):
        return np.abs(found - reference).max()

    steps = next(n for n in 50 * 2 ** np.arange(12) if error(states(ours(network, start, n))) < ACCURACY)
    jax.clear_caches()
    compiled, taken = seconds(lambda: ours(network, start, steps).workload)
    for rtol in 10.0 ** -np.arange(3, 12):
        found, built, integrated = rival(network, start, rtol)
        if error(found) < ACCURACY:
            break
    integrated = np.median([integrated, *(rival(network, start, rtol)[2] for _ in range(4))])
    print("| | setting | error | seconds | compile or build, s |\n|---|---|---|---|---|")
    print(
        f"| ours | dt {TIMES[0] / steps:.2g} s | {error(states(ours(network, start, steps))):.1e} | {taken:.4f} | {compiled:.1f} |"
    )
    print(f"| JiTCDDE | rtol {rtol:.0e} | {error(found):.1e} | {integrated:.3f} | {built:.1f} |")
    print(f"\nours / JiTCDDE: {taken / integrated:.3f}")


if __name__ == "__main__":
    main()
