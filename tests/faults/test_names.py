"""Names are text, not code: they are shown as they are, or refused where no output could show them."""

import csv
import warnings

import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import cell_text, clipped, plain_cell, printable
from dgdlb_jax.reports.routing_csv import read_routing

FLEET = """
name = {name}
[frontends]
names = {frontends}
rate = [4.0, 2.0]
[backends]
names = {backends}
curve = "g"
[curves.g]
kind = "hyperbolic"
max_rate = 8.0
half_load = 20.0
[latency]
one_way_s = [[0.02, 0.15], [0.15, 0.02]]
"""
STRANGE = ["$\\\\frac{$", "=1+1", "x$y$z", "東京<script>"]


def fleet(folder, name="f", frontends=("a", "b"), backends=("c", "d")):
    """A fleet file; names as they stand in TOML."""

    def listed(names):
        return "[" + ", ".join(f'"{name}"' for name in names) + "]"

    text = FLEET.format(name=f'"{name}"', frontends=listed(frontends), backends=listed(backends))
    (folder / "fleet.toml").write_text(text, encoding="utf-8")
    return folder / "fleet.toml"


@pytest.mark.parametrize("form", ["csv", pytest.param("envoy", marks=pytest.mark.full)])
def test_strange_names_come_through_everything(tmp_path, capsys, monkeypatch, form):
    """Pictures, report, netCDF, terminal, export; no letter that a font lacks warns."""
    pytest.importorskip("h5netcdf", reason="install the xarray extra")
    monkeypatch.chdir(tmp_path)
    path = fleet(tmp_path, STRANGE[0], STRANGE[:2], STRANGE[2:])
    options = (
        "--policies",
        "uniform",
        "--duration",
        "2",
        "--dt",
        "0.05",
        "--report",
        "--export",
        form,
        "--output",
        "out",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(["run", str(path), *options, "--quiet"]) == 0
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"run.nc", "latency.png", "routing.png", "workloads.png", "report.html"} <= written
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script>" not in page
    assert "東京&lt;script&gt;" in page
    assert "$\\frac{$" in capsys.readouterr().out
    if form == "csv":
        network = dgd.load_fleet(path)
        file = tmp_path / "out" / "routing-optimum.csv"
        with file.open(newline="") as opened:
            cells = [cell for row in csv.reader(opened) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@"))]
        np.testing.assert_allclose(
            read_routing(file, network).routing, dgd.solve_optimum(network).routing, atol=1e-6
        )  # what was written is read back under the same names


@pytest.mark.parametrize(
    "name", ["\\u001b[31mred", "x\\ny", "a\\u0000b", "\\u202eevil", "tab\\there", "zero\\u200bwidth"]
)
@pytest.mark.parametrize("place", ["name", "frontends", "backends"])
def test_unprintable_names_are_refused_at_load(tmp_path, capsys, name, place):
    path = fleet(tmp_path, **{place: name if place == "name" else (name, "b")})
    assert main(["run", str(path), "--no-files"]) == 2
    message = capsys.readouterr().err
    assert "use printable characters only" in message
    assert message.strip().isprintable()


def test_unprintable_names_are_refused_by_the_constructor_too():
    network = dgd.load_fleet("two-by-two")
    with pytest.raises(InputError, match=r"The name 'a\\x00' is not a printable text"):
        network.with_names(["a\0", "b"], ["c", "d"])
    with pytest.raises(InputError, match=r"The name ' a' has spaces around it"):
        network.with_names([" a", "b"], ["c", "d"])


def test_a_name_with_spaces_around_it_is_refused_at_load(tmp_path):
    with pytest.raises(InputError, match="leave out the spaces around it"):
        dgd.load_fleet(fleet(tmp_path, frontends=("a ", "b")))


def test_messages_stay_short_whatever_the_names_are(tmp_path, capsys):
    path = fleet(tmp_path, frontends=("n" * 9000, "b"))
    assert main(["run", str(path), "--no-files"]) == 2
    assert len(capsys.readouterr().err) < 400
    assert main(["run", "x" * 9000, "--no-files"]) == 2
    assert len(capsys.readouterr().err) < 1100
    assert main(["run", "\x1b[31mred\n.toml", "--no-files"]) == 2
    message = capsys.readouterr().err
    assert message.strip().isprintable()
    assert "\\x1b[31mred\\n.toml" in message


def test_texts():
    assert printable("a\x1b\n東") == "a\\x1b\\n東"
    assert printable("x" * 100, 25) == "x" * 10 + " ... " + "x" * 10
    assert clipped("a  b\n\tc") == "a b c"
    assert len(clipped("x" * 10_000)) == 60
    cells = ("=1+1", "+x", "-x", "@x", "plain", "", "'quoted", "'=1+1", "''@x")
    assert [cell_text(plain_cell(cell)) for cell in cells] == list(cells)
    assert len(set(map(plain_cell, cells))) == len(cells)
