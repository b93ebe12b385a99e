"""Glyphs as it should be, and the split for validation. The data sets of image files: test_datasets_files.py."""

import os
import pickle

import numpy as np
import pytest
import torch

import datasets
import parameters
from datasets import glyphs as module
from datasets.split import subset_of_classes, train_val_split


@pytest.fixture(scope="session")
def splits():
    return module.splits(32)


def test_glyphs_shape_and_disjointness(splits):
    codes = []
    for split in (splits.train, splits.test):
        image, label = split[0]
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and isinstance(label, int)
        assert len(split) == len(split.labels) == len(split.paths)
        assert torch.equal(split.labels.unique(), torch.arange(len(split.class_names)))
        assert split.labels.bincount().min() >= 4 and len(split.class_names) > 400
        codes.append({path.split("U+")[1] for path in split.paths})
        again = pickle.loads(pickle.dumps(split))  # spawned workers can have it
        assert again.paths == split.paths and again[3][0].shape == split[3][0].shape
    assert not codes[0] & codes[1] and module.splits(224).test[0][0].shape == (3, 224, 224)


def test_lookalikes_are_one_class_and_no_rendering_is_there_twice():
    arrays = module.load()
    cls = dict(zip(arrays["code"].tolist(), arrays["cls"].tolist()))
    for same in ("AΑА", "OΟО", "HΗН", "cс", "YҮ"):  # Latin, Greek, Cyrillic
        assert len({cls[ord(c)] for c in same if ord(c) in cls}) == 1
    for different in ("oO", "éè", "bd", "EF", "nh", "ЍЙ"):
        assert cls[ord(different[0])] != cls[ord(different[1])]
    assert len({image.tobytes() for image in arrays["ink"]}) == len(arrays["ink"])


def test_rendering_is_repeatable_and_a_damaged_cache_is_made_anew(monkeypatch, tmp_path, capsys):
    real = module.is_letter  # the Latin letters, in a tenth of the time
    monkeypatch.setattr(module, "is_letter", lambda code: code < 0x180 and real(code))
    monkeypatch.setenv("ANTICO_CACHE", str(tmp_path / "cache"))
    first = module.load()
    with open(module.cache_file(), "rb") as file:
        whole = file.read()
    start = whole.index(b"ink.npy") + 100
    for damaged in (whole[:1000], whole[:start] + b"\xff" * 4 + whole[start + 4 :], b"", b"not a cache"):
        with open(module.cache_file(), "wb") as file:
            file.write(damaged)
        again = module.load()
        assert all(np.array_equal(first[k], again[k]) for k in first)
        assert os.path.getsize(module.cache_file()) == len(whole)
    monkeypatch.setenv("ANTICO_CACHE", module.cache_file())  # no folder, so nothing can be written there
    assert len(module.load()["ink"]) and "glyphs are not cached" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(module.AUGMENTATIONS))
def test_glyph_augmentation(name):
    split = module.splits(32, name).train
    first = split.__getitems__([(5, 1), (6, 2), (7, 3)])
    for (image, _), (i, seed) in zip(first, [(5, 1), (6, 2), (7, 3)]):  # by its own seed, whatever else is in the batch
        assert torch.equal(image, split[i, seed][0]) and not torch.equal(image, split[i, seed + 1][0])
    plain = split.unaugmented()
    assert torch.equal(plain[5][0], plain[5][0]) and not torch.equal(first[0][0], plain[5][0])
    # still the same letter, about as much ink, and not mirrored
    picks = [(i, i) for i in range(0, len(split), 7)]
    moved, still = (255 - torch.stack([im[0].float() for im, _ in s.__getitems__(picks)]) for s in (split, plain))
    assert 0.7 < moved.sum() / still.sum() < 1.2
    moved, still, mirrored = moved.flatten(1), still.flatten(1), still.flip(2).flatten(1)
    likeness = torch.nn.functional.cosine_similarity
    assert likeness(moved, still).mean() > likeness(moved, mirrored).mean() + 0.01


@pytest.mark.parametrize("by_samples", [False, True])
def test_train_val_split(splits, by_samples):
    train, val = train_val_split(splits.train, 0.8, by_samples, seed=1)
    assert len(train) + len(val) == len(splits.train) and not set(train.paths) & set(val.paths)
    assert train.augmented and not val.augmented
    shared = set(train.class_names) & set(val.class_names)
    assert len(shared) > 600 if by_samples else not shared
    assert len(train) / len(splits.train) == pytest.approx(0.8, abs=0.03)
    assert torch.equal(val.labels.unique(), torch.arange(len(val.class_names)))
    assert train_val_split(splits.train, 0.8, by_samples, seed=2)[0].paths != train.paths


def test_a_subset_has_the_classes_and_images_asked_for(splits):
    train = splits.train
    few = subset_of_classes(train, 50, 4, seed=3)
    assert len(few.class_names) == 50 and few.augmented and set(few.class_names) < set(train.class_names)
    assert len(few) == 200 and set(few.labels.bincount().tolist()) == {4}
    named = {path: train.class_names[label] for path, label in zip(train.paths, train.labels)}
    assert all(named[path] == few.class_names[label] for path, label in zip(few.paths, few.labels))
    assert few.paths == subset_of_classes(train, 50, 4, seed=3).paths != subset_of_classes(train, 50, 4, seed=4).paths
    nested = subset_of_classes(train, 20, 2, seed=3)
    assert set(nested.paths) < set(few.paths) < set(subset_of_classes(train, 50, seed=3).paths)
    whole = train.labels.bincount()  # a class with fewer images than asked for keeps them all
    assert subset_of_classes(train, None, 7).labels.bincount().tolist() == whole.clamp(max=7).tolist()


def test_subset_flags_leave_what_is_evaluated_alone():
    flags = ["--dataset", "glyphs", "--use_tv_split", "--tv_split_perc", "0.8"]
    whole = datasets.select(parameters.parse(flags), 32)
    part = datasets.select(parameters.parse([*flags, "--train_classes", "40", "--train_images", "3"]), 32)
    assert len(part.train) == 120 and set(part.train.paths) < set(whole.train.paths)
    assert part.val.paths == whole.val.paths and part.test.paths == whole.test.paths
    with pytest.raises(ValueError, match="--train_classes 488: the training split has 487"):
        datasets.select(parameters.parse([*flags, "--train_classes", "488"]), 32)
    with pytest.raises(ValueError, match=r"--dataset glyph: unknown \(did you mean glyphs\?\); known: glyphs, emoji"):
        datasets.select(parameters.parse(["--dataset", "glyph"]))
