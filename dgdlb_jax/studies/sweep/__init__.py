"""Sweeps: many cases from a short specification, computed in chunks, kept in a store that loses nothing.

A specification is a TOML file (or the same as a `dict`, or the name of a ready one):

```toml
name = "step-size"                                  # of the file if it is left out; dgdlb sweep writes NAME.zarr
description = "excess latency against the step size"
measures = ["excess", "verdict", "settle_time"]     # what to compute for every case

[axes]                                              # every combination of the axes is one case
seed = { count = 1000 }                             # 0 ... 999; { count = 10, first = 5 } is 5 ... 14
step_size_over_critical = { from = 0.05, to = 2, count = 12, spacing = "log" }     # or "linear", or a plain list

[zip.size]                                          # one axis, called "size", whose inputs move together
frontends = [3, 5, 10]
backends = [3, 5, 10]

[fixed]                                             # inputs that are the same for all cases
family = "complete"
load = 0.7

[run]                                               # how to compute; all optional
chunk = 512                                         # cases that are computed and stored together
batch = 64                                          # cases that run side by side
max_steps = 200000                                  # suggested durations end there
```

Inputs are those of `INPUTS` (`sweep/inputs.py`): `fleet`, or `family` and `seed` with `frontends`, `backends`, `curve`,
`service_time`, `density`; `load`, `latency_scale`, `scale`; `policy`; one of `step_size`, `step_size_over_default`,
`step_size_over_critical`, `step_size_over_sufficient`; `start`, `start_seed`, `start_distance`; `dt` or `dt_over_suggested`,
`duration` or `duration_over_suggested`; and, in quotes, any parameter of a policy (`"policy.temperature"`) or of a curve
(`"curve.exponent"` replaces it, `"curve_factor.max_rate"` multiplies it). Measures are those of `MEASURES`
(`sweep/measures.py`).

The store is a zarr directory that `xarray.open_zarr` opens lazily: one dimension per axis, inputs as coordinates, measures as
variables with units, the specification and versions as attributes.

Whatever stops a sweep (Ctrl-C, a kill, a full disk, power), the same command goes on where it ended, and the result is the same to the
bit. Checksums cover results, coordinates and metadata: `plot`, `report`, `open_sweep` and `sweep` name what is damaged, and
`dgdlb sweep SPEC --recompute-corrupt` computes again what it has to. A case that cannot be computed is marked in `result`, named with its
reason in the summary, and stops no other. A chunk that does not fit into memory is tried again in smaller batches.

Several processes share one sweep: each computes chunks of its own, on all devices it sees, and writes them into the same store, which has
to lie where all can reach it, on a file system with file locks (NFS, Lustre and GPFS have them). JAX knows Slurm, Open MPI, Kubernetes:

```sh
srun --ntasks=8 --gpus-per-task=1 dgdlb sweep step-size --output /shared/step-size.zarr
mpirun -n 4 dgdlb sweep step-size --output /shared/step-size.zarr
```

Elsewhere say who is who, once for every process:

```sh
dgdlb sweep step-size --output /shared/step-size.zarr --coordinator host0:9000 --processes 2 --process 0
dgdlb sweep step-size --output /shared/step-size.zarr --coordinator host0:9000 --processes 2 --process 1
```

The processes find each other when they start and never wait for one another after that. When one dies, the others compute its chunks; when
all are gone, the same command goes on. SIGTERM, which clusters send before they kill, lets the chunk in flight finish
(`#SBATCH --signal=TERM@120` asks for it two minutes ahead). `dgdlb sweep` and `dgdlb reproduce` make a device of every core that they may
use; `XLA_FLAGS=--xla_force_host_platform_device_count=4` says how many instead. With another number of devices the last bits of results
differ. A process that has used JAX cannot be forked (the child may wait for ever): use `multiprocessing.get_context("spawn")`.

Or the chunks are tasks of an engine that is there already: `--executor dask://HOST:PORT` (`pip install "dgdlb_jax[cluster]"`), in Python
`sweep(..., executor=...)` with any `concurrent.futures.Executor`. Workers need this package in the same version, but no files:
specification, fleets, precision and files of `--import` are sent, values come back, and this process writes the store, the same to the bit
on equal machines with as many devices in every process
(with threads of one process to rounding). Chunks of a dask worker that is lost run again, unless four were lost with the
same chunk; a broken process pool takes a new call. A worker compiles for itself, and again in every new one unless
JAX_COMPILATION_CACHE_DIR is set where it starts; its threads compute a chunk each, in turn on an accelerator. Ctrl-C cancels what has not
begun, and on dask what has. A dask scheduler without TLS runs what anybody sends who reaches it: keep it on a private network.

`--coordinator` opens a port on the address given, and on no other, for the seconds in which the processes find each other. JAX puts no
password on it: on a cluster shared with strangers, whoever reaches the address can join or disturb the start, so give one on a private
network (`127.0.0.1` for processes of one machine). Results never travel through it.
"""

from dgdlb_jax.studies.sweep.run import open_sweep as open_sweep
from dgdlb_jax.studies.sweep.run import sweep as sweep
from dgdlb_jax.studies.sweep.spec import Spec as Spec
from dgdlb_jax.studies.sweep.spec import read_spec as read_spec
from dgdlb_jax.studies.sweep.spec import ready_sweeps as ready_sweeps
