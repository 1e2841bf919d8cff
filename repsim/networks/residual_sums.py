"""Residual sums: where a network adds a skip connection and a branch, found in its operations.

A traced forward pass records which operation made which tensor. From each block's output one goes
back along the stream: an addition of two tensors of one shape is a residual sum; its skip is the operand
from which the other was computed (or, with a projection on it, the one with less computed between
it and the block's input), its branch the other; then on from the skip, to the block's input. So the two operands are
exactly what the network adds; only what they are called (attention, mlp) is told from names of classes and operations.
Where the stream cannot be followed back, that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.errors import RepsimError, UsageError
from repsim.networks.bare_blocks import entered
from repsim.networks.kinds import is_attention, is_mlp
from repsim.networks.layers import depths_of
from repsim.networks.models import Network, as_network
from repsim.networks.structure import entry_of, find_blocks
from repsim.networks.sublayers import attending, plain_mlp
from repsim.networks.tokens import Reading
from repsim.networks.tracing import (
    ADDITION,
    Call,
    Operation,
    OperationAt,
    Spot,
    Trace,
    adds_what_it_came_from,
    following,
    is_addition,
    is_learned,
    is_own,
    is_sum,
    operation_at,
)


@dataclass(frozen=True, eq=False)
class ResidualSum:
    """One addition of a skip connection z and a branch f(z)."""

    layer: str
    """Path of the block it is in."""
    depth: float
    """Depth of the block, as a `Layer` has it."""
    block: int
    """Number of the block, from 0."""
    sublayer: str
    """`attention`, `mlp`; `token_mixing`, `channel_mixing`; `unit` where a block has one sum, or what is added is
    neither; with a number if there are more of a kind."""
    place: OperationAt
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
        UsageError: there are none to be found, those of a block can be found in part only, or it cannot be told which
            operand is the skip.
    """
    network = as_network(network)
    trace = Trace.of(network)
    residual_sums, depth = [], depths_of(trace)
    for number, (path, block) in enumerate(find_blocks(trace)):
        additions = _stream(trace, path, block)
        for (addition, skip), sublayer in zip(additions, _sublayers(trace, path, block, additions)):
            if addition.output is None:
                raise UsageError(f"a residual sum in {path} of {network.name} has no known axis of images")
            reading = trace.reading(addition.output)
            name = block.name or (block.call.name if block.call.path == path else path)
            residual_sums.append(ResidualSum(name, depth(block.when), number, sublayer, addition.at, skip, reading))  # pyrefly: ignore [bad-argument-type]  # of a sum
    if not residual_sums:
        raise UsageError(f"{network.name} has no blocks with residual sums that repsim can find")
    return residual_sums


def blocks_without(network: Network, sums: Sequence[ResidualSum]) -> list[str]:
    """Sentences on blocks without a residual sum, and on sums that do not enter the first output of a block."""
    have = {residual_sum.layer for residual_sum in sums}
    trace = Trace.of(network)
    blocks = find_blocks(trace)
    names = [path for path, _ in blocks if path not in have]
    sentences = [f"{len(names)} blocks of {network.name} have no residual sum: {', '.join(names)}"] if names else []
    aside = [path for path, block in blocks if path in have and _adds_aside(trace, path, block)]
    if aside:
        sentences.append(
            f"residual sums of {', '.join(aside)} in {network.name} are left out where they do not enter the first "
            "tensor that the block returns, which stands for it"
        )
    return sentences


def _adds_aside(trace: Trace, path: str, block: Spot) -> bool:
    """Whether the code of a block ends residual sums that its output does not depend on."""
    if block.made is None:
        return False
    ancestors = {block.made, *block.made.ancestors()}
    own = (op for op in trace.operations if op.at and op.at.path == path and adds_what_it_came_from(op))
    return any(op not in ancestors for op in own)


def _stream(trace: Trace, path: str, block: Spot) -> list[tuple[Operation, int]]:
    """The residual sums of a block, first to last, each with the number of its skip operand."""
    first = entry_of(trace, path, block)
    entry = (first.argument.made if first.argument else None) if trace.calls_of(path) else entered(trace, path).made
    here = block.made
    additions: list[tuple[Operation, int]] = []
    while here is not None and here.when > first.started:
        if is_sum(here):
            skip = _skip(trace, path, here, entry)
            additions.insert(0, (here, skip))
            here = here.operands[skip]
            continue
        depends = _parted_from(here) or _added_to(here, first.started) or {op for op in here.operands if op is not None}
        if is_learned(here) or len(depends) != 1:
            # A projection of the skip, or a block without one: nothing that is added must lie behind it.
            if _added_behind(here, first.started) or (additions and len(depends) > 1):
                raise UsageError(
                    f"the residual sums of {path} in {trace.network.name} cannot be found: its stream can be followed "
                    f"back from the output to an operation {here.name!r} only"
                )
            break
        here = depends.pop()
    return additions


def _parted_from(op: Operation) -> set[Operation]:
    """The parts that an operation joins again (such as a class token that was normalised alone); empty if none."""
    if op.name != "cat" or None in op.operands:
        return set()
    ways = [_way_back(part) for part in op.operands]
    common = [operation for operation in ways[0] if all(operation in way for way in ways)]
    return {common[0]} if common else set()


def _added_to(op: Operation, started: int) -> set[Operation]:
    """The sum in the one part that a block adds to, of several that it puts together; empty if it adds to more.

    The others are as they entered the block (patches beside a class token, or local tokens beside those of a region),
    or nothing is added in them, such as the channels by which a dual path grows.
    """
    if op.name != "cat" or None in op.operands:
        return set()
    ends = [[part, *_way_back(part)] for part in op.operands if part is not None]
    sums = {
        next((operation for operation in way if is_sum(operation) and operation.when > started), None) for way in ends
    }
    alone = all(way[-1].when < started or any(map(is_sum, way)) or not _added_behind(way[-1], started) for way in ends)
    return {operation for operation in sums if operation} if alone and len(sums) == 2 and None in sums else set()


def _added_behind(op: Operation, started: int) -> list[Operation]:
    """What is added up to an operation, from a moment on."""
    return [before for before in {op, *op.ancestors()} if before.when > started and adds_what_it_came_from(before)]


def _way_back(part: Operation | None) -> list[Operation]:
    """The operations of one operand, none learned, that a tensor was made by, last to first."""
    way: list[Operation] = []
    while part is not None and not is_learned(part) and len(part.before) == 1:
        way.append(part := next(before for before in part.operands if before is not None))
    return way


def _skip(trace: Trace, path: str, addition: Operation, entry: Operation | None) -> int:
    a, b = addition.operands
    if a is None or b is None:
        return 0 if a is None else 1
    lengths = _learned_between(a, entry), _learned_between(b, entry)
    if a in b.ancestors() or b in a.ancestors():
        skip = 0 if a in b.ancestors() else 1
        if lengths[skip] <= lengths[1 - skip]:
            return skip
    elif lengths[0] != lengths[1]:
        return int(lengths[1] < lengths[0])
    scaled = [_is_made_of(other, _unscaled(each)) for each, other in ((a, b), (b, a))]
    if scaled[0] != scaled[1]:
        return 0 if scaled[0] else 1
    raise UsageError(
        f"of the two tensors that {trace.network.name} adds in {path}, repsim cannot tell which is the skip and which "
        "is the branch"
    )


def _is_made_of(op: Operation, source: Operation) -> bool:
    """Whether an operation depends on another one, and on nothing before that but through it, as a gated sum does."""
    if source not in op.ancestors():
        return False
    before, waiting, visited = source.ancestors(), [op], {source}
    while waiting:
        here = waiting.pop()
        if here in before:
            return False
        visited.add(here)
        waiting += [operand for operand in here.operands if operand is not None and operand not in visited]
    return True


def _unscaled(op: Operation) -> Operation:
    """The operand that was multiplied by parameters."""
    while op.name.rstrip("_") in ("mul", "view") and len(op.before) == 1:
        op = next(before for before in op.operands if before is not None)
    return op


def _learned_between(op: Operation, entry: Operation | None) -> float:
    """The fewest learned operations on a way from a block's input; infinite if there is no way."""
    fewest: dict[Operation, float] = {} if entry is None else {entry: 0}
    for here in sorted({op, *op.ancestors()}, key=lambda o: o.when):
        if here is not entry:
            before = [fewest[o] for o in here.operands if o in fewest]
            fewest[here] = min(before, default=float("inf")) + is_learned(here)
    return fewest[op]


def _sublayers(trace: Trace, path: str, block: Spot, additions: Sequence[tuple[Operation, int]]) -> list[str]:
    """The name of each sum's branch in a block, by the modules that ran in this branch alone."""
    if len(additions) == 1:
        return ["unit"]
    kinds, attends = [], attending(trace)
    weights = {each.at for each in trace.provenance.attentions}
    for addition, skip in additions:
        stream, branch = addition.operands[skip], addition.operands[1 - skip]
        computed, before = ({op, *op.ancestors()} if op is not None else set() for op in (branch, stream))
        computed -= before
        inside = [call for call in trace.inside(path, block) if not call.started < addition.when < call.ended]
        ran = [c for c in inside if any(c.started < op.when < c.ended for op in computed)]
        attentions = [c for c in ran if is_attention(c.module) or c.path in attends]
        attention = bool(attentions) or any(op.at in weights for op in computed)
        mlp = any(is_mlp(c.module) and not any(c.path.startswith(f"{a.path}.") for a in attentions) for c in ran)
        kinds.append((attention, mlp or (branch is not None and plain_mlp(trace, branch) is not None)))
    if len(kinds) == 2 and not any(attention for attention, _ in kinds) and any(mlp for _, mlp in kinds):
        return ["token_mixing", "channel_mixing"]
    names = ["attention" if a and not m else "mlp" if m and not a else "unit" for a, m in kinds]
    return [f"{n}{names[:i].count(n) + 1}" if n in names[:i] else n for i, n in enumerate(names)]


@contextmanager
def watch_sums(
    network: Network,
    sums: Sequence[ResidualSum],
    take: Callable[[ResidualSum, Tensor, Tensor], Tensor | None],
    *,
    passed: bool = False,
) -> Iterator[None]:
    """While active, `take(sum, skip, branch)` is called in every forward pass just before the two are added.

    What it returns, if anything, takes the place of the sum. Both tensors are as the network has them (`sum.reading`
    reads them); later operations may write into them in place. With `passed`, only passes of a sweep count.
    """
    wanted = {residual_sum.place: residual_sum for residual_sum in sums}
    running: list[Call] = []
    watch = _Watch(wanted, running, take)

    def enter(call: Call, arguments: Any) -> None:
        if not call.path:
            watch.places.clear()

    def leave(call: Call, result: Any) -> None:
        if call.path or watch.places.issuperset(wanted):
            return
        missing = next(residual_sum.name for place, residual_sum in wanted.items() if place not in watch.places)
        raise RepsimError(
            f"{network.name} no longer adds {missing!r} as it did when repsim looked for its residual sums"
        )

    with following(network.module, running, enter, leave, lambda: is_own(network, passed=passed)), watch:
        yield


class _Watch(TorchDispatchMode):
    def __init__(self, wanted: dict[OperationAt, ResidualSum], running: list[Call], take: Callable) -> None:
        super().__init__()
        self.wanted, self.running, self.take = wanted, running, take
        self.places: set[OperationAt] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        at = operation_at(ADDITION, self.running) if self.running and is_addition(func, args) else None
        residual_sum = None if at is None else self.wanted.get(at)
        if residual_sum is not None:
            self.places.add(residual_sum.place)
            replaced = self.take(residual_sum, args[residual_sum.skip], args[1 - residual_sum.skip])
            if replaced is not None:
                in_place = func.overloadpacket.__name__.endswith("_")
                return args[0].copy_(replaced) if in_place else replaced.clone()
        return func(*args, **(kwargs or {}))
