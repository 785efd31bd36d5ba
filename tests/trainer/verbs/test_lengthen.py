"""A longer run: its schedule, its YAML, and the ways to it with their costs."""

from __future__ import annotations

import shutil
from argparse import Namespace

import pytest
import yaml
from lora_train.trainer.config.schema import Config, TrainingSection
from lora_train.trainer.errors import UserError
from lora_train.trainer.loop.lr_schedule import lr_table
from lora_train.trainer.verbs.lengthen import WIDTH, drawn, lengthened, run, told

from ...conftest import ROOT

HEALTHY = ROOT / "tests" / "runs" / "healthy"


def section(**training) -> TrainingSection:
    return TrainingSection(**{"learning_rate": 1e-3, **training})


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(HEALTHY, tmp_path / "run")
    return tmp_path / "run"


def asked(folder, steps: int, output=None) -> Namespace:
    return Namespace(run=folder, max_steps=steps, output=output)


def test_a_linear_decay_keeps_its_length_and_comes_later():
    longer = lengthened(section(warmup_ratio=0.1), 100, 300)
    assert longer.settings["lr_scheduler_type"] == "warmup_stable_decay"
    assert longer.then[:10] == pytest.approx(longer.now[:10])  # the warm-up keeps its steps
    assert longer.then[10:210] == pytest.approx([1e-3] * 200)
    assert longer.then[-90:] == pytest.approx(longer.now[-90:])
    assert longer.decay_from is None


def test_a_cosine_is_stretched_at_its_peak():
    longer = lengthened(section(lr_scheduler_type="cosine", warmup_steps=10), 100, 280)
    assert max(longer.then) == max(longer.now) == pytest.approx(1e-3)
    assert longer.then[10 + 3 * 30] == pytest.approx(longer.now[10 + 30], rel=1e-6)
    assert "lr_scheduler_type" not in longer.settings


def test_a_stable_part_grows_and_the_decay_begins_later():
    stable = section(
        lr_scheduler_type="warmup_stable_decay", lr_scheduler_kwargs={"num_decay_steps": 20}, warmup_steps=10
    )
    longer = lengthened(stable, 100, 200)
    assert longer.decay_from == 80
    assert longer.now[80] == longer.then[180] == pytest.approx(1e-3)
    assert longer.then[:80] == pytest.approx(longer.now[:80])  # a checkpoint before the decay fits both
    told_twice = {"num_decay_steps": 20, "num_stable_steps": 70}
    named = lengthened(stable.model_copy(update={"lr_scheduler_kwargs": told_twice}), 100, 200)
    assert named.settings["lr_scheduler_kwargs"] == {"num_decay_steps": 20, "num_stable_steps": 170}
    assert named.then == pytest.approx(longer.then)


def test_added_steps_that_hardly_move_are_warned_of(tmp_path):
    cold = section(lr_scheduler_type="polynomial", lr_scheduler_kwargs={"power": 6.0})
    longer = lengthened(cold, 100, 400)
    assert longer.cold > 0.5
    assert any(
        "of the added steps run below 10%" in line for line in told(longer, "polynomial", tmp_path, tmp_path, 1.0)
    )
    assert lengthened(section(), 100, 400).cold < 0.01


def test_a_drawing_has_one_axis():
    assert drawn([1.0] * 50, 100, 1.0) == "█" * (WIDTH // 2)
    assert drawn([1.0] * 100, 100, 1.0) == "█" * WIDTH
    assert drawn([0.0] * 100, 100, 1.0) == "▁" * WIDTH


def test_the_yaml_is_a_run_of_its_own(folder, capsys):
    assert run(asked(folder, 300)) == 0
    text = capsys.readouterr().out
    output = folder.with_name("run-to-300.yaml")
    config = Config.model_validate(yaml.safe_load(output.read_text()))
    before = Config.model_validate(yaml.safe_load((folder / "config.yaml").read_text()))
    assert (config.training.max_steps, config.training.output_dir) == (300, str(folder.with_name("run-to-300")))
    assert config.lora == before.lora
    assert len(lr_table(config.training, 300)) == 301
    assert f"lora-train --config {output}   # 300 steps, about " in text
    with pytest.raises(UserError, match="is there already"):
        run(asked(folder, 300))
    assert run(asked(folder, 300, folder.with_name("other.yaml"))) == 0


def test_where_the_rate_has_not_fallen_it_may_go_on(folder, capsys):
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    settings["training"]["lr_scheduler_type"] = "constant"
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    run(asked(folder, 300))
    assert "at or before step 150, where the rate has not fallen yet, but none is left" in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "said"), [(150, "no longer than the run: it has 150"), (1, "no longer")])
def test_what_is_no_longer_is_refused(folder, steps, said):
    with pytest.raises(UserError, match=said):
        run(asked(folder, steps))


def test_a_folder_of_another_program_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no run folder of lora-train"):
        run(asked(tmp_path, 10))


def test_code_that_a_received_run_names_is_not_carried_over(folder, capsys):
    """The file lies outside of the run: nobody would ask any more whose word it is."""
    own = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    own["model"]["trust_remote_code"] = True
    own["training"]["compute_metrics"] = "theirs:scores"
    (folder / "config.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    assert run(asked(folder, 1000)) == 0
    written = yaml.safe_load((folder.parent / "run-to-1000.yaml").read_text(encoding="utf-8"))
    assert (written["model"]["trust_remote_code"], written["training"]["compute_metrics"]) == (False, None)
    said = capsys.readouterr().out
    assert "model.trust_remote_code=true training.compute_metrics=theirs:scores" in said
