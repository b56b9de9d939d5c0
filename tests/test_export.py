"""Routings for other programs: read back, and held against the published schemas."""

import copy
import dataclasses
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dgdlb_jax.cli import build_parser, main
from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.export import _renamed as renamed
from dgdlb_jax.reports.export import export_notes, rounding_costs, roundings, routings, write_export
from dgdlb_jax.reports.exporters import EXPORTERS, TOTAL_WEIGHT, Names, slugs, whole_weights
from dgdlb_jax.reports.exporters.base import addressable
from dgdlb_jax.reports.exporters.envoy import envoy_bootstrap
from dgdlb_jax.reports.exporters.istio import _LABEL as LABEL
from dgdlb_jax.reports.exporters.istio import regions
from dgdlb_jax.reports.routing_csv import read_routing
from dgdlb_jax.studies.compare import compare
from dgdlb_jax.studies.verdict import Verdict
from helpers import ROOT

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def comparison():
    return compare(load_fleet("two-by-two"), ["dgd-lb"], duration=20.0, dt=0.05)


def test_csv_is_what_current_reads(comparison, tmp_path):
    paths = write_export(tmp_path, comparison, "csv")
    assert [path.name for path in paths] == ["routing-optimum.csv", "routing-dgd-lb.csv"]
    for path, shares in zip(paths, routings(comparison).values(), strict=True):
        np.testing.assert_allclose(read_routing(path, comparison.network).routing, shares, atol=1e-8)


@pytest.fixture(scope="module")
def fleet():
    return load_fleet("global-llm")


def spread(network, rng):
    """Shares as they come out of a computation: some large, some tiny, some none, over all backends."""
    shares = rng.dirichlet(np.full(network.backends, 0.3), network.frontends)
    shares[0], shares[1] = np.eye(network.backends)[2], np.full(network.backends, 1 / network.backends)
    return shares


def named(network):
    return Names(network.frontend_names, network.backend_names)


def test_a_table_may_be_saved_by_a_spreadsheet_and_a_backend_may_have_two_ports(comparison, tmp_path):
    (tmp_path / "now.csv").write_text(
        "\ufeffshare;backend;frontend\r\n0,25;west;west\r\n75 %;east;west\r\n100%;east;east\r\n"
    )
    np.testing.assert_array_equal(
        read_routing(tmp_path / "now.csv", comparison.network).routing, [[0.25, 0.75], [0, 1]]
    )
    backends = [
        {"name": name, "port": port, "weight": 1}
        for name, port in (("west", 80), ("east", 80), ("east", 81), ("east", 82))
    ]
    spec = {"rules": [{"backendRefs": backends}]}
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "spec": spec}
    routes = {"kind": "List", "items": [route | {"metadata": {"name": name}} for name in ("west", "east")]}
    (tmp_path / "now.json").write_text(json.dumps(routes))
    np.testing.assert_array_equal(read_routing(tmp_path / "now.json", comparison.network).routing, [[0.25, 0.75]] * 2)


@pytest.mark.parametrize("form", EXPORTERS)
def test_every_format_is_read_back_as_it_was_written(form, fleet, rng, tmp_path):
    """The names of global-llm have spaces and capitals, which no address has."""
    exporter, shares = EXPORTERS[form], spread(fleet, rng)
    (tmp_path / "now").write_text(exporter.write(exporter.rounded(shares), named(fleet)))
    found = np.asarray(read_routing(tmp_path / "now", fleet).routing)
    np.testing.assert_allclose(found, exporter.rounded(shares), atol=1e-8)
    assert np.abs(found - shares).max() <= (1 / exporter.total if exporter.total else 1e-8)
    assert latency_at_rest(fleet, found) == pytest.approx(latency_at_rest(fleet, exporter.rounded(shares)), rel=1e-6)


ODD = (
    "=1+1", "'=1+1", "''=1+1", "1+1", '"quoted"', "it's", "a:b", "a#b", "{a}", "[a]", "a,b", "a/*", "a b", "A B", "a-b", "a-b-0", "a b 0",
    "東京", "São Paulo", "sao paulo", "kind", "items", "resources", "static_resources", "optimum", "null", "1e3", "\\", "$x$",
    "<b>", "?", "x" * 400, "x" * 400 + "y", "r-1", "-1",
)  # fmt: skip


@pytest.mark.parametrize("form", EXPORTERS)
def test_odd_names_are_read_back(form, rng, tmp_path):
    """Each frontend's own routing under its own name, whatever a format has to make of the names, and without one name as another."""
    frontends, backends = ODD, ODD[::-1][:-2]
    shape = len(frontends), len(backends)
    network = Network(np.ones(shape[0]), np.ones(shape), Hyperbolic(np.full(shape[1], 9.0), np.ones(shape[1])))
    network = network.with_names(frontends, backends)
    exporter, shares = EXPORTERS[form], rng.dirichlet(np.full(shape[1], 0.2), shape[0])
    (tmp_path / "now").write_text(exporter.write(exporter.rounded(shares), named(network)))
    found = np.asarray(read_routing(tmp_path / "now", network).routing)
    np.testing.assert_allclose(found, exporter.rounded(shares), atol=1e-8)


def test_mean_latency_is_that_of_the_optimum(comparison):
    """At its own routing, by Little's law: the same figure from workloads that were computed another way."""
    found = latency_at_rest(comparison.network, routings(comparison)["optimum"])
    assert found == pytest.approx(float(comparison.optimum.mean_latency), rel=1e-6)


def test_the_cost_of_rounding_is_said(comparison):
    (optimum, dgd) = rounding_costs(comparison, "istio")
    assert "weights of optimum in whole numbers that sum to 100 cost +" in optimum
    assert "dgd-lb" in dgd
    assert rounding_costs(comparison, "csv") == []
    exact, rounded = routings(comparison)["optimum"], EXPORTERS["istio"].rounded(routings(comparison)["optimum"])
    worse = latency_at_rest(comparison.network, rounded) / latency_at_rest(comparison.network, exact) - 1
    assert worse >= 0
    assert f"{worse:+.4%}" in optimum
    found = roundings(comparison, "istio")
    assert found["optimum"] == (100, pytest.approx(worse), pytest.approx(np.abs(rounded - exact).max()))
    assert roundings(comparison, "json") == {}


def strict(schema):
    """Unknown fields are errors, as they are to an API server that validates strictly."""
    if isinstance(schema, list):
        return [strict(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    closed = "properties" in schema and "additionalProperties" not in schema
    return {key: strict(value) for key, value in schema.items()} | ({"additionalProperties": False} if closed else {})


@pytest.mark.parametrize(("form", "file"), [("istio", "destinationrule"), ("gateway-api", "httproute")])
def test_the_schemas_of_kubernetes_accept_the_configuration(form, file, fleet, rng):
    """The schemas of the custom resource definitions (`tests/schemas`, with their origin and licence)."""
    jsonschema = pytest.importorskip("jsonschema", reason="install the test extra")
    schema = json.loads((ROOT / "tests" / "schemas" / f"{file}.json").read_text())
    # Defined elsewhere, as for every kind.
    schema["properties"] |= dict.fromkeys(("apiVersion", "kind", "metadata"), True)
    exporter = EXPORTERS[form]
    document = json.loads(exporter.write(exporter.rounded(spread(fleet, rng)), named(fleet)))
    objects = document["items"] if document["kind"] == "List" else [document]
    validator = jsonschema.validators.validator_for(schema)(strict(schema))
    for found in objects:
        validator.validate(found)
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(objects[0] | {"spec": objects[0]["spec"] | {"wieghts": {}}})


def test_istio_percentages_and_gateway_limits(rng):
    shares = rng.dirichlet(np.full(20, 0.5), 3)
    names = Names(("a", "b", "c"), tuple(f"region-{j}" for j in range(20)))
    istio, gateway = EXPORTERS["istio"], EXPORTERS["gateway-api"]
    rule = json.loads(istio.write(istio.rounded(shares), names))
    entries = rule["spec"]["trafficPolicy"]["loadBalancer"]["localityLbSetting"]["distribute"]
    assert [sum(entry["to"].values()) for entry in entries] == [100, 100, 100]
    assert [entry["from"] for entry in entries] == ["a/*", "b/*", "c/*"]
    for route in json.loads(gateway.write(gateway.rounded(shares), names))["items"]:
        weights = [backend["weight"] for backend in route["spec"]["rules"][0]["backendRefs"]]
        assert len(weights) <= 16
        assert sum(weights) == TOTAL_WEIGHT


def test_envoys_schema_accepts_the_endpoints(fleet, rng):
    response_pb2 = pytest.importorskip("envoy.service.discovery.v3.discovery_pb2", reason="install the test extra")
    endpoint_pb2 = pytest.importorskip("envoy.config.endpoint.v3.endpoint_pb2")
    from google.protobuf import json_format

    exporter, shares = EXPORTERS["envoy-eds"], spread(fleet, rng)
    found = json_format.Parse(exporter.write(exporter.rounded(shares), named(fleet)), response_pb2.DiscoveryResponse())
    for resource, row in zip(found.resources, shares, strict=True):
        assignment = endpoint_pb2.ClusterLoadAssignment()
        assert resource.Unpack(assignment)
        weights = {one.locality.region: one.load_balancing_weight.value for one in assignment.endpoints}
        assert sum(weights.values()) == TOTAL_WEIGHT
        expected = [weights.get(name, 0) / TOTAL_WEIGHT for name in slugs(fleet.backend_names)]
        np.testing.assert_allclose(expected, row, atol=1 / TOTAL_WEIGHT)


BAD = {
    "{": "not valid JSON",
    "{}": "no routing found",
    '{"static_resources": {"listeners": [{"name": "a"}]}}': "no routing found",
    '{"West": {"East": 1}}': "no frontend is called 'West'",
    '{"East US": {"West US": 0.4}}': "the shares of frontend East US sum to 0.4",
    '{"East US": {"West US": 2}, "x": {"y": 1}}': "East US has the share 2.0",
    '{"a": {"East US": {"West US": 1}}, "b": {"East US": {"West US": 1}}}': "holds 2 routings; choose one as",
    '{"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "east-us"}, "spec": {"rules": '
    '[{"backendRefs": [{"name": "west-us", "weight": 0}]}]}}': "now.json, read as gateway-api: the weights of west-us sum to 0",
    '{"resources": [{"cluster_name": "east-us", "endpoints": [{"locality": {"region": "west-us"}, '
    '"load_balancing_weight": true}]}]}': "now.json, read as envoy-eds: the weight True",
    '{"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "spec": {"trafficPolicy": {"loadBalancer": {"localityLbSetting": '
    '{"distribute": [{"from": "east-us/*", "to": {"east-us/*": 50, "west-us/*": 4}}]}}}}}': 'istio: the weights of "east-us" sum to 54',
}


@pytest.mark.parametrize("text", BAD)
def test_bad_documents_are_refused_in_one_sentence(text, fleet, tmp_path):
    (tmp_path / "now.json").write_text(text)
    with pytest.raises(InputError, match=BAD[text]):
        read_routing(tmp_path / "now.json", fleet)


def test_yaml_is_refused_with_the_command_that_gives_json(fleet, tmp_path):
    (tmp_path / "now.yaml").write_text("kind: HTTPRoute\n")
    with pytest.raises(InputError, match=r"kubectl get .* -o json"):
        read_routing(tmp_path / "now.yaml", fleet)


def test_one_of_several_routings_is_chosen(comparison, tmp_path):
    (path,) = write_export(tmp_path, comparison, "json")
    for name, shares in routings(comparison).items():
        found = read_routing(f"{path}#{name}", comparison.network).routing
        np.testing.assert_allclose(found, shares, atol=1e-8)
    with pytest.raises(InputError, match="no routing called 'now'; it has optimum, dgd-lb"):
        read_routing(f"{path}#now", comparison.network)


def test_the_command_line_knows_every_format():
    """It names them itself, so that help needs no imports."""
    for form in EXPORTERS:
        assert build_parser().parse_args(["run", "--export", form]).export == form
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--export", "nginx"])


@given(st.lists(st.text(max_size=80), max_size=6, unique=True))
def test_labels_are_valid_and_differ(names):
    found = slugs(names)
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", label) for label in found)


@given(st.lists(st.text(max_size=80), max_size=6, unique=True))
def test_regions_of_istio_are_valid_and_differ_and_those_that_are_stay(names):
    found = regions(names)
    assert len(set(found)) == len(names)
    assert all(map(LABEL.fullmatch, found))
    assert all(label == name for name, label in zip(names, found, strict=True) if LABEL.fullmatch(name))
    assert regions(["US_East", "S\xe3o Paulo DC"]) == ["US_East", "Sao-Paulo-DC"]


def test_names_that_a_format_cannot_hold_are_said(comparison):
    network = copy.copy(comparison.network)
    object.__setattr__(network, "backend_names", ("US_East", *comparison.network.backend_names[1:]))
    found = dataclasses.replace(comparison, network=network)
    (said,) = renamed(found, "envoy")
    assert '"US_East" is called us-east' in said
    assert renamed(found, "istio") == renamed(found, "csv") == []


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
    found = envoy_bootstrap(shares, addressable(Names(("São Paulo", "sao paulo"), ("A B", "a-b", "??"))))
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


def test_no_files_and_an_export_contradict_each_other(capsys):
    assert main(["run", "two-by-two", "--export", "csv", "--no-files"]) == 2
    assert "--no-files contradicts" in capsys.readouterr().err


def test_shares_of_a_run_that_did_not_settle_are_marked(comparison):
    """Under a large step size the two backends take turns; of a run that failed only the optimum is left."""
    row = comparison.outcomes["DGD-LB"]
    for changes, said in (
        ({"verdict": Verdict.settled}, None),
        ({"verdict": Verdict.oscillating, "swing": 0.35}, "the verdict on DGD-LB is oscillating (35 %)"),
        ({"verdict": Verdict.failed}, "only the optimum is written"),
    ):
        found = dataclasses.replace(comparison)
        found.__dict__["outcomes"] = {"DGD-LB": dataclasses.replace(row, **changes)}
        notes = export_notes(found, "csv")
        assert [said in note for note in notes] == ([] if said is None else [True])
        assert ("dgd-lb" in routings(found)) == (changes["verdict"] is not Verdict.failed)
