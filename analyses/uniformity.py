"""How alike are low and high layers? Trained and untrained, ViT and ResNet (beside the paper's Figure 1).

    python analyses/uniformity.py            # about 3 minutes on 2 cores; writes figures/uniformity.csv

For each bundled network, the number of Figure 1: the mean CKA between the lowest and the highest third of its layers
(`blocks`: stem and block outputs), over all 5,000 images of the bundled test sample in batches of 250,
with its jackknife standard error over batches; the difference ViT - ResNet from the same batches. The
same for untrained networks of the same shape, three seeds each, `zero_init_last=False` (timm otherwise starts
ResNet units as identities). The paper says that ViT layers are more uniform: a positive difference.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from tqdm import tqdm

import repsim as rs
from repsim.paper.measuring import rows_of
from repsim.paper.numbers import jackknifed, uniformity
from repsim.passes.sweep import sweep
from repsim.studies.similarity import LayerSimilarity
from repsim.tables import UNIFORMITY

FIGURES = Path(__file__).parent.parent / "figures"


def compare(vit: rs.Network, resnet: rs.Network, images: rs.ImageSet) -> dict[str, float]:
    study = LayerSimilarity([vit, resnet], [rs.find_layers(network) for network in (vit, resnet)])
    sweep(images, [study], batch_size=250, progress=tqdm if sys.stderr.isatty() else None)
    numbers = jackknifed(study.sums, uniformity([vit.name, resnet.name], rows_of(study)))
    row = {}
    for name, number in zip(("vit", "resnet", "difference"), numbers):
        row |= {name: number.value, f"{name}_se": number.se}
    return row


def main() -> None:
    images = rs.ImageSet("sample")
    trained = [rs.load_model(name) for name in ("vit_mini", "resnet_mini")]
    rows = [{"weights": "trained", "seed": 0, **compare(*trained, images)}]
    for seed in range(3):
        vit = rs.load_model("vit_mini", weights="random", seed=seed)
        resnet = rs.load_model("resnet_mini", weights="random", seed=seed, zero_init_last=False)
        rows.append({"weights": "random", "seed": seed, **compare(vit, resnet, images)})
    table = pd.DataFrame(rows)[UNIFORMITY]
    table.to_csv(FIGURES / "uniformity.csv", index=False, float_format="%.6g")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
