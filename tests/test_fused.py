"""What runs on accelerators only: the fused kernel (interpreted where there is no GPU), the projection without a loop, tiles by memory."""

import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model.demand import DailyCycle, Jumps
from dgdlb_jax.model.events import Drains
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.simplex import project_simplex
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation import engine, fused, plan
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import FIELDS, SaveAt
from helpers import (
    CURVES,
    POLICIES,
    SETTINGS,
    interior_equilibrium,
    single_precision,
    small_network,
    some_of,
    some_start,
)

STATISTICS = SETTINGS | {"save": SaveAt.statistics(after=1.0)}
FUSED, LOOP = plan.Execution(fused=True), plan.Execution(fused=False)


@pytest.fixture
def kernels():
    """Kernels without a GPU: Pallas interprets them on CPU."""
    with device.assumed(interprets=True):
        yield


@pytest.fixture
def gpu():
    """A GPU that things can be compiled for, but not run on."""
    with device.assumed(platform="gpu"):
        yield


def pair(rng, curve="Hyperbolic", **changes):
    """Two networks as a batch, and a start of each."""
    networks = [small_network(rng, curve, **changes) for _ in range(2)]
    starts = [some_start(rng, network) for network in networks]
    together = lambda *leaves: jnp.stack(list(map(jnp.asarray, leaves)))
    return networks[0], jax.tree.map(together, *networks), jax.tree.map(together, *starts)


# Announced since jax 0.11; the package says nothing of it either.
pytestmark = pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")


def for_both(policy):
    return jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]) if jnp.ndim(leaf) else leaf, policy)


def assert_same(batch, policy, start, rounding=1e-12):
    """The kernel's statistics and final state, delay lines included, are the loop's; both are a long chain of the same operations."""
    loop = simulate_batch(batch, policy, initial=start, execution=LOOP, **STATISTICS)
    kernel = simulate_batch(batch, policy, initial=start, execution=FUSED, **STATISTICS)
    for (path, here), there in zip(
        jax.tree_util.tree_leaves_with_path((loop.statistics, loop.final, loop.time)),
        jax.tree.leaves((kernel.statistics, kernel.final, kernel.time)),
        strict=True,
    ):
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(there, here, rtol=rounding, atol=10 * rounding, err_msg=name)
    assert np.ptp(np.asarray(loop.statistics.highest_workload)) > 0.1


@pytest.mark.parametrize("policy", some_of(POLICIES, "PeakEWMA"))
def test_every_policy_in_a_kernel_is_the_loop(rng, kernels, policy):
    network, batch, start = pair(rng)
    assert_same(batch, for_both(POLICIES[policy](network)), start)


@pytest.mark.parametrize("curve", some_of(CURVES, "Tabulated"))
def test_every_curve_in_a_kernel_is_the_loop(rng, kernels, curve):
    network, batch, start = pair(rng, curve)
    assert_same(batch, for_both(POLICIES["DGDLB"](network)), start)


def test_a_daily_cycle_in_single_precision(rng, kernels):
    with single_precision():
        demand = DailyCycle([4.0, 6.0, 5.0], [0.4, 1.0, 0.2], [0.0, 3.0, 1.0], 10.0)
        network, batch, start = pair(rng, arrival_rate=demand)
        start = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), start)
        assert_same(batch, for_both(POLICIES["DGDLB"](network)), start, rounding=1e-4)


def test_goes_on_to_the_bit_where_another_run_ended(rng, kernels):
    network, batch, start = pair(rng)
    policy, half = for_both(POLICIES["DGDLB"](network)), STATISTICS | {"duration": 2.0, "save": SaveAt.final()}
    whole = simulate_batch(batch, policy, initial=start, execution=FUSED, **STATISTICS)
    first = simulate_batch(batch, policy, initial=start, execution=FUSED, **half)
    second = simulate_batch(batch, policy, initial=first.final, execution=FUSED, **half)
    np.testing.assert_array_equal(second.final.workload, whole.final.workload)
    np.testing.assert_array_equal(second.final.flow_line, whole.final.flow_line)


@pytest.mark.parametrize(
    "every", [7, pytest.param(40, marks=pytest.mark.full), pytest.param(1000, marks=pytest.mark.full)]
)
def test_saved_instants_are_those_of_the_loop(rng, kernels, every):
    """The number of steps is no multiple of 7, one of 40, and below 1000."""
    network, batch, start = pair(rng)
    policy, settings = for_both(POLICIES["DGDLB"](network)), SETTINGS | {"save": SaveAt(every=every)}
    loop, kernel = (simulate_batch(batch, policy, initial=start, execution=how, **settings) for how in (LOOP, FUSED))
    assert loop.time.shape == kernel.time.shape
    for name in ("time", "workload", "routing", "mean_latency", "in_flight"):
        np.testing.assert_allclose(getattr(kernel, name), getattr(loop, name), rtol=1e-12, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("every", [pytest.param(None, marks=pytest.mark.full), 9])
def test_networks_that_end_at_different_times_with_steps_as_data(rng, kernels, every):
    """Room for more instants than there are: it repeats the last. Fewer steps than an interval, a multiple of it, and in between.

    With 3 x 3 networks in a block for 4 x 4: what is not there must not count as sent.
    """
    batch, dt = stack([interior_equilibrium(rng)[0] for _ in range(3)]), np.array([0.02, 0.03, 0.025])
    settings = {"dt": dt, "duration": dt * [5, 27, 40], "max_latency": SETTINGS["max_latency"], "throw": False}
    save = SaveAt(every=every, fields=FIELDS if every else ())
    run = lambda how, **more: simulate_batch(batch, DGDLB(0.1), save=save, execution=how, **settings, **more)
    for more in ({"frames": 8}, {"frames": 6}) if every else ({"frames": 2}, {}):
        loop, kernel = run(LOOP, **more), run(FUSED, **more)
        for name in ("time", *save.fields):
            here, there = getattr(kernel, name), getattr(loop, name)
            np.testing.assert_allclose(here, there, rtol=1e-12, atol=1e-11, err_msg=name)
        np.testing.assert_allclose(kernel.final.workload, loop.final.workload, rtol=1e-12)
        np.testing.assert_allclose(kernel.statistics.mean_latency, loop.statistics.mean_latency, rtol=1e-12)
        np.testing.assert_array_equal(kernel.final.row, kernel.final.step)


def executor_of(monkeypatch, run) -> str:
    """What a run was carried out by."""
    seen, kernel = [], fused.run_fused

    def spied(*arguments):
        done = kernel(*arguments)
        seen.append("kernel")  # not refused
        return done

    monkeypatch.setattr(fused, "run_fused", spied)
    jax.clear_caches()
    run()
    monkeypatch.undo()
    return "kernel" if seen else "loop"


def test_a_kernel_does_what_it_can_by_itself_and_a_loop_the_rest(rng, kernels, monkeypatch):
    network, batch, start = pair(rng)
    rule = for_both(POLICIES["DGDLB"](network))
    run = lambda batch=batch, **more: simulate_batch(batch, rule, **({"initial": start} | STATISTICS | more))
    executor = lambda run: executor_of(monkeypatch, run)
    assert executor(lambda: run(execution=LOOP)) == "loop"
    assert executor(lambda: run(frames=12, save=SaveAt(every=20))) == "kernel"
    slope = jax.grad(lambda rate: run(_with(batch, rate * batch.latency)).statistics.cost.sum())
    assert executor(lambda: slope(1.0)) == "loop"
    assert (
        executor(lambda: run(pair(rng, arrival_rate=Jumps([[1.0, 2.0, 3.0]] * 2, [[4.0, 6.0, 5.0]] * 3))[1])) == "loop"
    )
    assert executor(lambda: run(events=[Drains(at=1.0, backend=0)])) == "loop"
    assert executor(lambda: jax.jit(lambda rate: run(_with(batch, rate * batch.latency)).final.workload)(1.0)) == "loop"
    assert str(plan.plan(batch, duration=1.0, dt=0.1)).count("side by side in a kernel") == 1


def test_whatever_hinders_a_kernel_the_loop_runs(rng, kernels, monkeypatch):
    """By itself once; asked for a kernel it is an error."""
    network, batch, start = pair(rng)
    rule, tried = for_both(POLICIES["DGDLB"](network)), []

    def broken(*_):
        tried.append(1)
        raise ValueError("no layout")

    monkeypatch.setattr(fused, "run_fused", broken)
    settings = STATISTICS | {"duration": 1.3, "initial": start}
    runs = [simulate_batch(batch, rule, **settings).final.workload for _ in range(2)]
    assert len(tried) == 1
    np.testing.assert_array_equal(*runs)
    with pytest.raises(ValueError, match="no layout"):
        simulate_batch(batch, rule, execution=FUSED, **settings)


def lowered_for_cuda(batch, rule) -> str:
    run = jax.jit(
        lambda latency: simulate_batch(_with(batch, latency), rule, execution=FUSED, **STATISTICS).final.workload
    )
    return run.trace(batch.latency).lower(lowering_platforms=("cuda",)).as_text()


def test_a_rule_that_looks_through_a_window_part_by_part_has_no_kernel(rng, gpu):
    network, batch, _ = pair(rng)
    with pytest.raises(NotImplementedError, match="slice"):
        lowered_for_cuda(batch, for_both(POLICIES["LatencyObservationScorer"](network)))


WITH_KERNELS = POLICIES.keys() - {"LatencyObservationScorer"}


@pytest.mark.parametrize("policy", some_of(sorted(WITH_KERNELS), "DGDLB", "Softmin", "LeastLatency"))
def test_kernels_are_compiled_for_cuda(rng, gpu, policy):
    network, batch, _ = pair(rng)
    text = lowered_for_cuda(batch, for_both(POLICIES[policy](network)))
    assert text.count("xla.gpu.triton") == 1
    assert "stablehlo.while" not in text[text.index("xla.gpu.triton") :], "nothing else loops after the kernel"


@pytest.mark.parametrize("curve", some_of(CURVES, "Tabulated"))
def test_kernels_of_every_curve_are_compiled_for_cuda(rng, gpu, curve):
    assert lowered_for_cuda(pair(rng, curve)[1], DGDLB(0.1)).count("xla.gpu.triton") == 1


def _with(network: Network, latency) -> Network:
    return eqx.tree_at(lambda n: n.latency, network, latency)


def test_what_a_kernel_cannot_do_is_said(rng, kernels):
    network, batch, start = pair(rng)
    rule = for_both(POLICIES["DGDLB"](network))
    run = lambda batch=batch, **more: simulate_batch(batch, rule, initial=start, execution=FUSED, **(STATISTICS | more))
    extra = np.zeros((2, 2, *batch.latency.shape[1:]))
    with pytest.raises(InputError, match=r"no place for extra_flow: leave it out"):
        run(extra_flow=extra)
    with pytest.raises(InputError, match="no derivatives: leave it out"):
        jax.grad(lambda rate: run(_with(batch, rate * batch.latency)).statistics.cost.sum())(1.0)
    # As many rates as backends, and a number that a block has no room for without filling up.
    jumps = Jumps([[1.0, 2.0, 3.0]] * 2, [[4.0, 6.0, 5.0]] * 3)
    square = Network(jumps, np.full((3, 3), 0.1), Hyperbolic(np.full(3, 9.0), np.full(3, 5.0)))
    with pytest.raises(InputError, match=r"no place for an array of shape .*Leave fused=True out"):
        simulate_batch(stack([square, square]), DGDLB(0.1), execution=FUSED, **STATISTICS)
    large = Network(np.ones(33), np.full((33, 33), 0.1), Hyperbolic(np.full(33, 9.0), np.full(33, 5.0)))
    with pytest.raises(InputError, match=r"33 x 33 is too large .* leave fused=True out"):
        simulate_batch(stack([large]), DGDLB(0.1), execution=FUSED, **STATISTICS)
    with device.assumed(), pytest.raises(InputError, match=r"needs a CUDA device, this is \w+: leave it out"):
        run()


def test_a_jax_without_triton_is_said(rng, kernels, monkeypatch):
    network, batch, start = pair(rng)
    monkeypatch.delattr("dgdlb_jax.simulation.fused")
    monkeypatch.setitem(sys.modules, "dgdlb_jax.simulation.fused", None)
    with pytest.raises(InputError, match=r"needs Pallas with its Triton backend, which jax .* lacks .*: leave it out"):
        simulate_batch(batch, POLICIES["Uniform"](network), initial=start, execution=FUSED, **STATISTICS)


def test_an_operation_that_kernels_lack_is_named(rng, gpu):
    class Sorting(DGDLB):
        def velocity(self, t, routing, observation, state):
            return -self.step_size * jnp.sort(observation.marginal_latency), state

    _, batch, _ = pair(rng)
    run = jax.jit(lambda latency: simulate_batch(_with(batch, latency), Sorting(0.1), execution=FUSED, **STATISTICS))
    with (
        pytest.raises(InputError, match=r"No fused kernel can be made of Sorting .*: sort\): leave fused=True out"),
        fused.compiling(Sorting(0.1)),
    ):
        run.trace(batch.latency).lower(lowering_platforms=("cuda",))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_projection_without_a_loop(rng, gpu, dtype):
    values = (rng.normal(size=(9, 4000)) * np.exp(4 * rng.normal(size=4000))).astype(dtype)
    values[:, :100] = np.round(values[:, :100])  # ties
    mask = rng.random(values.shape) < 0.6
    mask[:, :5] = False
    found = np.asarray(project_simplex(values, mask))
    expected = _sorted_projection(values.astype(float), mask)
    scale = np.maximum(1, np.abs(np.where(mask, values, 0)).max(0))
    # Entries are rounded relative to the largest before anything else; the sum has as many roundings as entries.
    assert (np.abs(found - expected).max(0) <= 10 * np.finfo(dtype).eps * scale).all()
    np.testing.assert_allclose(found.sum(0), mask.any(0), atol=10 * np.finfo(dtype).eps)
    assert (found[~mask] == 0).all()
    assert (found >= 0).all()


def _sorted_projection(values, mask):
    ranked = -np.sort(-np.where(mask, values, -1e300), axis=0)
    excess = (np.cumsum(ranked, axis=0) - 1) / np.arange(1, len(values) + 1)[:, None]
    last = np.maximum((ranked > excess).sum(0) - 1, 0)
    return np.where(mask, np.maximum(values - np.take_along_axis(excess, last[None], 0), 0), 0)


def test_the_loop_on_an_accelerator_is_the_loop(rng):
    network, batch, start = pair(rng)
    policy = for_both(POLICIES["DGDLB"](network))
    with device.assumed(platform="gpu"):
        there = simulate_batch(batch, policy, initial=start, execution=LOOP, **STATISTICS)
    here = simulate_batch(batch, policy, initial=start, **STATISTICS)
    np.testing.assert_allclose(there.final.workload, here.final.workload, rtol=1e-11)


def test_tiles_fit_the_memory_of_the_device():
    network = jax.vmap(lambda rate: Network(rate, 0.1 * jnp.ones((10, 10)), Hyperbolic(jnp.ones(10), jnp.ones(10))))(
        jnp.ones((1, 10))
    )
    line = 1000 * 100 * network.latency.dtype.itemsize
    with device.assumed(platform="gpu", memory=80e9):
        assert plan.choose_lanes(network, 1000, 10**9) == int(plan.SHARE * 80e9 / line)
        assert plan.choose_lanes(network, 1000, 7) == 7
    with device.assumed(platform="gpu", memory=float("inf")):
        assert plan.choose_lanes(network, 1000, 10**6) == 10**6


def test_a_delay_line_that_cannot_be_counted_is_refused():
    network = Network(np.ones(50), np.full((50, 50), 1e4), Hyperbolic(np.full(50, 2.0), np.ones(50)))
    with pytest.raises(
        InputError, match=r"1000002 rows .* of 50 x 50 arcs, more than the 2147483647 numbers .* raise dt"
    ):
        engine.simulate(network, DGDLB(1e-9), duration=1.0, dt=0.01)


def test_a_default_device_is_where_arrays_live():
    with jax.default_device(jax.devices("cpu")[0]):
        assert device.on_cpu()
    with jax.default_device("gpu"):
        assert not device.on_cpu()


def test_beside_an_accelerator_the_host_computes(gpu):
    """What it is given is moved there, what it finds is moved back; scalars and words stay what they are."""
    seen = []

    def function(x, factor, word):
        seen.append((jax.default_device.value, next(iter(x.devices()))))
        return factor * x, word

    found, word = device.on_host(function, jnp.arange(3.0), 4, "far")
    cpu = jax.devices("cpu")[0]
    assert seen == [(cpu, cpu)]
    assert jax.default_device.value is None
    np.testing.assert_array_equal(found, [0, 4, 8])
    assert (word, found.committed) == ("far", False)
    assert jax.jit(lambda x: device.on_host(lambda y: 2 * y, x))(3) == 6  # nothing moves under tracing


def test_a_network_with_values_within_jit(rng):
    """Checks look at values that are there, though everything computed within jit is traced."""
    _, batch, start = pair(rng)
    run = lambda factor: simulate_batch(batch, DGDLB(factor), initial=start, **STATISTICS).final.workload
    np.testing.assert_allclose(jax.jit(run)(0.1), run(0.1), rtol=1e-12)
