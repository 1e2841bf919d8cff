"""Passes, layers that run, attention, kinds of tokens and axes are measured, or refused, and never guessed."""

import copy
import re
import warnings

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import repsim as rs
from repsim.networks.layers import notices_of

IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TRANSFORM = rs.EvalTransform(input_size=(3, 32, 32))


def small_vit(**args) -> nn.Module:
    torch.manual_seed(0)
    args = {"embed_dim": 24, "depth": 3, "num_heads": 3, "img_size": 32, "patch_size": 8, **args}
    return timm.models.vision_transformer.VisionTransformer(**args).eval()


def network(module: nn.Module, name: str = "net", **known) -> rs.Network:
    return rs.Network(module, name, transform=TRANSFORM, **known)


# The network to which a pass belongs


class Behind(nn.Module):
    """A network behind another transform."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(1 - 2 * x.flip(-1))


TOGETHER = {
    "cka": lambda a, b: rs.layer_cka([a, b], IMAGES, batch_size=4, layers=r".*blocks\.\d").table,
    "residual": lambda a, b: rs.residual_norms([a, b], IMAGES, batch_size=4).table,
    "localization": lambda a, b: rs.token_localization([a, b], IMAGES, batch_size=4).table,
    "probes": lambda a, b: (
        rs.linear_probes(
            [a, b],
            rs.ImageSet("sample", images=20),
            train=rs.ImageSet("sample", split="train", images=200),
            batch_size=20,
            shots=[2],
        ).table
    ),
}


@pytest.mark.parametrize("study", TOGETHER)
def test_two_networks_that_share_a_module_are_as_two_copies(study):
    module = small_vit()
    shared, apart = Behind(module), Behind(copy.deepcopy(module))
    table = TOGETHER[study](network(module, "a"), network(shared, "b"))
    expected = TOGETHER[study](network(module, "a"), network(apart, "b"))
    pd.testing.assert_frame_equal(table, expected, rtol=1e-6, atol=1e-9)
    numbers = table.select_dtypes("number")
    of_a, of_b = (numbers[table.filter(like="model").iloc[:, 0] == name] for name in "ab")
    assert not np.allclose(*(x.to_numpy(float, na_value=np.nan) for x in (of_a, of_b)), equal_nan=True)


ALONE = {
    "cka": lambda net, **options: rs.layer_cka(net, images=IMAGES, **options).table,
    "attention": lambda net, **options: rs.attention_distance(net, IMAGES, **options).table,
    "heads": lambda net, **options: rs.head_similarity([net, net], IMAGES, **options).table,
    "residual": lambda net, **options: rs.residual_norms(net, IMAGES, **options).table,
    "localization": lambda net, **options: rs.token_localization(net, IMAGES, **options).table,
    "lesions": lambda net, **options: rs.lesions(net, IMAGES, blocks=[1], **options).table,
    "receptive": lambda net, **options: rs.receptive_fields(net, IMAGES, channels=2, **options).table,
}


@pytest.mark.parametrize("study", ALONE)
def test_passes_that_others_run_in_between_are_not_taken(study):
    net = network(small_vit())
    noise = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))

    def disturbed(batches, **counts):
        for batch in batches:
            net.module(noise)
            yield batch
            net.module(noise)

    expected = ALONE[study](net, batch_size=4)
    table = ALONE[study](net, batch_size=4, progress=disturbed)
    pd.testing.assert_frame_equal(table, expected, rtol=1e-9)


# Which layers run


class Repeated(nn.Module):
    """A network with a block that runs three times, and another block in between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = lambda: nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())  # noqa: E731
        self.stem, self.blocks = nn.Conv2d(3, 8, 4, 4), nn.ModuleList([block(), block()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for number in (0, 0, 1, 0):
            x = x + self.blocks[number](x)
        return x


def test_a_block_that_runs_several_times_is_as_many_layers():
    module = Repeated().eval()
    names = ["blocks.0", "blocks.0:1", "blocks.1", "blocks.0:2"]
    blocks = [layer.name for layer in rs.find_layers(network(module), "blocks")]
    assert blocks == ["stem", *names]
    paper = [layer.name for layer in rs.find_layers(network(module), "paper") if layer.kind == "block"]
    assert paper == names
    table = rs.layer_cka(network(module), images=IMAGES, batch_size=8).table
    with torch.no_grad():
        x = module.stem(IMAGES)
        outputs = {}
        for name in names:
            outputs[name] = module.blocks[int(name[7])](x)
            x = x + outputs[name]
    for a in names:
        for b in names:
            expected = rs.cka(outputs[a].flatten(1), outputs[b].flatten(1))
            (row,) = table[(table.layer_a == a) & (table.layer_b == b)].itertuples()
            assert row.cka == pytest.approx(float(expected), abs=1e-5)


def test_residual_sums_of_a_block_that_runs_several_times():
    module = small_vit(depth=1)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.vit.patch_embed(x)
            for _ in range(3):
                x = self.vit.blocks[0](x)
            return x

    table = rs.residual_norms(network(Twice().eval()), IMAGES, batch_size=8).table
    assert list(table.layer.unique()) == ["vit.blocks.0", "vit.blocks.0:1", "vit.blocks.0:2"]
    x, block = module.patch_embed(IMAGES), module.blocks[0]
    with torch.no_grad():
        for layer in table.layer.unique():
            branch = block.attn(block.norm1(x))
            ratio = (x.norm(dim=-1) / branch.norm(dim=-1)).mean(0)
            rows = table[(table.layer == layer) & (table.sublayer == "attention")]
            np.testing.assert_allclose(rows.ratio, ratio, rtol=1e-4)
            x = block(x)


def parametrised(module: nn.Module) -> nn.Module:
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.utils.parametrizations.weight_norm(part)
    return module


WRAPPED = {
    "as it is": lambda module: module,
    "parametrised": parametrised,
    "data parallel": nn.DataParallel,
    "graph": lambda module: create_feature_extractor(module, ["avgpool"]),
    "symbolically traced": torch.fx.symbolic_trace,
    "in another": lambda module: nn.Sequential(module),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_a_resnet_has_its_blocks_however_it_is_kept(kind):
    torch.manual_seed(0)
    module = torchvision.models.resnet18().eval()
    expected = rs.layer_cka(network(module), images=IMAGES, batch_size=8).table
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        net = network(WRAPPED[kind](copy.deepcopy(module)))
    table = rs.layer_cka(net, images=IMAGES, batch_size=8).table
    blocks = [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert [name.removeprefix("module.").removeprefix("0.") for name in table.layer_a.unique()] == ["stem", *blocks]
    np.testing.assert_allclose(table.cka, expected.cka, atol=1e-5)
    assert notices_of(net) == []


@pytest.mark.parametrize(
    "model, said",
    [
        (
            "swin_tiny_patch4_window7_224",
            "runs 3 modules that are not blocks: layers.1.downsample, layers.2.downsample",
        ),
        ("vit_tiny_patch16_224", ""),
        ("dla46x_c", r"runs 7 modules that are not blocks: level2.root, .* and 1 more"),
    ],
)
def test_what_runs_and_is_in_no_preset_is_named(model, said):
    net = rs.load_model(model, weights="random")
    notices = notices_of(net)
    assert len(notices) == bool(said)
    assert not said or re.search(said, notices[0])


class Mixing(nn.Module):
    """A layer that subtracts the mean of the batch from every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0, keepdim=True)


def test_a_layer_that_depends_on_several_images_is_refused_by_name():
    module = nn.Sequential(nn.Conv2d(3, 8, 4, 4), Mixing(), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
    assert [layer.name for layer in rs.find_layers(network(module), ["0"])] == ["0"]
    for name in ("1", "2", "3"):
        with pytest.raises(rs.UsageError, match=f"layer '{name}' of net depends on several images of a batch"):
            rs.find_layers(network(module), [name])


# Attention is read whole, or it is an error


@torch.library.custom_op("repsim_tests::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


class OwnKernel(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = attention.qkv, attention.proj, attention.num_heads

    def forward(self, x: torch.Tensor, **options) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("which", [0, 1, 2])
def test_an_own_kernel_is_an_error_that_names_the_module(which):
    module = small_vit()
    module.blocks[which].attn = OwnKernel(module.blocks[which].attn)
    net = network(module)
    for study in (rs.attention_distance, lambda other, images: rs.head_similarity([net, other], images)):
        with pytest.raises(rs.UsageError, match=rf"cannot read all attention of .*: in blocks\.{which}\.attn"):
            study(net, IMAGES)


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = (q @ k.transpose(-2, -1) / 8**0.5).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def by_steps(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention in steps, as in fused kernels, which keep sums and the largest logit so far."""
    most, total, result = torch.full((*q.shape[:-1], 1), -1e30), torch.zeros(*q.shape[:-1], 1), torch.zeros_like(q)
    for keys, values in zip(k.split(5, 2), v.split(5, 2)):
        logits = q @ keys.transpose(-2, -1) / 8**0.5
        larger = torch.maximum(most, logits.amax(-1, keepdim=True))
        parts, before, most = (logits - larger).exp(), (most - larger).exp(), larger
        total, result = total * before + parts.sum(-1, keepdim=True), result * before + parts @ values
    return result / total


def entry_by_entry(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    weights = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1).exp()
    return ((weights / weights.sum(-1, keepdim=True)).unsqueeze(-1) * v.unsqueeze(2)).sum(3)


def gated(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1)).softmax(-1) * q.mean(-1, keepdim=True).sigmoid() @ v


def nearest(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    logits, indices = (q @ k.transpose(-2, -1)).topk(3, -1)
    return torch.zeros(*q.shape[:-1], k.shape[2]).scatter(-1, indices, logits.softmax(-1)) @ v


UNREAD = {
    "exp, normalised by hand": by_hand,
    "in steps": by_steps,
    "entry by entry": entry_by_entry,
    "weights entry by entry": lambda q, k, v: (
        (q @ k.transpose(-2, -1)).softmax(-1).unsqueeze(-1) * v.unsqueeze(2)
    ).sum(3),
    "linear": lambda q, k, v: q.relu() @ (k.relu().transpose(-2, -1) @ v),
    "relu": lambda q, k, v: (q @ k.transpose(-2, -1)).relu() @ v,
    "normalised": lambda q, k, v: nn.functional.layer_norm((q @ k.transpose(-2, -1)).softmax(-1), (k.shape[2],)) @ v,
    "log-softmax": lambda q, k, v: (q @ k.transpose(-2, -1)).log_softmax(-1).exp() @ v,
    "distances": lambda q, k, v: (-torch.cdist(q, k)).softmax(-1) @ v,
    "the nearest": nearest,
    "gated": gated,
    "below PyTorch's function": lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0],
}


class Attends(nn.Module):
    def __init__(self, attention: nn.Module, compute) -> None:
        super().__init__()
        self.qkv, self.proj, self.compute = attention.qkv, attention.proj, compute

    def forward(self, x: torch.Tensor, **mask) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 3, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(self.compute(q, k, v).transpose(1, 2).flatten(2))


def attending(compute, which: int) -> rs.Network:
    module = small_vit()
    module.blocks[which].attn = Attends(module.blocks[which].attn, compute)
    return network(module)


@pytest.mark.parametrize("kind", UNREAD)
def test_tokens_summed_with_other_factors_than_weights_that_are_read_are_an_error(kind):
    for which in (0, 1):
        said = rf"cannot read all attention of .*: in blocks\.{which}\.attn \(Attends\)"
        with pytest.raises(rs.UsageError, match=said):
            rs.attention_distance(attending(UNREAD[kind], which), IMAGES)


LINEAR = {
    "both": lambda q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    "keys alone": lambda q, k, v: q @ (k.softmax(-2).mT @ v),
    "by einsum": lambda q, k, v: torch.einsum(
        "bhnd,bhde->bhne", q.softmax(-1), torch.einsum("bhnd,bhne->bhde", k.softmax(-2), v)
    ),
}


@pytest.mark.filterwarnings("ignore::repsim.errors.Notice")
@pytest.mark.parametrize("kind", LINEAR)
def test_linear_attention_is_left_out_for_what_it_is(kind):
    result = rs.attention_distance(attending(LINEAR[kind], 1), IMAGES)
    assert result.table.layer.unique().tolist() == ["blocks.0.attn", "blocks.2.attn"]
    (said,) = [notice for notice in result.notices if "left out" in notice]
    assert "without weights between tokens, as linear attention is" in said and "blocks.1.attn left out" in said
    module = small_vit()
    for block in module.blocks:
        block.attn = Attends(block.attn, LINEAR[kind])
    with pytest.raises(rs.UsageError, match=r"blocks\.0\.attn, .* make no weights between tokens"):
        rs.attention_distance(network(module), IMAGES)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
def test_a_traced_block_is_read_or_named():
    module = small_vit()
    tokens = torch.zeros(2, 17, 24)
    module.blocks[1] = torch.jit.trace(module.blocks[1], tokens)
    with pytest.raises(rs.UsageError, match=r"cannot read all attention of .*: in blocks\.1 "):
        rs.attention_distance(network(module), IMAGES)
    plain, traced = small_vit(), small_vit()
    for block in (*plain.blocks, *traced.blocks):
        block.attn.fused_attn = False
    traced.blocks[1] = torch.jit.trace(traced.blocks[1], tokens)
    tables = [rs.attention_distance(network(vit), IMAGES).table for vit in (plain, traced)]
    np.testing.assert_allclose(*(table.distance_px for table in tables), rtol=1e-6)


def test_parts_of_queries_one_after_another_are_an_error():
    def in_parts(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.cat([(part @ k.transpose(-2, -1)).softmax(-1) @ v for part in q.split(5, 2)], 2)

    with pytest.raises(rs.UsageError, match=r"blocks\.1\.attn in net attends to parts of its queries"):
        rs.attention_distance(attending(in_parts, 1), IMAGES)


READ = {
    "entry by entry": lambda q, k, v: (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1).div(8**0.5).softmax(-1) @ v,
    "einsum": lambda q, k, v: torch.einsum(
        "bhqk,bhkd->bhqd", torch.einsum("bhqd,bhkd->bhqk", q, k).div(8**0.5).softmax(-1), v
    ),
    "head by head": lambda q, k, v: torch.stack(
        [(a @ b.transpose(-2, -1) / 8**0.5).softmax(-1) @ c for a, b, c in zip(*(x.unbind(1) for x in (q, k, v)))], 1
    ),
    "two products": lambda q, k, v: (q @ k.transpose(-2, -1) / 8**0.5).softmax(-1) @ v,
}


@pytest.mark.parametrize("kind", READ)
def test_attention_computed_otherwise_is_the_same(kind):
    tables = [rs.attention_distance(net, IMAGES).table for net in (network(small_vit()), attending(READ[kind], 1))]
    np.testing.assert_allclose(*(table.distance_px for table in tables), rtol=1e-5)


def encoder(batch_first: bool, norm_first: bool) -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(24, 3, 48, batch_first=batch_first, norm_first=norm_first, dropout=0.0)

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 24, 8, 8)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.patches(x).flatten(2)
            return self.encoder(x.transpose(1, 2) if batch_first else x.permute(2, 0, 1))

    return Encoder().eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_own_encoder_with_and_without_its_fast_path(batch_first, norm_first):
    module = encoder(batch_first, norm_first)
    table = rs.attention_distance(network(module), IMAGES, batch_size=8).table
    places = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).flatten(0, 1) * 8
    apart = torch.cdist(places, places)
    x = module.patches(IMAGES).flatten(2).transpose(1, 2)
    with torch.no_grad():
        for block, layer in enumerate(module.encoder.layers):
            attention = copy.deepcopy(layer.self_attn)
            attention.batch_first = True
            given = layer.norm1(x) if norm_first else x
            weights = attention(given, given, given, average_attn_weights=False)[1]
            expected = (weights * apart).sum(-1).mean((0, 2))
            np.testing.assert_allclose(table[table.block == block].distance_px, expected, rtol=1e-4)
            x = layer(x) if batch_first else layer(x.transpose(0, 1)).transpose(0, 1)


# Tokens before the grid


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("registers", [0, 1, 4])
@pytest.mark.parametrize("cls", [True, False])
def test_registers_are_no_cls_tokens_and_in_no_grid(cls, registers, wrap):
    pool = "token" if cls else "avg"
    module = small_vit(class_token=cls, reg_tokens=registers, global_pool=pool)
    net = network(Behind(module).eval() if wrap else module)
    (layer,) = rs.find_layers(net, [f"{'module.' * wrap}blocks.1"])
    assert layer.names == ("cls",) * cls + ("register",) * registers and layer.grid == (4, 4)
    with torch.no_grad(), rs.capture(net, [layer]) as seen:
        net.module(IMAGES)
    x = seen[layer.name]
    torch.testing.assert_close(layer.select(x, "pooled"), x[:, cls + registers :].mean(1))
    if cls:
        assert torch.equal(layer.select(x, "cls"), x[:, 0])
    else:
        with pytest.raises(rs.UsageError, match="no CLS token"):
            rs.layer_cka(net, images=IMAGES, tokens="cls", batch_size=8)


class Unnamed(nn.Module):
    """A network with two tokens whose kind nothing says."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = small_vit(class_token=False, global_pool="avg", no_embed_class=True)
        self.extra = nn.Parameter(torch.randn(1, 2, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.extra.expand(len(x), -1, -1), self.vit.patch_embed(x)], 1)
        return self.vit.blocks(x)


def test_what_nothing_names_can_be_declared():
    module = Unnamed().eval()
    names = [f"vit.blocks.{i}" for i in range(3)]
    with pytest.raises(
        rs.UsageError, match=r"2 tokens before its grid, .* say what they are with Network\(..., prefix="
    ):
        rs.layer_cka(network(module), images=IMAGES, layers=names, tokens="cls", batch_size=8)
    declared = network(module, prefix=("register", "cls"))
    table = rs.layer_cka(declared, images=IMAGES, layers=names, tokens="cls", batch_size=8).table
    with torch.no_grad(), rs.capture(network(module), names) as seen:
        module(IMAGES)
    expected = rs.cka(seen["vit.blocks.0"][:, 1], seen["vit.blocks.2"][:, 1])
    (row,) = table[(table.layer_a == "vit.blocks.0") & (table.layer_b == "vit.blocks.2")].itertuples()
    assert row.cka == pytest.approx(float(expected), abs=1e-5)


# Axes


class Views(nn.Module):
    """A network that puts two views of every image into one batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 8, 8)
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()) for _ in range(2)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.conv(torch.cat([x, x.flip(-1)])))


def test_two_views_in_a_batch_belong_to_their_image():
    module = Views().eval()
    (layer,) = rs.find_layers(network(module), ["blocks.1"])
    assert (layer.batch_axis, layer.before, layer.fold, layer.shape) == (0, 2, 1, (2, 8, 4, 4))
    table = rs.layer_cka(network(module), images=IMAGES, layers=["blocks.0", "blocks.1"], batch_size=8).table
    with torch.no_grad():
        a = module.blocks[0](module.conv(torch.cat([IMAGES, IMAGES.flip(-1)])))
        b = module.blocks[1](a)
    a, b = (x.unflatten(0, (2, 8)).transpose(0, 1).flatten(1) for x in (a, b))
    assert table.cka.iloc[1] == pytest.approx(float(rs.cka(a, b)), abs=1e-5)
    with pytest.raises(rs.UsageError, match="has no pooled tokens: it holds each place of the image several times"):
        rs.layer_cka(network(module), images=IMAGES, layers=["blocks.0"], tokens="pooled", batch_size=8)
