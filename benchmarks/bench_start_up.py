"""Start-up: importing the package, and help. `bench_run.py` times whole runs.

python benchmarks/bench_start_up.py
"""

import subprocess
import sys
import time
from statistics import median

from common import machine


def command(*arguments: str, repeats: int = 5) -> float:
    """Median seconds of a command as a whole process."""
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        taken.append(time.perf_counter() - begin)
    return median(taken)


def main() -> None:
    """Print the table."""
    print(machine(), "\n")
    names = "import dgdlb_jax; [getattr(dgdlb_jax, name) for name in dgdlb_jax.__all__]"
    rival = command("-c", "import jax, equinox")
    rows = [
        ("import jax, equinox", rival),
        ("import dgdlb_jax", command("-c", "import dgdlb_jax")),
        ("import dgdlb_jax, every public name used", command("-c", names)),
        ("dgdlb --help", command("-m", "dgdlb_jax", "--help")),
    ]
    print("| what | seconds | over `import jax, equinox` |\n|---|---|---|")
    for what, taken in rows:
        print(f"| {what} | {taken:.2f} | {taken / rival:.2f} |")


if __name__ == "__main__":
    main()
