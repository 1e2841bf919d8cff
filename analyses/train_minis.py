"""Train the bundled small networks on Fashion-MNIST's 60,000 training images.

    python analyses/train_minis.py vit_mini resnet_mini     # the ones the package ships
    python analyses/train_minis.py --all                    # every network of the table below
    python analyses/train_minis.py --without-skips 3 7      # vit_mini without the skips of these blocks

It needs Fashion-MNIST (see data/README.md), and uses CUDA when there is a device. A run saves itself to
runs/training/ every `--save-every` steps and goes on from there when started again: batches and
augmentation are functions of (seed, step), so a resumed run sees what an undisturbed one would.
When done, the float16 weights are written to repsim/weights/ (`--weights-dir`), read back from
that file, and the accuracy of these weights on the 10,000 test images goes into
figures/training.csv. data/README.md has the times and the accuracies.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from repsim.images.sources import read_fashion_mnist
from repsim.networks.minis import ARCHITECTURES, CLASSES, DATA_CONFIG, WEIGHTS
from repsim.tables import TRAINING, load_table

ROOT = Path(__file__).parent.parent
BATCH_SIZE = 256
WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class Run:
    """One line of the table: a network, its training images, and the length of its training."""

    name: str
    architecture: str
    lr: float
    epochs: int
    """Passes over all 60,000 images; with a `fraction`, the same number of steps on fewer."""
    fraction: float = 1.0
    seed: int = 0
    start: str | None = None
    """Name of a trained network to start from (fine-tuning)."""
    task: str = "clothes"
    """`clothes` (the ten classes) or `rotation` (which of four quarter turns was applied)."""


VIT = dict(lr=1e-3, epochs=18)
RESNET = dict(lr=4e-3, epochs=10)
# Half or a fifth of each recipe, for the networks that are compared over data sizes, seeds and widths: every
# comparison needs a network trained as long on all images, and the whole recipe would take a CPU nine hours.
SHORT = {"vit_mini": dict(lr=1e-3, epochs=9), "resnet_mini": dict(lr=4e-3, epochs=2)}


def without_skips(block: int, seed: int = 0) -> Run:
    """`vit_mini` without the skip connections of one block, otherwise as `vit_mini` (paper, Figure 8)."""
    suffix = f"_seed{seed}" if seed else ""
    return Run(f"vit_mini_noskip{block}{suffix}", f"vit_mini_noskip{block}", seed=seed, **VIT)


TABLE = {
    run.name: run
    for run in [
        Run("vit_mini", "vit_mini", **VIT),
        Run("resnet_mini", "resnet_mini", **RESNET),
        Run("vit_mini_gap", "vit_mini_gap", **VIT),
        Run("mixer_mini", "mixer_mini", lr=1e-3, epochs=12),
        *(without_skips(block, seed) for block in (1, 5, 9) for seed in range(3)),
        # The untouched network beside those without skips, where they are trained with --scale 0.66667.
        Run("vit_mini_short", "vit_mini", lr=1e-3, epochs=12),
        *(
            Run(f"{name}_{percent}pct", name, fraction=percent / 100, **recipe)
            for name, recipe in SHORT.items()
            for percent in (3, 10, 30, 100)
        ),
        *(Run(f"{name}_100pct_seed1", name, seed=1, **recipe) for name, recipe in SHORT.items()),
        Run("vit_micro", "vit_micro", **SHORT["vit_mini"]),
        Run("vit_mini_rotation", "vit_mini", lr=3e-4, epochs=4, start="vit_mini", task="rotation"),
    ]
}


def nested_subset(labels: Tensor, fraction: float) -> Tensor:
    """Indices of a class-balanced subset; a smaller fraction's subset lies inside a larger one's."""
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    keep = [
        of_class[: round(fraction * len(of_class))]
        for c in labels.unique()
        for of_class in [shuffled[labels[shuffled] == c]]
    ]
    return torch.cat(keep).sort().values


def seeded(seed: int, step: int, purpose: Literal["order", "augment"]) -> torch.Generator:
    """A generator that depends on nothing but its arguments, so that a run can be resumed."""
    return torch.Generator().manual_seed((seed * 1_000_000 + step) * 2 + (purpose == "augment"))


def batch_indices(step: int, n: int, seed: int) -> Tensor:
    """Positions of the images of one step: pass after pass over n images, each newly shuffled."""
    batches = max(n // BATCH_SIZE, 1)
    order = torch.randperm(n, generator=seeded(seed, step // batches, "order"))
    start = (step % batches) * BATCH_SIZE
    return order[start : start + BATCH_SIZE]


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random shifts by up to 2 px (black comes in) and random mirroring, per image. (n, 28, 28)."""
    n, height, width = images.shape
    shift_y, shift_x = torch.randint(0, 5, (2, n, 1, 1), generator=generator).to(images.device)
    mirror = (torch.rand(n, 1, 1, generator=generator) < 0.5).to(images.device)
    rows = torch.arange(height, device=images.device).view(1, -1, 1) + shift_y
    columns = torch.arange(width, device=images.device).view(1, 1, -1)
    columns = torch.where(mirror, width - 1 - columns, columns) + shift_x
    image = torch.arange(n, device=images.device).view(-1, 1, 1)
    return F.pad(images, (2, 2, 2, 2))[image, rows, columns]


def normalise(images: Tensor) -> Tensor:
    """uint8 (n, 28, 28) -> float (n, 1, 28, 28) as the networks' own transform does."""
    return ((images.float() / 255 - DATA_CONFIG["mean"][0]) / DATA_CONFIG["std"][0])[:, None]


def turn(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Turn each image by 0, 90, 180 or 270 degrees; the label is the number of quarter turns."""
    turns = torch.randint(0, 4, (len(images),), generator=generator).to(images.device)
    every = torch.stack([images.rot90(k, (1, 2)) for k in range(4)])
    return every[turns, torch.arange(len(images), device=images.device)], turns


def one_cycle(step: int, total: int) -> float:
    """Linear warm-up over the first tenth, then a cosine to zero."""
    warm_up = max(total // 10, 1)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (total - warm_up)))


def save_atomically(state: dict, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def train(run: Run, device: torch.device, *, scratch: Path, weights: Path, save_every: int, scale: float) -> dict:
    """Train one network of the table; returns its row of figures/training.csv."""
    torch.manual_seed(run.seed)
    model = build(run).to(device, memory_format=torch.channels_last)
    if run.start is not None:
        start = load_file(weights / f"{run.start}.safetensors")
        model.load_state_dict({k: v for k, v in start.items() if not k.startswith("head.")}, strict=False)
    images, labels = (torch.from_numpy(a.copy()) for a in read_fashion_mnist("train"))
    keep = nested_subset(labels, run.fraction)
    images, labels = images[keep].to(device), labels[keep].to(device).long()

    total = max(round(run.epochs * scale * 60_000 / BATCH_SIZE), 1)
    decay = [p for p in model.parameters() if p.ndim > 1]
    no_decay = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": no_decay, "weight_decay": 0.0}], lr=run.lr
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, total))
    step, seconds = 0, 0.0
    saved = scratch / f"{run.name}.pt"
    if saved.exists():
        state = torch.load(saved, map_location=device, weights_only=True)
        if state["total"] != total:
            raise SystemExit(f"{saved} is a run of {state['total']} steps, this one has {total}; delete it first")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        step, seconds = state["step"], state["seconds"]

    started = time.perf_counter()
    model.train()
    bar = tqdm(total=total, initial=step, desc=run.name, mininterval=10)
    while step < total:
        generator = seeded(run.seed, step, "augment")
        positions = batch_indices(step, len(images), run.seed).to(device)
        x, y = augment(images[positions], generator), labels[positions]
        if run.task == "rotation":
            x, y = turn(x, generator)
        with torch.autocast(device.type, torch.bfloat16):
            logits = model(normalise(x).contiguous(memory_format=torch.channels_last))
        loss = F.cross_entropy(logits.float(), y, label_smoothing=LABEL_SMOOTHING)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        bar.update()
        if step % save_every == 0 or step == total:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            spent = seconds + time.perf_counter() - started
            parts = dict(model=model, optimizer=optimizer, schedule=schedule)
            state = {name: part.state_dict() for name, part in parts.items()}
            save_atomically({**state, "step": step, "total": total, "seconds": spent}, saved)
    bar.close()
    spent = seconds + time.perf_counter() - started

    shipped = weights / f"{run.name}.safetensors"
    shipped.parent.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.cpu().state_dict().items()}
    save_file(half, shipped, metadata={"architecture": run.architecture, "task": run.task, "steps": str(total)})
    return {
        "name": run.name,
        "architecture": run.architecture,
        "task": run.task,
        "images": len(images),
        "seed": run.seed,
        "steps": total,
        "test_accuracy": round(test_accuracy(run, shipped, device), 4),
        "minutes": round(spent / 60, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads",
    }


def build(run: Run) -> nn.Module:
    model = ARCHITECTURES[run.architecture](num_classes=CLASSES[run.task])
    if not torch.cuda.is_available():
        for block in getattr(model, "blocks", []):
            if hasattr(block, "attn"):
                # Fused attention's bfloat16 backward pass takes half of a training step on CPUs.
                block.attn.fused_attn = False
    return model


@torch.inference_mode()
def test_accuracy(run: Run, file: Path, device: torch.device) -> float:
    """Accuracy of the shipped float16 weights, run in float32, on the 10,000 test images."""
    model = build(run)
    model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in load_file(file).items()})
    model.to(device).eval()
    images, labels = (torch.from_numpy(a.copy()).to(device) for a in read_fashion_mnist("test"))
    if run.task == "rotation":
        images, labels = turn(images, torch.Generator().manual_seed(0))
    right = sum(
        (model(normalise(x)).argmax(1) == y).sum().item() for x, y in zip(images.split(1000), labels.split(1000))
    )
    return right / len(labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="networks to train, in this order")
    parser.add_argument("--all", action="store_true", help="train the whole table")
    parser.add_argument(
        "--without-skips", type=int, nargs="+", default=[], metavar="BLOCK", help="train vit_mini without these skips"
    )
    parser.add_argument("--weights-dir", type=Path, default=WEIGHTS)
    parser.add_argument("--scratch", type=Path, default=ROOT / "runs" / "training")
    parser.add_argument("--table", type=Path, default=ROOT / "figures" / "training.csv")
    parser.add_argument("--save-every", type=int, default=100, metavar="STEPS")
    parser.add_argument("--scale", type=float, default=1.0, help="multiply the number of steps (for a trial)")
    options = parser.parse_args()
    asked = [without_skips(block) for block in options.without_skips]
    TABLE.update({run.name: run for run in asked})
    names = list(TABLE) if options.all else [*options.names, *(run.name for run in asked)]
    if not names or set(names) - set(TABLE) or set(options.without_skips) - set(range(12)):
        parser.error(f"name networks of the table, or give --all; the table has {', '.join(TABLE)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in names:
        row = train(
            TABLE[name],
            device,
            scratch=options.scratch,
            weights=options.weights_dir,
            save_every=options.save_every,
            scale=options.scale,
        )
        print(row)
        rows = [row]
        if options.table.exists():
            earlier = load_table(options.table)
            rows = [r for r in earlier.to_dict("records") if r["name"] != name] + rows
        options.table.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows)[TRAINING].sort_values("name", key=lambda s: s.map(list(TABLE).index)).to_csv(
            options.table, index=False
        )


if __name__ == "__main__":
    main()
