"""The time that measures take: a pair beside other people's functions, and ten networks with all errors.

    python tests/benchmarks/measures.py CLONES                # beside peers, which `tests/measures/make_peers.py` names
    python tests/benchmarks/measures.py --all                 # `compare` of ten networks' features, 5,000 images

Features are drawn with a spectrum that decays, half of it shared, (n, 384) float32, as of a small ViT. In one process
and with the same threads, `measure.value` and the peer's function alternate; the script prints the ratio of the
medians of their wall-clock seconds, below 1 where repsim is faster. Peers get float64 arrays, which they take.
README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH = 384
Function = Callable[[Any, Any], Any]


def features(count: int, images: int) -> list[np.ndarray]:
    """Features of `count` networks, (n, 384) float32 each, which share half of their variance."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, WIDTH + 1) ** -0.5
    shared = rng.normal(size=(images, WIDTH)) * spectrum
    drawn = []
    for _ in range(count):
        turned = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
        own = rng.normal(size=(images, WIDTH)) * spectrum
        drawn.append(((shared + own) @ turned).astype(np.float32))
    return drawn


def peers(clones: Path) -> dict[str, dict[str, Function]]:
    """Measure -> name of a peer -> its function of two (n, p) arrays."""
    for name in ("torchaudio", "torchaudio.functional"):  # platonic-rep's edit distance needs it
        sys.modules[name] = types.ModuleType(name)
    for name in ("netrep", "platonic-rep", "resi"):
        sys.path.insert(0, str(clones / name))
    # ReSi's package is called repsim, too.
    resi = {name: importlib.import_module(f"repsim.measures.{name}") for name in ("cca", "nearest_neighbor", "rsa")}
    resi["procrustes"] = importlib.import_module("repsim.measures.procrustes")
    metrics, netrep = importlib.import_module("metrics").AlignmentMetrics, importlib.import_module("netrep.metrics")
    sys.path.remove(str(clones / "resi"))
    for name in [name for name in sys.modules if name.partition(".")[0] == "repsim"]:
        del sys.modules[name]

    def unit(x: np.ndarray) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.from_numpy(x))

    return {
        "procrustes": {
            "netrep": lambda x, y: netrep.LinearMetric(alpha=1.0).fit_score(x, y),
            "ReSi": lambda x, y: resi["procrustes"].orthogonal_angular_shape_metric_centered(x, y, "nd"),
        },
        "cca": {"netrep": lambda x, y: netrep.LinearMetric(alpha=0.0).fit_score(x, y)},
        "svcca": {"ReSi": lambda x, y: resi["cca"].svcca(x, y, "nd")},
        "pwcca": {"ReSi": lambda x, y: resi["cca"].pwcca(x, y, "nd")},
        "rsa-spearman": {"ReSi": lambda x, y: resi["rsa"].representational_similarity_analysis(x, y, "nd")},
        "jaccard": {"ReSi": lambda x, y: resi["nearest_neighbor"].jaccard_similarity(x, y, "nd", n_jobs=1)},
        "mutual-knn": {"platonic-rep": lambda x, y: metrics.mutual_knn(unit(x), unit(y), topk=10)},
        "cknna": {"platonic-rep": lambda x, y: metrics.cknna(unit(x), unit(y), topk=10)},
        "cka": {"platonic-rep": lambda x, y: metrics.unbiased_cka(torch.from_numpy(x), torch.from_numpy(y))},
    }


def beside(clones: Path, images: int, rounds: int) -> None:
    by_measure = peers(clones)
    from repsim.measures.catalogue import MEASURES

    x, y = features(2, images)
    print(f"one pair, {images} images, {torch.get_num_threads()} threads\n")
    print("| measure | peer | repsim, s | peer, s | ratio |\n|---|---|---:|---:|---:|")
    for name, functions in by_measure.items():
        for peer, function in functions.items():
            taken: dict[str, list[float]] = {"repsim": [], peer: []}
            for _ in range(rounds):
                for who, call, give in (
                    ("repsim", MEASURES[name].value, (x, y)),
                    (peer, function, (x.astype(float), y.astype(float))),
                ):
                    started = time.perf_counter()
                    call(*give)
                    taken[who].append(time.perf_counter() - started)
            ours, theirs = (statistics.median(seconds) for seconds in taken.values())
            print(f"| {name} | {peer} | {ours:.3f} | {theirs:.3f} | {ours / theirs:.2f} |", flush=True)


def everything(images: int) -> None:
    import repsim as rs
    from repsim.measures.catalogue import MEASURES

    given = [rs.Features({"last": x}, name=f"network {number}") for number, x in enumerate(features(10, images))]
    print("| measure | wall s | CPU s |\n|---|---:|---:|")
    for chosen in (*([name] for name in MEASURES), list(MEASURES)):
        started, cpu = time.perf_counter(), time.process_time()
        rs.compare(given, measures=chosen, layers="all", batch_size=250)
        name = chosen[0] if len(chosen) == 1 else "all"
        print(f"| {name} | {time.perf_counter() - started:.1f} | {time.process_time() - cpu:.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clones", nargs="?", type=Path, metavar="CLONES", help="folder of the peers' sources")
    parser.add_argument("--all", action="store_true", help="ten networks by all measures, with errors")
    parser.add_argument("--images", type=int, help="[default: 2000 beside peers, 5000 with --all]")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    if asked.clones is not None:
        beside(asked.clones, asked.images or 2000, asked.rounds)
    if asked.all:
        everything(asked.images or 5000)


if __name__ == "__main__":
    main()
