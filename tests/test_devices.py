"""A batch spread over two devices, by us or by the user, is the batch on one: two virtual CPU devices in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

from helpers import own_process

SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from helpers import DT, small_network
from dgdlb_jax.model.network import stack
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.plan import Execution
from dgdlb_jax.simulation.trajectory import SaveAt

assert jax.local_device_count() == 2
batch = stack([small_network(np.random.default_rng(n)) for n in range(5)])  # one device gets a spare
policy = DGDLB(0.1 * (1 + np.arange(15.0).reshape(5, 3) / 10))
settings = dict(duration=2.0, dt=DT, max_latency=0.6, save=SaveAt(every=10))
runs = [simulate_batch(batch, policy, execution=Execution(devices=devices), **settings) for devices in (None, 1)]
assert len(jax.tree.leaves(runs[0].final)[1].sharding.device_set) == 2, "the batch should lie on both devices"
for one, other in zip(jax.tree.leaves(runs[0]), jax.tree.leaves(runs[1]), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)
again = simulate_batch(batch, policy, initial=runs[0].final, **settings)
assert np.isfinite(again.workload).all()

# Spread by the user: values and gradient, outside and inside jit.
batch, policy = jax.tree.map(lambda leaf: leaf[:4], (batch, policy))
settings = dict(duration=1.0, dt=DT, max_latency=0.6, save=SaveAt.statistics())
value = lambda scale, batch: simulate_batch(batch.with_latency_scale(scale), policy, **settings).statistics.mean_latency.sum()
slope = jax.value_and_grad(value)
expected = slope(0.9, batch)
for kind in (AxisType.Auto, AxisType.Explicit):
    mesh = jax.make_mesh((2,), ("networks",), axis_types=(kind,))
    lying = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("networks")))
    np.testing.assert_allclose(jax.jit(slope)(0.9, lying), expected, rtol=1e-12)
    np.testing.assert_allclose(value(0.9, lying), expected[0], rtol=1e-12)
with jax.set_mesh(mesh):
    np.testing.assert_allclose(slope(0.9, lying), expected, rtol=1e-12)
print("agree")
"""


def test_two_devices_agree_with_one():
    environment = own_process()
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("agree")
