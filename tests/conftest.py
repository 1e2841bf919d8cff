"""Small untrained networks of every family that repsim names, small images, and runs that have finished."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import repsim as rs
from repsim.tables import MATCHED, NUMBERS, save_record, save_table

# A background job of a shell may ignore these signals, and the commands that the tests start would ignore them too.
for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        with contextlib.suppress(ValueError):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
if os.environ.get("PYTEST_XDIST_WORKER"):  # several processes share the cores
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@dataclass(frozen=True)
class Family:
    """The settings of a small network of one family, and the number of its layers of each kind."""

    model: str
    blocks: int
    paper: dict[str, int]
    prefix: int = 0
    args: dict[str, Any] = field(default_factory=dict)

    def load(self) -> rs.Network:
        """Load the network untrained, for images of 64 px where its own size would be 224 px."""
        options = {"transform": "imagenet size=64"} if ":" in self.model else {}
        network = rs.load_model(self.model, weights="random", **options, **self.args)
        transform = replace(network.transform, input_size=(3, 64, 64))
        return replace(network, transform=transform)


def transformer(blocks: int) -> dict[str, int]:
    return {"norm": 2 * blocks, "attention": blocks, "mlp_hidden": blocks, "mlp": blocks}


SMALL = {"img_size": 64, "depth": 2}
VIT_PYTORCH = {"image_size": 64, "num_classes": 5, "dim": 32, "depth": 2, "heads": 2, "mlp_dim": 32}
FAMILIES = {
    "vit": Family("vit_tiny_patch16_224", 2, transformer(2), 1, SMALL),
    "vit_gap": Family(
        "vit_tiny_patch16_224", 2, transformer(2), 0, {**SMALL, "class_token": False, "global_pool": "avg"}
    ),
    "vit_registers": Family("vit_tiny_patch16_224", 2, transformer(2), 5, {**SMALL, "reg_tokens": 4}),
    "deit_distilled": Family("deit_tiny_distilled_patch16_224", 2, transformer(2), 2, SMALL),
    "vit_hybrid": Family("vit_tiny_r_s16_p8_224", 2, transformer(2), 1, SMALL),
    "resnet18": Family("resnet18", 8, {"conv": 19, "norm": 19}, 0, {"zero_init_last": False}),
    "resnet50": Family("resnet50", 16, {"conv": 52, "norm": 52}, 0, {"zero_init_last": False}),
    "bit": Family("resnetv2_50x1_bit", 16, {"conv": 52, "norm": 48}, 0, {"zero_init_last": False}),
    "mixer": Family("mixer_s32_224", 8, {"norm": 16, "mlp_hidden": 16, "mlp": 16}, 0, {"img_size": 64}),
    "swin": Family(
        "swin_tiny_patch4_window7_224",
        5,
        transformer(5),
        0,
        {"img_size": 64, "window_size": 4, "depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
    ),
    "pit": Family("pit_ti_224", 3, transformer(3), 1, {"img_size": 64, "depth": (1, 1, 1)}),
    "pvt_v2": Family("pvt_v2_b0", 8, transformer(8), 0, {}),
    "convit": Family("convit_tiny", 3, transformer(3), 1, {"img_size": 64, "depth": 3, "local_up_to_layer": 2}),
    "convnext": Family("convnext_atto", 12, {"conv": 12, "norm": 12, "mlp_hidden": 12, "mlp": 12}, 0, {}),
    "coatnet": Family(
        "coatnet_nano_rw_224",
        16,
        {"conv": 38, "norm": 39, "attention": 9, "mlp_hidden": 9, "mlp": 9},
        0,
        {"img_size": 64},
    ),
    "twins": Family("twins_svt_small", 18, transformer(18), 0, {"img_size": 64}),
    "twins_pcpvt": Family("twins_pcpvt_small", 16, transformer(16), 0, {"img_size": 64}),
    "t2t": Family(
        "vit_pytorch.t2t:T2TViT", 2, transformer(2), 1, {**VIT_PYTORCH, "t2t_layers": ((7, 4), (3, 2), (3, 2))}
    ),
    "deepvit": Family("vit_pytorch.deepvit:DeepViT", 2, transformer(2), 1, {**VIT_PYTORCH, "patch_size": 16}),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


@pytest.fixture(scope="session")
def server():
    """A context that starts processes which have torch, timm and the drawing code imported already."""
    context = multiprocessing.get_context("forkserver")
    needed = [
        "repsim.cli",
        "repsim.networks.models",
        "repsim.networks.minis",
        "repsim.studies.similarity",
        "repsim.plots",
    ]
    context.set_forkserver_preload([*needed, "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf"])
    return context


@pytest.fixture(scope="session")
def vit() -> rs.Network:
    return rs.load_model("vit_mini")


@pytest.fixture(scope="session")
def resnet() -> rs.Network:
    return rs.load_model("resnet_mini")


def noise(network: rs.Network, n: int, seed: int = 0) -> torch.Tensor:
    """n noise images of the size that the network takes."""
    channels, height, width = network.input_size
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed))


def folder(root, images_of, side=64, seed=0):
    """A folder of noise images, with a brightness of its own for each class."""
    rng = np.random.default_rng(seed)
    for number, (name, count) in enumerate(images_of.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = (40 * number + rng.integers(0, 120, (side, side, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.fixture
def finished(tmp_path):
    """The directory of a finished run of `cka --matched`, and in it a figure with one number."""
    save_table(pd.DataFrame([["a", "b", "layer", 0, 0.0, 0.5, 0.1, 0]], columns=MATCHED), tmp_path / "matched.csv")
    (tmp_path / "figure-1").mkdir()
    number = ("low_with_high_difference", ("a", "b"), "low with high layers, a - b", 1.0, 0.5, 1.5)
    save_table(planted(number), tmp_path / "figure-1" / "numbers.csv")
    for place in (tmp_path, tmp_path / "figure-1"):
        save_record({"random": False, "preset": "mini"}, place / "run.json")
    return tmp_path


def planted(*rows, df=19):
    """A table of numbers from rows of key, models, label, value, low and high, with these degrees of freedom."""
    rows = [(key, json.dumps(models), *rest, df, 1, np.nan) for key, models, *rest in rows]
    return pd.DataFrame(rows, columns=NUMBERS)
