"""docs/config.md: what every key of the configuration means."""

from __future__ import annotations

import re

from lora_train.trainer.checks.no_effect import RULES
from lora_train.trainer.config.reference import Key, in_languages, keys
from lora_train.trainer.config.schema import sections

from .table import NOTE, table

CONFIG = {
    "en": """# Configuration

`lora-train --config FILE` reads a YAML file with these sections; `section.key=value` behind it on the command line
wins. A mistake is answered before anything is written. `lora-train --help` says the same as this page.

With `# yaml-language-server: $schema=config.schema.json` in its first line an editor that speaks that protocol
completes the file and checks it while you type. `lora-train schema -o config.schema.json` writes the schema of the
version that is installed.
""",
    "ko": """# 설정

`lora-train --config FILE`은 아래 섹션으로 된 YAML 파일을 읽습니다. 명령줄에서 그 뒤에 적은 `section.key=value`는 파일에
적은 값보다 우선합니다. 틀린 것이 있으면 무엇이든 쓰기 전에 알려 줍니다. `lora-train --help`에도 같은 내용이 나옵니다.

첫 줄에 `# yaml-language-server: $schema=config.schema.json`을 적으면, 이를 지원하는 편집기가 입력하는 동안 자동
완성하고 검사합니다. `lora-train schema -o config.schema.json`은 설치된 버전의 스키마를 저장합니다.
""",
}
KEY_HEADINGS = {
    "en": ("key", "type", "default", "allowed", "meaning", "note"),
    "ko": ("키", "타입", "기본값", "쓸 수 있는 값", "뜻", "참고"),
}
TYPES = {
    "en": {
        "string": "string", "integer": "integer", "number": "number", "boolean": "true, false", "object": "mapping",
        "array of string": "list of strings", "array of integer": "list of integers",
    },
    "ko": {
        "string": "문자열", "integer": "정수", "number": "수", "boolean": "true, false", "object": "매핑",
        "array of string": "문자열 목록", "array of integer": "정수 목록",
    },
}  # fmt: skip
REQUIRED = {"en": "required", "ko": "필수"}
NO_EFFECT = {
    "en": ("No effect with {}.", "{} decides whether it has an effect."),
    "ko": ("{}일 때는 효과가 없습니다.", "{}에 따라 효과가 없을 수 있습니다."),
}
"""Where a rule names a value, and where it names a key alone."""


def config(lang: str) -> str:
    """docs/config.md, or its Korean sister."""
    text = CONFIG[lang]
    for name, section in sections().items():
        rows = [KEY_HEADINGS[lang], *(_key(key, lang) for key in keys() if key.name.startswith(f"{name}."))]
        text += f"\n## {name}\n\n{in_languages(section.__doc__ or '')[lang]}\n\n{table(rows)}\n"
    return text + NOTE.format(source="trainer/config/sections.py and training.py")


def _key(key: Key, lang: str) -> tuple[str, ...]:
    names = TYPES[lang]
    types = ", ".join(names[kind] for kind in key.types if kind != "null")
    allowed = ", ".join(word if re.match("[≥>≤<0-9]", word) else f"`{word}`" for word in key.allowed)
    default = REQUIRED[lang] if key.default is None else f"`{key.default}`"
    return f"`{key.name.partition('.')[2]}`", types, default, allowed, key.meaning[lang], _note(key, lang)


def _note(key: Key, lang: str) -> str:
    """When the key changes nothing, as a run that sets it is told."""
    reasons = dict.fromkeys(reason for rule, _, reason in RULES if key.name in rule)
    kinds = [reason for reason in reasons if "=" in reason], [reason for reason in reasons if "=" not in reason]
    told = [
        sentence.format(", ".join(f"`{reason}`" for reason in kind))
        for sentence, kind in zip(NO_EFFECT[lang], kinds, strict=True)
        if kind
    ]
    return " ".join(told)
