"""Many studies on one pass find the same as alone, in whatever way the batches come to them."""

import numpy as np
import pytest
import torch
from every_study import SWEPT

from repsim.images.image_set import ImageSet
from repsim.passes.study import check_study
from repsim.passes.sweep import fitting, sweep

IMAGES = ImageSet("sample", images=56)


@pytest.mark.parametrize("name", SWEPT)
def test_every_study_holds_to_the_contract(name, vit, resnet):
    result = check_study(SWEPT[name](vit, resnet), IMAGES)
    assert len(result.table)


@pytest.mark.parametrize("usual", [8, 32, 50, 64, 250, 256, 1024])
def test_a_usual_batch_size_is_made_smaller_where_there_would_be_too_few_batches(usual):
    noise = ImageSet("noise", images=5000)
    for count in (*range(4, 600), 1000, 2047, 2048, 2560, 5000):
        size = fitting(usual, noise.only(np.arange(count)))
        batches, over = divmod(count, size)
        assert size >= 4
        if count // usual >= 8 or count < 8:
            assert size == usual  # fewer than eight images are one batch
        else:
            assert size <= usual and over < 8 and over <= count % max(count // 8, min(8, count // 2))
            assert batches >= (8 if count >= 64 else 2) and (size >= 8 or count < 16)
    grouped = ImageSet("sample", images=100, groups="class")
    assert fitting(256, grouped) == 256


def test_two_studies_do_not_disturb_each_other(vit, resnet):
    """All studies on one pass find the same in either order."""
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
