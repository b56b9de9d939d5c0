"""What the commands share: JAX set up once, kinds of numbers, notes and progress on standard error."""

import argparse
import contextlib
import importlib.util
import math
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from dgdlb_jax.numerics.text import clipped, repeated

_DEVICES = "xla_force_host_platform_device_count"  # the flag that does the same
_CACHE_TROUBLE = "Error (reading|writing) persistent compilation cache"  # once for every function; it only costs time
OLDER_EMITTERS = {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
"""Flags of XLA for its older code generator, in versions of JAX below `OLDER_UNTIL`; a flag that XLA does not know ends the process."""
OLDER_UNTIL = (0, 11)
_EXTRA = ("matplotlib", "xarray", "h5netcdf", "h5py", "rich")
START = "proportional"
"""From which routing runs begin if --start does not say."""

NEWS_HELP = (
    "how frontends get their reports, instead of what the fleet's [news] says: interval (seconds between two), offset (of the first, or "
    "random), jitter, lost (parts of 1), late, drift, drift_period (seconds), seed; or none, for at once"
)


def positive(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def names(text: str) -> list[str]:
    """A comma-separated list of names, each once."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError("give at least one name")
    if (twice := repeated(found)) is not None:
        raise argparse.ArgumentTypeError(f"{clipped(twice)} stands there twice, leave one out")
    return found


def add_sweep_axes(parser: argparse.ArgumentParser) -> None:
    """A sweep, and along which of its inputs it is drawn."""
    option = parser.add_argument
    option("store", metavar="STORE", type=Path, help="folder that dgdlb sweep wrote")
    option("--x", metavar="INPUT", help="input to draw along (default: the step size if it varies)")
    option("--y", metavar="MEASURE", help="measure to draw (default: excess)")
    option("--by", metavar="INPUT", help="input that makes lines, or the other direction of heatmaps")


def beside(store: Path, ending: str) -> Path:
    """Where what is made of a sweep goes by default: STORE without .zarr, then the ending."""
    return Path(f"{str(store).removesuffix('/').removesuffix('.zarr')}{ending}")


def require_extra(options: argparse.Namespace) -> None:
    """Say which line to type when files are asked for and a package for them is missing."""
    if not options.no_files:
        require(*_EXTRA, otherwise=" (or use --no-files)")


def require(*packages: str, otherwise: str = "") -> None:
    """Raise `InputError` with the line to type when one of the packages is missing."""
    from dgdlb_jax.numerics.results import InputError

    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{", ".join(missing)} missing; type: pip install "dgdlb_jax[cli]"{otherwise}.')


def set_up_jax(*, all_cores: bool = False, host: bool = False) -> None:
    """Double precision, JAX's usual promotion, and compiled code kept between runs. An entry point may do this; the package never does.

    **Arguments:** `all_cores`: one device per CPU core that the process may use, over which batches are spread, unless the user has
    said how many. `host`: leave an accelerator alone, unless JAX_PLATFORMS names one: a single fleet is a loop of small steps, which
    it only slows down.
    """
    import jax

    from dgdlb_jax.numerics.parallel import cores

    if host:
        _choose_older_emitters(jax.__version_info__)
        if not jax.config.values["jax_platforms"]:
            jax.config.update("jax_platforms", "cpu")

    if all_cores and jax.config.values["jax_num_cpu_devices"] < 0 and _DEVICES not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # JAX is running already: in a notebook, under test
            jax.config.update("jax_num_cpu_devices", cores())
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_numpy_rank_promotion", "allow")
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    if jax.config.values["jax_compilation_cache_dir"] is None and (folder := _cache_folder()):
        jax.config.update("jax_compilation_cache_dir", str(folder))
    warnings.filterwarnings("ignore", _CACHE_TROUBLE)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    _keep_programs()


def _keep_programs() -> None:
    """Beside what JAX keeps, if it does and on a disk; not where DGDLB_KEEP_PROGRAMS=0 says so, nor with code of the user's own."""
    import jax

    from dgdlb_jax.cli import plugins
    from dgdlb_jax.numerics import programs

    folder = jax.config.values["jax_compilation_cache_dir"]
    refused = os.environ.get("DGDLB_KEEP_PROGRAMS") == "0" or not jax.config.values["jax_enable_compilation_cache"]
    wanted = folder and "://" not in folder and not refused and not plugins.loaded
    programs.kept_in(Path(folder) / "programs" if wanted else None)


def _choose_older_emitters(version: tuple[int, ...]) -> None:
    """XLA's older code generator, as long as nothing has been compiled and the user says nothing about it: for one fleet it compiles in
    half the time, and what it emits is as fast. Later versions of JAX were not measured."""
    given = os.environ.get("XLA_FLAGS", "")
    if version < OLDER_UNTIL and not any(name in given for name in OLDER_EMITTERS):
        flags = (f"--{name}={str(value).lower()}" for name, value in OLDER_EMITTERS.items())
        os.environ["XLA_FLAGS"] = " ".join([given, *flags]).lstrip()


def _cache_folder() -> Path | None:
    """Where compiled code is kept; None without a home, or with one that cannot be written: that only costs time."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgdlb_jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


@contextlib.contextmanager
def quick_compilation(wanted: bool) -> Iterator[None]:
    """Compile with few optimisations: a loop over a tiny network runs for less time than it would take to optimise it."""
    import jax

    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", before or wanted)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


@contextlib.contextmanager
def notes() -> Iterator[None]:
    """Warnings about a fleet's tables as lines that a person can read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        warnings.filterwarnings("ignore", _CACHE_TROUBLE)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)):
        print(f"dgdlb: note: {text}", file=sys.stderr)


def interrupt_heard() -> None:
    """Stop raising Ctrl-C again: the command is answering it."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
