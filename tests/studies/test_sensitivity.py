"""The sensitivity of measures to deleted components, translations and outliers."""

import numpy as np
import pytest
import torch

import repsim as rs
from repsim.measures.catalogue import MEASURES
from repsim.measures.changes import translated, with_outlier, without_components
from repsim.tables import SENSITIVITY


def features(n=60, p=12):
    drawn = torch.Generator().manual_seed(0)
    return torch.randn(n, p, generator=drawn, dtype=torch.float64) * torch.arange(p, 0, -1) + 3


def test_components_are_deleted_from_the_smallest_on():
    x = features()
    changed = without_components(x, 0.25)
    u, sigma, vt = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    expected = (u[:, :9] * sigma[:9]) @ vt[:9] + x.mean(0)
    torch.testing.assert_close(changed, expected)
    torch.testing.assert_close(without_components(x, 0), x)
    assert torch.linalg.matrix_rank(without_components(x, 0.999) - x.mean(0)) == 1
    with pytest.raises(rs.UsageError, match="from 0 to below 1"):
        without_components(x, 1)


@pytest.mark.parametrize("change, moved", [(translated, 30), (with_outlier, 1)])
def test_images_move_by_one_vector(change, moved):
    x = features()
    by = change(x, 4.0, seed=1) - x
    rows = by[by.abs().sum(1) > 0]
    assert len(rows) == moved
    torch.testing.assert_close(rows, rows[:1].expand_as(rows))
    rms = (x - x.mean(0)).square().sum(1).mean().sqrt()
    torch.testing.assert_close(torch.linalg.vector_norm(rows[0]), 4 * rms)
    torch.testing.assert_close(change(x, 0.0), x)


def test_values_are_those_of_the_measure():
    x = torch.randn(80, 12, generator=torch.Generator().manual_seed(0))
    table = rs.sensitivity(rs.Features({"only": x}), measures=["cka", "procrustes", "mutual-knn"], layers="all").table
    assert list(table.columns) == SENSITIVITY
    images = rs.ImageSet(torch.arange(80.0).view(80, 1, 1, 1)).chosen  # the order of the images
    y = x[torch.from_numpy(images)]
    for row in table.itertuples():
        change = {"components": without_components, "translation": translated, "outlier": with_outlier}[row.change]
        changed = change(y, row.amount) if row.change == "components" else change(y, row.amount, 0)
        assert row.value == pytest.approx(MEASURES[row.measure].value(y, changed.float()), abs=1e-9)


def test_what_is_known_of_measures_is_seen():
    """CKA sees large components, and falls by an outlier and a move that neighbours do not feel (Davari et al.)."""
    table = rs.sensitivity("vit_mini", rs.ImageSet("sample", images=200), layers="last").table

    def at(measure, change, amount):
        return table.query("measure == @measure and change == @change and amount == @amount").value.item()

    assert (table[table.amount == 0].dropna().value > 1 - 1e-3).all()
    assert at("cka", "components", 0.9) > 0.95 > at("mutual-knn", "components", 0.9)
    assert at("cka", "translation", 20.0) < 0.2 < at("mutual-knn", "translation", 20.0)
    assert at("cka", "outlier", 50.0) < 0.95 < at("mutual-knn", "outlier", 50.0)


def test_undefined_measures_are_named():
    wide = rs.Features({"wide": torch.randn(40, 60, generator=torch.Generator().manual_seed(0))})
    with pytest.warns(rs.Notice, match="undefined for some layers.*: cca, pwcca"):
        result = rs.sensitivity(wide, layers="last", measures=["cca", "pwcca", "cka"])
    assert np.isnan(result.table[result.table.measure == "cca"].value).all()
    assert result.notices and result.plot() is not None


def test_what_is_no_network_for_it_is_said():
    with pytest.raises(rs.UsageError, match="takes one network, got 2"):
        rs.sensitivity(["vit_mini", "resnet_mini"])
    with pytest.raises(rs.UsageError, match="mutual-knn needs at least 12 images"):
        rs.sensitivity("vit_mini", rs.ImageSet("sample", images=8), measures="mutual-knn")
