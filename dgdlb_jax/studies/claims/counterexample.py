"""The case that speaks most clearly against a claim, as a fleet file, with the command that shows it."""

import shlex
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.model.network import Network
from dgdlb_jax.studies.starts import STARTS
from dgdlb_jax.studies.sweep.cases import prepare
from dgdlb_jax.studies.sweep.inputs import DEFAULTS, INPUTS

Case = dict[str, Any]
"""Inputs of one case of a sweep, and what was measured."""


def network_of(case: Case) -> tuple[Network, float]:
    """The network of a case, without padding, and its largest step size in 1/s^2."""
    given = {name: value for name, value in case.items() if name in INPUTS}
    prepared = prepare(
        {name: np.array([value]) for name, value in {**DEFAULTS, **given}.items()}, max_steps=10**9, needs=set()
    )
    padded = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), prepared.networks)
    mask = np.asarray(padded.mask)
    f, b = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    arcs = np.ix_(f, b)
    network = Network(
        padded.arrival_rate[f],
        padded.latency[arcs],
        padded.service.take(b),
        mask=padded.mask[arcs],
        feedback_latency=padded.feedback_latency[arcs],
        cost_latency=padded.cost_latency[arcs],
    )
    return network, float(prepared.step_size.max())


def write_counterexample(path: Path, case: Case, why: str) -> str:
    """Write the network of a case as a fleet file, with the reason and the command at its head.

    **Returns:** the command that runs it.
    """
    network, step = network_of(case)
    network.with_names(None, None, path.stem).to_toml(path)
    command = ["dgdlb", "run", path.name]
    if "step_size_over_critical" in case:
        command += ["--policies", "dgd-lb", "--step-size", f"{step:.6g}"]
    if case.get("start") in STARTS and case["start"] != "proportional":
        command += ["--start", str(case["start"])]
    command += ["--dt", f"{case['time_step']:.6g}", "--duration", f"{case['simulated_time']:.6g}"]
    text = shlex.join(command)
    path.write_text(f"# {why}\n# Run it: {text}\n\n{path.read_text()}")
    return text
