"""Fleets as files: a TOML file, and CSV tables beside it.

A fleet file says who sends, who serves and how far apart they are; figures are in requests, seconds and requests/s unless
a name says otherwise (`_ms`). This one, with its tables, lies in the package under `data/example/`:

```toml
name = "example"
description = "three regions, two backends, one of them measured"

[frontends]                         # where requests enter
names = ["paris", "tokyo", "oregon"]
rate = [6.0, 9.0, 4.0]              # mean arrival rates, requests/s
# weight = [2, 3, 1]                # or: anything proportional to the traffic,
# load = 0.7                        #     scaled to 70 % of the nominal capacity of all backends

[backends]                          # where requests are processed
names = ["amsterdam", "osaka"]
curve = ["large-gpu", "small-gpu"]  # a name under [curves], or one name for all
replicas = [3, 2]                   # equal servers behind each backend; 1 unless given

[curves.large-gpu]                  # how many requests/s a server completes when it holds a given number of them
kind = "measured"
table = "large-gpu.csv"             # columns workload,throughput: requests in the server, requests/s

[curves.small-gpu]
kind = "hyperbolic"                 # max_rate * N / (half_load + N)
max_rate = 8.0                      # requests/s
half_load = 20.0                    # requests

[latency]                           # every arc needs a latency, those under [arcs] forbidden excepted
table = "latency.csv"               # columns from,to and one of one_way_ms, one_way_s, rtt_ms, rtt_s (one way is half of it)
inside_ms = 0.5                     # one way between a frontend and a backend of the same region

[arcs]
forbidden = [["oregon", "amsterdam"]]

[demand.trace]                      # load_fleet(path, demand="trace")
kind = "trace"
table = "day.csv"                   # columns time_s,requests: one shape for all, scaled to the mean rates
shift_s = [0, -14400, 14400]        # how much later each frontend sees it: whole bins, wrapping round

[sources.measurements]
title = "none: invented for this example"
licence = "as this package"
```

All keys:

- top level: `name`, `description`.
- `[frontends]`: `names`; `rate`, or `weight` and `load`; `region` (what latency tables call a frontend; its name unless
  given); `allow_overload = true` to study demand above capacity.
- `[backends]`: `names`, `curve`, `replicas`, `region`. A number or a name alone stands for all.
- `[curves.NAME]`: `kind`, its parameters, and `capacity` to state the nominal capacity of one server.
    - `"measured"`: `table` (columns `workload,throughput`, or any result of a load test listed below), or lists `workload` and
      `throughput`; `rate_scale` multiplies the throughput; `tokens_per_request` for a table in tokens/s;
      `select = {column = "value"}` takes one server out of a table of several. Nominal capacity: the highest measured throughput,
      as far as the fitted curve reaches it. What lies past the highest throughput is left out, and a `FleetWarning` says so.
    - `"hyperbolic"`: `max_rate`, `half_load`; `"exponential"`: `max_rate`, `scale`; `"power"`: `unit_rate`, `scale`,
      `exponent`; `"logarithmic"`: `unit_rate`, `scale`; `"many-server"`: `servers`, `service_time`, `sharpness`.
    - `"mixture"`: `weights`, `scales`, `measured_workload`: what a fitted table looks like when it is written.
    - a kind of your own: `register_curve(kind, class, parameters)`, here one positive number for each parameter.
- `[latency]`: `table` (columns `from,to` or `region_from,region_to`, and one of `one_way_s`, `one_way_ms`, `one_way_us`,
  `rtt_s`, `rtt_ms`, `rtt_us`; or a matrix: who sends down its first column, who answers along its first row, or the other way round
  by the names of frontends and backends), `unit`, one of the same words, for a table that does not say; or
  one matrix called `one_way_ms`, ... with a row per frontend; `symmetric = true` looks a missing pair up the other way
  round; `inside_ms` (one way) where both regions are the same; `feedback`: `"one way"` or a table; `cost`: `"one way"`,
  `"round trip"` (twice the latency) or a table. A round trip counts half. Lines for other regions are ignored.
- `[arcs]`: `forbidden` or `allowed`: pairs `["frontend", "backend"]`, or a table with columns `from,to`.
- `[demand]`: `use`, the demand to take unless `load_fleet(..., demand=...)` says otherwise: `"constant"` or a NAME below.
- `[demand.NAME]`: `kind`:
    - `"trace"`: `table` with columns `time_s,requests` (requests per bin, one shape for all) or one column per frontend,
      scaled so that each frontend's mean is its `rate`; `shift_s`; `bin_width_s` instead of `time_s`; `scaled = false` takes
      one column per frontend as requests/s, as it is. Rates are continuous and keep the count of every bin: within
      a busy bin they pass its mean, up to twice it (`Trace`). A table of single requests is counted in bins of `bin_s`; `time_unit` (`s`,
      `ms`, `us`, `ns`) of its times, and the column `by` which says where they enter, where it does not say so itself.
    - `"daily cycle"`: `amplitude`, `peak_s`, `period_s`; `mean` instead of the rates.
    - `"jumps"`: `times_s`; `factor` (times the rates) or `rate` (requests/s), one entry or row more than there are times.
    - `"constant"`: `factor`.
    - a kind of your own: `register_demand(kind, class, parameters)`, here one number per frontend for each parameter.
- `[capacity]`: the same kinds as a demand, here a factor on each backend's service rate over time.
- `[[events]]`, as many as there are: what happens on the way (`load_events`; `dgdlb run` shows it). `at_s`: seconds since the start;
  `what`, and where: `backend` or `frontend`, a name or a list of names.
    - `"fails"` (what it holds and what reaches it is lost, or sent again after `timeout_s`), `"drains"`, `"recovers"` (a failed one comes
      back without requests): `backend`.
    - `"replicas"`: `backend`, `factor` (times those at first). `"demand"`: `frontend` (all unless given), `factor`.
    - `"closes"`, `"opens"`: `frontend`, `backend` (all unless given): a change of the mask.
    - `"latency"`: the same, and `factor`: links get slower, or faster; with `news = true` reports as well. `"breaks"` (what is sent on it
      is lost), `"mends"`: the same.
- `[news]`: how frontends get their reports (`load_news`; `dgdlb run` and `dgdlb stability` take it into account): `interval_s` between two
  reports; `offset_s` of the first, a number or `"random"`; `jitter`: the part by which an interval may be shorter or longer; `lost`: the
  part of reports that is lost; `late_s` and `drift_s`, over `drift_period_s`: by how much later than `feedback` they may be; `seed`. One
  number, or a list with one for each frontend.
- `[autoscaler]`: what moves the replicas, from those of `[backends]` on (`load_autoscaler`; `dgdlb run` and `stability` show it). Numbers
  are one for all, or a list with one per backend where that makes sense. `kind`:
    - `"hpa"` (unless given): `target` of the `metric` per replica (`"utilization"` of nominal capacity, `"concurrency"`, `"queue"`),
      `startup_s`; `min_replicas`, `max_replicas`, `interval_s`, `tolerance`, `form` (`"coded"`, `"documented"`), `removal`
      (`"at once"`, `"delayed"`), `rounding`; `scale_up`, `scale_down`: `{stabilization_window_s = 300, select = "max", policies =
      [{kind = "percent", value = 100, period_s = 15}]}`. Defaults are those of Kubernetes.
    - `"proportional"`: `target`, `metric`, `form`, `startup_s`, `time_constant_s`, `min_replicas`, `max_replicas`.
    - a kind of your own: `register_autoscaler(kind, class)`, here its constructor's arguments.
- `[sources.NAME]`: `title`, `licence`, `url`, `date`, `note`.

Tables are looked for beside the TOML file, or where a path leads from there (`"../latency.csv"`, `"/data/day.csv"`): in a fleet from a
stranger look at them first. It makes nothing else be read, and nothing be run. Lines that start with `#` are comments, further columns
are ignored. Tables are recognised by content, and a `FleetWarning` says what was understood (`dgdlb import` does the same and writes tidy
tables, or a whole fleet):

- in UTF-8, UTF-16, UTF-32 or Windows-1252; separated by commas, by semicolons or tabs, these with decimal commas or points; thousands
  separated by the other mark, by apostrophes or spaces (what could be 1200 or 1.2 is asked); JSON lists and JSON lines of flat objects.
- latencies: half of a matrix, or a list of one direction of all pairs, is completed, and said.
- throughput: serving benchmarks of vLLM and SGLang (JSON, JSON lines, folders of `vllm bench sweep serve`), AIPerf and GenAI-Perf
  (JSON, CSV, folders), reports of GuideLLM (JSON), rows of InferenceX and CSV files of its dashboard, tables in requests/s or tokens/s
  (or a minute, an hour) against `workload`, `batch_size` or `concurrency`. Where there is only a cap on the concurrency, the workload is
  throughput times mean end-to-end time (Little's law).
- demand: single requests (Azure LLM traces, BurstGPT, Mooncake, any table with a column of times), counts or rates per bin at times
  of any unit (a column for each frontend, or a line for each bin and frontend), results of Prometheus' `query_range`. Requests that
  failed are demand and no throughput; their number is said. (Those of BurstGPT are left out, as in its own files without them.)

A key that changes nothing in how a table is read is refused, and figures that are unlikely (a round trip of 80 s) are called so.
"""

from dgdlb_jax.fleets.curves import Service as Service
from dgdlb_jax.fleets.load import FleetInfo as FleetInfo
from dgdlb_jax.fleets.load import FleetWarning as FleetWarning
from dgdlb_jax.fleets.load import Source as Source
from dgdlb_jax.fleets.load import describe_fleet as describe_fleet
from dgdlb_jax.fleets.load import fleet_names as fleet_names
from dgdlb_jax.fleets.load import list_fleets as list_fleets
from dgdlb_jax.fleets.load import load_autoscaler as load_autoscaler
from dgdlb_jax.fleets.load import load_events as load_events
from dgdlb_jax.fleets.load import load_fleet as load_fleet
from dgdlb_jax.fleets.load import load_news as load_news
from dgdlb_jax.fleets.load import read_measured as read_measured
from dgdlb_jax.model.document import write_fleet as write_fleet
