"""`lora-train evaluate RUN FILE`: how good a trained model's answers to labelled rows are.

Of a classifier every score, the confusion matrix with counts, and the rows it was most sure of and wrong; of a language
model the mean loss of the answers' tokens and the rows that cost most. `--json` prints the same as one object.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....instrument.messages import say
from ..adapter_folder import Adapter

SHOWN_ROWS, SHOWN_CLASSES, WIDTH = 10, 12, 14


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    adapter: Adapter
    file: str
    as_json: bool


def evaluate_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("file", metavar="FILE", help=say("cli.evaluate.file"))
    parser.add_argument("--json", action="store_true", help=say("cli.json"))
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run_evaluate(arguments: Namespace) -> int:
    from ...hub import ask_first
    from ..adapter_kinds import PREDICT, usable_adapter

    adapter = usable_adapter(arguments.run, PREDICT, arguments.trust_remote_code)
    ask_first(adapter.base, adapter.revision)
    return evaluate(Request(adapter, arguments.file, arguments.json))


def evaluate(request: Request) -> int:
    """Prints and returns the exit code 0.

    Raises:
        UserError: model or rows cannot be used.
    """
    import transformers

    from .classifier import is_classifier

    transformers.logging.set_verbosity_error()
    found = of_labels(request) if is_classifier(request.adapter) else of_text(request)
    if request.as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        show(found)
    return 0


def of_labels(request: Request) -> dict[str, Any]:
    """Scores, confusion matrix and the worst rows of a classifier."""
    import numpy as np

    from ...data.labels.labels import SINGLE, VALUE
    from ...loop.evaluate import label_of
    from ...metrics.scores import Answers, confusion, scores
    from .classifier import load_classifier, probabilities

    classifier = load_classifier(request.adapter)
    labels = classifier.labels
    examples = classifier.read(request.file, needs_label=True).examples
    logits = classifier.logits(examples)
    targets = [label_of(example) for example in examples]
    lengths = [len(own) for own in logits]
    answers = Answers(np.concatenate(logits), np.concatenate(targets), lengths)
    found: dict[str, Any] = {"rows": len(examples), "scores": scores(answers, labels)}
    if labels.problem_type == VALUE:
        off = np.abs(answers.logits - answers.targets)[:, 0]
        worst = np.argsort(-off, kind="stable")[:SHOWN_ROWS].tolist()
        values = (answers.targets[:, 0], answers.logits[:, 0])
        found["worst"] = [
            {"row": examples[at].row, "label": float(values[0][at]), "said": float(values[1][at])} for at in worst
        ]
        return found
    if labels.problem_type == SINGLE:
        found["labels"], found["confusion"] = list(labels.names), confusion(answers, labels).tolist()
        shares, of_row = probabilities(answers.logits, labels), np.repeat(np.arange(len(examples)), lengths)
        said = shares.argmax(-1)
        wrong = np.flatnonzero(said != answers.targets)
        worst = wrong[np.argsort(-shares[wrong, said[wrong]], kind="stable")][:SHOWN_ROWS].tolist()
        found["worst"] = [
            {
                "row": examples[int(of_row[at])].row,
                "label": labels.names[answers.targets[at]],
                "said": labels.names[said[at]],
                "probability": round(float(shares[at, said[at]]), 4),
            }
            for at in worst
        ]
    return found


def of_text(request: Request) -> dict[str, Any]:
    """Mean loss and accuracy of the answers' tokens, and the rows whose tokens cost most."""
    import torch

    from ...console import note
    from ...data.batches import collate, in_batches
    from ...data.examples import load_examples
    from ...data.load import listed
    from ...errors import UserError, problem
    from ...model.fit import require_answerable
    from ...model.load import autocast, pad_token_id
    from ...model.loss import SupervisedLoss
    from ..chat import Request as Question
    from ..chat import load

    if request.adapter.config is None:
        raise UserError(problem("predict.no_format", folder=request.adapter.folder))
    talker = load(Question(request.adapter, None, 1, 0.0, 0))
    data = load_examples(request.file, talker.config.data, talker.tokenizer)
    require_answerable(talker.config, talker.tokenizer, data)
    if data.dropped:
        note(say("data.dropped", source=data.source, count=len(data.dropped), rows=listed(data.dropped)))
    if data.n_skipped:
        note(say("data.skipped", source=data.source, count=data.n_skipped))
    examples = data.examples
    total, right, cost = 0.0, 0, []
    with torch.no_grad(), autocast(talker.config, talker.model.device):
        loss = SupervisedLoss(talker.model, getattr(torch, talker.config.compute_dtype))
        for batch in in_batches(examples, 8):
            tensors = collate(batch, pad_token_id(talker.tokenizer)).to(talker.model.device)
            loss_sum, n_right, losses = loss.of_tokens(tensors)
            assert n_right is not None
            total, right = total + float(loss_sum), right + int(n_right)
            parts = losses.split([example.n_supervised for example in batch])
            cost += [(float(part.mean()), example.row) for part, example in zip(parts, batch, strict=True)]
    n_tokens = sum(example.n_supervised for example in examples)
    worst = sorted(cost, key=lambda item: (-item[0], item[1]))[:SHOWN_ROWS]
    return {
        "rows": len(examples),
        "scores": {"loss": total / n_tokens, "token_accuracy": right / n_tokens},
        "worst": [{"row": row, "loss": value} for value, row in worst],
    }


def show(found: dict[str, Any]) -> None:
    """Prints it for people."""
    from ...console import Console, compact

    console = Console()
    console.line(say("evaluate.rows", n=found["rows"]))
    for name, value in found["scores"].items():
        console.line(f"  {name:<14} {compact(value) if value is not None else '-'}")
    if "confusion" in found:
        show_confusion(found["labels"], found["confusion"], console)
    if found.get("worst"):
        console.line(say("evaluate.worst"))
    for row in found.get("worst", []):
        place, *facts = (f"{key} {compact(value) if isinstance(value, float) else value}" for key, value in row.items())
        console.line(f"  {place:<10} {'  '.join(facts)}")


def show_confusion(names: list[str], counts: list[list[int]], console: Any) -> None:
    """The matrix with its names, or where there are many classes the commonest mistakes."""
    if len(names) <= SHOWN_CLASSES:
        console.line(say("evaluate.confusion"))
        console.line(" " * (WIDTH + 2) + "".join(f"{name[: WIDTH - 2]:>{WIDTH}}" for name in names))
        for name, row in zip(names, counts, strict=True):
            console.line(f"  {name[:WIDTH]:<{WIDTH}}" + "".join(f"{count:>{WIDTH},}" for count in row))
        return
    pairs = [
        (row[j], names[i], names[j]) for i, row in enumerate(counts) for j in range(len(names)) if i != j and row[j]
    ]
    console.line(say("evaluate.mistakes"))
    for count, own, said in sorted(pairs, key=lambda pair: -pair[0])[:SHOWN_CLASSES]:
        console.line(f"  {count:>6,}  {own} -> {said}")
