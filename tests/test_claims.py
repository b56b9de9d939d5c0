"""The claims at their quick size: figures within intervals, not the words of verdicts; the files anyone can use afterwards."""

import csv
import pickle
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest

from dgdlb_jax.cli import main
from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.gradients.marginal import marginal_latency
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.reports.claim_plots import FIGURES
from dgdlb_jax.reports.reproduce import reproduce, table
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.studies.claims import read_claims
from dgdlb_jax.studies.claims.counterexample import network_of
from dgdlb_jax.studies.claims.judge import JUDGES, percent
from dgdlb_jax.studies.compare import compare
from dgdlb_jax.studies.sweep import open_sweep
from dgdlb_jax.studies.sweep.gradient_error import costate, largest_gradient_error
from dgdlb_jax.studies.verdict import Verdict
from helpers import ROOT, interior_equilibrium, own_process, run_notebook

pytestmark = pytest.mark.usefixtures("older_emitters")

KEYS = ("1", "2", "3", "4", "5", "6", "7", "8", "9")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("claims") / "dgdlb-claims-quick"  # where the notebook looks for them


@pytest.fixture(scope="module")
def rows(folder):
    """All claims, by a process that compiles in half the time."""
    script = (
        "import pickle, sys; from dgdlb_jax.reports.reproduce import reproduce; "
        "rows = reproduce(size='quick', output=sys.argv[1], progress=False); pickle.dump(rows, open(sys.argv[2], 'wb'))"
    )
    pickled = folder.parent / "rows.pickle"
    settings = own_process(optimisation=1) | {"JAX_ENABLE_X64": "1"}
    subprocess.run([sys.executable, "-c", script, str(folder), str(pickled)], env=settings, check=True)
    return {row.claim.key: row for row in pickle.loads(pickled.read_bytes())}


def test_every_claim_has_words_sweeps_a_judge_and_a_figure():
    for size in ("quick", "full"):
        claims = read_claims(size=size)
        assert tuple(claim.key for claim in claims) == KEYS
        for claim in claims:
            assert claim.title
            assert claim.statement.endswith(".")
            assert claim.sweeps
    assert set(JUDGES) == set(FIGURES) == set(KEYS)
    full = {claim.key: claim for claim in read_claims(size="full")}
    assert next(axis.size for axis in full["6"].sweeps["random"].axes if axis.name == "seed") >= 200


def test_equilibria_are_optimal(rows):
    found = rows["1"].judgement.numbers
    assert found["settled"] >= 0.75
    # Started at the optimum a run stays there to rounding; the others are on their way, ever closer.
    assert found["largest excess when started at the optimum"] < 1e-9
    assert found["median excess of settled runs, 4 times as long"] < 1e-5
    assert found["95 % excess of settled runs, 4 times as long"] < 0.02


def test_small_deviations_decay_at_the_rate_of_the_rightmost_root(rows):
    found = rows["2"].judgement.numbers
    assert found["cases compared"] >= 10
    assert found["decaying"] > 0.9
    assert found["negative abscissa"] == 1
    assert found["median difference of decay rate and root"] < 0.05


def test_sufficient_conditions_are_never_violated(rows):
    found = rows["3"].judgement.numbers
    assert found["networks with a limit"] >= 25
    assert found["violations"] == 0
    assert found["smallest factor to the limit"] >= 1
    assert 1 < found["median factor to the limit"] < 4
    assert found["simulated within the linear region"] >= 20
    assert found["decaying within the linear region"] == 1


def test_guaranteed_exact_and_observed_step_sizes(rows):
    found = rows["4"].judgement.numbers
    assert 0.3 < found["median guaranteed / exact"] < 1
    assert found["highest guaranteed / exact"] <= 1
    assert found["observed"] >= 10
    assert found["median observed / exact"] == pytest.approx(1, abs=0.01)
    assert found["within 1 % of exact"] > 0.8


def test_far_starts_may_end_in_a_cycle(rows):
    """Local is not global: rare from a proportional start with small steps, frequent from a vertex at high load."""
    found = rows["5"].judgement.numbers
    assert found["cycling from proportional at the smallest step size"] < 0.1
    assert 0.02 < found["cycling"] < 0.5
    assert found["cycling from nearest"] > found["cycling from proportional"]


def test_gains_when_latencies_are_large(rows):
    found = rows["6"].judgement.numbers
    assert found["dgd-lb at 3"] < 0.02
    for rival in ("least-latency", "peak-ewma", "gmsr", "proportional"):
        assert found[f"{rival} at 3"] > 0.05
        assert found[f"{rival} at 3"] > found[f"{rival} at 0.3"]


def test_the_gradient_is_wrong_in_proportion_to_the_distance(rows):
    found = rows["7"].judgement.numbers
    assert found["error at distance 0.01, latency 0.1"] < 0.05
    assert 0.5 < found["median order in the distance"] < 1.5


def test_noise_falls_with_the_scale(rows, folder):
    """Under a routing that never changes each backend, at 3/8 of its capacity, holds (3/8)/(5/8) requests more than the fluid one at every
    scale (negative binomial), so that latencies are 2 * 0.6 / 6 s longer at scale 1."""
    found = rows["8"].judgement.numbers
    assert found["median order in the scale"] == pytest.approx(-1, abs=0.1)
    assert found["pairs that change places at scale 10"] == 0
    # Linear theory counts no idle arc, which DGD-LB has within reach here.
    assert found["predicted over measured at the largest scale, median"] == pytest.approx(1, abs=0.15)
    runs = open_sweep(folder / "claim-8-fleets-quick.zarr").sel(policy="proportional").squeeze()
    for scale in (1.0, 10.0):
        one = runs.sel(scale=scale)
        longer = float(one["request_mean"] - one["mean_latency"])
        assert longer == pytest.approx(0.2 / scale, abs=4 * float(one["request_error"]))


def test_multipliers_of_an_update_decide_who_settles(rows):
    """Orders of magnitude: with these curves (one request alone takes a second, load 0.8) the loop passes its limit between 10 and 30 s."""
    found = rows["9"].judgement.numbers
    assert found["linear theory is right"] > 0.95
    assert found["Envoy load-aware, with a local locality: without equilibrium"] > 0.5
    for rule in ("Envoy load-aware, without", "ORCA weights, slots in use reported"):
        assert found[f"{rule}: should settle"] == 16
        assert found[f"{rule}: of these settle"] == 1
        assert found[f"{rule}: of these swing"] == 1


def test_the_counterexample_is_a_fleet_that_shows_it(rows, folder):
    """The command in the file, as far as it matters: the same fleet, step size, start, time step and duration end in a cycle."""
    row = rows["5"]
    words = shlex.split(row.command)
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert words[:2] == ["dgdlb", "run"]
    assert row.command in (folder / words[2]).read_text()
    found = compare(
        load_fleet(str(folder / words[2]), demand="constant"),
        options["--policies"].split(","),
        step_size=float(options["--step-size"]),
        start=options.get("--start", "proportional"),
        dt=float(options["--dt"]),
        duration=float(options["--duration"]),
        instants=100,
    )
    (outcome,) = found.table()
    assert outcome.verdict is Verdict.oscillating
    assert outcome.excess > 0.01


def test_a_case_of_a_sweep_becomes_a_network_without_padding():
    case = {
        "family": "complete",
        "frontends": 5,
        "backends": 7,
        "seed": 3,
        "load": 0.6,
        "latency_scale": 2.0,
        "step_size": 0.1,
    }
    network, step = network_of(case)
    assert network.latency.shape == (5, 7)
    assert float(network.load) == pytest.approx(0.6)
    assert step == pytest.approx(0.1)


def test_table_stores_and_figures_are_there_and_are_not_computed_twice(rows, folder):
    with (folder / "claims.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["claim"] for line in lines] == list(KEYS)
    for line in lines:
        row = rows[line["claim"]]
        assert line["verdict"] == row.judgement.verdict
        assert int(line["topologies"]) == row.judgement.topologies > 0
        assert line["measured"] == row.judgement.measured
        assert ("fleets none" if line["claim"] == "8" else "0-") in line["seeds"]
        for name in row.files:
            assert (folder / name).exists()
            if name.endswith(".png"):
                assert (folder / name).stat().st_size > 10_000
            if name.endswith(".zarr"):
                assert "specification" in open_sweep(folder / name).attrs
    with (folder / "numbers.csv").open() as file:
        numbers = list(csv.DictReader(file))
    assert len(numbers) == sum(len(row.judgement.numbers) for row in rows.values())
    again = reproduce(["sufficient", "4"], size="quick", output=folder, progress=False)
    assert [row.claim.key for row in again] == ["3", "4"]
    assert again[0].judgement == rows["3"].judgement
    text = table(list(rows.values()))
    assert all(row.claim.statement in text for row in rows.values())


def test_mistakes_are_answered_in_a_sentence(capsys, tmp_path):
    with pytest.raises(InputError, match="did you mean 4"):
        read_claims(["nearly tigth"])
    with pytest.raises(InputError, match="size"):
        read_claims(size="huge")
    with pytest.raises(InputError, match=r"Claim 4 \(nearly tight\) is asked for twice"):
        read_claims(["4", "tight"])
    assert main(["reproduce", "99", "--output", str(tmp_path / "x")]) == 2
    assert "No claim is called '99'" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").write_text("")
    assert main(["reproduce", "1", "--output", str(tmp_path / "file")]) == 2
    assert "file" in capsys.readouterr().err


def test_the_list_of_claims(capsys):
    assert main(["reproduce", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n{key}  " in f"\n{printed}" for key in KEYS)
    assert "runs, quick" in printed


def test_percent_is_short():
    assert [percent(x) for x in (0, 0.0412, 0.5, 1.2, np.inf, np.nan)] == [
        "0 %",
        "4.1 %",
        "50 %",
        "120 %",
        "no end",
        "unknown",
    ]


@pytest.mark.full
def test_the_gradient_error_of_a_sweep_is_that_of_marginal_latency(rng):
    """The costate equation over saved workloads against reverse mode through the simulator: equal to the order of the step."""
    network, start = interior_equilibrium(rng, frontends=2, backends=3)
    routing = 0.7 * start[0] + 0.3 * np.roll(start[0], 1, axis=1)
    settings = {"duration": 12.0, "dt": 0.02, "initial": (routing, start[1])}
    policy = DGDLB(0.02)
    exact = marginal_latency(network, policy, run_on=40.0, **settings)
    run = simulate(network, policy, **(settings | {"duration": 60.0}))
    time, workload = np.asarray(run.time), np.asarray(run.workload)
    price = costate(time, np.asarray(jax.vmap(network.service.slope)(run.workload)))
    shown = slice(1, None, 25)  # at the very start half a step of the injected request is missing by construction
    for i, j in np.ndindex(2, 3):
        arrives = np.asarray(exact.time) + float(network.latency[i, j])
        expected = float(network.cost_latency[i, j]) + np.interp(arrives, time, price[:, j])
        np.testing.assert_allclose(exact.open_loop[shown, i, j], expected[shown], rtol=1e-3)
    error = np.abs(np.asarray(exact.relative_error())).mean((1, 2)).max()
    assert largest_gradient_error(network, time, workload) == pytest.approx(error, rel=0.01)


@pytest.mark.filterwarnings("default")
def test_the_notebook_goes_on_from_what_is_there(folder, rows):
    before = {path: path.stat().st_mtime_ns for path in folder.glob("claim-6-random-*/**/c/*")}
    run_notebook(ROOT / "notebooks" / "05_claims.ipynb", folder.parent)
    assert before
    assert before == {path: path.stat().st_mtime_ns for path in before}
