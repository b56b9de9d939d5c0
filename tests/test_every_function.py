"""Legal extremes for every public function: a right value against an independent one, or one sentence.

The networks are those of `test_extremes`, where the optimum, shadow prices and step sizes are checked; here is what follows from them.
"""

import jax
import numpy as np
import optax
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.stability import conditions
from helpers import single_precision
from test_extremes import CASES, network

pytestmark = pytest.mark.usefixtures("quick_compilation")

MORE = {
    "one backend each": (network(mask=np.eye(2, dtype=bool)), None, 1.0, 1.0),
    "no latency": (network(latency=np.zeros((2, 2))), None, 1.0, 1.0),
    "identical": (network((3.0, 3.0), latency=np.full((2, 2), 0.1)), None, 1.0, 1.0),
    "one free link": (network(latency=np.array([[0.0, 0.1], [0.1, 0.0]])), None, 1.0, 1.0),
    "instant service": (network(half=(1e-12, 1e-12)), None, 1.0, 1.0),
    "endless service": (network(half=(1e12, 1e12)), None, 1.0, 1.0),
    "no traffic": (network((0.0, 0.0)), None, 1.0, 1.0),
}
ALL = CASES | MORE
NAMES = list(ALL)


@pytest.fixture(scope="module")
def found(quick_compilation):
    """Everything that takes a batch, for all cases at once."""
    batch = dgd.stack([case[0] for case in ALL.values()])
    optimum = dgd.solve_optimum(batch)
    step = dgd.default_step_size(batch, optimum)
    policy = dgd.DGDLB(step)
    return {
        "optimum": optimum,
        "prices": dgd.shadow_prices(batch),
        "step": step,
        "decay": dgd.slowest_decay_rate(batch, step, optimum),
        "drain": dgd.drain_time(batch, step, optimum),
        "dt": dgd.suggest_dt(batch, step, optimum),
        "chatter": dgd.suggest_dt(batch, None, optimum, jumps=True),
        "duration": dgd.suggest_duration(batch, step, optimum),
        "linear": dgd.linearise(batch, policy, optimum),
        "roots": dgd.characteristic_roots(batch, policy, optimum, count=8),
        "critical": dgd.critical_mode(batch, optimum),
        "conditions": {rule.__name__: dgd.sufficient_step_size(batch, optimum, condition=rule) for rule in PROVEN},
    }


PROVEN = (conditions.distributed, conditions.theorem_b, conditions.theorem_c, conditions.best_proven)


def of(found, name):
    case, _, unit, second = ALL[name]
    return case, jax.tree.map(lambda leaf: np.asarray(leaf[NAMES.index(name)]), found), unit, second


def curve(case, workload):
    """Slope and gain of hyperbolic curves, from their formula: mu k / (k + N)^2, and d/dN of its reciprocal."""
    mu, k = np.asarray(case.service.max_rate), np.asarray(case.service.half_load)
    return mu * k / (k + workload) ** 2, 2 * (k + workload) / (mu * k)


RESOLVED = [
    name for name in NAMES if name != "saturated"
]  # its resonance takes 65 536 frequencies, and more: see test_noise


def test_randomness_costs_what_is_proven(found):
    """A fixed routing costs half of gain times rate; at the default step size following the noise adds at most a third of that. Both are
    there in units of any size."""
    keep = np.array([NAMES.index(name) for name in RESOLVED])
    batch = dgd.stack([ALL[name][0] for name in RESOLVED])
    optimum, step, mode = jax.tree.map(lambda leaf: leaf[keep], (found["optimum"], found["step"], found["critical"]))
    noise = dgd.noise(batch, dgd.DGDLB(step), optimum, scale=4.0, throw=False)
    suggested = dgd.suggest_step_size(batch, optimum, horizon=100.0)
    optimum, mode, noise, suggested = jax.tree.map(np.asarray, (optimum, mode, noise, suggested))
    assert (noise.result == Result.successful).all()
    for k, name in enumerate(RESOLVED):
        case = ALL[name][0]
        slope, gain = curve(case, optimum.workload[k])
        served = np.asarray(case.arrival_rate) @ optimum.routing[k]
        total = max(float(case.arrival_rate.sum()), 1e-300)
        assert noise.static[k] == pytest.approx(gain @ served / (2 * 4 * total), rel=1e-9), name
        assert -1e-9 <= noise.jitter[k] / max(noise.static[k], 1e-300) <= 1 / 3, name
        spread = noise.workload_variance[k] - 4 * np.where(served > 0, served / slope, 0)
        assert noise.jitter[k] == pytest.approx(
            (slope * gain) @ spread / (2 * 16 * total), rel=1e-6, abs=1e-9 * float(noise.static[k])
        ), name
        most = mode.step_size[k]
        assert (suggested[k] >= 0).all(), name
        assert (suggested[k] <= most / 2 * (1 + 1e-9)).all(), name


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_nan_and_nothing_fails(found, name):
    _, here, *_ = of(found, name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(here):
        assert leaf.dtype.kind not in "fc" or not np.isnan(leaf).any(), jax.tree_util.keystr(path)
    assert here["optimum"].result == Result.successful
    assert here["critical"].result == Result.successful
    np.testing.assert_allclose(here["optimum"].routing.sum(1), 1, rtol=1e-12)
    for field in ("dt", "chatter", "duration"):
        assert 0 < here[field] < np.inf
    assert here["roots"].residual[np.isfinite(here["roots"].roots)].max(initial=0) < 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_the_linearisation_by_hand(found, name):
    """At the optimum of hyperbolic curves; the gap of 1e-9 is at most its square root in a workload, 1e-5 from saturation 1e-9 of it."""
    case, here, *_ = of(found, name)
    slope, gain = curve(case, here["optimum"].workload)
    living = np.asarray(here["linear"].point.used).any(0)
    np.testing.assert_allclose(here["linear"].point.slope[living], slope[living], rtol=1e-6)
    np.testing.assert_allclose(here["linear"].point.gain[living], gain[living], rtol=1e-6)
    for rates, a, response in zip(
        [here["step"]], [here["linear"].point.support], [here["linear"].response], strict=True
    ):
        share = a / np.maximum(a.sum(1, keepdims=True), 1)
        projector = np.where(a[:, :, None] & a[:, None], np.eye(2) - share[:, None], 0)
        expected = -rates[:, None, None] * projector * np.where(living, gain, 0)
        np.testing.assert_allclose(response, expected, rtol=1e-6, atol=1e-12 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_shadow_prices_by_hand(found, name):
    """The envelope theorem: d mean / d lambda_i = (nu_i - mean) / Lambda, d mean / d cost_ij = flow_ij / Lambda."""
    case, here, *_ = of(found, name)
    optimum, rate = here["optimum"], np.asarray(case.arrival_rate)
    if rate.sum() == 0:
        np.testing.assert_array_equal(optimum.mean_latency, 0)
        return
    sends = rate > 0
    expected = (optimum.multiplier - optimum.mean_latency) / rate.sum()
    scale = np.abs(expected[sends]).max() + optimum.mean_latency / rate.sum()
    np.testing.assert_allclose(here["prices"].request[sends], expected[sends], rtol=1e-6, atol=1e-9 * scale)
    flow = rate[:, None] * optimum.routing
    np.testing.assert_allclose(here["prices"].latency, flow / rate.sum(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_decay_of_small_step_sizes_by_hand(found, name):
    """The smaller of the slowest service and of the slowest mode of A^-1 sum_i lambda_i eta_i P_i C; here of one number at most."""
    case, here, *_ = of(found, name)
    slope, gain = curve(case, here["optimum"].workload)
    point = here["linear"].point
    living, rate = point.used.any(0), np.asarray(case.arrival_rate)
    if not living.any():
        assert np.isinf(here["decay"])
        return
    strength = (rate * here["step"])[point.support.all(1)].sum()
    mode = strength / 2 * (gain / slope).sum() if strength > 0 else np.inf
    assert float(here["decay"]) == pytest.approx(min(slope[living].min(), mode), rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_time_step_by_hand(found, name):
    """A tenth of the shortest service bounds it. A run lasts until the slowest deviation has fallen to 1 %: log(100) = 4.6."""
    case, here, *_ = of(found, name)
    shortest = np.asarray(case.service.half_load / case.service.max_rate)[np.asarray(case.backend_mask)].min()
    assert here["dt"] <= 0.1 * shortest * (1 + 1e-9)
    assert here["duration"] * here["decay"] >= np.log(100)


@pytest.mark.parametrize("name", NAMES)
def test_limits_and_roots_agree(found, name):
    """Far below the limit all roots are stable; proven step sizes are below it; nothing swings where nobody has a choice."""
    _, here, *_ = of(found, name)
    limit, step = float(here["critical"].step_size), here["step"]
    choice = here["linear"].point.support.any()
    assert here["roots"].abscissa < 0
    if not choice:
        assert np.isinf(limit)
        assert here["critical"].frequency == 0
    assert step[here["linear"].point.support.any(1)].max(initial=0) < limit
    for rule, proven in here["conditions"].items():
        if rule in ("theorem_b", "theorem_c") and np.isfinite(limit):  # equal step sizes, as the limit is for
            assert 0 < proven.max() <= limit * (1 + 1e-9), rule


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] is not None])
def test_extremes_are_what_ordinary_networks_are(found, name):
    reference = CASES[name][1]
    (_, here, unit, second), (_, there, *_) = of(found, name), of(found, reference)
    living = there["linear"].point.used.any(0)
    assert float(here["roots"].abscissa) * second == pytest.approx(float(there["roots"].abscissa), rel=1e-6)
    assert float(here["decay"]) * second == pytest.approx(float(there["decay"]), rel=1e-6)
    np.testing.assert_allclose(
        here["linear"].point.slope[living] * second, there["linear"].point.slope[living], rtol=1e-6
    )
    np.testing.assert_allclose(
        here["linear"].point.gain[living] * unit / second, there["linear"].point.gain[living], rtol=1e-6
    )
    if unit != 1 or second != 1:
        for field in ("dt", "chatter", "duration", "drain"):
            assert float(here[field]) / second == pytest.approx(float(there[field]), rel=1e-6), field


def test_what_is_no_optimum_has_no_stability():
    """More demand than capacity: the sentence of `solve_optimum`, or its code, and never a limit or a stable root."""
    overload = network((9.0, 9.0))
    none = dgd.solve_optimum(overload, throw=False)
    assert none.result == Result.infeasible
    mode = dgd.critical_mode(overload, none, throw=False)
    assert mode.result == Result.infeasible
    assert np.isnan(mode.step_size)
    for call in (
        lambda: dgd.critical_step_size(overload, none),
        lambda: dgd.characteristic_roots(overload, none),
        lambda: dgd.count_unstable_roots(overload, dgd.DGDLB(0.1), none),
        lambda: dgd.sufficient_step_size(overload, none),
        lambda: dgd.best_step_size(overload, none),
        lambda: dgd.shadow_prices(overload),
    ):
        with pytest.raises(InputError, match="short by 2 requests/s; add capacity there"):
            call()


def test_the_collocation_counts_its_memory():
    """Equal delays are one term, so identical backends take no matrix for each arc."""
    refused = pytest.raises(
        InputError, match=r"collocation of 4 equations with 1 delays .* 0.054 GB .* count_unstable_roots"
    )
    with device.assumed(memory=5e7), refused:
        dgd.characteristic_roots(ALL["identical"][0])


DGD = {"duration": 2.0, "dt": 0.1, "save": dgd.SaveAt.statistics()}


@pytest.mark.full
@pytest.mark.parametrize("name", [k for k in NAMES if k not in ("instant service", "slow", "fast", "endless service")])
def test_exact_gradients_at_rest_by_hand(found, name):
    """Where nothing moves, one more request costs 1 / ell'(N) + cost on every arc, whoever reacts (DESIGN 2.4)."""
    case, here, *_ = of(found, name)
    start = here["optimum"].routing, here["optimum"].workload
    policy = dgd.DGDLB(here["step"])
    gradients = dgd.marginal_latency(
        case, policy, duration=1.0, dt=0.1, every=5, run_on=200.0, max_latency=0.2, initial=start, throw=False
    )
    slope, _ = curve(case, here["optimum"].workload)
    living = here["linear"].point.used.any(0)
    exact = np.where(np.asarray(case.mask), 1 / slope + np.asarray(case.cost_latency), np.inf)
    # A workload of 1e6 is known to 1e-9 of itself; idle backends begin to be charged as soon as a trickle arrives.
    for found_then in gradients.open_loop[:2]:
        np.testing.assert_allclose(found_then[:, living], exact[:, living], rtol=2e-3)
    assert int(gradients.result) in (Result.successful, Result.not_settled)
    assert np.isnan(gradients.closed_loop).any() == (int(gradients.result) == Result.not_settled)


@pytest.mark.full
@pytest.mark.parametrize("name", ["ordinary", "silent frontend", "huge rates", "tiny rates", "saturated", "no traffic"])
def test_tuning_is_never_worse_than_its_start(name):
    case = ALL[name][0]
    step = np.maximum(np.asarray(dgd.default_step_size(case)), 0)
    tuned = dgd.tune(case, dgd.DGDLB(step), optax.adam(0.1), duration=2.0, dt=0.1, iterations=3)
    assert np.isfinite(tuned.history).all()
    assert float(tuned.value) == tuned.history.min() <= tuned.history[0]
    run = dgd.simulate(case, tuned.policy, **DGD)
    assert run.statistics is not None
    assert float(run.statistics.mean_latency) == pytest.approx(float(tuned.value), rel=1e-9)


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["ordinary", "huge rates", "slow", "saturated", "identical", "one free link", "endless service"]
)
def test_limits_against_counted_roots(found, name):
    """The argument principle counts none just below the limit and two just above it; no step size settles faster than the best by 1 %
    (the search begins at a hundredth of the limit, where short latencies leave little to gain)."""
    case, here, *_ = of(found, name)
    limit, optimum = float(here["critical"].step_size), dgd.solve_optimum(case)
    assert dgd.count_unstable_roots(case, dgd.DGDLB(0.999 * limit), optimum) == 0
    assert dgd.count_unstable_roots(case, dgd.DGDLB(1.001 * limit), optimum) == 2
    best = dgd.best_step_size(case, optimum)
    assert float(best.margin) == pytest.approx(limit / float(best.step_size[0]), rel=1e-6)
    for factor in (0.5, 2.0):
        other = dgd.characteristic_roots(case, dgd.DGDLB(factor * best.step_size), optimum).abscissa
        assert float(best.abscissa) <= float(other) + 1e-2 * abs(float(other))


@pytest.mark.full
def test_a_hundred_thousand_steps_in_single_precision():
    """From rest nothing may drift: rounding of 6e-8 a step would come to 6e-3 if it all went one way."""
    exact = dgd.solve_optimum(network())
    with single_precision():
        case = network()
        optimum = dgd.solve_optimum(case)
        run = dgd.simulate(
            case, dgd.DGDLB(0.05), duration=1e4, dt=0.1, save=dgd.SaveAt.statistics(), initial=(optimum.routing, optimum.workload)
        )  # fmt: skip
        assert run.statistics is not None
        assert run.statistics.mean_latency.dtype == np.float32
        assert int(run.result) == Result.successful
    np.testing.assert_allclose(run.final.workload, exact.workload, rtol=2e-3)
    assert float(run.statistics.mean_latency) == pytest.approx(float(exact.mean_latency), rel=1e-5)
    assert float(run.statistics.arrivals) == pytest.approx(6e4, rel=1e-6)


SINGLE = {
    "simulate": lambda batch: dgd.simulate(batch, dgd.DGDLB(1.0), duration=1.0, dt=0.1),
    "simulate_requests": lambda batch: dgd.simulate_requests(
        batch, dgd.DGDLB(1.0), jax.random.key(0), duration=1.0, dt=0.1
    ),
    "marginal_latency": lambda batch: dgd.marginal_latency(batch, dgd.DGDLB(1.0), duration=1.0, dt=0.1),
    "best_step_size": dgd.best_step_size,
    "count_unstable_roots": lambda batch: dgd.count_unstable_roots(batch, dgd.DGDLB(1.0)),
    "compare": dgd.compare,
    "stability_report": dgd.stability_report,
    "latency_at_rest": lambda batch: dgd.latency_at_rest(batch, np.full((2, 2, 2), 0.5)),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_batch_where_one_network_is_wanted_is_refused(name):
    with pytest.raises(InputError, match=rf"^{name} takes a single network, this is a batch of 2:.* network\[0\]"):
        SINGLE[name](dgd.stack([network(), network()]))


def test_tightness_takes_a_single_network_as_a_batch_of_one():
    one = network(mask=np.eye(2, dtype=bool))
    found = dgd.tightness(one)
    assert found.exact.shape == (1,)
    np.testing.assert_array_equal(found.exact, dgd.critical_step_size(one))
