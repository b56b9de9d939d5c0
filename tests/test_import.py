"""`dgdlb import`: tidy tables, a fleet that runs, and the whole way from raw files to a configuration of Envoy."""

import json
import re
import tomllib
import warnings
from itertools import pairwise

import jax
import numpy as np
import pytest

from dgdlb_jax.cli import main
from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.fleets import FleetWarning, load_fleet
from dgdlb_jax.fleets.longitudes import sun_shifts
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.exporters import EXPORTERS, Names
from dgdlb_jax.reports.routing_csv import read_routing
from layouts import RATES, SAVED, query_range

pytestmark = pytest.mark.usefixtures("quick_compilation")

MATRIX = "rtt_ms;us;eu;in\nus;;68;191\neu;68;;122,6\nin;191;122,6;0\n"
REQUESTS = "TIMESTAMP,ContextTokens,GeneratedTokens,region\n" + "".join(
    f"2023-11-16 18:{k // 30:02d}:{2 * (k % 30):02d}.{k % 10}805900,{k},44,{'us' if k % 3 else 'eu'}\n"
    for k in range(300)
)


@pytest.fixture
def raw(tmp_path, monkeypatch):
    """Files as they come: a matrix from a spreadsheet, runs of a load test, a log of requests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = {
        name: getattr(jax.config, name) for name in ("jax_enable_x64", "jax_compilation_cache_dir", "jax_platforms")
    }
    (tmp_path / "rtt.csv").write_text(MATRIX)
    (tmp_path / "requests.csv").write_text(REQUESTS)
    (tmp_path / "runs").mkdir()
    for name, text in SAVED.items():
        (tmp_path / "runs" / name).write_text(text)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def quietly(path, **told):
    """A measured table may be a little doubtful; what the fit says is not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FleetWarning)
        return load_fleet(path, **told)


def test_from_raw_files_to_envoy(raw, capsys):
    assert main(["import", "rtt.csv", "runs", "requests.csv", "--fleet", "my-fleet.toml", "--bin", "60"]) == 0
    said = capsys.readouterr().out
    for part in ("rtt.csv: matrix of latencies", "runs: vLLM or SGLang", "requests.csv: table of requests", "Little's law",
                 "10 bins of 60 s", "toml: latency.inside_ms = 0.5: assumed", "enter at: in", "written: my-fleet.toml"):  # fmt: skip
        assert part in said
    network = quietly("my-fleet.toml")
    assert (network.frontend_names, network.backend_names) == (("eu", "us"), ("us", "eu", "in"))
    # 10 minutes of 30 requests each, 10 of them from eu; after the last one the next would have come in the eleventh.
    np.testing.assert_allclose(network.arrival_rate, [10 / 60, 20 / 60], rtol=1e-12)
    np.testing.assert_allclose(network.latency, [[0.034, 0.0005, 0.0613], [0.0005, 0.034, 0.0955]], rtol=1e-12)
    assert float(network.nominal_capacity[0]) == pytest.approx(max(RATES.values()), rel=0.02)
    exporter = EXPORTERS["envoy"]
    from dgdlb_jax import solve_optimum

    optimum = solve_optimum(network)
    names = Names(network.frontend_names, network.backend_names)
    (raw / "envoy.json").write_text(exporter.write(exporter.rounded(np.asarray(optimum.routing)), names))
    found = np.asarray(read_routing(raw / "envoy.json", network).routing)
    assert latency_at_rest(network, found) == pytest.approx(float(optimum.mean_latency), rel=1e-4)


def test_every_figure_has_its_origin_above_it(raw):
    assert main(["import", "rtt.csv", "runs", "requests.csv", "--fleet", "new/my-fleet.toml"]) == 0
    lines = (raw / "new" / "my-fleet.toml").read_text().splitlines()
    for before, line in pairwise(lines):
        if re.match(r"[a-z_]+ = ", line):
            assert before.startswith("# "), line
    document = tomllib.loads("\n".join(lines))
    assert {source["title"] for source in document["sources"].values()} == {"rtt.csv", "runs", "requests.csv"}
    assert quietly(raw / "new" / "my-fleet.toml", demand="trace").varies


def test_what_no_file_says_can_be_told(raw):
    (raw / "one.csv").write_text("time_s,user\n" + "".join(f"{k},x\n" for k in range(200)))
    told = [
        "--frontends",
        "us,eu",
        "--backends",
        "in,us",
        "--replicas",
        "3,2",
        "--weights",
        "3,1",
        "--shift-s",
        "0,-40",
        "--inside-ms",
        "2",
    ]
    assert main(["import", "rtt.csv", "runs", "one.csv", "--fleet", "f.toml", *told]) == 0
    network = quietly("f.toml", demand="trace")
    assert (network.frontend_names, network.backend_names) == (("us", "eu"), ("in", "us"))
    np.testing.assert_allclose(network.arrival_rate[0] / network.arrival_rate[1], 3, rtol=1e-12)
    np.testing.assert_array_equal(network.service.count, [3, 2])
    assert float(network.latency[0, 1]) == 0.002


def test_one_day_for_all_cities_by_the_sun(raw, capsys):
    """Hourly counts, and cities 82 degrees apart: the sun is 5.4 hours later, which is 5 bins."""
    (raw / "day.csv").write_text("time_s,requests\n" + "".join(f"{3600 * k},{k + 1}\n" for k in range(24)))
    (raw / "cities.csv").write_text(
        "from,to,rtt_ms\nParis,Toronto,90\nToronto,Paris,90\nParis,Paris,1\nToronto,Toronto,1\n"
    )
    files = ["cities.csv", "runs", "day.csv"]
    assert main(["import", *files, "--fleet", "sun.toml", "--shift-s", "longitude"]) == 0
    paris, toronto = np.asarray(quietly("sun.toml", demand="trace").demand.rates).T
    assert (np.argmax(toronto) - np.argmax(paris)) % 24 == round((2.37 + 79.38) / 15)
    capsys.readouterr()
    assert main(["import", *files, "--fleet", "far.toml", "--shift-s", "0,864000"]) == 0
    assert "--shift-s has 864000, and day.csv lasts 86400 s and begins again" in capsys.readouterr().out
    (raw / "cities.csv").write_text((raw / "cities.csv").read_text().replace("Toronto", "Lutetia"))
    assert main(["import", *files, "--fleet", "x.toml", "--shift-s", "longitude"]) == 2
    assert 'Where "Lutetia" lies is not known' in capsys.readouterr().err


def test_the_sun_over_cloud_regions():
    """N. Virginia (77.49 degrees west), Belgium (4.47 east) and Tokyo (139.65 east), by the names of three clouds: 240 s a degree."""
    found = sun_shifts(("us-east-1", "europe-west1", "asia-northeast1", "japaneast", "Japan East", "Tokyo"), 60)
    assert found[0] == 0
    assert found[1] == round(-(77.49 + 4.47) * 4) * 60
    assert found[2:] == [round((360 - 77.49 - 139.65) * 4) * 60] * 4
    with pytest.raises(InputError, match=r'"us-east-9" lies is not known.*did you mean "us-east-2"'):
        sun_shifts(("us-east-9", "Tokyo"), 60)


def test_prometheus_alone_beside_latencies(raw):
    held = 4 + 3 * (np.arange(100) % 10)
    (raw / "run.json").write_text(query_range("vllm:num_requests_running", "pod", {"us": held, "in": held}))
    (raw / "done.json").write_text(query_range("", "pod", {name: 8 * held / (20 + held) for name in ("us", "in")}))
    (raw / "rate.json").write_text(query_range("", "region", {"us": np.full(100, 2.0), "eu": np.full(100, 3.0)}))
    files = ["arrivals=rate.json", "run.json", "throughput=done.json", "rtt.csv"]
    assert main(["import", *files, "--fleet", "p.toml"]) == 0
    network = quietly("p.toml")
    assert (network.frontend_names, network.backend_names) == (("us", "eu"), ("us", "in"))
    np.testing.assert_allclose(network.arrival_rate, [2, 3], rtol=1e-12)
    assert float(network.nominal_capacity[0]) == pytest.approx(8 * 31 / 51, rel=0.05)


def test_tidy_tables_are_read_again(raw, capsys):
    files = ["rtt.csv", "runs", "requests.csv"]
    assert main(["import", *files, "--output", "tidy", "--bin", "60"]) == 0
    tidy = sorted(str(path) for path in (raw / "tidy").iterdir())
    assert tidy == [
        "tidy/GLM-4-7.curve.csv".replace("tidy", str(raw / "tidy")),
        f"{raw}/tidy/requests.demand.csv",
        f"{raw}/tidy/rtt.latency.csv",
    ]
    assert main(["import", *files, "--fleet", "a.toml", "--bin", "60"]) == 0
    assert main(["import", *tidy, "--fleet", "b.toml"]) == 0
    first, second = (quietly(name, demand="trace") for name in ("a.toml", "b.toml"))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    capsys.readouterr()


def test_servers_that_were_measured_by_region_stand_in_their_regions(raw):
    rows = [f"{r},{w},{f * w / (9 + w)}\n" for r, f in (("us", 8), ("eu", 20)) for w in (1, 8, 64)]
    (raw / "all.csv").write_text("region,workload,rps\n" + "".join(rows))
    assert main(["import", "rtt.csv", "all.csv", "--fleet", "f.toml"]) == 0
    network = quietly("f.toml")
    assert network.backend_names == ("us", "eu")
    np.testing.assert_allclose(network.nominal_capacity, [8 * 64 / 73, 20 * 64 / 73], rtol=0.02)
    assert "# servers by the name of the place" in (raw / "f.toml").read_text()


def test_places_stand_in_the_order_of_the_file(raw, capsys):
    """A diagonal that was not measured, and a list of one direction, move nobody to the end."""
    (raw / "list.csv").write_text("from,to,rtt_ms\neu,us,10\neu,in,20\neu,jp,30\nus,in,40\nus,jp,50\nin,jp,60\n")
    (raw / "square.csv").write_text("rtt_ms,eu,us,in,jp\neu,,9,9,9\nus,9,,9,9\nin,9,9,,9\njp,9,9,9,\n")
    for file in ("list.csv", "square.csv"):
        told = ["--replicas", "4,3,2,1", "--weights", "1,2,3,4"]
        assert main(["import", file, "runs", *told, "--fleet", "f.toml"]) == 0
        said = capsys.readouterr().out
        assert "--replicas by place: eu 4, us 3, in 2, jp 1" in said
        assert "--weights by place: eu 1, us 2, in 3, jp 4" in said
        document = tomllib.loads((raw / "f.toml").read_text())
        assert document["frontends"]["names"] == document["backends"]["names"] == ["eu", "us", "in", "jp"]


def test_frontends_down_the_side_and_backends_across(raw, capsys):
    """Other names and another number of them; the same table turned round is known by the names; blanks are no arcs if that is said."""
    (raw / "rect.csv").write_text("rtt_ms;virginia;dublin\nparis;88;20\ntokyo;165;235\noregon;60;\n")
    (raw / "turned.csv").write_text("Backend,paris,tokyo,oregon\nvirginia,88,165,60\ndublin,20,235,\n")
    told = ["--sparse", "--fleet"]
    assert main(["import", "rect.csv", "runs", *told, "a.toml"]) == 0
    names = ["--frontends", "paris,tokyo,oregon", "--backends", "virginia,dublin"]
    assert main(["import", "turned.csv", "runs", "--latency", "rtt_ms", *names, *told, "b.toml"]) == 0
    assert "columns send, rows answer, by the names" in capsys.readouterr().out
    for network in map(quietly, ("a.toml", "b.toml")):
        assert (network.frontend_names, network.backend_names) == (("paris", "tokyo", "oregon"), ("virginia", "dublin"))
        np.testing.assert_allclose(network.latency, [[0.044, 0.01], [0.0825, 0.1175], [0.03, 0]], rtol=1e-12)
        np.testing.assert_array_equal(network.mask, [[True, True], [True, True], [True, False]])
    assert main(["import", "rect.csv", "runs", "--fleet", "c.toml"]) == 2
    assert "rect.csv has no latency for oregon -> dublin: fill in" in capsys.readouterr().err
    text = (
        (raw / "b.toml")
        .read_text()
        .replace("b.latency.csv", "turned.csv")
        .replace('table = "turned', 'unit = "rtt_ms"\ntable = "turned')
    )
    (raw / "d.toml").write_text(text)
    np.testing.assert_array_equal(quietly("d.toml").latency, quietly("b.toml").latency)


TO = ["--fleet", "f.toml"]
WRONG = {
    "no such file": (["rtt.csv", "nothing.csv"], "nothing.csv does not exist"),
    "no quantity": (["arrival=rtt.csv"], "'arrival' is not a quantity: it is one of arrivals, throughput, running, waiting"),
    "no range query": (["arrivals=rtt.csv"], "arrivals= is for a Prometheus range query"),
    "no latencies": (["runs", "--fleet", "f.toml"], "No file says how far apart the regions are"),
    "no curve": (["rtt.csv", "--fleet", "f.toml"], "No file says how fast the servers are"),
    "two demands": (["rtt.csv", "runs", "requests.csv", "day.csv", "--fleet", "f.toml"], "2 files give a demand"),
    "a file twice": (["rtt.csv", "runs", "runs"], "runs is named twice"),
    "no requests": (["rtt.csv", "runs", "none.csv", "--fleet", "f.toml"], "none.csv has no request"),
    "no TOML": (["rtt.csv", "runs", "--fleet", "f.csv"], "give a path that ends in .toml"),
    "too few weights": (["rtt.csv", "runs", "--fleet", "f.toml", "--weights", "1,2"], "--weights has 2 entries for 3 places"),
    "unknown curve": (["rtt.csv", "runs", "--fleet", "f.toml", "--curves", "h100"], 'There is no curve "h100" (GLM-4-7 were read)'),
    "unknown backend": (["rtt.csv", "runs", *TO, "--backends", "us,jp"], '--backends names "jp", of which rtt.csv has no latency'),
    "a table with holes": (["in.latency.csv", "holes.csv", "runs", *TO], "has no latency for eu -> jp: fill in what was not measured"),
    "too few frontends": (["rtt.csv", "runs", "requests.csv", *TO, "--frontends", "us"], 'region "eu" is no frontend'),
    "unknown place": (["in.latency.csv", "runs", "days.csv", *TO], 'days.csv names "jp", of which in.latency.csv has no latency'),
    "too high a load": (["rtt.csv", "runs", *TO, "--load", "9"], "--load 9 makes 310.5 requests/s"),
    "no servers": (["rtt.csv", "runs", *TO, "--replicas", "1,0,2"], "--replicas has 0: give positive"),
    "a shift of no bins": (["rtt.csv", "runs", "day.csv", *TO, "--shift-s", "0,5,0"], "--shift-s has 5, and the bins of day.csv"),
    "a shift of a trace for each place": (["rtt.csv", "runs", "requests.csv", *TO, "--shift-s", "0,60"], "requests.csv says itself when"),
    "too few servers": (["rtt.csv", "runs", "day.csv", *TO, "--replicas", "1"], "day.csv makes 125 requests/s"),
    "a curve that is none": (["rtt.csv", "falls.csv", *TO], "falls.csv is not a service curve"),
    "a name that no fleet has": (["odd.latency.csv", "runs", *TO], "frontends.names contains"),
    "unknown unit": (["rtt.csv", "--latency", "ms"], '"ms" is no latency: it is one of one_way_s'),
    "a column of no file": (["requests.csv", "--select", "regoin=us"], 'the column "regoin", which is not there: did you mean "region"?'),
    "a column of a matrix": (["rtt.csv", "--select", "us=68"], 'the column "us", which is not there: no file here has lines'),
    "an answer to nothing": (["runs", "--latency", "rtt_ms"], "--latency changes nothing: it tells what latencies are"),
    "bins of nothing": (["rtt.csv", "--bin", "60"], "--bin changes nothing: it tells how wide bins"),
    "bins that do not fit": (["day.csv", "--bin", "5000"], "bins of 5000 s cannot be made of its 24 bins of 3600 s"),
    "a choice without a fleet": (["rtt.csv", "--replicas", "3"], "--replicas is about a fleet: give --fleet as well"),
    "a load without a fleet": (["rtt.csv", "--load", "0.5"], "--load is about a fleet: give --fleet as well"),
    "a load of nothing": (["rtt.csv", "runs", "day.csv", *TO, "--replicas", "40", "--load", "0.5"], "--load has nothing to say"),
    "a folder beside a fleet": (["rtt.csv", "runs", *TO, "--output", "x"], "keep one of --fleet and --output"),
    "a shift of nothing": (["rtt.csv", "runs", *TO, "--shift-s", "0,60,0"], "no file has a demand"),
    "a column of places that is not there": (["long.csv", "--by", "regoin"], 'there is no column "regoin": did you mean "region"?'),
    "a column of places of none": (["day.csv", "--by", "region"], "--by changes nothing: it tells which column"),
    "a unit of times that say it": (["day.csv", "--time-unit", "ms"], "--time-unit changes nothing"),
    "two values of a column": (["long.csv", *("--select", "region=eu") * 2], "--select names region twice"),
    "tokens of requests/s": (["runs", "--tokens-per-request", "9"], "--tokens-per-request changes nothing"),
    "frontends of nothing": (["rtt.csv", "--frontends", "us"], "asks for it: leave it out, or give --fleet as well"),
    "a latency that was measured": (["full.csv", "runs", *TO, "--inside-ms", "3"], "--inside-ms changes nothing in this fleet"),
    "a matrix with a hole": (["hole.csv"], "hole.csv has no latency for us -> in: fill in"),
    "a matrix with a hole, in a fleet": (["hole.csv", "runs", *TO], "hole.csv has no latency for us -> in: fill in"),
    "holes that are not there": (["rtt.csv", "runs", *TO, "--sparse"], "--sparse changes nothing in this fleet"),
    "a fleet by hand": (["rtt.csv", "runs", "--fleet", "hand.toml"], "hand.toml is there and was not made by this command"),
    "overwriting": (["rtt.csv", "runs", "in.latency.csv", "--fleet", "in.toml"], "was read and would be replaced"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(case, raw, capsys):
    (raw / "in.latency.csv").write_text("from,to,rtt_ms\nus,eu,68\n")
    (raw / "odd.latency.csv").write_text("from,to,rtt_ms\ne\x07u,us,68\n")
    (raw / "falls.csv").write_text("workload,throughput\n1,9\n2,8\n")
    (raw / "days.csv").write_text("time_s,eu,jp\n0,900,900\n60,900,900\n")
    (raw / "day.csv").write_text("time_s,requests\n" + "".join(f"{3600 * k},{36000 * (k + 1)}\n" for k in range(24)))
    (raw / "none.csv").write_text("time_s,us\n0,0\n60,0\n")
    (raw / "holes.csv").write_text("from,to,rtt_ms\neu,us,68\nus,jp,150\n")
    (raw / "long.csv").write_text("time_s,region,requests\n0,eu,5\n0,us,6\n60,eu,7\n60,us,8\n")
    (raw / "full.csv").write_text("rtt_ms,us,eu\nus,1,68\neu,68,1\n")
    (raw / "hole.csv").write_text("rtt_ms,us,eu,in\nus,,68,\neu,68,,90\nin,150,90,\n")
    (raw / "hand.toml").write_text('name = "by hand"\n')
    before = {path.name for path in raw.iterdir()}
    assert main(["import", *WRONG[case][0]]) == 2
    message = capsys.readouterr().err
    assert WRONG[case][1] in message
    assert message.count("\n") == 1
    assert "f.toml" not in message  # it is not there to look at
    assert {path.name for path in raw.iterdir()} - {"cache"} == before - {"cache"}


EACH = "".join(f"{30 * k},us,{60 * n}\n{30 * k},eu,{30 * n}\n" for k, n in enumerate((5, 7, 12)))


@pytest.mark.parametrize(
    "text",
    [
        "time_ms,requests\n0,5\n30000,7\n60000,12\n",
        "time_s,rps\n0,5\n30,7\n60,12\n",
        "time_s,eu_rps,us_rps\n0,2.5,5\n30,3.5,7\n60,6,12\n",
        f"time_s,region,requests\n{EACH}",
        f"time_s,region,rpm\n{EACH}",
        f"time_s,region,rpm\n{EACH}#scaled = false",
        "time_s,us,eu\n0,5,2.5\n30,7,3.5\n60,12,6\n#scaled = false",
    ],
)
def test_fleet_files_name_counts_and_rates_at_any_times(text, raw):
    text, _, more = text.partition("#")
    (raw / "counts.csv").write_text(text)
    ping = {"metadata": {"percentile": "p_50", "timeframe": "1W", "unit": "milliseconds"}}
    (raw / "ping.json").write_text(json.dumps(ping | {"data": {"us": {"in": 191.0}, "eu": {"in": 122.6}}}))
    (raw / "fleet.toml").write_text(
        """
[frontends]
names = ["us", "eu"]
rate = [8, 4]
[backends]
names = ["in"]
curve = "c"
[curves.c]
kind = "hyperbolic"
max_rate = 20
half_load = 5
[latency]
table = "ping.json"
[demand.trace]
kind = "trace"
table = "counts.csv"
"""
        + more
    )
    network = quietly("fleet.toml", demand="trace")
    np.testing.assert_allclose(network.latency, [[0.0955], [0.0613]], rtol=1e-12)
    demand = network.demand
    np.testing.assert_allclose(demand.rates, [[5, 2.5], [7, 3.5], [12, 6]], rtol=1e-12)
    np.testing.assert_array_equal(demand.bin_width, 30)


def test_fleet_files_name_such_files_themselves(raw):
    """The same files as tables of a fleet file, without an import in between; a note says what was understood."""
    (raw / "many.json").write_text(json.dumps([json.loads(text) for text in SAVED.values()]))
    (raw / "fleet.toml").write_text("""
[frontends]
names = ["us", "eu"]
rate = [2, 1]
[backends]
names = ["in", "us"]
curve = "glm"
[curves.glm]
kind = "measured"
table = "many.json"
[latency]
table = "rtt.csv"
inside_ms = 1
[demand.trace]
kind = "trace"
table = "requests.csv"
bin_s = 60
""")
    with pytest.warns(FleetWarning) as said:
        network = load_fleet("fleet.toml", demand="trace")
    text = " ".join(str(warning.message) for warning in said)
    for part in (
        "many.json: the workload is throughput times",
        "rtt.csv: a matrix of 3 x 3",
        'requests.csv: "region" says where',
    ):
        assert part in text
    np.testing.assert_allclose(network.latency, [[0.0955, 0.001], [0.0613, 0.034]], rtol=1e-12)
    np.testing.assert_allclose(network.arrival_rate, [2, 1], rtol=1e-12)
    assert network.demand.rates.shape == (10, 2)
