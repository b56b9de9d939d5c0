"""Built-in fleets against figures typed from their sources, and fleet files that are written and read back."""

import dataclasses
import shutil
from importlib import resources
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax import fleets
from dgdlb_jax.fleets import FleetWarning, describe_fleet, list_fleets, load_fleet
from dgdlb_jax.model import demand, service
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.results import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

REAL = ("global-llm", "global-prefill", "small-models")
CURRENT = {"aws-deepseek": (16, 8), "azure-deepseek": (20, 8)}
DATA = Path(str(resources.files("dgdlb_jax") / "data"))


@pytest.fixture(scope="module")
def small() -> Network:
    return load_fleet("small-models")


def same(one: object, other: object) -> None:
    """Equal in structure and in every leaf, to the bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def reloaded(network: Network, folder: Path) -> Network:
    return load_fleet(network.to_toml(folder / "fleet.toml"))


# Built-in fleets


def test_the_built_in_fleets_are_listed_with_sources():
    listed = {fleet.name: fleet for fleet in list_fleets()}
    assert set(listed) == {*REAL, *CURRENT, "two-by-two", "failover"}
    for name in REAL:
        fleet = listed[name]
        assert (fleet.frontends, fleet.backends) == (20, 8)
        assert fleet.load == pytest.approx(0.7, rel=1e-12)
        licences = {source.name: source.licence for source in fleet.sources}
        expected = {"latency": "CC BY 4.0", "curves": "MIT", "trace": "CC BY 4.0", "population": "CC BY 3.0 IGO"}
        assert expected.items() <= licences.items()
        assert len(fleet.fits) == 2
        assert all("measured up to 64 requests" in sentence for sentence in fleet.fits)
    assert "assumed" not in listed["global-llm"].description
    assert "(assumed)" in listed["global-prefill"].description
    assert "(assumed)" in listed["small-models"].description
    assert fleets.fleet_names() == tuple(sorted(listed))


@pytest.mark.parametrize("name", CURRENT)
def test_fleets_of_current_models_load_with_their_doubts(name):
    """What they were measured at says little of a lone request or of an overloaded server, and they say so."""
    fleet = describe_fleet(name)
    assert (fleet.frontends, fleet.backends) == CURRENT[name]
    assert fleet.load == pytest.approx(0.7, rel=1e-12)
    assert {source.name: source.licence for source in fleet.sources}["curves"] == "Apache-2.0"
    with pytest.warns(FleetWarning, match="extrapolated below workload"):
        network = load_fleet(name, demand="day")
    per_server = network.arrival_rate.sum() / network.service.count.sum()
    np.testing.assert_allclose(per_server, 0.7 * network.service.nominal_capacity / network.service.count, rtol=1e-9)


def test_the_regions_of_aws_lie_as_measured():
    with pytest.warns(FleetWarning):
        network = load_fleet("aws-deepseek")
    at = network.frontend_names.index("ap-south-1"), network.backend_names.index("us-east-1")
    assert float(network.latency[at]) == pytest.approx(0.189708 / 2, rel=1e-12)
    inside = network.frontend_names.index("eu-west-1"), network.backend_names.index("eu-west-1")
    assert float(network.latency[inside]) == pytest.approx(0.00288 / 2, rel=1e-12)


def test_every_table_names_its_source_and_licence():
    for table in (DATA / "tables").iterdir():
        comments = "".join(line for line in table.read_text().splitlines() if line.startswith("#"))
        assert "Source: " in comments, table.name
        assert "Licence: " in comments, table.name


@pytest.mark.parametrize(
    ("name", "fastest", "slowest"),
    # The measured time of one request alone is 3.838 s (H100) and 5.803 s (A100); the fit at N = 0 is 4 to 5 % below.
    [("global-llm", 3.838, 5.803), ("global-prefill", 0.1, 0.1511), ("small-models", 0.03, 0.0453)],
)
def test_service_times_are_those_of_the_sources(name, fastest, slowest):
    assert describe_fleet(name).service_time == pytest.approx((fastest, slowest), rel=0.06)


@pytest.mark.parametrize(
    ("frontend", "backend", "rtt_ms"),
    [
        ("East US", "West Europe", 83),
        ("Japan East", "East US", 164),
        ("Brazil South", "Japan East", 271),
        ("Australia East", "Southeast Asia", 94),
        ("UK South", "West Europe", 12),
        ("Japan East", "Japan East", 1),
    ],
)
def test_latencies_are_half_the_measured_round_trip(small, frontend, backend, rtt_ms):
    at = small.frontend_names.index(frontend), small.backend_names.index(backend)
    assert float(small.latency[at]) == pytest.approx(rtt_ms / 2000, rel=1e-12)
    assert bool(small.mask.all())
    np.testing.assert_array_equal(small.cost_latency, small.latency)
    np.testing.assert_array_equal(small.feedback_latency, small.latency)


def test_rates_follow_the_stated_rule(small):
    tokyo, frankfurt = (small.frontend_names.index(name) for name in ("Japan East", "Germany West Central"))
    assert float(small.arrival_rate[tokyo] / small.arrival_rate[frankfurt]) == pytest.approx(37393 / 777, rel=1e-12)
    # 40 H100 servers of 6.853935 and 28 A100 servers of 3.879784 requests/s, times 128, 70 % of it; the fits reach them but for 2e-4
    assert float(small.arrival_rate.sum()) == pytest.approx(0.7 * 128 * (40 * 6.853935 + 28 * 3.879784), rel=2.1e-4)
    assert float(small.load) == pytest.approx(0.7, rel=1e-12)


def test_the_curves_meet_the_measured_throughput():
    network = load_fleet("global-llm")
    h100, a100 = (network.backend_names.index(name) for name in ("East US", "Brazil South"))
    for per_server, on_h100, on_a100 in ((8, 1.773001, 1.198072), (64, 6.853935, 3.879784)):
        rate = network.service.rate(per_server * network.service.count) / network.service.count
        assert float(rate[h100]) == pytest.approx(on_h100, rel=0.01)
        assert float(rate[a100]) == pytest.approx(on_a100, rel=0.05)
    np.testing.assert_allclose(network.service.measured_workload, 64 * network.service.count)


def test_the_teaching_fleet_is_the_network_of_the_readme():
    network = load_fleet("two-by-two")
    np.testing.assert_array_equal(network.arrival_rate, [4.0, 2.0])
    np.testing.assert_array_equal(network.latency, [[0.02, 0.15], [0.15, 0.02]])
    np.testing.assert_array_equal(network.service.rate(jnp.array([20.0, 0.0])), [4.0, 0.0])
    assert network.name == "two-by-two"


@pytest.mark.parametrize("name", REAL)
def test_a_trace_keeps_the_mean_rates(name):
    mean = load_fleet(name)
    for chosen in describe_fleet(name).demands[1:]:
        moving = load_fleet(name, demand=chosen)
        assert isinstance(moving.demand, demand.Trace)
        np.testing.assert_allclose(moving.arrival_rate, mean.arrival_rate, rtol=1e-12)
        total = np.asarray(moving.demand.rates).sum(axis=1) / float(mean.nominal_capacity.sum())
        assert 0.55 < total.min() < total.max() < 0.87  # the sun never sets on all regions at once


def test_a_shift_moves_the_trace(small):
    moving = load_fleet("small-models", demand="trace")
    shape = np.asarray(moving.demand.rates / moving.arrival_rate)
    london, paris, washington = (moving.frontend_names.index(f) for f in ("UK South", "France Central", "East US"))
    np.testing.assert_allclose(shape[0, london], 13 / (19361 / 350), rtol=0.001)  # 13 of 19 361 requests in 350 bins
    np.testing.assert_allclose(shape[:, paris], np.roll(shape[:, london], -2), rtol=1e-12)  # east: 20 s earlier
    np.testing.assert_allclose(shape[:, washington], np.roll(shape[:, london], 78), rtol=1e-12)
    assert float(moving.demand.bin_width[0]) == 10.0


def test_single_precision_loads():
    with jax.enable_x64(False):
        network = load_fleet("small-models")
        assert network.latency.dtype == network.arrival_rate.dtype == jnp.float32
        assert float(network.load) == pytest.approx(0.7, rel=1e-5)


# A fleet of one's own


def test_the_example_loads_and_is_the_documented_one(tmp_path):
    shutil.copytree(DATA / "example", tmp_path / "mine")
    network = load_fleet(tmp_path / "mine" / "fleet.toml")
    assert network.frontend_names == ("paris", "tokyo", "oregon")
    np.testing.assert_array_equal(network.mask, [[True, True], [True, True], [False, True]])
    np.testing.assert_allclose(network.latency, [[0.0055, 0.121], [0.118, 0.005], [0.0, 0.0505]], rtol=1e-12)
    # The fit of the first table reaches 99.8 % of the highest measured throughput.
    np.testing.assert_allclose(network.nominal_capacity, [3 * 7.6, 2 * 8.0], rtol=0.003)
    info = describe_fleet(str(tmp_path / "mine" / "fleet.toml"))
    assert info.demands == ("constant", "trace", "cycle", "surge")
    cycle = load_fleet(tmp_path / "mine" / "fleet.toml", demand="cycle")
    np.testing.assert_allclose(cycle.demand.rate(jnp.array(50400.0))[0], 6.0 * 1.4, rtol=1e-12)
    surge = load_fleet(tmp_path / "mine" / "fleet.toml", demand="surge")
    np.testing.assert_allclose(surge.demand.rate(jnp.array(60.0)), [7.8, 11.7, 5.2], rtol=1e-12)


def test_the_docstring_holds_the_example(tmp_path):
    text = fleets.__doc__.split("```toml\n")[1].split("```")[0]
    shutil.copytree(DATA / "example", tmp_path, dirs_exist_ok=True)
    shipped = load_fleet(tmp_path / "fleet.toml", demand="trace")
    (tmp_path / "fleet.toml").write_text(text)
    same(shipped, load_fleet(tmp_path / "fleet.toml", demand="trace"))


def test_regions_stand_between_names_and_latency_tables(tmp_path):
    (tmp_path / "rtt.csv").write_text("source,region_from,region_to,rtt_ms\nme,eu,us,80\nme,us,asia,150\nme,us,eu,84\n")
    (tmp_path / "f.toml").write_text("""
        [frontends]
        names = ["web", "app"]
        region = ["eu", "eu"]
        weight = [1, 3]
        load = 0.5
        [backends]
        names = ["old", "new", "near"]
        region = ["us", "us", "eu"]
        curve = "c"
        [curves.c]
        kind = "many-server"
        servers = 4
        service_time = 0.5
        [latency]
        table = "rtt.csv"
        inside_ms = 1
        cost = "round trip"
        """)
    network = load_fleet(tmp_path / "f.toml")
    np.testing.assert_allclose(network.latency, [[0.04, 0.04, 0.001]] * 2, rtol=1e-12)
    np.testing.assert_allclose(network.cost_latency, [[0.08, 0.08, 0.002]] * 2, rtol=1e-12)
    np.testing.assert_allclose(network.arrival_rate, [3.0, 9.0], rtol=1e-12)
    assert network.name == "f"


def test_the_other_direction_counts_only_when_stated(tmp_path):
    (tmp_path / "l.csv").write_text("from,to,one_way_s\nb,a,0.25\n")
    fleet = '[frontends]\nnames=["a"]\nrate=[1]\n[backends]\nnames=["b"]\ncurve="c"\n'
    fleet += '[curves.c]\nkind="hyperbolic"\nmax_rate=2\nhalf_load=1\n[latency]\ntable="l.csv"\nsymmetric=true\n'
    (tmp_path / "f.toml").write_text(fleet)
    assert float(load_fleet(tmp_path / "f.toml").latency[0, 0]) == 0.25
    (tmp_path / "f.toml").write_text(fleet.replace("true", "false"))
    with pytest.raises(InputError, match="no latency for a -> b"):
        load_fleet(tmp_path / "f.toml")


def test_a_table_that_falls_is_reported(tmp_path):
    shutil.copytree(DATA / "example", tmp_path, dirs_exist_ok=True)
    with (tmp_path / "large-gpu.csv").open("a") as table:
        table.write("64,7.0\n")
    with pytest.warns(fleets.FleetWarning, match=r"large-gpu\.csv.*falls from workload 64 on, 1 point left out"):
        load_fleet(tmp_path / "fleet.toml")
    assert "falls from workload 64 on" in describe_fleet(tmp_path / "fleet.toml").fits[0]


PEAKED = """
    [frontends]
    names = ["a"]
    weight = [1]
    load = 0.99
    [backends]
    names = ["b"]
    curve = "c"
    [curves.c]
    kind = "measured"
    workload = [1, 2, 4, 8, 16, 32, 64, 128, 256]
    throughput = [0.207, 0.41, 0.79, 1.5, 2.6, 3.82, 4.61, 3.9, 3.2]
    capacity = 4.6
    [latency]
    one_way_s = [[0.1]]
    """


def test_nearly_all_of_a_peaked_table_can_be_asked_for(tmp_path):
    (tmp_path / "f.toml").write_text(PEAKED)
    with pytest.warns(fleets.FleetWarning, match="2 points left out"):
        network = load_fleet(tmp_path / "f.toml")
    assert float(network.arrival_rate[0]) == pytest.approx(0.99 * 4.6, rel=1e-12)
    assert float(network.service.inverse(network.arrival_rate)[0]) < 64


def test_a_capacity_that_no_curve_reaches_is_refused(tmp_path):
    (tmp_path / "f.toml").write_text(PEAKED.replace("4.6\n", "5.2\n"))
    with pytest.raises(InputError, match=r"capacity of backend 0 is 5.2, above 4.99"):
        load_fleet(tmp_path / "f.toml")


# Writing and reading back


@pytest.mark.parametrize("name", [*REAL, "two-by-two"])
@pytest.mark.parametrize("chosen", ["constant", "trace"])
def test_built_in_fleets_survive_writing(name, chosen, tmp_path):
    if chosen in describe_fleet(name).demands:
        network = load_fleet(name, demand=chosen)
        same(network, reloaded(network, tmp_path))


def a_network(curve: service.AbstractService, **changes) -> Network:
    latency = [[0.1, 1 / 3, 2e-5], [0.0, 7.25, 0.30000000000000004]]
    return Network(**({"arrival_rate": [0.1, 1 / 3], "latency": latency, "service": curve} | changes))


CURVES = {
    "hyperbolic": service.Hyperbolic([8.0, 1 / 3, 2.0], [20.0, 1e-3, 1 / 7]),
    "hyperbolic with capacity": service.Hyperbolic([8.0, 3.0, 2.0], [20.0, 1.0, 1.0], capacity=[7.0, 2.5, 1.9]),
    "exponential": service.Exponential([8.0, 1 / 3, 2.0], [20.0, 1e-3, 1 / 7]),
    "power": service.Power([8.0, 1 / 3, 2.0], [20.0, 1e-3, 1 / 7], [0.1, 0.5, 1 / 3]),
    "logarithmic": service.Logarithmic([8.0, 1 / 3, 2.0], [20.0, 1e-3, 1 / 7]),
    "many servers": service.ManyServer([8.0, 1 / 3, 2.0], [20.0, 1e-3, 1 / 7], [1.0, 2.0, 7.3]),
    "tabulated": service.fit_service([1, 2, 4, 8], [1.0, 1.9, 3.3, 4.0]).service.take(np.array([0, 0, 0])),
    "tabulated formula": service.Tabulated([[1.0, 2.0, 0.0], [3.0, 0.0, 1 / 3]], [[1.0, 2.0, 1.0], [0.1, 1.0, 1 / 3]]),
    "replicas": service.Replicas(service.Exponential([8.0] * 3, [20.0, 3.0, 1 / 7]), [1.0, 3.0, 2.5]),
    "different kinds": service.concatenate(
        [
            service.Hyperbolic([3.0], [1.0]),
            service.fit_service([1, 2, 4, 8], [1.0, 1.9, 3.3, 4.0]).service,
            service.ManyServer([2.0], [0.3]),
        ]
    ),
}


@pytest.mark.parametrize("kind", CURVES)
def test_every_curve_survives_writing(kind, tmp_path):
    network = a_network(CURVES[kind], frontend_names=("a", "b"), backend_names=("c", 'quote " and \\ ,', "ä ö"))
    same(network.with_names(network.frontend_names, network.backend_names, "fleet"), reloaded(network, tmp_path))


def test_replicas_of_some_backends_only_keep_every_value(tmp_path):
    inner = [service.Replicas(service.Hyperbolic([3.0], [1.0]), [2.5]), service.Exponential([3.0, 4.0], [1.0, 2.0])]
    network = a_network(service.concatenate(inner))
    again = reloaded(network, tmp_path)
    for workload in (0.0, 0.3, 5.0, 1e3):
        for method in ("rate", "slope", "curvature"):
            np.testing.assert_array_equal(
                *(getattr(each.service, method)(jnp.full(3, workload)) for each in (network, again))
            )
    np.testing.assert_array_equal(network.nominal_capacity, again.nominal_capacity)
    assert again.frontend_names == ("frontend 0", "frontend 1")


DEMANDS = {
    "trace": demand.Trace(0.1, [[1.0, 1 / 3], [0.0, 2.0], [1 / 7, 0.1]]),
    "trace with two widths": demand.Trace([0.1, 1 / 3], [[1.0, 1 / 3], [0.0, 2.0]]),
    "jumps": demand.Jumps([1 / 3, 7.0], [[1.0, 0.0], [1 / 3, 2.0], [0.1, 0.2]]),
    "jumps at different times": demand.Jumps([[0.1, 0.2]], [[1.0, 0.0], [1 / 3, 0.2]]),
    "daily cycle": demand.DailyCycle([0.1, 1 / 3], [0.0, 1.0], [-3.3, 1e4], [7.0, 86400.0]),
}


@pytest.mark.parametrize("kind", DEMANDS)
def test_every_demand_survives_writing(kind, tmp_path):
    network = a_network(CURVES["hyperbolic"], arrival_rate=DEMANDS[kind])
    network = network.with_names(("a", "b"), ("c", "d", "e"), "fleet")
    same(network, reloaded(network, tmp_path))


def test_jumps_that_never_happen_are_written_as_constant_rates(tmp_path):
    network = a_network(CURVES["hyperbolic"], arrival_rate=demand.Jumps([], [[0.1, 1 / 3]]))
    again = reloaded(network, tmp_path)
    assert isinstance(again.demand, demand.Constant)
    np.testing.assert_array_equal(again.arrival_rate, network.arrival_rate)


def test_latencies_masks_and_capacity_survive_writing(tmp_path):
    network = a_network(
        CURVES["exponential"],
        mask=[[True, False, True], [True, True, False]],
        feedback_latency=np.full((2, 3), 1 / 3),
        cost_latency=[[0.2, 0.0, 1.0], [0.7, 3.0, 9.0]],
        capacity=demand.Jumps([5.0], [[1.0, 1.0, 1.0], [0.0, 1 / 3, 1.0]]),
        frontend_names=("a", "b"),
        backend_names=("c", "d", "e"),
        name="fleet",
    )
    same(network, reloaded(network, tmp_path))
    doubled = a_network(CURVES["exponential"], cost_latency=2 * network.latency, feedback_latency=network.latency)
    doubled = doubled.with_names(("a", "b"), ("c", "d", "e"), "fleet")
    same(doubled, reloaded(doubled, tmp_path))


@pytest.mark.parametrize(
    "factor", [demand.Constant([1.0, 0.5, 0.0]), demand.DailyCycle([1.0, 1.0, 0.5], 0.3, period=60.0)]
)
def test_capacity_over_time_survives_writing(factor, tmp_path):
    network = a_network(CURVES["exponential"], capacity=factor).with_names(("a", "b"), ("c", "d", "e"), "fleet")
    same(network, reloaded(network, tmp_path))


def test_single_precision_survives_writing(tmp_path):
    with jax.enable_x64(False):
        network = a_network(service.Hyperbolic([8.0, 0.1, 2.0], [20.0, 0.3, 0.7])).with_names(
            ("a", "b"), ("c", "d", "e"), "fleet"
        )
        assert network.latency.dtype == jnp.float32
        same(network, reloaded(network, tmp_path))


def test_overload_is_written_on_purpose(tmp_path):
    network = a_network(CURVES["hyperbolic"]).with_load(1.5).with_names(("a", "b"), ("c", "d", "e"), "fleet")
    same(network, reloaded(network, tmp_path))


class Peculiar(service.AbstractService):
    """A curve of a user's own making, which nothing here evaluates."""

    most: jax.Array

    def rate(self, workload):
        return workload

    slope = curvature = inverse = rate
    nominal_capacity = initial_slope = supremum = measured_workload = property(lambda self: self.most)


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    network = a_network(CURVES["hyperbolic"])
    cases = [
        (a_network(Peculiar(jnp.ones(3))), "a.toml", "Peculiar"),
        (stack([network, network]), "a.toml", "batch of 2"),
        (network, "a.csv", r"ends in \.toml"),
        (network.with_names(("a", "a"), None), "a.toml", "repeated"),
        (network, "missing/a.toml", "cannot be written"),
    ]
    for one, path, message in cases:
        with pytest.raises(InputError, match=message):
            one.to_toml(tmp_path / path)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_half_way_leaves_nothing_half_written(tmp_path):
    (tmp_path / "a.toml").mkdir()  # the last rename fails: a folder is in the way
    with pytest.raises(InputError, match="cannot be written"):
        a_network(CURVES["hyperbolic"]).to_toml(tmp_path / "a.toml")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_writing_again_replaces(tmp_path):
    first = load_fleet("two-by-two")
    first.to_toml(tmp_path / "f.toml")
    second = first.with_load(0.2)
    same(second, load_fleet(second.to_toml(tmp_path / "f.toml")))
    assert {path.name for path in tmp_path.iterdir()} == {"f.toml", "f.latency.csv"}


def test_sources_are_plain_data():
    source = describe_fleet("global-llm").sources[0]
    assert dataclasses.asdict(source)["url"].startswith("https://learn.microsoft.com/")
