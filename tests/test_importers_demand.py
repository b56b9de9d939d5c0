"""Demand in files as people have them: bins, and single requests that are put into bins."""

import numpy as np
import pytest

from dgdlb_jax.fleets.importers import Demand
from dgdlb_jax.fleets.importers.bins import rebinned
from dgdlb_jax.numerics.results import InputError
from layouts import (
    COUNT_FILES,
    COUNTS,
    REQUEST_FILES,
    only,
    read,
)


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
    text = "minute,region,reqs\n" + "".join(f"2026-01-01 00:0{m}:00,{r},{n}\n" for r, m, n in GROUPS)
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


def test_figures_of_single_requests_at_any_times_are_no_bins(tmp_path):
    """A log to the second has several requests of a place in one of them, or gaps that are multiples of a second."""
    for at in (lambda k: k // 3, lambda k: 2 * k + (k % 5 == 0)):
        lines = "".join(f"{at(k)},{'ab'[k % 2]},{k % 7}\n" for k in range(90))
        assert only(read(tmp_path, {"a.csv": f"time_s,region,retry\n{lines}"}, bin_s=1.0)).counts.sum() >= 80


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
    "beginnings and ends": ("start", [f"2026-01-31 00:0{k}:00" for k in range(3)], 60),
    "dates in seconds by their name": ("time_s", [f"2026-01-31 00:0{k}:00" for k in range(3)], 60),
    "German dates": ("timestamp", ["31.01.2026 23:00", "31.01.2026 23:30", "01.02.2026 00:00"], 1800),
}


@pytest.mark.parametrize("case", TIMES)
def test_bins_begin_at_times_of_many_kinds(case, tmp_path):
    column, times, width = TIMES[case]
    found = only(read(tmp_path, {"a.csv": f"{column},requests\n" + "".join(f"{time},7\n" for time in times)}))
    assert (found.width, found.counts.ravel().tolist()) == (width, [7] * 3)


DATES_BESIDE = {
    "hours": ("date,hour,eu,us\n", lambda k: f"2026-01-0{1 + k // 24},{k % 24},{k},7\n"),
    "German dates, times of day": ("Datum;Uhrzeit;eu;us\n", lambda k: f"0{1 + k // 24}.01.2026;{k % 24}:00;{k};7\n"),
    "a line for each place": ("date,time,region,requests\n", lambda k: "".join(
        f"2026-01-0{1 + k // 24},{k % 24:02d}:00:00,{name},{count}\n" for name, count in (("eu", k), ("us", 7)))),
}  # fmt: skip


@pytest.mark.parametrize("case", DATES_BESIDE)
def test_a_date_and_an_hour_in_two_columns_are_one_time(case, tmp_path):
    header, line = DATES_BESIDE[case]
    found = only(read(tmp_path, {"a.csv": header + "".join(map(line, range(30)))}))
    assert (found.names, found.width, found.counts.tolist()) == (("eu", "us"), 3600, [[k, 7] for k in range(30)])
    assert any("are read as one time" in note for note in found.notes)


def test_a_log_with_a_date_and_a_time(tmp_path):
    text = "date,time,sc-status\n" + "".join(f"2026-01-0{1 + k},08:00:0{k}.5,200\n" for k in range(3))
    found = only(read(tmp_path, {"a.csv": text}, bin_s=3600.0))
    assert len(found.counts) > 48
    assert '"date" and "time" are read as one time' in found.notes
    with pytest.raises(InputError, match=r'a\.csv:4:1: date_time "2026-01-03 noon" is no time'):
        read(tmp_path, {"a.csv": text.replace("08:00:02.5", "noon")})


def test_figures_of_a_dashboard_say_what_they_are(tmp_path):
    """Grafana exports rates and counts alike, and calls series after all of their labels."""
    head = '"Time","{region=""paris"", job=""gw""}","{region=""tokyo"", job=""gw""}"\n'
    lines = "".join(f"2026-01-01 00:0{m}:00,{5 + m}{{0}},{m}{{0}}\n" for m in range(4))
    with pytest.raises(InputError, match=r"figures of paris, tokyo are .*: call columns paris_requests, or paris_rps"):
        read(tmp_path, {"a.csv": head + lines.format("")})
    rates = only(read(tmp_path, {"b.csv": head + lines.format(" req/s")}))
    assert (rates.names, rates.counts[0].tolist()) == (("paris", "tokyo"), [300, 0])
    counts = only(read(tmp_path, {"c.csv": "Time,paris_requests,tokyo_requests\n" + lines.format("")}))
    assert (counts.names, counts.counts[0].tolist()) == (("paris", "tokyo"), [5, 0])
    with pytest.raises(InputError, match=r"figures of Value are .*: call the column requests, or rps"):
        read(tmp_path, {"d.csv": "time,Value\n2026-01-01 00:00:00,5\n2026-01-01 00:01:00,6\n"})


def test_figures_at_even_times_are_bins(tmp_path):
    """Whole numbers are counts, and of others nobody knows whether they are rates."""
    text = "time,paris,tokyo\n" + "".join(f"2026-01-01 00:0{m}:00,{5 + m},{m}\n" for m in range(4))
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
    "a rate of no unit": (
        "time_s,request_rate\n0,1.5\n9,1\n20,1\n",
        '"request_rate" is a rate, so its lines are no single requests',
    ),
    "shares": ("time_s,eu,us\n0,50%,50%\n60,40%,60%\n", r'a\.csv:2:2: eu "50%" is not a number'),
    "rates of several places": (
        "time_s,avg_rps,max_rps\n0,1,2\n60,2,3\n",
        '"avg" is a statistic and is no place',
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
    **{
        f"places and {column}": (
            f"hour,region,{column}\n"
            + "".join(f"2026-01-01 0{k}:00,{place},{900 + k}\n" for k in range(3) for place in "ab"),
            f"evenly spaced, .*nothing says whether {column} counts requests: call the column that does requests",
        )
        for column in ("events", "users", "Anfragen", "value")
    },
    "a rate or users": ("time_s,users\n0,40\n10,50\n20,45\n30,50\n", "nothing says whether users counts requests"),
    "days or months": (
        "time,requests\n11/01/2025 00:00,5\n11/02/2025 00:00,6\n",
        "of which nothing tells the day from the month: write",
    ),
    "days and hours": (
        "day,hour,requests\n" + "".join(f"{d},{h},5\n" for d in (1, 2) for h in range(24)),
        r'a\.csv:26:2: hour "0" .*write "day" and "hour" as one column of times',
    ),
    "all at once": ("time_s,user\n5,x\n5,y\n", "less than two bins"),
}


@pytest.mark.parametrize("case", REFUSED_DEMAND)
def test_demand_that_cannot_be_read_is_refused(case, tmp_path):
    text, match = REFUSED_DEMAND[case]
    with pytest.raises(InputError, match=match):
        read(tmp_path, {"a.csv": text})


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


@pytest.mark.parametrize(("column", "per_second"), [("requests/min", 1 / 60), ("Request rate (req/s)", 1), ("rps", 1)])
def test_a_rate_is_counted_by_its_unit(column, per_second, tmp_path):
    found = only(read(tmp_path, {"a.csv": f"time_s,{column}\n0,60\n300,120\n"}))
    np.testing.assert_allclose(found.counts.ravel(), [18000 * per_second, 36000 * per_second], rtol=1e-12)


def test_requests_of_burstgpt_without_a_response_failed(tmp_path):
    lines = "".join(f"{7 * k},GPT-4,5,{k % 3},9,API log\n" for k in range(90))
    found = only(
        read(tmp_path, {"a.csv": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + lines})
    )
    assert found.counts.sum() == 60
    assert "30 requests of 90 without response tokens failed and are left out" in found.notes


def test_lines_of_other_metrics_are_no_requests(tmp_path):
    found = only(read(tmp_path, {"k6.csv": K6}, bin_s=10.0))
    assert found.counts.ravel().tolist() == [10] * 20
    assert "200 of 400 lines are requests (metric_name http_reqs)" in found.notes
    assert any('50 of 200 requests failed, by "status"' in note for note in found.notes)


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
    assert (
        found.notes[-1]
        == "requests: no whole numbers; if they are requests/s, call them so, as us_rps and eu_rps, or a single one rps"
    )


def test_a_log_may_hold_the_speed_of_each_request(tmp_path):
    found = read(tmp_path, {"a.csv": "timestamp_s,tokens_per_second\n0,31\n1.5,28\n7,35\n30,30\n"})
    assert found[1] == ["table of requests"]
