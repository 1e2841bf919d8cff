"""Find what repsim measures and what it refuses in one small network of every architecture family of timm.

    python tests/benchmarks/families.py            # all families, an hour on 2 cores; goes on where it stopped
    python tests/benchmarks/families.py swin vit   # these families, printed, with the sentences of refusal

A family is a module of `timm.models`; of its variants the one with the fewest parameters is taken, up to 30 million,
with random weights. On 8 noise images it goes through `find_layers` with both presets, `layer_cka`, `residual_norms`
and `attention_distance`. Each call is right, or refused by one sentence of repsim's own; any other error is a defect
and stands as `failed`. The table is `families.csv` beside this file, and a test takes 20 of its rows:

    family, model, parameters
    blocks_found    blocks of the preset `blocks`
    blocks_run      modules of the network that run and are blocks by the name of their class, the outermost ones
    paper_layers    layers of the preset `paper`
    applies         the studies that gave a table
    refused         the other studies, each with its sentence
"""

from __future__ import annotations

import contextlib
import csv
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.survey import Attempts, rows_of

import repsim as rs

TABLE = Path(__file__).with_suffix(".csv")
MOST = 30e6
IMAGES = 8
BLOCK = re.compile(r"block|bottleneck|residual|unit$|cell|mixer.?layer|encoderlayer|convblocks?$|attnpath", re.I)
"""Names that timm's authors give to the classes of repeated units."""
LARGE = re.compile(r"large|huge|giant|gigantic|xl|so\d+m|_[lhg]_|_[lhg]\d|enormous|plusplus_")


def families() -> list[str]:
    return sorted(timm.list_modules())


def small(family: str) -> tuple[str, float] | None:
    """The variant of a family with the fewest parameters, and their number; None if all variants have too many."""
    sizes = {}
    for name in timm.list_models(module=family):
        if LARGE.search(name):
            continue
        with torch.device("meta"), contextlib.suppress(Exception):
            sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    if not sizes:  # some variants cannot be made on the meta device
        for name in timm.list_models(module=family)[:3]:
            with contextlib.suppress(Exception):
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
    name = min(sizes, key=sizes.get, default=None)
    return None if name is None or sizes[name] > MOST else (name, sizes[name])


def blocks_that_run(network: rs.Network) -> list[str]:
    """Outermost modules that run and are blocks by the name of their class, one after another."""
    ran: list[str] = []
    handles = [
        module.register_forward_hook(lambda m, a, out, path=path: ran.append(path))
        for path, module in network.module.named_modules()
        if path and BLOCK.search(type(module).__name__) and next(module.children(), None) is not None
    ]
    with torch.no_grad():
        network.module.eval()(torch.zeros(2, *network.input_size))
    for handle in handles:
        handle.remove()
    names = set(ran)
    return [path for path in ran if not any(path.startswith(f"{other}.") for other in names)]


def load(name: str) -> rs.Network:
    torch.manual_seed(0)
    network = rs.load_model(name, weights="random")
    channels, height, width = network.input_size
    return network.sized((channels, 256, 256)) if height > 512 else network  # SAM's sizes take minutes


def studies(network: rs.Network, images: torch.Tensor) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "layer_cka", lambda: rs.layer_cka(network, images=images, batch_size=IMAGES, layers="blocks").table
    yield "paper_cka", lambda: rs.layer_cka(network, images=images, batch_size=IMAGES, layers="paper").table
    yield "residual_norms", lambda: rs.residual_norms(network, images, batch_size=IMAGES)
    yield "attention_distance", lambda: rs.attention_distance(network, images, batch_size=IMAGES).table


def row_of(family: str) -> dict[str, Any] | None:
    """A row of the table; None for a family without a small variant."""
    variant = small(family)
    return variant and {"family": family, "model": variant[0], "parameters": int(variant[1]), **examine(variant[0])}


def examine(name: str) -> dict[str, Any]:
    """The columns of the table from `blocks_found` on, for one of timm's networks."""
    network = load(name)
    images = torch.randn(IMAGES, *network.input_size, generator=torch.Generator().manual_seed(0))
    row: dict[str, Any] = {}
    attempt = Attempts()

    for preset, column in (("blocks", "blocks_found"), ("paper", "paper_layers")):
        layers = attempt(f"find_layers({preset})", lambda preset=preset: rs.find_layers(network, preset))
        row[column] = 0 if layers is None else sum(preset == "paper" or layer.kind == "block" for layer in layers)
    row["blocks_run"] = len(blocks_that_run(network))
    for study, run in studies(network, images):
        attempt(study, run)
    row["applies"] = " ".join(study for study in attempt.applies if not study.startswith("find_layers"))
    row["refused"] = " | ".join(attempt.refused)
    return row


COLUMNS = ["family", "model", "parameters", "blocks_found", "blocks_run", "paper_layers", "applies", "refused"]


def main(wanted: list[str]) -> None:
    if wanted:
        for family in wanted:
            print(row_of(family))
        return
    done = {row["family"] for row in rows_of(TABLE)}
    with TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for family in families():
            if family in done:
                continue
            start = time.monotonic()
            row = row_of(family)
            if row is not None:
                writer.writerow(row)
                file.flush()
            print(
                family,
                f"{time.monotonic() - start:.0f} s",
                row and (row["blocks_found"], row["blocks_run"]),
                flush=True,
            )


if __name__ == "__main__":
    main(sys.argv[1:])
