"""How time and memory of `layer_cka` grow with images, layers, features and the size of a batch.

    python tests/benchmarks/scale.py                    # ten minutes on 2 cores
    python tests/benchmarks/scale.py layers features    # these two alone

Each line is a process of its own with one thread, which runs an untrained ViT of the bundled kind (7 x 7 tokens and
CLS, 28 px) over noise: first a bare `inference_mode` pass, then `layer_cka` of its first layers with each other. CPU
seconds are the process's; memory is the largest resident set while either ran. docs/scale.md compares them with its
formulas.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

START = {"images": 1024, "layers": 12, "features": 96, "batch": 128}
GROWTH = {"images": (1024, 2048, 4096), "layers": (3, 6, 12), "features": (96, 192, 384), "batch": (64, 128, 256, 512)}
"""`features` counts the features of a token: a layer has 50 times as many."""


def measure(images: int, layers: int, features: int, batch: int) -> dict[str, float]:
    """CPU seconds and MiB of a bare pass, and of CKA of the first layers of a network."""
    import time

    import torch

    import repsim as rs
    from repsim.networks.memory import give_back_blocks
    from repsim.networks.minis import vit

    give_back_blocks()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = rs.Network(vit(embed_dim=features).eval(), name="vit")
    pictures = torch.randn(images, 1, 28, 28)
    names = [f"blocks.{number}" for number in range(layers)]

    def bare() -> None:
        with torch.inference_mode():
            for piece in pictures.split(batch):
                network.module(piece)

    def cka() -> None:
        rs.layer_cka(network, pictures, layers=names, batch_size=batch)

    result = {}
    for name, run in (("bare", bare), ("cka", cka)):
        run()
        started = time.process_time()
        run()
        result[f"{name}_seconds"] = time.process_time() - started
        result[f"{name}_mib"] = _peak()
    return result


def _peak() -> float:
    """MiB of the largest resident set of this process so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("growing", nargs="*", choices=[*GROWTH, []], help="[default: all]")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(**json.loads(asked.one))))
        return
    print("| growing | images | layers | features | batch | bare, ms an image | CKA over it, ms | MiB over bare |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for growing in asked.growing or GROWTH:
        for size in GROWTH[growing]:
            job = {**START, growing: size}
            command = [sys.executable, __file__, "--one", json.dumps(job)]
            result = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            bare, over = (
                1000 * seconds / job["images"]
                for seconds in (result["bare_seconds"], result["cka_seconds"] - result["bare_seconds"])
            )
            more = result["cka_mib"] - result["bare_mib"]
            sizes = " | ".join(f"{number:,}" for number in job.values())
            print(f"| {growing} | {sizes} | {bare:.2f} | {over:.2f} | {more:+,.0f} |", flush=True)


if __name__ == "__main__":
    main()
