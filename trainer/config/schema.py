"""The configuration: YAML -> one validated, frozen object, or every problem at once.

Keys are the ecosystem's own words: `training` takes TrainingArguments' names, `lora` LoraConfig's,
`quantization` BitsAndBytesConfig's. The string under each field is its help text. This module imports
neither torch nor transformers, so that a typing mistake is answered within a second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

# YAML 1.1 reads an unquoted `no` as false
_NoOrWord = BeforeValidator(lambda value: "no" if value is False else value)
Strategy = Annotated[Literal["no", "steps", "epoch"], _NoOrWord]
SaveStrategy = Annotated[Literal["no", "steps", "epoch", "best"], _NoOrWord]
# A whole number of steps, or below 1 a share of all steps, as in transformers.
Interval = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]

# Learning-rate schedules that follow the evaluations.
METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )


class ModelSection(Section):
    name_or_path: str = Field(min_length=1)
    """Hub id, folder in Hugging Face format, or a .gguf file (converted once, then reused)."""
    revision: str | None = None
    """Hub revision. null: resolved once and recorded in env.json."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Storage of the frozen weights. auto: 16-bit when training.fp16 or bf16 is on, else float32."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel. eager forms QK^T in the compute dtype and overflows in fp16 sooner."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class QuantizationSection(Section):
    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (bitsandbytes)."""
    load_in_8bit: bool = False
    """Keep the frozen weights in 8 bits (bitsandbytes). Takes PEFT's own, slower path."""
    llm_int8_threshold: float = Field(default=6.0, ge=0)
    """8-bit: input columns with values above this are computed in 16 bits."""
    llm_int8_skip_modules: list[str] | None = None
    """Modules that are not quantized, in 4 or 8 bits. null: the output layer."""
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    """4-bit code book."""
    bnb_4bit_use_double_quant: bool = False
    """Quantize the block scales as well: about 0.4 bit a weight less."""
    bnb_4bit_compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Dtype the 4-bit weights are decoded to. auto: the compute dtype of the run."""
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = "uint8"
    """Dtype in which packed 4-bit weights are stored."""


class LoraSection(Section):
    r: int = Field(default=8, ge=1)
    """Rank of the adapter."""
    lora_alpha: float = Field(default=8, gt=0)
    """The adapter's output is scaled by lora_alpha / r."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""
    target_modules: list[str] | str = "all-linear"
    """Module names (a list), one regular expression, or all-linear."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained: none, all of the model's, or those of the layers with LoRA."""
    modules_to_save: list[str] | None = None
    """Modules trained in full and saved with the adapter, such as lm_head or embed_tokens."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead of lora_alpha / r."""
    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """What the model is for, as PEFT's files name it."""


class DataSection(Section):
    train: str = Field(min_length=1)
    """Training rows: a hub id, a folder of data files, or a .jsonl, .json, .csv or .parquet file."""
    eval: str | None = None
    """Evaluation rows, from the same kinds of places."""
    eval_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the training rows to hold out for evaluation instead of data.eval."""
    eval_limit: int | None = Field(default=None, ge=1)
    """Evaluate on only the first of the evaluation rows."""
    format: Literal["auto", "koalpaca", "alpaca", "sharegpt", "messages", "prompt_completion", "text"] = "auto"
    """How a row becomes text: koalpaca and alpaca read instruction/input/output, prompt_completion prompt and
    completion, text text; messages and sharegpt (conversations) are written by the tokenizer's chat template.
    auto: what the fields of the first rows say."""
    prompt_template: str | None = None
    """Your own template instead of data.format, with the rows' fields in braces: 'Q: {question} A: {answer}'. It is
    trained on from the last field on, which is the answer."""
    chat_template: str | None = None
    """Jinja, or a file with it, instead of the tokenizer's chat template; {% generation %} marks what is trained on."""
    cutoff_len: int = Field(default=1024, ge=2)
    """Longest row in tokens; the rest is cut off."""
    padding_free: bool = True
    """Batches without padding: the rows of a micro-batch lie one behind the other and never see each other. Models and
    attention kernels that cannot do that keep padded batches, which is said. false: always padded."""
    packing: bool = False
    """Fill bins of data.cutoff_len tokens with whole rows. A row still sees only itself; a bin counts as one row of
    per_device_train_batch_size, so micro-batches are even and steps fewer. Needs padding_free."""
    train_on_inputs: bool = False
    """true: the question is trained on as well as the answer."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first rows of data.train."""
    skip_rows: list[Annotated[int, Field(ge=0)]] = []
    """Rows of data.train that are left out (0-based); the order of the others stays."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Rows that cannot be used: error names them and stops, skip leaves them out and says how many."""
    cache: bool = True
    """Keep tokenized rows under ~/.cache/lora-train (or $XDG_CACHE_HOME), so that the next start need not tokenize."""


class TrainingSection(Section):
    output_dir: str = Field(default="trainer_output", min_length=1)
    """The run folder. If it already holds a run, the new one goes to <output_dir>-2."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows in one micro-batch of one device; with data.packing bins of rows."""
    per_device_eval_batch_size: int = Field(default=8, ge=1)
    """Rows in one evaluation batch of one device."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches in one optimizer step. The loss is normalised over all of them: 4x1 equals 1x4."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after so many optimizer steps, whatever num_train_epochs says. -1: not set."""
    max_hours: float | None = Field(default=None, gt=0)
    """Write a checkpoint and exit 0 before this many hours have passed (Colab and other session limits)."""
    learning_rate: float = Field(default=5e-5, ge=0)
    """Peak learning rate."""
    lr_scheduler_type: Literal[
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "cosine_warmup_with_min_lr",
        "warmup_stable_decay",
        "greedy",
    ] = "linear"
    """Schedule of the learning rate over all steps (transformers' own). reduce_lr_on_plateau and greedy follow
    metric_for_best_model at every evaluation."""
    lr_scheduler_kwargs: dict[str, Any] = {}
    """More arguments of the schedule, such as min_lr_rate or num_decay_steps."""
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """Steps of linear warm-up, below 1 a share of all steps; overrides warmup_ratio."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of all steps spent in warm-up."""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "sgd",
        "adafactor",
    ] = "adamw_torch_fused"
    """Optimizer. All but adamw_torch_fused and sgd make the host wait for the device in every step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices (not of biases and norms)."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's second moment."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Adam's epsilon."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm. 0: no clipping."""
    fp16: bool = False
    """Compute in float16 with loss scaling. Norms, softmax and loss stay in float32."""
    bf16: bool = False
    """Compute in bfloat16."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    group_by_length: bool = False
    """Put rows of similar length in one step: micro-batches are even, and less is padded where they are padded; a
    saw-tooth in the loss."""
    logging_strategy: Strategy = "steps"
    """When to print a line and to feed the trackers: no, steps or epoch. metrics.jsonl has every step anyway."""
    logging_steps: Interval = 500
    """Steps between those lines, or below 1 a share of all steps."""
    logging_first_step: bool = False
    """Log the first step as well."""
    eval_strategy: Strategy = "no"
    """When to evaluate: no, steps or epoch."""
    eval_steps: Interval | None = None
    """Steps between evaluations, or below 1 a share of all steps. null: logging_steps."""
    save_strategy: SaveStrategy = "steps"
    """When to write a checkpoint: no, steps, epoch, or best: when an evaluation beats those before."""
    save_steps: Interval = 500
    """Steps between checkpoints, or below 1 a share of all steps."""
    save_total_limit: int | None = Field(default=None, ge=1)
    """Keep only so many checkpoints; the best one stays besides where load_best_model_at_end is on."""
    save_safetensors: Literal[True] = True
    """Checkpoints are safetensors; there is no other format."""
    load_best_model_at_end: bool = False
    """The final adapter is the one of the best evaluation, not of the last step."""
    metric_for_best_model: Literal["loss", "eval_loss", "token_accuracy", "eval_token_accuracy"] = "loss"
    """What an evaluation is judged by."""
    greater_is_better: bool | None = None
    """Whether more of it is better. null: true unless the metric is a loss."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row that were no better than the best."""
    resume_from_checkpoint: bool | str | None = None
    """What --resume says: true for the newest checkpoint of output_dir, or a folder."""
    ignore_data_skip: bool = False
    """A resumed run begins its rows from the first again instead of where it stood."""
    on_write_error: Literal["continue", "stop"] = "continue"
    """When the disk refuses a checkpoint or the log: go on without, or stop with exit code 1."""
    report_to: str | list[str] = "none"
    """Trackers: none, all that are installed, or names: tensorboard, wandb, mlflow, comet_ml, trackio, ..."""
    run_name: str | None = None
    """Name of the run in trackers. null: that of output_dir."""
    push_to_hub: bool = False
    """Upload the final adapter to the hub."""
    hub_model_id: str | None = None
    """Repository it goes to. null: the name of output_dir, under your account."""
    seed: int = Field(default=42, ge=0)
    """Seed of the adapter's initial weights and of dropout."""
    data_seed: int | None = Field(default=None, ge=0)
    """Seed of the data order. null: seed."""


class PrecisionSection(Section):
    loss_scale: Literal["dynamic", "auto"] | Annotated[float, Field(gt=0)] = "dynamic"
    """fp16 loss scale: dynamic, auto (dynamic, from the scale that suits the first batch), or a fixed number."""
    min_loss_scale: float = Field(default=1.0, gt=0)
    """Floor of the dynamic loss scale."""
    on_collapse: Literal["heal", "rollback", "stop"] = "heal"
    """heal: go on from the last healthy state with the cheapest remedy that was shown to work on the very step.
    rollback: go on from there without the rows of that step. stop: save everything and exit 3."""
    max_heals: int = Field(default=3, ge=0)
    """How often heal and rollback go on before the run stops after all."""
    fp32_modules: list[str] = []
    """Modules that compute in float32, with the residual after them: names as in the base model, or patterns."""


class InstrumentSection(Section):
    enabled: bool = True
    """Record statistics of every LoRA layer at every step. Losses and weights do not depend on it."""
    sites: Literal["all"] | list[str] = "all"
    """Which sites to keep: all, or shell patterns over <module>:<tensor>; ! excludes, the last match decides."""
    histogram_every: int = Field(default=100, ge=0)
    """Count binary exponents every so many steps. 0: never."""
    probe_every: int = Field(default=100, ge=0)
    """Look at the outputs of the modules without LoRA every so many steps, on one micro-batch. 0: never."""


class Config(Section):
    """One training run."""

    model: ModelSection
    quantization: QuantizationSection = QuantizationSection()
    lora: LoraSection = LoraSection()
    data: DataSection
    training: TrainingSection = TrainingSection()
    precision: PrecisionSection = PrecisionSection()
    instrument: InstrumentSection = InstrumentSection()

    @property
    def compute_dtype(self) -> str:
        """Dtype of the matrix products: "float16", "bfloat16" or "float32"."""
        return "float16" if self.training.fp16 else "bfloat16" if self.training.bf16 else "float32"

    @property
    def storage_dtype(self) -> str:
        """Dtype of the frozen weights that are not quantized."""
        return self.compute_dtype if self.model.dtype == "auto" else self.model.dtype


def sections() -> dict[str, type[Section]]:
    """Section name -> its schema."""
    return {name: cast("type[Section]", field.annotation) for name, field in Config.model_fields.items()}


def describe() -> str:
    """Every key with its default and its help text, for --help."""
    lines = []
    for name, section in sections().items():
        lines.append(f"\n{name}:")
        for key, field in section.model_fields.items():
            default = "required" if field.is_required() else f"default {_yaml_word(field.default)}"
            lines.append(f"  {key:<28} {field.description} ({default})")
    return "\n".join(lines)


def _yaml_word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)
