"""What was asked, and where explain, compare and the pages answer it: the keys of sentences, not sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_train.instrument.judge.explain import explain
from lora_train.instrument.judge.explain.finding import Finding
from lora_train.instrument.messages import say_in
from lora_train.instrument.read.logs import read_history
from lora_train.instrument.show.compare import compare_runs, write_comparison

from .plan import Study


@dataclass(frozen=True)
class Evidence:
    """Where an answer stands.

    Attributes:
        runs: names of plan.py; one is explained, several are compared.
        keys: beginnings of keys of the catalogue; each that is there is printed.
        seeds: "first" of each, or "all" of them.
        label: of a control on the page, in place of sentences.
    """

    runs: tuple[str, ...]
    keys: tuple[str, ...] = ()
    seeds: str = "first"
    label: str = ""


@dataclass(frozen=True)
class Question:
    """Number in the list of questions, the question, and where it is answered."""

    number: int
    text: str
    evidence: tuple[Evidence, ...]


def explained(run: str, *keys: str) -> Evidence:
    return Evidence((run,), tuple(f"explain.{key}" for key in keys))


def compared(runs: str, *keys: str, seeds: str = "first") -> Evidence:
    return Evidence(tuple(runs.split()), tuple(f"compare.{key}" for key in keys), seeds)


def page(runs: str, label: str) -> Evidence:
    return Evidence(tuple(runs.split()), label=label)


COURSES = (
    "overfitting", "eval_turned", "eval_rose", "underfitting", "eval_flat", "eval_flat_rate", "eval_fell",
    "eval_unmoved", "eval_last_rose", "eval_few", "rows_",
)  # fmt: skip
QUESTIONS = (
    Question(
        41,
        "only eval_loss is irregular: why?",
        (
            explained("base", "eval_wobble"),
            compared("base batch", "wobble", "repeats_wobble", seeds="all"),
            compared("base split", "wobble", "repeats_wobble", seeds="all"),
            compared("base log", "identical"),
        ),
    ),
    Question(
        42,
        "batch, split or logging, if two were changed at once?",
        (
            compared("batch split", "several"),
            compared("base batch", "batches"),
            compared("base split", "some_rows", "other_rows"),
        ),
    ),
    Question(
        43,
        "why does grad_norm reach far more with batches of 8 than of 64?",
        (
            compared("base batch", "norm_spread", "norm_foretold"),
            compared("base batch", "repeats_norm", seeds="all"),
            explained("batch", "norm_by_batch"),
        ),
    ),
    Question(44, "one run has many times the steps: how to compare?", (compared("base batch", "batches"),)),
    Question(45, "does the run with 64 rows overfit?", (explained("batch", *COURSES),)),
    Question(46, "does a line every 200 steps hide the fall?", (explained("base", "coarse"),)),
    Question(47, "can runs be laid over each other?", (page("base batch split", "compare.page.loss"),)),
    Question(
        48,
        "training and evaluation loss over each other?",
        (compared("base batch", "both_losses"), explained("base", "eval_gap")),
    ),
    Question(
        49,
        "was it the initial weights?",
        (compared("base batch", "same_start"), compared("base base+1", "other_start")),
    ),
    Question(50, "does accuracy rise and settle?", (explained("base", "accuracy_"),)),
    Question(51, "can curves be smoothed?", (page("base batch", "compare.page.smoothing"),)),
    Question(
        52,
        "can a line be had for every N steps afterwards?",
        (page("base", "report.logged_every"), explained("log", "coarse")),
    ),
    Question(53, "does evaluating often cost time?", (explained("base", "time_eval", "time_shares", "eval_speed"),)),
    Question(56, "do gradients vanish or explode?", (explained("base", "norm_", "exploding", "vanishing"),)),
    Question(
        58,
        "too little learning, or a noisy direction?",
        (explained("batch", "noise_"), explained("one", "noise_")),
    ),
    Question(59, "can it train a BERT on reviews?", (explained("base", "overall", "finished", "accuracy_error"),)),
)  # fmt: skip


@dataclass
class Answers:
    """Sentences of the runs of a study."""

    study: Study
    lang: str = "en"

    def of(self, evidence: Evidence) -> tuple[str, list[str]]:
        """The command whose output it is, and the sentences; none where a run is not there."""
        runs = self.folders(evidence)
        if len(runs) < len(evidence.runs):
            return "", []
        if evidence.label:
            return self._page(runs, evidence.label)
        histories = [read_history(run) for run in runs]
        if len(runs) == 1:
            found, verb = explain(histories[0]), "explain"
        else:
            found, verb = compare_runs(histories).findings, "compare"
        kept = [finding for finding in found if finding.key.startswith(evidence.keys)]
        return f"lora-train {verb} {' '.join(map(str, runs))}", [line for one in kept for line in self._said(one)]

    def folders(self, evidence: Evidence) -> list[Path]:
        """The folders of the runs; `base+1` is that of the second seed."""
        seeds: Sequence[int] = range(self.study.seeds) if evidence.seeds == "all" else [0]
        found = []
        for name in evidence.runs:
            plain, _, shift = name.partition("+")
            found += [self.study.run(plain, seed + int(shift or 0)) for seed in seeds]
        return [run for run in found if run.exists()]

    def _said(self, finding: Finding) -> list[str]:
        hint = finding.hint(self.lang)
        change = [f"{say_in(self.lang, 'explain.change')}  {hint}"] if hint else []
        return [finding.sentence(self.lang), *change]

    def _page(self, runs: Sequence[Path], label: str) -> tuple[str, list[str]]:
        from lora_train.instrument.show.report import write_report

        name = "-".join(run.name for run in runs)
        file, text = self.study.folder / f"{name}.html", say_in(self.lang, label)
        if len(runs) == 1:
            verb, made = "report", write_report(runs[0], output=file)
        else:
            verb, made = "compare", write_comparison(compare_runs([read_history(run) for run in runs]), file)
        command = f"lora-train {verb} {' '.join(map(str, runs))} -o {file}"
        there = text in made.read_text(encoding="utf-8")
        return command, [f'{file}: "{text}"'] if there else []
