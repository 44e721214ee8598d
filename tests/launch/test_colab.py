"""The notebook runs from top to bottom, as Colab runs it, and shows pictures."""

import pathlib

import nbformat
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parents[2] / "launch" / "colab.ipynb"


def test_notebook_runs_and_shows_pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("DIGITS_STEPS", "40")  # the kernel inherits it; the shipped run is longer
    (tmp_path / "vitdiff_jax").symlink_to(NOTEBOOK.parents[1])  # where Colab's clone would be
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) >= 4  # a grid of training, two of sampling, the losses
    assert not [o for o in outputs if o.output_type == "error"]
