"""Networks are found by name, with weights from every kind of source."""

import dataclasses

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import repsim as rs
from repsim.networks import minis
from repsim.networks.aliases import ALIASES, BUNDLED
from repsim.networks.models import as_network, as_networks, evaluating, parse_model_args


def factory(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Flatten())


def ready_made() -> rs.Network:
    return rs.Network(factory(), "mine", transform=rs.EvalTransform(input_size=(3, 8, 8)))


def test_aliases_are_timm_names_with_weights():
    for name, alias in ALIASES.items():
        config = timm.models.get_pretrained_cfg(alias.timm_name)
        assert config is not None, name
        assert bool(config.has_weights) == (not alias.weights.startswith("none")), name
    assert set(BUNDLED) <= set(minis.bundled())  # there may be more, which somebody trained


def test_bundled_networks_are_trained(vit, resnet):
    """The bundled networks classify over 85 % of 400 test images of clothes correctly, and are small."""
    images = rs.ImageSet("sample", images=400)
    (batch,) = images.batches([vit.transform], 400)
    for network in (vit, resnet):
        with torch.inference_mode():
            answers = network.module(batch.inputs[network.transform]).argmax(1)
        assert (answers.numpy() == images.labels).mean() > 0.85
        assert sum(p.numel() for p in network.module.parameters()) <= 3_000_000
        assert minis.weights_file(network.name).stat().st_size <= 6_000_000


def test_untrained_weights_say_so_and_are_seeded():
    a, b, c = (rs.load_model("vit_mini", weights="random", seed=seed) for seed in (0, 0, 1))
    assert a.name == "vit_mini-random" and a.weights == "random"
    assert a.weights_sha256 == b.weights_sha256 != c.weights_sha256


def test_loading_does_not_touch_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    rs.load_model("vit_mini", weights="random")
    assert torch.rand(1) == expected


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_from_a_file(tmp_path, suffix):
    trained = rs.load_model("vit_tiny_patch16_224", weights="random", seed=7, img_size=32)
    file = tmp_path / f"mine.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": trained.module.state_dict()}, file)
    else:
        save_file(trained.module.state_dict(), file)
    loaded = rs.load_model("vit_tiny_patch16_224", weights=file, img_size=32)
    assert loaded.weights_sha256 == trained.weights_sha256
    assert loaded.name == "vit_tiny_patch16_224@mine" and loaded.weights == str(file)


def test_weights_that_do_not_fit(tmp_path):
    file = tmp_path / "ten.pt"
    small = {"img_size": 32}
    state = rs.load_model("vit_tiny_patch16_224", weights="random", num_classes=10, **small).module.state_dict()
    torch.save(state, file)
    with pytest.raises(rs.RepsimError, match=r"2 of another shape \(head.weight.*num_classes=10"):
        rs.load_model("vit_tiny_patch16_224", weights=file, **small)
    torch.save({k: v for k, v in state.items() if k != "cls_token"}, file)
    with pytest.raises(rs.RepsimError, match=r"1 missing \(cls_token\)"):
        rs.load_model("vit_tiny_patch16_224", weights=file, num_classes=10, **small)


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    file = tmp_path / "evil.pt"
    torch.save({"a": Evil()}, file)
    with pytest.raises(rs.RepsimError, match="cannot read .*evil.pt as weights"):
        rs.load_model("vit_mini", weights=file)
    assert not (tmp_path / "ran").exists()


def test_a_local_directory_as_timm_writes_it(tmp_path):
    module = timm.create_model("vit_tiny_patch16_224", img_size=32)
    timm.models.save_for_hf(module, tmp_path, model_args={"img_size": 32})
    network = rs.load_model(f"local-dir:{tmp_path}")
    assert network.name == tmp_path.name and network.input_size[0] == 3
    assert torch.equal(network.module.cls_token, module.cls_token)


def test_a_factory():
    network = rs.load_model("test_models:factory", width=6)
    assert network.name == "factory" and network.weights == "factory" and network.module[0].out_channels == 6
    assert rs.load_model("test_models:ready_made").input_size == (3, 8, 8)
    assert rs.load_model("test_models:factory", weights="random").name == "factory-random"


def test_each_network_brings_its_own_transform(vit):
    timm_vit = rs.load_model("vit_base_patch32_224.augreg_in1k", weights="random", depth=1)
    assert timm_vit.transform.mean == (0.5, 0.5, 0.5) and timm_vit.transform.crop_pct == 0.9
    assert rs.load_model("resnet18", weights="random").transform.mean == (0.485, 0.456, 0.406)
    assert rs.load_model("vit_tiny_patch16_224", weights="random", img_size=96).input_size == (3, 96, 96)
    assert rs.load_model("vit_tiny_patch16_224", weights="random", in_chans=1).transform.mean == (0.5,)
    assert vit.input_size == (1, 28, 28)


def test_offline_names_the_three_ways_out(monkeypatch):
    def unreachable(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nat all")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(rs.RepsimError, match="as a file .*`random` ones.*bundled networks vit_mini") as error:
        rs.load_model("vit_b16")
    assert "\n" not in str(error.value) and "vit_base_patch16_224.orig_in21k" in str(error.value)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vit_b61", {}, "unknown model 'vit_b61'; did you mean 'vit_b16'"),
        ("vit_base_patch16_224.orig", {}, "unknown pretrained tag.*orig_in21k"),
        ("vit_tiny_patch16_224", {"weights": "random", "widht": 3}, "does not take these arguments.*widht"),
        ("no_such_package:f", {}, "cannot import 'no_such_package'"),
        ("test_models:factroy", {}, "did you mean 'factory'"),
        ("builtins:dict", {}, "must return an nn.Module"),
    ],
)
def test_bad_names(name, options, message):
    with pytest.raises(rs.UsageError, match=message):
        rs.load_model(name, **options)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("vit_mini", {"weights": "nowhere.pt"}, "there is no file 'nowhere.pt'"),
        ("mixer_b32", {}, "timm has no pretrained weights for mixer_b32_224"),
        ("vit_mini", {"device": "cuda:99"}, "cannot put vit_mini on device 'cuda:99'"),
    ],
)
def test_what_cannot_be_had(name, options, message):
    with pytest.raises(rs.RepsimError, match=message):
        rs.load_model(name, **options)


def test_modules_as_networks(vit):
    module = factory().train()
    assert as_network(module).name == "Sequential" and as_network(vit) is vit
    with evaluating(module):
        assert not module[0].training
    assert module.training and module[0].training
    with pytest.raises(rs.UsageError, match="a network is a Network, an nn.Module, a name or Features, got int"):
        as_network(3)


def test_no_two_networks_get_one_name(vit):
    names = ["a", "a#1", "a", "b"]
    told = as_networks([dataclasses.replace(vit, name=name) for name in names])
    assert [network.name for network in told] == ["a#2", "a#1", "a#3", "b"]


def test_model_arguments():
    assert parse_model_args(("img_size=224", "act_layer=relu", "x=(1, 2)")) == {
        "img_size": 224,
        "act_layer": "relu",
        "x": (1, 2),
    }
    with pytest.raises(rs.UsageError, match="KEY=VALUE, got 'img_size'"):
        parse_model_args(("img_size",))


def test_networks_layers_and_features_say_on_one_line_what_they_are():
    vit = rs.load_model("vit_mini")
    said = "VisionTransformer, 1.35 million parameters, weights pretrained, images 1x28x28"
    assert repr(vit) == f"Network 'vit_mini': {said}"
    assert sum(p.numel() for p in vit.module.parameters()) == pytest.approx(1.35e6, rel=0.005)
    own = rs.Network(nn.Conv2d(3, 4, 3), name="mine")
    assert repr(own) == "Network 'mine': Conv2d, 112 parameters, weights as given, images of unknown size"
    assert [repr(layer) for layer in rs.find_layers(vit)[:2]] == [
        "Layer 'stem': stem, 50x96, depth 0.00",
        "Layer 'blocks.0': block, 50x96, depth 0.08",
    ]
    features = rs.Features(np.zeros((10, 3)), name="mouse").as_network()
    assert repr(features) == "FeatureNetwork 'mouse': features of 10 images, 1 layer"
