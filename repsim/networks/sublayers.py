"""The layers of the paper inside a block: norms, convolutions, attention, hidden and output activations of the MLP.

Attention and MLP are known by the names of their classes, or by what they do: attention makes attention weights, and an
MLP without a module of its own is two linear maps around an activation, at the end of the branch of a residual sum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from repsim.networks.kinds import has_parts, is_activation, is_attention, is_mlp, is_norm
from repsim.networks.structure import parent_of
from repsim.networks.tracing import Call, Operation, Spot, Trace, bends, is_learned, is_sum


def paper_spots(trace: Trace, path: str, block: Spot) -> Iterator[Spot]:
    """The paper's layers within one run of a block, but for its output."""
    calls = trace.inside(path, block)
    if block.call.path == path and block.since is None:
        calls = [call for call in calls if _within(call, block.call)]
    attends = attending(trace)
    attentions = [c for c in calls if is_attention(c.module) or c.path in attends]
    mlps = [c for c in calls if is_mlp(c.module)]
    outer = [c for c in calls if not any(_within(c, other) for other in (*attentions, *mlps))]
    plain = [mlp for mlp in plain_mlps(trace, block) if {*mlp.first, mlp.second} <= set(outer)]
    maps = {layer for mlp in plain for layer in (*mlp.first, mlp.second)}
    for call in outer:
        if call in attentions:
            yield from _pre_norm(call, calls)
            yield Spot(call, "attention")
        elif is_mlp(call.module):
            yield from _pre_norm(call, calls)
            hidden = [c for c in calls if _within(c, call) and is_activation(c.module)]
            yield from (Spot(c, "mlp_hidden") for c in hidden[-1:])
            yield Spot(call, "mlp")
        elif is_norm(call.module):
            yield Spot(call, "norm")
        elif isinstance(call.module, nn.Conv2d) and call not in maps:
            yield Spot(call, "conv")
    for mlp in plain:
        hidden = [c for c in calls if c.result and c.result.made in mlp.between and is_activation(c.module)]
        gated = len(mlp.first) > 1
        yield Spot(hidden[-1], "mlp_hidden") if hidden and not gated else _given(path, mlp, plain)
        yield Spot(mlp.second, "mlp")


def attending(trace: Trace) -> set[str]:
    """Paths of modules that make attention weights, by their own code or a softmax that is a part of theirs."""
    return {_user(trace, weights.at.path) for weights in trace.provenance.attentions} - {""}


def _user(trace: Trace, path: str) -> str:
    """The module whose own code has the one at a path do something: not a leaf, and no plain sequence."""
    module = trace.module(path)
    own = has_parts(module) and not isinstance(module, nn.Sequential)
    return path if own or not path else _user(trace, parent_of(path))


def is_linear(op: Operation) -> bool:
    """Whether it maps the channels of each position by weights: a linear map, or a convolution of one position."""
    if sum(before is not None for before in op.operands) != 1:
        return False
    if op.name == "convolution":
        images, weights = op.shapes[:2]
        return images[1] == weights[1] and set(weights[2:]) == {1}
    return op.name in ("addmm", "mm", "linear")


class PlainMLP(NamedTuple):
    """An MLP without a module of its own: two linear maps with an activation between, at the end of a branch."""

    first: tuple[Call, ...]
    """One, or the two of a gated activation."""
    second: Call
    between: set[Operation]


def plain_mlps(trace: Trace, block: Spot) -> list[PlainMLP]:
    """The sublayers in the branches of a block's residual sums, in the order in which they run."""
    started = block.call.started if block.side == "output" else -1
    ends = [op for op in trace.operations if is_sum(op) and started < op.when <= block.when]
    mlps = (plain_mlp(trace, operand) for op in ends for operand in op.operands if operand is not None)
    return list({mlp.second: mlp for mlp in mlps if mlp is not None}.values())


def plain_mlp(trace: Trace, branch: Operation) -> PlainMLP | None:
    """The MLP that a branch ends with; norms, scales and moves of entries may follow it."""
    second: Operation | None = branch
    while second is not None and not is_learned(second):
        before = {op for op in second.operands if op is not None}
        second = before.pop() if len(before) == 1 else None
    if second is None or not is_linear(second):
        return None
    first, between, waiting = set(), set(), [op for op in second.operands if op is not None]
    while waiting:
        op = waiting.pop()
        if is_learned(op):
            first.add(op)
        elif op not in between:
            between.add(op)
            waiting += [before for before in op.operands if before is not None]
    normalised = any(word in op.name for op in between for word in ("batch_norm", "group_norm", "layer_norm"))
    if (
        not any(map(bends, between))
        or (normalised and second.name == "convolution")
        or not 1 <= len(first) <= 2
        or not all(map(is_linear, first))
    ):
        return None
    maps = [trace.maker(op) for op in (*sorted(first, key=lambda op: op.when), second)]
    return None if any(has_parts(call.module) for call in maps) else PlainMLP(tuple(maps[:-1]), maps[-1], between)


def _given(path: str, mlp: PlainMLP, plain: list[PlainMLP]) -> Spot:
    """The hidden layer of an MLP whose activation is no module, or gated: the input of its second map."""
    number = f"{plain.index(mlp) + 1}" if len(plain) > 1 else ""
    return Spot(mlp.second, "mlp_hidden", f"{path}.mlp_hidden{number}", "input")


def _within(call: Call, other: Call) -> bool:
    return call is not other and other.started < call.started and call.ended < other.ended


def _pre_norm(outer: Call, calls: list[Call]) -> Iterator[Spot]:
    """A norm that is the first thing an attention or MLP module runs is the block's pre-norm."""
    leaves = [c for c in calls if _within(c, outer) and not has_parts(c.module)]
    first = min(leaves, key=lambda call: call.started, default=None)
    if first is not None and is_norm(first.module) and first.input == outer.input:
        yield Spot(first, "norm")
