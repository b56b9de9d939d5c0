"""Balancers in operation: worked examples of their documentation, and what a run of them does."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies import (
    AbstractHeldPolicy,
    DnsLatency,
    EnvoyLoadAwareLocality,
    KvCacheScorer,
    LatencyScorer,
    LocalityFailover,
    Observation,
    OrcaWeights,
)

EQUAL = jnp.ones(3)


def seen(**values) -> Observation:
    """What a frontend sees of three backends with ten hosts each; what is not given does not matter."""
    names = ("workload", "service_rate", "marginal_latency", "average_latency", "cost_latency", "outstanding")
    given = dict.fromkeys(names, EQUAL) | {"nominal_capacity": 10 * EQUAL, "mask": EQUAL > 0, "time_step": 0.0}
    given |= {"arrival_rate": 1.0, "cost_latency": [0.001, 0.02, 0.03]} | values
    return Observation(**{name: jnp.asarray(value) for name, value in given.items()})


LATE = jnp.asarray(1e9)


def first(policy, **values) -> np.ndarray:
    """The routing that follows from what is seen, nothing being known from before."""
    sight = seen(**values)
    if isinstance(policy, AbstractHeldPolicy):
        return np.asarray(policy.shares(LATE, policy.report(sight), sight))
    return np.asarray(policy.route(LATE, sight, policy.init(sight))[0])


def averaged(policy, report, **values) -> np.ndarray:
    """The routing of a policy that holds, from averaged reports."""
    return np.asarray(policy.shares(LATE, jnp.asarray(report), seen(**values)))


def test_envoys_documented_example():
    """Ten hosts each, utilisations 0.7, 0.3, 0.4: the local one is 0.35 above the mean of the others; weights 3, 7 and 6."""
    policy = EnvoyLoadAwareLocality()
    np.testing.assert_allclose(averaged(policy, [0.7, 0.3, 0.4]), np.array([3, 7, 6]) / 16, rtol=1e-12)
    # Within the threshold: all local, but for the 3 % that keep an eye on the others.
    np.testing.assert_allclose(averaged(policy, [0.45, 0.45, 0.45]), [0.97, 0.015, 0.015], rtol=1e-12)
    np.testing.assert_allclose(averaged(policy, [0.44, 0.3, 0.4]), [0.97, 0.015, 0.015], rtol=1e-12)
    # A local locality without headroom is no candidate; without headroom anywhere hosts count.
    np.testing.assert_allclose(averaged(policy, [1.0, 0.95, 1.0]), [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(averaged(policy, [1.0, 1.0, 1.2]), EQUAL / 3, rtol=1e-12)
    np.testing.assert_allclose(
        averaged(EnvoyLoadAwareLocality(local="none"), [0.45, 0.45, 0.1]), np.array([11, 11, 18]) / 40, rtol=1e-12
    )


def test_reports_by_their_kind():
    """Throughput over capacity, requests over slots, and a GPU that is never idle."""
    sight = {"service_rate": [7.0, 3.0, 4.0], "workload": [12.0, 8.0, 4.0]}
    assert first(EnvoyLoadAwareLocality(), **sight) == pytest.approx(np.array([3, 7, 6]) / 16)
    by_slots = EnvoyLoadAwareLocality(local="none", report="concurrency", max_concurrency=2.0)
    assert first(by_slots, **sight) == pytest.approx(np.array([8, 12, 16]) / 36)
    assert first(EnvoyLoadAwareLocality(report="saturated"), **sight) == pytest.approx(1 / 3)


def test_an_average_of_reports_is_held_between_updates():
    """Envoy's alpha = 1 - exp(-T / t_s), the first report as it is."""
    policy = EnvoyLoadAwareLocality(1.0, 4.0, local="none")
    state = policy.init(seen(service_rate=[2.0, 6.0, 6.0]))
    new = seen(service_rate=[8.0, 6.0, 6.0], time_step=0.4)
    before = np.asarray(state.routing)
    used, routings = 0.2, []
    for k in range(1, 6):
        routing, state = policy.route(jnp.asarray(0.4 * k), new, state)
        routings.append(np.asarray(routing))
    np.testing.assert_array_equal(routings[0], before)
    # Updates at 1.2 s (0.8 is nearer to the update before than half a step) and at 2.0 s.
    for k in (2, 4):
        used = used + (1 - np.exp(-1 / 4.0)) * (0.8 - used)
        expected = np.array([1 - used, 0.4, 0.4]) / (1.8 - used)
        np.testing.assert_allclose(routings[k], expected, rtol=1e-12)
    np.testing.assert_array_equal(routings[3], routings[2])


def test_orca_weights_of_the_sources_tests():
    """1000 requests/s at 0.5 weigh 2000; 100 at 0.9 weigh 111.1; 100 at 0.25 weigh 400. Envoy truncates, but not below 1."""
    used = np.array([0.5, 0.9, 0.25])
    sight = {"service_rate": [1000.0, 100.0, 100.0], "workload": used, "nominal_capacity": EQUAL}
    given = {"report": "concurrency", "max_concurrency": 1.0}
    weights = np.array([1000, 100, 100]) / used
    assert first(OrcaWeights(**given), **sight) == pytest.approx(weights / weights.sum())
    assert first(OrcaWeights(variant="envoy", **given), **sight) == pytest.approx(np.array([2000, 111, 400]) / 2511)
    slow = sight | {"service_rate": [1.9, 1.0, 0.2], "workload": [0.8, 0.4, 0.9]}
    assert first(OrcaWeights(variant="envoy", **given), **slow) == pytest.approx(np.array([2, 2, 1]) / 5)
    # In the blackout all hosts are equal.
    dark = OrcaWeights(**given)
    assert np.asarray(dark.init(seen(**sight)).routing) == pytest.approx(1 / 3)
    # Throughput over capacity: the capacities, whatever the load.
    assert first(OrcaWeights(), service_rate=[1.0, 5.0, 9.0], nominal_capacity=[10.0, 20.0, 30.0]) == pytest.approx(
        np.array([1, 2, 3]) / 6
    )


@pytest.mark.parametrize(
    ("variant", "hosts", "rates", "weights"),
    [
        ("grpc", (1, 1, 1), (1000, 0, 100), (2000, 1200, 400)),
        ("grpc", (1, 1, 1), (1000, 0, 0), (1, 1, 1)),  # one usable host is too few
        ("grpc", (2, 1, 1), (1000, 0, 0), (2, 1, 1)),  # two, of the same weight
        ("envoy", (1, 1, 1), (1000, 0, 100), (2000, 1200, 400)),  # the mean of the two in the middle
        ("envoy", (1, 1, 1), (1000, 0, 0), (1, 1, 1)),
        ("envoy", (1, 1, 1), (0, 0, 0), (1, 1, 1)),
        ("envoy", (1, 1, 2), (1000, 0, 200), (2000, 400, 800)),  # of 2000, 400, 400
        ("grpc", (1, 1, 2), (1000, 0, 200), (2000, 2800 / 3, 800)),
    ],
)
def test_a_host_without_a_usable_weight(variant, hosts, rates, weights):
    """gRPC takes the mean of the usable weights, round robin below two of them; Envoy the median in whole numbers, 1 without any."""
    policy = OrcaWeights(variant=variant, report="concurrency", max_concurrency=1.0)
    hosts = np.array(hosts, float)
    sight = {"service_rate": hosts * rates, "workload": hosts * [0.5, 0.9, 0.25 if rates[2] != 200 else 0.5]}
    found = first(policy, nominal_capacity=hosts, **sight)
    assert found == pytest.approx(np.array(weights) / np.sum(weights))


@pytest.mark.parametrize(
    ("healthy", "load"),
    [
        ((100, 100, 100), (100, 0, 0)),
        ((72, 100, 100), (100, 0, 0)),
        ((71, 100, 100), (99, 1, 0)),
        ((50, 100, 100), (70, 30, 0)),
        ((25, 100, 100), (35, 65, 0)),
        ((50, 50, 0), (70, 30, 0)),
        ((25, 25, 0), (50, 50, 0)),
        ((25, 25, 100), (35, 35, 30)),
        ((25, 25, 20), (36, 36, 28)),
    ],
)
def test_envoys_table_of_priorities(healthy, load):
    """Shares are exact here and whole per cent there: 0.6 of a point."""
    policy = LocalityFailover()
    all_hosts = policy.init(seen())
    now = seen(nominal_capacity=np.array(healthy) / 10)
    routing = np.asarray(policy.route(jnp.asarray(0.0), now, all_hosts)[0])
    np.testing.assert_allclose(100 * routing, load, rtol=0, atol=0.6)
    assert routing.sum() == pytest.approx(1)


@pytest.mark.parametrize(("healthy", "share"), [(100, 33), (70, 33), (69, 32), (50, 26), (25, 15), (0, 0)])
def test_envoys_table_of_locality_weights(healthy, share):
    """Two localities of one level, weights 1 and 2, and a level behind them."""
    policy = LocalityFailover()
    near = {"cost_latency": [0.01, 0.01, 0.05]}
    all_hosts = policy.init(seen(nominal_capacity=[10.0, 20.0, 10.0], **near))
    now = seen(nominal_capacity=[healthy / 10, 20.0, 10.0], **near)
    routing = np.asarray(policy.route(jnp.asarray(0.0), now, all_hosts)[0])
    level = routing[:2].sum()
    assert 100 * routing[0] / level == pytest.approx(share, abs=0.7)
    assert level == pytest.approx(min(1, 1.4 * (healthy / 10 + 20) / 30))


def test_failover_with_nothing_healthy_counts_all_hosts():
    policy = LocalityFailover()
    routing = policy.route(jnp.asarray(0.0), seen(nominal_capacity=np.zeros(3)), policy.init(seen()))[0]
    np.testing.assert_allclose(routing, EQUAL / 3, rtol=1e-12)


@pytest.mark.parametrize("expiry", ["spread", "together"])
def test_dns_follows_within_its_time_to_live(expiry):
    """The nearest link slows: on average its clients follow half a time to live later where caches expire spread out."""
    policy, step = DnsLatency(60.0, expiry), 1.0
    before = seen(cost_latency=[0.01, 0.02, 0.03], time_step=step)
    after = seen(cost_latency=[0.05, 0.02, 0.03], time_step=step)
    state, left = policy.init(before), []
    for k in range(1, 120):
        sight = before if k < 30 else after
        routing, state = policy.route(jnp.asarray(step * k), sight, state)
        left.append(float(routing[0]))
        np.testing.assert_allclose(np.sum(routing), 1, rtol=1e-12)
    assert left[28] == 1
    assert left[-1] == 0
    # From 30 s on; a step of one second adds at most that. All at once at 60 s where they expire together.
    assert sum(left[29:]) == pytest.approx(30, abs=1)
    # What is closed by configuration is left at once, by those whose caches say otherwise as well.
    closed = seen(mask=[False, True, True], time_step=step)
    np.testing.assert_allclose(policy.route(jnp.asarray(0.0), closed, policy.init(before))[0], [0, 1, 0])


@pytest.mark.parametrize("recovers", [False, True])
def test_dns_leaves_a_dead_record_after_checks_and_caches(recovers):
    """Three checks of 30 s and a time to live of 60 s: (3 - 1/2) 30 + 60/2 = 105 s on average over instants of failures, 150 s at most."""
    policy, step = DnsLatency(), 0.5
    lasts, last = [], []
    for fails in np.arange(45.0, 75.0, 2.5) + 0.25:
        dead = lambda t, fails=fails: t > fails and not (recovers and t > fails + 600)
        ups = [np.array([not dead(step * k), True, True]) for k in range(1, 2000 if recovers else 600)]
        sight = seen(time_step=step, healthy=EQUAL > 0)

        def follow(state, up, sight=sight):
            now = eqx.tree_at(lambda o: o.healthy, sight, up)
            routing, state = policy.route(LATE, now, state)
            return state, routing[0]

        share = np.asarray(jax.lax.scan(follow, policy.init(sight), jnp.asarray(ups))[1])
        times = step * np.arange(1, share.size + 1)
        after = (times > fails) & (times <= fails + 600)
        lasts.append(step * share[after].sum())
        last.append(times[after][share[after] > 0].max() - fails)
        if recovers:  # the same on the way back
            lasts[-1] = step * (1 - share[times > fails + 600]).sum()
    assert np.mean(lasts) == pytest.approx(105, abs=1)  # twelve instants, and half a step
    assert np.max(last) == pytest.approx(149.75, abs=1)


def test_llm_ds_tiers_strategies_and_pickers():
    """From its description: only those with headroom are scored; the least headroom is packed, or the most preferred; normalised."""
    latency = {"average_latency": [0.2, 0.4, 0.9], "cost_latency": np.zeros(3)}
    assert first(LatencyScorer(1.0), **latency) == pytest.approx(np.array([0, 2, 7]) / 9)
    assert first(LatencyScorer(1.0, "most"), **latency) == pytest.approx(np.array([7, 5, 0]) / 12)
    assert first(LatencyScorer(0.5), **latency) == pytest.approx([0, 1, 0])
    assert first(LatencyScorer(0.5, "most"), **latency) == pytest.approx([1, 0, 0])
    # Nobody meets it, or there is none: nearest to it, whatever the strategy.
    for policy in (LatencyScorer(0.1, "most"), LatencyScorer()):
        assert first(policy, **latency) == pytest.approx(np.array([7, 5, 0]) / 12)
    assert first(LatencyScorer(picker="max-score"), **latency) == pytest.approx([1, 0, 0])
    assert first(LatencyScorer(1.0, picker="max-score"), **latency) == pytest.approx([0, 0, 1])
    assert first(LatencyScorer(), cost_latency=np.zeros(3)) == pytest.approx(1 / 3)


def test_llm_ds_score_of_free_caches():
    """A fifth, half and nine tenths in use: by scores, or all to the emptiest; nobody has room: all alike."""
    pools = {"workload": [4.0, 10.0, 18.0]}
    by_chance = KvCacheScorer(picker="weighted-random", max_concurrency=2.0)
    assert first(by_chance, **pools) == pytest.approx(np.array([8, 5, 1]) / 14)
    assert first(KvCacheScorer(max_concurrency=2.0), **pools) == pytest.approx([1, 0, 0])
    assert first(by_chance, workload=[20.0, 30.0, 21.0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: EnvoyLoadAwareLocality(0.0), r"weight_update_period is 0, but must be positive"),
        (lambda: EnvoyLoadAwareLocality(smoothing_time_constant=0.0), "smoothing_time_constant is 0"),
        (lambda: EnvoyLoadAwareLocality(utilization_variance_threshold=1.5), "utilization_variance_threshold is 1.5"),
        (lambda: EnvoyLoadAwareLocality(remote_probe_fraction=1.0), "remote_probe_fraction is 1"),
        (lambda: EnvoyLoadAwareLocality(local="nearst"), "did you mean nearest"),
        (lambda: EnvoyLoadAwareLocality(report="kv"), "choose from throughput, concurrency, saturated"),
        (lambda: OrcaWeights(report="concurrency"), "needs max_concurrency"),
        (lambda: OrcaWeights(blackout_period=-1.0), "blackout_period is -1"),
        (lambda: OrcaWeights(variant="Envoy"), "did you mean envoy"),
        (lambda: OrcaWeights(host_capacity=[[1.0, 0.0]]), r"host_capacity\[0, 1\] is 0"),
        (lambda: LocalityFailover(0.0), "overprovisioning_factor is 0"),
        (lambda: DnsLatency(-1.0), "ttl is -1"),
        (lambda: DnsLatency(expiry="never"), "expiry is 'never'"),
        (lambda: DnsLatency(request_interval=0.0), "request_interval is 0"),
        (lambda: DnsLatency(failure_threshold=0.5), "failure_threshold is 0.5, but must be at least 1 check"),
        (lambda: KvCacheScorer(0.0), "interval is 0, but must be positive"),
        (lambda: KvCacheScorer(max_concurrency=0.0), "max_concurrency is 0"),
        (lambda: LatencyScorer(-0.1), "slo is -0.1"),
        (lambda: LatencyScorer(picker="maxscore"), "did you mean max-score"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(make, expected):
    with pytest.raises(InputError, match=expected):
        make()


def test_the_old_name_of_envoys_variant_goes_on_working():
    with pytest.warns(DeprecationWarning, match='give variant="envoy"'):
        assert OrcaWeights(integers=True).variant == "envoy"
