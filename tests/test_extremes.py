"""Dead, idle, tiny and huge things: what every public function says of them, against ordinary networks that must give the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.equilibrium.arguments import known_optimum, policy_and_optimum
from dgdlb_jax.numerics.results import InputError
from helpers import single_precision

pytestmark = pytest.mark.usefixtures("quick_compilation")

LATENCY = np.array([[0.02, 0.15], [0.15, 0.02]])


def network(rate=(4.0, 2.0), most=(8.0, 8.0), half=(20.0, 20.0), *, unit=1.0, second=1.0, latency=LATENCY, **more):
    """Two frontends, two backends; requests counted in `1 / unit` requests and time in `1 / second` seconds."""
    rate, most, half = np.array(rate) * unit / second, np.array(most) * unit / second, np.array(half) * unit
    return dgd.Network(rate, latency * second, dgd.Hyperbolic(most, half), **more)


ONLY_FIRST = np.array([[True, False], [True, False]])
FULL = 1 - 1e-5  # of capacity

# name -> (network, the one whose answers it must give or None, unit, second)
CASES = {
    "ordinary": (network(), None, 1.0, 1.0),
    "silent frontend": (network((4.0, 0.0)), None, 1.0, 1.0),
    "without the second backend": (network(mask=ONLY_FIRST), None, 1.0, 1.0),
    "huge rates": (network(unit=1e100), "ordinary", 1e100, 1.0),
    "tiny rates": (network(unit=1e-100), "ordinary", 1e-100, 1.0),
    "slow": (network(second=1e40), "ordinary", 1.0, 1e40),
    "fast": (network(second=1e-40), "ordinary", 1.0, 1e-40),
    "negligible frontend": (network((4.0, 4e-20)), "silent frontend", 1.0, 1.0),
    "vanishing frontend": (network((4.0, 1e-100)), "silent frontend", 1.0, 1.0),
    "slow backend": (network(most=(8.0, 8e-20)), "without the second backend", 1.0, 1.0),
    "tiny backend": (network(most=(8.0, 8e-20), half=(20.0, 20e-20)), "without the second backend", 1.0, 1.0),
    "vanishing backend": (network(most=(8.0, 8e-100), half=(20.0, 2e-99)), "without the second backend", 1.0, 1.0),
    "saturated": (network((8 * FULL, 8 * FULL), latency=np.full((2, 2), 0.1)), None, 1.0, 1.0),
}
NAMES = list(CASES)


@pytest.fixture(scope="module")
def answers(quick_compilation):
    """Everything that takes a batch, for all cases at once."""
    batch = dgd.stack([case[0] for case in CASES.values()])
    optimum = dgd.solve_optimum(batch)
    return {
        "optimum": optimum,
        "prices": dgd.shadow_prices(batch),
        "default": dgd.default_step_size(batch, optimum),
        "critical": dgd.critical_step_size(batch, optimum),
        "sufficient": dgd.sufficient_step_size(batch, optimum),
        "batch": batch,
    }


def of(answers, name):
    """The answers of one case, in the units of its reference."""
    _, _, unit, second = CASES[name]
    one = jax.tree.map(lambda leaf: np.asarray(leaf[NAMES.index(name)]), answers)
    optimum, prices = one["optimum"], one["prices"]
    return {
        "routing": optimum.routing,
        "workload": optimum.workload / unit,
        "multiplier": optimum.multiplier / second,
        "mean_latency": optimum.mean_latency / second,
        "request": prices.request * unit / second**2,
        "latency": prices.latency,
        "replica": prices.replica / second,
        "default": one["default"] * second**2,
        "critical": one["critical"] * second**2,
        "sufficient": one["sufficient"] * second**2,
    }


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] is not None])
def test_extremes_are_what_ordinary_networks_are(answers, name):
    """Changes of units are exact but for the tolerance of the optimum (gap 1e-9, at most its square root in routing); what is
    left out has a part of 1e-18 at most."""
    reference = CASES[name][1]
    here, there = of(answers, name), of(answers, reference)
    sends = np.asarray(CASES[reference][0].arrival_rate) > 0
    for field in ("routing", "workload", "multiplier", "mean_latency", "critical"):
        np.testing.assert_allclose(here[field], there[field], rtol=1e-6, atol=1e-9, err_msg=field)
    for field in ("request", "latency"):
        np.testing.assert_allclose(here[field], there[field], rtol=1e-5, atol=1e-9, err_msg=field)
    reachable = np.asarray(CASES[reference][0].backend_mask)
    np.testing.assert_allclose(here["replica"][reachable], there["replica"][reachable], rtol=1e-5)
    if reference != "without the second backend":  # there nobody has a choice, and a step size of 0
        for field in ("default", "sufficient"):
            np.testing.assert_allclose(here[field][sends], there[field][sends], rtol=1e-5, err_msg=field)


@pytest.mark.parametrize("name", NAMES)
def test_what_holds_for_every_network(answers, name):
    here = of(answers, name)
    np.testing.assert_allclose(here["routing"].sum(1), 1, rtol=1e-12)
    assert (here["routing"] >= 0).all()
    assert int(answers["optimum"].result[NAMES.index(name)]) == 0
    assert 0 < here["sufficient"].min() <= here["critical"] * (1 + 1e-9)  # equal where all latencies are
    moving = (np.asarray(CASES[name][0].mask).sum(1) > 1) & (np.asarray(CASES[name][0].arrival_rate) > 0)
    assert (here["default"][moving] > 0).all()
    assert (here["default"][~moving] == 0).all()
    assert not np.signbit(here["default"]).any()


def by_hand(workload, total, delay):
    """`DESIGN 2.6` for backends of 8 requests/s and half load 20 that everybody uses: a / (8 c Lambda tau), c = 2 / (20 8 a)^(1/2)."""
    slope = 8 * 20 / (20 + workload) ** 2
    gain = 2 * (20 + workload) / (20 * 8)
    return slope, gain, slope / (8 * gain * total * delay)


@pytest.mark.parametrize("name", ["slow backend", "tiny backend", "vanishing backend"])
def test_a_dead_backend_leaves_the_step_size_to_the_living(answers, name):
    *_, expected = by_hand(20 * 6 / (8 - 6), 6.0, LATENCY[:, 0])
    np.testing.assert_allclose(of(answers, name)["default"], expected, rtol=1e-6)


def test_close_to_saturation_by_hand(answers):
    """One symmetric group: N = kappa r / (mu - r), theta tan(theta) = 2 a tau, K_c = (a / 2 tau) theta / sin(theta)."""
    here, workload, total, delay = of(answers, "saturated"), 20 * FULL / (1 - FULL), 16 * FULL, 0.1
    slope, gain, step = by_hand(workload, total, delay)
    # A rate is known to 1e-16, a workload 1e-5 below saturation to 1e-11 of itself.
    np.testing.assert_allclose(here["workload"], workload, rtol=1e-9)
    np.testing.assert_allclose(here["default"], step, rtol=1e-8)
    theta = np.sqrt(2 * slope * delay)  # theta tan(theta) = theta^2 but for theta^4 / 3 = 1e-20
    limit = slope / (2 * delay) * theta / np.sin(theta)
    assert float(here["critical"]) == pytest.approx(limit / (gain * total), rel=1e-6)


RUN = {"dt": 0.02, "duration": 0.4, "max_latency": 0.15}
SIMULATED = [name for name in NAMES if CASES[name][3] == 1 and name != "saturated"]  # one time step for all


def test_every_optimum_is_at_rest(answers):
    """The simulator, started there, stays there: the equilibria of DGD-LB are the optima."""
    chosen = np.array([NAMES.index(name) for name in SIMULATED])
    batch, optimum, step = jax.tree.map(
        lambda leaf: leaf[chosen], [answers[k] for k in ("batch", "optimum", "default")]
    )
    start = (optimum.routing, optimum.workload)
    run = dgd.simulate_batch(batch, dgd.DGDLB(step), initial=start, save=dgd.SaveAt.final(), **RUN)
    # A tiny backend is charged what the optimum leaves out: a trickle that grows for 0.4 s at eta nu, far below a thousandth.
    for k, name in enumerate(SIMULATED):
        scale = float(optimum.workload[k].max())
        np.testing.assert_allclose(
            run.final.workload[k] / scale,
            optimum.workload[k] / scale,
            atol=2e-3 if "backend" in name else 1e-9,
            err_msg=name,
        )


@pytest.mark.parametrize("factor", [0.0, 1e-300, 1e-9])
def test_a_backend_that_is_out_of_service(factor):
    """Capacity that has fallen to nothing: as if the backend were not there."""
    dead = network(capacity=dgd.Constant([1.0, factor]))
    optimum = dgd.solve_optimum(dead)
    np.testing.assert_allclose(optimum.routing, ONLY_FIRST, atol=1e-12)
    *_, expected = by_hand(60.0, 6.0, LATENCY[:, 0])
    np.testing.assert_allclose(dgd.default_step_size(dead, optimum), expected, rtol=1e-6)
    assert np.isinf(dgd.critical_step_size(dead, optimum))
    assert 0 < dgd.suggest_dt(dead, optimum) < 1
    assert (np.asarray(dgd.shadow_prices(dead).replica) <= 0).all()


@pytest.mark.parametrize("unit", [1e-11, 1e11])
def test_single_precision(unit):
    """As far as rounding goes: the gap is 1e-5 or so, workloads its square root."""
    with single_precision():
        found = dgd.solve_optimum(network(unit=unit))
        step, workload = np.asarray(dgd.default_step_size(network(unit=unit), found)), np.asarray(found.workload)
    exact = dgd.solve_optimum(network())
    np.testing.assert_allclose(workload / unit, exact.workload, rtol=5e-3)
    np.testing.assert_allclose(step, dgd.default_step_size(network(), exact), rtol=2e-2)


def test_a_negligible_frontend_is_compared_and_exported(tmp_path):
    from dgdlb_jax.reports.export import routings
    from dgdlb_jax.reports.exporters import whole_weights

    found = dgd.compare(CASES["negligible frontend"][0], ["dgd-lb"], dt=0.02, duration=0.4)
    for shares in routings(found).values():
        np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-9)
        assert sum(whole_weights(shares[1])) == 10_000
    assert whole_weights(np.asarray(found.optimum.routing[1])) == [0, 10_000]


def refused():
    replicas = dgd.Replicas(dgd.Hyperbolic([8.0, 8.0], [20.0, 20.0]), [1.7e308, 1.0])
    idle = network((0.0, 0.0))
    return {
        "a capacity that overflows": (lambda: dgd.Network([4.0, 2.0], LATENCY, replicas), "nominal capacity of backend 0 is inf"),
        "a rate that underflows": (lambda: network((4.0, 1e-200)), r"arrival rate of frontend 1 is 1e-200 .* 0 or 1.8e-103"),
        "a rate that overflows": (lambda: network().with_arrival_rate([4.0, 1e200]), "arrival rate of frontend 1 is 1e"),
        "a load that overflows": (lambda: network().with_load(1e200), "arrival rate of frontend 0"),
        "a backend that never answers": (
            lambda: network(most=(8.0, 8e-100), backend_names=["x", "y"]), "lone request of backend y is 2.5e.100 s.*mask=False"
        ),
        "a link that never ends": (lambda: network(latency=LATENCY * 1e60), r"latency of arc 0, 0 is 2e\+58 s"),
        "a longer link": (lambda: network().with_latency_scale(1e60), "latency of arc 0, 0"),
        "a capacity factor": (lambda: network(capacity=dgd.Constant([1.0, 1e60])), "capacity factor of backend 1"),
        "one of a batch": (
            lambda: dgd.stack([network(), network()]).with_arrival_rate(np.array([[4.0, 2.0], [4.0, 1e200]])),
            "frontend 1 of network 1",
        ),
        "a load of nothing": (lambda: idle.with_load(0.5), "no frontend sends anything"),
        "nothing to compare": (lambda: dgd.compare(idle), "has no traffic"),
        "less than a millionth left": (
            lambda: dgd.solve_optimum(network((8 * (1 - 1e-7), 8 * (1 - 1e-7)))), "only 1e-07 of that is left"
        ),
        "nothing that serves": (
            lambda: dgd.solve_optimum(network(mask=np.eye(2, dtype=bool), capacity=dgd.Constant([1.0, 0.0]))), "short by 2 "
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", refused())
def test_the_rest_is_refused_in_one_sentence(case):
    call, words = refused()[case]
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert str(caught.value).count(". ") == 0


def test_a_backend_that_is_left_out_may_be_anything():
    assert network(most=(8.0, 8e-100), mask=ONLY_FIRST).backends == 2


def test_each_network_of_a_batch_is_looked_at():
    """A measured curve sums over its leading axis, which in a batch is that of the networks."""
    curve = dgd.fit_service([1.0, 2.0, 4.0, 8.0], [1.0, 1.8, 3.0, 4.0]).service
    networks = dgd.stack([dgd.Network([1.0, 2.0], LATENCY, dgd.concatenate([curve, curve]))] * 3)
    np.testing.assert_allclose(networks.with_load([0.3, 0.5, 0.6]).load, [0.3, 0.5, 0.6], rtol=1e-12)
    with pytest.raises(InputError, match="arrival rate"):
        networks.with_load([0.3, 1e200, 0.6])


def test_single_precision_has_a_range_of_its_own():
    with single_precision(), pytest.raises(InputError, match=r"float32 can compute with 0 or 1.4e-13 to 7e"):
        network((4.0, 1e30))
    assert network((4.0, 1e30), (8.0, 8e30), (20.0, 2e31)).load > 0


ORDERS = {
    "critical_step_size": (dgd.critical_step_size, dgd.DGDLB(1.0)),
    "critical_mode": (lambda *given: dgd.critical_mode(*given).step_size, dgd.DGDLB(1.0)),
    "linearise": (lambda *given: dgd.linearise(*given).response, dgd.DGDLB(1.0)),
    "characteristic_roots": (lambda *given: dgd.characteristic_roots(*given).abscissa, dgd.DGDLB(0.1)),
    "count_unstable_roots": (dgd.count_unstable_roots, dgd.DGDLB(0.1)),
    "suggest_dt": (dgd.suggest_dt, dgd.DGDLB(0.1)),
    "suggest_duration": (dgd.suggest_duration, dgd.DGDLB(0.1)),
    "slowest_decay_rate": (dgd.slowest_decay_rate, 0.1),
    "drain_time": (dgd.drain_time, 0.1),
}


SLOW_TO_COMPILE = {
    "critical_step_size",
    "characteristic_roots",
    "count_unstable_roots",
    "critical_mode",
    "suggest_duration",
}


@pytest.mark.parametrize("name", [pytest.param(k, marks=[pytest.mark.full] * (k in SLOW_TO_COMPILE)) for k in ORDERS])
def test_an_optimum_is_told_apart_by_its_type(name):
    function, subject = ORDERS[name]
    optimum = dgd.solve_optimum(network())
    expected = function(network(), subject, optimum)
    np.testing.assert_array_equal(function(network(), optimum, subject), expected)
    if name in ("critical_step_size", "critical_mode", "linearise"):
        np.testing.assert_array_equal(function(network(), optimum), expected)


def test_the_policy_may_stand_on_either_side(answers):
    """With what the table has compiled: there the optimum follows the network directly."""
    batch, optimum = answers["batch"], answers["optimum"]
    for given in ((dgd.DGDLB(1.0), optimum), (optimum, dgd.DGDLB(1.0))):
        np.testing.assert_array_equal(dgd.critical_step_size(batch, *given), answers["critical"])


def test_what_is_no_optimum_and_no_policy_is_named():
    optimum = dgd.solve_optimum(network())
    policy = dgd.DGDLB(0.1)
    for call, words in (
        (lambda: known_optimum("f", network(), policy), "f: optimum is a DGDLB; give solve_optimum.network. there"),
        (
            lambda: policy_and_optimum("f", network(), 0.1, optimum),
            "f: policy is a float; give dgdlb_jax.DGDLB.step_size. there",
        ),
        (lambda: policy_and_optimum("f", network(), optimum, 0.1), "f: policy is a float"),
        (lambda: policy_and_optimum("f", network(), policy, policy), "f: optimum is a DGDLB"),
        (lambda: policy_and_optimum("f", network(), optimum, optimum), "f: policy is a Optimum"),
        (lambda: dgd.suggest_dt(network(), dgd.Uniform()), "suggest_dt: step_size is a Uniform"),
        (lambda: dgd.suggest_dt(dgd.stack([network()]), optimum), "needs .1, 2, 2."),
    ):
        with pytest.raises(InputError, match=words):
            call()


@pytest.mark.parametrize(
    "policy", [dgd.DGDLB, dgd.LogDGDLB, dgd.MirrorDescent, lambda step: dgd.SampledDGDLB(step, 1.0)]
)
@pytest.mark.parametrize(
    ("step", "place"), [([0.1, np.inf, np.inf], "[1]"), ([[0.1, 0.1], [0.1, -1.0]], "[1, 1]"), (np.inf, "")]
)
def test_a_step_size_that_is_none_is_found(policy, step, place):
    with pytest.raises(InputError) as caught:
        policy(np.array(step))
    assert f".step_size{place} is " in str(caught.value)
    assert "jnp.where" in str(caught.value)


def test_a_derivative_of_a_link_goes_through_all_three_latencies():
    """At a fixed flow: a link that is slower by one second costs each of its requests a second, and is seen a second later."""
    base, flow = network(), np.array([[3.0, 1.0], [0.0, 2.0]])

    def cost(latency):
        changed = base.with_latency(latency)
        return (flow * changed.cost_latency).sum() / 6 + changed.latency[0, 1] + 10 * changed.feedback_latency[1, 0]

    np.testing.assert_allclose(jax.grad(cost)(base.latency), flow / 6 + np.array([[0.0, 1.0], [10.0, 0.0]]), rtol=1e-12)


@pytest.mark.full
def test_a_slower_link_is_slower_in_all_it_does():
    """Through all three latencies: the envelope theorem gives the derivative of the mean latency, flow / Lambda, and differences
    agree (error h^2, gap 1e-9 / h)."""
    base = network()
    optimum = dgd.solve_optimum(base)
    flow = np.asarray(base.arrival_rate)[:, None] * np.asarray(optimum.routing)

    def mean(latency):
        return dgd.solve_optimum(base.with_latency(latency), throw=False).mean_latency

    gradient = jax.grad(mean)(base.latency)
    np.testing.assert_allclose(gradient, flow / 6, rtol=1e-6, atol=1e-9)
    nudge, h = jnp.zeros((2, 2)).at[0, 0].set(1.0), 1e-4
    difference = (mean(base.latency + h * nudge) - mean(base.latency - h * nudge)) / (2 * h)
    assert float(gradient[0, 0]) == pytest.approx(float(difference), rel=1e-5)
    twice = base.with_latency(base.latency, round_trip=True)
    np.testing.assert_array_equal(twice.cost_latency, 2 * base.latency)


def test_a_new_link_replaces_all_three_latencies():
    own = network(feedback_latency=LATENCY + 1, cost_latency=3 * LATENCY, mask=[[True, True], [True, False]])
    changed = own.with_latency(2 * LATENCY)
    for field in ("latency", "feedback_latency", "cost_latency"):
        np.testing.assert_array_equal(getattr(changed, field), np.where(own.mask, 2 * LATENCY, 0), err_msg=field)
    kept = own.with_latency(2 * LATENCY, feedback_latency=own.feedback_latency, cost_latency=own.cost_latency)
    np.testing.assert_array_equal(kept.cost_latency, own.cost_latency)
    np.testing.assert_array_equal(kept.feedback_latency, own.feedback_latency)
    rest = {f.name for f in dataclasses.fields(own)} - {"latency", "feedback_latency", "cost_latency"}
    assert all(getattr(kept, field) is getattr(own, field) for field in rest)
    for call, words in (
        (lambda: own.with_latency([[0.1, -0.1], [0.1, 0.1]]), r"latency\[0, 1\] is -0.1"),
        (lambda: own.with_latency(LATENCY[:1]), "needs .2, 2."),
        (lambda: own.with_latency(LATENCY, cost_latency=LATENCY, round_trip=True), "leave cost_latency out"),
    ):
        with pytest.raises(InputError, match=words):
            call()
