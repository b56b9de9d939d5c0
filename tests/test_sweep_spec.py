"""Specifications: every mistake is one sentence, every good one covers its cases exactly once."""

import itertools
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import read_spec, ready_sweeps
from dgdlb_jax.studies.sweep.inputs import DEFAULTS, INPUTS
from dgdlb_jax.studies.sweep.measures import MEASURES
from helpers import ROOT
from sweeps import small, write_toml

SWEEPS = ROOT / "dgdlb_jax" / "data" / "sweeps"


def changed(**parts):
    return small() | parts


RANDOM = small()["fixed"] | {"start": "random"}
BAD = {
    "unknown key": ({"axis": {}}, 'axis is not a known key: did you mean "axes"?'),
    "unknown axis": ({"axes": {"lode": [1.0]}}, 'lode is no input of a case: did you mean "load"?'),
    "unknown input": ({"fixed": {"familly": "complete"}}, 'did you mean "family"?'),
    "policy of a parameter": (
        {"axes": {"policy.kv-cache-scorer.interval": [1.0]}},
        'write "policy.interval", and whose it is under "policy"',
    ),
    "measure twice": ({"measures": ["excess", "excess"]}, 'measures contains "excess" twice'),
    "unknown measure": ({"measures": ["exces"]}, 'contains "exces": did you mean "excess"?'),
    "unknown family": ({"fixed": {"family": "complet"}}, 'did you mean "complete"? Known here: complete, equal_latencies, '),
    "unknown policy": ({"axes": {"policy": ["dgd"]}}, 'did you mean "dgd-lb"?'),
    "unknown fleet": ({"fixed": {"fleet": "global-lm"}, "axes": {}}, 'did you mean "global-llm"?'),
    "empty axis": ({"axes": {"seed": []}}, "is an axis of length zero: give at least one value."),
    "empty range": ({"axes": {"seed": {"count": 0}}}, "an axis of length zero"),
    "no list": ({"axes": {"seed": 3}}, "is not a list"),
    "twice": ({"axes": {"family": ["complete"]}}, "already stands in [fixed]"),
    "value twice": ({"axes": {"seed": [1, 2, 1]}}, "contains 1 twice"),
    "two step sizes": ({"axes": {"step_size": [1.0]}, "fixed": small()["fixed"] | {"step_size_over_default": 1.0}}, "contradicts"),
    "two time steps": ({"fixed": small()["fixed"] | {"dt": 0.1, "dt_over_suggested": 1.0}}, "contradicts dt"),
    "fleet and family": ({"fixed": {"family": "complete", "fleet": "two-by-two"}}, "keep one of the two"),
    "fleet and sizes": ({"fixed": {"fleet": "two-by-two", "backends": 3}, "axes": {}}, "has no meaning with fleet"),
    "no network": ({"fixed": {"load": 0.5}}, "give a family"),
    "density": ({"fixed": small()["fixed"] | {"density": 0.5}}, "without the family sparse"),
    "negative": ({"axes": {"load": [-0.5]}}, "contains -0.5: give a positive, finite number"),
    "all lost": (
        {"axes": {"news.lost": [1.0]}, "fixed": small()["fixed"] | {"news.interval": 5.0}},
        "contains 1.0: give less than 1",
    ),
    "not finite": ({"axes": {"load": [float("inf")]}}, "contains inf"),
    "fraction of a seed": ({"axes": {"seed": [1.5]}}, "contains 1.5: give whole numbers"),
    "text for a number": ({"axes": {"load": ["high"]}}, 'contains "high"'),
    "unequal zip": ({"axes": {}, "zip": {"size": {"seed": [1, 2], "load": [0.5]}}}, "give lists of equal length"),
    "empty zip": ({"zip": {"size": {}}}, "has no inputs"),
    "name of a zip": ({"axes": {}, "zip": {"excess": {"seed": [1]}}}, "cannot be the name of an axis"),
    "log of zero": ({"axes": {"load": {"from": 0, "to": 1, "count": 3, "spacing": "log"}}}, "positive bounds"),
    "range of names": ({"axes": {"policy": {"count": 3}}}, "is not a known key"),
    "unused start": ({"fixed": small()["fixed"] | {"start_distance": 0.1}}, "has no meaning with this start"),
    "chunk": ({"run": {"chunk": 0}}, "give a whole number from 1"),
    "too many": (
        {"axes": {"seed": {"count": 10**5}, "start_seed": {"count": 10**5}}, "fixed": RANDOM},
        "make 1e+10 cases",
    ),
    "name": ({"name": "a/b"}, "use up to 100 letters"),
    "not plain": ({"name": object()}, "plain values"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_sentence(name):
    parts, expected = BAD[name]
    with pytest.raises(InputError) as caught:
        read_spec(changed(**parts))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_in_a_file_has_its_line(tmp_path):
    file = tmp_path / "spec.toml"
    file.write_text('[fixed]\nfamily = "complete"\n\n[axes]\nseed = { count = 3 }\nlode = [0.5]\n')
    with pytest.raises(InputError, match=r"spec.toml:6: axes.lode is no input of a case"):
        read_spec(file)
    with pytest.raises(InputError, match=r'neither a file nor a ready sweep: did you mean "step-size"'):
        read_spec("stepsize")
    with pytest.raises(InputError, match="does not exist"):
        read_spec(tmp_path / "none.toml")


def test_toml_and_dict_are_the_same_and_documents_read_back(tmp_path):
    assert read_spec(write_toml(tmp_path / "spec.toml", small())) == read_spec(small())
    assert read_spec(read_spec(small())) == read_spec(small())


def test_ready_sweeps_are_readable_and_named_after_their_files():
    assert set(ready_sweeps()) == {path.stem for path in SWEEPS.glob("*.toml")}
    for name in ready_sweeps():
        assert read_spec(name).name == name
        assert ready_sweeps()[name]


def test_what_needs_compiled_code_of_its_own_is_outermost():
    spec = read_spec(changed(axes={"seed": [1, 2], "policy": ["dgd-lb", "uniform"], "load": [0.5]}))
    assert spec.dimensions == ("policy", "seed", "load")


def test_ranges():
    spec = read_spec(changed(axes={"load": {"from": 0.1, "to": 0.9, "count": 5}, "seed": {"count": 3, "first": 7}}))
    assert spec.axes[0].values["load"] == (0.1, 0.3, 0.5, 0.7, 0.9)
    assert spec.axes[1].values["seed"] == (7, 8, 9)
    spec = read_spec(changed(axes={"load": {"from": 0.01, "to": 1, "count": 3, "spacing": "log"}}))
    assert spec.axes[0].values["load"] == (0.01, 0.1, 1.0)
    spec = read_spec(changed(axes={"seed": {"from": 1, "to": 100, "count": 3, "spacing": "log"}}))
    assert spec.axes[0].values["seed"] == (1, 10, 100)


NUMBERS = st.lists(st.floats(0.01, 10).map(lambda x: float(f"{x:.6g}")), min_size=1, max_size=5, unique=True)
AXES = st.dictionaries(st.sampled_from(["load", "latency_scale", "step_size", "dt", "duration"]), NUMBERS, max_size=4)


@settings(max_examples=40, deadline=None)
@given(axes=AXES, seeds=st.integers(1, 9), chunk=st.integers(1, 40))
def test_chunks_cover_every_case_exactly_once(axes, seeds, chunk):
    """Against `itertools.product`: the cases of all chunks together, in their places."""
    spec = read_spec(changed(axes=axes, zip={"pair": {"seed": list(range(seeds)), "start_seed": list(range(seeds))}},
                             fixed=small()["fixed"] | {"start": "random"}, run={"chunk": chunk}))  # fmt: skip
    values = [axis.values[name] for axis in spec.axes for name in list(axis.values)[:1]]
    names = [next(iter(axis.values)) for axis in spec.axes]
    expected = dict(zip(itertools.product(*map(range, spec.shape)), itertools.product(*values), strict=True))
    seen = {}
    for number in range(spec.chunks):
        region = spec.region(number)
        columns = spec.cases(region)
        places = list(itertools.product(*(range(part.start, part.stop) for part in region)))
        assert len(places) <= max(chunk, 1)
        np.testing.assert_array_equal(columns["seed"], columns["start_seed"])
        assert {len(column) for column in columns.values()} == {len(places)}
        for k, place in enumerate(places):
            assert place not in seen
            seen[place] = tuple(columns[name][k].item() for name in names)
    assert seen == expected
    assert spec.size == len(expected)


def assert_one_sentence_at_most(source):
    """Either it is fine, or there is an `InputError` of one line; any other exception fails the test."""
    message = ""
    try:
        read_spec(source)
    except InputError as error:
        message = str(error)
    assert "\n" not in message


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from([*INPUTS, *MEASURES])
)
KEYS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["name", "measures", "axes", "zip", "fixed", "run", "count", "from", "to", *INPUTS]),
)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)


@settings(max_examples=80, deadline=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=4))
def test_fuzzed_specifications_never_give_a_traceback(tree):
    assert_one_sentence_at_most({"fixed": {"family": "complete"}} | tree)


GOOD = (SWEEPS / "quick-step-size.toml").read_bytes()


@pytest.mark.filterwarnings(
    "ignore::dgdlb_jax.fleets.FleetWarning"
)  # bytes that are no UTF-8 are guessed at, and that is said
@settings(max_examples=80, deadline=None)
@given(place=st.integers(0, len(GOOD) - 1), length=st.integers(0, 20), new=st.binary(max_size=6))
def test_fuzzed_files_never_give_a_traceback(tmp_path_factory, place, length, new):
    file = Path(tmp_path_factory.getbasetemp()) / "fuzzed.toml"
    file.write_bytes(GOOD[:place] + new + GOOD[place + length :])
    assert_one_sentence_at_most(file)


def test_inputs_have_defaults_that_they_accept():
    for name, value in DEFAULTS.items():
        assert isinstance(value, INPUTS[name].kind)
    assert tomllib.loads(GOOD.decode())["name"] == "quick-step-size"
