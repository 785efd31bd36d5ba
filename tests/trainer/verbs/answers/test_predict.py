"""predict and evaluate by the real command: labels, probabilities, scores; what cannot be answered is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument.read.eval_rows import read_rows
from lora_train.trainer.cli import main
from lora_train.trainer.data.formats import FORMATS
from lora_train.trainer.data.masks import tokenize
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from ...classifiers import rows_of_kind, tiny, write
from ..test_merge import make_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cli) -> dict[str, Path]:
    """A short run of every kind of label, and the rows beside it."""
    folder = tmp_path_factory.mktemp("answers")
    model, found = tiny(folder, "bert"), {}
    for kind in ("single", "several", "value", "words"):
        rows, held = (
            write(folder / f"{kind}-{n}.jsonl", rows_of_kind(kind, 24, seed)) for n, seed in (("a", 0), ("b", 9))
        )
        task = "token_cls" if kind == "words" else "seq_cls"
        config = folder / f"{kind}.yaml"
        config.write_text(
            f"model: {{name_or_path: {model}, task: {task}}}\nlora: {{r: 4}}\ndata: {{train: {rows}, eval: {held}}}\n"
            f"training: {{output_dir: {folder / kind}, max_steps: 6, learning_rate: 2e-2, eval_strategy: steps, "
            "eval_steps: 6, save_strategy: 'no'}\n"
        )
        done = cli("--config", config)
        assert done.returncode == 0, done.stderr
        found[kind] = folder / kind
    return found


def rows_for(run: Path, suffix: str = "b") -> Path:
    return run.with_name(f"{run.name}-{suffix}.jsonl")


def last_evaluation(run: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval_loss" in line][-1]


@pytest.mark.parametrize("kind", ["single", "several", "value", "words"])
def test_evaluate_gives_the_scores_of_the_run(runs, cli, kind):
    done = cli("evaluate", runs[kind], rows_for(runs[kind]), "--json")
    assert done.returncode == 0, done.stderr
    found, recorded = json.loads(done.stdout), last_evaluation(runs[kind])
    assert found["rows"] == 24
    for name, value in found["scores"].items():
        # a correlation of predictions that hardly differ enlarges what other sums in float32 leave
        assert value == pytest.approx(recorded[f"eval_{name}"], abs=1e-4), name
    stored = read_rows(runs[kind], recorded["step"])
    assert stored is not None
    if kind == "value":
        assert stored.n_correct is None
    elif kind != "words":
        assert stored.n_correct is not None
        assert stored.n_correct.mean() == pytest.approx(recorded["eval_accuracy"])


def test_evaluate_shows_the_confusion_and_the_surest_mistakes(runs, cli):
    done = cli("evaluate", runs["single"], rows_for(runs["single"]), "--json")
    found = json.loads(done.stdout)
    labels = [row["label"] for row in rows_of_kind("single", 24, 9)]
    assert [sum(row) for row in found["confusion"]] == [labels.count("bad"), labels.count("good")]
    right = sum(found["confusion"][i][i] for i in range(2))
    assert right / 24 == pytest.approx(found["scores"]["accuracy"])
    assert all(labels[row["row"]] == row["label"] != row["said"] for row in found["worst"])
    shares = [row["probability"] for row in found["worst"]]
    assert shares == sorted(shares, reverse=True)
    assert (
        "rows by label (down) and answer (across)" in cli("evaluate", runs["single"], rows_for(runs["single"])).stdout
    )


def test_predict_agrees_with_peft(runs, cli, tmp_path):
    run, out = runs["single"], tmp_path / "out.jsonl"
    rows = [{"text": row["text"]} for row in rows_of_kind("single", 24, 9)]  # without labels
    done = cli("predict", run, write(tmp_path / "rows.jsonl", rows), "-o", out)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["row"] for answer in answers] == list(range(24))
    adapter = run / "adapter"
    names = json.loads((adapter / "config.json").read_text())["id2label"]
    assert names == {"0": "bad", "1": "good"}
    base = AutoModelForSequenceClassification.from_pretrained(tiny(tmp_path, "bert"), num_labels=2)
    model, tokenizer = PeftModel.from_pretrained(base, adapter).eval(), AutoTokenizer.from_pretrained(adapter)
    for answer, row in zip(answers, rows, strict=True):
        shares = model(**tokenizer(row["text"], return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(shares, abs=1e-5)
        assert answer["label"] == names[str(int(shares[1] > shares[0]))]


@pytest.mark.parametrize(("kind", "keys"), [("several", {"labels", "probabilities"}), ("value", {"value"}),
                                            ("words", {"labels", "probabilities"})])  # fmt: skip
def test_predict_of_other_labels(runs, cli, tmp_path, kind, keys):
    out = tmp_path / "out.jsonl"
    done = cli("predict", runs[kind], rows_for(runs[kind]), "-o", out)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(answer.keys() == keys | {"row"} for answer in answers)
    if kind == "words":
        words = [row["tokens"] for row in rows_of_kind(kind, 24, 9)]
        assert [len(answer["labels"]) for answer in answers] == list(map(len, words))


def test_merged_is_a_plain_classifier_with_its_names(runs, cli, tmp_path):
    done = cli("merge", runs["single"], "-o", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert model.config.id2label == {0: "bad", 1: "good"}
    trained = load_file(runs["single"] / "adapter" / "adapter_model.safetensors")
    head = trained["base_model.model.classifier.weight"]
    assert (model.classifier.weight - head).abs().max() == 0


def test_an_output_that_is_there_is_kept(runs, cli, tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_text("mine")
    done = cli("predict", runs["single"], rows_for(runs["single"]), "-o", out)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert out.read_text() == "mine"


def test_an_unseen_label_names_file_and_line(runs, cli, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [{"text": "fine", "label": "good"}, {"text": "fine", "label": "meh"}])
    done = cli("evaluate", runs["single"], rows)
    assert done.returncode == 2
    assert f"{rows} line 2: label meh is not among bad, good" in done.stderr


@pytest.mark.parametrize("number", ["0", "-5"])
def test_no_tokens_are_no_answer(runs, tmp_path, capsys, number):
    out = str(tmp_path / "out.jsonl")
    assert main(["predict", str(runs["single"]), "rows.jsonl", "-o", out, "--max-new-tokens", number]) == 2
    assert "must be a whole number of at least 1" in capsys.readouterr().err


def test_chat_says_what_to_do_instead(runs, cli):
    done = cli("chat", runs["single"], "--prompt", "x")
    assert done.returncode == 2
    assert "lora-train predict" in done.stderr


def test_a_language_model_answers_and_is_evaluated_row_by_row(tiny_models, tmp_path, capsys):
    run = make_run(tmp_path / "run", tiny_models["llama"])
    rows = [{"instruction": "하늘은 왜 파란가요?", "output": "빛."}, {"instruction": "a b", "output": "c d e"}]
    file = write(tmp_path / "rows.jsonl", rows)
    out = tmp_path / "answers.jsonl"
    assert main(["predict", str(run), str(file), "-o", str(out), "--max-new-tokens", "5"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_models["llama"])
    base = AutoModelForCausalLM.from_pretrained(tiny_models["llama"])
    model = PeftModel.from_pretrained(base, str(run / "adapter")).eval()
    losses, expected = [], []
    for row in rows:
        ((ids, supervised),) = tokenize([FORMATS["koalpaca"].render(row)], tokenizer, train_on_inputs=False)
        ids = torch.tensor(ids)[None].long()
        begin = int(supervised.argmax())
        with torch.no_grad():
            logits = model(ids).logits[0, begin - 1 : -1].float()
            written = model.generate(input_ids=ids[:, :begin], max_new_tokens=5, do_sample=False)
        losses.append(torch.nn.functional.cross_entropy(logits, ids[0, begin:], reduction="none"))
        expected.append(tokenizer.decode(written[0, begin:], skip_special_tokens=True).strip())
    answers = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [answer["row"] for answer in answers] == [0, 1]
    assert [answer["answer"] for answer in answers] == expected
    assert [answer["cut"] for answer in answers] == [True, True]
    assert "2 of them were cut off at 5 tokens" in " ".join(capsys.readouterr().out.split())
    assert main(["evaluate", str(run), str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rows"] == 2
    assert found["scores"]["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-4)
    means = {row: float(loss.mean()) for row, loss in enumerate(losses)}
    assert found["worst"][0]["row"] == max(means, key=lambda row: means[row])


def test_a_row_without_room_for_its_answer_is_not_left_out_in_silence(tiny_models, tmp_path, capsys):
    run = make_run(tmp_path / "run", tiny_models["llama"])
    rows = [{"instruction": "a b", "output": "c"}, {"instruction": "하늘 " * 2000, "output": "빛."}]
    file, out = write(tmp_path / "rows.jsonl", rows), tmp_path / "answers.jsonl"
    assert main(["predict", str(run), str(file), "-o", str(out), "--max-new-tokens", "2"]) == 2
    assert "the prompts of rows 1 fill data.cutoff_len=" in capsys.readouterr().err
    assert not out.exists()
    assert main(["evaluate", str(run), str(file), "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["rows"] == 1
    assert "1 rows have no token to train on and are left out (rows 1)" in said.err
