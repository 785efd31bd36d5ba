"""The notebook for Colab and Kaggle, every cell in a real kernel, on a tiny model."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from ..conftest import COMMAND_ENVIRONMENT, DATA, ROOT

NOTEBOOK = ROOT / "examples" / "colab.ipynb"


def text_of(cell) -> str:
    return "".join(str(output.get("text", "")) + str(output.get("data", "")) for output in cell.outputs)


def test_every_cell_runs(tiny_models, tmp_path, monkeypatch):
    book = nbformat.read(NOTEBOOK, as_version=4)
    (settings,) = [cell for cell in book.cells if cell.source.startswith("MODEL = ")]
    names = {line.split(" = ")[0] for line in settings.source.splitlines()}
    assert names == {"MODEL", "DATA", "OUT", "STEPS"}
    out = tmp_path / "run"
    settings.source = f"MODEL, DATA, OUT, STEPS = {str(tiny_models['llama'])!r}, {str(DATA)!r}, {str(out)!r}, 4"
    for name, value in COMMAND_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    client = NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**os.environ})
    by_source = {cell.source.splitlines()[-1]: cell for cell in book.cells if cell.cell_type == "code"}
    assert "4" in text_of(by_source["run"])
    assert "text/html" in text_of(by_source["run.explain()"])
    assert (out / "lora.gguf").is_file()
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    assert list(out.glob("*.html"))


def test_the_notebook_as_it_is_shipped_has_no_outputs_and_no_place_of_ours():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    text = Path(NOTEBOOK).read_text(encoding="utf-8")
    assert not [word for word in ("/home", "/root", "/tmp", "token=") if word in text]
    assert "has not been run yet" in text


@pytest.mark.parametrize("cell", range(7))
def test_every_cell_is_python_without_magic(cell):
    book = nbformat.read(NOTEBOOK, as_version=4)
    code = [one.source for one in book.cells if one.cell_type == "code"]
    assert len(code) == 7
    compile(code[cell], "cell", "exec")
