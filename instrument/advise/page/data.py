"""What the page of a study shows. Imports no torch.

keys       what was searched, each with a scale: a share of the axis for every value that was tried
trials     settings, best evaluation, the course of the metric, how it ended
isolation  of each value the best over everything else, and +- what two seeds differ by
advice     rule by rule
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...messages import LANGUAGES, say_in
from ...read.history import SourceError
from ...show.page import texts
from ...show.page.people import both, number, setting, without_paths
from .. import VERDICTS, Advice, Study, advise, read_study
from ..rules.search import plain, profile
from ..trial import Trial
from .claims import ENDED, Claim, read_claims

DECADES = 1.5
"""Powers of ten that numbers have to span to lie on a logarithmic axis."""
COLOUR_OF = {"answered": "healthy", "against": "wrong", "not answered": "undecided"}
MOST_KEYS = 12
ROLES = {"scientific": "sweep.page.scientific", "nuisance": "sweep.page.nuisance"}


def study_data(folder: Path) -> dict[str, Any]:
    """The data of the page.

    Raises:
        SourceError: nothing has ended and nothing was recorded.
    """
    claims = read_claims(folder)
    try:
        study = read_study([folder])
    except SourceError:
        if not any(claim.ended for claim in claims):
            raise
        study = None
    runs = {} if study is None else {trial.name: trial for trial in study.trials}
    keys = _keys(study, claims)
    found = {
        "name": folder.resolve().name,
        "facts": _facts(study, claims),
        "metric": "loss" if study is None else study.metric,
        "lower": study is None or study.lower,
        "keys": [_key(key, study, claims, runs) for key in keys],
        "trials": [_trial(claim, runs.get(claim.name), keys) for claim in claims],
        "isolation": [] if study is None else [one for key in keys if (one := _isolation(study, key)) is not None],
        "advice": _advice(study),
    }
    return {**without_paths(found), "made": round(time.time() * 1000), "text": texts("sweep.page.")}


def _keys(study: Study | None, claims: Sequence[Claim]) -> list[str]:
    """What trials vary, the seed aside; scientific keys first."""
    roles = (study.facts.get("roles") if study is not None else None) or {}
    order = [key for role in ("scientific", "nuisance") for key in (roles.get(role) or []) if isinstance(key, str)]
    own = list(dict.fromkeys(key for claim in claims for key in claim.settings if key != "training.seed"))
    return [*(key for key in order if key in own), *(key for key in own if key not in order)][:MOST_KEYS]


def _facts(study: Study | None, claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Tiles: label, value, note."""
    ended = [claim for claim in claims if claim.ended is not None]
    dead = [claim for claim in ended if claim.is_dead]
    counts = both("sweep.page.counts", n=len(claims), ended=len(ended), dead=len(dead))
    tiles = [_tile("sweep.page.trials", f"{len(ended):,} / {len(claims):,}", counts, "wrong" if dead else "note")]
    if study is None:
        return tiles
    if (best := study.best) is not None:
        names = ", ".join(trial.name for trial in best.trials)
        tiles.append(_tile("sweep.page.best", study.shown(best.mean), f"{study.metric}, {names}", "healthy"))
        key = "sweep.page.noise_measured" if study.seeds_known else "sweep.page.noise_assumed"
        tiles.append(_tile("sweep.page.noise", f"±{number(study.sigma, 3)}", both(key, n=study.repeats)))
    steps = sorted({trial.horizon for trial in study.trials})
    tiles.append(_tile("sweep.page.steps", ", ".join(f"{n:,}" for n in steps)))
    if sampler := study.facts.get("sampler"):
        tiles.append(_tile("sweep.page.sampler", str(sampler)))
    return tiles


def _tile(label: str, value: str, note: dict[str, str] | str | None = None, verdict: str = "note") -> dict[str, Any]:
    return {"label": both(label), "value": value, "note": note, "verdict": verdict}


def _value(claim: Claim, trial: Trial | None, key: str) -> Any:
    if key in claim.settings:
        return claim.settings[key]
    return None if trial is None else trial.settings.get(key)


def _key(key: str, study: Study | None, claims: Sequence[Claim], runs: dict[str, Trial]) -> dict[str, Any]:
    values = [_value(claim, runs.get(claim.name), key) for claim in claims]
    places = shares(values)
    ticks = sorted({(place, setting(value)) for value, place in zip(values, places, strict=True) if place is not None})
    role = next((name for name, own in _roles(study).items() if key in own), "")
    return {"key": key, "role": both(ROLES[role]) if role else None, "places": places, "ticks": ticks}


def _roles(study: Study | None) -> dict[str, list[str]]:
    roles = study.facts.get("roles") if study is not None else None
    if not isinstance(roles, dict):
        return {}
    return {name: own for name in ROLES if isinstance(own := roles.get(name), list)}


def shares(values: Sequence[Any]) -> list[float | None]:
    """Where each value lies on its axis, from 0 to 1: numbers by their size, or its logarithm where they span
    DECADES; anything else side by side."""
    numbers = [
        float(v) if isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) else None
        for v in values
    ]
    known = [v for v in numbers if v is not None]
    if len(known) < len([v for v in values if v is not None]):
        names = list(dict.fromkeys(setting(v) for v in values if v is not None))
        return [None if v is None else names.index(setting(v)) / max(1, len(names) - 1) for v in values]
    if known and min(known) > 0 and math.log10(max(known) / min(known)) >= DECADES:
        numbers = [None if v is None else math.log10(v) for v in numbers]
        known = [v for v in numbers if v is not None]
    low, high = min(known, default=0), max(known, default=0)
    return [None if v is None else 0.5 if high == low else (v - low) / (high - low) for v in numbers]


def _trial(claim: Claim, trial: Trial | None, keys: Sequence[str]) -> dict[str, Any]:
    """A row of the table, and its curve."""
    curve: dict[str, list[Any]] = {"x": [], "y": []}
    best = None
    if trial is not None and len(trial.evaluations[0]):
        sign = 1 if trial.lower else -1
        curve = {"x": [int(s) for s in trial.evaluations[0]], "y": [sign * float(v) for v in trial.evaluations[1]]}
        best = [trial.best_step, sign * trial.level]
    return {
        "name": claim.name,
        "letter": None if trial is None else trial.letter,
        "settings": [setting(_value(claim, trial, key)) for key in keys],
        "seed": setting(claim.settings.get("training.seed") or (trial and trial.settings.get("training.seed"))),
        "value": best[1] if best is not None else claim.value,
        "step": best[0] if best is not None else claim.step,
        "seconds": claim.seconds,
        "dead": claim.is_dead,
        "end": both(ENDED[claim.ended] if claim.ended else "sweep.ended.running"),
        "why": claim.why,
        "curve": curve,
    }


def _isolation(study: Study, key: str) -> dict[str, Any] | None:
    """Of each value of a key the best point over everything else."""
    study = study.searching
    if key not in study.varied or not study.rankable:
        return None
    points = profile(study, key)
    sign = 1 if study.lower else -1
    places = shares(list(points))
    best = min(point.mean for point in points.values())
    # a measure that is nowhere below 0 does not go there by another seed
    least = 0.0 if all(sign * trial.level >= 0 for trial in study.judged) else -math.inf
    return {
        "key": key,
        "points": [
            {
                "at": place,
                "value": setting(value),
                "best": sign * point.mean,
                "trials": study.letters(point.trials),
                "all": [sign * t.level for t in study.judged if plain(t.settings[key]) == value],
            }
            for (value, point), place in zip(points.items(), places, strict=True)
        ],
        "band": [max(sign * best - study.sigma, least), sign * best + study.sigma],
    }


def _advice(study: Study | None) -> dict[str, list[dict[str, Any]]]:
    found: list[Advice] = [] if study is None else advise(study)
    return {
        lang: [
            {
                "verdict": COLOUR_OF[one.verdict],
                "word": f"{one.rule} {say_in(lang, VERDICTS[one.verdict]).strip()}",
                "sentence": one.sentence(lang),
                "command": one.next(lang),
            }
            for one in found
        ]
        for lang in LANGUAGES
    }
