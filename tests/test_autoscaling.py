"""Autoscalers: Kubernetes' rule against its documentation, and replicas in the engine against slow references."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from autoscaler_oracle import Kubernetes, run
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.autoscalers import AUTOSCALERS, HPA, Behavior, Measured, Proportional, Rate
from dgdlb_jax.policies.autoscalers.hpa import AT_ONCE

pytestmark = pytest.mark.usefixtures("quick_compilation")  # the loop itself is tested elsewhere

MU, KAPPA = 1.0, 2.0  # one replica serves mu n / (kappa + n)


def group(rates, replicas, latency=0.5):
    """One frontend, backends of so many replicas."""
    pods = np.asarray(replicas, float)
    curve = dgd.Replicas(dgd.Hyperbolic(np.full(pods.size, MU), np.full(pods.size, KAPPA)), pods)
    return dgd.Network(rates, np.full((len(rates), pods.size), latency), curve)


def decisions(rule, commanded, metric, count, ready=None):
    """What a rule commands, again and again, at a constant metric; everything is ready at once unless said."""
    commanded = jnp.asarray(float(commanded))
    memory, past, found = rule.init(commanded), [commanded] * rule.past, []
    for _ in range(count):
        now = jnp.asarray(float(commanded if ready is None else ready))
        earlier = jnp.stack(past) if past else jnp.zeros((0,))
        command, memory = rule.decide(Measured(now, commanded, jnp.asarray(metric)), earlier, memory)
        past = [commanded, *past][: rule.past]
        commanded = command
        found.append(float(command))
    return found


@pytest.mark.parametrize(
    ("metric", "pods", "expected"),
    [
        (
            200.0,
            3,
            6,
        ),  # "if the current metric value is 200m, and the desired value is 100m, the number of replicas will be doubled"
        (50.0, 4, 2),  # "if the current value is instead 50m, you'll halve the number of replicas"
        (109.0, 7, 7),  # within the tolerance of 0.1
        (91.0, 7, 7),
        (150.0, 3, 5),  # ceil(4.5)
    ],
)
def test_the_documented_examples_of_ratios(metric, pods, expected):
    for form in ("coded", "documented"):
        rule = HPA(100.0, 0.0, metric="concurrency", form=form, scale_up=AT_ONCE, scale_down=AT_ONCE)
        assert decisions(rule, pods, metric, 1) == [expected]


def test_the_documented_example_of_rates():
    """80 pods to 10 when 4 pods or 10 % may go in 60 s: 10 % while that is more than 4 pods, 8 then 7.2 rounded up; then 4 at a time."""
    down = Behavior(0.0, (Rate("pods", 4.0, 60.0), Rate("percent", 10.0, 60.0)))
    rule = HPA(100.0, 0.0, metric="concurrency", interval=60.0, tolerance=0.0, scale_down=down, least=10.0)
    found = decisions(rule, 80, 1.0, 17)
    assert found[:5] == [72.0, 64.0, 57.0, 51.0, 45.0]
    assert found[5:] == [40.0, 36.0, 32.0, 28.0, 24.0, 20.0, 16.0, 12.0, 10.0, 10.0, 10.0, 10.0]
    often = decisions(HPA(100.0, 0.0, metric="concurrency", scale_down=down), 80, 1.0, 9)
    assert often == [72.0] * 4 + [64.0] * 4 + [57.0]  # the same 60 s, looked at every 15 s
    least = Behavior(0.0, down.policies, "min")
    assert decisions(HPA(100.0, 0.0, metric="concurrency", interval=60.0, scale_down=least), 80, 1.0, 2) == [76.0, 72.0]
    never = Behavior(select="disabled")
    assert decisions(HPA(100.0, 0.0, metric="concurrency", scale_down=never), 80, 1.0, 2) == [80.0, 80.0]


def test_defaults_of_kubernetes():
    """Up: at once, by 100 % or 4 pods in 15 s; down: only what no recommendation of 300 s has exceeded. What is not ready counts as 0."""
    rule = HPA(100.0, 0.0, metric="concurrency")
    assert decisions(rule, 1, 1e6, 4) == [5.0, 10.0, 20.0, 40.0]
    assert decisions(rule, 40, 50.0, 21) == [40.0] * 19 + [20.0] * 2
    # 2 of 4 ready, each at twice the target: 4 with those to come, so it waits; the formula on paper doubles again.
    assert decisions(rule, 4, 200.0, 1, ready=2) == [4.0]
    assert decisions(HPA(100.0, 0.0, metric="concurrency", form="documented"), 4, 200.0, 1, ready=2) == [8.0]


@pytest.fixture(scope="module")
def scaled(quick_compilation):
    """A group that grows and one that shrinks, under Kubernetes' rule."""
    network = group([8.0], [5.0, 20.0])
    rule = HPA(0.7, 40.0, least=2.0)
    start = [[0.5, 0.5]], [20.0, 2.0]
    whole = dgd.simulate(network, dgd.Uniform(), duration=600.0, dt=0.5, autoscaler=rule, initial=start)
    return network, rule, whole


def test_the_engine_against_a_slow_reference(scaled):
    """To rounding: ready and commanded replicas, the workload, and what is paid for."""
    _, _, found = scaled
    for j, pods in enumerate((5.0, 20.0)):
        workload = float(found.workload[0, j])
        serve = lambda n, r: MU * n * r / (KAPPA * r + n)
        utilization = lambda n, r: MU * n / (KAPPA * r + n) / MU
        slow = run(Kubernetes(0.7, pods, 2), pods, 4.0, workload, serve, utilization, 40.0, 0.5, 1200)
        ready, commanded, workloads = map(np.array, zip(*slow, strict=True))
        np.testing.assert_array_equal(found.replicas[:, j], ready)
        np.testing.assert_array_equal(found.commanded[:, j], commanded)
        np.testing.assert_allclose(found.workload[:, j], workloads, rtol=1e-12)
    jumps = np.diff(np.asarray(found.replicas), axis=0)
    assert (jumps > 0).any()
    assert (jumps < 0).any()


def test_what_is_paid_for(scaled):
    """From the command to the end: the integral of replicas that stand still in a step, which is that of the later instant."""
    _, _, found = scaled
    paid = np.maximum(found.replicas, found.commanded)[1:]
    np.testing.assert_allclose(found.statistics.replica_seconds, 0.5 * paid.sum(0), rtol=1e-12)
    np.testing.assert_allclose(found.statistics.mean_replicas, np.asarray(found.replicas)[1:].mean(0), rtol=1e-12)
    for name, function in (("lowest_replicas", np.min), ("highest_replicas", np.max)):
        np.testing.assert_array_equal(getattr(found.statistics, name), function(np.asarray(found.replicas), axis=0))


def test_two_halves_are_one_run(scaled):
    """To the bit, with commands under way; another autoscaler does not go on with them, nor without one."""
    network, rule, whole = scaled
    start = whole.routing[0], whole.workload[0]
    first = dgd.simulate(network, dgd.Uniform(), duration=300.0, dt=0.5, autoscaler=rule, initial=start)
    second = dgd.simulate(network, dgd.Uniform(), duration=300.0, dt=0.5, autoscaler=rule, initial=first.final)
    for name in ("replicas", "commanded", "workload"):
        np.testing.assert_array_equal(getattr(second, name), getattr(whole, name)[600:])
    for other in (None, HPA(0.7, 80.0)):
        with pytest.raises(InputError, match="another autoscaler"):
            dgd.simulate(network, dgd.Uniform(), duration=300.0, dt=0.5, autoscaler=other, initial=first.final)


THIRD = (
    0.2 / 3
)  # of the longest step: kinks that delays spread lie at the same part of a step, or of its mirror image, in all runs
NETWORK = dgd.Network(
    [3.0, 2.0],
    np.array([[0.2, 1.6], [2.2, 0.6]]) + THIRD,
    dgd.Replicas(dgd.Hyperbolic([MU] * 2, [KAPPA] * 2), [4.0, 3.0]),
)
STEP = 0.004


STARTUP = jnp.array([7.2, 11.8]) + THIRD


def test_smooth_replicas_are_of_second_order():
    """DGD-LB while replicas move; states and the integral of what is paid, against a step eight times as short. One batch."""
    runs = dgd.simulate_batch(
        dgd.stack([NETWORK] * 3),
        dgd.DGDLB(STEP),
        duration=64.0,
        dt=np.array([0.2, 0.1, 0.025]),
        autoscaler=Proportional(jnp.array([[0.6, 0.7]]), STARTUP[None], 9.0),
        save=dgd.SaveAt.statistics(after=8.0),
    )
    final, paid = runs.final, runs.statistics.replica_seconds
    for values in (final.scaling.ready, final.scaling.commands[:, 0], final.workload, paid):
        coarse, fine = (np.abs(values[n] - values[2]).max() for n in (0, 1))
        assert coarse / fine == pytest.approx((64 - 1) / (16 - 1), rel=0.2)
    swing = runs.statistics.highest_replicas - runs.statistics.lowest_replicas
    assert np.min(swing) > 0.3


def test_a_slow_reference_of_smooth_replicas():
    """One group, Heun's method on the delay equation with linear interpolation, in plain Python."""
    dt, startup, lag, pods, inflow = 0.05, 7.3, 9.0, 4.0, 2.6
    network = group([inflow], [pods])
    found = dgd.simulate(
        network, dgd.Uniform(), duration=40.0, dt=dt, autoscaler=Proportional(0.5, startup, lag, form="documented")
    )
    rate = lambda n, r: MU * n * r / (KAPPA * r + n)
    grow = lambda n, r, c: (c * rate(n, r) / r / 0.5 - c) / lag
    n, commands, workload = float(found.workload[0, 0]), [pods], []
    at = lambda t: float(np.interp(t, dt * np.arange(len(commands)), commands))
    for k in range(800):
        workload.append(n)
        c, r, ahead = commands[-1], at(k * dt - startup), at((k + 1) * dt - startup)
        first, v = rate(n, r), grow(n, r, c)
        n_after = n + dt / 2 * (2 * inflow - first - rate(n + dt * (inflow - first), ahead))
        commands.append(c + dt / 2 * (v + grow(n_after, ahead, c + dt * v)))
        n = n_after
    np.testing.assert_allclose(found.workload[:-1, 0], workload, rtol=1e-12)
    np.testing.assert_allclose(found.commanded[:, 0], commands, rtol=1e-12)


@pytest.mark.full
def test_beside_own_requests_and_an_extension_in_a_batch():
    """Channels find each other: networks in a batch are what they are alone, and two halves are one run, to the bit."""
    other = NETWORK.with_arrival_rate([2.0, 3.0])
    targets = jnp.array([[0.6, 0.7], [0.7, 0.6]])
    options = {"dt": 0.2, "save": dgd.SaveAt(5, fields=("workload",))}

    def parts(networks, targets, simulate, durations):
        rule, state = Proportional(targets, STARTUP[None] if targets.ndim > 1 else STARTUP, 9.0), None
        for duration in durations:
            run = simulate(
                networks,
                dgd.LeastRequest(),
                duration=duration,
                autoscaler=rule,
                extensions=(Wear(),),
                initial=state,
                **options,
            )
            state = run.final
        return run

    both = parts(dgd.stack([NETWORK, other]), targets, dgd.simulate_batch, (10.0, 20.0))
    alone = parts(other, targets[1], dgd.simulate, (30.0,))
    for name in ("replicas", "commanded", "workload"):
        np.testing.assert_allclose(getattr(both, name)[1], getattr(alone, name)[10:], rtol=1e-12)
    own = np.asarray(both.final.own.count[1]).sum()
    assert np.isfinite(own)
    assert own > 0


class Wear(dgd.AbstractExtension):
    """Capacity that a backend loses while it is busy, with a delay."""

    name: str = eqx.field(static=True, default="wear")

    def init(self, network):
        return jnp.zeros(network.backends)

    def delay(self, network):
        return jnp.full(network.backends, 0.7)

    def signal(self, view, state):
        return view.service_rate / view.replicas

    def velocity(self, view, state, received):
        return (0.1 * received - state) / 5.0

    def capacity(self, state):
        return 1 - state


def smoothly(startup, save):
    rule = Proportional(jnp.array([0.6, 0.7]), startup, 9.0)
    return dgd.simulate(NETWORK, dgd.DGDLB(STEP), duration=32.0, dt=0.4, autoscaler=rule, max_latency=20.0, save=save)


def at_the_end(startup):
    final = smoothly(startup, dgd.SaveAt.final()).final
    return final.workload[0] + 2 * final.scaling.ready[1] + 3 * final.routing[0, 0]


def cost(startup):
    """Latency, and what the replicas cost."""
    found = smoothly(startup, dgd.SaveAt.statistics()).statistics
    return found.mean_latency + 0.01 * found.replica_seconds.sum() + found.highest_replicas[1]


def differences(of, startup):
    return [(of(startup + 1e-5 * unit) - of(startup - 1e-5 * unit)) / 2e-5 for unit in np.eye(2)]


def test_derivatives_with_respect_to_the_start_up_delay():
    """Reverse mode against differences: through the commands on their way, and the news of replicas."""
    startup = STARTUP + 0.03
    np.testing.assert_allclose(jax.grad(at_the_end)(startup), differences(at_the_end, startup), rtol=1e-5)


@pytest.mark.full
def test_both_modes_agree_on_statistics():
    startup = STARTUP + 0.03
    forward = [jax.jvp(cost, (startup,), (unit,))[1] for unit in jnp.eye(2)]
    np.testing.assert_allclose(forward, jax.grad(cost)(startup), rtol=1e-9)
    np.testing.assert_allclose(forward, differences(cost, startup), rtol=1e-6)


def test_what_has_no_gradient_says_so():
    network, save = group([2.0], [3.0]), dgd.SaveAt.statistics()
    latency = lambda target: (
        dgd.simulate(
            network, dgd.Uniform(), duration=30.0, dt=0.5, autoscaler=HPA(target, 5.0), save=save
        ).statistics.mean_latency
    )
    with pytest.raises(InputError, match="HPA jumps from one number of replicas"):
        jax.grad(latency)(0.7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HPA(70.0, 30.0), "HPA.target is 70, but a utilization is a part of capacity"),
        (lambda: HPA(0.7, -1.0), "HPA.startup is -1, but must be finite and not negative"),
        (lambda: HPA(0.7, 30.0, metric="cpu"), "HPA.metric is 'cpu': choose from utilization, concurrency, queue"),
        (lambda: HPA(0.7, 30.0, least=5.0, most=2.0), "HPA.least is 5, above most = 2"),
        (lambda: HPA(0.7, 30.0, interval=0.0), "HPA.interval is 0.0"),
        (lambda: Rate("nodes", 1.0, 60.0), "Rate.kind is 'nodes'"),
        (lambda: Rate("pods", 0.0, 60.0), "Rate.value is 0.0"),
        (lambda: Behavior(-1.0), "Behavior.window is -1.0"),
        (lambda: Proportional(0.7, 30.0, 0.0), "Proportional.time_constant is 0"),
        (lambda: dgd.register_autoscaler("hpa", HPA), "built in"),
        (lambda: simulated(HPA([0.7, 0.8], 30.0)), "has 2 entries, but the network has 1 backends"),
        (lambda: simulated(HPA(0.7, 30.0, interval=0.2)), "longer than the interval"),
        (
            lambda: simulated(HPA(0.7, 1e30)),
            r"start-up delay of the autoscaler is 1e\+30 s, .* more than the 100000 decisions",
        ),
        (
            lambda: simulated(HPA(0.7, 30.0, scale_down=Behavior(1e30))),
            r"HPA looks back on 1e\+30 s, .* more than the 100000",
        ),
        (lambda: simulated(HPA(0.7, 30.0), events=[dgd.events.Replicas(3.0, 0, 2.0)]), "contradict each other"),
    ],
)
def test_sentences(make, message):
    with pytest.raises(InputError, match=message):
        make()


def simulated(rule, **options):
    return dgd.simulate(group([2.0], [3.0]), dgd.Uniform(), duration=30.0, dt=0.5, autoscaler=rule, **options)


def test_every_registered_autoscaler_is_documented():
    assert set(AUTOSCALERS) == {"hpa", "proportional"}
    for entry in AUTOSCALERS.values():
        assert entry.autoscaler.__doc__
