"""Every figure of the paper: its finding there, its roles, and the networks that play these in presets.

The preset `mini` has the bundled networks, trained on Fashion-MNIST; `paper` the public checkpoints nearest to the
paper's, whose own JFT-300M weights are not public (`repsim models` lists the stand-ins).
"""

from __future__ import annotations

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
from repsim.paper.roles import Roles, case

MINI = Roles(
    preset="mini",
    images=5000,
    batch_size=250,
    bundled=True,
    every=case(
        vit="vit_mini",
        cnn="resnet_mini",
        gap="vit_mini_gap",
        little="vit_mini_3pct",
        small="vit_micro",
        mixer="mixer_mini",
        tuned="vit_mini_rotation",
        seed="vit_mini_100pct_seed1",
        noskip1="vit_mini_noskip1",
        noskip5="vit_mini_noskip5",
        noskip9="vit_mini_noskip9",
    ),
    figures={
        # Beside the networks of half of its steps stands the one that had as many of them, on all images. It began
        # elsewhere than vit_mini_3pct: networks that share a start are alike for that alone (analyses/data_scale.py).
        "4": [case(little="vit_mini_3pct", vit="vit_mini_100pct_seed1")],
        "12": [case(vit="vit_mini_100pct_seed1", little="vit_mini_3pct")],
        "13": [case(vit="vit_mini_100pct_seed1", little="vit_mini_3pct", small="vit_micro", cnn="resnet_mini")],
        "G.2": [case(small="vit_micro", vit="vit_mini_100pct_seed1")],
        "D.1": [case(other="vit_mini_100pct_seed1")],
    },
)
_LARGE = [case(vit="vit_l16", cnn="bit_r50x1"), case(vit="vit_h14", cnn="bit_r152x2")]
_ON_IMAGENET = [case(vit="vit_b16_in1k", cnn="resnet50")]
PAPER = Roles(
    preset="paper",
    images=10240,
    batch_size=1024,
    layers="paper",
    every=case(vit="vit_b32", cnn="bit_r50x1", gap="vit_gap", mixer=["mixer_b16", "mixer_l16"]),
    figures={
        "1": _LARGE,
        "2": _LARGE,
        "3": [case(vit=["vit_l16_ft", "vit_h14"])],
        "4": [case(little="vit_l16_in1k", vit="vit_l16_ft"), case(little="vit_h14_in1k")],
        "5": [case(vit=["vit_l16", "vit_h14"], cnn="bit_r50x1"), case(vit="vit_l16", cnn="bit_r101x1")],
        "7": _ON_IMAGENET,
        "9": [case(vit="vit_b32", cnn="bit_r50x1"), case(vit="vit_l16")],
        "10": [case(gap="vit_gap")],
        "13": [
            case(vit="vit_l16", little="vit_l16_in1k", small=["vit_b16", "vit_b32"], cnn=["bit_r50x1", "bit_r152x2"])
        ],
        "B.1": [case(other="vit_b32", cnn="bit_r50x1"), case(other="vit_h14", cnn="bit_r152x2")],
        "C.3": [case(other="vit_l16")],
        "C.5": [case(other=["vit_b32", "vit_b32_in1k"])],
        "C.6": [case(vit="vit_h14")],
        "D.1": [case(other="vit_h14")],
        "D.2": [case(vit=["vit_b32", "vit_l16"])],
        "E.2": _ON_IMAGENET,
        "F.1": [case(vit="vit_b32", little="vit_b32_in1k"), case(vit="vit_b16", little="vit_b16_in1k")],
        "F.2": [case(vit=["vit_b32", "vit_b16", "vit_l16"], cnn="bit_r50x1")],
        "G.1": [case(vit="vit_b16", tuned="vit_b16_ft")],
        "G.2": [case(small="vit_b32", vit=["vit_l16", "vit_h14"]), case(small="vit_l16", vit="vit_h14")],
        "H.2": [case(mixer="mixer_l16", vit="vit_l16", cnn="bit_r50x1")],
    },
)
PRESETS = {roles.preset: roles for roles in (MINI, PAPER)}
"""The networks for every role in each preset, with its images, batches and layers."""
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
            roles=("vit", "cnn"),
            notes={"paper": JFT},
            statistics="uniformity",
        ),
        Similarity(
            number="2",
            title="Similarity of layers between ViT and ResNet",
            shows="The lower half of the ResNet resembles the lowest quarter of the ViT; the ViT's last third nothing.",
            roles=("vit", "cnn"),
            needs=("vit", "cnn"),
            notes={"paper": JFT},
            panels="across",
            statistics="matching",
        ),
        Attention(
            number="3",
            title="Attention distance, trained on much",
            shows="Low blocks have local and global heads, high blocks only global ones.",
            roles=("vit",),
            notes={"paper": f"{JFT}; ViT-H/14 not fine-tuned"},
        ),
        Attention(
            number="4",
            title="Attention distance, trained on little",
            shows="With too little data, heads of low blocks do not become local.",
            roles=("little", "vit"),
            needs=("little",),
            compare=(Comparison("little", "vit"),),
            notes={
                "mini": HALF,
                "paper": "DeiT III's strong augmentation, with which heads may become local where the paper's did not",
            },
        ),
        Heads(
            number="5",
            title="Heads of the first block against lower ResNet units",
            shows="The farther heads look, the less they resemble the lower units of a ResNet.",
            roles=("vit", "cnn"),
            needs=("vit", "cnn"),
            notes={"paper": f"{JFT}; ResNet101 for ResNet152"},
        ),
        Receptive(
            number="6",
            title="Effective receptive fields after residual sums",
            shows="Already large in low ViT layers and global by the middle; those of the ResNet grow step by step.",
            roles=("vit", "cnn"),
            compare=(Comparison("vit", "cnn"),),
            notes={"paper": JFT},
        ),
        Residual(
            number="7",
            title="Skip connection over branch",
            shows="CLS is carried in the first half and rewritten in the second, other tokens the other way round; "
            "ViT ratios lie above the ResNet's.",
            roles=("vit", "cnn"),
            compare=(Comparison("vit", "cnn"),),
            notes={"paper": "strong augmentation in the ViT's training"},
        ),
        Similarity(
            number="8",
            title="Trained without the skip connections of one block",
            shows="Layers before and after that block are unlike; accuracy falls by 4 % for middle blocks.",
            roles=("vit", "noskip1", "noskip5", "noskip9"),
            needs=("vit", "noskip1", "noskip5", "noskip9"),
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
            roles=("vit", "cnn"),
            compare=(Comparison("vit", "cnn"),),
            notes={"paper": JFT},
        ),
        Localization(
            number="10",
            title="CKA of single tokens with input patches, with GAP instead of CLS",
            shows="Without a CLS token, tokens are significantly less localized.",
            roles=("gap", "vit"),
            needs=("gap",),
            compare=(Comparison("gap", "vit"),),
            notes={"paper": "a medium ViT at 256 px for ViT-B/32 with GAP"},
        ),
        ProbesAggregated(
            number="11",
            title="Ten-shot probes: single tokens and aggregated",
            shows="Single tokens of GAP models and ResNets probe well in the end, those of CLS models poorly.",
            roles=("gap", "vit", "cnn"),
            notes={"paper": f"{JFT}; a medium ViT at 256 px for ViT-B/32 with GAP"},
            tokens=True,
            compare=(
                Comparison("gap", "vit", "accuracy_gap_minus_cls", "accuracy, single tokens, last layer, GAP - CLS"),
            ),
        ),
        Matched(
            number="12",
            title="Similarity to a network trained on all images",
            shows="Low layers are alike from 3 or 10 % of the data on; higher layers and larger models need more.",
            roles=("vit", "little", "seed"),
            needs=("vit", "little"),
            notes={"mini": HALF, "paper": UNTRAINED},
        ),
        ProbesCompared(
            number="13",
            title="Ten-shot probes over depth: data and size",
            shows="More data makes better representations in the middle too; larger ViTs beat ResNets there.",
            roles=("vit", "little", "small", "cnn"),
            notes={"mini": f"{HALF}, but for resnet_mini", "paper": f"{JFT}; DeiT III for ViT-L/16 on ImageNet"},
            compare=(
                Comparison("vit", "little", "accuracy_more_data", "accuracy, aggregated, middle third, more data"),
                Comparison(
                    "vit", "cnn", "accuracy_vit_minus_resnet", "accuracy, aggregated, middle third, ViT - ResNet"
                ),
            ),
        ),
        Similarity(
            number="B.1",
            title="Similarity of layers: another ViT",
            shows="As Figures 1 and 2, for ViT-B/32 with ResNet50 and ViT-H/14 with ResNet152.",
            roles=("other", "cnn"),
            needs=("other", "cnn"),
            notes={"paper": JFT},
            panels="all",
            statistics="matching",
        ),
        Receptive(
            number="C.1",
            title="Receptive fields of all sublayers of a ViT",
            shows="After attention and after the MLP of each block.",
            roles=("vit",),
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.2",
            title="Receptive fields of all units of a ResNet",
            shows="They grow step by step.",
            roles=("cnn",),
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.3",
            title="Receptive fields of all sublayers of another ViT",
            shows="As C.1, for ViT-L/16.",
            roles=("other",),
            notes={"paper": JFT},
        ),
        Receptive(
            number="C.4",
            title="Receptive fields of branches, before the residual sum",
            shows="Attention has less from its own patch than after the sum; the MLP resembles it.",
            roles=("vit", "cnn"),
            compare=(Comparison("vit", "cnn"),),
            notes={"paper": JFT},
            branch=True,
            against_sums=True,
        ),
        Attention(
            number="C.5",
            title="Attention distance, another ViT",
            shows="ViT-B/32 has local heads with ImageNet alone too.",
            roles=("other",),
            notes={"paper": JFT},
        ),
        Attention(
            number="C.6",
            title="Attention distance, before fine-tuning",
            shows="ViT-H/14, not fine-tuned, as in Figure 3.",
            roles=("vit", "tuned"),
            needs=("tuned",),
            compare=(Comparison("vit", "tuned"),),
            notes={"mini": "fine-tuned to tell rotations", "paper": JFT},
        ),
        Localization(
            number="D.1",
            title="CKA of single tokens with input patches, last block of another ViT",
            shows="ViT-H/14 is localized too.",
            roles=("other",),
            notes={"mini": HALF, "paper": JFT},
        ),
        Localization(
            number="D.2",
            title="CKA of single tokens with input patches, last block but one",
            shows="Still localized.",
            roles=("vit",),
            notes={"paper": JFT},
            layer=-2,
        ),
        Localization(
            number="D.3",
            title="CKA of single positions with input patches, last unit but one",
            shows="Better localized than the last unit, less than a ViT with CLS.",
            roles=("cnn",),
            notes={"paper": JFT},
            layer=-2,
        ),
        ProbesOfTokens(
            number="D.4",
            title="Ten-shot probes of single tokens",
            shows="Where in the image a token stands matters little in the end.",
            roles=("vit", "gap", "cnn"),
            notes={"paper": JFT},
        ),
        Residual(
            number="E.1",
            title="Skip connection over branch, all tokens",
            shows="CLS is hardly changed in the first layers and much in later ones, mostly by the MLP; "
            "other tokens the other way round.",
            roles=("vit", "seed"),
            compare=(Comparison("vit", "seed"),),
            notes={"mini": f"seed1: {HALF}", "paper": JFT},
            shown="ratio",
        ),
        Residual(
            number="E.2",
            title="Cosine of skip and residual sum",
            shows="Late blocks hardly turn what the skip connections carry.",
            roles=("vit", "cnn"),
            compare=(Comparison("vit", "cnn"),),
            notes={"paper": "strong augmentation in the ViT's training"},
            shown="cosine",
        ),
        ProbesCompared(
            number="F.1",
            title="Ten-shot probes over depth: data, other networks",
            shows="As Figure 13 (data), for ViT-B on ImageNet and CIFAR.",
            roles=("vit", "little"),
            needs=("little",),
            notes={"mini": f"3pct: {HALF}", "paper": f"{JFT}; ImageNet for CIFAR"},
        ),
        ProbesCompared(
            number="F.2",
            title="Ten-shot probes over depth: size, other networks",
            shows="As Figure 13 (sizes), on CIFAR.",
            roles=("vit", "mixer", "cnn"),
            needs=("mixer",),
            notes={"paper": f"{JFT}; ImageNet for CIFAR"},
        ),
        ProbesAggregated(
            number="F.3",
            title="Ten-shot probes: aggregations over depth",
            shows="As Figure 11 (aggregations), on CIFAR.",
            roles=("vit", "gap"),
            notes={"paper": f"{JFT}; a medium ViT at 256 px for ViT-B/32 with GAP; ImageNet for CIFAR"},
        ),
        Matched(
            number="G.1",
            title="Similarity before and after fine-tuning",
            shows="The first four or five layers are preserved.",
            roles=("vit", "tuned"),
            needs=("vit", "tuned"),
            notes={
                "mini": "fine-tuned to tell rotations",
                "paper": "ImageNet-21k weights before and after fine-tuning on ImageNet, the only public pair",
            },
        ),
        Similarity(
            number="G.2",
            title="Similarity of layers between ViTs of two sizes",
            shows="Layers of ViTs of different sizes against each other; it makes no claim of them.",
            roles=("small", "vit"),
            needs=("small", "vit"),
            notes={"mini": HALF, "paper": JFT},
            panels="pairs",
        ),
        Similarity(
            number="H.1",
            title="Similarity of layers within MLP-Mixer",
            shows="A small first block of layers, then a large one.",
            roles=("mixer",),
            notes={"paper": "ImageNet-21k weights; Mixer-B/32 and H/14 have none"},
        ),
        Similarity(
            number="H.2",
            title="Similarity of layers between MLP-Mixer, ViT and ResNet",
            shows="Mixer is closer to the ViT than to the ResNet.",
            roles=("mixer", "vit", "cnn"),
            needs=("mixer", "vit", "cnn"),
            notes={"paper": JFT},
            panels="across",
            statistics="closeness",
        ),
    ]
}
