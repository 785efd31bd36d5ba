"""The bar of a notebook."""

from __future__ import annotations

import sys
import types
from typing import Any

from lora_train.trainer.api.progress import NotebookConsole, bar, in_notebook


def test_a_bar_shows_numbers_and_escapes_what_is_said():
    text = bar(1500, 3000, "<b>loss</b> & 1.5")
    assert 'value="1500" max="3000"' in text
    assert "1,500/3,000" in text
    assert "&lt;b&gt;loss&lt;/b&gt; &amp; 1.5" in text


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    for shell, expected in ((None, False), (types.SimpleNamespace(), False), (types.SimpleNamespace(kernel=1), True)):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        assert in_notebook() is expected
    monkeypatch.delitem(sys.modules, "IPython")
    assert not in_notebook()


def test_the_bar_moves_in_place_and_ends_where_the_run_did(monkeypatch):
    """IPython's display, which is there in a kernel only."""
    shown: list[Any] = []
    handle = types.SimpleNamespace(update=shown.append)
    display = types.SimpleNamespace(HTML=str, display=lambda html, display_id: (shown.append(html), handle)[1])
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace())
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    console = NotebookConsole()
    console.begin(0, 100)
    for step in range(1, 101):
        console.advance(step, f"loss {step}")
    console.end()
    assert shown[0] == bar(0, 100, "")
    assert shown[-1] == bar(100, 100, "loss 100")
    assert len(shown) < 100
    silent = NotebookConsole()
    silent.silent = True
    silent.begin(0, 5)
    silent.advance(1, "x")
    silent.end()
    assert shown[-1] == bar(100, 100, "loss 100")
