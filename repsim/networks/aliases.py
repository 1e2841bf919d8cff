"""The paper's names for networks, and the public checkpoint that stands for each.

The paper's JFT-300M weights are not public. `.orig_in21k` are the original ViT-paper weights,
pretrained on ImageNet-21k: the closest recipe. Only words here; no torch, no timm.
"""

from __future__ import annotations

from typing import NamedTuple


class Alias(NamedTuple):
    """A stand-in for a network of the paper: its name in timm, the paper's network, and the source of its weights."""

    timm_name: str
    stands_for: str
    weights: str


ALIASES: dict[str, Alias] = {
    name: Alias(*row)
    for name, row in {
        "vit_b32": ("vit_base_patch32_224.orig_in21k", "ViT-B/32, JFT-300M", "ImageNet-21k, ViT paper"),
        "vit_b16": ("vit_base_patch16_224.orig_in21k", "ViT-B/16, JFT-300M", "ImageNet-21k, ViT paper"),
        "vit_l16": ("vit_large_patch16_224.orig_in21k", "ViT-L/16, JFT-300M", "ImageNet-21k, ViT paper"),
        "vit_h14": ("vit_huge_patch14_224.orig_in21k", "ViT-H/14, JFT-300M", "ImageNet-21k, ViT paper"),
        "vit_b32_in1k": ("vit_base_patch32_224.augreg_in1k", "ViT-B/32, ImageNet", "ImageNet-1k, strong augmentation"),
        "vit_b16_in1k": ("vit_base_patch16_224.augreg_in1k", "ViT-B/16, ImageNet", "ImageNet-1k, strong augmentation"),
        "vit_l16_in1k": ("deit3_large_patch16_224.fb_in1k", "ViT-L/16, ImageNet (nearest)", "ImageNet-1k, DeiT III"),
        "vit_h14_in1k": ("deit3_huge_patch14_224.fb_in1k", "ViT-H/14, ImageNet (nearest)", "ImageNet-1k, DeiT III"),
        "vit_b16_ft": ("vit_base_patch16_224.orig_in21k_ft_in1k", "ViT-B/16, JFT to ImageNet", "21k, fine-tuned on 1k"),
        "vit_l16_ft": (
            "vit_large_patch16_224.augreg_in21k_ft_in1k",
            "ViT-L/16, JFT to ImageNet",
            "21k, fine-tuned on 1k",
        ),
        "vit_gap": ("vit_medium_patch16_gap_256.sw_in12k_ft_in1k", "ViT-B/32 GAP (nearest)", "12k, fine-tuned on 1k"),
        "resnet50": ("resnet50.tv_in1k", "ResNet50, ImageNet", "ImageNet-1k, torchvision"),
        "resnet152": ("resnet152.tv_in1k", "ResNet152, ImageNet", "ImageNet-1k, torchvision"),
        "resnet50_gn": ("resnet50_gn.a1h_in1k", "ResNet50 with GroupNorm, post-activation", "ImageNet-1k, timm A1H"),
        "bit_r50x1": ("resnetv2_50x1_bit.goog_in21k", "ResNet50x1, JFT-300M", "ImageNet-21k, BiT"),
        "bit_r101x1": ("resnetv2_101x1_bit.goog_in21k", "ResNet152x1, JFT-300M (nearest)", "ImageNet-21k, BiT"),
        "bit_r152x2": ("resnetv2_152x2_bit.goog_in21k", "ResNet152x2, JFT-300M", "ImageNet-21k, BiT"),
        "mixer_b16": ("mixer_b16_224.goog_in21k", "Mixer-B/16", "ImageNet-21k"),
        "mixer_l16": ("mixer_l16_224.goog_in21k", "Mixer-L/16", "ImageNet-21k"),
        "mixer_b32": ("mixer_b32_224", "Mixer-B/32", "none public: `random` or a file"),
        "deit_b16": (
            "deit_base_patch16_224.fb_in1k",
            "ViT-B/16, ImageNet (DeiT recipe)",
            "ImageNet-1k, strong augmentation",
        ),
    }.items()
}

BUNDLED: dict[str, str] = {
    "vit_mini": "ViT, 12 blocks, 7 x 7 tokens + CLS, 28 px",
    "resnet_mini": "bottleneck ResNet 3-4-6-3, last map 7 x 7, 28 px",
    "vit_mini_gap": "vit_mini with the mean of tokens instead of CLS",
    "vit_mini_noskip1": "vit_mini trained without the skips of block 1",
    "vit_mini_noskip5": "vit_mini trained without the skips of block 5",
    "vit_mini_noskip9": "vit_mini trained without the skips of block 9",
    "vit_mini_3pct": "vit_mini trained on 3 % of the images, half as long",
    "vit_mini_100pct_seed1": "vit_mini trained on all images, half as long, from another start",
    "mixer_mini": "MLP-Mixer on the grid of vit_mini, 12 blocks",
    "vit_micro": "vit_mini of half the depth, trained half as long",
    "vit_mini_rotation": "vit_mini fine-tuned to tell by which quarter turn an image is rotated",
}
