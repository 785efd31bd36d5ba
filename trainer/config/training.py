"""The section `training`: TrainingArguments' names with their meaning, and some keys of our own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from .sections import Section, label_name

# YAML 1.1 reads an unquoted `no` as false
_NoOrWord = BeforeValidator(lambda value: "no" if value is False else value)
Strategy = Annotated[Literal["no", "steps", "epoch"], _NoOrWord]
SaveStrategy = Annotated[Literal["no", "steps", "epoch", "best"], _NoOrWord]
# A whole number of steps, or below 1 a share of all steps, as in transformers.
Interval = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]

# Learning-rate schedules that follow the evaluations.
METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")


def _by_name(value: Any) -> Any:
    """Labels may be written as numbers."""
    return {label_name(name): weight for name, weight in value.items()} if isinstance(value, dict) else value


class TrainingSection(Section):
    """The run, under TrainingArguments' names and with their meaning.

    학습 방법. TrainingArguments의 이름과 뜻을 그대로 씁니다.
    """

    output_dir: str = Field(default="trainer_output", min_length=1)
    """The run folder. If it already holds a run, the new one goes to <output_dir>-2.

    실행 폴더. 이미 실행 결과가 있으면 새 실행은 <output_dir>-2에 저장합니다."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Rows in one micro-batch of one device; with data.packing bins of rows.

    장치 하나의 마이크로배치에 들어가는 행 수. data.packing이면 묶음 수입니다."""
    per_device_eval_batch_size: int = Field(default=8, ge=1)
    """Rows in one evaluation batch of one device.

    장치 하나의 평가 배치에 들어가는 행 수."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches in one optimizer step. The loss is normalised over all of them: 4x1 equals 1x4.

    옵티마이저 스텝 하나에 들어가는 마이크로배치 수. loss를 그 전체에 걸쳐 정규화하므로 4x1과 1x4가 같습니다."""
    num_train_epochs: float = Field(default=3.0, gt=0)
    """Passes over the training rows.

    학습할 행을 모두 보는 횟수."""
    max_steps: int = Field(default=-1, ge=-1)
    """Stop after so many optimizer steps, whatever num_train_epochs says. -1: not set.

    num_train_epochs와 상관없이 옵티마이저 스텝을 이만큼 하고 끝냅니다. -1이면 쓰지 않습니다."""
    max_hours: float | None = Field(default=None, gt=0)
    """Write a checkpoint and exit 0 before this many hours have passed (Colab and other session limits).

    시작한 지 이 시간이 되기 전에 체크포인트를 쓰고 종료 코드 0으로 끝냅니다(Colab처럼 세션 시간이 정해진 곳)."""
    learning_rate: float = Field(default=5e-5, ge=0)
    """Peak learning rate.

    learning rate의 최댓값."""
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
    metric_for_best_model at every evaluation.

    전체 스텝에 걸친 learning rate 스케줄(transformers의 것). reduce_lr_on_plateau와 greedy는 평가할 때마다
    metric_for_best_model을 따릅니다."""
    lr_scheduler_kwargs: dict[str, Any] = Field(default={})
    """More arguments of the schedule, such as min_lr_rate or num_decay_steps.

    스케줄에 더 넘길 인자. 예: min_lr_rate, num_decay_steps."""
    warmup_steps: Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """Steps of linear warm-up, below 1 a share of all steps; overrides warmup_ratio.

    선형 워밍업의 스텝 수. 1보다 작으면 전체 스텝에 대한 비율입니다. warmup_ratio보다 우선합니다."""
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    """Share of all steps spent in warm-up.

    전체 스텝 가운데 워밍업이 차지하는 비율."""
    optim: Literal[
        "adamw_torch_fused",
        "adamw_torch",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "sgd",
        "adafactor",
    ] = "adamw_torch_fused"
    """Optimizer. All but adamw_torch_fused and sgd make the host wait for the device in every step.

    옵티마이저. adamw_torch_fused와 sgd가 아니면 스텝마다 호스트가 장치를 기다립니다."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices (not of biases and norms).

    행렬에 적용하는 decoupled weight decay. 편향과 norm에는 적용하지 않습니다."""
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of Adam's first moment.

    Adam 1차 모멘트의 감쇠율."""
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of Adam's second moment.

    Adam 2차 모멘트의 감쇠율."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """Adam's epsilon.

    Adam의 epsilon."""
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm. 0: no clipping.

    그래디언트의 norm이 이보다 크면 이 값으로 줄입니다. 0이면 클리핑하지 않습니다."""
    fp16: bool = False
    """Compute in float16 with loss scaling. Norms, softmax and loss stay in float32.

    loss scaling을 하며 float16으로 계산합니다. norm, softmax, loss는 float32로 계산합니다."""
    bf16: bool = False
    """Compute in bfloat16: on a GPU from Ampere on (RTX 30, A100); a T4 or V100 takes fp16.

    bfloat16으로 계산합니다. GPU는 Ampere 이상(RTX 30, A100)이어야 하고, T4나 V100에서는 fp16을 씁니다."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time.

    역전파할 때 활성값을 다시 계산합니다. 메모리를 덜 쓰는 대신 시간이 3분의 1쯤 더 걸립니다."""
    group_by_length: bool = False
    """Put rows of similar length in one step: micro-batches are even, and less is padded where they are padded; a
    saw-tooth in the loss.

    길이가 비슷한 행을 한 스텝에 모읍니다. 마이크로배치가 고르고, 패딩하는 배치라면 패딩도 줄어듭니다. loss는 톱니
    모양이 됩니다."""
    logging_strategy: Strategy = "steps"
    """When to print a line and to feed the trackers: no, steps or epoch. metrics.jsonl has every step anyway.

    언제 한 줄을 찍고 트래커에 보낼지: no, steps, epoch. metrics.jsonl에는 이와 상관없이 모든 스텝이 있습니다."""
    logging_steps: Interval = 500
    """Steps between lines of the log, or below 1 a share of all steps.

    로그 줄 사이의 스텝 수(1보다 작으면 전체 스텝에 대한 비율)."""
    logging_first_step: bool = False
    """Log the first step as well.

    첫 스텝도 찍습니다."""
    eval_strategy: Strategy = "no"
    """When to evaluate: no, steps or epoch.

    언제 평가할지: no, steps, epoch."""
    eval_steps: Interval | None = None
    """Steps between evaluations, or below 1 a share of all steps. null: logging_steps.

    평가 사이의 스텝 수(1보다 작으면 전체 스텝에 대한 비율). null이면 logging_steps를 씁니다."""
    save_strategy: SaveStrategy = "steps"
    """When to write a checkpoint: no, steps, epoch, or best: when an evaluation beats those before.

    언제 체크포인트를 쓸지: no, steps, epoch, best. best는 평가 결과가 앞선 것보다 좋을 때입니다."""
    save_steps: Interval = 500
    """Steps between checkpoints, or below 1 a share of all steps.

    체크포인트 사이의 스텝 수(1보다 작으면 전체 스텝에 대한 비율)."""
    save_total_limit: int | None = Field(default=None, ge=1)
    """Keep only so many checkpoints; the best one stays besides where load_best_model_at_end is on.

    남겨 둘 체크포인트 수. load_best_model_at_end가 켜져 있으면 가장 좋은 것은 따로 남깁니다."""
    keep_best: int | None = Field(default=None, ge=1)
    """Keep the checkpoints of so many best evaluations, whatever save_total_limit drops; one is written whenever an
    evaluation is among them. null: that of the best one alone, where load_best_model_at_end is on.

    가장 좋았던 평가를 이 수만큼 골라 그 체크포인트를 save_total_limit와 상관없이 남깁니다. 평가가 그 안에 들 때마다
    저장합니다. null이면 load_best_model_at_end가 켜져 있을 때 가장 좋은 것 하나만 남깁니다."""
    save_safetensors: Literal[True] = True
    """Checkpoints are safetensors; there is no other format.

    체크포인트는 safetensors로 저장합니다. 다른 형식은 없습니다."""
    load_best_model_at_end: bool = False
    """The final adapter is the one of the best evaluation, not of the last step.

    마지막 스텝이 아니라 평가가 가장 좋았던 때의 어댑터를 최종 어댑터로 남깁니다."""
    metric_for_best_model: str = "loss"
    """What an evaluation is judged by, with or without eval_: loss, token_accuracy; of a classifier accuracy, f1,
    f1_micro, f1_weighted, precision, recall, mcc or auroc; of numbers mse, mae, pearson or spearman; or what
    compute_metrics gives.

    평가를 서로 비교하는 기준(eval_은 붙여도 됩니다). loss, token_accuracy; 분류는 accuracy, f1, f1_micro, f1_weighted,
    precision, recall, mcc, auroc; 수를 예측할 때는 mse, mae, pearson, spearman; 또는 compute_metrics가 돌려주는 것."""
    greater_is_better: bool | None = None
    """Whether more of it is better. null: true unless the metric is a loss or an error (mse, mae).

    그 값이 클수록 좋은지. null이면 loss나 오차(mse, mae)일 때만 false입니다."""
    compute_metrics: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")] | None = None
    """Classifiers: a function of your own as module:function, called with the logits and the labels of all evaluation
    rows as transformers calls it (EvalPrediction); what it gives is recorded as eval_<name>.

    분류: 직접 만든 평가 함수를 module:function으로 적습니다. transformers처럼 모든 평가 행의 로짓과
    레이블(EvalPrediction)로 부르고, 돌려준 값을 eval_<이름>으로 기록합니다."""
    class_weights: Annotated[Literal["balanced"] | dict[str, float] | None, BeforeValidator(_by_name)] = None
    """Classifiers: how much a label counts in the loss, {name: weight}; balanced: rows / (labels x rows of the label),
    for several labels a row the ratio of rows without to rows with it.

    분류: loss에서 레이블마다 매길 가중치 {이름: 값}. balanced면 전체 행 수 / (레이블 수 x 그 레이블의 행 수), 한 행에
    레이블이 여럿이면 그 레이블이 없는 행과 있는 행의 비율입니다."""
    early_stopping_patience: int | None = Field(default=None, ge=1)
    """Stop after so many evaluations in a row that were no better than the best.

    평가가 이만큼 연속으로 가장 좋았던 것보다 나아지지 않으면 멈춥니다."""
    resume_from_checkpoint: bool | str | None = None
    """What --resume says: true for the newest checkpoint of output_dir, or a folder.

    --resume과 같은 뜻. true면 output_dir의 최신 체크포인트이고, 폴더를 적어도 됩니다."""
    ignore_data_skip: bool = False
    """A resumed run begins its rows from the first again instead of where it stood.

    이어서 학습할 때 멈춘 곳이 아니라 첫 행부터 다시 봅니다."""
    on_write_error: Literal["continue", "stop"] = "continue"
    """When the disk refuses a checkpoint or the log: go on without, or stop with exit code 1.

    디스크에 체크포인트나 기록을 쓸 수 없을 때. continue는 쓰지 않은 채 계속하고, stop은 종료 코드 1로 멈춥니다."""
    report_to: str | list[str] = "none"
    """Trackers: none, all that are installed, or names: tensorboard, wandb, mlflow, comet_ml, trackio, ...

    트래커. none, 설치된 것을 모두 쓰는 all, 또는 이름: tensorboard, wandb, mlflow, comet_ml, trackio, ..."""
    run_name: str | None = None
    """Name of the run in trackers. null: that of output_dir.

    트래커에 표시할 실행 이름. null이면 output_dir의 이름입니다."""
    push_to_hub: bool = False
    """Upload the final adapter to the hub.

    최종 어댑터를 허브에 올립니다."""
    hub_model_id: str | None = None
    """Repository it goes to. null: the name of output_dir, under your account.

    어댑터를 올릴 저장소. null이면 자기 계정 아래 output_dir의 이름으로 올립니다."""
    seed: int = Field(default=42, ge=0)
    """Seed of the adapter's initial weights and of dropout.

    어댑터 초깃값과 드롭아웃의 시드."""
    data_seed: int | None = Field(default=None, ge=0)
    """Seed of the data order. null: seed.

    데이터 순서의 시드. null이면 seed를 씁니다."""
