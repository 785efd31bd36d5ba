"""The cheap parts of `python -m benchmarks.collapse`: the model near the limit, the promises, the picture."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from lora_train.instrument.constants import FP16_MAX
from lora_train.instrument.read.store import METRICS
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.examples import load_examples
from lora_train.trainer.model.load import load_tokenizer

from benchmarks.collapse.bars import bar_stock, bar_time, bars_heal, bars_stop
from benchmarks.collapse.contenders import Contender, read_console, read_run
from benchmarks.collapse.model import MODULE, build, peak, settings
from benchmarks.collapse.picture import collapse_svg
from benchmarks.collapse.screen import side_by_side

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("collapse")
    build(out / "model", seed=0)
    return out


def test_the_output_is_near_the_limit_before_training_and_finite(work):
    from transformers import AutoModelForCausalLM

    config = Config.model_validate(settings(work, seed=0))
    model = AutoModelForCausalLM.from_pretrained(config.model.name_or_path, dtype=torch.float16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    data = load_examples(config.data.train, config.data, load_tokenizer(config), config.data.limit)
    assert len(data.examples) == 32
    for example in data.examples[:4]:
        input_ids = torch.from_numpy(example.input_ids).long()[None]
        assert peak(model, input_ids) == pytest.approx(40_000, rel=1e-3)
        assert torch.isfinite(model(input_ids=input_ids).logits).all()
    with torch.no_grad():  # and what training does to it ends it
        model.get_parameter(f"{MODULE}.weight").mul_(1.01 * FP16_MAX / 40_000)
        assert not torch.isfinite(model(input_ids=input_ids).logits).all()


def test_the_same_seed_writes_the_same_model(work, tmp_path):
    for seed, same in ((0, True), (1, False)):
        build(tmp_path / str(seed), seed)
        for name in ("model.safetensors", "tokenizer.json"):
            equal = (tmp_path / str(seed) / name).read_bytes() == (work / "model" / name).read_bytes()
            assert equal is (same or name == "tokenizer.json")


def stock(n_bad: int, moves: bool) -> Contender:
    """Twenty healthy steps and twelve after the collapse."""
    rates = [1e-3 - 1e-5 * step for step in range(32)]
    logged: list[dict[str, float | None]] = [
        {"loss": 5.0, "grad_norm": 1.0, "learning_rate": rates[at]}
        if at < 20
        else {"loss": 0.0, "grad_norm": None, "learning_rate": rates[at if moves else 20]}
        for at in range(32)
    ]
    losses: list[float | None] = [5.0] * 20 + [None] * 12
    return Contender("stock", logged, losses, collapse_step=21, weights=(n_bad, 100), unchanged=not n_bad)


def test_a_stock_row_is_told_from_the_others():
    rows = {(dead, moves): stock(100 * dead, moves) for dead in (False, True) for moves in (False, True)}
    for expected in rows:
        kept = {key: bar_stock("", row, moves=expected[1], dead=expected[0]).kept for key, row in rows.items()}
        assert kept == {key: key == expected for key in rows}
    assert not bar_stock("", replace(rows[False, False], unchanged=False), moves=False, dead=False).kept
    healthy = Contender(
        "stock", rows[False, True].logged[:20], rows[False, True].losses[:20], weights=(0, 100), unchanged=True
    )
    assert not bar_stock("", healthy, moves=True, dead=False).kept


DIAGNOSIS = {
    "kind": "forward_overflow",
    "step": 21,
    "module": MODULE,
    "phase": "forward",
    "rows": [7, 3],
    "remedies": [{"change": {"precision.fp32_modules": [MODULE]}, "verified": True, "loss": 4.9}],
}


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, []),
        ({"module": MODULE.replace("2", "3")}, [1]),
        ({"phase": "backward"}, [1]),
        ({"step": 22}, [2]),
        ({"rows": [8]}, [3]),
        ({"rows": []}, [3]),
        ({"remedies": []}, [4]),
    ],
)
def test_a_wrong_diagnosis_breaks_its_promise(change, broken):
    losses: list[float | None] = [*[5.0] * 20, None]
    stop = Contender("stop", losses=losses, weights=(0, 100), exit_code=3, diagnosis={**DIAGNOSIS, **change})
    batches = [[7, 3, 1]] * 32
    assert [at for at, bar in enumerate(bars_stop(stop, stock(0, False), batches)) if not bar.kept] == broken
    assert not any(bar.kept for bar in bars_stop(Contender("crashed", exit_code=1), stock(0, False), batches))


def test_a_healed_run_must_finish_and_learn():
    healed = Contender("heal", losses=[*[5.0] * 20, *[4.0] * 12], collapse_step=21)
    assert all(bar.kept for bar in bars_heal(healed))
    assert [bar.kept for bar in bars_heal(replace(healed, losses=[5.0] * 32))] == [True, False]
    assert [bar.kept for bar in bars_heal(replace(healed, losses=[5.0] * 20 + [None] + [4.0] * 11))] == [False, True]
    assert not any(bar.kept for bar in bars_heal(Contender("heal", exit_code=1)))
    assert [bar_time(seconds).kept for seconds in (179.0, 181.0)] == [True, False]


def test_a_run_folder_is_read_with_the_last_word_on_a_step(tmp_path):
    rows = [
        {"start": 0, "step": 1, "loss": 5.0, "grad_norm": 1.0, "learning_rate": 2e-3, "loss_scale": 65536.0},
        {"start": 0, "step": 2, "loss": None, "grad_norm": None, "learning_rate": 1e-3, "loss_scale": 65536.0},
        {"start": 1, "step": 2, "loss": 4.0, "grad_norm": 1.0, "learning_rate": 1e-3, "loss_scale": 32768.0},
        {"start": 1, "train_runtime": 1.0},
    ]
    (tmp_path / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "incidents" / "step-2").mkdir(parents=True)
    (tmp_path / "incidents" / "step-2" / "diagnosis.json").write_text(json.dumps({"step": 2}))
    ours = Contender("heal")
    read_run(ours, tmp_path)
    assert (ours.losses, ours.collapse_step, ours.last_healthy, ours.loss_scale) == ([5.0, 4.0], 2, 2, 32768.0)


def test_logs_stand_side_by_side_around_the_collapse():
    row = stock(0, False)
    row.lines = {step: f"{{'loss': '{step}', 'epoch': '0'}}" for step in range(1, 33)}
    log = "model tiny\n" + "".join(f"step {step}/32  loss 4  skipped 0  9 tok/s\n" for step in range(1, 21))
    log += "COLLAPSE at step 21\n  where here\n" + "".join(f"step {step}/32  loss 3\n" for step in range(21, 33))
    lines, said = read_console(log + "done   32 steps\nadapter here\n")
    assert said == ["COLLAPSE at step 21", "  where here"]
    shown = side_by_side(row, Contender("heal", collapse_step=21, lines=lines, said=said, losses=[*[4.0] * 32]))
    assert shown[2].split() == ["{'loss':", "'18'", "|", "step", "18/32", "loss", "4", "skipped", "0"]
    assert "COLLAPSE at step 21" in shown[5]
    assert shown[-1].split() == ["{'loss':", "'32'", "|", "step", "32/32", "loss", "3"]


def test_the_picture_is_a_drawing_with_its_parts():
    logged, true, ours = [6.0, 5.0, 0.0, 0.0], [6.0, 5.0, None, None], [6.0, 5.0, None, 4.0]
    root = ElementTree.fromstring(collapse_svg("a < b", logged, true, ours, stock_step=3, ours_step=3))
    assert root.tag == f"{SVG}svg"
    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert {"a < b", "step", "loss", "stock: collapse at step 3", "ours: healed at step 3"} <= texts
    paths = {element.get("id"): element.get("d", "").split() for element in root.iter(f"{SVG}path")}
    assert {name: [word[0] for word in words] for name, words in paths.items()} == {
        "logged": ["M", "L", "L", "L"],
        "true": ["M", "L"],
        "ours": ["M", "L", "M"],
    }
    zero = [line for line in root.iter(f"{SVG}line") if line.get("stroke-opacity") == "0.9"]
    assert paths["logged"][2].partition(",")[2] == zero[0].get("y1")
    marks = [line.get("x1") for line in root.iter(f"{SVG}line") if line.get("class") == "collapse"]
    assert marks == [paths["logged"][2][1:].partition(",")[0]] * 2
    assert "background" not in ElementTree.tostring(root, encoding="unicode")
    assert len(list(root.iter(f"{SVG}rect"))) == 0
