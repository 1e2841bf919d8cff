"""Every study on the bundled networks and a few images: tests of facts that hold for all studies use this list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

import repsim as rs
from repsim.networks.layers import find_layers
from repsim.passes.study import Study
from repsim.studies.attention import AttentionDistance
from repsim.studies.compare import Comparison
from repsim.studies.heads import HeadSimilarity, head_layer, lower_layers
from repsim.studies.localization import Localization, located
from repsim.studies.residual import ResidualNorms
from repsim.studies.sensitivity import Sensitivity
from repsim.studies.similarity import LayerSimilarity, MatchedSimilarity

Numbers = dict[str, np.ndarray]
MEASURED = ["cka", "rsa-spearman", "procrustes"]
COARSE = {"accuracy": 0.05}
"""Absolute tolerances for 64 images; the ridge is chosen on few images, where a tie may fall either way."""


@dataclass(frozen=True)
class Case:
    """A study's function on a ViT, a ResNet and images, and the command with the same options."""

    result: Callable[..., rs.Result]
    tables: str
    """Names of the files, the main table first."""
    numbers: str
    """Columns that are compared; a column of another table than the main one is written `table.column`."""
    command: str
    study: Callable[[rs.Network, rs.Network], Study] | None = None
    """The study that a single sweep feeds; None for a study that needs several sweeps."""
    gradients: bool = False
    """Whether batches must go through networks whole."""

    def __call__(self, vit: rs.Network, resnet: rs.Network, images: rs.ImageSet, **options) -> Numbers:
        result = self.result(vit, resnet, images, **{"batch_size": 32, **options})
        columns = (name.rpartition(".") for name in self.numbers.split())
        return {column: getattr(result, table or "table")[column].to_numpy(float) for table, _, column in columns}


def assert_near(found: Numbers, expected: Numbers, share: float) -> None:
    """Check that columns deviate by a small share of their spread, and lack the same values.

    The root mean square of a column's deviations may be `share` of its standard deviation over rows, and one deviation
    five times that. Accuracy and agreement are counts of few images, of which a few may change sides.
    """
    for column, values in expected.items():
        known = np.isfinite(values)
        assert known.any() and np.array_equal(known, np.isfinite(found[column])), column
        apart, spread = np.abs(found[column] - values)[known], values[known].std()
        if column in ("accuracy", "agreement"):
            assert apart.max() <= 0.1, (column, apart.max())
        else:
            rms = np.sqrt(np.square(apart).mean())
            assert rms <= share * spread and apart.max() <= 5 * share * spread, (column, rms, apart.max(), spread)


def gap(vit: rs.Network) -> rs.Network:
    return rs.load_model("vit_mini_gap", device=vit.device)


OF_A_VIT: dict[str, Callable[[rs.Network, Any], pd.DataFrame]] = {
    "cka": lambda net, images: rs.layer_cka(net, images, batch_size=8).table,
    "attention": lambda net, images: rs.attention_distance(net, images).table,
    "residual": lambda net, images: rs.residual_norms(net, images).table,
    "receptive": lambda net, images: rs.receptive_fields(net, images, channels=2).table,
    "lesions": lambda net, images: rs.lesions(net, images, blocks=[1], batch_size=8).table,
}
"""Tables of a single small ViT, from any library and in any wrapper."""


def heads(vit: rs.Network, resnet: rs.Network) -> Study:
    return HeadSimilarity([vit, resnet], *head_layer(vit), lower_layers(resnet))


def probes(vit: rs.Network, resnet: rs.Network, images: rs.ImageSet, **options) -> rs.Result:
    train = rs.ImageSet("sample", split="train", images=200, seed=images.seed)
    few = {"layers": "blocks.(3|11)", "shots": [3], "seeds": 1, "tokens": False, "neighbours": 40}
    return rs.linear_probes(vit, images, train=train, **few, **options)


STUDIES = {
    "cka": Case(
        lambda vit, resnet, images, **options: rs.layer_cka([vit, resnet], images, **options),
        "cka",
        "cka se",
        "cka --model-b resnet_mini",
        lambda vit, resnet: LayerSimilarity([resnet, vit], [find_layers(n) for n in (resnet, vit)]),
    ),
    "compare": Case(
        lambda vit, resnet, images, **options: rs.compare([vit, resnet], images, measures=MEASURED, **options),
        "compare networks networks_map",
        "value se",
        "compare vit_mini resnet_mini --measure cka --measure rsa-spearman --measure procrustes",
        lambda vit, resnet: Comparison([resnet, vit], [find_layers(n)[-1:] for n in (resnet, vit)], MEASURED),
    ),
    "sensitivity": Case(
        lambda vit, resnet, images, **options: rs.sensitivity(
            vit, images, layers="blocks.(3|11)", measures=["cka", "procrustes"], **options
        ),
        "sensitivity",
        "value",
        "sensitivity vit_mini --layers blocks.(3|11) --measure cka --measure procrustes",
        lambda vit, resnet: Sensitivity(vit, find_layers(vit, "blocks.(3|11)"), ["cka", "procrustes"], "pooled"),
    ),
    "matched": Case(
        lambda vit, resnet, images, **options: rs.matched_cka([vit, gap(vit)], images, layers="blocks.[38]", **options),
        "matched",
        "cka se",
        "cka --model-a vit_mini --model-b vit_mini_gap --matched --layers blocks.[38]",
        lambda vit, resnet: MatchedSimilarity([vit, gap(vit)], [find_layers(vit, "blocks.[38]")] * 2),
    ),
    "attention": Case(
        lambda vit, resnet, images, **options: rs.attention_distance(vit, images, maps=2, **options),
        "attention",
        "distance_px distance_px_se entropy cls_share",
        "attention --maps 2",
        lambda vit, resnet: AttentionDistance(vit),
    ),
    "heads": Case(
        lambda vit, resnet, images, **options: rs.head_similarity([vit, resnet], images, seed=images.seed, **options),
        "heads heads_correlation",
        "cka cka_se",
        "heads",
        heads,
    ),
    "residual": Case(
        lambda vit, resnet, images, **options: rs.residual_norms([vit, resnet], images, **options),
        "residual residual_outliers",
        "ratio ratio_median cos_output cos_branch",
        "residual --model vit_mini --model resnet_mini",
        lambda vit, resnet: ResidualNorms([resnet, vit]),
    ),
    "lesion": Case(
        lambda vit, resnet, images, **options: rs.lesions(vit, images, blocks=[5], **options),
        "lesion",
        "agreement kl accuracy cka",
        "lesion --blocks 5",
    ),
    "localize": Case(
        lambda vit, resnet, images, **options: rs.token_localization([vit, resnet], images, **options),
        "localization localization_summary",
        "summary.own_minus_rest summary.se",
        "localize --model vit_mini --model resnet_mini",
        lambda vit, resnet: Localization([resnet, vit], [located(n, "blocks")[0] for n in (resnet, vit)]),
    ),
    "probe": Case(
        probes,
        "probe probe_summary neighbours",
        "summary.accuracy neighbours.soft_loss",
        "probe --model vit_mini --layers blocks.(3|11) --train-images 200 --shots 3 --seeds 1 "
        "--no-tokens --neighbours 40",
    ),
    "receptive": Case(
        lambda vit, resnet, images, **options: rs.receptive_fields(
            resnet, images, layers="layer1..", channels=4, seed=images.seed, **{**options, "batch_size": 8}
        ),
        "receptive",
        "radius50_px centre_share",
        "receptive --model resnet_mini --layers layer1.. --channels 4 --batch-size 8",
        gradients=True,
    ),
    "receptive_proxy": Case(
        lambda vit, resnet, images, **options: rs.receptive_fields(
            vit, images, layers="blocks.[05]", proxy=True, seed=images.seed, **{**options, "batch_size": 8}
        ),
        "receptive_proxy",
        "radius50_px centre_share",
        "receptive --layers blocks.[05] --proxy --batch-size 8",
        gradients=True,
    ),
}
SWEPT = {name: case.study for name, case in STUDIES.items() if case.study}
