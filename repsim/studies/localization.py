"""Which input patches single tokens resemble (paper, Figures 9, 10, D.1 to D.3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import FEWEST, Batch, Counts
from repsim.measures.cka import skewed
from repsim.measures.localization import (
    BUDGET,
    PLACES,
    Patches,
    bordered_hsic,
    cut,
    nearest,
    own_minus_rest,
    patch_grams,
    places,
    token_patch_cka,
    undefined,
)
from repsim.measures.running import GROUPS, BatchMeans
from repsim.networks.layers import PRESETS, Layer, find_layers, grid_of
from repsim.networks.models import Network
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite, sweep
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study, too_skewed
from repsim.studies.token_tables import Grid, paper_tokens, token_rows
from repsim.tables import LOCALIZATION, LOCALIZATION_SUMMARY

MOST = 2560
"""Images of the bundled sample, where none are given."""
BATCH = 256
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
FINEST = 32
"""Rows and columns of positions that are looked at, at most, unless more are asked for."""
ROWS = 2**20
"""The most rows of the table of all tokens; beyond, chosen tokens are listed, and all are kept as arrays."""
BYTES_OF_ROW = 200
"""Bytes of a row of the table, while it is put together and written."""
PATCHES = "patches of the inputs"
LISTED = 6
"""Positions that a sentence names before it counts the rest."""


class Localization(Study):
    """The study: CKA of single tokens with all input patches, at layers with positions of one or more networks."""

    def __init__(
        self,
        networks: Sequence[Network],
        layers: Sequence[Sequence[Layer]],
        *,
        finest: int = FINEST,
        groups: int = GROUPS,
    ) -> None:
        self.networks = networks
        self.parts = [_Part(network, chosen, finest) for network, chosen in zip(networks, layers)]
        self.sums = [token_patch_cka(groups) for _ in networks]

    @contextmanager
    def watch(self, index: int, network: Network, seen: Seen) -> Iterator[None]:
        part = self.parts[index]
        with (
            seen.inputs(PATCHES, lambda images: patch_grams(cut(images, part.grid))),
            seen.layers(part.layers, lambda layer, x: part.reduce(layer, x, seen[PATCHES], seen.groups)),
        ):
            yield

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        for part, sums, hsics in zip(self.parts, self.sums, seen):
            del hsics[PATCHES]
            # Not on a GPU: 32 groups of all pairs outgrow a batch.
            values = torch.stack([hsics[layer.name] for layer in part.layers]).cpu()
            require_finite(list(values), [(part.network.name, layer.name) for layer in part.layers], batch)
            if batch.groups is None:
                sums.update(values, batch.number)
            else:
                sums.update(values[:, 0], batch.groups, lambda _, values=values: values[:, 1:].transpose(0, 1))

    def takes(self, size: int, batches: int) -> Takes:
        groups = (min(len(sums.counts), batches) for sums in self.sums)
        return sum((part.takes(size, count) for part, count in zip(self.parts, groups)), Takes())

    def result(self, counts: Counts, tokens: Sequence[Grid] | None = None) -> Result:
        """Make the result from the sums; the table lists chosen tokens where all would be too many."""
        protocol = {
            "estimator": "minibatch CKA, unbiased HSIC_1 averaged over batches",
            "batch_size": counts.batch_size,
            "batches": counts.batches,
            "patch_grids": {part.network.name: part.grid for part in self.parts},
        }
        return Result(
            "localization",
            self.table(None if self.listed else tokens or "paper"),
            {"protocol": protocol},
            {"localization_summary": self.summary()},
            {} if self.listed else {"localization": self.arrays()},
        )

    @property
    def listed(self) -> bool:
        """Whether the table lists all tokens."""
        return sum(part.rows for part in self.parts) <= ROWS

    def table(self, tokens: Sequence[Grid] | Literal["paper"] | None = None) -> pd.DataFrame:
        """One row per network, layer, token and patch: for all tokens, for given places, or for the paper's places."""
        tables = [
            part.table(layer, values, paper_tokens(*part.grid) if tokens == "paper" else tokens)
            for part, sums in self._each()
            for layer, values in part.by_layer(sums)
        ]
        return pd.concat(tables, ignore_index=True)

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of every network and layer: `MODEL/LAYER/cka`, `se` and `skewed`, (t, j), and `tokens`, (t, 2)."""
        arrays = {}
        for part, sums in self._each():
            for layer, of_layer in part.by_layer(sums):
                cka, se, flags = _values(of_layer)
                name = f"{part.network.name}/{layer.name}"
                arrays[f"{name}/cka"], arrays[f"{name}/se"] = cka.float().numpy(), se.float().numpy()
                arrays[f"{name}/skewed"] = flags.numpy()
                arrays[f"{name}/tokens"] = np.array(part.positions[layer.name])
        return arrays

    def summary(self) -> pd.DataFrame:
        """One row per network, layer and part of the grid of patches: interior, edge and corner, where it has them."""
        rows = [row for part, sums in self._each() for row in part.summary(sums)]
        return pd.DataFrame(rows, columns=LOCALIZATION_SUMMARY)

    def undefined(self) -> list[str]:
        """Why values are NaN: a sentence for each network's patches, and for each layer's tokens."""
        return [reason for part, sums in self._each() for reason in part.undefined(sums)]

    def _each(self) -> Iterator[tuple[_Part, BatchMeans]]:
        return zip(self.parts, self.sums, strict=True)


class _Part:
    """The part of the study for one of its networks."""

    def __init__(self, network: Network, layers: Sequence[Layer], finest: int) -> None:
        self.network, self.layers = network, layers
        self.grid = patch_grid(network, layers, finest)
        self.positions = {layer.name: nearest(grid_of(layer, network), self.grid) for layer in layers}

    @property
    def rows(self) -> int:
        """Number of rows of the table of all tokens."""
        return len(self.layers) * (self.grid[0] * self.grid[1]) ** 2

    def takes(self, size: int, groups: int) -> Takes:
        positions, images = self.grid[0] * self.grid[1], math.prod(self.network.input_size)
        hsics = 8 * len(self.layers) * (positions + 1) ** 2
        widest = max(4 * layer.numel for layer in self.layers)
        patches = 4 * (positions * size**2 + size * images)
        arrays = 0 if self.rows <= ROWS else self.rows * 8
        return Takes(
            sums=groups * hsics,
            batch=2 * hsics + patches + 2 * size * widest + 8 * BUDGET,
            tables=8 * hsics // len(self.layers) + arrays + min(self.rows, ROWS) * BYTES_OF_ROW,
            waiting=4 * size * sum(layer.numel for layer in self.layers),
            less="a coarser grid of positions (--grid, finest) or fewer --layers",
        )

    def reduce(self, layer: Layer, activation: Tensor, patches: Patches, group: Tensor | None) -> Tensor:
        tokens = layer.tokens(activation)[:, layer.prefix :]
        _, columns = grid = grid_of(layer, self.network)
        if grid != self.grid:
            tokens = tokens[:, [row * columns + column for row, column in self.positions[layer.name]]]
        return bordered_hsic(tokens, patches, group)

    def by_layer(self, sums: BatchMeans) -> Iterator[tuple[Layer, BatchMeans]]:
        """Each layer with its part of the sums: CKA (t, j)."""
        return ((layer, sums.part(number)) for number, layer in enumerate(self.layers))

    def table(self, layer: Layer, sums: BatchMeans, tokens: Sequence[Grid] | None = None) -> pd.DataFrame:
        """The rows of a layer: for all tokens, or for given places in the grid."""
        rows, columns = self.grid
        chosen = range(rows * columns) if tokens is None else [row * columns + column for row, column in tokens]
        positions = [self.positions[layer.name][token] for token in chosen]
        values = [tensor[list(chosen)].numpy() for tensor in _values(sums)]
        table = token_rows(self.network.name, layer.name, positions, self.grid, *values)
        return table.assign(index=layer.index, depth=layer.depth)[LOCALIZATION]

    def summary(self, sums: BatchMeans) -> Iterator[tuple]:
        parts = np.array(places(self.grid))
        present = [place for place in PLACES if place in parts]
        among = [torch.from_numpy(parts == place) for place in present]

        def by_place(cka: Tensor) -> Tensor:
            difference = own_minus_rest(cka)
            return torch.stack([difference[..., chosen].nanmean(-1) for chosen in among], dim=-1)

        for layer, of_layer in self.by_layer(sums):
            values, errors = of_layer.compute(by_place)
            for row in zip(present, values.tolist(), errors.tolist()):
                yield self.network.name, layer.name, layer.index, layer.depth, *row

    def undefined(self, sums: BatchMeans) -> Iterator[str]:
        tokens, patches = undefined(sums.mean())
        why = "do not vary within any batch, so their CKA is undefined; own_minus_rest leaves them out"
        if patches.any():
            yield f"input patches {_listed([self._patch(j) for j in _where(patches[0])])} of {self.network.name} {why}"
        for layer, missing in zip(self.layers, tokens):
            if missing.any():
                listed = _listed([self.positions[layer.name][t] for t in _where(missing)])
                yield f"tokens {listed} of {self.network.name}, layer {layer.name!r}, {why}"

    def _patch(self, number: int) -> Grid:
        return divmod(number, self.grid[1])


def _values(sums: BatchMeans) -> tuple[Tensor, Tensor, Tensor]:
    """CKA of tokens and patches (t, j), its standard error, and 1 where it is too skewed for an interval."""
    cka, se = sums.compute()
    return cka, se, skewed(cka, sums, lambda hsics: (hsics[..., :-1, -1:], hsics[..., -1:, :-1])).byte()


def _where(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _listed(positions: Sequence[Grid]) -> str:
    named = ", ".join(map(str, positions[:LISTED]))
    return named if len(positions) <= LISTED else f"{named} and {len(positions) - LISTED} more"


def patch_grid(network: Network, layers: Sequence[Layer], finest: int = FINEST) -> Grid:
    """Rows and columns of patches that a network's images are cut into.

    They are those of the coarsest of its layers' grids; of one with more rows or columns than `finest`, as many as
    divide both the grid and the image, or the image alone.

    Raises:
        UsageError: the image cannot be cut so without a rest.
    """
    if finest < 2:
        raise UsageError(f"the finest grid of positions must be at least 2, got {finest}")
    rows, columns = min((grid_of(layer, network) for layer in layers), key=lambda grid: grid[0] * grid[1])
    _, height, width = network.input_size
    rows, columns = _coarser(rows, height, finest), _coarser(columns, width, finest)
    if height % rows or width % columns:
        raise UsageError(
            f"images of {height} x {width} cannot be cut into {rows} x {columns} patches, the smallest grid among "
            f"the layers of {network.name}; choose layers whose grid divides the image, or another image size"
        )
    return rows, columns


def _coarser(side: int, pixels: int, finest: int) -> int:
    """The side of a grid, or of a coarser one that divides it: half as fine as allowed at least, else of the image."""
    if side <= finest:
        return side
    for divided, least in ((math.gcd(side, pixels), finest // 2), (pixels, 1)):
        count = max(n for n in range(1, finest + 1) if divided % n == 0)
        if count >= least:
            break
    return count


def located(network: Network, layers: str | Sequence[str]) -> tuple[list[Layer], list[str]]:
    """The layers that have positions in the image, and the names of those of a preset that have none.

    Raises:
        UsageError: a layer that is asked for by name or pattern has none, or none of a preset has any.
    """
    layers_found = find_layers(network, layers)
    kept = [layer for layer in layers_found if _has_positions(layer, network)]
    left_out = [layer.name for layer in layers_found if layer not in kept]
    if not kept or (left_out and layers not in PRESETS):
        raise UsageError(
            f"layer {left_out[0]!r} of {network.name} has no positions in the image; localization needs maps or grids "
            "of tokens, such as the preset `blocks` has"
        )
    return kept, left_out


def _has_positions(layer: Layer, network: Network) -> bool:
    try:
        rows, columns = grid_of(layer, network)
    except UsageError:
        return False
    return rows * columns > 1


@study
def token_localization(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    layers: str | Sequence[str] = "blocks",
    finest: int = FINEST,
    tokens: Sequence[Grid] | None = None,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """CKA of every single token, or position of a map, with every input patch, in one pass over the images.

    Images, as they go into the network (normalised pixels), are cut into g x g patches that do not overlap, g x g
    being the coarsest grid among the layers, or a coarser one where that has more than `finest` rows or columns: a
    ViT's own patches, or cells of a ResNet's last map. A token is
    what an image has at one position, (n, d); minibatch CKA (see `layer_cka`) of it with each patch is a g x g map. CLS
    and other tokens before the grid have no place in the image and are left out. Of a map finer than the
    patches, the position nearest to each patch's centre is taken: row floor((i + 0.5) h / g) for patch row i.

    The paper shows chosen tokens of the last blocks; it does not say whether before or after the final norm
    (`layers=["blocks.11", "norm"]` has both). The summary over depth is not in the paper.

    Args:
        networks: one or more networks, modules or names; all see the same images.
        images: see `layer_cka`; None: 2,560 of the bundled sample.
        layers: a choice of `find_layers`, for all networks. A layer without positions (pooled vectors, windows) is an
            error if named; a preset leaves it out, and the protocol says so.
        finest: rows and columns of positions, at most. Memory grows with their fourth power: 8 bytes for each layer,
            pair of token and patch, and batch (up to 32 batches).
        tokens: (row, column) of tokens that the table lists where all would be over a million rows; None: the tokens
            of the paper.
        batch_size: images per minibatch, at least 4; the last short one is dropped. None: 256, or for few images
            fewer, see `layer_cka`. Memory grows with its square: 4 bytes for each pair of images and each patch.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: for each model, layer, index and depth, token_row and token_col on the layer's own grid, patch_row and
        patch_col on that of the patches, cka, se and skewed, see `layer_cka`.
        `summary`: own_minus_rest, CKA of a token with the patch at its place minus the mean over all other patches,
        averaged over interior, edge (without corners) and corner tokens: 1 would be perfect localization, 0 is
        none; and se, likewise. NaN where a patch or a token is the same in all images; the rest's
        mean is over patches that are defined, and `notices` list those that are not. Where all tokens would be over a
        million rows, the table lists some, and `arrays["localization"]` has all, see `Localization.arrays`.

    Raises:
        UsageError: a layer has no positions, or the image cannot be cut into such patches.

    Reference: paper section 5, Figures 9, 10 and D.1 to D.3.

    >>> import repsim as rs
    >>> images = rs.ImageSet("sample", images=16)
    >>> localization = rs.token_localization("vit_mini", images, layers=["blocks.11"], batch_size=8)
    >>> len(localization.table)  # 49 tokens with 49 patches
    2401
    """
    begun = begin(networks, images, most=MOST, layers=layers, batch_size=batch_size, usual=BATCH, over_batches=True)
    networks, count, size = begun.networks, len(begun.images), begun.batch_size
    places_of_networks = [located(network, layers) for network in networks]
    groups = min(GROUPS, max(count // min(size, count), 1)) if size >= FEWEST else GROUPS
    groups = groups if begun.images.groups is None else begun.images.groups.jackknife
    study = Localization(networks, [kept for kept, _ in places_of_networks], finest=finest, groups=groups)
    counts = sweep(begun.images, [study], batch_size=size, **pass_options)
    begun.notices.say(*study.undefined())
    result = study.result(counts, tokens)
    begun.notices.say(*too_skewed(result.table))
    if not study.listed:
        begun.notices.say("the table lists chosen tokens only; localization.npz has all tokens of all layers")
    left_out = {network.name: names for network, (_, names) in zip(networks, places_of_networks) if names}
    protocol = {"layers": layers, **result.protocol, "layers_without_positions": left_out}
    return begun.finished(replace(result, record={"protocol": protocol}), counts)
