"""Sweeps: many cases from a short specification, computed in chunks, kept in a store that loses nothing.

A specification is a TOML file (or the same as a `dict`, or the name of a ready one):

```toml
name = "step-size"
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
`service_time`, `density`; `load`, `latency_scale`; `policy`; one of `step_size`, `step_size_over_default`,
`step_size_over_critical`, `step_size_over_sufficient`; `start`, `start_seed`, `start_distance`; `dt` or `dt_over_suggested`,
`duration` or `duration_over_suggested`; and, in quotes, any parameter of a policy (`"policy.temperature"`) or of a curve
(`"curve.exponent"` replaces it, `"curve_factor.max_rate"` multiplies it). Measures are those of `MEASURES`
(`sweep/measures.py`).

The store is a zarr directory that `xarray.open_zarr` opens lazily: one dimension per axis, inputs as coordinates, measures as
variables with units, the specification and versions as attributes.
"""

from dgdlb_jax.studies.sweep.run import open_sweep as open_sweep
from dgdlb_jax.studies.sweep.run import sweep as sweep
from dgdlb_jax.studies.sweep.spec import Spec as Spec
from dgdlb_jax.studies.sweep.spec import read_spec as read_spec
from dgdlb_jax.studies.sweep.spec import ready_sweeps as ready_sweeps
