"""The derivatives of a run: reverse mode against forward mode, differences, and plain autodiff of the same loop."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model.demand import DailyCycle
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.delay.checkpoint import schedule
from dgdlb_jax.numerics.delay.memory import Autodiff, Checkpoints, FullStorage, Memory
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.simplex import hold_on_simplex, project_simplex
from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.policies.base import AbstractFlowPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.greedy import LeastWorkload
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.plan import Execution
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import DT, SETTINGS, central_difference, own_process, small_network

F, B = 3, 4
RUN = SETTINGS | {"duration": 60 * DT, "throw": False}  # twice the buffer of 32 rows

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Momentum(AbstractFlowPolicy):
    """A rule that looks at all there is, and remembers: the smoothed signal, and how often it was asked."""

    strength: jax.Array
    patience: jax.Array

    def init(self, observation):
        return observation.marginal_latency, jnp.zeros(observation.arrival_rate.shape, jnp.int32)

    def velocity(self, t, routing, observation, state):
        smooth, count = state
        share = observation.time_step / self.patience
        smooth = smooth + share * (observation.marginal_latency - smooth)
        pull = smooth + observation.cost_latency + 0.1 * routing + 0.02 * observation.outstanding
        return -self.strength * jnp.cos(0.1 * t) * pull, (smooth, count + 1)


POLICIES = {
    "DGDLB": lambda: DGDLB(jnp.array([0.1, 0.2, 0.3])),
    "Momentum": lambda: Momentum(jnp.array([0.1, 0.2, 0.3]), jnp.asarray(0.3)),
}


def setting(rng, curve="Hyperbolic", policy="DGDLB", **changes):
    """(network, policy, start) with everything in it that can be differentiated by; routing away from the edges of the simplex."""
    network = small_network(rng, curve, **changes)
    weight = np.where(network.mask, rng.uniform(1, 2, (F, B)), 0)
    start = jnp.asarray(weight / weight.sum(1, keepdims=True)), jnp.asarray(rng.uniform(2, 6, B))
    return network, POLICIES[policy](), start


def moved(rng, point):
    """A direction for every number of a pytree, its size that of the number: no latency or rate changes its sign."""
    real, rest = eqx.partition(point, eqx.is_inexact_array)
    direction = jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, leaf.shape)) * jnp.abs(leaf), real)
    return real, rest, direction


def weighted(rng, tree):
    """A function that sums all numbers of such a pytree with random weights of the size of one over them."""
    counts = lambda leaf: (
        eqx.is_inexact_array(leaf) and np.isfinite(leaf).all()
    )  # a distance without a reference is NaN
    weights = [
        jnp.asarray(rng.normal(size=leaf.shape)) / (1 + np.abs(leaf)) if counts(leaf) else None
        for leaf in jax.tree.leaves(tree)
    ]

    def total(tree):
        pairs = zip(jax.tree.leaves(tree), weights, strict=True)
        return sum(jnp.vdot(weight, leaf) for leaf, weight in pairs if weight is not None)

    return total


def both_modes(function, real, direction):
    """(reverse, forward): the derivative in a direction."""
    gradient = jax.jit(jax.grad(function))(real)
    forward = jax.jit(lambda p, d: jax.jvp(function, (p,), (d,))[1])(real, direction)
    return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient, direction))), forward


SAVES = {
    "all": SaveAt(every=7, reference=jnp.ones(B), after=0.3),
    "statistics": SaveAt.statistics(after=0.3),
    "final": SaveAt.final(),
}


@pytest.mark.parametrize(
    ("curve", "policy", "save"),
    [
        ("Hyperbolic", "DGDLB", "all"),
        pytest.param("PerBackend", "Momentum", "final", marks=pytest.mark.full),
        pytest.param("PerBackend", "Momentum", "all", marks=pytest.mark.full),
        pytest.param("Tabulated", "DGDLB", "statistics", marks=pytest.mark.full),
        ("Replicas", "DGDLB", "final"),
        pytest.param("ManyServer", "DGDLB", "statistics", marks=pytest.mark.full),
        pytest.param("Power", "Momentum", "final", marks=pytest.mark.full),
    ],
)
def test_reverse_mode_is_the_transpose_of_forward_mode(rng, curve, policy, save):
    """Random weights on every number that comes out, the delay lines too, and a random direction of every number that goes in."""
    changes = {}
    if policy == "Momentum":
        changes = {
            "arrival_rate": DailyCycle([4.0, 6.0, 5.0], 0.4, [0.0, 0.4, 0.2], 3.0),
            "capacity": DailyCycle(np.ones(B), 0.2, np.zeros(B), 2.0),
        }
    network, rule, start = setting(rng, curve, policy, **changes)
    instants = 10 if save == "all" else 2
    extra = jnp.asarray(rng.uniform(0, 0.1, (instants, F, B)) * np.asarray(network.mask))
    real, rest, direction = moved(rng, (network, rule, start, extra))
    real = eqx.tree_at(lambda p: p[0].latency, real, jnp.where(real[0].latency < 0.01, 0.0137, real[0].latency))

    def run(real):
        network, rule, start, extra = eqx.combine(real, rest)
        return simulate(network, rule, initial=start, extra_flow=extra, save=SAVES[save], **RUN)

    total = weighted(rng, run(real))
    reverse, forward = both_modes(lambda real: total(run(real)), real, direction)
    assert reverse == pytest.approx(float(forward), rel=1e-10)
    assert abs(forward) > 1e-3


def test_reverse_mode_is_that_of_plain_autodiff(rng):
    """The same loop, differentiated by JAX through the ring of the delay line."""
    network, rule, start = setting(rng)
    real, rest, _ = moved(rng, (network, rule, start))

    def cost(real, adjoint=None):
        network, rule, start = eqx.combine(real, rest)
        run = simulate(network, rule, initial=start, save=SaveAt(every=20), adjoint=adjoint, **RUN)
        return run.statistics.cost + jnp.sum(run.cost_rate**2) + jnp.sum(run.final.flow_line**2)

    ours = jax.jit(jax.grad(cost))(real)
    plain = jax.jit(jax.grad(partial(cost, adjoint=Autodiff())))(real)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(plain), strict=True):
        scale = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-12 * scale + 1e-14, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(("every", "segment"), [(7, 33), pytest.param(None, 40, marks=pytest.mark.full), (45, 33)])
def test_checkpoints_change_nothing(rng, every, segment):
    """The run is the same to the bit. In its gradient the compiler may melt a product with a sum in one loop and not in the other."""
    network, rule, start = setting(rng)

    def cost(step_size, latency, memory):
        other = eqx.tree_at(lambda n: n.latency, network, latency)
        save = SaveAt(every, fields=("workload",) if every else ())
        run = simulate(
            other, DGDLB(step_size), initial=start, save=save, adjoint=memory, **RUN | {"duration": 140 * DT}
        )
        return run.statistics.cost + (0 if run.workload is None else jnp.sum(run.workload**2))

    gradients = [
        jax.jit(jax.value_and_grad(partial(cost, memory=memory), argnums=(0, 1)))(rule.step_size, network.latency)
        for memory in (FullStorage(), Checkpoints(segment))
    ]
    (value, slopes), (same, others) = gradients
    assert value == same
    for one, other in zip(slopes, others, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13, atol=1e-14 * np.abs(one).max())


def test_sums_in_single_precision_lose_neither_value_nor_slope():
    """A hundred in a hundred thousand parts: a plain sum rounds every part by up to 4e-6 of its 1e-3, and mostly to the same side."""
    parts = jnp.full(100_000, 1e-3, jnp.float32)

    def compensated(parts):
        zero = Total.zero(jnp.zeros((), jnp.float32))
        return jax.lax.scan(lambda total, part: (total.plus(part), None), zero, parts)[0].value

    def plain(parts):
        return jax.lax.scan(lambda total, part: (total + part, None), jnp.zeros((), jnp.float32), parts)[0]

    expected = np.asarray(parts, float).sum()
    value, slope = jax.jit(lambda p: jax.jvp(compensated, (p,), (p,)))(parts)
    assert float(value) == pytest.approx(expected, rel=2e-7)  # a rounding of the result
    assert float(slope) == pytest.approx(expected, rel=2e-7)
    assert abs(float(plain(parts)) / expected - 1) > 1e-5
    np.testing.assert_array_equal(jax.jit(jax.grad(compensated))(parts), 1)


def test_of_equal_extremes_the_last_one_counts_in_both_modes():
    """At rest every workload is the highest and the lowest: both modes give the derivative of the last one."""
    network = Network([1.0], [[3 * DT]], Hyperbolic(2.0, 1.0))

    def extremes(rate):
        run = simulate(
            network.with_arrival_rate(rate),
            DGDLB(0.1),
            initial=(jnp.ones((1, 1)), jnp.ones(1)),
            save=SaveAt.statistics(),
            **RUN,
        )
        found = run.statistics
        both = jnp.stack([found.peak_workload, found.highest_workload, found.lowest_workload])
        return both[:, 0], run.final.workload[0]

    rate = jnp.ones(1)
    (values, last), (forward, slope) = jax.jit(lambda r: jax.jvp(extremes, (r,), (jnp.ones(1),)))(rate)
    backward = jax.jit(jax.jacrev(lambda r: extremes(r)[0]))(rate)[:, 0]
    np.testing.assert_array_equal(values, last)
    assert slope > 0.01
    np.testing.assert_allclose(forward, slope, rtol=1e-12)
    np.testing.assert_allclose(backward, slope, rtol=1e-12)


def test_checkpoints_are_at_least_a_buffer_apart_and_few():
    checkpoint, step = 128 * 110 * 8, 360 * 8
    segment = lambda adjoint, steps, runs=1.0: Memory(adjoint, runs).segment(steps, 128, step, checkpoint)
    assert segment(FullStorage(), 10**6) is None
    assert segment(Checkpoints(10), 10**6) == 128
    assert segment(Checkpoints(1000), 900) is None
    assert segment(None, 1000) is None
    assert segment(None, 1000, runs=100.0) == 197  # the square root of 1000 x 39
    every = segment(None, 10**6)
    assert every is not None
    assert 10**6 / every * checkpoint + every * step < 4e8  # bytes; full storage takes 2.9e9
    with pytest.raises(InputError, match="whole number of steps"):
        Checkpoints(0)


def test_steps_in_pairs_change_nothing(rng):
    """A long run takes two steps per iteration, forth and back; its halves, one after the other, are too short for that."""
    network, rule, start = setting(rng)

    def cost(step_size, parts):
        total, at = 0.0, start
        for _ in range(parts):
            steps = RUN | {"duration": 1000 / parts * DT}
            run = simulate(network, DGDLB(step_size), initial=at, save=SaveAt.statistics(), **steps)
            total, at = total + run.statistics.cost, run.final
        return total

    assert ["in_pairs=True" in repr(schedule(steps, None)) for steps in (1000, 500)] == [True, False]
    step_size = jnp.asarray(rule.step_size)
    in_pairs, singly = (jax.value_and_grad(partial(cost, parts=parts))(step_size) for parts in (1, 2))
    np.testing.assert_allclose(in_pairs[0], singly[0], rtol=1e-12)
    np.testing.assert_allclose(in_pairs[1], singly[1], rtol=1e-10)


@pytest.mark.full  # test_batch has a larger one
def test_vmap_of_the_gradient_is_the_gradient_of_each(rng):
    network, _, start = setting(rng)

    def cost(step_size):
        return simulate(network, DGDLB(step_size), initial=start, save=SaveAt.statistics(), **RUN).statistics.cost

    steps = jnp.asarray(rng.uniform(0.05, 0.3, (3, F)))
    each = jnp.stack([jax.grad(cost)(step) for step in steps])
    np.testing.assert_allclose(jax.vmap(jax.grad(cost))(steps), each, rtol=1e-11)
    np.testing.assert_allclose(jax.grad(lambda s: jax.vmap(cost)(s).sum())(steps), each, rtol=1e-11)
    batch, starts = stack([network] * 3), tuple(jnp.stack([value] * 3) for value in start)

    def costs(step_size, lanes):
        run = simulate_batch(
            batch, DGDLB(step_size), initial=starts, save=SaveAt.statistics(), execution=Execution(lanes=lanes), **RUN
        )
        return run.statistics.cost.sum()

    for lanes in (1, 4):
        np.testing.assert_allclose(jax.grad(partial(costs, lanes=lanes))(steps), each, rtol=1e-11)


def test_linearize_and_jacobians(rng):
    network, rule, start = setting(rng)

    def workload(step_size):
        return simulate(network, DGDLB(step_size), initial=start, save=SaveAt.final(), **RUN).final.workload

    by_rows, by_columns = jax.jacrev(workload)(rule.step_size), jax.jacfwd(workload)(rule.step_size)
    np.testing.assert_allclose(by_rows, by_columns, rtol=1e-9, atol=1e-12)
    _, linear = jax.linearize(workload, rule.step_size)
    np.testing.assert_allclose(linear(jnp.ones(F)), by_columns.sum(1), rtol=1e-10)


@pytest.mark.full
def test_a_run_in_two_halves_has_the_gradient_of_the_whole(rng):
    """Cotangents pass through everything that a run hands on, the delay lines first of all."""
    network, rule, start = setting(rng, policy="Momentum")

    def whole(rule):
        return simulate(network, rule, initial=start, save=SaveAt.statistics(), **RUN).statistics.cost

    def halves(rule):
        half = RUN | {"duration": 30 * DT}
        first = simulate(network, rule, initial=start, save=SaveAt.statistics(), **half)
        second = simulate(network, rule, initial=first.final, save=SaveAt.statistics(), **half)
        return first.statistics.cost + second.statistics.cost

    one, two = jax.jit(jax.grad(whole))(rule), jax.jit(jax.grad(halves))(rule)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def cost_of(network, start, steps, dt):
    def cost(latency):
        other = eqx.tree_at(lambda n: n.latency, network, latency)
        run = simulate(
            other,
            DGDLB(0.2),
            duration=steps * dt,
            dt=dt,
            initial=start,
            max_latency=0.4,
            throw=False,
            save=SaveAt.statistics(),
        )
        return run.statistics.cost

    return cost


def test_on_a_grid_point_the_derivative_by_a_latency_is_that_of_both_sides(rng):
    """The interpolant has a kink at every grid point; its one-sided derivatives differ by the step times a curvature, and by half
    as much with half the step."""
    network, _, start = setting(rng)
    latency = jnp.asarray(network.latency).at[:].set(0.16)
    apart = []
    for dt in (0.02, 0.01):
        slope = jax.jit(jax.grad(cost_of(network, start, round(1.2 / dt), dt)))
        below, above = slope(latency * (1 - 1e-9)), slope(latency * (1 + 1e-9))
        apart.append(np.abs(above - below).max() / np.abs(above).max())
    assert apart[0] < 0.1
    assert apart[1] < 0.6 * apart[0]


def test_where_the_projection_has_a_kink_both_modes_agree_and_differences_do_not(rng):
    """A share that is just about to leave zero: the two sides have different derivatives, and both modes give the same of them."""
    network, rule, start = setting(rng)
    routing = np.asarray(start[0]).copy()
    routing[0] = [0.5, 0.5, 0, 0]

    def shares(x):
        return project_simplex(x)[2]

    # On the edge: pushing the third entry up moves it, pushing it down does not.
    x = jnp.array([0.5, 0.5, 0.0, -1.0])
    up = (shares(x + 1e-6 * jnp.eye(4)[2]) - shares(x)) / 1e-6
    down = (shares(x) - shares(x - 1e-6 * jnp.eye(4)[2])) / 1e-6
    assert (float(up), float(down)) == (pytest.approx(2 / 3), 0)

    def cost(step_size):
        return simulate(
            network, DGDLB(step_size), initial=(routing, start[1]), save=SaveAt.statistics(), **RUN
        ).statistics.cost

    reverse, forward = both_modes(cost, rule.step_size, jnp.ones(F))
    assert reverse == pytest.approx(float(forward), rel=1e-10)


def test_a_projection_that_is_known_has_the_derivative_of_one_that_is_not(rng):
    values, direction = jnp.asarray(rng.normal(size=(5, 7))), jnp.asarray(rng.normal(size=(5, 7)))
    point, slope = jax.jvp(project_simplex, (values,), (direction,))
    held, same = jax.jvp(lambda values: hold_on_simplex(values, point, point > 0), (values,), (direction,))
    np.testing.assert_array_equal(held, point)
    np.testing.assert_array_equal(same, slope)


def test_extra_flow_is_flow(rng):
    """Against differences; the run is smooth in it. What is sent costs what it is charged, and what it does to the queues."""
    network, rule, start = setting(rng)

    def cost(extra):
        return simulate(
            network, rule, initial=start, extra_flow=extra, save=SaveAt(every=15, fields=()), **RUN
        ).statistics.cost

    nothing = jnp.zeros((5, F, B))
    direction = jnp.asarray(rng.uniform(0, 1, (5, F, B)) * np.asarray(network.mask))
    gradient = jax.jit(jax.grad(cost))(nothing)
    expected = central_difference(jax.jit(cost), nothing, direction, h=1e-4)
    assert float(jnp.vdot(gradient, direction)) == pytest.approx(float(expected), rel=1e-6)
    with pytest.raises(InputError, match="5 instants"):
        cost(jnp.zeros((4, F, B)))


def test_jumps_have_no_gradient(rng):
    network, _, start = setting(rng)

    def cost(rates):
        run = simulate(
            network.with_arrival_rate(rates), LeastWorkload(), initial=start, save=SaveAt.statistics(), **RUN
        )
        return run.statistics.cost

    with pytest.raises(InputError, match=r"LeastWorkload jumps .* softmin"):
        jax.grad(cost)(network.arrival_rate)


def test_second_derivatives_say_that_there_are_none(rng):
    network, rule, start = setting(rng)

    def cost(step_size):
        return simulate(network, DGDLB(step_size), initial=start, save=SaveAt.statistics(), **RUN).statistics.cost

    with pytest.raises(NotImplementedError, match="differences of its gradients"):
        jax.hessian(cost)(rule.step_size)


SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import numpy as np
import jax.numpy as jnp
from helpers import DT, small_network
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.plan import Execution
from dgdlb_jax.simulation.trajectory import SaveAt

batch = stack([small_network(np.random.default_rng(n)) for n in range(5)])
steps = jnp.asarray(0.1 * (1 + np.arange(15.0).reshape(5, 3) / 10))

def cost(steps, devices):
    settings = {"duration": 1.2, "dt": DT, "max_latency": 0.6, "save": SaveAt.statistics()}
    runs = simulate_batch(batch, DGDLB(steps), execution=Execution(devices=devices), **settings)
    return runs.statistics.cost.sum()

one = jax.grad(cost)(steps, 1)
two = jax.grad(cost)(steps, 2)
np.testing.assert_allclose(one, two, rtol=1e-11)
print("agree")
"""


def test_two_devices_agree_with_one():
    environment = own_process()
    environment["XLA_FLAGS"] += " --xla_force_host_platform_device_count=2"
    environment["PYTHONPATH"] += os.pathsep + str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip().endswith("agree")
