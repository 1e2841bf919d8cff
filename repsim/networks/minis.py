"""The bundled small networks: how each is built and where its weights lie.

They see 28 x 28 greyscale images and are shaped like the paper's networks in the ways the
measures care about: a 7 x 7 grid of tokens (as ViT-B/32 at 224 px), 12 blocks, a CLS token; a
bottleneck ResNet of 3-4-6-3 units whose last map is 7 x 7 as well. They are trained on
Fashion-MNIST by `analyses/train_minis.py`; `data/README.md` holds the model card.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import safe_open
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import Bottleneck, ResNet
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

WEIGHTS = Path(__file__).parents[1] / "weights"

# Pixel statistics of the 60,000 Fashion-MNIST training images, in [0, 1] units.
DATA_CONFIG = {
    "input_size": (1, 28, 28),
    "mean": (0.2860,),
    "std": (0.3530,),
    "interpolation": "bilinear",
    "crop_pct": 1.0,
}


class BlockWithoutSkips(Block):
    """A pre-norm transformer block with both skip connections taken out (paper, Figure 8)."""

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        x = self.drop_path1(self.ls1(self.attn(self.norm1(x), *args, **kwargs)))
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


def vit(without_skips: int | None = None, **changes) -> VisionTransformer:
    """ViT for 28 x 28 with 4 x 4 patches; `without_skips` names a block (from 0) to cut."""
    settings: dict[str, Any] = dict(
        img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=96, depth=12, num_heads=8
    )
    model = VisionTransformer(**{**settings, **changes})
    if without_skips is not None:
        model.blocks[without_skips].__class__ = BlockWithoutSkips
    return model


def mixer(**changes) -> MlpMixer:
    """MLP-Mixer on the grid of `vit_mini`, with its depth."""
    settings: dict[str, Any] = dict(img_size=28, patch_size=4, in_chans=1, num_classes=10, embed_dim=128, num_blocks=12)
    return MlpMixer(**{**settings, **changes})


def resnet(width: int = 16, **changes) -> ResNet:
    """Bottleneck ResNet 3-4-6-3 with maps of 28, 14, 7 and 7 px.

    At 28 px the usual stem (stride 4) and three halvings would leave one pixel. The stem keeps
    the resolution, stages 2 and 3 halve it, and stage 4 keeps it at 7 x 7.
    """
    settings: dict[str, Any] = dict(block=Bottleneck, layers=[3, 4, 6, 3], in_chans=1, num_classes=10)
    settings["channels"] = tuple(width * 2**stage for stage in range(4))
    model: Any = ResNet(**{**settings, **changes})
    model.conv1 = nn.Conv2d(1, 64, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    first = model.layer4[0]
    first.conv2.stride = first.downsample[0].stride = (1, 1)
    return model


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "vit_mini": vit,
    "resnet_mini": resnet,
    "vit_mini_gap": partial(vit, class_token=False, global_pool="avg"),
    "mixer_mini": mixer,
    "vit_micro": partial(vit, depth=6),
    **{f"vit_mini_noskip{block}": partial(vit, without_skips=block) for block in range(12)},
}


CLASSES = {"clothes": 10, "rotation": 4}
"""Task a network is trained for -> how many classes it has: kinds of clothes, or quarter turns of the image."""


def bundled() -> list[str]:
    """Names of the networks whose trained weights are here, in the order of the table above."""
    here = {path.stem for path in WEIGHTS.glob("*.safetensors")}
    return [name for name in ARCHITECTURES if name in here] + sorted(here - set(ARCHITECTURES))


def weights_file(name: str) -> Path:
    """Where the trained weights of a bundled network lie (it may not have been trained yet)."""
    return WEIGHTS / f"{name}.safetensors"


def build(name: str, **changes) -> nn.Module:
    """The untrained network; its weights file names the architecture of one that is not in the table."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name](**changes)
    with safe_open(weights_file(name), framework="pt") as file:
        metadata = file.metadata()
    return ARCHITECTURES[metadata["architecture"]](**{"num_classes": CLASSES[metadata["task"]], **changes})
