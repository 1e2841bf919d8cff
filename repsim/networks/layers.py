"""The layers of a network, which can be compared: found by running it on a few small images.

`find_layers` goes by a traced forward pass (see `tracing`), so every layer it returns is known to run, in the order
given, with its images, channels and positions on the axes where `Layer` says they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import nn

from repsim.errors import UsageError, near
from repsim.features.arrays import FeatureNetwork
from repsim.networks.kinds import has_parts, is_norm, kind_of
from repsim.networks.models import Network, as_network
from repsim.networks.structure import (
    find_blocks,
    left_out,
    listed,
    parts_of,
    stem_of,
)
from repsim.networks.sublayers import paper_spots
from repsim.networks.tokens import Reading, Tokens, one_of_tokens
from repsim.networks.tracing import OperationAt, Spot, Trace
from repsim.networks.wrappers import children

PRESETS = ("blocks", "paper", "all")


@dataclass(frozen=True, eq=False, kw_only=True)
class Layer(Reading):
    """One place in a network where an activation is taken, and how to read it there.

    >>> layer = find_layers("vit_mini")[1]
    >>> layer.name, layer.kind, layer.shape
    ('blocks.0', 'block', (50, 96))
    """

    name: str
    """Path of the module (`blocks.0.norm1`), `path:k` for call k > 0 of one that runs several times, `stem`, or
    `<block>.mlp_hidden` where an activation is no module."""
    kind: str
    """`stem`, `block`, `attention`, `norm`, `conv`, `mlp_hidden`, `mlp`, or the kind of the module."""
    index: int
    """Position among the layers selected, in the order in which they run."""
    depth: float
    """0 up to the input of the first block, 1 from the last block's end, for every selection: see `depths_of`."""
    path: str
    """Path of the module that is hooked; the layer is its output, or its input."""
    side: Literal["output", "input"]
    call: int
    calls: int
    """Call number of this layer's, and how often the module runs in one forward pass."""
    place: OperationAt | None = None
    """The addition whose result it is, where no module is given it or gives it; its path is then that of one nearby."""

    def __repr__(self) -> str:
        return f"Layer {self.name!r}: {self.kind}, {'x'.join(map(str, self.shape))}, depth {self.depth:.2f}"


def find_layers(
    network: Network | nn.Module | str, layers: str | Iterable[str] = "blocks", *, tokens: Tokens = "all"
) -> list[Layer]:
    """The layers of a network that a preset, a regular expression or a list of names selects.

    Args:
        network: a `Network`, a module, or a name for `load_model`.
        layers: `blocks`: block or unit outputs and the stem; `paper`: inside each block the norms,
            convolutions, attention, hidden and output activations of the MLP, and the block's output
            (6 per ViT block, 7 per bottleneck unit, projections, stem; paper section 3); `all`: every
            leaf module that runs; otherwise a regular expression that must match whole names, or names. Of features
            each preset is all there are.
        tokens: the tokens that will be selected at each layer; a layer without them is an error here.

    Returns:
        Layers in the order in which they run.

    Raises:
        UsageError: nothing matches, or a layer has no such token.

    >>> [layer.name for layer in find_layers("vit_mini")][:3]
    ['stem', 'blocks.0', 'blocks.1']
    >>> [layer.name for layer in find_layers("vit_mini", "blocks[.]0[.]norm.*")]
    ['blocks.0.norm1', 'blocks.0.norm2']
    """
    network = as_network(network)
    one_of_tokens(tokens)
    if isinstance(network, FeatureNetwork):
        return _of_features(network, layers, tokens)
    trace = Trace.of(network)
    spots = _chosen(trace, layers)
    for spot in spots:
        if spot.lost is not None and spot.lost.output is None:
            raise UsageError(
                f"layer {spot.name!r} of {network.name} cannot be taken: no module takes it or gives it, and it is not "
                "the result of an addition; choose other layers, or pass the module as it was before it was traced"
            )
        if spot.side == "output" and spot.call.mixed:
            raise UsageError(
                f"layer {(spot.name or spot.call.name)!r} of {network.name} depends on several images of a batch at "
                "once, so it stands for none of them; choose other layers"
            )
    spots = [spot for spot in spots if spot.activation is not None]
    if not spots:
        raise UsageError(f"{network.name} has no layer for {layers!r} that has an axis of images")
    selected = _layers(trace, spots)
    for layer in selected:
        check_tokens(layer, network, tokens)
    return selected


def _chosen(trace: Trace, layers: str | Iterable[str]) -> list[Spot]:
    if not isinstance(layers, str):
        return _by_name(trace, list(layers))
    if layers in ("blocks", "paper"):
        return _blocks_preset(trace, inside=layers == "paper")
    if layers == "all":
        return [Spot(c, kind_of(c.module)) for c in trace.calls if not has_parts(c.module) and c.path]
    return _by_pattern(trace, layers)


def notices_of(network: Network, layers: str | Iterable[str] = "blocks") -> list[str]:
    """Sentences on parts of a network that a table of its layers leaves out, and on conditions of its numbers.

    Args:
        layers: the choice that `find_layers` was given.
    """
    if isinstance(network, FeatureNetwork):
        return []
    trace = Trace.of(network)
    sentences = left_out(trace) if layers in ("blocks", "paper") else []
    without = [spot.name or spot.call.name for spot in _chosen(trace, layers) if spot.activation is None]
    if without:
        sentences.append(f"{network.name} has layers without an axis of images, which are left out: {listed(without)}")
    if trace.provenance.by_batch:
        sentences.append(
            f"{network.name} is quantised dynamically: it rounds activations by the range that they have in the whole "
            "batch, so its numbers depend a little on the images that share a batch"
        )
    return sentences


def check_tokens(layer: Layer, network: Network, tokens: Tokens) -> None:
    """Raise `UsageError` where a layer does not have the tokens that are asked for."""
    place = f"layer {layer.name!r} of {network.name}"
    if tokens == "all" or len(layer.shape) == 1:
        return
    if tokens == "cls" and not layer.cls:
        if "token" in layer.names:
            raise UsageError(
                f"{place} has {layer.prefix} tokens before its grid, and nothing tells which of them is a CLS token; "
                "say what they are with Network(..., prefix=('cls', ...)), or choose tokens all, spatial or pooled"
            )
        raise UsageError(f"{place} has no CLS token; choose other layers, or tokens all, spatial or pooled")
    if tokens != "cls" and layer.unknown:
        raise UsageError(
            f"{place}, {layer.shape}, has no {tokens} tokens: {layer.unknown}; choose other layers, or all"
        )


def grid_of(layer: Reading, network: Network) -> tuple[int, int]:
    """Rows and columns of a layer's map, or of its grid of tokens without the prefix."""
    if layer.grid is None:
        subject = f"layer {layer.name!r}" if isinstance(layer, Layer) else "an activation"
        why = f": {layer.unknown}" if layer.unknown else ""
        raise UsageError(f"{subject} of {network.name}, {layer.shape}, is not a map or grid with a centre{why}")
    return layer.grid


def residual_layers(network: Network | nn.Module | str, *, branch: bool = False) -> list[Layer]:
    """Where residual sums end, sublayer by sublayer, or the long branch that enters each sum.

    For a transformer block, the stream after attention (named `...+skip`) and after the MLP (the block's output);
    for a ResNet unit, its output. With `branch`, what attention, MLP or the last norm of the unit
    adds to the stream. The stem comes first in both.

    Reference: paper, Figures 6 and C.1 to C.4 (post-residual and pre-residual).
    """
    network = as_network(network)
    trace = Trace.of(network)
    blocks = find_blocks(trace)
    if not blocks:
        raise UsageError(f"{network.name} has no blocks with residual sums that repsim can find")
    spots = _stem(trace, blocks)
    for path, block in blocks:
        branches = _branches(trace, path, block)
        spots += branches if branch else _sums(trace, branches, block)
    return _layers(trace, spots)


def _sums(trace: Trace, branches: Sequence[Spot], block: Spot) -> list[Spot]:
    """The stream after each sublayer of a block; the last is its output."""
    spots = []
    for first, second in zip(branches, branches[1:]):
        # The stream between two sublayers is the input of the norm before the second one.
        norms = [
            c
            for c in trace.calls
            if first.call.ended < c.started < second.call.ended and is_norm(c.module) and c.input == first.call.output
        ]
        entry = min(norms, key=lambda call: call.started, default=second.call)
        spots.append(Spot(entry, first.kind, f"{first.call.name}+skip", "input"))
    return [*spots, block]


def _branches(trace: Trace, path: str, block: Spot) -> list[Spot]:
    """The sublayers of a block whose outputs are added to the stream, in the order in which they run."""
    inside = sorted(paper_spots(trace, path, block), key=lambda spot: spot.when)
    sublayers = [spot for spot in inside if spot.kind in ("attention", "mlp")]
    if sublayers:
        return sublayers
    # A unit of convolutions: the last one, or its norm, of the block's own shape and not on the shortcut.
    main = [s for s in inside if s.activation == block.activation and "downsample" not in s.call.path]
    return main[-1:]


# Layers of features


def _of_features(network: FeatureNetwork, layers: str | Iterable[str], tokens: Tokens) -> list[Layer]:
    """Layers of features: a regular expression or names choose some, a preset takes all."""
    features = network.features
    names = list(features.layers)
    layers_of_features = []
    for index, name in enumerate(_named_so(names, layers, network.name)):
        known = features.known.get(name)
        if known is not None:
            reading, kind, depth = known.reading, known.kind, known.depth
            if tokens not in ("all", known.tokens) and known.tokens in ("cls", "pooled"):
                raise UsageError(
                    f"layer {name!r} of {network.name} holds the {known.tokens} tokens of its network, and not its "
                    f"{tokens} tokens; choose tokens {known.tokens} or all, or extract them"
                )
        else:
            reading, kind = _reading_of(features.layers[name].shape[1:]), "features"
            depth = names.index(name) / max(len(names) - 1, 1)
        at: dict[str, Any] = {"path": str(names.index(name)), "side": "output", "call": 0, "calls": 1}
        layer = Layer(name=name, kind=kind, index=index, depth=depth, **at, **vars(reading))
        check_tokens(layer, network, tokens)
        layers_of_features.append(layer)
    return layers_of_features


def _reading_of(shape: tuple[int, ...]) -> Reading:
    """The reading of features whose shape alone is known."""
    if len(shape) == 1:
        return Reading(shape=shape, batch_axis=0, channels=(0,))
    return Reading(shape=shape, batch_axis=0, unknown="nothing says which axes of these features are positions")


def _named_so(names: Sequence[str], layers: str | Iterable[str], network: str) -> list[str]:
    """The layers of these names, in the order of the names."""
    if isinstance(layers, str) and layers in PRESETS:
        return list(names)
    if isinstance(layers, str):
        regex = _regex(layers)
        chosen = [name for name in names if regex.fullmatch(name)]
        missing = [] if chosen else [layers]
    else:
        patterns = list(layers)
        chosen, missing = (
            [name for name in names if name in patterns],
            [name_asked for name_asked in patterns if name_asked not in names],
        )
    if missing:
        alike = near(missing[0], names) or list(names[:4])
        raise UsageError(f"no layer of {network} matches {missing[0]!r}; there are {', '.join(alike)} ...")
    return chosen


# Presets


def _blocks_preset(trace: Trace, *, inside: bool) -> list[Spot]:
    blocks = find_blocks(trace)
    if not blocks:  # no repeated structure: the parts of the network, one after another
        parts = [p for name, part in children(trace.network.module) for p in parts_of(name, part)]
        return [Spot(c, kind_of(c.module)) for c in trace.calls if c.path in parts]
    spots = _stem(trace, blocks)
    for path, block in blocks:
        if inside:
            inner = paper_spots(trace, path, block)
            spots += [s for s in inner if s.call is not block.call or s.side != block.side]
        spots.append(block)
    return sorted(spots, key=lambda spot: spot.when)


def _stem(trace: Trace, blocks: list[tuple[str, Spot]]) -> list[Spot]:
    """The input of the first block; nothing where a chain of convolutions begins with the image itself."""
    stem = stem_of(trace, blocks)
    return [] if stem.since is not None and stem.made is trace.operations[0] else [stem]


# By name


def _by_pattern(trace: Trace, pattern: str) -> list[Spot]:
    regex = _regex(pattern)
    spots = [spot for spot in _named(trace) if regex.fullmatch(spot.name or spot.call.name)]
    if not spots:
        raise _unknown(trace, pattern)
    return spots


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{pattern!r} is neither a preset ({', '.join(PRESETS)}) nor a regular expression: {error}"
        ) from None


def _by_name(trace: Trace, names: Sequence[str]) -> list[Spot]:
    spots = {spot.name or spot.call.name: spot for spot in _named(trace)}
    for name in names:
        if name not in spots:
            raise _unknown(trace, name)
        if spots[name].activation is None and not spots[name].call.mixed:
            raise UsageError(f"layer {name!r} of {trace.network.name} cannot be compared: it has no axis of images")
    return sorted((spots[name] for name in dict.fromkeys(names)), key=lambda spot: spot.when)


def _named(trace: Trace) -> list[Spot]:
    """Every layer with a name: all modules that run, and layers that presets call by another name."""
    presets = {(s.call.path, s.call.number, s.side): s for s in _blocks_preset(trace, inside=True)}
    extra = [s for s in presets.values() if s.side == "input" or s.name]
    modules = [presets.get((c.path, c.number, "output"), Spot(c, kind_of(c.module))) for c in trace.calls if c.path]
    return sorted([*modules, *(s for s in extra if s not in modules)], key=lambda spot: spot.when)


def _unknown(trace: Trace, choice: str) -> UsageError:
    names = [spot.name or spot.call.name for spot in _named(trace)]
    alike = near(choice, names)
    hint = f"near it: {', '.join(alike)}; " if alike else ""
    network = trace.network.name
    return UsageError(
        f"no layer of {network} matches {choice!r}; {hint}the presets are {', '.join(PRESETS)}, and "
        f"`repsim layers {network} --layers '.*'` lists all {len(names)} names"
    )


# How deep it is


def depths_of(trace: Trace) -> Callable[[int], float]:
    """How deep in a network something is, by when it runs: 0 up to what enters the first block, 1 from the last's end.

    Blocks divide the network evenly, and their sublayers a block: what the i-th of m adds, and the sum, are at i / m of
    the way through it. What runs between these places lies between them by its turn. Where there are no blocks, the
    network's parts divide it, or, if none of them runs, its modules.
    """
    blocks = find_blocks(trace)
    spots = [stem_of(trace, blocks), *(block for _, block in blocks)] if blocks else _blocks_preset(trace, inside=False)
    spots = spots or [Spot(call, kind_of(call.module)) for call in trace.calls]
    last = max(len(spots) - 1, 1)
    depths = {spot.when: i / last for i, spot in enumerate(spots)}
    for path, block in blocks:
        branches = _branches(trace, path, block)
        for i, (after, added) in enumerate(zip(_sums(trace, branches, block), branches), 1):
            depths[after.when] = depths[added.when] = depths[block.when] - (1 - i / len(branches)) / last
    turns = np.array(sorted(depths))
    deepest = np.maximum.accumulate([depths[turn] for turn in turns])
    return lambda when: float(np.interp(when, turns, deepest))


# How to read an activation


def _layers(trace: Trace, spots: Sequence[Spot]) -> list[Layer]:
    depth = depths_of(trace)
    return [_layer(trace, spot, i, depth(spot.when)) for i, spot in enumerate(spots)]


def _layer(trace: Trace, spot: Spot, index: int, depth: float) -> Layer:
    call = spot.call
    return Layer(
        name=spot.name or call.name,
        kind=spot.kind,
        index=index,
        depth=depth,
        path=call.path,
        side=spot.side,
        call=call.number,
        calls=len(trace.calls_of(call.path)),
        place=None if spot.lost is None else spot.lost.at,
        **vars(trace.reading(spot.activation)),  # pyrefly: ignore [bad-argument-type]  # those without are left out
    )
