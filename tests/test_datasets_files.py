"""The benchmarks in both layouts, whole, partial and missing, and images that are broken."""

import itertools
import json
import os
import re
import shutil
import types

import numpy as np
import pytest
import torch
from miniatures import CUB, LAYOUTS, class_folders, options, select, short_run, write

import datasets
import evaluation
import main
from datasets import prepare


@pytest.mark.parametrize("name, layout", list(LAYOUTS))
def test_every_layout(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    splits = select(name, tmp_path)
    parts = (splits.query, splits.gallery) if name == "inshop" else (splits.test,)
    assert (splits.test is None) == (name == "inshop") and bool(splits.partial) == (name != "folder")
    assert splits.train.labels.bincount().tolist() == [3, 3] and sum(len(p) for p in parts) == 6
    for split in (splits.train, *parts):
        image, label = split[len(split) - 1]
        assert image.shape == (3, 32, 32) and image.dtype == torch.uint8 and label == 1
        assert abs(int(image[0].float().mean()) - 200) < 5
        assert len(split.class_names) == 2 and split.class_names == sorted(split.class_names)
        assert split is splits.train or not set(splits.train.class_names) & set(split.class_names)
    if layout in ("archive", "published") and name in ("cub200", "online_products"):  # the unpacked folder will do, too
        (folder,) = tmp_path.iterdir()
        assert select(name, folder).train.paths == splits.train.paths


def test_classes_are_split_by_their_published_numbers_also_where_some_are_missing(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    shutil.rmtree(tmp_path / "CUB_200_2011" / "images" / CUB[0])
    splits = select("cub200", tmp_path)
    assert splits.train.class_names == [CUB[1]] and splits.test.class_names == list(CUB[2:])


def test_query_and_gallery_share_their_labels(tmp_path):
    LAYOUTS["inshop", "archive"](tmp_path)
    for path in (tmp_path / "img" / "WOMEN" / "Dresses" / "id_00000003").glob("00*"):
        path.unlink()  # the query of the first class
    splits = select("inshop", tmp_path)
    assert splits.query.labels.tolist() == [1] and splits.gallery.labels.tolist() == [0, 0, 1, 1]
    assert splits.query.class_names == splits.gallery.class_names == ["id_00000003", "id_00000005"]
    assert splits.tested == datasets.QueryGallery(splits.query, splits.gallery)
    assert "1 listed images are missing" in splits.partial


def test_what_pillow_opens_is_read_in_nested_folders_too_and_the_rest_is_counted_aloud(tmp_path, capsys):
    formats = {"JFIF": "JPEG", "avif": "AVIF", "jp2": "JPEG2000", "ppm": "PPM", "": "PNG", "txt": "WEBP", "TIF": "TIFF"}
    for i, (suffix, kind) in enumerate(formats.items()):
        write(tmp_path / f"class{i}" / ("deeper/deepest" * (i % 2)) / f"1.{suffix}".rstrip("."), format=kind)
    for path in ("class7/1.jpg", ".thumbnails/1.jpg", "beside.jpg"):
        write(tmp_path / path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "class0" / "notes.html").write_text("<html>")
    os.mkfifo(tmp_path / "class1" / "pipe")
    (tmp_path / "class2" / "loop").symlink_to(tmp_path)
    write(outside := tmp_path.with_name("outside") / "1.jpg")
    (tmp_path / "linked").symlink_to(outside.parent)
    (tmp_path / "class3" / "again").symlink_to(tmp_path / "class7")  # whose images are not class3's
    splits = select("folder", tmp_path)
    assert splits.train.class_names + splits.test.class_names == [f"class{i}" for i in range(8)] + ["linked"]
    for split in (splits.train, splits.test):
        assert all(abs(int(split[i][0].float().mean()) - 200) < 5 for i in range(len(split)))
    assert "7 files or folders left out" in capsys.readouterr().out
    LAYOUTS["folder", "train and test"](tmp_path / "b")
    write(tmp_path / "b" / "val" / "c" / "1.jpg")
    assert prepare.main(["folder", "--source_path", str(tmp_path / "b"), "--verify", "--kernels", "0"]) == 0
    assert "1 files or folders left out (no images, or of no class): val" in capsys.readouterr().out


def test_parts_with_capitals_are_parts_and_one_class_is_refused(tmp_path, capsys):
    for part, name in itertools.product(("Train", "TEST"), "ab"):
        write(tmp_path / "parts" / part / (part + name) / "1.jpg")
        write(tmp_path / "one" / ("training" if part == "Train" else "testing") / (part + name) / "1.jpg")
    splits = select("folder", tmp_path / "parts")
    assert (splits.train.class_names, splits.test.class_names) == (["Traina", "Trainb"], ["TESTa", "TESTb"])
    assert main.main([*short_run("folder", tmp_path / "one"), "--kernels", "0"]) == 2  # else all metrics would be 1
    assert "one class to train on" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads all")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path):
    for name in "abcd":
        write(tmp_path / name / "1.jpg")
    (tmp_path / "b").chmod(0)
    with pytest.raises(PermissionError, match="b'$"):
        select("folder", tmp_path)


def test_any_folder_of_images_can_be_embedded_and_training_on_it_is_one_line(tmp_path, capsys):
    """Flat, one class, `test` alone or query and gallery, also by a run with flags of a training split."""
    LAYOUTS["cub200", "archive"](tmp_path)
    flags = [*short_run("cub200", tmp_path), "--kernels", "0", "--no_train_metrics"]
    assert main.main([*flags, *"--use_tv_split --tv_split_perc 0.5 --train_images 2".split()]) == 0
    checkpoint = str(tmp_path / "runs" / "cub200" / "Sample_Run_s0" / "best.pt")
    for place, name in {"a": "a", "b/x": "x", "c/test": "test", "d/test/x": "x", "e/query/x e/gallery/x": "x"}.items():
        for path in [tmp_path / part / f"{i}.jpg" for part in place.split() for i in range(3)]:
            write(path)
        other = ["--dataset", "folder", "--source_path", str(tmp_path / place[0])]
        capsys.readouterr()
        assert main.main(["--evaluate_only", "--checkpoint", checkpoint, *other, "--save_embeddings"]) == 0
        (written,) = re.findall("written: (.*npz)", capsys.readouterr().out)
        with np.load(written) as file:
            assert file["class_names"].tolist() == [name] and file["labels"].tolist() == [0, 0, 0]
            assert [os.path.basename(path) for path in file["paths"].tolist()] == ["0.jpg", "1.jpg", "2.jpg"]
        assert main.main([*flags, *other]) == 2
        assert "no image of the train split is there" in capsys.readouterr().err


def test_the_counts_are_the_published_ones():
    published = {"cub200": (100, 5864, 100, 5924), "cars196": (98, 8054, 98, 8131)}
    published |= {"online_products": (11318, 59551, 11316, 60502), "inshop": (3997, 25882, 3985, 14218, 3985, 12612)}
    assert {name: sum(getattr(datasets, name).COUNTS.values(), ()) for name in published} == published


def test_what_is_no_such_data_set_is_told(tmp_path, counts):
    LAYOUTS["cars196", "archive"](tmp_path / "a")
    whole = (tmp_path / "a" / "cars_annos.mat").read_bytes()
    for damaged in (whole[:-700], b"", b"\0" * 500):
        (tmp_path / "a" / "cars_annos.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match="cars_annos.mat: not the annotations of Cars196"):
            select("cars196", tmp_path / "a")
    LAYOUTS["cars196", "devkit"](tmp_path / "b")
    next((tmp_path / "b").glob("*.mat")).unlink()  # the labels of the test images, which the devkit does not have
    with pytest.raises(ValueError, match="cars_test_annos_withlabels.mat: not the .* To be had: car_ims"):
        select("cars196", tmp_path / "b")
    write(tmp_path / "c" / "images" / "Hummer" / "1.jpg")  # a cars folder
    with pytest.raises(ValueError, match="train: found 0 classes"):
        datasets.select(options("cub200", tmp_path / "c"))
    for name, path in (("inshop", "list_eval_partition.txt"), ("online_products", "Ebay_test.txt")):
        LAYOUTS[name, "archive"](tmp_path / name)
        lines = next((tmp_path / name).rglob(path))
        lines.write_text(lines.read_text().rstrip() + "cut_off\n1 two three\n")
        with pytest.raises(ValueError, match="(gallery|test): found 2 classes, [35] images"):
            datasets.select(options(name, tmp_path / name), 32)


@pytest.mark.parametrize("kernels", [0, 1])
def test_a_broken_image_stops_a_run_with_one_line(tmp_path, kernels, capsys, monkeypatch):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011" / "images").glob("100*/*"):
        path.write_bytes(b"")
    monkeypatch.setattr(evaluation, "SMALL", 0)  # workers for the evaluation too
    for more in ([], ["--no_train_metrics"]):  # it is found by the evaluation, or in training
        assert main.main([*short_run("cub200", tmp_path), "--kernels", str(kernels), *more]) == 2
        text = capsys.readouterr().err
        assert text.count("\n") == 1 and text.startswith("error: ") and "100.Brown_Pelican/b_" in text
        assert "cannot be decoded as an image (the file is empty)" in text


def test_broken_images_are_skipped_and_counted_and_the_run_says_so(tmp_path, capsys):
    LAYOUTS["cub200", "archive"](tmp_path)
    folder = tmp_path / "CUB_200_2011" / "images"
    (folder / CUB[1] / "b_1.jpg").write_bytes(b"no image")
    for more in ([], ["--cache", str(tmp_path / "cache")]):
        splits = select("cub200", tmp_path, "--skip_broken", *more)
        assert len(splits.train) == 5 and splits.skipped == (str(folder / CUB[1] / "b_1.jpg"),)
        for split in (splits.train, splits.test):
            assert [split[i][1] for i in range(len(split))] == split.labels.tolist()
    capsys.readouterr()
    assert main.main([*short_run("cub200", tmp_path), "--skip_broken", "--kernels", "0"]) == 0
    text = capsys.readouterr().out
    assert "--skip_broken: 1 of 12 images left out" in text
    assert "PARTIAL DATA: train: found 2 classes, 6 images, expected 100" in text
    assert all(line.endswith("PARTIAL DATA") for line in text.splitlines() if line.startswith("epoch"))
    config = json.loads((tmp_path / "runs" / "cub200" / "Sample_Run_s0" / "config.json").read_text())
    assert "expected 100 classes" in config["partial"] and len(config["skipped_broken"]) == 1
    for path in folder.glob("[12]0[01]*/*"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="no image of the test split is there or can be decoded"):
        select("cub200", tmp_path, "--skip_broken")


def test_the_data_set_of_the_readme(tmp_path, monkeypatch):
    """Its file and its line, word for word."""
    with open(os.path.join(os.path.dirname(datasets.__file__), "README.md"), encoding="utf-8") as file:
        blocks = re.findall("```python\n(.*?)```", file.read(), re.DOTALL)
    (text,) = [block for block in blocks if "def rows" in block]
    (line,) = [block for block in blocks if "image_files(" in block]
    flowers = types.ModuleType("flowers")
    exec(text, flowers.__dict__)
    (added,) = eval(f"{{{line}}}", {"image_files": datasets.image_files, "flowers": flowers}).items()
    monkeypatch.setitem(datasets.DATASETS, *added)
    class_folders(tmp_path / "flowers", [f"species {c:03d}" for c in range(53)], n=2)
    splits = datasets.select(options("flowers", tmp_path), 32)
    assert (len(splits.train), len(splits.test), splits.partial) == (102, 4, "") and splits.test[3][1] == 1
    assert main.main(["--dataset", "flowers", "--source_path", str(tmp_path / "no"), "--arch", "conv4"]) == 2
