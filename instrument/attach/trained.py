"""What a model trains, as it is now: adapters are added and switched, and layers unfrozen, while a run goes on."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class Trained:
    """The trained parameters of a model.

    Attributes:
        parameters: in the model's order.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._layer: Any = next((one for one in model.modules() if isinstance(one, BaseTunerLayer)), None)
        self._collect()

    def _collect(self) -> None:
        self._all = list(self._model.parameters())
        self.parameters = [parameter for parameter in self._all if parameter.requires_grad]
        self._seen = self._signs()

    def device(self) -> torch.device:
        """Of the first of them."""
        return self.parameters[0].device if self.parameters else torch.device("cpu")

    def _signs(self) -> tuple[Any, ...]:
        """What changes with them; microseconds, where a walk through the modules takes milliseconds."""
        configs: Any = getattr(self._model, "peft_config", None) or {}
        active = () if self._layer is None else tuple(self._layer.active_adapters)
        return [parameter.requires_grad for parameter in self._all], list(map(id, configs.values())), active

    def changed(self) -> bool:
        """Looks again; whether what is trained is not what it was."""
        if self._signs() == self._seen:
            return False
        before = set(map(id, self.parameters))
        self._collect()
        return before != set(map(id, self.parameters))


def trains(model: nn.Module) -> list[str]:
    """What is trained: PEFT's kinds of adapters, as PEFT calls them, or `weights` of the model itself."""
    configs: Any = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return ["weights"]
    return sorted({str(getattr(config.peft_type, "value", config.peft_type)) for config in configs.values()})
