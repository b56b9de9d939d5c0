"""News as it is: reports that are read every so often, held, late and lost, against lists of instants; limits against closed forms and
runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.optimize import brentq

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.fleets import load_news
from dgdlb_jax.fleets.news import parse_news
from dgdlb_jax.model.batch import each_frontend
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import Observation
from dgdlb_jax.policies.estimates import ExponentialAverage, MovingAverage, Scraped, estimated
from dgdlb_jax.reports import policy_limits
from dgdlb_jax.stability.scraped import common_period, scraped_loops
from dgdlb_jax.studies.news import limits_behind_reports
from helpers import central_difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATE, MAX, HALF, LATENCY = 2.0, 3.0, 2.0, 0.5  # one frontend, two equal backends: each serves 1 request/s of at most 3
WORKLOAD = HALF * (RATE / 2) / (MAX - RATE / 2)
SLOPE, GAIN = MAX * HALF / (HALF + WORKLOAD) ** 2, 2 * (HALF + WORKLOAD) / (MAX * HALF)
INTERVALS = np.array([0.3, 1.0, 2.5])


@pytest.fixture(scope="module")
def groups(quick_compilation):
    network = dgd.Network([RATE], jnp.full((1, 2), LATENCY), dgd.Hyperbolic([MAX] * 2, [HALF] * 2))
    networks = dgd.stack([network] * INTERVALS.size)
    return networks, dgd.solve_optimum(networks)


def observation(value, backends, frontends, step):
    one = jnp.full((backends, frontends), value)
    return Observation(
        workload=one, service_rate=one, marginal_latency=one, average_latency=one, cost_latency=one, outstanding=one,
        nominal_capacity=one, mask=one > 0, arrival_rate=one[0], time_step=jnp.full((frontends,), step),
    )  # fmt: skip


def told(estimate, count, step, backends=1, frontends=1, at_instant=True):
    """What is seen of a report that tells the time at which it was read: `(count, backends, frontends)`, from the first step on."""
    look = estimate.at_instant if at_instant else estimate.estimate

    def follow(state, k):
        found, state = look(observation(k * step, backends, frontends, step), state)
        return state, found.workload

    start = estimate.init(observation(0.0, backends, frontends, step))
    return np.asarray(jax.lax.scan(follow, start, jnp.arange(1.0, count + 1))[1])


@pytest.mark.parametrize(("interval", "offset"), [(0.5, 0.0), (0.5, 0.2), (0.73, 0.31)])
def test_reports_are_read_at_instants_of_the_clock(interval, offset):
    """The last instant that is not more than half a step ahead; where it is on the grid, its step has the mean of both reports."""
    step, count = 0.1, 60
    instants = np.concatenate([[0.0], offset + interval * np.arange(offset == 0, 100)])
    nearest = np.round(np.round(instants / step, 9)) * step
    times = step * np.arange(1, count + 1)
    expected = np.array([nearest[nearest <= t + 1e-9].max() for t in times])
    seen = told(Scraped(interval, offset), count, step)[:, 0, 0]
    np.testing.assert_allclose(seen, expected, atol=1e-9)
    middle = told(Scraped(interval, offset), count, step, at_instant=False)[:, 0, 0]
    np.testing.assert_allclose(middle, (seen + np.concatenate([[0.0], seen[:-1]])) / 2, atol=1e-9)


def test_what_is_drawn_has_its_law_and_differs_between_arcs():
    """Intervals, losses and delays of 6 arcs, about 300 reports each; frontends as a network numbers them."""
    step, backends, frontends = 0.02, 2, 3
    network = dgd.Network([1.0] * frontends, jnp.ones((frontends, backends)), dgd.Hyperbolic([9.0] * 2, [1.0] * 2))
    here = lambda estimate: each_frontend(network, estimate, "Scraped")
    gaps = lambda seen: np.diff(np.unique(seen))
    seen = told(here(Scraped(1.0, None, jitter=0.4, seed=5)), 15000, step, backends, frontends)
    every = [gaps(seen[:, j, i]) for j in range(backends) for i in range(frontends)]
    assert all(0.6 - step < gap.min() and gap.max() < 1.4 + step for gap in (each[1:] for each in every))
    together = np.concatenate([gap[1:] for gap in every])
    assert together.mean() == pytest.approx(1, abs=4 * 0.4 / np.sqrt(3 * together.size))
    assert together.std() == pytest.approx(0.4 / np.sqrt(3), rel=0.1)
    firsts = [gap[0] for gap in every]
    assert max(firsts) - min(firsts) > 0.3  # drawn offsets
    correlation = np.corrcoef([gap[1:250] for gap in every]) - np.eye(6)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(250)

    lost = told(here(Scraped(1.0, lost=0.3, seed=5)), 15000, step, backends, frontends)
    missing = np.concatenate([np.round(gaps(lost[:, j, i])) - 1 for j in range(backends) for i in range(frontends)])
    part = missing.sum() / (missing.sum() + missing.size)
    assert part == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / 1800))

    late = told(here(Scraped(1.0, late=0.6, drift=0.2, drift_period=50.0, seed=5)), 15000, step, backends, frontends)
    times = step * np.arange(1, 15001)
    changes = np.flatnonzero(np.diff(late[:, 0, 0])) + 1
    delay = times[changes] - late[changes, 0, 0]
    slow = 0.1 * (1 - np.cos(2 * np.pi * (late[changes, 0, 0] - 1) / 50))
    assert -step < (delay - slow).min()
    assert (delay - slow).max() < 0.6 + step
    assert (delay - slow).mean() == pytest.approx(0.3, abs=4 * 0.6 / np.sqrt(12 * delay.size))
    again = told(here(Scraped(1.0, lost=0.3, seed=5)), 2000, step, backends, frontends)
    np.testing.assert_array_equal(again, lost[:2000])


def test_reports_at_once_change_nothing(groups):
    for policy in (dgd.DGDLB(0.1), dgd.LeastLatency()):
        assert estimated(policy, Scraped(0.0)) is policy
    network = jax.tree.map(lambda leaf: leaf[0], groups[0])
    start = [[0.7, 0.3]], [1.5, 0.5]
    run = lambda policy: dgd.simulate(network, policy, duration=5.0, dt=0.1, initial=start).workload
    for policy in (dgd.DGDLB(0.1), dgd.LeastLatency()):
        traced = jax.jit(lambda interval, policy=policy: run(estimated(policy, Scraped(interval))))
        np.testing.assert_allclose(traced(0.0), run(policy), rtol=1e-13)
        assert np.abs(traced(1.0) - run(policy)).max() > 1e-3


def in_one_group(interval, lost=0.0):
    """The step size at which two equal backends begin to swing: the map over one interval, put together by hand."""
    whole = int(np.ceil(2 * LATENCY / interval - 1e-9))
    rest = whole * interval - 2 * LATENCY
    own = lambda step, time: expm(
        time * np.array([[0, 0, -step * GAIN], [RATE, -SLOPE, 0], [0, 0, 0]])
    )  # share, what it adds to a workload, what is held

    def grows(step):
        size = 3 * (whole + 1)
        state = np.eye(size).reshape(whole + 1, 3, size)  # after the readings of the last instants, the latest first
        now = own(step, interval) @ state[0]
        then = now if whole == 0 else own(step, rest) @ state[whole - 1]
        held = lost * now[2] + (1 - lost) * then[1]
        state = np.concatenate([np.concatenate([now[:2], held[None]])[None], state[:-1]])
        return np.abs(np.linalg.eigvals(state.reshape(size, size))).max() - 1

    first = next(step for step in 0.02 * 1.4 ** np.arange(60) if grows(step) > 1e-9)
    return brentq(grows, first / 1.4, first, rtol=1e-9)


def in_continuous_time(*filters):
    """The same where reports pass filters instead, by their phase and their amplitude at a frequency."""
    behind = lambda w: 2 * w * LATENCY + np.arctan(w / SLOPE) + sum(each(w)[0] for each in filters) - np.pi / 2
    w = brentq(behind, 1e-9, np.pi)
    return w * np.hypot(w, SLOPE) * np.prod([each(w)[1] for each in filters]) / (GAIN * RATE)


def window(time):
    return lambda w: (w * time / 2, (w * time / 2) / np.sin(w * time / 2))


def lag(time):
    return lambda w: (np.arctan(w * time), np.hypot(1, w * time))


def test_limits_in_closed_form(groups):
    """In step, with and without losses; what is lost counts as an average that keeps as much."""
    networks, optimum = groups
    interval = jnp.asarray(INTERVALS)[:, None]
    for lost in (0.0, 0.4):
        policy = estimated(dgd.DGDLB(1.0), Scraped(interval, lost=lost))
        found = dgd.critical_step_size(networks, policy, optimum)
        np.testing.assert_allclose(found, [in_one_group(T, lost) for T in INTERVALS], rtol=1e-6)
    assert in_continuous_time() > in_one_group(0.3) > in_one_group(2.5)


def test_limits_behind_memory_and_without_a_common_period(groups):
    """Short intervals are half of one more delay, also behind an average; clocks without a common period count as averages over their
    interval, which is exact for many that are spread; later news allow less."""
    networks, optimum = groups
    one, best = jax.tree.map(lambda leaf: leaf[0], (networks, optimum))
    limit = lambda *estimates: float(dgd.critical_step_size(one, estimated(dgd.DGDLB(1.0), *estimates), best))
    smoothed = limit(Scraped(0.05), ExponentialAverage(1.0))
    assert smoothed == pytest.approx(in_continuous_time(window(0.05), lag(1.0)), rel=1e-3)
    apart = limit(Scraped(jnp.array([[1.0, 1 + 1e-4 * np.sqrt(2)]])))
    assert apart == pytest.approx(in_continuous_time(window(1.0)), rel=1e-3)
    assert limit(Scraped(1.0, late=0.5, drift=0.4)) < limit(Scraped(1.0, late=0.5)) < limit(Scraped(1.0))


def test_common_periods():
    assert common_period(np.array([15.0, 10.0])) == pytest.approx(30)
    assert common_period(np.array([0.3, 0.45, 0.75])) == pytest.approx(4.5)
    assert common_period(np.array([1.0, 1.03])) is None  # 103 of the shortest
    assert common_period(np.array([1.0, np.sqrt(2)])) is None


def growth(networks, policy, optimum, duration, step):
    """By how much the change of workloads from interval to interval grows in a second, in the second half of a run from close to rest."""
    kick = 1 + 1e-7 * np.random.default_rng(0).standard_normal(
        optimum.workload.shape
    )  # below which no idle arc comes into use
    start = optimum.routing, optimum.workload * kick
    save = dgd.SaveAt(every=20, fields=("workload",))
    run = dgd.simulate_batch(networks, policy, duration=duration, dt=step, initial=start, save=save, throw=False)
    moved = np.abs(np.diff(np.asarray(run.workload), axis=1)).max(-1)
    quarter = moved.shape[1] // 4
    sizes = [np.log(moved[:, k * quarter : (k + 1) * quarter].max(1)) for k in (1, 3)]
    return (sizes[1] - sizes[0]) / (2 * quarter * 20 * np.asarray(step))


def test_runs_grow_and_die_out_as_predicted(groups):
    """1 % below and above the limit, at the rate of the multipliers, all three intervals in one batch; a fifth of the difference that
    1 % makes is allowed."""
    networks, optimum = groups
    twice = lambda tree: jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), tree)
    interval = jnp.tile(jnp.asarray(INTERVALS), 2)[:, None]
    rule = lambda step: estimated(dgd.DGDLB(step), Scraped(interval, jnp.full((1, 1), 0.1)))
    networks, optimum = twice((networks, optimum))
    limit = dgd.critical_step_size(networks, rule(1.0), optimum)
    policy = rule((limit * jnp.array([0.99, 0.99, 0.99, 1.01, 1.01, 1.01]))[:, None])
    found = growth(networks, policy, optimum, 400 * interval[:, 0], interval[:, 0] / 20)
    loops = scraped_loops(networks, each_frontend(networks, policy, "policy"), optimum, jnp.ones((6, 1)))
    expected = np.array([np.log(loop.at(1.0).radius()) / loop.period for loop in loops])
    assert (expected[:3] < 0).all()
    assert (expected[3:] > 0).all()
    np.testing.assert_allclose(found, expected, atol=0.2 * np.abs(expected).max())
    assert (np.sign(found) == np.sign(expected)).all()


def test_what_is_refused(groups):
    networks, optimum = groups
    for arguments, sentence in (
        ({"interval": -1.0}, r"Scraped.interval is -1, but must be finite and not negative, seconds"),
        ({"interval": 15.0, "lost": 1.0}, r"Scraped.lost is 1, but must be at least 0 and below 1"),
        ({"interval": 15.0, "jitter": -0.1}, r"Scraped.jitter is -0.1"),
        ({"interval": 15.0, "offset": 16.0}, r"Scraped.offset is 16 s, but must be at most the interval of 15 s"),
        ({"interval": 15.0, "jitter": 0.5, "late": 8.0}, r"may be 8 s late .* shortest interval of 7.5 s"),
        ({"interval": 0.0, "lost": 0.1}, r"Scraped.interval is 0, but reports that are lost"),
        ({"interval": 1.0, "seed": -1}, r"Scraped.seed is -1: give a whole number"),
        ({"interval": 1.0, "drift_period": 0.0}, r"Scraped.drift_period is 0"),
    ):
        with pytest.raises(InputError, match=sentence):
            Scraped(**arguments)
    behind = lambda *estimates: estimated(dgd.DGDLB(1.0), *estimates)
    with pytest.raises(InputError, match=r"first estimate and the only one of its kind"):
        dgd.critical_step_size(networks, behind(ExponentialAverage(1.0), Scraped(1.0)), optimum)
    with pytest.raises(InputError, match=r"moving average of reports that are held"):
        dgd.critical_step_size(networks, behind(Scraped(1.0), MovingAverage(1.0)), optimum)
    with pytest.raises(InputError, match=r"critical_step_size\(network, policy\) has its limit"):
        dgd.linearise(networks, behind(Scraped(1.0)), optimum)


@pytest.fixture
def command(capsys):
    """`dgdlb stability` in this process."""

    def run(*options) -> tuple[int, str, str]:
        code = main(["stability", *map(str, options), "--quiet", "--no-files"])
        return code, *capsys.readouterr()

    return run


def test_a_picture_over_step_size_and_interval_has_both_limits(tmp_path):
    """Simulated runs turn at the limit with every report at once, which that behind ever fresher reports goes to: they are held for half
    an interval on average. Behind each interval the limit is that of a network alone."""
    fleet = dgd.load_fleet("two-by-two")
    report = policy_limits.policy_report(fleet, "mirror-descent", {})
    assert isinstance(report, policy_limits.FactorReport)
    limit = float(report.mode.step_size)
    assert report.simulated == pytest.approx((0.98 * limit, 1.02 * limit))
    case = fleet, report.policy, report.optimum
    trip = float((fleet.latency + fleet.feedback_latency).max())
    found = limits_behind_reports(*case, np.array([0.02 * trip, 5.0]))
    assert found[0] == pytest.approx(limit / 1.01, rel=0.01)
    alone = dgd.critical_step_size(fleet, estimated(report.policy, Scraped(5.0)), report.optimum)
    assert found[1] == pytest.approx(float(alone), rel=1e-6)
    pytest.importorskip("matplotlib", reason="install the cli extra")
    (picture,) = policy_limits.save_pictures(report, tmp_path)
    assert picture.stat().st_size > 10_000


def test_the_command_says_the_limit_behind_reports(command, tmp_path, monkeypatch):
    """As the fleet's file has them and as the command line does; simulated edges on both sides of it."""
    fleet = dgd.load_fleet("two-by-two")
    optimum, news = dgd.solve_optimum(fleet), Scraped(5.0, offset=2.0)
    policy = dgd.DGDLB(dgd.default_step_size(fleet, optimum, averaging=5.0))
    limit = float(dgd.critical_step_size(fleet, estimated(policy, news), optimum))
    code, text, _ = command("two-by-two", "--news", "interval=5,offset=2", "--json")
    found = json.loads(text)
    assert code == 0
    assert found["limit_over_now"] == pytest.approx(limit, rel=1e-6)
    assert found["limit_over_now_with_reports_at_once"] > 2 * limit
    assert found["simulated_stable"] == pytest.approx(0.98 * limit)
    assert found["simulated_unstable"] == pytest.approx(1.02 * limit)
    monkeypatch.setenv("DGDLB_PATIENCE", "1e-9")  # one simulation is enough
    path = tmp_path / "mine.toml"
    fleet.to_toml(path)
    toml = path.read_text().replace('name = "two-by-two"', 'name = "mine"')
    path.write_text(toml + "\n[news]\ninterval_s = [5, 6]\nlost = 0.1\n")
    assert load_news(path).interval.tolist() == [5.0, 6.0]
    code, text, _ = command(path)
    assert text.startswith("mine: DGD-LB, reports every 5.00 s to 6.00 s, 10 % lost\n  limit of step_size (now ")
    for wrong, sentence in (
        ("lst = 0.1", 'mine.toml:'), ("offset_s = true", "news.offset_s is True"), ("lost = 1.0", "news.lost is 1, but must be"),
        ('offset_s = "rand"', 'news.offset_s is "rand": give seconds, or "random".'), ("offset_s = 6", "news.offset_s is 6 s, but must"),
        ("interval_s = -1", "news.interval_s is -1, but must be"),
    ):  # fmt: skip
        path.write_text(toml + f"\n[news]\n{'' if 'interval' in wrong else 'interval_s = 5'}\n{wrong}\n")
        code, text, error = command(path)
        assert (code, text) == (2, "")
        assert sentence in error


@pytest.mark.parametrize(
    ("news", "expected"),
    [
        (
            "interval=5,lst=1",
            "there is no 'lst': choose from interval, offset, late, drift, drift_period, jitter",
        ),
        ("interval=5,interval=15", "interval stands there twice: leave one out."),
        ("lost=.1", "give the interval as well, in seconds, such as interval=15."),
        ("interval=a", "interval is 'a': give a number."),
        ("interval=5,seed=1.5", "seed is '1.5': give a whole number."),
        ("interval=5,offset=drawn", "offset is 'drawn': give a number, or random."),
        ("interval=3,late=4", "--news interval=3,late=4: reports may be 4 s late"),
        ("interval=-1", "--news interval=-1: interval is -1, but must be finite and not negative"),
        ("often", "give NAME=VALUE, separated by commas, such as interval=15,lost=0.1, or none."),
    ],
)
def test_what_the_command_line_does_not_take(news, expected):
    with pytest.raises(InputError) as refused:
        parse_news(news)
    assert expected in str(refused.value)


def test_news_that_is_read_all_the_time_is_none():
    assert parse_news("interval=0") is None
    assert parse_news("interval=0.1") is not None


def test_a_policy_with_a_period_of_its_own_is_refused(command):
    code, _, error = command("two-by-two", "--policy", "envoy-load-aware", "--news", "interval=5")
    assert code == 2
    assert "a period of its own (weight_update_period)" in error


RULES = {
    "DGD-LB": lambda step, interval: estimated(dgd.DGDLB(step), Scraped(interval)),
    "DGD-LB, clocks drawn": lambda step, interval: estimated(dgd.DGDLB(step), Scraped(interval, None, seed=3)),
    "log, late": lambda step, interval: estimated(dgd.LogDGDLB(step), Scraped(interval, late=interval / 2)),
    "mirror descent, two intervals": lambda step, interval: estimated(
        dgd.MirrorDescent(step), Scraped(interval * jnp.array([1.0, 1.5, 1.0]))
    ),
    "DGD-LB behind an average": lambda step, interval: estimated(
        dgd.DGDLB(step), Scraped(interval), ExponentialAverage(interval)
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", RULES)
def test_two_hundred_random_networks(name):
    """Runs decay 1 % below the limit and grow 1 % above it, intervals of 0.3 to 3 of the longest latency."""
    count = 40 if "drawn" in name else 200  # every arc has an instant of its own there
    networks = dgd.topologies.geographic(jax.random.key(11), frontends=3, backends=4, count=count)
    optimum = dgd.solve_optimum(networks)
    times = np.random.default_rng(2).uniform(0.3, 3, count) * np.asarray(networks.latency.max((1, 2)))
    interval = jnp.asarray(times)[:, None]
    limit = np.asarray(dgd.critical_step_size(networks, RULES[name](1.0, interval), optimum))
    some = np.isfinite(limit)
    networks, optimum, interval = jax.tree.map(lambda leaf: leaf[some], (networks, optimum, interval))
    growing = []
    for part in (0.99, 1.01):
        policy = RULES[name](part * jnp.asarray(limit[some])[:, None], interval)
        growing.append(growth(networks, policy, optimum, 2000 * interval[:, 0], interval[:, 0] / 20) > 0)
    good = ~growing[0] & growing[1]
    print(f"{name}: {good.sum()} of {some.sum()} with a limit agree; not: {np.flatnonzero(some)[~good]}")
    assert good.mean() >= 0.97


@pytest.mark.full
def test_gradients_of_runs_are_those_of_differences(groups):
    network, best = jax.tree.map(lambda leaf: leaf[0], groups)
    start = best.routing * jnp.array([1.4, 0.6]), best.workload
    news = Scraped(0.5, None, jitter=0.2, lost=0.2, late=0.2)

    def latency(step):
        save = dgd.SaveAt.statistics()
        run = dgd.simulate(network, estimated(dgd.DGDLB(step), news), duration=5.0, dt=0.03, initial=start, save=save)
        return run.statistics.mean_latency

    assert float(jax.grad(latency)(0.05)) == pytest.approx(central_difference(latency, 0.05, 1.0), rel=1e-6)
