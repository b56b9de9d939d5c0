r"""The loop transfer function of a linearised policy, and the frequencies at which to evaluate it.

Eliminating the routing, workloads obey $(I + L(s)) n = 0$ with

$$ L(s) = -\mathrm{diag}\frac{1}{s (s + a_j)} \sum_i \lambda_i D^{fwd}_i P_i V_i D^{fb}_i, \qquad D_i = \mathrm{diag}(e^{-s \tau_{ij}}) $$

A policy that depends on its own routing needs the routing as unknown: $(I + L(s)) \xi = 0$ with
$L(s) = -\frac1s P (W + V D^{fb} \mathrm{diag}\frac{1}{s + a} \Lambda D^{fwd})$. The memory of a policy, and averages over the news, make
V and W functions of s. Either way a policy made $\eta$ times as fast has the loop
$\eta L$: it is critical where an eigenvalue of $L(jw)$ is $-1/\eta$.

**Source:** own derivation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.stability.linearise import Linearisation

_COPIES = 3  # of the complex matrix over arcs: its two terms and their sum
_AT_ONCE = 256e6  # bytes that loops at several frequencies, with their derivatives, may take
_PHASE = 0.2  # radians per stride along the axis of frequencies
_GROWTH = 0.1  # relative growth of the frequency per stride
_SAFETY = 1e-3  # where to start, relative to the frequency at which a phase of pi/2 is lost, when no theorem says more

Frequency = Float[Array, ""]
Laplace = Complex[Array, ""]


class LoopTransfer(eqx.Module):
    """The loop transfer function of one linearised network, as `largest_crossing` takes it."""

    linear: Linearisation

    @property
    def delay(self) -> Float[Array, ""]:
        """The longest way round a loop, averages included, seconds."""
        lin = self.linear
        longest = lambda delay: jnp.where(lin.support, delay, 0).max()
        return longest(lin.latency) + longest(lin.feedback_latency) + sum(longest(window) for window in lin.windows)

    @property
    def closed(self) -> Bool[Array, ""]:
        """Whether there is anything that moves."""
        return self.linear.support.any()

    @property
    def size(self) -> int:
        """Rows of the matrix: backends, or arcs when the policy depends on its own routing."""
        frontends, backends = self.linear.support.shape
        return backends if self.linear.self_response is None else frontends * backends

    @property
    def memory(self) -> int:
        """Bytes that the matrix takes at one frequency while it is put together."""
        own = self.linear.self_response is not None
        return 16 * (_COPIES * self.size**2 if own else self.linear.support.size * self.size)

    def matrix(self, frequency: Frequency) -> Complex[Array, "n n"]:
        """$L(jw)$."""
        return self.at(imaginary(frequency))

    def at(self, s: Laplace) -> Complex[Array, "n n"]:
        """$L(s)$: over backends, or over arcs `(frontends * backends)` when the policy depends on its own routing."""
        if self.linear.self_response is None:
            return self.arrivals(s, self.moves(s)) / (-(s + as_complex(self.linear.slope)))[:, None]
        return -self._routing_loop(s)

    def moves(self, s: Laplace) -> Complex[Array, "frontends backends backends"]:
        """Routing per workload, when a policy does not depend on its own routing: $P_i V_i D^{fb}_i / s$."""
        late = _late(s * as_complex(self.linear.feedback_latency)) / s
        return self.linear.response_at(s) * late[:, None, :]

    def arrivals(
        self, s: Laplace, moves: Complex[Array, "frontends backends backends"]
    ) -> Complex[Array, "backends backends"]:
        """Requests/s that reach each backend per request at another, when frontends move so."""
        return (self._sent(s)[:, :, None] * moves).sum(0)

    def _sent(self, s: Laplace) -> Complex[Array, "frontends backends"]:
        """Requests/s that reach a backend per share of a frontend: $\\lambda_i D^{fwd}_i$."""
        lin = self.linear
        return as_complex(lin.arrival_rate)[:, None] * _late(s * as_complex(lin.latency))

    def _routing_loop(self, s: Laplace) -> Complex[Array, "arcs arcs"]:
        lin = self.linear
        assert lin.self_response is not None
        frontends, backends = lin.support.shape
        what = f"The loop of {self.size} arcs whose policy depends on its own routing"
        device.check_fits(self.memory, what, "use smaller networks")
        forward = jnp.where(lin.support, self._sent(s), 0)
        # (i, j, k): routing of arc ij per arrival at backend k
        through = self.moves(s) / (s + as_complex(lin.slope))[None, None]
        arrivals = through[:, :, None, :] * forward[None, None]  # (i, j, i', k), the arc i'k sends to backend k
        own = lin.self_response_at(s)
        own = jnp.eye(frontends, dtype=own.dtype)[:, None, :, None] * own[:, :, None, :] / s
        return (arrivals + own).reshape(frontends * backends, -1)

    def workload(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, " backends"]:
        """The workload of a mode of `at(s)`."""
        lin = self.linear
        if lin.self_response is None:
            return mode
        routing = mode.reshape(lin.support.shape)
        return (self._sent(s) * routing).sum(0) / (s + as_complex(lin.slope))

    def routing(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, "frontends backends"]:
        """The routing of a mode of `at(s)`, for the policy as linearised."""
        lin = self.linear
        if lin.self_response is None:
            return jnp.einsum("ijk,k->ij", self.moves(s), mode)
        return mode.reshape(lin.support.shape)

    def bound(self, frequency: Frequency) -> Float[Array, ""]:
        """A bound on the spectral radius of $L(jw)$ that falls with the frequency; 0 without a loop."""
        lin = self.linear
        size = 1 / jnp.sqrt(frequency**2 + lin.slope**2)
        response = lin.largest_response
        if lin.self_response is None:
            whole = (lin.arrival_rate[:, None, None] * response).sum(0)
            # Rows and columns scaled alike leave eigenvalues alone; for a gradient rule this makes them symmetric.
            scale = jnp.sqrt(size / jnp.where(lin.gain > 0, lin.gain, 1))
            general = (size[:, None] * whole * scale[None] / scale[:, None]).sum(1).max() / frequency
            tied = self._tied_bound(size) / frequency
            return jnp.where(self.tied, jnp.minimum(tied, general), general)
        flow = jnp.where(lin.support, lin.arrival_rate[:, None], 0)
        columns = lin.largest_self_response.sum(1) + flow * (response.sum((0, 1)) * size)[None]
        return columns.max() / frequency

    def _tied_bound(self, size: Float[Array, " backends"]) -> Float[Array, ""]:
        """The spectral radius of $|H| \\sum_i \\lambda_i \\eta_i P_i$: an upper bound at an optimum (theorem B), times the frequency."""
        lin = self.linear
        return lin.point.rates(lin.point.strength(self.step_size), size * lin.gain).max()

    @property
    def step_size(self) -> Float[Array, " frontends"]:
        r"""$\eta_i$ with $V_i = -\eta_i \mathrm{diag}(c)$, if the policy is of that kind (see `tied`)."""
        lin = self.linear
        count = lin.support.sum(1, dtype=lin.gain.dtype)
        diagonal = jnp.diagonal(lin.response, axis1=1, axis2=2) / jnp.where(lin.gain > 0, -lin.gain, 1)[None]
        total = jnp.where(lin.support, diagonal, 0).sum(1)  # each entry is eta (1 - 1/k)
        return total / jnp.maximum(count - 1, 1)

    @property
    def tied(self) -> Bool[Array, ""]:
        r"""Whether $V_i = -\eta_i \mathrm{diag}(c)$, both latencies agree and $\tau_{ij} + 1/a_j$ is the same on the support of a frontend.

        So it is at an optimum when forward = feedback = cost latency (up to a constant per frontend), and theorem B holds.
        """
        lin = self.linear
        if lin.self_response is not None or lin.filter is not None or lin.windows:
            return jnp.zeros((), bool)
        level = lin.latency + 1 / lin.slope[None]
        highest = jnp.where(lin.support, level, -jnp.inf).max(1, keepdims=True)
        lowest = jnp.where(lin.support, level, jnp.inf).min(1, keepdims=True)
        kkt = jnp.where(lin.support.any(1, keepdims=True), highest - lowest <= 1e-6 * highest, True)
        same = jnp.where(lin.support, jnp.abs(lin.latency - lin.feedback_latency) <= 1e-9 * lin.latency, True)
        on = lin.support
        count = jnp.maximum(on.sum(1, dtype=level.dtype), 1)[:, None, None]
        projector = jnp.eye(on.shape[1], dtype=level.dtype)[None] - 1 / count
        projector = jnp.where(on[:, :, None] & on[:, None, :], projector, 0)
        expected = -self.step_size[:, None, None] * projector * lin.gain[None, None]
        gradient = jnp.abs(lin.response - expected) <= 1e-6 * jnp.abs(expected).max()
        return kkt.all() & same.all() & gradient.all()

    @property
    def first(self) -> Frequency:
        """No crossing lies below this frequency: by theorem B at an optimum, elsewhere with a wide margin."""
        lin = self.linear
        active = lin.support.any(0)
        level = jnp.where(lin.support, lin.latency + 1 / lin.slope[None], 0).max(1)  # nu_i
        # Near saturation a latency is the difference of much larger numbers: rounding may only lower the frequency.
        highest = jnp.where(lin.point.same_part, level[:, None], 0).max(0) * (1 + 4 * jnp.finfo(level.dtype).eps)
        ahead = jnp.where(active, jnp.maximum(highest - 1 / lin.slope, 0), 0)
        by_theorem = quarter_turn(2 * ahead, lin.slope)
        delay = self.delay if lin.filter is None else self.delay + lin.filter.longest
        safe = _SAFETY * quarter_turn(jnp.broadcast_to(delay, lin.slope.shape), lin.slope)
        return jnp.where(active, jnp.where(self.tied, (1 - 1e-9) * by_theorem, safe), jnp.inf).min()

    @property
    def last(self) -> Frequency:
        """There is no last frequency."""
        return jnp.full_like(self.delay, jnp.inf)

    def stride(self, frequency: Frequency) -> Frequency:
        """How far to the next frequency."""
        delay = self.delay if self.linear.filter is None else self.delay + self.linear.filter.delay(frequency)
        return 1 / (delay / _PHASE + 1 / (_GROWTH * frequency))


def side_by_side(memory: int, arcs: tuple[int, ...], most: int) -> int:
    """At how many frequencies, of `most`, a loop and its derivative are evaluated at the same time.

    **Arguments:** `memory` of the loop, bytes; `arcs`: frontends and backends, for messages.

    **Raises:** `InputError` when even one of them takes more memory than there is.
    """
    one = 2 * memory
    device.check_fits(one, f"The loop of {arcs[0]} x {arcs[1]} frontends and backends", "use smaller networks")
    return max(1, min(most, int(_AT_ONCE / one)))


@jax.custom_jvp
def _late(x: Complex[Array, "..."]) -> Complex[Array, "..."]:
    r"""$e^{-x}$ for $x = s \tau$, sine and cosine by $t = \tan(x / 2)$.

    One call of the C library instead of two, and the divisions come last: XLA keeps what it has divided, while sines and cosines are
    computed again for every pair of backends that they are multiplied with.
    """
    t, decay = jnp.tan(x.imag / 2), jnp.exp(-x.real)
    return jax.lax.complex(decay * (1 - t * t) / (1 + t * t), -2 * decay * t / (1 + t * t))


@_late.defjvp
def _late_along(primals, tangents):
    (x,), (along,) = primals, tangents
    late = _late(x)
    return late, -along * late


def quarter_turn(delay: Float[Array, "..."], slope: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The frequency at which $w \cdot \text{delay} + \arctan(w / a) = \pi / 2$; very large without delay."""
    # In u = w / a with d = a * delay: u d + arctan(u) = pi/2, i.e. u tan(u d) = 1; between 0 and pi / (2 d).
    turn = jnp.maximum(delay * slope, 1e-30)
    high = jnp.minimum(jnp.pi / (2 * turn), jnp.sqrt(1 / turn))  # tan(x) >= x

    def halve(_, interval):
        low, high = interval
        middle = (low + high) / 2
        below = middle * jnp.tan(middle * turn) < 1
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, 60, halve, (jnp.zeros_like(high), high))[0] * slope
