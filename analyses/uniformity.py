"""How alike are low and high layers? Trained and untrained, ViT and ResNet (paper, Figure 1).

    python analyses/uniformity.py            # about 3 minutes on 2 cores; writes figures/uniformity.csv

For each bundled network, the mean CKA between the lowest and the highest third of its layers
(`blocks`: stem and block outputs), over all 5,000 images of the bundled test sample in batches of 250,
with its jackknife standard error over batches; the difference ViT - ResNet from the same batches. The
same for untrained networks of the same shape, three seeds each, `zero_init_last=False` (timm otherwise starts
ResNet units as identities). The paper says that ViT layers are more uniform: a positive difference.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm import tqdm

import repsim as rs
from repsim.studies.similarity import LayerSimilarity
from repsim.sweep import sweep

FIGURES = Path(__file__).parent.parent / "figures"


def low_against_high(cka: Tensor) -> Tensor:
    """Mean CKA between the lowest and the highest third of the layers of one network."""
    third = math.ceil(len(cka) / 3)
    return cka[:third, -third:].mean()


def compare(vit: rs.Network, resnet: rs.Network, images: rs.ImageSet) -> dict[str, float]:
    layers = [rs.find_layers(network) for network in (vit, resnet)]
    study = LayerSimilarity([vit, resnet], layers)
    sweep(images, [study], batch_size=250, progress=tqdm if sys.stderr.isatty() else None)
    count = len(layers[0])
    statistics = {
        "vit": lambda cka: low_against_high(cka[:count, :count]),
        "resnet": lambda cka: low_against_high(cka[count:, count:]),
        "difference": lambda cka: low_against_high(cka[:count, :count]) - low_against_high(cka[count:, count:]),
    }
    row = {}
    for name, statistic in statistics.items():
        value, se = study.cka.jackknife(statistic)
        row |= {name: value.item(), f"{name}_se": se.item()}
    return row


def main() -> None:
    images = rs.ImageSet("sample")
    rows = [
        {"weights": "trained", "seed": 0, **compare(rs.load_model("vit_mini"), rs.load_model("resnet_mini"), images)}
    ]
    for seed in range(3):
        vit = rs.load_model("vit_mini", weights="random", seed=seed)
        resnet = rs.load_model("resnet_mini", weights="random", seed=seed, zero_init_last=False)
        rows.append({"weights": "random", "seed": seed, **compare(vit, resnet, images)})
    table = pd.DataFrame(rows)
    table.to_csv(FIGURES / "uniformity.csv", index=False, float_format="%.6g")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
