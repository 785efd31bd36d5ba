"""From rows of text and label to tokens and numbers.

A row is cut where the tokenizer cuts it, so that the tokens that end a text stay. Of words the label stands at the
first token of each, as in transformers' own examples; the others have none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...config.schema import Config
from ...config.settings import with_settings
from ...errors import UserError, problem
from ..dataset import IGNORE_INDEX, Dataset, Example
from ..examples import BadRows
from ..fields import Note
from ..readers import BadRow
from ..sources import open_source, source_name
from .labels import IGNORED, SEVERAL, SINGLE, VALUE, Labels, names_in, problem_type_of
from .rows import Labelled, read_labelled

# rows tokenized at a time
CHUNK = 1000


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Attributes:
        config: data, model.task, model.problem_type.
        tokenizer: a fast transformers tokenizer.
        longest: tokens a row may have.
        labels: what labels there are; None: those that the rows have.
        own_names: classes of the base model's own head, which are taken where they are those of the rows.
        needs_label: whether every row must have one.
    """

    config: Config
    tokenizer: Any
    longest: int
    labels: Labels | None = None
    own_names: tuple[str, ...] = ()
    needs_label: bool = True


def load_labelled(source: str | Sequence[str], reading: Reading, limit: int | None = None) -> Dataset:
    """The rows of a source as tokens and labels.

    Raises:
        UserError: rows that cannot be used, by file and line; or no row, or fewer than two classes.
    """
    config, origin, bad = reading.config, open_source(source), BadRows()
    data, task = config.data, config.model.task
    rows, fields, unused = read_labelled(origin, data, task, limit, bad, reading.needs_label)
    n_read = len(rows) + bad.count
    if not n_read:
        raise UserError(problem("data.empty", source=origin.name))
    if bad.count and data.on_bad_row == "error":
        raise bad.error()
    labels = reading.labels or labels_of(rows, reading, bad)
    encoded = [_encoded(row, labels, bad) for row in rows]
    if bad.count and (data.on_bad_row == "error" or not any(e is not None for e in encoded)):
        raise bad.error() if data.on_bad_row == "error" else bad.error(problem("data.all_bad", source=origin.name))
    pairs = [(row, label) for row, label in zip(rows, encoded, strict=True) if label is not None]
    examples, n_cut = tokenized(pairs, reading, labels)
    notes: dict[Note, int] = {("data.not_used", (("field", field),)): 1 for field in unused}
    ours = ("tokens" if task == "token_cls" else "text", "text_pair", "labels" if task == "token_cls" else "label")
    read_as = [(name, own) for name, own in zip(ours, vars(fields).values(), strict=True) if own and name != own]
    if read_as:
        notes["data.read_as", tuple(read_as)] = 0
    kept = [example for example in examples if example.n_supervised]
    dropped = [example.row for example in examples if not example.n_supervised]
    if not kept:
        raise UserError(problem("data.no_labelled_token", source=origin.name))
    n_characters = sum(len(text) for row, _ in pairs for text in _texts(row))
    found = (bad.count, tuple(fault.error for fault in bad.first), n_read, tuple(notes.items()))
    return Dataset(source_name(source), kept, dropped, n_cut, "", *found, labels=labels, n_characters=n_characters)


def _texts(row: Labelled) -> tuple[str, ...]:
    return (row.text,) if isinstance(row.text, str) else row.text


def labels_of(rows: Sequence[Labelled], reading: Reading, bad: BadRows) -> Labels:
    """What the labels of the training rows are; rows with another kind of label are added to the bad ones.

    Raises:
        UserError: there are fewer than two classes.
    """
    config = reading.config
    task, wanted = config.model.task, config.data.labels
    found = [row.label for row in rows]
    if task == "token_cls":
        found = [tag for row in rows for tag in row.label if tag != IGNORED]
        kind = SINGLE
    else:
        kind = config.model.problem_type if config.model.problem_type != "auto" else problem_type_of(found)
    if kind == VALUE:
        return Labels(task, VALUE)
    if wanted is not None:
        return Labels(task, kind, tuple(wanted))
    usable = [label for label in found if isinstance(label, list | tuple) is (kind == SEVERAL)]
    try:
        names = names_in(usable, kind)
    except BadRow:  # each is named where it is encoded
        names = tuple(reading.own_names)
    if set(names) <= set(reading.own_names):
        names = reading.own_names
    if len(names) < 2 and not bad.count and len(usable) == len(found):
        raise UserError(problem("data.one_label", labels=", ".join(names) or "-", source=config.data.train))
    return Labels(task, kind, names)


def _encoded(row: Labelled, labels: Labels, bad: BadRows) -> np.ndarray | None:
    """A row's label as numbers; of words one for each. None where it is none of the labels."""
    try:
        if row.label is None:  # of a row that is only asked about
            if labels.problem_type != SINGLE:
                return np.zeros(labels.n_outputs, np.float32)
            return np.zeros(len(_texts(row)) if labels.task == "token_cls" else 1, np.int64)
        if labels.task == "token_cls":
            tags = [IGNORE_INDEX if tag == IGNORED else labels.number(tag) for tag in row.label]
            return np.array(tags, np.int64)
        if labels.problem_type == SEVERAL and not isinstance(row.label, list | tuple):
            raise BadRow(("data.label_not_list", {"label": row.label}))
        return labels.encoded(row.label)
    except BadRow as fault:
        bad.add(fault, row.where)
        return None


def tokenized(
    pairs: Sequence[tuple[Labelled, np.ndarray]], reading: Reading, labels: Labels
) -> tuple[list[Example], int]:
    """The rows as examples, and how many of them were cut."""
    tokenizer, examples, n_cut = reading.tokenizer, [], 0
    has_types = "token_type_ids" in tokenizer.model_input_names
    for start in range(0, len(pairs), CHUNK):
        chunk = pairs[start : start + CHUNK]
        cut, whole = (_encode([row for row, _ in chunk], reading, truncation=cut) for cut in (True, False))
        for index, (row, label) in enumerate(chunk):
            ids = np.array(cut["input_ids"][index], np.int32)
            n_cut += len(ids) < len(whole["input_ids"][index])
            types = None
            if has_types and isinstance(row.text, tuple) and labels.task == "seq_cls":
                types = np.array(cut["token_type_ids"][index], np.uint8)
            tagged = labels.task == "token_cls"
            own = _of_tokens(cut.word_ids(index), label) if tagged else label
            supervised = own != IGNORE_INDEX if tagged else np.arange(len(ids)) == len(ids) - 1
            examples.append(Example(row.index, ids, supervised, own, types, is_tagged=tagged))
    return examples, n_cut


def _encode(rows: Sequence[Labelled], reading: Reading, truncation: bool) -> Any:
    texts = [row.text for row in rows]
    length = {"truncation": True, "max_length": reading.longest} if truncation else {"truncation": False}
    if isinstance(texts[0], str) or reading.config.model.task == "token_cls":
        inputs = ([list(text) if isinstance(text, tuple) else text for text in texts],)
    else:
        inputs = ([text[0] for text in texts], [text[1] for text in texts])
    words = reading.config.model.task == "token_cls"
    return reading.tokenizer(*inputs, is_split_into_words=words, return_attention_mask=False, verbose=False, **length)


def _of_tokens(words: Sequence[int | None], tags: np.ndarray) -> np.ndarray:
    """int64 [length]: a word's label at its first token, IGNORE_INDEX at every other."""
    own = np.full(len(words), IGNORE_INDEX, np.int64)
    before = None
    for at, word in enumerate(words):
        if word is not None and word != before:
            own[at] = tags[word]
        before = word
    return own


def with_labels(config: Config, dataset: Dataset) -> Config:
    """The configuration with the labels that were found, which is what is recorded, resumed and replayed."""
    labels = dataset.labels
    if labels is None:
        return config
    settings: dict[str, Any] = {"model.problem_type": labels.problem_type}
    if labels.names and config.data.labels is None:
        settings["data.labels"] = list(labels.names)
    weights = config.training.class_weights
    if isinstance(weights, dict) and (foreign := [name for name in weights if name not in labels.names]):
        known = ", ".join(labels.names) or "-"
        raise UserError(problem("labels.no_such_weight", name=foreign[0], known=known))
    if weights == "balanced":
        settings["training.class_weights"] = balanced(dataset)
    return with_settings(config, settings)


def class_counts(dataset: Dataset) -> dict[str, int]:
    """How often each class is a target."""
    assert dataset.labels is not None
    names, found = dataset.labels.names, Counter()
    for example in dataset.examples:
        assert example.labels is not None
        own = example.labels[example.supervised] if example.is_tagged else example.labels
        found.update(np.flatnonzero(own).tolist() if own.dtype == np.float32 else own.tolist())
    return {name: found[number] for number, name in enumerate(names)}


def balanced(dataset: Dataset) -> dict[str, float]:
    """Weights that make every class count the same: n / (k n_c), or rows without it to rows with it."""
    assert dataset.labels is not None
    counts = class_counts(dataset)
    n = len(dataset.examples) if dataset.labels.problem_type == SEVERAL else sum(counts.values())
    several = dataset.labels.problem_type == SEVERAL
    return {
        name: ((n - count) / max(count, 1) or 1.0) if several else n / (len(counts) * max(count, 1))
        for name, count in counts.items()
    }


def weighted(dataset: Dataset, config: Config) -> Dataset:
    """The rows with what each counts in the loss: one, or the weights of its classes."""
    labels, weights = dataset.labels, config.training.class_weights
    if labels is None or not isinstance(weights, dict) or labels.problem_type != SINGLE:
        return dataset
    table = np.array([weights.get(name, 1.0) for name in labels.names])
    examples = []
    for example in dataset.examples:
        assert example.labels is not None
        own = example.labels[example.supervised] if example.is_tagged else example.labels
        examples.append(replace(example, weight=float(table[own].sum())))
    return replace(dataset, examples=examples)
