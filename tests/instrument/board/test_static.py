"""A notebook shows the runs without a server: no script, no request, nothing of a name taken for markup."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser

import pytest
from lora_train.instrument import show_runs

from .build import HOSTILE, copy, tree


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_a_table_of_text_and_pictures(tmp_path):
    for name, source in ((HOSTILE, "healthy"), ("b", "overfitting"), ("c", "stock")):
        copy(tmp_path / name, source)
    before = tree(tmp_path)
    runs = show_runs(tmp_path)
    html = Tags()
    html.feed(runs._repr_html_())
    assert {tag for tag, _ in html.found} <= {
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "bdi",
        "b",
        "br",
        "small",
        "svg",
        "path",
    }
    assert not [name for _, attributes in html.found for name in attributes if name.startswith(("on", "src", "href"))]
    assert HOSTILE in html.text
    assert "overfitting" in html.text
    assert len([tag for tag, _ in html.found if tag == "svg"]) == 3
    assert len(runs) == 3
    assert "watch eval_loss" in repr(runs)
    assert tree(tmp_path) == before


def test_nothing_there(tmp_path):
    assert show_runs(tmp_path)._repr_html_() == "<p>No run is like that.</p>"
    with pytest.raises(NotADirectoryError, match="there is no folder"):
        show_runs(tmp_path / "gone")


def test_it_imports_no_torch(tmp_path):
    copy(tmp_path / "a")
    code = (
        "import sys; from lora_train.instrument import show_runs; show_runs(sys.argv[1]); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "False\n"
