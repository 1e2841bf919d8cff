"""The commands as a user types them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from conftest import folder
from PIL import Image

import repsim as rs
from repsim.cli import main
from repsim.cli.asked import label
from repsim.tables import (
    ATTENTION,
    HEADS,
    LESION,
    LOCALIZATION,
    LOCALIZATION_SUMMARY,
    MATCHED,
    NEIGHBOURS,
    PROBE,
    PROBE_SUMMARY,
    RECEPTIVE,
    RESIDUAL,
    SIMILARITY,
    load_arrays,
)


def repsim(*arguments) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def somewhere(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("REPSIM_IMAGENET", raising=False)
    return tmp_path


def test_cka_writes_table_record_and_pictures(somewhere):
    result = repsim("cka", "--images", 130, "--batch-size", 32)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "cka-vit_mini-resnet_mini"
    assert sorted(os.listdir(out)) == ["cka.csv", "cka.pdf", "cka.png", "run.json"]
    assert str(out.relative_to(somewhere) / "cka.png") in result.output
    table = pd.read_csv(out / "cka.csv")
    assert list(table.columns) == SIMILARITY and len(table) == 30 * 30
    assert not table.duplicated(["model_a", "layer_a", "model_b", "layer_b"]).any()
    record = json.loads((out / "run.json").read_text())
    assert record["images"]["used"] == 128 and record["images"]["dropped_in_short_batch"] == 2
    assert [n["name"] for n in record["networks"]] == ["vit_mini", "resnet_mini"]
    assert all(len(n["weights_sha256"]) == 64 for n in record["networks"]) and not record["random"]
    assert {"versions", "device", "seconds", "command", "protocol"} <= set(record)
    expected = rs.layer_cka(["vit_mini", "resnet_mini"], rs.ImageSet("sample", images=130), batch_size=32).table
    assert np.allclose(table.cka, expected.cka, atol=1e-9)


def test_within_one_network_untrained_and_said_so(somewhere):
    result = repsim("cka", "--model-a", "vit_mini", "--weights-a", "random", "--images", 64, "--batch-size", 16)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "cka-vit_mini-random"
    assert {"cka-random.png", "cka-random.pdf"} < set(os.listdir(out))
    assert set(pd.read_csv(out / "cka.csv").model_b) == {"vit_mini-random"}
    assert json.loads((out / "run.json").read_text())["random"] is True


def test_matched(somewhere):
    arguments = ["cka", "--matched", "--weights-b", "random", "--images", 32, "--batch-size", 16, "--out", "o"]
    result = repsim(*arguments)
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir("o")) == [
        *("matched-random.pdf", "matched-random.png", "matched.csv", "matched.pdf", "matched.png", "run.json")
    ]
    table = pd.read_csv("o/matched.csv")
    assert list(table.columns) == MATCHED and len(table) == 13
    assert set(table.model_a) == {"vit_mini"} and set(table.model_b) == {"vit_mini-random"}
    assert repsim("cka", "--matched", "--redraw", "o").exit_code == 0


def test_redraw_needs_no_torch(somewhere):
    repsim("cka", "--model-a", "vit_mini", "--images", 32, "--batch-size", 16, "--out", "here")
    (somewhere / "here" / "cka.png").unlink()
    script = (
        "import sys; from repsim.cli import main; main(['cka', '--redraw', 'here'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=somewhere)
    assert (somewhere / "here" / "cka.png").exists()


def test_help_imports_nothing_heavy():
    script = (
        "import sys; from repsim.cli import main; main(['--help'], standalone_mode=False); "
        "assert not {'torch', 'pandas', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_a_folder_with_a_broken_image(somewhere):
    for i in range(9):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (30, 30, 3), dtype=np.uint8)).save(f"{i}.png")
    Path("3.png").write_bytes(b"not an image")
    options = ["cka", "--model-a", "vit_mini", "--data", ".", "--images", 9, "--batch-size", 4, "--out", "o"]
    result = repsim(*options)
    assert result.exit_code == 1 and "3.png" in result.output and not Path("o/cka.csv").exists()
    assert repsim(*options, "--skip-broken").exit_code == 0
    record = json.loads(Path("o/run.json").read_text())["images"]
    assert record["broken_count"] == 1 and record["used"] == 8


def test_fewer_images_than_a_batch(somewhere):
    result = repsim("cka", "--model-a", "vit_mini", "--images", 20, "--out", "o", "--batch-size", 20)
    assert result.exit_code == 0 and "one batch of 20, so there are no standard errors" in result.output
    assert pd.read_csv("o/cka.csv").se.isna().all()


def test_batches_of_few_images_are_smaller_and_are_said_to_be(somewhere):
    result = repsim("cka", "--model-a", "vit_mini", "--images", 100, "--out", "o")
    assert "batches are of 10 images, not 256, so that 100 images make 10; see --batch-size" in result.output
    assert pd.read_csv("o/cka.csv").se.notna().all()
    record = json.loads(Path("o/run.json").read_text())
    assert record["protocol"]["batch_size"] == 10 and record["images"]["batches"] == 10
    assert not any("batches are of" in notice for notice in record["notices"])


def test_a_finished_run_is_said_to_be_computed_again(somewhere):
    same = ["attention", "--model", "vit_micro", "--images", 16, "--out", "o"]
    assert "already" not in repsim(*same).output
    assert "o holds the results of this run already; they are computed again" in repsim(*same).output


def test_quiet_says_nothing(somewhere):
    assert repsim("cka", "--model-a", "vit_mini", "--images", 16, "--quiet").output == ""


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["--model-a", "vit_b61"], 2, "did you mean 'vit_b16'"),
        (["--layers", "blocs"], 2, "the presets are blocks, paper, all"),
        (["--model-a", "vit_tiny_patch16_224", "--weights-a", "random"], 2, "`--data noise` gives a dry run"),
        (["--data", "nowhere"], 2, "there is no folder 'nowhere'"),
        (["--images", 3], 2, "--images must be at least 4, got 3"),
        (["--batch-size", 2], 2, "--batch-size must be at least 4, got 2"),
        (["--repeats", 0], 2, "--repeats must be at least 1"),
        (["--weights-a", "nowhere.pt"], 1, "there is no file 'nowhere.pt'"),
        (["--model-a", "mixer_b32", "--data", "noise"], 1, "timm has no pretrained weights"),
        (["--out", "/proc/nowhere"], 1, "cannot write into /proc/nowhere"),
        (["--redraw", "nowhere"], 2, "there is no cka.csv in nowhere"),
        (["--model-a", "vit_mini", "--weights-b", "random"], 2, "need --model-b"),
        (["--arg-a", "depth"], 2, "KEY=VALUE"),
        (["--tokens", "cls"], 2, "has no CLS token"),
        (["--device", "cuda:99"], 1, "cannot put vit_mini on device"),
        (["--matched"], 2, "--matched compares A with others"),
        (["--matched", "--model-b", "resnet_mini"], 2, "do not have the same layers"),
        (["--model-b", "vit_mini", "--model-b", "resnet_mini"], 2, "more than one needs --matched"),
        (["--nonsense"], 2, "No such option"),
    ],
)
def test_bad_input(somewhere, arguments, code, message):
    result = repsim("cka", *arguments)
    assert result.exit_code == code and message in result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.splitlines() if line.startswith("Error")]
    assert len(errors) == 1
    assert not list(somewhere.rglob("*.csv"))


def test_models_and_layers():
    output = repsim("models").output
    for words in ("vit_b16", "vit_base_patch16_224.orig_in21k", "ViT-B/16, JFT-300M", "resnet_mini"):
        assert words in output
    lines = repsim("layers", "vit_mini", "--layers", "blocks").output.splitlines()
    assert lines[0].split() == ["index", "depth", "kind", "layer", "shape"]
    assert lines[-1].split() == ["12", "1.000", "block", "blocks.11", "50", "x", "96"]
    assert repsim("layers", "vit_mini", "--layers", "no").exit_code == 2


def test_imagenet_is_found_by_its_variable(somewhere, monkeypatch):
    from repsim.cli import default_data

    (somewhere / "val").mkdir()
    monkeypatch.setenv("REPSIM_IMAGENET", str(somewhere / "val"))
    assert default_data(["vit_b16"]) == str(somewhere / "val")
    assert default_data(["vit_mini", "resnet_mini"]) == "sample"


def test_attention_with_maps(somewhere):
    result = repsim("attention", "--images", 40, "--batch-size", 20, "--maps", 2, "--blocks", "0,11")
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "attention-vit_mini"
    names = ["attention.csv", "attention.pdf", "attention.png"]
    names += ["attention_maps.npz", "attention_maps.pdf", "attention_maps.png", "run.json"]
    assert sorted(os.listdir(out)) == names
    table = pd.read_csv(out / "attention.csv")
    assert list(table.columns) == ATTENTION and len(table) == 12 * 8
    assert table.distance_px.between(0, 28).all() and (table.distance_px_se > 0).all()
    with np.load(out / "attention_maps.npz") as maps:
        assert maps["cls"].shape == (2, 8, 7, 7) and maps["rollout"].shape == (2, 7, 7)
        assert (maps["rollout"].sum((1, 2)) < 1).all()
    (out / "attention.png").unlink()
    assert repsim("attention", "--redraw", out, "--blocks", "all").exit_code == 0
    assert (out / "attention.png").exists()


def test_attention_with_maps_of_ones_own_photographs(somewhere):
    """Maps are drawn of one or more photographs of any size, without classes, given as files or as a folder."""
    (somewhere / "photos").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{i}.png")
    few = ["attention", "--images", 16, "--maps"]
    assert repsim(*few, "photos/2.png", "--out", "one").exit_code == 0
    assert repsim(*few, "photos/2.png", "photos/0.png", "--out", "two").exit_code == 0
    assert repsim(*few, "photos", "--out", "all").exit_code == 0
    shown = {"one": ["2.png"], "two": ["2.png", "0.png"], "all": ["0.png", "1.png", "2.png"]}
    for out, names in shown.items():
        maps = load_arrays(Path(out, "attention_maps.npz"))
        assert maps["names"].tolist() == names and maps["cls"].shape == (len(names), 8, 7, 7)
        assert maps["block"] == "blocks.11.attn"
        record = json.loads(Path(out, "run.json").read_text())
        assert record["protocol"]["maps"] == names and record["images"]["data"] == "sample"
        assert Path(out, "attention_maps.png").exists()
    one, two = (load_arrays(Path(out, "attention_maps.npz")) for out in ("one", "two"))
    np.testing.assert_allclose(one["cls"][0], two["cls"][0], atol=1e-6)
    assert Path("one/attention.csv").read_bytes() == Path("all/attention.csv").read_bytes()
    for arguments, message in (
        ([*few, "none.png"], "there is no file 'none.png'"),
        (["attention", "photos/2.png"], "given as --maps FILE"),
        ([*few, "101"], "--maps"),
    ):
        result = repsim(*arguments)
        assert result.exit_code == 2 and message in result.output, result.output


def test_photographs_for_maps_are_measured_too_where_no_other_images_are(somewhere):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)).save("photo.png")
    small = [f"--arg={name}" for name in ("img_size=32", "depth=2", "embed_dim=32", "num_heads=2")]
    network = ["attention", "--model", "vit_tiny_patch16_224", "--weights", "random", *small]
    result = repsim(*network, "--maps", "photo.png", "--out", "o")
    assert result.exit_code == 0, result.output
    written = next(line for line in result.output.splitlines() if line.startswith("wrote"))
    assert "o/attention_maps.npz" in written and "o/attention_maps.png" in written
    assert load_arrays(Path("o/attention_maps.npz"))["names"].tolist() == ["photo.png"]
    assert json.loads(Path("o/run.json").read_text())["images"]["used"] == 1
    assert pd.read_csv("o/attention.csv").distance_px.notna().all()
    result = repsim(*network, "--maps", 1)
    assert result.exit_code == 2 and "no images: give a folder with --data DIR" in result.output


def test_a_default_number_of_images_is_not_said_to_be_asked_for(somewhere):
    Path("few").mkdir()
    for i in range(8):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (28, 28), dtype=np.uint8)).save(f"few/{i}.png")
    few = ["attention", "--model", "vit_micro", "--data", "few"]
    assert "asked for" not in repsim(*few, "--out", "default").output
    assert "20 images were asked for, there are 8" in repsim(*few, "--images", 20, "--out", "own").output
    tables = [Path(out, "attention.csv").read_bytes() for out in ("default", "own")]
    assert tables[0] == tables[1]


def test_receptive(somewhere):
    result = repsim("receptive", "--images", 4, "--channels", 2, "--layers", r"blocks\.(0|11)")
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "receptive-vit_mini"
    assert sorted(os.listdir(out)) == [f"receptive.{s}" for s in ("csv", "npz", "pdf", "png")] + ["run.json"]
    assert list(pd.read_csv(out / "receptive.csv").columns) == RECEPTIVE
    record = json.loads((out / "run.json").read_text())
    assert len(record["protocol"]["channels"]["blocks.11"]) == 2 and record["images"]["used"] == 4
    with np.load(out / "receptive.npz") as maps:
        assert maps["blocks.11"].shape == (28, 28) and (maps["blocks.11"] >= 0).all()
    assert repsim("receptive", "--redraw", out).exit_code == 0


def test_the_proxy_goes_by_its_own_name(somewhere):
    arguments = ["receptive", "--images", 4, "--layers", "blocks.11", "--proxy", "--out", "o"]
    assert repsim(*arguments).exit_code == 0
    assert set(os.listdir("o")) == {f"receptive_proxy.{s}" for s in ("csv", "npz", "pdf", "png")} | {"run.json"}
    assert "proxy" in json.loads(Path("o/run.json").read_text())["protocol"]["quantity"]


def test_heads(somewhere):
    result = repsim("heads", "--images", 64, "--batch-size", 16, "--weights-b", "random")
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "heads-vit_mini-resnet_mini-random"
    assert {"heads.csv", "heads_correlation.csv", "heads.png", "heads-random.png", "run.json"} < set(os.listdir(out))
    assert list(pd.read_csv(out / "heads.csv").columns) == HEADS
    assert repsim("heads", "--redraw", out).exit_code == 0


def test_residual(somewhere):
    result = repsim("residual", "--images", 40, "--batch-size", 20)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "residual-vit_mini-resnet_mini"
    names = ["residual.csv", "residual.pdf", "residual.png", "residual_outliers.csv", "run.json"]
    assert sorted(os.listdir(out)) == names
    table = pd.read_csv(out / "residual.csv", dtype={"token": str})
    assert list(table.columns) == RESIDUAL and list(table.model.unique()) == ["vit_mini", "resnet_mini"]
    assert len(table[table.model == "vit_mini"]) == 24 * 50 and (table.ratio > 0).all()
    assert json.loads((out / "run.json").read_text())["protocol"]["outlier"] == 5
    (out / "residual.png").unlink()
    assert repsim("residual", "--redraw", out).exit_code == 0 and (out / "residual.png").exists()


def test_weights_for_each_of_several_models(somewhere):
    arguments = ["residual", "--images", 8, "--batch-size", 4, "--model", "vit_mini", "--model", "vit_mini"]
    assert repsim(*arguments, "--weights", "pretrained", "--weights", "random", "--out", "o").exit_code == 0
    assert [n["weights"] for n in json.loads(Path("o/run.json").read_text())["networks"]][1] == "random"
    assert set(pd.read_csv("o/residual.csv").model) == {"vit_mini", "vit_mini-random"}
    assert "residual-random.png" in os.listdir("o")


def test_lesion(somewhere):
    arguments = [
        "lesion",
        "--images",
        32,
        "--batch-size",
        16,
        "--blocks",
        "0,11",
        "--remove",
        "skip",
        "--remove",
        "block",
    ]
    result = repsim(*arguments)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "lesion-vit_mini"
    assert sorted(os.listdir(out)) == ["lesion.csv", "lesion.pdf", "lesion.png", "run.json"]
    table = pd.read_csv(out / "lesion.csv")
    assert list(table.columns) == LESION
    assert set(table.removed) == {"nothing", "attention skip", "mlp skip", "block"} and set(table.block) == {-1, 0, 11}
    assert "removed at inference" in json.loads((out / "run.json").read_text())["protocol"]["quantity"]
    assert repsim("lesion", "--redraw", out).exit_code == 0
    result = repsim("lesion", "--data", "noise", "--images", 8, "--batch-size", 8, "--blocks", "0", "--out", "n")
    assert result.exit_code == 0 and "no labels, so there is no accuracy" in result.output


def test_localize(somewhere):
    arguments = ["localize", "--model", "vit_mini", "--model", "resnet_mini"]
    options = ["--layers", r"blocks\.11|layer4\.[01]", "--images", 64, "--batch-size", 16, "--show", "2,1"]
    result = repsim(*arguments, *options)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "localize-vit_mini-resnet_mini"
    stems = ("localization", "localization_summary")
    assert sorted(os.listdir(out)) == sorted([f"{s}.{e}" for s in stems for e in ("csv", "pdf", "png")] + ["run.json"])
    table = pd.read_csv(out / "localization.csv")
    assert list(table.columns) == LOCALIZATION and len(table) == 3 * 49 * 49
    summary = pd.read_csv(out / "localization_summary.csv")
    assert list(summary.columns) == LOCALIZATION_SUMMARY and len(summary) == 3 * 3
    assert repsim("localize", "--redraw", out, "--show", "0,0", "--show", "6,6").exit_code == 0
    assert repsim("localize", "--redraw", out, "--show", "7,0").exit_code == 2


def test_probe(somewhere):
    few = ["--images", 60, "--train-images", 120, "--seeds", 2, "--neighbours", 50, "--layers", "blocks.11|layer4.2"]
    result = repsim("probe", "--shots", 1, "--shots", "all", *few)
    assert result.exit_code == 0, result.output
    out = somewhere / "runs" / "probe-vit_mini-resnet_mini"
    stems = ("probe", "probe_tokens", "neighbours")
    names = [f"{stem}.{end}" for stem in stems for end in ("pdf", "png")]
    assert sorted(os.listdir(out)) == sorted([*names, "probe.csv", "probe_summary.csv", "neighbours.csv", "run.json"])
    table = pd.read_csv(out / "probe.csv")
    assert list(table.columns) == PROBE and set(table.shots) == {"1", "all"} and set(table.seed) == {0, 1}
    assert list(pd.read_csv(out / "probe_summary.csv").columns) == PROBE_SUMMARY
    assert list(pd.read_csv(out / "neighbours.csv").columns) == NEIGHBOURS
    record = json.loads((out / "run.json").read_text())
    assert record["images"]["used"] == 60 and record["images"]["split"] is None
    assert record["protocol"]["training_images"]["split"] == "train"
    training = record["protocol"]["training_images"]
    assert training["held_out"] + training["fitted_on"]["all"] == 120 and training["fitted_on"]["1"] == 10
    for stem in stems:
        (out / f"{stem}.png").unlink()
    assert repsim("probe", "--redraw", out).exit_code == 0 and all((out / f"{stem}.png").exists() for stem in stems)


def test_probe_on_folders(somewhere):
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("other", 4)):
        for number, name in enumerate(("cat", "dog")):
            (somewhere / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = (60 * number + rng.integers(0, 90, (28, 28))).astype(np.uint8)
                Image.fromarray(pixels).save(somewhere / "data" / split / name / f"{i}.png")
    few = ["--model", "vit_mini", "--shots", 2, "--seeds", 1, "--neighbours", 0, "--no-tokens", "--layers", "blocks.11"]
    for arguments, used in (
        (["--data", "data"], 6),
        (["--data", "data", "--split", "other"], 8),
        (["--data", "data/other", "--train-data", "data/train"], 8),
        (["--data", "data/val"], 6),  # as ImageNet's folders stand side by side
    ):
        result = repsim("probe", *few, *arguments, "--out", "o", "--overwrite")
        assert result.exit_code == 0, result.output
        assert json.loads(Path("o/run.json").read_text())["images"]["used"] == used
        assert sorted(os.listdir("o"))[:2] == ["neighbours.csv", "probe.csv"]
    result = repsim("probe", *few, "--data", "data/other")
    assert result.exit_code == 2 and "has no folders 'train' and 'val'; name the folder" in result.output


def test_probe_on_a_folder_of_classes_without_a_split(somewhere):
    folder(somewhere / "mine", {"cat": 20, "dog": 20}, side=28)
    few = {"shots": 2, "seeds": 1, "neighbours": 0, "layers": "blocks.11"}
    arguments = [f"--{name}={value}" for name, value in few.items()]
    result = repsim("probe", "--model", "vit_mini", *arguments, "--no-tokens", "--data", "mine", "--out", "o")
    assert result.exit_code == 0, result.output
    assert "20% of each class are test images, 8 of 40, drawn by seed 0" in result.output
    record = json.loads(Path("o/run.json").read_text())
    assert record["images"]["used"] == 8 and record["images"]["split_here"]["training"] == 32
    assert record["protocol"]["training_images"]["split_here"] == record["images"]["split_here"]
    with pytest.warns(rs.Notice, match="20% of each class are test images"):
        probes = rs.linear_probes("vit_mini", "mine", tokens=False, **few)
    probes.save("again")
    assert Path("again/probe.csv").read_bytes() == Path("o/probe.csv").read_bytes()
    (somewhere / "flat").mkdir()
    for i in range(8):
        shutil.copy(f"mine/cat/{i}.png", f"flat/{i}.png")
    result = repsim("probe", "--model", "vit_mini", "--data", "flat")
    assert result.exit_code == 2 and "parted by class only" in result.output


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (["heads", "--model-a", "resnet_mini"], 2, "has no attention heads"),
        (["heads", "--window", "9"], 2, "a window holds 1 to 8 heads"),
        (["attention", "--model", "resnet_mini"], 2, "has no attention to measure"),
        (["attention", "--blocks", "x"], 2, "--blocks takes numbers"),
        (["attention", "--images", 8, "--batch-size", 8, "--blocks", "99"], 2, "there is no block 99"),
        (["attention", "--model", "vit_b61"], 2, "did you mean"),
        (["receptive", "--layers", "head"], 2, "is not a map or grid"),
        (["receptive", "--channels", "-1"], 2, "--channels must be at least 0"),
        (["receptive", "--redraw", "nowhere"], 2, "there is no receptive.csv"),
        (
            ["residual", "--model", "mobilenetv1_100", "--weights", "random", "--data", "noise"],
            2,
            "no blocks with residual sums",
        ),
        (["residual", "--model", "vit_b61"], 2, "did you mean"),
        (["residual", "--outlier", "0.5"], 2, "--outlier must be more than 1"),
        (
            ["residual", "--weights", "random", "--weights", "x", "--weights", "y"],
            2,
            "give --weights once, or once per",
        ),
        (["residual", "--redraw", "nowhere"], 2, "there is no residual.csv in nowhere"),
        (["localize", "--layers", "head"], 2, "has no positions in the image"),
        (["localize", "--show-layer", "blocks.12"], 2, "unknown layer of --show-layer 'blocks.12'; did you mean"),
        (["localize", "--show", "9,9"], 2, "--show 9,9: the grid of tokens is 7 x 7"),
        (["localize", "--show", "2"], 2, "--show takes the row and column of a token, such as 2,1, got '2'"),
        (["localize", "--show", "a,b"], 2, "--show takes the row and column"),
        (["localize", "--batch-size", "3"], 2, "--batch-size must be at least 4"),
        (["localize", "--redraw", "nowhere"], 2, "there is no localization_summary.csv in nowhere"),
        (["probe", "--shots", "few"], 2, "--shots takes a number or `all`, got 'few'"),
        (["probe", "--shots", "0"], 2, "shots must be at least 1"),
        (["probe", "--shots", "5000"], 2, "class 0 has 300 training images; 5000 are needed"),
        (["probe", "--train-images", "20"], 2, "there are none of class"),
        (["probe", "--data", "noise"], 2, "the training images of noise have none"),
        (["figures", "11", "--data", "noise", "--train-data", "nowhere"], 1, "no training images: there is no folder"),
        (["probe", "--layers", "head"], 2, "is not a map or grid"),
        (["probe", "--redraw", "nowhere"], 2, "there is no probe_summary.csv in nowhere"),
        (["lesion", "--blocks", "12"], 2, "there is no block 12 with residual sums"),
        (["lesion", "--blocks", "x"], 2, "--blocks takes numbers"),
        (["lesion", "--layers", "blocs"], 2, "the presets are blocks, paper, all"),
        (["lesion", "--remove", "all"], 2, "'all' is not one of"),
    ],
)
def test_bad_input_elsewhere(somewhere, arguments, code, message):
    result = repsim(*arguments)
    assert result.exit_code == code and message in result.output and "Traceback" not in result.output


def test_the_reference_page_is_that_of_the_commands():
    import commands

    assert commands.PAGE.read_text() == commands.page(), "run python analyses/commands.py"


def test_shells_complete_names_of_networks():
    asked = {"_REPSIM_COMPLETE": "bash_complete", "COMP_WORDS": "repsim cka --model-a vit_mini_n", "COMP_CWORD": "3"}
    result = CliRunner().invoke(main, [], env=asked, prog_name="repsim")
    assert result.output.split() == ["plain,vit_mini_noskip1", "plain,vit_mini_noskip5", "plain,vit_mini_noskip9"]


def test_json_is_all_there_is_on_standard_output(somewhere):
    arguments = ["cka", "--images", 12, "--batch-size", 8, "--layers", "blocks.1.?|layer1.*", "--out", "o", "--json"]
    result = repsim(*arguments)
    said = json.loads(result.stdout)
    assert said["directory"] == "o" and "o/cka.csv" in said["files"] and "o/run.json" in said["files"]
    assert said["notices"] == json.loads(Path("o/run.json").read_text())["notices"] != []
    assert said["said"] and all(sentence in result.stderr for sentence in said["said"])
    assert json.loads(repsim("cka", "--redraw", "o", "--json", "--quiet").stdout)["directory"] == "o"
    assert {"alias", "timm name"} <= set(json.loads(repsim("models", "--json").stdout)[0])
    layers = json.loads(repsim("layers", "vit_mini", "--json").stdout)
    assert layers[0]["layer"] == "stem" and len(layers) == 73


@pytest.mark.parametrize(
    "model", ["hf-hub:owner/..", "local-dir:../../../etc", "local-dir:/", "a\\..\\b", "..", "x\n/y"]
)
@pytest.mark.parametrize("weights", ["pretrained", "../..", "/etc/passwd", "a/..", "random"])
def test_default_directories_are_named_after_networks_and_stay_within_runs(model, weights):
    name = "-".join(["cka", label(model, weights)])
    assert Path(name).name == name and "/" not in name and name != ".."


def test_without_a_command_it_says_what_to_try():
    result = repsim()
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and len(lines) == 5 and "--help" in lines[-1]
    tried = [line.split()[1] for line in lines if line.startswith("  repsim")]
    assert tried and set(tried) <= set(main.commands)


def test_the_list_of_commands_has_whole_sentences():
    result = CliRunner().invoke(main, ["-h"], terminal_width=80)
    lines = result.output.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in lines] == sorted(main.commands)  # each has one line
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_help_has_every_option_once_under_what_it_is_of(command):
    text = repsim(command, "-h").output
    under, title = {}, ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            title = line[:-1]
        elif title and line.startswith("  -"):
            name = [word for word in line.replace(",", " ").split() if word.startswith("--")] or line.split()[:1]
            assert name[0] not in under
            under[name[0]] = title
    options = [param for param in main.commands[command].params if hasattr(param, "secondary_opts") and param.opts]
    wanted = {param.opts[0] for param in options if param.opts[0].startswith("-")}
    assert wanted <= set(under)
    places = {"--model-a": "Networks", "--weights-b": "Networks", "--data": "Images", "--device": "Computing",
              "--json": "Output", "--help": "Output", "--layers": "Options"}  # fmt: skip
    assert all(under[name] == title for name, title in places.items() if name in under)


def test_the_first_network_may_be_named_without_its_side(somewhere):
    few = ["cka", "--images", 8, "--batch-size", 8, "--layers", "blocks.1", "--quiet"]
    assert repsim(*few, "--model", "vit_mini", "--weights", "random", "--out", "o").exit_code == 0
    before = Path("o/cka.csv").read_bytes()
    again = repsim(*few, "--model-a", "vit_mini", "--weights-a", "random", "--out", "o")
    assert again.exit_code == 0 and Path("o/cka.csv").read_bytes() == before  # the same set-up, so not refused
    assert set(pd.read_csv("o/cka.csv").model_a) == {"vit_mini-random"}
    for command in ("cka", "heads"):
        result = repsim(command, "--model", "vit_mini", "--model", "resnet_mini")
        assert result.exit_code == 2 and "give the second with --model-b" in result.output


def test_doctor_says_what_is_there_and_what_is_missing(somewhere, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", "nowhere")
    before = json.loads(repsim("doctor", "--json").stdout)
    assert before["versions"]["torch"] and {"transformers", "plotly"} < set(before["versions"])
    places = {place["what"]: place["found"] for place in before["places"]}
    assert places["bundled images"] and places["bundled weights"]
    name = "ImageNet, data/imagenet/val"
    assert not places[name] and "REPSIM_IMAGENET" in {m["what"]: m["get"] for m in before["missing"]}[name]
    (somewhere / "data" / "imagenet" / "val").mkdir(parents=True)
    after = json.loads(repsim("doctor", "--json").stdout)
    assert {place["what"]: place["found"] for place in after["places"]}[name]
    assert name not in [place["what"] for place in after["missing"]]
    assert "Missing:" in repsim("doctor").stdout


def test_doctor_works_where_libraries_are_missing(somewhere):
    script = (
        "import sys; sys.modules.update(dict.fromkeys(['torch', 'timm', 'numpy', 'psutil', 'huggingface_hub'])); "
        "from repsim.cli import main; main(['doctor'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=somewhere)
    assert done.returncode == 0, done.stderr
    assert "import of torch halted" in done.stdout and "bundled weights" in done.stdout and not done.stderr


def test_doctor_loads_nothing_heavy_but_torch(somewhere):
    script = (
        "import sys; from repsim.cli import main; main(['doctor'], standalone_mode=False); "
        "assert not {'timm', 'matplotlib', 'transformers', 'pandas'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, cwd=somewhere)
