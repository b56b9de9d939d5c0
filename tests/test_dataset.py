"""Runs as labelled arrays and files."""

import numpy as np
import pytest
import xarray

import dgdlb_jax as dgd


def _network(names=True):
    return dgd.Network(
        [4.0, 2.0],
        [[0.02, 0.15], [0.15, 0.02]],
        dgd.Hyperbolic(max_rate=[8.0, 8.0], half_load=[20.0, 20.0]),
        frontend_names=("Oslo", "Rome") if names else None,
        backend_names=("North", "South") if names else None,
    )


def _run():
    return dgd.simulate(_network(), dgd.DGDLB(0.01), duration=2.0, dt=0.01, save=dgd.SaveAt(every=50))


def test_a_saved_run_is_read_back_with_names_units_and_statistics(tmp_path):
    run = _run()
    with xarray.open_dataset(run.save(tmp_path / "run.nc"), engine="h5netcdf") as found:
        assert list(found.frontend.values) == ["Oslo", "Rome"]
        assert found.workload.attrs["units"] == "requests"
        np.testing.assert_array_equal(found.routing, run.routing)
        np.testing.assert_array_equal(found.time, run.time)
        assert float(found.window_mean_latency) == float(run.statistics.mean_latency)
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def test_a_batch_has_its_own_time_for_every_network():
    batch = dgd.stack([_network(), _network(False)])
    runs = dgd.simulate_batch(batch, dgd.DGDLB(0.01), duration=[2.0, 1.0], dt=[0.01, 0.005], save=dgd.SaveAt(every=50))
    found = runs.to_xarray()
    assert found.workload.dims == ("batch", "time", "backend")
    np.testing.assert_allclose(found.seconds.isel(time=-1), [2.0, 1.0], rtol=1e-12)


def test_an_unwritable_place_leaves_nothing_behind(tmp_path):
    with pytest.raises(dgd.InputError, match="choose another place"):
        _run().save(tmp_path / "missing" / "run.nc")
    assert not list(tmp_path.iterdir())
