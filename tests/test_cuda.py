"""On a CUDA device every study finds the same as on the CPU; without a device these tests are skipped."""

import warnings

import numpy as np
import pytest
import torch
from every_study import STUDIES, assert_near
from test_precision import settings

import repsim as rs
from repsim.networks.layers import find_layers
from repsim.passes.sweep import sweep
from repsim.studies.similarity import LayerSimilarity

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
IMAGES = rs.ImageSet("sample", images=64)
NAMES = ("vit_mini", "resnet_mini")
TOLERANCE = {"fp32": 0.01, "tf32": 0.05, "bf16": 0.25}
"""Shares of the spread of a column; the last is that of bfloat16 on the CPU."""


def on(device: str, **options) -> list[rs.Network]:
    return [rs.load_model(name, device=device, **options) for name in NAMES]


@pytest.fixture(scope="module")
def on_the_cpu():
    networks = on("cpu")
    return {name: study(*networks, IMAGES, batch_size=8) for name, study in STUDIES.items()}


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_equals_the_cpu(name, precision, on_the_cpu):
    found = STUDIES[name](*on("cuda", precision=precision), IMAGES, batch_size=8)
    assert_near(found, on_the_cpu[name], TOLERANCE[precision])


def test_the_usual_precision_is_tf32_and_the_settings_are_left_as_they_were():
    before = settings()
    vit, _ = on("cuda")
    assert vit.record()["precision"] == "tf32"
    rs.layer_cka(vit, images=IMAGES, batch_size=32)
    assert settings() == before


def test_convolutional_networks_have_their_channels_last():
    vit, resnet = on("cuda")
    assert resnet.module.layer1[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)
    assert vit.module.patch_embed.proj.weight.is_contiguous()


def test_a_batch_waits_for_the_device_once():
    networks = on("cuda")
    images = rs.ImageSet(torch.randn(64, 1, 28, 28, device="cuda"))  # others are copied by a thread, which waits too
    networks = [network.sized(images.tensor_size) for network in networks]
    study = LayerSimilarity(networks, [find_layers(network) for network in networks])
    sweep(images, [study], batch_size=32)  # allocations of the first batch wait too
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            sweep(images, [study], batch_size=32)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    waited = [warning for warning in caught if "called a synchronizing CUDA operation" in str(warning.message)]
    assert len(waited) <= len(images) // 32, [str(warning.message) for warning in waited]


def test_memory_that_is_too_small():
    device = torch.device("cuda")
    network = rs.load_model("resnet_mini", device=device)
    images = rs.ImageSet("sample", images=1024)
    layers = [find_layers(network, ["layer4.0", "layer4.2"])]  # small layers: only the network needs much
    whole, study = LayerSimilarity([network], layers), LayerSimilarity([network], layers)
    sweep(images, [whole], batch_size=1024)
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    room = torch.cuda.memory_reserved() + (needed - torch.cuda.memory_allocated()) // 2
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(device).total_memory)
    try:
        counts = sweep(images, [study], batch_size=1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert counts.at_once["resnet_mini"] < 1024
    np.testing.assert_allclose(study.sums.compute()[0].cpu(), whole.sums.compute()[0].cpu(), atol=1e-3)


def test_images_are_copied_ahead_whole_and_in_order():
    on_cpu = list(IMAGES.batches([rs.load_model("vit_mini").transform], 16))
    on_gpu = list(IMAGES.batches([rs.load_model("vit_mini").transform], 16, device=torch.device("cuda")))
    assert len(on_cpu) == len(on_gpu) == 4
    for a, b in zip(on_cpu, on_gpu):
        assert torch.equal(a.positions, b.positions)
        for transform in a.inputs:
            assert b.inputs[transform].is_cuda and torch.equal(a.inputs[transform], b.inputs[transform].cpu())
