"""What is known of the stability of a rule that slides along equal predictions, as people and scripts read it."""

import textwrap
from dataclasses import dataclass
from typing import Any

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.reports.stability_text import nullified
from dgdlb_jax.stability.observed import SlowLoop
from dgdlb_jax.studies.outcome import backend_names, frontend_names


@dataclass(frozen=True)
class SlidingReport:
    """What `dgdlb stability FLEET --policy latency-observation-scorer` says; `label`: what people call the policy."""

    network: Network
    label: str
    slow: SlowLoop

    def text(self) -> str:
        """What the rule is, and its slow loop where that is nearest to its limit."""
        begin = (
            f"{self.network.name or 'network'}: {self.label} sends a request to where it predicts the least latency from the number of "
            "its own requests that are under way. It knows these numbers at once, so it keeps the predictions equal: that has no linear "
            "limit."
        )
        return "\n".join(textwrap.fill(part, 100) for part in (begin, self._on_predictions()))

    def _on_predictions(self) -> str:
        found = self._worst()
        if found is None:
            return "No frontend uses two backends or more where it rests, so what it predicts by moves nothing."
        gain, limit, swing = number(found["gain"]), number(found["limit"]), seconds(found["swing_period"])
        if found["stable"]:
            verdict = (
                f"below the limit of {limit}: errors die out. Beyond the limit it swings with a period of {swing}."
            )
        else:
            verdict = f"above the limit of {limit}: errors grow, it swings with a period of {swing}."
        return (
            f"What may swing is what it predicts by: answers of the last {seconds(found['window'])}, which tell how things were "
            f"{seconds(found['delay'])} ago. An error in them is overcorrected with a gain of {gain}, {verdict} Nearest to its limit is "
            f"{found['frontend']} to {found['backend']}; the figures are exact where the backends of a frontend are equal."
        )

    def document(self) -> dict[str, Any]:
        """Null where there is no loop."""
        found = self._worst()
        return nullified(
            {
                "fleet": self.network.name,
                "policy": self.label,
                "stable": None if found is None else found["stable"],
                "slow_loop": found,
                "units": {"time": "s"},
            }
        )

    def _worst(self) -> dict[str, Any] | None:
        place = self.slow.worst
        if place is None:
            return None
        figures = {name: float(values[place]) for name, values in self.slow._asdict().items()}
        return {
            "frontend": frontend_names(self.network)[place[0]],
            "backend": backend_names(self.network)[place[1]],
            **figures,
            "swing_period": float(self.slow.swing[place]),
            "stable": figures["gain"] < figures["limit"],
        }
