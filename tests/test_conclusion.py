"""Every sentence of a conclusion: said where the figures make it true, silent where they do not. The figures are made up."""

import dataclasses
import math
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic, Tabulated, fit_service, redrawn, scatter
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.studies import conclusion as words
from dgdlb_jax.studies.balancers import CURRENT, DGD
from dgdlb_jax.studies.durations import longest_service
from dgdlb_jax.studies.outcome import Outcome
from dgdlb_jax.studies.quasi_static import steady_for
from dgdlb_jax.studies.scatter import Scatter
from dgdlb_jax.studies.switching import Move, Switch, switch
from dgdlb_jax.studies.verdict import Verdict

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROW = Outcome(
    balancer=DGD, duration=100.0, mean_latency=0.1001, excess=1e-3, network_share=0.02, verdict=Verdict.settled, reason=None, short_by=0.0,
    short_backends=(), settle_time=5.0, swing=0.0, drift=0.0, resolved=True, highest_latency=0.2, beyond_measured=(),
    still_beyond_measured=(), result=Result.successful,
)  # fmt: skip
BEST = np.array([[1.0, 0.0], [0.0, 1.0]])
RATE, LATENCY = np.array([4.0, 4.0]), np.array([[0.1, 0.4], [0.4, 0.1]])
CURVE = Hyperbolic([8.0, 8.0], [4.0, 4.0])


def row(**changes) -> Outcome:
    return dataclasses.replace(ROW, **changes)


def stub(
    found=BEST, *, moving=False, unmeasurable=None, network_share=0.02, rows=(ROW,), switched=None, scattered=None
):
    """What the sentences look at of a comparison: two frontends, two backends, and the routing DGD-LB ends with."""
    network = Network(RATE, LATENCY, CURVE, frontend_names=("west", "east"), backend_names=("oregon", "virginia"))
    return SimpleNamespace(
        network=network, optimum=SimpleNamespace(routing=BEST, network_share=network_share),
        mean_routing=lambda name: np.asarray(found), moving=moving,
        unmeasurable=unmeasurable, best_latency=0.1, outcomes={one.balancer: one for one in rows}, switch=switched,
        scatter=scattered, phases=(),
    )  # fmt: skip


def test_backends_that_the_optimum_loads_beyond_what_was_measured_are_named():
    """Equal curves share 10 requests/s equally; 5 of them need a workload of 6.9, and only 5 were measured at the first backend."""
    measured = np.array([5.0, 1000.0])
    capacity = 10 * (1 - np.exp(-measured / 10))
    service = Tabulated([[10.0, 10.0]], [[10.0, 10.0]], capacity, measured)
    network = Network([10.0], [[0.1, 0.1]], service, backend_names=("oregon", "virginia"))
    said = lambda network: words.about_extrapolation(SimpleNamespace(network=network, optimum=solve_optimum(network)))
    assert said(network) == (
        f"At the optimum oregon is outside the measured range of the service curve, with {5 / capacity[0]:.0%} of the highest throughput "
        "measured: figures there are extrapolated."
    ).replace("%", " %")
    assert said(network.with_arrival_rate([7.0])) == "", "a workload of 4.3"


@pytest.mark.parametrize(
    ("said", "changes", "moving"),
    [
        ("finds the optimum by itself", {}, False),
        ("is still on its way: 100 ms, +1.0 % against the optimum of 100 ms", {"excess": 0.01}, False),
        ("lets queues grow at oregon", {"verdict": Verdict.diverging, "short_backends": ("oregon",)}, False),
        ("failed: ", {"verdict": Verdict.failed, "result": Result.not_finite}, False),
        ("has not come to rest (swing 12 %)", {"verdict": Verdict.oscillating, "swing": 0.12}, False),
        ("too short to judge DGD-LB", {"verdict": Verdict.too_short, "reason": "because"}, False),
        ("Under this demand DGD-LB averages 100 ms, +0.10 % against the quasi-static reference", {}, True),
        ("Under this demand DGD-LB averages 100 ms.", {"excess": math.nan}, True),
    ],
)
def test_what_is_said_of_dgd(said, changes, moving):
    sentence = words.about_dgd(stub(moving=moving), row(**changes))
    assert said in sentence
    others = {"finds", "still on its way", "lets queues", "failed: ", "come to rest", "too short", "Under this"} - {
        said
    }
    assert sum(other in sentence for other in others) <= 1


def test_another_routing_that_is_as_good_is_explained():
    """West sends 30 % to Virginia and East 30 % to Oregon: each backend still gets 4 requests/s."""
    swapped = [[0.7, 0.3], [0.3, 0.7]]
    said = words.about_routings(stub(swapped), ROW)
    assert "(west sends 30 % of its requests elsewhere), but every backend gets as much" in said
    assert "differs by only 0.10 %, as the network is 2.0 % of it: it hardly matters" in said
    assert "network" not in words.about_routings(stub(swapped, network_share=0.5), ROW)
    # West alone moves 30 % of half of all requests: each backend gets 15 % of all more or less.
    assert "gets 15 % of all requests more or less" in words.about_routings(stub([[0.7, 0.3], [0, 1]]), ROW)


def test_nothing_is_explained_where_routings_agree_or_cost_differs():
    swapped = [[0.7, 0.3], [0.3, 0.7]]
    assert not words.about_routings(stub([[0.97, 0.03], [0, 1]]), ROW)
    assert not words.about_routings(stub(swapped), row(excess=0.01))
    assert not words.about_routings(stub(swapped), row(verdict=Verdict.oscillating))
    assert not words.about_routings(stub(swapped, moving=True), ROW)


def test_rivals():
    rivals = [row(balancer="a", excess=0.02, mean_latency=0.2), row(balancer="b", excess=0.5, mean_latency=0.3)]
    assert words.about_rivals(rivals) == "A comes closest of the others (+2.0 %), b costs most (+50 %)."
    assert words.about_rivals(rivals[:1]) == "A comes closest of the others (+2.0 %)."
    drowning = row(balancer="c", mean_latency=math.inf, verdict=Verdict.diverging)
    assert words.about_rivals([drowning]) == "C sends some backends more than they can serve."
    assert words.about_rivals([]) == ""
    no_reference = [dataclasses.replace(one, excess=math.nan) for one in rivals]
    assert words.about_rivals(no_reference) == "A comes closest of the others (200 ms), b costs most (300 ms)."


def test_the_current_routing():
    assert words.about_current(row(mean_latency=0.2, excess=1.0)) == "Your current routing costs 200 ms (+100 %)."
    assert words.about_current(row(mean_latency=0.2, excess=math.nan)) == "Your current routing costs 200 ms."
    short = row(verdict=Verdict.diverging, short_by=2.0, short_backends=("oregon",))
    assert words.about_current(short) == "Your current routing is short by 2.00 requests/s at oregon."
    assert "failed: " in words.about_current(row(verdict=Verdict.failed, result=Result.not_finite))


MOVE = Move("west", "oregon", "virginia", 0.25, 0.12)


def test_what_changing_the_routing_brings():
    said = words.about_switch(Switch(0.2, 0.1, (MOVE,)))
    assert said == (
        "Changing to the recommended routing saves 100 ms of it (50 %). The change that brings most (80 % of that): west, 25 % of "
        "its requests from oregon to virginia."
    )
    assert "The 2 changes that bring most" in words.about_switch(Switch(0.2, 0.1, (MOVE, MOVE)))
    relieved = words.about_switch(Switch(math.inf, 0.1, (MOVE,)))
    assert "ends the overload and leaves 100 ms." in relieved
    assert "(120 ms after them)" in relieved
    still = words.about_switch(Switch(math.inf, 0.1, (dataclasses.replace(MOVE, latency=math.inf),)))
    assert "(more are needed)" in still
    assert words.about_switch(Switch(0.2, 0.1, ())).endswith("No single change helps by itself.")


def test_no_change_is_recommended_that_brings_nothing():
    assert "leave it as it is" in words.about_switch(Switch(0.10005, 0.1, ()))
    assert "saves" not in words.about_switch(Switch(0.10005, 0.1, (MOVE,)))
    assert words.about_switch(None) == ""
    assert words.about_switch(Switch(0.2, math.inf, ())) == ""


SCATTER = Scatter(40, 0, {"gpu": 0.05}, (), (0.09, 0.12), "oregon", (0.4, 0.6), (math.nan, math.nan))


def test_scatter_of_the_measurements():
    said = words.about_scatter(SCATTER)
    assert "(5.0 % at gpu): within that the optimum is 90.0 ms to 120 ms, and oregon" in said
    assert "gets 40 % to 60 % of all requests" in said
    assert "gets 66 % of all requests" in words.about_scatter(dataclasses.replace(SCATTER, inflow=(0.658, 0.662)))
    assert "current" not in said
    assert "could not carry" not in said
    assert "3 of 40 sets" in words.about_scatter(dataclasses.replace(SCATTER, unserved=3))
    act = words.about_scatter(dataclasses.replace(SCATTER, gain=(0.1, 0.2)))
    assert act.endswith("takes 10 % to 20 % off your current latency, more than the scatter explains.")
    stay = words.about_scatter(dataclasses.replace(SCATTER, gain=(-0.1, 0.2)))
    assert stay.endswith("takes less than 0 to 20 % off your current latency, no reason to change anything.")
    assert words.about_scatter(None) == ""
    assert words.about_scatter(dataclasses.replace(SCATTER, error={"gpu": 0.0})) == ""


def test_no_percentages_where_queues_cannot_follow():
    said = words.no_percentage(stub(moving=True, unmeasurable=(10.0, 7.0)))
    assert said.startswith("Demand stays as it is for 10.0 s and a request up to 7.00 s at a backend")
    assert words.no_percentage(stub(moving=True)) == ""


def test_a_conclusion_holds_them_all():
    rows = (ROW, row(balancer=CURRENT, mean_latency=0.2, excess=1.0), row(balancer="a"))
    whole = words.conclusion(
        stub([[0.7, 0.3], [0.3, 0.7]], rows=rows, switched=Switch(0.2, 0.1, (MOVE,)), scattered=SCATTER)
    )
    order = (
        "finds the optimum",
        "Its routing is another",
        "A comes closest",
        "Your current",
        "Changing to",
        "Measured",
    )
    places = [whole.index(part) for part in order]
    assert places == sorted(places)


def network(demand=RATE) -> Network:
    """Half a second alone, and latencies that tell the two apart."""
    return Network(demand, LATENCY, CURVE)


def test_how_long_a_demand_stays_as_it_is():
    assert steady_for(network(Trace(7.0, np.tile(RATE, (3, 1))))) == pytest.approx(7.0)
    assert steady_for(network(DailyCycle([4.0, 4.0], [0.1, 0.1], period=62.83))) == pytest.approx(10, rel=1e-3)
    assert steady_for(network(Jumps([5.0, 8.0], np.tile(RATE, (3, 1))))) == pytest.approx(3.0)
    assert math.isinf(steady_for(network()))
    optimum = solve_optimum(network())
    # 4 of 8 N / (4 + N) requests/s: N = 4, one second each.
    assert longest_service(network(), optimum) == pytest.approx(1.0, rel=1e-6)


def test_moves_lead_to_the_optimum_and_the_best_one_comes_first():
    fleet = network()
    optimum = np.asarray(solve_optimum(fleet).routing)
    np.testing.assert_allclose(optimum, BEST, atol=1e-6)
    # By symmetry a swap of 30 % from west costs the same at backends as from east, but west alone overfills one of them.
    found = switch(fleet, np.array([[0.5, 0.5], [0.2, 0.8]]), optimum)
    first = found.moves[0]
    assert (first.frontend, first.source, first.target, first.share) == (
        "frontend 0",
        "backend 1",
        "backend 0",
        pytest.approx(0.5),
    )
    # The first move as a routing of its own, held against the latency that it is said to have.
    assert first.latency == pytest.approx(float(latency_at_rest(fleet, np.array([[1.0, 0.0], [0.2, 0.8]]))), rel=1e-9)
    assert found.before == pytest.approx(float(latency_at_rest(fleet, np.array([[0.5, 0.5], [0.2, 0.8]]))), rel=1e-9)
    assert found.moves[-1].latency == pytest.approx(found.after, rel=1e-6)
    assert found.part == pytest.approx(1.0, rel=1e-4)
    assert switch(fleet, optimum, optimum).moves == ()


def test_moves_end_an_overload_first():
    fleet = network([6.0, 3.0])
    found = switch(fleet, np.array([[0.0, 1.0], [0.0, 1.0]]), np.asarray(solve_optimum(fleet).routing))
    assert math.isinf(found.before)
    assert found.moves[0].frontend == "frontend 0"
    assert math.isfinite(found.moves[0].latency)
    assert math.isnan(found.part)


def test_scatter_is_that_of_the_measurements(rng):
    """2 % of noise on thirty points of a curve is found again within a fifth, and none where there is none."""
    workload = np.geomspace(1, 64, 30)
    exact = 9 * -np.expm1(-workload / 12)
    noisy = fit_service(workload, exact * (1 + 0.02 * rng.standard_normal(30)))
    assert np.std(scatter(noisy)) == pytest.approx(0.02, rel=0.4)
    assert np.abs(scatter(fit_service(workload, exact))).max() < 1e-3
    assert scatter(fit_service([1, 2, 3], [1, 1.8, 2.4])) is None
    again = [redrawn(noisy, scatter(noisy), rng).service.rate(jnp.array([10.0]))[0] for _ in range(20)]
    assert 0.002 < np.std(again) / np.mean(again) < 0.02
