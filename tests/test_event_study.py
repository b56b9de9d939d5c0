"""Events in comparisons: phases, recoveries, what people and scripts are told; every backend fails in turn."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from dgdlb_jax.fleets import load_events, load_fleet
from dgdlb_jax.model import events as happen
from dgdlb_jax.model.demand import DailyCycle
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports import failures_text, text
from dgdlb_jax.reports.plots import latency_over_time
from dgdlb_jax.studies.compare import compare
from dgdlb_jax.studies.event_results import event_variables, events_json
from dgdlb_jax.studies.event_words import about_events, described
from dgdlb_jax.studies.failures import FailuresInProgress
from dgdlb_jax.studies.schedule import Schedule
from dgdlb_jax.studies.verdict import Verdict

pytestmark = pytest.mark.usefixtures("quick_compilation")

FLEET = """
name = "a fleet"
[frontends]
names = ["west", "east"]
rate = [4.0, 2.0]
[backends]
names = ["west", "east"]
curve = "server"
[curves.server]
kind = "hyperbolic"
max_rate = 8.0
half_load = 20.0
[latency]
one_way_s = [[0.02, 0.15], [0.15, 0.02]]

[[events]]
at_s = 200
what = "fails"
backend = "east"

[[events]]
at_s = 500  # in seconds
what = "recovers"
backend = ["east"]
"""


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    path = tmp_path_factory.mktemp("events") / "fleet.toml"
    path.write_text(FLEET)
    return path


@pytest.fixture(scope="module")
def comparison(fleet):
    return compare(load_fleet(fleet), ["dgd-lb"], events=load_events(fleet), dt=0.1)


def test_balancers_get_over_a_failure(comparison):
    """At rest the backend that fails holds what it does at the optimum, and until the frontends know it is sent as much as then."""
    before, down, back = comparison.phases
    assert [phase.begin for phase in comparison.phases] == [0, 200, 500]
    # One backend alone: N = 20 rho / (1 - rho), rho = 6 / 8, and the network costs 0.02 and 0.15 s.
    assert down.latency == pytest.approx(60 / 6 + (4 * 0.02 + 2 * 0.15) / 6, rel=1e-6)
    assert back.latency == pytest.approx(before.latency, rel=1e-9)
    first, second = comparison.recoveries
    best = comparison.optimum
    sent = np.array([4.0, 2.0]) * np.asarray(best.routing)[:, 1]
    expected = float(best.workload[1]) + 2 * float(sent @ [0.15, 0.02])
    assert first.lost == pytest.approx(expected, rel=2e-3)
    assert second.lost == 0
    # Alone, the backend's slope at rest is (8 / 20) / 16 = 1/40 s: 1 % of 60 from 12 requests takes 40 ln(48 / 0.6) = 175 s if that
    # were its slope all the way, and less as it is steeper before.
    assert 100 < first.time < 175
    assert first.worst_latency == pytest.approx(down.latency, rel=0.01)
    assert math.isfinite(second.time)
    row = comparison.outcomes["DGD-LB"]
    assert row.verdict is Verdict.settled
    assert abs(row.excess) < 1e-3


def test_what_people_and_scripts_are_told(comparison):
    header, rows = text.event_cells(comparison)
    assert [row[0] for row in rows] == ["200 s: east fails", "", "500 s: east recovers", ""]
    assert all(len(row) == len(header) for row in rows)
    assert (
        "At 200 s: east fails, which moves the optimum from 4.04 s to 10.1 s; DGD-LB is back within 1 %"
        in about_events(comparison)
    )
    assert "events: 200 s: east fails; 500 s: east recovers" in text.facts(comparison)
    told = json.loads(json.dumps(events_json(comparison), allow_nan=False))
    assert [one["at_s"] for one in told] == [200, 500]
    assert told[0]["balancers"][0]["requests_lost"] == comparison.recoveries[0].lost
    found = event_variables(comparison)
    assert np.shape(found["event_recovery_time"][1]) == (1, 2)
    ax = latency_over_time(comparison)
    assert {"east fails", "east recovers"} <= {note.get_text() for note in ax.texts}


def test_facts_and_inputs_are_those_before_any_event(comparison):
    schedule = Schedule(comparison.given, [happen.Demand(10.0, 2.0, "west"), happen.Latency(20.0, 3.0, "west", "east")])
    changed = replace(comparison, schedule=schedule, network=schedule.network_at(20.0))
    assert float(changed.network.arrival_rate.sum()) == 10.0
    assert "6.00 requests/s" in text.facts(changed).splitlines()[0]
    assert text.input_cells(changed.given) == text.input_cells(comparison.network) != text.input_cells(changed.network)


def test_every_event_has_words():
    for kind in happen.KINDS.values():
        fields = {"factor": 0.5} if "factor" in kind.__dataclass_fields__ else {}
        fields |= {"backend": ["x", "y"]} if "backend" in kind.__dataclass_fields__ else {}
        assert described(kind(1.0, **fields))[0].isalnum()


def test_what_cannot_be_studied_is_refused(fleet):
    network, events = load_fleet(fleet), load_events(fleet)
    with pytest.raises(
        InputError, match=r"the last event is at 500 s, and a run is judged by its last fifth.*at least 625 s"
    ):
        compare(network, ["dgd-lb"], events=events, duration=600.0)
    with pytest.raises(InputError, match=r"After the last event, at 20 s: .*short"):
        compare(network, ["dgd-lb"], events=[happen.Demand(10.0, 3.0), happen.Demand(20.0, 4.0)])
    with pytest.raises(InputError, match="constant otherwise"):
        Schedule(network.with_arrival_rate(DailyCycle([4.0, 2.0], 0.1)), events)


MISTAKES = {
    r"fleet.toml:22: events\[2\].at_s contains -3: give a positive": ("at_s = 500", "at_s = -3"),
    r"fleet.toml:21: events\[2\].at_s is missing": ("at_s = 500", "# at_s = 500"),
    r'fleet.toml:23: events\[2\].what is "recover": did you mean "recovers"': ('"recovers"', '"recover"'),
    rf'events\[2\].what is "earthquake": known here: {", ".join(sorted(happen.KINDS))}\.$': (
        '"recovers"',
        '"earthquake"',
    ),
    r'fleet.toml:19: events\[1\].backend is "eats": did you mean "east"': ('backend = "east"', 'backend = "eats"'),
    r"events\[1\].factor is missing": ('"fails"', '"replicas"'),
    r"events\[2\].factor is not a known key": ('what = "recovers"', 'what = "recovers"\nfactor = 2'),
    r'fleet.toml: \[\[events\]\] "recovers" at 500 s: backend west is not out of service': ('["east"]', '["west"]'),
    r"fleet.toml:\d+: events\[1\].timeout_s is 0.0: .* or leave it out for": (
        'what = "fails"',
        'what = "fails"\ntimeout_s = 0',
    ),
    r"leaves frontend west without a backend": ('backend = "east"', 'backend = ["west", "east"]'),
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_a_mistake_is_named_with_its_place(sentence, tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET.replace(*MISTAKES[sentence], 1))
    with pytest.raises(InputError, match=sentence):
        load_fleet(path)


def test_every_backend_fails_in_turn():
    """Without the large backend the small one cannot serve 6 requests/s, so only the loss of the small one is run."""
    network = Network(
        [4.0, 2.0],
        [[0.02, 0.15], [0.15, 0.02]],
        Hyperbolic([8.0, 4.0], [20.0, 10.0]),
        frontend_names=["west", "east"],
        backend_names=["large", "small"],
    )
    work = FailuresInProgress(network, ["dgd-lb"], duration=700.0, dt=0.1)
    assert list(work.finished()) == ["DGD-LB"]
    found = work.failures
    large, small = found.losses
    assert large.short_by == pytest.approx(2.0, rel=1e-6)
    assert not large.recoveries
    one = small.recoveries["DGD-LB"]
    assert small.latency == pytest.approx(60 / 6 + (4 * 0.02 + 2 * 0.15) / 6, rel=1e-6)
    sent = np.array([4.0, 2.0]) * np.asarray(found.optimum.routing)[:, 1]
    assert one.lost == pytest.approx(float(found.optimum.workload[1]) + 2 * float(sent @ [0.15, 0.02]), rel=1e-3)
    assert 100 < one.time < 175
    header, rows = failures_text.cells(found)
    assert rows[0][:2] == ("large", "short by 2.00 req/s")
    assert header[-1] == "under DGD-LB"
    assert "large has no substitute" in failures_text.sentences(found)
    assert json.loads(json.dumps(failures_text.document(found), allow_nan=False))["failures"][0]["short_by"] > 1.9
