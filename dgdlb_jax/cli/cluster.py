"""Several processes of one command: found by JAX on Slurm, MPI and Kubernetes, or named on the command line.

JAX only tells the processes apart here (and gives each its own devices): they share no computation, so each can die alone. That is
why the connection is closed at once; an open one would end all processes when one of them is gone.
"""

import argparse
import os
import socket


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--coordinator`, `--processes`, `--process`: for clusters that JAX does not know."""
    group = parser.add_argument_group("several processes (Slurm, MPI and Kubernetes need none of these)")
    where = "where process 0 listens, on this address only; whoever reaches it can join or disturb the start"
    group.add_argument("--coordinator", metavar="HOST:PORT", help=where)
    group.add_argument("--processes", metavar="N", type=int, help="how many processes there are")
    group.add_argument("--process", metavar="K", type=int, help="which of them this one is, from 0")


def join(options: argparse.Namespace) -> tuple[int, int]:
    """Find the other processes. **Returns:** the number of this one, and how many there are.

    **Raises:** `InputError` when only a part of the options is given, or the others do not come.
    """
    from dgdlb_jax.numerics.results import InputError

    named = (options.coordinator, options.processes, options.process)
    if any(value is None for value in named) and any(value is not None for value in named):
        raise InputError("--coordinator, --processes and --process belong together: give all three or none.")
    if named[0] is None and not _on_a_cluster():
        return 0, 1
    if named[0] is not None and options.processes < 1:
        raise InputError(f"--processes is {options.processes}: give how many there are, 1 or more.")
    if named[0] is not None and not 0 <= options.process < options.processes:
        raise InputError(f"--process {options.process} of {options.processes}: count from 0 to --processes - 1.")
    if named[0] is not None:
        _check_address(options.coordinator)
    import jax

    try:
        jax.distributed.initialize(*named, coordinator_bind_address=options.coordinator)  # not on all interfaces
        found = jax.process_index(), jax.process_count()
        jax.distributed.shutdown()
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"The processes do not find each other ({str(error).splitlines()[0]}): check --coordinator."
        ) from error
    return found


def _check_address(address: str) -> None:
    """Raise `InputError` for what is no address: what JAX calls ends the process then."""
    from dgdlb_jax.numerics.results import InputError

    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"--coordinator is {address!r}: give HOST:PORT, such as node1:1234.")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except (OSError, UnicodeError) as error:
        raise InputError(
            f"--coordinator {address}: there is no host {host!r} in sight ({error}): correct it."
        ) from error


def _on_a_cluster() -> bool:
    """Whether a launcher has started more than one process; the variables are those that JAX looks at."""
    environment = os.environ
    if {"SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID", "SLURM_LOCALID"} <= environment.keys():
        return _number("SLURM_NTASKS") > 1
    if "OMPI_MCA_orte_hnp_uri" in environment:
        return _number("OMPI_COMM_WORLD_SIZE") > 1
    return "KUBERNETES_SERVICE_HOST" in environment and "JOB_COMPLETION_INDEX" in environment


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdigit() else 1
