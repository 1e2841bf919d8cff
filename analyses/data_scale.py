"""The effect of more training images on similarity, probes, attention distance (paper, Figures 3 and 4, 12, 13a).

    python analyses/data_scale.py         # 6 minutes on 2 cores; writes figures/data_scale/

`analyses/train_minis.py` trains `vit_mini` and `resnet_mini` on 3, 10, 30 and 100 % of the training images (balanced,
nested, the same number of steps), and on all of them with a second seed. On the 5,000 images of the bundled test
sample:

- CKA of each layer with the same layer of a network that saw all images (`matched.csv`, batches of 250): a network of
  the other seed, which starts elsewhere, so that all sizes are on one footing and 100 % shows how much similarity
  chance alone leaves; and one of the same seed, which starts from the same weights. An untrained network is the other
  end.
- Ten-shot probes of every layer (`probe_summary.csv`, three draws), on CLS and on the mean of the tokens.
- Mean attention distance of every head (`attention.csv`).
- `data_scale.csv`: all three in the lowest, middle and highest third of the layers, over the number of images.

The paper finds lower layers very similar to those of the network trained on all of JFT-300M from 3 or 10 % of it on,
and that higher layers need more; intermediate representations that probe better with more data; and no local heads
in low blocks with too little of it. Networks that have not been trained are left out, and the pictures say so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from torch import Tensor
from tqdm import tqdm

import repsim as rs
from repsim.measures.intervals import crossed
from repsim.measures.running import Together
from repsim.networks.minis import bundled
from repsim.paper.measurements import Measurements
from repsim.paper.numbers import third
from repsim.plots.curves import over_depth
from repsim.plots.style import Figure, half_widths, look, save
from repsim.studies.similarity import MatchedSimilarity
from repsim.tables import DATA_SCALE, MATCHED, load_table

FIGURES = Path(__file__).parent.parent / "figures"
SIZES = (3, 10, 30, 100)
THIRDS = ("lowest", "middle", "highest")
SHOWN = {"vit_mini": "cls", "resnet_mini": "spatial_mean"}
"""The aggregation whose probe is drawn: the one that the network's own classifier sees."""
LABELS = {
    "other_seed": "CKA with another seed's 100 %",
    "same_seed": "CKA with the same seed's 100 %",
    "probe_accuracy": "accuracy of ten-shot probes",
    "attention_distance": "mean attention distance (px)",
}


def thirds(values: np.ndarray | Tensor) -> list:
    """Means over the lowest, middle and highest third of the last axis."""
    return [third(values, number) for number in range(3)]


def networks_of(architecture: str) -> dict[str, rs.Network]:
    """The trained networks of an architecture, and an untrained one: by size in per cent, `seed1`, `untrained`."""
    names = {str(size): f"{architecture}_{size}pct" for size in SIZES}
    names["seed1"] = f"{architecture}_100pct_seed1"
    trained = {key: rs.load_model(name) for key, name in names.items() if name in bundled()}
    return trained | {"untrained": rs.load_model(architecture, weights="random")}


def similarity(keys: list[str], study: MatchedSimilarity, quantity: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The matched table, and its thirds with their standard errors."""
    rows, df = [], study.sums.groups - 1
    for k, layers in enumerate(THIRDS):
        mean, se = study.sums.compute(lambda cka, k=k: thirds(cka)[k])
        rows += [(key, quantity, layers, *estimate, df) for key, estimate in zip(keys, zip(mean.tolist(), se.tolist()))]
    return MatchedSimilarity.table([study]).assign(df=df), summary(rows)


def probes(networks: dict[str, rs.Network], m: Measurements, shown: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The summary of all probes, and the thirds of the aggregation shown."""
    summaries, rows = [], []
    for key, network in networks.items():
        result = m.probes(key)
        summaries.append(result.summary[result.summary["model"] == network.name])
        sums = Together([right for place, right in m.right(key).items() if place.aggregation == shown])
        of_thirds = crossed(sums, lambda layers: torch.stack(thirds(torch.cat(layers, 1)), 1))
        rows += [(key, "probe_accuracy", *estimate) for estimate in zip(THIRDS, *(part.tolist() for part in of_thirds))]
    return pd.concat(summaries, ignore_index=True), summary(rows)


def attention(networks: dict[str, rs.Network], m: Measurements) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Every head of every network, the mean over heads of each block, and the thirds of the blocks."""
    tables, blocks, rows = [], [], []
    for key in networks:
        study = m.attention(key)
        tables.append(study.table())
        sums = Together(study.distances())
        mean, se = (part.numpy() for part in sums.compute(means))
        of_block = tables[-1].drop_duplicates("block")[["model", "block", "depth"]]
        df = sums.groups - 1
        blocks.append(of_block.assign(distance_px=mean, se=se, df=df))
        mean, se = sums.compute(lambda heads: torch.stack(thirds(means(heads))))
        rows += [(key, "attention_distance", *part, df) for part in zip(THIRDS, mean.tolist(), se.tolist())]
    return pd.concat(tables, ignore_index=True), pd.concat(blocks, ignore_index=True), summary(rows)


def means(heads: list[Tensor]) -> Tensor:
    """Means over the heads of each block."""
    return torch.stack([block.mean() for block in heads])


def summary(rows: list[tuple]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=DATA_SCALE[:-1])


def picture(
    architecture: str,
    networks: dict[str, rs.Network],
    tables: dict[str, pd.DataFrame],
    parts: pd.DataFrame,
    cut: str,
) -> Figure:
    """Draw a line per network over depth, and below a line per third of the layers over the number of images.

    Bars and bands are 95 % intervals over images, of probes also over draws of training images.
    """
    quantities = [name for name in LABELS if name in tables]
    names = {network.name: key for key, network in networks.items()}
    colours = dict(zip(map(str, SIZES), sns.color_palette("viridis_r", len(SIZES))))
    colours |= {"seed1": (0.8, 0.2, 0.2), "untrained": (0.6, 0.6, 0.6)}
    with look():
        figure = Figure(figsize=(2.5 * len(quantities) + 1, 5))
        axes = figure.subplots(2, len(quantities), squeeze=False)
        for (above, below), quantity in zip(axes.T, quantities):
            table, column = tables[quantity]
            for model in dict.fromkeys(table["model"]):
                key = names[model]
                over_depth(above, table[table["model"] == model], column, colours[key], label(key))
            above.set_ylabel(LABELS[quantity])
            for layers, colour in zip(THIRDS, sns.color_palette("colorblind", 3)):
                line = parts[(parts["quantity"] == quantity) & (parts["layers"] == layers)].set_index("network")
                sizes = [key for key in map(str, SIZES) if key in line.index]
                style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1, "label": f"{layers} third"}
                values = line.loc[sizes]
                half = half_widths(values["se"], values["df"])
                below.errorbar([600 * int(k) for k in sizes], values["value"], yerr=half, **style)
                if "seed1" in line.index:
                    again = {"color": colour, "marker": "x", "markersize": 4, "linestyle": ""}
                    below.plot([60_000], [line.loc["seed1", "value"]], **again)
            below.set(xscale="log", xlabel="training images (x: another seed)", ylabel=LABELS[quantity])
            below.set_xticks([600 * size for size in SIZES], [f"{600 * size:,}" for size in SIZES])
            below.set_xticks([], minor=True)
        for line in axes:
            seen = {name: handle for ax in line for handle, name in zip(*ax.get_legend_handles_labels())}
            line[-1].legend(seen.values(), seen, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        figure.suptitle(f"{architecture} over the number of training images ({cut})")
    return figure


def label(key: str) -> str:
    return {"seed1": "100 %, another seed", "untrained": "untrained"}.get(key, f"{key} %")


def note_on_training(architecture: str, networks: dict[str, rs.Network]) -> str:
    trained = load_table(FIGURES / "training.csv").set_index("name")
    steps = trained.loc[f"{architecture}_100pct", "steps"]
    missing = [label(key) for key in (*map(str, SIZES), "seed1") if key not in networks]
    without = f"; not trained: {', '.join(missing)}" if missing else ""
    return f"{steps:,} steps each, {steps / trained.loc[architecture, 'steps']:.0%} of the bundled network's{without}"


def measured(
    architecture: str, networks: dict[str, rs.Network], images: rs.ImageSet, train: rs.ImageSet
) -> tuple[dict[str, tuple[pd.DataFrame, str]], dict[str, pd.DataFrame], pd.DataFrame]:
    """The tables to draw, the tables to keep, and the thirds, from one pass."""
    m = Measurements(networks.__getitem__, images, train, progress=tqdm if sys.stderr.isatty() else None)
    for key in networks:
        m.probing(key, tokens=False)
    heads = [m.attention(key) for key in networks] if architecture == "vit_mini" else []
    references = {
        name: reference for name, reference in (("other_seed", "seed1"), ("same_seed", "100")) if reference in networks
    }
    compared = {
        reference: [key for key in networks if key not in (reference, "seed1")] for reference in references.values()
    }
    matched = {name: m.matched(reference, *compared[reference]) for name, reference in references.items()}
    m.run()
    drawn, kept, parts = {}, {}, []
    for name, reference in references.items():
        table, of_thirds = similarity(compared[reference], matched[name], name)
        parts.append(of_thirds)
        drawn[name] = (table.rename(columns={"model_b": "model"}), "cka")
    kept["matched"] = pd.concat([table.rename(columns={"model": "model_b"})[MATCHED] for table, _ in drawn.values()])
    summaries, of_thirds = probes(networks, m, SHOWN[architecture])
    kept["probe_summary"] = summaries
    parts.append(of_thirds)
    drawn["probe_accuracy"] = (summaries[summaries["aggregation"] == SHOWN[architecture]], "accuracy")
    if heads:
        kept["attention"], of_block, of_thirds = attention(networks, m)
        parts.append(of_thirds)
        drawn["attention_distance"] = (of_block, "distance_px")
    return drawn, kept, pd.concat(parts, ignore_index=True)


def main() -> None:
    images, train = rs.ImageSet("sample"), rs.ImageSet("sample", split="train")
    out = FIGURES / "data_scale"
    out.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[pd.DataFrame]] = {}
    for architecture in SHOWN:
        networks = networks_of(architecture)
        if "100" not in networks:
            print(f"{architecture}_100pct is not trained: python analyses/train_minis.py {architecture}_100pct")
            continue
        drawn, kept, of_thirds = measured(architecture, networks, images, train)
        for name, table in {**kept, "data_scale": of_thirds.assign(architecture=architecture)}.items():
            tables.setdefault(name, []).append(table)
        figure = picture(architecture, networks, drawn, of_thirds, note_on_training(architecture, networks))
        save(figure, out / f"data_scale-{architecture}")
        for name, parts in tables.items():
            pd.concat(parts, ignore_index=True).to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    print(pd.concat(tables["data_scale"]).pivot_table(index=["architecture", "quantity", "layers"], columns="network"))


if __name__ == "__main__":
    main()
