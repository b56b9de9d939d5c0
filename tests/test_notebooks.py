"""Notebooks run from a clean kernel, errors fatal. (That of the claims: see `test_claims`, which has them computed.)"""

import pytest

from helpers import ROOT, run_notebook

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem != "05_claims"], ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, tmp_path):
    run_notebook(path, tmp_path)


def test_notebooks_are_committed_with_their_figures():
    for path in NOTEBOOKS:
        assert "image/png" in path.read_text(), path.name
