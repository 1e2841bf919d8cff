"""What each command takes of memory at its defaults, over a bare forward pass of the same batch.

    python tests/benchmarks/memory.py                          # an hour on 2 cores
    python tests/benchmarks/memory.py resnet50 cka residual    # of some networks and commands

Peaks are the largest resident set that the system has seen of the process, and what its decoding processes, if any,
have beside what they share, looked at ten times a second. (a) is a process that imports PyTorch and repsim, builds the
network and runs it under `inference_mode` on one batch of the command's default size, noise; (b) is the command at its
defaults with the same network (untrained, at 224 px, the bundled images enlarged), but for one batch of images (two of
attention and residual norms), and one block of lesions: a batch takes what the one before it took, and a lesion what
the one before it took. What is summed apart for the jackknife, up to 32 batches, does grow: the command's own line says
by how much. README.md in this folder keeps the results.
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
    """MiB at most of a process with all that it started, and what it said."""
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    most, child = 0, psutil.Process(process.pid)
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        with suppress(psutil.Error):
            others = (each.memory_info() for each in child.children(recursive=True))
            most = max(most, sum(each.rss - each.shared for each in others))
        time.sleep(0.1)
    said = process.stderr.read()
    if status:
        raise SystemExit(f"{' '.join(command)}: {said}")
    return (most + 1024 * usage.ru_maxrss) / 2**20, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NETWORK_OR_COMMAND")
    asked = parser.parse_args().names
    networks = [each for each in NETWORKS if each in asked] or NETWORKS
    commands = [each for each in COMMANDS if each in asked] or COMMANDS
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
                asked += ["--images", images, "--out", str(Path(out) / "out"), *MORE.get(command, [])]
                took, said = peak([sys.executable, "-m", "repsim", *asked])
            line = "; ".join(line[8:] for line in said.splitlines() if line.startswith("memory: "))
            floor = bare[network, size]
            numbers = f"{size} | {floor:,.0f} | {took:,.0f} | {took - floor:+,.0f}"
            print(f"| {network} | {command} | {numbers} | {line} |", flush=True)


if __name__ == "__main__":
    main()
