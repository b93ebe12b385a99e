"""Glyphs as it should be, and the benchmarks in miniature in both layouts."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import parameters
from datasets import glyphs as module
from datasets.split import train_val_split


@pytest.fixture(scope="session")
def splits():
    return module.splits(32)


def codes(split):
    return {int(path.split("U+")[1], 16) for path in split.paths}


def class_of(split, letter):
    return {int(y) for y, path in zip(split.labels, split.paths) if path.endswith(f"U+{ord(letter):04X}")}


def test_glyphs_shape_and_disjointness(splits):
    for split in (splits.train, splits.test):
        image, label = split[0]
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and isinstance(label, int)
        assert len(split) == len(split.labels) == len(split.paths)
        assert torch.equal(split.labels.unique(), torch.arange(len(split.class_names)))
        assert split.labels.bincount().min() >= 4 and len(split.class_names) > 400
    assert not codes(splits.train) & codes(splits.test)


def test_no_rendering_is_in_two_classes_or_twice():
    arrays = module.load()
    seen = [image.tobytes() for image in arrays["ink"]]
    assert len(set(seen)) == len(seen)
    assert set(module.AUGMENTATIONS) == {"base", "big", "adv", "red"}


def test_lookalikes_are_one_class_and_others_are_not():
    arrays = module.load()
    cls = dict(zip(arrays["code"].tolist(), arrays["cls"].tolist()))
    for same in ("AΑА", "OΟО", "HΗН", "cс", "YҮ"):  # Latin, Greek, Cyrillic
        assert len({cls[ord(c)] for c in same if ord(c) in cls}) == 1
    for different in ("oO", "éè", "bd", "EF", "nh", "ЍЙ"):
        assert cls[ord(different[0])] != cls[ord(different[1])]


def test_rendering_is_repeatable_and_a_broken_cache_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTICO_CACHE", str(tmp_path))
    first = module.load()
    with open(module.cache_file(), "r+b") as file:
        file.truncate(1000)
    again = module.load()
    assert os.path.getsize(module.cache_file()) > 1000 and len(os.listdir(tmp_path)) == 1
    assert all(np.array_equal(first[k], again[k]) for k in first)


def test_a_cache_with_damaged_bytes_is_made_anew(splits, tmp_path, monkeypatch):
    whole, arrays = open(module.cache_file(), "rb").read(), module.load()
    monkeypatch.setenv("ANTICO_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "build", lambda: arrays)
    start = whole.index(b"ink.npy") + 100
    for damaged in (whole[:start] + b"\xff" * 4 + whole[start + 4:], whole[:-1000] + bytes(1000), b"", b"not a cache"):  # the first is zlib's to notice
        with open(module.cache_file(), "wb") as file:
            file.write(damaged)
        assert np.array_equal(module.load()["ink"], arrays["ink"]) and os.listdir(tmp_path) == [os.path.basename(module.cache_file())]
        assert os.path.getsize(module.cache_file()) > 1000000


def test_a_full_disk_keeps_no_half_a_cache(splits, tmp_path, monkeypatch, capsys):
    arrays = module.load()
    monkeypatch.setenv("ANTICO_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "build", lambda: arrays)

    def full(file, **_):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    assert np.array_equal(module.load()["ink"], arrays["ink"]) and not os.listdir(tmp_path)
    assert "No space left" in capsys.readouterr().out


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANTICO_CACHE", str(tmp_path / "file"))
    assert len(module.load()["ink"]) > 1000 and "not cached" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(module.AUGMENTATIONS))
def test_glyph_augmentation(name):
    split = module.splits(32, name).train
    torch.manual_seed(0)
    first = split.__getitems__([5, 6, 7])
    torch.manual_seed(0)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, split.__getitems__([5, 6, 7])))
    plain = split.unaugmented()
    assert torch.equal(plain[5][0], plain[5][0]) and not torch.equal(first[0][0], plain[5][0])
    # still the same letter, about as much ink, and not mirrored
    picks = torch.arange(0, len(split), 37).tolist()
    moved, still = (255 - torch.stack([im[0].float() for im, _ in s.__getitems__(picks)]) for s in (split, plain))
    assert 0.7 < moved.sum() / still.sum() < 1.2
    likeness = torch.nn.functional.cosine_similarity
    assert likeness(moved.flatten(1), still.flatten(1)).mean() > likeness(moved.flatten(1), still.flip(2).flatten(1)).mean() + 0.02


def test_spawned_workers_can_have_a_split(splits, tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for split in (splits.train, splits.test, select("cub200", tmp_path).test):
        again = pickle.loads(pickle.dumps(split))
        assert again.paths == split.paths and again[3][0].shape == split[3][0].shape
    assert torch.equal(pickle.loads(pickle.dumps(splits.test))[3][0], splits.test[3][0])


def test_glyphs_at_other_sizes():
    assert module.splits(224).test[0][0].shape == (3, 224, 224)


@pytest.mark.parametrize("by_samples", [False, True])
def test_train_val_split(splits, by_samples):
    train, val = train_val_split(splits.train, 0.8, by_samples, seed=1)
    assert len(train) + len(val) == len(splits.train) and not set(train.paths) & set(val.paths)
    assert train.augmented and not val.augmented
    shared = set(train.class_names) & set(val.class_names)
    assert len(shared) > 600 if by_samples else not shared
    assert len(train) / len(splits.train) == pytest.approx(0.8, abs=0.03)
    assert torch.equal(val.labels.unique(), torch.arange(len(val.class_names)))
    other, _ = train_val_split(splits.train, 0.8, by_samples, seed=2)
    assert other.paths != train.paths


# photographs

def write(path, color=(200, 30, 30), mode="RGB", size=(60, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)


def cub(folder):
    for c in range(1, 5):
        for i in range(3):
            write(folder / "images" / f"{c:03d}.Bird {c}é" / f"b_{i}.jpg")


def cars_archive(folder):
    from scipy.io import savemat
    rows = []
    for i in range(12):
        name = f"car_ims/{i:06d}.jpg"
        write(folder / name)
        rows.append((name, i % 4 + 1))
    annotations = np.array(rows, dtype=[("relative_im_path", "O"), ("class", "u1")])
    savemat(folder / "cars_annos.mat", {"annotations": annotations[None], "class_names": np.array(["A 1", "B 2", "C 3", "D 4"], dtype=object)[None]})


def products(images, lists):
    number = 0
    for part, classes in (("train", (1, 2)), ("test", (3, 4))):
        lines = ["image_id class_id super_class_id path"]
        for c in classes:
            for i in range(3):
                number += 1
                write(images / "chair_final" / f"{c}_{i}.JPG")
                lines.append(f"{number} {c} 1 chair_final/{c}_{i}.JPG")
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")


LAYOUTS = {
    ("cub200", "archive"): lambda root: cub(root / "CUB_200_2011"),
    ("cub200", "published"): lambda root: cub(root / "cub200"),
    ("cars196", "archive"): lambda root: cars_archive(root),
    ("cars196", "archive in its folder"): lambda root: cars_archive(root / "cars196"),
    ("cars196", "published"): lambda root: cub(root / "cars196"),
    ("online_products", "archive"): lambda root: products(root / "Stanford_Online_Products", root / "Stanford_Online_Products"),
    ("online_products", "published"): lambda root: products(root / "online_products" / "images", root / "online_products" / "Info_Files"),
}


def select(name, root, *more):
    return datasets.select(parameters.parse(["--dataset", name, "--source_path", str(root), *more]), input_size=32)


@pytest.mark.parametrize("name, layout", list(LAYOUTS))
def test_benchmarks_in_both_layouts(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    splits = select(name, tmp_path)
    for split in (splits.train, splits.test):
        assert len(split) == 6 and split.labels.bincount().tolist() == [3, 3] and len(split.class_names) == 2
        image, _ = split[5]
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and abs(int(image[0].float().mean()) - 200) < 5
    assert not set(splits.train.class_names) & set(splits.test.class_names)
    assert splits.train.class_names == sorted(splits.train.class_names)


@pytest.mark.parametrize("name, words", [("cub200", "CUB-200-2011"), ("cars196", "cars_annos.mat"), ("online_products", "Stanford_Online_Products.zip")])
def test_missing_folder(name, words, tmp_path):
    with pytest.raises(FileNotFoundError) as problem:
        select(name, tmp_path)
    text = str(problem.value)
    assert "\n" not in text and words in text and str(tmp_path) in text and f"--dataset {name}" in text


def test_incomplete_folders(tmp_path):
    cars_archive(tmp_path / "a")
    (tmp_path / "a" / "car_ims").rename(tmp_path / "a" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="car_ims is missing; unpack the images car_ims.tgz"):
        select("cars196", tmp_path / "a")
    (tmp_path / "b" / "cub200" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no folder in it has images"):
        select("cub200", tmp_path / "b")


@pytest.mark.parametrize("name", ["base", "big", "adv", "red"])
def test_photograph_augmentations(name, tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011").rglob("*.jpg"):
        Image.effect_noise((90, 70), 90).convert("RGB").save(path)
    split = select("cub200", tmp_path, "--augmentation", name).train
    assert split[0][0].shape == (3, 32, 32) and not torch.equal(split[0][0], split[0][0])
    assert torch.equal(split.unaugmented()[0][0], split.unaugmented()[0][0])


@pytest.mark.parametrize("mode, suffix", [("L", "jpg"), ("P", "png"), ("RGBA", "png"), ("CMYK", "jpg"), ("1", "png")])
def test_image_modes(mode, suffix, tmp_path):
    from datasets.transforms import read_image
    write(tmp_path / f"x.{suffix}", mode=mode)
    assert read_image(tmp_path / f"x.{suffix}").mode == "RGB"


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    from datasets.transforms import read_image
    image = Image.new("RGB", (20, 20), (200, 30, 30)).convert("P")
    image.save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "x.png").mode == "RGB"


def test_broken_image_is_named(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    splits = select("cub200", tmp_path)
    with open(splits.test.paths[2], "wb") as file:
        file.write(b"not an image")
    with pytest.raises(ValueError, match="b_2.jpg: cannot be decoded"):
        splits.test[2]


def test_unknown_dataset():
    with pytest.raises(ValueError, match=r"--dataset glyph: unknown \(did you mean glyphs\?\); known: glyphs, cub200"):
        datasets.select(parameters.parse(["--dataset", "glyph"]))
