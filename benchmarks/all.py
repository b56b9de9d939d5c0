"""All measurements by section, as they stand in benchmarks/README.md.

    python benchmarks/all.py                    lists the sections and what they run
    python benchmarks/all.py threads rivals     runs those, one after the other
    python benchmarks/all.py everything

Each command prints the machine, the versions and the commit beside its figures. A command that fails does not stop the others; the exit
code says whether all went well.
"""

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
CASES = "tests/cases/ibm-405b-70.toml tests/cases/ibm-405b-90.toml"
SECTIONS = {  # from the quickest to those that take hours
    "start-up": ["bench_start_up.py", f"bench_run.py two-by-two small-models {CASES}"],
    "threads": ["bench_threads.py"],
    "simulation": [
        "bench_simulate.py",
        "bench_simulate.py --cores 2 --picture benchmarks/time-per-arc.png",
    ],
    "rivals": ["bench_rivals.py", "bench_dde.py"],
    "requests": ["bench_requests.py", "study_fluid_gradient.py --seeds 1024"],
    "estimates": [
        "study_estimates.py --picture notebooks/figures/estimates.png",
        "study_lead.py --picture notebooks/figures/lead.png",
    ],
    "optimum": ["bench_optimum.py"],
    "gradients": [
        "bench_gradients.py",
        "bench_gradients.py --double",
        "bench_gradients.py --million",
        "bench_gradients.py --million --double",
        "bench_gradient_error.py",
    ],
    "stability": [
        "bench_stability.py --count 10000",
        "study_step_sizes.py --picture benchmarks/tightness.png",
        "study_time_step.py",
        "study_cycles.py --picture benchmarks/cycles.png",
        "study_far_starts.py --count 20 --periods 100",
    ],
    # On an accelerator, within eight minutes.
    "device": ["bench_device.py --cases 10x1024 10x16384 --gradients 10x1024 --optima 1000"],
    "fleets": ["-m pytest -m full -rP tests/test_random_fleets.py"],
    "faults": ["-m pytest tests/faults -m 'full or not full'"],
    "claims": ["-m dgdlb_jax reproduce --size full"],
}


def arguments_of(command: str) -> list[str]:
    """What follows the interpreter, from the folder above: a script, or a module."""
    words = shlex.split(command)
    return words if words[0] == "-m" else [f"{HERE.name}/{words[0]}", *words[1:]]


def main() -> int:
    """Run what is asked for; 1 when a command failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS) + " or everything")
    asked = parser.parse_args().sections
    unknown = [name for name in asked if name not in SECTIONS and name != "everything"]
    if unknown:
        parser.error(f"there is no section {unknown[0]!r}: choose from {', '.join(SECTIONS)} or everything.")
    if not asked:
        for name, commands in SECTIONS.items():
            print(name, *(f"    python {shlex.join(arguments_of(command))}" for command in commands), sep="\n")
        return 0
    failed = []
    for name in SECTIONS if "everything" in asked else asked:
        for command in SECTIONS[name]:
            print(f"\n## {name}: {command}\n", flush=True)
            begin = time.perf_counter()
            code = subprocess.run([sys.executable, *arguments_of(command)], cwd=HERE.parent).returncode
            print(f"\n{time.perf_counter() - begin:.0f} s, exit code {code}", flush=True)
            failed += [command] if code else []
    print(*(f"failed: {command}" for command in failed), sep="\n")
    return min(len(failed), 1)


if __name__ == "__main__":
    raise SystemExit(main())
