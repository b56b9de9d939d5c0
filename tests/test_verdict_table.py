"""Verdicts on runs of 1 s to 10 000 s of a dozen fleets, judged by hand.

Two frontends, three backends, latencies of 0.05 to 0.6 s, so that a window has to last 1.2 s: runs below 6 s are too short for anybody.
The other entries follow from time constants that are stated beside each fleet.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Exponential, Hyperbolic, PerBackend, Power
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.latency import LeastLatency
from dgdlb_jax.policies.static import FixedRouting
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.verdict import LAST_PART, Verdict, classify, look_every

pytestmark = pytest.mark.usefixtures("quick_compilation")

DT, FRAMES = 0.05, 1024
DURATIONS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)
LATENCY = np.array([[0.05, 0.3, 0.6], [0.6, 0.3, 0.05]])
HYPERBOLIC, EXPONENTIAL, POWER = range(3)  # suprema of 8, 6, 8 requests/s; none for power, 4, 3, 4 at an eighth of N

PROPORTIONAL = np.array([[8, 6, 8], [8, 6, 8]]) / 22
NEAREST = np.array([[1.0, 0, 0], [0, 0, 1.0]])
TWO = np.array([[0.5, 0.5, 0], [0.5, 0.5, 0]])
DAYS = np.stack([6 + 3 * np.sin(np.arange(10)), 5 + 2 * np.cos(np.arange(10))], 1)

LETTERS = {
    "t": Verdict.too_short,
    "s": Verdict.settled,
    "o": Verdict.oscillating,
    "d": Verdict.diverging,
    "m": Verdict.moving,
    "v": Verdict.varying_inputs,
}


def curves(kind, stretch):
    """All backends of one kind of curve, service times stretched; one structure for all, so that code is shared."""
    each = (
        Hyperbolic([8.0, 6.0, 8.0], stretch * np.array([12.0, 9.0, 12.0])),
        Exponential([8.0, 6.0, 8.0], stretch * np.array([9.0, 7.0, 9.0])),
        Power([4.0, 3.0, 4.0], stretch * np.array([3.0, 2.0, 3.0]), [0.5, 0.5, 0.5]),
    )
    return PerBackend(each, [kind] * 3)


def fleet(rate, routing, workload=None, kind=HYPERBOLIC, stretch=1.0):
    """A network and where it starts: by default with the workload that carries the routing, 0 where none does."""
    network = Network(rate, LATENCY, curves(kind, stretch))
    if workload is None:
        carried = network.service.inverse(network.demand.rate(jnp.zeros(2)) @ routing)
        workload = jnp.where(jnp.isfinite(carried), carried, 0)
    return network, (jnp.asarray(routing), jnp.asarray(workload, float))


EMPTY = [0.0, 0.0, 0.0]
STATIC = {
    # Starts where it ends. One time in service is 3 s, a window that long needs 15 s.
    "at rest": (fleet([6.0, 5.0], PROPORTIONAL), PROPORTIONAL, "tttssssss"),
    # The same, with time constants 1 / ell' of 6 s. At 30 s exp(-24 / 6) = 0.02 of the workload is missing when the window begins.
    "from empty": (fleet([6.0, 5.0], PROPORTIONAL, EMPTY), PROPORTIONAL, "tttssssss"),
    # 9 requests/s to a backend that serves 8; the other one has 4 s in service, which takes 20 s.
    "one backend overloaded": (fleet([9.0, 5.0], NEAREST), NEAREST, "tttdddddd"),
    # A workload of 2e-5 that nobody is sent to drains to nothing and is no swing. The second backend, 5.5 of 6 requests/s, has
    # N = 99 or 18 s in service, for which 90 s are enough.
    "an idle backend drains": (fleet([6.0, 5.0], TWO, [26.4, 99.0, 2e-5]), TWO, "ttttsssss"),
    # 24 requests/s to 22: all queues grow, from the first. A lone request takes 1.5 s, which takes 7.5 s.
    "infeasible": (fleet([14.0, 10.0], PROPORTIONAL, EMPTY), PROPORTIONAL, "ttddddddd"),
    # 40 requests/s to power curves, that have no supremum: it settles. N = (1 + 14.5 / 4)^2 - 1 = 20 times 3, or 4.2 s in service.
    "power curves": (fleet([20.0, 20.0], PROPORTIONAL, EMPTY, POWER), PROPORTIONAL, "tttssssss"),
}
FLOWING = {
    # The default step size from proportional: 3 s in service; what it changes is within 2 % all along.
    "default step size": (fleet([6.0, 5.0], PROPORTIONAL), 0.0099, "tttssssss"),
    # 1.5 times the critical step size of 0.128. The swing grows from nothing, with a period of some 10 s: four of them fit into a
    # window from 200 s on; at 30 s not even one.
    "above the limit": (fleet([8.0, 7.0], PROPORTIONAL, None, EXPONENTIAL), 0.192, "ttttooooo"),
    # A hundredth of the default, from nearest: it drifts for 1000 s, the way to the optimum takes some 600 s.
    "too slow": (fleet([6.0, 5.0], NEAREST), 0.0001, "tttmmmmss"),
    # 24 requests/s to 22: the shares may change as they like, the fleet as a whole is short by 2.
    "infeasible, flowing": (fleet([14.0, 10.0], PROPORTIONAL, EMPTY), 0.01, "ttddddddd"),
}
JUMPING = {
    # Switches to and fro every two seconds for ever; up and down twice within the 6 s of a 30 s run.
    "half load": (fleet([6.0, 5.0], PROPORTIONAL), None, "tttoooooo"),
    # 90 % load with service times 30 times as long fills up for thousands of seconds: N / ell passes 200 s at 1000 s. Nothing ever
    # exceeds a supremum for good: never diverging.
    "slow service, high load": (fleet([11.0, 8.8], PROPORTIONAL, EMPTY, HYPERBOLIC, 30.0), None, "tttttttmm"),
}
# Ten bins of 100 s, then constant: the window of runs longer than 1250 s begins after them. Within a bin the rate bends once.
TRACED = {"static under a trace": (fleet(Trace(100.0, DAYS), PROPORTIONAL), PROPORTIONAL, "vvvvvvvss")}


def policies(kind, parameters):
    """The policy of every fleet of a group, stacked."""
    return (
        kind() if parameters[0] is None else kind(jnp.stack([jnp.atleast_1d(jnp.asarray(one)) for one in parameters]))
    )


@pytest.mark.parametrize(
    ("kind", "group"), [(FixedRouting, STATIC), (DGDLB, FLOWING), (LeastLatency, JUMPING), (FixedRouting, TRACED)]
)
def test_verdicts_by_hand(kind, group):
    """Every fleet of a group side by side, one duration after the other, from the same compiled code."""
    fleets, parameters, expected = zip(*group.values(), strict=True)
    networks = stack([network for network, _ in fleets])
    start = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(initial for _, initial in fleets))
    rows = [""] * len(group)
    letters = {verdict: letter for letter, verdict in LETTERS.items()}
    for duration in DURATIONS:
        run = simulate_batch(
            networks,
            policies(kind, parameters),
            duration=float(duration),
            dt=DT,
            initial=start,
            frames=FRAMES,
            save=SaveAt(
                look_every(duration / DT), fields=("workload",), after=(1 - LAST_PART) * duration, resumable=False
            ),
        )
        found = classify(networks, run)
        rows = [row + letters[Verdict(int(code))] for row, code in zip(rows, found.verdict, strict=True)]
        # Static routings are short by what is sent above the supremum, at every length of a run.
        if kind is FixedRouting:
            short = {name: float(value) for name, value in zip(group, found.short_by, strict=True) if value > 0}
            assert short == pytest.approx(
                {name: {"infeasible": 2.0, "one backend overloaded": 1.0}[name] for name in short}, rel=1e-6
            )
    assert dict(zip(group, rows, strict=True)) == dict(zip(group, expected, strict=True))
