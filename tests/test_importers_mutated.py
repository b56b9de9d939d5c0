"""The same files as a spreadsheet or a script might have saved them, and broken ones."""

import csv
import io
import json
import random
from contextlib import nullcontext

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgdlb_jax.fleets import FleetWarning
from dgdlb_jax.fleets.document import read_text
from dgdlb_jax.fleets.importers import LATENCIES, Demand
from dgdlb_jax.fleets.importers.latency_pairs import read_pairs
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError
from layouts import COUNT_FILES, CURVE_FILES, LATENCY_FILES, REQUEST_FILES, prometheus, read


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
    first = (
        list(range(len(rows[0]))) if fixed else [0] if rows[0][0] in ("rtt_ms", "Region", "from \\ to (rtt ms)") else []
    )
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
    header = ["from", "to", mutation["unit"].upper() if mutation["shout"] else mutation["unit"]]
    rows = [[f"a{k}", "b", repr(value / LATENCIES[mutation["unit"]])] for k, value in enumerate(seconds)]
    if mutation["separator"] != "," and mutation["decimal"] == ",":
        rows = [[*row[:2], row[2].replace(".", ",")] for row in [*rows, ["c", "b", "0.5"]]]  # the mark is told by 0,5
    text = io.StringIO()
    quoting = csv.QUOTE_ALL if mutation["quoted"] else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=mutation["separator"], lineterminator=mutation["newline"], quoting=quoting)
    writer.writerows([[row[k] for k in mutation["order"]] for row in [header, *rows]])
    found = read_pairs(Table("t.csv", ("\ufeff" if mutation["mark"] else "") + text.getvalue()))
    found.seconds.pop(("c", "b"), None)
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_every_reader_takes_the_encodings_of_spreadsheets(encoding, tmp_path):
    """The text is the same, and where nothing but a guess tells the encoding, the guess is said with a word to check."""
    (tmp_path / "a.csv").write_bytes("von,nach\r\nZürich,Orléans\r\n".encode(encoding))
    guessed = pytest.warns(FleetWarning, match='a.csv is not in UTF-8 and is read as Windows-1252, so check "Zürich"')
    with guessed if encoding == "cp1252" else nullcontext():
        assert read_text(tmp_path / "a.csv") == "von,nach\nZürich,Orléans\n"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param("a,b\n1,2\n".encode("utf-16-le"), "(character 1 is a zero)", id="UTF-16 without a mark"),
        pytest.param("Zürich,Orléans".encode()[:-4] + b",1", "(byte 11)", id="damaged UTF-8"),
        pytest.param("東京,大阪".encode("shift-jis"), "(byte 0)", id="another code page"),
        pytest.param(b"\xff\xfea\x00b", "in UTF-16 (byte 2)", id="half a letter"),
        pytest.param(b"\x1f\x8b\x08", "is a compressed file (gzip) and no text", id="compressed"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused(data, sentence, tmp_path):
    (tmp_path / "a.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_text(tmp_path / "a.csv")
    assert sentence in str(caught.value)
