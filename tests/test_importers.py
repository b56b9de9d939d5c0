"""Files as people have them: the right values from every layout, and one sentence for what cannot be read."""

import json

import numpy as np
import pytest

from dgdlb_jax.fleets.importers import IMPORTERS, LATENCIES, Curve, Latencies, workload
from dgdlb_jax.fleets.importers.throughput_table import period
from dgdlb_jax.fleets.numerals import numerals_of
from dgdlb_jax.numerics.results import InputError
from layouts import (
    CURVE_FILES,
    HELD,
    LATENCY_FILES,
    RATES,
    SAVED,
    aiperf,
    aiperf_csv,
    inferencex,
    only,
    query_range,
    read,
    sweep,
    vllm,
    without,
)


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
    "CloudPing, told the contrary": (
        json.dumps({"metadata": {"percentile": "p_50", "timeframe": "1Y", "unit": "ms"}, "data": {"a": {"b": 9}}}),
        {"latency": "one_way_ms"}, ["holds round trips in ms", 'unit = "one_way_ms"'],
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
    "thousands or decimals": ('from,to,rtt_us\na,b,"191,000"\n', {}, ['rtt.csv:2:3: rtt_us "191,000" could be 191000 or 191, and no']),
    "points in a table of semicolons": ("from;to;rtt_us\na;b;80.000\nb;a;1.200\n", {}, ['rtt_us "80.000" could be 80000 or 80, and no']),
    "commas between tabs": ("from\tto\trtt_us\na\tb\t80,000\nb\ta\t1,200\n", {}, ['"80,000" could be 80000 or 80, and no']),
    "no decimals a program writes": ("from,to,rtt_us\na,b,1.200\nb,a,980\n", {}, ['"1.200" could be 1200 or 1.2, and no other figure']),
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
    some = [vllm(c, r) if c < 64 else without(vllm(c, r), "mean_e2el_ms", "mean_tpot_ms") for c, r in RATES.items()]
    found = only(read(tmp_path / "e", {"a.json": json.dumps(some)}))
    assert workload(found.points[-1]) == 64  # the cap, where by the law it would be 60
    assert any(
        note.startswith("no mean end-to-end time at concurrency 64: there the workload is") for note in found.notes
    )
    assert "9 runs of 3 settings: medians" in " ".join(only(read(tmp_path / "c", sweep())).notes)
    capped = "concurrency,throughput_rps\n1,1\n8,5\n"
    assert (
        "concurrency that was allowed; how much of it was used"
        in only(read(tmp_path / "d", {"a.csv": capped})).notes[0]
    )


@pytest.mark.parametrize("power", ["", "e1"])
def test_every_notation_of_a_number_is_read_as_its_figure(power):
    """The notations against Python's own formatting of the same figure, with the marks exchanged."""
    for value in (0.25, 122.6, 1234.5, 68000.0, 12345678.5):
        for grouped in ("," if not power else "", ""):
            text = f"{value:{grouped}}{power}"
            exchanged = text.translate(str.maketrans(",.", ".,"))
            for cells, separator in (
                ([text, "1,000.5"], ","),
                ([text, "1,000.5"], ";"),
                ([exchanged, "1.000,5"], ";"),
                ([exchanged, "1.000,5"], ","),
            ):
                assert float(numerals_of(cells, separator).plain(cells[0])) == float(f"{value}{power}")


def test_a_list_of_one_direction_is_completed(tmp_path):
    """Of four regions, as six lines in any order; of frontends and backends that share a place nothing is missing."""
    pairs = ["ba", "ca", "cb", "da", "db", "cd"]
    found = only(
        read(tmp_path, {"a.csv": "from,to,rtt_ms\n" + "".join(f"{i},{j},{9 + k}\n" for k, (i, j) in enumerate(pairs))})
    )
    assert len(found.seconds) == 12
    assert all(
        found.seconds[i, j] == found.seconds[j, i] == pytest.approx((9 + k) / 2000) for k, (i, j) in enumerate(pairs)
    )
    assert found.notes == ("one direction of every pair is given: it takes the same time both ways",)
    part = only(read(tmp_path, {"b.csv": "from,to,rtt_ms\na,c,9\na,d,9\nb,c,9\nb,d,9\nc,d,9\n"}))
    assert len(part.seconds) == 5


@pytest.mark.parametrize(
    "corner", ["rtt_ms to/from", "to \\ from (rtt_ms)", "destination", "rtt_ms, backend / frontend"]
)
def test_a_matrix_says_who_stands_down_the_side(corner, tmp_path):
    told = {} if "rtt" in corner else {"latency": "rtt_ms"}
    lines = "gpu-eu;12;80\ngpu-us;90;6\n"
    found = only(read(tmp_path, {"a.csv": f"{corner};paris;nyc\n{lines}"}, **told))
    assert found.seconds["paris", "gpu-us"] == pytest.approx(0.045)
    assert (found.ends(0), found.ends(1)) == (("paris", "nyc"), ("gpu-eu", "gpu-us"))
    assert f'columns send, rows answer, by "{corner}" in the first cell' in found.notes[0]
    straight = only(read(tmp_path, {"b.csv": f"from \\ to (rtt_ms);paris;nyc\n{lines}"}))
    assert straight.seconds["gpu-us", "paris"] == pytest.approx(0.045)


def test_a_line_for_excel_is_no_header(tmp_path):
    found = only(read(tmp_path, {"a.csv": "sep=;\r\nfrom;to;rtt_ms\r\neu;us;80,5\r\n"}))
    assert found.seconds == {("eu", "us"): 0.04025}


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


def test_folders_of_one_model_on_several_servers_are_several_curves(tmp_path):
    """What repeats a series of runs within its scatter belongs to it, and so do further loads."""

    def runs(folder, factor, caps=RATES):
        return {f"{folder}/{c}.json": json.dumps(vllm(c, RATES[c] * factor)) for c in caps}

    found = read(tmp_path / "a", runs("old", 0.7) | runs("new", 1.0) | runs("again", 1.02))[0]
    assert {curve.name: len(curve.points) for curve in found} == {"GLM-4.7-old": 3, "GLM-4.7-new": 3}
    assert "two servers, told apart by their files" in " ".join(found[0].notes)
    both = read(tmp_path / "b", runs("old", 0.7, [1, 8]) | runs("more", 1.0, [64]))
    assert len(only(both).points) == 3


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


def test_a_workload_that_was_measured_twice_has_the_median(tmp_path):
    found = only(read(tmp_path, {"a.csv": "workload,rps\n1,0.5\n8,3\n8,3.2\n8,9\n"}))
    assert [(workload(point), point.throughput) for point in found.points] == [(1, 0.5), (8, 3.2)]
    assert "4 runs of 2 settings: medians; repetitions differ by up to a factor of 3, look at them" in found.notes


def test_a_log_with_the_durations_of_its_requests_is_no_load_test(tmp_path):
    """Seconds alone are no rate: requests/s are."""
    found = read(tmp_path, {"a.csv": "timestamp_s,duration_s,tokens\n0,3,5\n1.5,2,6\n7,1,7\n30,2,2\n"})
    assert found[1] == ["table of requests"]
    for column in ("req/s", "requests_s", "Requests per second", "tok/sec", "throughput", "arrival_rps"):
        assert period(column) == 1
    for column in ("timestamp_s", "start_s", "gap_s", "latency_s", "request_time_s", "request_start_s"):
        assert period(column) is None


def test_a_table_of_several_servers_gives_several_curves(tmp_path):
    text = "model,gpu,date,tp,workload,throughput\n"
    for gpu, factor in (("a100", 1), ("h100", 2)):
        text += "".join(
            f"llama,{gpu},day {k},8,{held},{factor * rate}\n" for k, (held, rate) in enumerate(((1, 2), (8, 9)))
        )
    found, _ = read(tmp_path, {"all.csv": text})
    assert {curve.name: curve.points[1].throughput for curve in found} == {"a100": 9, "h100": 18}
    sizes = "num_gpus,concurrency,rps\n1,1,1\n1,8,4\n2,1,1.1\n2,8,8\n"
    assert {one.name: one.points[1].throughput for one in read(tmp_path, {"n.csv": sizes})[0]} == {
        "num_gpus-1": 4,
        "num_gpus-2": 8,
    }
    assert all(curve.notes == ('"gpu" tells servers apart: a100, h100',) for curve in found)
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


IMPLAUSIBLE = {
    "a round trip of 80 s": ("from,to,rtt_s\neu,us,80\nus,eu,90\n", "unlikely: 40000 to 45000 ms one way for eu -> us, us -> eu"),
    "a round trip of nothing": ("from,to,rtt_ms\neu,us,0.0001\n", "unlikely: 5e-05 ms one way for eu -> us"),
    "a matrix": ("rtt_s,eu,us\neu,,80\nus,80,\n", "unlikely: 40000 ms one way"),
    "one place in two ways": ("from,to,rtt_ms\neu-west,us,80\nEU West,us,82\n", "1 name is written in several ways: eu-west and EU West"),
    "a server": ("workload,rps\n1,1e9\n2,2e9\n", "unlikely: 1e+09 to 2e+09 requests/s for a server"),
    "a request": ("workload,rps\n1,0.000001\n2,0.000005\n", "unlikely: 400000 to 1e+06 s for a request"),
    "a counter": ("time_s,requests_total\n" + "".join(f"{60 * k},{99 + k * k}\n" for k in range(1, 9)), "unlikely: there are more"),
    "nothing inside a region": ("from,to,rtt_ms\neu,eu,0\neu,us,80\n", "unlikely: 0 ms one way for eu -> eu"),
    "a bin": ("time,requests\n1767225600,5\n1767225660,7\n", "unlikely: 0.06 s for a bin"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPLAUSIBLE)
def test_unlikely_figures_are_doubted(case, tmp_path):
    """Beyond what fibre around the world takes, what one server ever did, and bins that anybody counts in."""
    text, doubt = IMPLAUSIBLE[case]
    found = only(read(tmp_path, {"a.csv": text}, time_unit="ms" if case == "a bin" else None))
    assert any(note.startswith(doubt) for note in found.notes), found.notes


def test_load_tests_say_which_requests_failed(tmp_path):
    """AIPerf counts them in JSON and in CSV; two files with as many failures have twice as many together."""
    errors = {"request_count": {"avg": 90.0}, "error_request_count": {"avg": 10.0}}
    runs = {f"{c}.json": json.dumps(aiperf(c, r) | errors) for c, r in RATES.items()}
    (curve,) = read(tmp_path / "a", runs)[0]
    assert (curve.name, curve.notes[0]) == ("aiperf", "30 of 300 requests failed; they are not counted")
    texts = {f"{c}.csv": aiperf_csv(c, r) + "Request Count,90\r\nError Request Count,10\r\n" for c, r in RATES.items()}
    assert only(read(tmp_path / "b", texts)).notes[0] == curve.notes[0]
    vllms = {f"{c}.json": json.dumps(vllm(c, r, failed=3)) for c, r in RATES.items()}
    assert "9 of 309 requests failed; they are not counted" in only(read(tmp_path / "c", vllms)).notes
    table = "users,requests/s,failures/s,errors\n1,1,0,0\n8,5,0.1,4\n"
    found = only(read(tmp_path / "d", {"a.csv": table}))
    assert [point.throughput for point in found.points] == [1, 5]
    assert "requests failed (failures/s, errors); the throughput should be that of the others" in found.notes


@pytest.mark.parametrize(
    "column", ["Average Response Time", "Average response time (ms)", "mean_response_time_ms", "avg_latency"]
)
def test_mean_response_times_are_end_to_end_times(column, tmp_path):
    """Where they do not say their unit, throughput times it is the concurrency in one unit only."""
    found = only(read(tmp_path, {"a.csv": f"concurrency,rps,{column}\n2,1.1,909\n8,3.9,1025\n"}))
    assert [workload(point) for point in found.points] == pytest.approx([0.9999, 3.9975])


def test_prompts_of_other_lengths_are_no_repetitions(tmp_path):
    files = {
        f"c{n}_{length}.json": json.dumps(vllm(n, x / (1 + length / 1000), total_input_tokens=100 * length))
        for length in (100, 4000)
        for n, x in ((1, 0.4), (8, 3.0))
    }
    assert [curve.name for curve in read(tmp_path, files)[0]] == ["GLM-4.7-input-100", "GLM-4.7-input-4000"]


def test_percentiles_of_locust_are_not_used(tmp_path):
    text = "User Count,Requests/s,50%,Total Average Response Time\n10,9.5,90,100\n20,17.5,100,110\n"
    notes = only(read(tmp_path, {"a.csv": text})).notes
    assert "not used, as they are no mean end-to-end times of a line: 50%, Total Average Response Time" in notes


def test_locust_has_lines_of_all_requests(tmp_path):
    """Its total average is since the test began, so no time at the number of users of a line."""
    header = "Timestamp,User Count,Type,Name,Requests/s,Total Average Response Time\n"
    kinds = (("GET,/a", 1), (",Aggregated", 2))
    lines = [f"{k},{users},{kind},{f * users},909\n" for k, users in enumerate((1, 4)) for kind, f in kinds]
    found = read(tmp_path, {"a.csv": header + "".join(lines)})[0]
    assert any("--select Name=Aggregated takes these" in note for note in found[0].notes)
    assert [point.latency for point in found[0].points] == [None, None]


def test_a_single_ratio_is_no_range(tmp_path):
    text = "concurrency,rps,latency_s\n1,0.5,1.2\n2,1,1.2\n"
    assert any(
        "is 0.6 times the concurrency that was allowed: they differ" in note
        for note in only(read(tmp_path, {"a.csv": text})).notes
    )


def test_runs_pairs_and_series_can_be_selected(tmp_path):
    """The same option for every layout with rows: here each file has twice what is wanted of it."""
    runs = [vllm(c, f * r, hw=hw) for hw, f in (("a100", 1), ("h100", 2)) for c, r in RATES.items()]
    curve = only(read(tmp_path / "a", {"a.json": json.dumps(runs)}, select={"hw": "h100"}))
    assert [point.throughput for point in curve.points] == [2 * rate for rate in RATES.values()]
    pairs = "from,to,day,rtt_ms\na,b,1,9\na,b,2,90\n"
    assert only(read(tmp_path / "b", {"b.csv": pairs}, select={"day": "2"})).seconds == {("a", "b"): 0.045}
    text = query_range("http_requests_total", "region", {"paris": np.arange(100.0), "tokyo": np.arange(100.0)})
    assert only(read(tmp_path / "c", {"c.json": text}, select={"region": "tokyo"})).counts.shape == (99, 1)
