"""What the fast path replaces in each architecture, and that it changes no result."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lora_train.kernels.backend import triton_on_cpu
from lora_train.trainer.config.settings import with_settings
from lora_train.trainer.data.batches import collate
from lora_train.trainer.dry_run.fake_model import _materialize
from lora_train.trainer.loop.train import train_step
from lora_train.trainer.model import fast_path
from lora_train.trainer.model.fast_path import FastPath, take_fast_path
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers.activations import ACT2FN

from ..loop.test_train import make_components, make_config
from .test_families import SIZES

# architecture -> norms, gated activations and others in a layer, for the CPU and where Triton runs
FAMILIES = {
    "Llama": ((2, 1, 0), (2, 1, 0)),
    "Qwen3": ((4, 1, 0), (4, 1, 0)),
    "Mistral": ((2, 1, 0), (2, 1, 0)),
    "Gemma": ((2, 0, 0), (2, 1, 0)),
    "Phi3": ((2, 0, 0), (2, 0, 0)),
    "GPTNeoX": ((0, 0, 0), (2, 0, 1)),
}


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


@pytest.fixture(params=["cpu", "triton"])
def with_triton(request) -> Iterator[bool]:
    """Whether CPU tensors go through the Triton kernels, in their interpreter."""
    with triton_on_cpu() if request.param == "triton" else nullcontext():
        yield request.param == "triton"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_results_are_the_architectures_own(own_rotary, with_triton, name, dtype):
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SIZES))
    model = model.to(dtype).requires_grad_(False).eval()
    for parameter in model.parameters():  # norms begin with ones, which hide what is done with them
        if parameter.ndim == 1:
            parameter.data.uniform_(0.5, 1.5)
    before = outputs(model)
    found = take_fast_path(model)
    norms, gated, gelus = FAMILIES[name][with_triton]
    assert len(found.norms) == (2 * norms + 1 if norms else 0)
    assert len(found.gated) == 2 * gated
    assert len(found.gelus) == 2 * gelus
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
        components = make_components(config)
        assert components.recorder is not None
        found = []
        for step in range(1, 5):
            row = train_step(components, components.plan.rows(step)).tolist()
            rows = [rows for _, rows, _ in components.recorder.drain()][-1]
            found.append((row, {site.name: rows[site.id].clone() for site in components.recorder.sites}))
        return found

    fast = steps()
    monkeypatch.setattr("lora_train.trainer.model.build.take_fast_path", lambda base, device: None)
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


@pytest.mark.parametrize(
    ("name", "targets"), [("llama", ["v_proj", "down_proj"]), ("gpt_neox", ["query_key_value", "dense_4h_to_h"])]
)
def test_triton_gives_the_loss_and_gradients_of_the_architectures_own(
    tiny_models, monkeypatch, own_rotary, name, targets
):
    changes = {"data.cutoff_len": 40, "data.padding_free": False, "instrument.enabled": False}
    config = make_config(tiny_models[name], per_device_train_batch_size=1)
    config = with_settings(config, {**changes, "lora.target_modules": targets})

    def loss_and_gradients() -> dict[str, torch.Tensor]:
        components = make_components(config)
        loss = components.loss(collate(components.plan.micro_batches(1)[0], components.pad_token_id))[0]
        loss.backward()
        found = {name: p.grad for name, p in components.model.named_parameters() if p.grad is not None}
        assert len(found) == 2 * 2 * len(targets)
        return {"loss": loss.detach(), **found}

    with triton_on_cpu():
        fast = loss_and_gradients()
    monkeypatch.setattr("lora_train.trainer.model.build.take_fast_path", lambda base, device: None)
    architecture = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    monkeypatch.setattr(architecture, fast_path.ROTARY, architecture.apply_rotary_pos_emb.replaces)
    own = loss_and_gradients()
    assert fast.keys() == own.keys()
    for key, wanted in own.items():
        assert (fast[key] - wanted).norm() <= 1e-5 * wanted.norm(), key


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("name", ["Llama", "GPTNeoX"])
def test_on_cuda_modules_return_the_dtype_of_the_architectures_own(own_rotary, name, autocast):
    """On tensors that have a device and no values: under autocast CUDA's LayerNorm returns float32."""

    def dtypes(fast: bool) -> dict[str, torch.dtype]:
        found: dict[str, torch.dtype] = {}

        def remember(name: str) -> Any:
            def hook(_module: Any, _args: Any, output: Any) -> None:
                if isinstance(output, torch.Tensor):
                    found[name] = output.dtype

            return hook

        with torch.device("meta"):
            config = getattr(transformers, f"{name}Config")(**SIZES)
            model: Any = getattr(transformers, f"{name}ForCausalLM")(config).half().requires_grad_(False)
        if fast:
            path = take_fast_path(model, torch.device("cuda"))
            assert len(path.norms) == 5
            assert len(path.gated + path.gelus) == 2
            assert path.rotary
        for module_name, module in model.named_modules():
            module.register_forward_hook(remember(module_name))
        torch.set_autocast_enabled("cuda", autocast)
        torch.set_autocast_dtype("cuda", torch.float16)
        try:
            # forward alone: without CUDA, autograd cannot follow such a tensor
            with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
                _materialize(model, make_config(Path()), torch.device("cuda"))
                x = torch.empty(2, 9, SIZES["hidden_size"], dtype=torch.float16, device="cuda")
                layer = model.base_model.layers[0]
                layer.mlp(layer.input_layernorm(x))
        finally:
            torch.set_autocast_enabled("cuda", False)
        return found

    own, fast = dtypes(fast=False), dtypes(fast=True)
    assert {name: own[name] for name in fast} == fast
    assert len(fast) == 5
    assert (torch.float32 in own.values()) == (autocast and name == "GPTNeoX")


def test_what_only_looks_alike_stays(tiny_models, with_triton):
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

    trained = torch.nn.LayerNorm(8)
    plain = torch.nn.LayerNorm(8, elementwise_affine=False)
    two = torch.nn.LayerNorm([4, 2]).requires_grad_(False)
    gelus = [ACT2FN[name] for name in ("quick_gelu", "gelu_10")]
    model = torch.nn.Sequential(OtherRMSNorm(), OtherMLP(), trained, plain, two, *gelus)
    found = take_fast_path(model)
    assert found == FastPath()
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("name", "act"),
    [("gelu", "gelu"), ("gelu_python", "gelu"), ("gelu_new", "gelu_tanh"), ("gelu_fast", "gelu_tanh"),
     ("gelu_accurate", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("silu", None), ("relu", None)],
)  # fmt: skip
def test_every_way_to_write_a_gelu_is_recognized(name, act):
    assert fast_path._gelu(ACT2FN[name]) == act
    assert fast_path._gelu(torch.nn.GELU()) == "gelu"
    assert fast_path._gelu(torch.nn.GELU(approximate="tanh")) == "gelu_tanh"
