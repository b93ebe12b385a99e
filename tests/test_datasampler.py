import pytest
import torch

import datasampler
import parameters
from datasampler import ClassBatches

LABELS = torch.tensor([c for c in range(20) for _ in range(1 if c == 7 else 5)])  # class 7 has one image


def epoch(sampler, number=0):
    sampler.set_epoch(number)
    return list(sampler)


@pytest.mark.parametrize("distinct", [False, True])
def test_batches(distinct):
    sampler = ClassBatches(LABELS, bs=12, samples_per_class=3, distinct=distinct, seed=1)
    batches = epoch(sampler)
    assert len(batches) == len(sampler) == len(LABELS) // 12
    for batch in batches:
        labels = LABELS[batch].view(4, 3)
        assert (labels == labels[:, :1]).all()  # groups of one class
        for group, y in zip(torch.tensor(batch).view(4, 3), labels[:, 0]):
            assert len(group.unique()) == (1 if y == 7 else 3)  # with replacement only where the class is too small
        assert not distinct or len(labels[:, 0].unique()) == 4
    assert batches == epoch(sampler) and batches != epoch(sampler, 1)
    assert batches != epoch(ClassBatches(LABELS, 12, 3, distinct, seed=2))


def test_class_balanced_covers_every_class_in_an_epoch():
    for seed in range(5):
        sampler = ClassBatches(LABELS, bs=12, samples_per_class=3, distinct=True, seed=seed)
        for number in range(3):
            assert set(LABELS[torch.tensor(epoch(sampler, number)).flatten()].tolist()) == set(range(20))


def test_class_random_draws_classes_with_replacement():
    sampler = ClassBatches(LABELS, bs=20, samples_per_class=2, distinct=False)
    repeated = [len(LABELS[b].view(10, 2)[:, 0].unique()) < 10 for number in range(20) for b in epoch(sampler, number)]
    assert sum(repeated) > 0.8 * len(repeated)  # 10 of 20 with replacement: 94 %


def test_epoch_is_never_empty_and_class_7_is_never_dropped():
    assert len(epoch(ClassBatches(LABELS, bs=400, samples_per_class=20))) == 1
    seen = {y for number in range(30) for b in epoch(ClassBatches(LABELS, 12, 3), number) for y in LABELS[b].tolist()}
    assert seen == set(range(20))


def test_select_and_errors():
    opt = parameters.parse(["--bs", "90", "--data_sampler", "class_balanced"])
    with pytest.raises(ValueError, match="takes 45 distinct classes, the training split has 20; --bs 40"):
        datasampler.select(opt, LABELS)
    assert not datasampler.select(parameters.parse(["--bs", "90"]), LABELS).distinct
