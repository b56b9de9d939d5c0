"""How whole requests are counted: where in whole numbers, and what of them is drawn."""

from typing import NamedTuple

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractInstantPolicy, AbstractPolicy
from dgdlb_jax.simulation.own import reads_outstanding


class Counting(NamedTuple):
    """How requests are counted: in whole numbers on the wires, as `own` ones until the answer is back; then sent `one_by_one`; and
    whether as many come as are `recorded`."""

    arcs: bool
    own: bool = False
    one_by_one: bool = False
    recorded: bool = False

    @property
    def known_when_sent(self) -> bool:
        """Whether the requests of a step are drawn in that step, those that arrive a step after the rest included."""
        return self.own or self.recorded


def counting_for(networks: Network, policy: AbstractPolicy, count: str | None, arrivals: str) -> Counting:
    """How the requests of these networks are counted; `count` and `arrivals` as for `simulate_requests`.

    **Raises:** `InputError` for a way that does not exist, or that the policy cannot do with.
    """
    reads = reads_outstanding(networks, policy)
    if count not in (None, "backend", "arc", "own"):
        raise InputError(f'count is {count!r}: choose "backend", "arc" or "own", or leave it out.')
    if reads and count in ("backend", "arc"):
        raise InputError(
            f'count is {count!r}, but {type(policy).__name__} looks at its own outstanding requests: leave count out, or give "own".'
        )
    own, one_by_one, recorded = (
        count == "own" or reads,
        reads and isinstance(policy, AbstractInstantPolicy),
        arrivals == "recorded",
    )
    if arrivals not in ("poisson", "recorded"):
        raise InputError(f'arrivals is {arrivals!r}: choose "poisson" or "recorded".')
    if recorded and count == "backend":
        raise InputError(
            'arrivals="recorded" is for requests that are counted on arcs: leave count out, or give "arc" or "own".'
        )
    if recorded and one_by_one:
        raise InputError(
            f'arrivals="recorded" is not for {type(policy).__name__}, which sends one request after the other: leave it out.'
        )
    return Counting(own or recorded or count == "arc", own, one_by_one, recorded)
