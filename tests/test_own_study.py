"""The study of docs/own-study.md runs, and the check of the contract finds studies that break it."""

import re
from pathlib import Path

import pandas as pd
import pytest
import torch

import repsim as rs

PAGE = Path(__file__).parents[1] / "docs" / "own-study.md"
IMAGES = rs.ImageSet("sample", images=40)


@pytest.fixture(scope="module")
def page():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    shown = {}
    exec(code, shown)
    return shown


def test_it_counts_zeros_and_is_thirty_lines(page, resnet, tmp_path):
    result = page["sparsity"](resnet, IMAGES, layers="layer1.0.act1", batch_size=20)
    with rs.capture(resnet, "layer1.0.act1") as seen, torch.no_grad():
        (batch,) = IMAGES.batches([resnet.transform], 40)
        resnet.module(batch.inputs[resnet.transform])
    share = (seen["layer1.0.act1"] == 0).flatten(1).double().mean(1)
    row = result.table.iloc[0]
    assert row["zeros"] == pytest.approx(share.mean().item(), rel=1e-5) and 0 < row["zeros"] < 1
    assert row["se"] == pytest.approx(share.std().item() / 40**0.5, rel=1e-5)
    code = re.search(r"class Sparsity.*?\n\n\nimages", PAGE.read_text(), re.S).group()
    assert len([line for line in code.splitlines()[:-1] if line]) <= 30
    assert result._repr_png_().startswith(b"\x89PNG") and result._repr_html_() is None
    (line,) = result.plot().axes[0].lines
    assert line.get_ydata().tolist() == result.table["zeros"].tolist()
    names = ["run.json", "sparsity.csv", "sparsity.pdf", "sparsity.png"]
    assert sorted(path.name for path in result.save(tmp_path)) == names
    bare = rs.Result("sparsity", result.table.drop(columns="depth"))
    assert bare._repr_png_() is None and "<table" in bare._repr_html_()
    with pytest.raises(rs.UsageError, match="no picture of sparsity"):
        bare.plot()


class Means(rs.Study):
    """A study of the mean of a layer over images, which is right, or wrong in one way."""

    def __init__(self, network, wrong=None):
        self.networks, self.wrong = [network], wrong
        self.layers = rs.find_layers(network, ["layer4.0"])
        self.sums = rs.Moments()
        self.batches = 0

    def watch(self, index, network, seen):
        if self.wrong == "whole":
            return seen.layers(self.layers, lambda layer, x: x.flatten(1).mean(1) / len(x))
        if self.wrong == "pieces":
            return seen.rows(self.layers, lambda layer, x: x.flatten(1).mean(1) / len(x))
        return seen.rows(self.layers, lambda layer, x: x.flatten(1).mean(1))

    def update(self, seen, batch):
        self.batches += 1
        values = seen[0]["layer4.0"]
        self.sums.update(values * self.batches if self.wrong == "state" else values)
        if self.wrong == "draws":
            self.sums.update(torch.rand(4))

    def result(self, counts):
        return rs.Result("means", pd.DataFrame({"mean": [self.sums.mean().item()], "se": [self.sums.se().item()]}))


@pytest.mark.parametrize(
    "wrong, way",
    [
        (None, None),
        ("whole", None),
        ("pieces", "in pieces of a batch"),
        ("state", "from sums that were saved"),
        ("draws", "a second time"),
    ],
)
def test_the_check_finds_what_breaks_the_contract(wrong, way, resnet):
    study = Means(resnet, wrong)
    if way is None:
        assert rs.check_study(study, IMAGES, batch_size=8).table["mean"].notna().all()
    else:
        with pytest.raises(AssertionError, match=f"Means gives another result {way}: "):
            rs.check_study(study, IMAGES, batch_size=8)
    assert study.batches == 0
