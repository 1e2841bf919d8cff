"""Which layers are found in networks of every family, and how they are read."""

from collections import Counter

import pytest
import timm
import torch
from conftest import Family, noise
from torch import nn

import repsim as rs
from repsim.networks.layers import find_layers
from repsim.networks.sublayers import attending
from repsim.networks.tracing import Trace


def test_presets_of_every_family(family: Family):
    network = family.load()
    kinds = Counter(layer.kind for layer in find_layers(network, "blocks"))
    assert kinds == {"stem": 1, "block": family.blocks}
    kinds = Counter(layer.kind for layer in find_layers(network, "paper"))
    assert kinds == {"stem": 1, "block": family.blocks, **family.paper}
    assert find_layers(network)[-1].prefix == family.prefix


@pytest.mark.parametrize("preset", ["blocks", "paper", "all"])
def test_what_is_captured_has_the_shape_that_was_promised(family: Family, preset: str):
    network = family.load()
    layers = find_layers(network, preset)
    assert [layer.index for layer in layers] == list(range(len(layers)))
    assert (layers[0].depth, layers[-1].depth) == (0, 1)
    assert len({layer.name for layer in layers}) == len(layers)
    with torch.no_grad(), rs.capture(network, layers) as seen:
        network.module(noise(network, 3))
    assert list(seen) == [layer.name for layer in layers]
    assert {name: tuple(x.shape) for name, x in seen.items()} == {x.name: (3, *x.shape) for x in layers}


def test_a_layer_has_one_depth_whatever_is_selected(family: Family):
    network = family.load()
    blocks = find_layers(network)
    assert [layer.depth for layer in blocks] == pytest.approx([i / (len(blocks) - 1) for i in range(len(blocks))])
    depths = {layer.name: layer.depth for layer in find_layers(network, ".*")}
    for layers in (blocks[2:], find_layers(network, "paper"), find_layers(network, "all")):
        assert [depths[layer.name] for layer in layers] == sorted(layer.depth for layer in layers)


class Bare(nn.Module):
    """Attention outside of any module but the network itself, whose only layer is in a container that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.held = nn.ModuleDict({"qkv": nn.Linear(16, 48)})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        patches = images.unfold(2, 4, 4).unfold(3, 4, 4).flatten(4).flatten(1, 3)
        q, k, v = self.held["qkv"](patches).unsqueeze(1).chunk(3, -1)
        return patches + nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


def test_a_network_without_blocks_or_parts_has_depth():
    network = rs.Network(Bare(), "bare", transform=rs.EvalTransform(input_size=(1, 16, 16)))
    assert [(layer.name, layer.depth) for layer in find_layers(network, ".*")] == [("held.qkv", 0)]
    table = rs.attention_distance(network, torch.randn(8, 1, 16, 16), batch_size=4).table
    assert list(table.layer) == [""] and list(table.depth) == [1]


def test_images_are_the_first_axis(family: Family):
    """An image's activations do not depend on its neighbours in the batch, in any layer."""
    network = family.load()
    images = noise(network, 3)
    with torch.no_grad(), rs.capture(network, "all") as seen:
        network.module(images)
        together = {name: x[2:] for name, x in seen.items()}
        network.module(images[2:])
    for name, x in seen.items():
        assert (x - together[name]).abs().max() <= 1e-4 * x.abs().max(), name


@pytest.mark.parametrize(
    "name, blocks", [("vit_large_patch16_224", 24), ("resnet152", 50), ("vit_base_patch32_224", 12)]
)
def test_counts_of_the_paper(name: str, blocks: int):
    """The paper counts 6 layers per ViT block, 7 per ResNet unit, two per projection, and the stem (Figures 1, B.1)."""
    with torch.device("meta"):  # so that no weights are drawn
        network = timm.create_model(name)
    expected = 6 * blocks + 1 if name.startswith("vit") else 7 * blocks + 2 * 4 + 1
    assert len(find_layers(network, "paper")) == expected


def test_order_within_a_vit_block(vit):
    names = [layer.name.removeprefix("blocks.0") for layer in find_layers(vit, "paper")][1:7]
    assert names == [".norm1", ".attn", ".norm2", ".mlp.act", ".mlp", ""]


class Unseen(nn.Module):
    """A network that repsim knows by no name: a module that runs twice, a tuple, channels last, an in-place ReLU."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)

        def forward(self, x):
            return self.a(x), x

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.two = self.Two()
        self.never = nn.Linear(3, 3)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = self.relu(self.conv(x)).permute(0, 2, 3, 1)
        x, skip = self.two(x)
        x, _ = self.two(x + skip)
        return self.head(x.mean((1, 2)))


def unseen() -> rs.Network:
    torch.manual_seed(0)
    return rs.Network(Unseen(), "unseen", transform=rs.EvalTransform(input_size=(3, 16, 16)))


def test_a_plain_module():
    names = [layer.name for layer in find_layers(unseen(), "all")]
    assert names == ["conv", "relu", "two.a", "two.a:1", "head"]
    assert [layer.name for layer in find_layers(unseen())] == ["conv", "relu", "two", "two:1", "head"]


class BareAttention(nn.Module):
    """Attention without a module of its own around it."""

    def forward(self, x):
        x = x.flatten(2).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_a_plain_sequence_that_is_the_whole_network_is_no_attention():
    module = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU()), BareAttention())
    network = rs.Network(module, "bare", transform=rs.EvalTransform(input_size=(3, 16, 16)))
    assert attending(Trace.of(network)) == set()
    assert [layer.name for layer in find_layers(network, "paper")] == ["0.0", "0.1", "1"]


class AddsToItsInput(nn.Module):
    """A network within a network, which adds its input to the output of a row of blocks that add nothing."""

    class Body(nn.Module):
        def __init__(self):
            super().__init__()
            row = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)]
            self.row = nn.ModuleList(row)

        def forward(self, x):
            y = x
            for block in self.row:
                y = block(y)
            return x + y

    def __init__(self):
        super().__init__()
        self.body = self.Body()

    def forward(self, x):
        return self.body(x).mean((2, 3))


def test_a_network_that_adds_its_input_to_all_it_makes_of_it_is_no_block():
    network = rs.Network(AddsToItsInput(), "adds", transform=rs.EvalTransform(input_size=(3, 16, 16)))
    names = [layer.name for layer in find_layers(network) if layer.kind == "block"]
    assert names == ["body.row.0", "body.row.1", "body.row.2"]


def test_a_module_under_two_names_is_looked_at_once():
    module, runs = Bare(), []
    module.register_forward_hook(lambda *_: runs.append(1))
    for name in ("a", "b", "a"):
        find_layers(rs.Network(module, name, transform=rs.EvalTransform(input_size=(1, 16, 16))), "held.qkv")
        assert len(runs) == 4  # and once more with each of its three images changed


# Blocks that are several modules in a row


def blocks_of(module: nn.Module, preset: str = "blocks", side: int = 16) -> list[tuple[str, str]]:
    network = rs.Network(module.eval(), "net", transform=rs.EvalTransform(input_size=(3, side, side)))
    return [(layer.name, layer.kind) for layer in find_layers(network, preset)]


def convolved(*between: nn.Module) -> list[nn.Module]:
    return [nn.Conv2d(3, 3, 3, padding=1), *between]


def test_each_convolution_of_a_chain_with_its_norm_and_activation_is_a_block():
    unit = lambda: convolved(nn.BatchNorm2d(3), nn.ReLU(inplace=True))  # noqa: E731
    features = nn.Sequential(*unit(), *unit(), nn.MaxPool2d(2), *unit())
    classifier = nn.Sequential(nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))
    module = nn.ModuleDict({"features": features, "classifier": classifier})
    module.forward = lambda x: classifier(features(x).flatten(1))
    assert blocks_of(module) == [("features.2", "block"), ("features.5", "block"), ("features.9", "block")]
    kinds = [kind for _, kind in blocks_of(module, "paper")]
    assert kinds == ["conv", "norm", "block"] * 3  # the image itself is no layer
    network = rs.Network(module, "net", transform=rs.EvalTransform(input_size=(3, 16, 16)))
    assert [layer.depth for layer in find_layers(network)] == pytest.approx([1 / 3, 2 / 3, 1])
    assert rs.receptive_fields(network, noise(network, 4), channels=1).table.layer.tolist() == [
        "features.2",
        "features.5",
        "features.9",
    ]


class Functional(nn.Module):
    """A chain whose activations are no modules."""

    def __init__(self, join: bool = False):
        super().__init__()
        self.conv1, self.conv2, self.scores = (convolved()[0] for _ in range(3))
        self.join = join

    def forward(self, x):
        y = self.conv1(x).relu()
        z = self.conv2(y).relu()
        return self.scores(torch.cat([y, z], 1)[:, :3] if self.join else z)


def test_an_activation_of_a_chain_that_is_no_module_is_what_the_next_is_given():
    module = Functional()
    assert blocks_of(module) == [
        ("conv1.activation", "block"),
        ("conv2.activation", "block"),
    ]  # the third convolution has none
    network = rs.Network(module, "net", transform=rs.EvalTransform(input_size=(3, 16, 16)))
    images = noise(network, 2)
    with torch.no_grad(), rs.capture(network) as seen:
        module(images)
        torch.testing.assert_close(seen["conv1.activation"], module.conv1(images).relu())


def test_what_joins_or_has_one_convolution_is_no_chain():
    assert [kind for _, kind in blocks_of(Functional(join=True))] == ["conv"] * 3
    assert [kind for _, kind in blocks_of(nn.Sequential(*convolved(nn.ReLU())))] == ["conv", "activation"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x, query=None):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        q = q if query is None else query[:, None]
        return nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))


class Residual(nn.Module):
    def __init__(self, branch: nn.Module):
        super().__init__()
        self.of = branch

    def forward(self, x):
        return x + self.of(x)


class Tokens(nn.Module):
    """A transformer whose row of modules, and the function that runs the row, come from a test."""

    def __init__(self, row, run):
        super().__init__()
        self.patches, self.row, self.run = nn.Conv2d(3, 8, 4, 4), nn.ModuleList(row), run

    def forward(self, x):
        return self.run(self.row, self.patches(x).flatten(2).transpose(1, 2)).mean(1)


def one_after_another(row, x):
    for part in row:
        x = part(x)
    return x


def test_halves_of_a_block_one_after_another_in_a_row_are_a_block_together():
    halves = [Residual(Attention()), Residual(mlp()), Residual(Attention()), Residual(mlp())]
    module = Tokens([*halves, nn.Sequential(nn.Linear(8, 8), nn.ReLU()), Residual(mlp())], one_after_another)
    assert blocks_of(module) == [("stem", "stem"), ("row.1", "block"), ("row.3", "block")]
    assert blocks_of(module, "paper")[1:5] == [
        ("row.0.of", "attention"),
        ("row.1.of.1", "mlp_hidden"),
        ("row.1.of.2", "mlp"),
        ("row.1", "block"),
    ]


def test_attention_and_mlps_in_a_row_whose_sums_are_in_the_code_around_are_no_blocks():
    def run(row, x):
        for part in row:
            x = 2 * x + part(x)
        return x

    assert not [name for name, kind in blocks_of(Tokens([Attention(), mlp()] * 2, run)) if kind == "block"]


class Unit(nn.Module):
    """A residual unit that is no MLP."""

    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8))])

    def forward(self, x):
        return x + self.inner[1](self.inner[0](x).tanh())


def test_attention_among_other_units_of_a_stage_stands_for_no_whole_stage():
    """Attention among other units of a stage, as in MobileNetV4's hybrids, does not make a block of the stage."""
    stage = lambda: nn.Sequential(Unit(), Unit(), Residual(Attention()), Residual(Attention()))  # noqa: E731
    names = [name for name, kind in blocks_of(Tokens([stage(), stage()], one_after_another)) if kind == "block"]
    assert names == [f"row.{i}.{k}" for i in range(2) for k in range(4)]


def test_what_only_decides_where_attention_looks_is_no_block():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = Attention(), mlp()

        def forward(self, x, query=None):
            x = x + self.attn(x, query)
            return x + self.mlp(x)

    def run(row, x):
        query = row[0](x)
        return row[2](row[1](x, query), query)

    asks = Tokens([Residual(mlp()), Block(), Block()], run)
    assert [name for name, kind in blocks_of(asks) if kind == "block"] == ["row.1", "row.2"]
    takes_part = Tokens([Residual(mlp()), Block(), Block()], lambda row, x: row[2](row[1](row[0](x))))
    assert [name for name, kind in blocks_of(takes_part) if kind == "block"] == ["row.0", "row.1", "row.2"]


def test_biases_of_positions_make_no_mlp_of_attention():
    """An MLP for biases of positions, as in torchvision's Swin V2, whose blocks come in pairs, is no MLP of a block."""

    class Biased(Attention):
        def __init__(self):
            super().__init__()
            self.cpb_mlp = mlp()

    class MLP(nn.Sequential):
        pass

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn, self.mlp = Biased(), MLP(*mlp())

        def forward(self, x):
            x = x + self.attn(x)
            return x + self.mlp(x)

    module = Tokens([nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block())], one_after_another)
    assert [name for name, kind in blocks_of(module) if kind == "block"] == ["row.0.0", "row.0.1", "row.1.0", "row.1.1"]


def test_one_layer_per_call_of_a_module():
    network = unseen()
    images = noise(network, 4)
    with torch.no_grad(), rs.capture(network, r"two(:1)?") as seen:
        network.module(images)
    x = network.module.relu(network.module.conv(images)).permute(0, 2, 3, 1)
    first = network.module.two(x)[0]
    torch.testing.assert_close(seen["two"], first)
    torch.testing.assert_close(seen["two:1"], network.module.two(first + x)[0])


def test_sequence_first_activations_are_turned_round():
    class SequenceFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(3, 5)

        def forward(self, x):  # (n, c, h, w) -> (t, n, d)
            return self.mix(x.flatten(2).permute(2, 0, 1)).mean(0)

    network = rs.Network(SequenceFirst(), "s", transform=rs.EvalTransform(input_size=(3, 4, 4)))
    (layer,) = find_layers(network, "mix")
    assert layer.batch_axis == 1 and layer.shape == (16, 5)
    with rs.capture(network, "mix") as seen:
        network.module(torch.zeros(7, 3, 4, 4))
    assert seen["mix"].shape == (7, 16, 5)


def test_a_network_that_cannot_run_without_data():
    class Peeks(nn.Sequential):
        def forward(self, x):
            return super().forward(x / max(x.abs().max().item(), 1))

    module = Peeks(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    network = rs.Network(module, "peeks", transform="imagenet")
    assert [layer.name for layer in find_layers(network)] == ["0", "1", "2"]


def test_tracing_leaves_training_modes_alone(vit):
    network = rs.load_model("vit_mini")
    module = network.module.train()
    module.blocks[3].eval()
    find_layers(network, "all")
    assert module.training and not module.blocks[3].training and module.blocks[4].training


def test_channels_last_and_first(vit, resnet):
    swin = rs.load_model("swin_tiny_patch4_window7_224", weights="random")
    assert {layer.layout for layer in find_layers(swin)} == {"channels_last"}
    assert {layer.layout for layer in find_layers(resnet)} == {"channels_first"}
    assert {layer.layout for layer in find_layers(vit)} == {"tokens"}


@pytest.mark.parametrize(
    "layers, message",
    [
        ("block.0", r"near it: blocks\.0.*presets are blocks, paper, all"),
        ("[", "neither a preset"),
        (["blocks.0", "nope"], "no layer of vit_mini matches 'nope'"),
    ],
)
def test_unknown_layers(vit, layers, message):
    with pytest.raises(rs.UsageError, match=message):
        find_layers(vit, layers)


def test_cls_where_there_is_none(resnet):
    with pytest.raises(rs.UsageError, match="has no CLS token"):
        find_layers(resnet, tokens="cls")


def test_wrong_image_size_says_so():
    network = rs.Network(nn.Sequential(nn.Flatten(), nn.Linear(10, 2)), "flat", transform="imagenet")
    with pytest.raises(rs.RepsimError, match="flat cannot run on images of 3x224x224"):
        find_layers(network)
