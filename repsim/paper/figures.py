"""Every figure of the paper, once: what it shows there, and which networks it is made with here.

The preset `mini` has the bundled networks, trained on Fashion-MNIST; `paper` the public checkpoints nearest to the
paper's, whose own JFT-300M weights are not public (`repsim models` says what stands for what).
"""

from __future__ import annotations

from typing import Any

from repsim.paper.exhibits import (
    Attention,
    Comparison,
    Exhibit,
    Heads,
    Localization,
    Matched,
    ProbesAggregated,
    ProbesCompared,
    ProbesOfTokens,
    Receptive,
    Residual,
    Similarity,
)

PRESETS: dict[str, dict[str, Any]] = {
    "mini": {"images": 5000, "batch_size": 250, "layers": "blocks", "bundled": True},
    "paper": {"images": 10240, "batch_size": 1024, "layers": "paper", "bundled": False},
}
"""What a preset takes where nothing else is asked for, and whether its networks are bundled, if they were trained."""
JFT = "ImageNet-21k weights for JFT-300M ones"
UNTRAINED = "no public checkpoints are trained so; the preset `mini` has some"
HALF = "half of vit_mini's steps of training"

FIGURES: dict[str, Exhibit] = {
    figure.number: figure
    for figure in [
        Similarity(
            number="1",
            title="Similarity of layers within networks",
            shows="ViT layers are alike throughout; ResNets have stages, and low and high layers differ.",
            networks={
                "mini": (("vit_mini", "resnet_mini"),),
                "paper": (("vit_l16", "bit_r50x1"), ("vit_h14", "bit_r152x2")),
            },
            notes={"paper": JFT},
            statistics="uniformity",
        ),
        Similarity(
            number="2",
            title="Similarity of layers between ViT and ResNet",
            shows="The lower half of the ResNet resembles the lowest quarter of the ViT; the ViT's last third nothing.",
            networks={
                "mini": (("vit_mini", "resnet_mini"),),
                "paper": (("vit_l16", "bit_r50x1"), ("vit_h14", "bit_r152x2")),
            },
            notes={"paper": JFT},
            panels="across",
            statistics="matching",
        ),
        Attention(
            number="3",
            title="Attention distance, trained on much",
            shows="Low blocks have local and global heads, high blocks only global ones.",
            networks={"mini": ("vit_mini",), "paper": ("vit_l16_ft", "vit_h14")},
            notes={"paper": f"{JFT}; ViT-H/14 not fine-tuned"},
        ),
        Attention(
            number="4",
            title="Attention distance, trained on little",
            shows="With too little data, heads of low blocks do not become local.",
            networks={
                "mini": ("vit_mini_3pct", "vit_mini_100pct_seed1"),
                "paper": ("vit_l16_in1k", "vit_l16_ft", "vit_h14_in1k"),
            },
            notes={
                "mini": HALF,
                "paper": "DeiT III's strong augmentation, with which heads may become local where the paper's did not",
            },
        ),
        Heads(
            number="5",
            title="Heads of the first block against lower ResNet units",
            shows="The farther heads look, the less they resemble the lower units of a ResNet.",
            networks={
                "mini": (("vit_mini", "resnet_mini"),),
                "paper": (("vit_l16", "bit_r50x1"), ("vit_h14", "bit_r50x1"), ("vit_l16", "bit_r101x1")),
            },
            notes={"paper": f"{JFT}; ResNet101 for ResNet152"},
        ),
        Receptive(
            number="6",
            title="Effective receptive fields after residual sums",
            shows="Already large in low ViT layers and global by the middle; those of the ResNet grow step by step.",
            networks={"mini": ("vit_mini", "resnet_mini"), "paper": ("vit_b32", "bit_r50x1")},
            notes={"paper": JFT},
        ),
        Residual(
            number="7",
            title="Skip connection over branch",
            shows="CLS is carried in the first half and rewritten in the second, other tokens the other way round; "
            "ViT ratios lie above the ResNet's.",
            networks={"mini": ("vit_mini", "resnet_mini"), "paper": ("vit_b16_in1k", "resnet50")},
            notes={"paper": "strong augmentation in the ViT's training"},
        ),
        Similarity(
            number="8",
            title="Trained without the skip connections of one block",
            shows="Layers before and after that block are unlike; accuracy falls by 4 % for middle blocks.",
            networks={"mini": (("vit_mini", "vit_mini_noskip1", "vit_mini_noskip5", "vit_mini_noskip9"),)},
            notes={
                "mini": "trained for two thirds of the untouched network's steps, one seed each",
                "paper": UNTRAINED,
            },
            layers="blocks",
            without_skips=(1, 5, 9),
        ),
        Localization(
            number="9",
            title="CKA of single tokens with input patches, last block or unit",
            shows="ViT tokens stay at their place to the last block, those at the edges less; ResNet positions do not.",
            networks={"mini": ("vit_mini", "resnet_mini"), "paper": ("vit_b32", "bit_r50x1", "vit_l16")},
            notes={"paper": JFT},
        ),
        Localization(
            number="10",
            title="CKA of single tokens with input patches, with GAP instead of CLS",
            shows="Without a CLS token, tokens are significantly less localized.",
            networks={"mini": ("vit_mini_gap", "vit_mini"), "paper": ("vit_gap",)},
            notes={"paper": "a medium ViT at 256 px for ViT-B/32 with GAP"},
        ),
        ProbesAggregated(
            number="11",
            title="Ten-shot probes: single tokens and aggregated",
            shows="Single tokens of GAP models and ResNets probe well in the end, those of CLS models poorly.",
            networks={
                "mini": ("vit_mini_gap", "vit_mini", "resnet_mini"),
                "paper": ("vit_gap", "vit_b32", "bit_r50x1"),
            },
            notes={"paper": f"{JFT}; a medium ViT at 256 px for ViT-B/32 with GAP"},
            tokens=True,
            compare=(Comparison("accuracy_gap_minus_cls", "accuracy, single tokens, last layer, GAP - CLS", 0, 1),),
        ),
        Matched(
            number="12",
            title="Similarity to a network trained on all images",
            shows="Low layers are alike from 3 or 10 % of the data on; higher layers and larger models need more.",
            # From another start: networks that share it are alike for that alone (analyses/data_scale.py).
            networks={"mini": (("vit_mini_100pct_seed1", "vit_mini_3pct"),)},
            notes={"mini": HALF, "paper": UNTRAINED},
        ),
        ProbesCompared(
            number="13",
            title="Ten-shot probes over depth: data and size",
            shows="More data makes better representations in the middle too; larger ViTs beat ResNets there.",
            networks={
                "mini": ("vit_mini_100pct_seed1", "vit_mini_3pct", "vit_micro", "resnet_mini"),
                "paper": ("vit_l16", "vit_l16_in1k", "vit_b16", "vit_b32", "bit_r50x1", "bit_r152x2"),
            },
            notes={"mini": f"{HALF}, but for resnet_mini", "paper": f"{JFT}; DeiT III for ViT-L/16 on ImageNet"},
            compare=(
                Comparison("accuracy_more_data", "accuracy, aggregated, middle third, more data", 0, 1),
                Comparison("accuracy_vit_minus_resnet", "accuracy, aggregated, middle third, ViT - ResNet", 0, -1),
            ),
        ),
        Similarity(
            number="B.1",
            title="Similarity of layers: another ViT",
            shows="As Figures 1 and 2, for ViT-B/32 with ResNet50 and ViT-H/14 with ResNet152.",
            networks={
                "mini": (("vit_mini_gap", "resnet_mini"),),
                "paper": (("vit_b32", "bit_r50x1"), ("vit_h14", "bit_r152x2")),
            },
            notes={"paper": JFT},
            panels="all",
            statistics="matching",
        ),
        Receptive(
            number="C.1",
            title="Receptive fields of all sublayers of a ViT",
            shows="After attention and after the MLP of each block.",
            networks={"mini": ("vit_mini",), "paper": ("vit_b32",)},
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.2",
            title="Receptive fields of all units of a ResNet",
            shows="They grow step by step.",
            networks={"mini": ("resnet_mini",), "paper": ("bit_r50x1",)},
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.3",
            title="Receptive fields of all sublayers of another ViT",
            shows="As C.1, for ViT-L/16.",
            networks={"mini": ("vit_mini_gap",), "paper": ("vit_l16",)},
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.4",
            title="Receptive fields of branches, before the residual sum",
            shows="Attention has less from its own patch than after the sum; the MLP resembles it.",
            networks={"mini": ("vit_mini", "resnet_mini"), "paper": ("vit_b32", "bit_r50x1")},
            notes={"paper": JFT},
            branch=True,
            against_sums=True,
        ),
        Attention(
            number="C.5",
            title="Attention distance, another ViT",
            shows="ViT-B/32 has local heads with ImageNet alone too.",
            networks={"mini": ("vit_mini_gap",), "paper": ("vit_b32", "vit_b32_in1k")},
            notes={"paper": JFT},
        ),
        Attention(
            number="C.6",
            title="Attention distance, before fine-tuning",
            shows="ViT-H/14, not fine-tuned, as in Figure 3.",
            networks={"mini": ("vit_mini", "vit_mini_rotation"), "paper": ("vit_h14",)},
            notes={"mini": "fine-tuned to tell rotations", "paper": JFT},
        ),
        Localization(
            number="D.1",
            title="CKA of single tokens with input patches, last block of another ViT",
            shows="ViT-H/14 is localized too.",
            networks={"mini": ("vit_mini_100pct_seed1",), "paper": ("vit_h14",)},
            notes={"mini": HALF, "paper": JFT},
        ),
        Localization(
            number="D.2",
            title="CKA of single tokens with input patches, last block but one",
            shows="Still localized.",
            networks={"mini": ("vit_mini",), "paper": ("vit_b32", "vit_l16")},
            notes={"paper": JFT},
            layer=-2,
        ),
        Localization(
            number="D.3",
            title="CKA of single positions with input patches, last unit but one",
            shows="Better localized than the last unit, less than a ViT with CLS.",
            networks={"mini": ("resnet_mini",), "paper": ("bit_r50x1",)},
            notes={"paper": JFT},
            layer=-2,
        ),
        ProbesOfTokens(
            number="D.4",
            title="Ten-shot probes of single tokens",
            shows="Where in the image a token stands matters little in the end.",
            networks={
                "mini": ("vit_mini", "vit_mini_gap", "resnet_mini"),
                "paper": ("vit_b32", "vit_gap", "bit_r50x1"),
            },
            notes={"paper": JFT},
        ),
        Residual(
            number="E.1",
            title="Skip connection over branch, all tokens",
            shows="CLS is hardly changed in the first layers and much in later ones, mostly by the MLP; "
            "other tokens the other way round.",
            networks={"mini": ("vit_mini", "vit_mini_100pct_seed1"), "paper": ("vit_b32",)},
            notes={"mini": f"seed1: {HALF}", "paper": JFT},
            shown="ratio",
        ),
        Residual(
            number="E.2",
            title="Cosine of skip and residual sum",
            shows="Late blocks hardly turn what the skip connections carry.",
            networks={"mini": ("vit_mini", "resnet_mini"), "paper": ("vit_b16_in1k", "resnet50")},
            notes={"paper": "strong augmentation in the ViT's training"},
            shown="cosine",
        ),
        ProbesCompared(
            number="F.1",
            title="Ten-shot probes over depth: data, other networks",
            shows="As Figure 13 (data), for ViT-B on ImageNet and CIFAR.",
            networks={
                "mini": ("vit_mini", "vit_mini_3pct"),
                "paper": ("vit_b32", "vit_b32_in1k", "vit_b16", "vit_b16_in1k"),
            },
            notes={"mini": f"3pct: {HALF}", "paper": f"{JFT}; ImageNet for CIFAR"},
        ),
        ProbesCompared(
            number="F.2",
            title="Ten-shot probes over depth: size, other networks",
            shows="As Figure 13 (sizes), on CIFAR.",
            networks={
                "mini": ("vit_mini", "mixer_mini", "resnet_mini"),
                "paper": ("vit_b32", "vit_b16", "vit_l16", "bit_r50x1"),
            },
            notes={"paper": f"{JFT}; ImageNet for CIFAR"},
        ),
        ProbesAggregated(
            number="F.3",
            title="Ten-shot probes: aggregations over depth",
            shows="As Figure 11 (aggregations), on CIFAR.",
            networks={"mini": ("vit_mini", "vit_mini_gap"), "paper": ("vit_b32", "vit_gap")},
            notes={"paper": f"{JFT}; a medium ViT at 256 px for ViT-B/32 with GAP; ImageNet for CIFAR"},
        ),
        Matched(
            number="G.1",
            title="Similarity before and after fine-tuning",
            shows="The first four or five layers are preserved.",
            networks={"mini": (("vit_mini", "vit_mini_rotation"),), "paper": (("vit_b16", "vit_b16_ft"),)},
            notes={
                "mini": "fine-tuned to tell rotations",
                "paper": "ImageNet-21k weights before and after fine-tuning on ImageNet, the only public pair",
            },
        ),
        Similarity(
            number="G.2",
            title="Similarity of layers between ViTs of two sizes",
            shows="Layers of ViTs of different sizes against each other; it makes no claim of them.",
            networks={"mini": (("vit_micro", "vit_mini_100pct_seed1"),), "paper": (("vit_b32", "vit_l16", "vit_h14"),)},
            notes={"mini": HALF, "paper": JFT},
            panels="pairs",
        ),
        Similarity(
            number="H.1",
            title="Similarity of layers within MLP-Mixer",
            shows="A small first block of layers, then a large one.",
            networks={"mini": (("mixer_mini",),), "paper": (("mixer_b16",), ("mixer_l16",))},
            notes={"paper": "ImageNet-21k weights; Mixer-B/32 and H/14 have none"},
        ),
        Similarity(
            number="H.2",
            title="Similarity of layers between MLP-Mixer, ViT and ResNet",
            shows="Mixer is closer to the ViT than to the ResNet.",
            networks={
                "mini": (("mixer_mini", "vit_mini", "resnet_mini"),),
                "paper": (("mixer_l16", "vit_l16", "bit_r50x1"),),
            },
            notes={"paper": JFT},
            panels="across",
            statistics="closeness",
        ),
    ]
}
