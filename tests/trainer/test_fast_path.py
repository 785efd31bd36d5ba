"""What the fast path replaces in each architecture, and that it changes no result."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
import transformers
from lora_train.trainer import fast_path
from lora_train.trainer.fast_path import take_fast_path
from lora_train.trainer.loop import train_step
from lora_train.trainer.settings import with_settings

from .test_families import SIZES
from .test_loop import make_config, make_parts

# architecture -> norms in a layer, gated activations in a layer
FAMILIES = {"Llama": (2, 1), "Qwen3": (4, 1), "Mistral": (2, 1), "Gemma": (2, 0), "Phi3": (2, 0), "GPTNeoX": (0, 0)}


@pytest.fixture
def own_rotary():
    """Puts the architectures' own functions back, before and after: replaced ones stay for the process."""
    modules = [importlib.import_module(getattr(transformers, f"{name}ForCausalLM").__module__) for name in FAMILIES]

    def undo() -> None:
        for module in modules:
            replaced: Any = module.apply_rotary_pos_emb  # pyright: ignore[reportAttributeAccessIssue]
            setattr(module, fast_path.ROTARY, getattr(replaced, "replaces", replaced))

    undo()
    yield
    undo()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_results_are_the_architectures_own(own_rotary, name, dtype):
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES))
    model = model.to(dtype).requires_grad_(False).eval()
    for parameter in model.parameters():  # norms begin with ones, which hide what is done with them
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    before = outputs(model)
    found = take_fast_path(model)
    norms, gated = FAMILIES[name]
    assert len(found.norms) == (2 * norms + 1 if norms else 0)
    assert len(found.gated) == 2 * gated
    assert found.rotary
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    for ours, theirs in zip(outputs(model), before, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()
    again = take_fast_path(model)
    assert again.rotary


def outputs(model: Any) -> list[torch.Tensor]:
    """Logits of two rows, and the gradient of the embeddings."""
    torch.manual_seed(1)
    embeddings = torch.randn(2, 9, SIZES["hidden_size"]).to(model.dtype).requires_grad_()
    logits = model(inputs_embeds=embeddings, use_cache=False).logits
    logits.float().square().mean().backward()
    assert embeddings.grad is not None
    return [logits.detach(), embeddings.grad]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_run_has_the_losses_and_statistics_of_the_reference_path(tiny_models, monkeypatch, own_rotary, checkpointing):
    config = make_config(tiny_models["llama"], learning_rate=1e-2, gradient_accumulation_steps=2)
    changes = {"lora.lora_dropout": 0.0, "training.gradient_checkpointing": checkpointing}
    config = with_settings(config, changes)

    def steps() -> list[tuple[list[float], dict[str, torch.Tensor]]]:
        parts = make_parts(config)
        assert parts.recorder is not None
        found = []
        for step in range(1, 5):
            row = train_step(parts, step).tolist()
            rows = [rows for _, rows, _ in parts.recorder.drain()][-1]
            found.append((row, {site.name: rows[site.id].clone() for site in parts.recorder.sites}))
        return found

    fast = steps()
    monkeypatch.setattr("lora_train.trainer.parts.take_fast_path", lambda base: None)
    for module in (transformers.models.llama.modeling_llama,):
        monkeypatch.setattr(module, fast_path.ROTARY, module.apply_rotary_pos_emb.replaces)
    for (row, rows), (expected_row, expected_rows) in zip(fast, steps(), strict=True):
        assert row == pytest.approx(expected_row, rel=2e-5)
        # one operation with its product, the activation has no output of its own
        assert {name for name in expected_rows if name not in rows} == {
            f"model.layers.{i}.mlp.act_fn:out" for i in (0, 1)
        }
        for name, values in rows.items():
            torch.testing.assert_close(values, expected_rows[name], rtol=2e-4, atol=1e-12, equal_nan=True, msg=name)


def test_what_only_looks_alike_stays(tiny_models):
    class OtherRMSNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(8), requires_grad=False)
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight / x.norm(dim=-1, keepdim=True)  # no mean: another norm

    class OtherMLP(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj = self.up_proj = self.down_proj = torch.nn.Linear(8, 8)
            self.act_fn = torch.nn.Tanh()

    model = torch.nn.Sequential(OtherRMSNorm(), OtherMLP())
    found = take_fast_path(model)
    assert (found.norms, found.gated, found.rotary) == ([], [], False)
    assert all("forward" not in vars(module) for module in model.modules())
