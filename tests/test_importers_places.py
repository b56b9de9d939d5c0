"""Counts, rates and latencies by place: which column is about which place, and what names none."""

import json
import re

import pytest

from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.numerics.results import InputError
from layouts import only, read

COUNTS_IN_WORDS = "time_s,us requests,Number of requests eu\n0,30,60\n60,90,120\n120,150,180\n"
RATE_FILES = {
    "counts": COUNTS_IN_WORDS,
    "wide": "time_s,us_rps,eu (req/s)\n0,0.5,1\n60,1.5,2\n120,2.5,3\n",
    "per minute": "time_s,us rpm,eu requests per minute\n0,30,60\n60,90,120\n120,150,180\n",
    "long": "time_s,region,rps\n" + "".join(f"{60 * k},us,{k + 0.5}\n{60 * k},eu,{k + 1}\n" for k in range(3)),
    "long, per minute": "time_s,region,rpm\n" + "".join(f"{60 * k},us,{60 * k + 30}\n{60 * k},eu,{60 * k + 60}\n" for k in range(3)),
}  # fmt: skip


@pytest.mark.parametrize("case", RATE_FILES)
@pytest.mark.parametrize("names", [(), ("us", "eu"), ("eu", "us")])
def test_rates_of_each_place_are_counted_by_their_width(case, names, tmp_path):
    found = only(read(tmp_path, {"a.csv": RATE_FILES[case]}, names=names))
    counts = dict(zip(found.names, found.counts.T.tolist(), strict=True))
    assert counts == {"us": [30, 90, 150], "eu": [60, 120, 180]}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("rtt_ms,gpu-a,gpu-b\nparis,10,20\ntokyo,200,180\nmean,105,100\n", '"mean" is a statistic and is no place'),
        ("rtt_ms,eu,us,avg\neu,,80,80\nus,80,,80\n", '"avg" is a statistic'),
        ("time_s,eu,us,total\n0,600,300,900\n3600,500,200,700\n", '"total" sums the others up'),
        ("timestamp,region,rps\n2025-01-01 00:00,paris,3\n2025-01-01 00:00,tokyo,4\n", "is the only time"),
        (
            "timestamp_s,target_rps,rps\n0,4,3\n7,4,4\n9,5,5\n",
            "is a rate, so its lines are no single requests: give one rate",
        ),
        ("time_s,us_rps,eu\n0,4,3\n60,4,4\n", "us_rps is a rate, and eu is none: give rates of all places"),
        ("time_s,us_rps,us rpm\n0,4,240\n60,4,240\n", "us_rps and us rpm are rates of the same requests"),
        ("time_s,region,rps\n0,us,4\n0,eu,4\n60,us,4\n180,eu,4\n", 'a.csv:5:1: time_s "180.0" breaks the even spacing'),
    ],
)
def test_what_is_no_place_and_no_request_is_refused(tmp_path, text, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(tmp_path, {"a.csv": text})


def test_places_that_are_named_are_told_from_their_sums(tmp_path):
    matrix = "rtt_ms,gpu-a,gpu-b\nparis,10,20\ntokyo,200,180\nmean,105,100\n"
    found = only(read(tmp_path, {"a.csv": matrix}, names=("paris", "tokyo")))
    assert {pair[0] for pair in found.seconds} == {"paris", "tokyo"}
    assert "left out, as they sum the others up: mean" in found.notes
    lines = "".join(f"{60 * k},{name},{n}\n" for k in range(3) for name, n in (("eu", 5), ("us", 7), ("total", 12)))
    counts = only(read(tmp_path, {"b.csv": f"time_s,region,requests\n{lines}"}, names=("eu", "us")))
    assert (counts.names, counts.counts.tolist()) == (("eu", "us"), [[5, 7]] * 3)


def test_titles_above_a_table_are_left_out_and_said(tmp_path):
    table = "from,to,rtt_ms\na,b,9\nb,a,9\n"
    for title in ("Round trips\n2026-01-02\n", "Round trips,,\n\n2026-01-02,,\n", '"Round trips"\n"2026-01-02"\n'):
        found = only(read(tmp_path, {"a.csv": title + table}))
        assert found.seconds == pytest.approx({("a", "b"): 0.0045, ("b", "a"): 0.0045})
        assert found.notes[0] == "above its header, and left out: Round trips, 2026-01-02"
    for text, sentence in {
        "Round trips,,\na,b,9\n": "a.csv:1: 2 columns have no name",
        "Round trips\na,b,9\n": "a.csv:2: the line has 3 cells",
    }.items():
        with pytest.raises(InputError, match=sentence):
            read(tmp_path, {"a.csv": text})


def test_lines_of_pairs_without_a_figure_are_holes(tmp_path):
    found = only(read(tmp_path, {"a.csv": "from,to,rtt_ms\na,b,9\nb,a,\na,c,4\nc,a,*\na,c,timeout\nb,c,5\nc,b,5\n"}))
    assert found.holes == (("b", "a"), ("c", "a"))
    assert "3 lines have no figure, or 0, and are left out; no figure for b -> a, c -> a" in found.notes
    half = only(read(tmp_path, {"b.csv": "from,to,rtt_ms\na,b,9\nb,a,\na,c,4\nc,a,\nb,c,5\nc,b,-\n"}))
    assert (half.holes, half.seconds["c", "b"]) == ((), 0.0025)
    for text in ("from,to,rtt_ms,loss\na,b,0,100\nb,a,9,0\n", "from,to,rtt_ms\na,b,0\nb,a,9\n"):
        found = only(read(tmp_path, {"d.csv": text}))
        assert found.seconds == pytest.approx({("b", "a"): 0.0045, ("a", "b"): 0.0045})
        assert "1 line has no figure, or 0, and is left out" in found.notes
    with pytest.raises(InputError, match='no cell of "rtt_ms" holds a figure'):
        read(tmp_path, {"c.csv": "from,to,rtt_ms\na,b,-\n"})


NO_LATENCIES = {
    "counts with bins across": ("region,00:00,01:00,02:00\nus,9,8,7\neu,5,6,7\n", "its columns 00:00, 01:00, ... are times"),
    "counts with dates across": ("region;2026-01-01;2026-01-02\nus;9;8\neu;5;6\n", "turn it, so that every line is a time"),
    "requests from each to each": ("from/to,us,eu,in\nus,900,12,40\neu,30,700,11\nin,9,80,400\n", "us, eu, in would be farther"),
    "... to others": ("from/to,us,eu,in\nus,,12,40\neu,30,,11\nin,9,80,\n", "most pairs differ by more than a factor of 2"),
    "... as a list": ("from,to,latency\nus,us,900\nus,eu,12\neu,us,12\neu,eu,99\n", "us, eu would be farther from themselves"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_LATENCIES)
def test_figures_that_no_network_has_are_refused(case, tmp_path):
    text, sentence = NO_LATENCIES[case]
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, {"a.csv": text}, latency="rtt_ms")


@pytest.mark.parametrize(("section", "name"), [("latency", "day"), ("demand.day", "rtt"), ("curves.c", "rtt")])
def test_a_file_of_another_section_is_called_by_its_name(section, name, tmp_path):
    (tmp_path / "rtt.csv").write_text("from,to,rtt_ms\nus,us,1\n")
    (tmp_path / "day.csv").write_text("time,requests\n2026-01-01 00:00,5\n2026-01-01 01:00,6\n")
    files = {"latency": "rtt", "demand.day": "day", "curves.c": "c"} | {section: name}
    (tmp_path / "c.csv").write_text("workload,throughput\n1,9\n2,12\n4,15\n")
    (tmp_path / "f.toml").write_text(
        '[frontends]\nnames = ["us"]\nrate = 2\n[backends]\nnames = ["us"]\ncurve = "c"\n[demand.day]\nkind = "trace"\n'
        f'table = "{files["demand.day"]}.csv"\n[curves.c]\nkind = "measured"\ntable = "{files["curves.c"]}.csv"\n'
        f'[latency]\ntable = "{files["latency"]}.csv"\n'
    )
    belongs = {
        "day": "a table of requests per bin, and belongs into .demand",
        "rtt": "a table of pairs of regions, and belongs into .latency",
    }
    with pytest.raises(InputError, match=rf"{section}.*{name}.csv is {belongs[name]}"):
        load_fleet(tmp_path / "f.toml")


ROWS = {"us": {"us": 1.0, "eu": 70.0, "in": 190.0}, "eu": {"us": 71.0, "in": 120.0}, "in": {"us": 191, "eu": None}}
OF_CLOUDPING = {"timeframe": "1Y", "unit": "milliseconds"}


def by_percentile(name, factor):
    return (
        {i: {j: None if x is None else factor * x for j, x in row.items()} for i, row in ROWS.items()} if name else {}
    )


@pytest.mark.parametrize(
    ("document", "told", "factor"),
    [
        (ROWS, {"latency": "rtt_ms"}, 1),
        ({"data": ROWS}, {"latency": "rtt_ms"}, 1),
        ({"metadata": OF_CLOUDPING, "data": ROWS}, {}, 1),
        ({"p_10": by_percentile("p_10", 0.5), "p_50": ROWS, "p_99": by_percentile("p_99", 2)}, {"latency": "rtt_ms"}, 1),
        ({"p_50": ROWS, "p_99": by_percentile("p_99", 2)}, {"latency": "rtt_ms", "select": {"percentile": "p_99"}}, 2),
        (
            {"metadata": OF_CLOUDPING, "data": {i: {j: {"avg": 9, "p50": x} for j, x in row.items()} for i, row in ROWS.items()}},
            {"select": {"percentile": "p50"}}, 1,
        ),
    ],
)  # fmt: skip
def test_latencies_in_json_have_two_or_three_levels(document, told, factor, tmp_path):
    found = only(read(tmp_path, {"a.json": json.dumps(document)}, **told))
    expected = {(i, j): factor * x / 2e3 for i, row in ROWS.items() for j, x in row.items() if x is not None}
    assert found.seconds == pytest.approx(expected)
    assert found.holes == (("in", "eu"),)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        (
            ROWS,
            "does not say what its figures are: write them as a table with the columns from, to and one of one_way_s",
        ),
        (
            {"metadata": OF_CLOUDPING, "data": {}},
            "a.json: data holds no latencies by region: ask for those of all regions",
        ),
        (
            {"metadata": {"from": "a", "to": "b", "points": 1}, "data": [{"value": 3.0}]},
            "data holds no latencies by region",
        ),
        ({"message": "Forbidden"}, 'a.json holds an answer without figures, "Forbidden": query again'),
        ({"points": {"first": {"count": 5, "rate": 1.0}}}, "and has the fields points"),
    ],
)
def test_other_json_is_refused_with_what_is_wanted(document, sentence, tmp_path):
    with pytest.raises(InputError, match=re.escape(sentence)):
        read(tmp_path, {"a.json": json.dumps(document)})


def test_a_title_may_say_what_a_matrix_holds_and_footnotes_are_left_out(tmp_path):
    table = "Source,us,eu\nus,,64\neu,66,\n"
    found = only(read(tmp_path, {"a.csv": f"Round-trip latency (ms),,\n{table}* 30 days,,\nSource: us\n"}))
    assert found.seconds == {("us", "eu"): 0.032, ("eu", "us"): 0.033}
    assert "below its lines, and left out: * 30 days, Source: us" in found.notes
    half = only(
        read(tmp_path, {"b.csv": "rtt_ms,us,eu\nus,,64\neu,,\n"})
    )  # the last line of half a matrix is no footnote
    assert half.ends(0) == ("us", "eu")
    with pytest.raises(InputError, match='says rtt_ms, unit = "one_way_ms"'):
        read(tmp_path, {"a.csv": f"Round-trip latency (ms),,\n{table}"}, latency="one_way_ms")


def test_statistics_of_ping_between_two_places_are_latencies(tmp_path):
    text = (
        "source,destination,timestamp,min,avg,max\na,b,2026-01-01 00:09:26,15,16,17\nb,a,2026-01-01 00:19:27,15,18,20\n"
    )
    with pytest.raises(InputError, match='"avg" does not say its unit or whether it is a round trip or one way'):
        read(tmp_path, {"a.csv": text})
    found = only(read(tmp_path, {"a.csv": text}, latency="rtt_ms"))
    assert found.seconds == pytest.approx({("a", "b"): 0.008, ("b", "a"): 0.009})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("hour,Mon,Tue\n0,5,6\n1,5,6\n2,7,8\n", "its columns Mon, Tue are times, as its lines are"),
        ("time_s,us requests,us calls\n0,5,6\n60,5,6\n", "us requests and us calls are counts of the same requests"),
        ("from|to|rtt_ms\na|b|9\n", "separated by neither commas nor semicolons nor tabs"),
    ],
)
def test_tables_of_other_shapes_are_refused(text, sentence, tmp_path):
    with pytest.raises(InputError, match=sentence):
        read(tmp_path, {"a.csv": text})


def test_a_single_column_of_requests_is_that_of_all(tmp_path):
    found = only(read(tmp_path, {"a.csv": "time_s,frontend hits\n0,5\n60,6\n120,5\n"}))
    assert (found.names, found.counts.ravel().tolist()) == ((), [5, 6, 5])
