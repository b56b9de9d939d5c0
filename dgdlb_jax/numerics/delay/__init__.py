r"""Systems with delays, stepped in time, and their derivatives in both modes.

**The scheme.** Take one equation with one delay, $x'(t) = g(x(t), x(t - \tau))$, and a time step $h$. Write the delay as whole steps and a
fraction of a step, $\tau = (m + \varphi) h$ with $0 \le \varphi < 1$. On grid points $t_k = k h$ the delayed value is interpolated,

$$ y_k = (1 - \varphi)\, x_{k-m} + \varphi\, x_{k-m-1} \approx x(t_k - \tau), $$

and a step of second order predicts with the slope at its start, and corrects with the mean of both slopes:

$$ p = x_k + h\, g(x_k, y_k), \qquad x_{k+1} = x_k + \tfrac h2 \left( g(x_k, y_k) + g(p, y_{k+1}) \right). $$

For $m = 0$ the value $x_{k+1}$ is not known when $y_{k+1}$ is read, and the prediction $p$ stands in for it, an error of third order
in a step. So a step is two local functions of numbers that are at hand, *stages*, with a *channel* between them:

1. the first stage computes $p$ and sends $(x_k, p)$: rows $k$ and $k + 1$ of the signal;
2. the channel writes both rows into a ring buffer, reads row $k + 1 - m$, and interpolates between this reading and the last one;
3. the second stage receives $y_{k+1}$ and computes $x_{k+1}$. One step later its row is written over the prediction.

Writing before reading is what lets a compiler update the buffer in place.

**The derivative.** Let $L$ depend on the run, and write $\bar v = \partial L / \partial v$. The chain rule through the second stage gives
$\bar y_{k+1}$ from $\bar x_{k+1}$. Row $j$ of the signal is read for $y_{j+m}$, with weight $1 - \varphi$, and for $y_{j+m+1}$, with weight
$\varphi$; so, for $m > 0$, what $x_j$ gains through the channel is

$$ \bar x_j \mathrel{+}= (1 - \varphi)\, \bar y_{j+m} + \varphi\, \bar y_{j+m+1}. $$

That is the same channel in reversed time. Counting steps from the end, write $(1 - \varphi)\, \bar y_k + \varphi\, \bar y_{k+1}$ when the
reverse pass comes by step $k$, and read it $m$ steps later: the same buffer, the same order (write, then read), the same lag and
fraction. Nothing is scattered, and the cost does not depend on the length of the buffer. For $m = 0$ the prediction has been read, and
$\bar p$ gains instead. The fraction has the cotangent $\bar\varphi = \sum_k \bar y_k (x_{k-m-1} - x_{k-m})$, and
$\bar\tau = \bar\varphi / h$. The stages are transposed by JAX.

**Many arcs.** A `Gather` lets every arc read one of several sources, each arc with a delay of its own; a `Sum` adds up what comes along
several arcs at each of several targets. Transposed, each is the other. A `DelayedSystem` is a chain of any number of stages
with a channel between each two. From it come the run (`delayed_scan`), with checkpoints or without, and its derivatives.

The delayed logistic equation $x'(t) = r\, x(t) (1 - x(t - \tau))$, and the derivative of its solution:

>>> import jax, jax.numpy as jnp
>>> h, tau = 0.01, 1.003
>>> def slope(r, x, late):
...     return r * x * (1 - late)
>>> def predict(r, context, held, received):
...     x, late = held
...     guess = x + h * slope(r, x, late)
...     return (x, late, guess), (x, guess)
>>> def correct(r, context, held, later):
...     x, late, guess = held
...     return (x + h / 2 * (slope(r, x, late) + slope(r, guess, later)), later), None
>>> def last(r, tau):
...     channel = Gather(jnp.stack([tau / h]), Table([0], 1), rows_for(1.1, h))
...     system, x = DelayedSystem(r, (channel,), (predict, correct)), jnp.array([0.5])
...     return delayed_scan(system, start(system, (x, x), (x,)), steps=300)[0].state[0][0]
>>> [f"{derivative:.2f}" for derivative in jax.jit(jax.grad(last, (0, 1)))(1.2, tau)]
['-0.48', '0.75']

| module | |
|---|---|
| `line`, `double_buffer` | ring buffers, written first and read then |
| `incidence`, `channel` | arcs with delays, forwards and transposed |
| `system` | a chain of stages and channels, and one step of it |
| `checkpoint`, `memory`, `scan` | how steps are nested, how much is remembered, the loop over them |
| `history`, `tape` | what a run records |
| `adjoint`, `reverse_scan` | one step backwards, and the loop over them |
| `derivative` | both modes in one function |
"""

from dgdlb_jax.numerics.delay.channel import ChannelState as ChannelState
from dgdlb_jax.numerics.delay.channel import Gather as Gather
from dgdlb_jax.numerics.delay.channel import Sum as Sum
from dgdlb_jax.numerics.delay.derivative import delayed_scan as delayed_scan
from dgdlb_jax.numerics.delay.incidence import Complete as Complete
from dgdlb_jax.numerics.delay.incidence import Each as Each
from dgdlb_jax.numerics.delay.incidence import Table as Table
from dgdlb_jax.numerics.delay.line import delay_for as delay_for
from dgdlb_jax.numerics.delay.line import rows_for as rows_for
from dgdlb_jax.numerics.delay.line import steps_for as steps_for
from dgdlb_jax.numerics.delay.memory import Autodiff as Autodiff
from dgdlb_jax.numerics.delay.memory import Checkpoints as Checkpoints
from dgdlb_jax.numerics.delay.memory import FullStorage as FullStorage
from dgdlb_jax.numerics.delay.memory import ReverseMode as ReverseMode
from dgdlb_jax.numerics.delay.scan import run_as_told as run_as_told
from dgdlb_jax.numerics.delay.system import Carry as Carry
from dgdlb_jax.numerics.delay.system import DelayedSystem as DelayedSystem
from dgdlb_jax.numerics.delay.system import Recorded as Recorded
from dgdlb_jax.numerics.delay.system import StepContext as StepContext
from dgdlb_jax.numerics.delay.system import advance as advance
from dgdlb_jax.numerics.delay.system import hold as hold
from dgdlb_jax.numerics.delay.system import start as start
