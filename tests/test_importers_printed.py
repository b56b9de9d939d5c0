"""What programs print for people, and dates as spreadsheets write them."""

import json

import pytest

from dgdlb_jax.fleets.importers.slashed_dates import slashed
from dgdlb_jax.numerics.results import InputError
from layouts import only, read

PRINTS = {
    "ping": "PING 1.2.3.4 (1.2.3.4) 56(84) bytes of data.\n64 bytes from 1.2.3.4: time=12.3 ms\n\nrtt min/avg/max/mdev = 1/2/3/0 ms\n",
    "fping": "us-east : 12.1 12.4 12.9\neu-west : 80.1 - 81.0\n",
    "wrk": "Running 30s test @ http://127.0.0.1:8080/\n  12 threads and 400 connections\nRequests/sec: 748868.53\n",
    "ApacheBench": "Server Port: 80\nConcurrency Level:      10\nRequests per second:    100.00 [#/sec] (mean)\n",
    "k6": "  http_req_duration..: avg=100ms min=3ms\n  http_reqs..........: 500    50.0/s\n",
    "Vegeta": json.dumps({"latencies": {"mean": 1e8}, "rate": 50.0, "throughput": 49.9}),
    "mtr": json.dumps({"report": {"mtr": {"src": "a"}, "hubs": [{"Avg": 0.5}]}}),
    "CloudWatch": json.dumps({"MetricDataResults": [{"Id": "m1", "Values": [1.0]}]}),
    "promtool": '{region="us"} =>\n5 @[1767225600]\n',
    "a server that Prometheus scrapes": "# HELP up x\nup 1\n",
}  # fmt: skip


@pytest.mark.parametrize("program", PRINTS)
def test_prints_for_people_are_called_so_with_what_to_write(program, tmp_path):
    with pytest.raises(
        InputError, match=rf"a.txt is a summary of {program}.*(from,to,rtt_ms|concurrency,rps|range query|requests)"
    ):
        read(tmp_path, {"a.txt": PRINTS[program]})


def test_a_line_that_names_no_columns_is_called_so(tmp_path):
    with pytest.raises(InputError, match=r"its first line holds the figure 70\.1 and should name the columns"):
        read(tmp_path, {"a.csv": "us,eu,70.1\neu,us,71\n"})


DATES = {
    "year first": ("2026/01/02 00:00:00", "2026/01/02 00:05:00"),
    "a clock of twelve hours": ("1/2/2026 12:00 AM", "1/2/2026 12:05 AM"),
    "a day above 12 behind": ("1/13/2026 0:00", "1/13/2026 0:05"),
    "a day above 12 in front": ("13/1/26 23:58:30", "14/1/26 00:03:30"),
}


@pytest.mark.parametrize("case", DATES)
def test_dates_with_strokes(case, tmp_path):
    first, second = DATES[case]
    found = only(read(tmp_path, {"a.csv": f"Timestamp,Requests\n{first},1200\n{second},1300\n"}))
    assert (found.names, found.width, found.counts.ravel().tolist()) == ((), 300, [1200, 1300])


@pytest.mark.parametrize(
    "cells", [("1/2/2026", "3/2/2026"), ("13/13/2026",), ("13/1/2026", "1/13/2026"), ("1/2/2026 13:00 PM",), ()]
)
def test_dates_that_could_be_several_are_none(cells):
    assert slashed(cells) is None


def test_shares_are_no_requests(tmp_path):
    with pytest.raises(InputError, match="nothing says whether share counts requests"):
        read(tmp_path, {"a.csv": "hour,share\n0,4%\n1,3%\n2,5%\n"})
