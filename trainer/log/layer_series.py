"""What a tracker is told of the layers: a few series that its own page can draw, named and sorted by block.

    grad_norm_by_layer/model.layers.07    norm of the LoRA gradients of a block, unscaled, before clipping
    fp16_peak_by_layer/model.layers.07    largest magnitude of its float16 outputs; the limit is 65,504

Everything else of a layer is in stats/ and in `lora-train report`: hundreds of curves are of no use on a page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ...instrument.read.store import COLUMNS, Site

# Of each kind; a deeper model sends evenly spaced blocks.
MAX_SERIES = 48
_SUMSQ, _ABSMAX = COLUMNS.index("sumsq"), COLUMNS.index("absmax")
_BLOCK = re.compile(r"(.*?\.)(\d+)(?:\.|$)")


class LayerSeries:
    """Reduces a step's rows to values by block."""

    def __init__(self, sites: Sequence[Site]):
        gradients = [site for site in sites if site.tensor in ("lora_A.grad", "lora_B.grad")]
        outputs = [site for site in sites if site.tensor == "out" and site.dtype == "float16"]
        self._gradients, self._outputs = _by_block(gradients), _by_block(outputs)

    def values(self, rows: np.ndarray, loss_scale: float) -> dict[str, float]:
        """By name; what is not finite is left out.

        Args:
            rows: float64 [sites, 12], of one step.
            loss_scale: that the gradients carry.
        """
        found = {
            f"grad_norm_by_layer/{block}": float(np.sqrt(rows[ids, _SUMSQ].sum()) / loss_scale)
            for block, ids in self._gradients.items()
        }
        for block, ids in self._outputs.items():
            peaks = rows[ids, _ABSMAX]
            if np.isfinite(peaks).any():  # modules without LoRA are seen now and then
                found[f"fp16_peak_by_layer/{block}"] = float(np.nanmax(peaks))
        return {name: value for name, value in found.items() if np.isfinite(value)}


def _by_block(sites: Sequence[Site]) -> dict[str, list[int]]:
    """Ids of the sites of each block, MAX_SERIES blocks at most; numbers are padded, so that names sort."""
    matches = [_BLOCK.match(site.module) for site in sites]
    width = max((len(match[2]) for match in matches if match), default=1)
    blocks: dict[str, list[int]] = {}
    for site, match in zip(sites, matches, strict=True):
        name = f"{match[1]}{int(match[2]):0{width}}" if match else site.module
        blocks.setdefault(name, []).append(site.id)
    names = list(blocks)
    if len(names) > MAX_SERIES:
        names = [names[round(i)] for i in np.linspace(0, len(names) - 1, MAX_SERIES)]
    return {name: blocks[name] for name in names}
