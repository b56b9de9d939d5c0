"""What the README says is what happens: its Python runs, its fleet loads, its commands are those of the checks."""

import re
import shlex
from pathlib import Path

import pytest

from dgdlb_jax import load_fleet
from dgdlb_jax.cli import build_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_python_blocks_run_in_order(capsys):
    scope = {}
    for block in _blocks("python"):
        exec(block, scope)
    assert "above the optimum" in capsys.readouterr().out
    # What the text promises: at the default step size nearly all of a thousand networks are within 1 % of the optimum.
    assert scope["excess"].shape == (1000,)
    assert float((abs(scope["excess"]) < 0.05).mean()) > 0.9
    assert float(abs(scope["run"].routing.sum(-1) - 1).max()) < 1e-12


def test_the_fleet_of_the_readme_loads(tmp_path):
    (tmp_path / "my-fleet.toml").write_text(_blocks("toml")[0])
    (tmp_path / "gpu.csv").write_text(_blocks("csv")[0])
    network = load_fleet(tmp_path / "my-fleet.toml")
    assert network.frontend_names == ("paris", "tokyo")
    assert float(network.nominal_capacity[0]) == pytest.approx(3 * 9.2, rel=1e-12)


def test_commands_are_known_to_the_command_line():
    lines = [line.split("#")[0] for block in _blocks("sh") for line in block.splitlines()]
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("dgdlb ")]
    assert len(commands) >= 4
    for command in commands:
        assert build_parser().parse_args(command)


def test_checks_call_the_test_command_of_the_readme():
    command = next(block.strip() for block in _blocks("sh") if "pytest" in block)
    assert command in (ROOT / ".ci" / "run").read_text().splitlines()
