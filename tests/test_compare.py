"""Comparisons: the same start for all, figures that follow from the runs, sentences that follow from the figures."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.cli import run as run_help
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Exponential, Hyperbolic
from dgdlb_jax.numerics.formatting import percent, seconds
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.static import FixedRouting, Uniform
from dgdlb_jax.reports.routing_csv import read_routing
from dgdlb_jax.reports.text import flow_cells, report, verdict
from dgdlb_jax.reports.text_table import columns
from dgdlb_jax.studies.balancers import BALANCERS, DEFAULT
from dgdlb_jax.studies.compare import DGD, compare
from dgdlb_jax.studies.quasi_static import quasi_static_optimum
from dgdlb_jax.studies.results import to_json, whole_folder, write_dataset
from dgdlb_jax.studies.starts import start_state
from dgdlb_jax.studies.verdict import Verdict
from helpers import compilations

pytestmark = pytest.mark.usefixtures("quick_compilation")

SETTINGS = {"dt": 0.05, "duration": 120.0}
LATENCY = [[0.02, 0.15], [0.15, 0.02]]


def small_network(**changes):
    inputs = {
        "arrival_rate": [6.0, 2.0],
        "latency": LATENCY,
        "service": Exponential(max_rate=[8.0, 8.0], scale=[4.0, 4.0]),
        "frontend_names": ["west", "east"],
        "backend_names": ["oregon", "virginia"],
        "name": "pair",
    }
    return Network(**(inputs | changes))


@pytest.fixture(scope="module")
def comparison():
    return compare(small_network(), **SETTINGS)


@pytest.fixture(scope="module")
def overloaded():
    """All traffic enters beside a backend that cannot serve it: nearest lacks 10 - 8 requests/s."""
    network = small_network(arrival_rate=[6.0, 4.0], latency=[[0.02, 0.15], [0.03, 0.15]])
    return compare(network, ["dgd-lb", "nearest"], **SETTINGS)


def test_all_balancers_run_from_the_same_start(comparison):
    assert set(comparison.runs) == {BALANCERS[key].label for key in DEFAULT}
    first = comparison.runs[DGD]
    for run in comparison.runs.values():
        np.testing.assert_array_equal(run.workload[0], first.workload[0])
        np.testing.assert_array_equal(run.time, first.time)
    assert first.time[-1] == pytest.approx(120.0)
    # Proportional to equal capacities: half of 8 requests/s each, which 8 (1 - exp(-N / 4)) = 4 carries.
    np.testing.assert_allclose(first.workload[0], 4 * math.log(2), rtol=1e-9)


def test_dgd_finds_the_optimum_and_nobody_beats_it(comparison):
    rows = comparison.outcomes
    assert rows[DGD].verdict is Verdict.settled
    assert abs(rows[DGD].excess) < 2e-3
    assert comparison.table()[0].balancer == DGD
    assert min(row.excess for row in rows.values()) > -1e-6
    assert rows["uniform"].excess > 1e-3


def test_figures_follow_from_the_run(comparison):
    run, row = comparison.runs["uniform"], comparison.outcomes["uniform"]
    late = np.asarray(run.time) >= 0.8 * 120
    network = np.asarray(comparison.network.arrival_rate)[:, None] * np.asarray(run.routing)[late] * np.asarray(LATENCY)
    expected = (np.asarray(run.workload)[late].sum(1) + network.sum((1, 2))).mean() / 8.0
    assert row.mean_latency == pytest.approx(expected, rel=1e-6)
    assert row.excess == pytest.approx(expected / float(comparison.optimum.mean_latency) - 1, rel=1e-6)
    assert row.network_share == pytest.approx(network.sum((1, 2)).mean() / 8.0 / expected, rel=1e-6)


def test_steepest_latency_counts_arcs_in_use(comparison):
    slope = np.asarray(comparison.network.service.slope(comparison.optimum.workload))
    used = np.asarray(comparison.optimum.routing) > 1e-6
    assert comparison.steepest_latency == pytest.approx((np.asarray(LATENCY) * slope * used).max())


def test_overload_is_short_by_what_is_missing(overloaded):
    row = overloaded.outcomes["nearest"]
    assert row.verdict is Verdict.diverging
    assert row.short_by == pytest.approx(2.0, rel=1e-3)
    assert row.short_backends == ("oregon",)
    assert math.isinf(row.mean_latency)
    text = report(overloaded)
    assert "short by 2.00 req/s" in text
    assert "queues grow without end at oregon" in text
    assert "Nearest sends some backends more than they can serve." in text


def test_json_has_null_with_a_reason_for_infinity(overloaded):
    document = json.loads(json.dumps(to_json(overloaded), allow_nan=False))
    row = next(row for row in document["balancers"] if row["balancer"] == "nearest")
    assert row["mean_latency"] is None
    assert row["null_because"]["mean_latency"] == "diverging: short by 2 requests/s at oregon"
    assert row["short_by"] == pytest.approx(2.0, rel=1e-3)
    assert row["verdict"] == "diverging"
    assert set(document["verdicts"]) == set(Verdict.__members__)


def test_a_short_run_says_so_and_still_shows_its_latency():
    """Backends of 2 s at N = 40 and a fifth of 2 s: nothing is known about the end, 38 % load or not."""
    network = small_network(service=Hyperbolic([8.0, 8.0], [20.0, 20.0]), arrival_rate=[4.0, 2.0])
    found = compare(network, ["dgd-lb"], dt=0.05, duration=2.0)
    row = found.outcomes[DGD]
    assert row.verdict is Verdict.too_short
    assert math.isfinite(row.mean_latency)
    assert "too short to judge" in report(found)
    assert "is shorter than one time in service of 4" in row.reason
    assert json.loads(json.dumps(to_json(found), allow_nan=False))["balancers"][0]["reason"] == row.reason


def test_words_for_every_verdict(comparison):
    """What a table says, and that nothing is said to be unknown: every verdict has words of its own."""
    row = comparison.outcomes[DGD]
    said = {
        "settled": {"verdict": Verdict.settled},
        "oscillating (12 %)": {"verdict": Verdict.oscillating, "swing": 0.12},
        "chatter below the time step (12 %)": {"verdict": Verdict.oscillating, "swing": 0.12, "resolved": False},
        "moving (drift 3.0 %)": {"verdict": Verdict.moving, "drift": 0.03},
        "moving (swing 12 %, getting smaller)": {"verdict": Verdict.moving, "swing": 0.12, "drift": 0.0},
        "too short to judge": {"verdict": Verdict.too_short},
        "varying inputs": {"verdict": Verdict.varying_inputs},
        "diverging": {"verdict": Verdict.diverging},
        "failed": {"verdict": Verdict.failed},
    }
    assert {change["verdict"] for change in said.values()} == set(Verdict)
    for words, change in said.items():
        assert verdict(dataclasses.replace(row, **change)) == words
        assert change["verdict"].words in run_help._EXAMPLES


def test_the_dataset_carries_inputs_and_units(comparison):
    pytest.importorskip("xarray")
    data = comparison.to_xarray()
    np.testing.assert_allclose(data.optimum_workload, comparison.optimum.workload)
    np.testing.assert_allclose(data.sel(frontend="west", backend="virginia").latency, 0.15)
    assert all("units" in data[name].attrs for name in data.data_vars)
    assert set(data.verdict.values) <= set(Verdict.__members__)
    service = json.loads(data.attrs["service"])
    assert service["kind"] == "Exponential"
    assert service["max_rate"] == [8.0, 8.0]


def test_the_report_reads_well(comparison):
    text = report(comparison)
    for expected in ("pair: 2 frontends, 2 backends, 8.00 requests/s", "west", "virginia", "DGD-LB finds the optimum"):
        assert expected in text
    assert not any(line != line.rstrip() for line in text.splitlines())
    # What backends get comes before who sends where, and adds up.
    header, rows = flow_cells(comparison)
    assert text.index(header[0]) < text.index("sends at the optimum")
    assert header[2:] == ("at the optimum", "under DGD-LB")
    assert sum(float(row[2]) for row in rows) == pytest.approx(8.0, abs=0.01)


def test_starts(comparison):
    network = comparison.network
    routing, workload = start_state(network, "nearest")
    np.testing.assert_array_equal(routing, np.eye(2))
    np.testing.assert_allclose(workload, [-4 * math.log(1 - 6 / 8), -4 * math.log(1 - 2 / 8)], rtol=1e-9)
    np.testing.assert_array_equal(start_state(network, "uniform")[0], np.full((2, 2), 0.5))
    overloaded = network.with_arrival_rate([9.0, 1.0])  # 9 requests/s are more than 8: the queue starts empty
    assert start_state(overloaded, "nearest")[1][0] == 0
    with pytest.raises(InputError, match="did you mean uniform"):
        start_state(network, "unifrom")


def test_own_policies_and_keys():
    network = small_network()
    routing = FixedRouting([[0.9, 0.1], [0.2, 0.8]])
    found = compare(network, {"even": Uniform()}, also={"mine": routing}, **SETTINGS)
    assert list(found.runs) == ["even", "mine"]
    np.testing.assert_allclose(found.runs["mine"].routing[-1], routing.routing)
    with pytest.raises(InputError, match="did you mean gmsr"):
        compare(network, ["gmrs"], **SETTINGS)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dt": -1.0}, "dt = -1"),
        ({"dt": math.nan}, "dt = nan"),
        ({"dt": 1e4}, r"dt = 1e\+04 s is too large for backend oregon"),
        ({"duration": math.inf}, "duration = inf"),
        ({"duration": 1e9, "dt": 1e-3}, "1e\\+12 steps"),
        ({"step_size": -1.0}, "step"),
    ],
)
def test_values_out_of_range_are_named(changes, named):
    with pytest.raises(InputError, match=named):
        compare(small_network(), ["dgd-lb"], **(SETTINGS | changes))


def test_a_part_of_a_comparison(comparison):
    some = comparison.select("uniform", DGD)
    assert list(some.runs) == ["uniform", DGD]
    assert some.outcomes["uniform"] == comparison.outcomes["uniform"]
    with pytest.raises(InputError, match="did you mean uniform"):
        comparison.select("unifrom")


def test_progress_ends_complete():
    told = []
    compare(small_network(), ["uniform", "nearest"], **SETTINGS, progress=lambda *news: told.append(news))
    assert told[0][:2] == (0, 2)
    assert told[-1][:2] == (2, 2)
    assert {name for _, _, name in told[1:]} == {"uniform", "nearest"}


def test_single_precision_of_the_caller_holds_in_the_threads():
    with jax.enable_x64(False):
        network = small_network(service=Exponential(max_rate=[8.0, 8.0], scale=[4.0, 4.0]))
        found = compare(network, ["uniform"], step_size=0.01, duration=20.0, dt=0.05)
        assert found.runs["uniform"].workload.dtype == jnp.float32


@pytest.fixture(scope="module")
def flat():
    """A trace that never moves."""
    network = small_network(arrival_rate=Trace(20.0, jnp.broadcast_to(jnp.asarray([6.0, 2.0]), (6, 2))))
    return compare(network, ["uniform"], dt=0.05)


def test_a_flat_trace_has_the_optimum_as_its_reference(flat, comparison):
    assert flat.duration == pytest.approx(120.0)
    assert flat.reference.missing == 0
    assert flat.best_latency == pytest.approx(float(flat.optimum.mean_latency), rel=1e-9)
    row = flat.outcomes["uniform"]
    assert row.verdict is Verdict.settled  # the demand may move, but does not in the window
    assert math.isnan(row.settle_time)
    assert row.mean_latency == pytest.approx(comparison.outcomes["uniform"].mean_latency, rel=1e-9)
    assert "is a reference, not a bound" in report(flat)
    document = to_json(flat)["balancers"][0]
    assert document["verdict"] == "settled"
    assert document["null_because"]["settle_time"].endswith("demand moves")


def test_no_percentage_over_a_reference_that_queues_cannot_follow(flat):
    """The same run as if its bins had lasted half a second: a request spends 0.7 s at a backend."""
    assert flat.unmeasurable is None
    fast = dataclasses.replace(flat, network=small_network(arrival_rate=Trace(0.5, flat.network.demand.rates)))
    steady, service = fast.unmeasurable
    assert steady == 0.5
    # Above the 0.5 s of a lone request, below that of a backend which gets 6 of its 8 (1 - exp(-N / 4)) requests/s.
    assert 0.5 < service <= 4 * math.log(4) / 6 + 1e-6
    assert math.isnan(fast.outcomes["uniform"].excess)
    entry = json.loads(json.dumps(to_json(fast), allow_nan=False))["balancers"][0]
    assert entry["null_because"]["excess"].startswith("Demand stays as it is for 500 ms")
    assert "no percentages over it" in report(fast).replace("\n", " ")
    assert "no percentages over it" not in report(flat).replace("\n", " ")


def test_mean_rates_and_a_trace_share_compiled_programs(flat, comparison):
    """What was compiled for a trace runs the constant rates too, and they come out the same; one of another shape is compiled."""
    longer = small_network(arrival_rate=Trace(20.0, np.ones((7, 2))))
    with compilations() as shared:
        alike = compare(small_network(), ["uniform"], alike=flat.network, **SETTINGS)
    with compilations() as new:
        compare(small_network(), ["uniform"], alike=longer, **SETTINGS)
    assert not [name for name in shared if "_run" in name]
    assert [name for name in new if "_run" in name]
    assert not alike.moving
    wanted = comparison.outcomes["uniform"]
    assert alike.outcomes["uniform"].mean_latency == pytest.approx(wanted.mean_latency, rel=1e-12)
    assert alike.outcomes["uniform"].verdict is wanted.verdict


def test_a_run_under_a_trace_is_a_group_of_the_same_file(flat, comparison, tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    write_dataset(tmp_path / "run.nc", comparison, flat)
    with xarray.open_dataset(tmp_path / "run.nc", group="trace") as data:
        np.testing.assert_allclose(data.reference_latency, float(flat.optimum.mean_latency), rtol=1e-9)
        assert data.reference_rate.units == "requests/s"
        assert json.loads(data.attrs["demand"])["kind"] == "Trace"
    with xarray.open_dataset(tmp_path / "run.nc") as data:
        assert set(data.balancer.values) == set(comparison.runs)


def test_the_reference_weighs_by_arrivals_and_leaves_out_what_has_no_optimum():
    """Two levels of demand, then one above the capacity of 16 requests/s."""
    rates = jnp.asarray([[2.0, 2.0], [2.0, 2.0], [6.0, 6.0], [6.0, 6.0], [9.0, 9.0]])
    network = small_network(arrival_rate=Trace(1.0, rates))
    found = quasi_static_optimum(network, np.array([0.5, 1.0, 3.0, 3.2, 5.0]))
    assert found.missing == 1
    low = float(solve_optimum(small_network(arrival_rate=[2.0, 2.0])).mean_latency)
    assert found.latency[0] == pytest.approx(low, rel=1e-9)
    assert np.isnan(found.latency[-1])
    good = found.total_rate[:-1] * np.gradient(found.time)[:-1]
    assert found.mean_latency == pytest.approx(np.sum(good * found.latency[:-1]) / good.sum(), rel=1e-12)


def routing_file(tmp_path, text):
    path = tmp_path / "now.csv"
    path.write_text(text)
    return path


def test_a_routing_table_is_read_in_any_order(tmp_path):
    text = "share,frontend,backend\n1,east,virginia\n0.333,west,oregon\n0.666, west, virginia\n"
    found = read_routing(routing_file(tmp_path, text), small_network())
    np.testing.assert_allclose(found.routing, [[1 / 3, 2 / 3], [0, 1]], rtol=1e-12)


HEADER = "frontend,backend,share\n"
BAD_TABLES = {
    "": "now.csv:1: no column 'frontend'",
    "frontend,backend\n": "now.csv:1: no column 'share'",
    "frontend,backend,sahre\n": "unknown column 'sahre', the columns are frontend,backend,share; did you mean share?",
    HEADER + "wset,oregon,1\n": "now.csv:2: no frontend is called 'wset'; did you mean west",
    HEADER + "west,ohio,1\n": "now.csv:2: no backend is called 'ohio'",
    HEADER + "west,oregon,1\nwest,oregon,1\n": "now.csv:3: west to oregon already stands in line 2",
    HEADER + "west,oregon,-0.5\n": "now.csv:2: the share '-0.5'",
    HEADER + "west,oregon,nan\n": "now.csv:2: the share 'nan'",
    HEADER + "west,oregon,half\n": "now.csv:2: the share 'half'",
    HEADER + "west,oregon\n": "now.csv:2: not as many values as columns",
    HEADER + "west,oregon,1,1\n": "now.csv:2: not as many values as columns",
    HEADER + "west,oregon,0.5\neast,oregon,1\n": "the shares of frontend west sum to 0.5",
    HEADER + "west,oregon,1\n": "the shares of frontend east sum to 0",
}


@pytest.mark.parametrize("text", BAD_TABLES)
def test_a_bad_routing_table_is_named_with_its_line(text, tmp_path):
    with pytest.raises(InputError) as caught:
        read_routing(routing_file(tmp_path, text), small_network())
    assert BAD_TABLES[text] in str(caught.value)


def test_a_routing_table_keeps_to_the_arcs_there_are(tmp_path):
    network = small_network(mask=[[True, False], [True, True]])
    path = routing_file(tmp_path, HEADER + "west,virginia,1\neast,virginia,1\n")
    with pytest.raises(InputError, match=r"now\.csv:2: west cannot reach virginia"):
        read_routing(path, network)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a text file in UTF-16"):
        read_routing(path, network)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new" / "out"

    def fail():
        with whole_folder(target) as draft:
            (draft / "half").write_text("...")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as draft:
        (draft / "whole").write_text("done")
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0731, "73.1 ms"), (6.9, "6.90 s"), (0.9996, "1.00 s"), (3e-5, "30.0 us"), (123.4, "123 s"), (0.0, "0 s")],
)
def test_times_read_well(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.41, "141 %"), (0.04, "4.0 %"), (2e-5, "0.002 %"), (-0.01, "-1.0 %"), (math.inf, "")]
)
def test_parts_read_well(value, text):
    assert percent(value) == text


def test_columns_line_up():
    text = columns(("a", "number"), [("long name", "1"), ("b", "22")], right=(1,))
    assert text.splitlines() == ["a          number", "---------  ------", "long name       1", "b              22"]
