"""Norms of skip connections and of branches in networks."""

import numpy as np
import pytest
import torch
import torchvision
from conftest import FAMILIES, noise

import repsim as rs
from repsim.tables import OUTLIERS, RESIDUAL


def scaled_vit(gamma: float) -> rs.Network:
    """A small ViT whose last attention branch is scaled by gamma."""
    network = rs.load_model("vit_tiny_patch16_224", weights="random", img_size=64, depth=2, init_values=1.0)
    with torch.no_grad():
        network.module.blocks[1].ls1.gamma.fill_(gamma)
    return network


def rows_of(table, layer, sublayer):
    return table[(table.layer == layer) & (table.sublayer == sublayer)]


def test_the_table_against_the_definition(vit):
    """The rows of attention in block 3 follow from the modules' own inputs and outputs over 60 images."""
    images = rs.ImageSet("sample", images=60)
    table = rs.residual_norms(vit, images, batch_size=20).table
    assert list(table.columns) == RESIDUAL and len(table) == 24 * 50
    raw = torch.cat([batch.inputs[vit.transform] for batch in images.batches([vit.transform], 20)])
    with rs.capture(vit, ["blocks.2", "blocks.3.attn"]) as seen, torch.no_grad():
        vit.module(raw)
    z, f = seen["blocks.2"].double(), seen["blocks.3.attn"].double()
    rows = rows_of(table, "blocks.3", "attention")
    assert list(rows.token) == ["cls", *map(str, range(49))] and (rows.block == 3).all()
    ratio = z.norm(dim=-1) / f.norm(dim=-1)
    expected = {
        "ratio": ratio.mean(0),
        "ratio_se": ratio.std(0) / 60**0.5,
        "cos_output": torch.cosine_similarity(z, z + f, dim=-1).mean(0),
        "cos_branch": torch.cosine_similarity(z, f, dim=-1).mean(0),
        "skip_norm": z.norm(dim=-1).mean(0),
        "branch_norm": f.norm(dim=-1).mean(0),
    }
    for column, values in expected.items():
        np.testing.assert_allclose(rows[column], values, rtol=1e-4, atol=1e-5, err_msg=column)
    np.testing.assert_allclose(rows.ratio_median, ratio.quantile(0.5, dim=0), rtol=0.05)  # 60 values have gaps


def test_scaling_a_branch_divides_the_ratio():
    images = noise(scaled_vit(1), 8)
    once, thrice = (rs.residual_norms(scaled_vit(c), images, batch_size=8).table for c in (1.0, 3.0))
    a, b = rows_of(once, "blocks.1", "attention"), rows_of(thrice, "blocks.1", "attention")
    np.testing.assert_allclose(a.ratio, 3 * b.ratio, rtol=1e-5)
    np.testing.assert_allclose(a.skip_norm, b.skip_norm)
    before, after = rows_of(once, "blocks.0", "mlp"), rows_of(thrice, "blocks.0", "mlp")
    assert (before.ratio == after.ratio).all()


def test_a_branch_of_zero_has_an_infinite_ratio():
    rows = rows_of(
        rs.residual_norms(scaled_vit(0.0), noise(scaled_vit(0), 8), batch_size=8).table, "blocks.1", "attention"
    )
    assert np.isinf(rows.ratio).all() and np.isinf(rows.ratio_median).all() and rows.ratio_se.isna().all()
    np.testing.assert_allclose(rows.cos_output, 1, rtol=1e-6)
    assert rows.cos_branch.isna().all() and (rows.branch_norm == 0).all()


def test_positions_of_a_map_are_tokens(resnet):
    table = rs.residual_norms(resnet, rs.ImageSet("sample", images=20), batch_size=10).table
    assert set(table.sublayer) == {"unit"} and sorted(table.block.unique()) == list(range(16))
    assert len(rows_of(table, "layer1.0", "unit")) == 28 * 28 and len(rows_of(table, "layer4.2", "unit")) == 7 * 7


@pytest.mark.parametrize(
    "name, first",
    [("vit_registers", ["cls", "prefix1", "prefix2", "prefix3", "prefix4", "0"]), ("vit_gap", ["0", "1"])],
)
def test_names_of_tokens(name, first):
    network = FAMILIES[name].load()
    table = rs.residual_norms(network, noise(network, 4), batch_size=4).table
    assert list(table.token[: len(first)]) == first


def test_outliers_are_found_where_they_are_put():
    network = rs.load_model("vit_tiny_patch16_224", weights="random", img_size=64, depth=2)
    with torch.no_grad():
        network.module.pos_embed[0, 3] += 100
    result = rs.residual_norms(network, noise(network, 8), batch_size=8)
    assert list(result.outliers.columns) == OUTLIERS
    assert set(result.outliers.token) == {"2"} and (result.outliers.share == 1).all()
    assert (result.outliers.times_median > 5).all() and len(result.outliers) == 4
    assert result.table.skip_norm.idxmax() in result.table.index[result.table.token == "2"]


def test_several_networks_share_the_images(vit, resnet):
    images = rs.ImageSet("sample", images=20)
    both = rs.residual_norms([vit, resnet], images, batch_size=10).table
    alone = rs.residual_norms(resnet, images, batch_size=10).table
    part = both[both.model == "resnet_mini"].reset_index(drop=True)
    np.testing.assert_array_equal(part.ratio, alone.ratio)
    twice = rs.residual_norms([vit, vit], images, batch_size=10).table
    assert list(twice.model.unique()) == ["vit_mini#1", "vit_mini#2"]


def test_broken_weights_are_named():
    network = rs.load_model("vit_mini")
    with torch.no_grad():
        network.module.blocks[4].mlp.fc2.bias[0] = torch.nan
    with pytest.raises(rs.RepsimError, match="vit_mini, layer 'blocks.4 mlp', are NaN or infinite in batch 0"):
        rs.residual_norms(network, rs.ImageSet("sample", images=8), batch_size=4)


SMALL_MAXVIT = {"input_size": (112, 112), "stem_channels": 8, "partition_size": 7, "head_dim": 8}
SMALL_MAXVIT |= {"block_channels": [8, 16], "block_layers": [1, 1], "stochastic_depth_prob": 0.0}


@pytest.mark.parametrize("kind", ["window", "grid"])
def test_tokens_of_windows_are_numbered_by_their_place_in_the_image(kind):
    """Tokens are numbered as in the map, in MaxViT's windows of 7 x 7 neighbours and in its grids of distant cells."""
    module = torchvision.models.MaxVit(**SMALL_MAXVIT).eval()
    images = torch.randn(4, 3, 112, 112)
    table = rs.residual_norms(module, images).table
    layer = f"blocks.0.layers.0.layers.{kind}_attention"
    norms = table[(table.layer == layer) & (table.sublayer == "attention")].skip_norm.to_numpy()
    seen = []
    with torch.no_grad():
        handle = module.get_submodule(layer).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        module(images)
        handle.remove()
    assert norms == pytest.approx(seen[0].norm(dim=1).mean(0).flatten().numpy(), rel=1e-5)


class InOneForward(torch.nn.Module):
    """A transformer, or a CNN, whose own code runs lists of modules and adds what they give."""

    def __init__(self, parts: str):
        super().__init__()
        self.stem, self.parts = torch.nn.Conv2d(3, 16, 8, 8), parts
        rows = {
            "attention": lambda: torch.nn.MultiheadAttention(16, 2, batch_first=True),
            "norm": lambda: torch.nn.LayerNorm(16),
            "mlp": lambda: torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16)),
            "conv": lambda: torch.nn.Conv2d(16, 16, 3, padding=1),
        }
        for name in rows:
            setattr(self, name, torch.nn.ModuleList(rows[name]() for _ in range(3 if name in parts else 0)))
        self.narrow, self.deep, self.head = (
            torch.nn.Conv2d(16, 16, 1),
            torch.nn.Conv2d(16, 16, 1),
            torch.nn.Linear(16, 5),
        )

    def sums(self, x):
        """(skip, branch) of every residual sum, in their order, and what the head is given."""
        sums, x = [], self.stem(x)
        if self.parts == "conv":
            for number, conv in enumerate(self.conv):
                projected = number == 1
                sums.append((self.narrow(x), self.deep(conv(x).relu())) if projected else (x, conv(x)))
                x = (sums[-1][0] + sums[-1][1]).relu()
            return sums, x.mean((2, 3))
        x = x.flatten(2).transpose(1, 2)
        for attention, norm, mlp in zip(self.attention, self.norm, self.mlp):
            y = norm(x)
            sums.append((x, attention(y, y, y)[0]))
            x = x + sums[-1][1]
            sums.append((x, mlp(x)))
            x = x + sums[-1][1]
        return sums, x.mean(1)

    def forward(self, x):
        return self.head(self.sums(x)[1])


@pytest.mark.parametrize(
    "parts, blocks, sublayers",
    [
        ("attention norm mlp", [f"mlp.{number}.sum" for number in range(3)], ["attention", "mlp"]),
        ("conv", ["conv.0.sum", "deep.sum", "conv.2.sum"], ["unit"]),
    ],
)
def test_sums_in_a_networks_own_code_are_blocks(parts, blocks, sublayers):
    torch.manual_seed(0)
    module = InOneForward(parts).eval()
    network = rs.Network(module, name="own", transform="size=32 mean=0,0,0 std=1,1,1")
    assert [layer.name for layer in rs.find_layers(network, "blocks")] == ["stem", *blocks]
    images = noise(network, 12)
    table = rs.residual_norms(network, images, batch_size=6).table
    assert list(dict.fromkeys(zip(table.layer, table.sublayer))) == [(b, name) for b in blocks for name in sublayers]
    with torch.no_grad(), rs.capture(network, blocks) as seen:
        sums, _ = module.sums(images)
        module(images)
    measured = table.groupby(["layer", "sublayer"], sort=False).ratio.mean()
    axis = 1 if parts == "conv" else 2
    expected = [(skip.norm(dim=axis) / branch.norm(dim=axis)).mean().item() for skip, branch in sums]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    for block, (skip, branch) in zip(blocks, sums[len(sublayers) - 1 :: len(sublayers)]):
        torch.testing.assert_close(seen[block], skip + branch)
    lost = rs.lesions(network, images, blocks=[1], remove="block", batch_size=6).table
    assert lost[lost.removed != "nothing"].agreement.notna().all()


def test_blocks_without_skips_are_named():
    network = rs.load_model("vit_mini_noskip5", weights="random")
    found = rs.residual_norms(network, rs.ImageSet("sample", images=8), batch_size=4)
    assert found.notices == ["1 blocks of vit_mini_noskip5-random have no residual sum: blocks.5"]
    assert 5 not in set(found.table.block)


def test_the_mean_that_a_command_says_last_has_a_joint_error(vit, resnet):
    images = rs.ImageSet("sample", images=24)
    result = rs.residual_norms([vit, resnet], images, batch_size=8)

    def mean(table):
        return (
            table.groupby(["model", "block", "sublayer"], sort=False).ratio.mean().groupby("model", sort=False).mean()
        )

    rest = [np.setdiff1d(np.arange(24), np.arange(start, start + 8)) for start in (0, 8, 16)]
    left = [mean(rs.residual_norms([vit, resnet], images.only(part), batch_size=8).table) for part in rest]
    for row in result.record["means"]:
        assert row["ratio"] == pytest.approx(mean(result.table)[row["model"]], rel=1e-9) and row["df"] == 2
        without = np.array([values[row["model"]] for values in left])
        assert row["se"] == pytest.approx(np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum()), rel=1e-6)
    assert len(result.record["means"]) == 2
