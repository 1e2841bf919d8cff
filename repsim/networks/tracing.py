"""Traces of forward passes: which modules run, how often, in which order, on which inputs, by which operations.

`Trace.of` runs a network on three small images. Labels go along with the operations and say what each axis of each
activation is (see `provenance`); then one image after the other is changed, and what changes must be what belongs to
it.
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter
from torch.utils.weak import WeakTensorKeyDictionary

from repsim.errors import RepsimError, first_line
from repsim.features.arrays import FeatureNetwork, needs_network
from repsim.networks.axes import Activation, activation_of, depends_on_several, measured_images_axis, reading_of
from repsim.networks.draws import Draw, Repeating, draws, not_a_function
from repsim.networks.models import Network, evaluating
from repsim.networks.older_torch import uncompiled
from repsim.networks.precision import as_given
from repsim.networks.provenance import Label, Provenance
from repsim.networks.tokens import Reading, first_tensor
from repsim.networks.wrappers import inside, part, parts

IMAGES = 3
"""Images in a traced pass."""
KEPT = 2**22
"""Entries of the largest tensor without a label that is kept for seeing which entries change with which image."""
SDPA = nn.functional.scaled_dot_product_attention
FUSED = "attention"
"""The name of the operation here."""


class Value(NamedTuple):
    """A tensor that a module was given or gave: the same object for the same tensor."""

    shape: tuple[int, ...]
    made: Operation | None
    """The operation that gave it the values it had then."""
    number: int

    def is_(self, other: Value | None) -> bool:
        return other is not None and self.number == other.number


@dataclass(eq=False)
class Call:
    """One run of a module."""

    path: str
    number: int
    of: weakref.ref[nn.Module]
    """The module, held weakly: the trace of a network must not keep it alive."""
    started: int = -1
    ended: int = -1
    argument: Value | None = None
    result: Value | None = None
    input: Activation | None = None
    output: Activation | None = None
    mixed: bool = False
    """Whether some entries of its result depend on several images."""
    counts: Counter = field(default_factory=Counter)
    """Operations made so far by its own code, not by the modules it calls, by name."""

    @property
    def name(self) -> str:
        return call_name(self.path, self.number)

    @property
    def module(self) -> nn.Module:
        module = self.of()
        if module is None:
            raise ReferenceError(f"module {self.path!r} is gone, with its network")
        return module


def call_name(path: str, number: int) -> str:
    """What a call of the module at a path is called: after the path, and by its number if it is not the first."""
    return f"{path}:{number}" if number else path


@dataclass(frozen=True, eq=False)
class Spot:
    """A call of a module, of which a layer takes the output or the input."""

    call: Call
    kind: str
    name: str | None = None
    side: Literal["output", "input"] = "output"
    lost: Operation | None = None
    """What makes it, where no module is given it or gives it: then it is taken at this operation, if that is a sum, and
    the call is near it."""
    since: Call | None = None
    """The first call of a block that is several modules in a row, none of which holds the others."""

    @property
    def activation(self) -> Activation | None:
        if self.lost is not None:
            return self.lost.output
        return self.call.output if self.side == "output" else self.call.input

    @property
    def made(self) -> Operation | None:
        """The operation that makes it."""
        value = self.call.result if self.side == "output" else self.call.argument
        return self.lost or (None if value is None else value.made)

    @property
    def when(self) -> int:
        if self.lost is not None:
            return self.lost.when
        return self.call.ended if self.side == "output" else self.call.started


class OperationAt(NamedTuple):
    """Where an operation is made, the same in every forward pass."""

    path: str
    """Path of the module whose own code makes it."""
    call: int
    name: str
    number: int
    """Which of the operations of this name in this call of the module."""


@dataclass(eq=False)
class Operation:
    """One operation on tensors that depend on the images."""

    name: str
    """The name in ATen: `add`, or `add_` in place; `images` for the inputs of the pass."""
    when: int
    operands: tuple[Operation | None, ...]
    """The operations that made its inputs; None for an input that does not depend on the images."""
    shapes: tuple[tuple[int, ...], ...]
    """Shapes of its inputs."""
    at: OperationAt | None
    scaled: bool = False
    """Whether it is an addition of a multiple."""
    parameters: tuple[str, ...] = ()
    """Names of the parameters among its inputs, or that its inputs were made of."""
    output: Activation | None = None

    @property
    def before(self) -> set[Operation]:
        """What made those of its tensors that depend on the images."""
        return {op for op in self.operands if op is not None}

    def ancestors(self) -> set[Operation]:
        """Everything that it depends on."""
        ancestors: set[Operation] = set()
        waiting: list[Operation] = [self]
        while waiting:
            new = waiting.pop().before - ancestors
            ancestors |= new
            waiting += new
        return ancestors


@dataclass(frozen=True, eq=False)
class Trace:
    """One pass of a network: calls of modules, operations, and the sources of their values."""

    network: Network
    calls: list[Call]
    """In the order in which they end; the root's is the last."""
    operations: list[Operation]
    """In the order in which they run."""
    provenance: Provenance
    peak: int
    """Bytes of the tensors that are alive at once in a forward pass, for each image, without the weights."""
    made: int
    """Bytes of all tensors that it makes, for each image, as a backward pass needs most of them."""

    @classmethod
    def of(cls, network: Network) -> Trace:
        """The trace of a network, looked at once for as long as it stays as it is.

        Raises:
            RepsimError: it cannot run on images of its size, or runs differently from one pass to the next.
            UsageError: it is no network but features.
        """
        if isinstance(network, FeatureNetwork):
            raise needs_network(network)
        known = _TRACES.get(network.module, {})
        key = (_fingerprint(network), network.prefix)  # and not its name: two networks may share a module
        if key not in known:
            _TRACES[network.module] = known = {key: _traced(network)}
        return replace(known[key], network=network)

    def module(self, path: str) -> nn.Module:
        """The network's module at a path."""
        return part(self.network.module, path)

    def calls_of(self, path: str) -> list[Call]:
        return self._by_path.get(path, [])

    def maker(self, op: Operation) -> Call:
        """The call whose own code makes an operation of the network."""
        if op.at is None:
            raise ValueError(f"{op.name} is given to the network, and not made by it")
        return self.calls_of(op.at.path)[op.at.call]

    def below(self, path: str) -> list[Call]:
        """Calls of the modules inside the one at a path."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]

    def inside(self, path: str, block: Spot) -> list[Call]:
        """Calls of the modules inside a block: at a path, or in a row that begins with `block.since`."""
        if block.since is None:
            return self.below(path)
        began = block.since.started
        return [call for call in self.calls if call.path and began <= call.started and call.ended <= block.when]

    def following(self, op: Operation) -> list[Operation]:
        """The operations that take what an operation makes."""
        return self._following.get(op, [])

    def takers(self, op: Operation) -> list[Call]:
        """The calls of modules that take what an operation makes, in the order in which they begin."""
        calls = (call for call in self.calls if call.argument is not None and call.argument.made is op)
        return sorted(calls, key=lambda call: call.started)

    @cached_property
    def _following(self) -> dict[Operation, list[Operation]]:
        following: dict[Operation, list[Operation]] = {}
        for op in self.operations:
            for before in op.before:
                following.setdefault(before, []).append(op)
        return following

    @cached_property
    def _by_path(self) -> dict[str, list[Call]]:
        calls: dict[str, list[Call]] = {}
        for call in self.calls:
            calls.setdefault(call.path, []).append(call)
        return calls

    def reading(self, activation: Activation) -> Reading:
        """How to read a tensor of this network."""
        return reading_of(activation, self.provenance.places, self.network.input_size, self.network.prefix)


_TRACES: weakref.WeakKeyDictionary[nn.Module, dict[Any, Trace]] = weakref.WeakKeyDictionary()


def _fingerprint(network: Network) -> tuple:
    """The state that a trace depends on; while it is unchanged, the trace holds."""
    parts = []
    for path, module in network.module.named_modules():
        plain = _plain(module)
        own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_") and not isinstance(v, type)]
        parts.append((path, id(module), type(module), tuple(plain), tuple((k, id(vars(module)[k])) for k in own)))
    weights = [(p.data_ptr(), p._version) for p in network.module.parameters() if not _without_memory(p)]
    configs = {id(each): each for each in (vars(m).get("config") for m in network.module.modules()) if each is not None}
    settings = tuple(tuple(_plain(each)) for each in configs.values() if hasattr(each, "__dict__"))
    seeded = network.seed if network.seed_each_pass else None
    return tuple(parts), tuple(weights), settings, network.input_size, network.device, network.dtype, seeded


def _plain(holder: Any) -> list[tuple[str, Any]]:
    """Numbers and words that a module or its config holds."""
    return [(k, v) for k, v in vars(holder).items() if isinstance(v, (bool, int, float, str)) and k != "training"]


def _without_memory(parameter: Tensor) -> bool:
    return nn.parameter.is_lazy(parameter) or parameter.is_meta or parameter.is_sparse


def _traced(network: Network) -> Trace:
    generator = torch.Generator().manual_seed(0)
    draw = torch.rand(2 * IMAGES, *network.input_size, generator=generator) * 2 - 1
    images, other_images = (part.to(network.device, network.dtype) for part in draw.split(IMAGES))
    named = {
        f"{path}.{name}" if path else name: tensor
        for path, module in (*parts(network.module).items(), ("", inside(network.module)))
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    images = images.clone()
    provenance = Provenance(images, named)
    looking = _Looking(provenance)
    looking.recorder.begin(images)
    first, alive = _run(network, images, looking), _Alive()
    if looking.recorder.draws:
        _check_repeats(network, images, looking.recorder.draws)
    for changed in () if images.is_meta else range(IMAGES):
        batch = images.clone()
        batch[changed] = other_images[changed]
        again = _Comparing(looking, changed, None if changed else alive)
        names = [call.name for call in _run(network, batch, again)]
        if names != [call.name for call in first]:
            _check_repeats(network, images, [])
            raise RepsimError(f"{network.name} does different things to different images; repsim cannot follow it")
    if any(call.mixed for call in first):
        _check_repeats(network, images, [])
    looking.settle()
    nobody: Any = None  # what is kept of a network must not keep it alive; `Trace.of` says whose it is
    return Trace(nobody, first, looking.recorder.operations, provenance, alive.peak // IMAGES, alive.made // IMAGES)


def _run(network: Network, images: Tensor, watching: _Looking | _Comparing | Repeating) -> list[Call]:
    calls: list[Call] = []

    def leave(call: Call, result: Any) -> None:
        watching.leave(call, first_tensor(result))
        calls.append(call)

    try:
        with (
            following(network.module, watching.running, watching.enter, leave),
            evaluating(network.module),
            torch.no_grad(),
            eagerly(replace(network, compiled=False)),
            network.seeded(),
            watching.recording(),
        ):
            network.module(images)
    except RepsimError:
        raise
    except (Exception, SystemExit) as error:
        size = "x".join(map(str, network.input_size))
        raise RepsimError(f"{network.name} cannot run on images of {size}: {first_line(error)}") from error
    return calls


class _Looking:
    """The pass that labels go along with."""

    def __init__(self, provenance: Provenance) -> None:
        self.provenance = provenance
        self.running: list[Call] = []
        self.clock = itertools.count()
        self.recorder = _Recorder(provenance, self.clock, self.running)
        self.values: Any = WeakTensorKeyDictionary()
        self._noted: Any = WeakTensorKeyDictionary()
        """Tensors of which there is a digest: how often they had been written to, and its key. What one module gives,
        another is given, or gives as it is."""
        self.same: dict[tuple[str, int, str], list[tuple[Call, str]]] = {}
        """Key of a digest -> which others, and whose input or output, are the same tensor."""
        self._numbers = itertools.count()
        self._known: weakref.WeakKeyDictionary[Label, Activation | None] = weakref.WeakKeyDictionary()
        self.digests: dict[tuple[str, int, str], tuple[Call, Activation | None, Any]] = {}
        """(path, call, side) -> the call, where images are, and a digest of each image's part."""
        self.changes: dict[tuple[str, int, str], list[Tensor]] = {}
        """Tensor without a label -> the entries that changed with each image."""

    def recording(self) -> Any:
        stack = ExitStack()
        stack.enter_context(self.recorder)
        stack.enter_context(_Fused(self.recorder))
        return stack

    def value(self, tensor: Tensor | None) -> Value | None:
        if tensor is None:
            return None
        maker = self.recorder.maker.get(tensor)
        if tensor not in self.values:
            self.values[tensor] = next(self._numbers)
        return Value(tuple(tensor.shape), maker, self.values[tensor])

    def activation(self, tensor: Tensor | None) -> Activation | None:
        label = self.provenance.label(tensor)
        if label is None:
            return None
        if label not in self._known:
            self._known[label] = activation_of(label, IMAGES, self.provenance.places)
        return self._known[label]

    def enter(self, call: Call, arguments: Any) -> None:
        with unobserved():
            tensor = first_tensor(arguments)
            call.started, call.argument, call.input = next(self.clock), self.value(tensor), self.activation(tensor)
            self._note((call.path, call.number, "input"), call, tensor, call.input)

    def leave(self, call: Call, tensor: Tensor | None) -> None:
        with unobserved():
            call.ended, call.result, call.output = next(self.clock), self.value(tensor), self.activation(tensor)
            label = self.provenance.label(tensor)
            call.mixed = label is not None and depends_on_several(label)
            self._note((call.path, call.number, "output"), call, tensor, call.output)

    def _note(self, key: tuple, call: Call, tensor: Tensor | None, activation: Activation | None) -> None:
        if tensor is None or not tensor.numel() or tensor.is_meta:
            return
        version, noted = self._noted.get(tensor, (None, None))
        if version == tensor._version:
            self.same.setdefault(noted, []).append((call, key[2]))
            return
        self._noted[tensor] = tensor._version, key
        if activation is not None:
            parts = activation.first(tensor)
            self.digests[key] = (call, activation, (bits(parts), sums(parts)))
        elif tensor.numel() <= KEPT and not call.mixed:
            self.digests[key] = (call, None, tensor.detach().clone())
            self.changes[key] = []

    def settle(self) -> None:
        """Find the images in tensors without a label, from the entries that changed with each image."""
        for key, changes in self.changes.items():
            call, _, tensor = self.digests[key]
            if len(changes) != IMAGES or not all(bool(change.any()) for change in changes):
                continue
            axis = measured_images_axis(changes, IMAGES)
            same = [(call, key[2]), *self.same.get(key, [])]
            if axis is None:
                for each, _ in same:
                    each.mixed = True
                continue
            activation = Activation((), *axis)
            activation = replace(activation, shape=tuple(activation.first(tensor).shape[1:]))
            if not activation.shape:
                continue
            for each, side in same:
                setattr(each, side, activation)


class _Comparing:
    """A pass in which one image was changed."""

    def __init__(self, looking: _Looking, changed: int, alive: _Alive | None) -> None:
        self.looking, self.changed, self.alive = looking, changed, alive
        self.running: list[Call] = []

    def recording(self) -> Any:
        return self.alive or ExitStack()

    def enter(self, call: Call, arguments: Any) -> None:
        self._compare((call.path, call.number, "input"), first_tensor(arguments))

    def leave(self, call: Call, tensor: Tensor | None) -> None:
        self._compare((call.path, call.number, "output"), tensor)

    def _compare(self, key: tuple, tensor: Tensor | None) -> None:
        if key not in self.looking.digests or tensor is None:
            return
        call, activation, before = self.looking.digests[key]
        if activation is None:
            if tensor.shape == before.shape:
                self.looking.changes[key].append(tensor != before)
            return
        with unobserved():
            parts, (exact, rounded) = activation.first(tensor), before
            others = [i for i in range(IMAGES) if i != self.changed]
            if len(parts) != IMAGES or parts.shape[1:] != activation.shape:
                call.mixed = True
            elif not self.looking.provenance.by_batch and not torch.equal(bits(parts)[others], exact[others]):
                apart, size = (sums(parts) - rounded)[others].abs(), rounded[others, 1:]
                call.mixed |= bool((apart > 1e-6 * size + 1e-30).any())


def _check_repeats(network: Network, images: Tensor, drawn: list[Draw]) -> None:
    """Raise `RepsimError` if a network gives other values for the same images from one pass to the next."""
    first: Repeating | None = None
    for high in (False, True, None, None) if drawn and not network.seed_each_pass else (None, None):
        again = Repeating(first, high)
        _run(network, images, again)
        if again.differs:
            raise RepsimError(not_a_function(network.name, network.module, again.other or "", drawn))
        first = first or again


def bits(parts: Tensor) -> Tensor:
    """(n,) a number that changes with any entry of an image's part."""
    rows = parts.detach().flatten(1).contiguous()
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(rows.element_size())
    rows = torch.view_as_real(rows).flatten(1) if whole is None else rows.view(whole)
    return rows.sum(1, dtype=torch.float64 if whole is None else torch.int64)


def sums(parts: Tensor) -> Tensor:
    """(n, 2) sums of values and of magnitudes, by which rounding is told from another value."""
    rows = parts.detach().flatten(1)
    rows = rows.abs() if rows.is_complex() else rows
    return torch.stack([rows.sum(1, dtype=torch.float64), rows.abs().sum(1, dtype=torch.float64)], 1)


class _Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = self.made = 0
        self._known: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: tuple = (), keywords: Any = None) -> Any:
        for storage in _storages((arguments, keywords)):  # weights and images, and views of them, are not made here
            self._known.add(storage)
        result = operation(*arguments, **(keywords or {}))
        for storage in _storages(result):
            if storage not in self._known:
                size = storage.nbytes()
                self._known.add(storage)
                weakref.finalize(storage, self._gone, size)
                self.now, self.made = self.now + size, self.made + size
                self.peak = max(self.peak, self.now)
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


def _storages(values: Any) -> Iterator[torch.UntypedStorage]:
    for value in tree_iter(values):
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized:
            with suppress(NotImplementedError, RuntimeError):  # a tensor without memory of its own
                yield value.untyped_storage()


# Whose pass it is

_passing: ContextVar[Network | None] = ContextVar("passing", default=None)


@contextmanager
def passing(network: Network) -> Iterator[None]:
    """While active, a forward pass is this network's own, even if it shares modules with other networks."""
    token = _passing.set(network)
    try:
        yield
    finally:
        _passing.reset(token)


@contextmanager
def eagerly(network: Network) -> Iterator[None]:
    """While active, modules that their owner compiled run as they are written: compiled code calls no hooks.

    A network of which `compiled` says that repsim is to compile it is compiled with its hooks.
    """
    if network.compiled:
        yield
        return
    with uncompiled(), _without_fast_path():
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    """While active, PyTorch's attention and encoder layers compute with the operations they are written in."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def is_own(network: Network, *, passed: bool) -> bool:
    """Whether the forward pass under way is a network's own.

    Args:
        passed: whether only passes count that `passing` announces, as a sweep does; else unannounced passes count too.
    """
    now = _passing.get()
    return now is network or (now is None and not passed)


@contextmanager
def following(
    root: nn.Module,
    running: list[Call],
    enter: Callable[[Call, Any], None],
    leave: Callable[[Call, Any], None],
    own: Callable[[], bool] = lambda: True,
) -> Iterator[None]:
    """While active, `running` holds the calls under way, innermost last, in every forward pass of a network.

    `enter(call, arguments)` and `leave(call, result)` are told of each; calls of a module are numbered from 0.

    Args:
        own: asked whether a pass that begins is one to look at.
    """
    counts: dict[str, int] = {}
    begun = [False]

    def before(path: str, module: nn.Module, arguments: Any) -> None:
        if not path:  # a new pass, perhaps after one that failed half-way
            running.clear()
            counts.clear()
            begun[0] = own()
        if not begun[0]:
            return
        counts[path] = counts.get(path, -1) + 1
        running.append(Call(path, counts[path], weakref.ref(module)))
        enter(running[-1], arguments)

    def after(path: str, result: Any) -> None:
        if begun[0]:
            leave(running.pop(), result)
            begun[0] = bool(path)

    handles = []
    try:
        for path, module in parts(root).items():
            handles.append(
                module.register_forward_pre_hook(lambda m, a, k, path=path: before(path, m, a or k), with_kwargs=True)
            )
            handles.append(module.register_forward_hook(lambda m, a, result, path=path: after(path, result)))
        yield
    finally:
        for handle in handles:
            handle.remove()


# Operations


@contextmanager
def unobserved() -> Iterator[None]:
    """While active, operations do not count as the network's, because a study computes in the hooks of a network.

    Whoever else watches the operations of this pass would otherwise count them among those of the module under way,
    and a network in bfloat16 would have them done in bfloat16.
    """
    with _disable_current_modes(), as_given():
        yield


ADDITION = "addition"
_ADDITIONS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


def operation_at(name: str, running: list[Call]) -> OperationAt | None:
    """The place of the operation that is about to be made; asked once for each, it counts them."""
    if not running:
        return None
    call = running[-1]
    call.counts[name] += 1
    return OperationAt(call.path, call.number, name, call.counts[name] - 1)


def is_addition(func: Any, arguments: tuple) -> bool:
    """Whether an operation is an addition of two tensors."""
    return func in _ADDITIONS and len(arguments) > 1 and all(isinstance(x, Tensor) for x in arguments[:2])


def name_of(func: Any, arguments: tuple) -> str:
    """The name by which operations are counted: the same in place and not."""
    return ADDITION if is_addition(func, arguments) else func.overloadpacket.__name__.rstrip("_")


def is_sum(op: Operation) -> bool:
    """An addition of two tensors of one shape, one of which may be the same for all images (a CLS token)."""
    if op.at is None or op.at.name != ADDITION or op.scaled or len(op.operands) != 2 or op.operands == (None, None):
        return False
    return op.operands[0] is not op.operands[1] and op.shapes[0] == op.shapes[1]


def adds_what_it_came_from(op: Operation) -> bool:
    """A residual sum, wherever it is: one operand is computed from the other."""
    if not is_sum(op):
        return False
    a, b = op.operands
    if a is None or b is None:
        return False
    return a in b.ancestors() or b in a.ancestors()


LEARNED = ("convolution", "mm", "bmm", "addmm", "baddbmm", "linear", "matmul", "einsum", "attention")
"""Operations (parts of their names in ATen) that make a path between two tensors count as computed."""
BENDS = ("gelu", "relu", "silu", "swish", "sigmoid", "tanh", "erf", "elu", "mish", "softplus")
"""Parts of the names of operations that make an activation of a linear map."""


def is_learned(op: Operation) -> bool:
    """Whether an operation takes parameters."""
    return any(word in op.name.split("_") for word in LEARNED)


def bends(op: Operation) -> bool:
    """Whether an operation is an activation function, or a part of one."""
    return any(word in op.name for word in BENDS)


class _Recorder(TorchDispatchMode):
    """Records every operation on tensors that depend on the images."""

    def __init__(self, provenance: Provenance, clock: Iterator[int], running: list[Call]) -> None:
        super().__init__()
        self.provenance, self.clock, self.running = provenance, clock, running
        self.operations: list[Operation] = []
        self.maker: Any = WeakTensorKeyDictionary()
        self.inside = False
        """Whether fused attention is under way, whose parts do not count."""
        self.draws: list[Draw] = []
        self._activations: weakref.WeakKeyDictionary[Label, Activation | None] = weakref.WeakKeyDictionary()

    def begin(self, images: Tensor) -> None:
        self.operations = [Operation("images", next(self.clock), (), (), None)]
        self.maker[images] = self.operations[0]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        at = operation_at(name_of(func, args), self.running)
        result = func(*args, **kwargs)
        if self.inside:
            return result
        if draws(func):
            self.draws.append(Draw(self.running[-1].path if self.running else "", name_of(func, args)))
        self.made(func.overloadpacket.__name__, args, kwargs, result, at)
        self.provenance.follow(func, args, kwargs, result, at)
        if at is not None and at.name == ADDITION and self.operations:
            label = self.provenance.label(result)
            last = self.maker.get(result)
            if last is not None and label is not None:
                if label not in self._activations:
                    self._activations[label] = activation_of(label, IMAGES, self.provenance.places)
                last.output = self._activations[label]
        return result

    def made(self, name: str, args: Any, kwargs: dict, result: Any, at: OperationAt | None) -> None:
        tensors = tuple(x for x in tree_iter((args, kwargs)) if isinstance(x, Tensor))
        operands = tuple(self.maker.get(x) for x in tensors)
        if not any(operands):
            return
        without = [x for x, before in zip(tensors, operands) if before is None]
        names = tuple(dict.fromkeys(name for x in without for name in self.provenance.sources(x)))
        scaled = kwargs.get("alpha", 1) != 1  # x + 2y: counted, but no sum of what a skip and a branch carry
        for tensor in (x for x in tree_iter(result) if isinstance(x, Tensor)):
            shapes = tuple(tuple(x.shape) for x in tensors)
            operation = Operation(name, next(self.clock), operands, shapes, at, scaled, names)
            self.operations.append(operation)
            self.maker[tensor] = operation


class FusedAttention(TorchFunctionMode):
    """Sees calls of fused attention, also those that `nn.MultiheadAttention` makes.

    Args:
        attend: called instead of it, with what computes it and its arguments.
    """

    def __init__(self, attend: Callable[[Callable, tuple, dict], Any]) -> None:
        super().__init__()
        self.attend = attend

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is SDPA:
            return self.attend(SDPA, args, kwargs)
        if function is not nn.functional.multi_head_attention_forward:
            return function(*args, **kwargs)
        # It is taken as one function, of which the mode does not see the inside; others may look at it too.
        before = nn.functional.scaled_dot_product_attention
        nn.functional.scaled_dot_product_attention = lambda *args, **kwargs: self.attend(before, args, kwargs)
        try:
            return function(*args, **kwargs)
        finally:
            nn.functional.scaled_dot_product_attention = before


class _Fused(FusedAttention):
    """Takes fused attention as one operation, whatever the device makes of it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__(self._record)
        self.recorder = recorder

    def _record(self, compute: Callable, args: tuple, kwargs: dict) -> Any:
        if self.recorder.inside:
            return compute(*args, **kwargs)
        at = operation_at(FUSED, self.recorder.running)
        self.recorder.inside = True
        try:
            result = compute(*args, **kwargs)
        finally:
            self.recorder.inside = False
        names = ("query", "key", "value")
        given = {**dict(zip(names, args)), **{k: v for k, v in kwargs.items() if k in names}}
        tensors = query, key, value = tuple(given[name] for name in names)
        with unobserved():
            self.recorder.made("scaled_dot_product_attention", tensors, {}, result, at)
            self.recorder.provenance.attention(query, key, value, result, at)
        return result
