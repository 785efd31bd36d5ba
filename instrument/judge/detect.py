"""Judges a run by its recorded numbers, step by step on the host. Imports no torch.

    divergence         the median loss of WINDOW steps is above the best such median so far by more than a sixth of
                       it, six times the scatter of the losses, and MARGIN; or each of the WINDOW is above every older
                       one; or far above the first loss; or, before a step that is not finite, the last loss was, or
                       an output grew GROWTH-fold within N_PEAKS steps
    scale_underflow    for PATIENCE steps in a row, at half of the fp16 gradient sites more than half of the values
                       that were not zero are lost to it (n_underflow; subnormal ones where that is null)
    forecast           the trend of a site's absmax meets the largest fp16 number (forecast.py): a warning

What makes a step non-finite is seen by the device first (latch.py) and named by running it again (trace.py):

    forward_overflow      a module whose inputs are finite gives an output that is not
    bad_weight            the same, because a frozen weight of it is not finite
    dead_adapter          the same, because a trained weight of it is not finite
    backward_overflow     the loss is finite and a gradient is not, at a scale that does not adapt
    scale_collapse        the same at the floor of a scale that does
    no_supervised_tokens  no token of the step is trained on: 0 / 0
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from statistics import median
from typing import TYPE_CHECKING, Any

from ..read.store import COLUMNS, Site

if TYPE_CHECKING:
    import numpy as np

    from .forecast import Forecast

# Losses of single batches scatter by half their value; the median of a dozen does not.
WINDOW = 12
# A run that only got stuck, or met a harder part of its data, stays below; one that blew up does not come back.
RISE, SCATTER, MARGIN = 1 / 6, 6.0, 0.5
CALMING = 0.98
# The first loss is that of the untrained model, but of one batch alone: it must be exceeded by more, and early on.
WORSE = 0.5
# One batch without gradient, or with a tiny one, is no trend.
PATIENCE = 3
# A trend towards overflow takes hundreds of steps, an update that is far too large one or two.
N_PEAKS, GROWTH = 16, 50.0
LOST_SHARE = 0.5
_ABSMAX, _SUBNORMAL, _UNDERFLOW, _ZERO, _N = (
    COLUMNS.index(name) for name in ("absmax", "n_subnormal", "n_underflow", "n_zero", "n")
)


class Kind(str, Enum):
    """What can be wrong with a step, by the names at the head of this file; files hold them as text."""

    FORWARD_OVERFLOW = "forward_overflow"
    BACKWARD_OVERFLOW = "backward_overflow"
    BAD_WEIGHT = "bad_weight"
    DEAD_ADAPTER = "dead_adapter"
    SCALE_COLLAPSE = "scale_collapse"
    SCALE_UNDERFLOW = "scale_underflow"
    NO_SUPERVISED_TOKENS = "no_supervised_tokens"
    DIVERGENCE = "divergence"
    NOT_REPRODUCED = "not_reproduced"
    """Healthy when it is run again: not the numbers, the machine."""

    def __str__(self) -> str:
        return self.value

    __format__ = str.__format__


@dataclass(frozen=True)
class Trouble:
    """A step that went wrong.

    Attributes:
        step: the first one, attempted.
        kind: None if only running it again can tell.
        latched: whether the device has held the state of the step.
        module: in the base model, where one is to blame.
        evidence: numbers.
        bad_rows: rows that were not finite, as the step recorded it, by (micro-batch, process): by their losses where
            one of the step's is not, else by their gradients. Without the micro-batches of which every one of several
            rows was so; empty where nobody recorded it.
        all_bad: whether every row of the step was.
    """

    step: int
    kind: Kind | None = None
    module: str | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    latched: bool = False
    bad_rows: Mapping[tuple[int, int], Sequence[int]] = field(default_factory=dict)
    all_bad: bool = False


@dataclass
class Diagnosis:
    """What is written to diagnosis.json.

    Attributes:
        kind: what it is.
        step: attempted optimizer step.
        module: as in the base model, or None where none is to blame.
        phase: forward, backward, optimizer or data.
        rows: source indices of the step's rows; those that alone reproduce it are in evidence["rows_alone"], and the
            first that the step itself recorded as not finite is evidence["first_bad_row"], None where none is to blame.
        evidence: numbers.
        remedies: {"change", "verified", "loss"} for each that was tried, cheapest first.
        action: heal, rollback or stop.
    """

    kind: Kind
    step: int
    module: str | None
    phase: str
    rows: list[int]
    evidence: dict[str, Any]
    remedies: list[dict[str, Any]] = field(default_factory=list)
    action: str = "stop"

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is not finite is null."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class LossWatch:
    """Sees a loss that left for good.

    Attributes:
        above_first: whether all the last losses of a young run are above that of the untrained model. A first batch
            that happened to be easy does that too: it takes other evidence besides.
    """

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._best, self._scatter = math.inf, 0.0
        self._first: float | None = None
        self._seen = self._n_older = 0
        self._highest, self._calm, self.above_first = -math.inf, True, False

    def step(self, step: int, loss: float) -> Trouble | None:
        """Looks at a step's loss; one that is not finite is the latch's business."""
        if not math.isfinite(loss):
            return None
        if len(self._recent) >= WINDOW // 2 and self._calm:  # a calm median vouches for the older half
            older = self._recent[-WINDOW // 2][1]
            self._n_older, self._highest = self._n_older + 1, max(self._highest, older)
        self._recent.append((step, loss))
        self._first = loss if self._first is None else self._first
        losses = [value for _, value in self._recent]
        middle = median(losses)
        scatter = 1.4826 * median([abs(value - middle) for value in losses])
        if len(losses) == WINDOW and middle > self._limit:
            return self._left(step, middle)
        above = self._highest + max(MARGIN, RISE * self._best)
        if self._n_older >= WINDOW // 2 and min(losses) > above:  # all of them, whatever the scatter
            evidence = {"loss": middle, "best": self._best, "limit": above, "seen_at": step}
            return Trouble(self._recent[0][0], Kind.DIVERGENCE, None, evidence)
        self._calm = middle <= self._best + MARGIN / 2
        self._seen += 1
        untrained = self._first + max(WORSE * self._first + MARGIN, SCATTER * scatter)
        early = WINDOW <= self._seen <= 2 * WINDOW
        self.above_first = early and min(losses) > (1 + RISE) * self._first + MARGIN
        if early and middle > untrained:
            onset = next((at for at, value in self._recent if value > untrained), self._recent[0][0])
            evidence = {"loss": middle, "best": self._first, "limit": untrained, "seen_at": step}
            return Trouble(onset, Kind.DIVERGENCE, None, evidence)
        if len(losses) >= WINDOW // 2:
            self._best = min(self._best, middle)
            # 1.4826 x the median deviation is the standard deviation of normal noise; a dozen may look calm by chance
            if middle <= self._best + MARGIN / 2:
                self._scatter = max(scatter, CALMING * self._scatter)
        return None

    @property
    def _limit(self) -> float:
        return self._best + max(RISE * self._best, SCATTER * self._scatter, MARGIN)

    def evidence(self, step: int, loss: float | None = None) -> dict[str, Any]:
        """The loss now, the best there was, and the limit between them."""
        if self._best == math.inf and self._recent:
            self._best = min(value for _, value in self._recent)
        last = self._recent[-1][1] if self._recent else math.nan
        return {"loss": last if loss is None else loss, "best": self._best, "limit": self._limit, "seen_at": step}

    def _left(self, step: int, loss: float) -> Trouble:
        onset = next((at for at, value in self._recent if value > self._limit), self._recent[0][0])
        return Trouble(onset, Kind.DIVERGENCE, None, self.evidence(step, loss))

    def before_overflow(self, step: int) -> Trouble | None:
        """Whether the last losses before a step that is not finite had left already; one alone is a batch."""
        if self._best == math.inf:
            return None
        last = median([value for _, value in self._recent][-PATIENCE:])
        return self._left(step, last) if last > self._limit else None


def lost_shares(sites: Sequence[Site], rows: np.ndarray) -> tuple[list[Site], np.ndarray]:
    """The fp16 gradient sites of a step and the share of their values that was lost to zero.

    Of the values that were not zero before rounding; where n_underflow is null, of those that are not zero the
    subnormal ones. 1 where everything is zero: it was lost before. A site without values or counts is left out.
    """
    import numpy as np

    own = [s for s in sites if s.dtype == "float16" and s.tensor in ("grad_out", "grad_in") and rows[s.id, _N] > 0]
    own = [site for site in own if not np.isnan(rows[site.id, _ZERO])]
    values = rows[[site.id for site in own]]
    unknown = np.isnan(values[:, _UNDERFLOW])
    zeroed = np.where(unknown, 0, values[:, _UNDERFLOW])
    lost = np.where(unknown, values[:, _SUBNORMAL], zeroed)
    nonzero = values[:, _N] - values[:, _ZERO] + zeroed
    return own, np.where(nonzero > 0, lost / np.maximum(nonzero, 1), 1.0)


def lost_share(sites: Sequence[Site], rows: np.ndarray) -> float:
    """The share at the median fp16 gradient site; NaN if there is none."""
    import numpy as np

    _, shares = lost_shares(sites, rows)
    return float(np.median(shares)) if len(shares) else math.nan


class UnderflowWatch:
    """Sees gradients that fp16 rounds to zero because the loss scale is too low."""

    def __init__(self, sites: Sequence[Site]):
        self._sites = sites
        self._steps = 0

    def step(self, step: int, rows: np.ndarray) -> Trouble | None:
        """Looks at a step's rows, float64 [sites, 12]."""
        import numpy as np

        sites, shares = lost_shares(self._sites, rows)
        bad = bool(len(shares)) and float(np.median(shares)) > LOST_SHARE
        self._steps = self._steps + 1 if bad else 0
        if self._steps < PATIENCE:
            return None
        first = sites[int(np.flatnonzero(shares > LOST_SHARE)[-1])]  # in the order of the backward pass
        evidence = {
            "sites": int((shares > LOST_SHARE).sum()),
            "of_sites": len(shares),
            "lost_share": float(np.median(shares)),
            "seen_at": step,
        }
        return Trouble(step - PATIENCE + 1, Kind.SCALE_UNDERFLOW, first.module, evidence)


class Detectors:
    """All of them over one run."""

    def __init__(self, sites: Sequence[Site], fp16: bool, loss_falls: bool = True):
        """
        Args:
            loss_falls: whether a loss that rises is a fault. That of GRPO is near 0 by construction.
        """
        from .forecast import Forecaster

        self._sites, self._loss_falls = sites, loss_falls
        self._loss = LossWatch()
        self._underflow = UnderflowWatch(sites) if fp16 else None
        self._outputs = [site.id for site in sites if site.tensor == "out"]
        self._peaks: deque[tuple[int, np.ndarray]] = deque(maxlen=N_PEAKS)
        self._activations = [site.id for site in sites if site.tensor == "out" and site.dtype == "float16"]
        self._forecaster = Forecaster(len(self._activations)) if fp16 and self._activations else None

    def step(self, step: int, loss: float) -> Trouble | None:
        """Looks at a step's loss."""
        if not self._loss_falls:
            return None
        trouble = self._loss.step(step, loss)
        return trouble or (self._blown_up(step) if self._loss.above_first else None)

    def before_overflow(self, step: int) -> Trouble | None:
        """The divergence that a step which is not finite only ended, if there was one."""
        return self._loss.before_overflow(step) or self._blown_up(step)

    def _blown_up(self, step: int) -> Trouble | None:
        """An output that grew by orders of magnitude in a few updates."""
        import numpy as np

        if len(self._peaks) < 2:
            return None
        peaks = np.stack([peak for _, peak in self._peaks])
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.nan_to_num(peaks / np.fmin.accumulate(peaks), nan=0.0, posinf=0.0)
        if growth[-1].max(initial=0.0) < GROWTH:
            return None
        worst = int(growth[-1].argmax())
        onset = self._peaks[int((growth[:, worst] >= GROWTH).argmax())][0]
        grown = {"growth": float(growth[-1, worst]), "peak": float(peaks[-1, worst])}
        module = self._sites[self._outputs[worst]].module
        return Trouble(onset, Kind.DIVERGENCE, module, {**self._loss.evidence(step), **grown})

    def rows(self, step: int, rows: np.ndarray) -> tuple[Trouble | None, list[tuple[Site, Forecast]]]:
        """Looks at a step's statistics, float64 [sites, 12]: trouble, and what is about to overflow."""
        self._peaks.append((step, rows[self._outputs, _ABSMAX]))
        coming = []
        if self._forecaster is not None:
            found = self._forecaster.update(step, rows[self._activations, _ABSMAX])
            coming = [(self._sites[self._activations[forecast.site]], forecast) for forecast in found]
        return (self._underflow.step(step, rows) if self._underflow else None), coming
