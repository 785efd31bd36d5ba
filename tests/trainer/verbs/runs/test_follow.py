"""`lora-train report --follow`: begun before the run, served while it goes on, written once it has ended."""

from __future__ import annotations

import signal
from urllib.request import urlopen

import pytest
from lora_train.instrument.board.serve import follow as serve
from lora_train.trainer.verbs.runs import follow

from ....instrument.board.build import append, copy, held, metrics, until
from .process import Running


def test_from_before_a_run_begins_until_it_has_ended(tmp_path):
    run = tmp_path / "run"
    with Running("report", "run", "--follow", cwd=tmp_path) as report:
        address = report.line("report of run: ").split()[-1]
        report.line("waiting for run")
        assert b"Waiting for run" in urlopen(address).read()
        with held(run):
            copy(tmp_path / "made", lines=20).joinpath(".lock").unlink()
            for path in (tmp_path / "made").iterdir():
                path.rename(run / path.name)
            until(lambda: b'"running":true' in urlopen(address).read())
            assert not (run / "report.html").exists()  # it is not written again and again
            append(run, *metrics()[20:])
        assert report.wait() == (0, "")
    assert report.line("report run/report.html")
    page = (run / "report.html").read_text(encoding="utf-8")
    assert '"state":"ended"' in page
    assert "connect-src 'none'" in page.replace("&#x27;", "'")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_hand_it_writes_what_there_is(tmp_path, number):
    run = copy(tmp_path / "run", lines=20)
    with held(run), Running("report", "run", "--follow", "-o", "page.html", cwd=tmp_path) as report:
        report.line("report of run: ")
        report.line("From another machine: ")
        assert report.end(number) == (0, "")
        assert report.line("report page.html")
    assert (tmp_path / "page.html").is_file()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("moment", ["begun", "is_over"])
def test_ended_by_hand_at_any_moment_it_writes_what_there_is(tmp_path, monkeypatch, moment):
    run = copy(tmp_path / "run", lines=20)
    calls, module = iter([False, KeyboardInterrupt()]), follow if moment == "is_over" else serve
    asked = getattr(module, moment)

    def interrupted(path):
        answer = next(calls, None)
        if isinstance(answer, KeyboardInterrupt):
            raise answer
        return asked(path)

    monkeypatch.setattr(module, moment, interrupted)
    with held(run):
        try:
            assert follow.follow(run, tmp_path / "page.html") == tmp_path / "page.html"
        except KeyboardInterrupt:
            pytest.fail("ended by the signal, with nothing written")
    assert (tmp_path / "page.html").is_file()


def test_ended_by_hand_before_the_run_has_begun_it_writes_nothing(tmp_path):
    with Running("report", "run", "--follow", cwd=tmp_path) as report:
        report.line("waiting for run")
        assert report.end(signal.SIGINT) == (0, "")
    assert list(tmp_path.iterdir()) == []


def test_of_a_run_that_has_ended_the_page_is_written_at_once(cli, tmp_path):
    run = copy(tmp_path / "run")
    result = cli("report", run, "--follow")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"report {run}/report.html")
