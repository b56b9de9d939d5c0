"""Files as people have them: the right values from every layout, and one sentence for what cannot be read."""

import json
import re

import numpy as np
import pytest

from dgdlb_jax.fleets.importers import IMPORTERS, LATENCIES, Curve, Demand, Latencies, workload
from dgdlb_jax.fleets.importers.bins import rebinned
from dgdlb_jax.fleets.importers.throughput_table import period
from dgdlb_jax.fleets.numerals import numerals_of
from dgdlb_jax.fleets.tidy import curve_csv
from dgdlb_jax.numerics.results import InputError
from layouts import (
    COUNT_FILES,
    COUNTS,
    CURVE_FILES,
    HELD,
    LATENCY_FILES,
    RATES,
    REQUEST_FILES,
    SAVED,
    aiperf,
    aiperf_csv,
    inferencex,
    only,
    prometheus,
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
        "concurrency that was allowed, as no end-to-end time" in only(read(tmp_path / "d", {"a.csv": capped})).notes[0]
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
    """Of four regions, as six lines in any order; of frontends and backends that have all their pairs nothing is missing."""
    pairs = ["ba", "ca", "cb", "da", "db", "cd"]
    found = only(
        read(tmp_path, {"a.csv": "from,to,rtt_ms\n" + "".join(f"{i},{j},{9 + k}\n" for k, (i, j) in enumerate(pairs))})
    )
    assert len(found.seconds) == 12
    assert all(
        found.seconds[i, j] == found.seconds[j, i] == pytest.approx((9 + k) / 2000) for k, (i, j) in enumerate(pairs)
    )
    assert found.notes == ("one direction of every pair is given: it takes the same time both ways",)


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


@pytest.mark.parametrize("case", REQUEST_FILES)
def test_single_requests_are_binned(case, tmp_path):
    name, text, told = REQUEST_FILES[case]
    found = only(read(tmp_path, {name: text}, bin_s=30.0, **told))
    assert isinstance(found, Demand)
    assert found.width == 30
    assert found.counts.tolist() == COUNTS
    assert "7 requests" in found.notes[0]
    assert any("the end, 1 request in 20.8 of 110.8 s, fills no bin" in note for note in found.notes)


@pytest.mark.parametrize("case", COUNT_FILES)
def test_counts_are_no_single_requests(case, tmp_path):
    found = only(read(tmp_path, {"a.csv": COUNT_FILES[case]}))
    assert (found.names, found.width) == ((), 30)
    np.testing.assert_allclose(found.counts, [[5], [7], [9]], rtol=1e-15)


def test_bins_are_chosen_by_a_stated_rule(tmp_path):
    """One request a second, of which 20 take 20 s and the last one lasts a second as well; a short trace keeps its end."""
    cases = {
        209: (20, [20] * 10, "10 bins of 20 s (the least round width with 20 requests in a bin on average)"),
        99: (
            24.75,
            [25, 25, 25, 24],
            "4 bins of 24.75 s (equal parts of the trace with 20 requests or more on average)",
        ),
        3: (1.5, [2, 1], "2 bins of 1.5 s (halves of the trace, as 3 requests are too few for 20 in every bin)"),
    }
    for requests, (width, counts, said) in cases.items():
        text = "time_s,user\n" + "".join(f"{s},x\n" for s in range(requests))
        found = only(read(tmp_path, {"a.csv": text}))
        assert (found.width, found.counts.ravel().tolist(), found.notes[1]) == (width, counts, said)
        assert any("the end, 9 requests in 9 of 209 s, fills no bin" in note for note in found.notes) == (
            requests == 209
        )
    # 4 minutes and 59 s of one request a second last five minutes: the next one would have come then.
    assert (
        only(read(tmp_path, {"b.csv": "time_s,u\n" + "".join(f"{s},x\n" for s in range(300))}, bin_s=60.0)).counts.sum()
        == 300
    )


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
    some = only(read(tmp_path, {"c.csv": "time_s,paris,tokyo\n0,5,2\n10,6,3\n"}, names=("tokyo",)))
    assert (some.names, some.notes[1]) == (("tokyo",), "not used, as they name no frontend: paris")


def test_a_line_for_every_bin_and_place(tmp_path):
    """As a database groups by time and region: in any order, and without a line where there was nothing."""
    text = "minute,region,count\n" + "".join(f"2026-01-01 00:0{m}:00,{r},{n}\n" for r, m, n in GROUPS)
    found = only(read(tmp_path, {"a.csv": text.replace("minute", "time")}))
    assert (found.names, found.width) == (("tokyo", "paris"), 60)
    assert found.counts.tolist() == [[2, 5], [3, 0], [1, 9]]
    told = only(read(tmp_path, {"a.csv": text.replace("minute", "time")}, names=("paris", "tokyo", "oslo")))
    assert dict(zip(told.names, told.counts.T.tolist(), strict=True)) == {
        "tokyo": [2, 3, 1],
        "paris": [5, 0, 9],
        "oslo": [0, 0, 0],
    }
    with pytest.raises(InputError, match=r'a\.csv:6:2: region "paris" has a second line in this bin'):
        read(
            tmp_path,
            {
                "a.csv": "time_s,region,requests\n"
                + "".join(f"{60 * m},{r},{n}\n" for r, m, n in (*GROUPS[:4], GROUPS[3]))
            },
        )
    assert "1 of 6 bins have no line (paris): no requests in them" in found.notes
    one = only(read(tmp_path, {"a.csv": text.replace("minute", "time")}, select={"region": "tokyo"}))
    assert (one.names, one.counts.tolist()) == (("tokyo",), [[2], [3], [1]])
    with pytest.raises(InputError, match='region "tokyo" is no frontend'):
        read(
            tmp_path,
            {"a.csv": "time_s,region,requests\n" + "".join(f"{60 * m},{r},{n}\n" for r, m, n in GROUPS)},
            names=("paris",),
        )


GROUPS = [("tokyo", 0, 2), ("tokyo", 1, 3), ("tokyo", 2, 1), ("paris", 0, 5), ("paris", 2, 9)]


def test_bins_are_joined_into_wider_ones(tmp_path):
    found = only(read(tmp_path, {"a.csv": "time_s,requests\n" + "".join(f"{30 * k},{k}\n" for k in range(7))}))
    wider = rebinned(found, 60.0)
    assert (wider.width, wider.counts.ravel().tolist()) == (60, [0 + 1, 2 + 3, 4 + 5])
    assert wider.notes[-1] == "2 bins make one of 60 s, and the last 1 none"
    assert rebinned(found, None) is found
    for width in (45.0, 15.0, 120.0, 1e9):
        with pytest.raises(InputError, match=r"made of its 7 bins of 30 s, .*multiples of 30 s up to 90 s"):
            rebinned(found, width)


@pytest.mark.parametrize("more", ["errors", "p99_ms", "success", "cpu %", "hour"])
def test_a_column_that_is_no_place_is_asked_about(more, tmp_path):
    files = {"a.csv": f"time_s,eu,us,{more}\n" + "".join(f"{60 * k},100,{200 + k},{k % 3}\n" for k in range(4))}
    with pytest.raises(InputError, match=f"{more} counts no requests of a place, by name or cells: remove"):
        read(tmp_path, files)
    told = only(read(tmp_path, files, names=("eu", "us")))
    assert (told.names, told.notes[-1]) == (("eu", "us"), f"not used, as they name no frontend: {more}")
    every = only(read(tmp_path, {"a.csv": files["a.csv"].replace("eu,us", "requests,p50")}))
    assert every.counts.ravel().tolist() == [100] * 4


def test_a_column_that_numbers_the_lines_is_no_place(tmp_path):
    """As pandas saves an index."""
    text = "".join(f"{k},{60 * k},{5 * k},{7 + k}\n" for k in range(4))
    for header in ("", "Unnamed: 0", "index"):
        found = only(read(tmp_path, {"a.csv": f"{header},time_s,eu,us\n{text}"}))
        assert (found.names, found.counts[1].tolist()) == (("eu", "us"), [5, 8])
        assert found.notes[-1] == f'not used, as it numbers the lines: "{header}"'


@pytest.mark.parametrize("cell", ["", "NaN", "1.2K", "3 req/s"])
def test_bins_with_a_cell_that_is_no_number_are_no_single_requests(cell, tmp_path):
    with pytest.raises(InputError, match=r'a\.csv:3:3: us ".*" is (not a number|out of range)'):
        read(tmp_path, {"a.csv": f"time_s,eu,us\n0,5,7\n60,7,{cell}\n120,8,9\n"})


TIMES = {
    "hours": ("hour", [0, 1, 2], 3600),
    "minutes": ("Minute", [5, 6, 7], 60),
    "minutes by their beginning": ("minute", [f"2026-01-31 00:0{k}:00 UTC" for k in range(3)], 60),
    "times of day": ("time", ["9:00", "09:30", "10:00"], 1800),
    "German dates": ("timestamp", ["31.01.2026 23:00", "31.01.2026 23:30", "01.02.2026 00:00"], 1800),
}


@pytest.mark.parametrize("case", TIMES)
def test_bins_begin_at_times_of_many_kinds(case, tmp_path):
    column, times, width = TIMES[case]
    found = only(read(tmp_path, {"a.csv": f"{column},requests\n" + "".join(f"{time},7\n" for time in times)}))
    assert (found.width, found.counts.ravel().tolist()) == (width, [7] * 3)


def test_figures_at_even_times_are_bins(tmp_path):
    """As a dashboard exports them: whole numbers are counts, and of others nobody knows whether they are rates."""
    text = "Time,paris,tokyo\n" + "".join(f"2026-01-01 00:0{m}:00,{5 + m},{m}\n" for m in range(4))
    found = only(read(tmp_path, {"a.csv": text}))
    assert (found.names, found.width, found.counts.tolist()) == (
        ("paris", "tokyo"),
        60,
        [[5, 0], [6, 1], [7, 2], [8, 3]],
    )
    lines = "".join(f"2026-01-01 00:0{m}:00,{m + 0.25}\n" for m in range(4))
    rates = only(read(tmp_path, {"b.csv": f"Time,rps\n{lines}"}))
    assert rates.counts.ravel().tolist() == [15, 75, 135, 195]
    with pytest.raises(InputError, match="figures of paris, tokyo stand at even times and are no whole numbers"):
        read(tmp_path, {"a.csv": text.replace("5,0", "5.5,0")})


REFUSED_DEMAND = {
    "Mooncake's fields, not its unit": (
        "timestamp,input_length,output_length\n0,9,5\n1.5,9,5\n",
        "does not say its unit",
    ),
    "unit": ("time,x\n0,1\n9,1\n", "does not say its unit.*time_s, time_ms.*--time-unit"),
    "no time": ("2023-11-16 18:15:46,x\n2023-11-16 18:15:47,x\n", "none of the layouts"),
    "broken time": ("timestamp,x\n2023-11-16 18:15:46,1\nnoon,1\n", r'a\.csv:3:1: timestamp "noon" is no time'),
    "no place": ("time_s,region\n0,paris\n9,\n90,paris\n", r'a\.csv:3:2: region "" names no place'),
    "numbers of bins": (
        "bin,requests\n0,4\n1,5\n",
        '"bin" numbers bins and does not say how wide they are: call it time_s',
    ),
    "a day that is passed": (
        "time,requests\n23:00,4\n00:00,5\n",
        r'a\.csv:3:1: time "00:00" is before the line above: write dates',
    ),
    "no times": ("label,requests\na,4\nb,5\n", '"requests" counts requests, and no column says when'),
    "places nobody knows": (
        "time_s,city,requests\n0,a,4\n0,b,5\n60,a,5\n",
        "is that of the line above: say which column names places",
    ),
    "uneven counts": ("timestamp_s,requests\n0,1\n9,1\n20,1\n", "breaks the even spacing"),
    "all at once": ("time_s,user\n5,x\n5,y\n", "less than two bins"),
}


@pytest.mark.parametrize("case", REFUSED_DEMAND)
def test_demand_that_cannot_be_read_is_refused(case, tmp_path):
    text, match = REFUSED_DEMAND[case]
    with pytest.raises(InputError, match=match):
        read(tmp_path, {"a.csv": text})


def test_prometheus_gives_curves_with_their_scatter(tmp_path):
    found, _ = read(tmp_path, prometheus())
    assert [curve.name for curve in found] == ["a", "b"]
    for curve, factor in zip(found, (1, 2), strict=True):
        held = np.array([workload(point) for point in curve.points])
        np.testing.assert_allclose([p.throughput for p in curve.points], factor * 8 * held / (20 + held), rtol=0.01)
        assert all(0 < point.low <= point.high and point.samples >= 9 for point in curve.points)
        assert "middle half of their throughputs" in curve.notes[-1]
        again = only(read(tmp_path / curve.name, {"a.csv": curve_csv(curve)}))
        np.testing.assert_allclose(
            [p[:2] + p[6:] for p in again.points], [p[:2] + p[6:] for p in curve.points], rtol=1e-15
        )
    with pytest.raises(InputError, match=r"^wait.json \(waiting\): .* add throughput=FILE and running=FILE\.$"):
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
    for value in parts[0]["values"][50:]:  # one of the parts begins again at 0 in between
        value[1] = str(float(value[1]) - float(parts[0]["values"][49][1]))
    restarted = read(tmp_path / "d", files | {"done.json": json.dumps(done)})[0]
    envoy = files["done.json"].replace("vllm:request_success_total", "envoy_cluster_upstream_rq_completed")
    for other in (split, restarted, read(tmp_path / "c", files | {"done.json": envoy})[0]):
        for one, same in zip(plain, other, strict=True):
            assert one.name == same.name
            np.testing.assert_allclose(
                [p.throughput for p in same.points], [p.throughput for p in one.points], rtol=1e-9
            )


def test_samples_that_are_no_numbers_are_counted(tmp_path):
    """Prometheus writes NaN where a quotient has none, and +Inf where it is divided by nothing."""
    files = prometheus()
    done = json.loads(files["done.json"])
    for k in (10, 40):
        done["data"]["result"][0]["values"][k][1] = "NaN" if k == 10 else "+Inf"
    for curve in read(tmp_path / "a", files | {"done.json": json.dumps(done)})[0]:
        assert "throughput: 2 of 200 samples are no numbers (NaN or Inf) and left out" in curve.notes
    series = {"eu": ["NaN", *[2.0] * 99], "us": [1.0] * 98 + ["NaN"] * 2}
    found = only(read(tmp_path / "b", {"a.json": query_range("", "region", series)}, role="arrivals"))
    assert found.counts.shape == (97, 2)
    assert found.notes[1:] == (
        "arrivals: 3 of 200 samples are no numbers (NaN or Inf) and left out",
        "97 samples every 15 s, where all have one; the longest has 99",
    )
    series["us"][50] = "NaN"
    with pytest.raises(InputError, match=r"have gaps, or fewer.*\(4 samples are NaN or Inf\)"):
        read(tmp_path / "c", {"a.json": query_range("", "region", series)}, role="arrivals")
    with pytest.raises(InputError, match="no number in 100 samples"):
        read(tmp_path / "d", {"a.json": query_range("", "region", {"eu": ["NaN"] * 100})}, role="arrivals")
    few = {name: json.loads(files[name]) for name in ("run.json", "done.json")}
    for document in few.values():
        document["data"]["result"] = [
            {**document["data"]["result"][0], "values": document["data"]["result"][0]["values"][:7]}
        ]
    with pytest.raises(InputError, match="the backend has 6 samples with requests, too few"):
        read(tmp_path / "e", {name: json.dumps(document) for name, document in few.items()})


IMPLAUSIBLE = {
    "a round trip of 80 s": ("from,to,rtt_s\neu,us,80\nus,eu,90\n", "unlikely: 40000 to 45000 ms one way for eu -> us, us -> eu"),
    "a round trip of nothing": ("from,to,rtt_ms\neu,us,0.0001\n", "unlikely: 5e-05 ms one way for eu -> us"),
    "a matrix": ("rtt_s,eu,us\neu,,80\nus,80,\n", "unlikely: 40000 ms one way"),
    "one place in two ways": ("from,to,rtt_ms\neu-west,us,80\nEU West,us,82\n", "1 name is written in several ways: eu-west and EU West"),
    "a server": ("workload,rps\n1,1e9\n2,2e9\n", "unlikely: 1e+09 to 2e+09 requests/s for a server"),
    "a request": ("workload,rps\n1,0.000001\n2,0.000005\n", "unlikely: 400000 to 1e+06 s for a request"),
    "a bin": ("time,requests\n1767225600,5\n1767225660,7\n", "unlikely: 0.06 s for a bin"),
}  # fmt: skip


@pytest.mark.parametrize("case", IMPLAUSIBLE)
def test_unlikely_figures_are_doubted(case, tmp_path):
    """Beyond what fibre around the world takes, what one server ever did, and bins that anybody counts in."""
    text, doubt = IMPLAUSIBLE[case]
    found = only(read(tmp_path, {"a.csv": text}, time_unit="ms" if case == "a bin" else None))
    assert any(note.startswith(doubt) for note in found.notes), found.notes


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
    histogram = only(
        read(tmp_path, {"d.json": counter.replace("http_requests_total", "request_seconds_count")}, role="arrivals")
    )
    found = only(read(tmp_path, {"c.json": counter}))
    np.testing.assert_array_equal(histogram.counts, found.counts)
    assert sorted(set(found.counts.ravel().tolist())) == [0, 30]


@pytest.mark.parametrize(
    ("column", "value"), [("status", 200), ("latency_ms", 80), ("response_code", 503), ("bytes", 1200)]
)
def test_what_is_said_of_single_requests_is_no_count(column, value, tmp_path):
    """Evenly spaced times do not make status codes, latencies or sizes numbers of requests."""
    lines = "".join(f"{60 * k},{value}\n" for k in range(41))
    found = only(read(tmp_path, {"log.csv": f"time_s,{column}\n{lines}"}))
    assert found.counts.sum() == 41
    assert any("if these are bins and no single requests" in note for note in found.notes)


K6 = "metric_name,timestamp,metric_value,status\n" + "".join(
    f"http_reqs,{1767225600 + k},1,{500 if k % 4 == 0 else 200}\nhttp_req_duration,{1767225600 + k},{100 + k},\n"
    for k in range(200)
)
FAILURES = {
    "status codes": (
        "time_s,status\n",
        lambda k: [200, 503, 301, 429][k % 4],
        '100 of 200 requests failed, by "status"',
    ),
    "success": ("time_s,success\n", lambda k: k % 4 > 0, '50 of 200 requests failed, by "success"'),
    "words": ("time_s,error\n", lambda k: "timed out" if k % 10 == 0 else "", '20 of 200 requests failed, by "error"'),
}


@pytest.mark.parametrize("case", FAILURES)
def test_requests_that_failed_are_demand_and_that_is_said(case, tmp_path):
    header, cell, said = FAILURES[case]
    lines = "".join(f"{k * 1.7 + (k % 3) / 7},{cell(k)}\n" for k in range(200))
    found = only(read(tmp_path, {"log.csv": header + lines}, bin_s=1.7))
    assert found.counts.sum() == 200
    assert any(note.startswith(f"{said}; they came, so they are counted") for note in found.notes)


def test_lines_of_other_metrics_are_no_requests(tmp_path):
    found = only(read(tmp_path, {"k6.csv": K6}, bin_s=10.0))
    assert found.counts.ravel().tolist() == [10] * 20
    assert "200 of 400 lines are requests (metric_name http_reqs)" in found.notes
    assert any('50 of 200 requests failed, by "status"' in note for note in found.notes)


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


def test_a_single_ratio_is_no_range(tmp_path):
    text = "concurrency,rps,latency_s\n1,0.5,1.2\n2,1,1.2\n"
    assert any(
        "is 0.6 times the concurrency that was allowed: they differ" in note
        for note in only(read(tmp_path, {"a.csv": text})).notes
    )


def test_requests_can_be_selected(tmp_path):
    """Every tenth request failed; of columns that are in other files of the import nothing is asked here."""
    lines = "".join(f"{k * 1.7 + (k % 3) / 7},{503 if k % 10 == 0 else 200}\n" for k in range(600))
    files = {"log.csv": f"time_s,status\n{lines}"}
    every, good = (
        only(read(tmp_path, files, bin_s=10.0, select=select)) for select in ({}, {"status": "200", "hw": "h200"})
    )
    assert good.counts.sum() == pytest.approx(0.9 * every.counts.sum(), rel=0.01)
    with pytest.raises(InputError, match='no row has status "999"'):
        read(tmp_path, files, select={"status": "999"})


def test_runs_pairs_and_series_can_be_selected(tmp_path):
    """The same option for every layout with rows: here each file has twice what is wanted of it."""
    runs = [vllm(c, f * r, hw=hw) for hw, f in (("a100", 1), ("h100", 2)) for c, r in RATES.items()]
    curve = only(read(tmp_path / "a", {"a.json": json.dumps(runs)}, select={"hw": "h100"}))
    assert [point.throughput for point in curve.points] == [2 * rate for rate in RATES.values()]
    pairs = "from,to,day,rtt_ms\na,b,1,9\na,b,2,90\n"
    assert only(read(tmp_path / "b", {"b.csv": pairs}, select={"day": "2"})).seconds == {("a", "b"): 0.045}
    text = query_range("http_requests_total", "region", {"paris": np.arange(100.0), "tokyo": np.arange(100.0)})
    assert only(read(tmp_path / "c", {"c.json": text}, select={"region": "tokyo"})).counts.shape == (99, 1)


def test_a_unit_that_contradicts_the_name_of_the_column_is_refused(tmp_path):
    files = {"log.csv": "time_ms,status\n" + "".join(f"{100 * k + k % 7},200\n" for k in range(60))}
    with pytest.raises(InputError, match='"time_ms" is in ms by its name, but time_unit is s: keep one of the two'):
        read(tmp_path, files, time_unit="s")
    only(read(tmp_path, files, time_unit="ms"))


def test_a_place_that_is_no_frontend_is_said(tmp_path):
    """In a fleet of Paris and Tokyo the regions eu and us name nobody: one demand for all, and a note."""
    files = {
        "log.csv": "time_s,region\n" + "".join(f"{7 * k % 400 + k / 9},{'eu' if k % 2 else 'us'}\n" for k in range(90))
    }
    found = only(read(tmp_path, files, names=("paris", "tokyo")))
    assert found.names == ()
    assert '"region" names no frontend, so all share one demand' in found.notes
    named = only(read(tmp_path, files, names=("eu", "us")))
    assert sorted(named.names) == ["eu", "us"]
    assert not any("names no frontend" in note for note in named.notes)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rtt_ms,gpu-a,gpu-b\nparis,10,20\ntokyo,200,180\nmean,105,100\n", '"mean" sums the others up and is no place'),
        ("rtt_ms,eu,us,avg\neu,,80,80\nus,80,,80\n", '"avg" sums the others up'),
        ("time_s,eu,us,total\n0,600,300,900\n3600,500,200,700\n", '"total" sums the others up'),
        ("timestamp,region,rps\n2025-01-01 00:00,paris,3\n2025-01-01 00:00,tokyo,4\n", '"rps" is a rate, so its lines'),
        (
            "timestamp,region,requests_per_second\n2025-01-01 00:00,eu,3\n2025-01-01 01:00,eu,4\n",
            "is a rate, so its lines",
        ),
    ],
)
def test_what_is_no_place_and_no_request_is_refused(tmp_path, text, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(tmp_path, {"a.csv": text})


def test_figures_at_whole_minutes_are_bins(tmp_path):
    """No requests come so evenly; a line that lacks is asked for, and so are columns that are neither."""
    text = "time,eu,us\n2025-03-30 00:00,600,300\n2025-03-30 01:00,500,200\n"
    assert only(read(tmp_path, {"a.csv": text})).counts.tolist() == [[600, 300], [500, 200]]
    with pytest.raises(InputError, match=r"a\.csv:4:1: .*breaks the even spacing"):
        read(tmp_path, {"a.csv": f"{text}2025-03-30 03:00,1,2\n"})
    with pytest.raises(InputError, match="note counts no requests of a place, by name or cells"):
        read(tmp_path, {"a.csv": text.replace(",us", ",note").replace("300", "maintenance")})


def test_counts_have_no_decimals(tmp_path):
    """1.200 is written as nobody writes 1.2 who counts."""
    with pytest.raises(InputError, match=r'a\.csv:2:2: eu "1\.200" could be 1200 or 1\.2'):
        read(tmp_path, {"a.csv": "time_s,eu,us\n0,1.200,900\n60,1.250,950\n120,1.300,980\n"})
    found = only(read(tmp_path, {"a.csv": "time_s,requests\n0,0.5\n60,0.75\n"}))
    assert found.notes[-1] == "requests: no whole numbers; if they are requests/s, call a single column rps"


def test_a_log_may_hold_the_speed_of_each_request(tmp_path):
    found = read(tmp_path, {"a.csv": "timestamp_s,tokens_per_second\n0,31\n1.5,28\n7,35\n30,30\n"})
    assert found[1] == ["table of requests"]
