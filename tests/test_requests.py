"""Whole requests: samplers, one step, stationary laws, policies, quantiles, and the fluid limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgdlb_jax as dgd
from dgdlb_jax.numerics.counter_random import threefry, uniforms
from dgdlb_jax.numerics.sampling import binomial, poisson
from dgdlb_jax.reports import requests_text
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.own import counts_own
from dgdlb_jax.simulation.requests.hazard import chances, hazard_of_step
from dgdlb_jax.simulation.requests.streams import Purpose, Streams
from dgdlb_jax.stability.noise import Noise
from dgdlb_jax.studies.compare import ComparisonInProgress
from dgdlb_jax.studies.noise import stationary_latency
from dgdlb_jax.studies.requests import LEVELS, RequestOutcome, RequestStudy, RequestStudyInProgress
from helpers import POLICIES, small_network
from request_oracles import chain_of_steps, gradient_rule, simulate_events, stationary, stationary_counts

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEYS = jax.random.split(jax.random.key(7), 32)
WORDS = (jnp.uint32(20), jnp.uint32(26))


def draws(count, number):
    counter = jnp.arange(count, dtype=jnp.uint32)
    return uniforms(WORDS, (counter, jnp.full_like(counter, number)))


def test_words_are_those_of_threefry():
    """With all 20 rounds, those of the published cipher as JAX has it."""
    counter = np.arange(64, dtype=np.uint32)
    found = threefry(WORDS, (jnp.asarray(counter), jnp.asarray(counter[::-1].copy())), rounds=20)
    expected = jax.extend.random.threefry_2x32(jnp.stack(WORDS), jnp.concatenate([counter, counter[::-1]]))
    np.testing.assert_array_equal(np.concatenate(found), expected)


def test_uniform_numbers_are_uniform_and_independent():
    u, v = (np.asarray(each) for each in draws(200_000, 3))
    assert min(u.min(), v.min()) > 0
    assert max(u.max(), v.max()) < 1
    for sample in (u, v, (u + v) % 1):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("mean", [0.0, 1e-4, 0.03, 0.2, 0.3, 0.7, 2.0, 3.999, 9.0, 9.99, 10.1, 40.0, 300.0, 3e4])
def test_poisson_numbers(mean):
    sample = np.asarray(jax.jit(poisson)(draws(200_000, 5)[0], jnp.full(200_000, mean)))
    assert_law(sample, stats.poisson(mean) if mean else stats.poisson(1e-300))


@pytest.mark.parametrize("n", [0, 1, 5, 40, 1000])
@pytest.mark.parametrize("leave", [1e-6, 0.02, 0.5, 0.97])
def test_binomial_numbers(n, leave):
    u = draws(200_000, 6)[0]
    sample = np.asarray(
        jax.jit(binomial)(u, jnp.full(u.shape, float(n)), jnp.full(u.shape, leave), jnp.full(u.shape, 1 - leave))
    )
    assert sample.min() >= 0
    assert sample.max() <= n
    assert_law(sample, stats.binom(n, leave))


@pytest.mark.parametrize(("n", "leave"), [(None, 10.1), (None, 30.0), (21, 0.5), (35, 0.3), (1001, 0.9895)])
def test_the_expanded_quantile_is_within_1e_4_of_the_law(n, leave):
    """In total variation, which every two million-th part of the uniform numbers measures to a few 1e-6: a boundary between two
    values lies wrong by at most one of them."""
    u = (jnp.arange(2_000_000, dtype=jnp.float32) + 0.5) / 2_000_000
    drawn = (
        poisson(u, jnp.full_like(u, leave))
        if n is None
        else binomial(u, *(jnp.full_like(u, x) for x in (n, leave, 1 - leave)))
    )
    law = stats.poisson(leave) if n is None else stats.binom(n, leave)
    seen = np.bincount(np.asarray(drawn).astype(int)) / u.size
    values = np.arange(int(law.ppf(1 - 1e-12)) + 1)
    distance = np.abs(np.pad(seen, (0, max(0, values.size - seen.size)))[: values.size] - law.pmf(values)).sum() / 2
    assert distance < 1.05e-4


def assert_law(sample, law):
    """A chi-square test over cells that expect at least 20 numbers each, and nothing that is nearly impossible."""
    low, high = int(law.ppf(1e-12)), int(law.ppf(1 - 1e-12)) + 1
    values = np.arange(low, high + 1)
    expected = sample.size * law.pmf(values)
    seen = (
        np.array([(sample == value).sum() for value in values])
        if values.size < 400
        else np.histogram(sample, np.arange(low, high + 2) - 0.5)[0]
    )
    assert seen.sum() == sample.size
    cell = np.minimum((np.cumsum(expected) / 20).astype(int), int(expected.sum() / 20) - 1)
    cell = np.unique(cell, return_inverse=True)[1]
    expected, seen = np.bincount(cell, expected), np.bincount(cell, seen)
    if expected.size > 1:
        assert stats.chisquare(seen, expected * seen.sum() / expected.sum()).pvalue > 1e-3


def test_a_number_does_not_depend_on_its_neighbours():
    """A mean beside it that needs more terms changes nothing, to the bit."""
    u = draws(50_000, 8)[0]
    for mean in (0.02, 0.5):
        alone = poisson(u, jnp.full(u.shape, mean))
        for other in (0.1, 3.0, 12.0, 500.0):
            beside = poisson(jnp.append(u, 0.5), jnp.append(jnp.full(u.shape, mean), other))[:-1]
            np.testing.assert_array_equal(alone, beside)


def test_arcs_share_counters_and_no_numbers():
    """A number of every arc, the same whatever backends are beside it; no two are equal, as they would be from one word."""
    of = lambda backends: Streams(Shape(3, backends, 2), jnp.array([[1, 2], [3, 4]], jnp.uint32))
    some, more = (np.asarray(of(backends).one_for_arcs(jnp.int32(7), Purpose.dispatch)) for backends in (5, 8))
    assert some.shape == (5, 6)
    np.testing.assert_array_equal(some, more[:5])
    assert np.unique(more).size == more.size


def test_parts_of_a_run_are_its_sums():
    """However few steps the window has: more parts than steps, and a number of steps that parts do not divide."""
    for steps in (1, 7, 33):
        run = dgd.simulate_requests(
            NETWORK, dgd.DGDLB(0.02), KEYS[0], duration=5.0, dt=0.05, after=5.0 - 0.05 * steps, follow=False
        )
        parts, whole = run.parts, run.statistics
        np.testing.assert_allclose(np.asarray(parts.duration).sum(), whole.duration, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(parts.arrivals).sum(), whole.arrivals, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(parts.cost).sum(), whole.cost, rtol=1e-12)
        mean = (np.asarray(parts.workload) * np.asarray(parts.duration)[:, None]).sum(0) / whole.duration
        np.testing.assert_allclose(mean, whole.mean_workload, rtol=1e-12)
        empty = np.asarray(parts.duration) == 0
        assert empty.sum() == max(0, 20 - steps)
        np.testing.assert_array_equal(np.asarray(parts.arrivals)[empty], 0)


@pytest.mark.parametrize(
    "curve",
    [dgd.Hyperbolic([8.0], [6.0]), dgd.Exponential([8.0], [6.0]), dgd.ManyServer([5.0], [0.2])],
    ids=lambda c: type(c).__name__,
)
def test_a_step_is_of_second_order_in_mean_and_variance(curve):
    """The chain of one step as a matrix, against the stationary law of the birth-death process: no sampling, no noise."""
    arrivals, most = 4.0, 70
    network = dgd.Network([arrivals], [[0.0]], curve)
    field = Field(dgd.stack([network]), dgd.Uniform())
    rate = lambda n: np.asarray(curve.rate(jnp.asarray(n, float)[:, None]))[:, 0]
    n = np.arange(most + 1)
    exact = stationary_counts(rate, arrivals, most)
    mean, variance = n @ exact, n**2 @ exact - (n @ exact) ** 2

    def step(dt):
        """Probabilities to leave, by who is there, who arrives, and the coin."""
        grid = np.meshgrid(n, np.arange(60), [False, True], indexing="ij")
        counts, coming, coin = (
            jnp.asarray(each.ravel()[:, None], t) for each, t in zip(grid, (float, float, bool), strict=True)
        )
        hazard = jax.vmap(lambda *state: hazard_of_step(field, jnp.zeros(1), jnp.full(1, dt), *state)[0])(
            counts, coming, coin
        )[:, 0]
        chance = chances(hazard)
        shape = grid[0].shape
        leave, new_leave = (np.asarray(each).reshape(shape) for each in (chance.leave, chance.new_leave))
        return lambda n, a, coin: (leave[n, a, int(coin)], new_leave[n, a, int(coin)])

    def errors(dt):
        law = stationary(chain_of_steps(step(dt), arrivals * dt, most))
        found = n @ law
        return np.array([found - mean, n**2 @ law - found**2 - variance])

    ratio = errors(0.1) / errors(0.05)
    assert np.all((ratio > 3.5) & (ratio < 4.5)), ratio


SERVICE, HALF, RATES = np.array([12.0, 15.0]), np.array([4.0, 8.0]), np.array([6.0, 4.0])
LATENCY, FEEDBACK = np.array([[0.05, 0.2], [0.15, 0.1]]), np.array([[0.1, 0.15], [0.2, 0.05]])
NETWORK = dgd.Network(RATES, LATENCY, dgd.Hyperbolic(SERVICE, HALF), feedback_latency=FEEDBACK)
SHARES = np.array([[0.7, 0.3], [0.4, 0.6]])
START = SHARES, np.array([4.0, 4.0])


def hyperbolic(j, n):
    return SERVICE[j] * n / (n + HALF[j])


def marginal(seen):
    return (seen + HALF) ** 2 / (SERVICE * HALF)


def many_runs(policy, network=NETWORK, duration=150.0, dt=0.05, after=50.0, keys=KEYS, initial=START, **options):
    """The same compiled program wherever the options allow it."""
    return dgd.simulate_requests_batch(
        network, policy, keys, duration=duration, dt=dt, after=after, initial=initial, max_latency=0.25, **options
    )


@pytest.mark.parametrize("count", ["backend", pytest.param("own", marks=pytest.mark.full)])
def test_counts_under_a_fixed_routing_are_negative_binomial(count):
    """Independent backends with Poisson arrivals of rate r: N + 1 of them has odds r/c of growing. Within 4 standard errors of 32 runs.
    Own requests arrive and leave arc by arc with the chances of one step of the same chain."""
    run = many_runs(dgd.FixedRouting(SHARES), save=dgd.SaveAt(200), count=count)
    load = RATES @ SHARES / SERVICE
    law = stats.nbinom(HALF + 1, 1 - load)
    counts = np.asarray(run.workload[:, 5:])
    assert np.all(counts == np.round(counts))
    assert counts.min() >= 0
    each = np.asarray(run.statistics.mean_workload)
    assert np.all(np.abs(each.mean(0) - law.mean()) < 4 * each.std(0, ddof=1) / np.sqrt(len(KEYS)))
    # 11 instants, 10 seconds apart, of 32 runs; a workload forgets its past in about a second.
    for j in range(2):
        independent = counts[:, :, j].ravel()
        assert abs(independent.mean() - law.mean()[j]) < 4 * np.sqrt(law.var()[j] / independent.size)
        assert abs(independent.var() / law.var()[j] - 1) < 4 * np.sqrt(5 / independent.size)


@pytest.mark.parametrize("count", ["backend", "arc"])
def test_latencies_of_a_linear_backend_are_exponential(count):
    """Without a queue every request takes an exponential time of its own: quantiles in closed form, network time apart."""
    linear = dgd.Hyperbolic(SERVICE * 1e6, np.array([1e6, 1e6]) * SERVICE)  # one second each
    network = dgd.Network(RATES, LATENCY, linear, feedback_latency=FEEDBACK)
    run = many_runs(dgd.FixedRouting(SHARES), network, count=count, longest_stay=15.0)
    parts = np.array([0.5, 0.9, 0.99])
    found = run.latency_quantiles(parts, by="backend")
    grid = np.linspace(0, 20, 40_001)
    for j in range(2):
        sent = RATES * SHARES[:, j] / (RATES @ SHARES[:, j])
        later = sum(share * np.exp(-np.maximum(grid - LATENCY[i, j], 0)) for i, share in enumerate(sent))
        np.testing.assert_allclose(found[j], np.interp(1 - parts, later[::-1], grid[::-1]), rtol=0.04)
    together = run.latency_quantiles(parts)
    assert np.all((together >= found.min(0)) & (together <= found.max(0)))


@pytest.mark.parametrize("discipline", ["ps", "fcfs"])
def test_latencies_are_those_of_single_events(discipline):
    """Quantiles of the time at a backend, and the mean, against requests simulated event by event."""
    run = many_runs(dgd.FixedRouting(SHARES), discipline=discipline, longest_stay=12.0)
    events = simulate_events(
        NETWORK, hyperbolic, SHARES, START[1], 2500.0, seed=1, after=50.0, in_order=discipline == "fcfs"
    )
    network_free = run.sojourns
    for j in range(2):
        age, left = np.asarray(network_free.age)[0], np.asarray(network_free.left)[..., j]
        weight = np.asarray(network_free.followed)[:, None, j]
        left = (left * weight).sum(0) / weight.sum(0)
        stays = np.sort(events["sojourns"][j])
        exact = 1 - np.searchsorted(stays, age) / stays.size
        # 2450 seconds, of which workloads forget the past in about two: a standard deviation of at most 0.5 / sqrt(1225) = 0.014.
        assert np.abs(left - exact).max() < 0.06
    mean, error = run.across_runs()
    assert abs(mean - events["mean_latency"]) < 4 * error + 0.03 * mean
    assert 0.4 < float(np.mean(run.standard_error)) / (error * np.sqrt(len(KEYS))) < 1.5


@pytest.mark.full
@pytest.mark.parametrize("discipline", ["ps", "fcfs"])
def test_latencies_of_one_server_are_those_of_a_queueing_library(discipline):
    """One server is a curve that is all there with the first request. Against Ciw, and in order of arrival the closed form of M/M/1."""
    arrivals, served, parts = 1.45, 2.25, np.array([0.5, 0.9, 0.95])
    curve = dgd.Hyperbolic(np.full(2, served), np.full(2, 0.01))
    network = dgd.Network(RATES * arrivals / (RATES @ SHARES)[0], np.zeros((2, 2)), curve)
    options = {"duration": 450.0, "dt": 0.004, "longest_stay": 12.0, "initial": (SHARES, np.ones(2))}
    run = many_runs(dgd.FixedRouting(SHARES), network, discipline=discipline, **options)
    found = run.latency_quantiles(parts, by="backend")[0]
    stays = sojourns_by_ciw(arrivals, served, 20_000.0, in_order=discipline == "fcfs")
    # 12,800 s, in which the server forgets the past 1100 times (each in 1 / (sqrt(2.25) - sqrt(1.45))^2 s): 5 %; three times that.
    np.testing.assert_allclose(found, np.quantile(stays, parts), rtol=0.15)
    assert np.quantile(stays, 0.5) / stays.mean() == pytest.approx(
        np.log(2) if discipline == "fcfs" else 0.53, abs=0.03
    )


def sojourns_by_ciw(arrivals, served, duration, in_order):
    """Times in one server with exponential requirements, with Ciw: in order of arrival, or shared by all who are there."""
    import ciw

    law = ciw.dists.Exponential
    network = ciw.create_network(
        arrival_distributions=[law(arrivals)],
        service_distributions=[law(served)],
        number_of_servers=[1 if in_order else float("inf")],
    )
    ciw.seed(0)
    simulation = ciw.Simulation(network) if in_order else ciw.Simulation(network, node_class=ciw.PSNode)
    simulation.simulate_until_max_time(duration)
    records = [one for one in simulation.get_all_records() if one.arrival_date > 0.01 * duration]
    return np.array([one.exit_date - one.arrival_date for one in records])


def test_moving_and_jumping_policies_agree_with_events():
    """DGD-LB and least latency: mean latency and variances of the workloads, against event by event, within intervals."""
    step_size = 0.02
    rules = {
        "dgd-lb": (dgd.DGDLB(step_size), gradient_rule(step_size, 0.05, marginal, LATENCY)),
        "least-latency": (
            dgd.LeastLatency(),
            lambda seen, x: np.eye(2)[np.argmin((seen + HALF) / SERVICE + LATENCY, axis=1)],
        ),
    }
    for policy, rule in rules.values():
        mean, error = many_runs(policy).across_runs()
        run = lambda seed, rule=rule: simulate_events(
            NETWORK, hyperbolic, *START, 250.0, seed=seed, after=50.0, tick=0.05, rule=rule
        )["mean_latency"]
        events = [run(seed) for seed in range(5)]
        spread = np.hypot(error, np.std(events, ddof=1) / np.sqrt(len(events)))
        assert abs(mean - np.mean(events)) < 4 * spread, (type(policy), mean, np.mean(events), spread)


def of_two(i, own, seen, rng):
    """Least request: the lesser of two draws, ties at random."""
    del i, seen
    first, second = rng.integers(own.size, size=2)
    return first if own[first] <= own[second] else second


def by_weight(i, own, seen, rng):
    """Weighted least request, weights in proportion to capacity."""
    del i, seen
    weight = SERVICE / (own + 1)
    return rng.choice(own.size, p=weight / weight.sum())


@pytest.mark.parametrize(
    ("policy", "rule"),
    [(dgd.LeastRequest(), of_two), pytest.param(dgd.WeightedLeastRequest(), by_weight, marks=pytest.mark.full)],
)
def test_own_requests_are_those_of_events(policy, rule):
    """Counted until the answer is back, and each request sees those before it: latency, workloads and counts within intervals."""
    run = many_runs(policy, follow=False, save=dgd.SaveAt(200))
    own = run.final.own
    np.testing.assert_array_equal(own.in_service.sum(1), run.final.workload)
    count = np.asarray(own.count)
    assert np.all(count == np.round(count))
    assert np.all(count >= np.asarray(own.in_service + own.left))
    events = [
        simulate_events(NETWORK, hyperbolic, *START, 250.0, seed=seed, after=50.0, choose=rule) for seed in range(5)
    ]
    statistics = run.statistics
    for found, name in ((statistics.mean_latency, "mean_latency"), (statistics.mean_workload, "mean"), (count, "own")):
        exact = np.array([event[name] for event in events])
        spread = lambda each: each.std(0, ddof=1) / np.sqrt(len(each))
        within = 4 * np.hypot(spread(exact), spread(np.asarray(found)))
        assert np.all(np.abs(exact.mean(0) - np.asarray(found).mean(0)) < within), name


@pytest.mark.full
@pytest.mark.parametrize(
    "policy", [dgd.LeastRequest(), dgd.WeightedLeastRequest(), dgd.PeakEWMA()], ids=lambda p: type(p).__name__
)
def test_the_fluid_count_is_the_limit_of_whole_requests(policy):
    """At scale 100 noise costs 0.1 % of the latency here; without the return trip workloads are 2.5 to 4 % off."""
    scale = 100.0
    start = SHARES, START[1] * scale
    fluid = dgd.simulate(
        NETWORK.with_scale(scale),
        policy,
        duration=400.0,
        dt=0.01,
        initial=start,
        save=dgd.SaveAt.statistics(after=100.0),
    )
    run = many_runs(policy, scale=scale, duration=400.0, initial=start, follow=False)
    np.testing.assert_allclose(np.mean(run.statistics.mean_workload, 0), fluid.statistics.mean_workload, rtol=0.01)
    np.testing.assert_allclose(run.across_runs()[0], fluid.statistics.mean_latency, rtol=0.004)


@pytest.mark.full
def test_own_requests_come_back_to_the_last_one():
    """When nobody asks any more, all counts return to zero, whatever was on the wires at the start.

    Of the two frontends one sends its requests one by one, the other in portions.
    """
    network = NETWORK.with_arrival_rate(dgd.Jumps([[40.0, 40.0]], [[6.0, 4.0], [0.0, 0.0]]))
    run = many_runs(
        dgd.LeastRequest(),
        network,
        duration=150.0,
        scale=30.0,
        follow=False,
        save=dgd.SaveAt(800, fields=("workload", "in_flight")),
    )
    assert np.asarray(run.workload)[:, 1].sum() > 3000
    for left in (run.final.own.count, run.final.workload, run.in_flight[:, -1]):
        np.testing.assert_array_equal(left, 0)


def test_the_gap_to_the_fluid_falls_like_one_over_the_scale():
    """With a fixed routing the cost of noise is exactly 1/n of that at scale 1:
    one request more at load rho is served after rho / (1 - rho) others."""
    flow = RATES @ SHARES
    served_after = flow / (SERVICE - flow)
    network_time = (RATES[:, None] * SHARES * LATENCY).sum()
    fluid = float(((served_after * HALF).sum() + network_time) / RATES.sum())
    for scale in (1.0, 10.0):
        initial = SHARES, served_after * HALF * scale
        run = many_runs(dgd.FixedRouting(SHARES), scale=scale, initial=initial)
        mean, error = run.across_runs()
        noise = float(served_after.sum() / RATES.sum()) / scale
        assert abs(mean - fluid - noise) < 4 * error


def test_the_estimate_by_the_identity_varies_less_and_agrees():
    """At the optimum of two equal backends noise costs rho / (1 - rho) requests each, exactly; least latency as a policy that jumps."""
    optimum = dgd.solve_optimum(NETWORK)
    flow = RATES @ np.asarray(optimum.routing)
    exact = float(optimum.mean_latency) + (flow / (SERVICE - flow)).sum() / RATES.sum()
    for policy, known in ((dgd.FixedRouting(optimum.routing), exact), (dgd.LeastLatency(), None)):
        run = many_runs(policy, initial=(np.asarray(optimum.routing), np.asarray(optimum.workload)))
        each, (direct, error) = stationary_latency(run, NETWORK, optimum), run.across_runs()
        smaller = each.std(ddof=1) / np.sqrt(len(KEYS))
        assert smaller < 0.6 * error
        assert abs(each.mean() - (direct if known is None else known)) < 4 * (error if known is None else smaller)


def test_requests_are_conserved_and_runs_depend_on_their_keys_alone():
    """Sent = on the wires + at the backends + answered, in whole numbers; batch = single, whatever runs beside it."""
    options = dict(save=dgd.SaveAt(200), count="arc", follow=False)
    runs = many_runs(dgd.DGDLB(0.02), **options)
    assert np.all(np.asarray(runs.in_flight) == np.round(runs.in_flight))
    assert np.asarray(runs.in_flight).min() >= 0
    few = many_runs(dgd.DGDLB(0.02), keys=KEYS[5:8], lanes=2, **options)
    for name in ("workload", "in_flight", "routing"):
        np.testing.assert_array_equal(getattr(few, name), getattr(runs, name)[5:8])
    alone = dgd.simulate_requests(
        NETWORK,
        dgd.DGDLB(0.02),
        KEYS[6],
        duration=150.0,
        dt=0.05,
        after=50.0,
        initial=START,
        max_latency=0.25,
        **options,
    )
    np.testing.assert_array_equal(alone.workload, runs.workload[6])
    last = np.asarray(runs.workload)[:, -1]
    assert len(np.unique(last, axis=0)) > 20
    assert abs(np.corrcoef(last[:-1, 0], last[1:, 0])[0, 1]) < 0.6


def test_whole_numbers_have_no_gradient():
    def latency(step_size=0.02, slower=1.0):
        network = NETWORK.with_latency(NETWORK.latency * slower)
        run = dgd.simulate_requests(
            network, dgd.DGDLB(step_size), KEYS[0], duration=5.0, dt=0.05, max_latency=1.0, throw=False
        )
        return run.statistics.mean_latency

    for argument in ("step_size", "slower"):
        with pytest.raises(dgd.InputError, match="no gradient"):
            jax.grad(lambda value, argument=argument: latency(**{argument: value}))(0.02)
    with pytest.raises(dgd.InputError, match="Inside a transformation longest_stay"):
        jax.jit(lambda slower: latency(slower=slower))(1.1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scale": 0.0}, "scale is 0"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"discipline": "lifo"}, "discipline is 'lifo'"),
        ({"count": "all"}, "count is 'all'"),
        ({"count": "arc", "policy": dgd.LeastRequest()}, "LeastRequest looks at its own outstanding requests"),
        ({"save": dgd.SaveAt(after=1.0)}, "give after= to the function"),
        ({"save": dgd.SaveAt(reference=np.ones(2))}, "reference=...\\) is not for whole"),
        ({"longest_stay": -1.0}, "longest_stay is -1"),
        ({"keys": KEYS[:3], "network": dgd.stack([NETWORK, NETWORK]), "initial": None}, "3 keys for 2 networks"),
        ({"keys": jnp.arange(3.0)}, "give jax.random.split"),
        (
            {"network": dgd.stack([NETWORK, NETWORK]), "keys": KEYS[:2], "initial": None, "dt": [0.05, 0.04]},
            "equally many",
        ),
    ],
)
def test_what_is_refused(options, sentence):
    with pytest.raises(dgd.InputError, match=sentence):
        many_runs(**{"policy": dgd.Uniform()} | options)


def row(balancer, fluid, mean, error=0.001, **more):
    return RequestOutcome(
        balancer, fluid, mean, error, (0.9, 2.0, 3.0), tuple(np.linspace(0.1, 4, len(LEVELS))), **more
    )


def study(*rows, scale=1.0, **more):
    return RequestStudy(scale, 16, "ps", 100.0, 0.9, rows, **more)


def predicted(distance):
    """Five and one per cent of the optimum of `study`."""
    zero = jnp.zeros(())
    return Noise(
        jnp.zeros(1), jnp.zeros((1, 1)), zero + 0.05 * 0.9, zero + 0.01 * 0.9, zero + distance, zero, jnp.zeros((), int)
    )


@pytest.mark.parametrize(
    ("found", "sentence", "otherwise"),
    [
        (study(row("DGD-LB", 1.0, 1.05), row("nearest", 1.2, 1.25)), "The order of the balancers holds", "another one"),
        (study(row("DGD-LB", 1.0, 1.3), row("nearest", 1.2, 1.25)), "another one: nearest before DGD-LB", "holds with"),
        (
            study(row("DGD-LB", 1.0, 1.3, 0.1), row("nearest", 1.2, 1.25)),
            "The order of the balancers holds",
            "another one",
        ),
        (study(row("DGD-LB", 1.0, 1.05)), "from a scale of about 5.00 on", "order"),
        (study(row("DGD-LB", 1.0, 1.05), scale=10.0), "from a scale of about 50.0 on", "at this scale"),
        (study(row("DGD-LB", 1.0, 1.004)), "at this scale the fluid figures hold", "from a scale"),
        (study(row("DGD-LB", 1.0, 1.001)), "cannot tell from nothing", "hold within"),
        (study(row("DGD-LB", 1.0, 1.05), left_out=("nearest",)), "Not run: nearest", "is given the mean"),
        (study(row("DGD-LB", 1.0, 1.05)), "Randomness", "Linear theory"),
        (
            study(row("least request", 1.0, 1.05, counts_own=True), scale=10.0),
            "at scale 10.0 it is another one",
            "Not run",
        ),
        (study(row("least request", 1.0, 1.05, counts_own=True)), "Randomness", "it is another one"),
        (
            study(row("DGD-LB", 1.0, 1.05), predicted=predicted(6.0)),
            "+5 % for a routing that never changes and +1 % for the jitter of DGD-LB.",
            "only a guide",
        ),
        (
            study(row("DGD-LB", 1.0, 1.05), predicted=predicted(1.5)),
            "noise of 1.50 standard deviations empties",
            "DGD-LB.",
        ),
    ],
)
def test_what_is_said_of_a_study(found, sentence, otherwise):
    text = " ".join(requests_text.sentences(found))
    assert sentence in text
    assert otherwise not in text


def test_a_study_of_a_comparison():
    """Fluid figures are those of the comparison, counts those of `simulate_requests_batch`; the JSON and the picture hold them."""
    network = dgd.load_fleet("two-by-two")
    work = ComparisonInProgress(network, ["dgd-lb", "nearest"])
    work.compile()
    list(work.finished())
    requests = RequestStudyInProgress(work.comparison, work.policies, scale=4.0, seeds=6)
    rows = list(requests.finished())
    assert [row.balancer for row in rows] == ["DGD-LB", "nearest"]
    for row in rows:
        assert row.fluid == work.comparison.outcomes[row.balancer].mean_latency
        # Noise costs about 5 % at scale 1, and falls like 1/n.
        assert abs(row.noise - 0.05 / 4) < 4 * row.noise_error + 0.005
        assert row.quantiles[0] < row.mean < row.quantiles[1] < row.quantiles[2]
    document = requests.study.document()
    assert [entry["balancer"] for entry in document["balancers"]] == ["DGD-LB", "nearest"]
    assert document["balancers"][0]["p99"] == rows[0].quantiles[2]
    # The built-in fleet: 4.95 % at scale 1 for a routing that never changes.
    optimum = requests.study.optimum
    assert document["predicted"]["static_seconds"] == pytest.approx(0.0495 * optimum / 4, rel=2e-3)
    assert not document["predicted"]["trusted"]
    pytest.importorskip("matplotlib")
    from dgdlb_jax.reports.request_plots import latency_distribution

    (ax,) = latency_distribution(requests.study).axes
    np.testing.assert_allclose(ax.lines[0].get_xdata(), rows[0].distribution)
    with pytest.raises(dgd.InputError, match="at least 2 runs"):
        RequestStudyInProgress(work.comparison, work.policies, seeds=1)


def test_every_policy_says_whether_it_counts_its_own(rng):
    """With settings for every frontend and arc, as `dgdlb run --requests` makes them."""
    network = small_network(rng)
    own = {name for name, make in POLICIES.items() if counts_own(network, make(network))}
    assert own == {"LeastRequest", "WeightedLeastRequest", "PeakEWMA", "LatencyObservationScorer"}
