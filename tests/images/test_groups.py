"""Groups of images (`groups`, `--groups`): standard errors are over groups, and a batch holds different groups."""

import copy
import json
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from every_study import STUDIES, SWEPT

import repsim as rs
from repsim.cli import main
from repsim.errors import UsageError
from repsim.measures.cka import (
    gram_row,
    hsic,
    matched_hsic,
    matched_without_groups,
    minibatch_cka,
    stacked_hsic,
    stacked_without_groups,
)
from repsim.measures.intervals import interval, jackknife
from repsim.measures.localization import bordered_hsic, patch_grams
from repsim.measures.running import GROUPS, BatchMeans, ImageMeans, Moments, Together
from repsim.networks.layers import find_layers
from repsim.studies.localization import Localization

GROUP = torch.tensor([5, 2, 2, 0, 5, 5, 0, 2, 5, 0, 2, 5])
"""The groups of twelve images."""


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("offset", [0, 3])
def test_hsic_without_a_group_is_that_of_the_other_images(offset):
    layers = [drawn(12, 7, seed=seed) + offset for seed in range(3)]
    rows = [gram_row(layer) for layer in layers]
    left_out, matched = stacked_without_groups(rows, GROUP), matched_without_groups(rows[:1], [rows[1:2]], GROUP)
    for number, group in enumerate((0, 2, 5)):
        kept = [layer[group != GROUP] for layer in layers]
        expected = torch.tensor([[hsic(a @ a.T, b @ b.T) for b in kept] for a in kept], dtype=torch.float64)
        torch.testing.assert_close(left_out[number], expected, rtol=1e-5, atol=1e-5)
        again = [gram_row(layer) for layer in kept]
        torch.testing.assert_close(
            matched[number], matched_hsic(again[:1], [again[1:2]], len(kept[0])), rtol=1e-5, atol=1e-5
        )


def test_localization_without_a_group_is_that_of_the_other_images():
    tokens, patches = drawn(12, 3, 5), drawn(12, 4, 6, seed=1)
    tokens[:, 0] = 1.0  # varies in no image
    left_out = bordered_hsic(tokens, patch_grams(patches), GROUP)
    torch.testing.assert_close(left_out[0], bordered_hsic(tokens, patch_grams(patches)))
    for number, group in enumerate((0, 2, 5)):
        kept = group != GROUP
        expected = bordered_hsic(tokens[kept], patch_grams(patches[kept]))
        torch.testing.assert_close(left_out[1 + number], expected, rtol=1e-5, atol=1e-5)


def test_what_varies_in_one_group_only_has_no_cka_without_it():
    x = torch.zeros(12, 3, dtype=torch.float64)
    x[GROUP == 5] = drawn(5, 3)
    assert stacked_without_groups([gram_row(x)], GROUP)[2].item() == 0


def cka_of(batches, groups, without=None):
    """Minibatch CKA of two layers without the images of a group; see `minibatch_cka`."""
    sums = minibatch_cka()
    for layers, group in zip(batches, groups):
        kept = group != without if without is not None else torch.ones(len(group), dtype=torch.bool)
        if kept.sum() >= 4:
            sums.update(stacked_hsic([gram_row(layer[kept]) for layer in layers], int(kept.sum())))
    return sums.compute()[0]


def test_the_jackknife_leaves_a_groups_images_out_of_every_batch():
    """CKA without a group is CKA computed anew of the other images, also for group 9, which nearly fills a batch."""
    groups = [GROUP, GROUP.roll(1), torch.where(torch.arange(12) < 9, 9, 5)]
    batches = [[drawn(12, 5, seed=3 * b + k) + drawn(12, 5, seed=50 + b) for k in range(2)] for b in range(3)]
    sums = minibatch_cka()
    for layers, group in zip(batches, groups):
        rows = [gram_row(layer) for layer in layers]
        sums.update(stacked_hsic(rows, 12), group, lambda group, rows=rows: stacked_without_groups(rows, group))
    torch.testing.assert_close(sums.compute()[0], cka_of(batches, groups))
    rest = {group: cka_of(batches, groups, group) for group in (0, 2, 5, 9)}
    for (mean, count), (group, expected) in zip(sums.leave_one_out(), rest.items(), strict=True):
        torch.testing.assert_close(sums.finish(mean), expected, rtol=1e-5, atol=1e-6)
        assert count == sum(int((of_batch == group).sum()) for of_batch in groups)


def test_means_over_images_leave_out_groups():
    values, group = drawn(40, 2), torch.arange(40) % 5
    sums, moments = ImageMeans(), Moments()
    for part in torch.arange(40).split(7):
        sums.update(values[part], group[part])
        moments.update(values[part])
    torch.testing.assert_close(sums.mean(), values.mean(0))
    torch.testing.assert_close(
        sums.se(moments), torch.stack([values[group == g].mean(0) for g in range(5)]).std(0) / 5**0.5
    )
    plain = ImageMeans()
    for number, part in enumerate(values.split(7)):
        plain.update(part, number)
    assert torch.equal(plain.se(moments), moments.se())


def test_sums_of_groups_merge_have_parts_and_go_together():
    whole, halves, images = BatchMeans(torch.clone), [BatchMeans(torch.clone) for _ in range(2)], ImageMeans()
    for number in range(4):
        value, group = drawn(3, seed=number), GROUP.roll(number)
        for sums in (whole, halves[number % 2]):
            sums.update(value, group, lambda group, value=value: torch.stack([value + g for g in group.unique()]))
        images.update(drawn(12, seed=number), group)
    merged = halves[1].merge(halves[0])
    for one, other in zip(jackknife(merged, lambda mean: mean), jackknife(whole, lambda mean: mean)):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(whole.part(1).compute()[1], whole.compute()[1][1])
    assert Together([whole, images]).groups == whole.groups == 3


def test_a_study_that_does_not_know_batches_without_a_group_is_refused():
    with pytest.raises(UsageError, match="does not say what it finds in a batch without one"):
        BatchMeans(torch.clone).update(torch.ones(2), GROUP)


@pytest.mark.parametrize("name", STUDIES)
def test_groups_change_standard_errors_only(name, vit, resnet):
    """Groups change no number but standard errors and what follows from them, with images in the same order."""
    sample = rs.ImageSet().source
    grouped = rs.ImageSet(sample.images[:24], groups=np.arange(24) % 12)
    grouped = grouped.labelled(sample.labels[grouped.chosen])
    plain = copy.copy(grouped)
    plain.groups = None
    result, again = (STUDIES[name].result(vit, resnet, images, batch_size=8) for images in (plain, grouped))
    assert "groups" not in result.record["images"]
    said = "over 12 groups of images (given): the jackknife leaves out one at a time, for images of one group are not "
    assert again.record["images"]["groups"]["intervals"] == f"{said}independent"
    assert any(f"{said}independent" in notice for notice in again.notices)
    for file, table in {result.name: result.table, **result.tables}.items():
        other = {again.name: again.table, **again.tables}[file]
        if not len(table):  # two networks have no map
            continue
        ends = ("se", "low", "high", "df", "skewed")
        errors = [c for c in table if c in ends or c.endswith(("_se", "_low", "_high"))]
        values = [numbers.drop(columns=errors) for numbers in (other, table)]
        pd.testing.assert_frame_equal(*values, rtol=1e-13)  # means over images are summed in another order
        for column in errors:
            if column not in ("df", "skewed"):
                known = table[column].notna() & (table[column].abs() > 1e-6) & other[column].notna()
                assert known.sum() and not np.isclose(other[column], table[column])[known].all()


@pytest.mark.parametrize("name", ["cka", "attention", "localize"])
def test_studies_of_groups_hold_to_the_contract(name, vit, resnet):
    few = name == "localize" and Localization([vit], [find_layers(vit, ["blocks.3"])])
    images = rs.ImageSet(images=24, groups=[i % 12 for i in range(5000)])
    rs.check_study(few or SWEPT[name](vit, resnet), images, batch_size=8)


def test_near_copies_of_images_are_not_independent(vit):
    """Eight noisy copies of 24 photographs have the standard errors of the photographs once they are grouped."""
    photographs = rs.ImageSet("sample", images=24).source.images[:24].astype(float)
    noise = np.random.default_rng(0).normal(0, 1, (8, *photographs.shape))
    copies = (photographs + noise).clip(0, 255).astype(np.uint8).reshape(-1, 28, 28)
    groups = np.tile(np.arange(24), 8)
    once = rs.attention_distance(vit, rs.ImageSet(copies[:24]), batch_size=24).table
    plain = rs.attention_distance(vit, rs.ImageSet(copies), batch_size=24).table
    grouped = rs.attention_distance(vit, rs.ImageSet(copies, groups=groups), batch_size=24).table
    ratio = grouped["distance_px_se"] / once["distance_px_se"]
    assert ratio.between(0.95, 1.05).all()
    assert (plain["distance_px_se"] < 0.4 * once["distance_px_se"]).all()


def test_intervals_over_groups_cover_where_plain_ones_do_not():
    """Intervals over 30 groups of 4 near copies cover CKA of 400 groups in 36 of 40 draws, plain ones in half."""
    generator = torch.Generator().manual_seed(0)

    def layers(groups, copies):
        x, more = (torch.randn(groups, 6, generator=generator, dtype=torch.float64) for _ in range(2))
        both = torch.stack([x, x + more])[:, None]
        return both + 0.2 * torch.randn(2, copies, groups, 6, generator=generator, dtype=torch.float64)

    sums = minibatch_cka()
    for _ in range(40):
        sums.update(stacked_hsic([gram_row(layer[0]) for layer in layers(400, 1)], 400))
    truth, covered = sums.compute()[0][0, 1], {False: 0, True: 0}
    for _ in range(40):
        x, y = layers(30, 4)
        for grouped in covered:
            sums = minibatch_cka()
            for number, batch in enumerate(zip(x, y)):
                rows = [gram_row(layer) for layer in batch]
                group = torch.arange(30) if grouped else number
                sums.update(stacked_hsic(rows, 30), group, partial(stacked_without_groups, rows))
            value, se = (statistic[0, 1] for statistic in sums.compute())
            low, high = interval(value, se, sums.groups)
            covered[grouped] += bool(low <= truth <= high)
    assert covered[True] >= 36 and covered[False] <= 20


def test_batches_hold_different_groups():
    """With 16 crops of each of 47 photographs, a batch has up to 47 images, and no two crops of one photograph."""
    labels = np.repeat(np.arange(47), 16)
    images = rs.ImageSet(np.zeros((752, 4, 4), np.uint8), groups=labels)
    order = labels[images.chosen]
    assert sorted(images.chosen) == list(range(752)) and images.largest_batch == 47
    assert all(len(set(order[i : i + 47])) == 47 for i in range(752 - 46))
    some = rs.ImageSet(np.zeros((752, 4, 4), np.uint8), groups=labels, images=100)
    assert sorted(np.bincount(labels[some.chosen])) == [2] * 41 + [3] * 6
    uneven = rs.ImageSet(np.zeros((120, 4, 4), np.uint8), groups=np.repeat(np.arange(20), [3, 9] * 10))
    order = uneven.groups.of_images[uneven.chosen]
    repeated = [12 - len(set(part)) for part in np.split(order, 10)]
    assert uneven.largest_batch == 13 and max(repeated) <= 1
    few = rs.ImageSet(np.zeros((40, 4, 4), np.uint8), groups=np.arange(40) % 4)
    assert few.largest_batch == 40


def test_batches_of_one_image_a_group_are_said_and_counted(vit):
    copies = rs.ImageSet(images=48).source.images[:48]
    options = {"layers": "blocks.[03]", "batch_size": 32}
    found = rs.layer_cka(vit, rs.ImageSet(copies, groups=np.arange(48) % 16), **options)
    assert found.protocol["batch_size"] == 16 and found.record["images"]["batches"] == 3
    assert "batches are of 16 images, so that no two of one group are compared" in found.notices
    found = rs.layer_cka(vit, rs.ImageSet(copies, groups=np.arange(48) % 3), **options)
    assert any("which CKA takes for independent" in notice for notice in found.notices)


def test_groups_that_cannot_be():
    arrays = np.zeros((8, 28, 28), np.uint8)
    refused = {
        "classes, and the images of noise have none": lambda: rs.ImageSet("noise", images=8, groups="class"),
        "classes, and the images of ndarray .8, 28, 28. have none": lambda: rs.ImageSet(arrays, groups="class"),
        "unknown kind of groups 'classes'": lambda: rs.ImageSet(groups="classes"),
        r"one label for each of the 8 images of .*, got shape \(3,\)": lambda: rs.ImageSet(arrays, groups=[1, 2, 3]),
        "need two or more groups of images, and all chosen images are of one": lambda: rs.ImageSet(
            arrays, groups=[1] * 8
        ),
    }
    for message, make in refused.items():
        with pytest.raises(UsageError, match=message):
            make()


def test_groups_are_dealt_whole_and_evenly():
    labels = [f"photograph {i // 16}" for i in range(752)]
    groups = rs.ImageSet(np.zeros((752, 4, 4), np.uint8), groups=labels).groups
    dealt = groups.at(np.arange(752)).reshape(47, 16)
    assert (dealt == dealt[:, :1]).all() and dealt.unique().tolist() == list(range(GROUPS))
    assert sorted(dealt[:, 0].bincount().tolist()) == [1] * 17 + [2] * 15
    assert groups.record()["intervals"].startswith("over 47 groups of images (given), dealt into 32: the jackknife")


def test_images_redrawn_and_images_left_keep_their_groups():
    images = rs.ImageSet(images=40, groups="class")
    again, some = images.redrawn(1), images.only(np.arange(0, 40, 2))
    for image_set in (again, some):
        (batch,) = image_set.batches([rs.load_model("vit_mini").transform], len(image_set))
        of_class = dict(zip(image_set.labels[batch.positions], batch.group.tolist()))
        assert [of_class[label] for label in image_set.labels[batch.positions]] == batch.group.tolist()
        assert len(set(of_class.values())) == len(of_class)


def test_a_run_is_of_its_groups(tmp_path):
    def run(*options):
        command = [
            "cka",
            "--model-b",
            "vit_mini_gap",
            "--images",
            "64",
            "--layers",
            "blocks.[03]",
            "--out",
            tmp_path / "out",
        ]
        return CliRunner().invoke(main, [*map(str, command), *options])

    assert run("--groups", "class", "--repeats", "2").exit_code == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["images"]["groups"]["count"] == 10
    assert any("over 10 groups of images (class)" in notice for notice in record["notices"])
    other = run("--repeats", "2")
    assert other.exit_code == 2 and "another run" in other.output
    flat = CliRunner().invoke(
        main, ["attention", "--data", "noise", "--groups", "class", "--out", str(tmp_path / "no")]
    )
    assert flat.exit_code == 2 and "the images of noise have none" in flat.output
