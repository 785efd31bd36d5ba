"""The fused forward against PEFT's own, on architectures it knows nothing about."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lora_train.instrument.record.patch import Patched, lora_modules, patch, unpatch
from peft import LoraConfig, PeftModel, get_peft_model
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BitsAndBytesConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
FAMILIES: dict[str, Any] = {
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES, hidden_dropout_prob=0, attention_probs_dropout_prob=0)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SIZES, num_key_value_heads=2, head_dim=12)),
}
IDS = torch.arange(34).view(2, 17) % 128


def make(family: str, **lora: Any) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False, **lora})
    model = get_peft_model(FAMILIES[family](), config)
    assert isinstance(model, PeftModel)
    return model.train()


def patched_copy(model: PeftModel) -> tuple[PeftModel, Patched]:
    other = copy.deepcopy(model)
    return other, patch(other, lambda: other(input_ids=IDS[:, :4]))


def loss_of(model: Any) -> torch.Tensor:
    logits = model(input_ids=IDS).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), IDS.flatten())


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss_of(model).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_every_lora_gradient_agree_with_peft(family):
    model = make(family)
    fused, patched = patched_copy(model)
    assert patched.unfused == []
    assert sorted(name for group in patched.groups for name in group.names) == sorted(lora_modules(model))
    torch.testing.assert_close(fused(input_ids=IDS).logits, model(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    expected, ours = gradients(model), gradients(fused)
    assert ours.keys() == expected.keys()
    for name in expected:
        error = torch.linalg.vector_norm(ours[name] - expected[name]) / torch.linalg.vector_norm(expected[name])
        assert error < 1e-5, name


@pytest.mark.parametrize("base", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("adapter", [torch.float16, torch.bfloat16])
def test_a_16_bit_adapter_is_fused_and_nearer_to_the_exact_model_than_pefts_forward(base, adapter):
    """PEFT rounds every product of the branch, ours the weights alone, which are the same: errors beside float64."""
    model = make("llama").to(base)
    for module in lora_modules(model).values():
        module.lora_A.to(adapter), module.lora_B.to(adapter)
    exact = copy.deepcopy(model).double()
    fused, patched = patched_copy(model)
    assert patched.unfused == []
    expected = gradients(exact)
    errors = []
    for each in (model, fused):
        logits = (each(input_ids=IDS).logits - exact(input_ids=IDS).logits).norm()
        ours = {name: g for name, g in gradients(each).items() if "lora_" in name}
        assert {g.dtype for g in ours.values()} == {adapter}
        off = torch.stack([(g - expected[name]).norm() / expected[name].norm() for name, g in ours.items()])
        errors.append((float(logits.detach()), float(off.mean())))
    (logits, off), (own_logits, own_off) = errors
    # the base model rounds as much as the branch does where it is 16-bit itself
    room = 1.0 if base == torch.float32 else 1.5
    assert own_logits < room * logits
    # two layers round some 40 times on the way of a gradient, each by half an eps at most: three deviations
    rounded = 0.0 if base == torch.float32 else 3 * torch.finfo(base).eps / 2 * 40**0.5
    assert own_off < max(room * off, rounded)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("family", ["gpt_neox", "llama"])
def test_nf4_agrees_with_peft(tmp_path, family, double):
    """Widths are multiples of 64: bitsandbytes 0.50.2 decodes others wrongly on CPUs with AVX-512."""
    torch.manual_seed(0)
    kind = {"gpt_neox": (GPTNeoXConfig, GPTNeoXForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}[family]
    kind[1](kind[0](**{**SIZES, "hidden_size": 64, "intermediate_size": 128})).save_pretrained(tmp_path)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = kind[1].from_pretrained(tmp_path, quantization_config=quantization, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model: Any = get_peft_model(base, lora).train()
    logits, expected = model(input_ids=IDS).logits, gradients(model)
    patched = patch(model, lambda: model(input_ids=IDS[:, :4]))
    assert patched.unfused == []
    assert len(expected) == 2 * sum(len(group.names) for group in patched.groups)
    torch.testing.assert_close(model(input_ids=IDS).logits, logits, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model).items():
        assert torch.linalg.vector_norm(gradient - expected[name]) < 1e-5 * torch.linalg.vector_norm(gradient), name


@pytest.mark.parametrize("family", FAMILIES)
def test_sixty_steps_stay_together(family):
    model = make(family, init_lora_weights=True)
    fused, _ = patched_copy(model)
    losses = []
    for each in (model, fused):
        optimizer = torch.optim.AdamW((p for p in each.parameters() if p.requires_grad), lr=3e-3)
        losses.append([])
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_of(each)
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < losses[0][0] - 1e-3
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    ours = dict(fused.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.linalg.vector_norm(ours[name] - parameter) < 1e-2 * torch.linalg.vector_norm(parameter), name


def test_modules_that_share_an_input_are_grouped():
    _, patched = patched_copy(make("llama"))
    names = [[name.rpartition(".")[2] for name in group.names] for group in patched.groups]
    layer = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
    assert names == layer * 2
    _, patched = patched_copy(make("gpt_neox"))
    assert [len(group.names) for group in patched.groups] == [1] * 8
    assert patched.groups[0].names == ["gpt_neox.layers.0.attention.query_key_value"]


def test_disabling_merging_and_saving_stay_pefts_own(tmp_path):
    model = make("llama")
    fused: Any
    fused, patched = patched_copy(model)
    plain: Any = model.get_base_model()
    with model.disable_adapter(), fused.disable_adapter():
        base_logits = fused(input_ids=IDS).logits
        torch.testing.assert_close(base_logits, model(input_ids=IDS).logits, rtol=0, atol=0)
    with_adapter = fused(input_ids=IDS).logits
    assert not torch.allclose(base_logits, with_adapter)
    fused.merge_adapter()
    torch.testing.assert_close(fused(input_ids=IDS).logits, with_adapter, rtol=1e-4, atol=1e-4)
    fused.unmerge_adapter()
    torch.testing.assert_close(fused(input_ids=IDS).logits, with_adapter, rtol=1e-4, atol=1e-4)
    fused.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(FAMILIES["llama"](), str(tmp_path))
    saved = {name: p for name, p in loaded.named_parameters() if "lora_" in name}
    assert all(torch.equal(p, dict(fused.named_parameters())[name]) for name, p in saved.items())
    unpatch(patched)
    assert all("forward" not in vars(module) for module in lora_modules(fused).values())
    assert plain is model.get_base_model()


def test_what_cannot_be_fused_stays_on_pefts_path():
    _, patched = patched_copy(make("llama", use_dora=True, target_modules=["q_proj", "down_proj"]))
    assert [(name.rpartition(".")[2], reason) for name, _, reason in patched.unfused] == [
        ("q_proj", "patch.variant"), ("down_proj", "patch.variant"),
        ("q_proj", "patch.variant"), ("down_proj", "patch.variant"),
    ]  # fmt: skip
    _, patched = patched_copy(make("bert", lora_bias=True, target_modules=["query"]))
    assert {reason for _, _, reason in patched.unfused} == {"patch.lora_bias"}
    model: Any = make("llama", target_modules=["o_proj"])
    model.add_adapter("second", LoraConfig(r=2, target_modules=["o_proj"]))
    model.base_model.set_adapter(["default", "second"])
    assert {reason for _, _, reason in patched_copy(model)[1].unfused} == {"patch.several_adapters"}


def test_a_module_called_with_another_tensor_computes_alone():
    model = make("llama")
    _, patched = patched_copy(model)
    q, k, _ = patched.groups[0].modules
    theirs = lora_modules(model)["model.layers.0.self_attn.k_proj"]
    x, other = torch.randn(3, 48), torch.randn(3, 48)
    q(x)
    torch.testing.assert_close(k(other), theirs(other), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(k(x), theirs(x), rtol=1e-5, atol=1e-5)
    # consumed: the same tensor again is computed again
    torch.testing.assert_close(k(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_dropout_is_off_in_evaluation_and_scaled_in_training():
    model = make("llama", lora_dropout=0.5)
    fused, _ = patched_copy(model)
    torch.testing.assert_close(
        fused.eval()(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits, rtol=1e-5, atol=1e-5
    )
    fused.train()
    torch.manual_seed(1)
    first = fused(input_ids=IDS).logits
    torch.manual_seed(1)
    assert torch.equal(first, fused(input_ids=IDS).logits)
    assert not torch.equal(first, fused(input_ids=IDS).logits)


def test_activation_checkpointing_gives_identical_gradients():
    model, _ = patched_copy(make("llama", lora_dropout=0.1))
    torch.manual_seed(1)
    expected = gradients(model)
    base: Any = model.get_base_model()
    base.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    ours = gradients(model)
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


class Reads(torch.nn.Module):
    """Calls modules of a layer on one input, as attention does."""

    def __init__(self, *modules: torch.nn.Module):
        super().__init__()
        self.modules_ = torch.nn.ModuleList(modules)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([module(x) for module in self.modules_], dim=-1)


def test_twelve_patched_layers_compile_once_without_a_break():
    SIZES["num_hidden_layers"] = 12
    try:
        model = make("llama")
    finally:
        SIZES["num_hidden_layers"] = 2
    _, patched = patched_copy(model)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    for family in (("q_proj", "k_proj", "v_proj"), ("down_proj",)):
        groups = [group for group in patched.groups if group.names[0].endswith(family[0])]
        assert len(groups) == 12
        counter.frame_count = 0
        for group in groups:
            group.slot = torch.zeros(2 + 4 * len(group.names), 9, dtype=torch.float64)
            x = torch.randn(5, 72 if family == ("down_proj",) else 48, requires_grad=True)
            compiled = torch.compile(Reads(*group.modules), backend=counter, fullgraph=True)(x)
            (dx,) = torch.autograd.grad(compiled.square().sum(), x)
            rows = group.slot.clone()
            expected = Reads(*group.modules)(x)
            torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(dx, torch.autograd.grad(expected.square().sum(), x)[0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(rows, group.slot, rtol=1e-6, atol=0, equal_nan=True)
        assert counter.frame_count == 1
