"""Small networks of the libraries that people use: what repsim finds in each, and which studies apply.

    python tests/benchmarks/libraries.py              # all; goes on where it stopped
    python tests/benchmarks/libraries.py cait swin    # those whose names hold one of these words, printed

Each has random weights and a small configuration, and needs nothing from a hub. On 4 noise images it goes through every
study; each gives a table or is refused by one sentence of repsim's own, and whatever else is raised is a defect and
stands as `failed`. The table is `libraries.csv` beside this file, and a test takes a third of its rows:

    library, network
    blocks      how many, and their names, brackets for what differs
    paper       how many layers of which kind the preset `paper` has, and those of the first block in their order
    applies     the studies that gave a table
    refused     the others, with what was said
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import itertools
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.survey import Attempts, rows_of

import repsim as rs
from repsim.networks.residual_sums import find_sums

TABLE = Path(__file__).with_suffix(".csv")
IMAGES = 4
CLASSES = 20
"""Images of probes, half of each class."""
CLASS = np.arange(CLASSES) % 2
COLUMNS = ["library", "network", "blocks", "paper", "applies", "refused"]


def timm_(name: str, size: int = 64, **args: Any) -> tuple[nn.Module, int]:
    import timm

    return timm.create_model(name, **args), size


def torchvision_(name: str, size: int = 64, **args: Any) -> tuple[nn.Module, int]:
    import torchvision

    made = getattr(torchvision.models, name, None) or getattr(torchvision.models.segmentation, name)
    return made(weights=None, **args), size


def fx_(name: str, size: int = 64) -> tuple[nn.Module, int]:
    import torchvision
    from torchvision.models.feature_extraction import create_feature_extractor

    return create_feature_extractor(torchvision.models.get_model(name, weights=None), ["flatten"]), size


def fx_vit(size: int = 64) -> tuple[nn.Module, int]:
    """Its norms and sums are no modules in the graph, and fused attention cannot be traced."""
    name, _, args = TIMM["vit"]
    module, _ = timm_(name, size, **args)
    for block in module.blocks:
        block.attn.fused_attn = False
    return torch.fx.symbolic_trace(module), size


def transformers_(name: str, size: int = 64, **args: Any) -> tuple[nn.Module, int]:
    import transformers

    name, _, head = name.partition(":")
    config = getattr(transformers, f"{name}Config")(**args)
    return getattr(transformers, f"{name}{head or 'Model'}")(config), size


def open_clip_(name: str, size: int = 64, **args: Any) -> tuple[nn.Module, int]:
    from open_clip import transformer

    return getattr(transformer, name)(**args), size


def open_clip_resnet(size: int = 64) -> tuple[nn.Module, int]:
    from open_clip.modified_resnet import ModifiedResNet

    return ModifiedResNet(layers=[2, 2, 2, 2], output_dim=32, heads=8, image_size=size, width=16), size


def vit_pytorch_(name: str, size: int = 64, **args: Any) -> tuple[nn.Module, int]:
    module, _, made = name.partition(":")
    return getattr(importlib.import_module(f"vit_pytorch.{module}"), made)(**args), size


def smp_(name: str, encoder: str, size: int = 64) -> tuple[nn.Module, int]:
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, name)(encoder, encoder_weights=None), size


class Encoder(nn.Module):
    """A ViT of PyTorch's own layers, as people write it."""

    def __init__(self, *, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 2, 64, activation="gelu", norm_first=norm_first, batch_first=batch_first)
        self.patches = nn.Conv2d(3, 32, 16, 16)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head, self.batch_first = nn.Linear(32, 5), batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x)
        return self.head(x.mean(1 if self.batch_first else 0))


class Plain(nn.Module):
    """Residual units without a class of their own: everything is in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 4, 4)
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(4))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for conv in self.convs:
            x = x + conv(x).relu()
        return self.head(x.mean((2, 3)))


VIT = {"image_size": 64, "num_classes": 5, "dim": 32, "depth": 3, "heads": 2, "mlp_dim": 64, "patch_size": 16}
HF = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 64,
    "patch_size": 16,
}
CLIP = {
    "image_size": 64,
    "patch_size": 16,
    "width": 32,
    "layers": 3,
    "heads": 2,
    "mlp_ratio": 2.0,
    "output_dim": 16,
}

Builder = Callable[[], tuple[nn.Module, int]]


def _of(build: Callable, *args: Any, **known: Any) -> Builder:
    return lambda: build(*args, **known)


TIMM: dict[str, tuple[str, int, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 3}),
    "vit_parallel": ("vit_small_patch16_18x2_224", 64, {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}),
    "deit3": ("deit3_small_patch16_224", 64, {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}),
    "beit": ("beit_base_patch16_224", 64, {"img_size": 64, "depth": 3, "embed_dim": 48, "num_heads": 3}),
    "eva02": ("eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 3}),
    "cait": ("cait_xxs24_224", 64, {"img_size": 64, "depth": 3}),
    "xcit": ("xcit_nano_12_p16_224", 64, {"depth": 3}),
    "swin": (
        "swin_tiny_patch4_window7_224",
        64,
        {"img_size": 64, "window_size": 4, "depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
    ),
    "swinv2": (
        "swinv2_tiny_window8_256",
        64,
        {"img_size": 64, "window_size": 4, "depths": (1, 1, 2, 1), "embed_dim": 24, "num_heads": (1, 2, 2, 2)},
    ),
    "nest": ("nest_tiny", 64, {"img_size": 64}),
    "efficientvim": ("efficientvim_m1", 128, {}),
    "cspresnet": ("cspresnet50", 64, {}),
    "cspdarknet": ("cspdarknet53", 64, {}),
    "cs3darknet": ("cs3darknet_focus_s", 64, {}),
    "dla": ("dla34", 64, {}),
    "dla_x": ("dla46x_c", 64, {}),
    "poolformer": ("poolformer_s12", 64, {}),
    "poolformerv2": ("poolformerv2_s12", 64, {}),
    "caformer": ("caformer_s18", 64, {}),
    "vgg11": ("vgg11", 64, {}),
    "inception_v3": ("inception_v3", 128, {}),
    "inception_v4": ("inception_v4", 128, {}),
    "inception_resnet": ("inception_resnet_v2", 128, {}),
    "xception": ("legacy_xception", 64, {}),
    "xception41": ("xception41p", 64, {}),
    "densenet": ("densenet121", 64, {}),
    "dpn": ("dpn48b", 64, {}),
    "hgnet": ("hgnetv2_b0", 64, {}),
    "hrnet": ("hrnet_w18_small", 64, {}),
    "gcvit": ("gcvit_xxtiny", 224, {}),
    "shvit": ("shvit_s1", 128, {}),
    "efficientvit_mit": ("efficientvit_b0", 64, {}),
    "efficientvit_msra": ("efficientvit_m0", 128, {}),
    "starnet": ("starnet_s050", 64, {}),
    "crossvit": ("crossvit_tiny_240", 240, {}),
    "convnext": ("convnext_atto", 64, {}),
    "resnet18": ("resnet18", 64, {"zero_init_last": False}),
    "resnet50": ("resnet50", 64, {"zero_init_last": False}),
    "senet": ("legacy_seresnet18", 64, {}),
    "res2net": ("res2next50", 64, {}),
    "resnest": ("resnest14d", 64, {}),
    "skresnet": ("skresnet18", 64, {}),
    "regnety": ("regnety_002", 64, {}),
    "nfnet": ("test_nfnet", 64, {}),
    "mobilenetv3": ("mobilenetv3_small_050", 64, {}),
    "efficientnet": ("test_efficientnet", 64, {}),
    "mixer": ("mixer_s32_224", 64, {"img_size": 64}),
    "gmlp": ("gmlp_ti16_224", 64, {"img_size": 64}),
    "resmlp": ("resmlp_12_224", 64, {"img_size": 64}),
    "levit": ("levit_128s", 224, {}),
    "pit": ("pit_ti_224", 64, {"img_size": 64, "depth": (1, 1, 1)}),
    "pvt_v2": ("pvt_v2_b0", 64, {}),
    "mvitv2": ("mvitv2_tiny", 224, {}),
    "hiera": ("hiera_tiny_224", 224, {}),
    "tnt": ("tnt_s_legacy_patch16_224", 224, {}),
    "twins": ("twins_svt_small", 64, {"img_size": 64}),
    "volo": ("volo_d1_224", 224, {}),
    "visformer": ("visformer_tiny", 224, {}),
    "coat": ("coat_tiny", 64, {"img_size": 64}),
    "convit": ("convit_tiny", 64, {"img_size": 64, "depth": 3, "local_up_to_layer": 2}),
    "coatnet": ("test_coatnet", 64, {"img_size": 64}),
    "maxvit": ("maxvit_rmlp_pico_rw_256", 256, {}),
    "mobilevit": ("mobilevit_xxs", 64, {}),
    "edgenext": ("edgenext_xx_small", 64, {}),
    "repvit": ("repvit_m1", 64, {}),
    "fastvit": ("fastvit_t8", 64, {}),
    "focalnet": ("focalnet_tiny_srf", 64, {}),
    "davit": ("davit_tiny", 64, {}),
    "sequencer": ("sequencer2d_s", 64, {"img_size": 64}),
    "vovnet": ("ese_vovnet19b_slim_dw", 64, {}),
    "rdnet": ("rdnet_tiny", 64, {}),
    "ghostnet": ("ghostnet_050", 64, {}),
    "tiny_vit": ("tiny_vit_5m_224", 224, {}),
}

TORCHVISION = {
    "vit": ("vit_b_16", {"image_size": 64}),
    "swin_t": ("swin_t", {}),
    "swin_v2_t": ("swin_v2_t", {}),
    "maxvit_t": ("maxvit_t", {"size": 224}),
    "convnext_tiny": ("convnext_tiny", {}),
    "resnet18": ("resnet18", {}),
    "resnet50": ("resnet50", {}),
    "regnet_y_400mf": ("regnet_y_400mf", {}),
    "mobilenet_v2": ("mobilenet_v2", {}),
    "mobilenet_v3_small": ("mobilenet_v3_small", {}),
    "efficientnet_b0": ("efficientnet_b0", {}),
    "mnasnet0_5": ("mnasnet0_5", {}),
    "shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", {}),
    "squeezenet1_1": ("squeezenet1_1", {}),
    "densenet121": ("densenet121", {}),
    "googlenet": ("googlenet", {"init_weights": False, "aux_logits": False}),
    "inception_v3": ("inception_v3", {"size": 128, "init_weights": False, "aux_logits": False}),
    "alexnet": ("alexnet", {}),
    "vgg11": ("vgg11", {}),
    "vgg11_bn": ("vgg11_bn", {}),
    "lraspp": ("lraspp_mobilenet_v3_large", {"weights_backbone": None}),
    "fcn_resnet50": ("fcn_resnet50", {"weights_backbone": None}),
}

SWIN = {
    "image_size": 64,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [1, 1, 2, 1],
    "num_heads": [1, 2, 2, 2],
    "window_size": 2,
}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("ViT", HF),
    "DeiT": ("DeiT", HF),
    "Dinov2": ("Dinov2", HF),
    "Dinov2WithRegisters": ("Dinov2WithRegisters", HF),
    "Beit": ("Beit", HF),
    "Data2VecVision": ("Data2VecVision", HF),
    "ViTMAE": ("ViTMAE", {**HF, "mask_ratio": 0.0}),
    "ViTMSN": ("ViTMSN", HF),
    "CLIPVision": ("CLIPVision", HF),
    "SiglipVision": ("SiglipVision", HF),
    "Swin": ("Swin", SWIN),
    "Swinv2": ("Swinv2", SWIN),
    "PvtV2": (
        "PvtV2",
        {
            "image_size": 64,
            "hidden_sizes": [16, 32, 40, 64],
            "num_attention_heads": [1, 2, 5, 8],
            "depths": [1, 2, 1, 1],
        },
    ),
    "Pvt": ("Pvt", {"image_size": 64, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 1, 1]}),
    "Segformer": (
        "Segformer",
        {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 40, 64], "num_attention_heads": [1, 2, 5, 8]},
    ),
    "PoolFormer": ("PoolFormer", {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 40, 64]}),
    "ConvNext": ("ConvNext", {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 40, 64]}),
    "ConvNextV2": ("ConvNextV2", {"depths": [1, 2, 1, 1], "hidden_sizes": [16, 32, 40, 64]}),
    "ResNet": ("ResNet", {"embedding_size": 16, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 2, 1]}),
    "RegNet": (
        "RegNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 40, 64], "depths": [1, 2, 2, 1], "groups_width": 8},
    ),
    "Bit": ("Bit", {"embedding_size": 32, "num_groups": 8, "hidden_sizes": [32, 64, 64, 128], "depths": [1, 2, 2, 1]}),
    "MobileNetV2": ("MobileNetV2", {"image_size": 64}),
    "MobileViT": ("MobileViT", {"image_size": 64}),
    "EfficientNet": (
        "EfficientNet",
        {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.5, "hidden_dim": 320},
    ),
    "LevIt": ("Levit", {"image_size": 128, "size": 128}),
    "Cvt": ("Cvt", {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3]}),
    "DPT": (
        "DPT",
        {
            **HF,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 16, 16],
            "fusion_hidden_size": 16,
        },
    ),
    "DPTForDepthEstimation": (
        "DPT:ForDepthEstimation",
        {
            **HF,
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 16, 16, 16],
            "fusion_hidden_size": 16,
        },
    ),
    "FocalNet": ("FocalNet", {"image_size": 64, "embed_dim": 24, "depths": [1, 1, 2, 1]}),
    "HieraModel": (
        "Hiera",
        {
            "image_size": [64, 64],
            "patch_size": [3, 3],
            "patch_stride": [4, 4],
            "patch_padding": [1, 1],
            "embed_dim": 24,
            "depths": [1, 2, 2, 1],
            "masked_unit_size": [8, 8],
            "query_stride": [2, 2],
            "num_heads": [1, 2, 4, 8],
        },
    ),
    "SwiftFormer": ("SwiftFormer", {"image_size": 64}),
}

OPEN_CLIP = {"VisionTransformer": CLIP}

VIT_PYTORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit:ViT", VIT),
    "SimpleViT": ("simple_vit:SimpleViT", VIT),
    "DeepViT": ("deepvit:DeepViT", VIT),
    "CaiT": ("cait:CaiT", {**VIT, "cls_depth": 2}),
    "ParallelViT": ("parallel_vit:ViT", VIT),
    "PiT": ("pit:PiT", {**VIT, "depth": (1, 2, 1), "patch_size": 8}),
    "CvT": (
        "cvt:CvT",
        {
            "num_classes": 5,
            "s1_emb_dim": 16,
            "s2_emb_dim": 32,
            "s3_emb_dim": 48,
            "s1_depth": 1,
            "s2_depth": 2,
            "s3_depth": 2,
        },
    ),
    "LeViT": (
        "levit:LeViT",
        {
            "image_size": 224,
            "num_classes": 5,
            "dim": (16, 32, 48),
            "depth": 2,
            "heads": (2, 2, 2),
            "mlp_mult": 2,
            "size": 224,
        },
    ),
    "NesT": (
        "nest:NesT",
        {
            "image_size": 64,
            "patch_size": 4,
            "dim": 24,
            "heads": 2,
            "num_hierarchies": 3,
            "block_repeats": (2, 2, 2),
            "num_classes": 5,
        },
    ),
    "CrossViT": (
        "cross_vit:CrossViT",
        {
            "image_size": 64,
            "num_classes": 5,
            "sm_dim": 24,
            "lg_dim": 32,
            "depth": 2,
            "sm_patch_size": 8,
            "lg_patch_size": 16,
            "sm_enc_heads": 2,
            "lg_enc_heads": 2,
            "cross_attn_heads": 2,
        },
    ),
    "RegionViT": (
        "regionvit:RegionViT",
        {"dim": (16, 32, 48, 64), "depth": (1, 2, 1, 1), "num_classes": 5, "size": 224},
    ),
    "CrossFormer": (
        "crossformer:CrossFormer",
        {"num_classes": 5, "dim": (32, 64, 128, 256), "depth": (1, 2, 1, 1), "size": 224},
    ),
    "TwinsSVT": (
        "twins_svt:TwinsSVT",
        {
            "num_classes": 5,
            "s1_emb_dim": 16,
            "s2_emb_dim": 32,
            "s3_emb_dim": 48,
            "s4_emb_dim": 64,
            "s3_depth": 2,
            "size": 224,
        },
    ),
    "XCiT": ("xcit:XCiT", {**VIT, "cls_depth": 2}),
    "MaxViT": (
        "max_vit:MaxViT",
        {
            "num_classes": 5,
            "dim_conv_stem": 16,
            "dim": 16,
            "dim_head": 8,
            "depth": (1, 2),
            "window_size": 7,
            "size": 112,
        },
    ),
    "MobileViT": (
        "mobile_vit:MobileViT",
        {
            "image_size": (64, 64),
            "dims": [16, 24, 32],
            "channels": [16, 16, 16, 16, 24, 24, 32, 32, 40, 40, 64],
            "num_classes": 5,
        },
    ),
    "T2T": (
        "t2t:T2TViT",
        {**{k: v for k, v in VIT.items() if k != "patch_size"}, "t2t_layers": ((7, 4), (3, 2), (3, 2))},
    ),
    "CCT": (
        "cct:CCT",
        {
            "img_size": 64,
            "embedding_dim": 32,
            "n_conv_layers": 2,
            "num_layers": 3,
            "num_heads": 2,
            "mlp_ratio": 2,
            "num_classes": 5,
        },
    ),
    "ScalableViT": (
        "scalable_vit:ScalableViT",
        {
            "num_classes": 5,
            "dim": 16,
            "heads": (1, 2, 2, 2),
            "depth": (1, 2, 1, 1),
            "ssa_dim_key": (8, 8, 8, 8),
            "reduction_factor": (8, 4, 2, 1),
            "window_size": (16, 8, 4, 2),
            "size": 64,
        },
    ),
    "SepViT": (
        "sep_vit:SepViT",
        {
            "num_classes": 5,
            "dim": 16,
            "dim_head": 8,
            "heads": (1, 2, 2, 2),
            "depth": (1, 2, 1, 1),
            "window_size": 7,
            "size": 224,
        },
    ),
}

SMP = {
    "Unet resnet18": ("Unet", "resnet18"),
    "Unet mobilenet_v2": ("Unet", "mobilenet_v2"),
    "FPN efficientnet-b0": ("FPN", "efficientnet-b0"),
    "DeepLabV3 resnet18": ("DeepLabV3", "resnet18"),
    "Segformer mit_b0": ("Segformer", "mit_b0"),
}


def networks() -> dict[tuple[str, str], Builder]:
    """(library, name) -> what builds it."""
    found: dict[tuple[str, str], Builder] = {}
    for name, (model, args) in TORCHVISION.items():
        found["torchvision", name] = _of(torchvision_, model, **args)
    for name in ("resnet18", "vgg11"):
        found["torchvision", f"{name} (fx)"] = _of(fx_, name)
    found["timm", "vit (fx)"] = fx_vit
    for name, (model, args) in TRANSFORMERS.items():
        found["transformers", name] = _of(transformers_, model, **args)
    for name, args in OPEN_CLIP.items():
        found["open_clip", name] = _of(open_clip_, name, **args)
    found["open_clip", "ModifiedResNet"] = open_clip_resnet
    for name, (model, args) in VIT_PYTORCH.items():
        found["vit_pytorch", name] = _of(vit_pytorch_, model, **args)
    for name, (model, encoder) in SMP.items():
        found["smp", name] = _of(smp_, model, encoder)
    for first, batch in itertools.product((True, False), repeat=2):
        name = f"nn.TransformerEncoder {'pre' if first else 'post'}-norm, {'batch' if batch else 'tokens'} first"
        found["own", name] = lambda first=first, batch=batch: (Encoder(norm_first=first, batch_first=batch), 64)
    found["own", "residual sums in one forward"] = lambda: (Plain(), 64)
    for name, (model, size, args) in TIMM.items():
        found["timm", name] = _of(timm_, model, size, **args)
    return found


def load(library: str, name: str) -> rs.Network:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, size = networks()[library, name]()
    return rs.Network(module.eval(), name, transform=rs.EvalTransform(input_size=(3, size, size)))


def short(names: list[str]) -> str:
    """Names of blocks with runs of numbers joined: `layer1.[0-2] layer2.[0-1]`."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        head, number, tail = re.fullmatch(r"(.*?)(\d*)(\D*)", name).groups()
        groups.setdefault((head, tail), []).append(number)
    return " ".join(
        f"{head}{numbers[0] if len(numbers) == 1 else f'[{numbers[0]}-{numbers[-1]}]'}{tail}"
        for (head, tail), numbers in groups.items()
    )


def layers_of(network: rs.Network) -> dict[str, str]:
    """The columns `blocks` and `paper`."""
    blocks = [layer.name for layer in rs.find_layers(network, "blocks") if layer.kind == "block"]
    paper = rs.find_layers(network, "paper")
    kinds = Counter(layer.kind for layer in paper)
    first = list(itertools.islice((each for each in paper if each.kind != "stem"), 12))
    end = next((i for i, each in enumerate(first) if each.kind == "block"), len(first))
    order = " ".join(each.kind for each in first[: end + 1])
    counts = " ".join(f"{kind} {number}" for kind, number in sorted(kinds.items()))
    return {"blocks": f"{len(blocks)}: {short(blocks)}", "paper": f"{counts}; {order}"}


def studies(network: rs.Network, images: torch.Tensor) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield "cka", lambda: rs.layer_cka(network, images=images, batch_size=IMAGES, layers="blocks")
    yield "attention", lambda: rs.attention_distance(network, images, batch_size=IMAGES)
    yield "maps", lambda: rs.attention_maps(network, images, count=2)
    yield "heads", lambda: rs.head_similarity([network, network], images, batch_size=IMAGES)
    yield "residual", lambda: rs.residual_norms(network, images, batch_size=IMAGES)
    first = lambda: [find_sums(network)[0].block]  # noqa: E731
    yield "lesions", lambda: rs.lesions(network, images, blocks=first(), batch_size=IMAGES)
    yield "localization", lambda: rs.token_localization(network, images, batch_size=IMAGES)
    yield "receptive", lambda: rs.receptive_fields(network, images, channels=1, batch_size=IMAGES)
    yield "probes", lambda: probes(network)


def probes(network: rs.Network) -> rs.Result:
    """Of two classes of noise: whether they can be fitted at all."""
    train, test = (rs.ImageSet(noise(network, CLASSES, seed)).labelled(CLASS) for seed in (1, 2))
    how = {"shots": 5, "seeds": 1, "tokens": False, "neighbours": 0, "batch_size": CLASSES}
    return rs.linear_probes(network, test, train=train, **how)


def noise(network: rs.Network, count: int, seed: int = 0) -> torch.Tensor:
    """(n, c, h, w) images of the size it takes."""
    return torch.randn(count, *network.input_size, generator=torch.Generator().manual_seed(seed))


def examine(library: str, name: str) -> dict[str, str]:
    """A row of the table."""
    network = load(library, name)
    images = noise(network, IMAGES)
    row = {"library": library, "network": name}
    attempt = Attempts()

    row |= attempt("layers", lambda: layers_of(network)) or {}
    for what, run in studies(network, images):
        attempt(what, run)
    return row | {
        "applies": " ".join(each for each in attempt.applies if each != "layers"),
        "refused": " | ".join(attempt.refused),
    }


def rows() -> dict[tuple[str, str], dict[str, str]]:
    """Those of the table, by library and network."""
    return {(row["library"], row["network"]): row for row in rows_of(TABLE)}


def main(words: list[str]) -> None:
    wanted = [key for key in networks() if not words or any(word in ":".join(key) for word in words)]
    done = {} if words else rows()
    with contextlib.nullcontext(sys.stdout) if words else TABLE.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not done:
            writer.writeheader()
        for library, name in wanted:
            if (library, name) in done:
                continue
            start = time.monotonic()
            writer.writerow(examine(library, name))
            file.flush()
            print(f"{library} {name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
