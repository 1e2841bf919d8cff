"""Sums over batches, and the means, quantiles, standard errors and intervals that they give."""

import io

import pytest
import torch

from repsim.errors import RepsimError
from repsim.measures.intervals import crossed, interval, jackknife
from repsim.measures.running import GroupedSums, ImageMeans, Moments, Quantiles, Together
from repsim.networks.older_torch import safe_globals


def filled(values, groups=32):
    sums = GroupedSums(groups)
    for value in values:
        sums.update(value)
    return sums


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(20, 3, dtype=torch.float64)
    mean, se = jackknife(filled(values), lambda m: m)
    torch.testing.assert_close(mean, values.mean(0))
    torch.testing.assert_close(se, values.std(0) / 20**0.5)


def test_groups_of_one_size_are_the_mean_over_groups():
    values = torch.randn(12, dtype=torch.float64)
    _, se = jackknife(filled(values, groups=4), lambda m: m)
    torch.testing.assert_close(se, values.view(3, 4).mean(0).std() / 2)


def test_unequal_groups_stay_close_to_the_truth():
    torch.manual_seed(0)
    values = torch.randn(200, 70, dtype=torch.float64)
    se = torch.stack([jackknife(filled(row, groups=32), lambda m: m)[1] for row in values])
    assert se.mean().item() == pytest.approx(70**-0.5, rel=0.03)


def test_one_batch_has_no_standard_error():
    value, se = jackknife(filled([torch.tensor(2.0)]), lambda m: m)
    assert value == 2 and se.isnan()


def test_nothing_summed():
    with pytest.raises(RepsimError, match="not one whole batch"):
        GroupedSums().mean()
    with pytest.raises(ValueError, match="cannot merge 32 groups with 4"):
        GroupedSums().merge(GroupedSums(4))


@pytest.mark.parametrize("q", [0.1, 0.5, 0.9])
def test_quantiles_are_within_one_percent(q):
    values = torch.randn(5000, 3, dtype=torch.float64).exp() * torch.tensor([1e-3, 1.0, 1e3])
    quantile = Quantiles().update(values).compute(q)
    torch.testing.assert_close(quantile, values.quantile(q, dim=0), rtol=0.011, atol=0)


def test_quantiles_merge_and_keep_what_lies_outside():
    values = torch.tensor([[0.0, 1.0, torch.inf], [1e-9, 1.0, 1e9], [0.0, torch.nan, torch.inf]])
    whole, parts = Quantiles().update(values), Quantiles().update(values[:1]).merge(Quantiles().update(values[1:]))
    assert torch.equal(whole.counts, parts.counts)
    assert whole.compute()[[0, 2]].tolist() == [0, float("inf")]
    assert whole.compute()[1].item() == pytest.approx(1, rel=0.011)
    assert Quantiles().merge(whole).compute()[0] == 0
    assert Quantiles().update(torch.full((2, 1), torch.nan)).compute().isnan().all()


def test_the_standard_error_of_values_far_from_zero():
    """Standard errors of values far from zero, where sums of squares give 0, are right, also merged and saved."""
    values = 1e8 + 2 * torch.randn(100, 3, dtype=torch.float64)
    first, second = Moments(), Moments()
    for number, batch in enumerate(values.split(7)):
        (first if number % 3 else second).update(batch)
    file = io.BytesIO()
    torch.save(first, file)
    with safe_globals([Moments]):
        first = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    merged = Moments().merge(first).merge(second)
    torch.testing.assert_close(merged.se(), values.std(0) / 10, rtol=1e-7, atol=0)
    torch.testing.assert_close(merged.mean(), values.mean(0), rtol=1e-15, atol=0)


def test_moments_of_one_image_and_of_none():
    assert Moments().update(torch.ones(1, 2)).se().isnan().all()
    with pytest.raises(RepsimError, match="no image was seen"):
        Moments().mean()
    with pytest.raises(RepsimError, match="one shape"):
        Moments().update(torch.ones(1, 2)).update(torch.ones(1, 3))


def test_means_over_images_are_grouped_by_batch():
    values = torch.randn(70, 2, dtype=torch.float64)
    whole, parts = ImageMeans(4), (ImageMeans(4), ImageMeans(4))
    for number, batch in enumerate(values.split(8)):
        whole.update(batch, number)
        parts[number % 2].update(batch, number)
    torch.testing.assert_close(whole.mean(), values.mean(0))
    assert whole.counts.tolist() == [22, 16, 16, 16]
    joined = parts[1].merge(parts[0])
    assert torch.equal(joined.counts, whole.counts)
    torch.testing.assert_close(joined.sums, whole.sums)
    first = [*range(8), *range(32, 40), *range(64, 70)]
    rest, count = next(whole.leave_one_out())
    torch.testing.assert_close(rest, values[[i for i in range(70) if i not in first]].mean(0))
    assert count == 22


def test_a_statistic_of_several_sums_is_paired():
    """The part that two networks share on the same images is no error of their difference, nor of their ratio."""
    generator = torch.Generator().manual_seed(0)
    shared = 10 + torch.randn(400, generator=generator, dtype=torch.float64)
    own = 0.1 * torch.randn(400, generator=generator, dtype=torch.float64)
    a, b = ImageMeans(), ImageMeans()
    for number, (one, other) in enumerate(zip(shared.split(20), (shared + own).split(20))):
        a.update(one, number)
        b.update(other, number)
    sums = Together([a, b])
    value, se = sums.compute(lambda means: means[1] - means[0])
    assert value.item() == pytest.approx(own.mean().item(), abs=1e-12)
    assert se.item() == pytest.approx(own.view(20, 20).mean(1).std().item() / 20**0.5, rel=1e-9)
    assert sums.compute(lambda means: means[1] / means[0])[1] < jackknife(a, lambda mean: mean / 10)[1] / 5


def test_sums_of_different_batches_do_not_go_together():
    a, b = ImageMeans(4).update(torch.ones(3), 0), ImageMeans(4).update(torch.ones(3), 1)
    with pytest.raises(ValueError, match="needs sums of the same batches"):
        Together([a, b])


def test_intervals_cover_and_say_nothing_of_rounding():
    values = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = interval(values.mean(1), values.std(1) / 8**0.5, 7)
    assert ((low < 0) & (high > 0)).double().mean().item() == pytest.approx(0.95, abs=0.012)
    for value, se in ((0.0, 0.0), (1.0, 1e-9), (1e4, 1e-3), (1.0, float("nan"))):
        low, high = interval(torch.tensor(value), torch.tensor(se), 19)
        assert low.isnan() and high.isnan()
    assert interval(torch.tensor(1.0), torch.tensor(0.5), 0)[0].isnan()


@pytest.mark.parametrize("of_draws, of_images", [(0.0, 0.4), (0.05, 0.4), (0.2, 0.4), (0.05, 0.0)])
def test_intervals_over_draws_and_images_cover(of_draws, of_images):
    """Intervals over three draws and 20 batches of images cover the truth, where either source alone would not do."""
    generator = torch.Generator().manual_seed(0)
    covered, draws, count = 0, 3, 600

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    for _ in range(count):
        values = of_draws * normal(1, draws) + of_images * normal(500, 1) + 0.3 * normal(500, draws)
        sums = ImageMeans()
        for number, batch in enumerate(values.split(25)):
            sums.update(batch, number)
        low, high = interval(*crossed(sums, lambda mean: mean[:, None]))
        covered += int(low <= 0 <= high)
    assert 0.92 < covered / count < 0.985


def test_the_smaller_of_two_sources_of_error_is_no_less_than_none():
    """Draws that differ no more than their images do not make the error smaller than that of images alone."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(400, 5, generator=generator, dtype=torch.float64)
    sums = ImageMeans()
    for number, batch in enumerate(values.split(20)):
        sums.update(batch, number)
    _, se, df = crossed(sums, lambda mean: mean[:, None])
    mean = values.mean(1).view(20, 20).mean(1)
    assert se.item() >= mean.std().item() / 20**0.5 * (1 - 1e-9) and 4 <= df.item() <= 4 + 19
