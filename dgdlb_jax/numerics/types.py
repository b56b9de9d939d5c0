"""What users may write for arrays: nested lists as well."""

from collections.abc import Sequence

from jaxtyping import ArrayLike

Numbers = ArrayLike | Sequence[float]
Matrix = Numbers | Sequence[Sequence[float]]
Matrices = Matrix | Sequence[Sequence[Sequence[float]]]
