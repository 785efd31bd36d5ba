"""replay of a received run: whatever is torn or foreign in it is named or passed over, and none of its code runs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lora_train.instrument.record.capsule import write_capsule
from lora_train.trainer.cli import main
from lora_train.trainer.collapse.handle import capsule
from lora_train.trainer.collapse.recorded import read_capsule
from lora_train.trainer.config.schema import Config
from lora_train.trainer.loop.checkpoint import set_aside
from lora_train.trainer.loop.snapshots import Snapshots
from lora_train.trainer.saved.state import Progress, Torn
from safetensors.torch import load_file, save_file

from ..loop.test_train import make_components
from ..test_cli import write_config

STEP = 5


@pytest.fixture(scope="module")
def made(tiny_models, tmp_path_factory) -> Path:
    """A run of six steps with checkpoints after 2, 4 and 6, and a capsule of step 5."""
    folder = tmp_path_factory.mktemp("made")
    config = write_config(folder, tiny_models["llama"], max_steps=6, save_steps=2)
    assert main(["--config", str(config)]) == 0
    return folder / "run"


@pytest.fixture
def run(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def with_capsule(run, tiny_models) -> Path:
    config = Config.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
    components = make_components(config)
    state = Snapshots(components).take(Progress(step=STEP - 1))
    write_capsule(run / "incidents" / f"step-{STEP}", *capsule(components, state, STEP, 0))
    return run


def replay(run: Path, capsys, *arguments: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["replay", str(run), "--step", str(STEP), *arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def test_a_whole_run_is_replayed_from_its_nearest_whole_checkpoint(run, capsys):
    code, text = replay(run, capsys)
    assert code == 0
    assert "state after step 4" in text
    assert "equal to the last bit" in text
    weights = run / "checkpoint-4" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    code, text = replay(run, capsys)
    assert code == 0
    assert "checkpoint-4 cannot be replayed from (adapter_model.safetensors is not as it was written" in text
    assert "state after step 2" in text
    assert "equal to the last bit" in text
    for step in (2, 6):
        set_aside(run / f"checkpoint-{step}", 0)
    code, text = replay(run, capsys)
    assert (code, "the beginning of the run" in text, "equal to the last bit" in text) == (0, True, True)


def test_the_capsule_of_another_step_is_not_taken(with_capsule, capsys):
    assert "incidents/step-5" in replay(with_capsule, capsys)[1]
    folder = with_capsule / "incidents"
    (folder / "step-5").rename(folder / "step-50")
    assert "checkpoint-4" in replay(with_capsule, capsys)[1]
    (folder / "step-50").rename(folder / "step-5")
    edit(folder / "step-5" / "capsule.json", lambda facts: facts.update(step=4))
    assert "step-5 cannot be replayed from (capsule.json: step: 4)" in replay(with_capsule, capsys)[1]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda facts: facts.clear(), "capsule.json: step: Field required"),
        (lambda facts: facts.update(later=1), "capsule.json: later"),
        (lambda facts: facts.update(schema_version=2), "capsule.json: schema_version 2 is newer"),
        (lambda facts: facts["config"].update(later={}), "capsule.json: config.later"),
        (lambda facts: facts.update(rows={"5": 7}), "capsule.json: rows.5"),
        (lambda facts: facts.update(rows={"5": [[["../x"]]]}), "capsule.json: rows.5"),
        (lambda facts: facts.update(rows={"5": [[[999]]]}), "capsule.safetensors: row.999.input_ids"),
        (lambda facts: facts.update(rows={}), "capsule.json: step"),
        (lambda facts: facts.update(state_step="4"), "capsule.json: state_step"),
    ],
)
def test_facts_that_are_not_understood_are_named(with_capsule, change, named):
    folder = with_capsule / "incidents" / "step-5"
    edit(folder / "capsule.json", change)
    with pytest.raises(Torn) as error:
        read_capsule(folder, STEP)
    assert str(error.value).startswith(named)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_capsule_is_named(with_capsule, content):
    folder = with_capsule / "incidents" / "step-5"
    for name in ("capsule.json", "capsule.safetensors"):
        (folder / name).write_bytes(content)
        with pytest.raises(Torn, match=r"^capsule\.json "):
            read_capsule(folder, STEP)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000])
def test_tensors_that_are_torn_are_named(with_capsule, content):
    folder = with_capsule / "incidents" / "step-5"
    (folder / "capsule.safetensors").write_bytes(content)
    with pytest.raises(Torn, match=r"^capsule\.safetensors cannot be read"):
        read_capsule(folder, STEP)


@pytest.mark.parametrize(
    ("prefix", "value"),
    [
        ("adapter.", torch.zeros(3)),
        ("optimizer.updates", torch.tensor(10**12)),
        ("loss_scale.scale", torch.zeros(2)),
        ("row.", torch.tensor([10**6, 1])),
        ("row.", torch.zeros(0)),
    ],
)
def test_tensors_of_another_model_are_named_or_cost_the_capsule(with_capsule, capsys, prefix, value):
    file = with_capsule / "incidents" / "step-5" / "capsule.safetensors"
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.startswith(prefix))
    save_file(tensors | {name: value}, file)
    code, text = replay(with_capsule, capsys)
    refused = code == 2 and "step-5 belongs to another model or adapter" in text
    assert refused or (code == 0 and "cannot be replayed from (capsule.safetensors" in text)


def test_torn_statistics_and_metrics_are_named(run, capsys):
    (statistics,) = (run / "stats").glob("*.parquet")
    whole = statistics.read_bytes()
    for content in (whole[:-10], whole[: len(whole) // 2], b"", b"{}"):
        statistics.write_bytes(content)
        code, text = replay(run, capsys)
        assert (code, text.startswith(f"error: {statistics} is damaged")) == (2, True), text
    statistics.unlink()
    assert replay(run, capsys)[0] == 0
    metrics = run / "metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text(
        "\n".join([*lines, '{"step": 5, "learning_rate"', "[" * 100_000, "9" * 5000, "null", '{"step": []}'])
    )
    assert replay(run, capsys)[0] == 0
    metrics.write_text("")
    assert replay(run, capsys)[0] == 2


def test_damage_at_random_ends_in_words(with_capsule, tmp_path, capsys):
    """Through every verb that reads a run; a traceback would fail the test."""
    rng, files = random.Random(0), sorted(path for path in with_capsule.rglob("*") if path.is_file())
    verbs = (["replay", "RUN", "--step", str(STEP)], ["inspect", "RUN"], ["explain", "RUN"])
    for at in range(24):
        copy = Path(shutil.copytree(with_capsule, tmp_path / "copies" / str(at)))
        file = copy / rng.choice(files).relative_to(with_capsule)
        data = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 30)) if data else 0):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data[: rng.randrange(len(data) + 1)] if rng.random() < 0.5 else data)
        code = main([str(copy) if word == "RUN" else word for word in rng.choice(verbs)])
        assert code in (0, 2, 3), file
        shutil.rmtree(copy)
    capsys.readouterr()


def test_code_that_comes_with_a_run_is_never_run(run, tiny_models, tmp_path, capsys):
    model = Path(shutil.copytree(tiny_models["llama"], run / "model"))
    ran = tmp_path / "ran"
    edit(
        model / "config.json",
        lambda values: values.update(
            auto_map={"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M"}, model_type="foreign"
        ),
    )
    (model / "foreign.py").write_text(
        f"open({str(ran)!r}, 'w')\nimport transformers\n\n\nclass C(transformers.PretrainedConfig):\n    pass\n"
    )

    def foreign(values: dict[str, Any]) -> None:
        values["model"] |= {"trust_remote_code": True, "name_or_path": str(model)}

    config = yaml.safe_load((run / "config.yaml").read_text())
    foreign(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for file in run.glob("checkpoint-*/trainer_state.json"):
        edit(file, lambda state: foreign(state["config"]))
        (file.parent / "SHA256SUMS").unlink()
    code, text = replay(run, capsys)
    assert (code, ran.exists()) == (2, False)
    assert "read that code, then replay with --trust-remote-code" in text
    arguments = ["--config", str(run / "config.yaml"), "--resume", str(run)]
    for more in ([], ["--dry-run"]):
        assert main([*arguments, *more]) == 2
        assert "add model.trust_remote_code=true to the command" in capsys.readouterr().err
    for verb in (
        ["merge", str(run)],
        ["chat", str(run), "--prompt", "x"],
        ["inspect", str(run)],
        ["explain", str(run)],
    ):
        main(verb)
    assert not ran.exists()
    with pytest.raises(Exception, match="foreign"):  # the user's word: it does run, and has no class M
        main(["replay", str(run), "--step", str(STEP), "--trust-remote-code"])
    assert ran.exists()
