"""Input files with pieces cut out, doubled, swapped or replaced: a network that can be computed with, or one sentence."""

import warnings
from importlib import resources

import jax
import numpy as np
import pytest

from dgdlb_jax.fleets import load_events, load_fleet
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.routing_csv import read_routing
from dgdlb_jax.studies.sweep import read_spec
from sweeps import small, write_toml
from test_bad_input import FLEET, TABLES

PIECES = (
    "", "nan", "-1", "1e999", "0", "inf", "1;2", "1,5", "1e-300", ",", '"', "'", "\n", "\r", "\t", "\ufeff", "\0", "é", "[", "]", "{",
    "}", "=", "#", ".", "true", "\x1b[31m", "$", "9" * 400, "[" * 200, "\u202e", "../", "-0", "0x10", "1979-05-27", '"""',
)  # fmt: skip
ROUTING = "frontend,backend,share\nparis,amsterdam,0.7\nparis,osaka,0.3\ntokyo,osaka,1\n"


def mutated(rng: np.random.Generator, text: str) -> str:
    """One to three pieces changed."""
    for _ in range(rng.integers(1, 4)):
        start = int(rng.integers(0, len(text) + 1))
        end = min(len(text), start + int(rng.integers(0, 13)))
        kind = rng.integers(0, 4)
        piece = (
            PIECES[rng.integers(len(PIECES))],
            text[start:end] * 2,
            text[start:end][::-1],
            chr(rng.integers(1, 0x3000)),
        )
        text = text[:start] + piece[kind] + text[end:]
    return text


def survive(action):
    """What came of it, or None for one sentence."""
    message = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return action()
    except InputError as error:
        message = str(error)
    assert 20 < len(message) < 5000
    return None


def is_right(network) -> bool:
    """Whether a network can be computed with: finite, positive where it has to be, names that can be printed."""
    names = (*network.frontend_names, *network.backend_names, network.name)
    numbers = (network.latency, network.nominal_capacity, network.arrival_rate, network.service.initial_slope)
    return (
        all(np.isfinite(values).all() and (np.asarray(values) >= 0).all() for values in numbers)
        and (np.asarray(network.nominal_capacity) > 0).all()
        and all(name.isprintable() for name in names)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mutated")


def write(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    return folder / name


def test_a_name_that_no_file_can_have(folder):
    """Of a table, and of the fleet itself: found by the mutations below."""
    for name, text in {"fleet.toml": FLEET, **TABLES}.items():
        write(folder, name, text)
    for long in ("x" * 400 + ".csv", "x\\u0000.csv"):
        write(folder, "long.toml", FLEET.replace("day.csv", long))
        with pytest.raises(InputError, match="cannot be read"):
            load_fleet(folder / "long.toml")
    with pytest.raises(InputError, match="cannot be read"):
        load_fleet(folder / ("x" * 400 + ".toml"))


@pytest.mark.parametrize("count", [60, pytest.param(70_000, marks=pytest.mark.full)])
def test_fleets(folder, rng, count):
    files = {"fleet.toml": FLEET, **TABLES}
    read = 0
    for k in range(count):
        chosen = list(files)[k % len(files)]
        for name, text in files.items():
            write(folder, name, mutated(rng, text) if name == chosen else text)
        network = survive(lambda: load_fleet(folder / "fleet.toml"))
        read += network is not None
        assert network is None or is_right(network), (folder / chosen).read_text()
    print(f"{count} mutated fleets: {read} read, {count - read} refused, all of them right")


@pytest.mark.parametrize("count", [30, pytest.param(10_000, marks=pytest.mark.full)])
def test_events(folder, rng, count):
    """The built-in fleet with [[events]], changed in that part: events at known places, whose signals are finite, or one sentence."""
    head, _, tail = (resources.files("dgdlb_jax") / "data" / "failover.toml").read_text().partition("[[events]]")
    path, read = folder / "events.toml", 0

    def loaded():
        network = load_fleet(path)
        return signals(network, load_events(path))

    for _ in range(count):
        write(folder, path.name, head + mutated(rng, "[[events]]" + tail))
        found = survive(loaded)
        read += found is not None
        assert found is None or all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found)), path.read_text()
    print(f"{count} mutated events: {read} read, {count - read} refused, all of them right")


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.full)])
def test_specifications(folder, rng, count):
    text = write_toml(folder / "spec.toml", small()).read_text()
    read = 0
    for _ in range(count):
        spec = survive(lambda: read_spec(write(folder, "spec.toml", mutated(rng, text))))
        read += spec is not None
        if spec is not None:
            assert 1 <= spec.size <= 10**9
            assert read_spec(spec).from_document(spec.document()) == spec
    print(f"{count} mutated specifications: {read} read, {count - read} refused, all of them right")


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.full)])
def test_routing_tables(folder, rng, count):
    for name, text in {"fleet.toml": FLEET, **TABLES}.items():
        write(folder, name, text)
    network = survive(lambda: load_fleet(folder / "fleet.toml"))
    read = 0
    for _ in range(count):
        found = survive(lambda: read_routing(write(folder, "now.csv", mutated(rng, ROUTING)), network))
        read += found is not None
        if found is not None:
            np.testing.assert_allclose(np.asarray(found.routing).sum(1), 1, atol=1e-12)
    print(f"{count} mutated routing tables: {read} read, {count - read} refused, all of them right")
