"""How pictures of a stable region look: two colours, a cross where the policy is, triangles at edges that a simulation found."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from dgdlb_jax.reports.axes import as_written, save_png

STABLE, SWINGS = "#BFE3D0", "#F2C9B0"


def mark(ax: Axes, now: tuple[float, float], simulated: Iterable[tuple[float, float]]) -> None:
    """The cross at `now`, and triangles at those of the points `simulated` that are known and inside the picture."""
    for x, y in simulated:
        inside = all(
            low <= value <= high for value, (low, high) in ((x, sorted(ax.get_xlim())), (y, sorted(ax.get_ylim())))
        )
        if np.isfinite(x) and np.isfinite(y) and inside:
            ax.plot(x, y, "^", color="#0072B2", ms=9, clip_on=False)
    ax.plot(*now, "+", color="black", ms=14, mew=2.5, clip_on=False)


def explain(ax: Axes, now: str) -> None:
    """The legend below the picture; `now`: where the policy is, in words."""
    marks = [
        Patch(color=STABLE, label="small deviations die out"),
        Patch(color=SWINGS, label="traffic swings"),
        *ax.plot([], [], "+", color="black", ms=12, mew=2.5, label=f"now: {now}"),
        *ax.plot([], [], "^", color="#0072B2", ms=8, label="edge in simulation"),
    ]
    ax.legend(handles=marks, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)


def save(ax: Axes, folder: Path) -> list[Path]:
    """Write `stable.png` into a folder. **Returns:** the paths written."""
    target = folder / "stable.png"
    save_png(as_written(ax).get_figure(root=True), target)  # pyright: ignore[reportArgumentType]
    return [target]
