"""Bad fleet files: each complaint is one sentence that names the file, the place, the value and the remedy."""

import random
import re
import shutil
import warnings
from importlib import resources
from pathlib import Path

import pytest

from dgdlb_jax.fleets import describe_fleet, load_fleet
from dgdlb_jax.fleets.document import nearest_column
from dgdlb_jax.numerics.results import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLE = Path(str(resources.files("dgdlb_jax") / "data" / "example"))

FLEET = """\
name = "f"
[frontends]
names = ["paris", "tokyo"]
rate = [6.0, 9.0]
[backends]
names = ["amsterdam", "osaka"]
curve = ["big", "small"]
replicas = [3, 2]
[curves.big]
kind = "measured"
table = "gpu.csv"
[curves.small]
kind = "hyperbolic"
max_rate = 8.0
half_load = 20.0
[latency]
table = "latency.csv"
[demand.trace]
kind = "trace"
table = "day.csv"
"""
TABLES = {
    "gpu.csv": "workload,throughput\n1,0.9\n2,1.7\n4,3.1\n8,4.9\n",
    "latency.csv": "from,to,rtt_ms\nparis,amsterdam,11\nparis,osaka,242\ntokyo,amsterdam,236\ntokyo,osaka,10\n",
    "day.csv": "time_s,requests\n0,5\n10,9\n20,7\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "fleet.toml").write_text(FLEET)
    for name, text in TABLES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def complaint(folder: Path) -> str:
    """What loading the fleet says: one line."""
    with pytest.raises(InputError) as caught:
        load_fleet(folder / "fleet.toml")
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?", ")"))
    return message


def replace(folder: Path, file: str, old: str, new: str) -> None:
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))


TOML = {
    "unknown key": ("rate = [6.0", "rates = [6.0", ["fleet.toml:4: frontends.rates", 'did you mean "rate"?']),
    "unknown section": ("[latency]", "[latencys]", ["fleet.toml:16: latencys", 'did you mean "latency"?']),
    "unknown key of a curve": ("half_load", "halfload", ["fleet.toml:15: curves.small.halfload", '"half_load"?']),
    "unknown curve kind": (
        '"hyperbolic"',
        '"hyperbola"',
        ["fleet.toml:13: curves.small.kind", 'did you mean "hyperbolic"?'],
    ),
    "unknown curve": ('"big", "small"]', '"bigg", "small"]', ["fleet.toml:7", "[curves.bigg]", 'did you mean "big"?']),
    "missing key": ("half_load = 20.0", "", ["curves.small.half_load is missing", "a number"]),
    "missing section": ('[latency]\ntable = "latency.csv"', "", ["latency is missing", "[latency]"]),
    "missing rates": ("rate = [6.0, 9.0]", "", ["frontends.rate is missing", "weight and load"]),
    "not TOML": ("rate = [6.0", "rate = [6.0,,", ["fleet.toml is not valid TOML", "line 4"]),
    "a key twice": (
        'kind = "measured"',
        'kind = "measured"\nkind = "power"',
        ["fleet.toml is not valid TOML", "line 11"],
    ),
    "wrong count": ("rate = [6.0, 9.0]", "rate = [6.0]", ["fleet.toml:4: frontends.rate has 1 entry", "give 2"]),
    "no names": ('["paris", "tokyo"]', "[]", ["fleet.toml:3: frontends.names has 0 entries"]),
    "a number as name": (
        '["paris", "tokyo"]',
        '["paris", 7]',
        ["fleet.toml:3: frontends.names contains 7", "in quotes"],
    ),
    "wrong count of replicas": ("[3, 2]", "[3, 2, 1]", ["fleet.toml:8: backends.replicas has 3 entries", "give 2"]),
    "negative rate": ("9.0]", "-9.0]", ["fleet.toml:4: frontends.rate contains -9.0", "not negative"]),
    "NaN rate": ("9.0]", "nan]", ["fleet.toml:4: frontends.rate contains nan", "finite"]),
    "infinite rate": ("9.0]", "inf]", ["fleet.toml:4: frontends.rate contains inf", "finite"]),
    "rate beyond floats": ("9.0]", "1" + "0" * 400 + "]", ["fleet.toml:4: frontends.rate contains 1000", "finite"]),
    "rate in quotes": ("9.0]", '"9"]', ['fleet.toml:4: frontends.rate contains "9"', "without quotes"]),
    "rate true": ("9.0]", "true]", ["frontends.rate contains True"]),
    "no replicas": ("[3, 2]", "[3, 0]", ["fleet.toml:8: backends.replicas contains 0", "positive"]),
    "negative curve": ("= 8.0", "= -8.0", ["fleet.toml:14: curves.small.max_rate contains -8.0", "positive"]),
    "duplicate frontend": ('"tokyo"]', '"paris"]', ['fleet.toml:3: frontends.names contains "paris" twice', "region"]),
    "duplicate backend": ('"osaka"]', '"amsterdam"]', ['backends.names contains "amsterdam" twice']),
    "demand above capacity": ("9.0]", "99.0]", ["fleet.toml:4: frontends.rate", "105 requests/s", "add replicas"]),
    "load above capacity": (
        "rate = [6.0, 9.0]",
        "weight = [1, 2]\nload = 9",
        ["fleet.toml:5: frontends.load", "lower it"],
    ),
    "no weight": ("rate = [6.0, 9.0]", "weight = [0, 0]\nload = 0.7", ["fleet.toml:4: frontends.weight sums to 0"]),
    "no load": ("rate = [6.0, 9.0]", "weight = [1, 2]", ["frontends.load is missing"]),
    "rate and weight": ("rate =", "weight = [1, 2]\nrate =", ["fleet.toml:4: frontends.weight stands beside rate"]),
    "missing table": ('"gpu.csv"', '"cpu.csv"', ["fleet.toml [curves.big]: the table", "cpu.csv does not exist"]),
    "a folder as table": ('"gpu.csv"', '"."', ["fleet.toml [curves.big]: the table . cannot be read as results"]),
    "table not a text": ('"gpu.csv"', "7", ["fleet.toml:11: curves.big.table is 7", "in quotes"]),
    "two latencies": ("[latency]\n", "[latency]\nrtt_ms = [[1, 2], [3, 4]]\n", ["latency.rtt_ms stands beside table"]),
    "no latencies": ('table = "latency.csv"', "symmetric = true", ["latency.table is missing", "one_way_ms"]),
    "matrix of wrong shape": (
        'table = "latency.csv"',
        "rtt_ms = [[1, 2], [3]]",
        ["fleet.toml:17: latency.rtt_ms has row 1 = [3]", "give 2 numbers"],
    ),
    "matrix of wrong height": ('table = "latency.csv"', "rtt_ms = [[1, 2]]", ["latency.rtt_ms has 1 row", "give 2"]),
    "tokens of requests/s": (
        '"gpu.csv"',
        '"gpu.csv"\ntokens_per_request = 9',
        ["fleet.toml:12: curves.big.tokens_per_request changes"],
    ),
    "figures beside a table": (
        '"gpu.csv"',
        '"gpu.csv"\nworkload = [1]',
        ["fleet.toml:12: curves.big.workload stands beside table"],
    ),
    "places of a demand without": (
        '"day.csv"',
        '"day.csv"\nby = "region"',
        ["fleet.toml:21: demand.trace.by changes nothing"],
    ),
    "two widths": (
        '"day.csv"',
        '"day.csv"\nbin_width_s = 60',
        ["demand.trace.bin_width_s is 60", "day.csv are 10 s apart"],
    ),
    "a rule for tables": (
        'table = "latency.csv"',
        "rtt_ms = [[1, 2], [3, 4]]\nsymmetric = true",
        ["latency.symmetric is about tables"],
    ),
    "unknown cost": ("[latency]", '[latency]\ncost = "roundtrip"', ['latency.cost is "roundtrip"', '"round trip"']),
    "no arc": (
        "[latency]",
        '[arcs]\nforbidden = [["tokyo", "osaka"], ["tokyo", "amsterdam"]]\n[latency]',
        ['fleet.toml:17: arcs.forbidden leaves the frontend "tokyo" without an arc'],
    ),
    "arc to nowhere": (
        "[latency]",
        '[arcs]\nallowed = [["tokyo", "osaca"]]\n[latency]',
        ['the backend "osaca", which does not exist', 'did you mean "osaka"?'],
    ),
    "arc that is no pair": (
        "[latency]",
        '[arcs]\nallowed = [["tokyo"]]\n[latency]',
        ["arcs.allowed contains ['tokyo']", "pairs"],
    ),
    "allowed and forbidden": (
        "[latency]",
        "[arcs]\nallowed = []\nforbidden = []\n[latency]",
        ["forbidden stands beside allowed"],
    ),
    "unknown demand kind": ('kind = "trace"', 'kind = "tracce"', ["demand.trace.kind", 'did you mean "trace"?']),
    "unknown demand": (
        "[demand.trace]",
        '[demand]\nuse = "trac"\n[demand.trace]',
        ["demand.use", 'did you mean "trace"?'],
    ),
    "uneven shift": (
        'table = "day.csv"',
        'table = "day.csv"\nshift_s = [0, 15]',
        ["shift_s contains 15", "multiples", "10 s"],
    ),
    "jumps out of order": (
        'kind = "trace"\ntable = "day.csv"',
        'kind = "jumps"\ntimes_s = [9, 5]\nfactor = [1, 2, 1]',
        ["fleet.toml [demand.trace]", "rising order"],
    ),
    "too few factors": (
        'kind = "trace"\ntable = "day.csv"',
        'kind = "jumps"\ntimes_s = [9]\nfactor = [1, 2, 1]',
        ["factor has 3 entries", "give 2"],
    ),
    "amplitude above 1": (
        'kind = "trace"\ntable = "day.csv"',
        'kind = "daily cycle"\namplitude = 2',
        ["fleet.toml:20: demand.trace.amplitude[0] (frontend 0) is 2", "between 0 and 1"],
    ),
    "source without licence": ("[latency]", '[sources.a]\ntitle = "t"\n[latency]', ["sources.a.licence is missing"]),
    "a table is no list": (
        'names = ["paris", "tokyo"]',
        "names = {a = 1}",
        ["fleet.toml:3: frontends.names", "list of names"],
    ),
}


@pytest.mark.parametrize("case", TOML)
def test_what_is_wrong_in_the_fleet_file(case, folder):
    old, new, parts = TOML[case]
    replace(folder, "fleet.toml", old, new)
    message = complaint(folder)
    for part in parts:
        assert part in message, message


CSV = {
    "missing pair": (
        "latency.csv",
        "tokyo,osaka,10\n",
        "",
        ["latency.csv", "no latency for tokyo -> osaka", "[arcs] forbidden"],
    ),
    "mistyped region": ("latency.csv", "paris,osaka", "paris,osaca", ["paris -> osaka", "symmetric = true"]),
    "negative latency": ("latency.csv", "242", "-242", ['latency.csv:3:3: rtt_ms "-242"', "not negative"]),
    "NaN latency": (
        "latency.csv",
        "242",
        "nan",
        ["latency.csv has no latency for paris -> osaka", "its cell holds no figure"],
    ),
    "latency that is no number": ("latency.csv", "242", "24z", ['latency.csv:3:3: rtt_ms "24z" is not a number']),
    "empty cell": (
        "latency.csv",
        "242",
        "",
        ["latency.csv has no latency for paris -> osaka", "its cell holds no figure"],
    ),
    "infinite latency": ("latency.csv", "242", "inf", ['latency.csv:3:3: rtt_ms "inf"', "finite"]),
    "missing cell": ("latency.csv", ",242", "", ["latency.csv:3: the line has 2 cells, but the table has 3 columns"]),
    "contradiction": (
        "latency.csv",
        "tokyo,osaka,10",
        "paris,osaka,10",
        ["latency.csv:5:3", "contradicts", "paris -> osaka"],
    ),
    "unknown column": ("latency.csv", "rtt_ms", "rtt", ['latency.csv: column "rtt" does not say its unit', "rtt_us"]),
    "no latency": (
        "latency.csv",
        "rtt_ms",
        "value",
        ['latency.csv: column "one_way_ms" is missing', "a matrix of figures"],
    ),
    "column twice": ("latency.csv", "from,to", "from,from", ['latency.csv:1: column "from" occurs twice']),
    "empty table": ("latency.csv", TABLES["latency.csv"], "from,to,rtt_ms\n", ["latency.csv has no rows"]),
    "open quote": ("latency.csv", "paris,osaka", 'paris,"osaka', ["latency.csv has a quoted cell"]),
    "falling and exchanged": (
        "gpu.csv",
        "1,0.9\n2,1.7\n4,3.1\n8,4.9\n",
        "1,0.9\n2,90\n4,0.01\n8,0.02\n",
        ["gpu.csv is not a service curve", "requests/s"],
    ),
    "throughput 0": ("gpu.csv", "4.9", "0", ['gpu.csv:5:2: throughput "0"', "positive"]),
    "one point": ("gpu.csv", "2,1.7\n4,3.1\n8,4.9\n", "", ["gpu.csv", "at least two points"]),
    "other columns": (
        "gpu.csv",
        "throughput",
        "througput",
        ['gpu.csv: column "throughput" is missing', 'is it "througput"'],
    ),
    "uneven bins": ("day.csv", "20,7", "25,7", ['day.csv:4:1: time_s "25"', "even spacing"]),
    "negative requests": ("day.csv", "9", "-9", ['day.csv:3:2: requests "-9"', "not negative"]),
    "nobody asks": ("day.csv", "0,5\n10,9\n20,7", "0,0\n10,0\n20,0", ['no request for "paris"', "rate 0"]),
    "one bin": ("day.csv", "\n10,9\n20,7", "", ["day.csv:2:1", "two bins"]),
}


@pytest.mark.parametrize("case", CSV)
def test_what_is_wrong_in_a_table(case, folder):
    file, old, new, parts = CSV[case]
    replace(folder, file, old, new)
    message = complaint(folder)
    for part in parts:
        assert part in message, message


NUMBERS = {
    "[autoscaler]": {
        "target": 0.7, "startup_s": 5, "min_replicas": 1, "max_replicas": 9, "interval_s": 15, "tolerance": 0.1, "exponent": 1,
    },
    "[autoscaler]\nkind = 'proportional'": {"target": 0.7, "startup_s": 5, "time_constant_s": 9},
    "[news]": {"interval_s": 15},
    "[news]\ninterval_s = 15": {
        "offset_s": 1, "jitter": 0.1, "lost": 0.1, "late_s": 1, "drift_s": 1, "drift_period_s": 9, "seed": 3,
    },
    "[[events]]\nwhat = 'fails'\nbackend = 'osaka'": {"at_s": 5, "timeout_s": 1},
    "[[events]]\nwhat = 'replicas'\nbackend = 'osaka'": {"at_s": 5, "factor": 2},
    "[[events]]\nwhat = 'demand'": {"at_s": 5, "factor": 2},
    "[[events]]\nwhat = 'latency'": {"at_s": 5, "factor": 2},
    "[demand.day]\nkind = 'daily cycle'": {"amplitude": 0.5, "period_s": 9, "mean": 1},
    "[demand.jump]\nkind = 'jumps'\ntimes_s = [9]": {"factor": [1, 2]},
}  # fmt: skip


@pytest.mark.parametrize(("section", "key"), [(section, key) for section, keys in NUMBERS.items() for key in keys])
def test_what_a_sentence_asks_for_is_what_is_accepted(section, key, folder):
    """About 0: refused where the sentence on -1 asks for more, taken where it does not, and refused in the same words."""

    def said(value):
        keys = NUMBERS[section] | {key: [value, 2] if isinstance(NUMBERS[section][key], list) else value}
        lines = (f"{name} = {number}" for name, number in keys.items())
        (folder / "fleet.toml").write_text("\n".join([FLEET, section, *lines]))
        try:
            load_fleet(folder / "fleet.toml")
        except InputError as error:
            return str(error)
        return ""

    negative, zero = said(-1), said(0)
    field = rf"fleet\.toml:\d+: \w+(\[1\]|\.day|\.jump)?\.{key}"
    assert re.match(rf"{field}(\[0\] \(frontend 0\))? (is|contains) -1", negative), negative
    above, from_zero = ("positive", "above 0"), ("not negative", "at least 0", "from 0", "between 0 and 1")
    assert any(word in negative for word in above) != any(word in negative for word in from_zero), negative
    if zero:
        assert any(word in negative for word in above), (negative, zero)
        without = [re.sub(r"(?<= )(-1|0)(\.0)?(?=[:,])", "", message) for message in (zero, negative)]
        assert without[0] == without[1]
    else:
        assert any(word in negative for word in from_zero), negative


def test_a_column_that_is_missing_is_looked_for():
    """What it may be called, and all there are; of many columns what it may be called only."""
    assert nearest_column("one_way_ms", ["from", "to", "oneway_ms"]) == (
        'is it "oneway_ms"? It has the columns from, oneway_ms, to'
    )
    assert nearest_column("one_way_ms", ["a", "b"]) == "it has the columns a, b"
    assert nearest_column("one_way_ms", ["oneway_ms", *map(str, range(12))]) == 'is it "oneway_ms"?'


def test_small_sets_of_words_are_listed(folder):
    """Beside what may have been meant."""
    replace(folder, "fleet.toml", "[latency]", '[[events]]\nat_s = 5\nwhat = "fail"\n[latency]')
    there = "breaks, closes, demand, drains, fails, latency, mends, opens, recovers, replicas"
    assert complaint(folder).endswith(f'events[1].what is "fail": did you mean "fails"? Known here: {there}.')
    replace(folder, "fleet.toml", '"fail"', '"fails"\nbackends = "osaka"')
    message = complaint(folder)
    assert message.endswith('did you mean "backend"? Known here: at_s, backend, timeout_s, what.'), message


def test_a_region_that_the_table_does_not_know_is_named(folder):
    replace(folder, "fleet.toml", '"osaka"]', '"osaca"]')
    message = complaint(folder)
    assert 'paris -> osaca, tokyo -> osaca: "osaca" does not occur in the table: did you mean "osaka"?' in message


def test_many_missing_pairs_are_counted(folder):
    (folder / "latency.csv").write_text("from,to,rtt_ms\nparis,tokyo,1\nosaka,amsterdam,1\n")
    assert "paris -> amsterdam, paris -> osaka, tokyo -> amsterdam and 1 more" in complaint(folder)


def test_a_region_without_inside_latency_asks_for_it(folder):
    replace(folder, "fleet.toml", '"osaka"]', '"tokyo"]')
    (folder / "latency.csv").write_text("from,to,rtt_ms\nparis,amsterdam,1\nparis,tokyo,1\ntokyo,amsterdam,1\n")
    assert "tokyo -> tokyo" in (message := complaint(folder))
    assert "inside_ms" in message


def test_forbidden_arcs_need_no_latency(folder):
    replace(folder, "latency.csv", "tokyo,amsterdam,236\n", "")
    replace(folder, "fleet.toml", "[latency]", '[arcs]\nforbidden = [["tokyo", "amsterdam"]]\n[latency]')
    network = load_fleet(folder / "fleet.toml")
    assert network.mask.tolist() == [[True, True], [False, True]]


def test_overload_is_allowed_on_purpose(folder):
    replace(folder, "fleet.toml", "9.0]", "99.0]\nallow_overload = true")
    assert float(load_fleet(folder / "fleet.toml").arrival_rate.sum()) == 105


def test_files_that_are_no_text(folder):
    (folder / "gpu.csv").write_bytes(b"workload,throughput\n\xff\xfe\n")
    assert "gpu.csv is not a text file in UTF-8" in complaint(folder)
    (folder / "fleet.toml").write_bytes(b"\xff")
    assert "fleet.toml is not a text file in UTF-8" in complaint(folder)


@pytest.mark.parametrize(
    ("fleet", "parts"),
    [
        ("global-lm", ['"global-lm"', 'did you mean "global-llm"?', "two-by-two"]),
        ("xyz", ['no built-in fleet and no file called "xyz"', "global-llm"]),
        ("nowhere/fleet.toml", ["nowhere/fleet.toml does not exist"]),
        ("fleet.toml", ["fleet.toml does not exist"]),
        ("", ["is a folder"]),
        ("a\0b", ["no built-in fleet"]),
        ("x" * 5000, ["no built-in fleet"]),
    ],
)
def test_fleets_that_do_not_exist(fleet, parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for read in (load_fleet, describe_fleet):
        with pytest.raises(InputError) as caught:
            read(fleet)
        for part in parts:
            assert part in str(caught.value)


def test_a_demand_that_does_not_exist(folder):
    with pytest.raises(InputError, match=r'fleet\.toml has no demand "trae": did you mean "trace"\?'):
        load_fleet(folder / "fleet.toml", demand="trae")
    with pytest.raises(InputError, match=r'two-by-two\.toml has no demand "trace"'):
        load_fleet("two-by-two", demand="trace")


SNIPPETS = [
    "nan",
    "-1",
    "1e400",
    '"',
    "[",
    "]",
    "{}",
    "=",
    ",",
    "\n",
    "#",
    "''",
    "0",
    "true",
    "\0",
    "é",
    "[[arcs]]",
    "1e308",
    "x.y = 1",
]
LARGER = ["1979-05-27", "[" * 3000, "9" * 5000, "\u2028", "[arcs]\nallowed = 'latency.csv'\n", "1e-320", "\r", "0x10"]


def mutated(text: str, rng: random.Random) -> str:
    """The text with a few characters, words or lines taken out, put in or exchanged."""
    for _ in range(rng.randint(1, 3)):
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        to = min(to, at + rng.choice([0, 1, 5, 30]))
        words = text.split() or [""]
        piece = rng.choice([rng.choice(SNIPPETS), rng.choice(LARGER), rng.choice(words), ""])
        text = text[:at] + piece + text[to:]
    return text


@pytest.mark.parametrize("seed", range(8))
def test_mutated_files_load_or_are_refused_in_one_sentence(seed, tmp_path):
    rng = random.Random(seed)
    shutil.copytree(EXAMPLE, tmp_path, dirs_exist_ok=True)
    originals = {path: path.read_text() for path in sorted(tmp_path.iterdir())}
    refused = []
    for _ in range(40):
        path = rng.choice([*originals, tmp_path / "fleet.toml"])
        path.write_text(mutated(originals[path], rng), newline="")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                load_fleet(tmp_path / "fleet.toml", demand=rng.choice([None, "trace", "cycle", "surge"]))
            except InputError as error:
                refused.append(str(error))
        path.write_text(originals[path])
    assert len(refused) > 5
    for message in refused:
        assert "\n" not in message
        assert len(message) < 600
