"""What a module of a replayed step read, held and gave, as files: `--dump` for a look, `--extract` for a bug report.

`--extract DIR` writes tensors.safetensors and repro.py, which needs torch alone and prints what is not finite.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch.utils._pytree import tree_leaves, tree_map

from ...instrument.judge.detect import Diagnosis
from ...instrument.read.files import write_text
from ...instrument.record.four_bit import is_4bit_linear
from ...instrument.record.trace import traced_modules, watch_ops
from ..errors import UserError, problem
from ..loop.components import Components
from .rehearse import rehearse

LOAD = '''"""{what}

Prints how many values are not finite. Needs torch alone: python repro.py
"""
import json, pathlib, torch

raw = pathlib.Path(__file__).with_name("tensors.safetensors").read_bytes()
n = int.from_bytes(raw[:8], "little")
kinds = {{"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64, "BOOL": torch.bool}}
t = {{
    name: torch.frombuffer(bytearray(raw[8 + n:][slice(*i["data_offsets"])]), dtype=kinds[i["dtype"]]).view(i["shape"])
    for name, i in json.loads(raw[8 : 8 + n]).items() if name != "__metadata__"
}}
'''
LINEAR = """x = t["x"]
y = x.float() @ t["weight"].float().T + t.get("bias", torch.zeros(1)).float()
if "lora_A" in t:
    y += {scaling} * (x.float() @ t["lora_A"].T) @ t["lora_B"].T
y = y.to(torch.{dtype})  # rounded once, as cuBLAS does with its fp32 accumulator
"""
BACKWARD = """dy = t["dy"]
y = dy.float() @ t["weight"].float()
if "lora_A" in t:
    y += {scaling} * (dy.float() @ t["lora_B"]) @ t["lora_A"]
y = y.to(torch.{dtype})
"""
OPERATION = """y = torch.ops.{op}(*{args}, **{kwargs})
y = y[0] if isinstance(y, (tuple, list)) else y
"""
REPORT = """print("inputs finite:", all(bool(v.isfinite().all()) for v in t.values() if v.is_floating_point()))
print(f"{int(y.isinf().sum())} inf and {int(y.isnan().sum())} nan of {y.numel()} values in {y.dtype}")
"""


class _Capture:
    """Tensors of the first call of a module."""

    def __init__(self) -> None:
        self.inputs: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []
        self.grad_out: list[torch.Tensor] = []

    def before(self, _module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.inputs:
            self.inputs = [t.detach().clone() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]

    def after(self, _module: torch.nn.Module, _args: Any, output: Any) -> None:
        if not self.outputs:
            floats = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.is_floating_point()]
            self.outputs = [t.detach().clone() for t in floats]
            if floats and floats[0].requires_grad:
                floats[0].register_hook(lambda grad: self.grad_out.append(grad.detach().clone()))


def _captured(components: Components, step: int, name: str, micro_batch: int) -> tuple[torch.nn.Module, _Capture]:
    modules = traced_modules(components.model)
    if name not in modules:
        near = [other for other in modules if other.endswith(name.rpartition(".")[2])][:3]
        raise UserError(problem("replay.no_module", module=name, near=", ".join(near or list(modules)[:3])))
    module, capture = modules[name], _Capture()
    handles = [
        module.register_forward_pre_hook(capture.before, with_kwargs=True),
        module.register_forward_hook(capture.after),
    ]
    try:
        _run(components, step, micro_batch)
    finally:
        for handle in handles:
            handle.remove()
    return module, capture


def _run(components: Components, step: int, micro_batch: int) -> None:
    """This process's share of one micro-batch; finite gradients even where no token of the step is trained on."""
    rows, rank = components.plan.rows(step), components.engine.rank
    own = rows.alone(rank, micro_batch, rows.own(rank)[micro_batch])
    rehearse(components, step, rows=replace(own, divisor=max(own.weight, 1)))


def dump(components: Components, step: int, name: str, run_dir: Path) -> Path:
    """Writes input.<i>, weight.<name>, output.<i> and grad_out of a module in the step's first micro-batch.

    Raises:
        UserError: the model has no such module.
    """
    module, capture = _captured(components, step, name, 0)
    tensors = {f"input.{i}": tensor for i, tensor in enumerate(capture.inputs)}
    tensors |= {f"output.{i}": tensor for i, tensor in enumerate(capture.outputs)}
    if capture.grad_out:
        tensors["grad_out"] = capture.grad_out[0]
    tensors |= {f"weight.{key}": value for key, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    folder = run_dir / "replay"
    folder.mkdir(exist_ok=True)
    path = folder / f"step-{step}-{name}.safetensors"
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, path)
    return path


def extract(components: Components, diagnosis: Diagnosis, folder: Path) -> Path:
    """Writes a folder that reproduces what is not finite in the module to blame.

    Raises:
        UserError: no module is to blame, or only its backward pass is and it is not a linear.
    """
    if diagnosis.module is None:
        raise UserError(problem("replay.nothing_to_blame", kind=diagnosis.kind))
    micro_batch = diagnosis.evidence.get("micro_batch", 0)
    module, capture = _captured(components, diagnosis.step, diagnosis.module, micro_batch)
    dtype = components.config.compute_dtype
    what = f"{diagnosis.module} at step {diagnosis.step}: {diagnosis.kind} ({dtype})"
    if isinstance(module, (LoraLayer, torch.nn.Linear)) and (diagnosis.phase == "forward" or capture.grad_out):
        tensors, scaling = _linear(module)
        forward = diagnosis.phase != "backward"
        tensors["x" if forward else "dy"] = (capture.inputs if forward else capture.grad_out)[0]
        code = (LINEAR if forward else BACKWARD).format(scaling=scaling, dtype=dtype)
    elif diagnosis.phase != "backward":
        tensors, code = _operation(components, diagnosis, module, micro_batch)
    else:
        raise UserError(problem("replay.backward_of_module", module=diagnosis.module))
    folder.mkdir(parents=True, exist_ok=True)
    flat = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(flat, folder / "tensors.safetensors")
    write_text(folder / "repro.py", LOAD.format(what=what) + code + REPORT)
    write_text(folder / "diagnosis.json", json.dumps(diagnosis.as_json(), ensure_ascii=False, indent=1) + "\n")
    return folder


def _linear(module: Any) -> tuple[dict[str, torch.Tensor], float]:
    base: Any = module.get_base_layer() if isinstance(module, LoraLayer) else module
    weight = base.weight
    if is_4bit_linear(base):
        from bitsandbytes.functional import dequantize_4bit

        weight = dequantize_4bit(weight.data, weight.quant_state)
    tensors: dict[str, torch.Tensor] = {"weight": weight}
    if base.bias is not None:
        tensors["bias"] = base.bias
    if not isinstance(module, LoraLayer):
        return tensors, 1.0
    adapter: Any = module.active_adapters[0]
    lora: Any = module
    tensors |= {"lora_A": lora.lora_A[adapter].weight, "lora_B": lora.lora_B[adapter].weight}
    return tensors, float(module.scaling[adapter])


def _operation(
    components: Components, diagnosis: Diagnosis, module: torch.nn.Module, micro_batch: int
) -> tuple[dict[str, torch.Tensor], str]:
    """The first operation inside the module that made something non-finite, with its inputs."""
    with watch_ops(module) as ops:
        _run(components, diagnosis.step, micro_batch)
    if ops.found is None:
        raise UserError(problem("replay.nothing_to_blame", kind=diagnosis.kind))
    tensors: dict[str, torch.Tensor] = {}

    def named(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[f"a{len(tensors)}"] = value
            return _Code(f't["a{len(tensors) - 1}"]')
        return _Code(f"torch.{str(value).removeprefix('torch.')}") if isinstance(value, torch.dtype) else value

    args, kwargs = tree_map(named, list(ops.found.inputs)), tree_map(named, ops.found.kwargs)
    return tensors, OPERATION.format(op=ops.found.name, args=args, kwargs=kwargs)


class _Code(str):
    """Text that stands for itself in a list."""

    def __repr__(self) -> str:
        return str(self)
