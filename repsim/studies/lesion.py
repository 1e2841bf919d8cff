"""The loss of a trained network when a skip connection, a branch or a block is taken out at inference.

This is not the paper's Figure 8, which *trains* networks without the skip connections of one block; it needs
no training, and measures another quantity: how much the network relies on each connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError, one_of
from repsim.images.image_set import Batch, ImageSet
from repsim.measures.cka import GramRow, Grams, matched_hsic, matched_without_groups, normalise_matched
from repsim.measures.running import GROUPS, BatchMeans, Moments, kept
from repsim.networks.hooks import capture
from repsim.networks.layers import Layer, find_layers
from repsim.networks.models import Network, evaluating
from repsim.networks.residual_sums import ResidualSum, blocks_without, find_sums, watch_sums
from repsim.networks.tokens import first_tensor
from repsim.networks.tracing import eagerly
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Summing
from repsim.passes.sweep import Passing, check_batch_size, forward, over_batches, require_finite
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.studies.similarity import grams_of
from repsim.tables import LESION

MOST = 512
"""Images of the bundled sample, where none are given."""
BATCH = 64
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
QUANTITY = "removed at inference from the trained network (the paper trains networks without them)"
REMOVE = ("skip", "branch", "skips", "block")
NOTHING = "nothing"


@dataclass(frozen=True)
class Lesion:
    """The connections that are removed, all in one block."""

    removed: str
    """`attention skip`, `mlp branch`, `unit skip` ...; `all skips` or `block` (all its branches); or `nothing`."""
    block: int
    kept: dict[ResidualSum, Literal["skip", "branch"]]
    """The part that is left of each sum."""

    @property
    def name(self) -> tuple[str, int]:
        return self.removed, self.block


def find_lesions(sums: Sequence[ResidualSum], remove: Sequence[str], blocks: Sequence[int] | None) -> list[Lesion]:
    """Every lesion of the asked-for kinds, block by block; `nothing` first.

    Where a block has one sum, removing its branch is removing the block, and `block` is only listed if `branch` is not.
    """
    present = sorted({residual_sum.block for residual_sum in sums})
    for block in blocks or ():
        if block not in present:
            raise UsageError(f"there is no block {block} with residual sums; they are {', '.join(map(str, present))}")
    for kind in remove:
        if kind not in REMOVE:
            raise one_of("kind of lesion", kind, REMOVE)
    lesions = [Lesion(NOTHING, -1, {})]
    for block in present if blocks is None else dict.fromkeys(blocks):
        inside = [residual_sum for residual_sum in sums if residual_sum.block == block]
        for kind, left in (("skip", "branch"), ("branch", "skip")):
            if kind in remove:
                lesions += [
                    Lesion(f"{residual_sum.sublayer} {kind}", block, {residual_sum: left}) for residual_sum in inside
                ]
        for kind, one, name, left in (("skips", "skip", "all skips", "branch"), ("block", "branch", "block", "skip")):
            if kind in remove and (len(inside) > 1 or one not in remove):
                lesions.append(Lesion(name, block, dict.fromkeys(inside, left)))
    return lesions


@kept
class _Sums(NamedTuple):
    outputs: Moments
    """Agreement, KL divergence and accuracy of each image."""
    cka: BatchMeans
    """CKA of the layers after the lesion with the same layers of the untouched network."""


class _Trying(Summing):
    """The sums of every lesion, filled by a pass."""

    def __init__(self, lesions: int, layers: Sequence[Layer]) -> None:
        self.sums = [_Sums(Moments(), BatchMeans(normalise_matched)) for _ in range(lesions)]
        self.layers = layers

    def takes(self, size: int, batches: int) -> Takes:
        values = len(self.sums) * 3 * len(self.layers)
        return Takes(
            sums=min(GROUPS, batches) * 8 * values,
            batch=2 * grams_of(self.layers, size),
            tables=100 * values,
            waiting=4 * size * sum(layer.numel for layer in self.layers),
        )


@study
@torch.no_grad()
def lesions(
    network: AnyNetwork,
    images: AnyImages = None,
    *,
    remove: str | Sequence[str] = REMOVE,
    blocks: Sequence[int] | None = None,
    layers: str | Sequence[str] = "blocks",
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """Remove skip connections, branches and blocks one at a time, and measure changes of outputs and layers.

    Without its skip a sum is the branch alone, without its branch the skip alone; without a block, only its skip
    connections (with their projections) are left. A different quantity from the paper's Figure 8.

    Args:
        network: a network, module or name.
        images: see `layer_cka`; None: 512 of the bundled sample.
        remove: one or several of `skip`, `branch` (of each sum), `skips` (all of a block, as the paper's networks lack
            them), `block` (all branches of a block).
        blocks: numbers of the blocks to try; None: all.
        layers: a choice of `find_layers`: the layers where the network is compared with the untouched one.
        batch_size: images per minibatch of CKA; a last short one is dropped. None: 64, or for few images fewer, see
            `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: one row per lesion and layer that runs after it: agreement (share of images whose prediction stays), kl
        (nats, of the untouched network's probabilities from the other's, mean over images), accuracy, and the layer's
        CKA with itself in the untouched network, with its jackknife standard error over minibatches.

    Raises:
        UsageError: no residual sums, no such block or kind, no layer that runs after a lesion.
        RepsimError: a lesion makes activations or outputs NaN or infinite.

    >>> import repsim as rs
    >>> images = rs.ImageSet("sample", images=16)
    >>> harm = rs.lesions("vit_mini", images, remove=["block"], blocks=[10], batch_size=8)
    >>> harm.table[["removed", "block", "layer"]].values.tolist()[-2:]
    [['block', 10, 'blocks.10'], ['block', 10, 'blocks.11']]
    """
    begun = begin(network, images, most=MOST, layers=layers, batch_size=batch_size, usual=BATCH, over_batches=True)
    (network,), images = begun.networks, begun.images
    remove = [remove] if isinstance(remove, str) else remove
    sums = find_sums(network)
    tried = find_lesions(sums, remove, blocks)
    compared = find_layers(network, layers)
    check_batch_size(begun.batch_size)
    surgery = _Surgery(network, compared, tried)
    trying = _Trying(len(tried), compared)
    with evaluating(network.module):
        logits = first_tensor(
            network.module(torch.zeros(1, *network.input_size, device=network.device, dtype=network.dtype))
        )
    scores, reason = _scores(network, logits), _without_accuracy(network, images, logits)
    own = None if reason else images.labels
    begun.notices.say(*blocks_without(network, sums), *([reason] if reason else []))
    with evaluating(network.module), surgery.watch(sums):

        def run_batch(batch: Batch) -> list[Any]:
            inputs = batch.inputs[network.transform].to(network.device)
            logits, whole = surgery.run(tried[0], inputs, batch)
            values = [logits, whole]
            labels = None if own is None else torch.as_tensor(own[batch.positions.numpy()]).to(logits.device)
            for lesion, sums_of_lesion in zip(tried, trying.sums):
                changed, rows = surgery.run(lesion, inputs, batch)
                values.append(changed)
                sums_of_lesion.outputs.update(
                    _outputs(logits, changed, labels) if scores else torch.full((len(inputs), 3), torch.nan)
                )
                compared = [whole[name] for name in rows], [list(rows.values())]
                without = partial(matched_without_groups, *compared)
                sums_of_lesion.cka.update(matched_hsic(*compared, len(inputs)), batch.group, without)
            return values

        counts = over_batches(images, [network], run_batch, [trying], batch_size=begun.batch_size, **pass_options)
    options = {"remove": list(remove), "blocks": None if blocks is None else list(blocks), "layers": layers}
    protocol = {"quantity": QUANTITY, **options, "batch_size": counts.batch_size}
    return begun.result("lesion", _table(network, tried, compared, surgery.after, trying.sums), counts, protocol)


def reached_after(
    network: Network, tried: Sequence[Lesion], layers: Sequence[Layer]
) -> dict[tuple[str, int], list[str]]:
    """For each lesion, the names of the layers that run after the first of its sums, in the order in which they run.

    Raises:
        UsageError: no layer runs after a lesion.
    """
    order: list[str | ResidualSum] = []
    sums = list(dict.fromkeys(residual_sum for lesion in tried for residual_sum in lesion.kept))

    def met(residual_sum: ResidualSum, skip: Tensor, branch: Tensor) -> None:
        order.append(residual_sum)

    with (
        evaluating(network.module),
        eagerly(network),
        network.seeded(),
        watch_sums(network, sums, met),
        capture(network, layers, lambda layer, x: order.append(layer.name)),
    ):
        network.module(torch.zeros(1, *network.input_size, device=network.device, dtype=network.dtype))
    layers_after = {}
    for lesion in tried:
        first = min((order.index(residual_sum) for residual_sum in lesion.kept), default=-1)
        layers_after[lesion.name] = [item for item in order[first + 1 :] if isinstance(item, str)]
        if not layers_after[lesion.name]:
            names = ", ".join(layer.name for layer in layers)
            raise UsageError(
                f"none of the layers to compare ({names}) runs {what_is_gone(lesion)}; choose other layers or blocks"
            )
    return layers_after


class _Surgery:
    """Runs a network with a lesion, and takes the Grams of the layers that run after it."""

    def __init__(self, network: Network, layers: Sequence[Layer], tried: Sequence[Lesion]) -> None:
        self.network, self.layers = network, layers
        self.after = reached_after(network, tried, layers)
        self.seen = Seen(network)
        self.lesion = tried[0]
        self.grams = Grams()

    @contextmanager
    def watch(self, sums: Sequence[ResidualSum]) -> Iterator[None]:
        """While active, the network can be run with lesions of these sums."""
        with self.seen.lesions(sums, self._cut), self.seen.layers(self.layers, self._reduce):
            yield

    def _cut(self, residual_sum: ResidualSum, skip: Tensor, branch: Tensor) -> Tensor | None:
        left = self.lesion.kept.get(residual_sum)
        return None if left is None else skip if left == "skip" else branch

    def _reduce(self, layer: Layer, activation: Tensor) -> GramRow | None:
        if layer.name not in self.after[self.lesion.name]:
            return None
        return self.grams(activation)

    def run(self, lesion: Lesion, inputs: Tensor, batch: Batch) -> tuple[Any, dict[str, GramRow]]:
        """The output, None if it holds no tensor, and the Gram of each layer after the lesion."""
        self.lesion = lesion
        output = first_tensor(forward(self.network, inputs, batch, [self.seen]))
        reason = what_is_gone(lesion)
        rows = {name: self.seen[name] for name in self.after[lesion.name]}
        taken = {f"output ({reason})": output} if output is not None else {}
        taken |= {f"{name} ({reason})": row.norm for name, row in rows.items()}
        require_finite(list(taken.values()), [(self.network.name, name) for name in taken], batch)
        return output, rows


def what_is_gone(lesion: Lesion) -> str:
    """A lesion in words."""
    if not lesion.kept:
        return "with nothing removed"
    return f"after the {lesion.removed} of block {lesion.block} is removed"


def _scores(network: Network, logits: Tensor | None) -> bool:
    """Whether the outputs are scores of classes."""
    headless = getattr(network.module, "num_classes", None) == 0
    return logits is not None and logits.ndim == 2 and logits.shape[1] > 1 and not headless


def _without_accuracy(network: Network, images: ImageSet, logits: Tensor | None) -> str:
    """Why there is no accuracy, if the network's outputs are not scores of the images' classes."""
    if logits is None or not _scores(network, logits):
        return f"the outputs of {network.name} are not scores of classes, so there is no agreement, KL or accuracy"
    if images.source.labels is None:
        return "the images have no labels, so there is no accuracy"
    known = len(np.unique(images.source.labels))
    if known != logits.shape[1]:
        outputs = f"{network.name} has {logits.shape[1]} outputs"
        return f"the images have {known} classes and {outputs}, so there is no accuracy"
    return ""


def _outputs(logits: Tensor, changed: Tensor, labels: Tensor | None) -> Tensor:
    """Agreement, KL divergence and accuracy of each image, (n, 3)."""
    before, after = logits.double().log_softmax(1), changed.double().log_softmax(1)
    agreement = (before.argmax(1) == after.argmax(1)).double()
    kl = (before.exp() * (before - after)).sum(1)
    right = torch.full_like(kl, torch.nan) if labels is None else (after.argmax(1) == labels).double()
    return torch.stack([agreement, kl, right], 1)


def _table(
    network: Network,
    tried: Sequence[Lesion],
    layers: Sequence[Layer],
    after: Mapping[tuple[str, int], list[str]],
    sums: Sequence[_Sums],
) -> pd.DataFrame:
    by_name = {layer.name: layer for layer in layers}
    parts = []
    for lesion, sums_of_lesion in zip(tried, sums):
        agreement, kl, accuracy = sums_of_lesion.outputs.mean().tolist()
        cka, se = sums_of_lesion.cka.compute()
        parts.append(
            pd.DataFrame(
                {
                    "model": network.name,
                    "removed": lesion.removed,
                    "block": lesion.block,
                    "agreement": agreement,
                    "kl": kl,
                    "accuracy": accuracy,
                    "layer": after[lesion.name],
                    "index": [by_name[name].index for name in after[lesion.name]],
                    "depth": [by_name[name].depth for name in after[lesion.name]],
                    "cka": cka[0].cpu().numpy(),
                    "cka_se": se[0].cpu().numpy(),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)[LESION]
