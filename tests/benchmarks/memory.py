"""The memory that each command takes at its defaults, over a bare forward pass of the same batch.

    python tests/benchmarks/memory.py                          # an hour on 2 cores
    python tests/benchmarks/memory.py resnet50 cka residual    # some networks and commands

A peak is the largest resident set of the process that the system has seen, and the unshared memory of its decoding
processes, if any, sampled ten times a second. (a) is a process that imports PyTorch and repsim, builds the network and
runs it under `inference_mode` on one batch of noise of the command's default size; (b) is the command at its defaults
with the same network (untrained, at 224 px, the bundled images enlarged), but with one batch of that size (two for
attention and residual norms), and one block of lesions: a batch takes as much as the batch before it, and so does a
lesion. Sums that are kept apart for the jackknife, up to 32 batches, do grow: the command's own line says by how much.
README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

NETWORKS = ("vit_base_patch16_224", "resnet50", "convnext_tiny", "swin_tiny_patch4_window7_224")
ATTENTION = ("vit_base_patch16_224", "swin_tiny_patch4_window7_224")
COMMANDS = {
    "cka": 256,
    "attention": 50,
    "heads": 256,
    "residual": 50,
    "lesion": 64,
    "receptive": 8,
    "localize": 256,
    "probe": 32,
}
"""Command -> its default batch size."""
BATCHES = {"attention": 2, "residual": 2}
MORE = {"lesion": ["--blocks", "0"]}
ONLY = {"attention": ATTENTION, "heads": NETWORKS[:1]}
BARE = """
import sys, torch, repsim as rs
network = rs.load_model(sys.argv[1], weights="random")
images = torch.randn(int(sys.argv[2]), *network.input_size)
with torch.inference_mode():
    network.module(images)
"""


def peak(command: list[str]) -> tuple[float, str]:
    """Peak MiB of a process and the processes that it started, and its text on standard error."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    most, child = 0, psutil.Process(process.pid)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        with suppress(psutil.Error):
            sizes = (worker.memory_info() for worker in child.children(recursive=True))
            most = max(most, sum(worker.rss - worker.shared for worker in sizes))
        time.sleep(0.1)
    said = process.stderr.read()
    if status:
        raise SystemExit(f"{' '.join(command)}: {said}")
    return (most + 1024 * usage.ru_maxrss) / 2**20, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NETWORK_OR_COMMAND")
    asked = parser.parse_args().names
    networks = [name for name in NETWORKS if name in asked] or NETWORKS
    commands = [name for name in COMMANDS if name in asked] or COMMANDS
    print("| network | command | batch | bare MiB | command MiB | more | said |\n|---|---|---:|---:|---:|---:|---|")
    bare: dict[tuple[str, int], float] = {}
    for network in networks:
        for command in commands:
            if network not in ONLY.get(command, NETWORKS):
                continue
            size = COMMANDS[command]
            if (network, size) not in bare:
                bare[network, size] = peak([sys.executable, "-c", BARE, network, str(size)])[0]
            with TemporaryDirectory() as out:
                a = "-a" if command in ("cka", "heads") else ""
                images = str(BATCHES.get(command, 1) * size)
                asked = [command, f"--model{a}", network, f"--weights{a}", "random", "--data", "sample"]
                asked += [
                    "--images",
                    images,
                    "--batch-size",
                    str(size),
                    "--out",
                    str(Path(out) / "out"),
                    *MORE.get(command, []),
                ]
                took, said = peak([sys.executable, "-m", "repsim", *asked])
            line = "; ".join(line[8:] for line in said.splitlines() if line.startswith("memory: "))
            floor = bare[network, size]
            numbers = f"{size} | {floor:,.0f} | {took:,.0f} | {took - floor:+,.0f}"
            print(f"| {network} | {command} | {numbers} | {line} |", flush=True)


if __name__ == "__main__":
    main()
