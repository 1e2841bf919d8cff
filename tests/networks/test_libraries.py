"""Networks of common libraries: a third of the rows of `benchmarks/libraries.csv`, and the libraries' own numbers.

The rows of the sample were checked by eye against the units that their authors repeat; the reason stands beside each.
"""

import re
from dataclasses import replace

import pytest
import torch
from benchmarks.libraries import layers_of, load, rows
from conftest import noise
from torch import nn

import repsim as rs
from repsim.networks.attention_weights import find_attention, watch_attention, watch_heads
from repsim.networks.residual_sums import find_sums, watch_sums
from repsim.networks.tokens import first_tensor

PRE_NORM = "norm attention norm mlp_hidden mlp block"
POST_NORM = "attention norm mlp_hidden mlp norm block"
CONVNEXT = "conv norm mlp_hidden mlp block"
SAMPLE = {
    ("timm", "vit"): (3, PRE_NORM, "transformer blocks"),
    ("timm", "xcit"): (5, "norm attention norm conv norm conv norm mlp_hidden mlp block", "and two of a class token"),
    ("timm", "starnet"): (6, "conv norm conv conv conv norm conv block", "star blocks; convolutions downsample before"),
    ("timm", "efficientvit_msra"): (6, None, "1, 2 and 3; what downsamples has residual sums too and is no block"),
    ("timm", "hgnet"): (5, None, "aggregated layers, of which only one block adds its input"),
    ("torchvision", "swin_t"): (12, PRE_NORM, "2, 2, 6, 2"),
    ("torchvision", "convnext_tiny"): (18, CONVNEXT, "3, 3, 9, 3"),
    ("torchvision", "resnet18"): (8, "conv norm conv norm block", "basic units"),
    ("torchvision", "resnet18 (fx)"): (8, "conv norm conv norm block", "the same, of which no module is called"),
    ("torchvision", "mobilenet_v3_small"): (11, None, "inverted residuals, whose input is added in place"),
    ("torchvision", "lraspp"): (15, None, "the same in a dictionary; 15 of the large one"),
    ("torchvision", "densenet121"): (4, None, "dense blocks without transitions"),
    ("torchvision", "googlenet"): (9, None, "modules of four branches, which no residual sum ends"),
    ("torchvision", "squeezenet1_1"): (8, "conv conv conv block", "fire modules"),
    ("torchvision", "alexnet"): (5, "conv block", "its convolutions, each with its activation"),
    ("transformers", "ViT"): (3, PRE_NORM, "transformer blocks"),
    ("transformers", "Data2VecVision"): (3, PRE_NORM, "its MLP is two modules of one map each"),
    ("transformers", "Swin"): (5, PRE_NORM, "1, 1, 2, 1"),
    ("transformers", "Swinv2"): (5, POST_NORM, "1, 1, 2, 1"),
    ("transformers", "PvtV2"): (5, PRE_NORM, "1, 2, 1, 1"),
    ("transformers", "PoolFormer"): (5, "norm norm mlp_hidden mlp block", "1, 2, 1, 1; pooling mixes tokens"),
    ("transformers", "ConvNext"): (5, CONVNEXT, "1, 2, 1, 1"),
    ("transformers", "ResNet"): (6, None, "bottleneck units: 1, 2, 2, 1"),
    ("transformers", "LevIt"): (
        12,
        "attention mlp_hidden mlp block",
        "4 in each stage: attention and MLP one after another; what downsamples, and the half after it, is none",
    ),
    ("transformers", "DPTForDepthEstimation"): (4, PRE_NORM, "the encoder's; neck and head decode"),
    ("open_clip", "VisionTransformer"): (3, PRE_NORM, "its MLP is a plain sequence"),
    ("vit_pytorch", "ViT"): (3, PRE_NORM, "bare lists of attention and MLP"),
    ("vit_pytorch", "CaiT"): (5, PRE_NORM, "three of patches, two of the class token, their halves wrapped"),
    ("vit_pytorch", "ParallelViT"): (3, None, "two attentions side by side, then two MLPs"),
    ("vit_pytorch", "PiT"): (4, PRE_NORM, "1, 2, 1 in transformers with pooling between"),
    ("vit_pytorch", "CvT"): (5, PRE_NORM, "1, 2, 2 in stages of a convolution, a norm and a transformer"),
    ("vit_pytorch", "NesT"): (6, PRE_NORM, "2, 2, 2; what aggregates is no block"),
    ("vit_pytorch", "XCiT"): (
        5,
        None,
        "three of patches, with a convolution between their halves, two of the class token",
    ),
    ("smp", "Unet resnet18"): (8, "conv norm conv norm block", "the encoder's units"),
    ("own", "nn.TransformerEncoder pre-norm, batch first"): (3, PRE_NORM, "its activation is no module"),
    ("own", "nn.TransformerEncoder post-norm, tokens first"): (3, POST_NORM, "the same"),
    ("own", "residual sums in one forward"): (4, None, "each sum of a convolution in the network's own code"),
}
IMPORTS = {"smp": "segmentation_models_pytorch", "own": "torch"}


def loaded(library: str, name: str) -> rs.Network:
    pytest.importorskip(IMPORTS.get(library, library))
    return load(library, name)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library, name", SAMPLE)
def test_blocks_and_paper_layers_are_as_its_row_says(library, name):
    blocks, order, _ = SAMPLE[library, name]
    measured = layers_of(loaded(library, name))
    assert measured["blocks"].startswith(f"{blocks}:") and (order is None or measured["paper"].endswith(f"; {order}"))
    row = rows()[library, name]
    assert measured == {column: row[column] for column in measured}


def test_no_study_crashes_on_any_of_them():
    assert len(rows()) >= 60
    assert not [key for key, row in rows().items() if " failed: " in row["refused"]]


SAME = {
    "vit": [
        ("timm", "vit"),
        ("transformers", "ViT"),
        ("transformers", "Data2VecVision"),
        ("open_clip", "VisionTransformer"),
        ("vit_pytorch", "ViT"),
        ("own", "nn.TransformerEncoder pre-norm, batch first"),
    ],
    "swinv2": [("timm", "swinv2"), ("transformers", "Swinv2")],
    "convnext": [("torchvision", "convnext_tiny"), ("transformers", "ConvNext"), ("timm", "convnext")],
    "resnet": [("timm", "resnet18"), ("torchvision", "resnet18"), ("torchvision", "resnet18 (fx)")],
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("architecture", SAME)
def test_an_architecture_has_the_same_kinds_of_layers_in_every_library(architecture):
    kinds = set()
    for library, name in SAME[architecture]:
        layers = rs.find_layers(loaded(library, name), "paper")[1:]
        first = next(i for i, layer in enumerate(layers) if layer.kind == "block")
        kinds.add(tuple(layer.kind for layer in layers[: first + 1]))
    assert len(kinds) == 1


NUMBERS = [
    ("timm", "vit"),
    ("torchvision", "convnext_tiny"),
    ("transformers", "ViT"),
    ("transformers", "Swin"),
    ("transformers", "ConvNext"),
    ("transformers", "LevIt"),
    ("open_clip", "VisionTransformer"),
    ("own", "nn.TransformerEncoder pre-norm, batch first"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library, name", NUMBERS)
def test_cka_and_residual_sums_are_those_of_hooked_blocks(library, name):
    """CKA of the first and last block is that of hooked outputs, and the last sum of a block is its hooked output."""
    network = loaded(library, name)
    blocks = [layer.name for layer in rs.find_layers(network, "blocks") if layer.kind == "block"]
    taken, added = {}, {}
    handles = [
        network.module.get_submodule(path).register_forward_hook(
            lambda m, args, out, path=path: taken.update({path: first_tensor(out).clone()})
        )
        for path in blocks
    ]
    images = noise(network, 8)
    take = lambda residual, skip, branch: added.update({residual.layer: skip + branch})  # noqa: E731
    with torch.no_grad(), watch_sums(network, find_sums(network), take):
        network.module(images)
    for handle in handles:
        handle.remove()
    assert list(added) == blocks
    for path in blocks:
        torch.testing.assert_close(added[path].flatten(1), taken[path].flatten(1))
    ends = [blocks[0], blocks[-1]]
    table = rs.layer_cka(network, images=images, batch_size=8, layers=ends).table
    (row,) = table[(table.layer_a == ends[0]) & (table.layer_b == ends[1])].itertuples()
    assert row.cka == pytest.approx(float(rs.cka(*(taken[path].flatten(1) for path in ends))), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ViT", "CLIPVision", "Dinov2", "Data2VecVision", "PvtV2"])
def test_attention_is_what_transformers_returns(name):
    """Attention is that which transformers returns, for PvtV2 in tuples of the 1, 2, 1 and 1 blocks of its stages."""
    network = loaded("transformers", name)
    module = type(network.module)._from_config(network.module.config, attn_implementation="eager").eval()
    network = rs.Network(module, name, transform=network.transform)
    images, taken = noise(network, 2), []
    with torch.no_grad(), watch_attention(network, lambda layer, number, weights: taken.append(weights)):
        module(images)
    with torch.no_grad():
        own = module(images, output_attentions=True).attentions
    own = [block for stage in own for block in (stage if isinstance(stage, tuple) else [stage])]
    assert len(own) == len(taken) == (5 if name == "PvtV2" else 3)
    for expected, weights in zip(own, taken):
        torch.testing.assert_close(weights[:, :, 0], expected)


def given(network: rs.Network, ending: str, images: torch.Tensor, *, result: bool = False) -> list[torch.Tensor]:
    """Inputs, or outputs, of the modules whose path has this ending, in the order in which they run."""
    taken, handles = [], []
    for path, module in network.module.named_modules():
        if path.endswith(ending):
            take = lambda m, args, out: taken.append((out if result else args[0]).clone())  # noqa: E731
            handles.append(module.register_forward_hook(take))
    with torch.no_grad():
        network.module(images)
    for handle in handles:
        handle.remove()
    return taken


def of_cascades(network: rs.Network, images: torch.Tensor) -> list[torch.Tensor]:
    """Softmax of each head's queries and keys, as timm's `CascadedGroupAttention` computes it."""
    weights = []
    cascades = [m for m in network.module.modules() if type(m).__name__ == "CascadedGroupAttention"]
    modules = {module: path for path, module in network.module.named_modules()}
    for cascade in cascades:
        for head in range(cascade.num_heads):
            q, k = (
                given(network, f"{modules[cascade]}.{part}.{head}", images, result=True)[0] for part in ("dws", "qkvs")
            )
            q, k = q.flatten(2) * cascade.scale, k[:, cascade.key_dim : 2 * cascade.key_dim].flatten(2)
            bias = cascade.attention_biases[head, cascade.attention_bias_idxs]
            weights.append((q.transpose(1, 2) @ k + bias).softmax(-1)[:, None])
    return weights


SOFTMAX = {
    ("timm", "cait"): lambda net, x: [w.permute(0, 3, 1, 2) for w in given(net, ".proj_w", x)],
    ("vit_pytorch", "CaiT"): lambda net, x: given(net, ".attend", x, result=True)[:3],
    ("vit_pytorch", "CCT"): lambda net, x: given(net, ".attn_drop", x),
    ("vit_pytorch", "SepViT"): lambda net, x: given(net, "0.attend", x, result=True),
    ("transformers", "MobileViT"): lambda net, x: [w for w in given(net, ".attention.dropout", x) if w.shape[-1] > 1],
    ("timm", "efficientvit_msra"): of_cascades,
}
LEFT_OUT = {
    ("timm", "cait"): r"blocks_token_only\.1\.attn left out",
    ("vit_pytorch", "CaiT"): r"cls_transformer\.layers\.0\.0\.fn\.attend, .* left out",
    ("vit_pytorch", "CCT"): "classifier left out",
    ("vit_pytorch", "SepViT"): r"layers\.0\.2\.layers\.0\.0\.window_attend\.0, .* left out",
    ("transformers", "MobileViT"): r"encoder\.layer\.4\.transformer\.layer\.0\.attention\.attention, .* left out",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library, name", SOFTMAX)
def test_attention_of_an_encoder_is_what_its_softmax_gives_and_the_rest_is_named(library, name):
    network = loaded(library, name)
    with torch.no_grad():
        for parameter in network.module.parameters():  # zeros would make all attention uniform
            parameter.add_(0.05 * torch.randn_like(parameter))
    images, taken = noise(network, 2), []
    with torch.no_grad(), watch_attention(network, lambda layer, number, weights: taken.append(weights.clone())):
        network.module(images)
    own = SOFTMAX[library, name](network, images)
    assert len(own) == len(taken) > 2
    for expected, weights in zip(own, taken):
        torch.testing.assert_close(weights, expected.unflatten(0, (2, -1)).transpose(1, 2))
    notices = " | ".join(find_attention(network).notices)
    assert re.search(LEFT_OUT.get((library, name), "^$"), notices)
    assert ("heads are mixed after the softmax" in notices) == (name.lower() == "cait")


@pytest.mark.parametrize("library, name", [("timm", "xcit"), ("vit_pytorch", "XCiT")])
def test_channel_attention_is_the_reason_why_there_is_no_attention_distance(library, name):
    network = loaded(library, name)
    with pytest.raises(rs.UsageError, match=rf"does not apply to {name}: the queries of \w*\.?\w*s\.0\."):
        rs.attention_distance(network, noise(network, 4))


def test_a_module_called_attention_that_mixes_no_tokens_is_none():
    network = loaded("smp", "Unet resnet18")
    with pytest.raises(rs.UsageError, match="has no attention to measure"):
        rs.attention_distance(network, noise(network, 4))


def traced(network: rs.Network) -> rs.Network:
    return rs.Network(torch.fx.symbolic_trace(network.module), "traced", transform=network.transform)


@pytest.mark.parametrize("name", ["resnet18", "nf_resnet26", "regnety_002"])
def test_blocks_of_a_traced_graph_give_what_those_of_the_module_give(name):
    timm = pytest.importorskip("timm")
    module = timm.create_model(name, zero_init_last=False) if name == "resnet18" else timm.create_model(name)
    network = rs.Network(module.eval(), name, transform=rs.EvalTransform(input_size=(3, 64, 64)))
    images = noise(network, 2)
    activations = []
    for net in (network, traced(network)):
        layers = rs.find_layers(net, "blocks")
        with torch.no_grad(), rs.capture(net, layers) as seen:
            net.module(images)
        activations.append({layer.name: seen[layer.name] for layer in layers if layer.kind == "block"})
    torch.testing.assert_close(*activations)


def test_blocks_of_a_traced_graph_that_no_module_gives_are_taken_where_they_are_added():
    network = loaded("timm", "vit")
    for block in network.module.blocks:
        block.attn.fused_attn = False
    graph, images = traced(network), noise(network, 4)
    names = [layer.name for layer in rs.find_layers(network)]
    assert names == [layer.name for layer in rs.find_layers(graph)] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    taken = []
    for net in (network, graph):
        with torch.no_grad(), rs.capture(net) as seen:
            net.module(images)
        taken.append({name: seen[name] for name in names})
    torch.testing.assert_close(*taken)
    for study in (rs.layer_cka, rs.token_localization):
        tables = [study(net, images, batch_size=4).table.select_dtypes("number") for net in (network, graph)]
        torch.testing.assert_close(*(torch.tensor(table.to_numpy(float)) for table in tables), equal_nan=True)
    with pytest.raises(rs.UsageError, match="'blocks.0' of traced is the result of an addition .* gradients"):
        rs.receptive_fields(graph, images, layers="blocks")
    with pytest.raises(rs.UsageError, match="belongs to no module, and is gone once the network is compiled"):
        rs.layer_cka(replace(graph, compiled=True), images, batch_size=4)
    (last,) = rs.find_layers(graph, ["blocks.1.mlp.fc2"])
    assert last.shape == (17, 192)
    for study in (rs.residual_norms, rs.attention_distance):
        tables = [study(net, images, batch_size=4).table for net in (network, graph)]
        numbers = [table.select_dtypes("number").drop(columns="depth") for table in tables]
        torch.testing.assert_close(*(torch.tensor(columns.to_numpy(float)) for columns in numbers), equal_nan=True)
        assert [name.removesuffix(".attn") for name in tables[0].layer] == list(tables[1].layer)


def test_heads_of_an_attention_whose_projection_is_no_module_that_runs():
    network = loaded("own", "nn.TransformerEncoder pre-norm, batch first")
    attention, images, taken = network.module.encoder.layers[0].self_attn, noise(network, 2), []
    with torch.no_grad(), watch_heads(network, find_attention(network).layers[0], taken.append):
        network.module(images)
    with torch.no_grad(), rs.capture(network, "encoder.layers.0.norm1") as seen:
        network.module(images)
        x = seen["encoder.layers.0.norm1"]
        weights = attention(x, x, x, average_attn_weights=False)[1]
        values = nn.functional.linear(x, *(p.chunk(3)[2] for p in (attention.in_proj_weight, attention.in_proj_bias)))
    expected = weights @ values.unflatten(-1, (2, 16)).transpose(1, 2)
    torch.testing.assert_close(taken[0][:, :, 0], expected)


def test_two_studies_see_the_attention_of_pytorchs_own_module():
    network = loaded("own", "nn.TransformerEncoder pre-norm, batch first")
    images = noise(network, 8)
    heads = rs.head_similarity([network, network], images, window=1, batch_size=8).table
    alone = rs.attention_distance(network, images, batch_size=8).table
    first = alone[alone.block == 0].set_index("head").distance_px
    assert len(heads)
    for row in heads.itertuples():
        assert row.distance_px == pytest.approx(first[int(row.heads)])


def test_the_hidden_layer_of_an_mlp_whose_activation_is_no_module():
    network = loaded("own", "nn.TransformerEncoder pre-norm, batch first")
    layer, images = network.module.encoder.layers[1], noise(network, 2)
    names = [f"encoder.layers.1{end}" for end in (".norm2", ".mlp_hidden", ".linear2")]
    assert [chosen.kind for chosen in rs.find_layers(network, names)] == ["norm", "mlp_hidden", "mlp"]
    with torch.no_grad(), rs.capture(network, names) as seen:
        network.module(images)
        hidden = nn.functional.gelu(layer.linear1(seen[names[0]]))
        torch.testing.assert_close(seen[names[1]], hidden)
        torch.testing.assert_close(seen[names[2]], layer.linear2(hidden))
