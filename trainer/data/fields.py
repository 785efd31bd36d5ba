"""What the fields of a row mean: the names other data sets give ours, those that are refused, those that are not used.

Nothing of a row disappears without a word. A field is read by the format, or refused by its name because it changes
what should be trained on, or told as not used. `data.columns` renames a column ({ours: theirs}) or leaves it out on
purpose ({theirs: null}).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .readers import BadRow

Fault = tuple[str, dict[str, Any]]
Note = tuple[str, tuple[tuple[str, str], ...]]

# A pair or a list of answers of which one is better, and what someone thought of one.
PREFERENCE = (
    "chosen",
    "rejected",
    "chosen_response",
    "rejected_response",
    "preferred",
    "dispreferred",
    "preferred_output",
    "non_preferred_output",
    "kto_tag",
    "kto_label",
    "reward",
    "rewards",
)
FEEDBACK_LABELS = ("label", "labels", "is_good", "is_preferred")
MEDIA = ("images", "image", "videos", "video", "audios", "audio", "image_url", "image_path")
# How much of a row counts, in ways that rows as a whole cannot have here.
WEIGHTS = ("weight", "loss_weight", "sample_weight", "weights", "token_weights", "train", "trainable")
MASKS = ("loss_mask", "completion_mask", "prompt_mask", "assistant_masks", "masked", "mask", "segments", "train_mask")
SYSTEM = ("system", "system_prompt", "systemInstruction", "system_instruction")
HISTORY = ("history",)
TREE = ("parent_id", "parent_message_id")
# Names of the question and of the answer in data sets whose fields are not ours; the first that rows have are read.
QUESTIONS = ("instruction", "question", "query", "prompt", "problem", "input", "질문")
ANSWERS = ("output", "answer", "response", "completion", "solution", "target", "답변")
CONTEXTS = ("input", "context")
ONE, ZERO = (1, "1", "1.0", "true", "True"), (0, "0", "0.0", "false", "False")


def is_empty(value: Any) -> bool:
    """Whether a field holds nothing: parquet and CSV give every row every field."""
    return value is None or (isinstance(value, (str, list, tuple, dict)) and not value)


def renamed(row: Any, columns: Mapping[str, str | None]) -> Any:
    """The row with `data.columns` applied; {ours: theirs} or {theirs: None}.

    Raises:
        BadRow: a column is not there.
    """
    if not columns or not isinstance(row, dict):
        return row
    lacking = [theirs for theirs in columns.values() if theirs is not None and theirs not in row]
    if lacking:
        found = printable(", ".join(map(str, row)) or "-")
        raise BadRow(*(("data.no_column", {"field": printable(field), "found": found}) for field in lacking))
    moved = {theirs for theirs in columns.values() if theirs is not None}
    left_out = {ours for ours, theirs in columns.items() if theirs is None}
    kept = {field: value for field, value in row.items() if field not in moved | left_out}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs is not None}


def require_supported(row: Mapping[str, Any], used: Iterable[str], answers: bool = True) -> None:
    """Refuses what says that not all of a row is an answer to learn, unless the format reads such a field.

    Args:
        row: as read.
        used: the fields that the format reads.
        answers: whether the row has an answer: a label beside plain text is a class, beside an answer it is feedback.

    Raises:
        BadRow: names the field.
    """
    used = set(used)
    chosen = bool(used & set(PREFERENCE))  # the user's own template takes one of two answers
    faults: list[Fault] = []
    for field, value in row.items():
        if field in TREE and "role" in row:  # that of the first message is empty
            faults.append(("data.tree", {"field": field}))
        if field in used or is_empty(value):
            continue
        if (field in PREFERENCE and not chosen) or (answers and field in FEEDBACK_LABELS and _is_feedback(value)):
            faults.append(("data.preference", {"field": field}))
        elif field in MEDIA:
            faults.append(("data.media", {"field": field}))
        elif field in MASKS or (field in WEIGHTS and not _is_one(value)):
            faults.append(("data.counts", {"field": field}))
    if faults:
        raise BadRow(*faults)


def _is_one(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str)) and value in ONE


def _is_feedback(value: Any) -> bool:
    """Good or bad: a number of classes is another matter."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, bool) for item in value)
    return isinstance(value, (bool, int, float, str)) and (value in ONE or value in ZERO)


def has_no_place(row: Mapping[str, Any], used: Iterable[str]) -> list[Fault]:
    """Fields that belong to what is answered and that a format of one question cannot hold."""
    used = set(used)
    fields = [
        field
        for field in (*SYSTEM, *HISTORY, "tools", "functions")
        if field not in used and not is_empty(row.get(field))
    ]
    return [("data.no_place", {"field": field}) for field in fields]


def needs_chat(row: Any) -> bool:
    """Whether a row of question and answer holds more than those two can: a system prompt, earlier turns, tools."""
    return isinstance(row, dict) and bool(has_no_place(row, ()))


def not_used(row: Mapping[str, Any], used: Iterable[str]) -> tuple[Note, ...]:
    """A note for every field that holds something and is not read."""
    used = {*used, *WEIGHTS}
    fields = [str(field) for field, value in row.items() if field not in used and not is_empty(value)]
    return tuple(("data.not_used", (("field", printable(field)),)) for field in fields)


def turns_elsewhere(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{messages: field} of rows that keep their turns as Gemini takes them: contents, of a role and parts each."""
    are_turns = rows and all(isinstance(row.get("contents"), list) for row in rows)
    return {"messages": "contents"} if are_turns else {}


def question_and_answer(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """{instruction, output and perhaps input: field} of rows that call them otherwise; empty if they have none."""
    if not rows:
        return {}

    def usual(names: Iterable[str], taken: Iterable[str] = ()) -> str | None:
        known = [name for name in names if name not in taken and any(name in row for row in rows)]
        return known[0] if known else None

    answer = usual(ANSWERS)
    question = usual(QUESTIONS, [answer or ""])
    if question is None or answer is None:
        return {}
    context = usual(CONTEXTS, [question, answer])
    return {"instruction": question, "output": answer, **({"input": context} if context else {})}


def printable(text: str) -> str:
    """The text as a terminal can show it: names of fields come from the file."""
    return text.encode("utf-8", "backslashreplace").decode()
