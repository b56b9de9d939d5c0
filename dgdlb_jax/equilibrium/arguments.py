"""One order of arguments for every analysis: `network`, then a policy or a step size where one is asked for, then the `optimum`.

An `Optimum` is told apart by its type, so whatever follows the network may be left out: `critical_step_size(network, optimum)`,
`suggest_dt(network, optimum)` and `suggest_dt(network, policy, optimum)` all mean what they say.
"""

from typing import Any

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractPolicy


def policy_and_optimum(what: str, network: Network, policy: Any, optimum: Any) -> tuple[Any, Optimum]:
    """The policy, None where it was left out, and the optimum, solved where it was left out; whatever their order.

    **Raises:** `InputError` that names the function `what` when an argument is neither, or does not fit the network.
    """
    policy, optimum = _sorted(policy, optimum)
    if not (policy is None or isinstance(policy, AbstractPolicy)):
        raise _misplaced(what, "policy", policy, "dgdlb_jax.DGDLB(step_size)")
    return policy, known_optimum(what, network, optimum)


def step_and_optimum(what: str, network: Network, step_size: Any, optimum: Any) -> tuple[Any, Optimum]:
    """As `policy_and_optimum` with a step size, for which a policy that has one does as well."""
    step_size, optimum = _sorted(step_size, optimum)
    if isinstance(step_size, AbstractPolicy):
        own = getattr(step_size, "step_size", None)
        if own is None:
            raise _misplaced(what, "step_size", step_size, "a number in 1/s^2, or DGDLB")
        step_size = own
    return step_size, known_optimum(what, network, optimum)


def known_optimum(what: str, network: Network, optimum: Any) -> Optimum:
    """The optimum, solved where it was left out."""
    if optimum is None:
        return solve_optimum(network)
    if not isinstance(optimum, Optimum):
        raise _misplaced(what, "optimum", optimum, "solve_optimum(network)")
    if optimum.routing.shape != network.latency.shape:
        raise InputError(
            f"{what}: the optimum has a routing of shape {optimum.routing.shape}, the network needs {network.latency.shape}: "
            "give solve_optimum(network) of this network."
        )
    return optimum


def _sorted(subject: Any, optimum: Any) -> tuple[Any, Any]:
    return (
        (optimum, subject) if isinstance(subject, Optimum) and not isinstance(optimum, Optimum) else (subject, optimum)
    )


def _misplaced(what: str, name: str, found: Any, example: str) -> InputError:
    return InputError(
        f"{what}: {name} is a {type(found).__name__}; give {example} there, or by keyword what was meant."
    )
