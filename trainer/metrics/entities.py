"""Precision, recall and F1 of entities in IOB2: as conlleval and seqeval count them.

    B-PER I-PER O B-LOC    two entities, (PER, 0, 1) and (LOC, 3, 3)

An entity is right when its type and both ends are. One begins at B, and at an I whose type is another than that of the
label before or that follows O, as seqeval's default mode has it (https://github.com/chakki-works/seqeval).
"""

from __future__ import annotations

from collections.abc import Sequence

Entity = tuple[str, int, int]


def is_iob(names: Sequence[str]) -> bool:
    """Whether labels are O, B-type and I-type."""
    return "O" in names and len(names) > 1 and all(name == "O" or name[:2] in ("B-", "I-") for name in names)


def entities(labels: Sequence[str]) -> set[Entity]:
    """(type, first, last) of each entity of a row."""
    found: set[Entity] = set()
    start, kind = 0, ""
    for at, label in enumerate([*labels, "O"]):
        prefix, _, own = label.partition("-")
        goes_on = prefix == "I" and own == kind
        if kind and not goes_on:
            found.add((kind, start, at - 1))
            kind = ""
        if prefix != "O" and not goes_on:
            start, kind = at, own
    return found


def entity_scores(predicted: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1, precision and recall over the entities of all rows together; 0 where there is none."""
    said = {(row, *entity) for row, labels in enumerate(predicted) for entity in entities(labels)}
    true = {(row, *entity) for row, labels in enumerate(wanted) for entity in entities(labels)}
    right = len(said & true)
    precision, recall = right / len(said) if said else 0.0, right / len(true) if true else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"f1": f1, "precision": precision, "recall": recall}
