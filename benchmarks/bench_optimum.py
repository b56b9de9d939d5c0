"""The certified optimum of many networks against cvxpy with Clarabel, in one run.

python benchmarks/bench_optimum.py [--count 10000] [--cores 2]
"""

import argparse
import os
import time
import warnings

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--count", type=int, default=10_000, help="networks of 10 frontends and 10 backends")
parser.add_argument(
    "--cores", type=int, default=os.cpu_count() or 1, help="virtual devices that the batch is spread over"
)
options = parser.parse_args()
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.cores}"

import jax
import numpy as np

import dgdlb_jax as dgd
from common import machine, seconds

RIVALS = 20


def general(network: dgd.Network) -> tuple[float, float, float]:
    """(seconds in all, seconds in the solver, mean latency) of cvxpy with Clarabel."""
    import cvxpy as cp

    begin = time.perf_counter()
    rate, cost = np.asarray(network.arrival_rate), np.asarray(network.cost_latency)
    mu, kappa = np.asarray(network.service.max_rate), np.asarray(network.service.half_load)
    flow, workload = cp.Variable(cost.shape, nonneg=True), cp.Variable(len(mu), nonneg=True)
    served = mu - cp.multiply(mu * kappa, cp.inv_pos(kappa + workload))
    objective = cp.sum(workload) + cp.sum(cp.multiply(flow, cost))
    problem = cp.Problem(cp.Minimize(objective), [cp.sum(flow, axis=1) == rate, cp.sum(flow, axis=0) <= served])
    problem.solve(solver=cp.CLARABEL)
    return time.perf_counter() - begin, problem.solver_stats.solve_time, problem.value / rate.sum()


def main() -> None:
    """Print the table."""
    jax.config.update("jax_enable_x64", True)
    warnings.simplefilter("ignore")
    print(machine(), "\n")
    print(f"{options.count} networks of 10 x 10, float64\n")
    print(
        "| family | ours, ms each | cvxpy + Clarabel, ms each | of it in the solver | ours / cvxpy | largest gap | apart | compile s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for family in ("complete", "geographic", "equal_latencies", "heterogeneous_latencies", "near_critical"):
        networks = dgd.topologies.FAMILIES[family](jax.random.key(0), count=options.count)
        compiled, taken = seconds(lambda networks=networks: dgd.solve_optimum(networks, throw=False), repeats=3)
        found = dgd.solve_optimum(networks, throw=False)
        general(networks[0])  # cvxpy loads its solvers on first use
        theirs = np.array([general(networks[n]) for n in range(RIVALS)])
        apart = np.abs(theirs[:, 2] / np.asarray(found.mean_latency[:RIVALS]) - 1).max()
        each, rival, solver = taken / options.count * 1e3, *np.median(theirs[:, :2], axis=0) * 1e3
        print(
            f"| {family} | {each:.4f} | {rival:.2f} | {solver:.2f} | {each / rival:.4f} | {float(found.gap.max()):.1e} | "
            f"{apart:.0e} | {compiled:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
