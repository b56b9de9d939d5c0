"""Fleets of all kinds end in a verdict that a run four times as long with half the step confirms; how long each took is printed.

A comparison ends after a fixed amount of work. Where a large fleet has not come to rest by then it says *moving* or *too short to
judge*, which is no verdict.
"""

import time
import warnings

import pytest

from dgdlb_jax.reports.text import verdict
from dgdlb_jax.studies.balancers import BALANCERS
from dgdlb_jax.studies.compare import Comparison, compare
from dgdlb_jax.studies.outcome import Outcome
from dgdlb_jax.studies.verdict import Verdict
from random_fleets import LARGE, SIZES, random_fleet

pytestmark = pytest.mark.usefixtures("older_emitters")

POLICIES = ("dgd-lb", "least-latency")


UNDECIDED = (Verdict.moving, Verdict.too_short)


def confirmed(short: Outcome, long: Outcome) -> bool:
    """The same word; chatter that the step does not resolve says so, and may be anything below 2 % or undecided with a finer one."""
    return short.verdict is long.verdict or (not short.resolved and long.verdict in (Verdict.settled, *UNDECIDED))


def longer(found: Comparison, key: str) -> Outcome:
    name = BALANCERS[key].label
    again = compare(found.network, [key], dt=found.time_steps[name] / 2, duration=4 * found.outcomes[name].duration)
    return again.outcomes[name]


def check(seeds: range, sizes: tuple) -> tuple[list[str], list[str], list[float]]:
    """Verdicts that are not confirmed, runs without a verdict, and how long each comparison took, compilation included."""
    failures, undecided, taken = [], [], []
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tables that are measured so and so
            network = random_fleet(seed, sizes)
        began = time.perf_counter()
        found = compare(network, POLICIES)
        taken.append(time.perf_counter() - began)
        for key in POLICIES:
            short = found.outcomes[BALANCERS[key].label]
            if short.verdict in UNDECIDED:
                undecided.append(f"fleet {seed} of {network.frontends}x{network.backends}, {key}: {verdict(short)}")
            elif not confirmed(short, long := longer(found, key)):
                failures.append(f"fleet {seed}, {key}: {verdict(short)}, then {verdict(long)}")
    return failures, undecided, taken


@pytest.mark.parametrize(
    ("seeds", "sizes"),
    [
        pytest.param(range(10), SIZES[1:], id="10"),
        pytest.param(range(1000, 1200), LARGE, id="200", marks=pytest.mark.full),
    ],
)
def test_verdicts_are_confirmed(seeds, sizes):
    failures, undecided, taken = check(seeds, sizes)
    print(f"{len(seeds)} fleets, {max(taken):.1f} s at most")
    print("not confirmed:", *failures, sep="\n  ")
    print("no verdict:", *undecided, sep="\n  ")
    assert len(failures) + len(undecided) <= 0.02 * len(seeds) * len(POLICIES)
