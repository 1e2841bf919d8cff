"""Intervals of each kind cover the truth, on small networks and artificial images.

`benchmarks/coverage.py` measures the coverage at length.
"""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import torch
from conftest import FAMILIES

import repsim as rs
from repsim.paper.exhibits import Compared

BENCHMARK = Path(__file__).parent / "benchmarks" / "coverage.py"
spec = importlib.util.spec_from_file_location("benchmark_of_coverage", BENCHMARK)  # coverage is a package's name too
coverage = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(coverage)

BATCH, BATCHES, DRAWN, REPLICATES = 16, 24, 10, 150
PAIR = [Compared("", "", 0, 1)]
LINES = ["attention", "figure 1", "figure 4", "figure 7", "figure 9", "own", "residual", "similarity", "token"]
ASKED = {
    "1": ((("vit", "other"),), ()),
    "4": (("vit", "other"), PAIR),
    "7": (("vit", "other"), PAIR),
    "9": (("vit",), ()),
}


def pictures(count):
    """Images of 4 x 4 patches with a little noise; the brightness of a patch is partly its own, partly the image's."""
    generator = torch.Generator().manual_seed(0)
    own, of_all, noise = (torch.randn(count, 3, side, side, generator=generator) for side in (4, 1, 64))
    return (own + of_all).repeat_interleave(16, 2).repeat_interleave(16, 3) + 0.1 * noise


def test_numbers_and_cells():
    kinds = {"vit": "vit", "other": "vit_gap"}
    networks = {name: replace(FAMILIES[kind].load(), name=name) for name, kind in kinds.items()}
    images = rs.ImageSet(pictures(BATCH * BATCHES))
    table = coverage.figures(images, BATCH, DRAWN, REPLICATES, ASKED, networks.__getitem__)
    print(table.to_string())
    kinds = table["line"].str.extract(r"(figure \d|similarity|attention|residual|token|own)")[0].unique()
    assert sorted(kinds) == LINES
    assert table["coverage"].between(0.9, 0.99).all()


def test_probes():
    images, train = rs.ImageSet(images=360), rs.ImageSet("sample", split="train", images=600)
    table = coverage.probes(images, train, 12, 12, REPLICATES, seeds=20)
    print(table.to_string())
    assert table["coverage"].between(0.9, 0.995).all()


def test_receptive_fields():
    """Intervals cover the fields, the radius of half the mass less often: it jumps over gaps around the own patch."""
    covered = coverage.receptive(rs.ImageSet(images=160), 100, 32, ["vit_micro"]).set_index("line")["coverage"]
    print(covered.to_string())
    half = covered.index.str.contains("radius50")
    assert covered[~half].between(0.9, 0.99).all() and covered[half].between(0.85, 0.99).all()
