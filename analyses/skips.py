"""What training without the skip connections of one block does to a ViT (paper, Figure 8).

    python analyses/skips.py         # about 2 minutes on 2 cores; writes figures/skips/

The bundled `vit_mini_noskip1`, `..5` and `..9` were trained without the skip connections of one block
(`analyses/train_minis.py`). For each, within-network CKA (`blocks`: stem and block outputs) over the 5,000
images of the bundled test sample in batches of 250, and one number for what the paper shows: the mean CKA between
the layers before the block and those from it on, with its jackknife standard error over batches; the same
partition of the untouched `vit_mini` on the same batches; and their difference. The paper says that
representations before and after the block are dissimilar (a negative difference), and that accuracy falls by 4 %
for middle blocks. Accuracies and numbers of steps come from figures/training.csv.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
from torch import Tensor
from tqdm import tqdm

import repsim as rs
from repsim.minis import bundled
from repsim.plots.matrices import panel
from repsim.plots.style import Figure, look
from repsim.studies.similarity import LayerSimilarity
from repsim.sweep import sweep

FIGURES = Path(__file__).parent.parent / "figures"
UNTOUCHED = "vit_mini"


def across(cka: Tensor, block: int) -> Tensor:
    """Mean CKA between the layers before a block (the stem is layer 0) and those from its output on."""
    return cka[: block + 1, block + 1 :].mean()


def measure(networks: list[rs.Network], cut: list[int], images: rs.ImageSet) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per network without skips, and the CKA table of all layers."""
    study = LayerSimilarity(networks, [rs.find_layers(network) for network in networks])
    sweep(images, [study], batch_size=250, progress=tqdm if sys.stderr.isatty() else None)
    count = len(study.layers[0])

    def within(cka: Tensor, number: int) -> Tensor:
        return cka[number * count : (number + 1) * count, number * count : (number + 1) * count]

    rows = []
    for number, block in enumerate(cut, 1):
        statistics = {
            "across_block": lambda cka, k=number, b=block: across(within(cka, k), b),
            "untouched": lambda cka, b=block: across(within(cka, 0), b),
            "difference": lambda cka, k=number, b=block: across(within(cka, k), b) - across(within(cka, 0), b),
        }
        row = {"network": networks[number].name, "block": block}
        for name, statistic in statistics.items():
            value, se = study.cka.jackknife(statistic)
            row |= {name: value.item(), f"{name}_se": se.item()}
        rows.append(row)
    return pd.DataFrame(rows), LayerSimilarity.table([study])


def with_training(rows: pd.DataFrame) -> pd.DataFrame:
    """Steps and accuracy of each network, of the untouched one, and of the untouched one after as many steps."""
    trained = pd.read_csv(FIGURES / "training.csv").set_index("name")
    short = trained.test_accuracy.get("vit_mini_short")
    return rows.assign(
        steps=[trained.steps[name] for name in rows.network],
        full_steps=trained.steps[UNTOUCHED],
        seed=[trained.seed[name] for name in rows.network],
        test_accuracy=[trained.test_accuracy[name] for name in rows.network],
        untouched_accuracy=trained.test_accuracy[UNTOUCHED],
        untouched_accuracy_same_steps=short,
    )


def picture(rows: pd.DataFrame, table: pd.DataFrame) -> Figure:
    """Within-network CKA of every network, the block without skips marked, with steps, seed and accuracy."""
    names = [UNTOUCHED, *rows.network]
    low = min(0.0, table.cka.min())
    first = rows.iloc[0]
    with look():
        figure = Figure(figsize=(2.7 * len(names) + 0.6, 3.5))
        axes = figure.subplots(1, len(names))
        for ax, name in zip(axes, names):
            panel(table, name, name, ax=ax, low=low, high=1.0)
            ax.set(xlabel="layer", ylabel="layer" if name == UNTOUCHED else "")
            if name == UNTOUCHED:
                ax.set_title(f"untouched\naccuracy {first.untouched_accuracy:.2%}, {first.full_steps:,} steps")
                continue
            row = rows.set_index("network").loc[name]
            ax.set_title(
                f"without skips of block {int(row.block)}\naccuracy {row.test_accuracy:.2%}, {int(row.steps):,} steps"
            )
            for line in (ax.axhline, ax.axvline):
                line(row.block + 1, color="cyan", linewidth=0.8)
        figure.colorbar(axes[0].collections[0], ax=list(axes), label="CKA", fraction=0.02, pad=0.01)
        share = rows.steps.max() / first.full_steps
        cut = f"{share:.0%} of the untouched network's steps, {rows.seed.nunique()} seed"
        figure.suptitle(f"Within-network CKA, trained without the skips of one block (Figure 8; {cut})")
    return figure


def main() -> None:
    names = [name for name in bundled() if "_noskip" in name]
    if not names:
        raise SystemExit(
            "there are no networks without skips; train them first: python analyses/train_minis.py vit_mini_noskip5"
        )
    cut = [int(re.search(r"noskip(\d+)", name)[1]) for name in names]
    networks = [rs.load_model(name) for name in (UNTOUCHED, *names)]
    rows, table = measure(networks, cut, rs.ImageSet("sample"))
    rows = with_training(rows)
    out = FIGURES / "skips"
    out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(out / "skips.csv", index=False, float_format="%.6g")
    table = table[table.model_a == table.model_b]
    table.to_csv(out / "cka.csv", index=False, float_format="%.6g")
    with look():
        picture(rows, table).savefig(out / "skips.png")
    print(rows.round(4).T.to_string())


if __name__ == "__main__":
    main()
