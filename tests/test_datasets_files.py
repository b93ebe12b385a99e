"""The benchmarks in both layouts, whole, partial and missing; and images as they are on people's disks."""

import csv
import json
import os
import pickle
import re
import struct
import types
import warnings

import numpy as np
import pytest
import torch
from miniatures import CUB, LAYOUTS, class_folders, noise, options, select, write
from PIL import EpsImagePlugin, Image

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


@pytest.mark.parametrize(
    "mode, suffix, value",
    [
        ("L", "jpg", 200),
        ("P", "png", None),
        ("RGBA", "png", 200),
        ("CMYK", "jpg", 200),
        ("1", "png", None),
        ("LA", "png", 200),
        ("RGB", "bmp", 200),
    ],
)
def test_image_modes_become_rgb(mode, suffix, value, tmp_path):
    path = tmp_path / f"ein Bild, größer.{suffix}"
    write(path, mode=mode, size=(20, 30))
    pixels, _ = decode.read(path)
    assert pixels.shape == (30, 20, 3) and pixels.dtype == np.uint8
    assert value is None or np.abs(pixels.astype(int) - value).max() <= 3
    assert np.array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))


def test_sixteen_bits_of_grey_keep_their_shades(tmp_path):
    Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "x.png")
    assert decode.read(tmp_path / "x.png")[0][0, :, 0].tolist() == [0, 128, 255]


def tiff(path, bits, photometric, data, orientation=1, width=3):
    """A TIFF of one row of uncompressed grey (Adobe, TIFF 6.0); photometric 0: white is 0, 1: black is 0."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: photometric,
        273: 8,
        274: orientation,
        277: 1,
        278: 1,
        279: len(data),
    }
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def test_grey_tiffs_of_more_than_eight_bits_keep_their_shades(tmp_path):
    sixteen = struct.pack("<3H", 0, 32768, 65535)
    tiff(tmp_path / "16.tif", 16, 1, sixteen)
    assert decode.read(tmp_path / "16.tif")[0][0, :, 2].tolist() == [0, 128, 255]
    tiff(tmp_path / "inverse.tif", 16, 0, sixteen)  # the tag says that 0 is white
    assert decode.read(tmp_path / "inverse.tif")[0][0, :, 0].tolist() == [255, 127, 0]
    tiff(tmp_path / "12.tif", 12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]))  # 0, 2048, 4095
    assert decode.read(tmp_path / "12.tif")[0][0, :, 0].tolist() == [0, 128, 255]
    tiff(tmp_path / "turned.tif", 12, 1, bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]), orientation=3)
    assert decode.read(tmp_path / "turned.tif")[0][0, :, 0].tolist() == [255, 128, 0]


@pytest.mark.parametrize(
    "values, words",
    [
        (np.float32([[0, 0.5, 1]]), "floats"),
        (np.float32([[0, 100, 255]]), "floats"),
        (np.int32([[0, 200, 60000]]), "32-bit integers"),
    ],
)
def test_grey_without_a_white_is_refused_and_can_be_skipped(values, words, tmp_path):
    """Floats and 32-bit integers became black, or white: nothing says what their range is."""
    LAYOUTS["folder", "classes"](tmp_path)
    Image.fromarray(values).save(tmp_path / "x" / "grey.tiff")
    line = f"grey.tiff: cannot be decoded as an image .its grey is in .*{words}.*save it with 8 or 16 bits"
    with pytest.raises(datasets.BrokenImage, match=line):
        decode.read(tmp_path / "x" / "grey.tiff")
    for more in ([], ["--cache", tmp_path / "cache"]):
        assert [path[-9:] for path in select("folder", tmp_path, "--skip_broken", *more).skipped] == ["grey.tiff"]


def test_no_file_is_handed_to_ghostscript(tmp_path, monkeypatch):
    """PostScript by the name of a photograph is refused, and so is every format that the suffixes do not name."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: ran.append(args) or Image.new("RGB", (9, 9)).im)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", "gs")
    for kind, suffix in (("EPS", "jpg"), ("EPS", "tif"), ("PPM", "png"), ("ICO", "bmp")):
        noise(tmp_path / f"x.{suffix}", format=kind)
        with pytest.raises(datasets.BrokenImage, match="not an image in JPEG, PNG, BMP, GIF, WEBP, TIFF"):
            decode.read(tmp_path / f"x.{suffix}")
    assert not ran


def test_every_listed_suffix_is_read_and_a_camera_s_jpeg_of_two_pictures(tmp_path):
    for suffix in decode.SUFFIXES:
        noise(tmp_path / f"x{suffix}")
        assert decode.read(tmp_path / f"x{suffix}")[0].shape == (70, 90, 3)
    second = Image.new("RGB", (90, 70))
    Image.open(tmp_path / "x.jpg").save(tmp_path / "two.jpg", format="MPO", save_all=True, append_images=[second])
    assert np.abs(decode.read(tmp_path / "two.jpg")[0].astype(int) - decode.read(tmp_path / "x.jpg")[0]).mean() < 5


@pytest.mark.parametrize("turned", range(1, 9))
def test_images_are_turned_upright(turned, tmp_path):
    noise(tmp_path / "plain.jpg", (48, 32), quality=95)
    image, exif = Image.open(tmp_path / "plain.jpg"), Image.Exif()
    exif[decode.ORIENTATION] = turned
    image.save(tmp_path / "turned.jpg", quality=95, exif=exif)
    pixels, (full, _, _) = decode.read(tmp_path / "turned.jpg")
    flips = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }
    assert full == pixels.shape[:2] and np.array_equal(
        pixels, flips[turned](np.asarray(Image.open(tmp_path / "turned.jpg")))
    )


def test_damaged_exif_is_no_obstacle(tmp_path):
    noise(tmp_path / "x.jpg")
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0"):
        Image.open(tmp_path / "x.jpg").save(tmp_path / "y.jpg", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert decode.read(tmp_path / "y.jpg")[0].shape == (70, 90, 3)


def test_nothing_but_broken_images_is_an_error(tmp_path):
    LAYOUTS["cub200", "archive"](tmp_path)
    for path in (tmp_path / "CUB_200_2011" / "images").glob("[12]0[01]*/*"):
        path.write_bytes(b"")
    with pytest.raises(
        ValueError, match="--skip_broken: every image of the test split is broken, the first: .*the file is empty"
    ):
        select("cub200", tmp_path, "--skip_broken")


def test_a_palette_with_transparency_gives_no_warning(tmp_path):
    Image.new("RGB", (20, 20), (200, 30, 30)).convert("P").save(tmp_path / "x.png", transparency=bytes([0, 128, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode.read(tmp_path / "x.png")[0].shape == (20, 20, 3)


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


def short_run(dataset, folder):
    """Flags of a short run on what there is of a data set in a folder."""
    flags = "--allow_partial --arch conv4_normalize --not_pretrained --n_epochs 1 --bs 4".split()
    return ["--dataset", dataset, *flags, "--source_path", str(folder), "--save_path", str(folder / "runs")]


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


# the published commands, apart from paths, the number of epochs and the network, which needs a download here
PUBLISHED = {
    "cub200": "--n_epochs 100 --tau 100 --gamma 0.5 --warmup 0",
    "cars196": "--n_epochs 300 --tau 100 --gamma 0.5 --warmup 0",
    "online_products": "--n_epochs 400 --tau 190 250 --gamma 0.2 --warmup 1",
}


@pytest.mark.parametrize("name, layout", [key for key in LAYOUTS if key[0] in PUBLISHED])
def test_the_published_command_lines_run_to_the_end(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    line = (
        f"--kernels 6 --dataset {name} {PUBLISHED[name]} --seed 0 --bs 90 --samples_per_class 2 --loss antico "
        "--antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035 "
        "--arch resnet50_frozen_normalize_double --embed_dim 512 --loss_oproxy_lrmulti 2000 --lr 1e-5 --decay 4e-4 "
        "--data_sampler class_random "
        "--no_train_metrics --gpu 0 --evaluate_on_cpu --group published --savename group_plus_seed --augmentation base"
    ).split()
    here = [
        "--source_path",
        str(tmp_path),
        "--save_path",
        str(tmp_path / "runs"),
        "--allow_partial",
        "--n_epochs",
        "2",
        "--arch",
        "conv4_frozen_normalize_double",
    ]
    assert main.main(line + here) == 0
    with open(tmp_path / "runs" / name / "published_s0" / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 3
        and all(np.isfinite(float(row["test/e_recall@1"])) for row in rows)
        and np.isfinite(float(rows[2]["loss"]))
    )


def test_inshop_trains_and_is_evaluated_query_against_gallery(tmp_path, capsys):
    LAYOUTS["inshop", "archive"](tmp_path)
    more = ["--kernels", "0", "--no_train_metrics", "--save_embeddings"]
    assert main.main([*short_run("inshop", tmp_path), *more]) == 0
    assert "test 2 queries in a gallery of 4" in capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("embeddings_test.npz")
    with np.load(path) as saved, open(path.parent / "metrics.csv", encoding="utf-8", newline="") as file:
        x, y = saved["query_embeddings"], saved["embeddings"]
        assert [len(saved[name]) for name in ("paths", "labels", "query_paths", "query_labels")] == [4, 4, 2, 2]
        nearest = ((x[:, None] - y[None]) ** 2).sum(2).argmin(1)
        assert (
            float(list(csv.DictReader(file))[-1]["test/e_recall@1"])
            == (saved["labels"][nearest] == saved["query_labels"]).mean()
        )


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
