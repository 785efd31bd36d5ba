"""`train` in a real kernel: the bar, the stop button, an error, and the same cell again with nothing left of before."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from ...conftest import COMMAND_ENVIRONMENT, DATA

SET_UP = """
import gc, sys
from lora_train import Run, train
assert "torch" not in sys.modules
config = {{
    "model": {{"name_or_path": {model!r}}},
    "lora": {{"r": 4}},
    "data": {{"train": {data!r}, "format": "koalpaca", "limit": 20, "cache": False}},
    "training": {{"per_device_train_batch_size": 3, "logging_steps": 1, "max_steps": 4, "output_dir": {out!r}}},
}}
def live():
    import peft, torch
    gc.collect()
    things = [thing for thing in gc.get_objects() if issubclass(type(thing), (torch.Tensor, peft.PeftModel))]
    tensors = [thing for thing in things if isinstance(thing, torch.Tensor)]
    storages = {{t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}}
    return sum(storages.values()), len(things) - len(tensors)
"""
FAILS = """
from lora_train.trainer.loop import train as loop
own = loop.train_step
def fails(components, rows):
    if rows.step == 3:
        raise RuntimeError("for the test")
    return own(components, rows)
loop.train_step = fails
try:
    train(config)
finally:
    loop.train_step = own
"""


class Notebook:
    """Cells in one kernel."""

    def __init__(self, client: NotebookClient):
        self.client = client

    def cell(self, source: str) -> Any:
        """Runs a cell; gives it with its outputs."""
        cells = self.client.nb.cells
        cells.append(nbformat.v4.new_code_cell(source))
        return self.client.execute_cell(cells[-1], len(cells) - 1)

    def value(self, expression: str) -> str:
        (output,) = self.cell(expression)["outputs"]
        return output["data"]["text/plain"]

    def html(self, expression: str) -> str:
        (output,) = self.cell(expression)["outputs"]
        return output["data"]["text/html"]


@pytest.fixture
def notebook(tiny_models, tmp_path) -> Iterator[Notebook]:
    client = NotebookClient(nbformat.v4.new_notebook(), timeout=300, kernel_name="python3")
    with client.setup_kernel(env=COMMAND_ENVIRONMENT, cwd=str(tmp_path)):
        found = Notebook(client)
        found.cell(SET_UP.format(model=str(tiny_models["llama"]), data=str(DATA), out=str(tmp_path / "run")))
        yield found


def text_of(cell: Any) -> str:
    return "".join(output.get("text", "") for output in cell["outputs"])


def press_stop(notebook: Notebook, run: Path) -> threading.Thread:
    """Interrupts the kernel as Jupyter does, when the run has made two steps."""

    def press() -> None:
        while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").read_text().count("\n") < 2:
            time.sleep(0.02)
        provisioner: Any = getattr(notebook.client.km, "provisioner", None)
        os.kill(provisioner.pid, signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    return thread


def test_a_cell_trains_shows_its_progress_and_its_run(notebook, tmp_path):
    cell = notebook.cell("run = train(config, learning_rate=1e-3)")
    (progress,) = [output for output in cell["outputs"] if output["output_type"] == "display_data"]
    assert 'value="4" max="4"' in progress["data"]["text/html"]  # one output, replaced in place
    assert "loss" in progress["data"]["text/html"]
    assert "step 4/4" in text_of(cell)
    shown = notebook.html("run")
    assert str(tmp_path / "run") in shown
    assert "healthy" in notebook.html("run.explain('en')")
    assert notebook.value("run.metrics['step'].tolist()") == "[1, 2, 3, 4]"
    assert notebook.value("len(run.stats(r'lora_B', ['norm'], 2)) > 0") == "True"
    assert notebook.html("run.metrics").count("<tr") >= 4


def test_the_stop_button_and_an_error_leave_nothing_and_the_cell_runs_again(notebook, tmp_path):
    notebook.cell("train(config, max_steps=1, output_dir='first')")  # what is imported and compiled once stays
    notebook.cell("before = live()")
    stop = press_stop(notebook, tmp_path / "run")
    with pytest.raises(CellExecutionError, match="KeyboardInterrupt"):
        notebook.cell("train(config, max_steps=100000)")
    stop.join(timeout=60)
    assert list((tmp_path / "run").glob("checkpoint-*"))
    assert notebook.value("live() == before") == "True", notebook.value("live(), before")
    with pytest.raises(CellExecutionError, match="for the test"):
        notebook.cell(FAILS)
    assert notebook.value("live() == before") == "True", notebook.value("live(), before")
    with pytest.raises(CellExecutionError, match="UserError"):
        notebook.cell("train(config, learnig_rate=1)")
    notebook.cell("run = train(config)")
    assert notebook.value("run.metrics['step'].tolist()") == "[1, 2, 3, 4]"
    assert notebook.value("str(run.path)") == repr(str(tmp_path / "run-3"))
    assert notebook.value("live() == before") == "True", notebook.value("live(), before")
