"""Notebooks run from a clean kernel, errors fatal. (That of the claims: see `test_claims`, which has them computed.)"""

import json
import re

import pytest

import dgdlb_jax as dgd
from helpers import ROOT, run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "05_claims"], ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, tmp_path):
    run_notebook(path, tmp_path)


def test_notebooks_are_committed_with_their_figures():
    for path in NOTEBOOKS:
        assert "image/png" in path.read_text(), path.name


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_use_public_names_and_answer_their_question(path):
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    code = "\n".join(text for kind, text in cells if kind == "code")
    assert not re.search(r"(from|import) dgdlb_jax\.", code)
    assert set(re.findall(r"\bdgd\.(\w+)", code)) <= set(dgd.__all__)
    assert set(re.findall(r"\bdgd\.plots\.(\w+)", code)) <= set(dir(dgd.plots))
    assert "?" in cells[0][1].split("\n\n## ")[0]
    assert cells[-1][0] == "markdown"
    assert cells[-1][1].startswith("## The answer")
