"""Residual sums are found in the operations that a network runs."""

from collections import Counter

import pytest
import torch
from conftest import FAMILIES, noise
from test_hooks import hooks_on
from torch import nn

import repsim as rs
from repsim.networks.models import Network
from repsim.networks.residual_sums import blocks_without, find_sums, watch_sums

SUBLAYERS = {
    **dict.fromkeys(["resnet18", "resnet50", "bit", "convnext"], ["unit"]),
    "mixer": ["token_mixing", "channel_mixing"],
}
"""What each block of a family adds to the stream; of all others attention and an MLP."""
COUNTS = {
    **{name: dict.fromkeys(SUBLAYERS.get(name, ["attention", "mlp"]), FAMILIES[name].blocks) for name in FAMILIES},
    "coatnet": {"unit": 7, "attention": 9, "mlp": 9},  # 7 convolutional units, 9 transformer blocks
}
"""How many residual sums of each kind a family has."""


def operands(network: Network, images: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    seen = {}
    with (
        torch.no_grad(),
        watch_sums(network, find_sums(network), lambda s, z, f: seen.update({s.name: (z.clone(), f.clone())})),
    ):
        network.module.eval()(images)
    return seen


def inputs_and_outputs(network: Network, images: torch.Tensor) -> tuple[dict, dict]:
    """The inputs and outputs of every module, from hooks of the test's own."""
    given, outputs, handles = {}, {}, []
    for path, module in network.module.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda m, args, path=path: keep(given, path, args[0])),
            module.register_forward_hook(lambda m, args, result, path=path: keep(outputs, path, result)),
        ]
    with torch.no_grad():
        network.module.eval()(images)
    for handle in handles:
        handle.remove()
    return given, outputs


def keep(store: dict, path: str, value: object) -> None:
    if isinstance(value, torch.Tensor):
        store[path] = value.clone()


def next_input(network: Network, name: str, given: dict, outputs: dict) -> torch.Tensor:
    """The tensor with which the network goes on after a sum, by the names of the modules of its family."""
    layer, sublayer = name.split()
    if sublayer in ("attention", "token_mixing"):
        return given[f"{layer}.norm2" if f"{layer}.norm2" in given else f"{layer}.1"]  # vit-pytorch: the MLP itself
    last = network.module.get_submodule(layer)
    activation = next((f"{layer}.{act}" for act in ("act3", "act2") if f"{layer}.{act}" in given), None)
    if activation is not None and type(last).__name__ in ("Bottleneck", "BasicBlock"):
        return given[activation]  # a ResNet unit, before its last activation
    if layer in outputs:
        return outputs[layer]
    row, _, number = layer.rpartition(".")
    transformer = row.rpartition(".")[0]
    after = [path for path in (f"{row}.{int(number) + 1}.0", f"{transformer}.norm") if path in given]
    return given[after[0]] if after else outputs[transformer]


@pytest.mark.parametrize("name", FAMILIES)
def test_skip_plus_branch_is_what_the_network_goes_on_with(name):
    network = FAMILIES[name].load()
    images = noise(network, 4)
    sums = operands(network, images)
    given, outputs = inputs_and_outputs(network, images)
    assert Counter(key.split()[1] for key in sums) == COUNTS[name]
    for key, (skip, branch) in sums.items():
        expected = next_input(network, key, given, outputs)
        torch.testing.assert_close(
            (skip + branch).flatten(1), expected.flatten(1), rtol=1e-6, atol=1e-6 * expected.abs().max().item()
        )


def test_the_skip_of_a_resnet_unit_has_its_projection(resnet):
    images = noise(resnet, 4)
    sums = operands(resnet, images)
    given, outputs = inputs_and_outputs(resnet, images)
    assert torch.equal(sums["layer2.0 unit"][0], outputs["layer2.0.downsample"])
    assert torch.equal(sums["layer2.1 unit"][0], given["layer2.1"])


@pytest.mark.parametrize("name", ["resnet18", "bit", "convnext", "mixer", "vit", "coatnet"])
def test_the_first_skip_of_a_block_is_what_enters_it(name):
    """The operand that is the skip is the input of the block, unless channels or size change and it is projected."""
    network = FAMILIES[name].load()
    images = noise(network, 4)
    sums = operands(network, images)
    given, outputs = inputs_and_outputs(network, images)
    first = {key.split()[0]: skip for key, (skip, _) in reversed(sums.items())}
    same = [layer for layer in first if given[layer].shape == outputs[layer].shape]
    assert len(same) >= 2 and all(torch.equal(first[layer], given[layer]) for layer in same)


def test_the_branch_is_taken_after_layer_scale():
    network = rs.load_model(
        "vit_tiny_patch16_224", weights="random", img_size=64, depth=2, init_values=0.1, drop_path_rate=0.5
    )
    images = noise(network, 4)
    sums = operands(network, images)
    given, outputs = inputs_and_outputs(network, images)
    for block in (0, 1):
        assert torch.equal(sums[f"blocks.{block} attention"][1], outputs[f"blocks.{block}.ls1"])
        assert torch.equal(sums[f"blocks.{block} mlp"][1], outputs[f"blocks.{block}.ls2"])


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("skip_first", [False, True])
def test_the_skip_is_told_from_the_branch_in_any_order(skip_first, in_place):
    class Unit(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(6, 6), nn.Tanh())

        def forward(self, x):
            f = self.fc(x)
            a, b = (x, f) if skip_first else (f, x)
            if in_place:
                a = a.clone()
                a += b
                return a
            return a + b

    network = Network(nn.Sequential(nn.Flatten(), nn.Sequential(Unit(), Unit())), "units")
    network = network.sized((1, 2, 3))
    images = torch.randn(5, 1, 2, 3)
    sums = operands(network, images)
    assert list(sums) == ["1.0 unit", "1.1 unit"]
    assert torch.equal(sums["1.0 unit"][0], images.flatten(1))


class Unit(nn.Module):
    """A block of two linear branches, joined as a test says."""

    def __init__(self, join):
        super().__init__()
        self.a, self.b, self.join = nn.Linear(6, 6), nn.Linear(6, 6), join

    def forward(self, x):
        return self.join(x, self.a, self.b)


def network_of(join, count=2) -> Network:
    blocks = nn.Sequential(*(nn.Sequential(Unit(join)) for _ in range(count)))
    return Network(nn.Sequential(nn.Flatten(), blocks), "made up").sized((1, 2, 3))


def twice(join):
    """A sum of the kind in question, then a plain sum."""
    return lambda x, a, b: (lambda y: y + b(y))(join(x, a(x)))


@pytest.mark.parametrize(
    "join",
    [
        lambda x, f: x - f,
        lambda x, f: torch.lerp(x, f, 0.5),
        lambda x, f: torch.stack([x, f]).sum(0),
        lambda x, f: x * torch.sigmoid(f),
        lambda x, f: torch.add(x, f, alpha=2),
    ],
)
def test_a_stream_that_cannot_be_followed_is_no_sum_less_but_an_error(join):
    with pytest.raises(rs.UsageError, match="can be followed back from the output to an operation"):
        find_sums(network_of(twice(join)))


def test_a_gate_is_not_taken_for_a_skip():
    with pytest.raises(rs.UsageError, match="cannot tell which is the skip"):
        find_sums(network_of(lambda x, a, b: (lambda h: x * (1 - torch.sigmoid(b(h))) + h)(a(x))))


def test_sums_are_found_where_the_kernel_on_meta_tensors_adds_more():
    """The mask of attention in a block's own code is no sum, though the kernel on meta tensors adds it openly."""
    mask = torch.zeros(2, 2)

    def join(x, a, b):
        heads = a(x).view(-1, 1, 2, 3)
        x = x + nn.functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask).flatten(1)
        return x + b(x)

    network = network_of(join)
    images = torch.randn(4, 1, 2, 3)
    sums = operands(network, images)
    assert len(sums) == 4 and torch.equal(next(iter(sums.values()))[0], images.flatten(1))


def test_a_network_that_adds_other_things_than_before():
    class Moody(nn.Module):
        skip = True

        def __init__(self):
            super().__init__()
            self.fc = nn.Sequential(nn.Linear(6, 6))

        def forward(self, x):
            return x + self.fc(x) if Moody.skip else self.fc(x)

    network = Network(nn.Sequential(nn.Flatten(), nn.Sequential(Moody(), Moody())), "moody").sized((1, 2, 3))
    sums = find_sums(network)
    Moody.skip = False
    wrong = pytest.raises(rs.RepsimError, match="moody no longer adds '1.0 unit' as it did when")
    with wrong, torch.no_grad(), watch_sums(network, sums, lambda *_: None):
        network.module(torch.randn(4, 1, 2, 3))


def test_a_skip_that_is_the_same_for_all_images_is_a_skip():
    """A skip that is the same for all images is a skip, as CaiT's CLS token in its first class attention."""

    class Token(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.randn(1, 6)), nn.Sequential(nn.Linear(6, 6))

        def forward(self, x):
            return self.token.expand(len(x), -1) + self.fc(x)

    network = Network(nn.Sequential(nn.Flatten(), nn.Sequential(Token(), Token())), "token").sized((1, 2, 3))
    sums = operands(network, torch.randn(5, 1, 2, 3))
    assert torch.equal(sums["1.0 unit"][0], network.module[1][0].token.expand(5, -1))


class Region(nn.Module):
    """A block that adds to the first of two tokens, joins the two, and adds to both, as RegionViT does."""

    def __init__(self, both: bool = False):
        super().__init__()
        self.a, self.b, self.both = nn.Sequential(nn.Linear(3, 3)), nn.Linear(3, 3), both

    def forward(self, x):
        first, rest = x.split(1, 1)
        first = first + self.a(first)
        x = torch.cat([first, rest + self.a(rest) if self.both else rest], 1)
        return x + self.b(x)


def of_tokens(*blocks: nn.Module) -> Network:
    return Network(nn.Sequential(nn.Flatten(2), nn.Sequential(*blocks)), "tokens").sized((2, 1, 3))


def test_a_sum_in_one_part_of_what_a_block_puts_together_is_found():
    images = torch.randn(5, 2, 1, 3)
    sums = operands(of_tokens(Region(), Region()), images)
    assert list(sums) == ["1.0 unit", "1.0 unit2", "1.1 unit", "1.1 unit2"]
    assert torch.equal(sums["1.0 unit"][0], images[:, :1, 0])
    assert torch.equal(sums["1.0 unit2"][0][:, 1:], images[:, 1:, 0])


def test_sums_in_several_parts_of_what_a_block_puts_together_are_an_error():
    with pytest.raises(rs.UsageError, match="can be followed back from the output to an operation 'cat' only"):
        find_sums(of_tokens(Region(both=True), Region(both=True)))


def test_sums_that_do_not_enter_what_a_block_returns_first_are_named():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 6)

        def forward(self, x):
            x = x[0] if isinstance(x, tuple) else x
            return x + self.a(x), x + self.b(x)

    network = Network(nn.Sequential(nn.Flatten(), nn.Sequential(Two(), Two())), "two").sized((1, 2, 3))
    sums = find_sums(network)
    assert [entry.name for entry in sums] == ["1.0 unit", "1.1 unit"]
    (said,) = blocks_without(network, sums)
    assert said.startswith("residual sums of 1.0, 1.1 in two are left out where they do not enter the first tensor")


def test_blocks_without_skips_have_no_sums():
    sums = find_sums(rs.load_model("vit_mini_noskip5", weights="random"))
    assert sorted({entry.block for entry in sums}) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize(
    "model, message",
    [
        ("mobilenetv1_100", "has no blocks with residual sums that repsim can find"),
        ("repvgg_a0", "adds in stages.0.0, repsim cannot tell which is the skip and which is the branch"),
        (
            "tiny_vit_5m_224",
            "stages.1.blocks.0 .* can be followed back from the output to an operation 'convolution' only",
        ),
    ],
)
def test_networks_whose_sums_cannot_be_found(model, message):
    with pytest.raises(rs.UsageError, match=message):
        find_sums(rs.load_model(model, weights="random"))


def test_watching_changes_nothing_and_leaves_nothing(vit):
    images = noise(vit, 4)
    sums = find_sums(vit)
    with torch.no_grad():
        before = vit.module(images)
        with watch_sums(vit, sums, lambda *_: None):
            assert torch.equal(vit.module(images), before)
        with pytest.raises(ZeroDivisionError), watch_sums(vit, sums, lambda *_: 1 / 0):
            vit.module(images)
        assert torch.equal(vit.module(images), before)
    assert hooks_on(vit.module) == 0


def test_after_an_error_the_next_pass_is_counted_from_its_start(vit):
    images, names = noise(vit, 4), []
    sums = find_sums(vit)

    def take(entry, skip, branch):
        names.append(entry.name)
        if len(names) == 3:
            raise ValueError

    with torch.no_grad(), watch_sums(vit, sums, take):
        with pytest.raises(ValueError):
            vit.module(images)
        names += ["again"]
        vit.module(images)
    assert names[4:] == [entry.name for entry in sums]
