"""A merged model as one GGUF file, which llama.cpp and what is built on it run.

Header: sizes, rotation and norms of the family, then the vocabulary. Tensors follow one at a time: vectors and norms in
float32, matrices in the dtype that was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import UserError, problem
from .families import OUTPUT_LAYERS, Family
from .values import as_values
from .vocabulary import write_vocabulary

FILE_TYPES = {"float32": "ALL_F32", "float16": "MOSTLY_F16", "bfloat16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
TENSOR_TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh")
# Layers of the 27B models, whose attention llama.cpp scales by hidden_size / heads and not by head_dim.
SCALED_BY_HEADS = {"gemma2": 46, "gemma3": 62}


def write_model_file(model: PreTrainedModel, tokenizer: Any, family: Family, dtype: str, path: Path) -> None:
    """Writes the file.

    Args:
        model: merged, in any dtype.
        tokenizer: of the run, with its chat template.
        family: of the model.
        dtype: of its matrices: a key of FILE_TYPES.
        path: new, in a folder that is there.

    Raises:
        UserError: llama.cpp has no place for a tensor, does not compute such a model, or splits text otherwise.
        OSError: the disk refused.
    """
    from gguf import GGMLQuantizationType, GGUFType, GGUFWriter, LlamaFileType, quants

    writer = GGUFWriter(path, family.arch)
    writer.add_type(GGUFType.MODEL)
    writer.add_file_type(LlamaFileType[FILE_TYPES[dtype]])
    writer.add_quantization_version(2)
    write_sizes(writer, family)
    table: Any = model.get_input_embeddings()
    write_vocabulary(writer, tokenizer, len(table.weight))
    tensors = dict(exported_tensors(model, family))
    kinds = {}
    for name, (source, _, _) in tensors.items():
        shape = tuple(source.shape)
        kind = GGMLQuantizationType[TENSOR_TYPES[dtype] if len(shape) > 1 else "F32"]
        block, size = quants.GGML_QUANT_SIZES[kind]
        if len(shape) > 1 and shape[-1] % block:  # a row that is no whole number of blocks
            kind = GGMLQuantizationType.F16
            block, size = quants.GGML_QUANT_SIZES[kind]
        kinds[name] = kind
        n_bytes = int(np.prod(shape)) // block * size
        writer.add_tensor_info(name, shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (source, order, offset) in tensors.items():
        values = source.detach().float().numpy()
        values = values if order is None else values[order]
        values = np.ascontiguousarray(values + np.float32(offset))
        writer.write_tensor_data(as_values(quants.quantize(values, kinds[name])))
    writer.close()


def exported_tensors(model: PreTrainedModel, family: Family):
    """(llama.cpp's name, (tensor, order of its rows, what is added to it)) of everything but a tied output layer."""
    tied = model.config.tie_word_embeddings
    frequencies = rope_factors(family.config)
    if frequencies is not None:
        yield "rope_freqs.weight", (frequencies, None, 0.0)
    for name, tensor in model.state_dict().items():
        if tied and name.removesuffix(".weight") in OUTPUT_LAYERS:
            continue
        if name.endswith((".inv_freq", ".masked_bias", ".attention.bias")):
            continue
        yield family.tensor_name(name), (tensor, family.row_order(name), family.offset(name))


def write_sizes(writer: Any, family: Family) -> None:
    """The keys that llama.cpp builds its graph from.

    Raises:
        UserError: it does not compute what the config asks for.
    """
    config = family.config
    require_computed(family)
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_head_count(heads)
    full = rope_of(config)
    writer.add_rope_freq_base(full.get("rope_theta", 10000.0))
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(_scaling_type("linear"))
        writer.add_rope_scaling_factor(full["factor"])
    if family.arch == "gptneox":
        share = full.get("partial_rotary_factor", getattr(config, "rotary_pct", 0.25))
        writer.add_rope_dimension_count(int(share * width))
        writer.add_parallel_residual(config.use_parallel_residual)
        writer.add_layer_norm_eps(config.layer_norm_eps)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(width)
    writer.add_value_length(width)
    if family.arch == "llama":
        writer.add_rope_dimension_count(width)
    if family.arch in ("gemma2", "gemma3"):
        write_windows(writer, config)


def write_windows(writer: Any, config: PretrainedConfig) -> None:
    """Gemma 2 and 3: which layers see only the last so many tokens, and the caps of their scores."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention").get("rope_theta", 10000.0))
    if config.attn_logit_softcapping:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def require_computed(family: Family) -> None:
    """Refuses what llama.cpp would compute otherwise.

    Raises:
        UserError: names the key of the model's config.
    """
    config, wrong = family.config, {}
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    if activation not in ACTIVATIONS or (activation == "silu") == (family.arch in ("gptneox", *_GEMMAS)):
        wrong["hidden_act"] = activation
    kind = rope_of(config).get("rope_type", "default")
    if kind not in ("default", "linear", "llama3") or (kind == "llama3" and family.arch != "llama"):
        wrong["rope_type"] = kind
    if getattr(config, "use_sliding_window", False):
        wrong["use_sliding_window"] = True
    if getattr(config, "use_bidirectional_attention", None):
        wrong["use_bidirectional_attention"] = config.use_bidirectional_attention
    if family.arch in SCALED_BY_HEADS:
        by_heads = config.num_hidden_layers == SCALED_BY_HEADS[family.arch]
        expected = config.hidden_size // config.num_attention_heads if by_heads else config.head_dim
        if config.query_pre_attn_scalar != expected:
            wrong["query_pre_attn_scalar"] = config.query_pre_attn_scalar
    if family.arch == "gemma3" and config.attn_logit_softcapping:
        wrong["attn_logit_softcapping"] = config.attn_logit_softcapping
    for key, value in wrong.items():
        raise UserError(problem("export.not_computed", base=family.base, key=key, value=value))


def rope_of(config: PretrainedConfig, layers: str = "full_attention") -> dict[str, Any]:
    """How positions turn queries and keys; Gemma 3 has one way for either kind of layers."""
    parameters = dict(getattr(config, "rope_parameters", None) or {})
    return dict(parameters.get(layers) or parameters)


def rope_factors(config: PretrainedConfig) -> torch.Tensor | None:
    """LLaMA 3.1's stretched positions: what each frequency is divided by, [head_dim / 2]; None: they are not stretched.

    Source: the plain frequencies over those of transformers' own table, ROPE_INIT_FUNCTIONS["llama3"].
    """
    parameters = rope_of(config)
    if parameters.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = parameters["rope_theta"] ** -(torch.arange(len(stretched), dtype=torch.float64) / len(stretched))
    return (plain / stretched.double()).float()


_GEMMAS = ("gemma", "gemma2", "gemma3")


def _scaling_type(name: str) -> Any:
    from gguf import RopeScalingType

    return RopeScalingType(name)
