"""The floor: the matrix products of a step alone, on tensors that are there already, without autograd.

    forward    Y = X W^T for every frozen weight with LoRA on it, Z = H E^T for the head
    backward   dX = dY W, where the input of the layer has a gradient, and dH = dZ E

LoRA's own products (1% of the work at r=8), attention and everything that is not a product are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class Product(NamedTuple):
    """One frozen weight [n, k] and how many tokens pass through it; whether they come back."""

    weight: torch.Tensor
    n_tokens: int
    backward: bool


class Floor:
    """All products of a step, in the order of a step."""

    def __init__(self, products: list[Product], dtype: torch.dtype, device: torch.device):
        """Takes over the weights; makes one input and one output for each shape."""
        self._products = products
        self._made: dict[tuple[int, int], torch.Tensor] = {}
        self._dtype, self._device = dtype, device

    def _tensor(self, n_rows: int, n_columns: int) -> torch.Tensor:
        if (n_rows, n_columns) not in self._made:
            shape = (n_rows, n_columns)
            self._made[shape] = torch.randn(shape, dtype=self._dtype, device=self._device).mul_(0.01)
        return self._made[n_rows, n_columns]

    @torch.no_grad()
    def step(self) -> None:
        """Runs them once. A square layer's input is its output too, which mm may not take: it has a twin."""
        for weight, n_tokens, _ in self._products:
            n, k = weight.shape
            torch.mm(self._tensor(n_tokens, k), weight.t(), out=self._out(n_tokens, n))
        for weight, n_tokens, backward in reversed(self._products):
            if backward:
                n, k = weight.shape
                torch.mm(self._tensor(n_tokens, n), weight, out=self._out(n_tokens, k))

    def _out(self, n_rows: int, n_columns: int) -> torch.Tensor:
        key = (-n_rows, n_columns)
        if key not in self._made:
            self._made[key] = torch.empty(n_rows, n_columns, dtype=self._dtype, device=self._device)
        return self._made[key]


def products_of(model: Any, run_once: Any, n_tokens: int, n_supervised: int) -> list[Product]:
    """The products of a PEFT model, seen in one forward pass.

    Args:
        run_once: runs the model on a few tokens.
        n_tokens: of a step.
        n_supervised: those that need logits.
    """
    products: list[Product] = []

    def seen(module: Any, inputs: Any, output: Any) -> None:
        products.append(Product(module.weight, n_tokens, inputs[0].requires_grad))

    layers = [module for name, module in model.named_modules() if name.endswith(".base_layer")]
    handles = [layer.register_forward_hook(seen) for layer in layers]
    run_once()
    for handle in handles:
        handle.remove()
    return [*products, Product(model.get_base_model().get_output_embeddings().weight, n_supervised, True)]


def train(settings: dict[str, Any], gate: Any) -> None:
    """Runs the products of a step again and again, stopped by the gate before each time."""
    from lora_train.instrument.record.once import run_once
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.model.load import add_lora, load_base

    config = Config.model_validate(settings)
    batch, length = config.training.per_device_train_batch_size, config.data.cutoff_len
    dtype = getattr(torch, config.compute_dtype)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = add_lora(load_base(config, device), config)
    floor = Floor(products_of(model, lambda: run_once(model), batch * length, batch * (length - 1)), dtype, device)
    floor.step()
    for _ in range(config.training.max_steps):
        gate(None, None)
        floor.step()
