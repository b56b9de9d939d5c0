"""Fleets that once stalled, crashed or got the wrong word, run as a user runs them (`tests/cases`)."""

import json
import math
from pathlib import Path

import pytest

from dgdlb_jax.cli import main
from dgdlb_jax.experiments import compare

CASES = Path(__file__).parent / "cases"
pytestmark = [pytest.mark.usefixtures("quick_compilation"), pytest.mark.filterwarnings("ignore::UserWarning")]


def run(capsys, fleet: str, *arguments: str) -> dict:
    """The JSON document of `dgdlb run`."""
    assert main(["run", str(CASES / fleet), "--no-files", "--quiet", "--json", *arguments]) == 0
    document = json.loads(capsys.readouterr().out)
    document["rows"] = {row["balancer"]: row for row in document["balancers"]}
    return document


@pytest.mark.parametrize(("fleet", "word"), [("ibm-405b-70.toml", "settled"), ("ibm-405b-90.toml", "oscillating")])
def test_slow_service_takes_thousands_of_steps_and_gets_the_right_word(fleet, word, capsys):
    """70 to 900 s of service behind 0.1 s of latency: once a million steps, "oscillating" from idle backends and "diverging" from
    short runs. At 90 % DGD-LB falls into a real cycle of 13 % after 5000 s, at every time step from 0.1 to 0.4 s."""
    found = run(capsys, fleet, "--policies", "dgd-lb,least-latency,uniform")
    rows = found["rows"]
    assert all(found["duration"] / row["time_step"] < 2.5e5 for row in rows.values())
    assert all(row["accuracy"] < 1e-3 for row in rows.values() if row["accuracy"] is not None)
    assert rows["DGD-LB"]["verdict"] == word
    assert rows["DGD-LB"]["excess"] < 3e-3
    # The three large backends take half of all requests when shares are equal, which is more than they can serve.
    assert rows["uniform"]["verdict"] == "diverging"
    assert rows["uniform"]["mean_latency"] is None
    assert rows["least latency"]["verdict"] != "diverging"
    assert math.isfinite(rows["least latency"]["mean_latency"])


def test_two_seconds_are_too_short_to_judge(capsys):
    found = run(capsys, "base.toml", "--duration", "2", "--dt", "0.01", "--policies", "dgd-lb")
    row = found["rows"]["DGD-LB"]
    assert row["verdict"] == "too_short"
    assert row["short_by"] == 0
    assert row["mean_latency"] > 0


def test_a_fleet_at_its_capacity_runs(capsys, monkeypatch):
    """99.9 % load: the slowest backend needs months, which the run does not wait for."""
    monkeypatch.setattr(compare, "PATIENCE", 0.1)
    found = run(capsys, "near-capacity.toml", "--policies", "dgd-lb,proportional")
    assert found["settling_time"] > 1e7
    assert found["duration"] / found["dt"] < 1e7
    for row in found["rows"].values():
        assert row["verdict"] in ("settled", "moving", "too_short")
        assert row["excess"] > -1e-3
