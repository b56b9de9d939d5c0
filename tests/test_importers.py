"""Files as people have them: small ones in every layout with the right values beside them, and the same ones mutated."""

import csv
import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgdlb_jax.fleets.importers import (
    IMPORTERS,
    LATENCIES,
    Curve,
    Demand,
    Latencies,
    Options,
    Source,
    find_importer,
    gathered,
    workload,
)
from dgdlb_jax.numerics.results import InputError


def read(folder: Path, files: dict[str, str], **told):
    """What the files say together, and by which importers."""
    folder.mkdir(parents=True, exist_ok=True)
    options, importers, findings = Options(**told), [], []
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, newline="")
    for name in dict.fromkeys(name.split("/")[0] for name in files):
        source = Source(folder / name, name)
        importers.append(find_importer(source, options))
        findings += importers[-1].read(source, options)
    return gathered(findings), [importer.name for importer in importers]


def only(found):
    (one,) = found[0]
    return one


PAIRS = {("us", "in"): 0.0955, ("eu", "us"): 0.034, ("eu", "in"): 0.0613}
SQUARE = PAIRS | {(j, i): value for (i, j), value in PAIRS.items()}

LATENCY_FILES = {
    "round trips in ms": ("from,to,rtt_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {}, PAIRS),
    "semicolons and decimal commas": ("from;to;rtt_ms\nus;in;191\neu;us;68\neu;in;122,6\n", {}, PAIRS),
    "tabs": ("from\tto\trtt_ms\nus\tin\t191\neu\tus\t68\neu\tin\t122.6\n", {}, PAIRS),
    "microseconds": ("from,to,rtt_us\nus,in,191000\neu,us,68000\neu,in,122600\n", {}, PAIRS),
    "micro sign": ("from,to,RTT (µs)\nus,in,191000\neu,us,68000\neu,in,122600\n", {}, PAIRS),
    "seconds, one way": ("src,dst,one_way_s\nus,in,.0955\neu,us,.034\neu,in,.0613\n", {}, PAIRS),
    "words": ("Source,Destination,Round-trip time [ms]\nus,in,191\neu,us,68\neu,in,122.6\n", {}, PAIRS),
    "one way in words": ("origin,destination,One-way delay (ms)\nus,in,95.5\neu,us,34\neu,in,61.3\n", {}, PAIRS),
    "both, which agree": ("from,to,rtt_ms,one_way_ms\nus,in,191,95.5\neu,us,68,34\neu,in,122.6,61.3\n", {}, PAIRS),
    "both, rounded": ("from,to,one_way_ms,rtt_ms\nus,in,95.5,191\neu,us,34.0,68\neu,in,61.3,123\n", {}, PAIRS),
    "median before mean": (
        "from,to,avg_rtt_ms,p50_rtt_ms,p99_rtt_ms,loss_ms\nus,in,999,191,5e3,1\neu,us,999,68,5e3,1\neu,in,999,122.6,5e3,1\n", {}, PAIRS
    ),
    "told": ("from,to,latency_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {"latency": "rtt_ms"}, PAIRS),
    "repeated": ("from,to,rtt_ms\nus,in,190\neu,us,68\neu,in,122.6\nus,in,500\nus,in,191\n", {}, PAIRS),
    "square matrix": ("rtt_ms,us,eu,in\nus,,68,191\neu,68,0,122.6\nin,191,122.6,-\n", {}, SQUARE),
    "square matrix, told": ("Region;us;eu;in\nus;;68;191\neu;68;;122,6\nin;191;122,6;0\n", {"latency": "rtt_ms"}, SQUARE),
    "two ways": ("from,to,two_way_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {}, PAIRS),
    "half of them, told": ("from,to,half_rtt_ms\nus,in,95.5\neu,us,34\neu,in,61.3\n", {"latency": "one_way_ms"}, PAIRS),
    "CloudPing in us": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "microseconds"},
                    "data": {"us": {"in": 191e3}, "eu": {"us": 68e3, "in": 122.6e3}}}), {}, PAIRS
    ),
    "CloudPing": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "milliseconds"},
                    "data": {"us": {"in": 191}, "eu": {"us": 68.0, "in": 122.6}}}), {}, PAIRS
    ),
    "records": (
        json.dumps([{"from": i, "to": j, "one_way_ms": 1e3 * value} for (i, j), value in PAIRS.items()]), {}, PAIRS
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LATENCY_FILES)
def test_latencies(case, tmp_path):
    text, told, expected = LATENCY_FILES[case]
    found = only(read(tmp_path, {"rtt.csv": text}, **told))
    assert isinstance(found, Latencies)
    assert found.seconds == pytest.approx(expected, rel=1e-12)
    assert ("median" in " ".join(found.notes)) == (case == "repeated")


ASKED = {
    "no way": ("from,to,latency_ms\na,b,9\n", {}, ['"latency_ms" does not say whether', *LATENCIES, "unit in [latency]"]),
    "average": ("from,to,avg_ms\na,b,9\n", {}, ['"avg_ms" does not say whether', *LATENCIES, "counts half"]),
    "half": ("from,to,half_rtt_ms\na,b,9\n", {}, ['"half_rtt_ms" does not say whether', *LATENCIES]),
    "half, in figures": ("from,to,rtt/2 (ms)\na,b,9\n", {}, ['"rtt/2 (ms)" does not say whether', *LATENCIES]),
    "no region": ("from,to,rtt_ms\n,b,9\n", {}, ['rtt.csv:2:1: from "" names no region']),
    "a row twice": ("rtt_ms,a,b\na,,9\na,8,\n", {}, ["rtt.csv:3:1", "names a second row"]),
    "figures of no region": ("rtt_ms,a,b,\na,,9,7\nb,9,,\n", {}, ["rtt.csv:2:4", "has no region"]),
    "unit of CloudPing": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "ticks"}, "data": {"a": {"b": 9}}}), {},
        ['metadata.unit is "ticks"', "s, ms, us or ns"],
    ),
    "a list cut off": ('[{"from": "a", "to": "b", "rtt_ms": 9}, {"fr', {}, ["not valid JSON", "export it again"]),
    "no unit": ("from,to,rtt\na,b,9\n", {}, ['"rtt" does not say its unit', *LATENCIES]),
    "neither": ("from,to,latency\na,b,9\n", {}, ['"latency" does not say its unit or whether', *LATENCIES]),
    "matrix": ("region,a,b\na,,9\nb,9,\n", {}, ["the matrix does not say", *LATENCIES]),
    "columns that contradict": ("from,to,rtt_ms,one_way_ms\na,b,9,4.5\nb,a,9,6\n", {}, ['rtt.csv:3:4: one_way_ms "6" contradicts']),
    "told the contrary": ("from,to,rtt_ms\na,b,9\n", {"latency": "one_way_ms"}, ["says rtt_ms, which contradicts"]),
    "told another unit": ("from,to,latency_ms\na,b,9\n", {"latency": "rtt_us"}, ['"latency_ms" contradicts unit = "rtt_us"']),
    "lines that contradict": ("from,to,rtt_ms\na,b,9\na,b,90\n", {}, ["rtt.csv:3:3", "contradicts an earlier line for a -> b"]),
    "points and commas": ("from;to;rtt_ms\na;b;9,5\nb;a;9.5\n", {}, ["rtt.csv:3:3", "has a point", "all in one way"]),
    "matrix of nothing": ("rtt_ms,a,b\na,,-\nb,-,\n", {}, ["no cell of the matrix"]),
    "a unit that is none": ("from,to,rtt_ms\na,b,9\n", {"latency": "ms"}, ['"ms" is no latency', *LATENCIES]),
    "nothing known": (
        "von,nach\n1,2\n", {},
        ["none of the layouts", "the columns von, nach", *LATENCIES, "workload,throughput", *(importer.name for importer in IMPORTERS)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_what_cannot_be_known_is_asked_in_one_sentence(case, tmp_path):
    text, told, parts = ASKED[case]
    with pytest.raises(InputError) as caught:
        read(tmp_path, {"rtt.csv": text}, **told)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def vllm(concurrency, throughput, **more):
    """A run of vLLM's serving benchmark: a mean time of 2 + 0.05 concurrency seconds."""
    seconds = 2 + 0.05 * concurrency
    run = {
        "date": "20260314-200445", "endpoint_type": "vllm", "model_id": "zai-org/GLM-4.7", "num_prompts": 10 * concurrency,
        "request_rate": "inf", "burstiness": 1.0, "max_concurrency": concurrency, "duration": 100.0, "completed": 100,
        "total_input_tokens": 102400, "total_output_tokens": 10100, "request_throughput": throughput,
        "output_throughput": 101 * throughput, "mean_ttft_ms": 100.0, "mean_tpot_ms": (1e3 * seconds - 100) / 100,
        "mean_e2el_ms": 1e3 * seconds,
    }  # fmt: skip
    return run | more


RATES = {1: 0.48, 8: 3.2, 64: 11.5}  # concurrency times this is near the mean time above, the last 10 % below
HELD = [rate * (2 + 0.05 * cap) for cap, rate in RATES.items()]
SAVED = {f"run-{cap}.json": json.dumps(vllm(cap, rate)) for cap, rate in RATES.items()}


def without(run, *keys):
    return {key: value for key, value in run.items() if key not in keys}


def sweep():
    files = {"sweep/summary.csv": "run_number,request_throughput,mean_ttft_ms\n0,999,999\n"}
    for cap, rate in RATES.items():
        folder = f"sweep/SERVE--max_num_seqs=256-BENCH--max_concurrency={cap}"
        runs = [vllm(cap, rate * factor, run_number=k) for k, factor in enumerate((0.9, 1.0, 1.2))]
        files |= {f"{folder}/run={k}.json": json.dumps(run) for k, run in enumerate(runs)}
        files |= {f"{folder}/summary.json": json.dumps(runs), f"{folder}/warmup.json": json.dumps(vllm(cap, 99.0))}
    return files


def aiperf(concurrency, throughput):
    seconds = 2 + 0.05 * concurrency
    return {
        "schema_version": "1.1", "request_throughput": {"unit": "requests/sec", "avg": throughput},
        "request_latency": {"unit": "ms", "avg": 1e3 * seconds, "p50": 1.0, "p99": 9e9},
        "output_token_throughput": {"unit": "tokens/sec", "avg": 999.0},
        "input_config": {"loadgen": {"concurrency": concurrency}},
    }  # fmt: skip


def aiperf_csv(concurrency, throughput):
    seconds = 2 + 0.05 * concurrency
    return (
        "Metric,avg,min,max,p99,p95,p90,p75,p50,p25\r\n"
        f'Request Latency (ms),"{1e3 * seconds:,.2f}","5,371.47",9,8,7,6,5,4,3\r\n'
        "Input Sequence Length (tokens),\"3,000.05\",1,2,3,4,5,6,7,8\r\n\r\n"
        f"Metric,Value\r\nOutput Token Throughput (per sec),261.25\r\nRequest Throughput (per sec),{throughput}\r\n"
    )  # fmt: skip


def inferencex(concurrency, throughput, **more):
    """900 tokens a request where 1024 were asked for."""
    seconds = 2 + 0.05 * concurrency
    metrics = {
        "output_tput_per_gpu": 900 * throughput / 8,
        "mean_ttft": 0.2,
        "mean_tpot": (seconds - 0.2) / 899,
        "mean_e2el": seconds,
    }
    row = {
        "hw": "mi355x",
        "model": "deepseek",
        "framework": "sglang",
        "precision": "fp4",
        "tp": 8,
        "isl": 1024,
        "osl": 1024,
    }
    return row | {"conc": concurrency, "metrics": metrics} | more


def dashboard(chip, unit, scale):
    """The CSV file that the dashboard of InferenceX hands out, of today (s) and as it began: seconds under headers that said ms."""
    text = "# Licensed under Apache License 2.0\nModel,ISL,OSL,Hardware,Framework,Precision,TP,Concurrency,Date,EP,Disaggregated,"
    text += f"Output Throughput/{chip} (tok/s),Mean TTFT ({unit}),Mean TPOT ({unit}),Mean Interactivity (tok/s/user),"
    text += f"Mean E2E Latency ({unit}),Num Decode {chip}s\n"
    for cap, rate in RATES.items():
        seconds = 2 + 0.05 * cap
        token = (seconds - 0.2) / 899
        text += f"R1,1024,1024,h200,trt,fp8,8,{cap},2026-01-01,8,false,{900 * rate / 8},{0.2 * scale},{token * scale},{1 / token},"
        text += f"{seconds * scale},64\n"
    return text


def phases(concurrency, throughput, **more):
    """AIPerf since its phases are a list: a warm-up before what is measured."""
    profiling = {"name": "profiling", "concurrency": concurrency} | more
    return aiperf(concurrency, throughput) | {
        "input_config": {"models": ["acme/m"], "phases": [{"name": "warmup", "concurrency": 999}, profiling]}
    }


PAIRED = list(zip(HELD, RATES.values(), strict=True))
TABLE = "".join(f"{held!r},{rate}\n" for held, rate in PAIRED)

CURVE_FILES = {
    "plain table": ({"a.csv": "workload,throughput\n" + TABLE}, {}),
    "requests per second": ({"a.csv": "batch_size;Requests / s\n" + TABLE.replace(",", ";").replace(".", ",")}, {}),
    "cap and time": (
        {"a.csv": "concurrency,throughput_rps,mean_e2e_latency_ms\n" + "".join(f"{c},{r},{2000 + 50 * c}\n" for c, r in RATES.items())}, {},
    ),
    "output tokens": (
        {"a.csv": "workload,output_tokens_per_s,output_tokens\n" + "".join(f"{h!r},{101 * r!r},101\n" for h, r in PAIRED)}, {},
    ),
    "tokens, told": (
        {"a.csv": "workload,tok/s\n" + "".join(f"{h!r},{50 * r!r}\n" for h, r in PAIRED)}, {"tokens_per_request": 50.0},
    ),
    "vLLM runs": (SAVED, {}),
    "vLLM lines": ({"a.jsonl": "\n".join(json.dumps(vllm(c, r)) for c, r in RATES.items())}, {}),
    "vLLM without end-to-end times": ({n: json.dumps(without(json.loads(t), "mean_e2el_ms")) for n, t in SAVED.items()}, {}),
    "vLLM with the times of all requests, one of which failed": (
        {"a.json": json.dumps([without(vllm(c, r, completed=2, failed=1, latencies=[1.5 + 0.05 * c, 0.0, 2.5 + 0.05 * c],
                                            errors=["", "gone", ""]), "mean_e2el_ms") for c, r in RATES.items()])}, {},
    ),
    "vLLM sweep": (sweep(), {}),
    "requests per minute": ({"a.csv": "workload,requests/min\n" + "".join(f"{h!r},{60 * r}\n" for h, r in PAIRED)}, {}),
    "what was asked for beside it": (
        {"a.csv": "target_qps,workload,achieved_qps\n" + "".join(f"{2 * r},{h!r},{r}\n" for h, r in PAIRED)}, {},
    ),
    "AIPerf by phases, three times": (
        {f"{c}-{k}.json": json.dumps(phases(c, r * f)) for c, r in RATES.items() for k, f in enumerate((0.9, 1, 1.2))}, {},
    ),
    "AIPerf at rates under one cap": (
        {f"{c}.json": json.dumps(phases(c, r) | {"input_config": phases(900, r, rate=r)["input_config"]}) for c, r in RATES.items()}, {},
    ),
    "AIPerf with phases below": (
        {f"runs/{c}/{below}profile_export_aiperf.json": json.dumps(aiperf(c, r * f))
         for c, r in RATES.items() for below, f in (("", 9), ("phases/load/", 1))}, {},
    ),
    "GenAI-Perf CSV, slow": (
        {f"{c}.csv": aiperf_csv(c, r).replace(f"Throughput,{r}", f"Throughput,{r:.2f}\r\nRequest Count,3000\r\n"
                                              f"Benchmark Duration (sec),{3000 / r!r}") for c, r in RATES.items()}, {},
    ),
    "AIPerf": ({f"{c}.json": json.dumps(aiperf(c, r)) for c, r in RATES.items()}, {}),
    "AIPerf folder": ({f"runs/{c}/profile_export_aiperf.{kind}": text for c, r in RATES.items() for kind, text in
                       (("json", json.dumps(aiperf(c, r))), ("csv", aiperf_csv(c, 99.0)))}, {}),
    "GenAI-Perf CSV": ({f"{c}.csv": aiperf_csv(c, r) for c, r in RATES.items()}, {}),
    "InferenceX rows": ({"a.json": json.dumps([inferencex(c, r) for c, r in RATES.items()])}, {}),
    "InferenceX, expert parallel": (
        {"a.json": json.dumps([without(inferencex(c, r, decode_tp=8, num_decode_gpu=64), "tp") for c, r in RATES.items()])}, {},
    ),
    "InferenceX, pipeline parallel": ({"a.json": json.dumps([inferencex(c, r, tp=4, pp=2) for c, r in RATES.items()])}, {}),
    "InferenceX, split": (
        {"a.json": json.dumps([inferencex(c, r, tp=32, disagg=True, num_decode_gpu=8) for c, r in RATES.items()])}, {},
    ),
    "InferenceX dashboard": ({"a.csv": dashboard("Chip", "s", 1)}, {}),
    "InferenceX dashboard, early": ({"a.csv": dashboard("GPU", "ms", 1)}, {}),
    "InferenceX dashboard, ms": ({"a.csv": dashboard("GPU", "ms", 1000)}, {}),
    "InferenceX, one of two": (
        {"a.json": json.dumps([inferencex(c, f * r, hw=hw) for hw, f in (("h200", 3), ("mi355x", 1)) for c, r in RATES.items()])},
        {"select": {"hw": "mi355x"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CURVE_FILES)
def test_throughput(case, tmp_path):
    files, told = CURVE_FILES[case]
    found = only(read(tmp_path, files, **told))
    assert isinstance(found, Curve)
    np.testing.assert_allclose([point.throughput for point in found.points], list(RATES.values()), rtol=1e-9)
    np.testing.assert_allclose([workload(point) for point in found.points], HELD, rtol=1e-5)


def test_a_curve_says_what_it_made_of_the_runs(tmp_path):
    slow = read(tmp_path / "a", {"a.jsonl": "\n".join(json.dumps(vllm(c, r / 2)) for c, r in RATES.items())})
    notes = " ".join(only(slow).notes)
    assert "Little's law" in notes
    assert (
        "0.467 and 0.492 times the concurrency that was allowed" in notes
    )  # 5.75 * 5.2 / 64 = 0.467, 0.24 * 2.05 = 0.492
    fine = " ".join(
        only(read(tmp_path / "b", {"a.jsonl": "\n".join(json.dumps(vllm(c, r)) for c, r in RATES.items())})).notes
    )
    assert "differ" not in fine
    assert "9 runs of 3 settings: medians" in " ".join(only(read(tmp_path / "c", sweep())).notes)
    capped = "concurrency,throughput_rps\n1,1\n8,5\n"
    assert (
        "concurrency that was allowed, as no end-to-end time" in only(read(tmp_path / "d", {"a.csv": capped})).notes[0]
    )


def test_kinds_of_requests_are_told_apart(tmp_path):
    runs = [
        vllm(c, r * f, random_output_len=n, total_output_tokens=100 * n)
        for n, f in ((101, 1), (500, 0.3))
        for c, r in RATES.items()
    ]
    found, _ = read(tmp_path / "a", {"a.jsonl": "\n".join(map(json.dumps, runs))})
    assert [curve.name for curve in found] == ["GLM-4.7-random_output_len-101", "GLM-4.7-random_output_len-500"]
    mixed = only(
        read(
            tmp_path / "b",
            {"a.jsonl": "\n".join(json.dumps(without(run, "random_output_len")) for run in runs[:2] + runs[-1:])},
        )
    )
    assert any("not alike: 101 to 500 tokens" in note for note in mixed.notes)
    rows = [inferencex(c, r, date="2026-02-01") for c, r in RATES.items()] + [
        inferencex(8, 1.0, date="2025-10-01"),
        inferencex(1, 1.0, hw="x"),
    ]
    found, _ = read(tmp_path / "c", {"a.json": json.dumps(rows)})
    assert [(curve.name, len(curve.points), curve.points[1].throughput) for curve in found] == [
        ("mi355x", 3, pytest.approx(3.2))
    ]
    assert any("left out, as one point is no curve: x" in note for note in found[0].notes)
    assert any("the latest is taken" in note for note in found[0].notes)


def test_settings_of_a_sweep_tell_servers_apart(tmp_path):
    """Two servers in one summary are no repetitions; the number of a job, and a setting that follows the load, make no servers."""
    runs = [
        vllm(c, r * f, **{"max-num-seqs": n, "job": f"{c}{n}"}, failed=5)
        for n, f in ((64, 1), (256, 2))
        for c, r in RATES.items()
    ]
    found, _ = read(tmp_path / "a", {"a.jsonl": "\n".join(map(json.dumps, runs))})
    assert {curve.name: curve.points[0].throughput for curve in found} == {
        "GLM-4.7-max_num_seqs-64": 0.48,
        "GLM-4.7-max_num_seqs-256": 0.96,
    }
    assert "15 of 315 requests failed; they are not counted" in found[0].notes
    linked = [vllm(c, r, max_num_seqs=c, job=c) for c, r in RATES.items()]
    assert len(only(read(tmp_path / "b", {"a.json": json.dumps(linked)})).points) == 3


def test_a_table_of_several_servers_gives_several_curves(tmp_path):
    text = "model,gpu,date,tp,workload,throughput\n"
    for gpu, factor in (("a100", 1), ("h100", 2)):
        text += "".join(
            f"llama,{gpu},day {k},8,{held},{factor * rate}\n" for k, (held, rate) in enumerate(((1, 2), (8, 9)))
        )
    found, _ = read(tmp_path, {"all.csv": text})
    assert {curve.name: curve.points[1].throughput for curve in found} == {"a100": 9, "h100": 18}
    assert only(read(tmp_path, {"all.csv": text}, select={"gpu": "h100"})).points[0].throughput == 4


REFUSED_CURVES = {
    "tokens of unknown number": ({"a.csv": "workload,tokens_per_s\n1,50\n2,90\n"}, "is in tokens/s.*--tokens-per-request"),
    "one run": ({"a.json": SAVED["run-8.json"]}, "at least two points"),
    "no workload": ({"a.json": json.dumps([without(vllm(c, 1.0), "max_concurrency", "mean_e2el_ms", "mean_tpot_ms") for c in (1, 2)])},
                    "nothing says how many requests"),
    "nothing served": ({"a.json": json.dumps([vllm(1, 0.0), vllm(2, 1.0)])}, "request_throughput is 0"),
    "no number": ({"a.json": json.dumps([vllm(1, "fast"), vllm(2, 1.0)])}, 'request_throughput is "fast"'),
    "more at once than allowed": ({"a.json": json.dumps([vllm(c, r, mean_e2el_ms=2e6) for c, r in RATES.items()])},
                                  "and no more than 1 were allowed: check the units"),
    "contradicting rates": ({"a.csv": "workload,rps,requests/s\n1,2,2\n2,3,4\n"}, r"a\.csv:3:3: requests/s .4. contradicts rps 3"),
    "unknown value": ({"a.csv": "gpu,workload,throughput\nh100,1,2\nh100,2,3\n"}, "no row has gpu.*h100"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_CURVES)
def test_load_tests_that_say_too_little_are_refused(case, tmp_path):
    files, match = REFUSED_CURVES[case]
    with pytest.raises(InputError, match=match):
        read(tmp_path, files, select={"gpu": "h200"} if case == "unknown value" else {})


SECONDS = [0.0, 4.3, 4.5, 31.0, 61.0, 89.9, 95.0]  # three in the first 30 s, one, and two; one is left over
DATES = [f"2023-11-16 18:{15 + int(s // 60):02d}:{s % 60:010.7f}" for s in SECONDS]
COUNTS = [[3.0], [1.0], [2.0]]

REQUEST_FILES = {
    "Azure": ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{d},374,44\n" for d in DATES), {}),
    "dates with a zone": ("a.csv", "time;x\n" + "".join(f"{d.replace(' ', 'T')}Z;1\n" for d in DATES), {}),
    "offsets": ("a.csv", "time,x\n" + "".join(f"{d[:23]}+02:00,1\n" for d in DATES), {}),
    "BurstGPT": (
        "a.csv", "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        + "".join(f"{s + 5},GPT-4,4,2,6,API log\n" for s in SECONDS), {},
    ),
    "Mooncake": (
        "a.jsonl",
        "\n".join(json.dumps({"timestamp": int(1e3 * s), "input_length": 9, "output_length": 5, "hash_ids": [0]}) for s in SECONDS),
        {},
    ),
    "epoch in s": ("a.csv", "timestamp,user\n" + "".join(f"{1.7e9 + s},x\n" for s in SECONDS), {}),
    "epoch in ms": ("a.csv", "timestamp,user\n" + "".join(f"{1.7e12 + 1e3 * s:.0f},x\n" for s in SECONDS), {}),
    "epoch in us": ("a.csv", "ts\tuser\n" + "".join(f"{1.7e15 + 1e6 * s:.0f}\tx\n" for s in SECONDS), {}),
    "unit in the header": ("a.csv", "user,arrival_time_ms\n" + "".join(f"x,{1e3 * s}\n" for s in SECONDS), {}),
    "unit told": ("a.csv", "user,time\n" + "".join(f"x,{1e3 * s}\n" for s in SECONDS), {"time_unit": "ms"}),
    "out of order": ("a.csv", "user,time_s\n" + "".join(f"x,{s}\n" for s in reversed(SECONDS)), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", REQUEST_FILES)
def test_single_requests_are_binned(case, tmp_path):
    name, text, told = REQUEST_FILES[case]
    found = only(read(tmp_path, {name: text}, bin_s=30.0, **told))
    assert isinstance(found, Demand)
    assert found.width == 30
    assert found.counts.tolist() == COUNTS
    assert "7 requests" in found.notes[0]
    assert any("the end, 1 request, fills no bin" in note for note in found.notes)


COUNT_FILES = {
    "in ms": "time_ms,requests\n0,5\n30000,7\n60000,9\n",
    "at dates": "timestamp,count\n2023-11-16 18:15:00,5\n2023-11-16 18:15:30,7\n2023-11-16 18:16:00,9\n",
    "at dates of UTC": "timestamp,requests\n2023-11-16 18:15:00+00:00,5\n2023-11-16 18:15:30.0+00:00,7\n2023-11-16 18:16:00+00:00,9\n",
    "rates": f"time_s,rps\n0,{5 / 30!r}\n30,{7 / 30!r}\n60,0.3\n",
}


@pytest.mark.parametrize("case", COUNT_FILES)
def test_counts_are_no_single_requests(case, tmp_path):
    found = only(read(tmp_path, {"a.csv": COUNT_FILES[case]}))
    assert (found.names, found.width) == ((), 30)
    np.testing.assert_allclose(found.counts, [[5], [7], [9]], rtol=1e-15)


def test_bins_are_chosen_by_a_stated_rule(tmp_path):
    """100 requests, one a second: 20 of them take 20 s. Few requests: half of the time, at most."""
    many = only(read(tmp_path, {"a.csv": "time_s,user\n" + "".join(f"{s},x\n" for s in range(101))}))
    assert (many.width, many.counts.ravel().tolist()) == (20, [20] * 5)
    few = only(read(tmp_path, {"b.csv": "time_s,user\n0,x\n1,x\n95,x\n"}))
    assert (few.width, few.counts.ravel().tolist()) == (30, [2, 0, 0])
    assert all(any("least round width" in note for note in found.notes) for found in (many, few))


def test_demand_is_split_by_a_column(tmp_path):
    text = "time_s,region,tier\n0,paris,a\n5,tokyo,a\n15,tokyo,b\n25,paris,b\n31,paris,b\n"
    found = only(read(tmp_path, {"a.csv": text}, bin_s=10.0))
    assert found.names == ("paris", "tokyo")
    assert found.counts.tolist() == [[1, 1], [0, 1], [1, 0]]
    tiers = only(read(tmp_path, {"a.csv": text}, bin_s=10.0, by="tier"))
    assert tiers.names == ("a", "b")
    with pytest.raises(InputError, match=r'a\.csv:3:2: region "tokyo" is no frontend.*paris'):
        read(tmp_path, {"a.csv": text}, names=("paris", "oslo"))
    with pytest.raises(InputError, match="requests and columns of the frontends paris"):
        read(tmp_path, {"b.csv": "time_s,requests,paris\n0,5,2\n10,6,3\n"}, names=("paris",))
    counts = only(read(tmp_path, {"c.csv": "time_s,paris,tokyo\n0,5,2\n10,6,3\n"}))
    assert (counts.names, counts.counts.tolist()) == (("paris", "tokyo"), [[5, 2], [6, 3]])


REFUSED_DEMAND = {
    "unit": ("time,x\n0,1\n9,1\n", "does not say its unit.*time_s, time_ms.*--time-unit"),
    "no time": ("2023-11-16 18:15:46,x\n2023-11-16 18:15:47,x\n", "none of the layouts"),
    "broken time": ("timestamp,x\n2023-11-16 18:15:46,1\nnoon,1\n", r'a\.csv:3:1: timestamp "noon" is no time'),
    "no place": ("time_s,region\n0,paris\n9,\n90,paris\n", r'a\.csv:3:2: region "" names no place'),
    "uneven counts": ("timestamp_s,requests\n0,1\n9,1\n20,1\n", "breaks the even spacing"),
    "all at once": ("time_s,user\n5,x\n5,y\n", "less than two bins"),
}


@pytest.mark.parametrize("case", REFUSED_DEMAND)
def test_demand_that_cannot_be_read_is_refused(case, tmp_path):
    text, match = REFUSED_DEMAND[case]
    with pytest.raises(InputError, match=match):
        read(tmp_path, {"a.csv": text})


STEPS = [1.7e9 + 15 * k for k in range(100)]


def query_range(name, label, series):
    """What `/api/v1/query_range` answers."""
    metric = {"__name__": name, "job": "vllm"} if name else {"job": "vllm"}
    result = [
        {
            "metric": metric | {label: value},
            "values": [[t, str(figure)] for t, figure in zip(STEPS, figures, strict=True)],
        }
        for value, figures in series.items()
    ]
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}})


def prometheus():
    held = 4 + 3 * (np.arange(100) % 10)  # ten workloads, ten times each
    served = 8 * held / (20 + held)
    return {
        "run.json": query_range("vllm:num_requests_running", "pod", {"a": np.minimum(held, 20), "b": held}),
        "wait.json": query_range("vllm:num_requests_waiting", "pod", {"a": np.maximum(held - 20, 0), "b": 0 * held}),
        "done.json": query_range("vllm:request_success_total", "pod", {"a": np.cumsum(15 * served), "b": np.cumsum(15 * 2 * served)}),
    }  # fmt: skip


def test_prometheus_gives_curves_with_their_scatter(tmp_path):
    found, _ = read(tmp_path, prometheus())
    assert [curve.name for curve in found] == ["a", "b"]
    for curve, factor in zip(found, (1, 2), strict=True):
        held = np.array([workload(point) for point in curve.points])
        np.testing.assert_allclose([p.throughput for p in curve.points], factor * 8 * held / (20 + held), rtol=0.01)
        assert all(0 < point.low <= point.high and point.samples >= 9 for point in curve.points)
        assert "middle half of their throughputs" in curve.notes[-1]
    with pytest.raises(InputError, match="needs throughput and running requests"):
        read(tmp_path / "x", {"wait.json": prometheus()["wait.json"]})


def test_what_one_server_did_is_added(tmp_path):
    """vLLM counts by reason and engine; Envoy's counters have no _total in their names."""
    files = prometheus()
    done = json.loads(files["done.json"])
    parts = [
        {
            "metric": one["metric"] | {"finished_reason": reason, "engine": "0"},
            "values": [[t, str(part * float(v))] for t, v in one["values"]],
        }
        for one in done["data"]["result"]
        for reason, part in (("stop", 0.75), ("length", 0.25))
    ]
    done["data"]["result"] = parts
    plain, split = (
        read(tmp_path / name, saved)[0]
        for name, saved in (("a", files), ("b", files | {"done.json": json.dumps(done)}))
    )
    envoy = files["done.json"].replace("vllm:request_success_total", "envoy_cluster_upstream_rq_completed")
    for other in (split, read(tmp_path / "c", files | {"done.json": envoy})[0]):
        for one, same in zip(plain, other, strict=True):
            assert one.name == same.name
            np.testing.assert_allclose(
                [p.throughput for p in same.points], [p.throughput for p in one.points], rtol=1e-9
            )


NO_RANGES = {
    "failed": ({"status": "error", "errorType": "bad_data", "error": "parse error"}, "the query failed .parse error."),
    "instant": ({"status": "success", "data": {"resultType": "vector", "result": [{"metric": {}, "value": [1, "2"]}]}}, "holds a vector"),
    "nothing": ({"status": "success", "data": {"resultType": "matrix", "result": []}}, "holds no series"),
    "histograms": ({"data": {"resultType": "matrix", "result": [{"metric": {}, "histograms": []}]}}, "holds native histograms"),
    "one sample": ({"data": {"resultType": "matrix", "result": [{"metric": {"__name__": "http_requests_total"}, "values": [[1, "1"]]}]}},
                   "have a single sample"),
    "a time twice": ([{"metric": {"__name__": "http_requests_total"}, "values": [[1, "1"], [1, "2"], [2, "3"]]}], "two values at one time"),
    "two metrics": ([{"metric": {"__name__": name}, "values": [[1, "1"], [2, "3"]]} for name in ("a_requests_total", "b_requests_total")],
                    "are all arrivals: query one"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_RANGES)
def test_answers_of_prometheus_without_ranges_are_refused(case, tmp_path):
    document, match = NO_RANGES[case]
    with pytest.raises(InputError, match=match):
        read(tmp_path, {"a.json": json.dumps(document)})


def test_prometheus_gives_arrivals(tmp_path):
    rates = {"paris": np.full(100, 2.0), "tokyo": 1 + np.arange(100) % 2}
    text = query_range("", "region", rates)
    found = only(read(tmp_path, {"a.json": text}, role="arrivals"))
    assert (found.names, found.width, found.counts.shape) == (("paris", "tokyo"), 15, (100, 2))
    np.testing.assert_allclose(found.counts[:2], [[30, 15], [30, 30]])
    with pytest.raises(InputError, match=r"has no metric name.*arrivals=FILE"):
        read(tmp_path, {"a.json": text})
    broken = json.loads(text)
    del broken["data"]["result"][0]["values"][50]
    with pytest.raises(InputError, match="have gaps"):
        read(tmp_path, {"a.json": json.dumps(broken)}, role="arrivals")
    counter = query_range(
        "http_requests_total", "region", {"paris": [30.0 * (k % 50) for k in range(100)]}
    )  # one reset, to 0
    found = only(read(tmp_path, {"c.json": counter}))
    assert sorted(set(found.counts.ravel().tolist())) == [0, 30]


def saved_otherwise(text, rng):
    """The same file with BOM and CRLF, fields in another order (but for the names of a matrix), all cells quoted."""
    if text[0] in "[{":
        documents = [json.loads(text)] if text.count("\n") == 0 else map(json.loads, text.splitlines())
        return "\ufeff" + "\r\n".join(json.dumps(shuffled(document, rng)) for document in documents)
    separator = max(",;\t", key=text.removeprefix("# Licensed under Apache License 2.0\n").partition("\n")[0].count)
    rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    fixed = "Metric" in rows[0][0]  # sections of different widths: no order of columns that could be another
    comments, rows = (
        [row for row in rows if row[:1] and row[0][:1] == "#"],
        [row for row in rows if not (row[:1] and row[0][:1] == "#")],
    )
    first = list(range(len(rows[0]))) if fixed else [0] if rows[0][0] in ("rtt_ms", "Region") else []
    order = [*first, *rng.sample(range(len(first), len(rows[0])), len(rows[0]) - len(first))]
    saved = io.StringIO()
    writer = csv.writer(saved, delimiter=separator, lineterminator="\r\n", quoting=csv.QUOTE_ALL)
    writer.writerows([row if fixed else [row[k] for k in order] for row in rows])
    return "\ufeff" + "".join(f"{row[0]}\r\n" for row in comments) + saved.getvalue()


def shuffled(value, rng):
    """JSON with the fields of all objects in another order."""
    if isinstance(value, list):
        return [shuffled(one, rng) for one in value]
    if not isinstance(value, dict):
        return value
    return {key: shuffled(value[key], rng) for key in rng.sample(list(value), len(value))}


EVERY = {
    **{f"latency, {case}": ({"a.csv": text}, told) for case, (text, told, _) in LATENCY_FILES.items()},
    **{f"throughput, {case}": (files, told) for case, (files, told) in CURVE_FILES.items()},
    **{f"demand, {case}": ({name: text}, told) for case, (name, text, told) in REQUEST_FILES.items()},
    **{f"counts, {case}": ({"a.csv": text}, {}) for case, text in COUNT_FILES.items()},
    "Prometheus": (prometheus(), {}),
}


@pytest.mark.parametrize("case", EVERY)
def test_a_spreadsheet_or_a_script_may_save_it_otherwise(case, tmp_path):
    files, told = EVERY[case]
    plain, _ = read(tmp_path / "plain", files, **told)
    again, _ = read(
        tmp_path / "other", {name: saved_otherwise(text, random.Random(case)) for name, text in files.items()}, **told
    )
    for one, same in zip(plain, again, strict=True):
        if isinstance(one, Demand):
            np.testing.assert_array_equal(same.counts, one.counts)
        else:
            assert same[:2] == one[:2]


@st.composite
def mutations(draw):
    """How a person's spreadsheet might have saved the same table."""
    return {
        "order": draw(st.permutations(range(3))),
        "separator": draw(st.sampled_from([",", ";", "\t"])),
        "decimal": draw(st.sampled_from([".", ","])),
        "newline": draw(st.sampled_from(["\n", "\r\n"])),
        "mark": draw(st.booleans()),
        "quoted": draw(st.booleans()),
        "unit": draw(st.sampled_from(sorted(LATENCIES))),
        "shout": draw(st.booleans()),
    }


@settings(max_examples=60, deadline=None)
@given(mutations(), st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=5))
def test_a_table_means_the_same_however_it_is_saved(mutation, seconds):
    """BOM, CRLF, quotes, units, order of columns, separators, decimal commas."""
    from dgdlb_jax.fleets.importers.latency_pairs import read_pairs
    from dgdlb_jax.fleets.tables import Table

    header = ["from", "to", mutation["unit"].upper() if mutation["shout"] else mutation["unit"]]
    rows = [[f"a{k}", "b", repr(value / LATENCIES[mutation["unit"]])] for k, value in enumerate(seconds)]
    if mutation["separator"] != "," and mutation["decimal"] == ",":
        rows = [[*row[:2], row[2].replace(".", ",")] for row in rows]
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if mutation["quoted"] else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=mutation["separator"], lineterminator=mutation["newline"], quoting=quoting)
    writer.writerows([[row[k] for k in mutation["order"]] for row in [header, *rows]])
    found = read_pairs(Table("t.csv", ("\ufeff" if mutation["mark"] else "") + text.getvalue()))
    assert found.seconds == pytest.approx({(f"a{k}", "b"): value for k, value in enumerate(seconds)}, rel=1e-12)


PIECES = [
    "",
    ",",
    ";",
    '"',
    "\n",
    "\ufeff",
    "nan",
    "-1",
    "1e400",
    "{",
    "}",
    "null",
    "[",
    "\t",
    "0",
    "\r",
    "é",
    "#",
    "true",
    "1,5",
]


@pytest.mark.parametrize("seed", range(4))
def test_broken_files_are_read_or_refused_in_one_sentence(seed, tmp_path):
    rng = random.Random(seed)
    refused = []
    for number, (files, told) in enumerate(EVERY.values()):
        for _ in range(4):
            files = dict(files)
            name = rng.choice(list(files))
            text = files[name]
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(text) + 1)
                text = text[:at] + rng.choice(PIECES) + text[at + rng.choice([0, 1, 8]) :]
            files[name] = text
            try:
                read(tmp_path / str(number), files, **told)
            except InputError as error:
                refused.append(str(error))
    assert len(refused) > 20
    for message in refused:
        assert "\n" not in message
        assert len(message) < 800
