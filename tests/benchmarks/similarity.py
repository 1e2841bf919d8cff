"""The cost of `layer_cka` over a bare forward pass: time as a ratio, and peak memory.

    python tests/benchmarks/similarity.py                     # vit_tiny and resnet18, batch 32
    python tests/benchmarks/similarity.py --large             # vit_base and resnet50, batch 64
    python tests/benchmarks/similarity.py --huge --device cuda --images 10240 --rounds 3 --precision tf32

Untrained networks (`zero_init_last=False` for ResNets) and noise that is in memory already. In one
process and with the same threads, a bare `inference_mode` pass of both networks and a whole call of
`layer_cka` (tracing, hooks, Grams, sums, standard errors, table) alternate; the ratio is that of their
medians, in wall and in CPU seconds. The floor is the bare pass plus the arithmetic of the Grams, 2 n^2 p for each
layer and batch, at the rate of a large matrix product on this device in this precision. Memory is the peak of resident
memory in each kind of pass (on CUDA of allocated device memory). README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

import repsim as rs
from repsim.networks.models import Network
from repsim.networks.precision import PRECISIONS, as_given

SIZES = {
    "small": ("vit_tiny_patch16_224", "resnet18", 32, ("blocks", "all")),
    "large": ("vit_base_patch16_224", "resnet50", 64, ("blocks", "paper")),
    "huge": ("vit_large_patch16_224", "resnet50", 256, ("paper",)),
}


def untrained(name: str, device: str, precision: str | None) -> Network:
    settings = {"zero_init_last": False} if name.startswith("resnet") else {}
    return rs.load_model(name, weights="random", device=device, precision=precision, **settings)


def bare(networks: list[Network], images: torch.Tensor, batch_size: int) -> None:
    with torch.inference_mode():
        for batch in images.split(batch_size):
            for network in networks:
                with network.computing():
                    network.module(batch.to(network.device))


def operations(networks: list[Network], preset: str, images: int, batch_size: int) -> float:
    """Operations of the Grams: 2 n^2 p for each layer and batch."""
    features = sum(math.prod(layer.shape) for network in networks for layer in rs.find_layers(network, preset))
    return 2 * batch_size**2 * features * (images // batch_size)


def rate(network: Network, device: str, side: int) -> float:
    """Operations per second of a large matrix product in float32, in the precision of Grams of this network."""
    a = torch.randn(side, side, device=device)
    seconds = []
    with network.computing(), as_given():
        seconds += [clocked(lambda: a @ a, device)[0] for _ in range(6)]
    return 2 * side**3 / statistics.median(seconds[1:])


def clocked(work: Callable[[], object], device: str) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds, peak memory in MB."""
    reset_peak(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu, peak(device)


def reset_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--large", action="store_const", const="large", dest="size", default="small")
    parser.add_argument("--huge", action="store_const", const="huge", dest="size")
    parser.add_argument("--layers", nargs="+")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS)
    options = parser.parse_args()
    name_a, name_b, batch_size, presets = SIZES[options.size]
    batch_size = options.batch_size or batch_size
    networks = [untrained(name, options.device, options.precision) for name in (name_a, name_b)]
    images = torch.randn(options.images, 3, 224, 224, generator=torch.Generator().manual_seed(0))

    machine = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
    print(f"{date.today()}, {machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{name_a} and {name_b}, {options.images} images, batch {batch_size}, medians of {options.rounds}")
    jobs: dict[str, Callable[[], object]] = {"bare": lambda: bare(networks, images, batch_size)}
    for preset in options.layers or presets:
        jobs[preset] = lambda preset=preset: (
            rs.layer_cka(networks, rs.ImageSet(images), layers=preset, batch_size=batch_size).table
        )
    for work in jobs.values() if options.rounds > 1 else ():  # once to warm up
        work()
    results = {name: [] for name in jobs}
    for _ in range(options.rounds):
        for name, work in jobs.items():
            results[name].append(clocked(work, options.device))
    median = {name: [statistics.median(column) for column in zip(*runs)] for name, runs in results.items()}
    fastest = rate(networks[0], options.device, 8192 if options.device == "cuda" else 2048)
    print(f"matrix products: {fastest / 1e12:.2f} Tflop/s")
    heads = f"{'':8}{'layers':>8}{'wall s':>9}{'ratio':>7}{'cpu s':>9}{'ratio':>7}{'floor s':>9}{'ratio':>7}"
    print(f"{heads}{'peak MB':>9}{'more':>6}")
    for name, (wall, cpu, memory) in median.items():
        grams = operations(networks, name, options.images, batch_size) if name != "bare" else 0
        floor = median["bare"][0] + grams / fastest
        count = sum(len(rs.find_layers(n, name)) for n in networks) if name != "bare" else 0
        ratios = wall / median["bare"][0], cpu / median["bare"][1]
        more = memory - median["bare"][2]
        times = f"{wall:9.2f}{ratios[0]:7.3f}{cpu:9.2f}{ratios[1]:7.3f}{floor:9.2f}{wall / floor:7.3f}"
        print(f"{name:8}{count:8}{times}{memory:9.0f}{more:6.0f}")


if __name__ == "__main__":
    main()
