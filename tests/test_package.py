"""The package as a user gets it: a wheel with its data, lazy names, an import that changes nothing."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import dgdlb_jax as dgd
from helpers import ROOT


def _python(code: str, folder: Path = ROOT, **environment: str) -> str:
    command, env = [sys.executable, "-c", code], os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=folder).stdout


def test_wheel_holds_data_and_runs(tmp_path):
    pytest.importorskip("hatchling", reason="hatchling builds the wheel: install the test extra")
    build = f"from hatchling.build import build_wheel; print(build_wheel({str(tmp_path)!r}))"
    name = subprocess.run(
        [sys.executable, "-c", build], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()[-1]
    with zipfile.ZipFile(tmp_path / name) as wheel:
        wheel.extractall(tmp_path / "site")
    run = "import dgdlb_jax, dgdlb_jax.cli as c; print(dgdlb_jax.__file__); raise SystemExit(c.main(['fleets']))"
    printed = _python(run, tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert printed.splitlines()[0].startswith(str(tmp_path / "site"))
    for fleet in ("global-llm", "global-prefill", "small-models", "two-by-two"):
        assert fleet in printed
    assert (tmp_path / "site" / "dgdlb_jax" / "py.typed").exists()


def test_every_public_name_resolves_and_is_documented():
    for name in dgd.__all__:
        assert getattr(dgd, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        _ = dgd.simulat


def test_runs_where_it_lies_without_being_installed():
    """On the path of an interpreter that has the libraries but not this package's metadata."""
    code = """
import importlib.metadata
real = importlib.metadata.distribution

def distribution(name):
    if name == "dgdlb_jax":
        raise importlib.metadata.PackageNotFoundError(name)
    return real(name)

importlib.metadata.distribution = distribution
import dgdlb_jax.cli
from dgdlb_jax.numerics.versions import versions
print(versions()["dgdlb_jax"])
"""
    assert _python(code).strip() == dgd.__version__


def test_import_is_light_and_changes_nothing():
    code = (
        "import sys, os; before = dict(os.environ); import dgdlb_jax; assert 'jax' not in sys.modules; import jax;"
        "values = dict(jax.config.values); [getattr(dgdlb_jax, name) for name in dgdlb_jax.__all__];"
        "assert dict(jax.config.values) == values and dict(os.environ) == before"
    )
    _python(code)
