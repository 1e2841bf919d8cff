"""The cost of reading images: beside computing, before the first batch, and in memory.

    python tests/benchmarks/images.py decoding    # 2,000 JPEGs of 500 x 375 through vit_tiny and resnet18
    python tests/benchmarks/images.py start       # a folder of 50,000 files, until the first batch is there
    python tests/benchmarks/images.py memory      # peak memory of `repsim cka` on 1,000 and on 10,000 images

Files are made in a temporary folder. `decoding` compares the whole job on two cores, as `layer_cka` does it by
default, with decoding alone (one worker process) and computing alone (one thread, images in memory); each job has a
process of its own, since a process cannot give threads back. README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

BATCH = 50


def jpegs(folder: Path, count: int, size: tuple[int, int] = (500, 375)) -> None:
    """Write JPEGs that are like photographs: blurred noise over finer noise, some 50 kB each."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        fine = rng.normal(0, 12, (size[1], size[0], 1))
        pixels = (np.asarray(coarse) + fine).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=85)


def job(kind: str, folder: str) -> float:
    """Seconds of one kind of work, in this process."""
    import torch

    import repsim as rs

    torch.set_num_threads(2 if kind == "whole" else 1)
    networks = [rs.load_model(name, weights="random") for name in ("vit_tiny_patch16_224", "resnet18")]
    images = rs.ImageSet(folder)
    transforms = [network.transform for network in networks]
    if kind == "compute":
        batches = list(images.only(np.arange(5 * BATCH)).batches(transforms, BATCH))
        began = time.perf_counter()
        with torch.inference_mode():
            for number in range(len(images) // BATCH):
                for network in networks:
                    network.module(batches[number % len(batches)].inputs[network.transform])
    elif kind == "decode":
        began = time.perf_counter()
        for _ in images.batches(transforms, BATCH, workers=1):
            pass
    else:
        began = time.perf_counter()
        rs.layer_cka(networks, images, batch_size=BATCH)
    return time.perf_counter() - began


def in_a_process(kind: str, folder: Path) -> float:
    cores = sorted(os.sched_getaffinity(0))
    pinned = cores[:2] if kind == "whole" else cores[:1]
    command = ["taskset", "-c", ",".join(map(str, pinned)), sys.executable, __file__, "job", kind, str(folder)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def decoding(count: int) -> None:
    with TemporaryDirectory() as folder:
        jpegs(Path(folder), count)
        size = sum(path.stat().st_size for path in Path(folder).iterdir()) / count
        print(f"{count} JPEGs of 500 x 375, {size / 1e3:.0f} kB each")
        seconds = {kind: in_a_process(kind, Path(folder)) for kind in ("decode", "compute", "whole")}
    print(", ".join(f"{kind} {value:.1f} s" for kind, value in seconds.items()))
    print(f"whole / larger of the others: {seconds['whole'] / max(seconds['decode'], seconds['compute']):.2f}")


def start(count: int) -> None:
    import repsim as rs

    network = rs.load_model("resnet18", weights="random")
    with TemporaryDirectory() as folder:
        jpegs(Path(folder), 1)
        for number in range(1, count):
            os.link(Path(folder) / "00000.jpg", Path(folder) / f"{number:05}.jpg")
        began = time.perf_counter()
        images = rs.ImageSet(folder)
        listed = time.perf_counter() - began
        next(images.batches([network.transform], 32))
        first = time.perf_counter() - began
        print(f"{len(images)} files: listed in {listed:.2f} s, first batch of 32 after {first:.2f} s")


def memory() -> None:
    for count in (1_000, 10_000):
        with TemporaryDirectory() as out:
            command = [sys.executable, "-m", "repsim", "cka", "--data", "noise", "--images", str(count)]
            began = time.perf_counter()
            process = subprocess.Popen([*command, "--batch-size", "100", "--quiet", "--out", out])
            _, status, usage = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
        peak = usage.ru_maxrss / 1024
        print(f"{count} images: exit {status}, {seconds:.0f} s, {usage.ru_utime:.0f} CPU s, peak {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["decoding", "start", "memory", "job"])
    parser.add_argument("more", nargs="*")
    parser.add_argument("--count", type=int)
    options = parser.parse_args()
    if options.what == "job":
        print(job(*options.more))
    elif options.what == "decoding":
        decoding(options.count or 2_000)
    elif options.what == "start":
        start(options.count or 50_000)
    else:
        memory()


if __name__ == "__main__":
    main()
