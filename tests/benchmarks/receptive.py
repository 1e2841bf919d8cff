"""Batched gradients of receptive fields against one backward call per image and channel.

    python tests/benchmarks/receptive.py           # about 3 minutes on 2 cores

For the bundled networks, 8 images and 16 channels of every layer after a residual sum: a whole call of
`receptive_fields`, and the same maps from one forward pass per image and one backward call per layer and
channel. Both run in one process, in turns; the script prints medians and their ratio. README.md in this folder keeps
the results.
"""

from __future__ import annotations

import statistics
import time

import torch

import repsim as rs
from repsim.networks.layers import residual_layers
from repsim.studies.receptive import ReceptiveFields, centre, frozen, grid_of

IMAGES, CHANNELS, ROUNDS = 8, 16, 3  # one batch of the default command


def one_at_a_time(network: rs.Network, images: torch.Tensor, fields: ReceptiveFields) -> dict[str, torch.Tensor]:
    layers = residual_layers(network)
    grids = {layer.name: grid_of(layer, network) for layer in layers}
    maps = {layer.name: torch.zeros(images.shape[2:]) for layer in layers}
    with frozen(network.module), rs.capture(network, layers, lambda f, x: centre(f, x, grids[f.name])) as seen:
        for image in images.split(1):
            x = image.clone().requires_grad_()
            network.module(x)
            for name, z in seen.items():
                for channel in fields.channels[name]:
                    (gradient,) = torch.autograd.grad(z[0, channel], x, retain_graph=True)
                    maps[name] += gradient[0].abs().mean(0) / (CHANNELS * len(images))
    return maps


def main() -> None:
    images = rs.ImageSet("sample", images=IMAGES)
    for name in ("vit_mini", "resnet_mini"):
        network = rs.load_model(name)
        (batch,) = images.batches([network.transform], IMAGES)
        tensors = batch.inputs[network.transform]
        seconds: dict[str, list[float]] = {"batched": [], "one at a time": []}
        for turn in range(ROUNDS + 1):
            start = time.perf_counter()
            fields = rs.receptive_fields(network, images, channels=CHANNELS)
            middle = time.perf_counter()
            maps = one_at_a_time(network, tensors, fields)
            end = time.perf_counter()
            if turn:  # the first warms up
                seconds["batched"].append(middle - start)
                seconds["one at a time"].append(end - middle)
        off = max((torch.from_numpy(fields.maps[k]) - maps[k]).abs().max() / maps[k].max() for k in maps)
        batched, single = (statistics.median(s) for s in seconds.values())
        print(f"{name}: batched {batched:.2f} s, singly {single:.2f} s, ratio {single / batched:.1f}, off {off:.0e}")


if __name__ == "__main__":
    main()
