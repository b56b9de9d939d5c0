"""Results of Prometheus as curves and as demand."""

import json

import numpy as np
import pytest

from dgdlb_jax.fleets.importers import workload
from dgdlb_jax.fleets.tidy import curve_csv
from dgdlb_jax.numerics.results import InputError
from layouts import (
    only,
    prometheus,
    query_range,
    read,
)


def test_prometheus_gives_curves_with_their_scatter(tmp_path):
    found, _ = read(tmp_path, prometheus())
    assert [curve.name for curve in found] == ["a", "b"]
    for curve, factor in zip(found, (1, 2), strict=True):
        held = np.array([workload(point) for point in curve.points])
        np.testing.assert_allclose([p.throughput for p in curve.points], factor * 8 * held / (20 + held), rtol=0.01)
        assert all(0 < point.low <= point.throughput <= point.high and point.samples >= 9 for point in curve.points)
        assert "middle half of their throughputs" in curve.notes[-1]
        again = only(read(tmp_path / curve.name, {"a.csv": curve_csv(curve)}))
        np.testing.assert_allclose(
            [p[:2] + p[6:11] for p in again.points], [p[:2] + p[6:11] for p in curve.points], rtol=1e-15
        )
    with pytest.raises(InputError, match=r"^wait.json \(waiting\): .* add throughput=FILE and running=FILE\.$"):
        read(tmp_path / "x", {"wait.json": prometheus()["wait.json"]})


def test_the_scatter_of_a_skewed_group_holds_its_mean(tmp_path):
    """One sample of six is three times as large, so that the mean lies above the upper quartile."""
    total = np.cumsum(15 * np.where(np.arange(100) % 6 == 0, 3.0, 1.0))
    files = {
        "run.json": query_range("vllm:num_requests_running", "pod", {"a": 1 + np.arange(100) // 10}),
        "done.json": query_range("vllm:request_success_total", "pod", {"a": total}),
    }
    points = only(read(tmp_path, files)).points
    assert any(point.high == point.throughput for point in points)
    assert all(point.low <= point.throughput <= point.high for point in points)


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
    assert found.notes[1].startswith("arrivals: its figures are taken as requests/s")
    assert found.notes[2:] == (
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


def test_servers_that_are_added_are_said(tmp_path):
    """By the label that was told, while another one differs; by that one each has a curve."""
    files = {name: json.loads(text) for name, text in prometheus().items() if name != "wait.json"}
    for document in files.values():
        document["data"]["result"] = [
            {"metric": one["metric"] | {"zone": "z"}, "values": one["values"]} for one in document["data"]["result"]
        ]
    first, second = (one["metric"] for one in files["run.json"]["data"]["result"])
    label = next(key for key in first if first[key] != second[key])
    texts = {name: json.dumps(document) for name, document in files.items()}
    (zone,) = read(tmp_path / "a", texts, by="zone")[0]
    count = len(files["run.json"]["data"]["result"])
    said = f"each zone is the sum over up to {count} values of {label}: one curve of all of them together"
    assert sum(note.startswith(said) for note in zone.notes) >= 1
    each = read(tmp_path / "b", texts, by=label)[0]
    assert len(each) == count
    assert not any("is the sum over" in note for curve in each for note in curve.notes)


def test_samples_at_other_times_are_no_lack_of_requests(tmp_path):
    files = {name: json.loads(text) for name, text in prometheus().items() if name != "wait.json"}
    for one in files["run.json"]["data"]["result"]:
        one["values"] = [[t + 7, value] for t, value in one["values"]]
    with pytest.raises(
        InputError, match="none of them at times at which the requests in it were sampled too: query all"
    ):
        read(tmp_path, {name: json.dumps(document) for name, document in files.items()})


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
