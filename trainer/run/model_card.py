"""What an adapter folder holds beside its weights: a README.md that says what it is, how to load it and how it was
made, and the tokenizer, as whoever loads the folder expects.

A folder is shared as it is, so no path of the machine it was made on stands in the card: of each the last part is left.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path
from typing import Any

import yaml

from ..config.names import is_path
from ..config.schema import Config
from ..console import compact
from ..data.conversations import find_template
from ..errors import first_line
from ..model.gguf_header import gguf_repository
from ..model.load import load_tokenizer

PIPELINES = {"causal_lm": "text-generation", "seq_cls": "text-classification", "token_cls": "token-classification"}
CLASSES = {"causal_lm": "CausalLM", "seq_cls": "SequenceClassification", "token_cls": "TokenClassification"}
CARD = """\
---
{front_matter}---

# LoRA adapter for {model}

Trained with lora-train {version} on `{data}`; final training loss {loss}.

```python
from peft import {auto_class}
from transformers import AutoTokenizer

adapter = "path/to/this/folder"
model = {auto_class}.from_pretrained(adapter{arguments})
tokenizer = AutoTokenizer.from_pretrained({tokenizer})
```

{base}{told} Training used: {frameworks}.

<details><summary>Configuration</summary>

```yaml
{config}```

</details>
"""
LOCAL = """\
`base_model_name_or_path` in adapter_config.json is the base model's place on the machine that trained the adapter.
Elsewhere, {how} and write its place there.

"""
FOLDER = "put the folder of `{model}` somewhere"
GGUF = "load the same file, `AutoModelForCausalLM.from_pretrained(folder, gguf_file={model!r})`, save it as a folder"


def describe(folder: Path, config: Config, final_loss: float | None) -> None:
    """Adds card and tokenizer to an adapter's folder; without the tokenizer, if it cannot be loaded any more.

    Raises:
        OSError: the disk refused.
    """
    try:
        tokenizer = load_tokenizer(config)
        if config.data.chat_template is not None:
            tokenizer.chat_template = find_template(config.data.chat_template, tokenizer)
    except Exception:  # the hub is gone, or a file, and tokenizers raises bare Exceptions: the weights are what counts
        tokenizer = None
    if tokenizer is not None:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # of tokenizers, also for a full disk
            raise OSError(first_line(error)) from error
    (folder / "README.md").write_text(model_card(config, final_loss, tokenizer is not None), encoding="utf-8")


def model_card(config: Config, final_loss: float | None, has_tokenizer: bool = True) -> str:
    """Markdown with YAML front matter and the whole configuration folded in."""
    base, shown = config.model.name_or_path, without_place(config.model.name_or_path)
    named = shared_name(base)
    front_matter = {
        **({} if named is None else {"base_model": named}),
        **({"datasets": shared} if (shared := shared_data(config)) else {}),
        "library_name": "peft",
        "pipeline_tag": PIPELINES[config.model.task],
        "tags": ["lora", "lora-train"],
    }
    how = GGUF if base.endswith(".gguf") else FOLDER
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    data = without_place(config.data.train)
    return CARD.format(
        front_matter=yaml.safe_dump(
            {key: value for key, value in front_matter.items() if value is not None},
            sort_keys=False,
            allow_unicode=True,
        ),
        model=shown,
        version=importlib.metadata.version("lora-vitals"),
        data=data if isinstance(data, str) else ", ".join(data),
        loss=compact(final_loss),
        tokenizer="adapter" if has_tokenizer else "model.peft_config['default'].base_model_name_or_path",
        base=LOCAL.format(how=how.format(model=shown)) if is_path(base) else "",
        auto_class=f"AutoPeftModelFor{CLASSES[config.model.task]}",
        arguments="" if not config.is_classifier else f", num_labels={len(config.data.labels or '1')}",
        told=_told(config),
        frameworks=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        config=yaml.safe_dump(without_place(config.model_dump()), sort_keys=False, allow_unicode=True),
    )


def _told(config: Config) -> str:
    """What the model reads, or gives."""
    if config.is_classifier:
        names = config.data.labels
        if not names:
            return "It gives a number (regression)."
        return "Labels: " + ", ".join(f"{number} `{name}`" for number, name in enumerate(names)) + "."
    form = "prompt_template" if config.data.prompt_template is not None else config.data.format
    return f"Prompts follow the `{form}` format."


def shared_name(base: str) -> str | None:
    """What others know the base model by: its id on the hub; None of a folder, and of a file that names none."""
    if not is_path(base):
        return base
    path = Path(os.path.expanduser(base))
    return gguf_repository(path) if path.suffix == ".gguf" else None


def shared_data(config: Config) -> list[str]:
    """Ids on the hub of the training rows; files are not among them."""
    sources = [config.data.train] if isinstance(config.data.train, str) else config.data.train
    return [source for source in sources if not is_path(source)]


def without_place(value: Any) -> Any:
    """A setting, or whatever holds settings, with the last part alone of each path."""
    if isinstance(value, dict):
        return {key: without_place(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_place(item) for item in value]
    if not isinstance(value, str) or "\n" in value or os.sep not in value:
        return value
    placed = value.startswith(("/", "~", "./", "../")) or os.path.exists(value)
    return os.path.basename(value.rstrip("/")) or value if placed else value
