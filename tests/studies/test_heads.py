"""Subsets of heads, computed from HSICs of single heads, have the CKA of their concatenated outputs."""

import pytest
import torch
from conftest import FAMILIES, noise
from scipy.stats import spearmanr

import repsim as rs
from repsim.studies.heads import head_layer
from repsim.tables import HEAD_CORRELATION, HEADS


@pytest.mark.parametrize("name, window", [("vit", 2), ("deit_distilled", 1), ("pit", 2), ("convit", 3)])
def test_windows_equal_cka_of_concatenated_outputs(name, window):
    a, b = FAMILIES[name].load(), FAMILIES["resnet18"].load()
    images = noise(a, 16)
    result = rs.head_similarity([a, b], images, window=window, batch_size=16)
    assert list(result.table.columns) == HEADS and list(result.correlation.columns) == HEAD_CORRELATION
    attention, _ = head_layer(a)
    path, count = attention.path, len(attention.order)
    order = torch.from_numpy(rs.ImageSet(images).chosen)
    outputs = []
    handle = a.module.get_submodule(path).proj.register_forward_pre_hook(lambda m, args: outputs.append(args[0]))
    with torch.no_grad(), rs.capture(b, "layer1.0") as seen:
        a.module(images[order])
        b.module(images[order])
    handle.remove()
    by_head = outputs[0].unflatten(-1, (count, -1))
    rows = result.table[result.table.layer_b == "layer1.0"]
    assert len(rows) == count - window + 1
    for row in rows.itertuples():
        heads = [int(head) for head in row.heads.split()]
        assert row.cka == pytest.approx(rs.cka(by_head[..., heads, :], seen["layer1.0"]), abs=1e-5)
    assert rows.distance_px.is_monotonic_increasing


def test_the_bundled_networks(vit, resnet):
    result = rs.head_similarity([vit, resnet], rs.ImageSet(images=256), batch_size=64)
    assert set(result.table.layer_b) == {"layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1"}
    distances = rs.attention_distance(vit, rs.ImageSet(images=256), batch_size=64).table
    first = distances[distances.block == 0].set_index("head").distance_px
    for row in result.table.itertuples():
        assert row.distance_px == pytest.approx(first[[int(h) for h in row.heads.split()]].mean())


def test_the_correlation_is_that_of_the_windows(vit, resnet):
    result = rs.head_similarity([vit, resnet], rs.ImageSet(images=512), batch_size=32)
    assert list(result.correlation.layer_b) == ["layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1"]
    for row in result.correlation.itertuples():
        part = result.table[result.table.layer_b == row.layer_b]
        assert row.spearman == pytest.approx(spearmanr(part.distance_px, part.cka).statistic)
        assert 0 < row.p_permuted <= 1
    known = result.correlation.dropna(subset=["low", "high"])  # none where no batch changes the order of windows
    assert len(known) >= 2 and ((known.low < known.spearman) & (known.spearman < known.high)).all()
    assert result.record["protocol"]["permutation_seed"] == 0


def test_one_batch_has_no_interval_and_one_window_no_correlation(vit, resnet):
    table = rs.head_similarity([vit, resnet], rs.ImageSet(images=16), batch_size=16).correlation
    assert table[["low", "high"]].isna().all(axis=None) and table[["spearman", "p_permuted"]].notna().all(axis=None)
    table = rs.head_similarity([vit, resnet], rs.ImageSet(images=16), window=8, batch_size=8).correlation
    assert table[["spearman", "low", "high", "p_permuted"]].isna().all(axis=None)


def test_bad_calls(vit, resnet):
    with pytest.raises(rs.UsageError, match="resnet_mini has no attention heads"):
        rs.head_similarity([resnet, vit], rs.ImageSet(images=8))
    with pytest.raises(rs.UsageError, match="a window holds 1 to 8 heads of vit_mini, got 9"):
        rs.head_similarity([vit, resnet], rs.ImageSet(images=8), window=9)
