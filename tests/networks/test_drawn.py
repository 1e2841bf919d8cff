"""repsim's numbers on networks drawn at random are the true numbers (see `drawn`)."""

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
    """CKA in float64, by the definition of unbiased HSIC; NaN where features are the same in all images."""
    x, y = (features.flatten(1) - features.flatten(1).mean(0) for features in (x, y))
    if min(x.abs().max(), y.abs().max()) < 1e-9:
        return np.nan
    own = hsic_from_definition(x, x) * hsic_from_definition(y, y)
    return (hsic_from_definition(x, y) / own.sqrt()).item()


def assert_near(value, expected, name):
    assert abs(value - expected) < 1e-4 or (np.isnan(value) and np.isnan(expected)), f"{name}: {value}, {expected}"


def check(case: Drawn) -> None:
    """Raise AssertionError unless repsim's layers and numbers of a drawn network are true."""
    network = rs.Network(case.module, f"drawn {case.seed}", transform=rs.EvalTransform(input_size=case.size))
    images = torch.rand(IMAGES, *case.size, generator=torch.Generator().manual_seed(case.seed)) * 2 - 1
    with torch.no_grad():
        runs = case.truth(images)
    names = [run.name for run in runs]
    layers = find_layers(network, names)
    assert [layer.name for layer in layers] == names
    check_tokens(case, network, images, dict(zip(names, layers)), runs)
    check_similarity(case, network, images, runs)
    check_patches(network, images, runs)
    check_distances(case, network, images, runs)
    check_centres(case, network, images, runs[-1])


def prefix_order(case: Drawn) -> list[int]:
    """The order of the prefix: CLS first, then distillation, then registers in the order of the network."""
    names = [NAMES.get(name, "register") for name in case.net.token_names]
    return sorted(range(len(names)), key=lambda i: (names[i] != "cls", names[i] != "distillation", i))


def check_tokens(case: Drawn, network: rs.Network, images: torch.Tensor, layers: dict, runs: list[Run]) -> None:
    order = prefix_order(case)
    with torch.no_grad(), rs.capture(network, list(layers.values())) as seen:
        network.module(images)
        for run in runs:
            layer = layers[run.name]
            assert layer.grid == tuple(run.grid.shape[1:3]), f"{run.name}: grid {layer.grid}"
            assert layer.names == tuple(NAMES.get(case.net.token_names[i], "register") for i in order), run.name
            tokens = layer.tokens(seen[run.name]).double()
            expected = torch.cat([run.prefix[:, order], run.grid.flatten(1, 2)], 1)
            assert tokens.shape == expected.shape, f"{run.name}: {tokens.shape}"
            apart = (tokens - expected).abs().max() / expected.abs().max()
            assert apart < 2e-5, f"{run.name}: tokens off by {apart:.1e}"


def check_similarity(case: Drawn, network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
    truths = {"pooled": lambda run: run.grid.mean((1, 2)), "spatial": lambda run: run.grid}
    if "cls_token" in case.net.token_names or "class_embedding" in case.net.token_names:
        truths["cls"] = lambda run: run.prefix[:, prefix_order(case)[0]]
    else:
        with pytest.raises(rs.UsageError, match="no CLS token"):
            find_layers(network, [runs[0].name], tokens="cls")
    for tokens, truth in truths.items():
        options = {"layers": [run.name for run in runs], "tokens": tokens, "batch_size": IMAGES}
        table = rs.layer_cka(network, images=images, **options).table.set_index(["layer_a", "layer_b"]).cka
        for a in runs:
            for b in runs:
                expected = cka(truth(a), truth(b))
                assert_near(table[a.name, b.name], expected, f"{tokens} CKA of {a.name} and {b.name}")


def check_patches(network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
    """Check CKA of tokens of the last block with patches of the image, for four pairs."""
    run = runs[-1]
    _, h, w, _ = run.grid.shape
    table = rs.token_localization(network, images, layers=[run.name], batch_size=IMAGES).table
    patches = images.double().unflatten(2, (h, -1)).unflatten(4, (w, -1)).permute(0, 2, 4, 1, 3, 5)
    for row in table.sample(4, random_state=0).itertuples():
        token, patch = run.grid[:, row.token_row, row.token_col], patches[:, row.patch_row, row.patch_col]
        assert_near(row.cka, cka(token, patch), f"{run.name}: CKA of a token and a patch")


def check_distances(case: Drawn, network: rs.Network, images: torch.Tensor, runs: list[Run]) -> None:
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
        assert apart < 1e-4 * max(case.size), f"{run.name}: distances off by {apart:.1e} px"
        np.testing.assert_allclose(rows.entropy, entropy, atol=1e-4)
        if "cls" in [NAMES.get(name) for name in case.net.token_names]:
            share = of_grid[..., prefix_order(case)[0]].mean((0, 2))
            np.testing.assert_allclose(rows.cls_share, share, atol=1e-4)
        else:
            assert rows.cls_share.isna().all()


def check_centres(case: Drawn, network: rs.Network, images: torch.Tensor, run: Run) -> None:
    fields = rs.receptive_fields(network, images[:4], layers=[run.name], channels=1, batch_size=4)
    (channel,) = fields.protocol["channels"][run.name]
    pixels = images[:4].double().requires_grad_()
    _, h, w, _ = run.grid.shape
    centre = case.truth(pixels)[-1].grid[:, h // 2, w // 2, channel]
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
