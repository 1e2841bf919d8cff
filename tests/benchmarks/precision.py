"""How far results of `layer_cka` in each precision are from its results in float64, for trained networks.

    python tests/benchmarks/precision.py
    python tests/benchmarks/precision.py --device cuda

Networks, images and Grams in float64 are the reference. Without a CUDA device, tf32 is imitated: inputs of matrix
products and convolutions are rounded to 10 bits of mantissa first, as tensor cores round them. bf16 is real on the CPU
too (autocast). README.md in this folder keeps the results.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import repsim as rs

PRODUCTS = {
    torch.nn.functional.linear,
    torch.nn.functional.conv2d,
    torch.conv2d,
    torch.nn.functional.scaled_dot_product_attention,
    torch.bmm,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
}


def to_tf32(x: Any) -> Any:
    """float32 rounded to the nearest number with 10 bits of mantissa."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    bits = x.detach().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).view(x.shape)


class ImitatedTf32(TorchFunctionMode):
    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function in PRODUCTS:
            args = tuple(map(to_tf32, args))
        return function(*args, **(kwargs or {}))


def table(images: Tensor, batch_size: int, device: str, precision: str, layers: str):
    loaded = "fp32" if precision in ("float64", "imitated tf32") else precision
    networks = [rs.load_model(name, device=device, precision=loaded) for name in ("vit_mini", "resnet_mini")]
    if precision == "float64":
        images = images.double()
        for network in networks:
            network.module.double()
    with ImitatedTf32() if precision == "imitated tf32" else nullcontext():
        return rs.layer_cka(networks, rs.ImageSet(images), batch_size=batch_size, layers=layers).table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--layers", default="paper")
    options = parser.parse_args()
    chosen = rs.ImageSet("sample", images=options.images)
    transform = rs.load_model("vit_mini").transform
    images = torch.cat([b.inputs[transform] for b in chosen.batches([transform], options.batch_size)])
    shared = {"batch_size": options.batch_size, "device": options.device, "layers": options.layers}
    exact = table(images, precision="float64", **shared).cka.to_numpy()
    print(f"{len(images)} images, batch {options.batch_size}, `{options.layers}`, {len(exact)} pairs, {options.device}")
    print(f"{'':14}{'median':>10}{'99 %':>10}{'largest':>10}   |CKA - CKA in float64|")
    for precision in ("fp32", "tf32" if options.device.startswith("cuda") else "imitated tf32", "bf16"):
        off = np.abs(table(images, precision=precision, **shared).cka.to_numpy() - exact)
        print(f"{precision:14}{np.median(off):10.1e}{np.quantile(off, 0.99):10.1e}{off.max():10.1e}")


if __name__ == "__main__":
    main()
