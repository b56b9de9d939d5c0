"""What is known of the stability of a rule that slides along equal predictions, as people and scripts read it."""

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
            f"{self.network.name or 'network'}: {self.label} takes the least latency by its own counts, which have no delay: it slides "
            "along equal latencies, and has no linear limit"
        )
        found = self._worst()
        if found is None:
            return f"{begin}\nno frontend has a choice where it rests, so what it observes moves nothing"
        swings = f"swings with a period of {seconds(found['swing_period'])}"
        says = "dies out" if found["stable"] else f"grows: it {swings}"
        beyond = f"; beyond the limit it {swings}" if found["stable"] else ""
        return (
            f"{begin}\nits slow loop, answers of the last {seconds(found['window'])} seen {seconds(found['delay'])} late: gain "
            f"{number(found['gain'])} of at most {number(found['limit'])} ({found['frontend']} to {found['backend']}; exact between equal "
            f"backends): a deviation {says}{beyond}"
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
