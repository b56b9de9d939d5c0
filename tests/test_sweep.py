"""Sweeps compute what a plain loop over `simulate` does, however the cases are ordered, batched and spread."""

import re
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.fleets import FleetWarning
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.studies.balancers import BALANCERS
from dgdlb_jax.studies.outcome import outcome
from dgdlb_jax.studies.settings import settings
from dgdlb_jax.studies.sweep import cases, dry_run, measures, progress, read_spec, sweep
from dgdlb_jax.studies.sweep.cases import padded_size
from dgdlb_jax.studies.sweep.measures import growth_rate, period
from dgdlb_jax.studies.sweep.store import read_identity
from dgdlb_jax.studies.verdict import LAST_PART, Verdict
from helpers import DT, MAX_LATENCY, compilations, own_process, small_network
from sweeps import FIXED, MEASURES, RUN, complete, files, small, start, write_toml

pytest.importorskip("zarr", reason="install the sweep extra")
pytestmark = pytest.mark.usefixtures("quick_compilation")
ROUNDING = {"rtol": 1e-9, "atol": 1e-12}


def assert_same(one, other, **tolerance):
    for name in one.data_vars:
        np.testing.assert_allclose(one[name], other[name], err_msg=str(name), **(tolerance or ROUNDING))


def loop(seed, factor, load, policy):
    """One case by hand."""
    network = dgd.topologies.complete(jax.random.key(seed), frontends=2, backends=2, load=load).with_latency_scale(0.5)
    optimum = dgd.solve_optimum(network)
    step = factor * dgd.default_step_size(network, optimum)
    duration, dt = 40.0, 0.04
    save = dgd.SaveAt(after=(1 - LAST_PART) * duration, reference=optimum.workload)
    rule = dgd.DGDLB(step) if policy == "dgd-lb" else dgd.LeastLatency()
    run = dgd.simulate(network, rule, duration=duration, dt=dt, save=save)
    return outcome(network, policy, run, float(optimum.mean_latency)), run, optimum


def test_a_sweep_is_a_plain_loop():
    """Axes of all sorts: a zip, a fixed number, policies; excess, verdict, swing and time to settle against `outcome`."""
    found = sweep(
        {
            "measures": [*MEASURES, "mean_latency", "network_share", "distance", "short_by"],
            "axes": {"policy": ["dgd-lb", "least-latency"], "seed": [3, 14]},
            "zip": {"regime": {"load": [0.5, 0.8], "step_size_over_default": [1.0, 8.0]}},
            "fixed": FIXED | {"latency_scale": 0.5, "dt": 0.04, "duration": 40.0},
            "run": RUN,
        },
        progress=False,
    )
    assert found["excess"].dims == ("policy", "seed", "regime")
    assert set(found["verdict"].values.ravel()) >= {Verdict.settled}
    for place in np.ndindex(found["excess"].shape):
        case = found.isel(dict(zip(found["excess"].dims, place, strict=True)))
        row, run, optimum = loop(
            int(case["seed"]),
            float(case["step_size_over_default"]),
            float(case["load"]),
            str(case["policy"].values),
        )
        diverging = row.verdict is Verdict.diverging  # `outcome` leaves out the network share then
        for name in ("excess", "mean_latency", "swing", "short_by", *["network_share"] * (not diverging)):
            np.testing.assert_allclose(case[name], getattr(row, name), rtol=1e-6, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(case["distance"], run.statistics.distance, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(case["optimum_latency"], optimum.mean_latency, rtol=1e-9)
        assert int(case["verdict"]) == row.verdict
        # A sweep looks at the latency at least every 2000th part of a run, `outcome` here at every step.
        if np.isfinite(row.settle_time):
            assert abs(float(case["settle_time"]) - row.settle_time) < 2 * float(case["simulated_time"]) / 1000


def test_the_order_of_the_cases_does_not_matter():
    seeds = [7, 1, 5, 3, 11, 2, 9, 4]
    forward = sweep(small(axes={"seed": seeds, "step_size_over_default": [1.0, 6.0]}), progress=False)
    other = small(axes={"step_size_over_default": [6.0, 1.0], "seed": seeds[::-1]}, run=RUN | {"chunk": 5})
    backward = sweep(other, progress=False)
    assert_same(forward, backward.reindex_like(forward).transpose(*forward["excess"].dims))


def test_sizes_share_compiled_code_and_padding_does_not_matter():
    assert [padded_size(n) for n in (1, 2, 3, 4, 5, 7, 9, 13, 25)] == [1, 2, 3, 4, 6, 8, 12, 16, 32]
    axes = {"frontends": [5, 6], "seed": [1, 2]}
    fixed = {"family": "complete", "backends": 3}
    together = sweep({"measures": ["excess", "swing"], "axes": axes, "fixed": fixed, "run": RUN}, progress=False)
    for place in ((0, 0), (1, 1)):
        case = together.isel(frontends=place[0], seed=place[1])
        network = dgd.topologies.complete(
            jax.random.key(int(case["seed"])), frontends=int(case["frontends"]), backends=3
        )
        optimum = dgd.solve_optimum(network)
        duration, dt = float(case["simulated_time"]), float(case["time_step"])
        save = dgd.SaveAt.statistics(after=(1 - LAST_PART) * duration)
        run = dgd.simulate(network, dgd.DGDLB(dgd.default_step_size(network)), duration=duration, dt=dt, save=save)
        excess = float(run.statistics.mean_latency / optimum.mean_latency - 1)
        np.testing.assert_allclose(case["excess"], excess, rtol=1e-6, atol=1e-9)


def test_other_numbers_compile_nothing_new():
    spec = small(axes={"seed": [1, 2], "step_size_over_default": [1.0, 6.0]})
    sweep(spec, progress=False)
    sweep(small(axes={"seed": [3, 4], "load": [0.5, 0.6]}), progress=False)
    changed = small(
        axes={"seed": [5, 6], "load": [0.55, 0.65]},
        fixed=FIXED | {"duration_over_suggested": 0.7, "dt_over_suggested": 0.9},
    )
    with compilations() as seen:
        sweep(changed, progress=False)
    assert not [event for event in seen if "backend_compile" in event]


@pytest.mark.full
def test_parameters_of_policies_and_curves_and_all_starts():
    """A parameter set to what it is anyway changes nothing; one that is multiplied moves what it should."""
    plain = sweep(small(axes={"seed": [1, 2], "policy": ["softmin"]}), progress=False)
    changed = small(axes={"seed": [1, 2], "policy.temperature": [0.01, 0.3]}, fixed=FIXED | {"policy": "softmin"})
    soft = sweep(changed, progress=False)
    assert (soft["excess"].isel({"policy.temperature": 0}) != plain["excess"].isel(policy=0)).all()
    scaled = sweep(small(axes={"seed": [1, 2], "curve_factor.max_rate": [1.0, 2.0]}), progress=False)
    assert (
        scaled["optimum_latency"].isel({"curve_factor.max_rate": 1})
        < scaled["optimum_latency"].isel({"curve_factor.max_rate": 0})
    ).all()
    base = sweep(small(axes={"seed": [1, 2]}), progress=False)
    np.testing.assert_allclose(scaled["excess"].isel({"curve_factor.max_rate": 0}), base["excess"], **ROUNDING)
    starts = ["proportional", "nearest", "uniform", "random", "near-optimum"]
    found = sweep(small(axes={"start": starts}, measures=["highest_distance", "verdict"]), progress=False)
    assert len(np.unique(found["highest_distance"].values.round(9))) == 5
    assert float(found["highest_distance"].sel(start="near-optimum")) < 0.1


@pytest.mark.parametrize("name", ["policy.no_such", "curve.no_such", "curve_factor.no_such"])
def test_a_parameter_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(InputError, match="no parameter 'no_such': its parameters are"):
        sweep(small(axes={name: [1.0]}), tmp_path / "small.zarr", progress=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "near"), [("policy.step_sise", "step_size"), ("curve.half_lode", "half_load")])
def test_a_misspelt_parameter_is_told_its_nearest(tmp_path, name, near):
    with pytest.raises(InputError, match=f"; did you mean {near}\\?$"):
        sweep(small(axes={name: [1.0]}), tmp_path / "small.zarr", progress=False)


def test_a_number_of_a_policy_leaves_its_words_alone():
    """What a backend reports is a word; with another period it goes on to be reported."""
    weights = dgd.OrcaWeights(report="concurrency", max_concurrency=4.0, variant="envoy")
    slower = cases._with_parameter(weights, "weight_update_period", lambda old: 3 * old, "orca-weights")
    assert settings(slower) == settings(weights) | {"weight_update_period": 3.0}
    assert slower.kind == "concurrency"


def test_words_of_a_policy_are_inputs_too():
    spec = small(axes={"seed": [1], "policy.local": ["nearest", "none"]}, fixed=FIXED | {"policy": "envoy-load-aware"})
    assert read_spec(spec).dimensions[0] == "policy.local"  # compiled anew for each
    with pytest.raises(InputError, match=r"policy\.local mixes numbers and words: give one or the other"):
        read_spec(small(axes={"policy.local": ["none", 1.0]}))
    with pytest.raises(InputError, match="local is 'nearby': choose from nearest, none"):
        sweep(small(axes={"policy.local": ["nearby"]}, fixed=FIXED | {"policy": "envoy-load-aware"}), progress=False)


def test_the_multiplier_of_an_update_is_that_of_each_network_alone():
    axes = {"policy": ["orca-weights", "dgd-lb"], "seed": [1, 2]}
    fixed = FIXED | {"dt": 0.05, "duration": 1.0, "load": 0.7}
    found = sweep({"measures": ["multiplier"], "axes": axes, "fixed": fixed, "run": RUN}, progress=False)["multiplier"]
    assert np.isnan(found.sel(policy="dgd-lb")).all()
    for seed in (1, 2):
        network = dgd.topologies.complete(jax.random.key(seed), frontends=2, backends=2, load=0.7)
        rule = BALANCERS["orca-weights"].make(network, dgd.solve_optimum(network), jnp.ones(2))
        expected = dgd.held_loop(network, rule).radius()
        assert float(found.sel(policy="orca-weights", seed=seed)) == pytest.approx(expected, rel=1e-9)


def test_how_reports_come_is_an_input():
    """Read every 0.5 s and held, against a run by hand; an interval of 0 is none."""
    fixed = FIXED | {"dt": 0.05, "duration": 20.0, "step_size": 0.02}
    axes = {"news.interval": [0.0, 0.5], "seed": [1, 2]}
    found = sweep({"measures": ["mean_latency"], "axes": axes, "fixed": fixed, "run": RUN}, progress=False)
    for seed in (1, 2):
        network = dgd.topologies.complete(jax.random.key(seed), frontends=2, backends=2)
        for interval in (0.0, 0.5):
            rule = dgd.estimated(dgd.DGDLB(0.02), dgd.estimates.Scraped(interval)) if interval else dgd.DGDLB(0.02)
            save = dgd.SaveAt.statistics(after=(1 - LAST_PART) * 20.0)
            run = dgd.simulate(network, rule, duration=20.0, dt=0.05, save=save)
            case = found["mean_latency"].sel({"news.interval": interval, "seed": seed})
            np.testing.assert_allclose(case, run.statistics.mean_latency, rtol=1e-9)
    assert len(np.unique(found["mean_latency"])) == 4
    with pytest.raises(InputError, match=r"news.lost has no meaning without news.interval"):
        read_spec(small(axes={"news.lost": [0.1]}))


def test_a_fleet_and_its_load():
    spec = {
        "axes": {"load": [0.5, 0.6]},
        "fixed": {"fleet": "two-by-two"},
        "run": RUN,
        "measures": ["optimum_latency", "total_rate"],
    }
    found = sweep(spec, progress=False)
    network = dgd.load_fleet("two-by-two")
    for k, load in enumerate((0.5, 0.6)):
        expected = dgd.solve_optimum(network.with_load(load))
        np.testing.assert_allclose(found["optimum_latency"][k], expected.mean_latency, rtol=1e-9)
        np.testing.assert_allclose(found["total_rate"][k], load * float(network.nominal_capacity.sum()), rtol=1e-12)


def test_what_a_sweep_leaves_out_of_a_fleet_is_said():
    with pytest.warns(FleetWarning, match=r"failover: a sweep leaves out its \[\[events\]\]\.$"):
        cases.fleet_network("failover")


def test_an_overload_has_no_optimum_and_says_so():
    found = sweep(small(axes={"load": [0.7, 1.2]}), progress=False)
    assert list(found["result"].values) == [measures.RESULTS["successful"], measures.RESULTS["infeasible"]]
    assert np.isnan(found["excess"][1])
    assert found["verdict"][1] == Verdict.failed


def test_explicit_time_steps_and_durations_are_used():
    found = sweep(small(axes={"dt": [0.01, 0.02]}, fixed=FIXED | {"duration": 5.0, "seed": 1}), progress=False)
    np.testing.assert_array_equal(found["time_step"], [0.01, 0.02])
    np.testing.assert_array_equal(found["simulated_time"], [5.0, 5.0])


def test_a_sweep_without_axes_is_one_case(tmp_path):
    found = sweep(small(axes={}), tmp_path / "one.zarr", progress=False)
    assert found["excess"].shape == ()
    assert complete(tmp_path / "one.zarr") == 1


def test_period_of_a_sine_with_harmonics():
    time = np.linspace(0, 10, 2001)
    values = 3 + np.sin(2 * np.pi * time / 1.3) + 0.4 * np.sin(6 * np.pi * time / 1.3)
    assert abs(period(time, values) - 1.3) < 1e-3
    assert np.isnan(period(time[:200], values[:200]))


@pytest.mark.parametrize("rate", [-0.7, 0.02])
def test_growth_rate_of_an_exponential(rate):
    time = np.linspace(0, 60, 500)
    distance = 0.01 * np.exp(rate * time) * (1.2 + np.sin(5 * time))
    assert abs(growth_rate(time, distance) - rate) < 0.05 * abs(rate)  # the oscillation does not average out quite
    assert np.isnan(growth_rate(time[:10], distance[:10]))


def test_a_loop_whose_length_is_data_is_the_loop(rng):
    """`frames`: same answers as compiled-in steps; the room left over repeats the last instant."""
    batch = dgd.stack([small_network(rng) for _ in range(3)])
    duration, dt = np.array([2.0, 3.0, 4.0]), np.array([DT, DT, DT / 2])
    common = {"duration": duration, "dt": dt, "max_latency": MAX_LATENCY, "initial": None}
    save = dgd.SaveAt(every=7, fields=("workload", "cost_rate"), after=1.0)
    one = simulate_batch(batch, dgd.DGDLB(0.05), save=save, **common)
    other = simulate_batch(batch, dgd.DGDLB(0.05), save=save, frames=100, **common)
    used = one.time.shape[1]
    for name in ("time", "workload", "cost_rate"):
        found, expected = getattr(other, name), getattr(one, name)
        np.testing.assert_allclose(found[:, :used], expected, rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(
            found[:, used:], jnp.broadcast_to(found[:, used - 1 : used], found[:, used:].shape)
        )
    np.testing.assert_allclose(one.statistics.mean_latency, other.statistics.mean_latency, rtol=1e-12)
    with pytest.raises(InputError, match="frames=5 has no room"):
        simulate_batch(batch, dgd.DGDLB(0.05), save=save, frames=5, **common)


def test_progress_counts_cases_and_keeps_compiling_apart():
    seen = []
    sweep(small(), progress=seen.append)
    assert [moment.done for moment in seen] == sorted(moment.done for moment in seen)
    last = seen[-1]
    assert (last.done, last.total, last.chunks, last.left) == (24, 24, 3, 0)
    assert 0 <= last.compiling < last.elapsed
    np.testing.assert_allclose(last.rate, 24 / (last.elapsed - last.compiling))
    assert "cases/s" in str(last)


def test_progress_is_quiet_when_nobody_watches(capsys):
    with progress.shown("sweep") as told:
        assert told is None
    assert capsys.readouterr() == ("", "")


def test_single_precision_is_a_sweep_of_its_own(tmp_path):
    spec = small(axes={"seed": [1]}, measures=["excess"])
    sweep(spec, tmp_path / "small.zarr", progress=False).close()
    with jax.enable_x64(False), pytest.raises(InputError, match="begun with precision = float64, this is float32"):
        sweep(spec, tmp_path / "small.zarr", progress=False)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"step_size": 1e30},
            r"The largest latency is \S+ steps of \S+ s: lower step_size, or lower latencies \(latency_scale\)\.$",
        ),
        ({"step_size_over_default": 1e20}, r"latency is .*: lower step_size_over_default, or lower latencies"),
        ({"latency_scale": 1e10}, r"The largest latency is \S+ steps of \S+ s: lower latencies \(latency_scale\)\.$"),
        ({"duration": 1e15}, r"The run is \S+ steps of \S+ s, more than 2147483646: lower duration\.$"),
        ({"dt": 1e-15, "duration": 10.0}, r"The run is 1e\+16 steps of 1e-15 s, .*: raise dt, or lower duration\.$"),
    ],
)
def test_what_cannot_be_run_is_refused_by_the_input_that_asks_for_it(given, sentence):
    with pytest.raises(InputError, match=sentence):
        sweep(small(axes={"seed": [1]}, fixed=FIXED | given), progress=False)


DOUBLE = ("critical_step_size", "critical_factor", "abscissa", "multiplier", "predicted_noise")


def test_what_needs_double_precision_says_so_before_any_work(tmp_path):
    """In words that somebody who made no network can follow; whatever does not say so is computed in single precision."""
    with jax.enable_x64(False):
        for name in DOUBLE:
            with pytest.raises(InputError, match=rf"{name} needs double precision: put .* before dgd\.sweep\.$"):
                sweep(small(measures=[name]), tmp_path / "small.zarr", progress=False)
        over = small(axes={"step_size_over_critical": [0.5]})
        for asked in (lambda: sweep(over, progress=False), lambda: dry_run.estimate(read_spec(over))):
            with pytest.raises(InputError, match=r"step_size_over_critical needs double precision"):
                asked()
        assert not list(tmp_path.iterdir())
        others = [
            name
            for name in measures.MEASURES
            if name not in DOUBLE and not name.startswith(("request", "p5", "p9", "noise"))
        ]
        found = sweep(small(seeds=1, measures=others), progress=False)
        assert set(others) <= set(found.data_vars)


def test_a_sweep_goes_on_with_the_batches_of_whoever_began_it(tmp_path, monkeypatch):
    """Another machine, or another number of devices, would choose others."""
    spec, store = (
        small(axes={"seed": [1]}, measures=["excess"], run={"chunk": 64, "max_steps": 1500}),
        tmp_path / "s.zarr",
    )
    monkeypatch.setattr("dgdlb_jax.studies.sweep.chunks.default_batch", lambda: 8)
    sweep(spec, store, progress=False).close()
    monkeypatch.setattr("dgdlb_jax.studies.sweep.chunks.default_batch", lambda: 16)
    sweep(spec, store, progress=False).close()
    assert read_identity(store)["facts"]["cases_side_by_side"] == 8


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_of_two_devices_make_the_store_of_one(tmp_path):
    """On loopback, with `jax.distributed`; every process leaves entries in the manifest."""
    spec = small(seeds=16)
    toml, path = write_toml(tmp_path / "spec.toml", spec), tmp_path / "two.zarr"
    address = f"127.0.0.1:{free_port()}"
    options = ("sweep", toml, "--output", path, "--coordinator", address, "--processes", 2, "--process")
    processes = [start(*options, k, devices=2) for k in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    whole = sweep(spec, tmp_path / "one.zarr", progress=False)
    with dgd.open_sweep(path) as found:
        assert_same(found, whole)
    assert complete(path) == 4
    assert files(path).keys() == files(tmp_path / "one.zarr").keys()


SCRIPT = """
import jax
import dgdlb_jax as dgd
networks = dgd.topologies.complete(jax.random.key(0), frontends=2, backends=2, count=8)
runs = dgd.simulate_batch(networks, dgd.DGDLB(0.01), duration=1.0, dt=0.05, save=dgd.SaveAt.statistics(), frames=0)
assert len(runs.statistics.mean_latency.sharding.device_set) == 2
"""
COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast|send|recv"


def test_no_collectives_in_the_compiled_text(tmp_path):
    """Of a batch on two devices, in what XLA writes down."""
    dump = f"--xla_dump_to={tmp_path} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=_run"
    environment = own_process() | {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # what comes from there is not written down
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count=2 {dump}"
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    (text,) = (path.read_text() for path in tmp_path.glob("*jit__run*after_optimizations.txt"))
    assert "num_partitions=2" in text
    assert not re.search(rf"\b({COLLECTIVES})\b", text)
