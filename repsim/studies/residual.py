"""Skip connections against branches, token by token (paper, Figures 7, E.1 and E.2)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from typing_extensions import Unpack

from repsim.errors import UsageError
from repsim.images.image_set import Batch, Counts
from repsim.measures.residual import SkipStatistics, skip_statistics
from repsim.measures.running import GROUPS, ImageMeans, Moments, Quantiles, Together, kept
from repsim.networks.models import Network
from repsim.networks.residual_sums import ResidualSum, blocks_without, find_sums
from repsim.passes.plan import Takes
from repsim.passes.seen import Seen
from repsim.passes.study import Study
from repsim.passes.sweep import Passing, require_finite
from repsim.studies.results import AnyImages, AnyNetwork, Result, begin, study
from repsim.tables import OUTLIERS, RESIDUAL

MOST = 1000
"""Images of the bundled sample, where none are given."""
BATCH = 50
"""Images in a batch; fewer if images are few, see `passes.sweep.fitting`."""
OUTLIER = 5.0
"""Times the image's median norm from which a token counts as an outlier."""


class ResidualNorms(Study):
    """The study: norm ratio and cosines of every residual sum and token."""

    def __init__(self, networks: Sequence[Network], *, outlier: float = OUTLIER) -> None:
        self.networks, self.outlier = networks, outlier
        self.residual_sums = [find_sums(network) for network in networks]
        for network, sums in zip(networks, self.residual_sums):
            for residual_sum in sums:
                if not residual_sum.reading.is_tokens:
                    why = f": {residual_sum.reading.unknown}" if residual_sum.reading.unknown else ""
                    raise UsageError(
                        f"the residual sum {residual_sum.name!r} of {network.name} is neither a row of tokens nor "
                        f"a map: it is {residual_sum.reading.shape} for one image{why}"
                    )
        self.sums: dict[tuple[int, str], _Sums] = {}

    def watch(self, index: int, network: Network, seen: Seen) -> AbstractContextManager[None]:
        return seen.sums(self.residual_sums[index], self._reduce)

    def _reduce(self, residual_sum: ResidualSum, skip: Tensor, branch: Tensor) -> SkipStatistics:
        tokens = (residual_sum.reading.tokens(residual_sum.reading.read(x)) for x in (skip, branch))
        return skip_statistics(*(t.float() if t.dtype.itemsize < 4 else t for t in tokens))

    def takes(self, size: int, batches: int) -> Takes:
        all_sums = [residual_sum for sums in self.residual_sums for residual_sum in sums]
        tokens = sum(
            math.prod(residual_sum.reading.shape[axis] for axis in residual_sum.reading.positions)
            for residual_sum in all_sums
        )
        fields, bins = len(SkipStatistics._fields), 2 * Quantiles.OCTAVES * Quantiles.PER_OCTAVE + 2
        widest = max(residual_sum.reading.numel for residual_sum in all_sums)
        return Takes(
            sums=tokens * (4 * bins + 16 * (fields + 2) + 8 * GROUPS),
            batch=size * (4 * fields * tokens + 4 * 4 * widest),
            tables=tokens * (400 + 4 * 8 * bins // max(len(all_sums), 1)),
            less="fewer networks at a time",
        )

    def update(self, seen: Sequence[Seen], batch: Batch) -> None:
        for index, (network, mapping) in enumerate(zip(self.networks, seen)):
            norms = [statistics.skip_norm + statistics.branch_norm for statistics in mapping.values()]
            require_finite(norms, [(network.name, name) for name in mapping], batch)
            for residual_sum in self.residual_sums[index]:
                statistics = mapping[residual_sum.name]
                empty = _Sums(Moments(), Quantiles(), Moments(), Moments(), ImageMeans())
                sums = self.sums.setdefault((index, residual_sum.name), empty)
                sums.means.update(torch.stack(statistics, 1))
                sums.ratios.update(statistics.ratio)
                times = statistics.skip_norm / statistics.skip_norm.median(1, keepdim=True).values
                sums.times.update(times)
                sums.outlying.update(times > self.outlier)
                sums.grouped.update(statistics.ratio, batch.group)

    def result(self, counts: Counts) -> Result:
        outliers = self.outliers()
        protocol = {"outlier": self.outlier, "outlier_tokens": len(outliers), "batch_size": counts.batch_size}
        return Result("residual", self.table(), {"protocol": protocol}, {"residual_outliers": outliers})

    def table(self) -> pd.DataFrame:
        """One row per residual sum and token."""
        parts = []
        for rows, sums in self._each():
            values = dict(zip(SkipStatistics._fields, sums.means.mean().cpu().numpy()))
            median = sums.ratios.compute().cpu().numpy()
            parts.append(rows.assign(**values, ratio_se=sums.ratio_se().cpu().numpy(), ratio_median=median))
        return pd.concat(parts, ignore_index=True)[RESIDUAL]

    def grouped(self) -> list[ImageMeans]:
        """Ratios of the tokens of each residual sum, side by side as many as the table has rows."""
        return [sums.grouped for _, sums in self._each()]

    def mean_ratios(self, table: pd.DataFrame) -> list[dict[str, Any]]:
        """The mean ratio of each network in the table, its standard error and degrees of freedom, for `run.json`."""
        sums, means = Together(self.grouped()), []
        for model, rows in table.groupby("model", sort=False):
            ratio, se = (number.item() for number in sums.compute(mean_ratio(rows)))
            if math.isfinite(ratio):
                error = None if math.isnan(se) else se
                means.append({"model": model, "ratio": ratio, "se": error, "df": sums.groups - 1})
        return means

    def outliers(self) -> pd.DataFrame:
        """Tokens whose norm on the skip connection is over `outlier` times the median of their image, in some image."""
        parts = []
        for rows, sums in self._each():
            share, times = sums.outlying.mean().cpu().numpy(), sums.times.mean().cpu().numpy()
            parts.append(rows.assign(share=share, times_median=times)[share > 0])
        return pd.concat(parts, ignore_index=True)[OUTLIERS]

    def _each(self) -> Iterator[tuple[pd.DataFrame, _Sums]]:
        for index, (network, own) in enumerate(zip(self.networks, self.residual_sums)):
            for residual_sum in own:
                sums = self.sums[index, residual_sum.name]
                tokens = token_names(network, residual_sum, sums.times.mean().numel())
                at = {
                    "layer": residual_sum.layer,
                    "depth": residual_sum.depth,
                    "block": residual_sum.block,
                    "sublayer": residual_sum.sublayer,
                }
                place = {"model": network.name, **at}
                yield pd.DataFrame({**place, "token": tokens}), sums


@kept
class _Sums(NamedTuple):
    means: Moments
    ratios: Quantiles
    times: Moments
    outlying: Moments
    grouped: ImageMeans
    """Ratios."""

    def ratio_se(self) -> Tensor:
        return self.grouped.se(self.means)[SkipStatistics._fields.index("ratio")]


def mean_ratio(rows: pd.DataFrame) -> Callable[[list[Tensor]], Tensor]:
    """The mean over residual sums, each a mean over its tokens, of some rows of a study's table, from their ratios.

    Args:
        rows: of the table, with their numbers in it; those without a ratio do not count.

    Returns:
        A function of the means of `ResidualNorms.grouped`.
    """
    rows = rows[rows["ratio"].notna()]
    ratios = rows.groupby(["block", "sublayer"])["ratio"]
    numbers = torch.from_numpy(rows.index.to_numpy(copy=True))
    weights = torch.from_numpy(1 / ratios.transform("size").to_numpy(float))
    return lambda means: torch.cat(means).cpu()[numbers] @ weights / weights.sum()


def token_names(network: Network, residual_sum: ResidualSum, count: int) -> np.ndarray:
    """`cls` or `prefix0` ... for tokens before the grid, then the number of the position, row by row."""
    prefix = [f"prefix{i}" for i in range(residual_sum.reading.prefix)]
    if residual_sum.reading.cls:
        prefix[0] = "cls"
    return np.array([*prefix, *map(str, range(count - len(prefix)))])


@study
def residual_norms(
    networks: AnyNetwork | Sequence[AnyNetwork],
    images: AnyImages = None,
    *,
    outlier: float = OUTLIER,
    batch_size: int | None = None,
    **pass_options: Unpack[Passing],
) -> Result:
    """Norm ratio and cosines of skip connection z and branch f(z) for every residual sum and token.

    Both are taken as the network adds them: z after its projection where it has one, f after LayerScale; a ResNet
    unit before its last activation. In a map every position is a token, normed over channels.

    Args:
        networks: one, or several that see the same images.
        images: see `layer_cka`; None: 1,000 of the bundled sample.
        outlier: how many times the median norm (over the tokens of an image, on the skip connection) makes an outlier.
        batch_size: images per forward pass; a last short one is dropped. None: 50, or fewer if images are few, see
            `layer_cka`.
        pass_options: see `repsim.passes.sweep.Passing`.

    Returns:
        `table`: model, layer, depth, block, sublayer, token, ratio, ratio_se, ratio_median, cos_output, cos_branch,
        skip_norm, branch_norm: means over images of ratio (from 0; infinite where a branch adds nothing to some image),
        cosines (-1 to 1) and norms, the ratio's standard error over images, and its median (to about 1 %, see
        `Quantiles`). `outliers`: model, layer, depth, block, sublayer, token, share (of images), times_median: tokens
        of outlying norm.

    Raises:
        UsageError: a network has no residual sums that can be found.

    Reference: paper section 5, Figure 7; appendix E. Means of ratios, not ratios of means: the paper does not say.

    >>> import repsim as rs
    >>> ratios = rs.residual_norms("vit_mini", rs.ImageSet("sample", images=16), batch_size=8)
    >>> len(ratios.table)  # two sums in each of 12 blocks, 50 tokens
    1200
    """
    if not outlier > 1:
        raise UsageError(f"outlier must be more than 1, got {outlier}")
    begun = begin(networks, images, most=MOST, layers="blocks", batch_size=batch_size, usual=BATCH)
    study = ResidualNorms(begun.networks, outlier=outlier)
    for network, sums in zip(begun.networks, study.residual_sums):
        begun.notices.say(*blocks_without(network, sums))
    result = begun.swept(study, **pass_options)
    return dataclasses.replace(result, record={**result.record, "means": study.mean_ratios(result.table)})
