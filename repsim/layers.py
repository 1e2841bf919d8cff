"""What can be compared in a network: its layers, found by running it once without data.

`find_layers` traces one forward pass on meta tensors (shapes, no arithmetic), so every layer it
returns is known to run, in the order given, with the example axis where `Layer` says it is.
Blocks are found by structure, not by name: the compound elements of a container (`Sequential`,
`ModuleList`), looked for inside stages where a network has those.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from repsim.errors import RepsimError, UsageError, first_line, near
from repsim.models import Network, as_network, evaluating
from repsim.tokens import Layout, Tokens, one_of_tokens, select

PRESETS = ("blocks", "paper", "all")
MANY = 10_007
"""Images of the traced batch: a prime no other size will share. On meta tensors they cost nothing."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One place in a network where an activation is taken, and how to read it there."""

    name: str
    """Path of the module (`blocks.0.norm1`), `path:k` for call k > 0 of one that runs several times, or `stem`."""
    kind: str
    """`stem`, `block`, `attention`, `norm`, `conv`, `mlp_hidden`, `mlp`, or what the module is."""
    index: int
    """Position among the layers selected, in the order in which they run."""
    depth: float
    """index / (number of layers - 1): 0 for the first, 1 for the last."""
    shape: tuple[int, ...]
    """Shape of the activation of one image."""
    path: str
    """Path of the module that is hooked; the layer is its output, or its input."""
    side: Literal["output", "input"]
    call: int
    calls: int
    """Call number of this layer's, and how often the module runs in one forward pass."""
    batch_axis: int
    fold: int
    """How many rows of the first axis one image has (windows, say); 1 almost always."""
    layout: Layout
    prefix: int
    """Tokens before the grid: CLS, distillation, registers."""

    def read(self, activation: Any) -> Tensor:
        """The activation with images on the first axis, (n, *shape), whatever the module returned."""
        x = first_tensor(activation)
        if self.batch_axis:
            x = x.movedim(self.batch_axis, 0)
        return x.reshape(x.shape[0] // self.fold, *self.shape) if self.fold > 1 else x

    def select(self, activation: Tensor, tokens: Tokens) -> Tensor:
        """The asked-for tokens of what `read` gave."""
        return select(activation, tokens, layout=self.layout, prefix=self.prefix)


def find_layers(
    network: Network | nn.Module | str, layers: str | Iterable[str] = "blocks", *, tokens: Tokens = "all"
) -> list[Layer]:
    """The layers of a network that a preset, a regular expression or a list of names selects.

    Args:
        network: a `Network`, a module, or a name for `load_model`.
        layers: `blocks`: block or unit outputs and the stem; `paper`: inside each block the norms,
            convolutions, attention, hidden and output activations of the MLP, and the block's output
            (6 per ViT block, 7 per bottleneck unit, projections, stem; paper section 3); `all`: every
            leaf module that runs; otherwise a regular expression that must match whole names, or names.
        tokens: what will be selected at each layer; it is an error here if one does not have it.

    Returns:
        Layers in the order in which they run.

    Raises:
        UsageError: nothing matches, or a layer has no such token.
    """
    network = as_network(network)
    one_of_tokens(tokens)
    trace = _Trace.of(network)
    if not isinstance(layers, str):
        found = _by_name(trace, list(layers))
    elif layers == "blocks":
        found = _blocks_preset(trace, inside=False)
    elif layers == "paper":
        found = _blocks_preset(trace, inside=True)
    elif layers == "all":
        found = [_Spot(c, _kind(c.module)) for c in trace.calls if not _children(c.module) and c.path]
    else:
        found = _by_pattern(trace, layers)
    found = [spot for spot in found if spot.activation is not None]
    if not found:
        raise UsageError(f"{network.name} has no layer for {layers!r} whose first axis is the images")
    selected = _layers(trace, found)
    for layer in selected:
        if tokens == "cls" and layer.layout != "vector" and not (layer.layout == "tokens" and layer.prefix):
            raise UsageError(
                f"layer {layer.name!r} of {network.name} has no CLS token; choose other layers, "
                "or tokens all, spatial or pooled"
            )
    return selected


def residual_layers(network: Network | nn.Module | str, *, branch: bool = False) -> list[Layer]:
    """Where residual sums end, sublayer by sublayer, or the long branch that enters each sum.

    For a transformer block, the stream after attention (named `...+skip`) and after the MLP (the block's output);
    for a ResNet unit, its output. With `branch`, what attention, MLP or the last norm of the unit
    adds to the stream. The stem comes first in both.

    Reference: paper, Figures 6 and C.1 to C.4 (post-residual and pre-residual).
    """
    network = as_network(network)
    trace = _Trace.of(network)
    blocks = _blocks(trace)
    if not blocks:
        raise UsageError(f"{network.name} has no blocks with residual sums that repsim can find")
    spots = [_stem(trace, blocks)]
    for path, block in blocks:
        branches = _branches(trace, path, block)
        if branch:
            spots += branches
            continue
        for first, second in zip(branches, branches[1:]):
            # The stream between two sublayers is what the norm before the second one is given.
            norms = [
                c
                for c in trace.calls
                if first.call.ended < c.started < second.call.ended
                and _is_norm(c.module)
                and c.input == first.call.output
            ]
            entry = min(norms, key=lambda call: call.started, default=second.call)
            spots.append(_Spot(entry, first.kind, f"{first.call.name}+skip", "input"))
        spots.append(block)
    return _layers(trace, spots)


def _branches(trace: _Trace, path: str, block: _Spot) -> list[_Spot]:
    """The sublayers of a block whose outputs are added to the stream, in the order in which they run."""
    inside = sorted(_inside(trace, path), key=lambda spot: spot.when)
    sublayers = [spot for spot in inside if spot.kind in ("attention", "mlp")]
    if sublayers:
        return sublayers
    # A unit of convolutions: the last one, or its norm, of the block's own shape and not on the shortcut.
    main = [s for s in inside if s.activation == block.activation and "downsample" not in s.call.path]
    return main[-1:]


def first_tensor(value: Any) -> Tensor | None:
    """The tensor itself, or the first one in a tuple, list or dictionary; None if there is none."""
    if isinstance(value, Tensor):
        return value
    values = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    return next((t for t in map(first_tensor, values) if t is not None), None)


# Tracing: which modules run, how often, in which order, on which shapes


@dataclass(frozen=True)
class _Activation:
    """Shape of one image's part of a tensor, and where in the tensor the images are."""

    shape: tuple[int, ...]
    batch_axis: int
    fold: int


@dataclass(eq=False)
class _Call:
    path: str
    module: nn.Module
    number: int
    started: int
    ended: int = -1
    argument: Tensor | None = None
    result: Tensor | None = None
    input: _Activation | None = None
    output: _Activation | None = None

    @property
    def name(self) -> str:
        return f"{self.path}:{self.number}" if self.number else self.path


@dataclass(frozen=True, eq=False)
class _Spot:
    """A call of a module, of which a layer takes the output or the input."""

    call: _Call
    kind: str
    name: str | None = None
    side: Literal["output", "input"] = "output"

    @property
    def activation(self) -> _Activation | None:
        return self.call.output if self.side == "output" else self.call.input

    @property
    def when(self) -> int:
        return self.call.ended if self.side == "output" else self.call.started


@dataclass(frozen=True)
class _Trace:
    network: Network
    calls: list[_Call]
    """In the order in which they end; the root's is the last."""

    @classmethod
    def of(cls, network: Network) -> _Trace:
        """One forward pass on shapes alone, else two real ones, of 2 and of 3 images."""
        try:
            calls = _run(network, MANY, meta=True)
            for call in calls:
                call.input = _images_axis(_shape(call.argument), MANY)
                call.output = _images_axis(_shape(call.result), MANY)
            return cls(network, calls)
        except Exception:  # data-dependent Python, tensors that are not buffers
            two, three = (_run(network, n, meta=False) for n in (2, 3))
        if [c.name for c in two] != [c.name for c in three]:
            raise RepsimError(f"{network.name} runs other modules for 3 images than for 2; repsim cannot follow it")
        for a, b in zip(two, three):
            a.input = _images_axis(_shape(a.argument), 2, _shape(b.argument))
            a.output = _images_axis(_shape(a.result), 2, _shape(b.result))
        return cls(network, two)

    def calls_of(self, path: str) -> list[_Call]:
        return [call for call in self.calls if call.path == path]

    def below(self, path: str) -> list[_Call]:
        """Calls of the modules inside the one at a path."""
        return [call for call in self.calls if call.path.startswith(f"{path}.")]


def _without_data(module: nn.Module) -> nn.Module:
    """A copy with parameters and buffers on the meta device; nothing a traced pass writes reaches the original."""
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        empty = tensor.detach().to("meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo)


def _run(network: Network, n: int, *, meta: bool) -> list[_Call]:
    root = _without_data(network.module) if meta else network.module
    calls: list[_Call] = []
    running: list[_Call] = []
    counts: dict[str, int] = {}
    clock = itertools.count()

    def before(path: str):
        def hook(module, arguments, keywords):
            number = counts[path] = counts.get(path, -1) + 1
            running.append(_Call(path, module, number, next(clock), argument=first_tensor(arguments or keywords)))

        return hook

    def after(path: str):
        def hook(module, arguments, result):
            call = running.pop()
            call.ended, call.result = next(clock), first_tensor(result)
            calls.append(call)

        return hook

    handles = []
    try:
        for path, module in root.named_modules():
            handles.append(module.register_forward_pre_hook(before(path), with_kwargs=True))
            handles.append(module.register_forward_hook(after(path)))
        with evaluating(root), torch.no_grad():
            root(torch.zeros(n, *network.input_size, device="meta" if meta else network.device))
    except Exception as error:
        if meta:
            raise
        size = "x".join(map(str, network.input_size))
        raise RepsimError(f"{network.name} cannot run on images of {size}: {first_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _shape(tensor: Tensor | None) -> tuple[int, ...] | None:
    return None if tensor is None else tuple(tensor.shape)


def _images_axis(shape: tuple[int, ...] | None, n: int, one_more: tuple[int, ...] | None = None) -> _Activation | None:
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
    return _Activation((fold, *rest) if fold > 1 else tuple(rest), axes[0], fold)


# What a module is


def _children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _is(module: nn.Module, *words: str) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in words)


def _is_attention(module: nn.Module) -> bool:
    return _is(module, "attn", "attention", "mhsa", "gpsa") and not _is(module, "pool", "norm")


def _is_norm(module: nn.Module) -> bool:
    return _is(module, "norm") and not _is(module, "prenorm")


def _is_mlp(module: nn.Module) -> bool:
    return _is(module, "mlp", "feedforward", "ffn")


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations")) or _is(
        module, "gelu", "relu", "silu", "swish"
    )


def _kind(module: nn.Module) -> str:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    for kind, holds in (("norm", _is_norm), ("attention", _is_attention), ("activation", _is_activation)):
        if holds(module):
            return kind
    if isinstance(module, nn.Linear):
        return "linear"
    return type(module).__name__.lower()


# Presets


def _blocks_preset(trace: _Trace, *, inside: bool) -> list[_Spot]:
    blocks = _blocks(trace)
    if not blocks:  # no repeated structure: the parts of the network, one after another
        parts = [p for name, part in trace.network.module.named_children() for p in _parts(name, part)]
        return [_Spot(c, _kind(c.module)) for c in trace.calls if c.path in parts]
    spots = [_stem(trace, blocks)]
    for path, block in blocks:
        if inside:
            spots += [s for s in _inside(trace, path) if s.call is not block.call or s.side != block.side]
        spots.append(block)
    return sorted(spots, key=lambda spot: spot.when)


def _blocks(trace: _Trace) -> list[tuple[str, _Spot]]:
    """The blocks that run: their paths, and where their outputs are."""
    found = ((path, _block_output(trace, path)) for path in _block_paths(trace))
    return [(path, block) for path, block in found if block is not None]


def _stem(trace: _Trace, blocks: list[tuple[str, _Spot]]) -> _Spot:
    """What enters the first block."""
    return _Spot(_first_call(trace, blocks[0][0]), "stem", "stem", "input")


def _parts(name: str, module: nn.Module) -> list[str]:
    """A part of a network without blocks, or what it is a plain sequence of."""
    if isinstance(module, nn.Sequential) and not _container(module):
        return [f"{name}.{inner}" for inner, _ in module.named_children()]
    return [name]


def _container(module: nn.Module) -> bool:
    """A Sequential or ModuleList whose elements have parts of their own: a row of blocks or stages."""
    return isinstance(module, (nn.Sequential, nn.ModuleList)) and any(_children(m) for m in module)


def _numbered(module: nn.Module) -> bool:
    """Holds a row of blocks as children of its own: `b1`, `b2`, ... of one class (RegNet's stages)."""
    names = [name for name, _ in module.named_children()]
    classes = {type(child) for child in module.children()}
    return (
        len(classes) == 1
        and all(re.fullmatch(r"[a-z_]+\d+", n) for n in names)
        and _children(module.get_submodule(names[0]))
    )


def _is_stage(trace: _Trace, path: str, module: nn.Module) -> bool:
    """Holds rows of blocks rather than being a block.

    Most of its parameters are in such rows, and what the last of them puts out is not worked on any
    further: neither added to a shortcut nor fed to another compound module.
    """
    if _container(module):
        return any(_container(m) or _children(m) for m in module) and not _pair(module)
    rows = {name: child for name, child in module.named_children() if _container(child) and not _pair(child)}
    if sum(map(_size, rows.values())) <= 0.5 * _size(module):
        return False
    own = trace.calls_of(path)
    if not own:
        return True
    starts = [_first_call(trace, f"{path}.{name}").argument for name in rows]
    if any(a is b for a, b in itertools.combinations(starts, 2)):
        return False  # parallel branches
    last = max((c for name in rows for c in trace.below(f"{path}.{name}")), key=lambda call: call.ended)
    after = [c for c in trace.calls if last.ended < c.started < own[-1].ended and _children(c.module)]
    added = _shape(last.result) == _shape(own[-1].result) and last.result is not own[-1].result
    return not after and not added


def _pair(module: nn.Module) -> bool:
    """The attention and MLP of one block, kept in a bare list (as vit-pytorch does)."""
    elements = list(module)
    return isinstance(module, nn.ModuleList) and 2 <= len(elements) <= 3 and _is_mlp_like(elements[-1])


def _is_mlp_like(module: nn.Module) -> bool:
    """An MLP, wrapped or not."""
    return _is_mlp(module) or (_is(module, "prenorm", "residual") and any(_is_mlp(m) for m in module.modules()))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _passed_over(name: str, module: nn.Module) -> bool:
    """Stems, heads, embeddings, and what stands between blocks: not blocks, nor are there any inside."""
    return (
        "embed" in name
        or name.startswith(("pos", "stem"))
        or name in ("head", "heads", "classifier")
        or _is(module, "embed", "downsample", "posconv", "merging", "pool")
        or _is_norm(module)
    )


def _block_paths(trace: _Trace, path: str = "") -> Iterator[str]:
    """Paths of the blocks below a module."""
    for name, child in trace.network.module.get_submodule(path).named_children():
        if _passed_over(name, child):
            continue
        here = f"{path}.{name}" if path else name
        if _container(child):
            yield from _elements(trace, here, child)
        elif _numbered(child):
            yield from (f"{here}.{n}" for n, _ in child.named_children())
        elif _children(child):
            yield from _block_paths(trace, here)


def _elements(trace: _Trace, path: str, container: nn.Module) -> Iterator[str]:
    """Blocks among the elements of a container, and inside those that are stages."""

    def ran(inner: str) -> bool:
        return bool(trace.calls_of(inner) or trace.below(inner))

    elements = [(n, m) for n, m in container.named_children() if _children(m) and ran(f"{path}.{n}")]
    stage = {n: _is_stage(trace, f"{path}.{n}", m) for n, m in elements}
    blocks = {type(m) for n, m in elements if not stage[n] and not isinstance(m, nn.Sequential)}
    for name, element in elements:
        inner = f"{path}.{name}"
        stem_among_stages = any(stage.values()) and isinstance(element, nn.Sequential) and not _container(element)
        if _passed_over(name, element) or stem_among_stages:
            continue
        if not stage[name] or type(element) in blocks:  # one kind of module is a block everywhere in a row
            yield inner
        elif _container(element):
            yield from (f"{inner}.{n}" for n, m in element.named_children() if _children(m))
        else:
            yield from _block_paths(trace, inner)


def _first_call(trace: _Trace, path: str) -> _Call:
    """The first module to run at or below a path."""
    return min([*trace.calls_of(path), *trace.below(path)], key=lambda call: call.started)


def _block_output(trace: _Trace, path: str) -> _Spot | None:
    """The output of a block; of one that is a bare list, what is handed on once its parts have run."""
    calls = trace.calls_of(path)
    if calls:
        return _Spot(calls[-1], "block")
    below = [c for c in trace.below(path) if c.output is not None]
    if not below:
        return None
    last = max(below, key=lambda call: call.ended)
    parent = path.rpartition(".")[0].rpartition(".")[0]
    around = [c for c in trace.calls_of(parent) if c.ended > last.ended]
    following = [
        c
        for c in trace.calls
        if c.started > last.ended and c.input == last.output and (not around or c.ended < around[0].ended)
    ]
    if following:
        return _Spot(min(following, key=lambda call: call.started), "block", path, "input")
    return _Spot(around[0], "block", path) if around else None


def _inside(trace: _Trace, path: str) -> Iterator[_Spot]:
    """The paper's layers within one block, but for its output."""
    calls = trace.below(path)
    attentions = [c for c in calls if _is_attention(c.module)]
    mlps = [c for c in calls if _is_mlp(c.module)]
    outer = [c for c in calls if not any(_within(c, other) for other in (*attentions, *mlps))]
    for call in outer:
        if _is_attention(call.module):
            yield from _pre_norm(call, calls)
            yield _Spot(call, "attention")
        elif _is_mlp(call.module):
            yield from _pre_norm(call, calls)
            hidden = [c for c in calls if _within(c, call) and _is_activation(c.module)]
            yield from (_Spot(c, "mlp_hidden") for c in hidden[-1:])
            yield _Spot(call, "mlp")
        elif _is_norm(call.module):
            yield _Spot(call, "norm")
        elif isinstance(call.module, nn.Conv2d):
            yield _Spot(call, "conv")


def _within(call: _Call, other: _Call) -> bool:
    return call is not other and other.started < call.started and call.ended < other.ended


def _pre_norm(outer: _Call, calls: list[_Call]) -> Iterator[_Spot]:
    """A norm that is the first thing an attention or MLP module runs is the block's pre-norm."""
    leaves = [c for c in calls if _within(c, outer) and not _children(c.module)]
    first = min(leaves, key=lambda call: call.started, default=None)
    if first is not None and _is_norm(first.module) and first.input == outer.input:
        yield _Spot(first, "norm")


# By name


def _by_pattern(trace: _Trace, pattern: str) -> list[_Spot]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is neither a preset ({', '.join(PRESETS)}) nor a regular expression: {error}"
        ) from None
    found = [spot for spot in _named(trace) if regex.fullmatch(spot.name or spot.call.name)]
    if not found:
        raise _unknown(trace, pattern)
    return found


def _by_name(trace: _Trace, names: Sequence[str]) -> list[_Spot]:
    spots = {spot.name or spot.call.name: spot for spot in _named(trace)}
    for name in names:
        if name not in spots:
            raise _unknown(trace, name)
        if spots[name].activation is None:
            raise UsageError(f"layer {name!r} of {trace.network.name} cannot be compared: it has no axis of images")
    return sorted((spots[name] for name in dict.fromkeys(names)), key=lambda spot: spot.when)


def _named(trace: _Trace) -> list[_Spot]:
    """Everything with a name: all modules that run, and what the presets call by another name."""
    presets = {(s.call.path, s.call.number, s.side): s for s in _blocks_preset(trace, inside=True)}
    extra = [s for s in presets.values() if s.side == "input" or s.name]
    modules = [presets.get((c.path, c.number, "output"), _Spot(c, _kind(c.module))) for c in trace.calls if c.path]
    return sorted([*modules, *(s for s in extra if s not in modules)], key=lambda spot: spot.when)


def _unknown(trace: _Trace, what: str) -> UsageError:
    names = [spot.name or spot.call.name for spot in _named(trace)]
    alike = near(what, names)
    hint = f"near it: {', '.join(alike)}; " if alike else ""
    network = trace.network.name
    return UsageError(
        f"no layer of {network} matches {what!r}; {hint}the presets are {', '.join(PRESETS)}, and "
        f"`repsim layers {network} --layers '.*'` lists all {len(names)} names"
    )


# How to read an activation


def _layers(trace: _Trace, spots: Sequence[_Spot]) -> list[Layer]:
    last = max(len(spots) - 1, 1)
    return [_layer(trace, spot, i, i / last) for i, spot in enumerate(spots)]


def _layer(trace: _Trace, spot: _Spot, index: int, depth: float) -> Layer:
    call, activation = spot.call, spot.activation
    layout = _layout(activation, call, spot.side, trace.network.module)
    shape = activation.shape
    if layout == "tokens" and len(shape) == 3:  # windows of tokens
        prefix = 0
    else:
        prefix = _prefix(shape[0], trace.network) if layout == "tokens" else 0
    return Layer(
        name=spot.name or call.name,
        kind=spot.kind,
        index=index,
        depth=depth,
        shape=shape,
        path=call.path,
        side=spot.side,
        call=call.number,
        calls=len(trace.calls_of(call.path)),
        batch_axis=activation.batch_axis,
        fold=activation.fold,
        layout=layout,
        prefix=prefix,
    )


def _layout(activation: _Activation, call: _Call, side: str, root: nn.Module) -> Layout:
    dims = len(activation.shape)
    if dims == 1:
        return "vector"
    if dims == 2:
        return "tokens"
    if dims != 3:
        return "other"
    module = call.module
    if isinstance(module, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) or _is(module, "pool", "2d"):
        return "channels_first"
    if activation.fold > 1:
        return "windows"
    a, b, c = activation.shape
    if isinstance(module, nn.LayerNorm) or (a == b != c):
        return "channels_last"
    if b == c != a:
        return "channels_first"
    return "channels_last" if str(getattr(root, "output_fmt", "")).endswith("NHWC") else "channels_first"


def _prefix(tokens: int, network: Network) -> int:
    """How many tokens stand before the grid: what the network declares, else the fewest that leave one."""
    declared = getattr(network.module, "num_prefix_tokens", None)
    for prefix in [declared, 0] if declared is not None else [0, 1, 2]:
        if prefix < tokens and _is_grid(tokens - prefix, network.input_size):
            return prefix
    return 0


def _is_grid(tokens: int, input_size: tuple[int, int, int]) -> bool:
    """Whether so many tokens tile the image with cells as wide as high."""
    _, height, width = input_size
    rows = math.isqrt(tokens * height // width) if width else 0
    return any(r > 0 and tokens % r == 0 and r * width == (tokens // r) * height for r in (rows, rows + 1))
