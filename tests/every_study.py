"""Every study on the bundled networks and a few images, as numbers: for what must hold of each of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import repsim as rs

Numbers = dict[str, np.ndarray]
COARSE = {"accuracy": 0.05}
"""Of 64 images; the ridge is chosen on few, where a tie may fall either way."""


def _columns(table, *names: str) -> Numbers:
    return {name: table[name].to_numpy(float) for name in names}


def cka(vit, resnet, images) -> Numbers:
    return _columns(rs.layer_cka([vit, resnet], images, batch_size=32).table, "cka", "se")


def attention(vit, resnet, images) -> Numbers:
    table = rs.attention_distance(vit, images, batch_size=32).table
    return _columns(table, "distance_px", "distance_px_se", "entropy", "cls_share")


def heads(vit, resnet, images) -> Numbers:
    return _columns(rs.head_similarity([vit, resnet], images, batch_size=32).table, "cka", "cka_se")


def residual(vit, resnet, images) -> Numbers:
    table = rs.residual_norms([vit, resnet], images, batch_size=32).table
    return _columns(table, "ratio", "ratio_median", "cos_output", "cos_branch")


def lesion(vit, resnet, images) -> Numbers:
    return _columns(rs.lesions(vit, images, blocks=[5], batch_size=32).table, "agreement", "kl", "accuracy", "cka")


def localize(vit, resnet, images) -> Numbers:
    return _columns(rs.token_localization([vit, resnet], images, batch_size=32).summary, "own_minus_rest", "se")


def probe(vit, resnet, images) -> Numbers:
    train = rs.ImageSet("sample", split="train", images=400)
    found = rs.linear_probes([vit, resnet], images, train=train, shots=[3], seeds=1, tokens=False, batch_size=32)
    return _columns(found.summary, "accuracy") | _columns(found.neighbours, "soft_loss")


def receptive(vit, resnet, images) -> Numbers:
    table = rs.receptive_fields(resnet, images.only(np.arange(8)), channels=4).table
    return _columns(table, "radius50_px", "centre_share")


STUDIES: dict[str, Callable[..., Numbers]] = {
    study.__name__: study for study in (cka, attention, heads, residual, lesion, localize, probe, receptive)
}
