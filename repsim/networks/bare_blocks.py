"""Blocks that are no modules to call: bare lists, and the parts of traced graphs. What enters and leaves them.

Of such a block only the modules in it run, and the code around it does the rest. So what it hands on is found in the
operations: from the last of its modules on, through the sum or concatenation that its branch ends in and what takes its
parameters. Where no module is given that or gives it, there is nothing to hook, and the layer says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from repsim.networks.tracing import Call, Operation, Spot, Trace, bends, is_learned


def first_call(trace: Trace, path: str) -> Call:
    """The first module to run at or below a path."""
    return min([*trace.calls_of(path), *trace.below(path)], key=lambda call: call.started)


def handed_on(trace: Trace, paths: Sequence[str]) -> list[Spot]:
    """The outputs of blocks that are no modules to call.

    An activation function without parameters, after a block's last sum, could be the block's or the next one's: it is
    the blocks' where it follows in all of them.
    """
    ends = [_end(trace, path, bent=False) for path in paths]
    if all(_activation_after(trace, path, end) for path, end in zip(paths, ends)):
        ends = [_end(trace, path, bent=True) for path in paths]
    return [_taken_after(trace, path, end) for path, end in zip(paths, ends)]


def _end(trace: Trace, path: str, *, bent: bool) -> Operation:
    """The last tensors that a block's operations make.

    Args:
        bent: whether an activation function without parameters is the block's after a sum, too.
    """
    results = [call.result.made for call in trace.below(path) if call.result and call.result.made]
    here, entry = max(results, key=lambda op: op.when), _entry(trace, path)[1]
    joined = False
    while True:
        join = _join(trace, path, here, entry)
        after = join or _alone_after(trace, path, here)
        if after is None or (joined and join is None and not _owns(path, after) and not bent):
            return here
        here, joined = after, joined or join is not None


def _activation_after(trace: Trace, path: str, end: Operation) -> bool:
    after = _alone_after(trace, path, end)
    return after is not None and bends(after)


def _join(trace: Trace, path: str, here: Operation, entry: Operation) -> Operation | None:
    """The operations that join the last tensor of a block with its other tensors or its input: sum, product, `cat`."""
    while True:
        after = [op for op in trace.following(here) if _around(path, op) and not is_learned(op)]
        for op in after:
            other_times = [other.when for other in op.before - {here}]
            first = entry.when + (op.name == "cat")  # the next layer of a dense row concatenates what enters this one
            if other_times and all(first <= when < here.when for when in other_times):
                return op
        if len(after) != 1 or not _alone(trace, path, here, after[0]):
            return None
        here = after[0]


def _alone_after(trace: Trace, path: str, here: Operation) -> Operation | None:
    """The only operation on a tensor, if it is the block's: by its parameters, or as an activation function without."""
    for after in trace.following(here):
        if _alone(trace, path, here, after) and (_owns(path, after) or bends(after)):
            return after
    return None


def _alone(trace: Trace, path: str, here: Operation, after: Operation) -> bool:
    """Whether an operation takes this tensor alone, which nothing else does, with no parameters but the block's."""
    alone = len(trace.following(here)) == 1 and len(after.before) == 1
    return alone and _around(path, after) and (not after.parameters or _owns(path, after))


def _around(path: str, op: Operation) -> bool:
    """Whether the code that makes an operation is that of a module which holds the block."""
    return op.at is not None and (not op.at.path or path.startswith(f"{op.at.path}."))


def _owns(path: str, op: Operation) -> bool:
    """Whether an operation takes parameters, all of them the block's."""
    return bool(op.parameters) and all(name.startswith(f"{path}.") for name in op.parameters)


def _taken_after(trace: Trace, path: str, end: Operation) -> Spot:
    """The module input or output that holds the output of a block."""
    last = max(trace.below(path), key=lambda call: call.ended)
    takers = [Spot(call, "block", path, "input") for call in trace.takers(end)]
    gives = [Spot(call, "block", path) for call in trace.calls if call.result and call.result.made is end]
    after = [spot for spot in (*takers, *gives) if spot.when > last.ended]
    if after:
        return min(after, key=lambda spot: spot.when)
    return gives[0] if gives else Spot(last, "block", path, lost=end)


def entered(trace: Trace, path: str) -> Spot:
    """The place where a block that is no module gets its input."""
    return _entry(trace, path)[0]


def _entry(trace: Trace, path: str) -> tuple[Spot, Operation]:
    ran = [(call, call.argument.made) for call in trace.below(path) if call.argument and call.argument.made]
    first, given = min(ran, key=lambda each: each[0].started)
    entry = here = given
    while here is not None and _around(path, here) and len(here.before) == 1:
        (before,) = here.before
        entry, here = (before if _owns(path, here) else entry), before
    if entry is given:
        return Spot(first, "stem", "stem", "input"), entry
    gives = [call for call in trace.calls if call.ended < first.started and call.result and call.result.made is entry]
    spot = Spot(gives[-1], "stem", "stem") if gives else Spot(first, "stem", "stem", "input", lost=entry)
    return spot, entry
