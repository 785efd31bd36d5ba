"""Every number that a run folder records: its name, type, unit, meaning, when it is null, and who writes it.

A line of metrics.jsonl is a `StepLine`, an `Evaluation` with its step, or a `Summary`. What writes a line makes the
record, so that a column too few or too many fails where it is made. `STATISTICS` are the columns of stats/. The log,
the readers, the page and docs/numbers.md take their lists from here. Imports nothing but dataclasses.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, field, fields, replace
from typing import Any, NamedTuple


class Null(NamedTuple):
    """Why a value may be missing, in both languages."""

    en: str
    ko: str


NOT_FINITE = Null("it is NaN or inf", "NaN이나 inf일 때")
BAD_GRADIENT = Null("a gradient is NaN or inf", "그래디언트에 NaN이나 inf가 있을 때")
NO_GPU = Null("on the CPU", "CPU에서 돌릴 때")
NOT_TOLD = Null("the loop that is recorded does not say", "기록하는 루프가 알려 주지 않을 때")
NOT_OURS = Null("another program trains", "다른 프로그램이 학습할 때")
FUSED_INPUT = Null(
    "`in` of a fused module, which is only searched for NaN and inf", "fused 모듈의 `in`일 때(NaN과 inf만 찾습니다)"
)
NO_ACCUMULATOR = Null(
    "all but `out` and `grad_in` of modules with LoRA: nothing else is seen before it is rounded",
    "LoRA 모듈의 `out`, `grad_in`이 아닐 때(반올림하기 전의 값을 볼 수 없습니다)",
)
IN_FLOAT32 = Null(
    "float32 tensors between histogram steps, LoRA gradients, `in` of a fused module",
    "float32 텐서(지수를 세는 스텝은 제외), LoRA 그래디언트, fused 모듈의 `in`일 때",
)
NOT_GRADIENT = Null("all but LoRA gradients", "LoRA 그래디언트가 아닐 때")
ALL_FINITE = Null("every value is finite", "모든 값이 유한할 때")
NO_HISTOGRAM = Null(
    "all but every instrument.histogram_every-th step; a tensor of zeros",
    "instrument.histogram_every 스텝마다 세므로 그 밖의 스텝일 때, 그리고 값이 모두 0인 텐서일 때",
)
NO_SCALE = Null("metrics.jsonl has no loss_scale for the step", "metrics.jsonl에 그 스텝의 loss_scale이 없을 때")

LOOP, CALLBACK = "lora-train", "InstrumentCallback"
"""Who writes a line: the training loop; the recording inside another program, `Instrument` included."""


@dataclass(frozen=True)
class Column:
    """What a number is.

    Attributes:
        unit: empty where it is a count of nothing in particular.
        en, ko: what it means.
        null: when it is missing; None: never.
        formula: in the names of the other columns and of the head of docs/numbers.md.
        writers: who writes it.
        type: of the JSON value, or of the column in stats/.
    """

    unit: str
    en: str
    ko: str
    null: Null | None = None
    formula: str = ""
    writers: tuple[str, ...] = (LOOP, CALLBACK)
    type: str = ""


def _is(*args: Any, **values: Any) -> dict[str, Column]:
    """The metadata of a record's field."""
    return {"column": Column(*args, **values)}


@dataclass(kw_only=True)
class StepLine:
    """One step, over all micro-batches and processes; in the order in which a line has it."""

    step: int = field(
        metadata=_is("steps", "Attempted optimizer steps, this one included: from 1, skipped ones count.",
                     "이 스텝까지 시도한 옵티마이저 스텝 수. 1부터 세고, 건너뛴 스텝도 셉니다.")
    )  # fmt: skip
    updates: int = field(
        metadata=_is(
            "steps",
            "Steps that were applied to the weights so far; the learning-rate schedule follows it.",
            "지금까지 가중치에 반영한 스텝 수. learning rate 스케줄은 이 수를 따라갑니다.",
        )
    )
    epoch: float | None = field(
        metadata=_is(
            "epochs",
            "Passes over the training rows so far.",
            "지금까지 학습 데이터를 본 횟수.",
            NOT_TOLD,
            "step / steps_per_epoch",
        )
    )
    loss: float = field(
        metadata=_is(
            "nat/token",
            "Mean loss of the step's supervised tokens. Accumulating 4x1 equals 1x4; never filtered.",
            "이 스텝의 학습 대상 토큰에 대한 평균 loss. 누적 4x1과 1x4가 같고, 어떤 값도 걸러 내지 않습니다.",
            NOT_FINITE,
            "-sum(log p(token)) / supervised_tokens",
        )
    )
    learning_rate: float | None = field(
        metadata=_is("", "The learning rate this step used.", "이 스텝에 쓴 learning rate.", NOT_TOLD)
    )
    grad_norm: float = field(
        metadata=_is(
            "nat/token per weight",
            "L2 norm of the gradients of all trained weights together, unscaled, before clipping.",
            "학습하는 모든 가중치의 그래디언트를 합친 L2 norm. loss scale로 나눈 뒤, 클리핑하기 전의 값입니다.",
            BAD_GRADIENT,
            "sqrt(sum(gradient^2)) / loss_scale",
        )
    )
    loss_scale: float = field(
        metadata=_is(
            "",
            "What the loss of this step was multiplied by before the backward pass; 1 without fp16.",
            "역전파하기 전에 이 스텝의 loss에 곱한 수. fp16이 아니면 1입니다.",
        )
    )
    skipped: bool = field(
        metadata=_is(
            "",
            "Whether the update was left out because the step was not finite; InstrumentCallback: under a scaler only.",
            "유한하지 않아 업데이트를 건너뛰었는지. InstrumentCallback은 스케일러가 있을 때만 true로 적습니다.",
        )
    )
    nonfinite_micro_batches: int = field(
        metadata=_is(
            "micro-batches",
            "Micro-batches of this step whose loss is NaN or inf.",
            "이 스텝에서 loss가 NaN이나 inf인 마이크로배치 수.",
        )
    )
    tokens: int | None = field(
        metadata=_is(
            "tokens",
            "Tokens that went through the model in this step, without padding.",
            "이 스텝에 모델을 지나간 토큰 수. 패딩은 세지 않습니다.", NOT_TOLD,
        )
    )  # fmt: skip
    supervised_tokens: int | None = field(
        metadata=_is("tokens", "Those of them that are trained on.", "그중 학습 대상인 토큰 수.", NOT_TOLD)
    )
    supervised_tokens_squared: int | None = field(
        metadata=_is(
            "tokens^2",
            "Sum over micro-batches and processes of the square of the tokens that each trains on: with micro_sumsq "
            "and sumsq it tells the noise of a gradient from its direction, however unequal the micro-batches are.",
            "마이크로배치와 프로세스가 저마다 학습하는 토큰 수를 제곱해 합한 것. 마이크로배치의 크기가 서로 달라도 "
            "micro_sumsq, sumsq와 함께 그래디언트의 잡음과 방향을 가릅니다.",
            NOT_OURS, "sum(n_i^2)",
        )
    )  # fmt: skip
    tokens_per_second: float | None = field(
        metadata=_is("tokens/s", "Speed of this step.", "이 스텝의 속도.", NOT_TOLD, "tokens / step_seconds")
    )
    step_seconds: float = field(
        metadata=_is(
            "s",
            "Time the host spent on this step, without evaluations and checkpoints: on the CPU all of its work, on a "
            "GPU its launches and what it waited for. InstrumentCallback: until the gradients are judged.",
            "이 스텝에 호스트가 쓴 시간. 평가와 체크포인트는 뺍니다. CPU에서는 계산 전체, GPU에서는 커널을 띄우고 "
            "기다린 시간입니다. InstrumentCallback은 그래디언트를 확인할 때까지만 잽니다.",
        )
    )
    max_sequence_length: int | None = field(
        metadata=_is(
            "tokens",
            "Longest row of the step. InstrumentCallback: the width of the widest batch, with its padding.",
            "이 스텝에서 가장 긴 행의 길이. InstrumentCallback은 가장 넓은 배치의 폭(패딩 포함)을 적습니다.", NOT_TOLD,
        )
    )  # fmt: skip
    memory_allocated_gib: float | None = field(
        metadata=_is(
            "GiB",
            "GPU memory in tensors when the line is written, on the first process.",
            "줄을 쓰는 시점에 텐서가 차지한 GPU 메모리. 첫 번째 프로세스의 값입니다.",
            NO_GPU,
        )
    )
    memory_reserved_gib: float | None = field(
        metadata=_is(
            "GiB",
            "GPU memory that the allocator holds, tensors included.",
            "할당자가 잡고 있는 GPU 메모리. 텐서가 차지한 것도 들어 있습니다.",
            NO_GPU,
        )
    )
    host_memory_gib: float = field(
        metadata=_is("GiB", "Resident memory of the first process.", "첫 번째 프로세스가 차지한 호스트 메모리(RSS).")
    )
    eval_seconds_total: float = field(
        metadata=_is(
            "s",
            "Time spent in evaluations so far, over all starts.",
            "지금까지 평가에 쓴 시간. 이어서 학습하면 계속 더합니다.",
        )
    )
    save_seconds_total: float | None = field(
        metadata=_is(
            "s",
            "Time spent in writing checkpoints so far, over all starts.",
            "지금까지 체크포인트를 쓰는 데 든 시간. 이어서 학습하면 계속 더합니다.",
            NOT_OURS,
        )
    )


ADDED = {
    "start": Column(
        "starts", "Resumes and returns to an earlier state before this line; of a step that was run twice the last "
        "one counts. On every line.",
        "이 줄을 쓰기 전에 이어서 시작하거나 앞 상태로 되돌아간 횟수. 같은 스텝이 두 번 있으면 마지막 것을 씁니다. "
        "모든 줄에 있습니다.", type="int"),
    "rows": Column(
        "rows", "Rows of data.train (from 0) in this step; only on lines of steps that were not finite.",
        "이 스텝에 들어간 data.train의 행 번호(0부터). 유한하지 않은 스텝의 줄에만 있습니다.",
        writers=(LOOP,), type="list of int"),
}  # fmt: skip
"""What lines have besides: `start` is written by MetricsLog, `rows` where there is something to look at."""


@dataclass(frozen=True)
class Evaluation:
    """One pass over the evaluation rows. InstrumentCallback writes what the Trainer measured, under its names."""

    eval_loss: float = field(
        metadata=_is(
            "nat/token",
            "Mean loss of all supervised tokens of the evaluation rows.",
            "평가 행의 모든 학습 대상 토큰에 대한 평균 loss.",
            NOT_FINITE,
            "-sum(log p(token)) / supervised_tokens",
        )
    )
    eval_token_accuracy: float = field(
        metadata=_is(
            "",
            "Share of the supervised tokens that the model gives the highest probability.",
            "학습 대상 토큰 가운데 모델이 가장 높은 확률을 준 토큰의 비율.",
            formula="count(argmax p = token) / supervised_tokens",
            writers=(LOOP,),
        )
    )
    eval_runtime: float = field(metadata=_is("s", "Time of the evaluation.", "평가에 걸린 시간."))
    eval_samples_per_second: float = field(
        metadata=_is("rows/s", "Speed of the evaluation in rows.", "초당 평가한 행 수.", formula="rows / eval_runtime")
    )
    eval_steps_per_second: float = field(
        metadata=_is(
            "batches/s", "Speed of the evaluation in batches.", "초당 평가한 배치 수.", formula="batches / eval_runtime"
        )
    )


@dataclass(kw_only=True)
class Summary:
    """The last line of a run that came to its end."""

    train_runtime: float = field(
        metadata=_is(
            "s",
            "Time spent in steps over all starts; InstrumentCallback: time of the training as a whole.",
            "모든 시작을 통틀어 스텝에 쓴 시간. InstrumentCallback은 학습 전체의 시간을 적습니다.",
        )
    )
    train_samples_per_second: float | None = field(
        metadata=_is(
            "rows/s",
            "Rows trained on, by that time.",
            "그 시간으로 나눈 학습한 행 수.",
            NOT_OURS,
            "rows / train_runtime",
        )
    )
    train_steps_per_second: float = field(
        metadata=_is("steps/s", "Steps, by that time.", "그 시간으로 나눈 스텝 수.", formula="steps / train_runtime")
    )


STATISTICS = {
    "sumsq": Column("x^2", "Sum of squares of the finite values.", "유한한 값의 제곱합.", FUSED_INPUT,
                    "sum(x^2)", type="float"),
    "absmax": Column("x", "Largest magnitude among the finite values.", "유한한 값 가운데 가장 큰 절댓값.", FUSED_INPUT,
                     "max(abs(x))", type="float"),
    "n_nan": Column("values", "NaN values.", "NaN인 값의 수.", type="int"),
    "n_inf": Column("values", "Infinite values.", "inf인 값의 수.", type="int"),
    "n_overflow": Column("values", "Values that were finite before they were rounded and are infinite after it.",
                         "반올림하기 전에는 유한했으나 반올림한 뒤 inf가 된 값의 수.", NO_ACCUMULATOR,
                         "count(a finite, x infinite)", type="int"),
    "n_underflow": Column("values", "Values that were not 0 before they were rounded and are 0 after it.",
                          "반올림하기 전에는 0이 아니었으나 반올림한 뒤 0이 된 값의 수.", NO_ACCUMULATOR,
                          "count(a != 0, x = 0)", type="int"),
    "n_subnormal": Column("values", "Values below the smallest normal number of their dtype, without 0.",
                          "dtype의 가장 작은 정규 수보다 작은 값의 수. 0은 세지 않습니다.", IN_FLOAT32,
                          "count(0 < abs(x) < smallest normal)", type="int"),
    "n_zero": Column("values", "Zeros of either sign.", "0인 값의 수(부호는 따지지 않음).", IN_FLOAT32,
                     "count(x = 0)", type="int"),
    "n": Column("values", "Values, without padding.", "값의 수. 패딩은 세지 않습니다.", type="int"),
    "micro_sumsq": Column("x^2", "Sum over micro-batches and processes of the squared norm of what each adds to the "
                          "gradient; beside sumsq it tells how much they agree.",
                          "마이크로배치와 프로세스가 저마다 그래디언트에 더하는 값의 norm을 제곱해 합한 것. "
                          "sumsq와 견주면 서로 얼마나 일치하는지 알 수 있습니다.", NOT_GRADIENT, type="float"),
    "first_bad_micro": Column("index", "First micro-batch (from 0) with a NaN or inf.",
                              "NaN이나 inf가 처음 나온 마이크로배치(0부터).", ALL_FINITE, type="int"),
    "first_bad_rank": Column("index", "Process (from 0) on which that was.",
                             "그 마이크로배치를 계산한 프로세스(0부터).", ALL_FINITE, type="int"),
}  # fmt: skip
"""The columns of stats/, in their order there: sums over the micro-batches and processes of a step, absmax a maximum.
The first nine are the fields of a kernel's row."""
EXPONENTS = {
    "exponent_first": Column("", "Exponent field (as float32 has it: 127 is 2^0) of the first count.",
                             "첫 번째 개수에 해당하는 지수 필드(float32 기준, 127이 2^0).", NO_HISTOGRAM, type="int"),
    "exponent_counts": Column("values", "Values by binary exponent, from there on, without the zeros at both ends.",
                              "거기서부터 2진 지수별 값의 수. 양 끝의 0은 뺍니다.", NO_HISTOGRAM, type="list of int"),
}  # fmt: skip
COMPUTED = {
    "norm": Column("x", "L2 norm of the finite values; of gradients without the loss scale.",
                   "유한한 값의 L2 norm. 그래디언트이면 loss scale로 나눈 값입니다.", NO_SCALE,
                   "sqrt(sumsq)", type="float"),
}  # fmt: skip
"""What Run.stats adds when it reads."""


def columns_of(record: type) -> dict[str, Column]:
    """The columns of a record by name, with their types."""

    def typed(one: Field) -> Column:
        return replace(one.metadata["column"], type=str(one.type).removesuffix(" | None"))

    return {one.name: typed(one) for one in fields(record)}


STEP_COLUMNS = tuple(columns_of(StepLine))


def kind_of(line: dict[str, Any]) -> str:
    """What a line of metrics.jsonl is: "step", "evaluation" or "summary"."""
    if "train_runtime" in line:
        return "summary"
    measured = "loss" not in line and any(key.startswith("eval_") for key in line)
    return "evaluation" if measured else "step"
