"""The delayed scan on systems that have nothing to do with load balancing: order two, and reverse mode = forward mode = complex steps."""

import doctest
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics import delay as package
from dgdlb_jax.numerics.delay import (
    Checkpoints,
    Complete,
    DelayedSystem,
    FullStorage,
    Gather,
    Sum,
    Table,
    advance,
    delayed_scan,
    rows_for,
    run_as_told,
    start,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def scalar_equation(slope, parameters, delay, rows, observe=lambda p, k, state: state[0]):
    """`x' = slope(p, x, x(t - delay))` by Heun's method: two stages, one channel with one arc. `delay` in steps."""

    def predict(p, context, held, received):
        x, late = held
        rate = slope(p, x, late)
        guess = x + p["dt"] * rate
        return (x, rate, guess), (x, guess)

    def correct(p, context, held, received):
        x, rate, guess = held
        return (x + p["dt"] / 2 * (rate + slope(p, guess, received)), received), None

    channel = Gather(jnp.stack([delay]), Table([0], 1), rows)
    return DelayedSystem(parameters, (channel,), (predict, correct), observe)


def logistic(p, x, late):
    return p["r"] * x * (1 - late)


def mackey_glass(p, x, late):
    return p["beta"] * late / (1 + late ** p["n"]) - p["gamma"] * x


EQUATIONS = [
    pytest.param(logistic, {"r": 1.3}, 1.0, 0.3, 8.0, id="logistic"),
    pytest.param(logistic, {"r": 0.7}, 0.013, 0.3, 8.0, id="logistic-below-a-step"),
    pytest.param(mackey_glass, {"beta": 0.2, "gamma": 0.1, "n": 10.0}, 17.0, 1.2, 64.0, id="mackey-glass"),
]


def solve(slope, parameters, delay, begin, time, steps, rows, every=None, run=delayed_scan, **options):
    """(last state, observations) after `time`, from a constant history."""
    dt, x = time / steps, jnp.full(1, begin)
    system = scalar_equation(slope, parameters | {"dt": jnp.asarray(dt)}, delay / dt, rows)
    carry, seen = run(system, start(system, (x, x), (x,)), steps, every, **options)
    return carry.state[0][0], seen


def without_rules(system, carry, steps, every=None):
    """The same loop without a derivative rule of its own, for complex numbers and plain autodiff."""

    def frame(carry, _):
        carry = jax.lax.fori_loop(0, every or steps, lambda _, c: advance(system, c)[0], carry)
        return carry, system.observe(system.parameters, carry.k, carry.state)

    return jax.lax.scan(frame, carry, length=steps // (every or steps))


@pytest.mark.parametrize(("slope", "parameters", "delay", "begin", "time"), EQUATIONS)
def test_order_two(slope, parameters, delay, begin, time):
    """The delay ends a third of a step beyond a grid point, with every halving one or two thirds: interpolation is part of what is
    measured, and the kink that leaves the start and comes back is always as far from a grid point."""
    coarse = time / 512
    delay = (delay // coarse + 1 / 3) * coarse
    at = lambda n: solve(slope, parameters, delay, begin, time, 512 * 2**n, rows_for(delay, time / 512 / 2**n))[0]
    exact = at(7)
    errors = np.abs([float(at(n) - exact) for n in (1, 2, 3)])
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.15), errors


def test_without_delay_it_is_the_closed_form():
    x = solve(logistic, {"r": 0.7}, 0.0, 0.3, 8.0, 4096, 2)[0]
    # Heun's method: the error of a step is about h^3/6 of a third derivative below 0.1, times 4096 steps of 1/512.
    assert float(x) == pytest.approx(1 / (1 + (1 / 0.3 - 1) * np.exp(-0.7 * 8)), rel=1e-6)


@pytest.mark.parametrize("memory", [FullStorage(), Checkpoints(70)], ids=["full", "checkpoints"])
@pytest.mark.parametrize(("slope", "parameters", "delay", "begin", "time"), EQUATIONS)
def test_gradients_of_scalar_equations(slope, parameters, delay, begin, time, memory):
    """Both modes and, for all but the delay, complex steps. (The whole part of a delay has no complex continuation.)"""
    steps = 240
    rows = rows_for(delay * 1.1, time / steps)

    def loss(values, **options):
        parameters, delay, begin = values
        end, seen = solve(slope, parameters, delay, begin, time, steps, rows, 15, **options)
        return (seen**2).mean() + end * 0.3

    values = jax.tree.map(jnp.asarray, (parameters, delay * 0.9871, begin))
    leaves, tree = jax.tree.flatten(values)
    reverse = jax.tree.leaves(jax.jit(jax.grad(partial(loss, memory=memory)))(values))
    forward = jax.tree.leaves(jax.jit(jax.jacfwd(loss))(values))
    np.testing.assert_allclose(reverse, forward, rtol=1e-11, atol=1e-13)
    plain = jax.jit(partial(loss, run=without_rules))
    for n in set(range(len(leaves))) - {len(parameters)}:
        moved = [leaf + 1e-30j if m == n else leaf + 0j for m, leaf in enumerate(leaves)]
        moved[len(parameters)] = leaves[len(parameters)]
        np.testing.assert_allclose(reverse[n], jnp.imag(plain(tree.unflatten(moved))) / 1e-30, rtol=1e-10)
    by_delay = lambda h: loss((values[0], values[1] + h, values[2]))
    h = 1e-6 * delay
    expected = (jax.jit(by_delay)(h) - jax.jit(by_delay)(-h)) / (2 * h)
    np.testing.assert_allclose(reverse[len(parameters)], expected, rtol=1e-6, atol=1e-9)


LAGS = (0.0, 0.3, 1.0, 7.6, 30.0)
SOURCES, TARGETS = Table([0, 1, 2, 0, 2], 3), Table([0, 0, 1, 1, 1], 2)


class Toy(eqx.Module):
    """Three channels: 3 sources read over 5 arcs, 5 arcs summed into 2 targets (unequal numbers of arcs), 2 read over 5 arcs."""

    gain: jax.Array
    mix: jax.Array
    leak: jax.Array
    dt: jax.Array


def predict(p, context, held, received):
    rate = jnp.tanh(held["drive"] @ p.mix) - p.leak * held["x"]
    guess = held["x"] + p.dt * rate
    return held | {"rate": rate, "guess": guess}, (held["x"], guess)


def send(p, context, held, seen):
    flow = p.gain * jnp.sin(seen)
    if context.input is not None:
        flow = flow + jnp.where(context.ends_frame, context.input, 0)
    return held | {"new": flow}, (held["flow"], flow)


def collect(p, context, held, total):
    return held | {"total": total}, (held["sum"], total)


def close(p, context, held, drive):
    ahead = jnp.tanh(drive @ p.mix) - p.leak * held["guess"]
    x = held["x"] + p.dt / 2 * (held["rate"] + ahead)
    count = held["count"] + 1
    return {"x": x, "drive": drive, "sum": held["total"], "flow": held["new"], "count": count}, None


def observe(p, k, state):
    return {"x": state["x"], "norm": (state["sum"] ** 2).sum(), "count": state["count"]}


def toy(p, delays, rows=34):
    kinds = (Gather, SOURCES), (Sum, TARGETS), (Gather, TARGETS)
    channels = tuple(kind(delay, ends, rows) for (kind, ends), delay in zip(kinds, delays, strict=True))
    return DelayedSystem(p, channels, (predict, send, collect, close), observe)


def toy_inputs(seed=0, dtype=float):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.uniform(0.3, 1.1, shape), dtype)
    p = Toy(draw(5), draw(5, 3) - 0.6, draw(3), jnp.asarray(0.04, dtype))
    delays = tuple(jnp.asarray(rng.permutation(LAGS), dtype) for _ in range(3))
    state = {"x": draw(3), "drive": draw(5), "sum": draw(2), "flow": draw(5)}
    return p, delays, state, (draw(3), draw(5), draw(2)), 0.3 * draw(12, 5)


def toy_loss(inputs, steps=110, every=10, run=delayed_scan, **options):
    """Of everything that comes out, the lines and readings included."""
    p, delays, state, history, pushes = inputs
    system = toy(p, delays)
    state = state | {"count": jnp.zeros((), jnp.int32)}
    if run is delayed_scan:
        frames = -(-steps // every) if every else 1
        options |= {"inputs": pushes[:frames]}
    carry, seen = run(system, start(system, state, history), steps, every, **options)
    weigh = lambda values: jnp.vdot(jnp.cos(jnp.arange(values.size, dtype=values.dtype)), values.reshape(-1))
    left = [weigh(leaf) for leaf in jax.tree.leaves(carry.channels)]
    return (
        weigh(jnp.cos(seen["x"])) + seen["norm"].sum() + (carry.state["x"] * carry.state["drive"][:3]).sum() + sum(left)
    )


def close_to(found, expected, rtol, atol=0.0):
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize(
    "plan",
    [
        {"steps": 115, "every": 10, "memory": Checkpoints(40)},
        {"steps": 117, "every": 45, "memory": Checkpoints(35)},
        {"steps": 110, "every": None},
        {"steps": 5, "every": 3},
    ],
    ids=str,
)
def test_three_channels_in_both_modes(plan):
    """Lags of 0, below a step, whole and large; frames that do not divide the run; a run shorter than the lines. Along a random
    direction of all that goes in."""
    inputs = toy_inputs()
    rng = np.random.default_rng(3)
    away = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), inputs)
    reverse = jax.jit(jax.grad(partial(toy_loss, **plan)))(inputs)
    forward = jax.jit(lambda inputs, away: jax.jvp(partial(toy_loss, **plan), (inputs,), (away,))[1])(inputs, away)
    np.testing.assert_allclose(sum(jax.tree.leaves(jax.tree.map(jnp.vdot, reverse, away))), forward, rtol=1e-10)


def test_three_channels_against_complex_steps():
    """Along a random direction of everything but the delays."""
    p, delays, state, history, pushes = toy_inputs()
    pushes = 0 * pushes
    reverse = jax.jit(jax.grad(toy_loss))((p, delays, state, history, pushes))
    rng = np.random.default_rng(1)
    values = p, state, history
    away = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), values)
    moved = jax.tree.map(lambda leaf, step: leaf + 1e-30j * step, values, away)

    def plain(values):
        p, state, history = values
        return toy_loss((p, delays, state, history, pushes), run=without_rules)

    expected = jnp.imag(jax.jit(plain)(moved)) / 1e-30
    slopes = reverse[0], reverse[2], reverse[3]
    found = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, slopes, away)))
    np.testing.assert_allclose(found, expected, rtol=1e-11)


def test_delays_and_inputs_against_differences():
    """Where delays are no whole numbers of steps."""
    p, delays, state, history, pushes = toy_inputs()
    delays = tuple(delay + 0.21 for delay in delays)
    rng = np.random.default_rng(2)
    values = delays, pushes
    away = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), values)
    loss = jax.jit(lambda values: toy_loss((p, values[0], state, history, values[1])))
    h, move = 1e-6, lambda h: jax.tree.map(lambda leaf, step: leaf + h * step, values, away)
    expected = (loss(move(h)) - loss(move(-h))) / (2 * h)
    found = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.jit(jax.grad(loss))(values), away)))
    np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_one_run_is_two_and_its_gradient_too():
    """The carry holds all that a run needs to go on, and cotangents pass through all of it. The first run may be shorter than the lines."""
    p, delays, state, history, _ = toy_inputs()
    state = state | {"count": jnp.zeros((), jnp.int32)}

    def loss(values, parts):
        p, delays, history = values
        system = toy(p, delays)
        carry = start(system, state, history)
        for steps in parts:
            carry, seen = delayed_scan(system, carry, steps)
        return carry.state["x"].sum() + seen["norm"].sum(), carry

    run = lambda parts: jax.jit(jax.value_and_grad(partial(loss, parts=parts), has_aux=True))((p, delays, history))
    (value, end), slope = run((60,))
    (same, other), slopes = run((20, 40))
    assert value == same
    assert int(end.state["count"]) == int(end.k) == 60
    close_to(other, end, 1e-15)
    close_to(slopes, slope, 1e-11, 1e-13)


def test_checkpoints_change_nothing_and_forward_mode_agrees_in_every_entry():
    inputs = toy_inputs()
    full, some = (
        jax.jit(jax.value_and_grad(partial(toy_loss, memory=memory)))(inputs)
        for memory in (FullStorage(), Checkpoints(40))
    )
    assert full[0] == some[0]
    close_to(some[1], full[1], 1e-12, 1e-13)
    close_to(jax.jit(jax.jacfwd(toy_loss))(inputs), full[1], 1e-10, 1e-12)


def test_only_what_moves_and_under_vmap():
    """A gradient of one leaf alone; a batch of gradients, and the gradient of a batch."""
    p, *rest = toy_inputs()
    loss = lambda gain: toy_loss((eqx.tree_at(lambda p: p.gain, p, gain), *rest), steps=40)
    gains = jnp.stack([p.gain, 2 * p.gain])
    one = jax.jit(jax.grad(loss))
    each = jnp.stack([one(gain) for gain in gains])
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss)))(gains), each, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda g: jax.vmap(loss)(g).sum()))(gains), each, rtol=1e-12)


def test_single_precision():
    """Nothing is promoted, and the gradient is that of double precision to some hundred roundings."""
    slopes = [jax.jit(jax.grad(toy_loss))(toy_inputs(dtype=dtype)) for dtype in (jnp.float32, jnp.float64)]
    for one, other in zip(*map(jax.tree.leaves, slopes), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * max(1, np.abs(other).max()))


def test_the_toy_is_of_order_two():
    def at(n):
        p, _, _, _, _ = toy_inputs()
        x = jnp.asarray([0.4, 0.7, 0.2])  # a start that is consistent with its history
        flow = p.gain * jnp.sin(x[SOURCES.ends])
        total = TARGETS.total(TARGETS.by_end(flow))
        drive = total[TARGETS.ends]
        state = {"x": x, "drive": drive, "sum": total, "flow": flow, "count": jnp.zeros((), jnp.int32)}
        dt = 0.05 / 2**n
        seconds = 0.05 * np.array([0, 1 / 3, 4 / 3, 7 + 2 / 3, 25 + 1 / 3])
        p = eqx.tree_at(lambda p: p.dt, p, jnp.asarray(dt))
        system = toy(p, (jnp.asarray(seconds / dt),) * 3, rows_for(seconds.max(), dt))
        return delayed_scan(system, start(system, state, (x, flow, total)), 80 * 2**n)[0].state["x"]

    exact = at(6)
    errors = [float(jnp.abs(at(n) - exact).max()) for n in (1, 2, 3)]
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.2), errors


@pytest.mark.parametrize("lanes", [1, 3])
def test_complete_is_a_table_of_the_same_ends(rng, lanes):
    complete = Complete(4, 5, lanes)
    table = Table(np.asarray(complete.ends), complete.size)
    assert (table.shape, table.size, table.arcs) == (complete.shape, complete.size, complete.arcs)
    arcs = jnp.asarray(rng.normal(size=complete.shape))
    expected = np.zeros(complete.size)
    np.add.at(expected, np.asarray(complete.ends), np.asarray(arcs))
    for incidence in (complete, table):
        np.testing.assert_allclose(incidence.total(incidence.by_end(arcs)), expected, rtol=1e-13)


def test_a_run_as_told_is_the_same_run():
    p, delays, state, history, _ = toy_inputs()
    system = toy(p, delays)
    begin = start(system, state | {"count": jnp.zeros((), jnp.int32)}, history)
    end, seen = jax.jit(delayed_scan, static_argnums=(2, 3))(system, begin, 60, 20)
    told, looked = jax.jit(run_as_told, static_argnums=4)(system, begin, jnp.int32(60), jnp.int32(20), 6)
    close_to(told, end, 1e-14)
    np.testing.assert_allclose(looked["x"][1:4], seen["x"], rtol=1e-13)
    np.testing.assert_array_equal(looked["x"][4:], looked["x"][np.array([3, 3])])
    last = jax.jit(run_as_told, static_argnums=4)(system, begin, jnp.int32(60), None, 1)[1]
    np.testing.assert_allclose(last["x"][0], seen["x"][-1], rtol=1e-13)


def test_a_chain_has_one_stage_more_than_channels():
    p, delays, *_ = toy_inputs()
    with pytest.raises(ValueError, match="3 channels lie between 4 stages, not 2"):
        DelayedSystem(p, toy(p, delays).channels, (predict, close))


def test_the_example_in_the_documentation():
    found = doctest.testmod(package)
    assert found.attempted > 5
    assert found.failed == 0


def test_without_channels_it_is_a_scan():
    """One stage, no delay: compound growth, whose derivative is known."""
    grow = lambda rate, context, x, received: (x * (1 + rate), None)

    def last(rate, memory):
        system = DelayedSystem(rate, (), (grow,))
        return delayed_scan(system, start(system, jnp.ones(1), ()), 50, memory=memory)[0].state[0]

    for memory in (FullStorage(), Checkpoints(8)):
        np.testing.assert_allclose(jax.grad(last)(0.02, memory), 50 * 1.02**49, rtol=1e-12)


def test_second_derivatives_say_that_there_are_none():
    loss = lambda r: solve(logistic, {"r": r}, 0.5, 0.3, 2.0, 40, 12)[0]
    with pytest.raises(NotImplementedError, match="differences of its gradients"):
        jax.hessian(loss)(jnp.asarray(1.0))
