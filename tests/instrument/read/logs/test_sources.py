"""Where a run is read from: files, folders, standard input, several at once; what is refused, and how."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from lora_train.instrument.messages import LANGUAGES, catalogue
from lora_train.instrument.read import logs
from lora_train.instrument.read.history import SourceError
from lora_train.instrument.read.logs import read_history

from ....conftest import ROOT

RUN = ROOT / "tests" / "runs" / "healthy"
LINE = "{'loss': 1.5, 'learning_rate': 0.0001, 'epoch': 0.1}\n"


def state(*losses: float, first: int = 10, **more) -> str:
    log = [{"loss": loss, "step": first + 10 * i} for i, loss in enumerate(losses)]
    return json.dumps({"log_history": log, **more})


def refused(*sources) -> str:
    with pytest.raises(SourceError) as caught:
        read_history(*sources)
    error = caught.value
    for lang in LANGUAGES:
        assert catalogue(lang)[error.key].format(**error.values)
        assert catalogue(lang)[f"{error.key}.hint"].format(**error.values)
    return error.key.removeprefix("source.")


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("empty.log", b" \n", "empty"),
        ("training_args.bin", b"PK\x03\x04\x00\x00\x08\x08\x00\x00\x80\x02]q\x00X\x05\x00loss", "binary"),
        ("model.safetensors", bytes(range(256)) * 40, "binary"),
        (
            "crash.log",
            b"Traceback (most recent call last):\n  File 'x.py'\ntorch.OutOfMemoryError: CUDA",
            "only_traceback",
        ),
        ("config.yml", b"base_model: NousResearch/Llama-3.2-1B\nlearning_rate: 0.0002\n", "configuration"),
        ("adapter_config.json", b'{"peft_type": "LORA", "r": 16}', "configuration"),
        ("data.jsonl", b'{"instruction": "a", "output": "b"}\n{"instruction": "c", "output": "d"}\n', "dataset"),
        ("data.json", b'[{"messages": [{"role": "user", "content": "a"}]}]', "dataset"),
        ("eval.log", b"{'eval_loss': 1.5, 'epoch': 1.0}\n", "only_evaluations"),
        ("no_log.txt", b"Epoch\tTraining Loss\tValidation Loss\n1\tNo log\t0.3\n2\tNo log\t0.2\n", "only_evaluations"),
        ("end.log", b"{'train_runtime': 9.0, 'train_loss': 1.5, 'epoch': 1.0}\n", "only_summary"),
        ("two.csv", b'"Step","a - train/loss","b - train/loss"\n"10","1.5","1.4"\n', "many_runs"),
        ("data.csv", b"Wall time,Step,Value\n1700000000.0,10,1.5\n", "which_number"),
        ("poem.txt", b"no training here, and no loss\n", "no_loss"),
        ("sentence.txt", b"My run prints loss: 0.0 after ten steps, what should I do?\nIt is a T4.\n", "no_loss"),
        ("other.json", b"{}", "no_log_history"),
        ("torn.json", b'{"log_history": [', "no_log_history"),
    ],
)
def test_what_is_no_run_is_refused_with_what_to_give_instead(tmp_path, name, content, key):
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name) == key


def test_missing_files_and_folders_without_a_run(tmp_path):
    assert refused(tmp_path / "gone") == "missing"
    assert refused(tmp_path) == "no_run"
    (tmp_path / "events.out.tfevents.1").write_bytes(b"")
    assert refused(tmp_path / "events.out.tfevents.1") in ("no_loss", "damaged_events")


def test_the_newest_checkpoint_of_an_output_folder(tmp_path):
    for n in (20, 100, 30):
        (tmp_path / f"checkpoint-{n}").mkdir()
        (tmp_path / f"checkpoint-{n}" / "trainer_state.json").write_text(state(*[1.5] * (n // 10), global_step=n))
    (tmp_path / "checkpoint-last").mkdir()
    history = read_history(tmp_path)
    assert (history.last_step, history.kind) == (100, "trainer")
    assert history.name == str(tmp_path / "checkpoint-100" / "trainer_state.json")
    (tmp_path / "trainer_state.json").write_text(state(1.5, global_step=110))
    assert read_history(tmp_path).last_step == 110


def test_llamafactorys_log_goes_further_than_its_last_checkpoint(tmp_path):
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(
        state(1.5, 1.4, global_step=20, max_steps=40, train_batch_size=2)
    )
    (tmp_path / "trainer_log.jsonl").write_text(
        "".join(
            json.dumps({"current_steps": n, "total_steps": 40, "loss": 1.0, "lr": 1e-4, "elapsed_time": f"0:00:{n}"})
            + "\n"
            for n in (10, 20, 30)
        )
    )
    history = read_history(tmp_path)
    assert history.trainer == "llamafactory"
    assert history.steps[["step", "loss"]].values.tolist() == [[10, 1.5], [20, 1.4], [30, 1.0]]
    assert history.setting("training.per_device_train_batch_size") == 2
    assert (history.finished, history.last_step, history.planned) == (False, 30, 40)


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((LINE * 2).encode("utf-16"))))
    history = read_history("-")
    assert (history.name, history.steps["loss"].tolist()) == ("stdin", [1.5, 1.5])


def test_a_pipe_is_read_like_a_file(tmp_path):
    code = "from lora_train.instrument.read.logs import read_history; print(len(read_history('/dev/stdin').steps))"
    done = subprocess.run([sys.executable, "-c", code], input=LINE * 3, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "3"


def test_a_log_that_goes_on_in_a_second_file(tmp_path):
    for name, steps in (("1.log", (10, 20, 30)), ("2.log", (30, 40))):
        bars = [f" 1%| | {n}/100 [00:{n}<01:00, 1.0it/s]\n{{'loss': {n / 10 + len(steps)}}}\n" for n in steps]
        (tmp_path / name).write_text("".join(bars))
    history = read_history(tmp_path / "1.log", tmp_path / "2.log")
    assert history.steps[["step", "loss"]].values.tolist() == [[10, 4], [20, 5], [30, 5], [40, 6]]
    assert (history.planned, history.last_step, history.coarse) == (100, 40, 10)
    assert history.name == f"{tmp_path / '1.log'} + {tmp_path / '2.log'}"


def test_one_number_a_file(tmp_path):
    head = "Wall time,Step,Value\n"
    for name, rows in (
        ("run-a-tag-train_loss", "1,10,1.5\n2,20,1.4\n"),
        ("run-a-tag-train_learning_rate", "1,10,0.0002\n2,20,0.0001\n"),
        ("run-a-tag-eval_loss", "2,20,1.6\n"),
    ):
        (tmp_path / f"{name}.csv").write_text(head + rows)
    history = read_history(*sorted(tmp_path.glob("*.csv")))
    assert history.steps[["step", "loss", "learning_rate"]].values.tolist() == [[10, 1.5, 2e-4], [20, 1.4, 1e-4]]
    assert history.evals[["step", "eval_loss"]].values.tolist() == [[20, 1.6]]


def test_lines_without_steps_are_counted_on_and_not_mixed_with_steps(tmp_path):
    (tmp_path / "a.log").write_text(LINE * 2)
    (tmp_path / "b.log").write_text(LINE.replace("1.5", "1.25"))
    (tmp_path / "state.json").write_text(state(1.0))
    history = read_history(tmp_path / "a.log", tmp_path / "b.log")
    assert (history.numbered, history.steps["loss"].tolist()) == (False, [1.5, 1.5, 1.25])
    assert refused(tmp_path / "a.log", tmp_path / "state.json") == "mixed"
    assert refused(tmp_path / "a.log", RUN) == "run_alone"


def test_a_run_folder_knows_what_was_planned(tmp_path):
    history = read_history(RUN)
    assert (history.kind, history.trainer, history.task, history.task_known) == ("run", "lora-train", "causal_lm", True)
    assert (history.planned, history.last_step, history.finished, history.stopped_early) == (150, 150, True, False)
    assert set(history.summary) == {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
    assert "eval_token_accuracy" in history.evals


def run_folder(tmp_path, *rows: dict, training: str = "", attached: bool = True):
    (tmp_path / "env.json").write_text(
        json.dumps({"schema_version": 1, "attached": {"to": "Trainer"} if attached else None})
    )
    (tmp_path / "config.yaml").write_text(f"training: {{{training}}}\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_a_run_that_a_callback_ended_has_ended(tmp_path):
    rows = ({"step": 9, "loss": 1.5, "start": 0}, {"step": 10, "loss": 1.4, "start": 0})
    run = run_folder(tmp_path, *rows, {"train_runtime": 3.0, "start": 0}, training="max_steps: 40")
    history = read_history(run)
    assert (history.finished, history.stopped_early, history.last_step, history.planned) == (True, True, 10, 40)
    history = read_history(run_folder(tmp_path, *rows, training="max_steps: 40"))
    assert (history.finished, history.stopped_early) == (False, False)


def test_an_evaluation_of_null_is_kept_and_named(tmp_path):
    run = run_folder(
        tmp_path,
        {"step": 10, "loss": 1.5, "start": 0},
        {"step": 10, "eval_loss": None, "eval_accuracy": 0.5, "start": 0},
        {"step": 20, "loss": 1.5, "start": 0},
        {"step": 20, "eval_loss": 1.25, "eval_accuracy": 0.75, "start": 0},
    )
    history = read_history(run)
    assert history.nan_evals == (10,)
    assert history.evals["eval_accuracy"].tolist() == [0.5, 0.75]
    assert (history.task, history.task_known, history.trainer) == ("seq_cls", True, "transformers")


@pytest.mark.parametrize(
    ("model", "measured", "task"),
    [
        ("", {}, "causal_lm"),
        ("task: seq_cls", {"eval_accuracy": 0.5}, "seq_cls"),
        ("task: token_cls", {}, "token_cls"),
        ("task: seq_cls", {"eval_mse": 0.5}, "regression"),
        ("{task: seq_cls, problem_type: regression}", {}, "regression"),
    ],
)
def test_the_configuration_says_what_a_run_of_ours_trains(tmp_path, model, measured, task):
    rows = ({"step": 10, "loss": 1.5, "start": 0}, {"step": 10, "eval_loss": 1.5, "start": 0, **measured})
    run = run_folder(tmp_path, *rows, attached=False)
    (run / "config.yaml").write_text(f"model: {model if model.startswith('{') else '{' + model + '}'}\n")
    assert read_history(run).task == task


def test_evaluations_without_a_loss_and_of_several_sets(tmp_path):
    run = run_folder(
        tmp_path,
        {"step": 10, "loss": 1.5, "start": 0},
        {"step": 10, "eval_accuracy": 0.5, "start": 0},
        {"step": 20, "loss": 1.5, "start": 0},
        {"step": 20, "eval_news_loss": 1.25, "start": 0},
        {"step": 20, "eval_chat_loss": 1.75, "start": 0},
    )
    history = read_history(run)
    assert history.steps["step"].tolist() == [10, 20]
    assert history.evals["step"].tolist() == [10, 20]
    assert history.evals["eval_loss"].isna().all()
    assert history.evals["eval_accuracy"].iloc[0] == 0.5
    assert history.evals.loc[1, ["eval_news_loss", "eval_chat_loss"]].tolist() == [1.25, 1.75]
    assert history.nan_evals == ()


def test_compressed_logs(tmp_path, monkeypatch):
    log = tmp_path / "console.log.gz"
    log.write_bytes(gzip.compress(LINE.encode()) + gzip.compress(LINE.replace("1.5", "1.25").encode()))
    assert len(read_history(log).steps) == 2
    (tmp_path / "state.json.gz").write_bytes(gzip.compress(state(1.5, 1.25).encode()))
    assert read_history(tmp_path / "state.json.gz").steps["loss"].tolist() == [1.5, 1.25]
    log.write_bytes(
        gzip.compress(b"".join(b"{'loss': %.3f, 'step': %d}\n" % (9 / n, n) for n in range(1, 3000)))[:-100]
    )
    assert len(read_history(log).steps) > 1000  # what is there of one that is cut off
    log.write_bytes(b"\x1f\x8b" + bytes(20))
    assert refused(log) == "unreadable"
    monkeypatch.setattr(logs, "LARGEST", 1000)
    log.write_bytes(gzip.compress(bytes(2000)))
    assert refused(log) == "unreadable"


def test_lines_of_another_program_named_like_ours(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 5, "train/loss": 1.5}\n{"step": 10, "train/loss": 1.25}\n')
    assert read_history(tmp_path / "metrics.jsonl").steps["step"].tolist() == [5, 10]


def test_torch_is_not_imported(tmp_path):
    (tmp_path / "console.log").write_text(LINE)
    code = (
        "import sys; from lora_train.instrument.read.logs import read_history; "
        f"read_history({str(tmp_path / 'console.log')!r}); print([name for name in sys.modules if name == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OWN_STATE = json.dumps({"schema_version": 1, "step": 4, "start": 0, "skipped": 0, "heals": []})


def test_a_checkpoint_of_a_run_is_read_as_the_run(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(RUN, run)
    state = run / "checkpoint-4" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text(OWN_STATE)
    whole = read_history(run)
    for source in (state.parent, state):
        found = read_history(source)
        assert (found.kind, found.name, found.last_step) == ("run", whole.name, whole.last_step)
    # one of the Trainer's beside it is its own log
    state.write_text(json.dumps({"log_history": [{"step": 2, "loss": 1.5}], "global_step": 2, "max_steps": 9}))
    assert read_history(state.parent).last_step == 2


def test_a_checkpoint_without_its_run_is_told_where_the_log_is(tmp_path):
    state = tmp_path / "checkpoint-4" / "trainer_state.json"
    state.parent.mkdir()
    state.write_text(OWN_STATE)
    assert refused(state.parent) == refused(state) == "own_checkpoint"
