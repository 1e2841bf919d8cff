"""A half-deep ViT, fine-tuning, and MLP-Mixer beside ViT and ResNet (paper, Figures G.1, G.2, H.1, H.2).

    python analyses/mixer.py          # about 2 minutes on 2 cores; writes figures/mixer/

On the 5,000 images of the bundled test sample, in batches of 250, with jackknife standard errors over batches:

- `mixer.csv`, `mixer.png`: CKA within `mixer_mini`, against `vit_mini` and against `resnet_mini`, all layers.
- `closeness.csv`: each Mixer layer's CKA with the ViT layer most like it, mean over the Mixer's layers; the same with
  the ResNet; and their difference, above 0 if the Mixer is closer to the ViT, as the paper finds.
- `sizes.csv`, `sizes.png`: CKA of all layers of `vit_micro`, half as deep, with those of `vit_mini_100pct`, trained as
  long.
- `fine_tuning.csv`, `fine_tuning.png`: CKA of each layer of `vit_mini` before and after fine-tuning to tell by which
  quarter turn an image is rotated (`vit_mini_rotation`); the paper finds the first four or five layers preserved.

A part whose networks have not been trained (`analyses/train_minis.py`) is left out with a word.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm import tqdm

import repsim as rs
from repsim.minis import bundled
from repsim.plots.style import Figure, save
from repsim.studies.similarity import LayerSimilarity
from repsim.sweep import sweep

FIGURES = Path(__file__).parent.parent / "figures"
OUT = FIGURES / "mixer"


def compared(names: list[str], images: rs.ImageSet) -> LayerSimilarity:
    """All layers of all networks with each other, from one pass."""
    networks = [rs.load_model(name) for name in names]
    study = LayerSimilarity(networks, [rs.find_layers(network) for network in networks])
    sweep(images, [study], batch_size=250, progress=tqdm if sys.stderr.isatty() else None)
    return study


def closeness(study: LayerSimilarity) -> pd.DataFrame:
    """Mean over the first network's layers of the CKA with the likest layer of the second, of the third; difference."""
    starts = [0]
    for layers in study.layers:
        starts.append(starts[-1] + len(layers))

    def best(cka: Tensor, other: int) -> Tensor:
        return cka[: starts[1], starts[other] : starts[other + 1]].max(1).values.mean()

    first, second, third = (network.name for network in study.networks)
    statistics: dict[str, Callable[[Tensor], Tensor]] = {
        f"{first} with {second}": lambda cka: best(cka, 1),
        f"{first} with {third}": lambda cka: best(cka, 2),
        "difference": lambda cka: best(cka, 1) - best(cka, 2),
    }
    rows = [(name, *(each.item() for each in study.cka.jackknife(of))) for name, of in statistics.items()]
    return pd.DataFrame(rows, columns=["comparison", "cka", "se"])


def keep(table: pd.DataFrame, name: str, figure: Figure) -> None:
    table.to_csv(OUT / f"{name}.csv", index=False, float_format="%.6g")
    save(figure, OUT / name)


def mixer(images: rs.ImageSet) -> None:
    study = compared(["mixer_mini", "vit_mini", "resnet_mini"], images)
    table = LayerSimilarity.table([study])
    pairs = [("mixer_mini", "mixer_mini"), ("vit_mini", "mixer_mini"), ("resnet_mini", "mixer_mini")]
    near = closeness(study)
    near.to_csv(OUT / "closeness.csv", index=False, float_format="%.6g")
    difference = near.set_index("comparison").loc["difference"]
    title = f"MLP-Mixer: closer to the ViT than to the ResNet by {difference.cka:.3f} ± {difference.se:.3f}"
    keep(table[table.model_a == "mixer_mini"], "mixer", rs.plots.panels(table, pairs, title=title))
    print(near.round(4).to_string(index=False))


def sizes(images: rs.ImageSet) -> None:
    study = compared(["vit_micro", "vit_mini_100pct"], images)
    table = LayerSimilarity.table([study])
    pairs = [("vit_micro", "vit_micro"), ("vit_mini_100pct", "vit_micro")]
    keep(
        table[table.model_a == "vit_micro"],
        "sizes",
        rs.plots.panels(table, pairs, title="Half the depth, as many steps"),
    )


def fine_tuning(images: rs.ImageSet) -> None:
    untrained = rs.load_model("vit_mini", weights="random")
    table = rs.matched_cka("vit_mini", ["vit_mini_rotation", untrained], images, batch_size=250)
    keep(table, "fine_tuning", rs.plots.matched(table).figure)
    print(table[table.model_b == "vit_mini_rotation"][["layer", "cka", "se"]].round(4).to_string(index=False))


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    images = rs.ImageSet("sample")
    parts = {"mixer_mini": mixer, "vit_micro": sizes, "vit_mini_rotation": fine_tuning}
    for name, part in parts.items():
        needed = {name, "vit_mini_100pct"} if part is sizes else {name}
        if missing := sorted(needed - set(bundled())):
            print(f"left out, not trained: {', '.join(missing)} (python analyses/train_minis.py {' '.join(missing)})")
        else:
            part(images)


if __name__ == "__main__":
    main()
