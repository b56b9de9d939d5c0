"""One self-contained HTML file: text, tables and pictures, nothing to load from anywhere, readable on a narrow screen."""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from dgdlb_jax.fleets import Service
from dgdlb_jax.numerics.files import disk_errors, write_text
from dgdlb_jax.numerics.versions import versions
from dgdlb_jax.reports import autoscaling_text, requests_text, text
from dgdlb_jax.reports.autoscaling_plots import replicas_over_time
from dgdlb_jax.reports.axes import save_png
from dgdlb_jax.reports.curve_plots import measured_curves
from dgdlb_jax.reports.plots import latency_over_time, routing_by_frontend, workloads_of_all
from dgdlb_jax.reports.request_plots import latency_distribution
from dgdlb_jax.reports.stability_text import STEP_SIZES, StabilityReport
from dgdlb_jax.studies.autoscaling import AutoscalingStudy
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.compare import Comparison
from dgdlb_jax.studies.conclusion import about_extrapolation
from dgdlb_jax.studies.requests import RequestStudy

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { max-width: 44rem; overflow-wrap: anywhere; } .lead { font-size: 1.1rem; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; font-size: .9rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; white-space: nowrap; }
td:last-child:not(.n) { white-space: normal; min-width: 15rem; }
td.n, th.n { text-align: right; } pre { background: #f5f5f5; padding: .75rem; overflow-x: auto; font-size: .85rem; }
footer { color: #555; font-size: .85rem; margin-top: 2rem; overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { padding: .6rem; } h1 { font-size: 1.3rem; } .wide img { max-width: none; width: 44rem; } }
"""


def comparison_report(
    comparison: Comparison,
    trace: Comparison | None = None,
    *,
    stability: StabilityReport | None = None,
    service: Service | None = None,
    weights: Sequence[str] = (),
    requests: RequestStudy | None = None,
    autoscaling: AutoscalingStudy | None = None,
) -> str:
    """What `dgdlb run` found, as HTML: all that it prints, and the pictures.

    **Arguments:** `comparison` at the mean rates; `trace`: the one under a demand over time, `stability`: of DGD-LB, `service`: the
    curves and the measurements behind them, `weights`: sentences on exported weights, `requests`: the balancers with
    whole requests, `autoscaling`: while replicas move, as far as there are any.
    """
    parts = _comparison(comparison)
    if stability is not None:
        header, rows = stability.table_cells()
        parts += [heading(f"Stability of {DGD}"), *map(paragraph, stability.summary().splitlines())]
        parts += [table(header, rows, right=(1, 2, 3)), paragraph(STEP_SIZES)]
    if requests is not None:
        parts += [
            heading("Whole requests, at random"),
            table(requests_text.HEADER, [*map(requests_text.cells, requests.rows)]),
        ]
        parts += [paragraph(requests_text.facts(requests)), *map(paragraph, requests_text.sentences(requests))]
        parts.append(picture(latency_distribution(requests), "How many requests take longer, by balancer"))
    if autoscaling is not None:
        parts.append(heading(f"With the autoscaler: {autoscaling_text.title(autoscaling.autoscaler)}"))
        parts.append(table(autoscaling_text.HEADER, [*map(autoscaling_text.cells, autoscaling.rows)]))
        parts += map(paragraph, autoscaling_text.notes(autoscaling))
        parts.append(picture(replicas_over_time(autoscaling), "Replicas that serve, and the mean latency, by balancer"))
    if service is not None and service.fits:
        shown = measured_curves(service, comparison.optimum)
        parts += [heading("Measured curves"), *map(paragraph, map(str, service.fits.values()))]
        parts.append(picture(shown, "Measured throughput, the fitted curve, and where it is extrapolated"))
    if weights:
        parts += [heading("Exported weights"), *map(paragraph, weights)]
    if trace is not None:
        parts += [heading("Under a demand over time"), *_comparison(trace)]
    header, rows = text.input_cells(comparison.given)
    parts += [heading(text.inputs_heading(bool(comparison.phases))), table(header, rows, right=range(1, len(header)))]
    return page(f"{comparison.network.name or 'A network'}: where requests should go", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole HTML document from its title and its parts."""
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(parts)
        + f"\n<footer>{html.escape(made)}. DGD-LB after arXiv:2504.10693.</footer>\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """A heading within the page."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph; `kind` is `lead` for the one that counts."""
    return f'<p class="{kind}">{html.escape(text)}</p>' if kind else f"<p>{html.escape(text)}</p>"


def preformatted(text: str) -> str:
    """Text as it is."""
    return f"<pre>{html.escape(text)}</pre>"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """A table; columns in `right` are aligned to the right."""

    def cells(kind: str, row: Sequence[object]) -> str:
        return "".join(
            f"<{kind}{' class=n' if k in right else ''}>{html.escape(str(cell))}</{kind}>" for k, cell in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{cells("th", header)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def picture(figure: Figure, meaning: str) -> str:
    """A figure inside the page, with what it shows for those who cannot see it."""
    buffer = io.BytesIO()
    save_png(figure, buffer, dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    text = html.escape(meaning)
    image = f'<div class="wide"><img alt="{text}" src="data:image/png;base64,{data}"></div>'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def write_page(path: Path, text: str) -> Path:
    """Write a page, whole or not at all. **Returns:** its path. **Raises:** `InputError` when the disk refuses."""
    with disk_errors(str(path)):
        write_text(path, text)
    return path


def _comparison(comparison: Comparison) -> list[str]:
    parts = [paragraph(comparison.conclusion, "lead"), heading("Facts")]
    parts += [paragraph(line) for line in text.facts(comparison).splitlines()]
    parts += [heading("Balancers"), table(*text.table_cells(comparison))]
    said = [*text.notes(comparison), *text.resolution(comparison).splitlines()]
    parts += [paragraph(line.strip()) for line in said]
    if comparison.phases:
        parts += [heading("Events"), table(*text.event_cells(comparison), right=(2, 3, 4, 5))]
    parts.append(picture(latency_over_time(comparison).figure, "Mean latency over time, one line per balancer"))  # pyright: ignore[reportArgumentType]
    if not comparison.moving:
        header, rows = text.flow_cells(comparison)
        parts += [heading("What backends get"), table(header, rows, right=range(1, len(header)))]
        parts += [heading("Where frontends send"), table(*text.routing_cells(comparison), right=(1,))]
        parts += map(paragraph, filter(None, [about_extrapolation(comparison)]))
        shown = routing_by_frontend(comparison).figure
        parts.append(picture(shown, "Where each frontend sends its requests"))  # pyright: ignore[reportArgumentType]
        parts += [
            heading("One replica more or less, one backend less"),
            table(*text.change_cells(comparison), right=(1, 2, 3)),
        ]
    parts += [
        heading("Workloads"),
        picture(workloads_of_all(comparison), "Workloads over time, one panel per balancer"),
    ]
    return parts


def figure_text(value: float) -> str:
    """A number of a table: four digits, a dash where there is none."""
    return "–" if np.isnan(value) else "inf" if np.isinf(value) else f"{value:.4g}"
