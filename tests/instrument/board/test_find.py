"""What is found under a folder: whichever program wrote it, each once, links followed and their loops ended."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from lora_train.instrument.board.find import find_runs

from ..advise.page.build import study
from .build import HOSTILE, RUNS, append, copy


def names(root) -> list[str]:
    return [one.name for one in find_runs(root)]


def test_runs_of_every_program_at_any_depth(tmp_path):
    copy(tmp_path / "a" / "b" / "ours")
    shutil.copytree(RUNS / "stock", tmp_path / "stock")
    state = tmp_path / "outputs" / "checkpoint-500" / "trainer_state.json"
    state.parent.mkdir(parents=True)
    shutil.copy(RUNS / "stock" / "trainer_state.json", state)
    (tmp_path / "factory").mkdir()
    (tmp_path / "factory" / "trainer_log.jsonl").write_text("{}\n")
    (tmp_path / "board" / "Nov29").mkdir(parents=True)
    (tmp_path / "board" / "Nov29" / "events.out.tfevents.1").write_bytes(b"")
    starting = tmp_path / "starting"
    starting.mkdir()
    for name in ("config.yaml", "env.json"):
        (starting / name).write_text("{}")
    for no_run in ("data", ".hidden", "node_modules"):
        (tmp_path / no_run).mkdir()
        (tmp_path / no_run / "rows.jsonl").write_text("{}\n")
    shutil.copytree(RUNS / "healthy", tmp_path / ".hidden" / "run")
    assert names(tmp_path) == ["a/b/ours", "board/Nov29", "factory", "outputs", "starting", "stock"]


def test_a_folder_that_is_a_run_itself_has_its_own_name(tmp_path):
    run = copy(tmp_path / "koalpaca")
    (run / "checkpoint-5").mkdir()
    shutil.copy(RUNS / "stock" / "trainer_state.json", run / "checkpoint-5")
    shutil.copytree(RUNS / "healthy", run / "second")
    assert names(run) == ["koalpaca", "second"]


def test_links_are_followed_and_loops_end(tmp_path):
    root = tmp_path / "root"
    copy(root / "z")
    copy(tmp_path / "elsewhere" / "run")
    os.symlink(root / "z", root / "latest")  # the same run by another name
    os.symlink(root, root / "loop")
    os.symlink(tmp_path / "elsewhere", root / "linked")
    os.symlink("itself", root / "itself")
    os.symlink(tmp_path / "gone", root / "gone")
    assert names(root) == ["linked/run", "z"]


def test_a_study_with_the_last_attempt_of_each_trial(tmp_path):
    study(tmp_path / "sweep")
    copy(tmp_path / "sweep" / "trials" / "005.tmp")
    found = find_runs(tmp_path)
    assert [one.name for one in found] == ["sweep", "sweep/trials/000", "sweep/trials/001.2", "sweep/trials/002"]
    assert [one.kind for one in found] == ["study", "run", "run", "run"]
    assert {one.study for one in found} == {"", found[0].id}


def test_a_virtual_environment_is_not_searched(tmp_path):
    copy(tmp_path / "venv" / "lib" / "run")
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name", [HOSTILE, "한글 실행", "a\nb", "\x1b[31mred", b"\xff\xfe".decode("utf-8", "surrogateescape")]
)
def test_any_name_of_a_folder_is_text_and_its_id_is_none_of_it(tmp_path, name):
    copy(tmp_path / name)
    (one,) = find_runs(tmp_path)
    assert one.name.encode("utf-8")
    assert one.path == tmp_path / name
    assert set(one.id) <= set("0123456789abcdef")
    assert len(one.id) == 16


def test_the_stamp_changes_with_every_file_that_is_read(tmp_path):
    run = copy(tmp_path / "run", "healed")

    def stamp() -> str:
        return find_runs(tmp_path)[0].stamp

    seen = [stamp()]
    assert stamp() == seen[0]
    append(run, {"step": 61, "loss": 1.0})
    seen.append(stamp())
    for path in (
        run / "config.yaml",
        run / "env.json",
        run / "sites.json",
        next(run.glob("incidents/*/diagnosis.json")),
        next(run.glob("stats/*")),
    ):
        path.write_bytes(path.read_bytes() + b" ")
        seen.append(stamp())
    (run / "evaluations").mkdir()
    seen.append(stamp())
    (run / "evaluations" / "step-5.npz").write_bytes(b"1")
    seen.append(stamp())
    assert len(set(seen)) == len(seen)
    (run / "report.html").write_text("no part of it")
    assert stamp() == seen[-1]


def test_of_a_study_the_stamp_changes_as_trials_end(tmp_path):
    folder = study(tmp_path / "sweep")
    before = find_runs(tmp_path)[0].stamp
    (folder / "claims" / "004" / "outcome.json").write_text(json.dumps({"ended": "done"}))
    assert find_runs(tmp_path)[0].stamp != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_what_may_not_be_read_is_left_out(tmp_path):
    copy(tmp_path / "fine")
    (tmp_path / "locked").mkdir(mode=0)
    assert names(tmp_path) == ["fine"]
