"""Notebooks run from a clean kernel, errors fatal."""

import pytest

from helpers import ROOT, own_process

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, tmp_path, monkeypatch):
    for name, value in own_process().items():
        monkeypatch.setenv(name, value)
    nbformat = pytest.importorskip("nbformat", reason="install the notebooks extra")
    client = pytest.importorskip("nbclient", reason="install the notebooks extra")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_notebooks_are_committed_with_their_figures():
    for path in NOTEBOOKS:
        assert "image/png" in path.read_text(), path.name
