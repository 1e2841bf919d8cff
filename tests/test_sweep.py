"""Many studies on one pass: each finds what it finds alone, in whatever way the batches come to it."""

import pytest
import torch
from every_study import SWEPT

from repsim.images.image_set import ImageSet
from repsim.passes.study import check_study
from repsim.passes.sweep import sweep

IMAGES = ImageSet("sample", images=56)


@pytest.mark.parametrize("name", SWEPT)
def test_every_study_holds_to_the_contract(name, vit, resnet):
    found = check_study(SWEPT[name](vit, resnet), IMAGES)
    assert len(found.table)


def test_two_studies_do_not_disturb_each_other(vit, resnet):
    """All of them on one pass, in one order and in the other."""
    tables = []
    for order in (list(SWEPT), list(reversed(SWEPT))):
        studies = {name: SWEPT[name](vit, resnet) for name in order}
        counts = sweep(IMAGES, list(studies.values()), batch_size=16)
        tables.append({name: study.result(counts).table.to_csv() for name, study in studies.items()})
    assert tables[0] == tables[1]


def test_each_network_runs_once_for_all_studies(vit, resnet):
    runs = {"vit_mini": 0, "resnet_mini": 0}
    studies = [make(vit, resnet) for make in SWEPT.values()]

    def count(name):
        return lambda module, arguments: runs.update({name: runs[name] + len(arguments[0])})

    hooks = [network.module.register_forward_pre_hook(count(network.name)) for network in (vit, resnet)]
    try:
        sweep(IMAGES, studies, batch_size=28)
    finally:
        for hook in hooks:
            hook.remove()
    assert runs == {"vit_mini": len(IMAGES), "resnet_mini": len(IMAGES)}
    assert torch.is_grad_enabled()
