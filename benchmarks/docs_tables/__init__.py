"""The pages of docs/ that are made from the code: `make docs-tables` writes them.

    numbers.py   docs/numbers.md, numbers.ko.md    every number of a run folder       instrument/read/schema.py
    config.py    docs/config.md, config.ko.md      every key of the configuration     trainer/config/
                 docs/config.schema.json           the same for an editor             `lora-train schema`

Texts that introduce a table stand here; what a column or a key means stands in the code and nowhere else.
"""

from __future__ import annotations

from pathlib import Path

from lora_train.trainer.verbs.print_schema import schema_text

from .config import config
from .numbers import numbers

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"


def pages() -> dict[str, str]:
    """Every page by its name in docs/."""
    return {
        "numbers.md": numbers("en"),
        "numbers.ko.md": numbers("ko"),
        "config.md": config("en"),
        "config.ko.md": config("ko"),
        "config.schema.json": schema_text(),
    }
