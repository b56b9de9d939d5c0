"""What does not fit into memory is refused before it is allocated, with the figure and the remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.stability.loop_transfer import side_by_side
from dgdlb_jax.studies.sweep import read_spec
from dgdlb_jax.studies.sweep.batches import default_batch
from dgdlb_jax.studies.sweep.chunks import batch_of
from helpers import DT, small_network


@pytest.fixture
def little():
    """A machine of 8 GB."""
    with device.assumed(memory=8e9):
        yield


def test_delay_rows(little, rng):
    network = small_network(rng)
    dt = float(network.latency.max()) / 1e8
    with pytest.raises(
        InputError,
        match=r"with 100,000,00\d delay rows .* GB of memory, .* has 8 GB: raise dt, lower that latency, or use SaveAt",
    ):
        dgd.simulate(network, dgd.DGDLB(0.05), duration=10 * dt, dt=dt)


def test_saved_instants(little, rng):
    with pytest.raises(InputError, match=r"saves 100,000,001 instants takes about .* GB .* use SaveAt\(every=\.\.\.\)"):
        dgd.simulate(small_network(rng), dgd.DGDLB(0.05), duration=1e8 * DT, dt=DT)


def test_whole_requests(little, rng):
    network, key = small_network(rng), jax.random.key(0)
    with pytest.raises(InputError, match=r"saves 100,000,001 instants takes about .* GB .* use SaveAt\(every=\.\.\.\)"):
        dgd.simulate_requests(network, dgd.Uniform(), key, duration=1e8 * DT, dt=DT, save=dgd.SaveAt(every=1))
    dt = float(network.latency.max()) / 1e8
    with pytest.raises(
        InputError, match=r"with 100,000,00\d delay rows .* has 8 GB: raise dt, or lower that latency\.$"
    ):
        dgd.simulate_requests(network, dgd.Uniform(), key, duration=10 * dt, dt=dt)


def test_a_batch_counts_as_a_whole(little, rng):
    network = small_network(rng)
    many = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3000, *leaf.shape)), network)
    with pytest.raises(InputError, match="A run of 3000 x "):
        dgd.simulate_batch(many, dgd.DGDLB(0.05), duration=1e5 * DT, dt=DT)


def test_large_networks(little):
    """10 000 x 10 000, without an array of that size: shapes are enough to see it."""

    def run(latency):
        network = dgd.Network(
            dgd.Constant(jnp.ones(10_000)), latency, dgd.Hyperbolic(jnp.ones(10_000), jnp.ones(10_000))
        )
        return dgd.simulate(network, dgd.DGDLB(0.1), duration=1.0, dt=0.1, max_latency=1.0).result

    def best(latency):
        network = dgd.Network(
            dgd.Constant(jnp.ones(10_000)), latency, dgd.Hyperbolic(jnp.ones(10_000), jnp.ones(10_000))
        )
        return dgd.solve_optimum(network).gap

    shape = jax.ShapeDtypeStruct((10_000, 10_000), jnp.float64)
    with pytest.raises(InputError, match=r"A run of 1 x 10000 x 10000 .* GB of memory"):
        jax.eval_shape(run, shape)
    with pytest.raises(InputError, match=r"The optimum of so large a network takes about 24 GB"):
        jax.eval_shape(best, shape)


def test_the_gradient_of_a_long_run(little, rng):
    """67 bytes a step here (3 x 4 arcs), as XLA's own figure for it says; checkpoints take their square root."""
    network = small_network(rng)

    def run(step_size, adjoint):
        found = dgd.simulate(
            network, dgd.DGDLB(step_size), duration=2e8 * DT, dt=DT, save=dgd.SaveAt.statistics(), adjoint=adjoint, throw=False
        )  # fmt: skip
        assert found.statistics is not None
        return found.statistics.cost

    step = jax.ShapeDtypeStruct((), jnp.float64)
    with pytest.raises(
        InputError, match=r"gradient of a run of 200,000,000 steps .* 13.4 GB .* adjoint=Checkpoints\(\)"
    ):
        jax.eval_shape(jax.grad(lambda step: run(step, dgd.FullStorage())), step)


def test_marginal_latency_remembers_three_runs_at_once(little, rng):
    """The one asked for, and two that go on from it: 4 GB each."""
    network = small_network(rng)

    def marginal(step_size):
        return dgd.marginal_latency(
            network, dgd.DGDLB(step_size), duration=DT, dt=DT, run_on=1.2e8 * DT, adjoint=dgd.FullStorage(), throw=False
        ).open_loop  # fmt: skip

    with pytest.raises(InputError, match=r"gradient of a run of 60,000,000 steps remembers takes about 12.1 GB"):
        jax.eval_shape(marginal, jax.ShapeDtypeStruct((), jnp.float64))


def test_analyses(little):
    """Refused while they are traced."""

    def limit(latency):
        ones = jnp.ones(2000)
        network = dgd.Network(dgd.Constant(ones), latency, dgd.Hyperbolic(3 * ones, ones))
        return dgd.critical_step_size(network)

    with pytest.raises(InputError, match=r"linearisation of 2000 x 2000 .* takes about 256 GB .* use smaller networks"):
        jax.eval_shape(limit, jax.ShapeDtypeStruct((2000, 2000), jnp.float64))


def test_loops_at_many_frequencies(little):
    """As many at once as 256 MB hold with their derivatives, and none where one is too large."""
    found = [side_by_side(16 * size**3, (size, size), 64) for size in (50, 100, 200)]  # complex, (F, B, B)
    assert found == [64, 8, 1]
    with pytest.raises(InputError, match=r"loop of 1000 x 600 .* takes about 11.5 GB .* use smaller networks"):
        side_by_side(16 * 1000 * 600**2, (1000, 600), 64)


def test_what_fits_runs(little, rng):
    run = dgd.simulate(small_network(rng), dgd.DGDLB(0.05), duration=100 * DT, dt=DT)
    assert np.isfinite(run.final.workload).all()


@pytest.mark.parametrize(
    ("batch", "chunk", "expected"), [(10**9, 64, 64), (10**9, 10**9, None), (8, 8, 8), (64, 8, 8), (None, 8, 8)]
)
def test_no_more_cases_side_by_side_than_there_are(batch, chunk, expected):
    """As many as a device takes by default if nothing else bounds them: on a GPU more than are asked for here."""
    run = {"chunk": chunk} | ({} if batch is None else {"batch": batch})
    spec = read_spec({"axes": {"seed": [1, 2]}, "fixed": {"family": "complete"}, "run": run})
    with device.assumed(platform="gpu"):
        assert batch_of(spec) == (default_batch() if expected is None else expected)


def test_the_limits_of_a_process(tmp_path):
    assert 1e8 < device.host_memory() < 1e15
    (tmp_path / "memory.max").write_text("123456789\n")
    limits = tmp_path / "memory.max", tmp_path / "missing"
    assert device.host_memory(limits) == 123456789
    (tmp_path / "memory.max").write_text("max\n")
    assert device.host_memory(limits) > 1e8


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes")])
def test_what_runs_out_all_the_same_is_one_sentence(monkeypatch, capsys, error):
    from dgdlb_jax.cli import fleets

    def fail(*_):
        raise error

    monkeypatch.setattr("dgdlb_jax.fleets.list_fleets", fail)
    assert fleets is not None
    assert main(["fleets"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
