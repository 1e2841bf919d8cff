"""The cost of `token_localization` over a bare forward pass and the arithmetic that Grams take in any case.

    python tests/benchmarks/localization.py           # about 2 minutes on 2 cores

All 49 tokens x 49 patches of all 12 blocks of `vit_mini`, over 2,560 images of the sample that are in memory as
tensors. In one process and with the same threads, in turns: (a) a bare `inference_mode` pass; (b) the products of Grams
alone, on random numbers of the same shapes and in memory used again, per block and batch one `bmm` of 49 Grams and
one product with the Grams of 49 patches; (c) a whole call of `token_localization` (tracing, hooks, patches, Grams,
sums, standard errors, tables). The script prints medians, and c over a + b. The naive way, a CKA per pair (`rs.cka`),
is timed on a few pairs of one batch and extrapolated. README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch

import repsim as rs
from repsim.measures.localization import cut

BLOCKS, TOKENS, CHANNELS, PIXELS = 12, 49, 96, 16


def bare(network: rs.Network, images: torch.Tensor, batch_size: int) -> None:
    with torch.inference_mode():
        for batch in images.split(batch_size):
            network.module(batch)


def products(batches: int, n: int) -> Callable[[], None]:
    tokens, patches = torch.randn(TOKENS, n, CHANNELS), torch.randn(TOKENS, n, PIXELS)
    grams, of_patches = torch.empty(TOKENS, n, n), torch.empty(TOKENS, n, n)
    cross = torch.empty(TOKENS, TOKENS)

    def work() -> None:
        for _ in range(batches):
            torch.bmm(patches, patches.transpose(1, 2), out=of_patches)
            for _ in range(BLOCKS):
                torch.bmm(tokens, tokens.transpose(1, 2), out=grams)
                torch.mm(grams.flatten(1), of_patches.flatten(1).T, out=cross)

    return work


def one_by_one(network: rs.Network, images: torch.Tensor, pairs: int) -> float:
    """Seconds per pair and batch."""
    with torch.inference_mode(), rs.capture(network, ["blocks.11"]) as seen:
        network.module(images)
    tokens, patches = seen["blocks.11"][:, 1:], cut(images, (7, 7))
    start = time.perf_counter()
    for pair in range(pairs):
        rs.cka(tokens[:, pair % TOKENS], patches[:, pair // TOKENS])
    return (time.perf_counter() - start) / pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    n, network = options.batch_size, rs.load_model("vit_mini")
    sample = rs.ImageSet("sample", images=options.images).batches([network.transform], n)
    images = torch.cat([batch.inputs[network.transform] for batch in sample])
    batches = len(images) // n
    jobs: dict[str, Callable[[], object]] = {
        "a bare pass": lambda: bare(network, images, n),
        "b products": products(batches, n),
        "c localization": lambda: rs.token_localization(
            network, rs.ImageSet(images), layers=r"blocks\.\d+", batch_size=n
        ),
    }
    print(f"{date.today()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"vit_mini, {len(images)} images, batch {n}, medians of {options.rounds}")
    for work in jobs.values():  # once to warm up
        work()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, work in jobs.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    for name, runs in seconds.items():
        print(f"{name:16}{statistics.median(runs):8.2f} s   ({min(runs):.2f} to {max(runs):.2f})")
    a, b, c = (statistics.median(runs) for runs in seconds.values())
    naive = a + one_by_one(network, images[:n], 200) * batches * BLOCKS * TOKENS**2
    print(f"c / (a + b) {c / (a + b):.3f}   c / a {c / a:.3f}")
    print(f"a CKA per pair {naive:.0f} s (extrapolated): {naive / c:.0f} times c")


if __name__ == "__main__":
    main()
