"""What a run of a batch is given, and which of it does not go together."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, Int

from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import Signals
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay.checkpoint import count_frames
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.plan import Plan
from dgdlb_jax.simulation.trajectory import SimulationState


class Inputs(eqx.Module):
    """Everything with a batch axis."""

    network: Network
    policy: AbstractPolicy
    events: Signals | None  # demand apart, which the network has
    initial: tuple[Array, Array] | SimulationState
    reference: Float[Array, "batch backends"] | None
    dt: Float[Array, " batch"]
    steps: Int[Array, " batch"]
    after: Int[Array, " batch"]
    every: Int[Array, ""] | None  # instead of the plan's, when the number of steps is data
    extra: Float[Array, "batch instants frontends backends"] | None
    autoscaler: AbstractAutoscaler | None


def check_together(made: Plan, inputs: Inputs) -> None:
    """Raise `InputError` for what does not go together."""
    if inputs.events is not None:
        _check_own_requests(made, inputs)
        _check_timeouts(made, inputs)
        _check_replicas(inputs)
    _check_extra_flow(made, inputs)


def _check_own_requests(made: Plan, inputs: Inputs) -> None:
    """What a failed backend or a broken link leaves of a frontend's own requests is not modelled."""
    if made.program.counts_own and jax.tree.leaves(inputs.events):
        raise InputError(
            f"{type(inputs.policy).__name__} looks at its frontend's own requests, which events would have to take away: leave the events "
            "out, or take a policy that looks at workloads or latencies."
        )


def _check_timeouts(made: Plan, inputs: Inputs) -> None:
    """Requests that are sent again have a channel of their own, behind which there is nothing."""
    if inputs.events is None or inputs.events.timeout is None:
        return
    if made.plugins or inputs.extra is not None:
        raise InputError(
            "Failures with a timeout have no place for observables, statistics or extensions of your own, or for extra_flow: leave either "
            "out."
        )


def _check_replicas(inputs: Inputs) -> None:
    """What an autoscaler does not go with: other hands on replicas, and channels whose delays change or that it would stand between."""
    if inputs.autoscaler is None or inputs.events is None:
        return
    if inputs.events.replicas is not None:
        raise InputError(
            "Events that change replicas, and an autoscaler that moves them, contradict each other: leave one of them out."
        )
    if inputs.events.timeout is not None or inputs.events.news is not None:
        raise InputError(
            "Failures with a timeout, and links whose news gets slower, do not go with an autoscaler yet: leave one of them out."
        )


def _check_extra_flow(made: Plan, inputs: Inputs) -> None:
    if inputs.extra is None:
        return
    if inputs.events is not None and (inputs.events.latency is not None or inputs.events.intact is not None):
        raise InputError(
            "extra_flow has no wires of its own where events change latencies or break links: leave one of them out."
        )
    if made.program.steps is None:
        raise InputError("extra_flow needs a number of steps that is compiled in: leave frames out.")
    shape = (
        made.grid.dt.size,
        count_frames(made.program.steps, made.program.every) + 1,
        *inputs.network.latency.shape[1:],
    )
    if inputs.extra.shape != shape:
        raise InputError(
            f"extra_flow has shape {inputs.extra.shape[1:]}, but this run saves {shape[1]} instants of {shape[2]} x {shape[3]} arcs: "
            "give one matrix for each of them, the start and the end included."
        )


def check_fused(made: Plan, inputs: Inputs) -> None:
    """Raise `InputError` for what has no place in a kernel."""
    if inputs.events is not None or inputs.autoscaler is not None:
        raise InputError("fused=True has no place for events and autoscalers: leave it out.")
    if made.plugins:
        raise InputError("fused=True has no place for observables, statistics or extensions of your own: leave it out.")
    if not device.has_kernels():
        raise InputError(f"fused=True needs a CUDA device, this is {jax.default_backend()}: leave it out.")
    if inputs.extra is not None:
        raise InputError("fused=True has no place for extra_flow: leave it out.")
