"""How often 95 % intervals of the measures between representations cover the average of the measure.

    python tests/benchmarks/measures_coverage.py                      # all of it: about an hour on two cores
    python tests/benchmarks/measures_coverage.py images --images 640 --replicates 200 --measures pwcca jaccard

Two populations. `gaussian`: features with a spectrum that decays as 1 / k, part of it shared, drawn anew for each
replicate. `images`: the mean over tokens or places of an early and a late block of `vit_mini` and `resnet_mini`, of
20,000 training images of Fashion-MNIST (Debian's `dataset-fashion-mnist`), of which each replicate draws some without
replacement (640 of 20,000 makes standard errors 1.6 % larger than they need be).

The truth is the mean over all replicates: the expectation at this number of images. A replicate covers it if it is
within Student's t times its standard error, by the jackknife over 32 groups of images (31 degrees of freedom) or, of
measures that are summed, over batches of 32. A line has the mean of the values, their spread over replicates, the mean
of the standard errors over that spread, the coverage over all pairs and its error, and the worst pair's coverage.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

import repsim as rs
from repsim.measures.catalogue import MEASURES, LeftOut, Measure, Streamed
from repsim.measures.intervals import interval
from repsim.measures.running import BatchMeans

GROUPS, BATCH, POPULATION = 32, 32, 20_000
PAIRS = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 0)]
Draw = Callable[[int, torch.Generator], list[Tensor]]


def gaussian(features: int) -> Draw:
    """Four representations that share 16 latent variables, with noise of their own that grows from each to the next."""
    fixed = torch.Generator().manual_seed(1)
    decay = torch.arange(1, features + 1).double() ** -0.5
    mixing = [torch.randn(16, features, generator=fixed, dtype=torch.float64) / 4 for _ in range(4)]
    offset = torch.rand(features, generator=fixed, dtype=torch.float64)

    def draw(n: int, generator: torch.Generator) -> list[Tensor]:
        def normal(width: int) -> Tensor:
            return torch.randn(n, width, generator=generator, dtype=torch.float64)

        shared = normal(16) * torch.arange(1, 17).double() ** -0.5
        return [(shared @ a + (0.1 + 0.15 * i) * normal(features)) * decay + offset for i, a in enumerate(mixing)]

    return draw


def pooled() -> list[Tensor]:
    """Mean over tokens or places of two blocks of either network, (POPULATION, d) each."""
    images = rs.ImageSet("fashion-mnist", split="train", images=POPULATION)
    features: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        for name in ("vit_mini", "resnet_mini"):
            network = rs.load_model(name)
            blocks = rs.find_layers(network, "blocks")
            chosen = [blocks[len(blocks) // 4], blocks[-2]]
            for batch in images.batches([network.transform], 250):
                with rs.capture(network, chosen) as seen:
                    network.module(batch.inputs[network.transform])
                for layer in chosen:
                    x = seen[layer.name]
                    x = x.mean(1) if x.ndim == 3 else x.flatten(2).mean(2)
                    features.setdefault(f"{name} {layer.name}", []).append(x.float())
    print(*(f"{name} {tuple(parts[0].shape[1:])}" for name, parts in features.items()), sep="; ")
    return [torch.cat(parts) for parts in features.values()]


def of_images(features: list[Tensor]) -> Draw:
    def draw(n: int, generator: torch.Generator) -> list[Tensor]:
        chosen = torch.randperm(len(features[0]), generator=generator)[:n]
        return [x[chosen] for x in features]

    return draw


def estimate(measure: Measure, features: list[Tensor], groups: Tensor) -> tuple[Tensor, Tensor, int]:
    """Values and standard errors of `PAIRS`, and degrees of freedom."""
    if isinstance(measure, Streamed):
        sums = BatchMeans(measure.finish, GROUPS)
        for batch in zip(*(x.split(BATCH) for x in features)):
            rows = torch.stack([measure.row(x) for x in batch])
            sums.update(rows @ rows.T)
        values, errors = sums.compute()
        i, j = torch.tensor(PAIRS).T
        return values[i, j], errors[i, j], sums.groups - 1
    prepared = [measure.prepare(x) for x in features]
    values = measure.values(prepared, PAIRS)
    return *LeftOut(values, measure.without(prepared, PAIRS, groups), groups).compute(), measure.degrees(GROUPS)


def coverage(measure: Measure, draw: Draw, n: int, replicates: int, seed: int = 0) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(n) % GROUPS
    estimates = [estimate(measure, draw(n, generator), groups) for _ in range(replicates)]
    values, errors = (torch.stack([part[k] for part in estimates]) for k in range(2))
    known = ~errors.isnan().any(0)  # no halves with so few images, or undefined
    values, errors = values[:, known], errors[:, known]
    truth = values.mean(0)
    low, high = interval(values, errors, estimates[0][2])
    covered = ((low <= truth) & (truth <= high)).double()
    spread = values.std(0)
    return {
        "pairs": int(known.sum()),
        "value": truth.mean().item(),
        "spread": spread.mean().item(),
        "se": (errors.square().mean(0).sqrt() / spread).mean().item(),
        "coverage": covered.mean().item(),
        "error": covered.mean(1).std().item() / replicates**0.5,
        "worst": covered.mean(0).min().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("population", nargs="*", default=["gaussian", "images"])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--features", type=int, default=48, help="of gaussians")
    parser.add_argument("--replicates", type=int, default=400)
    parser.add_argument("--measures", nargs="*", default=list(MEASURES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("population measure       pairs   value  spread     se coverage  error  worst")
    for population in options.population:
        draw = gaussian(options.features) if population == "gaussian" else of_images(pooled())
        for name in options.measures:
            line = coverage(MEASURES[name], draw, options.images, options.replicates)
            numbers = (
                f"{line['pairs']:5} {line['value']:7.4f} {line['spread']:7.4f} {line['se']:6.3f}"
                f" {line['coverage']:8.3f} {line['error']:6.3f} {line['worst']:6.3f}"
            )
            print(f"{population:10} {name:13} {numbers}", flush=True)


if __name__ == "__main__":
    main()
