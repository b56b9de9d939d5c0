"""The limits of `Softmin` as people and scripts read them."""

from dataclasses import dataclass
from typing import Any

from dgdlb_jax.numerics.formatting import percent
from dgdlb_jax.reports.held_text import limit_document, limit_words
from dgdlb_jax.reports.stability_text import nullified
from dgdlb_jax.studies.softmin import SoftminStability


@dataclass(frozen=True)
class SoftminReport:
    """What `dgdlb stability FLEET --policy softmin` says; `label`: what people call the policy."""

    label: str
    found: SoftminStability

    def text(self) -> str:
        """Where it rests, whether it stays there, and the limits of both settings."""
        found = self.found
        stable = "stable: small deviations from there die out" if found.stable else "unstable: small deviations grow"
        return "\n".join(
            [
                f"{found.network.name or 'network'}: {self.label}",
                f"at rest {percent(found.over) if found.over >= 5e-6 else '0 %'} over the optimum, {stable}",
                *(limit_words(each) for each in found.limits),
            ]
        )

    def document(self) -> dict[str, Any]:
        """Settings by name."""
        found = self.found
        settings = {each.setting: limit_document(each) for each in found.limits}
        document = {
            "fleet": found.network.name,
            "policy": self.label,
            "stable": found.stable,
            "over_optimum_at_rest": found.over,
        }
        return nullified(document | {"settings": settings, "units": {"time": "s", "rate": "1/s"}})
