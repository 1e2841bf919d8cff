"""Reading the attention of a network as it runs, fused or not, without changing it.

Attention is found in the operations of a traced pass: fused attention, or a softmax of which the result, masked,
gated or mixed among heads on the way, is a factor of a product that sums over its keys. Where queries and keys are in
the image, which heads there are and which windows, is told by the labels that go along (see `provenance`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from repsim.errors import RepsimError, UsageError
from repsim.networks.axes import grid_and_order, images_axis
from repsim.networks.bare_blocks import entered
from repsim.networks.kinds import is_attention
from repsim.networks.layers import depths_of
from repsim.networks.models import Network
from repsim.networks.places import NOWHERE, REGION, SCATTERED, TOKEN, Places
from repsim.networks.provenance import Weights, features_in, images_in, places_in, varies
from repsim.networks.structure import find_blocks
from repsim.networks.tokens import images_first, known_by_name
from repsim.networks.tracing import (
    FUSED,
    Call,
    FusedAttention,
    OperationAt,
    Spot,
    Trace,
    call_name,
    following,
    is_learned,
    is_own,
    name_of,
    operation_at,
    unobserved,
)
from repsim.networks.wrappers import part


@dataclass(frozen=True, eq=False)
class AttentionMap:
    """Where a network computes attention weights, how they lie in memory, and where queries and keys are."""

    at: OperationAt
    shape: tuple[int, ...]
    """Shape in the traced pass, of three images."""
    keys: int
    """Axis of the keys; the queries have the other one of the last two axes."""
    images: tuple[int, int, int]
    """(axis, before, fold) of the images, among the axes before these two."""
    groups: Tensor
    """(heads, windows): number of the weights of each head and window, in the order in which an image's weights lie."""
    features: tuple[int, ...]
    """(heads,) the first channel of each head's queries."""
    query_places: np.ndarray
    """(windows, q) places of queries, as the trace numbers them."""
    key_places: np.ndarray
    """(windows, k)."""

    product: OperationAt | None = None
    """The product that sums values with these weights, for each head and window; None if there is no such product."""
    width: int = 0
    """Channels of a head's values."""

    def read(self, weights: Tensor) -> Tensor:
        """(n, heads, windows, q, k)."""
        if self.keys == weights.ndim - 2:
            weights = weights.transpose(-2, -1)
        return self._grouped(weights, self.key_places.shape[1])

    def read_product(self, outputs: Tensor) -> Tensor:
        """(n, heads, windows, q, width), from a product whose axes before the last two may be one."""
        lead = list(self.shape[:-2])
        lead[self.images[0]] *= math.prod(outputs.shape[:-2])
        lead[self.images[0]] //= math.prod(self.shape[:-2])
        return self._grouped(outputs.reshape(*lead, *outputs.shape[-2:]), self.width)

    def _grouped(self, tensor: Tensor, last: int) -> Tensor:
        grouped = images_first(tensor, *self.images)
        grouped = grouped.reshape(len(grouped), -1, *tensor.shape[-2:])
        if grouped.shape[1] != self.groups.numel() or tuple(grouped.shape[2:]) != (self.query_places.shape[1], last):
            raise RepsimError(
                f"attention in {self.at.path} has another shape than when repsim looked for it: {tuple(tensor.shape)}"
            )
        plain = bool((self.groups.flatten() == torch.arange(self.groups.numel())).all())
        return (grouped if plain else grouped[:, self.groups.flatten()]).unflatten(1, tuple(self.groups.shape))


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """A run of a module in which attention is computed, once or more often."""

    name: str
    path: str
    depth: float
    """Depth as a `Layer` has it, of the module's output."""
    maps: tuple[AttentionMap, ...]

    @property
    def order(self) -> list[int]:
        """Heads of all maps, one after another, in the order of the channels of their queries.

        So they come in the same order whether a module attends once with many heads or several times with some.
        """
        features = [feature for attention_map in self.maps for feature in attention_map.features]
        if len(set(features)) < len(features):
            return list(range(len(features)))
        return sorted(range(len(features)), key=features.__getitem__)


@dataclass(frozen=True, eq=False)
class Attentions:
    """All attention of a network."""

    layers: list[AttentionLayer]
    places: Places
    notices: list[str]
    pooling: list[str]
    """Runs of modules in which parameters attend to tokens: their queries are the same for all images."""
    placeless: list[str]
    """Layers whose queries, or keys, have fewer than two positions in the image."""
    linear: list[str]
    """Layers that weigh the channels of a token, or the tokens of a channel, and make no weights between tokens."""
    mixed: list[str]
    """Names of layers whose heads are mixed after the softmax into tensors that are no weights."""

    def at(self, name: str) -> AttentionLayer:
        return next(layer for layer in self.layers if name in (layer.name, layer.path))


def find_attention(network: Network) -> Attentions:
    """The attention of a network, in the order in which it runs.

    Raises:
        UsageError: the network has no attention, or a part of it cannot be read.
    """
    attentions = all_attention(network)
    _check_all(network, Trace.of(network), attentions)
    return attentions


def all_attention(network: Network) -> Attentions:
    """The attention of a network that can be read, whether it is all of it or not."""
    trace = Trace.of(network)
    places = trace.provenance.places
    maps_by_path: dict[str, list[AttentionMap]] = {}
    mixed: list[str] = []
    left_out: dict[str, list[str]] = {"pooling": [], "placeless": [], "linear": []}
    bare = [(path, block) for path, block in find_blocks(trace) if not trace.calls_of(path)]
    when = {op.at: op.when for op in trace.operations}
    for weights in trace.provenance.attentions:
        name = _bare_block(trace, bare, weights.at, when) or call_name(weights.at.path, weights.at.call)
        each = _map_of(network, trace, weights)
        if isinstance(each, str):
            left_out[each].append(name)
        else:
            maps_by_path.setdefault(name, []).append(each)
            mixed += [name] if weights.mixed else []
    depth, ended = depths_of(trace), {call.name: call.ended for call in trace.calls}
    layers = []
    for name, maps in maps_by_path.items():
        last = maps[-1].at
        layers.append(
            AttentionLayer(name, last.path, depth(ended[name]), tuple(maps))
            if name in ended
            else AttentionLayer(name, name, depth(when[last]), tuple(maps))
        )
    notices = []
    reasons = (("pooling", "by queries that no image changes"), ("placeless", PLACELESS), ("linear", LINEAR))
    for why, phrase in reasons:
        if names := ", ".join(dict.fromkeys(left_out[why])):
            notices.append(f"attention {phrase} has no heads that look around the image: {names} left out")
    if names := ", ".join(dict.fromkeys(mixed)):
        notices.append(f"heads are mixed after the softmax in {names}, and the weights before that are read")
    return Attentions(layers, places, notices, **left_out, mixed=mixed)


PLACELESS = "among channels, of tokens that come from parameters, or over a single position"
"""Words for attention whose queries or keys have fewer than two positions in the image."""
LINEAR = "without weights between tokens, as linear attention is,"
"""Words for attention whose softmax is over the channels of one token, or the tokens of one channel."""


def _bare_block(
    trace: Trace, bare: Sequence[tuple[str, Spot]], at: OperationAt, when: dict[OperationAt | None, int]
) -> str | None:
    """The block, of those that are no modules to call, in which code around them attends."""
    for path, block in bare:
        if at not in when or (at.path and not path.startswith(f"{at.path}.")):
            continue
        first, last = entered(trace, path).made, block.made
        if first is not None and last is not None and first.when < when[at] < last.when:
            return path
    return None


def _check_all(network: Network, trace: Trace, attentions: Attentions) -> None:
    """Raise for a module that attends and is missing from the attention layers."""
    has_layers = bool(attentions.layers)
    left_out = [*attentions.pooling, *attentions.placeless, *attentions.linear]
    with_maps = {layer.path for layer in attentions.layers} | {name.partition(":")[0] for name in left_out}

    def holds(path: str) -> bool:
        return any(name == path or name.startswith(f"{path}.") or path.startswith(f"{name}.") for name in with_maps)

    for layer in attentions.layers:
        if _in_parts(layer, attentions.places):
            raise UsageError(
                f"{layer.name} in {network.name} attends to parts of its queries one after another, and repsim cannot "
                "join these into one row for each head; have it attend to all queries at once"
            )
    called = {call.path: call.module for call in trace.calls}
    unread = [
        path
        for path, module in called.items()
        if path and is_attention(module) and not holds(path) and _may_attend(trace, path)
    ]
    hidden = [
        f"{call.path or 'the network itself'} ({type(call.module).__name__})"
        for call in trace.calls
        if call.output is not None
        and call.output.axes is None
        and call.input is not None
        and call.input.axes is not None
    ]
    foreign_kernels = [
        f"{at.path or 'the network itself'} ({name})"
        for at, name in trace.provenance.unknown
        if at is not None and not name.startswith(("aten::", "prims::", "torchvision::", "quantized::"))
    ]
    unread_products = [
        f"{at.path or 'the network itself'} ({type(called[at.path]).__name__})"
        for at in trace.provenance.unread
        if at is not None
    ]
    if not has_layers and attentions.linear:
        listed = ", ".join(list(dict.fromkeys(attentions.linear))[:4])
        raise UsageError(
            f"attention distance does not apply to {network.name}: {listed} make no weights between tokens, as linear "
            "attention does not"
        )
    if not has_layers and left_out:
        listed = ", ".join(list(dict.fromkeys([*attentions.placeless, *attentions.pooling]))[:4])
        raise UsageError(
            f"attention distance does not apply to {network.name}: the queries of {listed} have no positions in the "
            f"image (attention {PLACELESS}, or by parameters that pool tokens)"
        )
    if not has_layers and not (unread or unread_products or hidden or foreign_kernels):
        raise UsageError(f"{network.name} has no attention to measure; take a transformer with self-attention")
    unreadable = [
        *(f"{path} ({type(called[path]).__name__})" for path in unread),
        *unread_products,
        *foreign_kernels,
        *hidden,
    ]
    if unreadable := list(dict.fromkeys(unreadable)):
        listed = ", ".join(unreadable[:4]) + (f" and {len(unreadable) - 4} more" if len(unreadable) > 4 else "")
        raise UsageError(
            f"repsim cannot read all attention of {network.name}: in {listed} it sees no weights between queries and "
            "keys; have these modules compute plain or PyTorch's own attention"
        )


def _may_attend(trace: Trace, path: str) -> bool:
    """Whether anything in a module could sum tokens with factors that come from the image.

    Attention takes a product of two activations, a softmax, or an operation for which repsim has no rule.
    """
    inside = [op for op in trace.operations if op.at is not None and f"{op.at.path}.".startswith(f"{path}.")]
    unknown = any(at is not None and f"{at.path}.".startswith(f"{path}.") for at, _ in trace.provenance.unknown)
    products = (is_learned(op) and sum(before is not None for before in op.operands) > 1 for op in inside)
    return unknown or any(products) or any("softmax" in op.name for op in inside)


def _in_parts(layer: AttentionLayer, places: Places) -> bool:
    """Whether maps of the same heads are of different queries."""
    seen: dict[tuple[int, ...], set[int]] = {}
    for attention_map in layer.maps:
        numbers = np.unique(attention_map.query_places)
        queries = set(numbers[np.isin(places.kind[numbers], (REGION, SCATTERED))].tolist())
        if queries != seen.setdefault(attention_map.features, queries):
            return True
    return False


def _map_of(
    network: Network, trace: Trace, weights: Weights
) -> AttentionMap | Literal["pooling", "placeless", "linear"]:
    """How to read attention weights.

    `pooling` where the queries are the same for all images, `placeless` where they, or the keys, have no two positions,
    `linear` where they are made of single tokens and not of queries with keys.

    Raises:
        UsageError: their axes are not known, or the places of their queries or keys in the image.
    """
    at, places = weights.at, trace.provenance.places
    place = f"attention in {at.path or 'the network itself'} of {network.name}"
    ndim = len(weights.shape)
    if _pools(weights):
        return "pooling"
    if weights.shape[weights.axis] == 1 or (weights.mixed and weights.label.across is None):
        return "placeless"
    if weights.axis not in (ndim - 1, ndim - 2) or ndim < 3:
        raise UsageError(f"{place}, {weights.shape}, has its keys on an axis that repsim cannot read")
    down, across = weights.label.codes, weights.label.across
    queries_axis = ndim - 1 if weights.axis == ndim - 2 else ndim - 2
    if across is None:  # only rows or only columns have places
        down, across = (torch.zeros_like(down), down) if _vary(down, weights.axis) else (down, torch.zeros_like(down))
    elif _vary(down, weights.axis) and not _vary(down, queries_axis):
        down, across = across, down
    rows = down.select(weights.axis, 0)
    columns = across.select(queries_axis, 0)
    images = images_axis(rows, 3) or images_axis(columns, 3)
    if not bool((images_in(rows) > 0).any()):
        of_channels = weights.label.across is None and varies(features_in(weights.label.codes), queries_axis)
        return "linear" if of_channels else "pooling"
    if images is None or images[0] >= ndim - 2:
        raise UsageError(f"{place}, {weights.shape}, has no known axis of images")
    rows, columns = (torch.atleast_2d(images_first(each, *images)[0]).flatten(0, -2) for each in (rows, columns))
    for side, codes in (("queries", rows), ("keys", columns)):
        numbers = places.resolved(places_in(codes).numpy())
        nowhere = numbers == NOWHERE
        if nowhere.all() or bool((torch.from_numpy(nowhere) & (images_in(codes) > 0)).any()):
            if weights.label.across is None:
                return "linear"
            raise UsageError(f"{place}: it is not known where in the image its {side} are")
        if len(np.unique(numbers[np.isin(places.kind[numbers], (REGION, SCATTERED))])) < 2:
            return "placeless"
    query_places, key_places = (places.resolved(places_in(codes).numpy()) for codes in (rows, columns))
    features = features_in(rows)[:, 0]
    joined = np.concatenate([query_places, key_places], 1)
    distinct, first, window = np.unique(joined, axis=0, return_index=True, return_inverse=True)
    window = window.reshape(-1)
    known, head = torch.unique(features, return_inverse=True)
    groups = _table(head.numpy(), window, len(known), len(distinct))
    if groups is None and len(distinct) == 1:
        groups, known = np.arange(len(rows))[:, None], torch.arange(len(rows))
    if groups is None:
        raise UsageError(f"{place}, {weights.shape}: repsim cannot tell its heads from its windows")
    product, shape = trace.provenance.products.get(at, (None, ()))
    if math.prod(shape[:-1]) != math.prod(weights.shape[:-1]) or weights.axis != ndim - 1 or weights.mixed:
        product = None
    return AttentionMap(
        at=at,
        shape=weights.shape,
        keys=weights.axis,
        images=images,
        groups=torch.from_numpy(groups),
        features=tuple(known.tolist()),
        query_places=query_places[first],
        key_places=key_places[first],
        product=product,
        width=shape[-1] if shape else 0,
    )


def _pools(weights: Weights) -> bool:
    """Whether it is one row of weights over an image's tokens, by a learned map of each: there are no queries."""
    label, other_axes = weights.label, [axis for axis in range(len(weights.shape)) if axis != weights.axis]
    is_single = not any(_vary(label.codes, axis) or varies(features_in(label.codes), axis) for axis in other_axes)
    return label.across is None and is_single and _vary(label.codes, weights.axis)


def _vary(codes: Tensor, axis: int) -> bool:
    return varies(places_in(codes), axis)


def _table(head: np.ndarray, window: np.ndarray, heads: int, windows: int) -> np.ndarray | None:
    """(heads, windows) positions of every pair, if each is there once."""
    if heads * windows != len(head):
        return None
    table = np.full((heads, windows), -1)
    table[head, window] = np.arange(len(head))
    return None if (table < 0).any() else table


# Where they are


@dataclass(frozen=True, eq=False)
class Geometry:
    """Places of the queries and keys of one attention map in the image."""

    distances: Tensor
    """(windows, q, k) in pixels; 0 where a query or key is nowhere in the image."""
    queries: Tensor
    """(windows, q) whether a query is in the image: tokens before the grid and padding are not."""
    keys: Tensor
    """(windows, k)."""
    cls: int | None
    """Which key is the CLS token."""
    own: Tensor | None
    """(windows, q) which key is the query's own token; None where keys are not the queries' tokens."""

    @property
    def distance(self) -> Tensor:
        """(q, k) for tokens in the image, of attention without windows."""
        return self.distances[0][self.queries[0]][:, self.keys[0]]

    @property
    def windows(self) -> int:
        return len(self.distances)

    @property
    def prefix(self) -> int:
        """Keys that are nowhere in the image."""
        return int((~self.keys[0]).sum())


def geometry_of(each: AttentionMap, places: Places, declared: Sequence[str] | None = None) -> Geometry:
    """Where queries and keys are, and how far apart.

    A token is at the centre of its cell of the image, as convolutions, pooling and averages placed it. A key that is a
    mean over tokens that make no rectangle (a run of them in reading order) is as far as they are on average.
    """
    q, k = each.query_places, each.key_places
    in_q, in_k = (np.isin(places.kind[numbers], (REGION, SCATTERED)) for numbers in (q, k))
    distances = np.stack([_distances(places, a, b) for a, b in zip(q, k)])
    distances[~(in_q[:, :, None] & in_k[:, None, :])] = 0
    tokens = [i for i in range(k.shape[1]) if places.kind[k[0, i]] == TOKEN]
    names = [known_by_name(places.names[int(k[0, i])]) for i in tokens]
    if declared is not None and len(declared) == len(names):
        names = list(declared)
    cls = next((i for i, name in zip(tokens, names) if name == "cls"), None)
    return Geometry(
        torch.from_numpy(distances), torch.from_numpy(in_q), torch.from_numpy(in_k), cls, _own(q, k, in_q, in_k)
    )


def _distances(places: Places, q: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(q, k) in pixels; a scattered place counts by the mean over its regions."""

    def points(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        parts = [places.members.get(int(number), np.array([number])) for number in numbers]
        owner = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        flat = np.concatenate(parts)
        return np.stack([places.row[flat], places.column[flat]], 1), owner

    (at_q, owner_q), (at_k, owner_k) = points(q), points(k)
    distances = np.sqrt(((at_q[:, None] - at_k[None]) ** 2).sum(-1))
    if len(owner_q) > len(q):
        distances = _means(distances, owner_q, len(q))
    return distances if len(owner_k) == len(k) else _means(distances.T, owner_k, len(k)).T


def _means(values: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, owner, values)
    return sums / np.bincount(owner, minlength=count)[:, None]


def _own(q: np.ndarray, k: np.ndarray, in_q: np.ndarray, in_k: np.ndarray) -> Tensor | None:
    """(windows, q) the key at the same place as each query, if queries and keys in the image are the same."""
    own = np.zeros(q.shape, np.int64)
    for w in range(len(q)):
        order = np.argsort(k[w])
        at = np.clip(np.searchsorted(k[w][order], q[w]), 0, k.shape[1] - 1)
        own[w] = order[at]
        if (k[w][own[w]] != q[w])[in_q[w]].any() or in_q[w].sum() != in_k[w].sum():
            return None
    return torch.from_numpy(own)


def grid_of_places(places: Places, numbers: np.ndarray, in_image: Tensor) -> tuple[tuple[int, int], Tensor]:
    """Rows and columns of the tokens that are in the image, and which these are, row by row."""
    inside = np.flatnonzero(in_image.numpy())
    grid, order = grid_and_order(places, numbers[inside])
    if grid is None:
        raise UsageError("attention maps need tokens that make one full grid in the image")
    return grid, torch.from_numpy(inside[order])


# As the network runs


def weights(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The attention weights that `scaled_dot_product_attention` uses and does not return. (..., q, k)."""
    if query.dtype.itemsize < 4:
        query, key = query.float(), key.float()
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        allowed = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
        logits = logits.masked_fill(~allowed, -math.inf)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    return logits.softmax(-1)


Take = Callable[[AttentionLayer, int, Tensor], None]


@contextmanager
def watch_attention(
    network: Network, take: Take, attentions: Attentions | None = None, *, passed: bool = False
) -> Iterator[None]:
    """While active, `take(layer, number, weights)` is called with each map, (n, heads, windows, q, k).

    Fused attention is left fused: its weights are computed beside it from the queries, keys, scale and
    mask it is called with. Other attention is read where softmax makes it, or what mixes its heads. One map's
    weights exist at a time; they must not be changed.

    Args:
        attentions: the result of `find_attention`, if it was called before.
        passed: whether only passes of a sweep count.

    Raises:
        UsageError: the network has no attention that can be read.
    """
    attentions = attentions or find_attention(network)
    wanted = {attention_map.at: (layer, i) for layer in attentions.layers for i, attention_map in enumerate(layer.maps)}

    def took(at: OperationAt, attention: Tensor) -> None:
        layer, number = wanted[at]
        take(layer, number, layer.maps[number].read(attention))

    with _watching(network, set(wanted), took, lambda args, kwargs, result: weights(*args, **kwargs), passed):
        yield


@contextmanager
def watch_heads(
    network: Network, layer: AttentionLayer, take: Callable[[Tensor], None], *, passed: bool = False
) -> Iterator[None]:
    """While active, call `take(outputs)` with the outputs of the heads of one map, (n, heads, windows, q, d).

    Args:
        layer: an attention layer with a single map, whose product is known.
        passed: whether only passes of a sweep count.
    """
    (attention_map,) = layer.maps
    took = lambda at, outputs: take(attention_map.read_product(outputs))  # noqa: E731
    wanted: Any = {attention_map.product}  # which is known
    with _watching(network, wanted, took, lambda args, kwargs, result: result, passed):
        yield


@contextmanager
def _watching(
    network: Network,
    wanted: set[OperationAt],
    take: Callable[[OperationAt, Tensor], None],
    of_fused: Callable[[tuple, dict, Tensor], Tensor],
    passed: bool,
) -> Iterator[None]:
    """While active, `take` gets the results of operations in every pass, and of fused attention that of `of_fused`."""
    running: list[Call] = []
    places: set[OperationAt] = set()

    def took(at: OperationAt | None, value: Callable[[], Tensor]) -> None:
        if at is not None and at in wanted:
            places.add(at)
            with unobserved():
                take(at, value())

    def attend(compute: Callable[..., Tensor], args: tuple, kwargs: dict) -> Tensor:
        """Run fused attention, and compute its weights beside it from the same queries and keys."""
        at = operation_at(FUSED, running) if running else None
        result = compute(*args, **kwargs)
        took(at, lambda: of_fused(args, kwargs, result))
        return result

    def enter(call: Call, arguments: Any) -> None:
        if not call.path:
            places.clear()

    def leave(call: Call, result: Any) -> None:
        if not call.path and (missing := [at.path for at in wanted if at not in places]):
            raise RepsimError(
                f"{network.name} no longer attends in {missing[0]!r} as it did when repsim looked for its attention"
            )

    with ExitStack() as stack:
        own = lambda: is_own(network, passed=passed)  # noqa: E731
        stack.enter_context(following(network.module, running, enter, leave, own))
        names = {at.name for at in wanted}
        if names - {FUSED}:
            stack.enter_context(_Plain(names, running, lambda at, result: took(at, lambda: result)))
        if FUSED in names:
            stack.enter_context(FusedAttention(attend))
        yield


class _Plain(TorchDispatchMode):
    """Sees the operations that make attention weights."""

    def __init__(
        self, names: set[str], running: list[Call], took: Callable[[OperationAt | None, Tensor], None]
    ) -> None:
        super().__init__()
        self.names, self.running, self.took = names, running, took

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.running and (name := name_of(func, args)) in self.names:
            self.took(operation_at(name, self.running), result)
        return result


def attention_modules(network: Network) -> dict[str, nn.Module]:
    """The modules that compute attention weights, by name."""
    return {layer.name: part(network.module, layer.path) for layer in find_attention(network).layers}
