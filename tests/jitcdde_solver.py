"""DGD-LB inside the simplex, solved by JiTCDDE: `python jitcdde_solver.py problem.npz solution.npz`.

Prints the seconds that building and integrating took. A process of its own, because its build tools read the pyproject.toml of the
current folder, warn, and upset the interpreter.
"""

import shutil
import sys
import time

import jitcdde
import numpy as np


def equations(problem) -> list:
    """As JiTCDDE wants them: y(0..FB-1) routing, then workloads; hyperbolic curves, every arc in use."""
    y, t = jitcdde.y, jitcdde.t
    top, half, F, B = problem["max_rate"], problem["half_load"], *problem["cost"].shape

    def marginal(i, j):
        seen = y(F * B + j, t - problem["feedback"][i, j])
        return (half[j] + seen) ** 2 / (top[j] * half[j]) + problem["cost"][i, j]

    found = []
    for i in range(F):
        mean = sum(marginal(i, j) for j in range(B)) / B
        found += [-problem["step_size"] * (marginal(i, j) - mean) for j in range(B)]
    for j in range(B):
        inflow = sum(problem["rates"][i] * y(B * i + j, t - problem["latency"][i, j]) for i in range(F))
        found.append(inflow - top[j] * y(F * B + j) / (half[j] + y(F * B + j)))
    return found


def solve(problem) -> np.ndarray:
    """States at the wanted times, one row each; as accurate as `rtol` and `max_step` say, 1e-9 and 5 ms by default."""
    begin, rtol, max_step = time.perf_counter(), float(problem.get("rtol", 1e-9)), float(problem.get("max_step", 5e-3))
    delays = [0.0, *problem["latency"].ravel(), *problem["feedback"].ravel()]
    solver = jitcdde.jitcdde(equations(problem), delays=delays, max_delay=max(delays), verbose=False)
    if any(map(shutil.which, ("cc", "gcc", "clang"))):
        solver.compile_C(simplify=False, do_cse=False, verbose=False)
    else:
        solver.generate_lambdas()
    solver.constant_past(problem["start"])
    built = time.perf_counter()
    solver.set_integration_parameters(rtol=rtol, atol=rtol / 10, first_step=1e-4, max_step=max_step)
    solver.adjust_diff(1e-6)  # from the flat past to the slope at the start
    states = np.array([solver.integrate(t) for t in problem["times"]])
    print(built - begin, time.perf_counter() - built)
    return states


if __name__ == "__main__":
    np.save(sys.argv[2], solve(dict(np.load(sys.argv[1]))))
