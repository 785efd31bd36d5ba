"""A training script or notebook in Python -> ours, from the literals in its calls: parsed, never run.

Read are the arguments of TrainingArguments, SFTConfig, SFTTrainer, LoraConfig, get_peft_model, BitsAndBytesConfig,
from_pretrained and load_dataset. A name stands for the literal that it was given, a parameter and an option of argparse
for its default, + - * / // of numbers for their result. Whatever else stands there is named, not guessed.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Iterator
from typing import Any

from ...instrument.messages import say
from .adapter import take_adapter
from .arguments import take_arguments, take_defaults
from .draft import Draft, short

ADAPTERS = ("LoraConfig", "get_peft_model")
TRAINERS = ("SFTTrainer", "Trainer", "UnslothTrainer", "Seq2SeqTrainer")
ARGUMENTS = ("TrainingArguments", "SFTConfig", "UnslothTrainingArguments", "Seq2SeqTrainingArguments")
OTHER_TRAINERS = ("DPO", "KTO", "ORPO", "CPO", "PPO", "GRPO", "RLOO", "Reward", "PRM", "OnlineDPO", "GKD", "BCO")
ANSWERS_ONLY = {"train_on_responses_only", "DataCollatorForCompletionOnlyLM"}
TRAINED = ("ForCausalLM", "ForSequenceClassification", "ForTokenClassification")
UNSLOTH = ("FastLanguageModel", "FastModel")
READ = {*ARGUMENTS, *ADAPTERS, *TRAINERS, *ANSWERS_ONLY, "BitsAndBytesConfig", "DataCollatorForLanguageModeling"}
# Arguments that are objects of the script: nothing of a configuration.
OBJECTS = frozenset(
    """model tokenizer train_dataset eval_dataset args data_collator peft_config quantization_config callbacks
    processing_class compute_metrics preprocess_logits_for_metrics optimizers formatting_func mlm self instruction_part
    response_part response_template instruction_template trainer""".split()  # noqa: SIM905
)
_QUANTIZATION = {
    "bnb_4bit_use_double_quant": "quantization.bnb_4bit_use_double_quant",
    "bnb_4bit_compute_dtype": "quantization.bnb_4bit_compute_dtype",
    "bnb_4bit_quant_storage": "quantization.bnb_4bit_quant_storage",
    "llm_int8_threshold": "quantization.llm_int8_threshold",
}
_LARGEST = 1e15
_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


class NotLiteral(ValueError):
    """An expression whose value is known only when the script runs."""


class Script:
    """What the script's calls say.

    Attributes:
        given: argument -> value, over all the calls that are read; the first call of a kind wins.
        unknown: argument -> its text, where the value is no literal.
        calls: names of the functions called.
        loaded: class of the model.
    """

    def __init__(self, tree: ast.AST):
        self.names, self.attributes = dict(_names(tree)), dict(_options(tree))
        self.given: dict[str, Any] = {}
        self.unknown: dict[str, str] = {}
        self.calls: set[str] = set()
        self.loaded = ""
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                self._read(node)

    def _read(self, call: ast.Call) -> None:
        owner, name = _called(call)
        self.calls.update((name, owner) if owner else (name,))
        if name == "from_pretrained":
            if owner.endswith(TRAINED) or owner in UNSLOTH:
                self._take(call, ("model_name_or_path",), {"model_name": "model_name_or_path"})
                self.loaded = self.loaded or owner
        elif name == "load_dataset":
            self._dataset(call)
        elif name in READ:
            self._take(
                call,
                ("output_dir",) if name in ARGUMENTS else (),
                {"use_gradient_checkpointing": "gradient_checkpointing"},
            )

    def _dataset(self, call: ast.Call) -> None:
        files = [keyword.value for keyword in call.keywords if keyword.arg == "data_files"]
        source = files[0] if files else call.args[0] if call.args else None
        if source is not None:
            self._keep("dataset_name", source)

    def _take(self, call: ast.Call, positional: tuple[str, ...], other: dict[str, str]) -> None:
        for name, node in zip(positional, call.args, strict=False):
            self._keep(name, node)
        for keyword in call.keywords:
            if keyword.arg is None:
                try:
                    values = self.value(keyword.value)
                except NotLiteral:
                    values = {}
                for key, value in values.items() if isinstance(values, dict) else ():
                    self.given.setdefault(str(key), value)
            elif keyword.arg not in OBJECTS:
                self._keep(other.get(keyword.arg, keyword.arg), keyword.value)

    def _keep(self, name: str, node: ast.expr) -> None:
        if name in self.given or name in self.unknown:
            return
        try:
            self.given[name] = self.value(node)
        except NotLiteral:
            self.unknown[name] = short(ast.unparse(node))

    def value(self, node: ast.expr, depth: int = 0) -> Any:
        """The value of an expression that needs no run.

        Raises:
            NotLiteral: it needs one.
        """
        if depth > 20:
            raise NotLiteral
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.value(self.names[node.id], depth + 1)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, depth)
        if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
            return [self.value(item, depth + 1) for item in node.elts]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            return {str(key.value): self.value(v, depth + 1) for key, v in pairs if isinstance(key, ast.Constant)}
        return self._computed(node, depth)

    def _attribute(self, node: ast.Attribute, depth: int) -> Any:
        if isinstance(node.value, ast.Name) and node.value.id in ("torch", "TaskType"):
            return node.attr
        if node.attr in self.attributes:
            return self.value(self.attributes[node.attr], depth + 1)
        raise NotLiteral

    def _computed(self, node: ast.expr, depth: int) -> Any:
        if isinstance(node, ast.Call) and _called(node)[1] in ("is_bfloat16_supported", "is_bf16_supported"):
            return "auto"
        if isinstance(node, ast.UnaryOp):
            inner = self.value(node.operand, depth + 1)
            if isinstance(node.op, ast.USub) and isinstance(inner, (int, float)):
                return -inner
            if isinstance(node.op, ast.Not) and (inner == "auto" or isinstance(inner, bool)):
                return False if inner == "auto" else not inner
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            left, right = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
            numbers = all(isinstance(x, (int, float)) and abs(x) < _LARGEST for x in (left, right))
            if numbers and not (right == 0 and isinstance(node.op, (ast.Div, ast.FloorDiv))):
                return _ARITHMETIC[type(node.op)](left, right)
        raise NotLiteral


def script(tree: ast.AST) -> Draft | None:
    """The draft of a script; None where it neither makes an adapter nor trains."""
    read = Script(tree)
    if not read.calls & {*ADAPTERS, *ARGUMENTS, *TRAINERS}:
        return None
    unsloth = bool(read.calls & {*UNSLOTH, "FastVisionModel"})
    sft = bool(read.calls & {"SFTTrainer", "SFTConfig", "UnslothTrainer"})
    if read.calls & ANSWERS_ONLY:
        read.given["assistant_only_loss"] = True
    draft = Draft("Unsloth" if unsloth else "TRL" if sft else "transformers", read.given)
    for name in read.calls & {f"{prefix}Trainer" for prefix in OTHER_TRAINERS}:
        draft.refuse("import.refused.not_sft", value=name)
    if "FastVisionModel" in read.calls:
        draft.refuse("import.refused.multimodal", key="FastVisionModel")
    if not read.calls & set(ADAPTERS):
        draft.refuse("import.refused.no_lora", value=None)
    if read.loaded.endswith(TRAINED):
        draft.task(read.loaded, "from_pretrained")
    draft.labels()
    draft.copy_all(_QUANTIZATION)
    take_arguments(draft)
    if "SFTConfig" in read.calls and not unsloth:
        take_defaults(draft)
    if "r" not in read.given and "r" not in read.unknown:
        draft.put("lora.r", 16 if unsloth else 8, remark=say("import.their_default", tool=draft.tool))
    if unsloth and "target_modules" not in read.given:
        read.given["target_modules"] = "all-linear"
    take_adapter(draft)
    if (sft and "data.train_on_inputs" not in draft.values) or "DataCollatorForLanguageModeling" in read.calls:
        draft.put("data.train_on_inputs", not read.calls & ANSWERS_ONLY, remark=say("import.whole_rows"))
    if draft.take("gradient_checkpointing") == "unsloth":
        draft.put("training.gradient_checkpointing", True, "use_gradient_checkpointing")
    for key, text in read.unknown.items():
        draft.leave(key, text, "unknown", say("import.why.not_literal"))
    return draft.close()


def _called(call: ast.Call) -> tuple[str, str]:
    """(owner, name) of what is called: ("FastLanguageModel", "from_pretrained"), ("", "LoraConfig")."""
    function = call.func
    if isinstance(function, ast.Attribute):
        owner = function.value
        return (owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", ""), function.attr)
    return "", getattr(function, "id", "")


def _names(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Names and the expressions they are given: assignments, and defaults of parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            given = node.args.args[len(node.args.args) - len(node.args.defaults) :]
            yield from ((argument.arg, value) for argument, value in zip(given, node.args.defaults, strict=True))
            pairs = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            yield from ((argument.arg, value) for argument, value in pairs if value is not None)


def _options(tree: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Options of argparse and fields of classes, with their defaults: args.lora_r."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.value is not None:
                    yield line.target.id, _default(line.value)
        elif isinstance(node, ast.Call) and _called(node)[1] == "add_argument" and node.args:
            name = node.args[0]
            default = [keyword.value for keyword in node.keywords if keyword.arg == "default"]
            if isinstance(name, ast.Constant) and isinstance(name.value, str) and default:
                yield name.value.lstrip("-").replace("-", "_"), default[0]


def _default(node: ast.expr) -> ast.expr:
    """The default of dataclasses.field(default=...); the expression itself where it is none."""
    if isinstance(node, ast.Call) and _called(node)[1] == "field":
        return next((keyword.value for keyword in node.keywords if keyword.arg == "default"), node)
    return node
