"""The example notebook runs from its first cell to its last, and is kept without outputs."""

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers.command import COMPILED, ROOT

PATH = ROOT / "docs/retriever.ipynb"


def test_the_notebook_runs(run, monkeypatch):
    for name, value in {**COMPILED, "WEIGHTS": str(run), "JAX_NUM_CPU_DEVICES": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(PATH, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    *_, figure = notebook.cells
    assert "image/png" in figure.outputs[0].data
    with pytest.raises(Exception, match="image"):  # of the outputs that were just made
        require_stripped(notebook)


def test_the_notebook_is_kept_without_outputs():
    require_stripped(nbformat.read(PATH, as_version=4))


def require_stripped(notebook) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, str(cell.outputs)
