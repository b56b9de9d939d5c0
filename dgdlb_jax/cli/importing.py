"""`dgdlb import`: measured files into tidy tables, or into a fleet."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dgdlb_jax.cli.common import names, notes, positive, set_up_jax
from dgdlb_jax.numerics.text import repeated

if TYPE_CHECKING:
    from dgdlb_jax.fleets.importers import Curve, Demand, Finding, Latencies, Options

_ABOUT = """Read files as they are, say what they were understood as, and write tidy CSV tables that a fleet file can name;
with --fleet a whole fleet that runs, with the origin of every figure beside it."""

_EXAMPLES = """examples:
  dgdlb import rtt.csv                                     a table or a matrix of latencies
  dgdlb import pings.csv --latency rtt_ms                  ... that does not say what its figures are
  dgdlb import sweep-results/                              a folder of vllm bench sweep serve
  dgdlb import conc8.json conc16.json conc32.json          runs of vllm bench serve or AIPerf, one curve
  dgdlb import AzureLLMInferenceTrace_conv.csv --bin 60    single requests, counted per minute
  dgdlb import arrivals=rps.json running=run.json waiting=wait.json throughput=done.json
                                                           range queries of Prometheus
  dgdlb import rtt.csv results/ trace.csv --fleet my-fleet.toml && dgdlb run my-fleet.toml

read by content:
  latencies   from,to and one of one_way_s, one_way_ms, one_way_us, rtt_s, rtt_ms, rtt_us (a round trip counts half);
              matrices: regions with each other (half is enough), or frontends down the side and backends across;
              commas, semicolons or tabs between cells; decimal commas, separated thousands; UTF-8, UTF-16, Windows-1252
  throughput  vLLM and SGLang benchmark JSON, sweep folders, AIPerf and GenAI-Perf JSON and CSV, GuideLLM JSON, InferenceX rows
              and CSV files, tables in requests/s or tokens/s against workload, batch_size or concurrency
  demand      a line per request with a column of times (Azure LLM, BurstGPT, Mooncake, k6, any CSV or JSON lines), counts or
              rates per bin (a column for each frontend, or a line for each), Prometheus query_range results; requests that
              failed are counted, and their number is said (those of BurstGPT are left out, as in its own files without them)

Figures that are unlikely are called so; what is ambiguous is asked; an option that changes nothing is refused."""


_MOST_FILES = 3  # named in front of a note


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "import",
        help="your own files into tables or a fleet",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=import_files)
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="file or folder; arrivals=FILE, throughput=FILE, running=FILE, waiting=FILE for "
        "results of Prometheus that do not say what they are")  # fmt: skip
    add("--fleet", metavar="TOML", type=Path, help="write a fleet of them, with its tables beside it")
    add("--output", metavar="DIR", type=Path, help="folder for tidy tables (default: here)")
    _add_answers(parser.add_argument_group("what files may not say").add_argument)
    _add_choices(parser.add_argument_group("what is assumed of a fleet otherwise").add_argument)


def _add_answers(add) -> None:
    add(
        "--latency",
        metavar="WORD",
        help="what latencies are: one_way_s, one_way_ms, one_way_us, rtt_s, rtt_ms or rtt_us",
    )
    add("--time-unit", metavar="UNIT", help="unit of a column of times: s, ms, us or ns")
    add("--bin", metavar="S", type=positive, help="seconds to a bin")
    add("--by", metavar="NAME", help="column or label that says where requests enter (or which backend it is)")
    add("--tokens-per-request", metavar="N", type=positive, help="for throughput in tokens/s")
    add(
        "--select",
        metavar="COLUMN=VALUE",
        type=_pair,
        action="append",
        default=[],
        help="rows to take; may be repeated",
    )


def _add_choices(add) -> None:
    add("--frontends", metavar="A,B", type=names, default=[], help="where requests enter")
    add("--backends", metavar="A,B", type=names, default=[], help="where servers are")
    add("--curves", metavar="A,B", type=_list, default=[], help="which servers: one curve, or one for each backend")
    add(
        "--replicas",
        metavar="N,N",
        type=_numbers,
        default=(),
        help="how many servers: one number, or one for each backend",
    )
    add("--weights", metavar="X,X", type=_numbers, default=(), help="shares of the traffic, one for each frontend")
    add(
        "--shift-s",
        metavar="S,S",
        type=_shifts,
        default=(),
        help="how much later each frontend sees one common trace; longitude: by where the cities or cloud regions lie, beginning with "
        "the first one; --shift-s=-3600,0 where the first one is negative",
    )
    add("--load", metavar="X", type=positive, help="total rate over capacity (default: 0.7)")
    add("--sparse", action="store_true", help="pairs without a latency are left out (default: they are refused)")
    add("--inside-ms", metavar="MS", type=positive, help="one way inside a region (default: 0.5)")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE")
    return key, value


def _list(text: str) -> list[str]:
    """Names in order, repetitions kept."""
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None


def _shifts(text: str) -> tuple[float, ...] | str:
    return text if text == "longitude" else _numbers(text)


def import_files(options: argparse.Namespace) -> None:
    """Read, say what was understood, write."""
    from dgdlb_jax.fleets.importers import Demand, Options, check_selected, gathered
    from dgdlb_jax.fleets.importers.bins import rebinned

    answers = Options(
        latency=options.latency,
        time_unit=options.time_unit,
        bin_s=options.bin,
        by=options.by,
        tokens_per_request=options.tokens_per_request,
        select=_selection(options.select),
        names=tuple(options.frontends),
        backends=tuple(options.backends),
    )
    _check_once(options.files)
    with notes():
        findings = [finding for name in options.files for finding in _read(name, answers)]
    check_selected("--select", answers)
    found = [rebinned(one, answers.use("bin_s")) if isinstance(one, Demand) else one for one in gathered(findings)]
    _check_used(found, answers, options)
    _say(found)
    written = _tables(found, options) if options.fleet is None else _fleet(found, options)
    print("\n".join(f"written: {path}" for path in written))


def _check_once(files: "Sequence[str]") -> None:
    """Raise `InputError` for a file that is named twice: its measurements would count as repetitions."""
    from dgdlb_jax.numerics.results import InputError

    if (twice := repeated(files)) is not None:
        raise InputError(f"{twice} is named twice: name every file once.")


def _selection(pairs: "Sequence[tuple[str, str]]") -> dict[str, str]:
    """Values by column, one for each."""
    from dgdlb_jax.numerics.results import InputError

    if (twice := repeated(column for column, _ in pairs)) is not None:
        raise InputError(f"--select names {twice} twice: keep one of the two, rows have one value each.")
    return dict(pairs)


_ABOUT_FILES = {
    "latency": ("--latency", "what latencies are"),
    "time_unit": ("--time-unit", "the unit of times in figures"),
    "bin_s": ("--bin", "how wide bins of demand are"),
    "by": ("--by", "which column of demand, or label of Prometheus, names places"),
    "tokens_per_request": (
        "--tokens-per-request",
        "how many of the tokens that a throughput counts belong to one request",
    ),
    "names": ("--frontends", "which places of a demand are frontends"),
    "backends": ("--backends", "which names of a matrix are backends"),
}
"""What the answers about files are called, and what they tell."""


def _check_used(found: "Sequence[Finding]", answers: "Options", options: argparse.Namespace) -> None:
    """Raise `InputError` for an option that nothing was read or is written by: whoever gave it expected something of it."""
    from dgdlb_jax.numerics.results import InputError

    for name in ("curves", "replicas", "load", "weights", "shift_s", "inside_ms"):
        if options.fleet is None and getattr(options, name):
            raise InputError(f"--{name.replace('_', '-')} is about a fleet: give --fleet as well.")
    if options.sparse and options.fleet is None and not any(getattr(one, "holes", ()) for one in found):
        raise InputError(
            "--sparse changes nothing: no matrix here lacks a figure: leave it out, or give --fleet as well."
        )
    for name in answers.unused:
        if name in _ABOUT_FILES and (options.fleet is None or name not in ("names", "backends")):
            flag, tells = _ABOUT_FILES[name]
            more = ", or give --fleet as well" if name in ("names", "backends") else ""
            raise InputError(
                f"{flag} changes nothing: it tells {tells}, and no file here asks for it: leave it out{more}."
            )
    if options.fleet is not None and options.output is not None:
        raise InputError(
            "--output is for tidy tables, and those of a fleet lie beside it: keep one of --fleet and --output."
        )


def _say(found: "Sequence[Latencies | Curve | Demand]") -> None:
    """Print what was understood: each sentence once, after all files that it is about."""
    from dgdlb_jax.fleets.tidy import summary

    said: dict[tuple[str, str], list[str]] = {}
    for finding in found:
        for note in finding.notes:
            said.setdefault((note, ""), []).extend(finding.origin.split(", "))
        said[summary(finding), finding.origin] = finding.origin.split(", ")
    for (note, _), origins in said.items():
        files = list(dict.fromkeys(origins))
        more = f" and {len(files) - _MOST_FILES} more" if len(files) > _MOST_FILES else ""
        print(f"  {', '.join(files[:_MOST_FILES])}{more}: {note}")


def _read(name: str, answers: "Options") -> "tuple[Finding, ...]":
    """What is in one file, and a line that says how it was recognised."""
    from dataclasses import replace

    from dgdlb_jax.fleets.importers import IMPORTERS, Source, find_importer
    from dgdlb_jax.fleets.importers.prometheus import ROLES
    from dgdlb_jax.numerics.results import InputError

    role, equals, path = name.partition("=")
    if not equals or Path(name).exists():
        role, path = "", name
    elif role not in ROLES:
        raise InputError(
            f"{name}: {role!r} is not a quantity: it is one of {', '.join(ROLES)}, in front of a range query."
        )
    if not Path(path).exists():
        raise InputError(f"{path} does not exist: check the name.")
    source = Source(Path(path), Path(path).name or path)
    answers = replace(answers, role=role or None)
    importer = find_importer(source, answers)
    if role and importer.section != "series":
        known = next(one.name for one in IMPORTERS if one.section == "series")
        raise InputError(f"{name}: {role}= is for a {known}, and this is a {importer.name}: leave it out.")
    print(f"{path}: {importer.name}")
    return importer.read(source, answers)


def _tables(found: "Sequence[Finding]", options: argparse.Namespace) -> list[Path]:
    """A tidy table for everything that was found, named after its file."""
    from dgdlb_jax.fleets.importers import Curve, Demand, Latencies
    from dgdlb_jax.fleets.tidy import curve_csv, demand_csv, latency_csv
    from dgdlb_jax.model.document import write_all
    from dgdlb_jax.numerics.results import InputError

    files: dict[str, str] = {}
    for finding in found:
        stem = Path(finding.origin.split(", ")[0]).stem
        name, text = "", ""
        if isinstance(finding, Latencies):
            _check_holes(finding, options)
            name, text = f"{stem}.latency.csv", latency_csv(finding)
        elif isinstance(finding, Curve):
            name, text = f"{_file_name(finding.name)}.curve.csv", curve_csv(finding)
        elif isinstance(finding, Demand):
            name, text = f"{stem}.demand.csv", demand_csv(finding)
        if name in files:
            raise InputError(f"Two of these files would both be written as {name}: import them one at a time.")
        files[name] = text
    folder = options.output or Path()
    _check_not_inputs([folder / name for name in files], options.files)
    write_all(folder, files)
    return [folder / name for name in files]


def _check_holes(found: "Latencies", options: argparse.Namespace) -> None:
    """A table of latencies is complete unless the user knows better."""
    from dgdlb_jax.fleets.compose_checks import check_complete

    if not options.sparse:
        check_complete(found.holes, found, in_fleet=False)


def _fleet(found: "Sequence[Finding]", options: argparse.Namespace) -> list[Path]:
    set_up_jax(host=True)
    from dgdlb_jax.fleets.compose import Choices, compose_fleet

    choices = Choices(
        frontends=tuple(options.frontends),
        backends=tuple(options.backends),
        curves=tuple(options.curves),
        replicas=options.replicas,
        weights=options.weights,
        shift_s=options.shift_s,
        load=options.load,
        inside_ms=options.inside_ms,
        sparse=options.sparse,
    )
    keep = [Path(name.rpartition("=")[2]) for name in options.files]
    composed = compose_fleet(found, options.fleet, choices, keep=keep)
    for note in composed.notes:
        print(f"  {options.fleet.name}: {note}")
    return composed.paths


def _check_not_inputs(outputs: list[Path], inputs: list[str]) -> None:
    from dgdlb_jax.model.document import check_not_inputs

    check_not_inputs(outputs, [Path(name.rpartition("=")[2]) for name in inputs])


def _file_name(name: str) -> str:
    from dgdlb_jax.fleets.compose import slug

    return slug(name)
