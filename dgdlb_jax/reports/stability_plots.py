"""Pictures of stability. Functions take axes and return them; without axes they make a figure (`axes.figure`)."""

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgdlb_jax.numerics.lapack import eigvals
from dgdlb_jax.reports.axes import as_written, finish, new_axes, new_figure, save_png
from dgdlb_jax.reports.stability_text import StabilityReport
from dgdlb_jax.stability.linearise import Linearisation
from dgdlb_jax.stability.loop_transfer import LoopTransfer
from dgdlb_jax.stability.roots import Spectrum
from dgdlb_jax.studies.cycle_map import CycleMap
from dgdlb_jax.studies.stability import Tightness


def roots_plot(spectra: Mapping[str, Spectrum], *, ax: Axes | None = None) -> Axes:
    """Characteristic roots in the complex plane, one colour per spectrum; unstable ones lie right of the line.

    **Arguments:** label -> `Spectrum` of a single network. **Returns:** the axes.
    """
    ax = new_axes((7, 5)) if ax is None else ax
    for label, spectrum in spectra.items():
        roots = np.asarray(spectrum.roots)
        roots = roots[np.isfinite(roots)]
        roots = np.concatenate([roots, roots.conj()])
        ax.plot(np.real(roots), np.imag(roots), "o", ms=5, mfc="none", label=label)
    ax.axvline(0, color="black", lw=1)
    # The fast roots of long delay equations lie far to the left; what matters is near the line.
    scale = 6 * max(abs(complex(spectrum.dominant)) for spectrum in spectra.values())
    if np.isfinite(scale) and scale > 0:
        ax.set_xlim(-scale, scale / 3)
        ax.set_ylim(-scale, scale)
    finish(
        ax,
        "growth rate, real part (1/s)",
        "angular frequency, imaginary part (rad/s)",
        "rightmost characteristic roots",
    )
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=3)
    return ax


def locus_plot(linear: Linearisation, frequency: float, *, ax: Axes | None = None, points: int = 4000) -> Axes:
    """Eigenvalues of the loop over frequency: critical when one passes through -1.

    **Arguments:** the linearisation at the step sizes in question; `frequency`: rad/s about which to draw. **Returns:** the axes.
    """
    ax = new_axes((6.5, 5.5)) if ax is None else ax
    loop = LoopTransfer(linear)
    at = jnp.asarray(np.geomspace(frequency / 20, frequency * 20, points))
    values = np.asarray(jax.lax.map(lambda w: eigvals(loop.matrix(w)), at, batch_size=200))
    colour = np.repeat(np.log10(np.asarray(at) / frequency)[:, None], values.shape[1], 1)
    marks = ax.scatter(np.real(values), np.imag(values), c=colour, s=4, cmap="viridis")
    ax.figure.colorbar(marks, ax=ax, label="log10 of frequency / critical frequency")
    ax.plot(-1, 0, "x", color="#D55E00", ms=10, mew=2.5, label="-1: oscillates by itself")
    ax.axhline(0, color="0.6", lw=0.7)
    ax.set_xlim(-2.5, 1)
    ax.set_ylim(-2.5, 1.5)
    finish(ax, "real part", "imaginary part", "eigenvalues of the loop")
    ax.legend(frameon=False, loc="lower right")
    return ax


def tightness_plot(found: Mapping[str, Tightness], *, ax: Axes | None = None) -> Axes:
    """Distributions of sufficient over exact step sizes: one box per condition and latency family."""
    ax = new_axes((9, 5)) if ax is None else ax
    names = [*next(iter(found.values())).sufficient, *next(iter(found.values())).distributed]
    for k, (label, result) in enumerate(found.items()):
        limited = np.isfinite(result.exact)
        data = [
            result.sufficient[name][limited] / result.exact[limited]
            if name in result.sufficient
            else result.distributed[name][limited]
            for name in names
        ]
        places = np.arange(len(names)) + 0.18 * (k - (len(found) - 1) / 2)
        boxes = ax.boxplot(data, positions=places, widths=0.15, patch_artist=True, whis=(0, 100), manage_ticks=False)
        for box in boxes["boxes"]:
            box.set_facecolor(f"C{k}")
        for line in boxes["medians"]:
            line.set_color("black")
        ax.plot([], [], "s", color=f"C{k}", label=label)
    ax.axhline(1, color="black", lw=1, ls="--")
    labels = ["default, unproven" if name == "default" else name.replace("_", " ") for name in names]
    ax.set_xticks(range(len(names)), labels, rotation=12)
    finish(ax, "condition", "sufficient / exact critical step size", "how tight the proven step sizes are")
    ax.set_ylim(0, 1.05)
    ax.legend(title="latencies", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def save_stability_pictures(report: StabilityReport, folder: Path) -> list[Path]:
    """Write `roots.png` and `locus.png` into a folder, each where there is something to draw. **Returns:** the paths written."""
    name = report.network.name or "network"
    axes = (
        {"roots": roots_plot({"at the recommended step sizes": report.spectrum})} if report.spectrum is not None else {}
    )
    if np.isfinite(report.factor):
        critical = report.linear.scaled(jnp.full(report.network.frontends, report.factor))
        axes["locus"] = locus_plot(critical, float(report.mode.frequency))
    paths = []
    for key, ax in axes.items():
        ax.set_title(f"{name}: {ax.get_title(loc='left')}" + (" at the limit" if key == "locus" else ""), loc="left")
        paths.append(folder / f"{key}.png")
        save_png(as_written(ax).get_figure(root=True), paths[-1])  # pyright: ignore[reportArgumentType]
    return paths


def cycle_map_plot(found: CycleMap) -> Figure:
    """Which part of the networks does not settle, over step size and distance of the start; a panel for each load and latency.

    The line is the median of what a condition guarantees near the optimum.
    """
    rows, columns = len(found.latencies), len(found.loads)
    figure = new_figure((2.6 * columns + 1.4, 1.9 * rows + 0.8))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    x, y = np.arange(len(found.fractions)), np.arange(len(found.distances))
    for row, latency in enumerate(found.latencies):
        for column, load in enumerate(found.loads):
            ax = panels[row, column]
            ax.imshow(found.share[column, row], origin="lower", aspect="auto", cmap="magma_r", clim=(0, 1))
            proven = np.nanmedian(found.proven[column, row])
            ax.axvline(np.interp(np.log(proven), np.log(found.fractions), x), color="tab:cyan", lw=2)
            ax.set_xticks(x, [f"{fraction:g}" for fraction in found.fractions], rotation=90, fontsize=8)
            ax.set_yticks(y, [f"{distance:g}" for distance in found.distances], fontsize=8)
            ax.set_title(f"load {load:g}, latency {latency:g} service times", fontsize=9)
    figure.supxlabel("step size / critical step size (line: guaranteed near the optimum)")
    figure.supylabel("distance of the start")
    figure.colorbar(panels[0, 0].images[0], ax=panels, label="share of networks that do not settle", shrink=0.8)
    return figure
