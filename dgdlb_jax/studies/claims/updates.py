"""Claim 9: balancers that read reports every so often, and what the multipliers of one update say of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.studies.claims.judgement import Judgement, Verdict, percent, topologies
from dgdlb_jax.studies.verdict import Verdict as End

if TYPE_CHECKING:
    import xarray

    Data = Mapping[str, xarray.Dataset]
else:
    Data = Mapping

_RIGHT = 0.97  # part of the runs that a theory of small deviations has to be right about, to hold


def rules(data: Data) -> dict[str, "xarray.Dataset"]:
    """The runs of every rule, by its name for people."""
    localities = data["localities"]
    return {
        "Envoy load-aware, with a local locality": localities.sel({"policy.local": "nearest"}, drop=True),
        "Envoy load-aware, without": localities.sel({"policy.local": "none"}, drop=True),
        "ORCA weights, slots in use reported": data["weights"],
    }


def decided(runs: "xarray.Dataset") -> "xarray.DataArray":
    """Runs that are long enough to say whether they settle."""
    return runs["verdict"].isin((End.settled, End.oscillating, End.diverging))


def restless(runs: "xarray.Dataset") -> "xarray.DataArray":
    """Runs that go on swinging, or let a queue grow."""
    return runs["verdict"].isin((End.oscillating, End.diverging))


def updates(data: Data) -> Judgement:
    """Claim 9: how many runs settle that should by the multipliers, how many swing that should, and what is without equilibrium."""
    numbers: dict[str, float] = {}
    sentences, right = [], []
    for name, runs in rules(data).items():
        known, swings, size = decided(runs).values, restless(runs).values, runs["multiplier"].values
        settles, expected, free = (
            ~swings[known & (size < 1)],
            swings[known & (size >= 1) & np.isfinite(size)],
            np.isinf(size),
        )
        right += [settles, expected]
        numbers |= {
            f"{name}: without equilibrium": float(free.mean()),
            f"{name}: of these swing or overload": _part(swings[known & free]),
            f"{name}: should settle": float(settles.size),
            f"{name}: of these settle": _part(settles),
            f"{name}: should swing": float(expected.size),
            f"{name}: of these swing": _part(expected),
        }
        without = (
            f"{percent(float(free.mean()))} of the runs have no equilibrium, and of these "
            f"{percent(_part(swings[known & free]))} swing"
        )
        with_one = f"of {settles.size + expected.size} with one, {expected.size} should swing"
        sentences.append(f"{name}: " + (f"{without}; {with_one}" if free.any() else with_one))
    agree = np.concatenate(right)
    numbers["linear theory is right"] = _part(agree)
    return Judgement(
        f"theory is right about {percent(_part(agree))} of {agree.size} runs with an equilibrium. "
        + ". ".join(sentences),
        Verdict.holds if _part(agree) >= _RIGHT else Verdict.in_part,
        topologies(data["weights"]),  # the same ones for every rule
        numbers,
    )


def _part(true: np.ndarray) -> float:
    return float(true.mean()) if true.size else float("nan")
