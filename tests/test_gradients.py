"""The marginal latency against the costate equation, a finite request in the slow reference, and closed forms at rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

import oracles
from dgdlb_jax.analysis.gradients import MarginalLatency, marginal_latency
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.base import AbstractFlowPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.greedy import LeastWorkload
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import interior_equilibrium

DT, EVERY, STEPS = 0.02, 25, 100
RUN = {"duration": STEPS * DT, "dt": DT, "every": EVERY, "run_on": 60.0}


class Softmin(AbstractFlowPolicy):
    r"""Softmin of the latency of a request, $N / \ell + \tau$: another smooth signal, whose equilibrium is not the optimum."""

    temperature: jax.Array
    rate: jax.Array

    def velocity(self, t, routing, observation, state):
        seen = observation.workload / observation.service_rate + observation.cost_latency
        return self.rate * (jax.nn.softmax(-seen / self.temperature, axis=0) - routing), state


def transient(rng):
    """(network, start) away from rest, all arcs in use and staying so."""
    network, (routing, workload) = interior_equilibrium(rng)
    return network, (np.roll(routing, 1, axis=1), workload * np.array([0.4, 1.5, 1.0]))


def test_at_rest_the_open_loop_value_is_the_approximate_gradient_and_the_envelope_holds(rng):
    network, start = interior_equilibrium(rng)
    found = marginal_latency(network, DGDLB(0.1), initial=start, **RUN | {"run_on": 400.0})
    assert int(found.result) == Result.successful
    np.testing.assert_allclose(found.open_loop, found.approximate, rtol=1e-8)
    np.testing.assert_allclose(found.closed_loop, found.open_loop, rtol=1e-6)
    np.testing.assert_array_equal(found.time, DT * EVERY * np.arange(5))
    assert np.isnan(found.angle()).all()  # nobody moves
    np.testing.assert_array_equal(found.uphill(), 0)


def test_open_loop_is_the_costate_equation(rng):
    """dp/ds = ell'(N) p - 1 backwards from 1 / ell', by scipy along the saved workloads; second order in dt on both sides."""
    network, start = transient(rng)
    found = marginal_latency(network, DGDLB(0.02), initial=start, **RUN)
    run = simulate(network, DGDLB(0.02), initial=start, duration=62.0, dt=DT, save=SaveAt(fields=("workload",)))
    time, workload = np.asarray(run.time), np.asarray(run.workload)

    def slope(s):
        return oracles.service(network.service, np.array([np.interp(s, time, column) for column in workload.T]))[1]

    costate = solve_ivp(
        lambda s, p: slope(s) * p - 1,
        (60.0, 0.0),
        1 / slope(60.0),
        rtol=1e-8,
        atol=1e-10,
        dense_output=True,
        max_step=0.5,
    ).sol
    for k, t in enumerate(np.asarray(found.time)):
        for i, j in np.ndindex(3, 3):
            expected = float(network.cost_latency[i, j]) + costate(t + float(network.latency[i, j]))[j]
            assert float(found.open_loop[k, i, j]) == pytest.approx(expected, rel=2e-4)
    assert np.abs(found.relative_error()).max() > 0.05  # in this transient the approximate gradient is wrong


def test_closed_loop_is_a_finite_request_in_the_slow_reference(rng):
    """Inject requests of three sizes as a hat of one step, count the cost until the end, extrapolate to none."""
    network, start = transient(rng)
    steps, k = 900, 50
    found = marginal_latency(
        network, DGDLB(0.02), initial=start, duration=k * DT, dt=DT, every=k, run_on=(steps - k) * DT
    )

    def cost(i, j, size):
        run = injected(network, DGDLB(0.02), steps, start, k, i, j, size / DT)
        rate = run.workload.sum(1) + run.network
        left = 1 / oracles.service(network.service, plain.workload[-1])[1] @ run.workload[-1]
        return DT * (rate[:-1] + rate[1:]).sum() / 2 + left

    plain = injected(network, DGDLB(0.02), steps, start, k, 0, 0, 0.0)
    for i, j in ((0, 1), (2, 2)):
        sizes = np.array([0.02, 0.01, 0.005])
        quotients = [(cost(i, j, size) - cost(i, j, 0.0)) / size for size in sizes]
        expected = np.polynomial.polynomial.polyfit(sizes, quotients, 2)[0]
        assert float(found.closed_loop[1, i, j]) == pytest.approx(expected, rel=1e-5)
        assert float(found.closed_loop[1, i, j]) != pytest.approx(float(found.open_loop[1, i, j]), rel=1e-2)


def injected(network, policy, steps, start, when, i, j, extra):
    """The slow reference with `extra` flow on an arc at one step: the reference itself, its list of flows grown by that."""
    original, sent = oracles.delivered, {"network": np.zeros(steps + 1)}

    def delivered(flow, latency, dt, k):
        if len(flow) == when + 1 and "done" not in sent:
            flow[when][i, j] += extra
            sent["done"] = True
        return original(flow, latency, dt, k)

    oracles.delivered = delivered
    try:
        run = oracles.simulate(network, policy, steps, DT, start)
    finally:
        oracles.delivered = original
    run.network = (run.flow * np.asarray(network.cost_latency)).sum((1, 2))
    return run


def test_closed_loop_at_another_equilibrium_follows_the_formula(rng):
    """MATHS 4.2: s_i + sum_k (1/a_k - sigma_k) a_k/d_k / sum_k a_k/d_k, the same for all arcs of a frontend, when the temperature is
    small; softmin shifts the signal by T log x, which adds to the slope of the signal what x does to it. Here the shift is taken along:
    the routing is at rest where sigma_j + tau_ij + T log x_ij is equal, and the value does not depend on the arc to first order in T."""
    network, start = interior_equilibrium(rng, frontends=1)
    rule = Softmin(jnp.asarray(0.02), jnp.asarray(0.05))
    rest = simulate(network, rule, initial=start, duration=3000.0, dt=0.1, save=SaveAt.final()).final
    start = (rest.routing, rest.workload)
    found = marginal_latency(network, rule, initial=start, duration=2.0, dt=0.02, every=50, run_on=600.0)
    workload = np.asarray(rest.workload)
    rate, slope = oracles.service(network.service, workload)
    sigma, d = workload / rate, (rate - workload * slope) / rate**2
    signal = sigma + np.asarray(network.cost_latency)[0]
    weight = slope / d
    expected = signal.mean() + ((1 / slope - sigma) * weight).sum() / weight.sum()
    closed, opened = np.asarray(found.closed_loop[-1, 0]), np.asarray(found.open_loop[-1, 0])
    assert np.ptp(closed) < 0.05 * np.ptp(opened)
    np.testing.assert_allclose(closed, expected, rtol=0.02)
    np.testing.assert_allclose(opened, 1 / slope + np.asarray(network.cost_latency)[0], rtol=1e-4)


def test_a_reaction_that_does_not_die_out_has_no_closed_loop_value(rng):
    """A step size far above critical: a limit cycle remembers every request for ever."""
    network, start = transient(rng)
    found = marginal_latency(network, DGDLB(5.0), initial=start, **RUN | {"run_on": 40.0})
    assert int(found.result) == Result.not_settled
    assert np.isnan(found.closed_loop).all()
    assert np.isfinite(found.open_loop).all()
    assert float(found.tail) > 0.02


def test_what_has_no_gradient_refuses(rng):
    network, start = transient(rng)
    with pytest.raises(InputError, match=r"LeastWorkload jumps .* Softmin"):
        marginal_latency(network, LeastWorkload(), initial=start, **RUN)
    batch = jax.tree.map(lambda leaf: leaf[None], network)
    with pytest.raises(InputError, match="batch of 1"):
        marginal_latency(batch, DGDLB(0.02), **RUN)


def test_errors_a_person_can_read():
    """One frontend, two arcs, by hand: the approximate step goes the wrong way at the second instant."""
    approximate = jnp.array([[[1.0, 2.0]], [[1.0, 2.0]], [[1.0, 1.0]]])
    exact = jnp.array([[[1.0, 4.0]], [[3.0, 2.0]], [[1.0, 2.0]]])
    found = MarginalLatency(
        time=jnp.arange(3.0),
        approximate=approximate,
        open_loop=exact,
        closed_loop=exact,
        routing=jnp.full((3, 1, 2), 0.5),
        tail=jnp.zeros(()),
        result=jnp.zeros((), jnp.int32),
        mask=jnp.ones((1, 2), bool),
    )
    np.testing.assert_allclose(found.relative_error()[:, 0], [[0, -0.5], [-2 / 3, 0], [0, -0.5]])
    np.testing.assert_allclose(found.angle()[:, 0], [0, 180, np.nan], atol=1e-5)
    np.testing.assert_allclose(found.uphill(), [1 / 3])


def test_masked_arcs_have_no_value(rng):
    network = Network(
        [4.0, 3.0], [[0.1, 0.2], [0.2, 0.1]], Hyperbolic([9.0, 9.0], [4.0, 4.0]), mask=[[True, True], [False, True]]
    )
    found = marginal_latency(network, DGDLB(0.02), **RUN)
    for values in (found.approximate, found.open_loop, found.closed_loop):
        np.testing.assert_array_equal(np.isnan(values), np.broadcast_to(~np.asarray(network.mask), values.shape))
