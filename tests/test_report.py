"""Reports: one file, nothing to load, whole HTML, the numbers of the store."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("zarr", reason="install the sweep extra")

from dgdlb_jax.cli import main
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports import html as report
from dgdlb_jax.reports.sweep_page import sweep_report
from dgdlb_jax.studies.sweep import open_sweep, sweep
from sweeps import small

pytestmark = pytest.mark.usefixtures("quick_compilation")

VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Tags that close in the order in which they open; what is loaded from elsewhere; the cells of tables."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.sources, self.cells, self.wrong = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def checked(text) -> Checker:
    page = Checker(text)
    assert not page.open
    assert not page.wrong
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert not re.search(r"(?i)<script|@import|url\(", text)
    assert 'name="viewport"' in text
    return page


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "small.zarr"
    sweep(small(description="a <small> sweep & more"), path, progress=False).close()
    return path


def test_a_sweep_as_a_page(store):
    text = sweep_report(store)
    page = checked(text)
    assert "a &lt;small&gt; sweep &amp; more" in text
    assert len(page.sources) >= 3
    with open_sweep(store) as dataset:
        for factor in dataset["step_size_over_default"].values:
            part = dataset["excess"].sel(step_size_over_default=factor).values
            assert report.figure_text(np.quantile(part, 0.5, method="nearest")) in page.cells


def test_the_command_writes_it(store, tmp_path, capsys):
    file = tmp_path / "small.html"
    assert main(["report", str(store), "--output", str(file)]) == 0
    assert str(file) in capsys.readouterr().out
    checked(file.read_text())
    assert main(["report", str(tmp_path / "nothing.zarr")]) == 2
    assert "is no store of a sweep" in capsys.readouterr().err
    assert main(["report", str(store), "--y", "exces", "--output", str(file)]) == 2
    assert 'did you mean "excess"?' in capsys.readouterr().err


def test_texts_are_escaped_and_tables_stay_narrow():
    text = report.page("<b>", [report.table(("a<", "b"), [("&", 1)], right=(1,)), report.preformatted("<x>")])
    page = checked(text)
    assert page.cells == ["a<", "b", "&", "1"]
    assert '<div class="wide"><table>' in text


def test_a_page_is_whole_or_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        report.write_page(tmp_path / "missing" / "page.html", "text")
    assert not list(tmp_path.iterdir())
