"""Batches that do not fit into memory go through networks in pieces, and nothing else changes."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from every_study import COARSE, STUDIES

import repsim as rs
from repsim.images.image_set import Counts
from repsim.networks.pieces import Piece, add_piece, in_pieces, under_way
from repsim.networks.tracing import passing
from repsim.passes.seen import Seen
from repsim.passes.sweep import sweep
from repsim.studies.similarity import LayerSimilarity

IMAGES = rs.ImageSet("sample", images=64)


@pytest.fixture
def little_memory(vit, resnet):
    """Half-way through both networks, more than 12 images at once run out of memory."""

    def run_out(module, arguments):
        if len(arguments[0]) > 12:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    within = (vit.module.blocks[5].mlp, resnet.module.layer2[1].conv2)
    hooks = [module.register_forward_pre_hook(run_out) for module in within]
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", [name for name, case in STUDIES.items() if not case.gradients])
def test_a_study_finds_the_same_in_pieces(name, vit, resnet, request):
    whole = STUDIES[name](vit, resnet, IMAGES)
    request.getfixturevalue("little_memory")
    for column, values in STUDIES[name](vit, resnet, IMAGES).items():
        np.testing.assert_allclose(values, whole[column], rtol=1e-4, atol=COARSE.get(column, 1e-5), err_msg=column)


def test_the_pieces_are_counted_and_only_looked_for_once(vit, resnet, little_memory):
    tried = []
    layers = rs.find_layers(resnet, ["layer1.0", "layer4.2"])
    hook = resnet.module.register_forward_pre_hook(lambda module, arguments: tried.append(len(arguments[0])))
    try:
        counts = sweep(IMAGES, [LayerSimilarity([resnet], [layers])], batch_size=32)
    finally:
        hook.remove()
    assert tried == [32, 16, 8, 8, 8, 8, 8, 8, 8, 8]
    assert counts.record()["forward_batch_sizes"] == {"resnet_mini": 8}
    both = counts.merge(Counts(at_once={"resnet_mini": 4, "vit_mini": 16}))
    assert both.at_once == {"resnet_mini": 4, "vit_mini": 16}


def test_layers_that_are_reduced_together_and_one_by_one(vit, little_memory):
    images = torch.randn(20, 1, 28, 28)
    sizes = []
    seen, layers = Seen(vit), rs.find_layers(vit, ["blocks.3"])

    def see(layer, x):
        sizes.append(len(x))
        return x.clone()

    with torch.no_grad(), passing(vit):
        for way, expected in ((seen.layers, [20]), (seen.rows, [7, 7, 6])):
            sizes.clear()
            seen.begin(images)
            with way(layers, see):
                in_pieces(vit.module, images, 7)
            assert sizes == expected and len(seen["blocks.3"]) == 20
            with rs.capture(vit, ["blocks.3"]) as part:
                vit.module(images[:12])
            torch.testing.assert_close(seen["blocks.3"][:12], part["blocks.3"])


def test_memory_that_runs_out_within_attention():
    """A module that ran out of memory is not confused with one that attends after it, here pooling by attention."""
    settings = {"global_pool": "map", "class_token": False, "img_size": 64, "depth": 2}
    network = rs.load_model("vit_tiny_patch16_224", weights="random", **settings)
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    whole = rs.attention_distance(network, images, batch_size=16).table

    def run_out(module, arguments):
        if len(arguments[0]) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = network.module.blocks[1].attn.proj.register_forward_pre_hook(run_out)
    try:
        pd.testing.assert_frame_equal(rs.attention_distance(network, images, batch_size=16).table, whole, rtol=1e-5)
    finally:
        hook.remove()


def test_of_a_piece_the_last_value_counts():
    seen = {}
    for start, value in ((0, 1.0), (0, 2.0), (3, 3.0), (3, 4.0)):
        with under_way(Piece(start, start == 3)):
            add_piece(seen, "layer", {"mean": torch.full((3 if start == 0 else 2,), value)})
    assert seen["layer"]["mean"].tolist() == [2, 2, 2, 4, 4]


def test_not_even_one_image_fits(vit):
    def run_out(module, arguments):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = vit.module.register_forward_pre_hook(run_out)
    try:
        with pytest.raises(
            rs.RepsimError, match=r"memory of cpu is too small for vit_mini \(0.0 GiB.*has shape \(32, 1"
        ):
            rs.attention_distance(vit, IMAGES, batch_size=32)
    finally:
        hook.remove()


def test_memory_that_runs_out_elsewhere(vit, monkeypatch):
    def run_out(self, rows, n, batch=None):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("repsim.measures.running.BatchMeans.update", run_out)
    said = r"too small for the values computed of a batch: batch 0 has shape \(32, 1, 28, 28\)"
    with pytest.raises(rs.RepsimError, match=said):
        rs.layer_cka(vit, images=IMAGES, batch_size=32)


def test_the_record_says_so(little_memory, tmp_path, monkeypatch, vit):
    from click.testing import CliRunner

    from repsim.cli import main

    monkeypatch.setattr("repsim.cli.job.load", lambda *a, **k: [vit])
    given = ["attention", "--model", "vit_mini", "--images", "64", "--batch-size", "32", "--out", str(tmp_path)]
    result = CliRunner().invoke(main, given)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["images"]["forward_batch_sizes"] == {"vit_mini": 8}
    assert "memory was too small: vit_mini took 8 images at a time" in record["notices"]
