"""`dgdlb sweep` on the command line: what it prints, what it writes, how it refuses."""

import argparse
import json
import os
import re
import subprocess
import sys

import pytest

pytest.importorskip("zarr", reason="install the sweep extra")
pytest.importorskip("xarray", reason="install the sweep extra")

import xarray

from dgdlb_jax.cli import cluster, main
from dgdlb_jax.studies.sweep import dry_run, read_spec
from dgdlb_jax.studies.sweep.inputs import INPUTS
from dgdlb_jax.studies.sweep.measures import MEASURES
from sweeps import complete, small, write_toml

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture
def toml(tmp_path):
    return write_toml(tmp_path / "small.toml", small())


def test_a_dry_run_says_what_it_takes_and_writes_nothing(toml, tmp_path, capsys, monkeypatch):
    """And names the device. However slow the machine, it runs one batch, and no other once its time is over."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DGDLB_PATIENCE", "100")
    assert main(["sweep", str(toml), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "24 cases (seed 12 x step_size_over_default 2) in 3 chunks" in printed
    assert "2 x 2 with" in printed
    assert re.search(r"memory: .* on (\d+ x )?cpu, of ", printed)
    assert re.search(r"time: .* \(from running 24 cases\)", printed)
    monkeypatch.setenv("DGDLB_PATIENCE", "1e-9")
    found = dry_run.estimate(read_spec(small()))
    assert found.probed == 8
    assert found.computing > 0
    assert list(tmp_path.iterdir()) == [toml]


def test_it_writes_a_store_named_after_the_sweep_and_a_netcdf_file(toml, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(toml), "--netcdf", "small.nc"]) == 0
    output = capsys.readouterr()
    assert "written: small.zarr, 24 cases" in output.out
    assert output.err == "", "quiet when nobody watches"
    assert complete(tmp_path / "small.zarr") == 3
    with (
        xarray.open_dataset("small.nc", engine="h5netcdf") as file,
        xarray.open_zarr("small.zarr", chunks=None) as store,
    ):
        xarray.testing.assert_equal(file.drop_vars("family"), store.drop_vars("family"))
        assert str(file["family"].values) == "complete"
        assert json.loads(file.attrs["specification"])["name"] == "small"
    assert main(["sweep", str(toml)]) == 0, "a complete store is left as it is"


def test_a_sweep_without_a_name_is_called_after_its_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = small(seeds=1)
    del spec["name"]
    write_toml(tmp_path / "a+b.toml", spec)
    assert main(["sweep", "a+b.toml", "--quiet"]) == 0
    assert "written: a-b.zarr, 2 cases" in capsys.readouterr().out
    assert complete(tmp_path / "a-b.zarr") == 1
    assert read_spec(tmp_path / "a+b.toml").name == "a-b"
    assert (read_spec(spec).name, read_spec("step-size").name) == ("sweep", "step-size")


def test_the_list_has_everything(capsys):
    assert main(["sweep", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*INPUTS, *MEASURES, "quick-step-size", "step-size", "latency-scale", "load"):
        assert f"  {name} " in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "needs a specification"),
        (["no-such-sweep"], "neither a file nor a ready sweep"),
        (["{toml}", "--process", "0"], "belong together"),
        (["{toml}", "--coordinator", "localhost:1", "--processes", "2", "--process", "2"], "count from 0"),
        (["{toml}", "--coordinator", "localhost", "--processes", "2", "--process", "0"], "give HOST:PORT"),
        (
            ["{toml}", "--coordinator", "no.host.invalid:1", "--processes", "2", "--process", "0"],
            "there is no host 'no.host.invalid'",
        ),
        (["{toml}", "--output", "{toml}"], "is no store of a sweep"),
    ],
)
def test_refusals_are_one_sentence(toml, capsys, arguments, expected):
    before = toml.read_text()
    assert main(["sweep", *(argument.format(toml=toml) for argument in arguments)]) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert toml.read_text() == before


def test_clusters_are_seen_only_when_several_processes_were_launched(monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JOB_COMPLETION")):
            monkeypatch.delenv(name)
    assert not cluster._on_a_cluster()
    slurm = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}
    for name, value in slurm.items():
        monkeypatch.setenv(name, value)
    assert not cluster._on_a_cluster(), "a batch script of its own is one process, whatever it may launch later"
    monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    assert cluster._on_a_cluster()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not cluster._on_a_cluster()


def test_the_coordinator_listens_on_the_address_given_and_no_other(monkeypatch):
    asked = {}
    monkeypatch.setattr("jax.distributed.initialize", lambda *found, **named: asked.update(named, found=found))
    monkeypatch.setattr("jax.distributed.shutdown", lambda: None)
    options = argparse.Namespace(coordinator="10.0.0.7:1234", processes=2, process=0)
    assert cluster.join(options) == (0, 1)  # as JAX, which has not been started, counts
    assert asked == {"found": ("10.0.0.7:1234", 2, 0), "coordinator_bind_address": "10.0.0.7:1234"}


@pytest.mark.parametrize(("flags", "devices"), [("", None), ("--xla_force_host_platform_device_count=3", 3)])
def test_sweeps_use_every_core_unless_told_otherwise(flags, devices):
    code = (
        "from dgdlb_jax.cli.common import set_up_jax; set_up_jax(all_cores=True); import jax; print(jax.device_count())"
    )
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert int(done.stdout) == (devices or cores)
