"""One case that cannot be computed never stops a sweep: it is marked, named and counted, and the others are what they would be alone."""

from pathlib import Path

import numpy as np
import pytest

from dgdlb_jax import open_sweep
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import batches, sweep
from dgdlb_jax.studies.sweep.batches import OutOfMemory
from dgdlb_jax.studies.sweep.measures import RESULTS
from dgdlb_jax.studies.sweep.summary import summary
from dgdlb_jax.studies.verdict import Verdict
from sweeps import FIXED, RUN, complete

pytest.importorskip("zarr", reason="install the sweep extra")

SHORT = RUN | {"chunk": 4, "batch": 4, "max_steps": 200}
SOFTMIN = {"policy": "softmin"}


def computed(path: Path, axes, **fixed):
    sweep({"measures": ["excess", "verdict"], "axes": axes, "fixed": FIXED | fixed, "run": SHORT}, path, progress=False)
    return open_sweep(path).load()


@pytest.mark.parametrize(
    ("name", "values", "fixed", "expected"),
    [
        ("dt", [0.01, 5e-324, 1e-12, 0.02], {"duration": 1.0}, "too_many_steps"),
        ("dt", [0.1, 0.05, 1e300, 0.2], {"duration": 1.0}, "step_too_large"),
        ("duration", [1.0, 1e300, 2.0], {"dt": 0.01}, "too_many_steps"),
        ("dt", [0.01, 2e-9, 0.02], {"duration": 1.0}, "does_not_fit_memory"),
        pytest.param("latency_scale", [1.0, 1e308, 2.0], {}, "refused", marks=pytest.mark.full),
        ("load", [0.5, 1e300, 0.6], {}, "refused"),
        ("load", [0.5, 1.5, 0.6], {}, "infeasible"),
        pytest.param("service_time", [1.0, 1e-300, 2.0], {}, "refused", marks=pytest.mark.full),
        pytest.param("curve.exponent", [0.5, -1.0, 3.0, 0.4], {"curve": "power"}, "refused", marks=pytest.mark.full),
        pytest.param("curve.max_rate", [30.0, 0.0, -5.0, 40.0], {}, "refused", marks=pytest.mark.full),
        ("policy.temperature", [0.1, -1.0, 0.0, 0.2], SOFTMIN, "refused"),
    ],
)
def test_bad_values_among_good_ones(tmp_path, name, values, fixed, expected):
    found = computed(tmp_path / "all.zarr", {name: values}, **fixed)
    good = [k for k in range(len(values)) if k in (0, len(values) - 1)]
    if expected == "step_too_large":
        good = [0, 1, 3]
    codes = found["result"].values
    assert [k for k, code in enumerate(codes) if code == 0] == good
    bad = [k for k in range(len(values)) if k not in good]
    assert {codes[k] for k in bad} == {RESULTS[expected]}
    assert np.isnan(found["excess"].values[bad]).all()
    assert (found["verdict"].values[bad] == Verdict.failed).all()
    alone = computed(tmp_path / "good.zarr", {name: [values[k] for k in good]}, **fixed)
    np.testing.assert_allclose(found["excess"].values[good], alone["excess"].values, rtol=1e-9, atol=1e-12)
    text = summary(tmp_path / "all.zarr")
    assert f"{len(bad)} {expected.replace('_', ' ')}" in text
    for k in bad:
        assert f"  {name} = {values[k]:.6g}: " in text, text


def test_a_parameter_that_one_of_two_policies_lacks(tmp_path):
    path = tmp_path / "mixed.zarr"
    found = computed(path, {"policy": ["dgd-lb", "softmin"], "policy.temperature": [0.1, 0.2]})
    assert (found["result"].values == [[RESULTS["refused"]] * 2, [0, 0]]).all()
    assert "policy = dgd-lb, policy.temperature = 0.1: dgd-lb has no parameter 'temperature'" in summary(path)


def test_a_network_that_no_memory_holds(tmp_path):
    path = tmp_path / "large.zarr"
    sizes = {"frontends": [2, 10_000], "backends": [2, 10_000]}
    spec = {"measures": ["excess"], "zip": {"size": sizes}, "fixed": {"family": "complete"}, "run": SHORT}
    with device.assumed(memory=16e9):
        found = sweep(spec, path, progress=False)
    assert list(found["result"].values) == [0, RESULTS["does_not_fit_memory"]]
    assert "frontends = 10000, backends = 10000: Its optimum needs about 72.5 GB, the device has 16 GB" in summary(path)


def test_what_runs_out_of_memory_alone_is_marked_alone(tmp_path, monkeypatch):
    whole, axes = batches.run_batch, {"dt": [0.01, 0.013, 0.02, 0.03]}
    monkeypatch.setitem(SHORT, "batch", 1)
    expected = computed(tmp_path / "whole.zarr", axes, duration=1.0)

    def run_batch(batch, measures):
        if 0.013 in batch.cases.dt[batch.rows]:
            raise OutOfMemory
        return whole(batch, measures)

    monkeypatch.setattr(batches, "run_batch", run_batch)
    found = computed(tmp_path / "small.zarr", axes, duration=1.0)
    assert list(found["result"].values) == [0, RESULTS["does_not_fit_memory"], 0, 0]
    np.testing.assert_allclose(found["excess"][[0, 2, 3]], expected["excess"][[0, 2, 3]], rtol=1e-9)
    assert "dt = 0.013: A case of 2 x 2 with 256 delay rows does not fit into memory" in summary(
        tmp_path / "small.zarr"
    )


@pytest.mark.parametrize(
    ("axes", "fixed", "expected"),
    [
        ({"dt": [1e-12, 2e-12]}, {"duration": 5.0}, "The run is 5e\\+12 steps of 1e-12 s"),
        ({"policy.temperature": [0.1]}, {}, "no parameter 'temperature'"),
        ({"curve.max_rate": [-3.0]}, {}, "must be positive and finite"),
    ],
)
def test_what_no_case_can_do_is_refused_at_the_start(tmp_path, axes, fixed, expected):
    with pytest.raises(InputError, match=expected):
        computed(tmp_path / "none.zarr", axes, **fixed)
    assert not list(tmp_path.iterdir())


def test_a_case_that_fails_is_part_of_a_complete_chunk(tmp_path):
    """It is not tried again and again."""
    path = tmp_path / "all.zarr"
    computed(path, {"dt": [0.01, 1e-12, 0.02]}, duration=1.0)
    before = (path / "manifest" / "chunk-0000000.json").read_text()
    assert complete(path) == 1
    computed(path, {"dt": [0.01, 1e-12, 0.02]}, duration=1.0)
    assert (path / "manifest" / "chunk-0000000.json").read_text() == before
