"""From a source of rows to tokens and a mask that says which of them are trained on.

    sources.py -> formats.py, conversations.py -> masks.py -> cache.py
    rows               text and spans         tokens      flat arrays on disk

Rows keep the 0-based index they had in the source, bad ones and those without a target included; nothing here imports
torch.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from ...instrument.messages import language, say
from ..config.schema import DataSection
from ..errors import Problem, UserError, problem
from ..phases import is_shown, phase
from .cache import Packed, cache_key, load_packed, save_packed, tokenizer_hash
from .conversations import ChatFormat, find_template
from .dataset import IGNORE_INDEX as IGNORE_INDEX
from .dataset import Dataset, Example
from .fields import Note, needs_chat, printable, question_and_answer, renamed, require_supported, turns_elsewhere
from .formats import CHATS, DETECTION_ROWS, FORMATS, Format, Rendered, custom_format, detect, require_object
from .masks import end_of, tokenize
from .sources import BadRow, Source, Where, open_source, source_name

MAX_BAD_ROWS_SHOWN = 5
# rows rendered and tokenized at a time: offsets are Python objects, 20 times the size of the tokens
CHUNK = 1000
CUSTOM = "prompt_template"
# Formats whose rows may call the question and the answer otherwise, in every file of a run.
ALIASED = ("koalpaca", "alpaca", "messages")


def load_examples(
    source: str | Sequence[str] | Source, data: DataSection, tokenizer: Any, limit: int | None = None
) -> Dataset:
    """Reads, checks, tokenizes and masks a source, or takes what an earlier start has kept of it.

    Args:
        source: data.train or data.eval, or what was opened of it.
        data: format, cutoff_len, mask rule, what to do with bad rows, whether to keep the tokens.
        tokenizer: a fast transformers tokenizer.
        limit: use only the first rows.

    Raises:
        UserError: rows that cannot be used, by file and line; or no row with a supervised token.
    """
    origin = source if isinstance(source, Source) else open_source(source)
    key = _cache_key(origin, data, tokenizer, limit) if data.cache else None
    packed = load_packed(key) if key is not None else None
    if packed is None:
        packed = _tokenized(origin, data, tokenizer, limit)
        if key is not None:
            save_packed(key, packed)
    ends = packed.offsets
    examples = [
        Example(int(row), packed.input_ids[start:end], packed.supervised[start:end])
        for row, start, end in zip(packed.rows, ends[:-1], ends[1:], strict=True)
    ]
    dropped = packed.dropped.tolist()
    name = origin.name if isinstance(source, Source) else source_name(source)
    notes = [(as_note(key, values), count) for key, values, count in packed.notes]
    found = (packed.truncated, packed.format, packed.n_skipped, packed.skipped, packed.n_rows)
    return Dataset(name, examples, dropped, *found, notes)


def as_note(key: str, values: Iterable[Sequence[str]]) -> Note:
    """A note as it is kept in JSON."""
    return key, tuple((name, value) for name, value in values)


def _cache_key(origin: Source, data: DataSection, tokenizer: Any, limit: int | None) -> str:
    shown = data.on_bad_row == "skip"  # the file's name and the language are in what is kept of skipped rows
    is_chat = data.prompt_template is None and (data.format == "auto" or data.format in CHATS)
    return cache_key(
        {
            "content": _readable(origin),
            "kinds": [path.suffix.lower() for path in origin.files],
            "format": data.format,
            "columns": data.columns,
            "prompt_template": data.prompt_template,
            "chat_template": find_template(data.chat_template, tokenizer) if is_chat and data.chat_template else None,
            "tokenizer": tokenizer_hash(tokenizer),
            "train_on_inputs": data.train_on_inputs,
            "cutoff_len": data.cutoff_len,
            "limit": limit,
            "on_bad_row": [origin.name, language()] if shown else None,
            "versions": [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        }
    )


def _readable(origin: Source) -> str:
    try:
        return origin.content_hash()
    except OSError as error:
        raise UserError(problem("data.unreadable", source=origin.name, what=error.strerror or error)) from error


class BadRows:
    """What is wrong with which rows: the first few in words, all of them counted."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[Problem] = []

    def add(self, bad: BadRow, where: Where) -> None:
        self.count += 1
        if self.count <= MAX_BAD_ROWS_SHOWN:
            self.first += bad.problems(where)

    def error(self, *also: Problem) -> UserError:
        more = self.count - MAX_BAD_ROWS_SHOWN
        return UserError(*also, *self.first, *([problem("data.more_bad_rows", count=more)] if more > 0 else []))


def _tokenized(origin: Source, data: DataSection, tokenizer: Any, limit: int | None) -> Packed:
    rows = renamed_rows(itertools.islice(origin.rows(), limit), data.columns)
    opening = list(itertools.islice(rows, DETECTION_ROWS))
    if not opening:
        raise UserError(problem("data.empty", source=origin.name))
    name, aliases = _detected(origin, data, tokenizer, opening, rows)
    form = _format(name, data, tokenizer)
    bad, found = BadRows(), _Tokens(data, tokenizer, is_chat=name in CHATS)
    if aliases:
        opening = list(renamed_rows(opening, aliases))
        rows = renamed_rows(rows, aliases)
        found.notes[("data.read_as", tuple(sorted(aliases.items())))] = 0
    rendered = _rendered(itertools.chain(opening, rows), form, bad)
    with phase(say("phase.tokenizing", source=origin.name), _n_rows(origin, limit)) as advance:
        while chunk := list(itertools.islice(rendered, CHUNK)):
            if not bad.count or data.on_bad_row == "skip":  # else the rest is read for its errors only
                found.add(chunk)
            advance(len(chunk))
    if bad.count and data.on_bad_row == "error":
        raise bad.error()
    if bad.count and not found.kept and not found.dropped:
        raise bad.error(problem("data.all_bad", source=origin.name))
    if not found.kept:
        raise UserError(found.why_nothing(origin.name))
    return found.packed(name, bad)


def _n_rows(origin: Source, limit: int | None) -> int | None:
    """Rows there are to read, for whoever watches; None where that is not known without reading them."""
    if not is_shown() or any(path.suffix != ".jsonl" for path in origin.files):
        return None
    n_rows = len(origin.table) if origin.table is not None else 0
    for path in origin.files:
        with path.open("rb") as file:
            n_rows += sum(block.count(b"\n") for block in iter(lambda file=file: file.read(1 << 20), b""))
    return n_rows if limit is None else min(n_rows, limit)


class _Tokens:
    """The tokens of the rows so far, and what is to be said of them."""

    def __init__(self, data: DataSection, tokenizer: Any, is_chat: bool):
        self.data, self.tokenizer, self.is_chat = data, tokenizer, is_chat
        self.kept: list[Example] = []
        self.dropped: list[int] = []
        self.notes: Counter[Note] = Counter()
        self.truncated = self.without_end = self.untargeted = 0

    def add(self, chunk: Sequence[tuple[int, Rendered]]) -> None:
        """Tokenizes rows; one of several answers that stand in texts of their own is several examples."""
        cutoff, inputs = self.data.cutoff_len, self.data.train_on_inputs
        parts = [(i, part) for i, row in chunk for part in ([] if inputs else row.earlier)]
        parts = sorted([*parts, *chunk], key=lambda pair: pair[0])  # a row's whole text stays behind its parts
        of_row = Counter(i for i, _ in parts)
        tokens = tokenize([part for _, part in parts], self.tokenizer, inputs, is_chat=self.is_chat)
        for (index, part), (ids, supervised) in zip(parts, tokens, strict=True):
            of_row[index] -= 1
            self.truncated += len(ids) > cutoff
            self.without_end += (
                bool(part.spans) and len(ids) <= cutoff and end_of(ids, supervised, self.tokenizer) is None
            )
            example = Example(index, ids[:cutoff], supervised[:cutoff])
            self.untargeted += not part.spans
            if example.n_supervised:
                self.kept.append(example)
            elif not of_row[index] and (not self.kept or self.kept[-1].row != index):
                self.dropped.append(index)
        self.notes.update(note for _, row in chunk for note in row.notes)

    def why_nothing(self, source: str) -> Problem:
        """Why no row has anything to train on."""
        if self.untargeted == len(self.dropped):
            return problem("data.no_answer", source=source)
        return problem("data.nothing_supervised", source=source, cutoff=self.data.cutoff_len)

    def packed(self, name: str, bad: BadRows) -> Packed:
        kept, notes = self.kept, self.notes
        if self.without_end:
            notes["data.no_end", ()] = self.without_end
        return Packed(
            np.concatenate([example.input_ids for example in kept]),
            np.concatenate([example.supervised for example in kept]),
            np.cumsum([0, *(len(example.input_ids) for example in kept)], dtype=np.int64),
            np.array([example.row for example in kept], np.int64),
            np.array(self.dropped, np.int64),
            self.truncated,
            name,
            bad.count,
            tuple(fault.error for fault in bad.first),
            len({example.row for example in kept}) + len(self.dropped) + bad.count,
            tuple((key, values, count) for (key, values), count in notes.items()),
        )


def renamed_rows(rows: Iterable[tuple[Where, Any]], columns: Mapping[str, str | None]) -> Iterator[tuple[Where, Any]]:
    """The rows with their columns renamed; the names of a turn's fields are for the turns."""
    columns = {ours: theirs for ours, theirs in columns.items() if ours not in ("role", "content")}
    for where, row in rows:
        try:
            yield where, renamed(row, columns)
        except BadRow as bad:
            yield where, bad


def _other_names(aliases: Mapping[str, str], form: str) -> dict[str, str]:
    """Those that differ, of the fields that the format reads."""
    unread = {"koalpaca": {"input", "messages"}, "alpaca": {"messages"}}.get(form, set())
    return {ours: theirs for ours, theirs in aliases.items() if ours != theirs and ours not in unread}


def _detected(
    origin: Source,
    data: DataSection,
    tokenizer: Any,
    opening: Sequence[tuple[Where, Any]],
    rest: Iterable[tuple[Where, Any]],
) -> tuple[str, dict[str, str]]:
    """The format to read, and what its fields are called if the rows call them otherwise."""
    if data.prompt_template is not None:
        return CUSTOM, {}
    rows = [row for _, row in opening if isinstance(row, dict)]
    name, aliases = detect(rows), {}
    if name is None and data.format in ("auto", *ALIASED):
        aliases = turns_elsewhere(rows) or question_and_answer(rows)
    if data.format != "auto":
        return data.format, _other_names(aliases, data.format)
    if name is None:
        if not aliases:
            raise _unknown_fields(origin, opening, rest)
        name = "messages" if "messages" in aliases else "alpaca" if "input" in aliases else "koalpaca"
        aliases = _other_names(aliases, name)
    has_template = data.chat_template is not None or tokenizer.chat_template is not None
    if name in ("koalpaca", "alpaca", "prompt_completion") and has_template and any(map(needs_chat, rows)):
        name = "messages"
    return name, aliases


def _rendered(
    rows: Iterable[tuple[Where, Any]], form: Format | ChatFormat, bad: BadRows
) -> Iterator[tuple[int, Rendered]]:
    for index, (where, row) in enumerate(rows):
        try:
            yield index, form.render(row)
        except BadRow as fault:
            bad.add(fault, where)


def _format(name: str, data: DataSection, tokenizer: Any) -> Format | ChatFormat:
    if data.prompt_template is not None:
        return custom_format(data.prompt_template)
    if name in CHATS:
        template = find_template(data.chat_template, tokenizer)
        return ChatFormat(name, template, tokenizer.special_tokens_map, data.columns)
    return FORMATS[name]


def _unknown_fields(
    origin: Source, opening: Sequence[tuple[Where, Any]], rest: Iterable[tuple[Where, Any]]
) -> UserError:
    """No row fits any format: because all are broken, are feedback, or because their fields have other names."""
    bad = BadRows()
    for where, row in opening:
        try:
            require_supported(row if isinstance(row, dict) else {}, ())
        except BadRow as fault:
            bad.add(fault, where)
    if bad.count:
        return bad.error()
    found = ", ".join(dict.fromkeys(str(field) for _, row in opening if isinstance(row, dict) for field in row))
    if found:
        values = {"source": origin.name, "found": printable(found)}
        turns = (f for _, row in opening if isinstance(row, dict) for f, value in row.items() if _are_turns(f, value))
        if (field := next(turns, None)) is not None:
            return UserError(problem("data.no_format_turns", **values, field=printable(str(field))))
        return UserError(problem("data.no_format", **values))
    for where, row in itertools.chain(opening, rest):
        try:
            require_object(row)
        except BadRow as fault:
            bad.add(fault, where)
    return bad.error() if bad.count else UserError(problem("data.no_format", source=origin.name, found="-"))


def _are_turns(field: str, value: Any) -> bool:
    """Whether a field may hold a conversation: each turn says in two texts who says what."""
    turns = value if isinstance(value, list) and field not in ("tools", "functions") else []
    texts = [[v for v in turn.values() if isinstance(v, str)] if isinstance(turn, dict) else [] for turn in turns]
    if turns and isinstance(turns[0], dict) and question_and_answer([turns[0]]):  # rows under a name of their own
        return False
    return bool(texts) and all(len(own) > 1 for own in texts)
