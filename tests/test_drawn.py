"""repsim's numbers on networks drawn at random against their truth (see `drawn`)."""

import numpy as np
import pytest
import torch
from drawn import Drawn, Run, drawn
from measures.test_cka import hsic_from_definition

import repsim as rs
from repsim.networks.layers import find_layers

DRAWS, AT_ONCE, IMAGES = 320, 20, 6
NAMES = {"cls_token": "cls", "class_embedding": "cls", "dist_token": "distillation"}


def cka(x, y):
    """Of features in float64, by the definition of unbiased HSIC; NaN where one is the same in all images."""
    x, y = (each.flatten(1) - each.flatten(1).mean(0) for each in (x, y))
    if min(x.abs().max(), y.abs().max()) < 1e-9:
        return np.nan
    own = hsic_from_definition(x, x) * hsic_from_definition(y, y)
    return (hsic_from_definition(x, y) / own.sqrt()).item()


def assert_near(found, expected, what):
    assert abs(found - expected) < 1e-4 or (np.isnan(found) and np.isnan(expected)), f"{what}: {found}, {expected}"


def check(of: Drawn) -> None:
    """Raise AssertionError unless all that repsim says of a drawn network is true."""
    network = rs.Network(of.module, f"drawn {of.seed}", transform=rs.EvalTransform(input_size=of.size))
    images = torch.rand(IMAGES, *of.size, generator=torch.Generator().manual_seed(of.seed)) * 2 - 1
    with torch.no_grad():
        runs = of.truth(images)
    names = [run.name for run in runs]
    layers = find_layers(network, names)
    assert [layer.name for layer in layers] == names
    check_tokens(of, network, images, dict(zip(names, layers)), runs)
    check_similarity(of, network, images, runs)
    check_patches(network, images, runs)
    check_distances(of, network, images, runs)
    check_centres(of, network, images, runs[-1])


def prefix_order(of: Drawn) -> list[int]:
    """CLS first, then distillation, then the others as they come."""
    names = [NAMES.get(name, "register") for name in of.net.of]
    return sorted(range(len(names)), key=lambda i: (names[i] != "cls", names[i] != "distillation", i))


def check_tokens(of: Drawn, network: rs.Network, images: torch.Tensor, layers: dict, runs: list[Run]) -> None:
    order = prefix_order(of)
    with torch.no_grad(), rs.capture(network, list(layers.values())) as seen:
        network.module(images)
        for run in runs:
            layer = layers[run.name]
            assert layer.grid == tuple(run.grid.shape[1:3]), f"{run.name}: grid {layer.grid}"
            assert layer.names == tuple(NAMES.get(of.net.of[i], "register") for i in order), run.name
            found = layer.tokens(seen[run.name]).double()
            expected = torch.cat([run.prefix[:, order], run.grid.flatten(1, 2)], 1)
            assert found.shape == expected.shape, f"{run.name}: {found.shape}"
            apart = (found - expected).abs().max() / expected.abs().max()
            assert apart < 2e-5, f"{run.name}: tokens off by {apart:.1e}"


def check_similarity(of: Drawn, network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
    truths = {"pooled": lambda run: run.grid.mean((1, 2)), "spatial": lambda run: run.grid}
    if "cls_token" in of.net.of or "class_embedding" in of.net.of:
        truths["cls"] = lambda run: run.prefix[:, prefix_order(of)[0]]
    else:
        with pytest.raises(rs.UsageError, match="no CLS token"):
            find_layers(network, [runs[0].name], tokens="cls")
    for tokens, truth in truths.items():
        how = {"layers": [run.name for run in runs], "tokens": tokens, "batch_size": IMAGES}
        table = rs.layer_cka(network, images=images, **how).table.set_index(["layer_a", "layer_b"]).cka
        for a in runs:
            for b in runs:
                expected = cka(truth(a), truth(b))
                assert_near(table[a.name, b.name], expected, f"{tokens} CKA of {a.name} and {b.name}")


def check_patches(network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
    """Every token of the last block with every patch of the image."""
    run = runs[-1]
    _, h, w, _ = run.grid.shape
    table = rs.token_localization(network, images, layers=[run.name], batch_size=IMAGES).table
    patches = images.double().unflatten(2, (h, -1)).unflatten(4, (w, -1)).permute(0, 2, 4, 1, 3, 5)
    for row in table.sample(4, random_state=0).itertuples():
        token, patch = run.grid[:, row.token_row, row.token_col], patches[:, row.patch_row, row.patch_col]
        assert_near(row.cka, cka(token, patch), f"{run.name}: CKA of a token and a patch")


def check_distances(of: Drawn, network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
    attending = [run for run in runs if run.weights is not None]
    if not attending:
        with pytest.raises(rs.UsageError, match="no attention"):
            rs.attention_distance(network, images)
        return
    table = rs.attention_distance(network, images, batch_size=IMAGES).table
    for block, run in enumerate(attending):
        of_grid = run.weights
        expected = (of_grid[..., run.keys] * run.distances).sum(-1).mean((0, 2))
        entropy = torch.special.entr(of_grid).sum(-1).mean((0, 2))
        rows = table[table.block == block]
        assert rows.layer.str.startswith(run.name.partition(":")[0]).all(), f"{rows.layer.iloc[0]} is {run.name}"
        assert len(rows) == len(expected), f"{run.name}: {len(rows)} heads"
        apart = np.abs(rows.distance_px.to_numpy() - expected.numpy()).max()
        assert apart < 1e-4 * max(of.size), f"{run.name}: distances off by {apart:.1e} px"
        np.testing.assert_allclose(rows.entropy, entropy, atol=1e-4)
        if "cls" in [NAMES.get(name) for name in of.net.of]:
            share = of_grid[..., prefix_order(of)[0]].mean((0, 2))
            np.testing.assert_allclose(rows.cls_share, share, atol=1e-4)
        else:
            assert rows.cls_share.isna().all()


def check_centres(of: Drawn, network: rs.Network, images: torch.Tensor, run: Run) -> None:
    fields = rs.receptive_fields(network, images[:4], layers=[run.name], channels=1, batch_size=4)
    (channel,) = fields.protocol["channels"][run.name]
    pixels = images[:4].double().requires_grad_()
    _, h, w, _ = run.grid.shape
    centre = of.truth(pixels)[-1].grid[:, h // 2, w // 2, channel]
    (gradient,) = torch.autograd.grad(centre.sum(), pixels)
    expected = gradient.abs().mean((0, 1)).numpy()
    np.testing.assert_allclose(fields.maps[run.name], expected, atol=1e-4 * expected.max(), err_msg=run.name)


@pytest.mark.filterwarnings("ignore:layer .* is constant over all images")
@pytest.mark.parametrize("first", range(0, DRAWS, AT_ONCE))
def test_drawn_networks(first):
    wrong = {}
    for seed in range(first, first + AT_ONCE):
        try:
            check(drawn(seed))
        except (AssertionError, rs.RepsimError) as error:
            wrong[seed] = str(error).strip().splitlines()[0]
    assert not wrong
