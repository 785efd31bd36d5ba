"""lora-train advise: what a run, or several, say about the next one. Trains nothing, imports no torch.

    study = read_study(["runs/sweep"])      sources.py: run folders, study folders, folders of stock states
    advices = advise(study)                 rules/: one file a group; each rule is one function of the study
    print("\\n".join(lines(study, advices, "ko")))

The rules are those of the Deep Learning Tuning Playbook (Godbole, Dahl, Gilmer, Shallue, Nado, 2023;
github.com/google-research/tuning_playbook), P1 to P20 in the order in which it gives them. Where evidence on LoRA
disagrees with it, the sentence says so. Best steps and best trials are sets of what noise cannot tell apart (study.py):
a rule that would act on the best one acts only if the whole set agrees.
"""

from __future__ import annotations

import numpy as np

from ..messages import say_in
from .advice import VERDICTS, Advice
from .reconcile import reconcile
from .rules import RULES
from .sources import read_study
from .study import Study

__all__ = ["VERDICTS", "Advice", "Study", "advise", "lines", "read_study"]


def advise(study: Study) -> list[Advice]:
    """Every rule's verdict, in their order. No two of them, and none of explain's, ask for opposite moves."""
    with np.errstate(all="ignore"):
        found = [advice for name in sorted(RULES, key=lambda name: int(name[1:])) for advice in RULES[name](study)]
    return reconcile(study, found)


def lines(study: Study, advices: list[Advice], lang: str) -> list[str]:
    """The advice as text: what was read, which trial is best, then a rule at a time with the command it leads to."""
    text = [*_head(study, lang), ""]
    for advice in advices:
        text.append(f"{advice.rule:<4} {say_in(lang, VERDICTS[advice.verdict])}  {advice.sentence(lang)}")
        if command := advice.next(lang):
            head = f"     {say_in(lang, 'advise.next')}  "
            text += [head + line for line in command.split("\n")]
    return text


def _head(study: Study, lang: str) -> list[str]:
    text = [say_in(lang, "advise.head", n=len(study.trials), dead=len(study.trials) - len(study.alive))]
    text += [
        say_in(lang, "advise.named", letter=trial.letter, name=trial.name, steps=trial.history.last_step)
        for trial in study.trials
    ]
    best = study.best
    if best is not None:
        values = {"names": study.letters(best.trials), "level": study.shown(best.mean), "metric": study.metric}
        tied = [trial for point in study.best_set for trial in point.trials if point is not best]
        text.append(say_in(lang, "advise.best" if tied else "advise.best_alone", tied=study.letters(tied), **values))
    key = "advise.noise_measured" if study.seeds_known else "advise.noise_assumed"
    if best is not None:
        text.append(say_in(lang, key, percent=100 * study.sigma / max(abs(best.mean), 1e-12), n=study.repeats))
    return text
