"""Networks of transformers, torchvision and open_clip, by name or as modules, run as these libraries run them."""

import importlib.metadata
import importlib.util
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from click.testing import CliRunner
from every_study import OF_A_VIT
from PIL import Image
from torch import nn

import repsim as rs
from repsim.cli import main
from repsim.cli.asked import each_model

tf = pytest.importorskip("transformers")

SIDE = 32
IMAGES = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 8,
}
TEXT = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
SQUARE = {"height": SIDE, "width": SIDE}
PROCESSOR = tf.ViTImageProcessor(size=SQUARE)
BLOCKS = [f"{'layers' if hasattr(tf.ViTModel(tf.ViTConfig(**VIT)), 'layers') else 'encoder.layer'}.{i}" for i in (0, 1)]
"""The names of the blocks of ViT and BEiT in transformers, from version 5 on or before it."""


def clip() -> nn.Module:
    return tf.CLIPModel(tf.CLIPConfig(vision_config=VIT, text_config=TEXT, projection_dim=16))


def siglip() -> nn.Module:
    return tf.SiglipModel(tf.SiglipConfig(vision_config=VIT, text_config=TEXT))


def resnet() -> nn.Module:
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2], layer_type="basic")
    return tf.ResNetModel(config)


def mobilevit() -> nn.Module:
    config = tf.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 16, 16],
        neck_hidden_sizes=[8, 8, 8, 8, 8, 8, 16],
        num_attention_heads=2,
    )
    return tf.MobileViTModel(config)


def registers() -> nn.Module:
    return tf.Dinov2WithRegistersModel(
        tf.Dinov2WithRegistersConfig(**{**VIT, "mlp_ratio": 2, "num_register_tokens": 3, "intermediate_size": None})
    )


def swin() -> nn.Module:
    config = {"patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    return tf.SwinModel(tf.SwinConfig(image_size=SIDE, **config))


def convnext() -> nn.Module:
    config = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIDE}
    return tf.ConvNextModel(tf.ConvNextConfig(**config))


MADE = {
    "vit": (lambda: tf.ViTModel(tf.ViTConfig(**VIT)), PROCESSOR, BLOCKS),
    "swin": (swin, PROCESSOR, ["encoder.layers.0.blocks.0", "encoder.layers.1.blocks.0"]),
    "convnext": (
        convnext,
        tf.ConvNextImageProcessor(size={"shortest_edge": SIDE}),
        ["encoder.stages.0.layers.0", "encoder.stages.1.layers.0"],
    ),
    "registers": (
        registers,
        tf.BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE),
        ["encoder.layer.0", "encoder.layer.1"],
    ),
    "clip": (
        clip,
        tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE),
        ["encoder.layers.0", "encoder.layers.1"],
    ),
    "siglip": (siglip, tf.SiglipImageProcessor(size=SQUARE), ["encoder.layers.0", "encoder.layers.1"]),
    "beit": (lambda: tf.BeitModel(tf.BeitConfig(**VIT)), PROCESSOR, BLOCKS),
    "mobilevit": (
        mobilevit,
        tf.MobileViTImageProcessor(size={"shortest_edge": 72}, crop_size={"height": 64, "width": 64}),
        ["encoder.layer.4.transformer.layer.2", "encoder.layer.1.layer.2"],
    ),
    "resnet": (
        resnet,
        tf.ConvNextImageProcessor(size={"shortest_edge": SIDE}, crop_pct=0.875),
        ["encoder.stages.0.layers.0", "encoder.stages.1.layers.1"],
    ),
}


def saved(folder: Path, module: nn.Module, processor=PROCESSOR) -> Path:
    module.save_pretrained(folder)
    if processor is not None:
        processor.save_pretrained(folder)
    return folder


def photo(width: int = 90, height: int = 61, grey: bool = False) -> Image.Image:
    """A picture without symmetries: another crop, size or order of channels gives other pixels."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8)).resize((width, height))
    return image.convert("L") if grey else image


# transformers


@pytest.mark.parametrize("kind", MADE)
def test_a_saved_network_of_transformers(kind, tmp_path):
    build, processor, layers = MADE[kind]
    torch.manual_seed(0)
    module = build().eval()
    network = rs.load_model(f"hf:{saved(tmp_path / kind, module, processor)}")
    assert network.name == kind and network.weights == "pretrained" and network.notices == ()
    for image in (photo(), photo(61, 90), photo(grey=True)):
        pixels = processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(network.transform(image), pixels) and network.input_size == tuple(pixels.shape)
    result = rs.layer_cka(network, rs.ImageSet("sample", images=8), batch_size=8)
    names = list(result.table.layer_a.unique())
    assert names[0] == "stem" and set(layers) <= set(names)
    inputs = torch.stack([network.transform(photo(90, 61 + i)) for i in range(4)])
    with torch.no_grad(), rs.capture(network, layers[-1:]) as seen:
        network.module(inputs)
    theirs = {}
    inner = getattr(module, "vision_model", module)
    hook = inner.get_submodule(layers[-1]).register_forward_hook(
        lambda m, a, out: theirs.update(out=out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        inner(pixel_values=inputs)
    hook.remove()
    torch.testing.assert_close(seen[layers[-1]].flatten(1), theirs["out"].flatten(1))


def test_registers_of_transformers_are_none_of_the_grid(tmp_path):
    network = rs.Network(registers().eval(), "dino", transform=PROCESSOR)
    (layer,) = rs.find_layers(network, ["encoder.layer.1"])
    assert layer.names == ("cls", "register", "register", "register") and layer.grid == (4, 4)


@pytest.mark.parametrize("kind", ["absolute", "relative", "home"])
def test_where_a_folder_may_be(kind, tmp_path, monkeypatch):
    saved(tmp_path / "mine", tf.ViTModel(tf.ViTConfig(**VIT)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    place = {"absolute": f"{tmp_path}/mine", "relative": "mine", "home": "~/mine"}[kind]
    assert rs.load_model(f"hf:{place}").name == "mine"


def test_the_command_takes_a_folder(tmp_path, monkeypatch):
    saved(tmp_path / "mine", tf.ViTModel(tf.ViTConfig(**VIT)))
    monkeypatch.chdir(tmp_path)
    call = "cka --model-a hf:mine --data sample --images 8 --batch-size 8 --workers 0 --quiet --out out"
    main(call.split(), standalone_mode=False)
    (record,) = json.loads((tmp_path / "out" / "run.json").read_text())["networks"]
    assert record["source"] == "hf:mine" and record["origin"] == {"class": "transformers.ViTModel"}
    assert record["transform"]["settings"]["image_mean"] == [0.5, 0.5, 0.5]


def test_a_class_by_name_and_tensors_that_are_not_among_the_weights(tmp_path):
    torch.manual_seed(0)
    classifier = tf.ViTForImageClassification(tf.ViTConfig(**VIT))
    place = saved(tmp_path / "classifier", classifier)
    bare = rs.load_model(f"hf:{place}")
    assert type(bare.module) is tf.ViTModel
    assert any("2 tensors are not among its weights (pooler" in notice for notice in bare.notices)
    again = rs.load_model(f"hf:{place}")
    assert torch.equal(bare.module.pooler.dense.weight, again.module.pooler.dense.weight)
    other = rs.load_model(f"hf:{place}", seed=1)
    assert not torch.equal(bare.module.pooler.dense.weight, other.module.pooler.dense.weight)
    whole = rs.load_model(f"hf:{place}:ViTForImageClassification")
    assert whole.notices == () and whole.weights_sha256 == rs.Network(classifier, "c").weights_sha256
    with pytest.raises(rs.UsageError, match="ConvNextModel is made from ConvNextConfig, and .* holds ViTConfig; name"):
        rs.load_model(f"hf:{place}:ConvNextModel")


def test_untrained_networks_and_weights_in_a_file(tmp_path):
    torch.manual_seed(0)
    module = tf.ViTModel(tf.ViTConfig(**VIT))
    place = saved(tmp_path / "mine", module)
    untrained = rs.load_model(f"hf:{place}", weights="random", seed=1)
    assert untrained.name == "mine-random" and untrained.weights_sha256 != rs.Network(module, "m").weights_sha256
    torch.save(module.state_dict(), tmp_path / "w.pt")
    loaded = rs.load_model(f"hf:{place}", weights=tmp_path / "w.pt")
    assert loaded.weights_sha256 == rs.Network(module, "m").weights_sha256


def test_half_precision_on_disk_is_computed_in_float32(tmp_path):
    place = saved(tmp_path / "half", tf.ViTModel(tf.ViTConfig(**VIT)).half())
    assert rs.load_model(f"hf:{place}").dtype == torch.float32


def test_another_size_is_told_to_the_network_and_to_its_images(tmp_path):
    place = saved(tmp_path / "mine", tf.ViTModel(tf.ViTConfig(**VIT)))
    network = rs.load_model(f"hf:{place}", weights="random", image_size=48)
    assert network.input_size == (3, 48, 48)
    (layer,) = rs.find_layers(network, BLOCKS[1:])
    assert layer.grid == (6, 6)


def test_images_of_different_sizes_are_asked_about(tmp_path):
    config = tf.YolosConfig(**{**VIT, "image_size": [48, 48]}, num_detection_tokens=3)
    place = saved(tmp_path / "yolos", tf.YolosModel(config), tf.YolosImageProcessor())
    with pytest.raises(rs.UsageError, match="makes images of different sizes .* the model argument image_size"):
        rs.load_model(f"hf:{place}")
    network = rs.load_model(f"hf:{place}", image_size=48)
    assert network.input_size == (3, 48, 48)
    assert list(rs.layer_cka(network, rs.ImageSet("sample", images=8), batch_size=8).table.layer_a.unique()) == [
        "stem",
        "encoder.layer.0",
        "encoder.layer.1",
    ]


BAD = {
    "hf:/no/such/folder": "there is no folder '/no/such/folder'",
    "hf:./nowhere": "there is no folder './nowhere'",
    "hf:": "names no network: write hf:OWNER/NAME",
    "torchvision:resnet81": "unknown model of torchvision 'resnet81'; did you mean 'resnet18'",
    "torchvision:resnet18:IMAGENET1K_V9": "did you mean 'IMAGENET1K_V1'",
    "open_clip:ViT-B-99": "unknown model of open_clip 'ViT-B-99'",
    "open_clip:ViT-B-32": "say which weights: open_clip:ViT-B-32:openai",
    "open_clip:ViT-B-32:opnai": "did you mean 'openai'",
}


@pytest.mark.parametrize("name", BAD)
def test_names_that_nothing_is_known_by(name):
    pytest.importorskip(name.partition(":")[0].replace("hf", "transformers"))
    with pytest.raises(rs.UsageError, match=BAD[name]):
        rs.load_model(name)


def test_what_a_folder_lacks_is_asked_for(tmp_path):
    place = saved(tmp_path / "bare", tf.ViTModel(tf.ViTConfig(**VIT)), None)
    network = rs.load_model(f"hf:{place}")
    with pytest.raises(rs.UsageError, match="nothing says how images are prepared .* save an image processor"):
        rs.layer_cka(network, rs.ImageSet("sample", images=8), batch_size=8)
    assert len(rs.layer_cka(network, IMAGES, batch_size=8).table) == 9  # tensors need no preparing
    with pytest.raises(rs.UsageError, match="unknown model argument .*'patchsize'; did you mean 'patch_size'"):
        rs.load_model(f"hf:{place}", weights="random", patchsize=4)
    with pytest.raises(rs.UsageError, match="unknown model class of transformers 'ViTModle'; did you mean 'ViTModel'"):
        rs.load_model(f"hf:{place}:ViTModle")


@pytest.mark.parametrize("scheme, package", [("hf", "transformers"), ("open_clip", "open_clip")])
def test_a_library_that_is_not_installed_is_named_with_its_extra(scheme, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else 1)
    with pytest.raises(rs.UsageError, match=rf"needs the package {package}.*pip install 'repsim-vision\[{scheme}\]'"):
        rs.load_model(f"{scheme}:a:b")


@pytest.mark.parametrize("scheme, old", [("hf", "4.55.4"), ("open_clip", "2.32.0")])
def test_a_library_that_is_too_old_is_said_with_what_to_install(scheme, old, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: 1)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: old)
    with pytest.raises(rs.UsageError, match=rf"{old} is installed; .*pip install 'repsim-vision\[{scheme}\]'"):
        rs.load_model(f"{scheme}:a:b")


# Adapters alone


@pytest.fixture
def adapted(tmp_path):
    """A classifier, the same network with adapters, and the folder of the adapters alone."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    base = tf.ViTForImageClassification(tf.ViTConfig(**VIT)).eval()
    base.save_pretrained(tmp_path / "base")
    PROCESSOR.save_pretrained(tmp_path / "base")
    again = tf.ViTForImageClassification.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings on names that PEFT asks of transformers
        with_adapters = peft.get_peft_model(
            again, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        ).eval()
        with_adapters.save_pretrained(tmp_path / "adapters")
    return base, with_adapters, tmp_path / "adapters"


def changed(folder: Path, **said) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    return folder


def test_adapters_alone_are_loaded_into_their_base(adapted):
    base, with_adapters, folder = adapted
    network = rs.load_model(f"hf:{folder}")
    assert network.name == "adapters" and network.notices == ()
    with torch.no_grad():
        logits = network.module(IMAGES).logits
        torch.testing.assert_close(logits, with_adapters(IMAGES).logits)
        assert not torch.allclose(logits, base(IMAGES).logits)
    assert network.record()["origin"]["base"] == str(folder.parent / "base")
    assert network.transform.by.startswith("transformers.")
    table = rs.layer_cka(network, IMAGES, batch_size=8).table
    assert table.equals(rs.layer_cka(rs.Network(with_adapters, "adapters"), IMAGES, batch_size=8).table)
    untrained = rs.load_model(f"hf:{folder}", weights="random")
    assert untrained.module.state_dict().keys() == network.module.state_dict().keys()
    assert rs.load_model(f"hf:{changed(folder, base_model_name_or_path='../base')}").record() == network.record()


@pytest.mark.parametrize(
    "said, name, message",
    [
        ({"base_model_name_or_path": None}, "hf:{}", "names none in base_model_name_or_path"),
        ({"base_model_name_or_path": "/no/such"}, "hf:{}", "holds adapters of /no/such, and there is no such folder"),
        ({}, "hf:{}:ViTModel", "are not those of ViTModel: .* name the class they were trained in"),
        ({"auto_mapping": None}, "hf:{}", "are not those of ViTModel"),
    ],
)
def test_adapters_that_cannot_be_put_into_a_base(said, name, message, adapted):
    folder = changed(adapted[2], **said)
    with pytest.raises(rs.RepsimError, match=message):
        rs.load_model(name.format(folder))


# torchvision


@pytest.mark.parametrize("name", ["resnet18", "swin_t", "efficientnet_b0"])
def test_torchvisions_own_preprocessing(name):
    network = rs.load_model(f"torchvision:{name}", weights="random")
    theirs = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    for image in (photo(400, 300), photo(300, 400)):
        assert torch.equal(network.transform(image), theirs(image))
    assert network.name == f"{name}-random" and network.weights == "random"


def test_which_weights_of_torchvision_are_meant_decides_their_preprocessing():
    first, second = (rs.load_model(f"torchvision:resnet50:IMAGENET1K_V{i}", weights="random").transform for i in (1, 2))
    assert first != second and first.record()["settings"]["resize_size"] == [256]
    assert second == rs.load_model("torchvision:resnet50", weights="random").transform  # torchvision's default
    assert second.record()["settings"]["resize_size"] == [232]


def test_a_detector_is_asked_for_a_size_and_told_it():
    name = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    with pytest.raises(rs.UsageError, match="makes images of different sizes"):
        rs.load_model(name, weights="random")
    network = rs.load_model(name, weights="random", image_size=64, min_size=64, max_size=64)
    assert network.input_size == (3, 64, 64) and network.transform(photo()).max() <= 1
    table = rs.layer_cka(network, rs.ImageSet("sample", images=4), batch_size=4).table
    assert "backbone.body.4" in set(table.layer_a)


# open_clip


OPEN_CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": SIDE},
    "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
}


def of_open_clip() -> nn.Module:
    return pytest.importorskip("open_clip").CLIP(**OPEN_CLIP)


def test_open_clip_by_name(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    (tmp_path / "tiny-test.json").write_text(json.dumps(OPEN_CLIP))
    open_clip.add_model_config(tmp_path / "tiny-test.json")
    network = rs.load_model("open_clip:tiny-test", weights="random")
    assert network.name == "tiny-test-random" and network.input_size == (3, SIDE, SIDE)
    _, _, theirs = open_clip.create_model_and_transforms("tiny-test", pretrained=None)
    for image in (photo(), photo(61, 90), photo(grey=True)):
        assert torch.equal(network.transform(image), theirs(image))
    table = rs.layer_cka(network, rs.ImageSet("sample", images=8), batch_size=8).table
    assert list(table.layer_a.unique()) == ["stem", "transformer.resblocks.0", "transformer.resblocks.1"]
    assert network.record() == rs.load_model("open_clip:tiny-test", weights="random").record()  # no addresses in it


def test_a_folder_of_open_clip(tmp_path):
    torch.manual_seed(0)
    module = of_open_clip()
    preprocessing = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bilinear"}
    config = {"model_cfg": OPEN_CLIP, "preprocess_cfg": preprocessing}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    torch.save(module.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    network = rs.load_model(f"open_clip:local-dir:{tmp_path}")
    assert network.name == tmp_path.name
    assert network.weights_sha256 == rs.Network(module.visual, "v").weights_sha256
    black = network.transform(Image.new("RGB", (40, 40)))[:, 0, 0]
    torch.testing.assert_close(black, torch.tensor([-0.25, -0.4, -0.5]))


# Modules that are handed over in Python


@pytest.mark.parametrize("build", [clip, siglip, of_open_clip])
def test_of_images_and_texts_the_part_that_sees_images_runs(build):
    torch.manual_seed(0)
    module = build().eval()
    inner = getattr(module, "vision_model", None) or module.visual
    table = rs.layer_cka(module, IMAGES, batch_size=8).table
    assert table.equals(rs.layer_cka(rs.Network(inner, type(module).__name__), IMAGES, batch_size=8).table)
    assert not any("text" in name for name in table.layer_a)


def test_a_network_of_texts_is_refused():
    config = tf.CLIPTextConfig(**TEXT)
    with pytest.raises(rs.UsageError, match="CLIPTextModel takes texts and no images"):
        rs.layer_cka(tf.CLIPTextModel(config), IMAGES, batch_size=8)


def test_sizes_come_from_the_module_of_open_clip():
    open_ = of_open_clip().visual
    assert rs.Network(open_, "open").input_size == (3, SIDE, SIDE)
    with pytest.raises(rs.UsageError, match="nothing says how images are prepared for VisionTransformer"):
        rs.layer_cka(open_, rs.ImageSet("sample", images=8), batch_size=8)


def test_sizes_come_from_the_config_and_what_prepares_images_is_asked_for():
    module = tf.ViTModel(tf.ViTConfig(**VIT, num_channels=3))
    assert rs.Network(module, "vit").input_size == (3, SIDE, SIDE)
    with pytest.raises(rs.UsageError, match=r"ViTModel: its config has no mean.*Network\(module, transform="):
        rs.layer_cka(module, rs.ImageSet("sample", images=8), batch_size=8)
    given = rs.Network(module, "vit", transform=PROCESSOR)
    assert torch.equal(given.transform(photo()), PROCESSOR(images=photo(), return_tensors="pt")["pixel_values"][0])
    of_timm = timm.create_model("vit_tiny_patch16_224.augreg_in21k", depth=1)
    assert rs.Network(of_timm, "timm").transform.mean == (0.5, 0.5, 0.5)


def test_whatever_prepares_images_can_be_handed_over():
    def mine(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1) / 255

    module = nn.Conv2d(3, 2, 3)
    network = rs.Network(module, "mine", transform=mine)
    assert network.input_size == (3, 8, 8) and torch.equal(network.transform(photo()), mine(photo()))
    preset = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    same = torchvision.models.ResNet18_Weights.DEFAULT.transforms()
    a, b = (rs.Network(module, "m", transform=preparing).transform for preparing in (preset, same))
    assert a == b and a.input_size == (3, 224, 224)  # images are decoded and resized once for both
    other = [rs.Network(module, "m", transform=lambda image, by=by: mine(image) * by).transform for by in (1, 2)]
    assert other[0] != other[1]  # nothing tells whether two functions do the same
    assert "0x" not in json.dumps(rs.Network(module, "m", transform=mine).transform.record())


@pytest.mark.parametrize(
    "transform, message",
    [
        (3, "takes a PIL image and gives a tensor .* got int"),
        (lambda image: 1 / 0, "cannot prepare images for mine: division by zero"),
        (lambda image: np.zeros((3, 8, 8)), "must make a float tensor .* it made ndarray"),
        (torchvision.transforms.ToTensor(), "makes images of different sizes for mine"),
    ],
)
def test_what_prepares_no_images_is_refused(transform, message):
    with pytest.raises(rs.UsageError, match=message):
        rs.Network(nn.Conv2d(3, 2, 3), "mine", transform=transform)


# Networks that say nothing of their images


def mean_of_colours(**config) -> nn.Module:
    """A network of the user's own, with or without the configuration of images that networks of timm have."""
    module = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    vars(module).update(config)
    return module


GREY_MEAN = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "input_size": (3, 40, 40), "crop_pct": 1.0}
PHOTOS = {"images": 8}


def test_a_network_that_says_nothing_of_its_images_is_asked():
    module = mean_of_colours()
    with pytest.raises(rs.UsageError, match=r"prepared for Sequential; .*--transform.*'size=224 mean=0.5"):
        rs.layer_cka(module, rs.ImageSet("sample", **PHOTOS), layers="all", batch_size=8)
    with pytest.raises(rs.UsageError, match="nothing says how images are prepared for Sequential"):
        rs.find_layers(module)  # no size is known
    assert len(rs.layer_cka(module, IMAGES, layers="all", batch_size=8).table) == 9  # tensors need no preparing


def test_what_a_network_says_like_those_of_timm_is_taken():
    for name in ("pretrained_cfg", "default_cfg"):
        transform = rs.Network(mean_of_colours(**{name: GREY_MEAN}), "mine").transform
        assert transform == rs.EvalTransform((3, 40, 40), (0.5,) * 3, (0.25,) * 3, "bicubic", 1.0)
    with pytest.raises(rs.UsageError, match="nothing says"):
        rs.find_layers(mean_of_colours(pretrained_cfg={}))


@pytest.mark.parametrize(
    "words, expected",
    [
        ("imagenet", rs.EvalTransform()),
        ("imagenet size=32x48", rs.EvalTransform((3, 32, 48))),
        (
            "size=32 mean=0,0.5,1 std=1,2,3 crop=0.5",
            rs.EvalTransform((3, 32, 32), (0, 0.5, 1), (1, 2, 3), crop_pct=0.5),
        ),
        ("std=1 size=8 mean=0.5 interpolation=nearest", rs.EvalTransform((1, 8, 8), (0.5,), (1,), "nearest")),
    ],
)
def test_how_images_are_prepared_is_said_in_words(words, expected):
    assert rs.Network(mean_of_colours(), "mine", transform=words).transform == expected


def test_words_change_what_a_network_of_timm_says_in_part():
    network = rs.Network(mean_of_colours(pretrained_cfg=GREY_MEAN), "mine", transform="size=24")
    assert network.transform == rs.EvalTransform((3, 24, 24), (0.5,) * 3, (0.25,) * 3, "bicubic", 1.0)
    whole = rs.Network(mean_of_colours(pretrained_cfg=GREY_MEAN), "mine", transform="imagenet")
    assert whole.transform == replace(rs.EvalTransform(), input_size=(3, 40, 40))
    vit = tf.ViTModel(tf.ViTConfig(**VIT))  # its config says the size
    assert rs.Network(vit, "vit", transform="mean=0,0,0 std=1,1,1").input_size == (3, SIDE, SIDE)
    loaded = rs.load_model("resnet_mini", transform="size=32")
    assert loaded.transform == replace(rs.load_model("resnet_mini").transform, input_size=(1, 32, 32))


@pytest.mark.parametrize(
    "words, message",
    [
        ("size=224", "leaves open the mean and std of mine's images"),
        ("mean=0,0,0 std=1,1,1", "leaves open the size of"),
        ("mean=0,0,0", "leaves open the size and std"),
        ("size=8 mean=0,0,0 std=1", "mean has 3 numbers, std 1"),
        ("size=0 mean=0 std=1", "size=224; got size=0"),
        ("size=8 mean=0 std=0", "the std of a transform is written as .* got std=0"),
        ("size=8 mean=nan std=1", "got mean=nan"),
        ("imagenet crop=1.5", "got crop=1.5"),
        ("imagenet interpolation=best", "one of bicubic, bilinear"),
        ("size=8 size=9", "each word once"),
        ("as timm does", "got 'as timm does' for mine"),
        ("", "leaves open"),
    ],
)
def test_words_that_do_not_say_how_images_are_prepared(words, message):
    with pytest.raises(rs.UsageError, match=message):
        rs.Network(mean_of_colours(), "mine", transform=words)


def test_words_do_not_change_a_part_of_a_library_s_own_preparing(tmp_path):
    tf.ViTModel(tf.ViTConfig(**VIT)).save_pretrained(tmp_path)
    PROCESSOR.save_pretrained(tmp_path)
    with pytest.raises(rs.UsageError, match="'crop=1.0' leaves open the mean and std"):
        rs.load_model(f"hf:{tmp_path}", transform="crop=1.0")
    network = rs.load_model(f"hf:{tmp_path}", transform="imagenet")
    assert network.transform == replace(rs.EvalTransform(), input_size=(3, SIDE, SIDE))


def test_the_command_says_it_for_each_network(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 4, 4))\n"
    )
    monkeypatch.chdir(tmp_path)
    run = ["cka", "--model-a", "own:net", "--model-b", "own:net", "--layers", "all", "--data", "noise", "--images", "8"]
    run += ["--batch-size", "8", "--out", "out", "--quiet"]
    asked = CliRunner().invoke(main, run)
    assert asked.exit_code == 2 and "--transform" in asked.stderr
    b = ["--transform-b", "size=16 mean=0,0,0 std=1,1,1"]
    done = CliRunner().invoke(main, [*run, "--transform-a", "imagenet size=8", *b])
    assert done.exit_code == 0, done.output
    transforms = [network["transform"] for network in json.loads(Path("out/run.json").read_text())["networks"]]
    assert [transform["input_size"] for transform in transforms] == [[3, 8, 8], [3, 16, 16]] and transforms[1][
        "std"
    ] == [1, 1, 1]
    layers = CliRunner().invoke(main, ["layers", "own:net", "--layers", "all", "--transform", "imagenet size=8"])
    assert "4 x 2 x 2" in layers.output


def test_of_several_networks_it_is_said_once_or_once_each():
    models, weights = ("own:a", "own:b"), ("pretrained",)
    once = each_model(models, weights, (), (), ("imagenet",))
    assert [choice.transform for choice in once] == ["imagenet"] * 2
    assert [choice.transform for choice in each_model(models, weights, (), (), ("imagenet", "size=8"))] == [
        "imagenet",
        "size=8",
    ]
    with pytest.raises(
        rs.UsageError, match="--transform once, or once per --model: there are 2 models and 3 transforms"
    ):
        each_model(models, weights, (), (), ("imagenet",) * 3)


@pytest.mark.parametrize(
    "asked, message",
    [
        (["--model-a", "torchvision:resnet81"], "unknown model of torchvision 'resnet81'"),
        (["--model-a", "open_clip:ViT-Q-32:laion"], "model of open_clip"),
        (["--model-a", "torchvision:resnet18:BEST"], "weights of torchvision's resnet18"),
        (["--model-a", "hf:./nowhere"], "there is no folder './nowhere'"),
        (["--model-a", "no_such_package:net"], "cannot import 'no_such_package'"),
        (["--model-a", "torch.nn:Linearr"], "factory of torch.nn"),
        (["--model-a", "torchvision:resnet18", "--transform-a", "sise=3"], "got 'sise=3' for torchvision:resnet18"),
    ],
)
def test_a_mistyped_network_is_said_before_that_there_are_no_images(asked, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPSIM_IMAGENET", raising=False)
    if asked[1].startswith("open_clip:"):
        pytest.importorskip("open_clip")
    said = CliRunner().invoke(main, ["cka", *asked, "--weights-a", "random"])
    assert said.exit_code == 2 and re.search(message, said.stderr), said.stderr


# How networks are called


class Batched(nn.Module):
    """A network that takes a dictionary, and gives one."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"features": self.vit(batch["image"]).last_hidden_state, "mask": batch["image"][:, 0] > 0}


@pytest.mark.parametrize("study", OF_A_VIT)
def test_a_network_that_takes_a_dictionary(study):
    torch.manual_seed(0)
    vit = tf.ViTModel(tf.ViTConfig(**VIT)).eval()
    module = Batched(vit)
    transform = rs.EvalTransform(input_size=(3, SIDE, SIDE))
    with pytest.raises(rs.RepsimError, match="cannot run on images of 3x32x32"):
        OF_A_VIT[study](rs.Network(module, "net", transform=transform), IMAGES)
    called = rs.Network(module, "net", transform=transform, call=lambda images: module({"image": images}))
    table = OF_A_VIT[study](called, IMAGES)
    expected = OF_A_VIT[study](rs.Network(vit, "net", transform=transform), IMAGES)
    bare = table.replace(r"^vit\.", "", regex=True)
    layers = [name for name in table if "layer" in name]
    assert len(table) == len(expected) and bare[layers].equals(expected[layers])
    numbers = table.select_dtypes("number").columns
    np.testing.assert_allclose(table[numbers], expected[numbers], rtol=1e-4, atol=1e-7)


def test_what_is_set_in_a_config_afterwards_counts():
    torch.manual_seed(0)
    module = tf.ViTModel(tf.ViTConfig(**VIT, attn_implementation="eager")).eval()
    first = rs.attention_distance(module, IMAGES).table
    module.set_attn_implementation("sdpa")
    second = rs.attention_distance(module, IMAGES).table
    np.testing.assert_allclose(first.distance_px, second.distance_px, rtol=1e-4)


def test_a_call_leaves_the_module_as_it_is():
    vit = tf.ViTModel(tf.ViTConfig(**VIT)).train()
    network = rs.Network(vit, "vit", call=lambda images: vit(pixel_values=images).last_hidden_state)
    assert vit.training and network.module.training
    rs.layer_cka(network, IMAGES, batch_size=8)
    assert vit.training and vit.get_submodule(BLOCKS[0]).training and not vit._forward_hooks
    assert replace(network, name="other").module is network.module
    plain = rs.Network(vit, "vit")
    assert network.record() == plain.record() and network.weights_sha256 == plain.weights_sha256
