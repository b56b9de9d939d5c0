"""Rules of equal gain at the optimum from four far starts: failures and settling times.

python benchmarks/study_far_starts.py
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

from common import machine
from dgdlb_jax.model.network import stack
from dgdlb_jax.studies.stability import from_far, study_networks

FAMILIES = ("equal", "three decades", "geographic")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--count", type=int, default=20, help="networks per latency family (equal, three decades, geographic)"
    )
    parser.add_argument(
        "--periods", type=float, default=200.0, help="length of a run at a tenth of the limit, in periods"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine(), flush=True)
    begin = time.perf_counter()
    exponential = [
        study_networks(name, options.count, seed=options.seed, frontends=3, backends=3) for name in FAMILIES[:2]
    ]
    networks = stack([batch[k] for batch in exponential for k in range(options.count)])
    geographic = study_networks("geographic", options.count, seed=options.seed, frontends=3, backends=3)
    for label, batch in (
        ("exponential curves, equal and three decades", networks),
        ("hyperbolic curves, geographic", geographic),
    ):
        found = from_far(batch, periods=options.periods)
        print(f"{label}: {found.failed.shape[-1]} networks, {time.perf_counter() - begin:.0f} s")
        for r, rule in enumerate(found.names):
            for f, fraction in enumerate(found.fractions):
                failed = found.failed[r, f]
                both = ~np.isnan(found.settled_after[r, f]) & ~np.isnan(found.settled_after[0, f])
                slower = np.median(
                    np.maximum(found.settled_after[r, f][both], 1e-9)
                    / np.maximum(found.settled_after[0, f][both], 1e-9)
                )
                print(
                    f"  {rule:14s} {fraction:.1f} of critical: failed per start {' '.join(map(str, failed.sum(1)))}, "
                    f"networks with a failure {int(failed.any(0).sum())}, settling time over DGD-LB {slower:.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
