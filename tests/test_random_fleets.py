"""Fleets of all kinds end in a verdict that a run four times as long with half the step confirms; how long each took is printed."""

import time
import warnings

import pytest

from dgdlb_jax.experiments.balancers import BALANCERS
from dgdlb_jax.experiments.compare import Comparison, compare
from dgdlb_jax.experiments.outcome import Outcome
from dgdlb_jax.experiments.verdict import Verdict
from dgdlb_jax.experiments.words import verdict
from random_fleets import LARGE, SIZES, random_fleet

POLICIES = ("dgd-lb", "least-latency")


def confirmed(short: Outcome, long: Outcome) -> bool:
    """The same word; chatter that the step does not resolve says so, and may fall below 2 % with a finer one."""
    return short.verdict is long.verdict or (not short.resolved and long.verdict is Verdict.settled)


def longer(found: Comparison, key: str) -> Outcome:
    name = BALANCERS[key].label
    again = compare(found.network, [key], dt=found.time_steps[name] / 2, duration=4 * found.duration)
    return again.outcomes[name]


def check(seeds: range, sizes: tuple) -> tuple[list[str], list[float]]:
    """What is not confirmed, and how long each comparison took, compilation included."""
    failures, taken = [], []
    for seed in seeds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # tables that are measured so and so
            network = random_fleet(seed, sizes)
        began = time.perf_counter()
        found = compare(network, POLICIES)
        taken.append(time.perf_counter() - began)
        for key in POLICIES:
            short, long = found.outcomes[BALANCERS[key].label], longer(found, key)
            if not confirmed(short, long):
                failures.append(f"fleet {seed}, {key}: {verdict(short)}, then {verdict(long)}")
    return failures, taken


@pytest.mark.parametrize(
    ("seeds", "sizes"),
    [
        pytest.param(range(20), SIZES, id="20"),
        pytest.param(range(1000, 1200), LARGE, id="200", marks=pytest.mark.full),
    ],
)
def test_verdicts_are_confirmed(seeds, sizes):
    failures, taken = check(seeds, sizes)
    print(f"{len(seeds)} fleets, {max(taken):.1f} s at most; not confirmed:", *failures, sep="\n  ")
    assert len(failures) <= 0.02 * len(seeds) * len(POLICIES)
