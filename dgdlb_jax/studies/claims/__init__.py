"""The claims of the paper's abstract, shown or refuted: each is a set of sweeps and a judge.

A claim is a file in `dgdlb_jax/data/claims`: its words, its sweeps at full size, and what changes for the quick size. The sweeps are
specifications of `dgdlb sweep`; their stores are kept, so whatever stops a run, the same command goes on. A judge reads the
stores and says what was measured and whether the claim holds in this project's model. Where it does not, the smallest case that was
found is written as a fleet file that `dgdlb run` takes.
"""

from dgdlb_jax.studies.claims.judge import Judgement as Judgement
from dgdlb_jax.studies.claims.judge import Verdict as Verdict
from dgdlb_jax.studies.claims.spec import Claim as Claim
from dgdlb_jax.studies.claims.spec import read_claims as read_claims
