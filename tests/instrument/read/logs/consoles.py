"""Consoles that people hold, small and written by hand, each with what is read from it.

A shape is (name of the file, text or bytes, what is expected): step and loss of the rows, and any attribute of a
History; `evals` are pairs of step and eval_loss, `columns` the values of further columns.
"""

# ruff: noqa: E501
from __future__ import annotations

from typing import Any

Shape = tuple[str, str | bytes, dict[str, Any]]

SHAPES: dict[str, Shape] = {}

SHAPES["tqdm_before_each_line"] = (
    "train.log",
    """
  0%|          | 0/5000 [00:00<?, ?it/s]
  0%|          | 10/5000 [00:12<1:39:48,  1.20s/it]
                                                   
{'loss': 1.9341, 'grad_norm': 0.41, 'learning_rate': 9.98e-05, 'epoch': 0.0}
  0%|          | 10/5000 [00:12<1:39:48,  1.20s/it]
  0%|          | 19/5000 [00:23<1:39:38,  1.20s/it]
  0%|          | 20/5000 [00:24<1:39:36,  1.20s/it]{'loss': 1.8120, 'grad_norm': 0.39, 'learning_rate': 9.96e-05}
  1%|          | 30/5000 [00:36<1:39:24,  1.20s/it]
{'loss': 1.7000, 'grad_norm': nan, 'learning_rate': 9.96e-05, 'epoch': 0.01}
""",
    {
        "step": [10, 20, 30],
        "loss": [1.9341, 1.812, 1.7],
        "numbered": True,
        "coarse": 10,
        "planned": 5000,
        "last_step": 30,
        "finished": False,
        "trainer": "transformers",
        "progress": [(0, 0, None), (10, 12, 5988), (19, 23, 5978), (20, 24, 5976), (30, 36, 5964)],
    },
)
SHAPES["pasted_from_step_1010"] = (
    "koalpaca.txt",
    "\n".join(
        f"{{'loss': {loss}, 'learning_rate': 8e-05, 'epoch': 0.2}}\n 20%|██        | {n}/5000 [20:12<1:19:48,  1.20s/it]"
        for n, loss in ((1000, 1.9), (1010, 0.0), (1020, 0.0), (1030, 0.0))
    ),
    {"step": [1000, 1010, 1020, 1030], "loss": [1.9, 0, 0, 0], "numbered": True, "last_step": 1030, "planned": 5000},
)
SHAPES["evaluation_bars_between"] = (
    "run.out",
    """
 50%|█████     | 5/10 [00:05<00:05,  1.00it/s]{'loss': 2.0, 'learning_rate': 1e-4, 'epoch': 0.5}
  0%|          | 0/3 [00:00<?, ?it/s]
 67%|██████▋   | 2/3 [00:00<00:00,  9.00it/s]
100%|██████████| 3/3 [00:00<00:00,  9.00it/s]
{'eval_loss': 1.9, 'eval_runtime': 0.4, 'eval_samples_per_second': 60.0, 'epoch': 0.5}
100%|██████████| 10/10 [00:10<00:00,  1.00it/s]{'loss': 1.5, 'learning_rate': 5e-5, 'epoch': 1.0}
  0%|          | 0/3 [00:00<?, ?it/s]
{'eval_loss': 1.6, 'eval_runtime': 0.4, 'eval_samples_per_second': 60.0, 'epoch': 1.0}
{'train_runtime': 10.9, 'train_samples_per_second': 3.7, 'train_steps_per_second': 0.92, 'train_loss': 1.75}
100%|██████████| 10/10 [00:10<00:00,  1.09s/it]
""",
    {
        "step": [5, 10],
        "loss": [2.0, 1.5],
        "evals": [(5, 1.9), (10, 1.6)],
        "planned": 10,
        "last_step": 10,
        "finished": True,
        "stopped_early": False,
        "summary": {
            "train_runtime": 10.9,
            "train_samples_per_second": 3.7,
            "train_steps_per_second": 0.92,
            "train_loss": 1.75,
        },
    },
)
SHAPES["early_stopping"] = (
    "console.txt",
    """
 20%|██        | 100/500 [01:00<04:00,  1.66it/s]{'loss': 1.0, 'learning_rate': 1e-4, 'epoch': 1.0}
{'eval_loss': 1.1, 'eval_runtime': 2.0, 'epoch': 1.0}
 40%|████      | 200/500 [02:00<03:00,  1.66it/s]{'loss': 0.8, 'learning_rate': 8e-5, 'epoch': 2.0}
{'eval_loss': 1.3, 'eval_runtime': 2.0, 'epoch': 2.0}
{'train_runtime': 121.0, 'train_samples_per_second': 33.0, 'train_steps_per_second': 4.13, 'train_loss': 0.9}
""",
    {
        "step": [100, 200],
        "evals": [(100, 1.1), (200, 1.3)],
        "planned": 500,
        "last_step": 200,
        "finished": True,
        "stopped_early": True,
    },
)
SHAPES["transformers_5_numbers_as_text"] = (
    "log.txt",
    """{'loss': '7.21', 'grad_norm': '0.6002', 'learning_rate': '0.006', 'epoch': '0.01667'}
{'loss': '7.394', 'grad_norm': 'nan', 'learning_rate': '0.0059', 'epoch': '0.03333'}
{'eval_loss': 'nan', 'eval_runtime': '1.2', 'epoch': '0.03333'}
""",
    {
        "step": [1, 2],
        "loss": [7.21, 7.394],
        "numbered": False,
        "planned": None,
        "nan_evals": (2,),
        "columns": {"epoch": [0.01667, 0.03333], "grad_norm": [0.6002, None]},
        "evals": [(2, None)],
    },
)
SHAPES["steps_from_epochs_and_the_last_line"] = (
    "train.log",
    """{'loss': 1.9, 'learning_rate': 9e-05, 'epoch': 0.32}
{'loss': 1.8, 'learning_rate': 6e-05, 'epoch': 0.64}
{'loss': 1.7, 'learning_rate': 3e-05, 'epoch': 0.96}
{'eval_loss': 1.75, 'epoch': 1.0}
{'train_runtime': 100.0, 'train_samples_per_second': 5.0, 'train_steps_per_second': 0.313, 'train_loss': 1.8, 'epoch': 1.0}
""",
    {"step": [10, 20, 30], "numbered": True, "coarse": 10, "finished": True, "evals": [(31, 1.75)]},
)
SHAPES["banner_tells_the_steps"] = (
    "stderr.log",
    """***** Running training *****
  Num examples = 1,000
  Num Epochs = 2
  Instantaneous batch size per device = 4
  Gradient Accumulation steps = 2
  Total optimization steps = 250
  Number of trainable parameters = 4,194,304
{'loss': 1.9, 'learning_rate': 9e-05, 'epoch': 0.4}
{'loss': 1.8, 'learning_rate': 6e-05, 'epoch': 0.8}
{'loss': 1.7, 'learning_rate': 3e-05, 'epoch': 1.2}
""",
    {
        "step": [50, 100, 150],
        "planned": 250,
        "last_step": 150,
        "config": {"training": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}},
    },
)
SHAPES["axolotl_memory"] = (
    "axolotl.log",
    """[2025-05-19 17:03:46,240] [INFO] [axolotl.train.train:123] [PID:99566] [RANK:0] Starting trainer...
{'loss': 0.4512, 'grad_norm': 2.81, 'learning_rate': 0.0002, 'memory/max_active (GiB)': 28.1, 'memory/max_allocated (GiB)': 28.1, 'memory/device_reserved (GiB)': 30.0, 'tokens_per_second_per_gpu': 812.5, 'epoch': 0.1}
  8%|▊         | 100/1200 [58:20<10:41:40, 35.00s/it]
{'loss': 0.4401, 'grad_norm': 6.02, 'learning_rate': 0.0002, 'memory/max_active (GiB)': 29.5, 'memory/max_allocated (GiB)': 29.5, 'memory/device_reserved (GiB)': 33.9, 'tokens_per_second_per_gpu': 790.0, 'epoch': 0.1}
  8%|▊         | 101/1200 [58:55<11:30:05, 35.00s/it]
{'eval_loss': 0.42, 'eval_runtime': 4027.65, 'eval_samples_per_second': 0.309, 'eval_steps_per_second': 0.154, 'epoch': 0.1}
""",
    {
        "step": [100, 101],
        "trainer": "axolotl",
        "task": "causal_lm",
        "task_known": True,
        "planned": 1200,
        "columns": {
            "memory_reserved_gib": [30.0, 33.9],
            "memory_allocated_gib": [28.1, 29.5],
            "tokens_per_second": [812.5, 790.0],
            "memory/max_active (GiB)": [28.1, 29.5],
        },
        "evals": [(101, 0.42)],
        "progress": [(100, 3500, 38500), (101, 3535, 41405)],
    },
)
SHAPES["axolotl_older_memory_keys"] = (
    "out.log",
    """{'loss': 1.2, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'ppl': 3.32, 'memory/max_mem_active(gib)': 10.5, 'memory/max_mem_allocated(gib)': 10.5, 'memory/device_mem_reserved(gib)': 12.25, 'epoch': 0.01}
{'loss': 1.1, 'grad_norm': 0.5, 'learning_rate': 2e-05, 'ppl': 3.0, 'memory/max_mem_active(gib)': 10.5, 'memory/max_mem_allocated(gib)': 10.5, 'memory/device_mem_reserved(gib)': 12.5, 'epoch': 0.02}
""",
    {
        "step": [1, 2],
        "numbered": False,
        "trainer": "axolotl",
        "columns": {"memory_reserved_gib": [12.25, 12.5], "ppl": [3.32, 3.0]},
    },
)
SHAPES["llamafactory_log"] = (
    "trainer_log.jsonl",
    """{"current_steps": 5, "total_steps": 82, "loss": 0.91, "lr": 5e-05, "epoch": 0.06, "percentage": 6.1, "elapsed_time": "0:03:10", "remaining_time": "0:48:40"}
{"current_steps": 10, "total_steps": 82, "loss": 0.85, "lr": 4.9e-05, "epoch": 0.12, "percentage": 12.2, "elapsed_time": "0:06:20", "remaining_time": "0:45:36", "throughput": 1500.5, "total_tokens": 570000}
{"current_steps": 10, "total_steps": 82, "eval_loss": 0.88, "epoch": 0.12, "percentage": 12.2, "elapsed_time": "0:07:00", "remaining_time": "0:50:24"}
{"current_steps": 12, "total_steps": 82, "epoch": 0.15, "percentage": 14.63, "elapsed_time": "0:08:00", "remaining_time": "0:46:40"}
""",
    {
        "step": [5, 10],
        "loss": [0.91, 0.85],
        "planned": 82,
        "last_step": 12,
        "finished": False,
        "trainer": "llamafactory",
        "task": "causal_lm",
        "columns": {"learning_rate": [5e-5, 4.9e-5], "tokens_per_second": [None, 1500.5]},
        "evals": [(10, 0.88)],
        "progress": [(5, 190, 2920), (10, 380, 2736), (12, 480, 2800)],
    },
)
SHAPES["llamafactory_log_of_2023"] = (
    "trainer_log.jsonl",
    """{"current_steps": 3230, "total_steps": 3235, "loss": 4.4598, "eval_loss": null, "predict_loss": null, "reward": null, "learning_rate": 2.9e-10, "epoch": 1.0, "percentage": 99.85, "elapsed_time": "5:16:20", "remaining_time": "0:00:29"}
{"current_steps": 3230, "total_steps": 3235, "loss": 4.4598, "eval_loss": null, "predict_loss": null, "reward": null, "learning_rate": 2.9e-10, "epoch": 1.0, "percentage": 99.85, "elapsed_time": "5:16:20", "remaining_time": "0:00:29"}
{"current_steps": 3235, "total_steps": 3235, "loss": null, "eval_loss": null, "predict_loss": null, "reward": null, "learning_rate": null, "epoch": 1.0, "percentage": 100.0, "elapsed_time": "5:16:48", "remaining_time": "0:00:00"}
""",
    {
        "step": [3230],
        "loss": [4.4598],
        "last_step": 3235,
        "planned": 3235,
        "finished": True,
        "nan_evals": (),
        "evals": [],
        "trainer": "llamafactory",
    },
)
SHAPES["llamafactory_console_prints_twice"] = (
    "console.log",
    "\n".join(
        f"{{'loss': {loss}, 'grad_norm': 1.5, 'learning_rate': 5e-05, 'epoch': {epoch}}}\n"
        f"[INFO|2025-01-01 10:00:00] llamafactory.train.callbacks:157 >> {{'loss': {loss}000, 'learning_rate': "
        f"5.0000e-05, 'epoch': {epoch}, 'throughput': 1200.5}}"
        for loss, epoch in ((1.5, 0.1), (1.4, 0.2), (1.3, 0.3), (1.2, 0.4))
    ),
    {
        "step": [1, 2, 3, 4],
        "loss": [1.5, 1.4, 1.3, 1.2],
        "numbered": False,
        "trainer": "llamafactory",
        "columns": {"grad_norm": [1.5] * 4, "tokens_per_second": [1200.5] * 4},
    },
)
SHAPES["two_processes_print_each_line"] = (
    "ddp.log",
    "".join(f"{{'loss': {x}, 'learning_rate': 1e-4, 'epoch': {x}}}\n" * 2 for x in (2.5, 2.4, 2.3))
    + "{'loss': 0.0, 'learning_rate': 1e-4, 'epoch': 2.3}\n" * 6,
    {"step": [1, 2, 3, 4, 5, 6], "loss": [2.5, 2.4, 2.3, 0, 0, 0], "numbered": False},
)
SHAPES["a_collapse_repeats_its_line_and_means_it"] = (
    "t4.log",
    "".join(f"{{'loss': {x}, 'learning_rate': {x / 1e4}, 'epoch': 0.01}}\n" for x in (2.5, 2.4, 2.3))
    + "{'loss': 0.0, 'learning_rate': 1e-4, 'epoch': 0.01}\n" * 4,
    {"loss": [2.5, 2.4, 2.3, 0, 0, 0, 0], "numbered": False},
)
SHAPES["ranks_are_named"] = (
    "torchrun.log",
    """[rank0]: {'loss': 1.5, 'grad_norm': 0.5, 'learning_rate': 1e-4, 'epoch': 0.1}
[rank1]: {'loss': 1.7, 'grad_norm': 0.5, 'learning_rate': 1e-4, 'epoch': 0.1}
[rank1]: {'loss': 1.6, 'grad_norm': 0.4, 'learning_rate': 9e-5, 'epoch': 0.2}
[rank0]: {'loss': 1.4, 'grad_norm': 0.4, 'learning_rate': 9e-5, 'epoch': 0.2}
""",
    {"loss": [1.5, 1.4]},
)
SHAPES["numpy_and_tensors"] = (
    "custom.log",
    """{'loss': np.float64(1.25), 'grad_norm': tensor(0.5, device='cuda:0'), 'learning_rate': 0.0001, 'epoch': 0.1}
{'loss': numpy.float32(1.0), 'grad_norm': tensor(nan, device='cuda:0', dtype=torch.float16), 'epoch': np.float64(0.2)}
{'eval_loss': tensor([1.1], device='cuda:0'), 'eval_f1': np.float64(0.75), 'epoch': 0.2}
""",
    {
        "loss": [1.25, 1.0],
        "columns": {"grad_norm": [0.5, None], "epoch": [0.1, 0.2]},
        "evals": [(2, 1.1)],
        "eval_columns": {"eval_f1": [0.75]},
        "task": "seq_cls",
    },
)
SHAPES["smart_quotes_and_ansi"] = (
    "chat.txt",
    "\x1b[32m2024-01-01 00:00:00 INFO\x1b[0m {‘loss’: 1.25, ’grad_norm‘: 0.5, ‘learning_rate’: 1e–4, ‘epoch’: 0.1}\r\n"
    "{“loss”: 1.0, “grad_norm”: NaN, “learning_rate”: 9e-5, “epoch”: 0.2}\r\n",
    {"loss": [1.25, 1.0], "columns": {"learning_rate": [1e-4, 9e-5], "grad_norm": [0.5, None]}},
)
SHAPES["utf_16_of_powershell"] = (
    "out.txt",
    "\ufeff{'loss': 1.25, 'epoch': 0.1}\r\n{'loss': 1.0, 'epoch': 0.2}\r\n".encode("utf-16-le"),
    {"loss": [1.25, 1.0]},
)
SHAPES["utf_16_without_a_mark"] = (
    "out.txt",
    "{'loss': 1.25, 'epoch': 0.1}\n{'loss': 1.0, 'epoch': 0.2}\n".encode("utf-16-be"),
    {"loss": [1.25, 1.0]},
)
SHAPES["cp949_of_korean_windows"] = (
    "학습.log",
    "학습을 시작합니다\r\n{'loss': 1.25, 'epoch': 0.1}\r\n손실이 줄어듭니다\r\n{'loss': 1.0, 'epoch': 0.2}\r\n".encode(
        "cp949"
    ),
    {"loss": [1.25, 1.0]},
)
SHAPES["cut_at_both_ends"] = (
    "tail.log",
    "grad_norm': 0.4, 'epoch': 0.1}\n{'loss': 1.25, 'epoch': 0.2}\n{'loss': 1.0, 'epoch': 0.3}\n{'loss': 0.9, 'gra",
    {"loss": [1.25, 1.0]},
)
SHAPES["a_cut_record_in_the_middle"] = (
    "crash.log",
    "{'loss': 1.25, 'epoch': 0.2}\n{'loss': 1.1, 'grad_n\nKilled\n{'loss': 1.0, 'epoch': 0.3}\n",
    {"loss": [1.25, 1.0]},
)
SHAPES["wrapped_by_the_terminal"] = (
    "screen.txt",
    "{'loss': 1.25, 'grad_norm': 0.5, 'learni\nng_rate': 0.0001, 'epoch': 0.1}\n{'loss': 1.0, 'epoch': 0\n.2}\n",
    {"loss": [1.25, 1.0], "columns": {"learning_rate": [1e-4, None], "epoch": [0.1, 0.2]}},
)
SHAPES["docker_json"] = (
    "container.log",
    r"""{"log":"{'loss': 1.25, 'epoch': 0.1}\n","stream":"stdout","time":"2024-01-01T00:00:00Z"}
{"log":"\r 50%|#####     | 5/10 [00:05\u003c00:05,  1.00it/s]","stream":"stderr","time":"2024-01-01T00:00:01Z"}
{"log":"{'loss': 1.0, 'epoch': 0.2}\n","stream":"stdout","time":"2024-01-01T00:00:02Z"}
""",
    {"loss": [1.25, 1.0]},
)
SHAPES["trl_sft"] = (
    "sft.log",
    """{'loss': 1.5, 'grad_norm': 0.9, 'learning_rate': 2e-4, 'num_tokens': 10222.0, 'entropy': 1.4, 'mean_token_accuracy': 0.62, 'epoch': 0.1}
{'eval_loss': 1.4, 'eval_mean_token_accuracy': 0.64, 'eval_entropy': 1.3, 'eval_num_tokens': 10222.0, 'epoch': 0.1}
{'loss': 1.3, 'grad_norm': 0.8, 'learning_rate': 1e-4, 'num_tokens': 20440.0, 'entropy': 1.2, 'mean_token_accuracy': 0.66, 'epoch': 0.2}
""",
    {
        "loss": [1.5, 1.3],
        "trainer": "trl",
        "task": "causal_lm",
        "task_known": True,
        "columns": {"mean_token_accuracy": [0.62, 0.66], "num_tokens": [10222, 20440], "entropy": [1.4, 1.2]},
        "eval_columns": {"eval_mean_token_accuracy": [0.64], "eval_entropy": [1.3]},
    },
)
SHAPES["trl_dpo"] = (
    "dpo.log",
    """{'loss': 0.6931, 'grad_norm': 3.2, 'learning_rate': 5e-6, 'rewards/chosen': 0.0, 'rewards/rejected': 0.0, 'rewards/accuracies': 0.0, 'rewards/margins': 0.0, 'logps/chosen': -120.5, 'logps/rejected': -130.1, 'epoch': 0.1}
{'loss': 0.61, 'grad_norm': 3.0, 'learning_rate': 4e-6, 'rewards/chosen': 0.1, 'rewards/rejected': -0.1, 'rewards/accuracies': 0.75, 'rewards/margins': 0.2, 'logps/chosen': -119.5, 'logps/rejected': -131.1, 'epoch': 0.2}
""",
    {"task": "preference", "trainer": "trl", "columns": {"rewards/margins": [0, 0.2], "rewards/accuracies": [0, 0.75]}},
)
SHAPES["trl_grpo_zeros"] = (
    "grpo.log",
    """{'loss': 0.0, 'grad_norm': 0.087, 'learning_rate': 6.9e-06, 'completion_length': 232.8, 'rewards/format': 1.0, 'reward': 1.71, 'reward_std': 0.57, 'kl': 0.0005, 'epoch': 0.31}
{'loss': 0.0, 'grad_norm': 0.097, 'learning_rate': 6.7e-06, 'completion_length': 237.0, 'rewards/format': 1.0, 'reward': 1.88, 'reward_std': 0.75, 'kl': 0.0005, 'epoch': 0.33}
""",
    {"loss": [0, 0], "task": "grpo", "trainer": "trl", "columns": {"reward": [1.71, 1.88], "kl": [0.0005, 0.0005]}},
)
SHAPES["trl_reward"] = (
    "rm.log",
    """{'loss': 0.69, 'learning_rate': 1e-5, 'accuracy': 0.5, 'min_reward': -0.1, 'mean_reward': 0.0, 'max_reward': 0.1, 'epoch': 0.1}
{'loss': 0.55, 'learning_rate': 9e-6, 'accuracy': 0.7, 'min_reward': -0.8, 'mean_reward': 0.1, 'max_reward': 0.9, 'epoch': 0.2}
{'eval_loss': 0.6, 'eval_accuracy': 0.66, 'eval_mean_reward': 0.1, 'eval_min_reward': -0.7, 'epoch': 0.2}
""",
    {"task": "reward", "columns": {"accuracy": [0.5, 0.7]}, "eval_columns": {"eval_accuracy": [0.66]}},
)
SHAPES["ms_swift"] = (
    "logging.jsonl",
    """{"loss": 1.25, "token_acc": 0.61, "grad_norm": 0.9, "learning_rate": 1e-5, "memory(GiB)": 56.74, "train_speed(iter/s)": 0.056, "epoch": 0.0005, "global_step/max_steps": "5/3766", "percentage": "0.13%", "elapsed_time": "1m 29s", "remaining_time": "18h 37m 22s"}
{"loss": 1.15, "token_acc": 0.63, "grad_norm": 0.8, "learning_rate": 2e-5, "memory(GiB)": 56.74, "train_speed(iter/s)": 0.056, "epoch": 0.001, "global_step/max_steps": "10/3766", "percentage": "0.27%", "elapsed_time": "2m 58s", "remaining_time": "18h 36m 0s"}
""",
    {
        "step": [5, 10],
        "planned": 3766,
        "task": "causal_lm",
        "task_known": True,
        "columns": {"memory_reserved_gib": [56.74, 56.74], "token_acc": [0.61, 0.63]},
        "progress": [(5, 89, 67042), (10, 178, 66960)],
    },
)
SHAPES["classifier_console"] = (
    "bert.log",
    """Some weights of BertForSequenceClassification were not initialized from the model checkpoint
 50%|█████     | 500/1000 [05:00<05:00,  1.66it/s]{'loss': 0.4, 'grad_norm': 8.1, 'learning_rate': 1e-05, 'epoch': 1.0}
{'eval_loss': 0.35, 'eval_accuracy': 0.86, 'eval_f1': 0.85, 'eval_runtime': 9.0, 'eval_samples_per_second': 100.0, 'eval_steps_per_second': 4.553, 'epoch': 1.0}
100%|██████████| 1000/1000 [10:00<00:00,  1.66it/s]{'loss': 0.2, 'grad_norm': 7.1, 'learning_rate': 0.0, 'epoch': 2.0}
""",
    {
        "step": [500, 1000],
        "task": "seq_cls",
        "task_known": True,
        "coarse": 500,
        "finished": True,
        "eval_columns": {"eval_accuracy": [0.86], "eval_f1": [0.85], "eval_steps_per_second": [4.553]},
    },
)
SHAPES["token_labels"] = (
    "ner.log",
    """{'loss': 0.3, 'learning_rate': 1e-5, 'epoch': 1.0}
{'eval_loss': 0.1, 'eval_overall_precision': 0.9, 'eval_overall_recall': 0.91, 'eval_overall_f1': 0.905, 'epoch': 1.0}
""",
    {"task": "token_cls", "eval_columns": {"eval_overall_f1": [0.905]}},
)
SHAPES["regression"] = (
    "sts.log",
    """{'loss': 0.3, 'learning_rate': 1e-5, 'epoch': 1.0}
{'eval_loss': 0.5, 'eval_mse': 0.5, 'eval_pearson': 0.88, 'epoch': 1.0}
""",
    {"task": "regression", "eval_columns": {"eval_pearson": [0.88]}},
)
SHAPES["evaluation_without_a_loss"] = (
    "gen.log",
    """{'loss': 0.3, 'learning_rate': 1e-5, 'epoch': 1.0}
{'eval_rouge1': 31.2, 'eval_gen_len': 20.1, 'eval_runtime': 60.0, 'epoch': 1.0}
""",
    {"evals": [(1, None)], "nan_evals": (), "eval_columns": {"eval_rouge1": [31.2]}, "task": "causal_lm"},
)
SHAPES["unsloth_console"] = (
    "unsloth.log",
    r"""==((====))==  Unsloth - 2x faster free finetuning | Num GPUs = 1
   \\   /|    Num examples = 467 | Num Epochs = 5
O^O/ \_/ \    Batch size per device = 2 | Gradient Accumulation steps = 4
\        /    Total batch size = 8 | Total steps = 290
 "-____-"     Number of trainable parameters = 134,217,728
{'loss': 1.6, 'grad_norm': 0.5, 'learning_rate': 4e-05, 'epoch': 0.02}
{'loss': 1.5, 'grad_norm': 0.5, 'learning_rate': 8e-05, 'epoch': 0.03}
{'loss': 1.4, 'grad_norm': 0.5, 'learning_rate': 0.00012, 'epoch': 0.05}
""",
    {
        "step": [1, 2, 3],
        "numbered": True,
        "trainer": "unsloth",
        "planned": 290,
        "config": {"training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}},
    },
)
SHAPES["nested_json_lines"] = (
    "metrics.jsonl",
    '{"step": 10, "train": {"loss": 1.5, "lr": 0.0001}}\n{"step": 20, "train": {"loss": 1.4, "lr": 0.0001}}\n'
    '{"step": 20, "eval": {"loss": 1.45}}\n',
    {"step": [10, 20], "columns": {"learning_rate": [1e-4, 1e-4]}, "evals": [(20, 1.45)]},
)
SHAPES["key_and_value_lines"] = (
    "accelerate.log",
    """12/01/2024 10:00:00 - INFO - __main__ - step: 10 loss: 1.25 lr: 1e-4
12/01/2024 10:00:05 - INFO - __main__ - step: 20 loss: 1.00 lr: 9e-5
12/01/2024 10:00:06 - INFO - __main__ - step: 20 eval_loss: 1.10
""",
    {
        "step": [10, 20],
        "loss": [1.25, 1.0],
        "columns": {"learning_rate": [1e-4, 9e-5]},
        "evals": [(20, 1.1)],
        "coarse": 10,
    },
)
SHAPES["equals_signs"] = (
    "loop.log",
    "epoch=1 loss=1.25 acc=0.5\nepoch=2 loss=1.00 acc=0.6\n",
    {"step": [1, 2], "loss": [1.25, 1.0], "numbered": False, "columns": {"epoch": [1, 2]}},
)
SHAPES["step_of_total"] = (
    "loop.log",
    "Step 100/1,000 | loss 1.25 | lr 1.0e-04 | grad norm 0.5\nStep 200/1,000 | loss 1.00 | lr 9.0e-05 | grad norm 0.4\n",
    {"step": [100, 200], "loss": [1.25, 1.0], "planned": 1000, "columns": {"grad_norm": [0.5, 0.4]}},
)
SHAPES["mlx"] = (
    "mlx.txt",
    """Iter 1: Val loss 2.500, Val took 10.1s
Iter 10: Train loss 2.100, Learning Rate 1.000e-05, It/sec 1.200, Tokens/sec 300.5, Trained Tokens 2400, Peak mem 12.1 GB
Iter 20: Train loss 1.900, Learning Rate 1.000e-05, It/sec 1.210, Tokens/sec 301.5, Trained Tokens 4800, Peak mem 12.1 GB
""",
    {"step": [10, 20], "loss": [2.1, 1.9], "evals": [(1, 2.5)], "columns": {"learning_rate": [1e-5, 1e-5]}},
)
SHAPES["lora_train_console"] = (
    "ours.txt",
    """step   120/600  loss 1.873  grad_norm 0.412  lr 9.8e-05  scale 32768  skipped 0  1,204 tok/s  3.1 GiB  eta 0:07:12
step   125/600  loss 1.853  grad_norm 0.410  lr 9.7e-05  scale 32768  skipped 0  1,204 tok/s  3.1 GiB  eta 0:07:02
""",
    {"step": [120, 125], "loss": [1.873, 1.853], "planned": 600, "columns": {"grad_norm": [0.412, 0.41]}},
)
SHAPES["a_bar_carries_the_loss"] = (
    "postfix.log",
    "\r".join(
        f"Training:  {n}%|#    | {n}/100 [00:{n}<01:50,  1.20s/it, loss={loss}, lr=0.0001]"
        for n, loss in ((10, 1.9), (20, 1.8), (20, 1.75), (30, 1.7))
    ),
    {"step": [10, 20, 30], "loss": [1.9, 1.75, 1.7], "planned": 100, "columns": {"learning_rate": [1e-4] * 3}},
)
SHAPES["a_bar_an_epoch_carries_the_loss"] = (
    "lightning.log",
    "\r".join(
        f"Epoch {e}:  50%|#####     | {n}/100 [00:10<00:10,  4.90it/s, v_num=0, train_loss={loss}]"
        for e, n, loss in ((0, 50, 2.5), (0, 100, 2.25), (1, 50, 2.0))
    ),
    {"step": [50, 100, 150], "loss": [2.5, 2.25, 2.0]},
)
SHAPES["steps_begin_anew_with_each_epoch"] = (
    "tutorial.log",
    "Epoch [1/5], Step [100/600], Loss: 2.25\nEpoch [1/5], Step [600/600], Loss: 2.0\nEpoch [2/5], Step [100/600], Loss: 1.75\n",
    {"step": [100, 600, 700], "loss": [2.25, 2.0, 1.75], "planned": 3000, "finished": False},
)
SHAPES["a_step_stands_before_the_braces"] = (
    "prefix.log",
    "2024-05-01 10:11:12,345 - INFO - Step 10: {'loss': 1.5}\n2024-05-01 10:12:12,345 - INFO - Step 20/90: {'loss': 1.25}\n",
    {"step": [10, 20], "loss": [1.5, 1.25], "numbered": True},
)
SHAPES["keras"] = (
    "keras.log",
    """Epoch 1/3
100/100 [==============================] - 12s 120ms/step - loss: 0.6931 - accuracy: 0.5123 - val_loss: 0.6500 - val_accuracy: 0.6200
Epoch 2/3
100/100 [==============================] - 11s 110ms/step - loss: 0.5931 - accuracy: 0.6123 - val_loss: 0.6100 - val_accuracy: 0.6600
""",
    {"loss": [0.6931, 0.5931], "evals": [(1, 0.65), (2, 0.61)], "eval_columns": {"eval_accuracy": [0.62, 0.66]}},
)
SHAPES["nanogpt"] = (
    "nanogpt.log",
    """iter 0: loss 4.2500, time 38000.12ms, mfu -100.00%
iter 10: loss 3.1250, time 110.11ms, mfu 15.00%
step 10: train loss 3.0000, val loss 3.2500
""",
    {"step": [0, 10], "loss": [4.25, 3.0], "evals": [(10, 3.25)]},
)
SHAPES["megatron"] = (
    "megatron.log",
    """ iteration      100/  500000 | consumed samples:        25600 | elapsed time per iteration (ms): 620.3 | learning rate: 1.000E-05 | lm loss: 9.125000E+00 | grad norm: 3.210 |
 iteration      200/  500000 | consumed samples:        51200 | elapsed time per iteration (ms): 615.1 | learning rate: 2.000E-05 | lm loss: 7.500000E+00 | grad norm: 1.110 |
""",
    {"step": [100, 200], "loss": [9.125, 7.5], "planned": 500000, "columns": {"grad_norm": [3.21, 1.11]}},
)
SHAPES["torchtune"] = (
    "log_1.txt",
    """Step 1 | loss:1.875 lr:2e-06 tokens_per_second_per_gpu:512.5 peak_memory_active:12.1 peak_memory_alloc:12.0 peak_memory_reserved:14.25 
Step 2 | loss:1.750 lr:4e-06 tokens_per_second_per_gpu:515.5 peak_memory_active:12.1 peak_memory_alloc:12.0 peak_memory_reserved:14.5 
""",
    {"step": [1, 2], "columns": {"memory_reserved_gib": [14.25, 14.5], "tokens_per_second": [512.5, 515.5]}},
)
