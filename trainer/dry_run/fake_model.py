"""A fake model: the trainer's own with its adapter, fused layers and loss, in which every tensor has a shape, a dtype
and a device and no values. It is made from the model's config alone and runs forward and backward in PyTorch's
fake-tensor mode, in a second or two whatever its size.
"""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PretrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from ...instrument.record.four_bit import is_4bit_weight
from ..config.schema import Config
from ..config.settings import with_settings
from ..model.build import build_model
from ..model.classify import ClassifierLoss, head_of_config
from ..model.heads import mark_new
from ..model.load import MODEL_CLASSES, frozen, load_tokenizer, quantization_of, read_model_config, resolve
from ..model.loss import SupervisedLoss, transforms_logits

# bitsandbytes' own: values that share a scale, and scales that share a scale.
BLOCK, NESTED_BLOCK = 64, 256


@dataclass(frozen=True)
class FakeModel:
    """What can be run without memory.

    Attributes:
        model, loss: as in `Components`, on fake tensors.
        mode: the mode in which they run.
        weights: bytes of the frozen weights and buffers, by what they are stored as.
        n_trained, n_all: parameter counts as PEFT prints them.
        trained: shape of every trained parameter.
    """

    config: Config
    device: torch.device
    model: PeftModel
    loss: SupervisedLoss | ClassifierLoss
    mode: FakeTensorMode
    weights: dict[str, int]
    n_trained: int
    n_all: int
    trained: list[torch.Size]


def has_weights(config: Config) -> bool:
    """Whether there are safetensors to load, in the folder or on the hub."""
    name = resolve(config.model.name_or_path)
    files = (SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME)
    try:
        return any(
            cached_file(name, file, revision=config.model.revision, _raise_exceptions_for_missing_entries=False)
            for file in files
        )
    except OSError:  # loading says what is wrong with the name or the network
        return True


class NoMemory:
    """Makes a model from its config alone (a `Loader` of model/build.py).

    Attributes:
        mode: in which its tensors can be used.
        n_base: parameters of the base model.
    """

    def __init__(self, config: Config, device: torch.device):
        self._config, self._device = config, device
        self._model_config = read_model_config(config, head_of_config(config))
        if config.quantization.load_in_8bit or getattr(self._model_config, "quantization_config", None) is not None:
            raise RuntimeError("quantization_config")
        if config.model.resize_embeddings:
            text = self._model_config.get_text_config()
            text.vocab_size = max(text.vocab_size, len(load_tokenizer(config)))
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.n_base = 0

    def load(self) -> PreTrainedModel:
        config = self._config
        with torch.device("meta"):
            base = _base(config, self._model_config)
            self.n_base = sum(parameter.numel() for parameter in base.parameters())
            if config.quantization.load_in_4bit:
                from transformers.integrations import replace_with_bnb_linear

                kept = config.quantization.llm_int8_skip_modules or get_keys_to_not_convert(base)
                replace_with_bnb_linear(base, kept, quantization_of(config))  # in place
        return frozen(base)

    def making(self) -> AbstractContextManager:
        return torch.device("meta")

    def running(self) -> AbstractContextManager:
        return self.mode

    def complete(self, model: PeftModel) -> None:
        _materialize(model, self._config, self._device)

    def transforms_logits(self) -> bool:
        return transforms_logits(self._model_config)

    def remove_padding(self, loss: SupervisedLoss) -> None:
        loss.assume_without_padding()


def make_fake(config: Config, device: torch.device) -> FakeModel:
    """The fake of the model that the configuration trains.

    Raises:
        UserError: the model's config cannot be read, or lora.target_modules names nothing in it.
        RuntimeError: the model reads the values of its tensors, or cannot be built from its config.
    """
    loader = NoMemory(config, device)
    built = build_model(config, device, loader)
    model = built.model
    trained = [parameter.shape for parameter in model.parameters() if parameter.requires_grad]
    n_trained = sum(shape.numel() for shape in trained)
    return FakeModel(
        config=config,
        device=device,
        model=model.train(),
        loss=built.loss,
        mode=loader.mode,
        weights=_bytes_by_storage(model),
        n_trained=n_trained,
        n_all=loader.n_base + n_trained,
        trained=trained,
    )


def _base(config: Config, model_config: PretrainedConfig) -> PreTrainedModel:
    head = head_of_config(config)
    try:
        base = MODEL_CLASSES[head.task].from_config(
            model_config,
            dtype=getattr(torch, config.storage_dtype),
            attn_implementation=config.model.attn_implementation,
            trust_remote_code=config.model.trust_remote_code,
        )
    except ValueError:
        if not config.is_classifier or config.model.attn_implementation != "sdpa":
            raise
        return _base(with_settings(config, {"model.attn_implementation": "eager"}), model_config)
    if config.is_classifier:  # what most checkpoints lack
        own = ("classifier.", "score.", "pre_classifier.", "pooler.")
        mark_new(base, [name for name, _ in base.named_parameters() if name.startswith(own)])
    return base


def _materialize(model: PeftModel, config: Config, device: torch.device) -> None:
    """Gives every parameter and buffer a fake tensor on the device."""
    made: dict[int, nn.Parameter] = {}  # tied weights are one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                if id(parameter) not in made:
                    made[id(parameter)] = _fake(parameter, config, device)
                module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def _fake(parameter: nn.Parameter, config: Config, device: torch.device) -> nn.Parameter:
    if is_4bit_weight(parameter):
        return _packed(parameter, config, device)
    data = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
    return nn.Parameter(data, requires_grad=parameter.requires_grad)


def _bytes_by_storage(model: PeftModel) -> dict[str, int]:
    found: Counter[str] = Counter()
    for parameter in model.parameters():
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            found[state.quant_type] += parameter.numel()
            scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
            found["scales"] += sum(t.numel() * t.element_size() for t in scales)
        elif not parameter.requires_grad:
            found[str(parameter.dtype).removeprefix("torch.")] += parameter.numel() * parameter.element_size()
    for buffer in model.buffers():
        found[str(buffer.dtype).removeprefix("torch.")] += buffer.numel() * buffer.element_size()
    return dict(found.most_common())


def _packed(parameter: nn.Parameter, config: Config, device: torch.device) -> nn.Parameter:
    """A 4-bit weight as bitsandbytes keeps it. A plain parameter: fake tensors know no other class."""
    from bitsandbytes.functional import QuantState

    n, quantization = parameter.numel(), config.quantization
    n_blocks = -(-n // BLOCK)
    nested = quantization.bnb_4bit_use_double_quant
    packed = nn.Parameter(torch.empty(-(-n // 2), 1, dtype=torch.uint8, device=device), requires_grad=False)
    inner = QuantState(
        absmax=torch.empty(-(-n_blocks // NESTED_BLOCK), device=device),
        code=torch.empty(256, device=device),
        blocksize=NESTED_BLOCK,
        dtype=torch.float32,
    )
    packed.quant_state = QuantState(  # pyright: ignore[reportAttributeAccessIssue]
        absmax=torch.empty(n_blocks, dtype=torch.uint8 if nested else torch.float32, device=device),
        shape=parameter.shape,
        code=torch.empty(16, device=device),
        blocksize=BLOCK,
        quant_type=quantization.bnb_4bit_quant_type,
        dtype=getattr(torch, config.storage_dtype),
        offset=torch.empty((), device=device) if nested else None,
        state2=inner if nested else None,
    )
    return packed
