"""Precisions change numbers little, are allowed where the device has them, and leave no setting behind."""

import numpy as np
import pytest
import torch
from every_study import STUDIES, assert_near

import repsim as rs
from repsim.networks.precision import computing

IMAGES = rs.ImageSet("sample", images=32)
CUDA = torch.device("cuda")
NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")
"""Whether PyTorch has the switches of 2.9 and later, beside its older ones."""
PLACES = (torch.backends.cuda.matmul, torch.backends.cudnn.conv if NEWER else torch.backends.cudnn)


def settings() -> list[str]:
    older = {True: "tf32", False: "ieee"}
    return [place.fp32_precision if NEWER else older[place.allow_tf32] for place in PLACES]


def readable() -> None:
    """Check that PyTorch's older switches can be read, as networks and its own compiler do."""
    assert isinstance(torch.backends.cuda.matmul.allow_tf32, bool)
    assert isinstance(torch.backends.cudnn.allow_tf32, bool)
    assert isinstance(torch.get_float32_matmul_precision(), str)


@pytest.mark.parametrize("precision, products", [("fp32", "ieee"), ("tf32", "tf32"), ("bf16", "tf32")])
def test_products_on_cuda_are_told_how_exact_to_be(precision, products, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **more: torch.no_grad())  # so that no device is needed
    before = settings()
    with pytest.raises(ZeroDivisionError), computing(precision, CUDA):
        assert [value.replace("none", "ieee") for value in settings()] == [products, products]
        readable()
        raise ZeroDivisionError
    assert settings() == before
    readable()


def test_settings_are_those_of_the_device_alone():
    before = settings()
    with computing("bf16", torch.device("cpu")):
        assert settings() == before and torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_what_hooks_compute_is_not_in_bfloat16():
    network = rs.load_model("vit_mini", precision="bf16")
    types = {}

    def product(layer, x):
        types[layer.name] = x.dtype, (x.float()[0] @ x.float()[0].T).dtype
        return x.float()

    with rs.capture(network, ["blocks.3", "blocks.3.mlp.fc1"], product), network.computing(), torch.no_grad():
        network.module(torch.randn(4, 1, 28, 28))
    assert types["blocks.3.mlp.fc1"] == (torch.bfloat16, torch.float32) and types["blocks.3"][1] == torch.float32


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_in_bfloat16_finds_nearly_the_same(name, vit, resnet):
    """The most that columns deviate is 0.11 of their spread; tests/benchmarks/README.md has more images."""
    half = [rs.load_model(network, precision="bf16") for network in ("vit_mini", "resnet_mini")]
    numbers = [STUDIES[name](*networks, IMAGES, batch_size=8) for networks in (half, (vit, resnet))]
    assert_near(*numbers, share=0.25)


@pytest.mark.parametrize("name", ["cka", "attention", "residual", "localize", "receptive"])
def test_networks_with_weights_in_float64(name, vit, resnet):
    double = [rs.load_model(network) for network in ("vit_mini", "resnet_mini")]
    for network in double:
        network.module.double()
    result = STUDIES[name](*double, IMAGES)
    for column, values in STUDIES[name](vit, resnet, IMAGES).items():
        np.testing.assert_allclose(result[column], values, atol=1e-5, rtol=1e-5, err_msg=column)


def test_a_network_with_weights_in_bfloat16(vit):
    half = rs.load_model("vit_mini")
    half.module.bfloat16()
    table = rs.layer_cka(half, images=IMAGES, batch_size=16).table
    np.testing.assert_allclose(table.cka, rs.layer_cka(vit, images=IMAGES, batch_size=16).table.cka, atol=0.03)


def test_record_and_refusals(vit):
    assert vit.record()["precision"] == "fp32"
    assert rs.load_model("vit_mini", precision="bf16").record()["precision"] == "bf16"
    with pytest.raises(rs.UsageError, match="tf32 is a precision of CUDA devices; on cpu there are fp32 and bf16"):
        rs.load_model("vit_mini", precision="tf32")
    with pytest.raises(rs.UsageError, match="unknown precision 'fp23'; did you mean 'fp32'"):
        rs.load_model("vit_mini", precision="fp23")
