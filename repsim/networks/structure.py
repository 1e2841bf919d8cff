"""Which modules of a network are its blocks.

Blocks are looked for in the structure of modules, not by name: the compound elements of a container (`Sequential`,
`ModuleList`), inside stages where a network has those. Then the operations correct it: what ends one residual sum, or
joins branches in a network without sums, is a block as a whole, and what blocks are made of stands between them.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from repsim.networks.bare_blocks import entered, first_call, handed_on
from repsim.networks.chains import chain, summed
from repsim.networks.kinds import has_parts, is_a, is_attention_like, is_mlp, is_mlp_like, maps_in, named_norm
from repsim.networks.tracing import (
    Call,
    Operation,
    Spot,
    Trace,
    adds_what_it_came_from,
)
from repsim.networks.wrappers import children, held_in, parts

# Blocks


def find_blocks(trace: Trace) -> list[tuple[str, Spot]]:
    """The blocks that run: their paths, and where their outputs are."""
    ends = _ends(trace)
    paths = _whole(trace, list(_block_paths(trace)), ends) or units(trace) or _outermost(ends)
    paths = _without_parts(trace, _paired(trace, _taken_apart(trace, paths), ends), ends)
    if not paths or _are_branches(trace, paths, ends):
        return chain(trace, lambda path: _held_over(trace, path)) or summed(trace)
    if rows := _in_halves(trace, paths, set(ends)):
        return rows
    paths = _handing_on(trace, paths)
    uncalled_paths = [path for path in paths if not trace.calls_of(path) and any(c.result for c in trace.below(path))]
    ends = dict(zip(uncalled_paths, handed_on(trace, uncalled_paths)))
    return [
        (path, block)
        for path in paths
        for block in ([ends[path]] if path in ends else [Spot(call, "block") for call in trace.calls_of(path)])
    ]


def _whole(trace: Trace, paths: list[str], ends: list[str]) -> list[str]:
    """Parts of what ends in one sum or concatenation, and end in none, stand for the whole of it.

    Not so where it holds them all: a network that adds its input to what it makes of it is no block.
    """
    at = set(ends)
    module = trace.module
    several = {type(module(path)) for (path, _), count in _own_ends(trace).items() if count > 1}
    whole = []
    for path in paths:
        above = next((each for each in reversed(_above(path)) if each in at and not _holds(path, at)), None)
        is_single = above is not None and type(module(above)) not in several
        whole.append(above if is_single and not all(_holds(above, {each}) for each in paths) else path)
    return list(dict.fromkeys(whole))


def _paired(trace: Trace, paths: list[str], ends: list[str]) -> list[str]:
    """Attention and MLP that end a sum each, one after another in every element of a row, stand for that element."""
    module, at = trace.module, set(ends)
    attend = {path for path in paths if path in at and (_attends(trace, path) or is_attention_like(module(path)))}
    rest = {path for path in paths if path in at and is_mlp_like(module(path)) and not _weights_in(trace, path)}
    attends, others = (Counter(map(parent_of, half)) for half in (attend, rest))
    several = {above for above, mlps in others.items() if attends[above] or mlps == 2}
    wholes = {above for above in several if isinstance(module(above), nn.Sequential)}
    rows = Counter(map(parent_of, wholes))
    wholes = {above for above in wholes if above.rpartition(".")[2].isdigit() and rows[parent_of(above)] > 1}
    return list(dict.fromkeys(parent_of(path) if parent_of(path) in wholes else path for path in paths))


def _in_halves(trace: Trace, paths: list[str], ends: set[str]) -> list[tuple[str, Spot]]:
    """Blocks of which attention and MLP are modules one after another in a row, where all that end a sum are such.

    A half without the other is none; it stands at the end of what downsamples (LeViT).
    """
    module = trace.module
    halves = [path for path in paths if path in ends and len(trace.calls_of(path)) == 1]
    attends = {path: _attends(trace, path) for path in halves}
    if not all(attends[path] or is_mlp_like(module(path)) for path in halves):
        return []
    pairs = [
        (a, b) for a, b in zip(halves, halves[1:]) if attends[a] and not attends[b] and parent_of(a) == parent_of(b)
    ]
    if len(pairs) < 2:
        return []
    spots = [(b, trace.calls_of(b)[0], trace.calls_of(a)[0]) for a, b in pairs]
    return [(path, Spot(last, "block", since=first)) for path, last, first in spots]


def _are_branches(trace: Trace, paths: list[str], ends: list[str]) -> bool:
    """Whether what looks like blocks is attention and MLPs in one row, whose sums are in the code around it."""
    if any(_holds(path, set(ends)) for path in paths):
        return False
    attends = {path for path in paths if _attends(trace, path)}
    rest = [path for path in paths if path not in attends]
    return bool(attends and rest) and all(is_mlp_like(trace.module(path)) for path in rest)


def _attends(trace: Trace, path: str) -> bool:
    """Whether attention weights are made inside a module, and any MLP in it is a part of what makes them."""
    places = _weights_in(trace, path)
    makers = [place if has_parts(trace.module(place)) else parent_of(place) for place in places]
    mlps = [call.path for call in trace.below(path) if is_mlp(call.module)]
    return bool(places) and all(any(mlp.startswith(f"{maker}.") for maker in makers) for mlp in mlps)


def _weights_in(trace: Trace, path: str) -> list[str]:
    """Paths of the modules at or below a path that make attention weights."""
    places = (weights.at.path for weights in trace.provenance.attentions)
    return [place for place in places if place == path or place.startswith(f"{path}.")]


def _handing_on(trace: Trace, paths: list[str]) -> list[str]:
    """Without those of which the result only decides where attention looks, as its queries or keys."""
    softmax = {weights.at for weights in trace.provenance.attentions}
    followed = {op.at for op in trace.operations if trace.following(op)}  # of several results all may be left unused

    def hands_on(path: str) -> bool:
        results = [call.result.made for call in trace.calls_of(path) if call.result and call.result.made]
        waiting, visited = results[-1:], set()
        while waiting:
            here = waiting.pop()
            after = trace.following(here)
            if not after and here.at not in followed:
                return True
            visited.add(here)
            waiting += [op for op in after if op not in visited and not _decides(here, op, softmax)]
        return not results

    return [path for path in paths if hands_on(path)]


def _decides(source: Operation, op: Operation, softmax: set[Any]) -> bool:
    """Whether an operation makes attention weights of its inputs, and nothing more."""
    if op.name == "scaled_dot_product_attention":
        return source not in op.operands[2:]
    return op.at in softmax


def _held_over(trace: Trace, path: str) -> bool:
    """Whether a module is in a head or stem, or whatever else holds no blocks."""
    module = trace.module
    return any(_passed_over(ancestor.rpartition(".")[2], module(ancestor)) for ancestor in (*_above(path), path))


def parent_of(path: str) -> str:
    """The path of the module that holds another."""
    return path.rpartition(".")[0]


def _without_parts(trace: Trace, paths: list[str], ends: list[str]) -> list[str]:
    """Of modules of which some end in a sum or concatenation, those that do, or are neither parts of these nor rows.

    What is a plain sequence, an MLP, a single map, or of a class that others are made of, stands between blocks.
    """
    module, at = trace.module, set(ends)
    with_ends = [path for path in paths if _holds(path, at) or isinstance(module(path), nn.ModuleList)]
    parts = {
        type(part) for path in with_ends if path in at for part in module(path).modules() if part is not module(path)
    }

    def between(path: str) -> bool:
        one = module(path)
        plain = isinstance(one, nn.Sequential) and type(one).forward is nn.Sequential.forward
        return type(one) in parts or plain or is_mlp(one) or (maps_in(one) <= 1 and not _weights_in(trace, path))

    return [path for path in paths if path in with_ends or not with_ends or not between(path)]


def _holds(path: str, ends: set[str]) -> bool:
    return any(end == path or end.startswith(f"{path}.") for end in ends)


def _ends(trace: Trace) -> list[str]:
    """Paths of modules whose own code ends a residual sum or, in a network without any, joins branches."""
    at = _own_ends(trace)
    classes = {type(trace.module(path)) for path, _ in at} - {nn.Module}
    ran = sorted((call for call in trace.calls if call.path), key=lambda call: call.started)
    return list(dict.fromkeys(call.path for call in ran if type(call.module) in classes and has_parts(call.module)))


def _own_ends(trace: Trace) -> Counter[tuple[str, int]]:
    """How many residual sums the own code of each call ends; in a network without any, how often it joins branches."""

    def counted(ends: Callable[[Operation], bool]) -> Counter[tuple[str, int]]:
        return Counter((op.at.path, op.at.call) for op in trace.operations if op.at and op.at.path and ends(op))

    return counted(adds_what_it_came_from) or counted(lambda op: _joins(trace, op))


def _joins(trace: Trace, op: Operation) -> bool:
    """Whether it concatenates tensors that its module computed side by side; dense layers work one after another."""
    operands = {before for before in op.operands if before is not None}
    if op.name != "cat" or len(operands) < 2:
        return False
    call = trace.maker(op)
    source = call.argument and call.argument.made
    if not all(before is source or call.started < before.when for before in operands):
        return False
    ancestors_of = {before: before.ancestors() for before in operands}
    return any(a not in ancestors_of[b] and b not in ancestors_of[a] for a, b in itertools.combinations(operands, 2))


def _taken_apart(trace: Trace, paths: list[str]) -> list[str]:
    """Of blocks that add nothing themselves and hold rows of alike modules that do, these (a cross-stage network's)."""
    blocks = set(units(trace))
    module = trace.module
    rows = {path: [] if path in blocks else _rows(trace, path, blocks) for path in paths}
    stages = {type(module(path)) for path, row in rows.items() if len(row) > 1}
    apart = {path for path in paths if rows[path] and type(module(path)) in stages - {nn.Sequential, nn.ModuleList}}
    return [each for path in paths for each in (rows[path] if path in apart else [path])]


def _rows(trace: Trace, path: str, units: set[str]) -> list[str]:
    """The units inside a module, if all of each row of modules are such, and alike."""
    rows = []
    for name, row in parts(trace.module(path), path).items():
        held = [(f"{name}.{n}", m) for n, m in children(row)]
        if not _container(row) or any(name.startswith(f"{other}.") for other in rows):
            continue
        shapes = {(type(m), *(n for n, _ in m.named_parameters())) for _, m in held}
        if len(shapes) == 1 and all(inner in units or _pair(m) for inner, m in held):
            rows += [inner for inner, _ in held]
    return rows


def units(trace: Trace) -> list[str]:
    """Paths of modules whose own code ends a residual sum: what they add was computed from what it is added to.

    So do others of their class, though their skip be a projection. Those within another such module are part of it. In
    the order in which they run.
    """
    return _outermost(_ends(trace)) if any(map(adds_what_it_came_from, trace.operations)) else []


def _outermost(paths: list[str]) -> list[str]:
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

    def outermost(inner: list[str]) -> list[str]:
        inner = [path for path in dict.fromkeys(inner) if path and path not in paths and path not in around]
        chosen = {*inner, *paths}
        return [path for path in inner if not any(above in chosen for above in _above(path))]

    first = min(entry_of(trace, path, block).started for path, block in blocks)
    last = max(block.when for _, block in blocks)
    weighed = [c for c in trace.calls if next(c.module.parameters(), None) is not None]
    rows = {call.path for path, block in blocks if block.since for call in trace.inside(path, block)}
    ran = sorted((call for call in weighed if call.path not in rows), key=lambda call: call.started)
    between = outermost([call.path for call in ran if first < call.started and call.ended < last])
    outside = [path for path in outermost(units(trace)) if path not in between and path not in rows]
    sentences = []
    if between:
        sentences.append(f"between its blocks {network.name} runs {_counted(between)}")
    if outside:
        sentences.append(f"besides its blocks {network.name} has residual sums in {_counted(outside)}")
    return sentences


def _counted(names: list[str]) -> str:
    count = "1 module that is not a block" if len(names) == 1 else f"{len(names)} modules that are not blocks"
    return f"{count}: {listed(names)}"


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def stem_of(trace: Trace, blocks: list[tuple[str, Spot]]) -> Spot:
    """The input of the first block."""
    path, first = blocks[0]
    if first.since is not None:
        return Spot(first.since, "stem", "stem", "input", since=first.since)
    return Spot(first_call(trace, path), "stem", "stem", "input") if trace.calls_of(path) else entered(trace, path)


def parts_of(name: str, module: nn.Module) -> list[str]:
    """A part of a network without blocks, or the elements if it is a plain sequence."""
    if _holds_elements(module) and not _container(module):
        return [f"{name}.{inner}" for inner, _ in children(module)]
    return [name]


def _container(module: nn.Module) -> bool:
    """Whether some elements have parts of their own: a row of blocks or stages."""
    return _holds_elements(module) and any(has_parts(m) for m in held_in(module))


def _holds_elements(module: nn.Module) -> bool:
    """A Sequential, a ModuleList, or what has numbered children and is a dictionary or, in a traced graph, bare."""
    if isinstance(module, (nn.Sequential, nn.ModuleList)):
        return True
    numbered = all(name.isdigit() for name, _ in children(module))
    return numbered and has_parts(module) and (isinstance(module, nn.ModuleDict) or type(module) is nn.Module)


def _row(module: nn.Module) -> bool:
    """A container of several compound elements of one class."""
    elements = held_in(module)
    alike = len({type(m) for m in elements}) == 1 and type(elements[0]) is not nn.Sequential
    return _container(module) and len(elements) > 1 and alike and not _pair(module)


def _numbered(module: nn.Module) -> bool:
    """Holds a row of blocks as children of its own: `b1`, `b2`, ... of one class (RegNet's stages)."""
    names = [name for name, _ in children(module)]
    classes = {type(child) for child in held_in(module)}
    return (
        len(classes) == 1
        and all(re.fullmatch(r"[a-z_]+\d+", n) for n in names)
        and has_parts(dict(children(module))[names[0]])
        and not any(type(child) is nn.Module and _container(child) for child in held_in(module))
    )


def _is_stage(trace: Trace, path: str, module: nn.Module) -> bool:
    """Holds rows of blocks rather than being a block.

    Most of its parameters are in such rows, and what the last of them puts out is not worked on any
    further: neither added to a shortcut nor fed to another compound module. What is passed over (a stage may end with
    downsampling) counts for neither.
    """
    if _container(module):
        return any(_container(m) or has_parts(m) for m in held_in(module)) and not _pair(module)
    rows = {name: child for name, child in children(module) if _container(child) and not _pair(child)}
    over = sum(_size(child) for name, child in children(module) if name not in rows and _passed_over(name, child))
    if sum(map(_size, rows.values())) <= 0.5 * (_size(module) - over):
        return False
    own = trace.calls_of(path)
    if not own:
        return True
    starts = [first_call(trace, f"{path}.{name}").argument for name in rows]
    if any(a is not None and a.is_(b) for a, b in itertools.combinations(starts, 2)):
        return False  # parallel branches
    last = max((c for name in rows for c in trace.below(f"{path}.{name}")), key=lambda call: call.ended)
    after = [
        c
        for c in trace.calls
        if last.ended < c.started < own[-1].ended and has_parts(c.module) and not _in_passed_over(trace, path, c)
    ]
    a, b = last.result, own[-1].result
    added = a is not None and b is not None and a.shape == b.shape and a.made is not b.made
    return not after and (not added or _in_bare_rows(trace, path, last))


def _in_passed_over(trace: Trace, path: str, call: Call) -> bool:
    """Whether a call below a path belongs to a module that is passed over, or lies inside one."""
    module = trace.module
    around = [ancestor for ancestor in (*_above(call.path), call.path) if ancestor.startswith(f"{path}.")]
    return any(_passed_over(ancestor.rpartition(".")[2], module(ancestor)) for ancestor in around)


def _in_bare_rows(trace: Trace, path: str, last: Call) -> bool:
    """Whether a call is in a part of a row that is no module to call: then who holds the row adds for it."""
    between = [above for above in _above(last.path) if above.startswith(f"{path}.")]
    return len(between) > 1 and not any(trace.calls_of(above) for above in between[:2])


def _pair(module: nn.Module) -> bool:
    """The attention and MLP of one block, or more parts of different kinds, in a bare list (as vit-pytorch does)."""
    elements = held_in(module)
    if not isinstance(module, nn.ModuleList) or len(elements) < 2:
        return False
    mlps = [element for element in elements if is_mlp_like(element)]
    if len(elements) <= 3:
        return elements[-1] in mlps and (is_mlp(elements[-1]) or len(mlps) < len(elements))
    attends = any(is_attention_like(element) for element in elements)
    return bool(mlps) and attends and 2 * len({type(element) for element in elements}) >= len(elements)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _passed_over(name: str, module: nn.Module) -> bool:
    """Whether a module holds no blocks: a stem, head, decoder, embedding, or a module between blocks."""
    return (
        "embed" in name
        or "downsample" in name
        or "transition" in name
        or (name.startswith(("pos", "stem")) and not name.startswith("post"))
        or name in ("neck", "decoder", "decode_head", "segmentation_head")
        or is_a(module, "embed", "downsample", "posconv", "merging")
        or type(module).__name__ == "PEG"
        or (named_norm(module) and maps_in(module) <= 1)
        or ((name in ("head", "heads", "classifier") or is_a(module, "pool")) and not any(map(_row, module.modules())))
    )


def _block_paths(trace: Trace, path: str = "") -> Iterator[str]:
    """Paths of the blocks below a module."""
    for name, child in children(trace.module(path)):
        if _passed_over(name, child):
            continue
        here = f"{path}.{name}" if path else name
        if _container(child):
            yield from _elements(trace, here, child)
        elif _numbered(child):
            yield from (f"{here}.{n}" for n, _ in children(child))
        elif has_parts(child):
            yield from _block_paths(trace, here)


def _elements(trace: Trace, path: str, container: nn.Module) -> Iterator[str]:
    """Blocks among the elements of a container, and inside those that are stages."""

    def ran(inner: str) -> bool:
        return bool(trace.calls_of(inner) or trace.below(inner))

    elements = [(n, m) for n, m in children(container) if has_parts(m) and ran(f"{path}.{n}")]
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
            for n, m in children(element):
                if not has_parts(m) or _passed_over(n, m):
                    continue
                if _row(m):
                    yield from (f"{inner}.{n}.{k}" for k, _ in children(m))
                elif any(_container(rows) and all(map(_pair, held_in(rows))) for rows in held_in(m)):
                    yield from _block_paths(trace, f"{inner}.{n}")
                else:
                    yield f"{inner}.{n}"
        else:
            yield from _block_paths(trace, inner)


def entry_of(trace: Trace, path: str, block: Spot) -> Call:
    """The call of the module that takes the input of a block."""
    if block.since is not None:
        return block.since
    return block.call if block.call.path == path else first_call(trace, path)
