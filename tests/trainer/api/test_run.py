"""A run folder that shows itself."""

from __future__ import annotations

import shutil

import pytest
from lora_train import Run, load_run
from lora_train import instrument as package

from ...conftest import ROOT

HEALED = ROOT / "tests" / "runs" / "healed"


def test_metrics_are_a_frame_in_both_ways_of_writing():
    run = load_run(HEALED)
    assert isinstance(run, Run)
    assert run.metrics["loss"].tolist() == run.metrics()["loss"].tolist()  # pyright: ignore[reportCallIssue]
    assert run.metrics.equals(package.load_run(HEALED).metrics())
    assert len(run.metrics[run.metrics["step"] > 3]) == len(run.metrics) - 3
    assert repr(run) == f"Run({str(HEALED)!r})"
    with pytest.raises(ValueError, match="holds no run"):
        load_run(ROOT / "docs")


def test_it_shows_itself_with_everything_escaped(tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    shutil.copytree(HEALED, folder)
    run = load_run(folder)
    shown = run._repr_html_()
    assert "<img" not in shown
    assert "&lt;img src=x onerror=alert(1)&gt;" in shown
    first, last = (run.metrics["loss"].dropna().iloc[at] for at in (0, -1))
    assert f"{first:.4g} → {last:.4g}" in shown


def test_its_page_lies_where_it_is_wanted(tmp_path):
    page = load_run(HEALED).report(tmp_path / "page.html")
    assert page == tmp_path / "page.html"
    assert page.stat().st_size > 10_000
