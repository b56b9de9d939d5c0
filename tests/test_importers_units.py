"""Columns beside the figures that change what these mean: units, GPUs, replicas."""

import json

import pytest

from dgdlb_jax.numerics.results import InputError
from layouts import RATES, only, read, vllm


@pytest.mark.parametrize("units", [("ms", "ms"), ("ms", "us"), ("us", "s")])
def test_a_column_of_units_is_used(units, tmp_path):
    seconds = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
    first, second = (0.009 / seconds[unit] for unit in units)
    text = f"from;to;rtt;unit\na;b;{first:g};{units[0]}\nb;a;{second:g};{units[1]}\nb;b;0,5;ms\n".replace(".", ",")
    found = only(read(tmp_path, {"a.csv": text}))
    assert found.seconds == pytest.approx({("a", "b"): 0.0045, ("b", "a"): 0.0045, ("b", "b"): 0.00025})
    assert found.notes[0].startswith(f"rtt: in {units[0]} by the column unit")


@pytest.mark.parametrize(("unit", "rate"), [("req/s", 5), ("requests per minute", 5 / 60), ("output tokens/s", 0.05)])
def test_a_unit_of_throughput_is_used(unit, rate, tmp_path):
    text = f"concurrency,throughput,unit,output_tokens\n1,5,{unit},100\n2,9,{unit},100\n"
    assert only(read(tmp_path, {"a.csv": text})).points[0].throughput == pytest.approx(rate)


@pytest.mark.parametrize(("unit", "total"), [("Count", 11), ("Count/Second", 11 * 300)])
def test_a_unit_of_demand_is_used(unit, total, tmp_path):
    text = f"time,value,unit\n2026-01-01 00:00,5,{unit}\n2026-01-01 00:05,6,{unit}\n"
    assert only(read(tmp_path, {"a.csv": text})).counts.sum() == pytest.approx(total)


def test_units_that_contradict_or_differ_are_said(tmp_path):
    with pytest.raises(InputError, match='"rtt_ms" is in ms by its name, and in s by the column "unit"'):
        read(tmp_path, {"a.csv": "from,to,rtt_ms,unit\na,b,9,s\nb,a,9,s\n"})
    found = only(read(tmp_path, {"b.csv": "from,to,rtt_ms,value,unit\na,b,9,1,ms\nb,a,9,1,req/s\n"}))
    assert '"unit" is not used, as its lines are in ms, req/s' in found.notes


def test_throughput_per_gpu_is_that_of_a_server_times_its_gpus(tmp_path):
    rows = "".join(f"{n},{x},{gpus},100\n" for gpus in (8, 4) for n, x in ((1, 50), (2, 90)))
    found, _ = read(tmp_path, {"a.csv": f"concurrency,output tok/s per GPU,num_gpus,osl\n{rows}"})
    assert {curve.name: curve.points[1].throughput for curve in found} == {"num_gpus-8": 7.2, "num_gpus-4": 3.6}
    assert '"output tok/s per GPU" times "num_gpus"' in found[0].notes
    with pytest.raises(InputError, match='"req/s/gpu" is that of one GPU, and no column says how many'):
        read(tmp_path, {"b.csv": "concurrency,req/s/gpu\n1,5\n2,9\n"})


def test_a_number_of_gpus_or_replicas_is_one_server_together(tmp_path):
    found = only(read(tmp_path, {"a.csv": "concurrency,req_per_s,gpus,replicas\n1,50,8,4\n2,90,8,4\n"}))
    assert [point.throughput for point in found.points] == [50, 90]
    for name, count in (("gpus", 8), ("replicas", 4)):
        said = (
            f'"{name}" is {count}: the throughput is taken for that of all {count} together, as one server of the fleet'
        )
        assert said in found.notes


def of_server(name, factor=1.0, **more):
    """Runs of one server, a file each."""
    return {f"{name}-{cap}.json": json.dumps(vllm(cap, factor * rate, **more)) for cap, rate in RATES.items()}


@pytest.mark.parametrize("field", ["backend", "endpoint_type", "tensor_parallel_size", "gpu"])
def test_runs_whose_files_name_other_servers_are_other_curves(field, tmp_path):
    """Although their throughputs differ by less than repetitions do."""
    given = of_server("a", **{field: "x"}) | of_server("b", 1.01, **{field: "y"})
    found, _ = read(tmp_path / "files", given)
    assert [(curve.name, len(curve.points)) for curve in found] == [("GLM-4.7-x", 3), ("GLM-4.7-y", 3)]
    assert f'other runs of "GLM-4.7" differ in {field}, so they are of several servers' in found[0].notes
    together, _ = read(tmp_path / "folder", {f"runs/{name}": text for name, text in given.items()})
    assert [curve.points for curve in together] == [curve.points for curve in found]
    with pytest.raises(InputError, match=r"runs of 2 servers, .*one point of each is no curve"):
        read(tmp_path / "few", {name: text for name, text in given.items() if name in ("a-1.json", "b-8.json")})


def test_runs_that_say_nothing_of_their_server_join_any(tmp_path):
    found = only(read(tmp_path, of_server("a", backend="x") | of_server("b", 1.01, run_number=7)))
    assert len(found.points) == 3


CELLS = {
    "times": ("from,to,rtt\na,b,70 ms\nb,a,0.071 s\n", {}, {("a", "b"): 0.035, ("b", "a"): 0.0355}),
    "decimal commas": ("from;to;rtt\na;b;70,5ms\nb;a;71,5ms\n", {}, {("a", "b"): 0.03525, ("b", "a"): 0.03575}),
    "a matrix": ("region,a,b\na,,70 ms\nb,71 ms,-\n", {"latency": "rtt_ms"}, {("a", "b"): 0.035, ("b", "a"): 0.0355}),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS)
def test_cells_may_hold_units(case, tmp_path):
    text, told, seconds = CELLS[case]
    assert only(read(tmp_path, {"a.csv": text}, **told)).seconds == pytest.approx(seconds)
    if told:
        with pytest.raises(InputError, match='the figures are in ms, unit = "rtt_s"'):
            read(tmp_path, {"a.csv": text}, latency="rtt_s")


@pytest.mark.parametrize(("first", "second", "counts"), [("1.2 req/s", "0", [72, 0]), ("1.20K", "950", [1200, 950])])
def test_cells_of_dashboards_hold_units(first, second, counts, tmp_path):
    text = f'"time","us","eu"\n"2026-01-01 00:00:00","{first}","{first}"\n"2026-01-01 00:01:00","{second}","{first}"\n'
    found = only(read(tmp_path, {"a.csv": text}))
    assert (found.names, found.counts[:, 0].tolist()) == (("us", "eu"), counts)


def test_the_only_list_of_an_answer_is_read_in_the_order_of_its_times(tmp_path):
    points = [{"Timestamp": f"2026-01-01T00:0{k}:00Z", "Sum": 100.0 + k, "Unit": "Count"} for k in (0, 2, 1)]
    found = only(read(tmp_path, {"a.json": json.dumps({"Label": "RequestCount", "Datapoints": points})}))
    assert found.counts.ravel().tolist() == [100, 101, 102]
    assert "its lines are put in the order of their times" in found.notes


def test_samples_of_a_latency_are_requests(tmp_path):
    points = [
        {"Timestamp": f"2026-01-01T00:0{k}:00Z", "SampleCount": 9 + k, "Average": 0.2, "Unit": "Seconds"}
        for k in range(3)
    ]
    found = only(read(tmp_path, {"a.json": json.dumps({"Label": "Latency", "Datapoints": points})}))
    assert (found.names, found.counts.ravel().tolist()) == ((), [9, 10, 11])
    assert "not used, as they name no frontend: Average (Seconds)" in found.notes


def test_percentages_tell_no_servers_apart(tmp_path):
    found = only(read(tmp_path, {"a.csv": "QPS,avg latency (ms),CPU\n10,50,30%\n20,60,60%\n"}))
    assert [point.throughput for point in found.points] == [10, 20]


BINS = "2026-01-01 00:00,{0}\n2026-01-01 00:05,{0}\n"
HEADERS = {
    "requests (k)": 6e3, "requests (thousands)": 6e3, "requests in millions": 6e6, "requests ('000)": 6e3, "krps": 18e5, "k req/s": 18e5,
    "paris_krps": 18e5, "req/m": 30, "ops/m": 30, "c/m": 30, "rph": 0.5, "rps": 1800, "requests/10s": 180, "paris [1/min]": 30,
    "paris (ops/s)": 1800, "kRPS": 18e5, "requests_k": 6e3, "thousands of requests": 6e3, "requests x1000": 6e3, "requests per 5 min": 6,
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_may_tell_multiples_and_any_time(header, tmp_path):
    """6 of each unit in a bin of 300 s."""
    found = only(read(tmp_path, {"a.csv": f"time,{header}\n{BINS.format(6)}"}))
    assert found.counts.ravel() == pytest.approx([HEADERS[header]] * 2)


@pytest.mark.parametrize("unit", ["(k)", "(k req/s)", "(req/m)", "[1/min]", "_krps", " rph", "(ops/s)", "(cps)"])
def test_units_are_no_part_of_the_name_of_a_place(unit, tmp_path):
    found = only(read(tmp_path, {"a.csv": f"time,paris{unit},tokyo{unit}\n{BINS.format('6,7')}"}))
    assert found.names == ("paris", "tokyo")
    kept = only(read(tmp_path, {"b.csv": f"time,Frankfurt (M),tokyo\n{BINS.format('6,7')}"}))
    assert (kept.names, kept.counts[0].tolist()) == (("Frankfurt (M)", "tokyo"), [6, 7])


def test_letters_and_other_columns_are_left_alone(tmp_path):
    letters = only(read(tmp_path, {"a.csv": f"time,requests_j,requests_k,requests_l\n{BINS.format('6,7,8')}"}))
    assert (letters.names, letters.counts[0].tolist()) == (("j", "k", "l"), [6, 7, 8])
    beside = only(
        read(tmp_path, {"b.csv": "concurrency,req/s,errors per 1000 requests,hits (%)\n1,6,3,50\n2,7,3,50\n"})
    )
    assert [point.throughput for point in beside.points] == [6, 7]


THROUGHPUTS = {
    "throughput (k req/s)": 6e3, "throughput (krps)": 6e3, "throughput (req/m)": 0.1, "throughput (requests/10s)": 0.6,
    "output throughput (ktok/s)": 60, "output throughput (k tokens/s)": 60, "output tok/m": 1e-3, "rph": 6 / 3600,
}  # fmt: skip


@pytest.mark.parametrize("header", THROUGHPUTS)
def test_a_header_of_throughput_may_tell_multiples_and_any_time(header, tmp_path):
    text = f"concurrency,{header},output_tokens\n1,6,100\n2,7,100\n"
    assert only(read(tmp_path, {"a.csv": text})).points[0].throughput == pytest.approx(THROUGHPUTS[header])


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("requests (%)", r'"requests \(%\)" is a share'),
        ("req/ms", '"ms" in the column "req/ms" is no unit known here'),
        ("mrps", '"m" in the column "mrps" is no unit known here'),
        ("requests (m)", '"m" in the column'),
        ("requests per month", '"month" in the column'),
    ],
)
def test_a_unit_that_is_not_known_is_refused(header, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        read(tmp_path, {"a.csv": f"time,{header}\n{BINS.format(6)}"})


def test_cells_in_requests_per_minute_are_rates(tmp_path):
    lines = "".join(f"2026-01-01 00:0{5 * k},{place},600 req/m\n" for k in range(2) for place in ("paris", "tokyo"))
    assert only(read(tmp_path, {"a.csv": f"Time,region,requests\n{lines}"})).counts.tolist() == [[3000, 3000]] * 2
    runs = only(read(tmp_path, {"b.csv": "concurrency,throughput\n1,120 req/m\n2,180 req/m\n"}))
    assert [point.throughput for point in runs.points] == [2, 3]


MIXED = {
    "by column": "rtt_ms,a,b\na,1 ms,0.241 s\nb,242 ms,300 us\n",
    "the first cell says none": "rtt,a,b\na,1 ms,0.241 s\nb,242 ms,300 us\n",
    "the title says it": "Median RTT in ms\n,a,b\na,1 ms,0.241 s\nb,242 ms,300 us\n",
    "some without": "rtt_ms,a,b\na,1,0.241 s\nb,242,0.3\n".replace("0.3", "300 us"),
}


@pytest.mark.parametrize("case", MIXED)
def test_every_cell_of_a_matrix_is_in_its_own_unit(case, tmp_path):
    seconds = {("a", "a"): 0.0005, ("a", "b"): 0.1205, ("b", "a"): 0.121, ("b", "b"): 0.00015}
    assert only(read(tmp_path, {"a.csv": MIXED[case]})).seconds == pytest.approx(seconds)


def test_half_a_matrix_and_one_without_a_first_cell_may_hold_units(tmp_path):
    half = only(read(tmp_path, {"a.csv": "rtt_ms,a,b,c\na,,7 ms,0.2 s\nb,,,8 ms\nc,,,\n"}))
    assert (half.holes, half.seconds["c", "a"]) == ((), 0.1)
    full = only(read(tmp_path, {"b.csv": ",a,b\na,1 ms,7 ms\nb,7 ms,1 ms\n"}, latency="rtt_ms"))
    assert full.seconds["a", "b"] == 0.0035


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rtt_ms,a,b\na,0.001 s,0.2 s\nb,0.2 s,0.001 s\n", '"rtt_ms" is in ms by its name, and its cells are in s'),
        ("RTT in ms\n,a,b\na,0.001 s,0.2 s\nb,0.2 s,0.001 s\n", '"RTT in ms" is in ms by its name, and its cells are in s'),
        ("from,to,rtt_s\na,b,241 ms\nb,a,242 ms\n", '"rtt_s" is in s by its name, and its cells are in ms'),
        ("from,to,rtt\na,b,241 ms\nb,a,0.24\n", 'rtt "0.24" has no unit, another cell is in ms'),
        ("concurrency,requests/min\n1,5 req/s\n2,9 req/s\n", "is in figures per 60 s by its name, and its cells are in req/s"),
    ],
)  # fmt: skip
def test_cells_and_names_in_different_units_are_refused(text, problem, tmp_path):
    with pytest.raises(InputError, match=problem):
        read(tmp_path, {"a.csv": text})


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("tokens_per_second", "does not say which tokens it counts: call it output tokens/s,"),
        ("throughput (tokens/min)", "does not say which tokens it counts: call it output tokens/min"),
        ("total tokens/h", "is in tokens/h, and nothing says .* add a column output_tokens and input_tokens"),
    ],
)
def test_it_is_asked_which_tokens_a_throughput_counts(header, problem, tmp_path):
    text = f"concurrency,{header},output_tokens\n1,600,100\n2,900,100\n"
    with pytest.raises(InputError, match=problem):
        read(tmp_path, {"a.csv": text})
    each = only(
        read(
            tmp_path,
            {"b.csv": text.replace("output_tokens", "tokens_per_request").replace("/h", "/s").replace("/min", "/s")},
        )
    )
    assert each.points[0].throughput == 6


def test_minutes_and_nanoseconds_are_no_units_of_latencies(tmp_path):
    for text in ("from,to,RTT [ns]\na,b,9\nb,a,9\n", "RTT [ns],a,b\na,,9\nb,9,\n"):
        with pytest.raises(InputError, match="is in ns: write the figures in us, and"):
            read(tmp_path, {"a.csv": text})
    with pytest.raises(InputError, match="min is the least of several"):
        read(tmp_path, {"b.csv": "from,to,rtt (min)\na,b,9\nb,a,9\n"})
    found = only(read(tmp_path, {"c.csv": "concurrency,requests/s,latency (min)\n1,2,3\n2,3,3\n"}))
    assert any("call it latency_s or latency_ms" in note for note in found.notes)
