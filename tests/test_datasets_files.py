"""The benchmarks in both layouts, whole, partial and missing, and images that are broken."""

import json
import os
import pickle
import re
import types

import numpy as np
import pytest
import torch
from miniatures import CUB, LAYOUTS, class_folders, noise, options, select, short_run, write

import datasets
import evaluation
import main
from datasets.loading import decode
from utilities.report import __main__ as report


@pytest.mark.parametrize("name, layout", list(LAYOUTS))
def test_every_layout(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    splits = select(name, tmp_path)
    parts = (splits.query, splits.gallery) if name == "inshop" else (splits.test,)
    assert (splits.test is None) == (name == "inshop") and bool(splits.partial) == (name != "folder")
    assert splits.train.labels.bincount().tolist() == [3, 3] and sum(len(p) for p in parts) == 6
    for split in (splits.train, *parts):
        image, label = split[len(split) - 1]
        assert (
            image.shape == (3, 32, 32)
            and image.dtype == torch.uint8
            and abs(int(image[0].float().mean()) - 200) < 5
            and label == 1
        )
        assert len(split.class_names) == 2 and split.class_names == sorted(split.class_names)
        assert split is splits.train or not set(splits.train.class_names) & set(split.class_names)


@pytest.mark.parametrize(
    "name, folder",
    [
        ("cub200", "CUB_200_2011"),
        ("cub200", "cub200"),
        ("online_products", "Stanford_Online_Products"),
        ("online_products", "online_products"),
    ],
)
def test_the_unpacked_folder_itself_will_do(name, folder, tmp_path):
    LAYOUTS[name, "archive" if folder[0].isupper() else "published"](tmp_path)
    assert select(name, tmp_path / folder).train.paths == select(name, tmp_path).train.paths


def test_classes_are_split_by_their_published_numbers_also_where_some_are_missing(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011" / "images" / CUB[0]).iterdir():
        path.unlink()
    splits = select("cub200", tmp_path)
    assert splits.train.class_names == [CUB[1]] and splits.test.class_names == list(CUB[2:])


def test_query_and_gallery_share_their_labels(tmp_path):
    LAYOUTS["inshop", "archive"](tmp_path)
    for path in (tmp_path / "img" / "WOMEN" / "Dresses" / "id_00000003").glob("00*"):
        path.unlink()  # the query of the first class
    splits = select("inshop", tmp_path)
    assert splits.query.labels.tolist() == [1] and splits.gallery.labels.tolist() == [0, 0, 1, 1]
    assert splits.query.class_names == splits.gallery.class_names == ["id_00000003", "id_00000005"]
    assert (
        splits.tested == datasets.QueryGallery(splits.query, splits.gallery)
        and "1 listed images are missing" in splits.partial
    )


def test_a_folder_of_train_query_and_gallery(tmp_path):
    for part, names in (("train", "ab"), ("query", "cd"), ("gallery", "cde")):
        for name in names:
            write(tmp_path / part / name / "1.png")
    splits = select("folder", tmp_path)
    assert splits.query.labels.tolist() == [0, 1] and splits.gallery.labels.tolist() == [0, 1, 2]
    for path in (tmp_path / "gallery").glob("*/*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no folder in it has images"):
        select("folder", tmp_path)


def test_counts_are_checked_before_anything_else(tmp_path):
    """CUB with its published counts of (empty) files passes; with one less it does not."""
    per_class = np.full(200, 58)
    per_class[:100] += (np.arange(100) < 64).astype(int)
    per_class[100:] += 1 + (np.arange(100) < 24).astype(int)
    for c, n in enumerate(per_class, 1):
        folder = tmp_path / "cub200" / "images" / f"{c:03d}.Bird"
        folder.mkdir(parents=True)
        for i in range(n):
            (folder / f"{i}.jpg").touch()
    splits = datasets.select(options("cub200", tmp_path), 32)
    assert (len(splits.train), len(splits.test), splits.partial) == (5864, 5924, "")
    (tmp_path / "cub200" / "images" / "007.Bird" / "3.jpg").unlink()
    with pytest.raises(
        ValueError, match="train: found 100 classes, 5,863 images, expected 100 classes, 5,864 images;.*--allow_partial"
    ):
        datasets.select(options("cub200", tmp_path), 32)
    assert "5,863" in datasets.select(options("cub200", tmp_path, "--allow_partial"), 32).partial


def test_listed_images_that_are_missing_are_an_error(tmp_path, monkeypatch):
    for name, gone in (("online_products", "11319_2.JPG"), ("cars196", "000003.jpg")):
        LAYOUTS[name, "archive"](tmp_path)
        monkeypatch.setattr(getattr(datasets, name), "COUNTS", {"train": (2, 6), "test": (2, 6)})
        assert datasets.select(options(name, tmp_path), 32).partial == ""
        next(tmp_path.rglob(gone)).unlink()
        with pytest.raises(
            ValueError, match=f"5 images, expected 2 classes, 6 images; 1 listed images are missing, first .*{gone}"
        ):
            datasets.select(options(name, tmp_path), 32)


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "cub200",
            (
                "CUB_200_2011/images/001.Black_footed_Albatross",
                "cub200/images",
                "CUB-200-2011 (not CUB-200",
                "65de6-vp158/files/CUB_200_2011.tgz",
            ),
        ),
        ("cars196", ("car_ims/000001.jpg", "cars_annos.mat", "car196/car_ims.tgz", "the devkit alone has neither")),
        ("online_products", ("Stanford_Online_Products/Ebay_train.txt", "Info_Files", "Stanford_Online_Products.zip")),
        ("inshop", ("Eval/list_eval_partition.txt", "img.zip", "InShopRetrieval.html")),
        ("folder", ("DIR/<class>/*.jpg",)),
    ],
)
def test_a_missing_folder_shows_the_expected_tree_and_the_archive(name, words, tmp_path, capsys):
    assert (
        main.main(
            ["--dataset", name, "--source_path", str(tmp_path / "no"), "--arch", "conv4", "--save_path", str(tmp_path)]
        )
        == 2
    )
    text = capsys.readouterr().err
    assert text.startswith(f"error: --dataset {name} --source_path {tmp_path / 'no'}: is no folder") and all(
        word in text for word in words
    )
    assert "Traceback" not in text


def test_incomplete_folders(tmp_path):
    LAYOUTS["cars196", "archive"](tmp_path / "a")
    (tmp_path / "a" / "car_ims").rename(tmp_path / "a" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="car_ims is missing; unpack car_ims.tgz"):
        select("cars196", tmp_path / "a")
    (tmp_path / "a" / "elsewhere").rename(tmp_path / "a" / "car_ims")
    whole = (tmp_path / "a" / "cars_annos.mat").read_bytes()
    for damaged in (whole[:-700], b"", b"\0" * 500):
        (tmp_path / "a" / "cars_annos.mat").write_bytes(damaged)
        with pytest.raises(ValueError, match="cars_annos.mat: not the annotations of Cars196"):
            select("cars196", tmp_path / "a")
    (tmp_path / "b" / "cub200" / "images").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no folder in it has images"):
        select("cub200", tmp_path / "b")
    write(tmp_path / "c" / "images" / "Hummer" / "1.jpg")  # a cars folder
    with pytest.raises(ValueError, match="is this CUB-200-2011"):
        select("cub200", tmp_path / "c")


def broken_files(folder):
    """{name: what the error says} of every kind of broken image, written into a folder."""
    noise(folder / "whole.jpg"), noise(folder / "whole.png")
    jpg, png = (folder / "whole.jpg").read_bytes(), (folder / "whole.png").read_bytes()
    contents = {
        "short é.jpg": (jpg[: len(jpg) // 2], "truncated"),
        "short.png": (png[: len(png) // 2], "truncated"),
        "head only.jpg": (jpg[:30], "."),
        "empty.jpg": (b"", "the file is empty"),
        "page.jpg": (b"<html>404</html>", "not an image"),
        "zeros.png": (bytes(500), "not an image"),
        "damaged.png": (png[:41] + b"\xff" * 4 + png[45:], "."),
    }
    for name, (data, _) in contents.items():
        (folder / name).write_bytes(data)
    (folder / "whole.jpg").unlink(), (folder / "whole.png").unlink()
    return {name: words for name, (_, words) in contents.items()}


def test_every_kind_of_broken_image_is_named(tmp_path):
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(datasets.BrokenImage, match=f"{name}: cannot be decoded as an image .*{words}") as problem:
            decode.read(tmp_path / name)
        assert "\n" not in str(problem.value)
    with pytest.raises(datasets.BrokenImage, match="gone.jpg: cannot be decoded as an image .No such file"):
        decode.read(tmp_path / "gone.jpg")


@pytest.mark.parametrize("kernels", [0, 1])
def test_a_broken_image_stops_a_run_with_one_line(tmp_path, kernels, capsys, monkeypatch):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011" / "images").glob("100*/*"):
        path.write_bytes(b"")
    monkeypatch.setattr(evaluation.embedding, "SMALL", 0)  # workers for the evaluation too
    for more in ([], ["--no_train_metrics"]):  # it is found by the evaluation, or in training
        assert main.main([*short_run("cub200", tmp_path), "--kernels", str(kernels), *more]) == 2
        text = capsys.readouterr().err
        assert (
            text.count("\n") == 1
            and text.startswith("error: ")
            and "100.Brown_Pelican/b_" in text
            and "cannot be decoded as an image (the file is empty)" in text
        )


def test_broken_images_are_skipped_and_counted_and_the_run_says_so(tmp_path, capsys):
    LAYOUTS["cub200", "archive"](tmp_path)
    (tmp_path / "CUB_200_2011" / "images" / CUB[1] / "b_1.jpg").write_bytes(b"no image")
    flags = [*short_run("cub200", tmp_path), "--skip_broken", "--kernels", "0"]
    for more in ([], ["--cache", str(tmp_path / "cache")]):
        splits = datasets.select(options("cub200", tmp_path, "--allow_partial", "--skip_broken", *more), 32)
        assert len(splits.train) == 5 and [path[-7:] for path in splits.skipped] == ["b_1.jpg"[-7:]]
        assert [
            int(split.labels[i]) == split[i][1] for split in (splits.train, splits.test) for i in range(len(split))
        ].count(False) == 0
    assert main.main(flags) == 0
    text = capsys.readouterr().out
    assert (
        "--skip_broken: 1 of 12 images left out" in text
        and "PARTIAL DATA: train: found 2 classes, 6 images, expected 100" in text
    )
    assert all(line.endswith("PARTIAL DATA") for line in text.splitlines() if line.startswith("epoch"))
    run = tmp_path / "runs" / "cub200" / "Sample_Run_s0"
    config = json.loads((run / "config.json").read_text())
    assert "expected 100 classes" in config["partial"] and len(config["skipped_broken"]) == 1
    assert report.main([str(run), "--out", str(tmp_path / "table")]) == 0
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "1 broken images skipped" in text and "partial data (train: found 2 classes" in text
    assert "| 0 of 1 |" in text  # in no mean


def test_spawned_workers_can_have_a_split(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for more in ([], ["--cache", str(tmp_path / "cache")]):
        split = select("cub200", tmp_path, *more).test
        again = pickle.loads(pickle.dumps(split))
        assert len(pickle.dumps(split)) < 20000 and again.paths == split.paths and torch.equal(again[3][0], split[3][0])


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
