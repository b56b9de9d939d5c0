"""The limit of a rule behind reports that are read every so often, as people and scripts read it."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.numerics.formatting import number, ranging, seconds
from dgdlb_jax.reports.stability_text import nullified
from dgdlb_jax.studies.news import NewsLimit, news_json, news_words
from dgdlb_jax.studies.onset import Onset


def simulated_words(onset: Onset | None) -> str:
    """Where runs begin to grow."""
    return "simulating it takes too long here" if onset is None else f"simulated: {onset.words}"


def simulated_document(onset: Onset | None) -> dict[str, float | None]:
    """The same as numbers; null where nothing was simulated."""
    stable, unstable = (None, None) if onset is None else onset
    return {"simulated_stable": stable, "simulated_unstable": unstable}


@dataclass(frozen=True)
class NewsReport:
    """How many times faster than in `dgdlb run` a rule may be behind such reports."""

    label: str
    found: NewsLimit
    optimum: Optimum

    def text(self) -> str:
        """What the reports are, the limit, and what is seen beyond it."""
        found = self.found
        begin = f"{found.network.name or 'network'}: {self.label}, {news_words(found.news)}"
        if not math.isfinite(found.factor):
            return f"{begin}\n  no limit: no frontend has a choice at the optimum, or nothing delays a loop"
        sizes = np.asarray(getattr(found.policy, "step_size", np.nan))
        now = f" (now {ranging(float(sizes.min()), float(sizes.max()))} 1/s^2)" if np.isfinite(sizes).all() else ""
        fresh = number(found.fresh) if math.isfinite(found.fresh) else "any number of"
        lines = [
            begin,
            f"  limit of step_size{now}: {number(found.factor)} times that; with every report at once {fresh} times",
            f"  beyond it swings with a period of {seconds(found.period)}; {simulated_words(found.simulated)}",
        ]
        return "\n".join([*lines, *(f"  {caveat}" for caveat in self._caveats())])

    def _caveats(self) -> list[str]:
        news, told = self.found.news, []
        if not self.found.exact:
            told.append(
                "no common period of the clocks: reports count as averages over their interval, exact for many frontends out of step"
            )
        if news.lost is not None:
            told.append(
                "lost reports: the limit of the mean over all that may be lost; a single run may grow for a while below it"
            )
        if news.jitter is not None or news.late is not None:
            told.append("jitter counts with its mean")
        if news.drift is not None:
            told.append("the least limit on the way of the drift")
        return told

    def document(self) -> dict[str, Any]:
        """Null where there is no limit."""
        found = self.found
        return nullified(
            {
                "fleet": found.network.name,
                "policy": self.label,
                "news": news_json(found.news),
                "limit_over_now": found.factor,
                "limit_over_now_with_reports_at_once": found.fresh,
                "period": found.period,
                "exact": found.exact,
                "units": {"time": "s"},
            }
            | simulated_document(found.simulated)
        )
