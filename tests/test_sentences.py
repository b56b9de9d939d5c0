"""Notes and headlines around the tables: said where the figures make them true, silent where they do not. The figures are made up."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Hyperbolic
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.reports import text
from dgdlb_jax.reports.stability_text import StabilityReport
from dgdlb_jax.studies.outcome import Outcome
from dgdlb_jax.studies.verdict import Verdict
from dgdlb_jax.studies.what_if import Change, WhatIf

ROW = Outcome(
    balancer="a", duration=100.0, mean_latency=0.1, excess=0.0, network_share=0.02, verdict=Verdict.settled, reason=None, short_by=0.0,
    short_backends=(), settle_time=5.0, swing=0.0, drift=0.0, resolved=True, highest_latency=0.2, beyond_measured=(),
    still_beyond_measured=(), result=Result.successful,
)  # fmt: skip


def network(backends: int = 2) -> Network:
    shape = (2, backends)
    names = tuple(f"site-{j}" for j in range(backends))
    latency = np.linspace(0.1, 0.4, 2 * backends).reshape(shape)
    service = Hyperbolic(np.full(backends, 8.0), np.full(backends, 4.0))
    return Network([3.0, 1.0], latency, service, frontend_names=("west", "east"), backend_names=names, name="fleet")


def noted(**changes) -> str:
    row = Outcome(**{**vars(ROW), **changes})
    return "\n".join(text.notes(SimpleNamespace(table=lambda: [row], longer={}, duration=100.0)))


def test_notes_of_single_rows():
    assert noted() == ""
    still = noted(beyond_measured=("x",), still_beyond_measured=("x",))
    assert still == "  a: x outside the measured range of the service curve"
    assert noted(beyond_measured=("x",)) == "  a: x left the measured range of the service curve on the way"
    # Where queues grow without end every curve is left; that is said alone.
    drowned = noted(
        verdict=Verdict.diverging, short_backends=("x",), beyond_measured=("x",), still_beyond_measured=("x",)
    )
    assert drowned == "  a: queues grow without end at x"
    assert noted(verdict=Verdict.failed, result=Result.not_finite) == f"  a: {Result.not_finite.sentence}"
    assert noted(verdict=Verdict.moving, reason="run longer") == "  a: run longer"


def test_what_a_moving_demand_is_held_against():
    reference = SimpleNamespace(total_rate=np.array([3.0, 8.0]), missing=0, time=np.arange(50))
    moving = SimpleNamespace(reference=reference, unmeasurable=None, network=SimpleNamespace(demand=None))
    (line,) = text.reference_facts(moving)
    assert line.startswith("demand moves between 3.00 and 8.00 requests/s; the quasi-static optimum")
    assert line.endswith("not a bound")
    moving.unmeasurable = (10.0, 7.0)
    assert text.reference_facts(moving)[0].endswith("(queues cannot follow it here)")
    reference.missing = 3
    assert text.reference_facts(moving)[1] == "it leaves out 3 of 50 instants, which have no certified optimum"
    # 8 between 6 and 5: the middle is at 8 + (8 - 5.5) / 2 = 9.25.
    moving.network.demand = Trace(1.0, [[6.0, 1.0], [8.0, 1.0], [5.0, 1.0]])
    assert text.reference_facts(moving)[1].endswith("rise to at most 16 % above a frontend's busiest bin")
    assert text.reference_facts(SimpleNamespace(reference=None, unmeasurable=None)) == []


@pytest.mark.parametrize(("backends", "said"), [(12, ""), (14, "2 more, which get less")])
def test_how_many_backends_the_terminal_shows(backends, said):
    optimum = SimpleNamespace(routing=np.full((2, backends), 1 / backends))
    shown = text.flows(SimpleNamespace(network=network(backends), optimum=optimum, runs={}))
    assert shown.count("site-") == 12
    assert shown.endswith(said)
    assert ("more" in shown) == bool(said)


def test_what_a_change_is_worth():
    assert text.change(None) == "-"
    assert text.change(Change(0.02, 0.0)) == "+20.0 ms"
    assert text.change(Change(-0.02, 0.0)) == "-20.0 ms"
    assert text.change(Change(math.inf, 2.0)) == "short by 2.00 req/s"
    assert text.change(Change(math.nan, 0.0)) == "no optimum found"
    one = WhatIf("site", Change(-0.01), None, Change(0.02))
    assert "more, whose" not in text.changes(SimpleNamespace(changes=[one] * 8))
    assert text.changes(SimpleNamespace(changes=[one] * 11)).endswith("3 more, whose loss costs less")


def test_inputs_that_have_no_room_are_summed_up():
    assert "inputs:" not in text.inputs(network(12))
    assert text.inputs(network(15)).startswith("inputs: one-way latencies of 100 to 400 ms; all of them")
    assert text.inputs(network(12), changing=True) == f"Inputs, before any event\n{text.inputs(network(12))}"
    assert text.inputs(network(15), changing=True).startswith("inputs, before any event: one-way latencies of 100")
    assert text.inputs(network(15), changing=True).endswith("those after the last one are in run.nc")


def headlines(factor=3.0, **changes) -> str:
    """Two backends that swing against each other, three times beyond the recommended step sizes."""
    found = {
        "network": network(), "chosen": "recommended", "start": "uniform", "settled": 0.5, "rule": "distributed",
        "mode": SimpleNamespace(step_size=factor, period=2.0, workload=np.array([1.0, -0.9])),
        "spectrum": SimpleNamespace(settling_time=7.0, period=math.inf),
        "linear": SimpleNamespace(support=np.ones((2, 2), bool), linear_region=0.5),
        "by_link": np.array([[-0.2, -0.7], [-0.1, 0.0]]), "by_backend": np.array([0.3, -1.2]),
    }  # fmt: skip
    report = object.__new__(StabilityReport)  # made up, so without the records of a real one
    vars(report).update(found | changes)
    return report.summary()


def test_headlines_of_stability():
    whole = headlines()
    assert whole.startswith("fleet: 2 of 2 frontends use two backends or more at the optimum\n")
    assert "limit: 3.00 times the recommended step sizes; beyond it an oscillation with a period of 2.00 s" in whole
    assert "site-0 against site-1\n" in whole
    assert (
        "what sets it: link west - site-1 (-0.7 % per % of latency) and backend site-1 (-1.2 % per % of capacity)"
        in whole
    )
    assert "small deviations fall to 1 % in 7.00 s, without swinging" in whole
    assert "from uniform routing: settles up to 0.5 of the limit" in whole
    assert whole.endswith("guaranteed: near the optimum, by the rule 'distributed'")
    assert "caution" not in whole
    swinging = headlines(spectrum=SimpleNamespace(settling_time=7.0, period=3.0))
    assert "in 7.00 s, swinging with a period of 3.00 s" in swinging


def test_headlines_where_there_is_no_limit():
    undelayed = headlines(factor=math.inf, settled=math.nan)
    assert "no limit: no latency delays the loop" in undelayed
    assert "oscillation" not in undelayed
    assert "from uniform" not in undelayed
    alone = headlines(factor=math.inf, linear=SimpleNamespace(support=np.zeros((2, 2), bool), linear_region=0.5))
    assert alone.startswith("fleet: 0 of 2")
    assert "no limit: no frontend has two active backends at the optimum" in alone


def test_headlines_that_warn():
    assert "no run settled, down to 0.02 of the limit" in headlines(settled=0.0)
    near = headlines(linear=SimpleNamespace(support=np.ones((2, 2), bool), linear_region=0.011))
    assert "a workload 1.1 % away from it already brings another arc into use" in near
