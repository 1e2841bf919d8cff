"""What PyTorch older than 2.6 has no name for: here alone, and by what is there, not by its version."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals


@contextmanager
def safe_globals(allowed: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Within it, `torch.load` may make these too; after it what it might make before. PyTorch has its own since 2.5."""
    before = list(get_safe_globals())
    add_safe_globals(list(allowed))
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def called(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function under another name for `safe_globals`, which before PyTorch 2.6 takes no pairs of both.

    >>> safe = called("numpy.core.multiarray.scalar", float)
    >>> safe.__module__, safe.__qualname__, safe("2")
    ('numpy.core.multiarray', 'scalar', 2.0)
    """

    def safe(*arguments: Any) -> Any:
        return function(*arguments)

    safe.__module__, _, safe.__name__ = name.rpartition(".")
    safe.__qualname__ = safe.__name__
    return safe


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within it, nothing runs as `torch.compile` has made it."""
    if hasattr(torch.compiler, "set_stance"):  # PyTorch 2.6
        with torch.compiler.set_stance("force_eager"):
            yield
        return
    from torch._dynamo import eval_frame  # what was compiled switches to itself by this function, at each call

    switch = eval_frame.set_eval_frame
    eval_frame.set_eval_frame = lambda callback: switch(None)
    try:
        yield
    finally:
        eval_frame.set_eval_frame = switch
