"""Tables that somebody's spreadsheet, or bad luck, has mangled: one sentence or a fleet, never anything else."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.routing_csv import read_routing
from test_bad_input import FLEET, TABLES

pytestmark = pytest.mark.usefixtures("quick_compilation")

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = (
    "",
    "nan",
    "-1",
    "1e999",
    "0",
    "inf",
    "paris",
    "1;2",
    "1,5",
    "1e-300",
    ",",
    '"',
    "\n",
    "\r",
    "\ufeff",
    "\x00",
    "é",
)
CELLS = st.sampled_from(WORDS)


@st.composite
def mangled(draw, text: str) -> str:
    """A table with a few pieces cut out, doubled, or replaced."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, max(len(text) - 1, 0)))
        end = min(len(text), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(CELLS, st.text(max_size=6), st.just(text[start:end] * 2)))
        text = text[:start] + piece + text[end:]
    return text


def outcome(action):
    """What came of it: the value, or the one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a fit says what it does not like about a table
            return action()
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("table", sorted(TABLES))
@given(data=st.data())
@MANY
def test_mangled_tables_of_a_fleet(table, data, tmp_path):
    (tmp_path / "fleet.toml").write_text(FLEET)
    for name, text in TABLES.items():
        changed = data.draw(mangled(text)) if name == table else text
        (tmp_path / name).write_bytes(changed.encode("utf-8", "surrogatepass"))
    found = outcome(lambda: load_fleet(tmp_path / "fleet.toml"))
    if isinstance(found, str):
        assert len(found) > 20
    else:
        assert np.isfinite(found.latency).all()
        assert np.isfinite(found.nominal_capacity).all()


@given(data=st.data())
@MANY
def test_mangled_routing_tables(data, tmp_path):
    (tmp_path / "fleet.toml").write_text(FLEET)
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        network = load_fleet(tmp_path / "fleet.toml")
    good = "frontend,backend,share\nparis,amsterdam,0.7\nparis,osaka,0.3\ntokyo,osaka,1\n"
    (tmp_path / "now.csv").write_bytes(data.draw(mangled(good)).encode("utf-8", "surrogatepass"))
    found = outcome(lambda: read_routing(tmp_path / "now.csv", network))
    if not isinstance(found, str):
        np.testing.assert_allclose(np.asarray(found.routing).sum(1), 1, atol=1e-12)
