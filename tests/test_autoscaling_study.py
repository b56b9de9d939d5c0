"""Autoscalers in fleet files, in studies of balancers, and in words."""

import json
import math

import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.autoscalers import HPA, Behavior, Proportional, Rate
from dgdlb_jax.reports import autoscaling_text
from dgdlb_jax.studies.autoscaling import AutoscalingStudyInProgress, autoscaler_stability
from dgdlb_jax.studies.turns import crossings
from dgdlb_jax.studies.verdict import Verdict, classify

xarray = pytest.importorskip("xarray")
pytestmark = pytest.mark.usefixtures("quick_compilation")

FLEET = """
name = "a fleet"
[frontends]
names = ["west", "east"]
rate = [6.0, 4.0]
[backends]
names = ["west", "east"]
curve = "server"
replicas = [8, 8]
[curves.server]
kind = "hyperbolic"
max_rate = 1.0
half_load = 4.0
[latency]
one_way_s = [[0.02, 0.15], [0.15, 0.02]]
"""
SWINGS = """
[autoscaler]
metric = "concurrency"
target = 16
startup_s = 60
max_replicas = [12, 10]
"""


@pytest.fixture
def fleet(tmp_path):
    """A file with the fleet, and what is added to it."""

    def write(more=""):
        path = tmp_path / "fleet.toml"
        path.write_text(FLEET + more)
        return path

    return write


def test_what_a_file_says(fleet):
    assert dgd.load_autoscaler(fleet()) is None
    found = dgd.load_autoscaler(fleet(SWINGS))
    assert isinstance(found, HPA)
    assert (found.metric, found.interval, found.tolerance, found.removal) == ("concurrency", 15.0, 0.1, "at once")
    np.testing.assert_array_equal(found.most, [12.0, 10.0])
    more = """tolerance = 0.0
scale_up = {select = "disabled"}
scale_down = {stabilization_window_s = 60, policies = [{kind = "pods", value = 4, period_s = 60}]}
"""
    found = dgd.load_autoscaler(fleet(SWINGS + more))
    assert found.scale_down == Behavior(60.0, (Rate("pods", 4.0, 60.0),))
    assert found.scale_up.select == "disabled"
    smooth = '[autoscaler]\nkind = "proportional"\ntarget = [0.6, 0.7]\nstartup_s = 30\ntime_constant_s = 20\n'
    found = dgd.load_autoscaler(fleet(smooth))
    assert isinstance(found, Proportional)
    np.testing.assert_array_equal(found.target, [0.6, 0.7])
    assert float(found.time_constant) == 20.0


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("target = 0.7", r"autoscaler.startup_s is missing: give it for kind"),
        ("startup_s = 3", r"autoscaler.target is missing"),
        ('kind = "keda"\ntarget = 0.7\nstartup_s = 3', r"fleet.toml:\d+: autoscaler.kind is \"keda\""),
        ("target = 0.7\nstartup_s = 3\ntargt = 1", r"fleet.toml:\d+: autoscaler.targt is not a known key.*target"),
        ("target = [0.7]\nstartup_s = 3", r"autoscaler.target has 1 entry: give 2"),
        (
            "target = 0.7\nstartup_s = 3\nmin_replicas = 5\nmax_replicas = 2",
            "autoscaler.min_replicas is 5, above max_replicas = 2: exch",
        ),
        ("target = 70\nstartup_s = 3", r"fleet.toml:\d+: autoscaler.target is 70"),
        ('target = 0.7\nstartup_s = "3"', r"autoscaler.startup_s is \"3\": give a number"),
        ("target = 0.7\nstartup_s = 3\ninterval_s = [15, 15]", r"autoscaler.interval_s is \[15, 15\]: give a number"),
        ("target = 0.7\nstartup_s = 3\nscale_up = 4", r"autoscaler.scale_up is 4: give a table"),
        (
            'target = 0.7\nstartup_s = 3\nscale_up = {policies = [{kind = "nodes", value = 1, period_s = 1}]}',
            r"policies\[1\].kind is \"nodes\"",
        ),
        (
            'target = 0.7\nstartup_s = 3\n[[events]]\nat_s = 3\nwhat = "replicas"\nbackend = "east"\nfactor = 2.0',
            r"autoscaler stands beside \[\[events\]\] that change replicas",
        ),
    ],
)
def test_mistakes_in_a_file(fleet, lines, message):
    with pytest.raises(InputError, match=message):
        dgd.load_fleet(fleet(f"\n[autoscaler]\n{lines}\n"))


def test_balancers_while_replicas_move(fleet):
    """Kubernetes' rule on concurrency cycles here: seen, with its period, and said to people and scripts."""
    path = fleet(SWINGS)
    work = AutoscalingStudyInProgress(
        dgd.load_fleet(path), dgd.load_autoscaler(path), ["proportional"], duration=8000.0
    )
    (dt,) = work._dt.values()  # a microsecond for a step, and 25 ns for each of its arcs
    assert work.estimate == pytest.approx(8000.0 / dt * (1e-6 + 2.5e-8 * dgd.load_fleet(path).latency.size))
    table = autoscaling_text.growing_table(work.names)
    rows = {row.balancer: row for row in work.finished()}
    for row in rows.values():
        assert row.verdict is Verdict.oscillating
        assert row.replica_hours >= row.mean_replicas
        assert 2 < row.mean_replicas < row.peak_replicas <= 22
        assert row.swing > 0.2
        late = np.asarray(row.run.replicas)[-300:, 0]
        assert row.period == pytest.approx(np.diff(np.asarray(row.run.time)[-300:][crossings(late)]).mean(), rel=0.3)
        line = table.row(autoscaling_text.cells(row))
        assert "oscillating" in line
        assert "%" in line
    assert "the last fifth counts" in autoscaling_text.notes(work.study)[0]
    document = json.loads(json.dumps(autoscaling_text.study_document(work.study), allow_nan=False))
    assert [entry["balancer"] for entry in document["balancers"]] == ["proportional"]
    assert document["autoscaler"]["max_replicas"] == [12.0, 10.0]


def test_balancers_get_their_reports_as_they_are(fleet):
    """Older news takes smaller step sizes; what does not look at any stays as it is."""
    path = fleet(SWINGS)
    case = dgd.load_fleet(path), dgd.load_autoscaler(path), ["dgd-lb", "proportional"]
    fresh, old = (
        AutoscalingStudyInProgress(*case, duration=60.0, news=news) for news in (None, dgd.estimates.Scraped(60.0))
    )
    assert np.all(old.study.step_size < 0.9 * fresh.study.step_size)
    ends = [{row.balancer: row.mean_latency for row in work.finished()} for work in (fresh, old)]
    assert ends[0]["proportional"] == ends[1]["proportional"]
    assert ends[0]["DGD-LB"] != ends[1]["DGD-LB"]


@pytest.mark.full
def test_verdicts_know_of_replicas():
    """More than the first replicas could ever serve, and settled all the same."""
    curve = dgd.Replicas(dgd.Hyperbolic([1.0], [4.0]), [2.0])
    network = dgd.Network([3.0], [[0.1]], curve)
    run = dgd.simulate(
        network, dgd.Uniform(), duration=2000.0, dt=0.25, initial=([[1.0]], [8.0]),
        autoscaler=Proportional(0.7, 20.0, 10.0), save=dgd.SaveAt(8, after=1600.0),
    )  # fmt: skip
    assert Verdict(int(classify(network, run).verdict)) is Verdict.settled
    assert float(run.replicas[-1, 0]) == pytest.approx(3.0 / 0.7, rel=1e-6)


def test_crossings_come_once_in_a_period():
    time = np.linspace(0, 20 * np.pi, 2001)
    np.testing.assert_allclose(np.diff(time[crossings(np.sin(time))]), 2 * np.pi, atol=0.05)
    noisy = np.sin(time) + 0.1 * np.sin(40 * time)
    assert crossings(noisy).size == crossings(np.sin(time)).size == 9


def test_limits_in_words(fleet):
    """Of a rule that swings by itself, and what a script reads."""
    network, rule = dgd.load_fleet(fleet()), HPA(16.0, 60.0, metric="concurrency")
    report = autoscaling_text.AutoscalerReport(autoscaler_stability(network, rule, dgd.solve_optimum(network)))
    (alone,) = report.found.alone
    assert not alone.stable
    assert alone.startup < 60
    assert math.isnan(report.found.limit)
    assert f"startup_s (now 60.0 s) swings; it begins at {alone.startup:.3g}" in report.text()
    assert "the autoscaler swings by itself" in report.text()
    assert report.document()["limit_over_recommended"] is None
    json.dumps(report.document(), allow_nan=False)


def test_whole_requests_have_no_autoscaler(fleet, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["run", str(fleet(SWINGS)), "--requests", "--no-files", "--quiet"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("dgdlb: error: --requests: ")
    assert "has an [autoscaler], and whole requests know of no replicas that move" in said


def test_failures_in_turn_leave_the_autoscaler_out_and_say_so(fleet, capsys, monkeypatch):
    options = ["--policies", "proportional", "--duration", "20", "--dt", "0.5", "--no-files", "--quiet"]
    for lines in ("", SWINGS):
        assert main(["run", str(fleet(lines)), "--fail", "each", *options]) == 0
        assert ("its [autoscaler] is left out here" in capsys.readouterr().out) == bool(lines)


@pytest.mark.full
def test_the_command_line(fleet, capsys, monkeypatch, tmp_path):
    """A rule that does not swing by itself: a table, a picture, limits with DGD-LB."""
    monkeypatch.chdir(tmp_path)
    calm = '\n[autoscaler]\nkind = "proportional"\nmetric = "concurrency"\ntarget = 5\nstartup_s = 20\n'
    path = str(fleet(calm))
    assert main(["run", path, "--policies", "dgd-lb,nearest", "--quiet", "--json", "--report", "--output", "out"]) == 0
    found = json.loads(capsys.readouterr().out)["autoscaling"]
    assert [row["verdict"] for row in found["balancers"]] == ["settled", "settled"]
    assert (tmp_path / "out" / "replicas.png").exists()
    kept = xarray.open_dataset(tmp_path / "out" / "run.nc", group="autoscaling/DGD-LB", engine="h5netcdf")
    assert kept.replicas.dims == ("time", "backend")
    assert "With the autoscaler: Proportional" in (tmp_path / "out" / "report.html").read_text()
    assert main(["stability", path, "--quiet", "--no-files"]) == 0
    said = capsys.readouterr().out
    assert "no start-up delay makes its law swing" in said or "begins at" in said
    assert "with DGD-LB (step size" in said
