"""Networks that give other values for the same images in every pass are refused, unless they get a seed."""

import random
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import repsim as rs
from repsim.cli import main

IMAGES = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TRANSFORM = rs.EvalTransform(input_size=(3, 16, 16))


def unit() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU())


class Drawing(nn.Module):
    """A network that applies a function between its two rows of units."""

    def __init__(self, between: Callable[[torch.Tensor], torch.Tensor], **settings: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.below, self.above = nn.Sequential(unit(), unit()), nn.Sequential(unit(), unit())
        self.between = between
        vars(self).update(settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.above(self.between(self.below(x)))


def shuffled(x: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Places in another order, which is the same for all images, so that sums over places stay."""
    return x.flatten(2)[:, :, order].view_as(x)


OWN = torch.Generator()
DRAWS = {
    "dropout that is left on": lambda x: nn.functional.dropout(x, 0.1, training=True),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "little noise": lambda x: x + 1e-4 * torch.randn_like(x),
    "one image of a thousand dropped": lambda x: x * (torch.rand(len(x), 1, 1, 1) > 0.001),
    "dropped now and then, in place": lambda x: x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.999),
    "a scale of the whole batch": lambda x: x * torch.rand(()),
    "places in another order": lambda x: shuffled(x, torch.randperm(256)),
    "a generator of its own": lambda x: x + torch.randn(x.shape, generator=OWN),
    "numpy": lambda x: x + torch.from_numpy(np.random.rand(*x.shape)).float(),
    "Python": lambda x: x + random.random() * (1 + torch.arange(16)),
}


def drawing(kind: str, **known) -> rs.Network:
    return rs.Network(Drawing(DRAWS[kind]), "net", transform=TRANSFORM, **known)


@pytest.mark.parametrize("kind", DRAWS)
def test_what_draws_is_refused(kind):
    with pytest.raises(rs.RepsimError, match="net gives other values for the same images in every pass: it") as error:
        rs.layer_cka(drawing(kind), IMAGES, batch_size=8)
    assert "--seed-each-pass (seed_each_pass=True)" in str(error.value) and "\n" not in str(error.value)


SEEDED = [kind for kind in DRAWS if kind != "a generator of its own"]


@pytest.mark.parametrize("kind", SEEDED)
def test_with_one_seed_for_every_pass_two_runs_are_the_same(kind):
    networks = [drawing(kind, seed_each_pass=True) for _ in range(2)]
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    tables = [rs.layer_cka(network, IMAGES, batch_size=4).table for network in networks]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0]) and np.array_equal(before[1], after[1]) and before[2] == after[2]


def test_a_generator_that_no_seed_reaches_stays_refused():
    with pytest.raises(rs.RepsimError, match="gives other values for the same images"):
        rs.layer_cka(drawing("a generator of its own", seed_each_pass=True), IMAGES, batch_size=8)


def test_where_it_draws_and_what_to_set_are_said():
    class Noise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noise_std = 0.3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.noise_std * torch.randn_like(x)

    module = Drawing(Noise())
    with pytest.raises(rs.RepsimError, match=r"draws at random \(randn_like in between\).*setting noise_std to 0"):
        rs.find_layers(rs.Network(module, "net", transform=TRANSFORM))
    module.between.noise_std = 0.0  # it still draws, without effect
    table = rs.layer_cka(rs.Network(module, "net", transform=TRANSFORM), IMAGES, batch_size=8).table
    plain = rs.layer_cka(rs.Network(Drawing(nn.Identity()), "net", transform=TRANSFORM), IMAGES, batch_size=8).table
    pd.testing.assert_frame_equal(table, plain)
    unseen = Drawing(lambda x: x + torch.from_numpy(np.random.rand(*x.shape)).float())
    with pytest.raises(rs.RepsimError, match="its own code gives something else for the same input"):
        rs.find_layers(rs.Network(unseen, "net", transform=TRANSFORM))


def test_what_mixes_a_batch_is_not_called_drawing():
    module = Drawing(lambda x: x - x.mean(0))
    with pytest.raises(rs.UsageError, match="depends on several images of a batch at once"):
        rs.find_layers(rs.Network(module, "net", transform=TRANSFORM), ["above.0"])


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    tf = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("networks") / "mae"
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    tf.ViTMAEModel(tf.ViTMAEConfig(**sizes, image_size=32, patch_size=8)).save_pretrained(folder)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_masked_autoencoder_without_a_mask_keeps_its_tokens_in_order(masked):
    with pytest.raises(rs.RepsimError, match="rand in embeddings.*setting mask_ratio to 0"):
        rs.find_layers(rs.load_model(f"hf:{masked}"))
    network = rs.load_model(f"hf:{masked}", mask_ratio=0)
    (layer,) = rs.find_layers(network, ["layers.1"])
    assert layer.names == ("cls",) and layer.grid == (4, 4)
    inputs = torch.rand(2, 3, 32, 32)
    inner = network.module.of
    with torch.no_grad(), rs.capture(network, ["stem"]) as seen:
        network.module(inputs)
    with torch.no_grad():
        patches = inner.embeddings.patch_embeddings(inputs) + inner.embeddings.position_embeddings[:, 1:]
    torch.testing.assert_close(seen["stem"][:, 1:], patches)


def test_the_command_refuses_noise_and_takes_one_seed(masked, tmp_path):
    call = f"cka --model-a hf:{masked} --data sample --images 8 --batch-size 8 --workers 0 --quiet --out".split()
    refused = CliRunner().invoke(main, [*call, str(tmp_path / "no")])
    assert refused.exit_code == 1 and not (tmp_path / "no").exists() and "--seed-each-pass" in refused.output
    for name in "ab":
        assert CliRunner().invoke(main, [*call, str(tmp_path / name), "--seed-each-pass"]).exit_code == 0
    assert (tmp_path / "a" / "cka.csv").read_bytes() == (tmp_path / "b" / "cka.csv").read_bytes()
    assert '"seed_each_pass": true' in (tmp_path / "a" / "run.json").read_text()
