"""Fleets that once stalled, crashed or got the wrong word, run as a user runs them (`tests/cases`)."""

import json
import math
from pathlib import Path

import pytest

from dgdlb_jax.cli import main

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
    monkeypatch.setenv("DGDLB_PATIENCE", "0.01")
    found = run(capsys, "near-capacity.toml", "--policies", "dgd-lb,proportional")
    assert found["settling_time"] > 1e7
    assert found["duration"] / found["dt"] < 1e7
    for row in found["rows"].values():
        assert row["verdict"] in ("settled", "moving", "too_short")
        assert row["excess"] > -1e-3


def test_a_backend_that_dies_does_not_stop_the_others(capsys):
    """Its capacity is 0 from 30 s on: step sizes are those of the living, and DGD-LB leaves it (once +585 % with a step size of 0)."""
    found = run(capsys, "dead-backend.toml", "--policies", "dgd-lb", "--duration", "300", "--dt", "0.05")
    assert all(step > 1e-3 for step in found["step_size"].values())
    assert found["rows"]["DGD-LB"]["excess"] < 0.3


@pytest.mark.parametrize(
    ("fleet", "sentence"), [("no-traffic.toml", "no traffic"), ("names.toml", "use printable characters only")]
)
def test_what_cannot_run_is_one_sentence_before_any_work(fleet, sentence, capsys):
    assert main(["run", str(CASES / fleet), "--no-files", "--quiet"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert sentence in said.err
