"""Notebooks run from a clean kernel, errors fatal."""

from pathlib import Path

import jax
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("default")
def test_notebook_runs(path, tmp_path, monkeypatch):
    cache = jax.config.values[
        "jax_compilation_cache_dir"
    ]  # shared with the tests, or every kernel compiles all it uses
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache or "")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    # They are run to see that they run: compiling without optimisation takes half the time.
    flags = "--xla_backend_optimization_level=0"
    if jax.__version_info__ < (0, 11):  # newer XLA does not know it
        flags += " --xla_cpu_use_fusion_emitters=false"
    monkeypatch.setenv("XLA_FLAGS", flags)
    nbformat = pytest.importorskip("nbformat", reason="install the notebooks extra")
    client = pytest.importorskip("nbclient", reason="install the notebooks extra")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_notebooks_are_committed_with_their_figures():
    for path in NOTEBOOKS:
        assert "image/png" in path.read_text(), path.name
