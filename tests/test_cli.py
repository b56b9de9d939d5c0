"""The command line, as a person or a script uses it."""

import argparse
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from dgdlb_jax.cli import build_parser, common, main
from dgdlb_jax.reports import status
from helpers import ROOT, own_process

xarray = pytest.importorskip("xarray")
pytestmark = pytest.mark.usefixtures("quick_compilation")

SHORT = ["--duration", "20", "--dt", "0.02", "--quiet"]
PICTURES = ("latency.png", "routing.png", "workloads.png")


@pytest.fixture(autouse=True)
def _keep_jax_settings(tmp_path, monkeypatch):
    """The command line sets up JAX for its own process; tests share theirs."""
    names = (
        "jax_enable_x64",
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    if before["jax_compilation_cache_dir"] is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One run of `two-by-two` with all its files, from another process: (folder, JSON document)."""
    folder = tmp_path_factory.mktemp("run") / "new" / "out"
    done = _dgdlb("run", "two-by-two", *SHORT, "--json", "--export", "istio", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def _dgdlb(*arguments, **options):
    command = [sys.executable, "-m", "dgdlb_jax", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=own_process(), **options)


def _names(document):
    return list(document["optimum"]["routing"]), list(document["optimum"]["workload"])


def test_json_is_all_there_is_on_standard_output(finished):
    _, document = finished
    assert document["fleet"] == "two-by-two"
    for name in ("optimum", "dgd-lb"):
        assert document["rounding"][name]["total"] == 100
        assert 0 <= document["rounding"][name]["largest_error"] <= 0.01
        assert abs(document["rounding"][name]["cost"]) < 0.01
    names = [row["balancer"] for row in document["balancers"]]
    assert names[0] == "DGD-LB"
    assert set(names) == {"DGD-LB", "least latency", "GMSR", "least workload", "proportional", "uniform", "nearest"}
    for shares in document["optimum"]["routing"].values():
        assert sum(shares.values()) == pytest.approx(1)
    for row in document["balancers"]:
        for key, value in row.items():
            if value is None:
                assert row["null_because"][key]
        if row["mean_latency"] is not None:
            assert row["excess"] == pytest.approx(row["mean_latency"] / document["optimum"]["mean_latency"] - 1)
            assert row["excess"] > -1e-6  # nothing beats the optimum at rest


def test_run_nc_holds_runs_inputs_units_and_versions(finished):
    folder, document = finished
    with xarray.open_dataset(folder / "run.nc") as data:
        frontends, backends = _names(document)
        assert list(data.frontend.values) == frontends
        assert list(data.backend.values) == backends
        assert data.workload.dims == ("balancer", "time", "backend")
        assert data.workload.units == "requests"
        assert data.time.units == "s"
        assert data.time.values[-1] == pytest.approx(20.0)
        assert data.latency.units == "s"
        assert data.step_size.units == "1/s^2"
        np.testing.assert_allclose(data.routing.sum("backend"), 1, atol=1e-9)
        np.testing.assert_allclose(data.mean_latency, data.cost_rate / data.arrival_rate.sum("frontend"), rtol=1e-12)
        assert data.attrs["optimum_mean_latency"] == document["optimum"]["mean_latency"]
        assert data.attrs["precision"] == "float64"
        assert json.loads(data.attrs["versions"])["jax"] == jax.__version__
        assert "kind" in json.loads(data.attrs["service"])
        found = dict(zip(data.balancer.values, data.final_latency.values, strict=True))
        for row in document["balancers"]:
            expected = np.inf if row["mean_latency"] is None else row["mean_latency"]
            assert found[row["balancer"]] == expected


def test_pictures_are_written_and_not_empty(finished):
    image = pytest.importorskip("matplotlib.image")
    folder, _ = finished
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["run.nc", "istio-dgd-lb.json", "istio-optimum.json", *PICTURES]
    )
    for name in PICTURES:
        pixels = image.imread(folder / name)
        assert min(pixels.shape[:2]) > 200
        assert np.std(pixels[..., :3]) > 0.05
        packed = (pixels[..., :3] * 255).astype(int) @ [65536, 256, 1]
        assert len(np.unique(packed)) > 20  # several colours and their shades


def test_a_person_reads_a_verdict(finished, tmp_path):
    _, document = finished
    frontends, backends = _names(document)
    table = tmp_path / "now.csv"
    lines = [
        "frontend,backend,share",
        *(f"{name}, {backends[0]}, 0.5\n{name}, {backends[1]}, 0.5" for name in frontends),
    ]
    table.write_text("\n".join(lines))
    done = _dgdlb("run", "two-by-two", *SHORT, "--policies", "dgd-lb", "--current", str(table), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for expected in (
        "two-by-two:",
        "mean latency",
        "over optimum",
        "settled",
        "current routing",
        *frontends,
        *backends,
    ):
        assert expected in done.stdout
    assert "Your current routing costs" in " ".join(done.stdout.split())
    assert (tmp_path / "dgdlb-two-by-two" / "run.nc").is_file()


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A fleet with a measured curve and a routing in use: (what was printed, the report, the folder)."""
    folder = tmp_path_factory.mktemp("report")
    rows = ("paris,amsterdam,0.2", "paris,osaka,0.8", "tokyo,osaka,1", "oregon,osaka,1")
    (folder / "now.csv").write_text("\n".join(("frontend,backend,share", *rows)))
    fleet = str(ROOT / "dgdlb_jax" / "data" / "example" / "fleet.toml")
    options = ["--policies", "dgd-lb,least-latency", "--current", "now.csv", "--export", "envoy"]
    done = _dgdlb("run", fleet, *SHORT, *options, "--report", "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "out" / "report.html").read_text(), folder / "out"


def test_routings_are_written_for_the_proxy(reported):
    printed, _, folder = reported
    names = {path.name for path in folder.iterdir()}
    assert {"envoy-optimum.json", "envoy-dgd-lb.json", "report.html", "run.nc"} <= names
    assert "envoy: weights of dgd-lb in whole numbers that sum to 10,000 cost" in printed


def test_the_report_holds_what_the_terminal_prints(reported):
    printed, page, _ = reported
    shown = " ".join(html.unescape(re.sub("<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL)).split())
    for heading in (
        "backend gets (requests/s)",
        "optimal mean latency with",
        "Stability of",
        "Measured",
        "one-way latency",
    ):
        assert heading in printed
    left_out = ("---", "written: ", "Stability of DGD-LB (more", "example under its demand")
    for line in printed.splitlines():
        if not line.strip().startswith(left_out):
            for cell in re.split(r"\s{2,}", line.strip().removeprefix("Measured curve ")):
                assert cell in shown, line


BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "chromium-browser"))), None)
_MEASURE = """<!doctype html><body><iframe id="page" style="width: {width}px; height: 900px; border: 0" srcdoc="{page}"></iframe>
<script>document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument, width = page.documentElement.clientWidth;
  const scrolls = (e) => e && (e.className == "wide" || e.tagName == "PRE" || scrolls(e.parentElement));
  const wide = [...page.body.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e));
  const empty = [...page.images].filter(e => !e.naturalWidth);
  const found = {{page: page.documentElement.scrollWidth, width, wide: wide.map(e => e.outerHTML.slice(0, 80)), empty: empty.length,
    pictures: [...page.images].map(e => e.getBoundingClientRect().width)}};
  document.body.innerHTML = "<pre>" + JSON.stringify(found).replaceAll("<", "(") + "</pre>";
}}</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed: chromium or google-chrome")
@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_page(reported, width, tmp_path):
    """In a browser: tables and pictures scroll by themselves, and pictures keep a width at which their letters can be read."""
    outer = tmp_path / "outer.html"
    outer.write_text(_MEASURE.format(width=width, page=html.escape(reported[1])))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
    ]
    done = subprocess.run(
        [BROWSER, *options, "--dump-dom", outer.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = json.loads(html.unescape(re.search("<pre>(.*)</pre>", done.stdout, flags=re.DOTALL)[1]))
    assert found["page"] <= found["width"] <= width  # less a scroll bar
    assert found["wide"] == []
    assert found["empty"] == 0
    assert len(found["pictures"]) == 4  # latency, routing, workloads, curves
    assert min(found["pictures"]) >= 600


def test_an_existing_folder_keeps_what_else_is_in_it(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "notes.txt").write_text("keep me")
    (folder / "run.nc").write_text("old")
    assert main(["run", "two-by-two", *SHORT, "--policies", "dgd-lb", "--output", str(folder)]) == 0
    assert (folder / "notes.txt").read_text() == "keep me"
    assert (folder / "run.nc").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_two_fleets_stand_side_by_side(capsys, tmp_path):
    from dgdlb_jax.fleets import load_fleet

    load_fleet("two-by-two").to_toml(tmp_path / "mine.toml")
    command = ["run", "two-by-two", "mine.toml", *SHORT, "--policies", "dgd-lb,uniform", "--output", "both"]
    assert main([*command, "--no-files"]) == 0
    assert not Path("both").exists()
    last = capsys.readouterr().out.strip().split("\n\n")[-1]
    assert last.startswith("over optimum")
    assert "uniform" in last
    assert main(command) == 0
    assert sorted(path.name for path in Path("both").iterdir()) == ["mine", "two-by-two"]


BAD_ARGUMENTS = [
    (["run", "two-by-two", "--step-size", "-1"], "--step-size"),
    (["run", "two-by-two", "--step-size", "nan"], "--step-size"),
    (["run", "two-by-two", "--step-size", "fast"], "--step-size"),
    (["run", "two-by-two", "--dt", "0"], "--dt"),
    (["run", "two-by-two", "--duration", "inf"], "--duration"),
    (["run", "two-by-two", "--start", "anywhere"], "--start"),
    (["run", "two-by-two", "--policies", ","], "--policies"),
    (["run", "two-by-two", "--policies", "uniform,dgd-lb,uniform"], "--policies: uniform stands there twice"),
    (["run", "two-by-two", "--fail", "each,each"], "--fail: each stands there twice"),
    (["walk"], "walk"),
    ([], "COMMAND"),
    (
        ["run", "two-by-two", "--set", "a=b"],
        "dgdlb run: error: there is no option --set here: it belongs to dgdlb stability; ",
    ),
    (
        ["run", "--import", "mine.py"],
        "no option --import here: it belongs to dgdlb, before the command; dgdlb run --help",
    ),
    (
        ["--policies=a", "run"],
        "dgdlb: error: there is no option --policies here: it belongs to dgdlb run; dgdlb --help",
    ),
    (
        ["stability", "two-by-two", "--polices", "a"],
        "no option --polices here (did you mean --policy?); dgdlb stability",
    ),
    (["plot", "a.zarr", "b.zarr"], "dgdlb plot: error: 'b.zarr' is one argument too many; dgdlb plot --help"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_ARGUMENTS)
def test_bad_arguments_are_named(arguments, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert named in said
    assert re.fullmatch(
        r"dgdlb.*: error: .*; dgdlb.* --help says what can be given\.\n", said
    )  # one line, and no usage before it


def test_no_value_of_an_option_is_lost(capsys):
    """Of all options of all commands: they add up and say so, or the second is refused."""
    root = build_parser()
    (commands,) = [action.choices for action in root._actions if isinstance(action, argparse._SubParsersAction)]
    checked = 0
    for parser in commands.values():
        needed = ["x" for action in parser._actions if not action.option_strings and action.nargs in (None, "+")]
        for action in parser._actions:
            value = str(next(iter(action.choices or ["1"])))
            if not action.option_strings or action.nargs == 0:
                continue
            once = [action.option_strings[0], "a=1" if "=" in str(action.metavar) else value]
            if isinstance(action, argparse._AppendAction):
                assert len(getattr(parser.parse_args([*needed, *once, *once]), action.dest)) == 2
                assert "may be repeated" in action.help
                continue
            parser.parse_args([*needed, *once])
            with pytest.raises(SystemExit):
                parser.parse_args([*needed, *once, *once])
            assert f"argument {once[0]}: is given twice" in capsys.readouterr().err
            checked += 1
    assert checked > 40
    with pytest.raises(SystemExit):
        root.parse_args(["run", "--policies", "uniform", "--policies", "nearest"])
    assert "put all of it into one, --policies A,B,...; dgdlb run --help" in capsys.readouterr().err


BAD_INPUTS = [
    (["run", "two-by-tow"], "two-by-two"),
    (["run", "missing.toml"], "missing.toml"),
    (["run", "two-by-two", "--policies", "dgdlb"], "did you mean dgd-lb"),
    (["run", "two-by-two", "--dt", "100"], "dt"),
    (
        ["run", "two-by-two", "--dt", "1e-8", "--duration", "1e7"],
        "--duration = 1e+07 s at --dt = 1e-08 s is 1e+15 steps",
    ),
    (
        ["run", "two-by-two", "--duration", "1e12"],
        "two-by-two: --duration is 1e+12 s, but a run has at most 1e+09 steps",
    ),
    (["run", "two-by-two", "--duration", "1e12", "--fail", "each"], "two-by-two: --duration is 1e+12 s"),
    (["run", "two-by-two", "--current", "missing.csv"], "missing.csv"),
    (["run", "a/fleet.toml", "b/fleet.toml"], "one at a time"),
    (["run", "two-by-two", "two-by-two"], "two-by-two is named twice"),
    (
        ["stability", "two-by-two", "--policy", "orca-weights", "--set", "a=1", "--set", "a=2"],
        "--set a=2: a is set twice",
    ),
    (["run", "two-by-two", "--demand", "peak"], "peak"),
    (
        ["run", "two-by-two", "--requests", "--seeds", "1"],
        "two-by-two: --seeds is 1: a standard error needs at least 2 runs",
    ),
    (
        ["run", "two-by-two", "--requests", "--seeds", "1000000000"],
        "runs of this network take hours: give at most 10,000,000.",
    ),
    (["run", "two-by-two", "--fail", "each", "--start", "nearest"], "--start has no part in that"),
    (["run", "two-by-two", "--fail", "each", "--seeds", "8"], "--seeds has no part in that"),
    (["run", "two-by-two", "--output", "file"], "file"),
    (["run", "two-by-two", "--output", "file/below"], "file"),
]


@pytest.mark.parametrize(("arguments", "named"), BAD_INPUTS)
def test_bad_inputs_are_one_sentence_and_leave_nothing(arguments, named, capsys, tmp_path):
    Path("file").write_text("in the way")
    assert main([*arguments, "--quiet"]) == 2
    text = capsys.readouterr()
    assert text.out == ""
    assert text.err.startswith("dgdlb: error: ")
    assert text.err.count("\n") == 1
    assert named in text.err
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "cache"}


LONGEST_TIMES = [
    (
        "",
        [],
        r"\[latency\] from west to east is 1e\+09 s, but .* dt of 0.5 s, as backend west serves a lone request in 5 s",
    ),
    ("", ["--fail", "each"], r"\[latency\] from west to east is 1e\+09 s"),
    ("", ["--dt", "0.5"], r"\[latency\] from west to east is 1e\+09 s, but .* dt of 0.5 s: "),
    (
        '[[events]]\nat_s = 1e12\nwhat = "drains"\nbackend = "west"\n',
        [],
        r"\[\[events\]\] at_s of the last one is 1e\+12 s",
    ),
    (
        "[autoscaler]\ntarget = 0.7\nstartup_s = 1e11\n",
        [],
        r"\[autoscaler\] startup_s with interval and windows is 1e\+11 s",
    ),
    (
        "[demand.day]\nkind = 'daily cycle'\namplitude = 0.5\nperiod_s = 1e10",
        ["--demand", "day"],
        r"\[demand.day\] as a whole is 1e\+10 s",
    ),
]


def _far_fleet(latency: str, more: str = "") -> None:
    Path("far.toml").write_text(
        'name = "far"\n[frontends]\nnames = ["west"]\nrate = [1.0]\n[backends]\nnames = ["west", "east"]\ncurve = "c"\n'
        '[curves.c]\nkind = "hyperbolic"\nmax_rate = 8.0\nhalf_load = 40.0\n'
        f"[latency]\none_way_s = [[0.02, {latency}]]\n{more}"
    )


@pytest.mark.parametrize(("more", "options", "sentence"), LONGEST_TIMES)
def test_times_too_long_for_a_run_are_named_with_file_and_field(more, options, sentence, capsys):
    _far_fleet("1e9", more)
    assert main(["run", "far.toml", *options, "--no-files", "--quiet"]) == 2
    assert re.match(rf"dgdlb: error: far.toml: {sentence}.*correct one of the two\.$", capsys.readouterr().err)


def test_a_step_size_is_refused_by_the_name_of_its_option(capsys):
    assert main(["run", "two-by-two", "--step-size", "1e30", "--no-files", "--quiet"]) == 2
    assert re.match(
        r"dgdlb: error: two-by-two: --step-size is 1e\+30 1/s\^2, .*: lower it, the default is 0\.05",
        capsys.readouterr().err,
    )


def test_a_latency_that_no_memory_can_hold_is_named_with_file_and_field(capsys):
    """4e7 steps of 0.5 s: numbers of two backends and as many arcs, with both time steps, kept one and a half times."""
    from dgdlb_jax.numerics import device

    _far_fleet("2e7")
    for command, needed in ((["run"], "3.84"), (["run", "--fail", "each"], "3.84"), (["stability"], r"\d+\.\d")):
        with device.assumed(memory=1e9):
            assert main([command[0], "far.toml", *command[1:], "--no-files", "--quiet"]) == 2
        said = capsys.readouterr()
        assert re.match(
            rf"dgdlb: error: far.toml: \[latency\] from west to east is 2e\+07 s, and what is on the way .* {needed} GB of memory.*"
            r"dt of 0.5 s, as backend west serves a lone request in 5 s, but there is room for 0.8 GB: correct one of the two\.$",
            said.err,
        )
        assert said.out == ""


@pytest.mark.parametrize("part", ["write_export", "save_pictures", "write_dataset"])
def test_what_cannot_be_written_is_not_put_down_to_the_fleet(part, capsys, monkeypatch):
    from dgdlb_jax.numerics.results import InputError
    from dgdlb_jax.reports import fleet_run, plots

    def fails(*_, **__):
        raise InputError("out is full: make room.")

    def compare(job, *_):
        job.comparison = job.network
        return None, None

    monkeypatch.setattr(fleet_run.Job, "_compare", compare)
    monkeypatch.setattr(fleet_run.Job, "_assess", lambda *_: None)
    for name, module in (("save_pictures", plots), ("write_dataset", fleet_run), ("write_export", fleet_run)):
        monkeypatch.setattr(module, name, fails if name == part else lambda *_, **__: None)
    assert main(["run", "two-by-two", "--export", "csv", "--output", "out", "--quiet"]) == 2
    assert capsys.readouterr().err == "dgdlb: error: out is full: make room.\n"
    assert not Path("out").exists()


@pytest.mark.parametrize("command", [["run"], ["run", "--fail", "each"], ["stability"]])
def test_a_fleet_without_traffic_is_named_by_its_file(command, capsys):
    Path("idle.toml").write_text(
        'name = "f"\n[frontends]\nnames = ["west"]\nrate = [0.0]\n[backends]\nnames = ["west"]\ncurve = "c"\n'
        '[curves.c]\nkind = "hyperbolic"\nmax_rate = 8.0\nhalf_load = 40.0\n[latency]\none_way_s = [[0.02]]\n'
    )
    assert main([command[0], "idle.toml", *command[1:], "--no-files", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("dgdlb: error: idle.toml: f has no traffic")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the super-user may write anywhere")
def test_a_folder_without_permission_is_named(capsys, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    assert main(["run", "two-by-two", "--output", str(locked / "out")]) == 2
    assert str(locked) in capsys.readouterr().err


def test_fleets_are_listed(capsys):
    assert main(["fleets"]) == 0
    text = capsys.readouterr().out
    for name in ("two-by-two", "small-models", "global-llm", "global-prefill"):
        assert name in text
    assert main(["fleets", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {"two-by-two", "small-models", "global-llm", "global-prefill"} <= {fleet["name"] for fleet in listed}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["fleets", "--help"]])
def test_help_and_version_do_not_import_jax(arguments):
    code = (
        "import sys\nfrom dgdlb_jax.cli import main\n"
        f"try: main({arguments!r})\n"
        "finally: print('jax' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own_process(), timeout=60)
    assert done.returncode == 0
    assert done.stderr.split() == ["False", "False"]
    assert "dgdlb" in done.stdout


def test_a_run_imports_what_it_needs_for_its_first_line_and_no_more():
    """Each of these takes as long to import as the whole package, or longer."""
    heavy = ("scipy.optimize", "scipy.sparse.linalg", "matplotlib", "xarray", "pandas", "optax")
    code = f"import sys, dgdlb_jax.reports.fleet_run; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own_process(), timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_the_extra_it_says_what_to_type(capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "xarray" else real(name, *rest)
    )
    assert main(["run", "two-by-two"]) == 2
    assert 'pip install "dgdlb_jax[cli]"' in capsys.readouterr().err


@pytest.fixture
def interruptible():
    """A shell's background jobs ignore Ctrl-C, and so do the processes that they start: tests may be such a job."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_at_once_and_leaves_nothing(tmp_path):
    """A run of hours, interrupted while compiled code runs."""
    arguments = ["run", "two-by-two", "--duration", "3e6", "--dt", "0.01", "--output", "out"]
    command = [sys.executable, "-m", "dgdlb_jax", *arguments]
    settings = own_process() | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=settings) as process:
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - started < 10
    assert text.splitlines()[-1] == "dgdlb: interrupted; no file is half-written."
    assert "Traceback" not in text
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("form", ["text", "json"])
def test_ctrl_c_prints_what_is_known(form, tmp_path):
    """One balancer has ended, the next one never does: the first one's row is printed, and no file is written."""
    code = (
        "import os, signal, sys, time\n"
        "from dgdlb_jax import cli\n"
        "from dgdlb_jax.studies.compare import ComparisonInProgress as Work\n"
        "finished = Work.finished\n"
        "def first_only(work):\n"
        "    yield next(finished(work))\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(30)\n"
        "Work.finished = first_only\n"
        f"arguments = ['run', 'two-by-two', '--policies', 'uniform,proportional', *{SHORT!r}]\n"
        f"sys.exit(cli.main(arguments + (['--json'] if {form!r} == 'json' else [])))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=own_process(), cwd=tmp_path
    )
    assert done.returncode == 130
    assert done.stderr == "dgdlb: interrupted; no file is half-written.\n"
    assert not list(tmp_path.iterdir())
    if form == "json":
        document = json.loads(done.stdout)
        assert document["interrupted"] is True
        assert len(document["balancers"]) == 1
        assert document["balancers"][0]["mean_latency"] > 0
    else:
        rows = [line for line in done.stdout.splitlines() if line.startswith(("uniform", "proportional"))]
        assert len(rows) == 1
        assert done.stdout.splitlines()[-1].startswith("two-by-two: interrupted after ")


def test_a_command_that_would_be_silent_says_what_it_does(capsys):
    """After every few seconds without a word, and with what is left of an estimate."""
    with status.status(silence=0.6) as told:
        told.phase("thinking", left=60.0)
        time.sleep(2.5)
        told.show("a result")
    lines = capsys.readouterr()
    assert lines.out == "a result\n"
    said = lines.err.splitlines()
    assert 1 <= len(said) <= 4
    assert all(re.fullmatch(r"dgdlb: thinking, \d s so far, at least 5\d s left", line) for line in said)
    with status.status(quiet=True) as told:
        told.phase("thinking")
        time.sleep(1.3)
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_that_python_drops_is_raised_again(tmp_path):
    """Ctrl-C while a callback of the garbage collector runs, whose exceptions Python drops."""
    code = (
        "import gc, os, signal, sys, time\n"
        "from dgdlb_jax import cli\n"
        "from dgdlb_jax.cli import fleets\n"
        "def callback(phase, info):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    for _ in range(1000): pass\n"
        "def slow(options):\n"
        "    gc.callbacks.append(callback); gc.collect(); gc.callbacks.remove(callback)\n"
        "    time.sleep(30)\n"
        "fleets.list_them = slow\n"
        "sys.exit(cli.main(['fleets']))\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=own_process())
    assert done.returncode == 130
    assert time.monotonic() - started < 20


@pytest.mark.parametrize(
    ("version", "given", "chosen"),
    [
        ((0, 10, 2), "", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"),
        ((0, 10, 2), "--a=1", "--a=1 --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"),
        ((0, 10, 2), "--xla_cpu_use_fusion_emitters=true", "--xla_cpu_use_fusion_emitters=true"),
        ((0, 11, 0), "--a=1", "--a=1"),
    ],
)
def test_how_a_single_fleet_is_compiled(version, given, chosen, monkeypatch):
    """A flag that XLA does not know would end the process, so only versions that were tried get it; what the user says stays."""
    monkeypatch.setenv("XLA_FLAGS", given)
    common._choose_older_emitters(version)
    assert os.environ["XLA_FLAGS"] == chosen
