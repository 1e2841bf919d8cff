"""One forward pass of a network on shapes alone: which modules run, how often, in which order, on what.

The pass runs on meta tensors (shapes, no arithmetic) with a batch of prime size, so that the axis of the
images can be told from all others; networks that cannot run so are run twice on few real images.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

from repsim.errors import RepsimError, first_line
from repsim.models import Network, evaluating
from repsim.precision import as_given
from repsim.tokens import first_tensor

MANY = 10_007
"""Images of the traced batch: a prime no other size will share. On meta tensors they cost nothing."""


@dataclass(frozen=True)
class Activation:
    """Shape of one image's part of a tensor, and where in the tensor the images are."""

    shape: tuple[int, ...]
    batch_axis: int
    fold: int


@dataclass(eq=False)
class Call:
    path: str
    module: nn.Module
    number: int
    started: int = -1
    ended: int = -1
    argument: Tensor | None = None
    result: Tensor | None = None
    input: Activation | None = None
    output: Activation | None = None
    additions: int = 0
    """Made so far by its own code, not by the modules it calls."""

    @property
    def name(self) -> str:
        return f"{self.path}:{self.number}" if self.number else self.path


@dataclass(frozen=True, eq=False)
class Spot:
    """A call of a module, of which a layer takes the output or the input."""

    call: Call
    kind: str
    name: str | None = None
    side: Literal["output", "input"] = "output"

    @property
    def activation(self) -> Activation | None:
        return self.call.output if self.side == "output" else self.call.input

    @property
    def when(self) -> int:
        return self.call.ended if self.side == "output" else self.call.started


@dataclass(eq=False)
class Operation:
    """One operation on tensors that depend on the images."""

    name: str
    """As ATen calls it: `add`, or `add_` in place; `images` for what the pass began with."""
    when: int
    operands: tuple[Operation | None, ...]
    """What made each tensor it was given; None for one that does not depend on the images."""
    given: tuple[Tensor, ...]
    """Those tensors."""
    result: Tensor
    place: AdditionAt | None
    """Of an addition: where it is, so that it can be found again in another pass."""
    output: Activation | None = None

    def ancestors(self) -> set[Operation]:
        """Everything that it depends on."""
        found: set[Operation] = set()
        waiting = [self]
        while waiting:
            new = {op for op in waiting.pop().operands if op is not None} - found
            found |= new
            waiting += new
        return found


@dataclass(frozen=True)
class Trace:
    network: Network
    calls: list[Call]
    """In the order in which they end; the root's is the last."""
    operations: list[Operation] = field(default_factory=list)
    """In the order in which they run; none unless asked for."""

    @classmethod
    def of(cls, network: Network, *, operations: bool = False) -> Trace:
        """One forward pass on shapes alone, else two real ones, of 2 and of 3 images.

        Operations are taken from real ones: some kernels do on meta tensors what they do not do on a device.
        """
        if not operations:
            try:
                trace = run(network, MANY, meta=True)
                for call in trace.calls:
                    call.input = images_axis(shape_of(call.argument), MANY)
                    call.output = images_axis(shape_of(call.result), MANY)
                return trace
            except Exception:  # data-dependent Python, tensors that are not buffers
                pass
        two, three = (run(network, n, operations=operations) for n in (2, 3))
        same = [c.name for c in two.calls] == [c.name for c in three.calls]
        if not same or [op.name for op in two.operations] != [op.name for op in three.operations]:
            raise RepsimError(f"{network.name} does other things to 3 images than to 2; repsim cannot follow it")
        for a, b in zip(two.calls, three.calls):
            a.input = images_axis(shape_of(a.argument), 2, shape_of(b.argument))
            a.output = images_axis(shape_of(a.result), 2, shape_of(b.result))
        for a, b in zip(two.operations, three.operations):
            a.output = images_axis(shape_of(a.result), 2, shape_of(b.result))
        return two

    def calls_of(self, path: str) -> list[Call]:
        return [call for call in self.calls if call.path == path]

    def made(self, tensor: Tensor | None, when: int) -> Operation | None:
        """The operation that gave a tensor the values it had at a time."""
        found = [op for op in self.operations if op.result is tensor and op.when <= when]
        return found[-1] if found else None

    def below(self, path: str) -> list[Call]:
        """Calls of the modules inside the one at a path."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]


def without_data(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers on the meta device; nothing a traced pass writes reaches the original."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def run(network: Network, n: int, *, meta: bool = False, operations: bool = False) -> Trace:
    root = without_data(network.module) if meta else network.module
    images = torch.zeros(n, *network.input_size, device="meta" if meta else network.device, dtype=network.dtype)
    calls: list[Call] = []
    running: list[Call] = []
    clock = itertools.count()
    recorder = _Recorder(images, clock, running) if operations else None

    def enter(call: Call, arguments: Any) -> None:
        call.started, call.argument = next(clock), first_tensor(arguments)

    def leave(call: Call, result: Any) -> None:
        call.ended, call.result = next(clock), first_tensor(result)
        calls.append(call)

    try:
        with following(root, running, enter, leave), evaluating(root), torch.no_grad(), recorder or nullcontext():
            root(images)
    except Exception as error:
        if meta:
            raise
        size = "x".join(map(str, network.input_size))
        raise RepsimError(f"{network.name} cannot run on images of {size}: {first_line(error)}") from error
    return Trace(network, calls, recorder.operations if recorder else [])


@contextmanager
def following(
    root: nn.Module, running: list[Call], enter: Callable[[Call, Any], None], leave: Callable[[Call, Any], None]
) -> Iterator[None]:
    """Within it, `running` holds the calls under way, innermost last, in every forward pass of a network.

    `enter(call, arguments)` and `leave(call, result)` are told of each; calls of a module are numbered from 0.
    """
    counts: dict[str, int] = {}

    def before(path: str, module: nn.Module, arguments: Any) -> None:
        if not path:  # a new pass, perhaps after one that failed half-way
            running.clear()
            counts.clear()
        counts[path] = counts.get(path, -1) + 1
        running.append(Call(path, module, counts[path]))
        enter(running[-1], arguments)

    handles = []
    try:
        for path, module in root.named_modules():
            handles.append(
                module.register_forward_pre_hook(lambda m, a, k, path=path: before(path, m, a or k), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(lambda m, a, result: leave(running.pop(), result)))
        yield
    finally:
        for handle in handles:
            handle.remove()


# Operations


@contextmanager
def unobserved() -> Iterator[None]:
    """Within it, operations are none of the network's: what a study computes in its hooks is not what the network adds.

    Whoever else watches the operations of this pass would otherwise count them among those of the module under way,
    and a network in bfloat16 would have them done in bfloat16.
    """
    with _disable_current_modes(), as_given():
        yield


class AdditionAt(NamedTuple):
    """Where two tensors are added, the same in every forward pass."""

    path: str
    """Of the module whose own code adds them."""
    call: int
    number: int
    """Which of the additions in this call of the module."""

    @classmethod
    def of(cls, func: Any, arguments: tuple, running: list[Call]) -> AdditionAt | None:
        """The place of an operation that is an addition of two tensors; asked once for each, it counts them."""
        if func not in _ADDITIONS or len(arguments) < 2 or not running:
            return None
        if not all(isinstance(x, Tensor) for x in arguments[:2]):
            return None
        call = running[-1]
        call.additions += 1
        return cls(call.path, call.number, call.additions - 1)


_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class _Recorder(TorchDispatchMode):
    """Records every operation on what depends on the images."""

    def __init__(self, images: Tensor, clock: Iterator[int], running: list[Call]) -> None:
        super().__init__()
        self.clock, self.running = clock, running
        self.operations = [Operation("images", next(clock), (), (), images, None)]
        self.maker = {id(images): self.operations[0]}  # operations keep their results alive, so ids stay theirs

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        place = AdditionAt.of(func, args, self.running)
        scaled = (kwargs or {}).get("alpha", 1) != 1  # x + 2y: counted, but no sum of what a skip and a branch carry
        given = tuple(x for x in tree_iter((args, kwargs or {})) if isinstance(x, Tensor))
        operands = tuple(self.maker.get(id(x)) for x in given)
        result = func(*args, **(kwargs or {}))
        if any(operands):
            for tensor in (x for x in tree_iter(result) if isinstance(x, Tensor)):
                name = func.overloadpacket.__name__
                operation = Operation(name, next(self.clock), operands, given, tensor, None if scaled else place)
                self.operations.append(operation)
                self.maker[id(tensor)] = operation
        return result


def shape_of(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def images_axis(shape: tuple[int, ...] | None, n: int, one_more: tuple[int, ...] | None = None) -> Activation | None:
    """Where the n images are in a tensor: the axis that is a multiple of a large prime n, or that grows with n."""
    if shape is None:
        return None
    if one_more is None:
        axes = [axis for axis, size in enumerate(shape) if size and size % n == 0]
    else:
        axes = [axis for axis, (a, b) in enumerate(zip(shape, one_more)) if a and b * n == a * (n + 1)]
    rest = [size for axis, size in enumerate(shape) if axis not in axes]
    fold = shape[axes[0]] // n if axes else 0
    if len(axes) != 1 or not rest or (axes[0] and fold > 1):
        return None
    return Activation((fold, *rest) if fold > 1 else tuple(rest), axes[0], fold)
