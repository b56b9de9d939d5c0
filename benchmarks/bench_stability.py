"""Critical step sizes of many 10x10 networks; roots against tdcpy; both against a loop in NumPy, in one run.

python benchmarks/bench_stability.py --count 10000
"""

import argparse
import resource
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

import dgdlb_jax as dgd
from common import machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    print(machine(), flush=True)
    networks = dgd.topologies.complete(jax.random.key(0), count=options.count)
    begin = time.perf_counter()
    optimum = jax.block_until_ready(dgd.solve_optimum(networks, throw=False))
    print(f"optimum of {options.count} 10x10 networks: {time.perf_counter() - begin:.1f} s with compilation")
    for what in ("with compilation", "again"):
        begin = time.perf_counter()
        limit = jax.block_until_ready(dgd.critical_step_size(networks, optimum=optimum))
        taken = time.perf_counter() - begin
        print(f"critical_step_size: {taken:.1f} s {what}, {1e3 * taken / options.count:.2f} ms each", flush=True)
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")

    some = 5
    begin = time.perf_counter()
    slow = [numpy_limit(networks[k], jax.tree.map(lambda leaf, k=k: leaf[k], optimum)) for k in range(some)]
    taken = (time.perf_counter() - begin) / some
    off = np.max(np.abs(np.array(slow) / np.asarray(limit[:some]) - 1))
    print(f"NumPy loop over 2000 frequencies: {1e3 * taken:.0f} ms each, largest relative difference {off:.1e}")

    few = dgd.topologies.complete(jax.random.key(1), frontends=3, backends=4, count=20)
    best = dgd.solve_optimum(few)
    policy = dgd.DGDLB(0.5 * dgd.critical_step_size(few, optimum=best))
    dgd.characteristic_roots(few, policy, best)
    begin = time.perf_counter()
    ours = dgd.characteristic_roots(few, policy, best)
    taken = (time.perf_counter() - begin) / 20
    begin = time.perf_counter()
    theirs = [
        tdcpy_abscissa(few[k], jax.tree.map(lambda leaf, k=k: leaf[k], best), float(policy.step_size[k]))
        for k in range(20)
    ]
    other = (time.perf_counter() - begin) / 20
    off = np.max(np.abs(np.array(theirs) / np.asarray(ours.abscissa) - 1))
    print(
        f"roots of 3x4 networks: {1e3 * taken:.1f} ms each, tdcpy {1e3 * other:.1f} ms, largest relative difference {off:.1e}"
    )


def numpy_limit(network, optimum) -> float:
    """The exact limit by a plain scan over frequencies: eigenvalues near the negative real axis, interpolated."""
    lin = dgd.linearise(network, optimum=optimum)
    a, rate, tau, response = (np.asarray(v) for v in (lin.slope, lin.arrival_rate, lin.latency, lin.response))
    grid = np.geomspace(1e-2, 10, 2000) / tau.max()
    best, before = 0.0, None
    for w in grid:
        delay = np.exp(-1j * w * tau)
        loop = -np.einsum("ij,ijk,ik->jk", rate[:, None] * delay, response, delay) / (1j * w * (1j * w + a))[:, None]
        now = np.linalg.eigvals(loop)
        if before is not None:
            for old in before:
                new = now[np.argmin(np.abs(now - old))]
                if old.imag * new.imag < 0 and old.real < 0 and new.real < 0:
                    part = old.imag / (old.imag - new.imag)
                    best = max(best, -(old.real + part * (new.real - old.real)))
        before = now
    return 1 / best


def tdcpy_abscissa(network, optimum, step: float) -> float:
    import tdcpy

    lin = dgd.linearise(network, optimum=optimum)
    on, rate, tau = np.asarray(lin.support), np.asarray(lin.arrival_rate), np.asarray(lin.latency)
    arcs = [tuple(at) for at in np.argwhere(on)]
    size = len(arcs) + lin.slope.size
    still = np.zeros((size, size))
    still[len(arcs) :, len(arcs) :] = -np.diag(np.asarray(lin.slope))
    matrices, delays = [still], [0.0]
    for n, (i, j) in enumerate(arcs):
        term = np.zeros((size, size))
        term[len(arcs) + j, n] = rate[i]
        for m, (k, to) in enumerate(arcs):
            if k == i:
                term[m, len(arcs) + j] = step * float(lin.response[i, to, j])
        matrices.append(term)
        delays.append(float(tau[i, j]))
    roots, _ = tdcpy.roots(tdcpy.RDDE(A=np.moveaxis(np.array(matrices), 0, -1), hA=np.array(delays)), r=-1.0)
    return float(np.max(roots[np.abs(roots) > 1e-6].real))


if __name__ == "__main__":
    main()
