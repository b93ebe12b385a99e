"""The benchmarks in miniature, in the layouts in which their archives unpack and in the published ones."""

import numpy as np
import pandas as pd
from PIL import Image
from scipy.io import savemat

import datasets
import parameters

# classes that both halves of the split would take, in each data set's own numbers
CUB = ("001.Black_footed_Albatross", "100.Brown_Pelican", "101.White_Pelican", "200.Common_Yellowthroat")


def write(path, mode="RGB", size=(50, 40), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 200, 200)).convert(mode).save(path, **options)


def noise(path, size=(90, 70), seed=0, **options):
    """An image of 14 x 11 random colours, smoothly joined."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (11, 14, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)


def class_folders(folder, names, n=3):
    for name in names:
        for i in range(n):
            write(folder / name / f"b_{i}.jpg")


def cub_archive(root):
    folder = root / "CUB_200_2011"
    class_folders(folder / "images", CUB)
    (folder / "images" / "._hidden.jpg").write_bytes(b"")  # as macOS leaves them


def save_mat(path, names=None, rows=None):
    """A .mat file of Cars196: class names, annotations (a struct array with one element an image), or both."""
    found = {"class_names": np.array(names, dtype=object)[None]} if names else {}
    found |= {"annotations": np.array(pd.DataFrame(rows).to_records(index=False))[None]} if rows else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, found)


CAR_NAMES = [f"Make Model {c:03d} 2012" for c in range(1, 197)]
CAR_CLASSES = [(1, 98, 99, 196)[i % 4] for i in range(1, 13)]  # of the 12 images


def cars_archive(root):
    rows = [
        {"relative_im_path": f"car_ims/{i:06d}.jpg", "bbox_x1": 1, "class": c} for i, c in enumerate(CAR_CLASSES, 1)
    ]
    for row in rows:
        write(root / row["relative_im_path"])
    save_mat(root / "cars_annos.mat", CAR_NAMES, rows)


def cars_devkit(root, labelled=""):
    """cars_train/, cars_test/ and the devkit, each numbered from 1; `labelled`: where the test annotations lie."""
    save_mat(root / "devkit" / "cars_meta.mat", CAR_NAMES)
    files = {"train": "devkit/cars_train_annos.mat", "test": f"{labelled}cars_test_annos_withlabels.mat"}
    for (part, path), classes in zip(files.items(), (CAR_CLASSES[:7], CAR_CLASSES[7:])):
        rows = [{"bbox_x1": 1, "class": c, "fname": f"{i:05d}.jpg"} for i, c in enumerate(classes, 1)]
        for row in rows:
            write(root / f"cars_{part}" / row["fname"])
        save_mat(root / path, rows=rows)


def products(images, lists):
    number = 0
    for part, classes in (("train", (1, 2)), ("test", (11319, 22634))):
        lines = ["image_id class_id super_class_id path"]
        for c in classes:
            for i in range(3):
                number += 1
                name = f"{'chair' if c % 2 else 'coffee_maker'}_final/{c}_{i}.JPG"
                write(images / name)
                lines.append(f"{number} {c} 1 {name}")
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"Ebay_{part}.txt").write_text("\n".join(lines) + "\n")


def inshop(root, images="img"):
    lines = []
    for item, train in (("id_00000001", True), ("id_00000002", True), ("id_00000003", False), ("id_00000005", False)):
        for i in range(3):
            name = f"WOMEN/Dresses/{item}/0{i}_1_front.jpg"
            write(root / images / name)
            lines.append(f"img/{name:60} {item} {'train' if train else 'gallery' if i else 'query'}")
    (root / "Eval").mkdir(parents=True)
    head = [str(len(lines)), "image_name item_id evaluation_status"]
    (root / "Eval" / "list_eval_partition.txt").write_text("\n".join([*head, *lines]) + "\n")


CARS = ("AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Volvo 240 Sedan 1993", "smart fortwo Convertible 2012")
LAYOUTS = {
    ("cub200", "archive"): cub_archive,
    ("cub200", "published"): lambda root: class_folders(root / "cub200" / "images", CUB),
    ("cars196", "archive"): cars_archive,
    ("cars196", "archive in its folder"): lambda root: cars_archive(root / "cars196"),
    ("cars196", "devkit"): cars_devkit,
    ("cars196", "devkit in its folder"): lambda root: cars_devkit(root / "cars196", "devkit/"),
    ("cars196", "published"): lambda root: class_folders(root / "cars196" / "images", CARS),
    ("online_products", "archive"): lambda root: products(*[root / "Stanford_Online_Products"] * 2),
    ("online_products", "published"): lambda root: products(
        root / "online_products" / "images", root / "online_products" / "Info_Files"
    ),
    ("inshop", "archive"): inshop,
    ("inshop", "archive in its folder"): lambda root: inshop(root / "inshop", "Img/img"),
    ("folder", "classes"): lambda root: class_folders(root, ("a b", "ö", "x", "y")),
    ("folder", "train and test"): lambda root: [
        class_folders(root / part, (part + "1", part + "2")) for part in ("train", "test")
    ],
}


def options(name, root, *more):
    return parameters.parse(["--dataset", name, "--source_path", str(root), "--kernels", "0", *map(str, more)])


def select(name, root, *more, size=32):
    return datasets.select(options(name, root, "--allow_partial", *more), input_size=size)


def splits_of(photos, *more, size=64):
    """Those of a folder of images."""
    return datasets.select(options("folder", photos, *more), size)


def short_run(dataset, folder):
    """Flags of a short run on what there is of a data set in a folder."""
    flags = "--allow_partial --arch conv4_normalize --not_pretrained --n_epochs 1 --bs 4".split()
    return ["--dataset", dataset, *flags, "--source_path", str(folder), "--save_path", str(folder / "runs")]
