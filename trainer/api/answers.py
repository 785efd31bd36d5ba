"""What `explain` and `compare` give: text in a terminal, a table in a notebook, a list in a program.

Everything that is shown as HTML is escaped: names of modules, paths and rows come from others.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...instrument.messages import language, say_in
from ..errors import UserError, problem
from ..verbs.read_run import as_user_errors
from .run import Run

if TYPE_CHECKING:
    from ...instrument.judge.explain import Finding
    from ...instrument.show.compare import Comparison

COLOURS = {"wrong": "#b00020", "watch": "#9a6700", "undecided": "#57606a", "note": "#57606a", "healthy": "#1a7f37"}


class Text:
    """Lines that show themselves."""

    def __init__(self, lines: Sequence[str]):
        self._lines = list(lines)

    def __str__(self) -> str:
        return "\n".join(self._lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


class Findings(Text, Sequence["Finding"]):
    """What the numbers of a run mean: a sequence of findings, in the order a person asks."""

    def __init__(self, findings: Sequence[Finding], lines: Sequence[str], lang: str, trainer: str):
        super().__init__(lines)
        self._findings, self._lang, self._trainer = list(findings), lang, trainer

    def __len__(self) -> int:
        return len(self._findings)

    def __getitem__(self, index):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self._findings[index]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def _repr_html_(self) -> str:
        from ...instrument.judge.explain import VERDICTS

        rows = []
        for finding in self:
            verdict = html.escape(say_in(self._lang, VERDICTS[finding.verdict]))
            text = html.escape(finding.sentence(self._lang))
            if hint := finding.hint(self._lang, self._trainer):
                text += f"<br><i>{html.escape(hint)}</i>"
            cells = f'<td style="color:{COLOURS[finding.verdict]}">{verdict}</td>'
            rows.append(f'<tr><td>{html.escape(finding.topic)}</td>{cells}<td style="text-align:left">{text}</td></tr>')
        return f"<p>{html.escape(self._lines[0])}</p><table>{''.join(rows)}</table>"


class Compared(Text):
    """How runs differ.

    Attributes:
        comparison: the numbers.
    """

    def __init__(self, comparison: Comparison, lines: Sequence[str]):
        super().__init__(lines)
        self.comparison = comparison


def explain(*sources: Run | str | Path, lang: str | None = None, trainer: str | None = None) -> Findings:
    """What the numbers of a run mean: of lora-train's, of the stock Trainer's, of any log, as `lora-train explain`.

    Args:
        sources: a run, its folder, a trainer_state.json, a log; several are parts of one run.
        lang: "en" or "ko"; None for that of the environment.
        trainer: whose keys advice names; None: those of the program that trained.

    Raises:
        UserError: it is no run.
    """
    from ...instrument.judge.explain import advised, lines, read_history
    from ...instrument.judge.explain import explain as judge

    if not sources:
        raise UserError(problem("explain.nothing"))
    lang = lang or language()
    with as_user_errors():
        history = read_history(*(_source(source) for source in sources))
        findings = judge(history)
        return Findings(findings, lines(history, findings, lang, trainer), lang, trainer or advised(history))


def compare(*sources: Run | str | Path, output: str | Path | None = None, lang: str | None = None) -> Compared:
    """How runs differ, as `lora-train compare`.

    Args:
        sources: two or more.
        output: a file for the page that overlays them.
        lang: "en" or "ko"; None for that of the environment.

    Raises:
        UserError: there are fewer than two, one is no run, or the page cannot be written.
    """
    from ...instrument.judge.explain import read_history
    from ...instrument.show.compare import compare_runs, comparison_lines, write_comparison

    if len(sources) < 2:
        raise UserError(problem("compare.one_run"))
    with as_user_errors():
        comparison = compare_runs([read_history(_source(source)) for source in sources])
        if output is not None:
            write_comparison(comparison, Path(output))
    return Compared(comparison, comparison_lines(comparison, lang or language()))


def _source(source: Run | str | Path) -> str | Path:
    return source.path if isinstance(source, Run) else source
