"""A run folder as an object that shows itself: its steps, its statistics, what they mean, its page."""

from __future__ import annotations

import functools
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...instrument.messages import language, say
from ...instrument.read.load import Run as Reader
from ...instrument.read.load import load_run as read
from ..console import compact
from ..verbs.read_run import as_user_errors

if TYPE_CHECKING:
    import pandas as pd

    from .answers import Findings


class Run(Reader):
    """A run folder; each call reads what is on disk then.

    Attributes:
        path: the folder.
    """

    @property
    def metrics(self) -> pd.DataFrame:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The steps of metrics.jsonl, in order; null is NaN. `run.metrics()` is the same."""
        return _callable_frame()(super().metrics())

    def explain(self, lang: str | None = None) -> Findings:
        """What the numbers mean, as `lora-train explain`.

        Args:
            lang: "en" or "ko"; None for that of the environment.
        """
        from .answers import explain

        return explain(self, lang=lang)

    def report(self, output: str | Path | None = None) -> Path:
        """Writes the page of the run, one HTML file that needs no network.

        Args:
            output: a file; None for report.html in the folder.

        Raises:
            UserError: it cannot be written.
        """
        from ...instrument.show.report import write_report

        with as_user_errors():
            return write_report(self.path, output=None if output is None else Path(output))

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def _repr_html_(self) -> str:
        """The first and the last loss, the evaluations, and what is wrong, if anything is."""
        from ...instrument.judge.explain import explain, read_history

        with as_user_errors():
            history = read_history(self.path)
            overall = explain(history)[0]
        _, losses = history.finite("loss")
        facts: list[tuple[str, Any]] = [("path", self.path), ("step", history.last_step)]
        if len(losses):
            facts.append(("loss", f"{compact(losses[0])} → {compact(losses[-1])}"))
        if len(history.evals):
            evals = history.evals["eval_loss"].tolist()
            facts.append(("eval_loss", f"{compact(evals[0])} → {compact(evals[-1])}"))
        facts.append((say("api.judged"), overall.sentence(language())))
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in facts
        )
        return f'<table style="text-align:left">{rows}</table>'


def load_run(path: str | Path) -> Run:
    """The run in a folder.

    Raises:
        ValueError: the folder holds no run.
    """
    return Run(read(path).path)


@functools.cache
def _callable_frame() -> type:
    """A frame that gives itself when it is called, so that both ways to write `metrics` hold."""
    import pandas as pd

    class Metrics(pd.DataFrame):
        @property
        def _constructor(self) -> type[pd.DataFrame]:
            return pd.DataFrame

        def __call__(self) -> pd.DataFrame:
            return self

    return Metrics
