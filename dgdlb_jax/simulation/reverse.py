r"""A run backwards in time: cotangents instead of values, the same delay lines in reversed time.

A value that is written at step $k$ is read at step $k + m$; so the cotangent of what is read is *written* when reversed time passes
$k + m$, and the cotangent of what was written is *gathered* when it passes $k$. Nothing is scattered, and write-then-gather is the
order that XLA updates in place. The two lines change roles: arrivals have one cotangent per backend, gathered for every arc as
workloads are on the way forth; readings have one per arc, summed over frontends as flows are.

Between the lines a step is four local functions (see `step`), and their transposes are JAX's own; but for interpolation in time, which
is its own transpose.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.numerics import bits, delay_line, pair
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.numerics.dependence import needed_inputs
from dgdlb_jax.numerics.pair import Pair
from dgdlb_jax.simulation.dynamics import Arcs, Backends
from dgdlb_jax.simulation.loop import (
    Checkpoint,
    Extra,
    Frame,
    Loop,
    Machine,
    Node,
    Pending,
    Recording,
    Sequence,
    Step,
    fold,
    join,
    split,
    unfold,
)
from dgdlb_jax.simulation.past import Past
from dgdlb_jax.simulation.step import Carry, Known, Now, System, arrive, predict, route, see

Values = list[Array]


class Reverse(eqx.Module):
    """What changes from step to step on the way back.

    - `q`: steps taken backwards.
    - `workloads`: the delay line as it was when the state reached was made; `reading`: what frontends read of it.
    - `seen`: the cotangents of the workloads that they saw in the steps undone last.
    - `bar`: the cotangent of the state reached, but for what was read and the delay lines; these are `arrivals` and `readings`, in
      reversed time.
    - `values`: cotangents of the parts of the system that move. `extra`: that of the extra flow of this frame.
    """

    q: Int[Array, ""]
    workloads: DelayLine
    reading: Pair
    seen: Pair
    bar: Now
    arrivals: DelayLine
    readings: DelayLine
    values: Values
    extra: Arcs | None


class Returns(eqx.Module):
    """Where the two lines are read in reversed time."""

    arrivals: Int[Array, " arcs"]  # in order (backends, frontends * lanes)
    readings: Int[Array, " arcs"]  # `by_backend`, as they are summed
    at_once: Bool[Array, " arcs"]  # of these, arcs whose reading in step k is the prediction of step k itself

    def __init__(self, system: System, rows: int):
        field, wiring, dt = system.field, system.wiring, system.clock.frontends[0]
        shape = field.shape
        sizes = (shape.backends, shape.frontends, shape.lanes)
        j, i, lane = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in sizes), indexing="ij")

        lag = jnp.where(wiring.flow.overflow, 0, jnp.floor(field.latency / dt))
        column = (j * shape.lanes + lane).reshape(lag.shape)
        self.arrivals = delay_line.taps(lag, column, shape.backends * shape.lanes, rows).offset
        lag = jnp.where(wiring.workload.overflow, 0, jnp.floor(field.feedback_latency / dt))
        lag = shape.by_backend(lag)
        column = shape.by_backend(((j * shape.frontends + i) * shape.lanes + lane).reshape(field.latency.shape))
        self.readings = delay_line.taps(jnp.maximum(lag - 1, 0), column, column.size, rows).offset
        self.at_once = lag < 1


class WayBack:
    """The way back of one run.

    **Arguments:**

    - `system_of`: the system, from the values of it that move. `values`: these.
    - `carry`: where the run began; the numbers in its delay lines are not looked at. `extra`: the extra flow, if any.
    - `look`: what is looked at after every frame.
    """

    def __init__(
        self,
        system_of: Callable[[Values], System],
        values: Values,
        carry: Carry,
        extra: Extra | None,
        look: Callable[[System, Now], PyTree],
    ):
        self.system_of, self.values, self.carry, self.extra, self.look = system_of, values, carry, extra, look
        self.system, self.rows = system_of(values), carry.flows.rows
        self.returns = Returns(self.system, self.rows)
        self.leaves, self.tree = jax.tree.flatten(carry.now)
        # Known when the run has been made: its last state, and the cotangents of what it read and of what stands in the two lines then.
        self.end, self.left_reading, self.left = carry.now, None, (None, None)
        self.looked_at, self.keep_support = self._looked_at()

    def keep(self, now: Now) -> Values:
        """What has to be kept of a state: the parts of it, or of its support, that the way back looks at and the past does not tell.

        Flat, because XLA copies a slice of unknown place in vectors only if it has one axis.
        """
        kept = [leaf for leaf, on in zip(jax.tree.leaves(now), self.looked_at, strict=True) if on]
        kept += [bits.pack(now.routing > 0)] if self.keep_support else []
        return [leaf.reshape(-1) for leaf in kept]

    def weight(self) -> tuple[int, int]:
        """How many bytes are kept of a step, and of a checkpoint."""
        weigh = lambda tree: sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        now = self.carry.now
        step = weigh(jax.eval_shape(self.keep, now)) + 2 * weigh(now.workload)
        return step, weigh(now) + self.rows * (weigh(now.routing) + weigh(now.workload))

    def run(
        self, node: Node, tape: PyTree, end: Now, carry: Carry, looks: PyTree, history: bool
    ) -> tuple[Values, Carry, Extra | None]:
        """All the way.

        **Arguments:**

        - `node`, `tape`: the program and what was kept of it; `end`: the last state.
        - `carry`, `looks`: cotangents of the results; None where they are zero.
        - `history`: whether that of what stood in the delay lines at the start is wanted; zero otherwise.

        **Returns:** cotangents of the values that move, of the state at the start, of the extra flow.
        """
        self.end, self.left_reading, self.left = end, carry.now.reading, (carry.flows.ring, carry.workloads.ring)
        state, extra = self._back(node, tape, self.begin(carry.now), looks, self.extra, None, None)
        lines = self._blank(self.carry.now.routing.size), self._blank(self.carry.now.workload.size)
        if history:
            lines = self._history(state, lines)
        reading = self.system.wiring.workload.fraction * state.seen.at(state.q - 1)
        bar = eqx.tree_at(_reading, state.bar, reading, is_leaf=lambda leaf: leaf is None)
        return state.values, Carry(bar, *lines), extra

    def recall(self, kept: Values, past: Past, k: Int[Array, ""]) -> tuple[Now, Known]:
        """State `k` from what was kept of it and the past; the rest is zero, and nobody looks at it.

        Its support beside it, often all that is needed of its routing.
        """
        leaves = iter(kept)
        found = [
            next(leaves).reshape(leaf.shape) if on else jnp.zeros_like(leaf)
            for leaf, on in zip(self.leaves, self.looked_at, strict=True)
        ]
        now = jax.tree.unflatten(self.tree, found)
        now = eqx.tree_at(_told_by_the_past, now, (k, past.workload(k)))
        backends, columns = now.routing.shape
        support = bits.unpack(next(leaves).reshape(-1, columns), backends) if self.keep_support else now.routing > 0
        return now, (now.routing, support)

    def begin(self, bar: Now) -> Reverse:
        """At the end of the run, with the cotangent of its last state; parts of it may be None."""
        now = self.carry.now
        zeros = eqx.filter(jax.tree.map(jnp.zeros_like, now), eqx.is_inexact_array)
        return Reverse(
            q=jnp.zeros((), jnp.int32),
            workloads=self._blank(now.workload.size),
            reading=pair.blank(now.reading),
            seen=pair.blank(now.reading),
            bar=_without_reading(jax.tree.map(lambda zero, own: zero if own is None else own, zeros, bar)),
            arrivals=self._blank(now.workload.size),
            readings=self._blank(now.routing.size),
            values=[jnp.zeros_like(value) for value in self.values],
            extra=None if self.extra is None else jnp.zeros_like(self.extra[0]),
        )

    def _blank(self, width: int) -> DelayLine:
        return DelayLine(jnp.zeros(width * self.rows, self.carry.now.routing.dtype), self.rows)

    def _back(self, node: Node, tape, state: Reverse, looks, extra, pending, past) -> tuple[Reverse, Extra | None]:
        """Follow a part of the program backwards."""
        match node:
            case Loop(times, Step()):

                def step(n, state):
                    at = lambda n: [jax.lax.dynamic_index_in_dim(kept, n, keepdims=False) for kept in tape]
                    return self.step(state, at(n + 1), at(n), past, pending)

                return jax.lax.fori_loop(0, times, step, state), None
            case Step():
                raise AssertionError("a program takes its steps in loops")
            case Loop(times, body):

                def once(state, each):
                    tape, looks, extra = each
                    return self._back(body, tape, state, looks, extra, pending, past)

                each = (tape, fold(looks, times), fold(extra, times))
                state, bars = jax.lax.scan(once, state, each, length=times, reverse=True)
                return state, unfold(bars)
            case Sequence(parts):
                bars = []
                pieces = list(zip(parts, tape, split(looks, parts), split(extra, parts), strict=True))
                for part, own, seen, sent in reversed(pieces):
                    state, bar = self._back(part, own, state, seen, sent, pending, past)
                    bars.insert(0, bar)
                return state, join(bars)
            case Frame(body):
                tape, now = tape
                if past is not None:
                    now, _ = self.recall(now, past, self._reached(state))
                if extra is not None:
                    pending = Pending(extra[0], now.k)
                    state = eqx.tree_at(lambda s: s.extra, state, jnp.zeros_like(extra[0]))
                state = self.look_back(state, now, jax.tree.map(lambda leaf: leaf[0], looks))
                state, _ = self._back(body, tape, state, None, None, pending, past)
                return state, None if state.extra is None else state.extra[None]
            case Recording(body):
                tape, past = tape
                k = self._reached(state)
                state = self._read(state, past, past.line(k), k)
                return self._back(body, tape, state, looks, extra, pending, past)
            case Checkpoint(body):
                node = Recording(body)
                again = Machine(self.system, self.look, self.keep).run(node, tape, extra, pending)[2]
                return self._back(node, again, state, looks, extra, pending, None)

    def _reached(self, state: Reverse) -> Int[Array, ""]:
        """Which state has been reached."""
        return self.end.k - state.q

    def look_back(self, state: Reverse, now: Now, looks: PyTree) -> Reverse:
        """What the cotangents of a look mean for the state that was looked at."""
        if not jax.tree.leaves(looks):
            return state
        real, rest = eqx.partition(_without_reading(now), eqx.is_inexact_array)
        wanted = {name: bar for name, bar in looks.items() if bar is not None}

        def look(values, real):
            seen = self.look(self.system_of(values), eqx.combine(real, rest))
            return {name: seen[name] for name in wanted}

        values, bar = jax.vjp(look, self.values, real)[1](wanted)
        return eqx.tree_at(lambda s: (s.values, s.bar), state, (_sum(state.values, values), _sum(state.bar, bar)))

    def step(self, state: Reverse, kept: Values, kept_after: Values, past: Past, pending: Pending | None) -> Reverse:
        """One step backwards, between two states that were kept."""
        ahead = self._reached(state)
        k = ahead - 1
        now, _ = self.recall(kept, past, k)
        after, known = self.recall(kept_after, past, ahead)
        state = self._read(state, past, state.workloads, k)
        read = state.reading.at(ahead), state.reading.at(k)
        return self.undo(state, now, past.predicted(ahead), read, after, known, pending)

    def _read(self, state: Reverse, past: Past, line: DelayLine, k: Int[Array, ""]) -> Reverse:
        """Back with the line to where it was when state `k` was made, and what was read of it then."""
        line = past.back(line, k)
        reading = state.reading.write(k, past.read(line, k, self.system.wiring.workload.offset))
        return eqx.tree_at(lambda s: (s.workloads, s.reading), state, (line, reading))

    def undo(
        self,
        state: Reverse,
        now: Now,
        predicted: Backends,
        read: tuple[Arcs, Arcs],
        after: Now,
        known: Known,
        pending: Pending | None,
    ) -> Reverse:
        """One step backwards, between two states; what had been predicted, what was read in this step and the one before, and what is
        `known` of the new routing."""
        real, rest = eqx.partition(_without_reading(now), eqx.is_inexact_array)
        system = self.system_of

        def predict_(values, real):
            return predict(system(values), eqx.combine(real, rest))

        def see_(values):
            return see(system(values), *read)

        def route_(values, real, seen, extra):
            flow = None if pending is None else Pending(extra, pending.due).at(now.k)
            move = route(system(values), eqx.combine(real, rest), seen, flow, known)
            return eqx.partition(move, eqx.is_inexact_array)

        def arrive_(values, real, predicted, move, inflow):
            move = eqx.combine(move, move_rest)
            there = arrive(system(values), eqx.combine(real, rest), predicted, read[0], move, inflow, after.workload)
            return _without_reading(_without_extremes(eqx.filter(there, eqx.is_inexact_array)))

        from_prediction = jax.vjp(predict_, self.values, real)[1]
        sight, from_sight = jax.vjp(see_, self.values)
        extra = None if pending is None else pending.flow
        move, from_move, move_rest = jax.vjp(route_, self.values, real, sight, extra, has_aux=True)
        from_arrival = jax.vjp(arrive_, self.values, real, predicted, move, after.inflow)[1]

        bar, extremes = self._set_here(state.bar, after)
        values, bar, predicted_bar, move_bar, inflow_bar = from_arrival(bar)
        arrivals = delay_line.write(state.arrivals, state.q, inflow_bar)
        move_bar = eqx.tree_at(
            lambda m: m.entering, move_bar, move_bar.entering + self._entering(arrivals, state.q, now.k + 1)
        )
        values_2, bar_2, sight_bar, extra_bar = from_move(move_bar)
        (values_3,) = from_sight(sight_bar)
        seen = state.seen.write(state.q, sight_bar)
        readings = delay_line.write(state.readings, state.q, self._read_here(seen, state.q))
        at_once, later = self._workloads(readings, state.q, now.k)
        values_4, bar_4 = from_prediction(predicted_bar + at_once)
        bar = eqx.tree_at(_extremes, _sum(bar, bar_2, bar_4), extremes)
        return Reverse(
            q=state.q + 1,
            workloads=state.workloads,
            reading=state.reading,
            seen=seen,
            bar=eqx.tree_at(lambda b: b.workload, bar, bar.workload + later),
            arrivals=arrivals,
            readings=readings,
            values=_sum(state.values, values, values_2, values_3, values_4),
            extra=_sum(state.extra, extra_bar),
        )

    def _set_here(self, bar: Now, after: Now) -> tuple[Now, list[Backends]]:
        """The cotangents of the extremes go to the workload that set them: the last one that is equal to what they are in the end."""
        window, left, moved = self.system.window, [], bar.workload
        counts = [True] if window is None else [True, *2 * [after.k >= window.marks[0]]]
        for own, end, counted in zip(_extremes(bar), _extremes(self.end), counts, strict=True):
            here = counted & (after.workload == end)
            moved = moved + jnp.where(here, own, 0)
            left.append(jnp.where(here, 0, own))
        return _without_extremes(eqx.tree_at(lambda b: b.workload, bar, moved)), left

    def _entering(self, arrivals: DelayLine, q: Int[Array, ""], row: Int[Array, ""]) -> Arcs:
        """The cotangent of what entered the wires as this row: what has arrived of it, or is still there in the end."""
        bar = delay_line.read(arrivals, q, self.returns.arrivals).reshape(self.carry.now.routing.shape)
        left = self.left[0]
        return bar if left is None else bar + self._left(left, row).reshape(bar.shape)

    def _read_here(self, seen: Pair, q: Int[Array, ""]) -> Arcs:
        """The cotangent of what was read in this step: it was seen in it, and in the one after."""
        bar, left = see(self.system, seen.at(q), seen.at(q - 1)), self.left_reading
        return bar if left is None else bar + jnp.where(q == 0, left, 0)

    def _workloads(self, readings: DelayLine, q: Int[Array, ""], k: Int[Array, ""]) -> tuple[Backends, Backends]:
        """The cotangents of the workload predicted in step k, and of that of row k."""
        bar, shape = delay_line.read(readings, q, self.returns.readings), self.system.field.shape
        at_once = shape.arrivals(jnp.where(self.returns.at_once, bar, 0))
        later = shape.arrivals(jnp.where(self.returns.at_once, 0, bar))
        left = self.left[1]
        if left is not None:
            at_once = at_once + jnp.where(k + 1 == self.end.k, self._left(left, k + 1), 0)
            later = later + self._left(left, k)
        return at_once, later

    def _left(self, ring: Float[Array, " numbers"], row: Int[Array, ""]) -> Float[Array, " width"]:
        """A row of the cotangent of a line in the end; zero when other rows have taken its place."""
        return jnp.where(row > self.end.k - self.rows, delay_line.row(DelayLine(ring, self.rows), row + self.rows), 0)

    def _history(self, state: Reverse, lines: tuple[DelayLine, DelayLine]) -> tuple[DelayLine, DelayLine]:
        """On through the history before the start, which ran without steps: the cotangents of what stood in the two lines."""
        first, routing, workload = self.carry.now.k, state.bar.routing, state.bar.workload

        def before(pair, n):
            state, lines = pair
            k = first - 1 - n
            arrivals = delay_line.write(state.arrivals, state.q, jnp.zeros_like(workload))
            readings = delay_line.write(state.readings, state.q, jnp.zeros_like(routing))
            read = self._workloads(readings, state.q, k)[1]
            # The first step overwrites its own row of workloads, whose place in the ring is that of the oldest one.
            read = jnp.where(n < self.rows - 1, read, 0)
            flows = delay_line.write(lines[0], k + 1 + self.rows, self._entering(arrivals, state.q, k + 1))
            workloads = delay_line.write(lines[1], k + self.rows, read)
            return (eqx.tree_at(_lines, state, (state.q + 1, arrivals, readings)), (flows, workloads)), None

        return jax.lax.scan(before, (state, lines), jnp.arange(self.rows, dtype=jnp.int32))[0][1]

    def _looked_at(self) -> tuple[list[bool], bool]:
        """Which leaves of a state the way back depends on besides what the past tells, and whether on the support of its routing but
        not on the routing itself: trace it, and see which inputs no output needs."""

        def one_step(before, predicted, read, after, support):
            now, after = jax.tree.unflatten(self.tree, before), jax.tree.unflatten(self.tree, after)
            state = self.begin(eqx.filter(self.carry.now, eqx.is_inexact_array))
            looks = jax.tree.map(jnp.zeros_like, self.look(self.system, self.carry.now))
            state = self.look_back(state, after, looks)
            pending = None if self.extra is None else Pending(self.extra[0], self.carry.now.k)
            state = self.undo(state, now, predicted, read, after, (after.routing, support), pending)
            return jax.tree.leaves(state)

        now, count = self.carry.now, len(self.leaves)
        read = now.reading, now.reading
        *used, support = needed_inputs(one_step, self.leaves, now.workload, read, self.leaves, now.routing > 0)
        nothing = jax.tree.map(lambda _: False, now)
        mark = lambda where: jax.tree.leaves(eqx.tree_at(where, nothing, replace_fn=lambda _: True))
        told, is_routing = mark(_told_by_the_past), mark(lambda now: now.routing)
        looked_at = [
            (before or after) and not told
            for before, after, told in zip(used[:count], used[-count:], told, strict=True)
        ]
        routing = any(on and here for on, here in zip(looked_at, is_routing, strict=True))
        return looked_at, support and not routing


def _extremes(now: Now) -> list[Any]:
    return [now.peak] if now.sums is None else [now.peak, now.sums.lowest, now.sums.highest]


def _without_extremes(now: Now) -> Now:
    return eqx.tree_at(_extremes, now, replace_fn=lambda _: None)


def _reading(now: Now):
    return now.reading


def _without_reading(now: Now) -> Now:
    return eqx.tree_at(_reading, now, replace_fn=lambda _: None)


def _told_by_the_past(now: Now):
    return now.k, now.workload


def _lines(state: Reverse):
    return state.q, state.arrivals, state.readings


def _sum(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
