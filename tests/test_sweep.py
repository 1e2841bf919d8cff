"""Many studies on one pass: each finds what it finds alone, whatever the order in which they watch."""

import itertools

import pandas as pd
import pytest
import torch

from repsim.images.image_set import ImageSet
from repsim.networks.layers import find_layers
from repsim.passes.sweep import sweep
from repsim.studies.attention import AttentionDistance
from repsim.studies.heads import HeadSimilarity, head_layer, lower_layers
from repsim.studies.localization import Localization, located
from repsim.studies.residual import ResidualNorms
from repsim.studies.similarity import LayerSimilarity

IMAGES = ImageSet("sample", images=128)


def heads(vit, resnet):
    _, layer, count = head_layer(vit)
    return HeadSimilarity([vit, resnet], layer, count, lower_layers(resnet))


STUDIES = {
    "similarity": lambda vit, resnet: LayerSimilarity([resnet, vit], [find_layers(n) for n in (resnet, vit)]),
    "residual": lambda vit, resnet: ResidualNorms([resnet, vit]),
    "localization": lambda vit, resnet: Localization([resnet], [located(resnet, "blocks")[0]]),
    "attention": lambda vit, resnet: AttentionDistance(vit),
    "heads": heads,
}


def found(name, study):
    if name == "similarity":
        return LayerSimilarity.table([study])
    if name == "heads":
        return pd.DataFrame(study.similarity([[0], [1, 2]])[0].numpy())
    return study.table()


@pytest.fixture(scope="module")
def alone(vit, resnet):
    tables = {}
    for name, make in STUDIES.items():
        study = make(vit, resnet)
        sweep(IMAGES, [study], batch_size=128)
        tables[name] = found(name, study)
    return tables


@pytest.mark.parametrize("first, second", [p for p in itertools.permutations(STUDIES, 2) if "residual" in p])
def test_two_studies_do_not_disturb_each_other(first, second, vit, resnet, alone):
    studies = {name: STUDIES[name](vit, resnet) for name in (first, second)}
    sweep(IMAGES, list(studies.values()), batch_size=128)
    for name, study in studies.items():
        pd.testing.assert_frame_equal(found(name, study), alone[name], rtol=1e-5, atol=1e-6)


def test_each_network_runs_once_for_all_studies(vit, resnet):
    runs = {"vit_mini": 0, "resnet_mini": 0}
    studies = [make(vit, resnet) for make in STUDIES.values()]

    def count(name):
        return lambda module, arguments: runs.update({name: runs[name] + len(arguments[0])})

    hooks = [network.module.register_forward_pre_hook(count(network.name)) for network in (vit, resnet)]
    try:
        sweep(IMAGES, studies, batch_size=128)
    finally:
        for hook in hooks:
            hook.remove()
    assert runs == {"vit_mini": len(IMAGES), "resnet_mini": len(IMAGES)}
    assert torch.is_grad_enabled()
