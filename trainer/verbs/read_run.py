"""The verbs that read a run: explain, report, compare. Nothing here imports torch or needs a network."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...instrument.constants import MIB
from ...instrument.judge.explain import SourceError, advised, exit_code, glossary, lines, read_history
from ...instrument.judge.explain import explain as judge
from ...instrument.messages import say
from ..errors import UserError, is_output_lost, problem, tell
from ..painting import show

if TYPE_CHECKING:
    from .runs.follow import ReadTexts


@dataclass(frozen=True)
class Question:
    """What `explain` is asked.

    Attributes:
        sources: a run folder, a state, a log, `-` for standard input; several are parts of one run.
        what: a word of a log to explain instead of the whole run.
        as_json, exit_code: for scripts.
        trainer: whose keys advice names; None: those of the program that trained.
    """

    sources: Sequence[str]
    lang: str
    what: str | None = None
    as_json: bool = False
    exit_code: bool = False
    trainer: str | None = None


UNREADABLE = 3
"""Exit code of `explain --exit-code` where nothing can be judged."""


def explain(question: Question) -> int:
    """Prints what the numbers of a run mean.

    Returns:
        0; with `exit_code` 0 nothing, 1 something to watch, 2 something wrong, 3 unreadable.

    Raises:
        UserError: it is no run, or nobody logs such a word.
    """
    try:
        with as_user_errors():
            return _explain(question)
    except UserError as error:
        if not question.exit_code:
            raise
        tell(error)
        return UNREADABLE


def _explain(question: Question) -> int:
    history = read_history(*question.sources) if question.sources else None
    findings = judge(history) if history is not None else []
    if question.what is not None:
        show(glossary(question.what, history, findings, question.lang), question.lang)
        return 0
    if history is None:
        raise UserError(problem("explain.nothing"))
    if question.as_json:
        trainer = question.trainer or advised(history)
        print(json.dumps([f.as_json(question.lang, trainer) for f in findings], ensure_ascii=False, indent=1))
    else:
        show(lines(history, findings, question.lang, question.trainer), question.lang)
    return exit_code(findings) if question.exit_code else 0


def report(sources: Sequence[Path], output: Path | None, following: bool, read_texts: ReadTexts | None = None) -> int:
    """Writes the page of a run.

    Args:
        sources: as of `Question`.
        following: serves it while the run goes on, and writes it at the end.
        read_texts: reads the texts of its training rows for the page that is written; None: it is to have none.

    Raises:
        UserError: it is no run, or the page cannot be written.
    """
    from ...instrument.advise.page import is_study, write_study_page
    from ...instrument.show.report import write_report
    from .runs.follow import follow

    if following and (len(sources) > 1 or sources[0].is_file() or str(sources[0]) == "-"):
        raise UserError(problem("report.follow_needs_run", path=sources[-1]))
    if read_texts is not None and (len(sources) > 1 or not (following or (sources[0] / "config.yaml").is_file())):
        raise UserError(problem("report.rows_text_needs_run", path=sources[-1]))
    with as_user_errors():
        if following:
            with contextlib.suppress(KeyboardInterrupt):
                _written(follow(sources[0], output, read_texts))
        elif output is not None and output.is_dir():
            raise UserError(problem("report.cannot_write", path=output, what=os.strerror(errno.EISDIR)))
        elif len(sources) == 1 and is_study(sources[0]):
            _written(write_study_page(sources[0], output))
        else:
            texts = read_texts(sources[0]) if read_texts is not None else None
            _written(write_report(*sources, output=output, texts=texts))
    return 0


def compare(sources: Sequence[Path], output: Path | None, lang: str) -> int:
    """Prints how runs differ, and with `output` writes the page that overlays them.

    Raises:
        UserError: there are fewer than two, one is no run, or the page cannot be written.
    """
    from ...instrument.show.compare import compare_runs, comparison_lines, write_comparison

    if len(sources) < 2:
        raise UserError(problem("compare.one_run"))
    with as_user_errors():
        comparison = compare_runs([read_history(source) for source in sources])
        show(comparison_lines(comparison, lang), lang)
        if output is not None:
            _written(write_comparison(comparison, output))
    return 0


def _written(path: Path) -> None:
    print(say("report.written", path=path, size=path.stat().st_size / MIB), flush=True)


@contextlib.contextmanager
def as_user_errors() -> Iterator[None]:
    """What cannot be read or written, as an error and a hint."""
    try:
        yield
    except SourceError as error:
        raise UserError(problem(error.key, **error.values)) from error
    except BrokenPipeError:  # whoever read the output has seen enough
        raise
    except OSError as error:
        if is_output_lost(error):
            raise
        what = error.strerror or str(error)
        if isinstance(error, PermissionError) and not str(error.filename).endswith(".tmp"):  # what is read
            raise UserError(problem("cli.closed", path=error.filename, what=what)) from error
        path = str(error.filename or "").removesuffix(".tmp")
        raise UserError(problem("report.cannot_write", path=path, what=what)) from error
