"""A hook that stays behind when its model is copied or saved, and that torch.compile steps around.

A model in training is copied (an average of its weights, a reference model) and pickled. Its hooks are its own: a copy
that had them would write into the rows of the original, and files and functions cannot be pickled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...messages import say


class Hook:
    """Calls a function, outside of what torch.compile traces; in a copy of the model it does nothing."""

    def __init__(self, function: Callable[..., Any]):
        self._function = function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return (_outside if torch.compiler.is_compiling() else _inside)(self._function, *args, **kwargs)

    def __reduce__(self) -> tuple:
        return _Nothing, ()


class Guard:
    """Around what reads the tensors of a training that is only watched: an error there is said once, not raised."""

    def __init__(self, warn: Callable[[str], None]):
        self._warn, self._said = warn, False

    def around(self, function: Callable[..., None]) -> Callable[..., None]:
        """The function, which then does nothing where it fails."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except Exception as error:  # a tensor of a kind that nobody has thought of
                if not self._said:
                    self._said = True
                    self._warn(say("attach.unreadable", what=f"{type(error).__name__}: {str(error).strip()[:200]}"))

        return guarded


def _inside(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


_outside = torch.compiler.disable(_inside)


class _Nothing:
    """What a copy has in its place."""

    def __call__(self, *_args: Any, **_kwargs: Any) -> None:
        return None
