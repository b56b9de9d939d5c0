"""Limits of autoscalers, alone and beside a balancer: closed forms, numbers of independent simulations, and the engine itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.model.batch import each_network
from dgdlb_jax.policies.autoscalers import HPA, Behavior, Proportional
from dgdlb_jax.stability.autoscaling import replica_loop
from dgdlb_jax.stability.critical import _loop

pytestmark = pytest.mark.usefixtures("quick_compilation")


def group(requests, kappa, mu, count=1.0):
    """One backend at rest with so many requests in each replica; one replica serves mu n / (kappa + n)."""
    rate = count * mu * requests / (kappa + requests)
    return dgd.Network([rate], [[0.0]], dgd.Replicas(dgd.Hyperbolic([mu], [kappa]), [count]))


def loop(rule, requests=60.0, kappa=30.0, mu=2.0):
    return replica_loop(group(requests, kappa, mu).anonymous(), rule)


CONCURRENCY = [(60.0, 30.0, 2.0, 15.0, 156.59), (30.0, 10.0, 1.0, 15.0, 101.14), (50.0, 20.0, 4.0, 30.0, 45.99)]
"""Requests per replica, kappa, mu, interval; the start-up delay from which on an independent nonlinear simulation cycles."""


@pytest.mark.parametrize(("requests", "kappa", "mu", "interval", "limit"), CONCURRENCY)
def test_start_up_delays_at_which_concurrency_cycles(requests, kappa, mu, interval, limit):
    """Sampled, against simulations; all the time, against the closed form with G = rho / (1 - rho)."""
    curve = requests, kappa, mu
    sampled = HPA.smooth(requests, 1.0, metric="concurrency", interval=interval)
    found, period = loop(sampled, *curve).critical_startup()
    assert found == pytest.approx(limit, rel=1e-4)
    slope, gain = mu * kappa / (kappa + requests) ** 2, requests / kappa
    root = np.sqrt(gain**2 - 1)
    smooth = Proportional(requests, 1.0, 1e-6, metric="concurrency")
    startup, swing = loop(smooth, *curve).critical_startup()
    assert startup == pytest.approx((np.pi - np.arctan(root)) / (slope * root), rel=1e-6)
    assert swing == pytest.approx(2 * np.pi / (slope * root), rel=1e-6)
    if interval < startup / 5:  # a short hold delays by half of its length
        assert found == pytest.approx(startup - interval / 2, rel=0.02)
        assert period == pytest.approx(swing, rel=0.01)


def test_gain_of_the_formula_on_paper():
    """Fast service: z^(m+1) - z^m + p = 0 with m = floor(L / T), critical at 2 sin(pi / (2 (2m + 1))); concurrency takes e times that."""
    for startup in (0.5, 1.5, 2.5, 8.5):
        critical = 2 * np.sin(np.pi / (2 * (2 * np.floor(startup) + 1)))
        for part, stable in ((0.999, True), (1.001, False)):
            options = {"interval": 1.0, "form": "documented", "averages": False}
            rule = HPA.smooth(0.7, startup, exponent=part * critical, **options)
            assert (loop(rule, 0.7 / 0.3 * 1e-3, 1e-3, 1e3).radius() < 1) == stable
            options |= {"metric": "concurrency"}
            rule = HPA.smooth(0.7 / 0.3 * 1e-3, startup, exponent=part * critical * 0.3, **options)
            assert (loop(rule, 0.7 / 0.3 * 1e-3, 1e-3, 1e3).radius() < 1) == stable


def test_what_never_cycles():
    """As coded on utilisation, its total averaged, for any delay; on concurrency below half utilisation, where G < 1."""
    for startup in (0.0, 7.0, 40.0, 600.0):
        assert loop(HPA.smooth(0.7, startup)).radius() < 1
    assert loop(HPA.smooth(25.0, 1.0, metric="concurrency")).critical_startup() == (np.inf, np.inf)
    assert loop(HPA.smooth(0.7, 1.0)).critical_startup()[0] == np.inf


@pytest.mark.parametrize("form", ["coded", "documented"])
@pytest.mark.parametrize("metric", ["utilization", "concurrency", "queue"])
def test_limits_are_zeros_of_the_characteristic_function(form, metric):
    """All the time: where there is a limit, a pair of roots lies on the axis. An integrator on fast service is critical at theta pi / 2."""
    target = {"utilization": 2 / 3, "concurrency": 60.0, "queue": 40.0}[metric]
    found = loop(Proportional(target, 1.0, 40.0, metric=metric, form=form))
    limit, period = found.critical_startup()
    assert np.isfinite(limit) == (metric != "utilization" or form == "documented")
    if np.isfinite(limit):
        at = lambda w: np.abs(np.asarray(found.with_startup(limit).characteristic(1j * jnp.asarray(w))))[0]
        assert at(2 * np.pi / period) < 1e-12 * at(20 * np.pi / period)
    fast = loop(Proportional(0.7, 1.0, 40.0, form="documented"), 1.0, 1e-3, 1e3)
    assert fast.critical_startup()[0] == pytest.approx(20 * np.pi, rel=1e-3)


def grows(runs, values):
    """Whether swings about the mean are larger in the fourth fifth of a run than in the second."""
    values = np.asarray(values)
    part = values.shape[1] // 5
    size = [np.ptp(values[:, k * part : (k + 1) * part], axis=1) for k in (1, 3)]
    return size[1] > size[0]


def test_simulated_swings_begin_where_predicted():
    """Of two groups, 2 % inside and outside the limit, from a deviation of a thousandth: the engine with Kubernetes' law alone."""
    cases = [(*case, case[-1] * part) for case in CONCURRENCY[:2] for part in (0.98, 1.02)]
    networks = dgd.stack([group(requests, kappa, mu, 4.0) for requests, kappa, mu, *_ in cases])
    requests, startup = (np.array([case[n] for case in cases])[:, None] for n in (0, 5))
    runs = dgd.simulate_batch(
        networks,
        dgd.Uniform(),
        duration=6000.0,
        dt=0.5,
        initial=(np.ones((4, 1, 1)), 4 * requests * 1.001),
        autoscaler=HPA.smooth(requests, np.round(2 * startup) / 2, metric="concurrency"),
        save=dgd.SaveAt(20, fields=("workload",)),
    )
    assert grows(runs, runs.workload[..., 0]).tolist() == [False, True, False, True]


BALANCED = [
    ("concurrency", 0.0195, 0.6, 60.0, 2.0, 0.0012804),
    ("concurrency", 0.024, 2 / 3, 30.0, 5.0, 0.0025122),
    ("concurrency", 0.0309, 0.8, 120.0, 0.5, 0.00056236),
    ("utilization", 0.0195, 0.6, 60.0, 2.0, 0.0021509),
]
"""Metric, a, G, L, tau, and the gain K = eta c lambda at which DGD-LB and the autoscaler of two groups begin to swing, by simulation."""


def pair(slope, gain, latency, kappa=20.0):
    """Two equal backends at rest, and c lambda."""
    requests = gain * kappa
    mu = slope * (kappa + requests) ** 2 / kappa
    rate = 2 * mu * requests / (kappa + requests)
    curve = dgd.Replicas(dgd.Hyperbolic([mu] * 2, [kappa] * 2), [1.0, 1.0])
    return dgd.Network([rate], [[latency] * 2], curve), 2 * (kappa + requests) / (mu * kappa) * rate


def rule_of(metric, gain, startup, kappa=20.0, law=Proportional, **options):
    target = gain * kappa if metric == "concurrency" else gain / (1 + gain)
    if law is Proportional:
        options["time_constant"] = 1e-6
    return law(target, startup, metric=metric, least=1e-6, **options)


@pytest.fixture(scope="module")
def pairs(quick_compilation):
    """Both networks of numbers, one batch."""
    made = [pair(slope, gain, latency) for _, slope, gain, _, latency, _ in BALANCED]
    networks = dgd.stack([network for network, _ in made])
    return networks, dgd.solve_optimum(networks), np.array([strength for _, strength in made])


@jax.jit
def matrices(loop, frequency):
    return jax.vmap(lambda one: jax.vmap(one.matrix)(frequency))(loop)


def test_the_gain_at_which_balancer_and_autoscaler_swing(pairs):
    """At the numbers of independent simulations an eigenvalue of the loop passes through -1; defaults are a quarter of them."""
    networks, optima, strength = pairs
    metric, _, gain, startup, _, limit = map(np.array, zip(*BALANCED[:3], strict=True))
    assert set(metric) == {"concurrency"}
    column = lambda values: jnp.asarray(values)[:3, None]
    rule = rule_of("concurrency", column(gain), column(startup))
    three = jax.tree.map(lambda leaf: leaf[:3], (networks, optima))
    loops = each_network(_loop, three[0], dgd.DGDLB(1.0), three[1], column(limit / strength[:3]), rule)
    values = np.linalg.eigvals(np.asarray(matrices(loops, jnp.geomspace(0.01, 0.3, 1500))))
    assert (np.abs(1 + values).min((1, 2)) < 4e-3).all()
    own = np.asarray(dgd.default_step_size(*three, autoscaler=rule))[:, 0] * strength[:3]
    np.testing.assert_allclose(own, limit / 4, rtol=0.06)
    plain = np.asarray(dgd.default_step_size(networks, optima))[:, 0] * strength
    np.testing.assert_allclose(plain / [case[-1] for case in BALANCED], [0.95, 0.24, 13.7, 0.57], rtol=0.02)


@pytest.mark.full
@pytest.mark.parametrize("k", range(len(BALANCED)))
def test_critical_step_sizes_beside_an_autoscaler(pairs, k):
    """The search, winding numbers on either side, and a derivative."""
    networks, optima, strength = pairs
    metric, _, gain, startup, _, limit = BALANCED[k]
    network, optimum = networks[k], jax.tree.map(lambda leaf: leaf[k], optima)
    rule = rule_of(metric, gain, startup)
    critical = dgd.critical_mode(network, optimum, autoscaler=rule)
    assert float(critical.step_size) * strength[k] == pytest.approx(limit, rel=1e-3)
    for part, roots in ((0.99, 0), (1.01, 2)):
        policy = dgd.DGDLB(critical.step_size)
        assert dgd.count_unstable_roots(network, policy, optimum, factor=part, autoscaler=rule) == roots
    of = lambda seconds: dgd.critical_step_size(network, optimum, autoscaler=rule_of(metric, gain, seconds))
    slope = jax.grad(of)(startup)
    assert float(slope) == pytest.approx(float(of(startup + 0.01) - of(startup - 0.01)) / 0.02, rel=1e-3)


@pytest.mark.full
@pytest.mark.parametrize(("interval", "away"), [(1.0, 0.02), (15.0, 0.03)])
def test_simulated_swings_of_balancer_and_autoscaler(pairs, interval, away):
    """Kubernetes' law alone, whose hold the prediction counts as a delay."""
    network, optimum = pairs[0][0], jax.tree.map(lambda leaf: leaf[0], pairs[1])
    rule = rule_of("concurrency", 0.6, 60.0, law=HPA.smooth, interval=interval)
    limit = float(dgd.critical_step_size(network, optimum, autoscaler=rule))
    steps = limit * np.array([1 - away, 1 + away])
    runs = dgd.simulate_batch(
        dgd.stack([network] * 2),
        dgd.DGDLB(steps[:, None]),
        duration=10_000.0,
        dt=0.5,
        initial=(np.tile([[0.501, 0.499]], (2, 1, 1)), np.full((2, 2), 12.0)),
        autoscaler=rule,
        save=dgd.SaveAt(20, fields=("workload",)),
    )
    assert grows(runs, runs.workload[..., 0] - runs.workload[..., 1]).tolist() == [False, True]


@pytest.mark.full
def test_autoscalers_decide_the_split():
    """Weights by headroom and hosts, and Kubernetes' law on utilisation: wherever the split begins, there it stays."""
    curve = dgd.Replicas(dgd.Hyperbolic([1.0] * 2, [20.0] * 2), [10.0, 10.0])
    network = dgd.Network([14.0], [[0.2, 0.2]], curve)
    shares = np.array([0.5, 0.55, 0.7])
    hosts = np.stack([20 * shares, 20 * (1 - shares)], axis=1)
    networks = dgd.stack([network] * 3)
    networks = dgd.Network(
        networks.arrival_rate,
        networks.latency,
        dgd.Replicas(dgd.Hyperbolic(np.ones((3, 2)), np.full((3, 2), 20.0)), hosts),
    )
    each = 20 * 0.7 / 0.3
    start = np.stack([shares, 1 - shares], axis=1)[:, None], hosts * each * np.array([1.1, 0.95])
    policy = dgd.EnvoyLoadAwareLocality(local="none", host_capacity=1.0)
    runs = dgd.simulate_batch(
        networks, policy, duration=20_000.0, dt=1.0, initial=start, autoscaler=HPA.smooth(0.7, 60.0),
        save=dgd.SaveAt(1000, fields=("routing",)),
    )  # fmt: skip
    np.testing.assert_allclose(runs.routing[:, -1, 0, 0], shares, atol=0.03)
    np.testing.assert_allclose(runs.routing[:, -1], runs.routing[:, -2], atol=1e-4)


@pytest.mark.full
def test_a_jump_of_load_takes_rounds_of_start_up():
    """Utilisation saturates at 1, so that capacity grows by 1 / u* in a round: ceil(ln 3 / ln(1 / 0.7) - 1) = 3 rounds, all but the last
    of whole intervals, and up to an interval before the first."""
    network = group(0.04 * 0.7 / 0.3, 0.04, 1.0, 20.0)
    rate = float(network.arrival_rate[0])
    for at in (16.0, 29.0):
        jump = network.with_arrival_rate(dgd.Jumps([at], [[rate], [3 * rate]]))
        rule = HPA.smooth(0.7, 119.0, averages=False)
        run = dgd.simulate(jump, dgd.Uniform(), duration=500.0, dt=0.01, autoscaler=rule, save=dgd.SaveAt(100))
        enough = float(run.time[np.argmax(np.asarray(run.replicas[:, 0]) >= 3 * rate)]) - at
        assert 359 <= enough <= 374


@pytest.mark.full
@pytest.mark.parametrize(
    ("gain", "slope", "window", "cycles"),
    [(2.5, 0.0163, 0.0, ()), (2.5, 0.0163, 300.0, (60, 120, 240)), (2.0, 0.0074, 300.0, ()), (2.5, 0.0163, None, (60, 120, 240))],
)  # fmt: skip
def test_removal_at_once_and_its_window(gain, slope, window, cycles):
    """Of removal at once nothing swings; a window on the way down brings the delay back; removal as slow as start-up (None) swings from the
    symmetric limit of 44.6 s on."""
    kappa = 20.0
    requests = gain * kappa
    network = group(requests, kappa, slope * (kappa + requests) ** 2 / kappa, 4.0)
    found = []
    for startup in (15, 30, 60, 120, 240):
        removal = {"removal": "delayed"} if window is None else {"removal": "at once", "scale_down": Behavior(window)}
        rule = HPA.smooth(requests, float(startup), metric="concurrency", **removal)
        start = [[1.0]], [4 * requests * 1.3]
        save = dgd.SaveAt(10, fields=("workload",))
        run = dgd.simulate(network, dgd.Uniform(), duration=30_000.0, dt=1.0, initial=start, autoscaler=rule, save=save)
        if np.ptp(np.asarray(run.workload)[-600:]) > 0.04 * requests:
            found.append(startup)
    assert tuple(found) == cycles
