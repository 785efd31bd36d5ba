"""The sections of the configuration but `training`, each key with its description in English and in Korean.

Keys are the ecosystem's own words: `lora` takes LoraConfig's names, `quantization` BitsAndBytesConfig's. The string
under a field is its only description, English first, after an empty line Korean: reference.py makes help, docs and
JSON Schema of it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from .limits import refuse_flag, refuse_too_many


def _whole(value: float) -> float:
    """8 for 8.0: readers of adapter_config.json in Go and Rust (Ollama's) take nothing but an integer for it."""
    return int(value) if value.is_integer() else value


def label_name(value: Any) -> str:
    """What a label is called: 1 is "1", true is "true"."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_names(value: Any) -> Any:
    """Labels may be written as numbers."""
    plain = isinstance(value, list) and all(isinstance(item, (str, int)) for item in value)
    return [label_name(item) for item in value] if plain else value


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_flag(value, cls.model_fields[str(info.field_name)].annotation)
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_counted(cls, value: Any, info: ValidationInfo) -> Any:
        refuse_too_many(value, str(info.field_name))
        return value


class ModelSection(Section):
    """The model that is adapted.

    베이스 모델.
    """

    name_or_path: str = Field(min_length=1)
    """Hub id, folder in Hugging Face format, or a .gguf file (converted once, then reused).

    허브 id, Hugging Face 형식 폴더, .gguf 파일 중 하나. .gguf는 한 번만 변환해 다시 씁니다."""
    task: Literal["causal_lm", "seq_cls", "token_cls"] = "causal_lm"
    """What the model is trained for: causal_lm writes text, seq_cls gives a row a label (or several, or a number),
    token_cls gives each word one. The two classifiers get a new head, which is trained and saved with the adapter.

    학습하는 일. causal_lm은 글을 쓰고, seq_cls는 행마다 레이블(하나, 여러 개, 또는 수)을, token_cls는 단어마다 레이블을
    답합니다. 분류 모델 두 가지에는 새 출력층을 붙여 학습하고 어댑터와 함께 저장합니다."""
    problem_type: Literal["auto", "single_label_classification", "multi_label_classification", "regression"] = "auto"
    """seq_cls: what a label is. auto: text and integers are one of several classes, a list is several classes, a number
    with a decimal point is a value to be predicted.

    seq_cls에서 레이블의 종류. auto면 글과 정수는 여러 클래스 중 하나, 목록은 여러 클래스, 소수점이 있는 수는 예측할
    값으로 봅니다."""
    revision: str | None = None
    """Hub revision. null: resolved once and recorded in env.json.

    허브 리비전. null이면 한 번 확인해 env.json에 적습니다."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Storage of the frozen weights. auto: 16-bit when training.fp16 or bf16 is on, else float32.

    고정된 가중치를 저장하는 dtype. auto는 training.fp16이나 bf16이 켜져 있으면 16비트, 아니면 float32입니다."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel. eager forms QK^T in the compute dtype and overflows in fp16 sooner.

    어텐션 커널. eager는 QK^T를 계산 dtype으로 만들어 fp16에서 더 쉽게 넘칩니다."""
    resize_embeddings: bool = False
    """Give the embedding table and the output layer rows for the tokens that the tokenizer has and the model has not,
    train both in full, and save them with the adapter. New rows begin as the mean of the others.

    토크나이저에는 있고 모델에는 없는 토큰을 위해 임베딩 표와 출력층에 행을 더하고, 둘을 통째로 학습해 어댑터와 함께
    저장합니다. 더한 행은 나머지 행의 평균에서 시작합니다."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code.

    모델에 딸린 Python 코드를 실행합니다. 직접 읽어 본 코드가 아니면 켜지 마세요."""


class QuantizationSection(Section):
    """Frozen weights in 4 or 8 bits, under BitsAndBytesConfig's names.

    4비트나 8비트로 둔 고정된 가중치. BitsAndBytesConfig의 이름을 씁니다.
    """

    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (bitsandbytes).

    고정된 가중치를 4비트로 둡니다(bitsandbytes)."""
    load_in_8bit: bool = False
    """Keep the frozen weights in 8 bits (bitsandbytes). Takes PEFT's own, slower path.

    고정된 가중치를 8비트로 둡니다(bitsandbytes). PEFT의 느린 경로를 씁니다."""
    llm_int8_threshold: float = Field(default=6.0, ge=0)
    """8-bit: input columns with values above this are computed in 16 bits.

    8비트: 이보다 큰 값이 있는 입력 열은 16비트로 계산합니다."""
    llm_int8_skip_modules: list[str] | None = None
    """Modules that are not quantized, in 4 or 8 bits. null: the output layer.

    4비트든 8비트든 양자화하지 않을 모듈. null이면 출력층입니다."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit code book.

    4비트 코드북."""
    bnb_4bit_use_double_quant: bool = False
    """Quantize the block scales as well: about 0.4 bit a weight less.

    블록 스케일도 양자화합니다. 가중치 하나당 0.4비트쯤 줄어듭니다."""
    bnb_4bit_compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Dtype the 4-bit weights are decoded to. auto: the compute dtype of the run.

    4비트 가중치를 풀 때의 dtype. auto는 실행의 계산 dtype입니다."""
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = "uint8"
    """Dtype in which packed 4-bit weights are stored.

    4비트 가중치를 묶어 저장하는 dtype."""


class LoraSection(Section):
    """The adapter, under LoraConfig's names.

    어댑터. LoraConfig의 이름을 씁니다.
    """

    r: int = Field(default=8, ge=1)
    """Rank of the adapter.

    어댑터의 rank."""
    lora_alpha: Annotated[float, Field(gt=0), AfterValidator(_whole)] = 8
    """The adapter's output is scaled by lora_alpha / r.

    어댑터의 출력에 lora_alpha / r을 곱합니다."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input.

    어댑터의 입력에 거는 드롭아웃."""
    target_modules: list[str] | str = "all-linear"
    """Module names (a list), one regular expression, or all-linear.

    모듈 이름 목록, 정규식 하나, all-linear 중 하나."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained: none, all of the model's, or those of the layers with LoRA.

    학습할 편향. none은 없음, all은 모델의 모든 편향, lora_only는 LoRA가 붙은 층의 편향입니다."""
    modules_to_save: list[str] | None = None
    """Modules trained in full and saved with the adapter, such as lm_head or embed_tokens.

    통째로 학습해 어댑터와 함께 저장할 모듈. 예: lm_head, embed_tokens."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r.

    lora_alpha / r 대신 lora_alpha / sqrt(r)을 곱합니다."""
    task_type: Literal["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS"] = "CAUSAL_LM"
    """model.task, as PEFT's files name it. Set one of the two; the other follows.

    model.task를 PEFT 파일에 적는 이름으로 나타낸 것. 둘 중 하나만 적으면 다른 하나는 따라갑니다."""


class DataSection(Section):
    """What is trained on, and how a row becomes tokens.

    학습할 데이터, 그리고 행을 토큰으로 바꾸는 방법.
    """

    train: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    """Training rows: a hub id, a folder of data files, a .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt file (or
    one of them packed as .gz), a pattern such as 'rows/*.jsonl', or a list of files and folders.

    학습할 행. 허브 id, 데이터 파일이 든 폴더, .jsonl·.json·.csv·.tsv·.parquet·.arrow·.txt 파일(.gz로 압축한 것도
    됩니다), 'rows/*.jsonl' 같은 패턴, 파일과 폴더의 목록 중 하나."""
    eval: str | list[str] | None = None
    """Evaluation rows, from the same kinds of places.

    평가할 행. 적을 수 있는 것은 data.train과 같습니다."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows to hold out for evaluation instead of data.eval.

    data.eval 대신 학습할 행에서 평가용으로 떼어 둘 비율."""
    eval_limit: int | None = Field(default=None, ge=1)
    """Evaluate on only the first of the evaluation rows.

    평가할 행 가운데 앞에서 이만큼만 평가합니다."""
    format: Literal["auto", "koalpaca", "alpaca", "sharegpt", "messages", "prompt_completion", "text"] = "auto"
    """How a row becomes text: koalpaca and alpaca read instruction/input/output, prompt_completion prompt and
    completion, text text; messages and sharegpt (conversations) are written by the tokenizer's chat template. auto:
    what the fields of the first rows say.

    행을 글로 바꾸는 방식. koalpaca와 alpaca는 instruction/input/output, prompt_completion은 prompt와 completion,
    text는 text 필드를 읽습니다. messages와 sharegpt(대화)는 토크나이저의 챗 템플릿으로 씁니다. auto는 첫 행들의
    필드를 보고 정합니다."""
    columns: dict[str, str | None] = {}
    """What the rows call the fields: {instruction: question, output: answer}, in conversations also a turn's role and
    content. {label: null} leaves a column out on purpose.

    행의 필드 이름. 예: {instruction: question, output: answer}. 대화라면 각 턴의 role과 content도 적을 수 있습니다.
    {label: null}이면 그 열을 일부러 읽지 않습니다."""
    labels: Annotated[list[str], BeforeValidator(_as_names), Field(min_length=2)] | None = None
    """Classifiers: the names of the labels, in the order of their numbers. null: those of the training rows, numbers by
    size and names by alphabet. A label that is not among them is an error.

    분류: 레이블의 이름을 번호 순서대로 적은 목록. null이면 학습 행에 있는 것을 수는 크기순, 이름은 가나다순으로
    씁니다. 여기에 없는 레이블은 오류입니다."""
    prompt_template: str | None = None
    """Your own template instead of data.format, with the rows' fields in braces: 'Q: {question} A: {answer}'. It is
    trained on from the last field on, which is the answer.

    data.format 대신 쓸 템플릿. 행의 필드를 중괄호로 적습니다. 예: 'Q: {question} A: {answer}'. 마지막 필드, 곧
    답변부터 학습합니다."""
    chat_template: str | None = None
    """Jinja, or a file with it, instead of the tokenizer's chat template; {% generation %} marks what is trained on.

    토크나이저의 챗 템플릿 대신 쓸 Jinja 템플릿이나 그 파일. 학습할 부분은 {% generation %}으로 표시합니다."""
    cutoff_len: int = Field(default=1024, ge=2)
    """Longest row in tokens; the rest is cut off.

    행의 최대 길이(토큰). 넘는 부분은 자릅니다."""
    padding_free: bool = True
    """Batches without padding: the rows of a micro-batch lie one behind the other and never see each other. Models and
    attention kernels that cannot do that keep padded batches, which is said. false: always padded.

    패딩 없는 배치. 마이크로배치의 행을 이어 붙이되 서로 보지 못하게 합니다. 그럴 수 없는 모델과 어텐션 커널은 패딩한
    배치를 쓰고, 그 사실을 알립니다. false면 언제나 패딩합니다."""
    packing: bool = False
    """Fill bins of data.cutoff_len tokens with whole rows. A row still sees only itself; a bin counts as one row of
    per_device_train_batch_size, so micro-batches are even and steps fewer. Needs padding_free.

    data.cutoff_len 토큰짜리 묶음을 자르지 않은 행으로 채웁니다. 행은 여전히 자기 자신만 봅니다.
    per_device_train_batch_size에서 묶음 하나를 한 행으로 세므로 마이크로배치가 고르고 스텝이 줄어듭니다.
    padding_free가 필요합니다."""
    train_on_inputs: bool = False
    """true: the question is trained on as well as the answer.

    true면 답변뿐 아니라 질문도 학습합니다."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of data.train.

    data.train의 행 가운데 앞에서 이만큼만 씁니다."""
    skip_rows: list[Annotated[int, Field(ge=0)]] = []
    """Rows of data.train that are left out (0-based); the order of the others stays.

    data.train에서 뺄 행 번호(0부터). 나머지 행의 순서는 그대로입니다."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Rows that cannot be used: error names them and stops, skip leaves them out and says how many.

    쓸 수 없는 행이 있을 때. error는 그 행을 알리고 멈추며, skip은 그 행을 빼고 몇 개인지 알립니다."""
    cache: bool = True
    """Keep tokenized rows under ~/.cache/lora-train (or $XDG_CACHE_HOME), so that the next start need not tokenize.

    토큰화한 행을 ~/.cache/lora-train(또는 $XDG_CACHE_HOME)에 남겨 다음에는 다시 토큰화하지 않습니다."""


class PrecisionSection(Section):
    """Loss scale, and what happens when a step collapses.

    loss scale, 그리고 스텝이 붕괴했을 때 할 일.
    """

    loss_scale: Literal["dynamic", "auto"] | Annotated[float, Field(gt=0)] = "dynamic"
    """fp16 loss scale: dynamic, auto (dynamic, from the scale that suits the first batch), or a fixed number.

    fp16 loss scale. dynamic, auto(첫 배치에 맞는 값에서 시작하는 dynamic), 고정된 수 중 하나."""
    min_loss_scale: float = Field(default=1.0, gt=0)
    """Floor of the dynamic loss scale.

    dynamic loss scale의 하한."""
    on_collapse: Literal["heal", "rollback", "stop"] = "heal"
    """heal: go on from the last healthy state with the cheapest remedy that was shown to work on the very step.
    rollback: go on from there without the rows of that step. stop: save everything and exit 3.

    heal: 마지막 정상 상태로 돌아가, 바로 그 스텝에서 통한 해결책 가운데 비용이 가장 적은 것을 적용하고 이어 갑니다.
    rollback: 마지막 정상 상태로 돌아가, 그 스텝의 행을 빼고 이어 갑니다. stop: 모두 저장하고 종료 코드 3으로
    끝냅니다."""
    max_heals: int = Field(default=3, ge=0)
    """How often heal and rollback go on before the run stops after all.

    heal과 rollback으로 이어 가는 최대 횟수. 그다음에는 멈춥니다."""
    fp32_modules: list[str] = []
    """Modules that compute in float32, with the residual after them: names as in the base model, or patterns.

    뒤따르는 잔차까지 float32로 계산할 모듈. 베이스 모델의 이름이나 패턴을 적습니다."""


class InstrumentSection(Section):
    """What is recorded of the layers.

    층에서 기록할 것.
    """

    enabled: bool = True
    """Record statistics of every LoRA layer at every step. Losses and weights do not depend on it.

    모든 LoRA 층의 통계를 스텝마다 기록합니다. 켜든 끄든 loss와 가중치는 같습니다."""
    sites: Literal["all"] | list[str] = "all"
    """Which sites to keep: all, or shell patterns over <module>:<tensor>; ! excludes, the last match decides.

    기록할 사이트. all, 또는 <module>:<tensor>에 대한 셸 패턴 목록. !로 시작하는 패턴은 제외하고, 맞는 패턴이
    여럿이면 마지막 것을 따릅니다."""
    histogram_every: int = Field(default=100, ge=0)
    """Count binary exponents every so many steps. 0: never.

    이 스텝마다 2진 지수를 셉니다. 0이면 세지 않습니다."""
    probe_every: int = Field(default=100, ge=0)
    """Look at the outputs of the modules without LoRA every so many steps, on one micro-batch. 0: never.

    이 스텝마다 마이크로배치 하나에서 LoRA가 없는 모듈의 출력을 봅니다. 0이면 보지 않습니다."""
    rows: bool = True
    """Record the loss and the gradient norm of every training row at every step (lora-train rows).

    모든 스텝에서 학습 행마다 loss와 그래디언트 노름을 기록합니다(lora-train rows)."""
    rows_every: int = Field(default=100, ge=0)
    """Every so many steps, record each module's share of every row's gradient, and the inner product of the row's
    gradient with its micro-batch's. 0: never.

    이 스텝마다 행의 그래디언트를 모듈별로 나눈 값과, 행의 그래디언트와 마이크로배치 그래디언트의 내적을 기록합니다.
    0이면 기록하지 않습니다."""
    row_modules: list[str] = []
    """Modules whose share is recorded at every step: shell patterns.

    모듈별 몫을 모든 스텝에서 기록할 모듈. 셸 패턴 목록입니다."""
