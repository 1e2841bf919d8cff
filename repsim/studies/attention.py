"""Where the heads of a transformer look (paper, Figures 3, 4, C.5, C.6)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from repsim.attention import watch_attention
from repsim.errors import UsageError
from repsim.images import FEWEST, Batch, ImageSet, as_image_set
from repsim.measures.attention import HeadStatistics, distances, grid_positions, head_statistics
from repsim.measures.running import Moments
from repsim.models import Network, as_network, evaluating
from repsim.pieces import add_piece, piece
from repsim.resume import Resume
from repsim.structure import has_cls
from repsim.sweep import Progress, require_finite, sweep
from repsim.tables import ATTENTION


class Geometry(NamedTuple):
    """Where the queries and keys of one attention module are in the image."""

    distance: Tensor
    """(q, k) in pixels."""
    prefix: int
    windows: int
    """How many windows share an image; 1 if every token sees the whole grid."""


class AttentionDistance:
    """The study: mean distance, entropy and shares of every head of one network."""

    def __init__(self, network: Network, *, renormalize: bool = False) -> None:
        self.network, self.networks, self.renormalize = network, [network], renormalize
        self.sums: dict[str, list[Moments]] = {}
        self._geometry: dict[tuple, Geometry] = {}
        self._images = 0

    @contextmanager
    def watch(self, index: int, network: Network) -> Iterator[dict[str, HeadStatistics]]:
        seen: dict[str, HeadStatistics] = {}
        start = network.module.register_forward_pre_hook(lambda module, args: self._start(seen, len(args[0])))
        try:
            with watch_attention(network, lambda path, attention: add_piece(seen, path, self._reduce(path, attention))):
                yield seen
        finally:
            start.remove()

    def _start(self, seen: dict[str, HeadStatistics], images: int) -> None:
        if piece().first:
            seen.clear()
        self._images = images

    def _reduce(self, path: str, attention: Tensor) -> HeadStatistics:
        n = self._images
        if attention.ndim == 5:  # (n, windows, h, q, k)
            attention = attention.flatten(0, 1)
        key = (path, len(attention) // n, *attention.shape[-2:])
        if key not in self._geometry:
            self._geometry[key] = geometry(self.network, path, *key[1:])
        where = self._geometry[key]
        cls = where.prefix > 0 and has_cls(self.network.module)
        statistics = head_statistics(
            attention, where.distance, prefix=where.prefix, cls=cls, renormalize=self.renormalize
        )
        return HeadStatistics(*(s.view(n, where.windows, -1).mean(1) for s in statistics))

    def update(self, seen: Sequence[dict[str, HeadStatistics]], batch: Batch) -> None:
        require_finite(
            [statistics.distance_px for statistics in seen[0].values()],
            [(self.network.name, path) for path in seen[0]],
            batch,
        )
        for path, statistics in seen[0].items():
            for moments, values in zip(self.sums.setdefault(path, [Moments() for _ in statistics]), statistics):
                moments.update(values)

    def table(self) -> pd.DataFrame:
        """One row per block and head."""
        rows = []
        for block, (path, moments) in enumerate(self.sums.items()):
            means = dict(zip(HeadStatistics._fields, (m.mean().tolist() for m in moments)))
            errors = moments[0].se().tolist()
            for head, se in enumerate(errors):
                values = {name: column[head] for name, column in means.items()}
                row = {"model": self.network.name, "layer": path, "block": block, "head": head, "distance_se": se}
                rows.append({**row, **values})
        return pd.DataFrame(rows)[ATTENTION]


def geometry(network: Network, path: str, windows: int, queries: int, keys: int) -> Geometry:
    """Where the tokens of an attention module are, from how many there are.

    The spacing of a grid of g cells across H pixels is floor(H / g): the patch size where patches tile the image,
    the stride where they overlap (PiT). Keys of a coarser grid (PVT, Twins) sit at its cells' centres. In
    windows (Swin, Twins) positions are those within the window: shifted windows that wrap around the image are
    masked by the networks themselves.

    Raises:
        UsageError: the numbers do not fit a square grid.
    """
    _, height, width = network.input_size
    square = height == width
    if windows > 1:
        across = math.isqrt(windows)
        side = math.isqrt(queries)
        fits = across**2 == windows and side**2 == queries == keys and square and height % (across * side) == 0
        if not fits:
            raise _does_not_apply(network, path, f"{windows} windows of {queries} queries and {keys} keys")
        positions = grid_positions(side, side, height // (across * side))
        return Geometry(distances(positions, positions), 0, windows)
    declared = getattr(network.module, "num_prefix_tokens", None)
    if square and queries == keys:
        for prefix in [0, 1, 2] if declared is None else [declared, 0]:
            side = math.isqrt(queries - prefix)
            if side > 0 and side**2 == queries - prefix:
                positions = grid_positions(side, side, height // side)
                return Geometry(distances(positions, positions), prefix, 1)
    side_q, side_k = math.isqrt(queries), math.isqrt(keys)
    if square and side_q**2 == queries and side_k**2 == keys and side_k > 0:
        q = grid_positions(side_q, side_q, height / side_q)
        return Geometry(distances(q, grid_positions(side_k, side_k, height / side_k)), 0, 1)
    raise _does_not_apply(network, path, f"{queries} queries and {keys} keys")


def _does_not_apply(network: Network, path: str, found: str) -> UsageError:
    size = "x".join(map(str, network.input_size))
    return UsageError(
        f"attention distance does not apply to {network.name}: {path} has {found}, "
        f"which are no square grid of positions in an image of {size}"
    )


def attention_distance(
    network: Network | nn.Module | str,
    images: ImageSet | Tensor | np.ndarray | None = None,
    *,
    renormalize: bool = False,
    batch_size: int = 50,
    progress: Progress | None = None,
    workers: int | None = None,
    skip_broken: bool = False,
    resume: Resume | None = None,
) -> pd.DataFrame:
    """Mean attention distance of every head, with entropy and shares, averaged over images.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: the bundled sample. The paper takes 5,000.
        renormalize: divide attention rows by their sum once CLS and the like are taken out.
        batch_size: images per forward pass; a last short one is dropped.
        progress, workers, skip_broken, resume: see `layer_cka`.

    Returns:
        One row per block and head: model, layer, block, head, distance_px (from 0, all attention on the own
        patch, to about half the image's width, uniform), distance_se (standard error over images), entropy (nats),
        cls_share, self_share (0 to 1, NaN where there is no such token).

    Reference: paper section 4, Figures 3, 4, C.5 and C.6.
    """
    network = as_network(network)
    images = as_image_set(images)
    study = AttentionDistance(network.sized(images.tensor_size), renormalize=renormalize)
    how = {"progress": progress, "workers": workers, "skip_broken": skip_broken, "resume": resume}
    sweep(images, [study], batch_size=batch_size, **how)
    return study.table()


class AttentionMaps(NamedTuple):
    """Attention of n images drawn over them; g is the side of the grid."""

    images: np.ndarray
    """(n, height, width, channels), each scaled to 0..1."""
    cls: np.ndarray
    """(n, h, g, g): attention of the CLS token on the grid in the last block, per head; empty without CLS."""
    rollout: np.ndarray
    """(n, g, g): attention rollout from the CLS token, or the mean over the grid's tokens without one."""


def rollout(attentions: Sequence[Tensor]) -> Tensor:
    """Attention rollout: the product over blocks of 0.5 A + 0.5 I, A the mean over heads, rows summing to 1.

    Args:
        attentions: of each block from the first on, (n, h, t, t).

    Returns:
        (n, t, t): how much each token's last representation draws on each token of the input.

    Reference: Abnar & Zuidema (2020); Dosovitskiy et al. (2021), appendix D.8.
    """
    joint = None
    for attention in attentions:
        step = 0.5 * attention.mean(1) + 0.5 * torch.eye(attention.shape[-1], device=attention.device)
        step = step / step.sum(-1, keepdim=True)
        joint = step if joint is None else step @ joint
    return joint


@torch.no_grad()
def attention_maps(
    network: Network | nn.Module | str, images: ImageSet, count: int, *, skip_broken: bool = False
) -> AttentionMaps:
    """CLS attention of the last block and attention rollout of the first `count` images.

    Raises:
        UsageError: tokens are pooled or windowed on the way, so that blocks do not share them.
    """
    network = as_network(network)
    network = network.sized(images.tensor_size)
    if count > len(images):
        raise UsageError(f"maps of {count} images were asked for, there are {len(images)}")
    batch = next(images.batches([network.transform], max(count, FEWEST), skip_broken=skip_broken))
    inputs = batch.inputs[network.transform][:count].to(network.device, network.dtype)
    seen: dict[str, Tensor] = {}
    with evaluating(network.module), watch_attention(network, lambda path, a: seen.update({path: a.cpu()})):
        network.module(inputs)
    shapes = {tuple(a.shape[-2:]) for a in seen.values()}
    (q, k), *others = shapes
    if others or q != k or any(len(a) != count for a in seen.values()):
        raise UsageError(
            f"attention maps need one grid of tokens from the first block to the last; {network.name} changes it"
        )
    prefix = geometry(network, next(iter(seen)), 1, q, k).prefix
    side = math.isqrt(k - prefix)
    whole = rollout(list(seen.values()))
    last = list(seen.values())[-1]
    cls = prefix > 0 and has_cls(network.module)
    from_cls = last[:, :, 0, prefix:] if cls else last[:, :0, 0, prefix:]
    rolled = whole[:, 0, prefix:] if cls else whole[:, prefix:, prefix:].mean(1)
    pixels = inputs.cpu().movedim(1, -1)
    low, high = pixels.amin((1, 2, 3), keepdim=True), pixels.amax((1, 2, 3), keepdim=True)
    return AttentionMaps(
        images=((pixels - low) / (high - low).clamp(min=1e-12)).numpy(),  # an image of one colour stays black
        cls=from_cls.reshape(count, -1, side, side).numpy(),
        rollout=rolled.reshape(count, side, side).numpy(),
    )
