import pytest
import torch

import repsim as rs
from repsim.tokens import one_of_tokens, select

X = torch.arange(2 * 5 * 3.0).view(2, 5, 3)


def test_tokens_of_a_vit():
    assert torch.equal(select(X, "all", layout="tokens", prefix=1), X)
    assert torch.equal(select(X, "cls", layout="tokens", prefix=1), X[:, 0])
    assert torch.equal(select(X, "spatial", layout="tokens", prefix=1), X[:, 1:])
    assert torch.equal(select(X, "pooled", layout="tokens", prefix=1), X[:, 1:].mean(1))


def test_maps():
    maps = torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4)
    pooled = select(maps, "pooled", layout="channels_first")
    assert torch.equal(pooled, maps.flatten(2).mean(2))
    assert torch.equal(select(maps.permute(0, 2, 3, 1), "pooled", layout="channels_last"), pooled)
    assert torch.equal(select(maps[:, :, 0, 0], "pooled", layout="vector"), maps[:, :, 0, 0])


def test_what_is_not_there():
    with pytest.raises(rs.UsageError, match="no CLS token"):
        select(X, "cls", layout="tokens", prefix=0)
    with pytest.raises(rs.UsageError, match="unknown choice of tokens 'clss'; did you mean 'cls'"):
        one_of_tokens("clss")
