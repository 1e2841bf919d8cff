"""Networks that are one chain of convolutions (VGG, AlexNet): each with its norm and activation is a block."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from repsim.networks.tracing import Call, Operation, Spot, Trace, adds_what_it_came_from, bends, is_learned


def chain(trace: Trace, passed_over: Callable[[str], bool]) -> list[tuple[str, Spot]]:
    """The convolutions of a network that adds and joins nothing, each up to its activation: paths, and where they end.

    One alone is no chain. A convolution without an activation (of scores, say) belongs to none.

    Args:
        passed_over: whether a module at a path is part of a head, stem or decoder.
    """
    own = [op for op in trace.operations if op.at and not passed_over(op.at.path)]
    if any(adds_what_it_came_from(op) or _joins(op) for op in own):
        return []
    convolutions = [
        c for c in trace.calls if isinstance(c.module, CONVOLUTIONS) and _is_map(c) and not passed_over(c.path)
    ]
    ends = [(call, _activation(trace, call)) for call in convolutions]
    units = [_unit(trace, call, end) for call, end in ends if end is not None]
    return units if len(units) > 1 else []


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _is_map(call: Call) -> bool:
    """Whether it gives more than one position; a fully connected layer may be written as a convolution."""
    return call.result is not None and math.prod(call.result.shape[2:]) > 1


def _joins(op: Operation) -> bool:
    return op.name in ("cat", "stack") and len(op.before) > 1


def _activation(trace: Trace, call: Call) -> Operation | None:
    """The first activation function after a convolution; None if something else follows, or takes the same."""
    here = call.result.made if call.result is not None else None
    while here is not None and not bends(here):
        after = trace.following(here)  # a batch norm gives means and deviations, too
        alone = len({op.at for op in after}) == 1 and not is_learned(after[0])
        here = next((op for op in after if trace.following(op)), after[0]) if alone else None
    return here


def _unit(trace: Trace, first: Call, end: Operation) -> tuple[str, Spot]:
    """A convolution's path, and where its activation is a module's result, or is given to one."""
    gives = [call for call in trace.calls if call.path and call.result and call.result.made is end]
    gives = [call for call in gives if not call.started < first.started]
    if gives:
        return gives[0].path, Spot(gives[0], "block", since=first)
    name = f"{first.path}.activation"
    takers = [call for call in trace.calls if call.argument and call.argument.made is end]
    if not takers:
        return first.path, Spot(first, "block", name, lost=end, since=first)
    return first.path, Spot(min(takers, key=lambda call: call.started), "block", name, "input", since=first)
