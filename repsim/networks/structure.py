"""What a module is, and which modules of a network are its blocks.

Blocks are found by structure, not by name: the compound elements of a container (`Sequential`,
`ModuleList`), looked for inside stages where a network has those.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from torch import nn

from repsim.networks.tracing import Call, Spot, Trace, adds_what_it_came_from


def has_parts(module: nn.Module) -> bool:
    """Whether it is made of other modules; what computes a parametrised weight is no part."""
    return any(name != "parametrizations" for name, _ in module.named_children())


def is_a(module: nn.Module, *words: str) -> bool:
    name = type(module).__name__.lower()
    return any(word in name for word in words)


def is_attention(module: nn.Module) -> bool:
    return is_a(module, "attn", "attention", "mhsa", "gpsa") and not is_a(module, "pool", "norm")


def is_norm(module: nn.Module) -> bool:
    """Whether it normalises only; a `NormFreeBlock` or a `ConvNormAct` does other things."""
    return _named_norm(module) and not _maps(module)


def _named_norm(module: nn.Module) -> bool:
    return is_a(module, "norm") and not is_a(module, "prenorm")


def _maps(module: nn.Module) -> int:
    """How many convolutions and linear maps are in it."""
    return sum(is_a(leaf, "conv", "linear") for leaf in module.modules() if not has_parts(leaf))


def is_mlp(module: nn.Module) -> bool:
    return is_a(module, "mlp", "feedforward", "ffn")


def is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations")) or is_a(
        module, "gelu", "relu", "silu", "swish"
    )


def kind_of(module: nn.Module) -> str:
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv"
    for kind, holds in (("norm", is_norm), ("attention", is_attention), ("activation", is_activation)):
        if holds(module):
            return kind
    if isinstance(module, nn.Linear):
        return "linear"
    return type(module).__name__.lower()


# Blocks


def find_blocks(trace: Trace) -> list[tuple[str, Spot]]:
    """The blocks that run: their paths, and where their outputs are."""
    paths = _taken_apart(trace, list(_block_paths(trace))) or units(trace)
    return [(path, block) for path in paths for block in _block_outputs(trace, path)]


def _taken_apart(trace: Trace, paths: list[str]) -> list[str]:
    """Of blocks that add nothing themselves and hold rows of alike modules that do, these (a cross-stage network's)."""
    found = set(units(trace))
    module = trace.network.module.get_submodule
    rows = {path: [] if path in found else _rows(trace, path, found) for path in paths}
    stages = {type(module(path)) for path, row in rows.items() if len(row) > 1}
    apart = {path for path in paths if rows[path] and type(module(path)) in stages - {nn.Sequential, nn.ModuleList}}
    return [each for path in paths for each in (rows[path] if path in apart else [path])]


def _rows(trace: Trace, path: str, units: set[str]) -> list[str]:
    """The units inside a module, if all of each row of modules are such, and alike."""
    found = []
    for name, row in trace.network.module.get_submodule(path).named_modules(prefix=path):
        parts = [(f"{name}.{n}", m) for n, m in row.named_children()]
        if not _container(row) or any(name.startswith(f"{other}.") for other in found):
            continue
        shapes = {(type(m), *(n for n, _ in m.named_parameters())) for _, m in parts}
        if len(shapes) == 1 and all(inner in units for inner, _ in parts):
            found += [inner for inner, _ in parts]
    return found


def units(trace: Trace) -> list[str]:
    """Paths of modules whose own code ends a residual sum: what they add was computed from what it is added to.

    So do others of their class, though their skip be a projection. Those within another such module are part of it. In
    the order in which they run.
    """
    at = {op.at.path for op in trace.operations if op.at is not None and op.at.path and adds_what_it_came_from(op)}
    classes = {type(trace.network.module.get_submodule(path)) for path in at} - {nn.Module}
    ran = sorted((call for call in trace.calls if call.path), key=lambda call: call.started)
    paths = list(dict.fromkeys(call.path for call in ran if type(call.module) in classes and has_parts(call.module)))
    within = set(paths)
    return [path for path in paths if not any(above in within for above in _above(path))]


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def left_out(trace: Trace) -> list[str]:
    """Sentences on the modules with parameters that run and are in no block, if there are any.

    Stems and heads are not counted; what runs between blocks is, and wherever it runs what ends a residual sum.
    """
    network, blocks = trace.network, find_blocks(trace)
    if not blocks:
        return []
    paths = {path for path, _ in blocks}
    around = {above for path in paths for above in _above(path)}

    def outermost(found: list[str]) -> list[str]:
        found = [path for path in dict.fromkeys(found) if path and path not in paths and path not in around]
        chosen = {*found, *paths}
        return [path for path in found if not any(above in chosen for above in _above(path))]

    first = min(first_call(trace, path).started for path in paths)
    last = max(block.when for _, block in blocks)
    weighed = [c for c in trace.calls if next(c.module.parameters(), None) is not None]
    ran = sorted(weighed, key=lambda call: call.started)
    between = outermost([call.path for call in ran if first < call.started and call.ended < last])
    more = [path for path in outermost(units(trace)) if path not in between]
    said = []
    if between:
        said.append(f"between the blocks of {network.name} run {_counted(between)}")
    if more:
        said.append(f"besides the blocks of {network.name}, residual sums end in {_counted(more)}")
    return said


def _counted(names: list[str]) -> str:
    count = "1 module that is no block" if len(names) == 1 else f"{len(names)} modules that are no blocks"
    return f"{count}: {listed(names)}"


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def stem_of(trace: Trace, blocks: list[tuple[str, Spot]]) -> Spot:
    """What enters the first block."""
    return Spot(first_call(trace, blocks[0][0]), "stem", "stem", "input")


def parts_of(name: str, module: nn.Module) -> list[str]:
    """A part of a network without blocks, or what it is a plain sequence of."""
    if isinstance(module, nn.Sequential) and not _container(module):
        return [f"{name}.{inner}" for inner, _ in module.named_children()]
    return [name]


def _container(module: nn.Module) -> bool:
    """A Sequential or ModuleList whose elements have parts of their own: a row of blocks or stages.

    In a graph that was traced from a network it is a bare module with numbered children.
    """
    row = isinstance(module, (nn.Sequential, nn.ModuleList))
    bare = type(module) is nn.Module and all(name.isdigit() for name, _ in module.named_children())
    return (row or bare) and any(has_parts(m) for m in module.children())


def _row(module: nn.Module) -> bool:
    """A container of several compound elements of one class."""
    elements = list(module.children())
    alike = len({type(m) for m in elements}) == 1 and type(elements[0]) is not nn.Sequential
    return _container(module) and len(elements) > 1 and alike and not _pair(module)


def _numbered(module: nn.Module) -> bool:
    """Holds a row of blocks as children of its own: `b1`, `b2`, ... of one class (RegNet's stages)."""
    names = [name for name, _ in module.named_children()]
    classes = {type(child) for child in module.children()}
    return (
        len(classes) == 1
        and all(re.fullmatch(r"[a-z_]+\d+", n) for n in names)
        and has_parts(module.get_submodule(names[0]))
        and not any(type(child) is nn.Module and _container(child) for child in module.children())
    )


def _is_stage(trace: Trace, path: str, module: nn.Module) -> bool:
    """Holds rows of blocks rather than being a block.

    Most of its parameters are in such rows, and what the last of them puts out is not worked on any
    further: neither added to a shortcut nor fed to another compound module.
    """
    if _container(module):
        return any(_container(m) or has_parts(m) for m in module.children()) and not _pair(module)
    rows = {name: child for name, child in module.named_children() if _container(child) and not _pair(child)}
    if sum(map(_size, rows.values())) <= 0.5 * _size(module):
        return False
    own = trace.calls_of(path)
    if not own:
        return True
    starts = [first_call(trace, f"{path}.{name}").argument for name in rows]
    if any(a is not None and a.is_(b) for a, b in itertools.combinations(starts, 2)):
        return False  # parallel branches
    last = max((c for name in rows for c in trace.below(f"{path}.{name}")), key=lambda call: call.ended)
    after = [c for c in trace.calls if last.ended < c.started < own[-1].ended and has_parts(c.module)]
    a, b = last.result, own[-1].result
    added = a is not None and b is not None and a.shape == b.shape and not a.is_(b)
    return not after and not added


def _pair(module: nn.Module) -> bool:
    """The attention and MLP of one block, kept in a bare list (as vit-pytorch does)."""
    elements = list(module.children())
    return isinstance(module, nn.ModuleList) and 2 <= len(elements) <= 3 and _is_mlp_like(elements[-1])


def _is_mlp_like(module: nn.Module) -> bool:
    """An MLP, wrapped or not."""
    return is_mlp(module) or (is_a(module, "prenorm", "residual") and any(is_mlp(m) for m in module.modules()))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _passed_over(name: str, module: nn.Module) -> bool:
    """Stems, heads, embeddings, and what stands between blocks: not blocks, nor are there any inside."""
    return (
        "embed" in name
        or (name.startswith(("pos", "stem")) and not name.startswith("post"))
        or name in ("head", "heads", "classifier")
        or is_a(module, "embed", "downsample", "posconv", "merging", "pool")
        or (_named_norm(module) and _maps(module) <= 1)
    )


def _block_paths(trace: Trace, path: str = "") -> Iterator[str]:
    """Paths of the blocks below a module."""
    for name, child in trace.network.module.get_submodule(path).named_children():
        if _passed_over(name, child):
            continue
        here = f"{path}.{name}" if path else name
        if _container(child):
            yield from _elements(trace, here, child)
        elif _numbered(child):
            yield from (f"{here}.{n}" for n, _ in child.named_children())
        elif has_parts(child):
            yield from _block_paths(trace, here)


def _elements(trace: Trace, path: str, container: nn.Module) -> Iterator[str]:
    """Blocks among the elements of a container, and inside those that are stages."""

    def ran(inner: str) -> bool:
        return bool(trace.calls_of(inner) or trace.below(inner))

    elements = [(n, m) for n, m in container.named_children() if has_parts(m) and ran(f"{path}.{n}")]
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
            for n, m in element.named_children():
                if has_parts(m) and not _passed_over(n, m):
                    yield from [f"{inner}.{n}.{k}" for k, _ in m.named_children()] if _row(m) else [f"{inner}.{n}"]
        else:
            yield from _block_paths(trace, inner)


def first_call(trace: Trace, path: str) -> Call:
    """The first module to run at or below a path."""
    return min([*trace.calls_of(path), *trace.below(path)], key=lambda call: call.started)


def entry_of(trace: Trace, path: str, block: Spot) -> Call:
    """The module that is given what enters a block."""
    return block.call if block.call.path == path else first_call(trace, path)


def _block_outputs(trace: Trace, path: str) -> list[Spot]:
    """The output of a block, of each of its runs; of one that is a bare list, what is handed on after its parts."""
    calls = [Spot(call, "block") for call in trace.calls_of(path)]
    if calls:
        return calls
    handed_on = _handed_on(trace, path)
    return [] if handed_on is None else [handed_on]


def _handed_on(trace: Trace, path: str) -> Spot | None:
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
        return Spot(min(following, key=lambda call: call.started), "block", path, "input")
    return Spot(around[0], "block", path) if around else None


def paper_spots(trace: Trace, path: str, block: Spot) -> Iterator[Spot]:
    """The paper's layers within one run of a block, but for its output."""
    calls = trace.below(path)
    if block.call.path == path:
        calls = [call for call in calls if _within(call, block.call)]
    attentions = [c for c in calls if is_attention(c.module)]
    mlps = [c for c in calls if is_mlp(c.module)]
    outer = [c for c in calls if not any(_within(c, other) for other in (*attentions, *mlps))]
    for call in outer:
        if is_attention(call.module):
            yield from _pre_norm(call, calls)
            yield Spot(call, "attention")
        elif is_mlp(call.module):
            yield from _pre_norm(call, calls)
            hidden = [c for c in calls if _within(c, call) and is_activation(c.module)]
            yield from (Spot(c, "mlp_hidden") for c in hidden[-1:])
            yield Spot(call, "mlp")
        elif is_norm(call.module):
            yield Spot(call, "norm")
        elif isinstance(call.module, nn.Conv2d):
            yield Spot(call, "conv")


def _within(call: Call, other: Call) -> bool:
    return call is not other and other.started < call.started and call.ended < other.ended


def _pre_norm(outer: Call, calls: list[Call]) -> Iterator[Spot]:
    """A norm that is the first thing an attention or MLP module runs is the block's pre-norm."""
    leaves = [c for c in calls if _within(c, outer) and not has_parts(c.module)]
    first = min(leaves, key=lambda call: call.started, default=None)
    if first is not None and is_norm(first.module) and first.input == outer.input:
        yield Spot(first, "norm")
