"""Tables, exports and states that people hold, small and written by hand, each with what is read from it."""

# ruff: noqa: E501
from __future__ import annotations

import json

from .consoles import Shape

SHAPES: dict[str, Shape] = {}

SHAPES["colab_tabs"] = (
    "overfit.txt",
    """ [100/100 12:34, Epoch 1/1]
Step\tTraining Loss\tValidation Loss
10\t2.130000\t2.100000
20\t1.890000\t1.900000
100\t1.000000\t2.050000
""",
    {
        "step": [10, 20, 100],
        "loss": [2.13, 1.89, 1.0],
        "evals": [(10, 2.1), (20, 1.9), (100, 2.05)],
        "numbered": True,
        "planned": 100,
        "finished": True,
        "last_step": 100,
    },
)
SHAPES["colab_spaces_collapsed"] = (
    "zero.txt",
    "Step    Training Loss\n1    2.134500\n2    0.000000\n3    0.000000\n",
    {"step": [1, 2, 3], "loss": [2.1345, 0, 0], "evals": [], "coarse": 1},
)
SHAPES["forum_single_spaces"] = (
    "forum.txt",
    "It goes like this:\nStep Training Loss Validation Loss Accuracy\n500 No log 0.690000 0.5120\n1000 0.512300 0.450000 0.8000\n"
    "1500 0.512300 0.440000 0.8100\n2000 0.312400 0.430000 0.8200\nAny ideas?\n",
    {
        "step": [1000, 2000],
        "loss": [0.5123, 0.3124],
        "evals": [(500, 0.69), (1000, 0.45), (1500, 0.44), (2000, 0.43)],
        "eval_columns": {"eval_accuracy": [0.512, 0.8, 0.81, 0.82]},
        "task": "seq_cls",
    },
)
SHAPES["jupyter_html"] = (
    "cell.html",
    """<div>
  <progress value='150' max='300' style='width:300px; height:20px;'></progress>
  [150/300 10:00 &lt; 10:08, 0.25 it/s, Epoch 1.50/3]
</div>
<table border="1" class="dataframe">
  <thead>
 <tr style="text-align: left;">
      <th>Step</th>
      <th>Training Loss</th>
      <th>Validation Loss</th>
      <th>Matthews Correlation</th>
    </tr>
  </thead>
  <tbody>
    <tr>
      <td>50</td>
      <td>0.600000</td>
      <td>0.610000</td>
      <td>0.400000</td>
    </tr>
    <tr>
      <td>100</td>
      <td>0.500000</td>
      <td>nan</td>
      <td>0.500000</td>
    </tr>
  </tbody>
</table><p>
""",
    {
        "step": [50, 100],
        "loss": [0.6, 0.5],
        "evals": [(50, 0.61), (100, None)],
        "nan_evals": (100,),
        "eval_columns": {"eval_matthews_correlation": [0.4, 0.5]},
        "planned": 300,
        "last_step": 150,
        "finished": False,
        "progress": [(150, 600, 608)],
    },
)
SHAPES["one_cell_a_line"] = (
    "copied.txt",
    "Step\nTraining Loss\n\n10\n2.130000\n\n20\n1.890000\n\n30\n1.700000\n",
    {"step": [10, 20, 30], "loss": [2.13, 1.89, 1.7]},
)
SHAPES["epoch_table"] = (
    "epochs.txt",
    """[1500/1500 30:00, Epoch 3/3]
Epoch\tTraining Loss\tValidation Loss\tAccuracy
1\tNo log\t0.310000\t0.900000
2\t0.250000\t0.290000\t0.910000
3\t0.150000\t0.320000\t0.905000
""",
    {
        "step": [1000, 1500],
        "numbered": True,
        "evals": [(500, 0.31), (1000, 0.29), (1500, 0.32)],
        "finished": True,
        "eval_columns": {"eval_accuracy": [0.9, 0.91, 0.905]},
    },
)
SHAPES["epoch_table_alone"] = (
    "epochs.txt",
    "Epoch\tTraining Loss\tValidation Loss\n1\t0.450000\t0.310000\n2\t0.250000\t0.290000\n",
    {"step": [1, 2], "numbered": False, "evals": [(1, 0.31), (2, 0.29)], "columns": {"epoch": [1, 2]}},
)
SHAPES["model_card"] = (
    "README.md",
    """### Training results

| Training Loss | Epoch | Step | Validation Loss | Accuracy | F1     |
|:-------------:|:-----:|:----:|:---------------:|:--------:|:------:|
| No log        | 1.0   | 250  | 0.3301          | 0.904    | 0.9008 |
| 0.4012        | 2.0   | 500  | 0.2201          | 0.924    | 0.9238 |

### Framework versions

- Transformers 4.40.0
""",
    {
        "step": [500],
        "loss": [0.4012],
        "evals": [(250, 0.3301), (500, 0.2201)],
        "eval_columns": {"eval_accuracy": [0.904, 0.924], "eval_f1": [0.9008, 0.9238]},
        "columns": {"epoch": [2.0]},
    },
)
SHAPES["unsloth_grpo_table"] = (
    "grpo.txt",
    """==((====))==  Unsloth - 2x faster free finetuning | Num GPUs used = 1
Step\tTraining Loss\treward\treward_std\tcompletions / mean_length\tkl\trewards / correctness / mean
1\t0.000000\t0.125000\t0.353553\t200.500000\t0.000000\t0.000000
2\t0.000000\t0.250000\t0.250000\t180.000000\t0.000100\t0.125000
""",
    {
        "step": [1, 2],
        "loss": [0, 0],
        "task": "grpo",
        "trainer": "unsloth",
        "columns": {"reward": [0.125, 0.25], "completions/mean_length": [200.5, 180], "kl": [0, 0.0001]},
    },
)
SHAPES["printed_frame"] = (
    "frame.txt",
    """     loss  grad_norm  learning_rate  epoch  step
0  1.9341       0.41       0.000100   0.10    10
1  1.8120       0.39       0.000090   0.20    20
""",
    {"step": [10, 20], "loss": [1.9341, 1.812], "columns": {"grad_norm": [0.41, 0.39]}},
)
SHAPES["notebook"] = (
    "train.ipynb",
    json.dumps(
        {
            "cells": [
                {"cell_type": "markdown", "source": ["Step Training Loss\n", "1 9.0\n"]},
                {
                    "cell_type": "code",
                    "source": ["trainer.train()"],
                    "outputs": [
                        {"output_type": "stream", "text": ["==((====))==  Unsloth: Fast Llama patching\n"]},
                        {
                            "output_type": "display_data",
                            "data": {
                                "text/html": [
                                    "<table><thead><tr><th>Step</th><th>Training Loss</th></tr></thead>",
                                    "<tbody><tr><td>1</td><td>1.500000</td></tr>",
                                    "<tr><td>2</td><td>1.250000</td></tr></tbody></table>",
                                ],
                                "text/plain": ["<IPython.core.display.HTML object>"],
                            },
                        },
                    ],
                },
            ],
            "nbformat": 4,
        }
    ),
    {"step": [1, 2], "loss": [1.5, 1.25], "trainer": "unsloth"},
)
SHAPES["wandb_one_panel"] = (
    "wandb_export.csv",
    '"Step","fluent-sun-1 - train/loss","fluent-sun-1 - train/loss__MIN","fluent-sun-1 - train/loss__MAX"\n'
    '"10","1.9","1.8","2.0"\n"20","1.7","1.6","1.8"\n',
    {"step": [10, 20], "loss": [1.9, 1.7], "numbered": True},
)
SHAPES["wandb_global_step"] = (
    "export.csv",
    '"train/global_step","run-a - train/loss","run-a - eval/loss","run-a - eval/accuracy","run-a - _step"\n'
    '"50","0.7","","","0"\n"100","0.6","","","1"\n"100","","0.65","0.7","2"\n',
    {
        "step": [50, 100],
        "loss": [0.7, 0.6],
        "evals": [(100, 0.65)],
        "eval_columns": {"eval_accuracy": [0.7]},
        "task": "seq_cls",
    },
)
SHAPES["wandb_counts_calls_of_log"] = (
    "export.csv",
    '"Step","run-a - train/loss"\n"0","0.7"\n"1","0.6"\n"2","0.5"\n',
    {"step": [1, 2, 3], "loss": [0.7, 0.6, 0.5], "numbered": False},
)
SHAPES["wandb_history_of_the_api"] = (
    "history.csv",
    "_step,_runtime,train/loss,train/learning_rate,train/global_step,train/epoch,eval/loss\n"
    "0,10.5,1.9,0.0001,10,0.1,\n1,20.5,1.8,0.00009,20,0.2,\n2,25.0,,,20,0.2,1.85\n",
    {"step": [10, 20], "loss": [1.9, 1.8], "evals": [(20, 1.85)], "columns": {"learning_rate": [1e-4, 9e-5]}},
)
SHAPES["tensorboard_csv"] = (
    "run-.-tag-train_loss.csv",
    "Wall time,Step,Value\n1700000000.1,10,1.9\n1700000010.1,20,1.7\n1700000020.1,30,NaN\n",
    {"step": [10, 20, 30], "loss": [1.9, 1.7, None]},
)
SHAPES["plain_csv"] = (
    "log.csv",
    "epoch;step;train_loss;val_loss;lr\n0;100;1.5;;0.001\n0;200;1.25;1.5;0.0005\n",
    {"step": [100, 200], "loss": [1.5, 1.25], "evals": [(200, 1.5)], "columns": {"learning_rate": [0.001, 0.0005]}},
)
SHAPES["keras_csv"] = (
    "training.csv",
    "epoch,accuracy,loss,val_accuracy,val_loss\n0,0.5,0.69,0.6,0.65\n1,0.7,0.55,0.65,0.6\n",
    {"step": [1, 2], "numbered": False, "loss": [0.69, 0.55], "evals": [(1, 0.65), (2, 0.6)], "task": "seq_cls"},
)
SHAPES["json_list"] = (
    "log_history.json",
    json.dumps(
        [{"loss": 1.5, "step": 5, "epoch": 0.5}, {"eval_loss": 1.4, "step": 5}, {"loss": 1.25, "step": 10}], indent=2
    ),
    {"step": [5, 10], "loss": [1.5, 1.25], "evals": [(5, 1.4)]},
)
SHAPES["json_columns"] = (
    "history.json",
    '{"loss": [0.7, 0.6], "val_loss": [0.8, 0.75], "lr": [0.001, 0.001]}',
    {"step": [1, 2], "numbered": False, "evals": [(1, 0.8), (2, 0.75)]},
)
SHAPES["state_of_transformers_4_0"] = (
    "trainer_state.json",
    """{
  "best_metric": null, "best_model_checkpoint": null, "epoch": 1.0, "global_step": 1000,
  "is_hyper_param_search": false, "is_local_process_zero": true, "is_world_process_zero": true,
  "log_history": [
    {"epoch": 0.5, "learning_rate": 2.5e-05, "loss": 0.5, "step": 500, "total_flos": 123456789},
    {"epoch": 1.0, "learning_rate": 0.0, "loss": 0.25, "step": 1000, "total_flos": 246913578},
    {"epoch": 1.0, "step": 1000, "total_flos": 246913578}
  ],
  "max_steps": 1000, "num_train_epochs": 1, "total_flos": 246913578, "trial_name": null, "trial_params": null
}""",
    {
        "kind": "trainer",
        "step": [500, 1000],
        "finished": True,
        "planned": 1000,
        "coarse": 500,
        "config": {"training": {"num_train_epochs": 1}},
    },
)
SHAPES["state_whose_last_step_is_not_logged"] = (
    "trainer_state.json",
    """{"global_step": 156, "max_steps": 200, "epoch": 0.78, "log_history": [
    {"loss": "1.9", "step": 10}, {"loss": 1.8, "grad_norm": NaN, "step": 20}, {"eval_loss": NaN, "step": 20},
    {"loss": Infinity, "step": 150}], "logging_steps": 10.0, "train_batch_size": 8}""",
    {
        "step": [10, 20, 150],
        "loss": [1.9, 1.8, float("inf")],
        "last_step": 156,
        "finished": False,
        "nan_evals": (20,),
        "config": {"training": {"logging_steps": 10.0, "per_device_train_batch_size": 8}},
    },
)
SHAPES["state_of_early_stopping"] = (
    "trainer_state.json",
    json.dumps(
        {
            "best_global_step": 20,
            "best_metric": 0.9,
            "global_step": 40,
            "max_steps": 100,
            "log_history": [
                {"loss": 0.5, "step": 20},
                {"eval_loss": 0.4, "eval_accuracy": 0.9, "step": 20},
                {"loss": 0.4, "step": 40},
                {"eval_loss": 0.3, "eval_accuracy": 0.8, "step": 40},
            ],
            "stateful_callbacks": {
                "EarlyStoppingCallback": {
                    "args": {"early_stopping_patience": 1, "early_stopping_threshold": 0.0},
                    "attributes": {"early_stopping_patience_counter": 1},
                },
                "TrainerControl": {"args": {"should_training_stop": False}, "attributes": {}},
            },
        }
    ),
    {
        "finished": True,
        "stopped_early": True,
        "planned": 100,
        "last_step": 40,
        "best": (20, 0.9),
        "config": {"training": {"metric_for_best_model": "accuracy"}},
        "task": "seq_cls",
    },
)
SHAPES["state_evaluated_again_with_the_best_weights"] = (
    "trainer_state.json",
    json.dumps(
        {
            "global_step": 20,
            "max_steps": 20,
            "log_history": [
                {"loss": 0.5, "step": 10},
                {"eval_loss": 0.4, "eval_runtime": 1.0, "step": 10},
                {"loss": 0.4, "step": 20},
                {"eval_loss": 0.6, "eval_runtime": 1.0, "step": 20},
                {"train_runtime": 9.0, "train_loss": 0.45, "step": 20},
                {"eval_loss": 0.4, "eval_runtime": 1.1, "step": 20},
            ],
        }
    ),
    {"evals": [(10, 0.4), (20, 0.6)], "summary": {"train_runtime": 9.0, "train_loss": 0.45}},
)
SHAPES["state_with_two_evaluation_sets"] = (
    "trainer_state.json",
    json.dumps(
        {
            "log_history": [
                {"loss": 0.5, "step": 10},
                {"eval_easy_loss": 0.25, "eval_easy_runtime": 1.0, "step": 10},
                {"eval_hard_loss": 0.75, "eval_hard_runtime": 1.0, "step": 10},
            ]
        }
    ),
    {"evals": [(10, None)], "eval_columns": {"eval_easy_loss": [0.25], "eval_hard_loss": [0.75]}, "nan_evals": ()},
)
SHAPES["state_cut_off"] = (
    "trainer_state.json",
    '{\n "global_step": 20,\n "log_history": [\n  {"loss": 0.5, "step": 10},\n  {"loss": 0.4, "step": 20},\n  {"loss": 0.',
    {"kind": "trainer", "step": [10, 20], "loss": [0.5, 0.4]},
)
SHAPES["fastai"] = (
    "fastai.txt",
    """epoch     train_loss  valid_loss  accuracy  time    
0         0.520000    0.400000    0.850000  00:30     
1         0.350000    0.380000    0.870000  00:30     
""",
    {"loss": [0.52, 0.35], "evals": [(1, 0.4), (2, 0.38)], "numbered": False},
)
SHAPES["thousands_and_metrics_of_text"] = (
    "colab.txt",
    "Step\tTraining Loss\tValidation Loss\tRouge1\tGen Len\n500\tNo log\t1.9\t31.2\t19.8\n1,000\t1.5\t1.8\t32.2\t19.9\n",
    {
        "step": [1000],
        "evals": [(500, 1.9), (1000, 1.8)],
        "eval_columns": {"eval_gen_len": [19.8, 19.9]},
        "task_known": True,
    },
)
SHAPES["walls_of_a_terminal"] = (
    "rich.txt",
    """┏━━━━━━┳━━━━━━━━━━━━━━━┳━━━━━━━━━━━━━━━━━┓
┃ Step ┃ Training Loss ┃ Validation Loss ┃
┡━━━━━━╇━━━━━━━━━━━━━━━╇━━━━━━━━━━━━━━━━━┩
│ 10   │ 1.500000      │ 1.600000        │
│ 20   │ 1.400000      │ 1.500000        │
└──────┴───────────────┴─────────────────┘
""",
    {"step": [10, 20], "loss": [1.5, 1.4], "evals": [(10, 1.6), (20, 1.5)]},
)
