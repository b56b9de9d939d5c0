"""Batches: padding, sizes, tiles, `vmap` and a broken neighbour change nothing."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import oracles
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.native import TOO_LARGE
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.latency import LeastLatency
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.plan import CACHE, LANES, NARROW, Execution, choose_lanes, plan
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.stability.critical import critical_step_size
from dgdlb_jax.stability.defaults import suggest_duration
from dgdlb_jax.stability.linearise import linearise
from helpers import CURVES, DT, MAX_LATENCY, SETTINGS, STEPS, small_network, some_start

FEW = SETTINGS | {"save": SaveAt(every=20)}
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

pytestmark = pytest.mark.usefixtures("quick_compilation")


def network_of_size(number, F, B) -> Network:
    rng = np.random.default_rng(number)
    mask = rng.random((F, B)) < 0.8
    mask[np.arange(F), rng.integers(B, size=F)] = True
    latency = rng.uniform(0, 0.5, (F, B)) * (rng.random((F, B)) < 0.9)
    return Network(rng.uniform(1, 4, F), latency, CURVES["Hyperbolic"](rng, B), mask=mask)


def step_size(number, F):
    return np.random.default_rng(1000 + number).uniform(0.05, 0.2, F)


@pytest.fixture(scope="module")
def mixed():
    """37 networks of up to 3 x 4, their stack and its step sizes; two of the full size among them."""
    rng = np.random.default_rng(11)
    sizes = [
        (3, 4),
        (2, 3),
        *zip(rng.integers(1, 4, 34).tolist(), rng.integers(1, 5, 34).tolist(), strict=True),
        (3, 4),
    ]
    networks = [network_of_size(n, F, B) for n, (F, B) in enumerate(sizes)]
    steps = np.zeros((37, 3))
    for n, (F, _) in enumerate(sizes):
        steps[n, :F] = step_size(n, F)
    return networks, stack(networks), steps


def part(tree, chosen):
    return jax.tree.map(lambda leaf: leaf[chosen], tree)


def assert_same_runs(one, other, **tolerance):
    for field in ("routing", "workload", "arrival_rate", "cost_rate", "in_flight"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), err_msg=field, **(tolerance or ROUNDING))
    for name in ("mean_latency", "network_share", "swing", "mean_workload", "peak_workload", "growth"):
        found, expected = (getattr(run.statistics, name) for run in (one, other))
        np.testing.assert_allclose(found, expected, err_msg=name, **(tolerance or ROUNDING))


@pytest.fixture(scope="module")
def together(mixed):
    _, batch, steps = mixed
    return simulate_batch(batch, DGDLB(steps), **FEW)


@pytest.mark.parametrize("number", [0, 1])
def test_padding_changes_nothing(mixed, together, number):
    """A network alone, at its own size, against itself in the batch; the padding carries nothing."""
    networks, batch, _ = mixed
    F, B = networks[number].frontends, networks[number].backends
    alone = simulate(networks[number], DGDLB(step_size(number, F)), **FEW)
    padded = part(together, number)
    np.testing.assert_allclose(padded.routing[:, :F, :B], alone.routing, **ROUNDING)
    np.testing.assert_allclose(padded.workload[:, :B], alone.workload, **ROUNDING)
    for field in ("cost_rate", "in_flight", "mean_latency"):
        np.testing.assert_allclose(getattr(padded, field), getattr(alone, field), err_msg=field, **ROUNDING)
    for name in ("mean_latency", "network_share", "swing"):
        found, expected = (getattr(run.statistics, name) for run in (padded, alone))
        np.testing.assert_allclose(found, expected, err_msg=name, **ROUNDING)
    assert not np.asarray(together.routing)[~np.broadcast_to(batch.mask[:, None], together.routing.shape)].any()
    unreachable = ~np.broadcast_to(batch.backend_mask[:, None], together.workload.shape)
    assert not np.asarray(together.workload)[unreachable].any()


@pytest.mark.parametrize("size", [1, 5])
def test_the_size_of_the_batch_does_not_matter(mixed, together, size):
    _, batch, steps = mixed
    few = simulate_batch(part(batch, slice(size)), DGDLB(steps[:size]), **FEW)
    assert_same_runs(few, part(together, slice(size)))


def test_the_order_of_the_batch_does_not_matter(mixed, together):
    _, batch, steps = mixed
    order = np.random.default_rng(0).permutation(37)
    shuffled = simulate_batch(part(batch, order), DGDLB(steps[order]), **FEW)
    assert_same_runs(shuffled, part(together, order))


@pytest.mark.parametrize("lanes", [1, 16])
def test_tiles_do_not_matter(mixed, together, lanes):
    """16 lanes at a time leave a last tile that is not full."""
    _, batch, steps = mixed
    how = Execution(lanes=lanes)
    made = plan(batch, execution=how, **FEW)
    assert (made.lanes, made.executor, made.instants) == (lanes, "loop", together.time.shape[1])
    assert made.grid.rows == together.final.flow_line.shape[1]
    np.testing.assert_array_equal(made.grid.steps, together.final.step)
    assert_same_runs(simulate_batch(batch, DGDLB(steps), execution=how, **FEW), together)


def test_how_to_run_may_be_said_the_old_way(mixed, together):
    _, batch, steps = mixed
    with pytest.warns(DeprecationWarning, match=r"write execution=Execution\(lanes=16\)"):
        assert_same_runs(simulate_batch(batch, DGDLB(steps), lanes=16, **FEW), together)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lane'"):
        simulate_batch(batch, DGDLB(steps), lane=16, **FEW)


@pytest.mark.parametrize("policy", [DGDLB(0.1), LeastLatency()], ids=lambda policy: type(policy).__name__)
def test_vmap_is_the_batch(mixed, policy):
    _, batch, _ = mixed
    batch = part(batch, slice(5))
    mapped = jax.vmap(lambda network: simulate(network, policy, throw=False, **FEW))(batch)
    assert_same_runs(mapped, simulate_batch(batch, policy, **FEW))
    np.testing.assert_array_equal(mapped.result, np.zeros(5))


@pytest.mark.parametrize("curve", ["Tabulated", "PerBackend", "Replicas"])
def test_curves_with_further_axes_or_parts_run_in_batches(curve):
    """Two networks side by side, each against the slow reference, default step and buffer checks included."""
    networks = [small_network(np.random.default_rng(n), curve) for n in (1, 2)]
    starts = [some_start(np.random.default_rng(n), networks[0]) for n in (3, 4)]
    initial = tuple(np.stack(parts) for parts in zip(*starts, strict=True))
    runs = simulate_batch(stack(networks), DGDLB(0.1), initial=initial, **FEW)
    for n in (0, 1):
        expected = oracles.simulate(networks[n], DGDLB(0.1), STEPS, DT, starts[n])
        np.testing.assert_allclose(runs.workload[n], expected.workload[::20], **ROUNDING)
        np.testing.assert_allclose(runs.routing[n], expected.routing[::20], **ROUNDING)


@pytest.mark.parametrize("steps", [(50, 200, 130), (90, 90, 90)], ids=["unequal", "equal"])
def test_every_network_has_its_own_step_and_duration(steps):
    """Lanes that end early stand still; all are the slow reference. Those that stand at one step can go on together."""
    network, policy = network_of_size(3, 3, 4), DGDLB(0.1)
    batch, start = stack([network] * 3), some_start(np.random.default_rng(5), network)
    dt, steps, more = DT / np.array([1, 2, 4]), np.array(steps), 60
    settings = {"dt": dt, "max_latency": MAX_LATENCY, "save": SaveAt.statistics()}
    starts = tuple(np.stack([array] * 3) for array in start)
    runs = simulate_batch(batch, policy, duration=steps * dt, initial=starts, **settings)
    np.testing.assert_allclose(runs.final.time, steps * dt, rtol=1e-14)
    references = [oracles.simulate(network, policy, int(steps[n]) + more, dt[n], start) for n in range(3)]
    for n, expected in enumerate(references):
        short = SimpleNamespace(**{name: values[: steps[n] + 1] for name, values in vars(expected).items()})
        summary = oracles.statistics(short, dt[n], 0)
        assert_ends(runs.final, n, expected, steps[n])
        for name in ("duration", "arrivals", "mean_latency", "swing", "mean_workload", "mean_routing"):
            np.testing.assert_allclose(getattr(runs.statistics, name)[n], getattr(summary, name), **ROUNDING)
    if len(set(steps)) > 1:
        with pytest.raises(InputError, match="wires have drained"):
            simulate_batch(batch, policy, duration=more * dt, initial=runs.final, **settings)
        return
    onward = simulate_batch(batch, policy, duration=more * dt, initial=runs.final, **settings)
    for n, expected in enumerate(references):
        assert_ends(onward.final, n, expected, steps[n] + more)


def assert_ends(final, n, expected, step):
    """Network n of a batch ended where the reference was at this step."""
    np.testing.assert_allclose(final.workload[n], expected.workload[step], **ROUNDING)
    np.testing.assert_allclose(final.routing[n], expected.routing[step], **ROUNDING)


def test_a_batch_goes_on_to_the_bit(mixed):
    _, batch, steps = mixed
    batch, policy = part(batch, slice(5)), DGDLB(steps[:5])
    long = simulate_batch(batch, policy, **FEW)
    half = FEW | {"duration": FEW["duration"] / 2}
    first = simulate_batch(batch, policy, **half)
    second = simulate_batch(batch, policy, initial=first.final, **half)
    for one, other in zip(jax.tree.leaves(long.final), jax.tree.leaves(second.final), strict=True):
        np.testing.assert_array_equal(one, other)


def test_one_broken_network_does_not_harm_the_others():
    networks = [small_network(np.random.default_rng(n)) for n in range(5)]
    batch = stack(networks)
    whole = simulate_batch(batch, DGDLB(0.1), **SETTINGS)
    broken = with_rates(batch, batch.demand.mean_rate.at[2, 1].set(jnp.nan))
    run = simulate_batch(broken, DGDLB(0.1), throw=False, **SETTINGS)
    np.testing.assert_array_equal(run.result, [0, 0, Result.not_finite, 0, 0])
    for n in (0, 1, 3, 4):
        np.testing.assert_array_equal(run.workload[n], whole.workload[n])
        np.testing.assert_array_equal(run.routing[n], whole.routing[n])
    with pytest.raises(InputError, match="element 2"):
        simulate_batch(broken, DGDLB(0.1), **SETTINGS)


def with_rates(network, rates):
    """A network with rates that no constructor would accept: swapped in below all checks."""
    leaves, structure = jax.tree.flatten(network)
    place = next(
        n
        for n, leaf in enumerate(leaves)
        if leaf is network.demand.mean_rate or np.array_equal(leaf, network.demand.mean_rate)
    )
    return jax.tree.unflatten(structure, [*leaves[:place], rates, *leaves[place + 1 :]])


def wide(rng, frontends, backends) -> Network:
    """A network with many arcs, latencies of a few steps."""
    rates, latency = rng.uniform(1, 2, frontends), rng.uniform(DT, 4 * DT, (frontends, backends))
    return Network(rates, latency, Hyperbolic(np.full(backends, 4.0 * frontends / backends), np.ones(backends)))


@pytest.mark.parametrize("size", [(64, 64), (2, 300)], ids=["4096 arcs", "300 backends"])
def test_large_networks(rng, size):
    """XLA compiles large arrays in another way."""
    network = wide(rng, *size)
    start = np.full(size, 1 / size[1]), np.full(size[1], 1.0)
    run = simulate(network, DGDLB(0.1), duration=10 * DT, dt=DT, initial=start, max_latency=4 * DT)
    expected = oracles.simulate(network, DGDLB(0.1), 10, DT, start)
    np.testing.assert_allclose(run.workload[-1], expected.workload[-1], rtol=1e-10)
    np.testing.assert_allclose(run.routing[-1], expected.routing[-1], rtol=0, atol=1e-12)


def test_many_networks_under_vmap_and_many_directions(rng):
    """More than 4096 numbers by mapping: values of the batch, and a Jacobian of the gradient's length."""
    networks = stack([wide(rng, 10, 10) for _ in range(42)])

    def final(network):
        settings = {"duration": 4 * DT, "dt": DT, "save": SaveAt.final(), "max_latency": 4 * DT, "throw": False}
        return simulate(network, DGDLB(0.1), **settings).final.workload

    batch = simulate_batch(networks, DGDLB(0.1), duration=4 * DT, dt=DT, save=SaveAt.final(), max_latency=4 * DT)
    np.testing.assert_allclose(jax.jit(jax.vmap(final))(networks), batch.final.workload, **ROUNDING)
    rates = networks[0].arrival_rate
    at = lambda rates: final(Network(rates, networks[0].latency, networks[0].service)).sum()
    slopes = jax.jit(jax.vmap(jax.grad(at)))(jnp.tile(rates, (42, 1)))
    np.testing.assert_allclose(slopes, jnp.tile(jax.grad(at)(rates), (42, 1)), rtol=1e-10)
    assert float(jnp.abs(slopes).min()) > 0


def test_tiles_fit_the_cache_and_one_native_function():
    """The sizes of tiles are powers of two, at least one network, and within their bounds where more than one fits.

    Only a tile too narrow to fill the vector units may take more than the cache.
    """
    for size, rows in ((1, 16), (3, 128), (10, 128), (10, 4096), (32, 128), (32, 1024), (100, 128)):
        network = stack([wide(np.random.default_rng(0), size, size)])
        lanes, arcs = choose_lanes(network, rows, 10**6), size**2
        assert lanes & (lanes - 1) == 0
        assert lanes == 1 or (lanes * arcs < TOO_LARGE and lanes * size <= LANES)
        assert lanes == 1 or rows * lanes * arcs * 8 <= CACHE or (lanes // 2) * size * 8 < NARROW
    assert choose_lanes(network, 128, 1) == 1


def test_one_axis_of_a_parameter_is_the_frontends_or_refused():
    """Three networks of three frontends: what `(3,)` means is said, never guessed; each reading is that of single networks."""
    batch = stack([network_of_size(n, 3, 4) for n in (0, 1, 2)])
    values = jnp.asarray([0.05, 0.1, 0.2])
    with pytest.raises(
        InputError, match=r"DGDLB\.step_size has one axis of 3 entries.*values\[:, None\].*values\[None\]"
    ):
        simulate_batch(batch, DGDLB(values), **FEW)
    for function in (critical_step_size, linearise):
        with pytest.raises(InputError, match="one axis of 3 entries"):
            function(batch, DGDLB(values))
    with pytest.raises(InputError, match="step_size has one axis of 3 entries"):
        suggest_duration(batch, values)
    for n in range(3):
        for said, meant in ((values[None], values), (values[:, None], values[n])):
            runs = simulate_batch(batch, DGDLB(said), **FEW)
            alone = simulate(batch[n], DGDLB(meant), **FEW)
            np.testing.assert_allclose(runs.workload[n], alone.workload, **ROUNDING)


def test_one_axis_is_shared_where_only_the_frontends_fit():
    batch = stack([network_of_size(n, 3, 4) for n in (0, 1, 2)])
    values = jnp.asarray([0.05, 0.1, 0.2])
    two = part(batch, slice(2))
    shared = simulate_batch(two, DGDLB(values), **FEW)
    expected = simulate_batch(two, DGDLB(jnp.stack([values, values])), **FEW)
    np.testing.assert_array_equal(shared.routing, expected.routing)
    with pytest.warns(DeprecationWarning, match=r"DGDLB\.step_size of shape \(batch,\).*values\[:, None\]"):
        each = simulate_batch(two, DGDLB(values[:2]), **FEW)
    np.testing.assert_array_equal(each.routing, simulate_batch(two, DGDLB(values[:2, None]), **FEW).routing)
    for wrong in (jnp.ones(5), jnp.ones((3, 3)), jnp.ones((2, 4))):
        with pytest.raises(InputError, match=r"DGDLB\.step_size has \d entries"):
            simulate_batch(two, DGDLB(wrong), **FEW)
