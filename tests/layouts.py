"""Files as people have them: small ones in every layout, with the right values beside them."""

import json
from pathlib import Path

import numpy as np

from dgdlb_jax.fleets.importers import Options, Source, find_importer, gathered


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
    "round trips in ms": ("from,to,rtt_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {}, SQUARE),
    "semicolons and decimal commas": ("from;to;rtt_ms\nus;in;191\neu;us;68\neu;in;122,6\n", {}, SQUARE),
    "thousands with dots": (
        "from;to;samples;rtt_us\nus;in;1.234;191.000,0\neu;us;2.000;68.000\neu;in;3;122.600\n", {}, SQUARE
    ),
    "thousands with commas": (
        'from,to,rtt_us\nus,in,"191,000.0"\neu,us,"68,000"\neu,in,122600\n', {}, SQUARE
    ),
    "thousands with points, by other commas": ("from;to;rtt_us;loss\nus;in;191.000;0,5\neu;us;68.000;0\neu;in;122.600;0\n", {}, SQUARE),
    "thousands with apostrophes": ("from;to;rtt_us\nus;in;191'000\neu;us;68’000.0\neu;in;122'600\n", {}, SQUARE),
    "thousands with spaces": ("from;to;rtt_us\nus;in;191 000\neu;us;68\u202f000,0\neu;in;122\u00a0600\n", {}, SQUARE),
    "what a spreadsheet leaves at the edges": ("from;to;rtt_ms;;\nus;in;191;;\neu;us;68;;\neu;in;122,6;;\n;;;;\n", {}, SQUARE),
    "tabs": ("from\tto\trtt_ms\nus\tin\t191\neu\tus\t68\neu\tin\t122.6\n", {}, SQUARE),
    "microseconds": ("from,to,rtt_us\nus,in,191000\neu,us,68000\neu,in,122600\n", {}, SQUARE),
    "micro sign": ("from,to,RTT (µs)\nus,in,191000\neu,us,68000\neu,in,122600\n", {}, SQUARE),
    "seconds, one way": ("src,dst,one_way_s\nus,in,.0955\neu,us,.034\neu,in,.0613\n", {}, SQUARE),
    "words": ("Source,Destination,Round-trip time [ms]\nus,in,191\neu,us,68\neu,in,122.6\n", {}, SQUARE),
    "one way in words": ("origin,destination,One-way delay (ms)\nus,in,95.5\neu,us,34\neu,in,61.3\n", {}, SQUARE),
    "both, which agree": ("from,to,rtt_ms,one_way_ms\nus,in,191,95.5\neu,us,68,34\neu,in,122.6,61.3\n", {}, SQUARE),
    "both, rounded": ("from,to,one_way_ms,rtt_ms\nus,in,95.5,191\neu,us,34.0,68\neu,in,61.3,123\n", {}, SQUARE),
    "median before mean": (
        "from,to,avg_rtt_ms,p50_rtt_ms,p99_rtt_ms,loss_ms\nus,in,999,191,5e3,1\neu,us,999,68,5e3,1\neu,in,999,122.6,5e3,1\n", {}, SQUARE
    ),
    "told": ("from,to,latency_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {"latency": "rtt_ms"}, SQUARE),
    "repeated": ("from,to,rtt_ms\nus,in,190\neu,us,68\neu,in,122.6\nus,in,500\nus,in,191\n", {}, SQUARE),
    "square matrix": ("rtt_ms,us,eu,in\nus,,68,191\neu,68,0,122.6\nin,191,122.6,-\n", {}, SQUARE),
    "square matrix, told": ("Region;us;eu;in\nus;;68;191\neu;68;;122,6\nin;191;122,6;0\n", {"latency": "rtt_ms"}, SQUARE),
    "frontends and backends": ("from \\ to (rtt ms),in,us\nus,191,\neu,122.6,68\n", {}, SQUARE),
    "upper triangle": ("rtt_ms,us,eu,in\nus,0,68,191\neu,,0,122.6\nin,,,0\n", {}, SQUARE),
    "lower triangle, zeros above": ("rtt_ms,in,eu,us\nin,0,0,0\neu,122.6,0,0\nus,191,68,0\n", {}, SQUARE),
    "half of a matrix in no order": ("rtt_ms,us,eu,in\nus,-,68,-\neu,-,-,122.6\nin,191,-,-\n", {}, SQUARE),
    "two ways": ("from,to,two_way_ms\nus,in,191\neu,us,68\neu,in,122.6\n", {}, SQUARE),
    "half of them, told": ("from,to,half_rtt_ms\nus,in,95.5\neu,us,34\neu,in,61.3\n", {"latency": "one_way_ms"}, SQUARE),
    "CloudPing in us": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "microseconds"},
                    "data": {"us": {"in": 191e3}, "eu": {"us": 68e3, "in": 122.6e3}}}), {}, SQUARE
    ),
    "CloudPing, half": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "milliseconds"},
                    "data": {"us": {"in": 191, "eu": 68}, "eu": {"in": 122.6}, "in": {}}}), {}, SQUARE
    ),
    "CloudPing": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "milliseconds"},
                    "data": {"us": {"in": 191}, "eu": {"us": 68.0, "in": 122.6}}}), {}, SQUARE
    ),
    "records": (
        json.dumps([{"from": i, "to": j, "one_way_ms": 1e3 * value} for (i, j), value in PAIRS.items()]), {}, SQUARE
    ),
}  # fmt: skip


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


def sglang(concurrency, throughput):
    """A run of SGLang's: times to the first and between tokens are 0 where the server does not stream."""
    run = vllm(concurrency, throughput, mean_ttft_ms=0.0, mean_tpot_ms=0.0, backend="sglang", accept_length=None)
    seconds = run["mean_e2el_ms"] / 1e3
    return without(run, "mean_e2el_ms", "model_id") | {
        "mean_e2e_latency_ms": 1e3 * seconds,
        "concurrency": throughput * seconds,
    }


RATES = {1: 0.48, 8: 3.2, 64: 11.5}  # concurrency times this is near the mean time above, the last 10 % below


HELD = [rate * (2 + 0.05 * cap) for cap, rate in RATES.items()]


SAVED = {f"run-{cap}.json": json.dumps(vllm(cap, rate)) for cap, rate in RATES.items()}


def without(run, *keys):
    return {key: value for key, value in run.items() if key not in keys}


def moved(run, old, new):
    return {new if key == old else key: value for key, value in run.items()}


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


def guidellm(concurrency, throughput):
    """A benchmark in a report of GuideLLM."""
    seconds = 2 + 0.05 * concurrency
    quantities = {
        "requests_per_second": throughput,
        "request_concurrency": throughput * seconds,
        "request_latency": seconds,
    }
    return {
        "config": {"strategy": {"type_": "concurrent", "streams": concurrency}, "backend": {"model": "acme/m"}},
        "metrics": {name: {"successful": {"mean": mean, "median": 9.0}, "errored": None} for name, mean in quantities.items()}
        | {"request_totals": {"successful": 90, "errored": 10, "incomplete": 1, "total": 101}},
    }  # fmt: skip


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
    "SGLang lines": (
        {"a.jsonl": "\n".join(json.dumps(sglang(c, r)) for c, r in RATES.items())}, {},
    ),
    "vLLM without end-to-end times": ({n: json.dumps(without(json.loads(t), "mean_e2el_ms")) for n, t in SAVED.items()}, {}),
    "vLLM with the times of all requests, one of which failed": (
        {"a.json": json.dumps([without(vllm(c, r, completed=2, failed=1, latencies=[1.5 + 0.05 * c, 0.0, 2.5 + 0.05 * c],
                                            errors=["", "gone", ""]), "mean_e2el_ms") for c, r in RATES.items()])}, {},
    ),
    "vLLM sweep": (sweep(), {}),
    "GuideLLM": ({"a.json": json.dumps({"metadata": {}, "benchmarks": [guidellm(c, r) for c, r in RATES.items()]})}, {}),
    "GuideLLM 0.3": ({"a.json": json.dumps({"benchmarks": [moved(guidellm(c, r), "config", "args") for c, r in RATES.items()]})}, {}),
    "requests per minute": ({"a.csv": "workload,requests/min\n" + "".join(f"{h!r},{60 * r}\n" for h, r in PAIRED)}, {}),
    "what was asked for beside it": (
        {"a.csv": "target_qps,workload,rps_origin,achieved_qps\n" + "".join(f"{2 * r},{h!r},batch / time,{r}\n" for h, r in PAIRED)}, {},
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
    "Qwen-Bailian": (
        "a.jsonl",
        "\n".join(json.dumps({"chat_id": 1, "timestamp": s, "input_length": 9, "output_length": 5, "hash_ids": [0]}) for s in SECONDS),
        {},
    ),
    "epoch in s": ("a.csv", "timestamp,user\n" + "".join(f"{1.7e9 + s},x\n" for s in SECONDS), {}),
    "epoch in ms": ("a.csv", "timestamp,user\n" + "".join(f"{1.7e12 + 1e3 * s:.0f},x\n" for s in SECONDS), {}),
    "epoch in us": ("a.csv", "ts\tuser\n" + "".join(f"{1.7e15 + 1e6 * s:.0f}\tx\n" for s in SECONDS), {}),
    "unit in the header": ("a.csv", "user,arrival_time_ms\n" + "".join(f"x,{1e3 * s}\n" for s in SECONDS), {}),
    "unit told": ("a.csv", "user,time\n" + "".join(f"x,{1e3 * s}\n" for s in SECONDS), {"time_unit": "ms"}),
    "out of order": ("a.csv", "user,time_s\n" + "".join(f"x,{s}\n" for s in reversed(SECONDS)), {}),
}  # fmt: skip


COUNT_FILES = {
    "in ms": "time_ms,requests\n0,5\n30000,7\n60000,9\n",
    "at dates": "timestamp,count\n2023-11-16 18:15:00,5\n2023-11-16 18:15:30,7\n2023-11-16 18:16:00,9\n",
    "at dates of UTC": "timestamp,requests\n2023-11-16 18:15:00+00:00,5\n2023-11-16 18:15:30.0+00:00,7\n2023-11-16 18:16:00+00:00,9\n",
    "rates": f"time_s,rps\n0,{5 / 30!r}\n30,{7 / 30!r}\n60,0.3\n",
}


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
