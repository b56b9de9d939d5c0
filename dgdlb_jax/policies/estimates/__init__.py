r"""What a frontend makes of the news before its policy sees it.

A policy of this package reads the marginal latency $1 / \ell_j'$ in its observation; nobody measures that. An *estimate* turns one
observation into another: it holds reports from one scrape to the next, smooths them over time, or replaces them by what a curve or a
regression says. `estimated(policy, ...)` is the policy that sees the outcome: in fluid runs, with requests one by one, and in the linear
analysis, where averaging counts as latency.

To add one, derive from `AbstractEstimate` and write `estimate`; one with memory has `init` as well. It is written for one frontend, with
axis 0 the backends, and what follows passes through. Memory that moves smoothly is linearised by differentiation.
"""

from dgdlb_jax.policies.estimates.averages import ExponentialAverage as ExponentialAverage
from dgdlb_jax.policies.estimates.averages import MovingAverage as MovingAverage
from dgdlb_jax.policies.estimates.base import AbstractEstimate as AbstractEstimate
from dgdlb_jax.policies.estimates.lead import Lead as Lead
from dgdlb_jax.policies.estimates.learnt import LearntCurve as LearntCurve
from dgdlb_jax.policies.estimates.learnt import Regression as Regression
from dgdlb_jax.policies.estimates.policy import estimated as estimated
from dgdlb_jax.policies.estimates.scraped import Scraped as Scraped
