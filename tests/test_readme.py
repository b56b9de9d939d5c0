"""What the README says is what happens: its Python runs, its fleet loads, its commands are those of the checks."""

import re
import shlex
import subprocess
import sys

import pytest

import dgdlb_jax.studies.sweep
from dgdlb_jax import load_fleet, open_sweep
from dgdlb_jax.cli import build_parser
from helpers import ROOT, own_process

README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


CHECKS = """
# Over the last fifth of 20 000 steps, which few of these networks need to settle in: 1 % over the optimum in the median, 11 % at most.
assert excess.shape == (200,)
assert 0.005 < float(jnp.median(excess)) < 0.03
assert 0 < float(excess.min()) < float(excess.max()) < 0.2
assert float(abs(run.routing.sum(-1) - 1).max()) < 1e-12
assert found["excess"].shape == (3, 3)
"""


def test_python_blocks_run_in_order(tmp_path):
    """As a script of the user's, in a new process."""
    (tmp_path / "readme.py").write_text("\n".join([*_blocks("python"), CHECKS]))
    done = subprocess.run(
        [sys.executable, "readme.py"], cwd=tmp_path, env=own_process(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "above the optimum" in done.stdout
    assert (tmp_path / "my-sweep.zarr").is_dir()


def test_the_fleet_of_the_readme_loads(tmp_path):
    (tmp_path / "my-fleet.toml").write_text(_blocks("toml")[0])
    network = load_fleet(tmp_path / "my-fleet.toml")
    assert network.frontend_names == ("paris", "tokyo")
    assert float(network.nominal_capacity[0]) == pytest.approx(3 * 9.2, rel=1e-3)


def test_the_sweep_behind_the_picture_runs_and_shows_what_the_text_says(tmp_path):
    block = next(block for block in _blocks("sh") if "dgdlb sweep quick-step-size" in block)
    printed = ""
    for line in block.splitlines():
        command = [sys.executable, "-m", "dgdlb_jax", *shlex.split(line.split("#")[0])[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=own_process(1), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert "440 cases" in printed
    assert (tmp_path / "quick-step-size-pictures" / "curves.png").exists()
    assert (tmp_path / "quick-step-size.html").exists()
    with open_sweep(tmp_path / "quick-step-size.zarr") as dataset:
        near, far = (dataset["excess"].sel(start=start).median("seed") for start in ("near-optimum", "proportional"))
        below = dataset["step_size_over_critical"] < 1
        assert float(near[below.values].max()) < 1e-6
        assert float(near[~below.values].max()) > 0.1
        assert float(far[below.values].max()) > 0.1
        assert float(far[0]) > float(far[2])


def test_it_is_short():
    assert len(README.splitlines()) <= 250


def test_measurements_are_short_and_each_script_has_its_section():
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert len(text.splitlines()) <= 300
    listed = subprocess.run(
        [sys.executable, "benchmarks/all.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    scripts = {path.name for pattern in ("bench_*.py", "study_*.py") for path in (ROOT / "benchmarks").glob(pattern)}
    assert set(re.findall(r"benchmarks/(\w+\.py)", listed)) == scripts
    assert {name for name in scripts if name not in text} == set()


def test_commands_are_known_to_the_command_line():
    text = README + dgdlb_jax.studies.sweep.__doc__
    lines = [
        line.split("#")[0] for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    commands = [
        shlex.split(line.partition("dgdlb ")[2]) for line in lines if re.match(r"((srun|mpirun) .*)?dgdlb ", line)
    ]
    assert len(commands) >= 4
    for command in commands:
        assert build_parser().parse_args(command)


def test_checks_call_the_test_command_of_the_readme():
    command = next(block.strip() for block in _blocks("sh") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
