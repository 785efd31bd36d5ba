"""`lora-train predict RUN FILE -o out.jsonl`: what a trained model answers to every row of a file.

    a classifier      {"row": 0, "label": "positive", "probabilities": {"negative": 0.03, "positive": 0.97}}
    several labels    {"row": 0, "labels": ["good"], "probabilities": {...}}
    values            {"row": 0, "value": 3.2}
    words             {"row": 0, "labels": ["O", "B-PER"], "probabilities": [0.99, 0.8]}, of the words that were not cut
    a language model  {"row": 0, "answer": "..."}, with "cut": true where --max-new-tokens ended it

A row needs no label and no answer; a language model's rows are read as the run read them, and an answer that stands
there is not looked at. A conversation is answered where it ends, or where its last answer stands. A row that cannot be
read ends the command before anything is written.
"""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....instrument.messages import say
from ...errors import UserError, problem
from ..adapter_folder import Adapter
from ..lengthen import at_least_one

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Request:
    """What the command line asks for."""

    adapter: Adapter
    file: str
    output: Path
    max_new_tokens: int


def predict_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path, help=say("cli.adapter"))
    parser.add_argument("file", metavar="FILE", help=say("cli.predict.file"))
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help=say("cli.predict.output"))
    parser.add_argument(
        "--max-new-tokens", type=at_least_one, default=256, metavar="N", help=say("cli.chat.max_new_tokens")
    )
    parser.add_argument("--trust-remote-code", action="store_true", help=say("cli.trust_remote_code"))


def run_predict(arguments: Namespace) -> int:
    from ...hub import ask_first
    from ..adapter_kinds import PREDICT, usable_adapter

    output: Path = arguments.output
    if output.exists():
        raise UserError(problem("predict.exists", path=output))
    if not output.absolute().parent.is_dir():
        raise UserError(problem("predict.no_folder", path=output.absolute().parent))
    adapter = usable_adapter(arguments.run, PREDICT, arguments.trust_remote_code)
    ask_first(adapter.base, adapter.revision)
    return predict(Request(adapter, arguments.file, output, arguments.max_new_tokens))


def predict(request: Request) -> int:
    """Writes an answer for every row; returns the exit code 0.

    Raises:
        UserError: model or rows cannot be used, or the file cannot be written; nothing is left behind.
    """
    import transformers

    from ...console import Console
    from .classifier import is_classifier

    transformers.logging.set_verbosity_error()
    answers = _labels(request) if is_classifier(request.adapter) else _texts(request)
    partial = request.output.with_name(f"{request.output.name}.{os.getpid()}.tmp")
    count = cut = 0
    try:
        with partial.open("w", encoding="utf-8") as file:
            for answer in answers:
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")
                count += 1
                cut += answer.get("cut", False)
        partial.replace(request.output)
    except OSError as error:
        raise UserError(problem("predict.cannot_write", path=request.output, what=error.strerror)) from error
    finally:
        partial.unlink(missing_ok=True)
    Console().line(say("predict.done", n=count, path=request.output))
    if cut:
        Console().line(say("predict.cut", n=cut, most=request.max_new_tokens))
    return 0


def _labels(request: Request) -> Iterator[dict[str, Any]]:
    from ...data.labels.labels import SEVERAL, VALUE
    from .classifier import load_classifier, probabilities

    classifier = load_classifier(request.adapter)
    labels = classifier.labels
    data = classifier.read(request.file, needs_label=False)
    for example, logits in zip(data.examples, classifier.logits(data.examples), strict=True):
        if labels.problem_type == VALUE:
            yield {"row": example.row, "value": float(logits[0, 0])}
            continue
        shares = probabilities(logits, labels)
        if labels.task == "token_cls":
            names = [labels.names[number] for number in shares.argmax(-1)]
            yield {"row": example.row, "labels": names, "probabilities": [round(float(p.max()), 6) for p in shares]}
            continue
        own = {name: round(float(share), 6) for name, share in zip(labels.names, shares[0], strict=True)}
        if labels.problem_type == SEVERAL:
            yield {"row": example.row, "labels": [n for n, p in own.items() if p > 0.5], "probabilities": own}
        else:
            yield {"row": example.row, "label": labels.names[int(shares[0].argmax())], "probabilities": own}


def _texts(request: Request) -> Iterator[dict[str, Any]]:
    """A language model's answers, greedy: what it writes after the tokens before the row's last answer."""
    from ...data.examples import load_examples
    from ...data.load import listed
    from ...model.fit import require_answerable
    from ..chat import Request as Question
    from ..chat import load, written_after
    from .questions import question_settings, questions

    if request.adapter.config is None:
        raise UserError(problem("predict.no_format", folder=request.adapter.folder))
    talker = load(Question(request.adapter, None, request.max_new_tokens, 0.0, 0))
    settings = question_settings(talker.config.data)
    data = load_examples(questions(request.file, settings), settings, talker.tokenizer)
    if data.dropped:  # an answer that is not there is missed by nobody
        values = {"rows": listed(data.dropped), "cutoff": settings.cutoff_len}
        raise UserError(problem("predict.too_long", source=request.file, **values))
    last = {example.row: example for example in data.examples}  # a row of several answers: the one with all its turns
    asked = [replace(e, input_ids=e.input_ids[: begin_of_answer(e.supervised)]) for e in last.values()]
    require_answerable(talker.config, talker.tokenizer, replace(data, examples=asked))
    for example in asked:
        text, cut = written_after(talker, example.input_ids.tolist())
        yield {"row": example.row, "answer": text} | ({"cut": True} if cut else {})


def begin_of_answer(supervised: np.ndarray) -> int:
    """The first token of the last stretch that is trained on."""
    import numpy as np  # help comes before it

    last = int(np.flatnonzero(supervised)[-1])
    before = np.flatnonzero(~supervised[:last].astype(bool))
    return int(before[-1]) + 1 if len(before) else 0
