"""What users do around the public functions: mixed precision, settings that are traced or static, a hunt for NaN."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd

pytestmark = pytest.mark.usefixtures("quick_compilation")  # compiles much, computes little

SINGLE, DOUBLE = np.float32, np.float64
RUN = {"duration": 1.0, "dt": 0.01, "max_latency": 0.2}
STATISTICS = RUN | {"save": dgd.SaveAt.statistics()}


def network(rates=DOUBLE, latency=DOUBLE, service=DOUBLE, **options) -> dgd.Network:
    curve = dgd.Hyperbolic(np.array([8, 8], service), np.array([20, 20], service))
    return dgd.Network(np.array([4, 2], rates), np.array([[0.02, 0.15], [0.15, 0.02]], latency), curve, **options)


def mean_latency(network, policy=None, **settings):
    policy = dgd.DGDLB(0.05) if policy is None else policy
    return dgd.simulate(network, policy, **STATISTICS | settings).statistics.mean_latency


@pytest.fixture(scope="module")
def exact() -> float:
    return float(mean_latency(network()))


def float_types(tree) -> set:
    return {leaf.dtype for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)}


@pytest.mark.parametrize("name", ["rates", "latency", "service"])
@pytest.mark.parametrize(("odd", "others"), [(SINGLE, DOUBLE), (DOUBLE, SINGLE)])
def test_a_network_has_the_largest_of_its_types(name, odd, others):
    types = {"rates": others, "latency": others, "service": others} | {name: odd}
    assert float_types(network(**types)) == {np.dtype(DOUBLE)}
    assert float_types(network(SINGLE, SINGLE, SINGLE)) == {np.dtype(SINGLE)}


def test_a_network_takes_other_rates_of_another_type():
    trace = dgd.Trace(DOUBLE(1.0), np.array([[4.0, 2.0], [3.0, 3.0]]))
    assert float_types(network(SINGLE, SINGLE, SINGLE).with_arrival_rate(trace)) == {np.dtype(DOUBLE)}


@pytest.mark.parametrize("network_type", [SINGLE, DOUBLE])
def test_a_run_has_the_type_of_its_network(exact, network_type):
    """The policy, the start and the reference are converted to it; single precision is off by its rounding."""
    other = DOUBLE if network_type is SINGLE else SINGLE
    mixed = network(network_type, network_type, network_type)
    run = dgd.simulate(
        mixed, dgd.DGDLB(other(0.05)), **RUN | {"save": dgd.SaveAt.statistics(reference=np.ones(2, other))}
    )
    assert float_types(run) == {np.dtype(network_type)}
    assert float(run.statistics.mean_latency) == pytest.approx(exact, rel=1e-5 if network_type is SINGLE else 1e-8)
    onward = dgd.simulate(network(other, other, other), dgd.DGDLB(0.05), initial=run.final, **RUN)
    assert float_types(onward) == {np.dtype(other)}


def test_a_network_mixed_below_its_constructor_runs(exact):
    mixed = eqx.tree_at(lambda n: n.cost_latency, network(), network(SINGLE, SINGLE, SINGLE).cost_latency)
    assert float(mean_latency(mixed)) == pytest.approx(exact, rel=1e-6)


def test_a_python_float_has_a_gradient_in_single_precision():
    slope = lambda one: float(jax.grad(lambda step: mean_latency(one, dgd.DGDLB(step)))(0.05))
    assert slope(network(SINGLE, SINGLE, SINGLE)) == pytest.approx(slope(network()), rel=1e-3)


STATIC = ("duration", "dt", "max_latency", "throw")


@pytest.mark.parametrize("after", [0.0, 0.3, 0.295])
def test_what_to_save_may_be_traced_static_or_part_of_a_module(after):
    """0.3 / 0.01 is above 30 by rounding, and 0.295 / 0.01 is no whole number: the window begins with step 30 in both."""
    save = dgd.SaveAt.statistics(after=after)
    expected = dgd.simulate(network(), dgd.DGDLB(0.05), **RUN, save=save).statistics
    assert float(expected.duration) == pytest.approx(1 - np.ceil(round(after / 0.01, 6)) * 0.01, rel=1e-12)

    class Experiment(eqx.Module):
        network: dgd.Network
        save: dgd.SaveAt

        def __call__(self):
            return dgd.simulate(self.network, dgd.DGDLB(0.05), **RUN, save=self.save)

    run = lambda function, save: function(network(), dgd.DGDLB(0.05), **RUN, save=save)
    made_inside = jax.jit(lambda after: run(dgd.simulate, dgd.SaveAt.statistics(after=after)))
    for found in (
        run(eqx.filter_jit(dgd.simulate), save),
        run(jax.jit(dgd.simulate, static_argnames=STATIC), save),
        run(jax.jit(dgd.simulate, static_argnames=(*STATIC, "save")), save),
        eqx.filter_jit(Experiment(network(), save))(),
        made_inside(after),
    ):
        for one, other in zip(jax.tree.leaves(found.statistics), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-15)


def test_equal_settings_have_one_hash():
    make = lambda after: dgd.SaveAt.statistics(after=after, reference=[1.0, 2.0])
    assert make(0.5) == make(0.5)
    assert hash(make(0.5)) == hash(make(0.5))
    assert make(0.5) != make(0.6)
    assert hash(make(0.5)) != hash(make(0.6))


def test_without_a_reference_there_is_no_distance():
    run = dgd.simulate(network(), dgd.DGDLB(0.05), **RUN)
    assert run.statistics.distance is None
    assert "window_distance" not in run.to_xarray()


CALLS = {
    "simulate": lambda n: dgd.simulate(n, dgd.DGDLB(0.05), **RUN),
    "figures": lambda n: [
        getattr(dgd.simulate(n, dgd.DGDLB(0.05), **STATISTICS).statistics, name)
        for name in ("mean_latency", "network_share", "swing", "growth")
    ],
    "reference": lambda n: mean_latency(n, save=dgd.SaveAt.statistics(after=0.995, reference=np.ones(2))),
    "gradient": lambda n: eqx.filter_grad(mean_latency)(n),
    "optimum": lambda n: eqx.filter_grad(lambda n: dgd.solve_optimum(n, throw=False).mean_latency)(n),
    "step sizes": lambda n: (dgd.default_step_size(n), dgd.sufficient_step_size(n), dgd.suggest_dt(n)),
    "limit": lambda n: (dgd.critical_mode(n).period, dgd.best_step_size(n)),
    "roots": lambda n: (lambda found: (found.damping, found.period))(dgd.characteristic_roots(n, dgd.DGDLB(0.01))),
    "prices": lambda n: dgd.shadow_prices(n),
    "marginal": lambda n: dgd.marginal_latency(
        n, dgd.DGDLB(0.05), duration=1.0, dt=0.05, every=10, run_on=100.0
    ).relative_error(),
}


@pytest.mark.parametrize("masked", [False, pytest.param(True, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.full] * (name in ("marginal", "optimum"))) for name in CALLS]
)
def test_healthy_calls_compute_no_nan_and_allow_strict_promotion(name, masked):
    """Also where an arc is missing, and a frontend has no choice and no loop. What the user forbids in their own code breaks nothing."""
    mask = [[True, True], [False, True]] if masked else None
    with jax.debug_nans(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        CALLS[name](network(mask=mask))


class Mixing(dgd.AbstractFlowPolicy):
    """DGD-LB as a user writes it who leaves ranks and types to JAX."""

    takes_lanes: ClassVar[bool] = True
    step_size: jax.Array

    def velocity(self, t, routing, observation, state):
        allowed = observation.mask * self.step_size
        return -allowed * (observation.marginal_latency + observation.cost_latency), state


def test_policies_may_promote_where_the_user_forbids_it():
    """In a run, in the linear analysis and in a gradient."""
    policy = Mixing(jnp.full(2, 0.05))
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(eqx.filter_grad(lambda n: mean_latency(n, policy)), network())
        jax.eval_shape(lambda n: dgd.linearise(n, policy), network())
        with pytest.raises(ValueError, match="rank_promotion"):
            jnp.ones(2) * jnp.ones((3, 2))
