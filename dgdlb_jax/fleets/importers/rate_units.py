"""Units of rates in headers: for how many seconds a column counts requests or tokens, and which tokens."""

import re

from dgdlb_jax.fleets.importers.words import words

OF_TIME = r"(?:s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)"
"""The time that something is counted per."""
OF_REQUESTS = r"(?:requests?|reqs?|r|queries|query|q|calls|hits|arrivals|ops|operations|counts?|c)"
"""What is counted, as a unit of dashboards; `c` and `ops` are those of Grafana."""
_PER = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SHORT = {f"{what}p{per}": seconds for what in ("r", "q", "t", "c", "req") for per, seconds in _PER.items()}
_SHORT |= {"opm": 60.0, "oph": 3600.0}
del _SHORT["cpd"], _SHORT["tpd"]
SHORT = rf"(?:{'|'.join(_SHORT)})"
"""Rates in one word, such as `rps`."""

_PERIOD = re.compile(rf"(?:per[_ ]?|/ ?)({OF_TIME})(?![a-z])")
_SECONDS = {"s", "sec", "second"}
_COUNTED = {"request", "requests", "req", "reqs", "queries", "token", "tokens", "tok", "toks"}
_MOMENTS = {"timestamp", "start", "end", "arrival", "arrived", "gap"}
_NO_RATE = {
    "latency", "time", "duration", "gpu", "chip", "user", "low", "high", "error", "errors", "failed", "failure", "failures", "timeouts",
    "mbps", "gbps", "kbps", "mb", "gb", "kb", "mib", "bytes", "bits", "cost", "price",
}  # fmt: skip
# `kB/s`, of which words makes two.
_BYTES = re.compile(r"(?<![A-Za-z])[kKMG]i?[bB](?:its?|ytes?)?(?:ps|[ _]*(?:/|per))")


def period(column: str) -> float | None:
    """The seconds for which a column counts requests or tokens: 1 of a rate per second; None for a column that is no rate."""
    said = said_period(column)
    found = set(words(column))
    return 1.0 if said is None and found & {"throughput", "tput"} and not is_no_rate(column) else said


def said_period(column: str) -> float | None:
    """The same, None also for a throughput that does not say it."""
    found = set(words(column))
    if is_no_rate(column):
        return None
    if (per := _PERIOD.search(column.lower())) is not None:
        return _PER[per[1][0]]
    if short := found & set(_SHORT):
        return _SHORT[min(short)]
    return 1.0 if found & _SECONDS and found & _COUNTED and not found & _MOMENTS else None


def is_no_rate(column: str) -> bool:
    """Whether a column is about something else than requests or tokens that were served."""
    return bool(_NO_RATE & set(words(column))) or _BYTES.search(column) is not None


def tokens_of(column: str) -> str | None:
    """Which tokens a throughput counts: `"output"`, `"input"`, `"total"`, `"some"` where it does not say, None for requests."""
    found = set(words(column))
    if not found & {"token", "tokens", "tok", "toks", "tps", "tpm", "tph"}:
        return None
    if found & {"output", "out", "generated", "generation", "gen", "decode"}:
        return "output"
    if found & {"input", "in", "prompt", "prefill"}:
        return "input"
    return "total" if "total" in found else "some"
