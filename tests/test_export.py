"""Routings for other programs: read back, and held against Envoy's published schema."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dgdlb_jax.cli import main
from dgdlb_jax.experiments.compare import compare
from dgdlb_jax.experiments.export import TOTAL_WEIGHT, envoy_bootstrap, routings, whole_weights, write_export
from dgdlb_jax.experiments.routing_csv import read_routing
from dgdlb_jax.model.fleets import load_fleet

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def comparison():
    return compare(load_fleet("two-by-two"), ["dgd-lb"], duration=20.0, dt=0.05)


def test_csv_is_what_current_reads(comparison, tmp_path):
    paths = write_export(tmp_path, comparison, "csv")
    assert [path.name for path in paths] == ["routing-optimum.csv", "routing-dgd-lb.csv"]
    for path, shares in zip(paths, routings(comparison).values(), strict=True):
        np.testing.assert_allclose(read_routing(path, comparison.network).routing, shares, atol=1e-8)


def test_json_has_every_share(comparison, tmp_path):
    (path,) = write_export(tmp_path, comparison, "json")
    document = json.loads(path.read_text())
    network, optimum = comparison.network, np.asarray(comparison.optimum.routing)
    for i, frontend in enumerate(network.frontend_names):
        assert abs(sum(document["optimum"][frontend].values()) - 1) < 1e-9
        for backend, share in document["optimum"][frontend].items():
            np.testing.assert_allclose(share, optimum[i, network.backend_names.index(backend)], rtol=1e-9)


def test_envoys_schema_accepts_the_configuration(comparison, tmp_path):
    """Envoy's own API definitions, as compiled by the gRPC project: unknown fields and wrong types are errors."""
    bootstrap_pb2 = pytest.importorskip("envoy.config.bootstrap.v3.bootstrap_pb2", reason="install the test extra")
    manager_pb2 = pytest.importorskip(
        "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2"
    )
    pytest.importorskip("envoy.extensions.filters.http.router.v3.router_pb2")
    from google.protobuf import json_format

    for path, shares in zip(write_export(tmp_path, comparison, "envoy"), routings(comparison).values(), strict=True):
        found = json_format.Parse(path.read_text(), bootstrap_pb2.Bootstrap())
        clusters = [cluster.name for cluster in found.static_resources.clusters]
        assert len(set(clusters)) == comparison.network.backends
        for listener, row in zip(found.static_resources.listeners, shares, strict=True):
            manager = manager_pb2.HttpConnectionManager()
            assert listener.filter_chains[0].filters[0].typed_config.Unpack(manager)
            weighted = manager.route_config.virtual_hosts[0].routes[0].route.weighted_clusters.clusters
            weights = {entry.name: entry.weight.value for entry in weighted}
            assert sum(weights.values()) == TOTAL_WEIGHT
            assert min(weights.values()) >= 1
            expected = [weights.get(name, 0) / TOTAL_WEIGHT for name in clusters]
            np.testing.assert_allclose(expected, row, atol=1 / TOTAL_WEIGHT)
        with pytest.raises(json_format.ParseError):
            json_format.ParseDict(json.loads(path.read_text()) | {"static_resourcez": {}}, bootstrap_pb2.Bootstrap())


def test_names_become_addresses_that_differ():
    shares = np.full((2, 3), 1 / 3)
    found = envoy_bootstrap(shares, ("São Paulo", "sao paulo"), ("A B", "a-b", "??"))
    names = [cluster["name"] for cluster in found["static_resources"]["clusters"]]
    assert names == ["a-b-0", "a-b-1", "region"]
    ports = [entry["address"]["socket_address"]["port_value"] for entry in found["static_resources"]["listeners"]]
    assert ports == [10000, 10001]


@given(arrays(float, st.integers(1, 9), elements=st.floats(0, 1)).filter(lambda row: row.sum() > 1e-3))
def test_whole_weights_sum_and_are_near(row):
    weights = np.array(whole_weights(row))
    assert weights.sum() == TOTAL_WEIGHT
    assert (weights >= 0).all()
    assert np.abs(weights - TOTAL_WEIGHT * row / row.sum()).max() <= 1


def test_the_command_writes_them(tmp_path, capsys):
    options = [
        "run",
        "two-by-two",
        "--policies",
        "dgd-lb",
        "--duration",
        "20",
        "--dt",
        "0.05",
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*options, "--export", "envoy", "--report"]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"envoy-optimum.json", "envoy-dgd-lb.json", "report.html", "run.nc"} <= names
    assert "report.html, routing" in capsys.readouterr().out
    assert main([*options, "--export", "csv", "--no-files"]) == 2
    assert "--no-files contradicts" in capsys.readouterr().err
