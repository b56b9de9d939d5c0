"""What a user adds from outside the package: a policy, a curve, a topology, a demand, each in one call, each used everywhere; an
observable, a statistic, and a state variable with a delayed channel."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.model.demand_kinds import DEMANDS
from dgdlb_jax.model.service import CURVES
from dgdlb_jax.model.topologies import FAMILIES
from dgdlb_jax.policies.registry import POLICIES, RECIPES
from dgdlb_jax.simulation.autoscaled import Scaling
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.statistics import Statistics, Summary
from dgdlb_jax.simulation.tile_statistic import RunEnd
from dgdlb_jax.studies.balancers import _RECIPES, BALANCERS
from helpers import central_difference, own_process

pytestmark = pytest.mark.usefixtures("quick_compilation")  # compiles much, computes little

# What a user writes; the command line imports it as a file, the tests run it here.
PLUGIN = '''
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from dgdlb_jax.model.topologies import Common, family


class Doubled(dgd.AbstractFlowPolicy):
    """DGD-LB at twice the step size."""

    step_size: jax.Array

    def __init__(self, step_size):
        self.step_size = 2 * jnp.asarray(step_size)

    def velocity(self, t, routing, observation, state):
        return -self.step_size * (observation.marginal_latency + observation.cost_latency), state


class Halfway(dgd.AbstractService):
    """max_rate * N / (half_load + N), as `Hyperbolic`."""

    max_rate: jax.Array
    half_load: jax.Array

    def __init__(self, max_rate, half_load):
        self.max_rate, self.half_load = jnp.asarray(max_rate), jnp.asarray(half_load)

    def rate(self, workload):
        return self.max_rate * workload / (self.half_load + workload)

    def slope(self, workload):
        return self.max_rate * self.half_load / (self.half_load + workload) ** 2

    def curvature(self, workload):
        return -2 * self.max_rate * self.half_load / (self.half_load + workload) ** 3

    def inverse(self, rate):
        served = rate < self.max_rate
        return jnp.where(served, self.half_load * rate / jnp.where(served, self.max_rate - rate, 1), jnp.inf)

    initial_slope = property(lambda self: self.max_rate / self.half_load)
    supremum = property(lambda self: self.max_rate)
    nominal_capacity = property(lambda self: self.max_rate)
    measured_workload = property(lambda self: jnp.full_like(self.max_rate, jnp.inf))


class Fading(dgd.AbstractDemand):
    """mean * (1 + extra * exp(-t / time)): a peak at the start that fades."""

    mean: jax.Array
    extra: jax.Array
    time: jax.Array

    def __init__(self, mean, extra, time):
        self.mean, self.extra, self.time = map(jnp.asarray, (mean, extra, time))

    def rate(self, t):
        return self.mean * (1 + self.extra * jnp.exp(-t / self.time))

    mean_rate = property(lambda self: self.mean)
    largest_rate = property(lambda self: self.mean * (1 + self.extra))

    def scaled(self, factor):
        return Fading(self.mean * factor, self.extra, self.time)

    def pad(self, frontends, fill=0.0):
        added = (0, frontends - self.mean.shape[-1])
        pad = lambda leaf, value: jnp.pad(leaf, added, constant_values=value)
        return Fading(pad(self.mean, fill), pad(self.extra, 0.0), pad(self.time, 1.0))

    def mean_over(self, start, length):
        safe = jnp.where(length > 0, length, 1)
        faded = jnp.exp(-start / self.time) * -jnp.expm1(-safe / self.time) * self.time / safe
        return jnp.where(length > 0, self.mean * (1 + self.extra * faded), self.rate(start))

    def jumps_within(self, start, length):
        return jnp.zeros_like(self.mean), jnp.zeros_like(self.mean)


def surplus(t, view):
    """How much faster requests arrive at a backend than they are served, requests/s."""
    return view.inflow - view.service_rate


def on_the_network(t, view):
    """Requests that are charged for the network, all together."""
    return (view.flow * view.network.cost_latency).sum()


class Crowding(dgd.AbstractStatistic):
    """exp(sharpness * workload), summed over backends and averaged over time."""

    sharpness: jax.Array
    name: str = eqx.field(static=True, default="crowding")
    dims: tuple = eqx.field(static=True, default=())
    units: str = eqx.field(static=True, default="1")
    description: str = eqx.field(static=True, default="mean of the exponential workload")

    def init(self, network):
        return jnp.zeros((), network.latency.dtype)

    def update(self, state, before, after, step):
        ends = [jnp.exp(self.sharpness * view.workload).sum() for view in (before, after)]
        return state + step * sum(ends) / 2

    def finish(self, state, duration):
        return state / duration


class Autoscaler(dgd.AbstractExtension):
    """Capacity that follows the workload, observed after a delay: z' = rate (1 + gain * N(t - delay) - z)."""

    seconds: jax.Array
    gain: jax.Array
    rate: float = eqx.field(static=True, default=0.5)
    name: str = eqx.field(static=True, default="autoscaler")

    def init(self, network):
        return jnp.ones(network.backends)

    def delay(self, network):
        return jnp.broadcast_to(self.seconds, (network.backends,))

    def signal(self, view, state):
        return view.workload

    def velocity(self, view, state, received):
        return self.rate * (1 + self.gain * received - state)

    def capacity(self, state):
        return state


class Received(dgd.AbstractExtension):
    """How many of its requests have reached a backend since the start, for every arc."""

    name: str = eqx.field(static=True, default="received")

    def init(self, network):
        return jnp.zeros_like(network.latency)

    def delay(self, network):
        return network.latency

    def signal(self, view, state):
        return view.flow

    def velocity(self, view, state, received):
        return received


@family()
def ring(key, common: Common, *, radius: float = 1.0):
    """Frontends and backends on a circle; the latency is proportional to the shorter way round."""
    place = lambda size: jnp.arange(size) / size
    apart = jnp.abs(place(common.frontends)[:, None] - place(common.backends)[None])
    tau = 2 * math.pi * radius * common.latency * jnp.minimum(apart, 1 - apart)
    service = common.service(key, common.backends)
    rate = common.load * service.nominal_capacity.sum() / common.frontends
    return dgd.Network(jnp.full(common.frontends, rate), tau, service)


dgd.register_policy("doubled", Doubled, label="twice as fast", recipe="step size", kind="gradient")
dgd.register_curve("halfway", Halfway, ["max_rate", "half_load"], of_size=lambda size, time: Halfway(size, size * time))
dgd.register_topology("ring", ring)
dgd.register_demand("fading", Fading, ["mean", "extra", "time"])
dgd.register_measure(dgd.TimeMean(on_the_network, units="requests", description="requests on the network"))
'''

FLEET = """
name = "mine"
[frontends]
names = ["west", "east"]
rate = [4.0, 2.0]
[backends]
names = ["one", "two"]
curve = "own"
[curves.own]
kind = "halfway"
max_rate = 8.0
half_load = 20.0
[latency]
one_way_s = [[0.02, 0.15], [0.15, 0.02]]
[demand.peak]
kind = "fading"
mean = [4.0, 2.0]
extra = 0.5
time = 10.0
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """What the plug-in defines, and the files that a user has."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "fleet.toml").write_text(FLEET)
    own: dict = {"__name__": "mine"}
    exec(PLUGIN, own)
    return own | {"folder": folder}


def two_by_two(curve) -> dgd.Network:
    return dgd.Network([4.0, 2.0], [[0.02, 0.15], [0.15, 0.02]], curve([8.0, 8.0], [20.0, 20.0]))


def test_they_are_known_by_name(mine):
    assert (POLICIES["doubled"].label, BALANCERS["doubled"].label) == ("twice as fast", "twice as fast")
    assert (CURVES["halfway"].maker, DEMANDS["fading"].maker) == (mine["Halfway"], mine["Fading"])
    network = FAMILIES["ring"](jax.random.key(0), frontends=2, backends=4, service=dgd.topologies.CURVES["halfway"])
    assert isinstance(network.service, mine["Halfway"])
    np.testing.assert_allclose(network.latency, 2 * np.pi * np.array([[0, 0.25, 0.5, 0.25], [0.5, 0.25, 0, 0.25]]))
    assert FAMILIES["ring"](jax.random.key(0), frontends=2, backends=4, count=3, radius=2.0).latency.shape == (3, 2, 4)


def test_a_policy_and_a_curve_are_simulated_and_differentiated(mine):
    """The same runs as with the built-in ones that they repeat; the gradient as by differences."""

    def mean_latency(curve, policy):
        networks = dgd.stack([two_by_two(curve), two_by_two(curve).with_latency_scale(0.5)])
        run = dgd.simulate_batch(networks, policy, duration=5.0, dt=0.05, max_latency=0.2, save=dgd.SaveAt.statistics())
        return run.statistics.mean_latency.sum()

    of_own = jax.jit(lambda step: mean_latency(mine["Halfway"], mine["Doubled"](step)))
    step = jnp.asarray(0.02)
    assert float(of_own(step)) == pytest.approx(float(mean_latency(dgd.Hyperbolic, dgd.DGDLB(2 * step))), rel=1e-10)
    assert float(jax.grad(of_own)(step)) == pytest.approx(float(central_difference(of_own, step, 1.0)), rel=1e-5)


def test_a_fleet_file_has_the_curve_and_the_demand(mine, tmp_path):
    network = dgd.load_fleet(mine["folder"] / "fleet.toml", demand="peak")
    assert isinstance(network.demand, mine["Fading"])
    np.testing.assert_allclose(network.demand.rate(0.0), [6.0, 3.0])
    again = dgd.load_fleet(network.to_toml(tmp_path / "again.toml"))
    assert jax.tree.structure(again) == jax.tree.structure(network)
    jax.tree.map(np.testing.assert_array_equal, again, network)


def test_a_sweep_has_the_topology_the_curve_and_the_policy(mine, tmp_path):
    del mine
    fixed = {"frontends": 2, "backends": 2, "load": 0.5, "service_time": 0.5, "duration": 5.0, "dt": 0.05}
    spec = {
        "name": "mine",
        "measures": ["optimum_latency", "mean_latency", "network_share", "total_rate", "on_the_network"],
        "axes": {"policy": ["dgd-lb", "doubled"], "step_size_over_default": [0.5, 1.0]},
        "fixed": fixed | {"family": "ring", "curve": "halfway"},
        "run": {"chunk": 8, "batch": 8},
    }
    with dgd.sweep(spec, tmp_path / "mine.zarr", progress=False) as found:
        found.load()
        mean, expected = found["mean_latency"], found["network_share"] * found["mean_latency"] * found["total_rate"]
    assert found["on_the_network"].attrs["units"] == "requests"
    np.testing.assert_allclose(found["on_the_network"], expected, rtol=1e-9)
    # DGD-LB with the whole step size is the rule of our own with half of it.
    known, own = (
        mean.sel(policy="dgd-lb", step_size_over_default=1.0),
        mean.sel(policy="doubled", step_size_over_default=0.5),
    )
    np.testing.assert_allclose(known, own, rtol=1e-10)
    assert np.isfinite(mean).all()


def test_the_command_line_imports_a_file(mine):
    run = "run fleet.toml --policies doubled,uniform --duration 5 --dt 0.05 --no-files --json --quiet"
    command = [sys.executable, "-m", "dgdlb_jax", "--import", "mine.py", *run.split()]
    strict = {
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    }  # of the user's, for other code
    done = subprocess.run(command, cwd=mine["folder"], env=own_process() | strict, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {row["balancer"] for row in json.loads(done.stdout)["balancers"]} == {"uniform", "twice as fast"}


@pytest.mark.parametrize("name", ["missing.py", "no_such_module", "broken.py"])
def test_what_cannot_be_imported_is_one_sentence(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0")
    assert main(["--import", name, "fleets"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"dgdlb: error: --import {name}: ")
    assert message.count("\n") == 1


def test_a_file_does_not_take_the_place_of_a_library(tmp_path):
    (tmp_path / "json.py").write_text("")
    assert main(["--import", str(tmp_path / "json.py"), "fleets"]) == 0
    assert sys.modules["json"] is json


def test_what_lies_beside_an_imported_file_is_found(tmp_path, capsys):
    (tmp_path / "beside_the_file.py").write_text("VALUE = 3\n")
    (tmp_path / "with_a_neighbour.py").write_text("from beside_the_file import VALUE\nassert VALUE == 3\n")
    assert main(["--import", str(tmp_path / "with_a_neighbour.py"), "fleets"]) == 0
    assert "two-by-two" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (lambda: dgd.register_policy("dgd-lb", dgd.DGDLB), "'dgd-lb' is built in"),
        (lambda: dgd.register_policy("a,b", dgd.DGDLB), "without commas"),
        (lambda: dgd.register_curve("power", dgd.Power, ["scale"]), "'power' is built in"),
        (lambda: dgd.register_topology("complete", dgd.topologies.complete), "'complete' is built in"),
        (lambda: dgd.register_demand("jumps", dgd.Jumps, ["times"]), "'jumps' is built in"),
        (lambda: dgd.register_curve("measured", dgd.Power, ["scale"]), "'measured' is built in"),
        (lambda: dgd.register_policy("odd", dgd.DGDLB, recipe="step sise"), "did you mean step size"),
        (lambda: dgd.register_policy("odd", dgd.DGDLB, label="uniform"), "another policy has the label 'uniform'"),
        (lambda: dgd.register_policy("odd", dgd.Power), "no class derived from AbstractPolicy"),
        (lambda: dgd.register_curve("odd", dgd.Power, ["sharpness"]), "Power has no parameter 'sharpness'"),
        (lambda: dgd.register_demand("odd", dgd.Jumps, ["mean"]), "Jumps has no parameter 'mean'"),
        (lambda: dgd.register_measure(dgd.TimeMean(max, name="excess")), "'excess' is built in"),
        (lambda: dgd.register_measure(dgd.TimeMean(max, name="two words")), "called by a word, not 'two words'"),
    ],
)
def test_what_cannot_be_registered_is_one_sentence(register, expected):
    with pytest.raises(dgd.InputError, match=expected):
        register()
    assert "odd" not in POLICIES


def test_every_recipe_has_a_function():
    assert set(RECIPES) == set(_RECIPES)


def test_every_class_of_the_registry_is_public():
    built_in = [entry for entry in POLICIES.values() if isinstance(entry.policy, str)]
    assert {entry.load().__name__ for entry in built_in} <= set(dgd.__all__)
    assert all(isinstance(getattr(dgd, entry.load().__name__), type) for entry in built_in)


SETTINGS = {"duration": 5.0, "dt": 0.05, "max_latency": 0.4}


def three(mine) -> dgd.Network:
    network = two_by_two(mine["Halfway"])
    return dgd.stack([network, network.with_latency_scale(0.5), network.with_latency_scale(2.0)])


def test_observables_and_statistics_are_those_that_they_repeat(mine):
    """What a run keeps and sums up itself is what a plug-in sees, in a batch that ends at different times, behind `after`."""
    queue = dgd.Observable(lambda t, view: view.workload, name="queue", dims="backend", units="requests")
    charged = lambda t, view: view.workload.sum() + (view.flow * view.network.cost_latency).sum()
    extremes = dgd.Maximum(queue.fn, name="highest"), dgd.Minimum(queue.fn, name="lowest")
    own = dgd.TimeMean(queue), dgd.TimeIntegral(charged, name="cost"), *extremes, mine["Crowding"](0.1)
    save = dgd.SaveAt(every=7, fn=queue, after=1.0, statistics=own)
    settings = SETTINGS | {"duration": np.array([5.0, 3.0, 4.2])}
    runs = dgd.simulate_batch(three(mine), dgd.DGDLB(0.02), save=save, **settings)
    found, known = runs.measured, runs.statistics
    assert known is not None
    np.testing.assert_array_equal(runs.observed, runs.workload)
    np.testing.assert_allclose(found["queue"], known.mean_workload, rtol=1e-12)
    np.testing.assert_allclose(found["cost"], known.cost, rtol=1e-12)
    np.testing.assert_array_equal(found["highest"], known.highest_workload)
    np.testing.assert_array_equal(found["lowest"], known.lowest_workload)
    table = runs.to_xarray()
    assert table["queue"].dims == ("batch", "time", "backend")
    assert (table["window_queue"].dims, table["window_queue"].units) == (("batch", "backend"), "requests")
    assert table["window_crowding"].long_name == "mean of the exponential workload"
    # Jensen's inequality, and nearly constant workloads.
    bound = np.exp(0.1 * np.asarray(known.mean_workload)).sum(-1)
    assert np.all(found["crowding"] >= bound)
    np.testing.assert_allclose(found["crowding"], bound, rtol=1e-2)


def test_a_statistic_an_observable_and_their_numbers_are_differentiated(mine):
    def total(values):
        step, sharpness = values
        save = dgd.SaveAt(every=20, fields=(), fn=mine["surplus"], statistics=(mine["Crowding"](sharpness),))
        runs = dgd.simulate_batch(three(mine), dgd.DGDLB(step), save=save, **SETTINGS)
        return runs.measured["crowding"].sum() + (runs.observed**2).sum()

    total, at = jax.jit(total), jnp.array([0.02, 0.1])
    gradient = jax.grad(total)(at)
    for direction in jnp.eye(2):
        expected = central_difference(lambda size, along=direction: total(at + size * along), jnp.asarray(0.0), 1.0)
        assert float(gradient @ direction) == pytest.approx(float(expected), rel=1e-5)


def test_an_extension_is_simulated_differentiated_and_resumed(mine):
    save = dgd.SaveAt(every=20, fn=lambda t, view: view.extensions["autoscaler"])

    def run(values, duration=5.0, initial=None):
        own = (mine["Autoscaler"](values[0], values[1]), mine["Received"]())
        settings = SETTINGS | {"duration": duration}
        return dgd.simulate_batch(three(mine), dgd.DGDLB(0.02), initial=initial, save=save, extensions=own, **settings)

    at = jnp.array([0.333, 0.03])
    whole, first = run(at), run(at, 2.5)
    rest = run(at, 2.5, first.final)
    jax.tree.map(np.testing.assert_array_equal, whole.final, rest.final)
    np.testing.assert_array_equal(whole.observed[:, -1], whole.final.extensions[0].state)
    # Where the second extension adds up flow that was sent a latency ago, what is missing of all that was sent is on the wires.
    assert whole.in_flight is not None
    sent = 5.0 * np.asarray(whole.arrival_rate)[:, 0].sum(-1)
    came = np.asarray(whole.final.extensions[1].state).sum((1, 2))
    before = np.asarray(whole.in_flight)[:, 0]
    np.testing.assert_allclose(sent - came, np.asarray(whole.in_flight)[:, -1] - before, atol=1e-9)
    total = jax.jit(lambda values: run(values).final.workload.sum())
    gradient = jax.grad(total)(at)
    for direction in jnp.eye(2):
        expected = central_difference(lambda size, along=direction: total(at + size * along), jnp.asarray(0.0), 1.0)
        assert float(gradient @ direction) == pytest.approx(float(expected), rel=1e-5)


def test_a_plug_in_that_does_not_fit_is_one_sentence(mine):
    network, policy = two_by_two(dgd.Hyperbolic), dgd.DGDLB(0.02)
    mean = dgd.TimeMean(mine["surplus"])
    scaler = mine["Autoscaler"](0.1, 0.1)
    start = dgd.simulate(network, policy, duration=1.0, dt=0.05).final
    for settings, expected in (
        ({"save": dgd.SaveAt.statistics(mean, mean)}, "Two statistics are called 'surplus'"),
        ({"extensions": (mine["Autoscaler"](-0.1, 0.1),)}, "give finite delays that are not negative"),
        ({"extensions": (scaler,), "initial": start}, "give the same extensions"),
    ):
        with pytest.raises(dgd.InputError, match=expected):
            dgd.simulate(network, policy, duration=1.0, dt=0.05, **settings)
    with pytest.raises(dgd.InputError, match="saves no instants"):
        dgd.SaveAt(None, fn=mine["surplus"])


def test_every_field_of_the_record_is_the_result_of_one_built_in_statistic():
    """Besides the length of the window, and the peak of the whole run, which the engine keeps."""
    networks = dgd.stack([two_by_two(dgd.Hyperbolic)] * 3).anonymous()
    field, first, dt = Field(networks, dgd.DGDLB(0.1)), jnp.zeros(3, jnp.int32), jnp.full(3, 0.1)
    workload = jnp.ones(2 * 3)
    summary = Summary(field.shape, first, first + 10, reference=jnp.ones((3, 2)), scales=True)
    scaling = Scaling(ready=workload, commands=workload[None], memory=None, used=None, continuous=True)
    state = summary.begin(field, jnp.int32(0), workload, scaling)
    end = RunEnd(field, (first + 5, first + 5), dt)
    results = [name for part, own in zip(summary.parts, state, strict=True) for name in part.finish(own, end)]
    assert sorted([*results, "duration", "peak_workload"]) == sorted(
        each.name for each in dataclasses.fields(Statistics)
    )
    np.testing.assert_allclose(summary.finish(field, dt, state, workload).duration, 1.0)
