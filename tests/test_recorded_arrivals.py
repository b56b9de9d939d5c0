"""Recorded arrivals in runs of whole requests: as many as the record has, each sent to a backend by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import dgdlb_jax as dgd
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.simulation.requests.sharing import shared_out

pytestmark = pytest.mark.usefixtures("quick_compilation")
WIDTH, COUNTS = 2.0, np.array([[8.0, 3.0], [0.0, 9.0], [5.0, 1.0]])  # of bins: seconds, requests of each frontend


def recorded_network(**changes) -> dgd.Network:
    """Two frontends whose requests were counted in three bins, three backends."""
    return dgd.Network(
        dgd.Trace.from_counts(WIDTH, COUNTS),
        [[0.02, 0.15, 0.333], [0.15, 0.02, 0.1]],
        Hyperbolic([8.0, 8.0, 4.0], [6.0, 6.0, 3.0]),
        **changes,
    )


@pytest.mark.parametrize("backends", [1, 2, 3, 5, 8])
def test_requests_are_shared_out_as_a_multinomial_number(rng, backends):
    """All pairs of counts against independent draws of NumPy, and the counts of each backend against its binomial law."""
    many, number = 40_000, 7
    shares = rng.dirichlet(np.ones(backends))
    u = rng.uniform(size=(backends, many))
    found = np.asarray(
        shared_out(jnp.asarray(u), jnp.full(many, float(number)), jnp.asarray(shares)[:, None].repeat(many, 1))
    )
    np.testing.assert_array_equal(found.sum(0), number)
    for j, share in enumerate(shares):
        seen = np.bincount(found[j].astype(int), minlength=number + 1)
        expected = many * stats.binom.pmf(np.arange(number + 1), number, share)
        few = expected < 8
        seen, expected = (np.append(values[~few], values[few].sum()) for values in (seen, expected))
        if len(expected) > 1 and expected[-1] > 0:
            assert stats.chisquare(seen, expected * many / expected.sum()).pvalue > 1e-4
    covariance = np.cov(found, bias=True).reshape(backends, backends)
    exact = number * (np.diag(shares) - np.outer(shares, shares))
    np.testing.assert_allclose(covariance, exact, atol=6 * number / np.sqrt(many))


def test_a_backend_without_a_share_gets_nothing(rng):
    shares = jnp.asarray([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    found = shared_out(jnp.asarray(rng.uniform(size=(5, 2))), jnp.asarray([4.0, 9.0]), shares)
    np.testing.assert_array_equal(found, [[0, 9], [0, 0], [4, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("count", ["arc", pytest.param("own", marks=pytest.mark.full)])
def test_every_recorded_request_comes_in_its_bin(count):
    """At the end of each bin as many have come as were recorded: of each frontend half an interval after the last of them."""
    network = recorded_network()
    for bins in (1, 2, 3):
        run = dgd.simulate_requests(
            network,
            dgd.ProportionalToCapacity(),
            jax.random.key(3),
            duration=bins * WIDTH,
            dt=0.02,
            arrivals="recorded",
            count=count,
        )
        assert float(run.statistics.arrivals) == COUNTS[:bins].sum()


def test_regular_arrivals_halve_the_variance_of_many_servers():
    r"""Equidistant arrivals at rate $\lambda$ at servers that are never busy, each of rate $\mu$.

    A request is still there with probability $e^{-\mu \cdot age}$. So $N$ has the mean $\lambda/\mu$, and on average over a period the
    variance $\lambda/\mu - \lambda/2\mu$; that of Poisson arrivals is $\lambda/\mu$.
    """
    rate, speed, seeds = 4.0, 1.0, 512
    network = dgd.Network([rate], [[0.013]], Hyperbolic([1e6 * speed], [1e6]))
    found = {}
    for arrivals in ("recorded", "poisson"):
        runs = dgd.simulate_requests_batch(
            network, dgd.Uniform(), jax.random.split(jax.random.key(0), seeds), duration=24.0, dt=0.02, arrivals=arrivals,
            count="arc", save=dgd.SaveAt(every=15), follow=False, initial=(np.ones((1, 1)), np.array([rate / speed])),
        )  # fmt: skip
        found[arrivals] = np.asarray(runs.workload)[:, 20:, 0]  # from 6 s on, when e^-6 of the start is left
    for arrivals, variance in (("recorded", rate / speed / 2), ("poisson", rate / speed)):
        # Some 20 independent instants of 512 runs: 1 % of a mean of 2 to 4, 1.5 % of a variance; four times that.
        assert found[arrivals].mean() == pytest.approx(rate / speed, rel=0.04)
        assert found[arrivals].var(axis=0).mean() == pytest.approx(variance, rel=0.06)


@pytest.mark.full
def test_rates_times_a_scale_are_recorded_too():
    run = dgd.simulate_requests(
        recorded_network(),
        dgd.Uniform(),
        jax.random.key(1),
        duration=6.0,
        dt=0.02,
        arrivals="recorded",
        scale=10.0,
        follow=False,
    )
    assert float(run.statistics.arrivals) == pytest.approx(10 * COUNTS.sum(), abs=2)
    assert float(run.statistics.arrivals) == round(float(run.statistics.arrivals))


@pytest.mark.full
def test_a_batch_is_its_runs():
    keys, network = jax.random.split(jax.random.key(5), 2), recorded_network()
    options = {"duration": 3.0, "dt": 0.02, "arrivals": "recorded", "follow": False}
    together = dgd.simulate_requests_batch(network, dgd.DGDLB(0.1), keys, **options)
    for b, key in enumerate(keys):
        alone = dgd.simulate_requests(network, dgd.DGDLB(0.1), key, **options)
        np.testing.assert_array_equal(together.final.workload[b], alone.final.workload)


@pytest.mark.parametrize(
    ("policy", "options", "words"),
    [
        (dgd.Uniform(), {"arrivals": "replayed"}, '"poisson" or "recorded"'),
        (dgd.Uniform(), {"arrivals": "recorded", "count": "backend"}, "counted on arcs"),
        (dgd.LeastRequest(2.0), {"arrivals": "recorded"}, "one request after the other"),
    ],
)
def test_what_cannot_be_is_refused(policy, options, words):
    with pytest.raises(dgd.InputError, match=words):
        dgd.simulate_requests(recorded_network(), policy, jax.random.key(0), duration=1.0, dt=0.02, **options)
