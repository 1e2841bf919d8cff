"""Memory and time of linear probes at ImageNet's size, and against scikit-learn, with made-up features.

    python tests/benchmarks/probe.py        # half a minute on 2 cores

1. 50,000 images of 1,000 classes in batches of 256, 768 features of each of 13 layers (one aggregation), summed and
   solved, the ridge chosen on a tenth of them: peak memory of the process.
2. Solving alone for 10,000 images (10 per class), 1,000 held out: seconds for 13 layers, all 31 strengths.
3. One of these layers, all 31 strengths with the choice, against scikit-learn's `Ridge` on the same images with one
   strength: medians of 5 in turns, in one process.
README.md in this folder keeps the results.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Iterator

import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from repsim.measures.probe import GRID, Ridge, training_data

CLASSES, FEATURES, LAYERS, BATCH = 1000, 768, 13, 256


def made_up(images: int, layer: int, seed: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of features around class centres, and their classes."""
    generator = torch.Generator().manual_seed(layer)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    generator = torch.Generator().manual_seed(1000 * (1 + seed) + layer)
    for start in range(0, images, BATCH):
        labels = torch.arange(start, min(start + BATCH, images)) % CLASSES
        yield 5 * torch.randn(len(labels), FEATURES, generator=generator) + centres[labels], labels


def collect(images: int, layer: int, seed: int = 0):
    data = training_data(images, FEATURES, CLASSES)
    for x, labels in made_up(images, layer, seed):
        data.update(x, labels)
    return data


def solved(data, held_out):
    ridge = Ridge(data)
    return ridge.fit(ridge.best(held_out))


def gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    before, start = gib(), time.perf_counter()
    sums = [(collect(45_000, layer), collect(5_000, layer, seed=1)) for layer in range(LAYERS)]
    summed = time.perf_counter()
    probes = [solved(*part) for part in sums]
    took = f"{summed - start:.0f} s to make and sum, {time.perf_counter() - summed:.0f} s to solve"
    print(f"50,000 images, {LAYERS} layers: {gib():.2f} GiB at most ({before:.2f} before), {took}")
    x, labels = next(made_up(BATCH, 0, seed=2))
    right = (probes[0].scores(x)[:, 0].argmax(1) == labels).double().mean().item()
    print(f"   accuracy of layer 0 on new images: {right:.2f}")

    sums = [(collect(10_000, layer), collect(1_000, layer, seed=1)) for layer in range(LAYERS)]
    start = time.perf_counter()
    for part in sums:
        solved(*part)
    print(f"solving {LAYERS} layers, 10,000 images: {time.perf_counter() - start:.1f} s")

    batches = list(made_up(10_000, 0))
    x = StandardScaler().fit_transform(torch.cat([x for x, _ in batches]).double().numpy())
    targets = 2 * torch.nn.functional.one_hot(torch.cat([y for _, y in batches]), CLASSES).double().numpy() - 1
    seconds: dict[str, list[float]] = {"repsim": [], "scikit-learn": []}
    for turn in range(6):
        start = time.perf_counter()
        solved(collect(10_000, 0), sums[0][1])
        middle = time.perf_counter()
        SklearnRidge(alpha=1.0).fit(x, targets)
        if turn:  # the first warms up
            seconds["repsim"].append(middle - start)
            seconds["scikit-learn"].append(time.perf_counter() - middle)
    ours, theirs = (statistics.median(part) for part in seconds.values())
    print(f"{len(GRID)} strengths {ours:.2f} s, scikit-learn's one {theirs:.2f} s: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
