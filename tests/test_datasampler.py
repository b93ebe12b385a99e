import pytest
import torch

import datasampler
from datasampler import ClassBatches, RandomBatches

LABELS = torch.tensor([c for c in range(20) for _ in range(1 if c == 7 else 5)])  # class 7 has one image
UNEVEN = torch.tensor([c for c in range(12) for _ in range((1, 2, 3, 30)[c % 4])])
UNEVEN = UNEVEN[torch.randperm(108, generator=torch.Generator().manual_seed(0))]


def epoch(sampler, number=0, start=0):
    sampler.set_epoch(number, start)
    return list(sampler)


def make(name, labels=LABELS, bs=12, samples_per_class=3, **more):
    return datasampler.SAMPLERS[name](labels, bs, samples_per_class, **more)


@pytest.mark.parametrize("distinct, n_batches", [(False, 8), (True, 10)])  # 19 classes of 2 groups, one of 1; 4 a batch
def test_batches(distinct, n_batches):
    sampler = ClassBatches(LABELS, bs=12, samples_per_class=3, distinct=distinct, seed=1)
    batches = epoch(sampler)
    assert len(batches) == len(sampler) == n_batches
    for batch in batches:
        labels = LABELS[batch].view(4, 3)
        assert (labels == labels[:, :1]).all()  # groups of one class
        for group, y in zip(torch.tensor(batch).view(4, 3), labels[:, 0]):  # balanced: twice only where it must be
            assert not distinct or len(group.unique()) == (1 if y == 7 else 3)
    assert batches == epoch(sampler) and batches != epoch(sampler, 1)
    assert batches != epoch(ClassBatches(LABELS, 12, 3, distinct, seed=2))


COVERED = [(LABELS, 12, 3), (LABELS, 40, 2), (UNEVEN, 12, 3), (UNEVEN, 24, 2), (UNEVEN, 8, 4), (UNEVEN, 5, 1)]


@pytest.mark.parametrize("labels, bs, per_class", COVERED)
def test_class_balanced_covers_every_image_in_an_epoch_with_distinct_classes(labels, bs, per_class):
    for seed in range(4):
        sampler = ClassBatches(labels, bs, per_class, distinct=True, seed=seed)
        for number in range(3):
            batches = epoch(sampler, number)
            assert len(batches) == len(sampler) and all(len(b) == bs for b in batches)
            assert {i for b in batches for i in b} == set(range(len(labels)))
            assert all(len(set(labels[b].tolist())) == bs // per_class for b in batches)
    groups = [-(-int(n) // per_class) for n in labels.bincount()]
    assert len(sampler) == max(-(-sum(groups) // (bs // per_class)), max(groups))  # as few as there can be


# as many classes and images as are published; SOP's classes have 2 to 12 images
SIZES = {0.017: [60] * 88 + [49] * 8 + [48] * 4, 0.25: [2] * 2851 + [5] * 4629 + [8] * 3838}


@pytest.mark.parametrize("share", list(SIZES))
@pytest.mark.parametrize("seed", range(3))
def test_class_random_draws_twins_as_often_as_published(share, seed):
    """Published: a class, then its images, by random.choice: 1/n of the pairs of a class of n are one image twice."""
    sizes = torch.tensor(SIZES[share])
    labels = torch.arange(len(sizes)).repeat_interleave(sizes)
    sampler = ClassBatches(labels, 90, 2, seed=seed)
    pairs = torch.tensor([b for number in range(60000 // len(labels)) for b in epoch(sampler, number)]).view(-1, 2)
    twins, wanted = float((pairs[:, 0] == pairs[:, 1]).double().mean()), float((1 / sizes).mean())
    assert wanted == pytest.approx(share, rel=0.02) and (labels[pairs[:, 0]] == labels[pairs[:, 1]]).all()
    assert twins == pytest.approx(wanted, abs=4 * (wanted / len(pairs)) ** 0.5)
    place = (pairs - (sizes.cumsum(0) - sizes)[labels[pairs]] + 0.5) / sizes[labels[pairs]]  # 0 to 1 within its class
    assert float(place.mean()) == pytest.approx(0.5, abs=0.006) and float(place.std()) == pytest.approx(0.28, abs=0.02)
    classes = labels[pairs[:, 0]].view(-1, 45)
    repeated = sum(len(set(batch)) < 45 for batch in classes.tolist()) / len(classes)
    missed = 1 - torch.log1p(-torch.arange(45) / len(sizes)).sum().exp()  # birthdays
    assert repeated == pytest.approx(float(missed), abs=0.07)


def test_random_goes_through_the_images():
    sampler = RandomBatches(LABELS, bs=10, seed=3)
    batches = epoch(sampler)
    assert len(batches) == len(sampler) == 9 and all(len(b) == 10 for b in batches) and len(set(sum(batches, []))) == 90
    assert batches == epoch(sampler) != epoch(sampler, 1) and batches != epoch(RandomBatches(LABELS, 10, seed=4))
    assert {i for number in range(5) for b in epoch(sampler, number) for i in b} == set(range(96))
    assert len(epoch(ClassBatches(LABELS, bs=400, samples_per_class=20))) == 1  # an epoch is never empty
    small = epoch(RandomBatches(LABELS[:7], bs=10))
    assert len(small) == 1 and len(small[0]) == 10 and set(small[0]) == set(range(7))


@pytest.mark.parametrize("name", list(datasampler.SAMPLERS))
def test_draws_do_not_depend_on_ranks_or_on_where_the_epoch_was_entered(name):
    def draws(number, start=0, **more):
        sampler = make(name, bs=12, **more)
        sampler.set_epoch(number, start)
        found = list(datasampler.Draws(sampler))
        assert len(found) == len(sampler)
        return found

    whole = draws(2, seed=1)
    assert [[i for i, _ in batch] for batch in whole] == epoch(make(name, bs=12, seed=1), 2)
    assert all(draws(2, start, seed=1) == whole[start:] for start in (1, 3, len(whole) - 1, len(whole)))
    parts = [draws(2, seed=1, rank=rank, world=3) for rank in range(3)]
    assert [sum(batches, []) for batches in zip(*parts)] == whole
    seeds = [seed for batch in whole for _, seed in batch]
    others = [seed for d in (draws(3, seed=1), draws(2, seed=2)) for batch in d for _, seed in batch]
    assert len(set(seeds)) == len(seeds) and not set(seeds) & set(others)  # an image drawn twice is augmented twice
