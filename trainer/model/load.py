"""From a name to a frozen base model with a fresh LoRA adapter on it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from ...instrument.messages import say
from ...instrument.record.four_bit import is_4bit_linear
from ..config.names import is_installed
from ..config.schema import Config
from ..config.settings import with_settings
from ..errors import Problem, UserError, problem
from ..hub import limit_first_answer, refusal
from ..patterns import require_quick
from ..phases import Counted, is_shown, phase
from .gguf import converted_gguf
from .heads import HEAD_MODULES, linears_in, mark_new, n_places, new_modules

# task_type -> the class that has its head
MODEL_CLASSES = {
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
}


@dataclass(frozen=True)
class Head:
    """What a base model gives out.

    Attributes:
        task: of MODEL_CLASSES.
        n_labels: of a classifier; None: as the base model's own config says.
        names: of the labels, in the order of their numbers, where they are known.
        problem_type: as transformers' configs call it, where it is known.
    """

    task: str = "CAUSAL_LM"
    n_labels: int | None = None
    names: tuple[str, ...] = ()
    problem_type: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Keywords of the model's config."""
        found: dict[str, Any] = {} if self.n_labels is None else {"num_labels": self.n_labels}
        if self.names:
            found["id2label"] = dict(enumerate(self.names))
            found["label2id"] = {name: number for number, name in enumerate(self.names)}
        return found if self.problem_type is None else {**found, "problem_type": self.problem_type}


LANGUAGE_MODEL = Head()


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    """Matrix products in the compute dtype; does nothing for float32."""
    dtype = getattr(torch, config.compute_dtype)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def resolve(name: str) -> str:
    """A name that transformers loads: a .gguf file becomes the folder it was converted to, a hub id stays one."""
    path = os.path.expanduser(name)
    if path.endswith(".gguf") and os.path.isfile(path):
        return str(converted_gguf(Path(path)))
    if os.path.exists(path):
        return path
    limit_first_answer()
    return name


def load_tokenizer(config: Config) -> Any:
    """The model's tokenizer, which must be a fast one: masks need character offsets.

    Raises:
        UserError: it cannot be loaded or has no offsets.
    """
    model = config.model
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(model.name_or_path), revision=model.revision, trust_remote_code=model.trust_remote_code
        )
    except (OSError, ValueError) as error:
        name = model.name_or_path
        raise UserError(refusal("model.tokenizer", error, name, name=name)) from error
    if not tokenizer.is_fast:
        raise UserError(problem("model.slow_tokenizer", name=model.name_or_path))
    if config.is_classifier:
        tokenizer.model_max_length = min(tokenizer.model_max_length, n_places(read_model_config(config)))
    return tokenizer


def cannot_load(name: str, error: BaseException) -> Problem:
    """Why there is no model of that name."""
    return refusal("model.load", error, name, name=name)


def read_model_config(config: Config, head: Head = LANGUAGE_MODEL) -> PretrainedConfig:
    """The model's own config, with what the head adds to it.

    Raises:
        UserError: it cannot be read.
    """
    model = config.model
    try:
        return AutoConfig.from_pretrained(
            resolve(model.name_or_path),
            revision=model.revision,
            trust_remote_code=model.trust_remote_code,
            **head.settings,
        )
    except (OSError, ValueError) as error:
        raise UserError(cannot_load(model.name_or_path, error)) from error


def pad_token_id(tokenizer: Any, n_rows: int | None = None) -> int:
    """Any id serves that the embedding table has: padding stands on the right, is not attended to and is no target.

    Args:
        tokenizer: may have a padding token that was added without a row in the table.
        n_rows: of the embedding table, where it is known.
    """
    ids = (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None)
    return next((i for i in ids if n_rows is None or i < n_rows), 0)


def quantization_of(config: Config) -> BitsAndBytesConfig:
    """How the configuration wants the frozen weights packed; a classifier's head is trained and never packed."""
    decoded = config.quantization.bnb_4bit_compute_dtype
    dtype = getattr(torch, config.compute_dtype if decoded == "auto" else decoded)
    values = config.quantization.model_dump() | {"bnb_4bit_compute_dtype": dtype}
    if config.is_classifier:
        values["llm_int8_skip_modules"] = [*(config.quantization.llm_int8_skip_modules or ()), *HEAD_MODULES]
    return BitsAndBytesConfig(**values)


def load_base(config: Config, device: torch.device, head: Head = LANGUAGE_MODEL) -> PreTrainedModel:
    """The frozen base model on the device, quantized if the configuration says so.

    Raises:
        UserError: it cannot be loaded.
    """
    model = config.model
    extra: dict[str, Any] = {}
    if config.quantization.load_in_4bit or config.quantization.load_in_8bit:
        if not is_installed("bitsandbytes"):  # a run that was made elsewhere
            raise UserError(problem("config.no_bitsandbytes", file=model.name_or_path))
        extra["quantization_config"] = quantization_of(config)
    transformers_logging.disable_progress_bar()
    if head.task != "CAUSAL_LM":
        torch.manual_seed(config.training.seed)  # of the new head
        extra["ignore_mismatched_sizes"] = True
    quantizes = config.quantization.load_in_4bit or config.quantization.load_in_8bit
    told = say("phase.quantizing" if quantizes else "phase.loading", model=model.name_or_path)
    try:
        with phase(told), weights_counted():
            base, info = MODEL_CLASSES[head.task].from_pretrained(
                resolve(model.name_or_path),
                revision=model.revision,
                dtype=getattr(torch, config.storage_dtype),
                attn_implementation=model.attn_implementation,
                trust_remote_code=model.trust_remote_code,
                device_map={"": device},
                use_safetensors=True,
                output_loading_info=True,
                **extra,
                **head.settings,
            )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        if "attention implementation" in str(error):
            if head.task != "CAUSAL_LM" and model.attn_implementation == "sdpa":  # DeBERTa has attention of its own
                return load_base(with_settings(config, {"model.attn_implementation": "eager"}), device, head)
            unsupported = problem("model.attention", name=model.name_or_path, attention=model.attn_implementation)
            raise UserError(unsupported) from error
        raise UserError(cannot_load(model.name_or_path, error)) from error
    if head.task != "CAUSAL_LM":
        mark_new(base, [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if model.resize_embeddings:
        grow(base, len(load_tokenizer(config)))
    return frozen(base)


@contextmanager
def weights_counted() -> Iterator[None]:
    """Counts the weights that are read, with the time left, while the block runs; transformers 5.0 cannot be asked."""
    set_hook = getattr(transformers_logging, "set_tqdm_hook", None)
    if set_hook is None or not is_shown():
        yield
        return

    def counted(plain: Any, values: tuple[Any, ...], named: dict[str, Any]) -> Any:
        known = len(values) == 1 and isinstance(values[0], Collection)
        return plain(*(Counted(values[0], say("phase.weights")) if known else one for one in values), **named)

    before = set_hook(counted)
    try:
        yield
    finally:
        set_hook(before)


def grow(base: PreTrainedModel, n_rows: int) -> None:
    """Gives the embedding table and the output layer at least so many rows, each new one the mean of the others."""
    before = len(base.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    if n_rows <= before:
        return
    base.resize_token_embeddings(n_rows, mean_resizing=False)
    with torch.no_grad():
        for table in tables(base).values():
            for values in (table.weight, getattr(table, "bias", None)):
                if isinstance(values, torch.Tensor):
                    values[before:] = values[:before].float().mean(dim=0).to(values.dtype)


def tables(base: PreTrainedModel) -> dict[str, Any]:
    """Embedding table and output layer by name."""
    found = (base.get_input_embeddings(), base.get_output_embeddings())
    return {name: module for name, module in base.named_modules() if any(module is table for table in found)}


def frozen(base: PreTrainedModel) -> PreTrainedModel:
    """The model, ready to get an adapter."""
    module: Any
    for module in base.modules():
        if is_4bit_linear(module):
            # On the CPU an evaluation would repack the weights for inference, and training could not go on.
            module.support_avx512bf16_for_cpu = False
    return base.requires_grad_(False)


def add_lora(base: PreTrainedModel, config: Config) -> PeftModel:
    """Puts a fresh float32 adapter on the base; its initial weights are a function of training.seed.

    Raises:
        UserError: lora.target_modules names nothing in this model, or its pattern does not come to an end on it.
    """
    lora = config.lora
    require_quick("model.endless_pattern", lora.model_dump(), [name for name, _ in base.named_modules()])
    require_modules(base, "lora.target_modules", lora.target_modules)
    require_modules(base, "lora.modules_to_save", lora.modules_to_save)
    own = [name for name in new_modules(base) if name not in ("classifier", "score")]  # peft adds these itself
    to_save: list[str] | None = list(dict.fromkeys([*(lora.modules_to_save or []), *own])) or None
    if config.model.resize_embeddings:
        to_save = [*(to_save or []), *tables(base)]
    if config.training.gradient_checkpointing:
        base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    torch.manual_seed(config.training.seed)
    try:
        model = get_peft_model(
            base,
            LoraConfig(
                task_type=lora.task_type,
                r=lora.r,
                lora_alpha=lora.lora_alpha,  # pyright: ignore[reportArgumentType] # peft takes any number
                lora_dropout=lora.lora_dropout,
                target_modules=lora.target_modules,
                bias=lora.bias,
                modules_to_save=to_save,
                exclude_modules=linears_in(base, new_modules(base)) or None,
                use_rslora=lora.use_rslora,
            ),
        )
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise UserError(
            problem("model.target_modules", wanted=lora.target_modules, found=", ".join(linear_names(base)))
        ) from error
    assert isinstance(model, PeftModel)
    for parameter in trainable(model).values():  # biases and modules_to_save come in the storage dtype
        parameter.data = parameter.data.float()
    return model


def require_modules(base: PreTrainedModel, key: str, wanted: Sequence[str] | str | None) -> None:
    """Refuses a list of which a name matches nothing while another does: peft passes it over in silence.

    Raises:
        UserError: carries every such name, with those that are near it.
    """
    if wanted is None or isinstance(wanted, str):
        return
    names = [name for name, _ in base.named_modules() if name]  # the model itself has none: "" would match it
    missing = [name for name in wanted if not any(f".{own}".endswith(f".{name}") for own in names)]
    if not missing or (key == "lora.target_modules" and len(missing) == len(wanted)):
        return  # none matches: peft says so
    last = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
    kinds = [name for name in last if name and not name.isdigit()]
    near = {name: difflib.get_close_matches(name, kinds, n=3) for name in missing}
    found = ", ".join(linear_names(base))
    sentences = {name: "model.module_near" if near[name] else "model.module_missing" for name in missing}
    raise UserError(
        *(problem(sentences[name], key=key, name=name, near=", ".join(near[name]), found=found) for name in missing)
    )


def linear_names(base: PreTrainedModel) -> list[str]:
    """The last components of all linear layers' names: what target_modules may hold."""
    head = base.get_output_embeddings()
    layers = {
        name.split(".")[-1] for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and m is not head
    }
    return sorted(layers)


def trainable(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
