"""The reading of a layer's tensor puts images first, and chooses among its tokens."""

import pytest
import torch

import repsim as rs
from repsim.networks.tokens import Reading, one_of_tokens

X = torch.arange(2 * 5 * 3.0).view(2, 5, 3)
VIT = Reading(shape=(5, 3), batch_axis=0, channels=(1,), positions=(0,), prefix=1, names=("cls",), grid=(2, 2))


def test_tokens_of_a_vit():
    assert VIT.layout == "tokens" and VIT.width == 3
    assert torch.equal(VIT.select(X, "all"), X)
    assert torch.equal(VIT.select(X, "cls"), X[:, 0])
    assert torch.equal(VIT.select(X, "spatial"), X[:, 1:])
    assert torch.equal(VIT.select(X, "pooled"), X[:, 1:].mean(1))


def test_tokens_in_another_order():
    """Tokens are put into the order of the image, here from CLS last and a grid column by column."""
    turned = Reading(
        shape=(5, 3), batch_axis=0, channels=(1,), positions=(0,), prefix=1, names=("cls",), order=(4, 0, 2, 1, 3)
    )
    assert torch.equal(turned.select(X, "cls"), X[:, 4])
    assert torch.equal(turned.tokens(X)[:, 1:], X[:, [0, 2, 1, 3]])
    torch.testing.assert_close(turned.select(X, "pooled"), X[:, :4].mean(1))


def test_maps():
    maps = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    first = Reading(shape=(3, 4, 4), batch_axis=0, channels=(0,), positions=(1, 2), grid=(4, 4))
    last = Reading(shape=(4, 4, 3), batch_axis=0, channels=(2,), positions=(0, 1), grid=(4, 4))
    vector = Reading(shape=(3,), batch_axis=0, channels=(0,))
    assert (first.layout, last.layout, vector.layout) == ("channels_first", "channels_last", "vector")
    pooled = first.select(maps, "pooled")
    torch.testing.assert_close(pooled, maps.flatten(2).mean(2))
    torch.testing.assert_close(last.select(maps.permute(0, 2, 3, 1), "pooled"), pooled)
    assert torch.equal(first.tokens(maps), last.tokens(maps.permute(0, 2, 3, 1)))
    assert torch.equal(vector.select(maps[:, :, 0, 0], "pooled"), maps[:, :, 0, 0])


def test_images_anywhere_on_an_axis():
    """Images come first, from an axis of two views of three images of four windows, or from the second axis."""
    whole = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    reading = Reading(shape=(2, 4, 5), batch_axis=0, before=2, fold=4)
    assert torch.equal(reading.read(whole.flatten(0, 2)), whole.movedim(1, 0))
    second = Reading(shape=(7, 5), batch_axis=1)
    assert second.read((torch.zeros(7, 3, 5), None)).shape == (3, 7, 5)


def test_what_is_not_there():
    without = Reading(shape=(5, 3), batch_axis=0, channels=(1,), positions=(0,), grid=(1, 5))
    with pytest.raises(rs.UsageError, match="no CLS token"):
        without.select(X, "cls")
    unknown = Reading(shape=(5, 3), batch_axis=0, unknown="it is not known what its axes are")
    assert unknown.layout == "other" and torch.equal(unknown.select(X, "all"), X)
    with pytest.raises(rs.UsageError, match="it is not known what its axes are"):
        unknown.select(X, "pooled")
    with pytest.raises(rs.UsageError, match="unknown choice of tokens 'clss'; did you mean 'cls'"):
        one_of_tokens("clss")
