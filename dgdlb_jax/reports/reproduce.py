"""Run the sweeps of the claims, judge them, write the table, the figures and the counterexamples."""

import csv
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.text_table import columns
from dgdlb_jax.studies.claims.counterexample import write_counterexample
from dgdlb_jax.studies.claims.judge import JUDGES, Judgement
from dgdlb_jax.studies.claims.spec import Claim, read_claims
from dgdlb_jax.studies.results import check_folder
from dgdlb_jax.studies.sweep import Spec, sweep


@dataclass(frozen=True)
class Row:
    """A line of the table.

    - `claim`, `judgement`: what is claimed, and what came of it.
    - `command`: how to see the counterexample; empty when there is none.
    - `files`: stores, figure and counterexample, in the folder of the results.
    """

    claim: Claim
    judgement: Judgement
    command: str
    files: tuple[str, ...]


def reproduce(
    claims: Sequence[str] | None = None,
    *,
    size: str = "quick",
    output: str | Path = "dgdlb-claims",
    progress: bool = True,
    told: Callable[[Claim], AbstractContextManager[None]] = lambda claim: nullcontext(),
) -> list[Row]:
    """Show or refute claims of the abstract.

    **Arguments:**

    - `claims`: numbers, or words of their titles; all by default.
    - `size`: `quick` (a minute or two in all) or `full`.
    - `output`: the folder for stores, figures, table and counterexamples. Sweeps that are complete there are not run again, so the
      same call goes on where an earlier one was stopped.
    - `progress`: whether sweeps show a bar. `told`: a context around the work on each claim.

    **Returns:** a `Row` for every claim, in order. `claims.csv` and `numbers.csv` in the folder say the same.

    **Raises:** `InputError` for an unknown claim or size, or a folder that cannot be written.
    """
    chosen, folder = read_claims(claims, size), Path(output)
    check_folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = []
        for claim in chosen:
            with told(claim):
                rows.append(_show(claim, folder, progress))
            write_table(folder, rows, size)
        return rows
    except OSError as error:
        raise InputError(
            f"{folder}: {error.strerror or error}; make room or name another folder, the same command then goes on."
        ) from error


def table(rows: Sequence[Row]) -> str:
    """The table for people: one line per claim, and below it what was measured."""
    head = ("claim", "", "topologies", "verdict")
    lines = [
        (row.claim.key, row.claim.title, f"{row.judgement.topologies:,}", str(row.judgement.verdict)) for row in rows
    ]
    parts = [columns(head, lines, right=(2,))]
    for row in rows:
        text = f"{row.claim.key}. {row.claim.statement}\n   Measured: {row.judgement.measured}."
        parts.append(text + (f"\n   Counterexample: {row.command}" if row.command else ""))
    return "\n\n".join(parts)


def write_table(folder: Path, rows: Sequence[Row], size: str) -> None:
    """`claims.csv` and `numbers.csv`: claim by claim, and figure by figure; claims shown in earlier calls keep their lines."""
    head = (
        "claim",
        "title",
        "statement",
        "size",
        "measured",
        "topologies",
        "verdict",
        "seeds",
        "counterexample",
        "files",
    )
    lines, figures = [], []
    for row in rows:
        claim, judged = row.claim, row.judgement
        lines.append(
            (claim.key, claim.title, claim.statement, size, judged.measured, judged.topologies, str(judged.verdict),
             _seeds(claim), row.command, " ".join(row.files))
        )  # fmt: skip
        figures += [(claim.key, name, f"{value:.6g}") for name, value in judged.numbers.items()]
    _update(folder / "claims.csv", head, lines)
    _update(folder / "numbers.csv", ("claim", "quantity", "value"), figures)


def _update(path: Path, head: Sequence[str], lines: Sequence[Sequence[object]]) -> None:
    """Write lines whose first entry is a claim, in place of those of the same claims."""
    new = {str(line[0]) for line in lines}
    kept: list[Sequence[object]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            kept += [line for line in csv.reader(file) if len(line) == len(head) and line[0] not in new | {head[0]}]
    ordered = sorted([*kept, *lines], key=lambda line: str(line[0]))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *ordered])


def _show(claim: Claim, folder: Path, progress: bool) -> Row:
    from dgdlb_jax.reports.claim_plots import FIGURES  # needs matplotlib
    from dgdlb_jax.reports.sweep_plots import save_pictures

    data, files = {}, []
    for part, spec in claim.sweeps.items():
        store = folder / f"{spec.name}.zarr"
        data[part] = sweep(spec, store, progress=progress).load()
        files.append(store.name)
    judgement = JUDGES[claim.key](data)
    files += [path.name for path in save_pictures({f"claim-{claim.key}": FIGURES[claim.key](data)}, folder)]
    command = ""
    if judgement.against is not None:
        example = folder / f"claim-{claim.key}-counterexample.toml"
        command = write_counterexample(example, judgement.against, f'Against "{claim.statement}"')
        files.append(example.name)
    return Row(claim, judgement, command, tuple(files))


def _seeds(claim: Claim) -> str:
    """`runs 0-99; rest 0-9`: the seeds of the random topologies, sweep by sweep."""

    def seeds(spec: Spec) -> str:
        found = [axis.values["seed"] for axis in spec.axes if "seed" in axis.values]
        return f"{min(found[0])}-{max(found[0])}" if found else "none"

    return "; ".join(f"{part} {seeds(spec)}" for part, spec in claim.sweeps.items())
