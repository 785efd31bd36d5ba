"""The real command line in a subprocess, as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from lora_train.instrument import load_run
from lora_train.instrument.read.eval_rows import read_rows, stored_steps
from lora_train.instrument.read.schema import STEP_COLUMNS, Evaluation, Summary, columns_of
from lora_train.instrument.read.store import read_metrics
from lora_train.trainer import cli as cli_module
from lora_train.trainer.errors import UserError

from ..conftest import COMMAND_ENVIRONMENT, DATA, ROOT
from ..forked import Command

LLAMA_LINEARS = [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "up", "down")]


def write_config(folder: Path, model: Path, **training) -> Path:
    path = folder / "run.yaml"
    settings = {"output_dir": str(folder / "run"), "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    content = {
        "model": {"name_or_path": str(model)},
        "lora": {"r": 4, "lora_dropout": 0.1},
        "data": {"train": str(DATA), "format": "koalpaca", "limit": 40, "cutoff_len": 128},
        "training": settings | training,
    }
    path.write_text(yaml.safe_dump(content))
    return path


def steps_of(run: Path) -> list[dict]:
    return [row for row in read_metrics(run) if "loss" in row]


@pytest.fixture(scope="module")
def finished(cli, tiny_models, tmp_path_factory):
    """One whole run: twelve steps, evaluation and saving every five."""
    folder = tmp_path_factory.mktemp("a run with spaces")
    config = write_config(
        folder,
        tiny_models["gpt_neox"],
        max_steps=12,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=5,
        save_steps=5,
    )
    result = cli("--config", config, "data.eval_fraction=0.1", "training.save_total_limit=2")
    assert result.returncode == 0, result.stderr
    return folder / "run", result.stdout


def test_prints_banner_steps_and_end(finished):
    run, out = finished
    assert "trainable params: 2,048 || all params: " in out or re.search(r"trainable params: [\d,]+ \|\| all", out)
    line = (
        r"step  8/12  loss \d\.\d+  grad_norm [\d.]+  lr 0\.00041\d+  scale 1  skipped 0  [\d,]+ tok/s  "
        r"\d+\.\d GiB  eta 0:00:\d\d"
    )
    assert re.search(line, out), out
    assert [int(step) for step in re.findall(r"^step +(\d+)/12", out, re.M)] == [4, 8, 12]
    assert [int(step) for step in re.findall(r"^eval (\d+)/12", out, re.M)] == [5, 10, 12]
    assert f"adapter {run / 'adapter'}" in out


def test_run_folder_holds_what_the_design_says(finished):
    run, _ = finished
    assert {path.name for path in run.iterdir()} == {
        ".lock", "config.yaml", "env.json", "metrics.jsonl", "checkpoint-10", "checkpoint-12", "adapter", "sites.json",
        "rows", "stats", "evaluations",
    }  # fmt: skip
    rows = read_metrics(run)
    steps = steps_of(run)
    assert [row["step"] for row in steps] == list(range(1, 13))
    evaluations = {row["step"]: row["eval_loss"] for row in rows if "eval_loss" in row}
    assert list(evaluations) == stored_steps(run) == [5, 10, 12]
    for step, loss in evaluations.items():
        cost = read_rows(run, step)
        assert cost is not None
        assert cost.loss_sum.sum() / cost.n_tokens.sum() == pytest.approx(loss, rel=1e-6)
    overlap = json.loads((run / "env.json").read_text())["eval_overlap"]
    assert (overlap["rows"], overlap["exact"]) == (len(cost.row), 0)
    assert all(list(row) == ["start", *STEP_COLUMNS] for row in steps)
    assert all(list(row) == ["start", "step", *columns_of(Evaluation)] for row in rows if "eval_loss" in row)
    assert list(rows[-1]) == ["start", *columns_of(Summary)]
    assert steps[-1]["epoch"] == pytest.approx(12 / 18)
    assert steps[0]["learning_rate"] == 1e-3
    assert steps[0]["learning_rate"] > steps[-1]["learning_rate"] > 0
    assert 0 < steps[0]["supervised_tokens"] < steps[0]["tokens"]
    assert json.loads((run / "env.json").read_text())["processes"] == 1


def test_statistics_of_every_step_agree_with_the_log(finished):
    """The norms of the LoRA gradients of all modules add up to the grad_norm of metrics.jsonl."""
    run = load_run(finished[0])
    gradients = run.stats(sites=r":lora_[AB]\.grad$")
    assert gradients["step"].nunique() == 12
    assert gradients["site"].nunique() == 2 * 8  # two layers of four linears
    total = (gradients["norm"] ** 2).groupby(gradients["step"]).sum() ** 0.5
    logged = [row["grad_norm"] for row in steps_of(finished[0])]
    assert total.tolist() == pytest.approx(logged, rel=1e-6)
    # LoRA starts with B = 0: the first gradient of A is exactly 0, and that is no underflow
    first = run.stats(sites=r":lora_A\.grad$", steps=[1])
    assert first["sumsq"].tolist() == [0.0] * 8
    out = run.stats(sites=r"query_key_value:out$", steps=[12])
    assert (out["n_overflow"] + out["n_underflow"] + out["n_nan"] + out["n_inf"]).tolist() == [0, 0]


def test_without_instrument_losses_and_weights_are_the_same_bits(finished, cli, tmp_path):
    run, _ = finished
    result = cli(
        "--config", run.parent / "run.yaml", "data.eval_fraction=0.1", "instrument.enabled=false",
        f"training.output_dir={tmp_path / 'off'}", "training.save_total_limit=2",
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    off = tmp_path / "off"
    assert not (off / "stats").exists()
    assert [row["loss"] for row in steps_of(off)] == [row["loss"] for row in steps_of(run)]
    assert (off / "adapter/adapter_model.safetensors").read_bytes() == (
        run / "adapter/adapter_model.safetensors"
    ).read_bytes()


def test_chosen_sites_only(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=2)
    result = cli("--config", config, "instrument.sites=['*:out', '!*layers.0*']", "instrument.probe_every=0")
    assert result.returncode == 0, result.stderr
    names = set(load_run(tmp_path / "run").sites["module"])
    assert names == {f"model.layers.1.{name}" for name in LLAMA_LINEARS}
    result = cli("--config", config, "instrument.sites=[nothing]")
    assert result.returncode == 2
    assert "instrument.sites matches no site: ['nothing']" in result.stderr


def test_saved_adapter_gives_the_same_logits_in_a_fresh_process(finished, tiny_models):
    """peft alone, without this package, computes what this trainer's last evaluation saw."""
    run, _ = finished
    code = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
model = PeftModel.from_pretrained(model, sys.argv[2]).eval()
logits = model(input_ids=torch.arange(40)[None]).logits
torch.save(logits.detach(), sys.argv[3])
print(any(name.startswith("lora_train") for name in sys.modules))
"""
    file = run / "logits.pt"
    fresh = [sys.executable, "-c", code, str(tiny_models["gpt_neox"]), str(run / "adapter"), str(file)]
    assert subprocess.run(fresh, capture_output=True, text=True, check=True).stdout == "False\n"

    import torch
    from lora_train.trainer.loop.checkpoint import load_checkpoint

    from .loop.test_train import make_components, make_config

    config = make_config(tiny_models["gpt_neox"])
    components = make_components(
        config.model_copy(update={"lora": config.lora.model_copy(update={"r": 4, "lora_alpha": 8.0})})
    )
    load_checkpoint(run / "checkpoint-12", components)
    with torch.no_grad():
        ours = components.model.eval()(input_ids=torch.arange(40)[None]).logits
    # products in another order: a unit in the last place of the largest logits
    torch.testing.assert_close(torch.load(file, weights_only=True), ours, rtol=0, atol=1e-6)
    file.unlink()


def test_model_card_holds_the_config(finished):
    run, _ = finished
    front, _, body = (run / "adapter" / "README.md").read_text().removeprefix("---\n").partition("---\n")
    assert yaml.safe_load(front)["library_name"] == "peft"
    folded = body.split("```yaml\n")[1].split("```")[0]
    assert yaml.safe_load(folded)["training"]["max_steps"] == 12


def test_a_second_run_does_not_touch_the_first(finished, cli, tiny_models):
    run, _ = finished
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    result = cli("--config", run.parent / "run.yaml", "training.max_steps=1", "training.eval_strategy=no")
    assert result.returncode == 0
    assert f"{run} already holds a run; this one goes to {run}-2" in result.stdout
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert len(steps_of(run.with_name("run-2"))) == 1


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "paged_adamw_8bit"])
def test_koalpaca_yaml_trains_in_4_bits_fp16_and_with_the_paged_optimizer_it_names(cli, tiny_models, tmp_path, optim):
    """The shipped config itself; only model, data and length are exchanged. In Korean."""
    shipped = {"adamw_torch_fused": [], "paged_adamw_8bit": ["training.optim=paged_adamw_8bit"]}
    result = cli(
        "--config", ROOT / "koalpaca.yaml",
        f"model.name_or_path={tiny_models['gpt_neox']}", f"data.train={DATA}", "data.limit=60",
        f"training.output_dir={tmp_path / 'run'}", "training.max_steps=12", "training.eval_steps=12",
        "training.learning_rate=3e-3", *shipped[optim], env={"LORA_TRAIN_LANG": "ko"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "가중치 nf4, 계산 float16" in result.stdout
    assert (f"{optim}: 스텝마다 장치를 기다립니다" in result.stdout) == (optim == "paged_adamw_8bit")
    assert "PEFT의 느린 경로" not in result.stdout
    rows = steps_of(tmp_path / "run")
    assert len(rows) == 12
    assert {row["loss_scale"] for row in rows} == {65536.0}
    assert rows[-1]["updates"] == 12
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert result.stderr == ""


def test_fp16_run_with_too_high_a_floor_heals_itself_and_learns(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=25, fp16=True, optim="adamw_torch_fused")
    result = cli("--config", config, "precision.min_loss_scale=1.0e+7")
    assert result.returncode == 0, result.stderr
    rows = steps_of(tmp_path / "run")
    skipped = [row for row in rows if row["skipped"]]
    assert skipped
    assert all(row["grad_norm"] is None and row["loss"] is not None for row in skipped)
    assert rows[-1]["updates"] == 25 - len(skipped)
    (incident,) = (tmp_path / "run" / "incidents").glob("*/diagnosis.json")
    diagnosis = json.loads(incident.read_text())
    assert (diagnosis["kind"], diagnosis["action"]) == ("scale_collapse", "heal")
    change = next(remedy["change"] for remedy in diagnosis["remedies"] if remedy["verified"])
    key, _, floor = change.partition("=")
    assert key == "precision.min_loss_scale"
    assert float(floor) <= min(row["loss_scale"] for row in rows) < 1.0e7
    assert "healed 1 time(s)" in result.stdout


def start(config: Path, *arguments: str) -> Command:
    return Command("--config", config, *arguments, environment=COMMAND_ENVIRONMENT, cwd=ROOT)


def wait_for_step(run: Path, step: int, process: Command | subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_text().splitlines()) >= step:
            return
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)  # a launcher ends what it started
    raise AssertionError(process.communicate()[1])


def test_a_killed_run_resumes_bit_for_bit(cli, tiny_models, tmp_path):
    """30 steps straight equal 17, SIGKILL, and --resume auto to 30: losses and adapter bytes; fp16 with dropout."""
    settings = {"max_steps": 30, "gradient_accumulation_steps": 4, "save_steps": 5, "fp16": True}
    for name in ("straight", "killed"):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, tiny_models["gpt_neox"], **settings)
    straight, killed = tmp_path / "straight" / "run", tmp_path / "killed" / "run"
    assert cli("--config", straight.parent / "run.yaml").returncode == 0

    process = start(killed.parent / "run.yaml")
    wait_for_step(killed, 17, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = len(steps_of(killed))
    assert 17 <= reached < 30
    assert not (killed / "adapter").exists()
    result = cli("--config", killed.parent / "run.yaml", "--resume", "auto")
    assert result.returncode == 0, result.stderr
    assert f"going on after step {reached // 5 * 5}" in result.stdout

    rows, expected = steps_of(killed), steps_of(straight)
    same = ("step", "updates", "loss", "grad_norm", "loss_scale", "learning_rate", "skipped", "tokens")
    assert [[row[key] for key in same] for row in rows] == [[row[key] for key in same] for row in expected]
    assert {row["start"] for row in rows} == {0, 1}
    ours, theirs = (load_run(run).stats().drop(columns="start") for run in (killed, straight))
    assert len(ours) == 30 * len(load_run(straight).sites)
    assert ours.equals(theirs)
    for file in ("adapter/adapter_model.safetensors", "checkpoint-30/optimizer.safetensors"):
        assert (killed / file).read_bytes() == (straight / file).read_bytes()


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    # on a CPU as well: --cpu starts one process, or as many as an mpirun does; port 0 is any that is free
    "accelerate": ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"],
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_equal_one_with_twice_the_accumulation(cli, tiny_models, tmp_path, launcher):
    """41 rows: the last step of an epoch leaves the second process without a row. No dropout: masks differ by rank."""
    settings = {"max_steps": 12, "logging_steps": 4}
    for name, accumulation in (("one", 2), ("two", 1)):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, tiny_models["gpt_neox"], gradient_accumulation_steps=accumulation, **settings)
    overrides = ["lora.lora_dropout=0", "data.limit=41"]
    assert cli("--config", tmp_path / "one" / "run.yaml", *overrides).returncode == 0
    launch = [sys.executable, "-m", *LAUNCHERS[launcher]]
    train = ["-m", "lora_train.trainer.cli", "--config", str(tmp_path / "two" / "run.yaml"), *overrides]
    result = subprocess.run(
        [*launch, *train], capture_output=True, text=True, env=COMMAND_ENVIRONMENT, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step  4/12") == 1
    assert "(2 process)" in result.stdout
    one, two = steps_of(tmp_path / "one" / "run"), steps_of(tmp_path / "two" / "run")
    same = ("step", "loss", "grad_norm", "tokens", "supervised_tokens", "epoch")
    for ours, theirs in zip(two, one, strict=True):
        assert [ours[key] for key in same] == pytest.approx([theirs[key] for key in same], rel=1e-5)
    frames = [load_run(tmp_path / name / "run").stats(columns=["sumsq", "absmax", "n"]) for name in ("two", "one")]
    for column in ("sumsq", "absmax", "n"):
        ours, theirs = frames[0][column].astype(float), frames[1][column].astype(float)
        assert ours.tolist() == pytest.approx(theirs.tolist(), rel=1e-4, nan_ok=True, abs=1e-18)


def test_sigterm_writes_a_checkpoint_and_exits_143(tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["gpt_neox"], max_steps=5000, save_strategy="no")
    process = start(config)
    wait_for_step(tmp_path / "run", 3, process)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    stopped = re.search(r"stopped after step (\d+) of 5000", out)
    assert stopped is not None
    step = int(stopped[1])
    assert (tmp_path / "run" / f"checkpoint-{step}" / "adapter_model.safetensors").exists()
    assert steps_of(tmp_path / "run")[-1]["step"] == step


def test_max_hours_saves_in_time_and_exits_0(cli, tiny_models, tmp_path):
    config = write_config(tmp_path, tiny_models["gpt_neox"], max_steps=100000, max_hours=8 / 3600)
    result = cli("--config", config)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run"
    assert f"go on with: lora-train --config {run}/config.yaml --resume {run}\n" in result.stdout
    assert len(list((tmp_path / "run").glob("checkpoint-*"))) >= 1


BAD = [
    (["lora.rnak=8"], "lora.rnak is not a known key", "did you mean lora.r?"),
    (["lora.r=eight"], "lora.r must be a whole number, not eight", ""),
    (["lora.lora_dropout=1"], "lora.lora_dropout must be less than 1, not 1", ""),
    (["training.fp16=true", "training.bf16=true"], "training.fp16 and training.bf16 are both true", "keep one"),
    (["data.train=nowhere.jsonl"], "there is no file nowhere.jsonl", "paths are taken from the folder"),
    (["model.name_or_path=./nowhere"], "there is no file or folder ./nowhere", "give a hub id"),
    (["training.eval_strategy=epoch"], "there is nothing to evaluate on", "set data.eval=PATH"),
    (["trainer.seed=1"], "trainer is not a known section", "did you mean training?"),
    (["lora.r"], "lora.r is not of the form section.key=value", "for example"),
    (["max_steps=20"], "max_steps=20 is not of the form section.key=value", "did you mean training.max_steps=20?"),
    (["lora.target_modules=[]"], "lora.target_modules is empty", "all-linear trains every linear layer"),
    (["--resmue", "auto"], "--resmue is no option of lora-train", "did you mean --resume?"),
    (["lora.lora_r=8"], "lora.lora_r is not a known key", "did you mean lora.r?"),
    (["lora.r=0"], "lora.r must be at least 1, not 0", ""),
    (["lora.bias=some"], "lora.bias must be one of none, all, lora_only, not some", ""),
    (["lora.task_type=QUESTION_ANS"], "lora.task_type must be one of CAUSAL_LM, SEQ_CLS, TOKEN_CLS, not QUEST", ""),
    (["lora.modules_to_save=lm_head"], "lora.modules_to_save must be a list, not lm_head", ""),
    (["lora.target_modules=3"], "must be a list of module names, a regular expression or all-linear, not 3", ""),
    (["training.batch_size=4"], "training.batch_size is not a known key", "did you mean training.per_device_train"),
    (["training.per_device_train_batch_size=0"], "per_device_train_batch_size must be at least 1, not 0", ""),
    (["training.learning_rate=-1"], "training.learning_rate must be at least 0, not -1", ""),
    (["training.learning_rate=.nan"], "training.learning_rate must be a finite number, not nan", ""),
    (["training.learning_rate=1e-4x"], "training.learning_rate must be a number, not 1e-4x", ""),
    (["training.num_train_epochs=0"], "training.num_train_epochs must be greater than 0, not 0", ""),
    (["training.max_steps=0"], "training.max_steps is 0", "-1 trains num_train_epochs passes"),
    (["training.max_hours=0"], "training.max_hours must be greater than 0, not 0", ""),
    (["training.fp16=maybe"], "training.fp16 must be true or false, not maybe", ""),
    (["training.optim=adam"], "training.optim must be one of adamw_torch_fused", ""),
    (["training.lr_scheduler_type=cosin"], "training.lr_scheduler_type must be one of linear, cosine", ""),
    (["training.lr_scheduler_type=warmup_stable_decay"], "does not say how long it decays", "for example"),
    (["training.lr_scheduler_type=polynomial", "training.learning_rate=0"], "must be above 1e-07", ""),
    (["training.save_safetensors=false"], "checkpoints are safetensors only", "remove the key"),
    (["training.save_steps=0"], "training.save_steps must be at least 1, not 0", ""),
    (["training.save_total_limit=0"], "training.save_total_limit must be at least 1, not 0", ""),
    (["training.load_best_model_at_end=true"], "load_best_model_at_end=True needs evaluations", "set training.eval"),
    (["training.early_stopping_patience=2"], "early_stopping_patience=2 needs evaluations", "set training.eval"),
    (["training.save_strategy=best"], "save_strategy=best needs evaluations", "set training.eval"),
    (["training.metric_for_best_model=bleu"], "bleu is not measured; there are loss, token_accuracy", ""),
    (["training.report_to=neptune"], "neptune is not a known tracker", "known: none, all, aim"),
    (["training.report_to=[tensorboard,wandb]"], "wandb is not installed", "pip install wandb"),
    (["training.report_to=azure_ml"], "azure_ml is not installed", "pip install azureml-mlflow"),
    (["quantization.load_in_4bit=true", "quantization.load_in_8bit=true"], "load_in_8bit are both true", ""),
    (["quantization.bnb_4bit_quant_type=nf5"], "bnb_4bit_quant_type must be one of nf4, fp4, not nf5", ""),
    (["quantization.bnb_4bit_use_double_quant=true"], "has no effect without load_in_4bit", "set quantization"),
    (["precision.loss_scale=-1"], "precision.loss_scale must be dynamic or a positive number, not -1", ""),
    (["precision.on_collapse=panic"], "precision.on_collapse must be one of heal, rollback, stop, not panic", ""),
    (["precision.max_heals=-1"], "precision.max_heals must be at least 0, not -1", ""),
    (["model.dtype=float16"], "stores 16-bit weights but neither", "set training.fp16=true"),
    (["model.attn_implementation=flash"], "attn_implementation must be one of sdpa, eager, flash_attention_2", ""),
    (["model.name_or_path="], "model.name_or_path", ""),
    (["data.format=alpacca"], "data.format must be one of", ""),
    (["data.eval_fraction=1"], "data.eval_fraction must be less than 1, not 1", ""),
    (["data.cutoff_len=1"], "data.cutoff_len must be at least 2, not 1", ""),
    (["data.skip_rows=[-1]"], "data.skip_rows", ""),
    (["data.on_bad_row=ignore"], "data.on_bad_row must be one of error, skip, not ignore", ""),
    (["data.prompt_template=no fields"], "data.prompt_template", ""),
    (["instrument.histogram_every=-1"], "instrument.histogram_every must be at least 0, not -1", ""),
    (["training.output_dir=/dev/null"], "/dev/null", ""),
]
assert len(BAD) >= 40


@pytest.mark.parametrize(("arguments", "error", "hint"), BAD)
def test_wrong_input_exits_2_within_a_second_and_writes_nothing(cli, tmp_path, arguments, error, hint):
    config = write_config(tmp_path, Path("owner/model"))
    result = cli("--config", config, *arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert error in result.stderr
    assert f"hint: {hint}" in result.stderr or hint == ""
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize("content", ["", "model: [", "- 1", None])
def test_unusable_config_files(cli, tmp_path, content):
    path = tmp_path / "run.yaml"
    if content is not None:
        path.write_text(content)
    result = cli("--config", path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {path} ")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["lora.target_modules=[q_proj_typo]"], "nothing in the model is called ['q_proj_typo']"),
        (["model.name_or_path=owner/model"], "owner/model cannot be loaded: owner/model is not in the cache"),
        (["--resume", "nowhere"], "nowhere holds no checkpoint"),
    ],
)
def test_what_only_the_model_can_tell_is_an_error_too(cli, tiny_models, tmp_path, arguments, error):
    config = write_config(tmp_path, tiny_models["llama"], max_steps=1)
    result = cli("--config", config, *arguments)
    assert result.returncode == 2
    assert error in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_help_lists_every_key_and_imports_no_torch(cli):
    result = cli("--help")
    assert result.returncode == 0
    assert "r                            Rank of the adapter. (default 8)" in result.stdout
    assert "name_or_path                 Hub id, folder in Hugging Face format" in result.stdout
    code = """
import sys
from lora_train.trainer.cli import main
code = main(["--config", "nowhere.yaml"])
print(code, "torch" in sys.modules, "transformers" in sys.modules)
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output == "2 False False\n"


VERBS = (
    "init", "explain", "report", "compare", "board", "ls", "advise", "lengthen", "sweep", "rows", "replay", "inspect",
    "merge", "export", "chat", "predict", "evaluate", "env", "import", "schema", "help", "completion",
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_imports_no_torch(verb):
    code = f"""
import sys
from lora_train.trainer.cli import main
try:
    main([{verb!r}, "--help"])
except SystemExit as stop:
    print(stop.code, {{"torch", "transformers", "numpy"}} & sys.modules.keys())
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.startswith(f"usage: lora-train {verb} [-h]")
    assert output.endswith("\n0 set()\n")


def test_help_lists_every_verb(capsys):
    assert tuple(cli_module.VERBS) == VERBS
    with pytest.raises(SystemExit) as stop:
        cli_module.main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\w+", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "error", "hint"),
    [
        (["my run.yaml"], "my run.yaml stands there without --config", "lora-train --config 'my run.yaml'"),
        (["mrege", "RUN"], "mrege is no verb of lora-train", "did you mean merge?"),
        (
            ["fit"],
            "fit is no verb of lora-train",
            "the verbs are init, explain, report, compare, board, ls, advise, lengthen, sweep, rows, replay, inspect",
        ),
        (["train"], "the following arguments are required: --config", "lora-train --config koalpaca.yaml"),
        ([], "the following arguments are required: --config", "lora-train --config koalpaca.yaml"),
        (["merge"], "the following arguments are required: RUN", "`lora-train merge --help`"),
        (["replay", "RUN", "--step", "x"], "invalid int value: 'x'", "`lora-train replay --help`"),
        (["replay", "RUN", "--step", "3"], "RUN holds no run", "name the folder of training.output_dir"),
        (["env", "RUN"], "unrecognized arguments: RUN", "`lora-train env --help`"),
        (["inspect", "RUN", "--jsn"], "unrecognized arguments: --jsn", "`lora-train inspect --help`"),
        (["inspect", "RUN"], "there is no folder RUN", "name a run folder"),
        (["chat", "README.md"], "README.md is a file, not a folder", "name the run"),
    ],
)
def test_wrong_use_of_verbs_is_an_error_with_a_hint(capsys, monkeypatch, arguments, error, hint):
    monkeypatch.chdir(ROOT)
    assert cli_module.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert error in captured.err
    assert f"\nhint: {hint}" in captured.err


def test_debug_shows_where_an_error_of_a_verb_comes_from():
    with pytest.raises(UserError, match="there is no folder RUN"):
        cli_module.main(["inspect", "RUN", "--debug"])


@pytest.mark.parametrize("arguments", [["mrege"], ["merge", "nowhere"], ["inspect", "README.md"], ["chat"]])
def test_wrong_use_of_the_real_command(cli, arguments):
    result = cli(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: .+\nhint: .+\n", result.stderr)


def test_conversations_are_trained_on_and_resumed_under_the_format_that_was_detected(cli, tiny_models, tmp_path):
    """A folder of chats with a broken line, a template of the user's, from the first error to a resumed run."""
    chats = tmp_path / "chats"
    chats.mkdir()
    turns = [{"role": "user", "content": "수도는?"}, {"role": "assistant", "content": "서울입니다."}]
    rows = [json.dumps({"messages": turns}) for _ in range(12)]
    (chats / "a.jsonl").write_text("\n".join(["{", *rows]), encoding="utf-8")
    template = tmp_path / "chat.jinja"
    template.write_text(
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    )
    path = tmp_path / "chat.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "model": {"name_or_path": str(tiny_models["llama"])},
                "lora": {"r": 2},
                "data": {"train": str(chats), "chat_template": str(template)},
                "training": {"output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 4, "max_steps": 2},
            }
        )
    )
    refused = cli("--config", path)
    assert refused.returncode == 2
    assert f"error: {chats}/a.jsonl line 1 is not JSON" in refused.stderr
    result = cli("--config", path, "data.on_bad_row=skip")
    assert result.returncode == 0, result.stderr
    assert f"data   {chats}: format messages, by the fields of its rows" in result.stdout
    assert "1 bad rows are left out" in result.stdout
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert config["data"]["format"] == "messages"
    resumed = cli("--config", path, "data.on_bad_row=skip", "training.max_steps=3", "--resume", "auto")
    assert resumed.returncode == 0, resumed.stderr
    (told,) = [line for line in resumed.stdout.splitlines() if "other settings than before" in line]
    assert "training.max_steps" in told
    assert "data." not in told
