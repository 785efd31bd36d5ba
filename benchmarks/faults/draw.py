"""Draws the cases of a seed: what is broken, where, when, how much, and what the run around it looks like.

A case is a function of the seed, its fault and its number: more cases of a seed repeat the fewer. Imports no torch.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ARCHITECTURES = ("gpt_neox", "llama")
LAYERS = (2, 3)
OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit")

# What is planted -> what is to be found.
FAULTS = {
    "mlp_output": "forward_overflow",
    "scores": "forward_overflow",
    "norm": "forward_overflow",
    "high_scale": "backward_overflow",
    "low_scale": "scale_underflow",
    "high_floor": "scale_collapse",
    "lora_weight": "dead_adapter",
    "embedding": "bad_weight",
    "no_labels": "no_supervised_tokens",
    "learning_rate": "divergence",
}
# Faults that are in the model on disk (weights.py); the others are planted while the run goes on (plant.py).
IN_WEIGHTS = ("mlp_output", "scores", "norm", "embedding")
_FP16, _ANY = ("fp16", "nf4+fp16"), ("fp16", "fp32", "bf16", "nf4+fp16", "nf4+bf16")
_PRECISIONS = {
    **dict.fromkeys(("mlp_output", "scores", "norm", "high_scale", "low_scale", "high_floor"), _FP16),
    **dict.fromkeys(("lora_weight", "embedding", "no_labels", "learning_rate"), _ANY),
}

# Largest value over the largest fp16 number. NF4 rounds a weight by up to 3%, dropout changes little.
SIZES = (1.2, 2.0, 5.0)

HEALTHY = ("plain", "warm_up", "by_length", "back_off", "large_steps")
_HEALTHY_PRECISIONS = ("fp32", "fp16", "bf16", "nf4+fp16")

_LINEARS = {
    "gpt_neox": ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "llama": tuple(f"self_attn.{x}_proj" for x in "qkvo") + tuple(f"mlp.{x}_proj" for x in ("gate", "up", "down")),
}
_PREFIX = {"gpt_neox": "gpt_neox.", "llama": "model."}
_FINAL_NORM = {"gpt_neox": "final_layer_norm", "llama": "norm"}
_EMBEDDING = {"gpt_neox": "embed_in", "llama": "embed_tokens"}


@dataclass(frozen=True)
class Case:
    """One run, with a fault or without.

    Attributes:
        fault: a key of FAULTS, or None for a healthy run.
        name: fault or kind of healthy run, and its number.
        arch, layers: of the model.
        precision: fp32, fp16 or bf16, with nf4+ where the frozen weights are 4-bit.
        seed: of everything random inside.
        n_steps: length of the run.
        step: where the fault is planted.
        module: that is broken and to be named, where there is one.
        size: how much; its meaning is the plant's.
        sections: what the configuration says besides.
    """

    fault: str | None
    name: str
    arch: str
    layers: int
    precision: str
    seed: int
    n_steps: int
    step: int = 0
    module: str | None = None
    size: float = 0.0
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def kind(self) -> str | None:
        """What is to be found."""
        return FAULTS[self.fault] if self.fault else None


def draw(seed: int, n_cases: int, n_healthy: int, only: str | None = None) -> list[Case]:
    """The cases of a seed, faults in turn; `only` keeps those of one fault, or of one kind that is to be found."""
    faults = [fault for fault in FAULTS if only is None or only in (fault, FAULTS[fault])]
    cases = [_faulty(seed, faults[i % len(faults)], i // len(faults)) for i in range(n_cases if faults else 0)]
    return cases + [_healthy(seed, i) for i in range(n_healthy if only in (None, "healthy") else 0)]


def _turn(seed: int, what: str, choices: Sequence[Any], number: int) -> Any:
    """Takes turns through the choices, in an order and from a start that the seed decides."""
    order = list(choices)
    random.Random(f"{seed}-{what}").shuffle(order)
    return order[number % len(order)]


def _run(seed: int, fault: str, number: int, rng: random.Random) -> dict[str, Any]:
    """What every run draws."""
    return {
        "arch": _turn(seed, f"{fault}-arch", ARCHITECTURES, number),
        "layers": rng.choice(LAYERS),
        "seed": rng.randrange(2**31),
        "n_steps": rng.randint(10, 14),
        "step": rng.randint(2, 8),
        "sections": {
            "lora": {"r": rng.choice((2, 4, 8)), "lora_alpha": 8, "lora_dropout": rng.choice((0.0, 0.05))},
            "data": {"cutoff_len": rng.choice((48, 64))},
            "training": {
                "per_device_train_batch_size": rng.randint(2, 4),
                "gradient_accumulation_steps": rng.randint(1, 2),
                "gradient_checkpointing": rng.random() < 0.3,
                "optim": _turn(seed, f"{fault}-optim", OPTIMIZERS, number),
                "learning_rate": rng.uniform(1e-3, 2e-3),
            },
            "precision": {},
            "model": {},
        },
    }


def _faulty(seed: int, fault: str, number: int) -> Case:
    rng = random.Random(f"{seed}-{fault}-{number}")
    drawn = _run(seed, fault, number, rng)
    precisions = _PRECISIONS[fault]
    # once round the architectures before the next precision
    drawn["precision"] = _turn(seed, f"{fault}-precision", precisions, number // 2 if len(precisions) < 3 else number)
    _DRAW[fault](drawn, rng)
    if fault in IN_WEIGHTS:  # nothing else is to change the numbers
        drawn["sections"]["training"]["learning_rate"] = 1e-5
    return Case(fault=fault, name=f"{fault}-{number}", **drawn)


def _layer(drawn: dict[str, Any], rng: random.Random, inside: str) -> str:
    layer = rng.randrange(drawn["layers"])
    return f"{_PREFIX[drawn['arch']]}layers.{layer}.{inside}"


def _mlp_output(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["module"] = _layer(drawn, rng, _LINEARS[drawn["arch"]][-1])
    drawn["size"] = rng.choice(SIZES)


def _scores(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["module"] = _layer(drawn, rng, _LINEARS[drawn["arch"]][0].partition(".")[0])
    drawn["size"] = rng.choice(SIZES)
    drawn["sections"]["model"]["attn_implementation"] = "eager"


def _norm(drawn: dict[str, Any], rng: random.Random) -> None:
    last = _PREFIX[drawn["arch"]] + _FINAL_NORM[drawn["arch"]]
    inside = rng.choice(("input_layernorm", "post_attention_layernorm", "input_layernorm", None))
    drawn["module"] = _layer(drawn, rng, inside) if inside else last
    drawn["size"] = rng.choice(SIZES)


def _high_scale(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["step"] = rng.choice((1, rng.randint(2, 6)))
    drawn["size"] = 2.0 ** rng.randint(28, 36)
    drawn["sections"]["precision"]["loss_scale"] = drawn["size"] if drawn["step"] == 1 else 4096.0


def _low_scale(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["step"] = rng.choice((1, rng.randint(2, 6)))
    drawn["size"] = 2.0 ** -rng.randint(16, 24)
    drawn["sections"]["precision"]["loss_scale"] = drawn["size"] if drawn["step"] == 1 else 4096.0


def _high_floor(drawn: dict[str, Any], rng: random.Random) -> None:
    """Size is how often the scale can fall before it meets its floor."""
    drawn["size"] = float(rng.randint(0, 5))
    drawn["step"] = max(3, int(drawn["size"]) + 1)
    drawn["n_steps"] = rng.randint(24, 28)
    drawn["sections"]["precision"]["min_loss_scale"] = 2.0 ** rng.randint(27, 31)


def _lora_weight(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["module"] = _layer(drawn, rng, rng.choice(_LINEARS[drawn["arch"]]))
    drawn["size"] = rng.choice((float("nan"), float("inf")))


def _embedding(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["module"] = _PREFIX[drawn["arch"]] + _EMBEDDING[drawn["arch"]]


def _no_labels(drawn: dict[str, Any], rng: random.Random) -> None:
    pass


def _learning_rate(drawn: dict[str, Any], rng: random.Random) -> None:
    drawn["step"] = rng.choice((1, rng.randint(12, 15)))
    drawn["n_steps"] = drawn["step"] + rng.randint(20, 26)
    drawn["size"] = rng.choice((100.0, 200.0))
    drawn["sections"]["training"]["lr_scheduler_type"] = "constant"
    if drawn["step"] == 1:
        drawn["sections"]["training"]["learning_rate"] *= drawn["size"]


_DRAW = {
    "mlp_output": _mlp_output,
    "scores": _scores,
    "norm": _norm,
    "high_scale": _high_scale,
    "low_scale": _low_scale,
    "high_floor": _high_floor,
    "lora_weight": _lora_weight,
    "embedding": _embedding,
    "no_labels": _no_labels,
    "learning_rate": _learning_rate,
}


def _healthy(seed: int, number: int) -> Case:
    rng = random.Random(f"{seed}-healthy-{number}")
    # in 20 runs each variant meets every precision, and each precision both architectures
    block, turn = divmod(number, len(HEALTHY))
    variant = HEALTHY[turn]
    drawn = _run(seed, "healthy", block // 2 + turn, rng)
    precisions = [p for p in _HEALTHY_PRECISIONS if variant != "back_off" or p in _FP16]
    drawn["precision"] = _turn(seed, "healthy", precisions, block + turn)
    drawn["step"], drawn["n_steps"] = 0, rng.choice((20, 28, 36))
    training = drawn["sections"]["training"]
    training["gradient_accumulation_steps"] = 1 + number % 2
    training["lr_scheduler_type"] = rng.choice(("linear", "cosine", "constant"))
    if variant == "warm_up":
        training |= {"warmup_steps": rng.randint(4, 12), "lr_scheduler_type": "linear"}
    elif variant == "back_off":
        drawn["size"] = 2.0 ** rng.randint(23, 24)
    elif variant == "large_steps":
        training["learning_rate"] = rng.uniform(3e-3, 6e-3)
        drawn["sections"]["lora"]["lora_alpha"] = rng.choice((32, 64))
    if rng.random() < 0.5:
        training |= {"eval_strategy": "steps", "eval_steps": 10}
        drawn["sections"]["data"]["eval_fraction"] = 0.1
    return Case(fault=None, name=f"{variant}-{number}", **drawn)
