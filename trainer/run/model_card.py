"""The README.md of an adapter folder: what it is, how to load it, how it was made."""

from __future__ import annotations

import importlib.metadata

import yaml

from ..config.schema import Config
from ..console import compact
from ..data.sources import source_name

CARD = """\
---
{front_matter}---

# LoRA adapter for {model}

Trained with [lora-train](https://pypi.org/project/lora-vitals/) {version} on `{data}`; final training loss {loss}.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

name = {model!r}
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), "path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained(name)
```

Prompts follow the `{format}` format. Training used: {frameworks}.

<details><summary>Configuration</summary>

```yaml
{config}```

</details>
"""


def model_card(config: Config, final_loss: float | None) -> str:
    """Markdown with YAML front matter and the whole configuration folded in."""
    front_matter = {
        "base_model": config.model.name_or_path,
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "lora-train"],
    }
    packages = ("torch", "transformers", "peft", "bitsandbytes")
    return CARD.format(
        front_matter=yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True),
        model=config.model.name_or_path,
        version=importlib.metadata.version("lora-vitals"),
        data=source_name(config.data.train),
        loss=compact(final_loss),
        format="prompt_template" if config.data.prompt_template is not None else config.data.format,
        frameworks=", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages),
        config=yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True),
    )
