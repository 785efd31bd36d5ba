"""docs/numbers.md: what every number of a run folder is."""

from __future__ import annotations

from collections.abc import Mapping

from lora_train.instrument.read.eval_rows import EVALUATION_ROWS
from lora_train.instrument.read.row_log import TRAINING_ROWS
from lora_train.instrument.read.schema import (
    ADDED,
    COMPUTED,
    EXPONENTS,
    STATISTICS,
    Column,
    Evaluation,
    StepLine,
    Summary,
    columns_of,
)
from lora_train.instrument.read.scores import SCORES

from .table import NOTE, table

NUMBERS = {
    "en": """# Numbers

What a run folder records: `metrics.jsonl` has a line for every step and every evaluation, `stats/` a row for every
watched tensor of every step. `lora_train.instrument.load_run(folder)` reads both as pandas frames. What cannot be known
is null (NaN in a frame) and never 0; what is not finite is null in `metrics.jsonl` and never left out.

"Written by": `lora-train` is a run of the command, `InstrumentCallback` the recording inside the stock Trainer or, as
`Instrument`, inside a loop of your own.

## Lines of metrics.jsonl

### On every line, or on some

{added}

### A step

{step}

The line on the screen shows the same numbers, but for `skipped`, which counts the skipped steps so far there.

### An evaluation

Begins with `start` and `step`. A classifier has the scores below instead of `eval_token_accuracy`, and what
`training.compute_metrics` gives; a token that is trained on, in `loss`, `eval_loss` and `supervised_tokens`, is a label
there: of a row, or of a word. With `training.class_weights` means are weighted.

{evaluation}

### The end of a run

{summary}

## Rows of an evaluation

`evaluations/step-000500.parquet` has a row for every evaluation row. The sum of `loss_sum` over that of `n_tokens` is
`eval_loss`. The file's metadata has `digest`, a SHA-256 of the hashes in order: evaluations that have it in common are
of the same rows, in whatever run. `lora_train.instrument.read.eval_rows.read_rows(folder, step)` reads it.

{rows}

## Training rows

`rows/` has a row for every row of every step. `load_run(folder).rows()` reads it and computes `loss`, `loss_sum /
n_supervised`, and `grad_norm`, the gradient norm of the row's mean loss: `sqrt(sumsq) N / n_supervised`, N the
supervised tokens of the step. The squares are those of the gradient as the backward pass summed it, dropout and
rounding included. A classifier's head, which is trained in full, is not in them; the file's metadata has `whole`, false
where that is so.

{training_rows}

`eval_overlap` in `env.json` says how many of the evaluation rows (`rows`) are training rows token for token (`exact`)
or nearly (`near`), with the first few of each as [evaluation row, training row]; null where nothing is evaluated.

## Statistics of tensors

A site is `<module>:<tensor>`, the tensor one of `in`, `out`, `grad_out`, `grad_in`, `lora_A.grad`, `lora_B.grad`;
InstrumentCallback has `<parameter>.grad` for whatever is trained, `weight.grad` for one.
Modules that read the same input (q, k and v; gate and up) share one `in` and one `grad_in`. `x` are the values as they
are stored in the tensor's dtype, `a` the sums behind them before they were rounded to it. A row is a sum over the
micro-batches and processes of a step, `absmax` a maximum; of the LoRA gradients it describes the accumulated gradient.
Gradients are recorded multiplied by the loss scale.

Every column is null where a tensor was not looked at: the outputs of modules without LoRA are looked at on every
`instrument.probe_every`-th step and on one micro-batch, and an input that needs no gradient has no `grad_in`.

{statistics}

### Exponents

{exponents}

### Computed when it is read

{computed}

## On the page of a run

- Headroom: `65504 / absmax` of a float16 tensor, how many times larger its largest value may grow before it overflows.
- Share lost to zero: of the values that were not 0 before rounding, those that became 0; where that is not known, the
  share of values below the smallest normal number.
- Non-finite values: `n_nan + n_inf`.
""",
    "ko": """# 숫자의 뜻

실행 폴더에 기록되는 숫자입니다. `metrics.jsonl`에는 스텝과 평가마다 한 줄, `stats/`에는 스텝마다 관찰하는 텐서별로 한
행이 있습니다. `lora_train.instrument.load_run(folder)`로 둘 다 pandas 프레임으로 읽을 수 있습니다. 알 수 없는 값은
null(프레임에서는 NaN)이고 0으로 적지 않습니다. 유한하지 않은 값은 `metrics.jsonl`에 null로 남기고 빼지 않습니다.

"기록하는 쪽"의 `lora-train`은 명령으로 실행한 학습이고, `InstrumentCallback`은 기본 Trainer 안에서, 또는
`Instrument`로 직접 만든 루프 안에서 기록한 것입니다.

## metrics.jsonl의 줄

### 모든 줄 또는 일부 줄에 있는 것

{added}

### 스텝

{step}

화면에 나오는 줄도 같은 숫자입니다. 다만 화면의 `skipped`는 지금까지 건너뛴 스텝 수입니다.

### 평가

`start`와 `step`으로 시작합니다. 분류 모델에는 `eval_token_accuracy` 대신 그 아래의 점수와 `training.compute_metrics`가
돌려준 값이 있습니다. 이때 `loss`, `eval_loss`, `supervised_tokens`의 학습 대상 토큰이란 행이나 단어의 레이블 하나를
뜻합니다. `training.class_weights`가 있으면 가중 평균입니다.

{evaluation}

### 실행의 끝

{summary}

## 평가 행

`evaluations/step-000500.parquet`에는 평가 행마다 한 행이 있습니다. `loss_sum`의 합을 `n_tokens`의 합으로 나누면
`eval_loss`입니다. 파일 메타데이터의 `digest`는 해시를 순서대로 이은 것의 SHA-256이어서, 같으면 어느 실행에서든 같은
행을 평가한 것입니다. `lora_train.instrument.read.eval_rows.read_rows(folder, step)`으로 읽습니다.

{rows}

## 학습 행

`rows/`에는 스텝마다 그 스텝의 모든 행이 한 행씩 있습니다. `load_run(folder).rows()`로 읽으면 `loss`(`loss_sum /
n_supervised`)와, 그 행의 평균 loss에 대한 그래디언트 노름인 `grad_norm`(`sqrt(sumsq) N / n_supervised`, N은 그 스텝의
학습 대상 토큰 수)도 계산해 줍니다. 제곱은 역전파가 더한 그래디언트 그대로의 것이어서 드롭아웃과 반올림도 들어 있습니다.
통째로 학습하는 분류 모델의 헤드는 들어가지 않으며, 그런 경우 파일 메타데이터의 `whole`이 false입니다.

{training_rows}

`env.json`의 `eval_overlap`은 평가 행(`rows`) 가운데 학습 행과 토큰까지 같은 행(`exact`)과 거의 같은 행(`near`)의
수이고, 저마다 처음 몇 개를 [평가 행, 학습 행]으로 적습니다. 평가가 없으면 null입니다.

## 텐서 통계

사이트는 `<모듈>:<텐서>`이고, 텐서는 `in`, `out`, `grad_out`, `grad_in`, `lora_A.grad`, `lora_B.grad` 중 하나입니다.
InstrumentCallback에는 학습하는 파라미터마다 `weight.grad` 같은 `<파라미터>.grad`도 있습니다.
같은 입력을 읽는 모듈(q·k·v, gate·up)은 `in`과 `grad_in`을 함께 씁니다. `x`는 텐서의 dtype으로 저장된 값, `a`는 그
dtype으로 반올림하기 전의 합입니다. 한 행은 스텝의 마이크로배치와 프로세스를 모두 합한 것이고 `absmax`는 최댓값입니다.
LoRA 그래디언트의 행은 누적이 끝난 그래디언트에 대한 것입니다. 그래디언트에는 loss scale이 곱해져 있습니다.

보지 않은 텐서는 모든 열이 null입니다. LoRA가 없는 모듈의 출력은 `instrument.probe_every` 스텝마다 마이크로배치
하나에서만 보고, 그래디언트가 필요 없는 입력에는 `grad_in`이 없습니다.

{statistics}

### 지수

{exponents}

### 읽을 때 계산하는 것

{computed}

## 리포트 페이지에서

- 여유: float16 텐서의 `65504 / absmax`. 가장 큰 값이 몇 배까지 커져도 넘치지 않는지를 나타냅니다.
- 0으로 사라진 비율: 반올림하기 전에 0이 아니던 값 가운데 0이 된 것의 비율. 알 수 없으면 가장 작은 정규 수보다 작은 값의
  비율입니다.
- NaN·inf 개수: `n_nan + n_inf`.
""",
}
HEADINGS = {
    "en": ("column", "type", "unit", "meaning", "null when", "written by"),
    "ko": ("열", "타입", "단위", "뜻", "null인 경우", "기록하는 쪽"),
}
NEVER = {"en": "never", "ko": "없음"}
KOREAN_UNITS = {
    "steps": "스텝", "epochs": "에폭", "nat/token": "nat/토큰", "nat/token per weight": "nat/토큰/가중치",
    "micro-batches": "마이크로배치", "tokens": "토큰", "tokens/s": "토큰/초", "s": "초", "starts": "회", "rows": "행",
    "rows/s": "행/초", "batches/s": "배치/초", "steps/s": "스텝/초", "values": "개", "index": "번호",
}  # fmt: skip


def numbers(lang: str) -> str:
    """docs/numbers.md, or its Korean sister."""
    tables: dict[str, Mapping[str, Column]] = {
        "added": ADDED,
        "step": columns_of(StepLine),
        "evaluation": {**columns_of(Evaluation), **SCORES},
        "summary": columns_of(Summary),
    }
    of_stats = {
        "rows": EVALUATION_ROWS,
        "training_rows": TRAINING_ROWS,
        "statistics": STATISTICS,
        "exponents": EXPONENTS,
        "computed": COMPUTED,
    }
    written = {name: _columns(columns, lang, True) for name, columns in tables.items()}
    written |= {name: _columns(columns, lang, False) for name, columns in of_stats.items()}
    return NUMBERS[lang].format(**written) + NOTE.format(source="instrument/read/schema.py")


def _columns(columns: Mapping[str, Column], lang: str, with_writers: bool) -> str:
    rows = [HEADINGS[lang] if with_writers else HEADINGS[lang][:-1]]
    for name, column in columns.items():
        meaning = (column.en if lang == "en" else column.ko) + (f" `{column.formula}`" if column.formula else "")
        null = (column.null.en if lang == "en" else column.null.ko) if column.null else NEVER[lang]
        unit = column.unit if lang == "en" else KOREAN_UNITS.get(column.unit, column.unit)
        row = (f"`{name}`", column.type, unit, meaning, null)
        rows.append((*row, ", ".join(column.writers)) if with_writers else row)
    return table(rows)
