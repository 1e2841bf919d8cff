"""How often the 95 % intervals of the paper's numbers cover the truth, on batches of images of the bundled networks.

    python tests/benchmarks/coverage.py           # 200 replicates of 20 batches
    python tests/benchmarks/coverage.py 50

The truth is what all 80 batches of 25 images of the sample give together. A replicate draws 20 of these batches, with
replacement and the same ones for all networks, and makes the numbers of the figure from their sums by the figure's own
code. Prints a line per number: its key and networks, the share of replicates whose interval covers the truth, with the
standard error of that share, and the share that have no interval, which are not counted among the others.
"""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pandas as pd
import torch

import repsim as rs
from repsim.measures.attention import HeadStatistics
from repsim.measures.running import BatchMeans, GroupedSums, ImageMeans, Moments, Quantiles
from repsim.paper.figures import FIGURES, PRESETS
from repsim.paper.measuring import Measurements, measure
from repsim.passes.study import Study
from repsim.studies import attention, residual
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity
from repsim.studies.localization import Localization
from repsim.studies.residual import ResidualNorms

CHOSEN = ("4", "5", "7", "9")
BATCH, BATCHES, DRAWN = 25, 80, 20


def a_group_for_each_batch(study: Study) -> None:
    """Have a study keep the sums of every single batch."""
    if isinstance(study, AttentionDistance):
        for layer in study.attentions.layers:
            moments = [Moments() for _ in HeadStatistics._fields]
            study.sums[layer.name] = attention._Sums(moments, ImageMeans(BATCHES))
    elif isinstance(study, ResidualNorms):
        for index, found in enumerate(study.found):
            for each in found:
                others = Moments(), Quantiles(), Moments(), Moments()
                study.sums[index, each.name] = residual._Sums(*others, ImageMeans(BATCHES))
    elif isinstance(study, HeadSimilarity):
        study.sums = BatchMeans(study.sums.finish, BATCHES)
    elif isinstance(study, Localization):
        study.sums = [BatchMeans(each.finish, BATCHES) for each in study.sums]


def drawn(sums: Any, which: np.ndarray) -> Any:
    """The sums of some batches, each a group of its own."""
    if isinstance(sums, GroupedSums):
        some = copy.copy(sums)
        some.sums, some.counts = sums.sums[which], sums.counts[which]
        return some
    if isinstance(sums, dict):
        return {key: drawn(each, which) for key, each in sums.items()}
    if isinstance(sums, list):
        return [drawn(each, which) for each in sums]
    return type(sums)(*(drawn(each, which) for each in sums)) if isinstance(sums, tuple) else sums


def main(replicates: int = 200) -> None:
    torch.set_num_threads(1)
    images = rs.ImageSet("sample", images=BATCH * BATCHES)
    m = Measurements(rs.load_model, images, None, batch_size=BATCH)
    cases = {number: PRESETS["mini"].cases(FIGURES[number]) for number in CHOSEN}
    later = {
        number: measure(FIGURES[number], m, FIGURES[number].networks(of), FIGURES[number].compared(of))
        for number, of in cases.items()
    }
    studies = list(m._studies.values())
    for study in studies:
        a_group_for_each_batch(study)
    m.run()
    whole = [study.sums for study in studies]
    rng = np.random.default_rng(0)
    draws = [rng.integers(BATCHES, size=DRAWN) for _ in range(replicates)]
    for number, make in later.items():
        for study, sums in zip(studies, whole):
            study.sums = sums
        truth = make().tables["numbers"].set_index(["key", "models"])["value"]
        covered, known = pd.Series(0, truth.index), pd.Series(0, truth.index)
        for which in draws:
            for study, sums in zip(studies, whole):
                study.sums = drawn(sums, torch.from_numpy(which))
            found = make().tables["numbers"].set_index(["key", "models"])
            known += found["low"].notna()
            covered += (found["low"] <= truth) & (truth <= found["high"])
        for at in truth.index[known > 0]:
            share = covered[at] / known[at]
            error = (share * (1 - share) / known[at]) ** 0.5
            none = f", none in {1 - known[at] / replicates:.3f}" if known[at] < replicates else ""
            print(f"figure {number}  {share:.3f} +- {error:.3f}{none}  {at[0]} {at[1]}", flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
