"""A trained adapter on its base model, for the verbs that compute with it."""

from __future__ import annotations

import json
import warnings

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from ..config.schema import Config
from ..config.settings import Settings, with_settings
from ..errors import UserError, problem
from ..model.load import load_base
from .adapter_folder import Adapter

MAX_SHOWN = 300  # characters: peft lists every key that is missing


def load_trained(adapter: Adapter, settings: Settings, device: torch.device) -> PeftModel:
    """Base and adapter in evaluation mode on the device.

    Args:
        adapter: what to load.
        settings: {"section.key": value}, in place of those the run was made with.

    Raises:
        UserError: base or adapter cannot be loaded, or the two do not belong together.
    """
    base = load_base(with_settings(base_config(adapter), settings), device)
    return put_on(base, adapter)


def base_config(adapter: Adapter) -> Config:
    """The run's configuration, or the least that names the base model of an adapter made elsewhere."""
    config = adapter.config
    if config is None:
        revision = adapter.settings.get("revision")
        model = {"name_or_path": adapter.base, "revision": str(revision) if revision else None}
        config = Config.model_validate({"model": model, "data": {"train": "unknown", "format": "text"}})
    return with_settings(config, {"model.trust_remote_code": adapter.trust_remote_code})


def put_on(base: PreTrainedModel, adapter: Adapter) -> PeftModel:
    """The adapter on its base; an adapter that fills only some of its layers is refused.

    Raises:
        UserError: it is of another model, or torn.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return PeftModel.from_pretrained(base, str(adapter.folder), is_trainable=False).eval()
        except (RuntimeError, ValueError, TypeError, KeyError, UserWarning, OSError, json.JSONDecodeError) as error:
            what = str(error).strip().split("\n")[-1].strip()[:MAX_SHOWN]
            raise UserError(
                problem("adapter.other_model", folder=adapter.folder, base=adapter.base, what=what)
            ) from error
