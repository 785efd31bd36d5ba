"""What a step costs: the arithmetic, the tables and the picture, and real turns between contenders on a tiny model."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from lora_train.trainer.config.schema import Config
from lora_train.trainer.data.examples import Example, load_examples
from lora_train.trainer.model.load import load_tokenizer
from peft import LoraConfig, get_peft_model

from benchmarks.overhead import __main__ as command
from benchmarks.overhead import contender, stock
from benchmarks.overhead.floor import Floor, Product, products_of
from benchmarks.overhead.growth import axes, growth_of, growth_table
from benchmarks.overhead.measure import profile
from benchmarks.overhead.measure.load import Load
from benchmarks.overhead.measure.meter import Counts
from benchmarks.overhead.measure.turns import Taken, rounds, same_rows
from benchmarks.overhead.models import prepare
from benchmarks.overhead.rivals import RIVALS, installed
from benchmarks.overhead.rows import LENGTHS, PROMPT_SHARES, write_rows
from benchmarks.overhead.show.picture import limit_of, overhead_svg
from benchmarks.overhead.show.summary import Bar, bars, interval, percentile, ratios, row_of, rows_of
from benchmarks.overhead.show.table import kinds_table, remarks, table
from benchmarks.overhead.watchers import WATCHERS
from benchmarks.overhead.work import DEFAULT, WORKS, Work, configuration, lacking

FULL = WORKS["full"]


def taken(*walls: float, peak: float = 1.0, supervised: int | None = 100) -> Taken:
    steps = [{"wall": w, "cpu": 2 * w, "loss": 2.5, "peak_mib": peak, "supervised": supervised} for w in walls]
    return Taken("CPU", steps, {"synchronisations": 3, "allocations": 1234, "allocated_mib": 56.7})


def test_ratios_are_taken_step_by_step_as_far_as_both_went():
    found = {"stock": taken(1.0, 2.0, 4.0, peak=1000.0), "instrumented": taken(0.5, 1.2, 2.4, peak=700.0)}
    row = row_of(FULL, "instrumented", found)
    assert (row.wall_p20, row.wall_p50, row.wall_p80, row.cpu_p50) == (0.5, 1.2, 2.4, 2.4)
    assert (row.ratio, row.ratio_low, row.ratio_high) == (0.6, 0.5, 0.6)
    assert (row.wall_low, row.wall_high) == (0.5, 2.4)
    assert (row.peak_mib, row.peak_ratio, row.loss, row.n_steps) == (700.0, 0.7, 2.5, 3)
    assert row.tokens_per_second == pytest.approx(300 / 4.1)
    assert (row.synchronisations, row.allocations, row.allocated_mib) == (3, 1234, 56.7)
    assert row_of(FULL, "stock", found).ratio == 1.0
    assert ratios({**found, "items": taken(3.0)}, "items", "stock") == [3.0]


def test_percentiles_and_intervals():
    assert [percentile([1.0, 2.0, 3.0, 4.0, 5.0], share) for share in (0.0, 0.2, 0.5, 0.8, 1.0)] == [1, 2, 3, 4, 5]
    assert interval([2.0] * 5) == (2.0, 2.0)
    low, high = interval([float(value) for value in range(101)])
    assert 35 < low < 50 < high < 65


def test_bars_of_the_full_work_say_which_statistics_were_loaded():
    found = {name: taken(wall, peak=peak) for name, wall, peak in [("stock", 1.0, 1.0), ("plain", 0.6, 0.7)]}
    found |= {"instrumented": taken(0.66, peak=0.7), "plain_aten": taken(0.7), "aten": taken(0.77)}
    without = "PASS  full: step time of aten (instrumented without the C extension) over plain_aten: 1.10x, bar at most"
    assert [str(bar) for bar in bars(FULL, found, extension=True)] == [
        "SHORT  full: step time of instrumented over stock: 0.66x, bar at most 0.65x",
        "PASS  full: peak memory of instrumented over stock: 0.70x, bar at most 0.80x",
        "SHORT  full: step time of instrumented (C extension) over plain: 1.10x, bar at most 1.05x",
        f"{without} 1.15x",
    ]
    assert "(ATen) over plain: 1.10x, bar at most 1.15x" in str(bars(FULL, found, extension=False)[2])
    assert bars(FULL, {"plain": taken(1.0)}, extension=True) == []


def test_the_bar_of_real_rows_is_a_number_of_tokens_a_second():
    found = {"stock": taken(3.0, 8.0, 9.0), "instrumented": taken(1.0, 2.0, 3.0)}
    (bar,) = bars(WORKS["real"], found, extension=True)
    assert bar == Bar("real: supervised tokens/s of instrumented over stock", 3.0, 3.0, at_least=True)
    assert bar.met
    assert not replace(bar, reached=2.99).met
    assert limit_of(WORKS["real"], rows_of(WORKS["real"], found)) == pytest.approx(8.0 / 3)


def test_every_work_has_its_bar():
    aims = {name: (WORKS[name].bar, WORKS[name].speed_bar, WORKS[name].peak_bar) for name in DEFAULT}
    assert aims == {
        "full": (0.65, None, 0.80),
        "real": (None, 3.0, None),
        "nf4": (0.70, None, None),
        "neox-fp16": (0.65, None, None),
    }
    assert set().union(*(work.contenders for work in WORKS.values())) <= set(contender.CONTENDERS)
    assert {*WATCHERS, *RIVALS} < set(contender.WITH_STOCK)
    assert FULL.quota("debug") == 4 < FULL.quota("aten") == FULL.steps


def test_a_fair_float16_contender_needs_the_processor():
    assert lacking(FULL, on_gpu=False) is None
    assert lacking(WORKS["neox-fp16"], on_gpu=True) is None
    assert lacking(WORKS["neox-fp16"], on_gpu=False) in (
        None,
        "the stock Trainer's float16 needs a processor with AVX512-FP16",
    )


def test_contenders_take_turns_and_leave_after_their_steps():
    found = rounds({"stock": 3, "items": 1, "ours": 3})
    assert found == [["stock", "items", "ours"], ["ours", "stock"], ["stock", "ours"]]


def test_other_rows_are_noticed():
    same_rows({"stock": taken(1.0, 1.0), "items": taken(1.0), "floor": taken(1.0, supervised=None)})
    with pytest.raises(RuntimeError, match="step 1: stock trained on 100 tokens, plain on 99"):
        same_rows({"stock": taken(1.0), "plain": taken(1.0, supervised=99)})


def test_the_table_has_a_line_for_each_contender():
    found = {"stock": taken(2.0, 2.0), "instrumented": taken(1.0, 1.0), "floor": taken(0.8, 0.8, supervised=None)}
    found["heavy"] = taken(1.5)
    lines = table(FULL, rows_of(FULL, found)).splitlines()
    assert lines[0].startswith("full: SmolLM2-135M, float32 base, 2 x 256 tokens")
    assert lines[0].endswith("ratios to stock")
    assert lines[3].split()[:4] == ["instrumented", "2", "1.000", "1.000"]
    assert lines[3].split()[7:10] == ["0.50x", "0.50-0.50", "100.0"]
    assert lines[3].split()[-4:] == ["3", "1,234", "57", "2.5000"]
    assert "-" in lines[4].split()
    assert remarks(found) == [
        "floor: the matrix products alone take 0.800 s; instrumented takes 1.25x that",
        "heavy: a step with exponent histograms and the probe takes +50%; they come every 100 steps, +0.50% on average",
    ]
    assert kinds_table({"matrix products": 3.0, "loss": 1.0}).splitlines()[1].split() == [
        "matrix", "products", "3.000", "s", "75%",
    ]  # fmt: skip


def test_the_picture_has_a_bar_an_interval_and_a_limit(tmp_path):
    found = {"stock": taken(2.0), "instrumented": taken(1.0, 1.5)}
    rows = rows_of(FULL, found) + rows_of(WORKS["short"], found)
    svg = overhead_svg("Seconds <a step>", rows)
    assert svg.count('class="bar"') == svg.count('class="interval"') == 4
    assert svg.count('class="limit"') == 1  # short has no bar
    assert "Seconds &lt;a step&gt;" in svg
    widths = [float(width) for width in re.findall(r'class="bar".*? width="([\d.]+)"', svg)]
    limit = float(re.findall(r'class="limit" x1="([\d.]+)"', svg)[0])
    assert widths[1] / widths[0] == pytest.approx(1.25 / 2, abs=1e-3)
    assert (limit - 120) / widths[0] == pytest.approx(0.65, abs=1e-3)


def test_growth_is_over_the_smallest_value():
    along = axes()
    assert [(axis.name, list(axis.works)) for axis in along] == [
        ("tokens", [128, 512, 2048]),
        ("rank", [4, 16, 64]),
        ("batch", [1, 4, 16]),
    ]
    assert along[0].works[128] == along[2].works[1]  # measured once
    assert [(work.batch, work.length) for work in along[1].works.values()] == [(2, 256)] * 3
    work = along[0].works[128]
    found = {
        128: rows_of(work, {"stock": taken(1.0, peak=10.0), "instrumented": taken(0.5, peak=8.0)}),
        512: rows_of(work, {"stock": taken(5.0, peak=30.0), "instrumented": taken(2.0, peak=12.0)}),
    }
    rows = growth_of("tokens", found)
    assert [(row.value, row.contender, row.growth, row.peak_growth) for row in rows] == [
        (128, "stock", 1.0, 1.0),
        (128, "instrumented", 1.0, 1.0),
        (512, "stock", 5.0, 3.0),
        (512, "instrumented", 4.0, 1.5),
    ]
    assert growth_table(rows).splitlines()[-1].split() == [
        "512", "instrumented", "2.000", "4.00x", "0.40x", "12", "1.50x", "0.40x",
    ]  # fmt: skip


def test_kinds_come_from_names_and_from_what_an_operator_runs_inside():
    kinds = {
        ("aten::mm", "lora_train::lora_linear"): "matrix products",
        ("aten::mm", "lora_train::linear_cross_entropy"): "matrix products",
        ("aten::softmax", "lora_train::linear_cross_entropy"): "loss",
        ("aten::mul", "statistics", "lora_train::lora_linear"): "statistics",
        ("aten::copy_", "lora_train::store"): "statistics",
        ("aten::index_fill_", "dropout", "lora_train::lora_linear"): "dropout",
        ("aten::_fused_adamw_", "Optimizer.step#AdamW.step", "optimizer"): "optimizer",
        ("aten::_scaled_dot_product_flash_attention_for_cpu",): "attention",
        ("aten::rsqrt",): "norm, rotary, activation, residual",
        ("aten::embedding",): profile.REST,
    }
    assert {chain: profile.kind_of(list(chain)) for chain in kinds} == kinds


def test_what_no_operator_took_is_pythons():
    def event(name: str, microseconds: float, parent: Any = None) -> Any:
        return SimpleNamespace(name=name, cpu_parent=parent, self_cpu_time_total=microseconds, self_device_time_total=0)

    outer = event("statistics", 1e6)
    kinds = profile.by_kind([outer, event("aten::mul", 2e6, outer), event("aten::mm", 4e6)], wall=10.0)
    if not torch.cuda.is_available():
        assert kinds == {"matrix products": 4.0, "statistics": 3.0, profile.BETWEEN: 3.0}


def test_every_function_that_is_named_for_the_profiler_exists_and_comes_back():
    restore = [profile.named(place, name) for place, name in profile.NAMED.items()]
    for undo in restore:
        undo()
    from lora_train.trainer.loop.optim import Optimizer

    assert Optimizer.step.__name__ == "step"


def test_reads_on_the_host_and_allocations_are_counted():
    meter = Counts()
    x = torch.ones(1024)
    (x.sum() + x[0]).item()
    counts = meter.end()
    if not torch.cuda.is_available():
        assert counts["synchronisations"] == 1
        assert 2 <= counts["allocations"] <= 8
        assert counts["allocated_mib"] == pytest.approx(4096 / 2**20, rel=0.1)


def test_load_tells_a_busy_machine(monkeypatch):
    monkeypatch.setattr("os.getloadavg", lambda: (2.0, 2.0, 2.0))
    assert Load().before_words() == "load 2.0 before (busy: these times mean little)"
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 2.0, 2.0))
    load = Load()
    assert not load.busy
    assert load.after_words().startswith("load 0.1 after")


@pytest.fixture
def lora_model() -> Any:
    from transformers import LlamaForCausalLM

    from benchmarks.overhead.models import random_config

    torch.manual_seed(0)
    base = LlamaForCausalLM(random_config("tiny"))
    return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))


def backward(model: Any) -> dict[str, torch.Tensor]:
    """Gradients of one batch."""
    ids = torch.arange(12).view(2, 6)
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", ["items", "foreach"])
def test_watched_norms_are_those_of_the_gradients(lora_model, name):
    log: dict[str, Any] = {}
    after_backward = WATCHERS[name](lora_model, log)
    gradients = backward(lora_model)
    after_backward()
    suffix = ".grad" if name == "items" else ""
    assert len(gradients) == 2 * 7 * 2
    for parameter, gradient in gradients.items():
        assert log[f"{parameter}{suffix}"] == pytest.approx(gradient.norm().item())
    if name == "items":
        layers = [key.removesuffix(":out") for key in log if key.endswith(":out")]
        assert len(layers) == 2 * 7
        assert all(log[f"{layer}:grad_out"] > 0 for layer in layers)
        assert sum(key.endswith(":grad_in") for key in log) == 2 * 7 - 3  # the first q, k and v read the embeddings


def test_histograms_hold_every_value_of_a_gradient(lora_model):
    log: dict[str, Any] = {}
    WATCHERS["histograms"](lora_model, log)
    gradients = backward(lora_model)
    assert log.keys() == gradients.keys()
    for name, gradient in gradients.items():
        counts, edges = log[name]
        assert sum(counts) == gradient.numel()
        assert (edges[0], edges[-1]) == pytest.approx((gradient.min().item(), gradient.max().item()))
        assert len(counts) == (1 if "lora_A" in name else 64)  # B is 0, so A's gradient is


def test_debug_looks_at_every_module(lora_model):
    log: dict[str, Any] = {}
    WATCHERS["debug"](lora_model, log)
    backward(lora_model)
    assert len(log["frames"]) == 21
    assert "abs max" in log["frames"][-1] or "output" in log["frames"][-1]


def test_the_floor_makes_every_product_that_has_a_gradient(lora_model):
    products = products_of(lora_model, lambda: lora_model(input_ids=torch.arange(4)[None]), 6, 5)
    assert len(products) == 2 * 7 + 1
    assert [product.backward for product in products[:3]] == [False] * 3
    assert all(product.backward for product in products[3:])
    assert products[-1].n_tokens == 5
    weight = torch.randn(3, 4)
    floor = Floor([Product(weight, 2, True), Product(torch.randn(4, 4), 2, True)], torch.float32, torch.device("cpu"))
    floor.step()
    torch.testing.assert_close(floor._made[-2, 3], floor._made[2, 4] @ weight.t())
    torch.testing.assert_close(floor._made[-2, 4], floor._made[2, 3] @ weight)


def prepared(work: Work, folder: Any, n_steps: int) -> dict[str, Any]:
    """The configuration of a work whose model and rows have been written."""
    model = prepare(work, folder / "model")
    settings = configuration(work, model, folder / "rows.jsonl", folder / "out", n_steps)
    tokenizer = load_tokenizer(Config.model_validate(settings))
    write_rows(folder / "rows.jsonl", work, work.batch * n_steps, tokenizer)
    return settings


def test_real_rows_have_the_listed_lengths_and_supervise_the_answer(tmp_path):
    work = WORKS["tiny-real"]
    settings = prepared(work, tmp_path, 16)
    config = Config.model_validate(settings)
    examples = load_examples(config.data.train, config.data, load_tokenizer(config)).examples
    assert len(examples) == len(LENGTHS) == 64
    assert (min(LENGTHS), max(LENGTHS), sorted(LENGTHS)[32]) == (20, 400, 84)
    for example, length in zip(examples, LENGTHS, strict=True):
        assert abs(len(example.input_ids) - length) <= 4
        share = 1 - example.n_supervised / len(example.input_ids)
        assert min(PROMPT_SHARES) - 0.1 < share < max(PROMPT_SHARES) + 0.1


def test_plain_rows_are_longer_than_they_will_be_cut(tmp_path):
    settings = prepared(replace(WORKS["tiny"], length=100), tmp_path, 3)
    config = Config.model_validate(settings)
    examples = load_examples(config.data.train, config.data, load_tokenizer(config)).examples
    assert [len(example.input_ids) for example in examples] == [100] * 6
    assert len({example.input_ids.tobytes() for example in examples}) == 6
    words = json.loads((tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()[0])["text"]
    assert len(words) == 800


def test_a_row_of_the_stock_trainer_is_masked_where_nothing_is_supervised():
    row = stock.row_of(Example(0, np.array([5, 6, 7], np.int32), np.array([False, False, True])))
    assert row == {"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [-100, -100, 7]}


def test_the_stock_trainer_computes_in_float16_under_a_loss_scaler(tmp_path, monkeypatch):
    """In this process; accelerate's state is put back."""
    scalers: list[float] = []
    seen: list[tuple[float, int]] = []
    attach = stock.as_fp16

    def attached(trainer: Any) -> None:
        attach(trainer)
        scalers.append(trainer.accelerator.scaler.get_scale())

    def gate(loss: Any, supervised: int | None) -> None:
        if loss is not None and supervised is not None:
            seen.append((float(loss), supervised))

    monkeypatch.setattr(stock, "as_fp16", attached)
    try:
        stock.train(prepared(WORKS["tiny-fp16"], tmp_path, 2), "items", gate)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert scalers == [65536.0] or torch.cuda.is_available()
    assert [supervised for _, supervised in seen] == [2 * 15]
    assert seen[0][0] == pytest.approx(np.log(512), abs=0.1)


def test_no_rival_joins_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert installed() == ()
    assert command.present(FULL, extension=True, on_gpu=False) == list(FULL.contenders)
    assert not {"plain_aten", "aten"} & set(command.present(FULL, extension=False, on_gpu=False))


def test_unknown_works_and_busy_machines_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        command.main(["growth", "full"])
    assert "growth stands alone" in capsys.readouterr().err
    monkeypatch.setattr("os.getloadavg", lambda: (5.0, 5.0, 5.0))
    assert command.main(["tiny", "--check-load"]) == 2
    assert "others are at work" in capsys.readouterr().out


def test_the_callback_on_all_weights_takes_turns_with_the_trainer_without(tmp_path, monkeypatch, capsys):
    """Both train every weight of the same model on the same rows, and the callback records its run meanwhile."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setitem(WORKS, "tiny-weights", replace(WORKS["tiny-weights"], bar=1000.0))
    assert command.main(["tiny-weights", "--csv", str(tmp_path / "x.csv")]) == 0
    with (tmp_path / "x.csv").open() as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["weights", "callback"]
    assert rows["callback"]["base"] == "weights"
    assert float(rows["callback"]["loss"]) == pytest.approx(float(rows["weights"]["loss"]), rel=1e-5)
    printed = capsys.readouterr().out
    assert "all weights" in printed
    assert "PASS  tiny-weights: step time of callback (InstrumentCallback, all weights) over weights" in printed
    assert WORKS["weights"].bar == 1.05
    assert WORKS["weights"].model == "smollm2"


def test_contenders_take_turns_on_the_same_rows(tmp_path, monkeypatch, capsys):
    """One update has been made before the step whose losses are compared; there is no dropout."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = ["tiny-real", "--contenders", "stock", "instrumented", "--csv", str(tmp_path / "x.csv")]
    assert command.main(arguments) == 0
    with (tmp_path / "x.csv").open(encoding="utf-8") as file:
        rows = {row["contender"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"stock", "instrumented"}
    assert float(rows["instrumented"]["loss"]) == pytest.approx(float(rows["stock"]["loss"]), rel=1e-5)
    assert float(rows["stock"]["ratio"]) == 1.0
    assert all(int(row["allocations"]) > 100 and float(row["peak_mib"]) > 100 for row in rows.values())
    assert (tmp_path / "x.svg").read_text(encoding="utf-8").count('class="bar"') == 2
    assert "tiny-real: two layers of LLaMA" in capsys.readouterr().out
