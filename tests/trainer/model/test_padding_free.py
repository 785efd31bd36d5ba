"""Without padding a run computes what it computes with: losses, gradients, statistics, evaluation."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from lora_train.instrument.read.store import COLUMNS
from lora_train.kernels import cpu
from lora_train.kernels.attention import rows as rows_attention
from lora_train.trainer.collapse.remedy import changed
from lora_train.trainer.config.schema import Config
from lora_train.trainer.config.settings import Settings, with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import collate
from lora_train.trainer.data.examples import Dataset, Example
from lora_train.trainer.dry_run.show import dry_run
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.components import Components, build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.evaluate import evaluate
from lora_train.trainer.loop.train import forward_backward, micro_batch_loss, train_step
from lora_train.trainer.model import padding_free
from lora_train.trainer.model.load import trainable
from lora_train.trainer.model.padding_free import (
    AT_ONCE,
    PER_ROW,
    Rows,
    attention_at_once,
    attention_of,
    attention_of_rows,
    how_rows_attend,
    mask_of_rows,
    model_inputs,
    running,
    why_not,
)

from ...kernels.attention.rows_stand_in import H100, install
from ..data.test_batches import example
from ..loop.test_train import make_config, relative_error
from .test_families import SIZES

WINDOW = 6
# Shorter and longer than the window; a micro-batch has rows of several lengths.
LENGTHS = [9, 4, 14, 5, 20, 7, 6, 11]
N_ROWS = 4
# What rounding leaves of a sum over 60 tokens; a gradient has some 10,000 values, compared by the norm of all.
LOSS, GRADIENT = 1e-6, 1e-5


def rows(lengths: list[int]) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset("rows", [
        Example(row, rng.integers(1, 500, n).astype(np.int32), np.arange(n) >= max(1, n // 2))
        for row, n in enumerate(lengths)
    ], [], 0)  # fmt: skip


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory) -> dict[str, Path]:
    """Besides the usual two: sliding windows in all layers, in one of two, and chunks with experts."""
    found = dict(tiny_models)
    window = {"sliding_window": WINDOW}
    wanted: dict[str, tuple[str, dict[str, Any]]] = {
        "mistral": ("Mistral", window),
        "qwen2": ("Qwen2", {**window, "use_sliding_window": True, "max_window_layers": 1}),
        "mixtral": ("Mixtral", {"num_local_experts": 4}),
        "recurrent": ("RecurrentGemma", {}),
    }
    for name, (family, more) in wanted.items():
        found[name] = tmp_path_factory.mktemp("rows") / name
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**SIZES, **more)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(found[name])
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_models["llama"] / file, found[name])
    return found


def components_of(model: Path, settings: Settings, lengths: list[int] = LENGTHS, **training: Any) -> Components:
    config = make_config(model, per_device_train_batch_size=N_ROWS, **training)
    config = with_settings(config, {"data.cutoff_len": 24, **settings})
    data = rows(lengths)
    components = build(config, Engine(), data, data, 0, Console())
    torch.manual_seed(0)
    for name, parameter in trainable(components.model).items():
        if "lora_B" in name:  # zero at first: no gradient would reach lora_A
            torch.nn.init.normal_(parameter, std=0.05)
    components.model.train()
    return components


def pair(model: Path, lengths: list[int] = LENGTHS, **training: Any) -> tuple[Components, Components]:
    """The same run with padding and without."""
    padded, free = (components_of(model, {"data.padding_free": on}, lengths, **training) for on in (False, True))
    assert (padded.loss.padding_free, free.loss.padding_free) == (False, True)
    return padded, free


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("llama", {}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"gradient_accumulation_steps": 2}),
        ("gpt_neox", {}),
        ("mistral", {}),
        ("mistral", {"gradient_checkpointing": True}),
        ("qwen2", {}),
    ],
)
def test_losses_and_gradients_are_those_of_padded_batches(models, name, training):
    padded, free = pair(models[name], **training)
    losses = [float(forward_backward(components, components.plan.rows(1))[0]) for components in (padded, free)]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS)
    assert relative_error(free.optimizer.gradients, padded.optimizer.gradients) < GRADIENT


def test_fp16_trains_as_with_padding(models):
    padded, free = pair(models["llama"], fp16=True)
    both = [
        [train_step(components, components.plan.rows(step)).tolist() for step in (1, 2, 3)]
        for components in (padded, free)
    ]
    # three steps in fp16: 11 bits of mantissa in every product
    for ours, theirs in zip(both[1], both[0], strict=True):
        assert ours[0] == pytest.approx(theirs[0], rel=2e-3)
    assert both[1][-1][2:4] == both[0][-1][2:4]  # loss scale and skipped


def statistics(components: Components) -> dict[str, dict[str, float]]:
    recorder = components.recorder
    assert recorder is not None
    with recorder.active():
        forward_backward(components, components.plan.rows(1))
        recorder.finish_step(components.optimizer.gradient_rows(), components.optimizer.gradients)
        ((_, values, _),) = recorder.drain()
    return {site.name: dict(zip(COLUMNS, values[site.id].tolist(), strict=True)) for site in recorder.sites}


@pytest.mark.parametrize("name", ["llama", "gpt_neox"])
def test_statistics_of_rows_of_one_length_are_the_same_in_every_field(models, name):
    padded, free = map(statistics, pair(models[name], [12] * 8, gradient_accumulation_steps=2))
    assert padded.keys() == free.keys()
    for site, fields in padded.items():
        assert free[site] == pytest.approx(fields, rel=1e-5, nan_ok=True), site


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_statistics_of_unequal_rows_count_real_tokens_and_have_the_same_gradients(models, name):
    runs = pair(models[name], gradient_accumulation_steps=2)
    padded, free = map(statistics, runs)
    n_tokens = sum(LENGTHS)
    recorder = runs[1].recorder
    assert recorder is not None
    for site in recorder.sites:
        ours, theirs = free[site.name], padded[site.name]
        if "grad" in site.tensor:
            assert ours["sumsq"] == pytest.approx(theirs["sumsq"], rel=1e-5, nan_ok=True), site
            assert ours["absmax"] == pytest.approx(theirs["absmax"], rel=1e-4, nan_ok=True), site
        # nothing below the first layer wants a gradient
        if not site.tensor.startswith("lora") and not np.isnan(theirs["n"]):
            assert site.shape is not None
            assert ours["n"] == n_tokens * site.shape[-1] < theirs["n"], site


def test_evaluation_is_that_of_padded_batches(models, device):
    found = []
    for components in pair(models["mistral"]):
        assert components.eval_data is not None
        found.append(evaluate(components)[0])
    # on a GPU padded and single rows are multiplied by other kernels
    assert found[1].eval_loss == pytest.approx(found[0].eval_loss, rel=10 * LOSS if device == "cuda" else LOSS)
    assert found[1].eval_token_accuracy == found[0].eval_token_accuracy


def test_a_bin_is_its_rows_alone(models):
    components = replace(components_of(models["qwen2"], {"data.packing": True}), recorder=None)
    assert components.plan.steps_per_epoch == 1  # 76 tokens in 4 bins of 24
    (together,) = components.plan.micro_batches(1)
    alone = sum(float(micro_batch_loss(components, 1, 0, [row]).detach()) for row in together)
    assert float(micro_batch_loss(components, 1, 0, together).detach()) == pytest.approx(alone, rel=LOSS)


def test_concatenated_rows_begin_anew_and_predict_within_themselves():
    batch = collate([example(1, 3, 1), example(2, 5, 2)], 7, padding_free=True)
    assert batch.input_ids.tolist() == [[100, 101, 102, 200, 201, 202, 203, 204]]
    assert batch.position_ids is not None
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch.input_ids[0, batch.positions].tolist() == [101, 202, 203]
    assert batch.targets.tolist() == [102, 203, 204]
    assert (batch.rows, batch.n_tokens, batch.lengths) == ((1, 2), 8, (3, 5))


def test_flash_attention_is_told_where_rows_begin_without_asking_the_device():
    batch = collate([example(1, 3, 1), example(2, 5, 2)], 7, padding_free=True)
    inputs = model_inputs(batch, "flash_attention_2")
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 3, 8]
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert (inputs["max_length_q"], inputs["max_length_k"]) == (5, 5)
    assert "cu_seq_lens_q" not in model_inputs(batch, PER_ROW)


@pytest.fixture
def on_h100(monkeypatch) -> list[str]:
    """The CPU taken for a GPU, with stand-ins for the kernels that are not here; lists the calls of these."""
    monkeypatch.setattr(padding_free, "chip_of", lambda device: H100)
    return install(monkeypatch)


@pytest.mark.parametrize(
    ("name", "training", "calls"),
    [
        ("llama", {}, ["efficient"]),
        ("llama", {"fp16": True}, ["flash"]),
        ("llama", {"fp16": True, "gradient_checkpointing": True}, ["flash"]),
        ("gpt_neox", {}, ["efficient"]),
        ("gpt_neox", {"bf16": True}, ["flash"]),
        ("mistral", {}, []),  # every micro-batch has a row longer than the window
        ("qwen2", {"fp16": True}, ["flash"]),  # in its layer without a window
    ],
)
def test_on_a_gpu_all_rows_are_one_call_in_every_layer_that_has_no_mask(models, on_h100, name, training, calls):
    padded, free = pair(models[name], **training)
    assert attention_of(free.loss._model) == AT_ONCE
    del on_h100[:]
    losses = [float(forward_backward(components, components.plan.rows(1))[0]) for components in (padded, free)]
    n_layers = 1 if name == "qwen2" else 2
    assert on_h100 == calls * n_layers * (2 if "gradient_checkpointing" in training else 1)
    # 16-bit products are rounded on both sides; their gradients pass some ten of them
    loss, gradient = (LOSS, GRADIENT) if len(training) == 0 else (2e-2, 5e-2) if "bf16" in training else (2e-3, 1e-2)
    assert losses[1] == pytest.approx(losses[0], rel=loss)
    assert relative_error(free.optimizer.gradients, padded.optimizer.gradients) < gradient


@pytest.mark.parametrize(
    ("masked", "more", "expected"),
    [
        (False, {}, ["efficient"]),
        (False, {"scaling": 0.1, "dropout": 0.0, "position_bias": None}, ["efficient"]),
        (True, {}, []),
        (False, {"dropout": 0.1}, []),
        (False, {"is_causal": False}, []),
        (False, {"position_bias": torch.zeros(1, 1, 1, 1)}, []),
    ],
    ids=str,
)
def test_what_one_call_cannot_express_goes_row_by_row(on_h100, masked, more, expected):
    module, lengths = torch.nn.Module(), (3, 9, 2)
    module.num_key_value_groups = 2  # pyright: ignore[reportArgumentType]
    q, k, v = (torch.randn(1, heads, sum(lengths), 16) for heads in (4, 2, 2))
    masks = {n: torch.ones(1, 1, n, n, dtype=torch.bool).tril() if masked else None for n in lengths}
    rows = Rows(lengths, masks, torch.tensor([0, 3, 12, 14], dtype=torch.int32))
    torch.manual_seed(0)
    found = attention_at_once(module, q, k, v, rows, **more)[0]
    assert on_h100 == expected
    torch.manual_seed(0)
    torch.testing.assert_close(found, attention_of_rows(module, q, k, v, rows, **more)[0])


def test_a_kernel_that_gives_other_values_is_not_taken(models, on_h100, monkeypatch, capsys):
    monkeypatch.setattr(rows_attention, "efficient_forward", lambda q, *_, **__: (q + 1,))
    components = components_of(models["llama"], {})
    assert components.loss.padding_free
    assert attention_of(components.loss._model) == PER_ROW
    said = components.loss.how_rows_attend("float32", 24)
    assert said == "rows   attention row by row: in one call the model gave other values"
    assert "batches are padded" not in capsys.readouterr().out


def test_a_kernel_that_fails_is_not_taken(models, on_h100, monkeypatch):
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("this build has no such kernel")

    monkeypatch.setattr(rows_attention, "efficient_forward", fails)
    components = components_of(models["llama"], {})
    assert (components.loss.padding_free, attention_of(components.loss._model)) == (True, PER_ROW)


@pytest.mark.parametrize(
    ("name", "dtype", "change", "sentence"),
    [
        ("llama", "float16", {}, "attention of all rows of a batch in one call: FlashAttention"),
        ("llama", "float32", {}, "attention of all rows of a batch in one call: memory-efficient attention"),
        ("llama", "float16", {"attention_dropout": 0.1}, "row by row: the model drops attention weights"),
        ("llama", "float16", {"head_dim": 20}, "no kernel for heads of 20 values in float16"),
        ("mistral", "bfloat16", {}, "row by row where one is longer than the model's window of 6 tokens"),
        ("mistral", "bfloat16", {"sliding_window": 64}, "in one call: FlashAttention"),
    ],
)
def test_the_banner_says_how_rows_attend(models, on_h100, name, dtype, change, sentence):
    model = transformers.AutoModelForCausalLM.from_pretrained(models[name], attn_implementation=AT_ONCE)
    for key, value in change.items():
        setattr(model.config, key, value)
    said = how_rows_attend(model, dtype, 24)
    assert said is not None
    assert said.startswith("rows   ")
    assert sentence in said


def test_the_banner_says_nothing_where_there_is_no_gpu_or_no_such_attention(models, monkeypatch):
    model = transformers.AutoModelForCausalLM.from_pretrained(models["llama"], attn_implementation=PER_ROW)
    assert how_rows_attend(model, "float32", 24) is None
    model.set_attn_implementation("eager")
    monkeypatch.setattr(padding_free, "chip_of", lambda device: H100)
    assert how_rows_attend(model, "float32", 24) is None


def test_only_rows_longer_than_the_window_get_a_mask():
    arguments = {"q_offset": 0, "kv_offset": 0, "local_size": WINDOW, "device": "cpu"}
    window = transformers.masking_utils.sliding_window_causal_mask_function(WINDOW)
    batch = collate([example(1, 3, 1), example(2, 9, 2)], 7, padding_free=True)
    with running(batch):
        mask = mask_of_rows(1, 12, 12, mask_function=window, **arguments)
    assert isinstance(mask, Rows)
    wide = mask.masks[9]
    assert mask.masks[3] is None
    assert wide is not None
    assert wide[0, 0].sum(-1).tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6]


@pytest.mark.skipif(not cpu.AVAILABLE, reason="the C extension was not built")
@pytest.mark.parametrize("lengths", [(7, 7), (3, 9, 2)])
@pytest.mark.parametrize(
    ("masked", "more", "expected"),
    [
        (False, {}, True),
        (False, {"scaling": 0.1}, True),
        (True, {}, False),
        (False, {"dropout": 0.1}, False),
        (False, {"is_causal": False}, False),
    ],
    ids=str,
)
def test_causal_rows_are_computed_in_c(monkeypatch, lengths, masked, more, expected):
    called = []
    own = padding_free.attention
    monkeypatch.setattr(padding_free, "attention", lambda *args: called.append(args[3]) or own(*args))
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # pyright: ignore[reportArgumentType]
    q, k, v = (torch.randn(1, heads, sum(lengths), 16) for heads in (4, 2, 2))
    masks = {n: torch.ones(1, 1, n, n, dtype=torch.bool).tril() if masked else None for n in set(lengths)}
    torch.manual_seed(0)
    found, _ = attention_of_rows(module, q, k, v, Rows(lengths, masks), **more)
    assert called == ([more.get("scaling", 0.25)] * len(masks if len(masks) == 1 else lengths) if expected else [])
    monkeypatch.setattr(padding_free, "takes", lambda *args: False)
    torch.manual_seed(0)
    torch.testing.assert_close(found, attention_of_rows(module, q, k, v, Rows(lengths, masks), **more)[0])


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("llama", {"model.attn_implementation": "eager"}, "model.attn_implementation=eager"),
        ("recurrent", {}, "gives other values for rows that lie one behind the other"),
    ],
)
def test_a_model_that_cannot_stays_padded_and_says_so(models, capsys, name, settings, reason):
    components = components_of(models[name], settings)
    assert not components.loss.padding_free
    assert attention_of(components.loss._model) == settings.get("model.attn_implementation", "sdpa")
    told = " ".join(capsys.readouterr().out.split())
    assert "batches are padded" in told
    assert reason in told
    assert np.isfinite(float(forward_backward(components, components.plan.rows(1))[0]))
    with pytest.raises(UserError, match=r"data\.packing: rows cannot be packed"):
        components_of(models[name], {**settings, "data.packing": True})


@pytest.mark.parametrize(("share", "expected"), [(0.0, ""), (1e-5, "padding.differs"), (1.0, "padding.differs")])
def test_a_leak_below_every_tolerance_is_found(models, share, expected):
    model = transformers.AutoModelForCausalLM.from_pretrained(models["llama"], attn_implementation="sdpa")

    def hidden(batch: Any) -> torch.Tensor:
        with running(batch):
            found = model.model(**model_inputs(batch, attention_of(model)))[0]
        return found + share * found.cumsum(1)

    assert why_not(model, hidden, 1e-4, torch.finfo(torch.float32).eps) == expected
    assert attention_of(model) == ("sdpa" if expected else PER_ROW)


def test_experts_that_round_by_how_many_tokens_they_get_are_no_leak(models):
    model = transformers.AutoModelForCausalLM.from_pretrained(models["mixtral"], attn_implementation="sdpa")

    def hidden(batch: Any) -> torch.Tensor:
        with running(batch):
            return model.model(**model_inputs(batch, attention_of(model)))[0]

    assert why_not(model, hidden, 1e-4, torch.finfo(torch.float32).eps) == ""


def test_a_remedy_that_changes_attention_pads_and_gives_rows_back(models):
    components = replace(components_of(models["llama"], {}), recorder=None)
    before = float(forward_backward(components, components.plan.rows(1))[0])
    components.optimizer.clear()
    with changed(components, {"model.attn_implementation": "eager"}) as other:
        assert not other.loss.padding_free
        assert float(forward_backward(other, other.plan.rows(1))[0]) == pytest.approx(before, rel=LOSS)
        components.optimizer.clear()
    assert components.loss.padding_free
    assert float(forward_backward(components, components.plan.rows(1))[0]) == before


def test_dry_run_counts_bins(models, capsys):
    config = make_config(models["llama"], per_device_train_batch_size=2)
    config = with_settings(config, {"data.packing": True, "data.cutoff_len": 512})
    assert dry_run(Config.model_validate(config.model_dump())) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "an epoch of 2 bins each" in told
    assert "largest training.per_device_train_batch_size that fits" in told
    assert "bins, at" in told


@pytest.mark.gpu
@pytest.mark.parametrize("training", [{}, {"fp16": True}, {"gradient_checkpointing": True}], ids=str)
def test_losses_and_gradients_are_those_of_padded_batches_on_the_gpu(models, training):
    padded, free = pair(models["mistral"], **training)
    losses = [float(forward_backward(components, components.plan.rows(1))[0]) for components in (padded, free)]
    exact = not training.get("fp16")
    assert losses[1] == pytest.approx(losses[0], rel=1e-5 if exact else 2e-3)
    limit = 1e-4 if exact else 1e-2
    assert relative_error(free.optimizer.gradients, padded.optimizer.gradients) < limit
