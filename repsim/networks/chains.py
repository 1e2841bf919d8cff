"""Blocks of networks whose own code runs them, so that no module holds them.

In a chain of convolutions (VGG, AlexNet) each with its norm and activation is a block. Where the code adds, what leads
to a residual sum is a block; of a transformer, what leads to the sum of attention and the sum of the MLP after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from repsim.networks.tracing import Call, Operation, Spot, Trace, adds_what_it_came_from, bends, is_learned, is_sum


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
    if given := trace.takers(end):
        return first.path, Spot(given[0], "block", name, "input", since=first)
    return first.path, Spot(first, "block", name, lost=end, since=first)


def summed(trace: Trace) -> list[tuple[str, Spot]]:
    """What leads to each residual sum of the module whose code makes the last one: paths, and where the sums are.

    One alone is no row of blocks. A block's path is that of the first module in it, its name that of the last, with
    `sum` for what is added to its result.
    """
    last = next((op for op in reversed(trace.operations) if adds_what_it_came_from(op)), None)
    sums = [] if last is None else _along(last)
    if len(sums) < 2:
        return []
    halves = [_adds_attention(trace, here) and not _adds_attention(trace, after) for here, after in pairwise(sums)]
    ends = [here for here, half in zip(sums, [*halves, False]) if not half]
    bent = [_bent(trace, end) for end in ends]
    if all(end is not None and trace.takers(end) for end in bent):
        ends = [end for end in bent if end is not None]
    entries = [_skip(sums[0]), *ends]
    blocks = [_block(trace, entry, end) for entry, end in zip(entries, ends)]
    return [block for block in blocks if block is not None] if None not in blocks else []


def _along(last: Operation) -> list[Operation]:
    """The sums on the way back along what they are added to, made by the same code as the last one; first to last."""
    sums, here = [], last
    while here is not None and here.at is not None:
        if is_sum(here) and None not in here.operands and last.at is not None and here.at.path == last.at.path:
            sums.insert(0, here)
            here = _skip(here)
        elif len(here.before) == 1:
            (here,) = here.before
        else:
            break
    return sums


def _skip(addition: Operation) -> Operation:
    """The operand of a sum that the other is computed from; or, with a projection on it, of which less is computed."""
    a, b = addition.operands
    if a is None or b is None:
        raise ValueError("one operand of the sum is the same for all images")
    learned = [{op for op in {one, *one.ancestors()} if is_learned(op)} for one in (a, b)]
    return a if len(learned[0] - learned[1]) <= len(learned[1] - learned[0]) else b


def _adds_attention(trace: Trace, addition: Operation) -> bool:
    skip, weights = _skip(addition), {weights.at for weights in trace.provenance.attentions}
    return any(op.when > skip.when and op.at in weights for op in addition.ancestors())


def _bent(trace: Trace, end: Operation) -> Operation | None:
    """The activation function that alone takes a sum."""
    after = trace.following(end)
    return after[0] if len(after) == 1 and bends(after[0]) else None


def _block(trace: Trace, entry: Operation, end: Operation) -> tuple[str, Spot] | None:
    """The path and output of what runs from one place of a network's code to another; None where no module does."""
    inside = [call for call in trace.calls if call.path and entry.when < call.started and call.ended < end.when]
    if not inside:
        return None
    first = min(inside, key=lambda call: call.started)
    name = f"{max(inside, key=lambda call: call.ended).path}.sum"
    if given := trace.takers(end):
        return first.path, Spot(given[0], "block", name, "input", since=first)
    return first.path, Spot(first, "block", name, lost=end, since=first)
