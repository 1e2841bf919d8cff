"""The parts of analyses/train_minis.py on which results depend: subsets, seeds and tasks."""

import numpy as np
import torch
from safetensors.torch import save_file
from train_minis import TABLE, batch_indices, build, nested_subset, turn

import repsim as rs
from repsim.networks import minis
from repsim.networks.minis import bundled


def test_subsets_nest_and_are_balanced():
    labels = torch.from_numpy(np.random.default_rng(0).permutation(np.repeat(np.arange(10), 600)))
    subsets = [set(nested_subset(labels, fraction).tolist()) for fraction in (0.03, 0.1, 0.3, 1.0)]
    assert [len(subset) for subset in subsets] == [180, 600, 1800, 6000]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3]
    for subset in subsets:
        assert len(set(torch.bincount(labels[list(subset)]).tolist())) == 1


def test_every_network_of_the_table_can_be_built():
    for run in TABLE.values():
        network = minis.ARCHITECTURES[run.architecture](num_classes=minis.CLASSES[run.task])
        assert network.num_classes == minis.CLASSES[run.task]


def test_data_sizes_are_trained_alike():
    for architecture in ("vit_mini", "resnet_mini"):
        sizes = [TABLE[f"{architecture}_{percent}pct"] for percent in (3, 10, 30, 100)]
        assert [run.fraction for run in sizes] == [0.03, 0.1, 0.3, 1.0]
        assert len({(run.architecture, run.lr, run.epochs, run.seed, run.task) for run in sizes}) == 1
        again = TABLE[f"{architecture}_100pct_seed1"]
        assert (again.lr, again.epochs, again.fraction, again.seed) == (sizes[-1].lr, sizes[-1].epochs, 1.0, 1)


def test_batches_go_through_all_images_and_depend_on_the_step_alone():
    batches = [batch_indices(step, 1024, seed=0) for step in range(8)]
    assert sorted(torch.cat(batches[:4]).tolist()) == list(range(1024))
    assert not torch.equal(batches[0], batches[4])
    assert torch.equal(batches[5], batch_indices(5, 1024, seed=0))
    assert not torch.equal(batches[5], batch_indices(5, 1024, seed=1))


def test_turned_images_carry_their_quarter_turns():
    images = torch.arange(2 * 9).reshape(2, 3, 3)
    turned, turns = turn(images, torch.Generator().manual_seed(3))
    for image, back, quarter in zip(images, turned, turns.tolist()):
        assert torch.equal(back.rot90(-quarter, (0, 1)), image)


def test_a_network_of_another_task_is_loaded_with_its_classes(tmp_path, monkeypatch):
    model = build(TABLE["vit_mini_rotation"])
    metadata = {"architecture": "vit_mini", "task": "rotation"}
    save_file(model.state_dict(), tmp_path / "vit_mini_rotation.safetensors", metadata=metadata)
    monkeypatch.setattr(minis, "WEIGHTS", tmp_path)
    loaded = rs.load_model("vit_mini_rotation").module
    assert loaded.head.out_features == 4 and torch.equal(loaded.head.weight, model.head.weight)


def test_every_bundled_network_is_in_the_table():
    assert set(bundled()) <= set(TABLE)
