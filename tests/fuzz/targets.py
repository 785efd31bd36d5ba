"""What is read of damaged files: a folder of sound ones, which of them may be damaged, and the code that reads them.

log          a log that people hold               explain --json
config       our YAML                             the reader of configurations
import       another trainer's configuration      import
data         rows, of every kind of file          reader, templates, tokens and masks
run          a run folder, any file of it         explain, compare, inspect
report       the same                             report
checkpoint   a checkpoint                         what --resume looks at, and what it loads
adapter      an adapter                           inspect, and what merge and chat look at first
merge        an adapter                           merge
replay       a run that collapsed                 replay of that step
gguf         a GGUF file                          its conversion
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.instrument.read.logs import consoles, documents
from tests.runs import earlier

COLLAPSED_AT = 6
ROWS = [
    {"messages": [{"role": "user", "content": "하나는?"}, {"role": "assistant", "content": "일."}]},
    {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                  {"role": "assistant", "content": "b"}]},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    {"instruction": "더하세요", "input": "1 2", "output": "3"},
    {"prompt": "q", "completion": "a"},
    {"text": "a b c"},
    {"question": "q", "answer": "a"},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                  {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
                  {"role": "tool", "content": "1"}, {"role": "assistant", "content": "c"}], "tools": [{"name": "f"}]},
]  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = """\
model:
  name_or_path: {model}
lora: {{r: 8, lora_alpha: 16, target_modules: [q_proj, v_proj], lora_dropout: 0.05}}
data:
  train: {data}
  format: koalpaca
  eval_fraction: 0.1
training:
  per_device_train_batch_size: 2
  learning_rate: 2e-4
  lr_scheduler_type: cosine
  eval_strategy: steps
  eval_steps: 10
precision: {{on_collapse: heal}}
instrument: {{histogram_every: 10}}
"""
FOREIGN = {
    "axolotl.yml": """\
base_model: org/model
load_in_4bit: true
adapter: qlora
datasets:
  - path: org/data
    type: alpaca
    field_instruction: q
sequence_len: 2048
lora_r: 32
lora_alpha: 16
lora_target_modules: [q_proj, v_proj]
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 3
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
warmup_ratio: 0.1
""",
    "llamafactory.yaml": """\
model_name_or_path: org/model
stage: sft
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
per_device_train_batch_size: 1
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
bf16: true
""",
    "adapter_config.json": '{"peft_type": "LORA", "r": 8, "lora_alpha": 32, "target_modules": ["q_proj"]}',
    "args.json": '{"per_device_train_batch_size": 4, "learning_rate": 0.0001, "fp16": true, "max_steps": 100}',
    "train.py": """\
from peft import LoraConfig
from transformers import TrainingArguments
config = LoraConfig(r=16, lora_alpha=32, target_modules=["query_key_value"], lora_dropout=0.05)
arguments = TrainingArguments(output_dir="out", learning_rate=2e-4, fp16=True, max_steps=50 * 2)
""",
}


@dataclass(frozen=True)
class Target:
    """Attributes:
    name: of TARGETS.
    folder: all that is put back after an input.
    files: may be damaged.
    read: given the damaged file, the exit code; raises nothing.
    """

    name: str
    folder: Path
    files: tuple[Path, ...]
    read: Callable[[Path, Random], int]


def command(*arguments: object) -> int:
    """The command line, in this process."""
    from lora_train.trainer.cli import main

    return main([str(argument) for argument in arguments])


def refused(read: Callable[[], Any]) -> int:
    """0, or 2 where it is refused in words."""
    from lora_train.trainer.errors import in_words

    try:
        read()
    except Exception as error:
        if not in_words(error):
            raise
        return 2
    return 0


def log(folder: Path) -> Target:
    shapes = {**consoles.SHAPES, **documents.SHAPES}
    for number, (file, content, _) in enumerate(shapes.values()):
        place = folder / "logs" / str(number)
        place.mkdir(parents=True)
        (place / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    options = (("--json",), ("--lang", "ko"), ("--exit-code",), ("--trainer", "transformers"))

    def read(file: Path, random: Random) -> int:
        chosen = random.choice(options)
        code = command("explain", file, *chosen)
        return 0 if chosen == ("--exit-code",) and code == 1 else code

    return Target("log", folder / "logs", _below(folder / "logs"), read)


def config(folder: Path) -> Target:
    from lora_train.trainer.checks.read_config import read_config

    earlier.write_rows(folder)
    place = folder / "configs"
    place.mkdir()
    text = CONFIG.format(model=folder, data=folder / "rows.jsonl")
    (place / "run.yaml").write_text(text)
    (place / "full.yaml").write_text(json.dumps(earlier.settings("collapsed")))
    overrides = ((), ("training.learning_rate=1e-4",), ("lora.r=[1]",), ("training.max_steps=",), ("data={}",))

    def read(file: Path, random: Random) -> int:
        return refused(lambda: read_config(file, random.choice(overrides), lambda _: None))

    return Target("config", place, _below(place), read)


def foreign(folder: Path) -> Target:
    place = folder / "foreign"
    place.mkdir()
    for name, text in FOREIGN.items():
        (place / name).write_text(text)
    return Target("import", place, _below(place), lambda file, _: command("import", file))


def data(folder: Path) -> Target:
    import pandas as pd
    from lora_train.trainer.config.schema import Config
    from lora_train.trainer.data.examples import load_examples
    from transformers import AutoTokenizer

    earlier.write_model(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.chat_template = TEMPLATE
    place = folder / "data"
    place.mkdir()
    for number, row in enumerate(ROWS):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for _ in range(3))
        (place / f"{number}.jsonl").write_text(text, encoding="utf-8")
    (place / "rows.json").write_text(json.dumps(ROWS[:2]), encoding="utf-8")
    (place / "rows.csv").write_text('instruction,output\n"a, b",c\n한,글\n', encoding="utf-8")
    (place / "rows.tsv").write_text("instruction\toutput\na\tb\n")
    (place / "rows.txt").write_text("one\ntwo\n\nthree\n")
    with gzip.open(place / "rows.jsonl.gz", "wb") as file:
        file.write(json.dumps(ROWS[3]).encode() * 2)
    pd.DataFrame([ROWS[3]] * 3).to_parquet(place / "rows.parquet")
    formats = ("auto", "auto", "messages", "alpaca", "sharegpt", "text", "koalpaca")

    def read(file: Path, random: Random) -> int:
        values = {"train": str(file), "format": random.choice(formats), "cache": False}
        section = Config.model_validate({"model": {"name_or_path": "m"}, "data": values}).data
        return refused(lambda: load_examples(section.train, section, tokenizer))

    return Target("data", place, _below(place), read)


def run(folder: Path) -> Target:
    place = _trained(folder, "healthy")

    def read(file: Path, random: Random) -> int:
        verbs = (("explain",), ("explain", "--json"), ("compare", folder / "sound"), ("inspect",))
        return command(*random.choice(verbs), place)

    return Target("run", place, _below(place), read)


def report(folder: Path) -> Target:
    place = _trained(folder, "collapsed")
    return Target("report", place, _below(place), lambda file, _: command("report", place, "-o", place / "page.html"))


def checkpoint(folder: Path) -> Target:
    place = _trained(folder, "healthy")
    from lora_train.trainer.checks.read_config import read_config
    from lora_train.trainer.console import Console
    from lora_train.trainer.loop.checkpoint import restore
    from lora_train.trainer.run.resume import changed_settings, find_checkpoint, with_heals

    settings = read_config(place.parent / "healthy.json")
    components = _components(settings)
    found = place / "checkpoint-4"

    def resume(file: Path, random: Random) -> None:
        if random.random() < 0.5:
            (found / "SHA256SUMS").unlink(missing_ok=True)  # else every damage ends there
        chosen = find_checkpoint(random.choice((str(found), str(place))), str(place), Console(silent=True))
        if chosen is not None:
            with_heals(settings, chosen)
            changed_settings(chosen, settings)
            restore(components, chosen)

    def read(file: Path, random: Random) -> int:
        sums = found / "SHA256SUMS"
        kept = sums.read_bytes() if sums.is_file() else None
        try:
            return refused(lambda: resume(file, random))
        finally:
            if kept is not None:
                sums.write_bytes(kept)

    return Target("checkpoint", place, _below(found), read)


def adapter(folder: Path) -> Target:
    place = _trained(folder, "healthy") / "adapter"
    from lora_train.trainer.verbs.adapter_folder import read_adapter
    from lora_train.trainer.verbs.inspect_adapter import require_finite

    def read(file: Path, random: Random) -> int:
        code = refused(lambda: require_finite(read_adapter(place).folder))
        return max(code, command("inspect", place, *random.choice(((), ("--json",)))))

    return Target("adapter", place, _below(place), read)


def merge(folder: Path) -> Target:
    place = _trained(folder, "healthy") / "adapter"
    files = tuple(file for file in _below(place) if file.name.startswith("adapter_"))
    return Target("merge", place.parent, files, lambda file, _: command("merge", place, "-o", place.parent / "merged"))


def replay(folder: Path) -> Target:
    place = _trained(folder, "collapsed")

    def read(file: Path, random: Random) -> int:
        return command("replay", place, "--step", random.choice((COLLAPSED_AT, COLLAPSED_AT, 3)))

    return Target("replay", place, _below(place), read)


def gguf(folder: Path) -> Target:
    from lora_train.trainer.model.gguf import converted_gguf

    from tests.trainer.model.test_gguf import write_llama

    place = folder / "gguf"
    place.mkdir()
    path = write_llama(place / "tiny.gguf")
    os.environ["XDG_CACHE_HOME"] = str(place / "cache")
    return Target("gguf", place, (path,), lambda file, _: refused(lambda: converted_gguf(file)))


def _trained(folder: Path, name: str) -> Path:
    """A run of eight steps on a tiny model, in the folder that becomes the current one."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        earlier.prepare(folder)
        os.chdir(folder)
        code = command("--config", f"{name}.json")
    assert code == (3 if name == "collapsed" else 0), code
    if name == "healthy":
        shutil.copytree(folder / name, folder / "sound")
    return folder / name


def _components(settings: Any) -> Any:
    from lora_train.trainer.console import Console
    from lora_train.trainer.data.examples import load_examples
    from lora_train.trainer.loop.components import build
    from lora_train.trainer.loop.engine import Engine
    from lora_train.trainer.model.load import load_tokenizer, pad_token_id

    tokenizer = load_tokenizer(settings)
    rows = load_examples(settings.data.train, settings.data, tokenizer)
    return build(settings, Engine(), rows, None, pad_token_id(tokenizer), Console(silent=True))


def _below(folder: Path) -> tuple[Path, ...]:
    return tuple(sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"))


TARGETS: dict[str, Callable[[Path], Target]] = {
    "log": log, "config": config, "import": foreign, "data": data, "run": run, "report": report,
    "checkpoint": checkpoint, "adapter": adapter, "merge": merge, "replay": replay, "gguf": gguf,
}  # fmt: skip
