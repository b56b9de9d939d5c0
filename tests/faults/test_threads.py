"""Threads, processes and loops of other people: the same answers as alone."""

import asyncio
import concurrent.futures
import multiprocessing
import os

import equinox as eqx
import jax
import numpy as np
import pytest

import dgdlb_jax as dgd
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
