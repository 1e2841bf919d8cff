"""Residual sums: where a network adds a skip connection and a branch, found in its operations.

A traced forward pass records which operation made which tensor. From each block's output one goes
back along the stream: an addition of two tensors of one shape is a residual sum; its skip is the operand
from which the other was computed (or, with a projection on it, the one with less computed between
it and the block's input), its branch the other; then on from the skip, to the block's input. Nothing is
told from names, so the two operands are exactly what the network adds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.errors import UsageError
from repsim.layers import reading_of
from repsim.models import Network, as_network
from repsim.structure import find_blocks, first_call, is_attention, is_mlp
from repsim.tokens import Reading
from repsim.tracing import AdditionAt, Call, Operation, Spot, Trace, following

LEARNED = ("convolution", "mm", "bmm", "addmm", "baddbmm", "linear", "matmul", "einsum", "attention")
"""Operations (parts of their names in ATen) that make a path between two tensors count as computed."""


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """One addition of a skip connection z and a branch f(z)."""

    layer: str
    """Path of the block it is in."""
    block: int
    """Number of the block, from 0."""
    sublayer: str
    """`attention`, `mlp`; `token_mixing`, `channel_mixing`; or `unit`, where a block has one sum."""
    place: AdditionAt
    skip: int
    """Which operand of the addition is the skip, 0 or 1."""
    reading: Reading
    """How to read both operands."""

    @property
    def name(self) -> str:
        return f"{self.layer} {self.sublayer}"


def find_sums(network: Network | nn.Module | str) -> list[ResidualSum]:
    """The residual sums of a network's blocks, in the order in which they run.

    Raises:
        UsageError: there are none to be found, or it cannot be told which operand is the skip.
    """
    network = as_network(network)
    trace = Trace.of(network, operations=True)
    found = []
    for number, (path, block) in enumerate(find_blocks(trace)):
        additions = _stream(trace, path, block)
        for (addition, skip), sublayer in zip(additions, _sublayers(trace, path, additions)):
            if addition.output is None:
                raise UsageError(f"a residual sum in {path} of {network.name} has no axis of images")
            reading = reading_of(addition.output, block.call.module, network)
            found.append(ResidualSum(path, number, sublayer, addition.place, skip, reading))
    if not found:
        raise UsageError(f"{network.name} has no blocks with residual sums that repsim can find")
    return found


def _stream(trace: Trace, path: str, block: Spot) -> list[tuple[Operation, int]]:
    """The residual sums of a block, first to last, each with the number of its skip operand."""
    first = first_call(trace, path)
    entry = trace.made(first.argument, first.started)
    tensor = block.call.result if block.side == "output" else block.call.argument
    here = trace.made(tensor, block.when)
    found: list[tuple[Operation, int]] = []
    while here is not None and entry is not None and here.when > first.started:
        if _is_sum(here):
            skip = _skip(trace, path, here, entry)
            found.insert(0, (here, skip))
            here = here.operands[skip]
            continue
        depends = {op for op in here.operands if op is not None}
        if len(depends) != 1 or _learned(here):
            break
        here = depends.pop()
    return found


def _is_sum(op: Operation) -> bool:
    if op.place is None or len(op.operands) != 2 or None in op.operands:
        return False
    a, b = op.operands
    return a is not b and a.result.shape == b.result.shape


def _skip(trace: Trace, path: str, addition: Operation, entry: Operation) -> int:
    a, b = addition.operands
    if a in b.ancestors():
        return 0
    if b in a.ancestors():
        return 1
    lengths = _learned_between(a, entry), _learned_between(b, entry)
    if lengths[0] == lengths[1]:
        raise UsageError(
            f"{trace.network.name} adds two branches of equal length in {path}; repsim cannot tell which is the skip"
        )
    return int(lengths[1] < lengths[0])


def _learned(op: Operation) -> bool:
    return any(word in op.name.split("_") for word in LEARNED)


def _learned_between(op: Operation, entry: Operation) -> float:
    """The fewest learned operations on a way from a block's input; infinite if there is no way."""
    fewest: dict[Operation, float] = {entry: 0}
    for here in sorted({op, *op.ancestors()}, key=lambda o: o.when):
        if here is not entry:
            before = [fewest[o] for o in here.operands if o in fewest]
            fewest[here] = min(before, default=float("inf")) + _learned(here)
    return fewest[op]


def _sublayers(trace: Trace, path: str, additions: Sequence[tuple[Operation, int]]) -> list[str]:
    """What each sum of a block adds."""
    kinds = []
    for addition, skip in additions:
        stream, branch = addition.operands[skip], addition.operands[1 - skip]
        computed = {branch, *branch.ancestors()} - {stream, *stream.ancestors()}
        ran = [c.module for c in trace.below(path) if any(c.started < op.when < c.ended for op in computed)]
        kinds.append((any(map(is_attention, ran)), any(map(is_mlp, ran))))
    attention, mlp = (any(kind) for kind in zip(*kinds)) if kinds else (False, False)
    if len(kinds) == 2 and mlp and not attention:
        return ["token_mixing", "channel_mixing"]
    if len(kinds) == 1 and kinds[0] != (True, False):
        return ["unit"]
    names = ["attention" if a and not m else "mlp" if m and not a else "unit" for a, m in kinds]
    return [f"{n}{names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)]


@contextmanager
def watch_sums(
    network: Network,
    sums: Sequence[ResidualSum],
    take: Callable[[ResidualSum, Tensor, Tensor], Tensor | None],
) -> Iterator[None]:
    """Within it, `take(sum, skip, branch)` is called in every forward pass just before the two are added.

    What it returns, if anything, takes the place of the sum. Both tensors are as the network has them (`sum.reading`
    reads them); later operations may write into them in place.
    """
    wanted = {found.place: found for found in sums}
    running: list[Call] = []
    counts: dict[str, int] = {}

    def enter(path: str, module: nn.Module, arguments: Any) -> None:
        if not path:
            running.clear()
            counts.clear()
        counts[path] = counts.get(path, -1) + 1
        running.append(Call(path, module, counts[path], 0))

    with following(network.module, enter, lambda result: running.pop() and None), _Watch(wanted, running, take):
        yield


class _Watch(TorchDispatchMode):
    def __init__(self, wanted: dict[AdditionAt, ResidualSum], running: list[Call], take: Callable) -> None:
        super().__init__()
        self.wanted, self.running, self.take = wanted, running, take

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        found = self.wanted.get(AdditionAt.of(func, args, self.running))
        if found is not None:
            replaced = self.take(found, args[found.skip], args[1 - found.skip])
            if replaced is not None:
                in_place = func.overloadpacket.__name__.endswith("_")
                return args[0].copy_(replaced) if in_place else replaced.clone()
        return func(*args, **(kwargs or {}))
