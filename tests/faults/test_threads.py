"""Threads, processes and loops of other people: the same answers as alone."""

import asyncio
import concurrent.futures
import multiprocessing
import os

import equinox as eqx
import jax
import numpy as np
import optax
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.numerics.results import InputError
from helpers import DT, small_network

STEPS = 200


def run(network, step_size=0.05):
    return dgd.simulate(network, dgd.DGDLB(step_size), duration=STEPS * DT, dt=DT, save=dgd.SaveAt.final()).final


def in_a_process(seed: int) -> np.ndarray:
    jax.config.update("jax_enable_x64", True)
    return np.asarray(run(small_network(np.random.default_rng(seed))).workload)


def test_many_threads_simulate_at_once():
    networks = [small_network(np.random.default_rng(seed)) for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [final.workload for final in pool.map(run, networks)]
    for network, workload in zip(networks, found, strict=True):
        np.testing.assert_array_equal(workload, run(network).workload)


def test_analyses_within_somebody_elses_jit(rng):
    """What a user's own compiled function gives is what the functions give alone."""
    network = small_network(rng)

    def everything(network):
        optimum = dgd.solve_optimum(network, throw=False)
        return optimum.mean_latency, dgd.default_step_size(network, optimum)

    for alone, inside in zip(everything(network), eqx.filter_jit(everything)(network), strict=True):
        np.testing.assert_allclose(inside, alone, rtol=1e-9)


@pytest.mark.full
def test_slower_analyses_within_somebody_elses_jit(rng):
    network = small_network(rng)

    def everything(network):
        linear, optimum = dgd.linearise(network, dgd.DGDLB(0.1)), dgd.solve_optimum(network, throw=False)
        return (
            dgd.critical_step_size(network),
            dgd.shadow_prices(network).latency,
            linear.response,
            dgd.drain_time(network, 0.1, optimum),
        )

    for alone, inside in zip(everything(network), eqx.filter_jit(everything)(network), strict=True):
        np.testing.assert_allclose(inside, alone, rtol=1e-9)


def test_a_run_of_a_known_network_within_somebody_elses_jit(rng):
    """The size of its delay buffer is known, so `max_latency` is not asked for."""
    network = small_network(rng)
    np.testing.assert_allclose(
        jax.jit(lambda step: run(network, step).workload)(0.05), run(network).workload, rtol=1e-12
    )


def test_what_has_to_look_at_values_says_so_within_a_jit(rng):
    network = small_network(rng)
    calls = {
        "characteristic_roots": lambda network: dgd.characteristic_roots(network),
        "count_unstable_roots": lambda network: dgd.count_unstable_roots(network, dgd.DGDLB(0.1)),
        "best_step_size": lambda network: dgd.best_step_size(network),
        "tune": lambda network: dgd.tune(network, dgd.DGDLB(0.1), optax.adam(0.1), duration=1.0, dt=0.1),
        "compare": lambda network: dgd.compare(network),
        "fit_service": lambda network: dgd.fit_service(network.arrival_rate, network.arrival_rate),
        "marginal_latency without run_on": lambda network: dgd.marginal_latency(
            network, dgd.DGDLB(0.1), duration=1.0, dt=0.1, max_latency=1.0
        ),
    }
    for name, call in calls.items():
        with pytest.raises(InputError, match=f"{name} needs values: call it outside jit, vmap and grad"):
            eqx.filter_jit(call)(network)


def test_within_a_running_event_loop(rng):
    """As in a notebook, whose cells run inside a loop."""
    network = small_network(rng)

    async def cell():
        return run(network).workload

    np.testing.assert_array_equal(asyncio.run(cell()), run(network).workload)


@pytest.mark.full
def test_a_spawned_process_after_jax_was_used():
    expected = in_a_process(3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        np.testing.assert_allclose(pool.apply_async(in_a_process, (3,)).get(timeout=120), expected, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_fork_after_jax_was_used_is_detected():
    """By JAX itself, which the README leans on."""
    run(small_network(np.random.default_rng(0)))
    with pytest.warns(RuntimeWarning, match="os.fork"):
        child = os.fork() or os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
