"""What repsim says when something cannot be done: what must hold, what was received, what to try."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RepsimError(Exception):
    """Something outside the code is not as it must be: weights, images, activations, a directory.

    >>> import repsim as rs
    >>> rs.cka([[float("nan")]] * 4, [[1.0]] * 4)
    Traceback (most recent call last):
    repsim.errors.RepsimError: cka needs finite features: x holds NaN or infinity
    """


class UsageError(RepsimError):
    """The call itself is wrong: an unknown name, a number out of range, options that clash.

    >>> import repsim as rs
    >>> rs.ImageSet("sample", images=2)
    Traceback (most recent call last):
    repsim.errors.UsageError: at least 4 images are needed, got images=2
    """


class Notice(UserWarning):
    """What must be known of a result: what it leaves out, and why values are NaN.

    >>> import warnings
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", Notice)  # do without them; a result still has its `notices`
    """


class Stopped(Exception):
    """A run was asked to stop, and its sums are saved. Not an error: nothing is to be made of what there is."""


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line; its type where it says nothing."""
    if isinstance(error, SystemExit):
        return f"it called exit({error.code!r})"
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def not_finite(network: str, layer: str, batch: int) -> RepsimError:
    """The error for activations that no measure is defined on."""
    return RepsimError(
        f"activations of {network}, layer {layer!r}, are NaN or infinite in batch {batch}; "
        "check its weights and its input, or choose other layers"
    )


def near(got: str, choices: Iterable[str], most: int = 4) -> list[str]:
    """The choices most like what was typed, best first; those that contain it count as like it."""
    choices = list(choices)
    alike = difflib.get_close_matches(got, choices, n=most, cutoff=0.6)
    containing = [c for c in choices if got and got in c and c not in alike]
    return (alike + sorted(containing, key=len))[:most]


def one_of(what: str, got: str, choices: Iterable[str], advice: str = "") -> UsageError:
    """The error for a name that is not among the known ones.

    >>> print(one_of("model", "vit_b61", ["vit_b16", "vit_b32", "resnet50"]))
    unknown model 'vit_b61'; did you mean 'vit_b16' or 'vit_b32'?
    """
    choices = list(choices)
    alike = near(got, choices)
    if alike:
        hint = f"; did you mean {' or '.join(repr(c) for c in alike)}?"
    elif len(choices) <= 12:
        hint = f"; choose one of {', '.join(choices)}"
    else:
        hint = ""
    joint = "" if not advice else " " if hint.endswith("?") else "; "
    return UsageError(f"unknown {what} {got!r}{hint}{joint}{advice}")
