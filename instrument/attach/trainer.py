"""The Trainer that calls a callback: where it is, which losses it has, and when its training ends, in whatever way.

A callback is handed the model and the optimizer, and is not told of a training that an error or the stop button of a
notebook ends. So it looks for the Trainer among its callers, and puts itself around methods of this one Trainer and of
its accelerator; classes, and with them every other Trainer of the process, stay as they are.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

from accelerate import Accelerator
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainerCallback

# All that a training runs in after on_train_begin, but for a few lines between them.
LOOP = ("_run_epoch", "_evaluate", "_finalize_training")

# Modules whose trainers are known by their names; Unsloth compiles TRL's into UnslothSFTTrainer and the like.
KNOWN = ("transformers.", "trl.", "unsloth", "axolotl.", "llamafactory.")

Undo = Callable[[], None]


def trainer_of(callback: TrainerCallback) -> Any:
    """The Trainer among the callers whose callback this is; None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        # reading f_locals makes a frame hold on to what it had in them: not that of whoever calls `train`
        owner = frame.f_locals.get("self") if "self" in frame.f_code.co_varnames else None
        handler = getattr(owner, "__dict__", {}).get("callback_handler")
        if any(one is callback for one in getattr(handler, "callbacks", ())):
            return owner
        frame = frame.f_back
    return None


def leave_one(trainer: Any, callback: TrainerCallback) -> None:
    """Leaves one of a callback that was given to a Trainer several times."""
    handler: Any = getattr(trainer, "callback_handler", None)
    given = [at for at, one in enumerate(getattr(handler, "callbacks", ())) if one is callback]
    if len(given) > 1:  # a new list: the Trainer walks along the old one
        handler.callbacks = [one for at, one in enumerate(handler.callbacks) if at not in given[1:]]


def kind_of(trainer: Any, model: nn.Module) -> dict[str, Any]:
    """What tells which loss is trained, as plain values: the names of trainer and model, and a classifier's classes.

    `own_loss` where the loss is not the one that a trainer of that name computes.
    """
    known: Any = next((one for one in type(trainer).__mro__ if one.__module__.lower().startswith(KNOWN)), Trainer)
    overridden = trainer is not None and type(trainer).compute_loss is not known.compute_loss
    # of SFTConfig: "nll", "chunked_nll", or one that is no cross entropy; DPO's and GRPO's kinds are of one sort
    chosen = getattr(getattr(trainer, "args", None), "loss_type", None) or "nll"
    overridden = overridden or ("SFT" in known.__name__ and "nll" not in chosen)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    labels = getattr(getattr(base, "config", None), "id2label", None)
    kind = {"to": known.__name__, "model": type(base).__name__}
    if overridden or getattr(trainer, "compute_loss_func", None) is not None:
        kind["own_loss"] = True
    return kind | ({"num_labels": len(labels)} if isinstance(labels, dict) else {})


def tell_losses(trainer: Any, tell: Callable[[Any], None]) -> Undo:
    """Calls `tell`, a method, with every loss before its backward pass, as long as its object lives.

    Without a Trainer it is every accelerator's loss, until it is undone.
    """
    owner, told = getattr(trainer, "accelerator", Accelerator), weakref.WeakMethod(tell)

    def telling(backward: Callable[..., None]) -> Callable[..., None]:
        def told_backward(*args: Any, **kwargs: Any) -> None:
            listener = told()
            if listener is not None:
                listener(kwargs["loss"] if "loss" in kwargs else args[-1])
            backward(*args, **kwargs)

        return told_backward

    return _replace(owner, "backward", telling)


def gradients_are_whole(trainer: Any) -> Callable[[], bool]:
    """Whether the last micro-batch of a step is behind, as the Trainer tells its accelerator. Holds on to neither."""
    accelerator = getattr(trainer, "accelerator", None)
    found = (lambda: None) if accelerator is None else weakref.ref(accelerator)

    def whole() -> bool:
        return bool(getattr(found(), "sync_gradients", True))

    return whole


def at_any_end(trainer: Any, ended: Callable[[], Any]) -> list[Undo]:
    """Calls `ended` if an error, the stop button included, ends the training."""

    def guarded(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except BaseException:
                ended()
                raise

        return run

    undo = [_replace(trainer, name, guarded) for name in LOOP if hasattr(trainer, name)]
    handler = getattr(trainer, "callback_handler", None)
    return undo if handler is None else [*undo, _replace(handler, "call_event", guarded)]


def _replace(owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Undo:
    """Replaces a method of one object, or of a class; what is replaced again since is left alone."""
    before, replacement = vars(owner).get(name), make(getattr(owner, name))
    setattr(owner, name, replacement)
    return _undoing(weakref.ref(owner), name, before, weakref.ref(replacement))


def _undoing(owner: weakref.ref, name: str, before: Any, replacement: weakref.ref) -> Undo:
    """Holds on to neither, so that a Trainer and its callbacks can be collected."""

    def undo() -> None:
        found, ours = owner(), replacement()
        if found is None or ours is None or vars(found).get(name) is not ours:
            return
        if before is None:
            delattr(found, name)
        else:
            setattr(found, name, before)

    return undo
