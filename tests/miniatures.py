"""The benchmarks in miniature, in the layouts in which their archives unpack and in the published ones."""

import numpy as np
from PIL import Image

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


def save_mat(path, **arrays):
    """A .mat file: of a list of rows {field: value} a struct array with an element a row, of a list of words a cell."""
    from scipy.io import savemat

    def array(values):
        fields = [
            (name, "O" if isinstance(value, str) else "u2") for name, value in getattr(values[0], "items", list)()
        ]
        return np.array([tuple(row.values()) if fields else row for row in values], dtype=fields or object)[None]

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {name: array(values) for name, values in arrays.items()})


CAR_NAMES = [f"Make Model {c:03d} 2012" for c in range(1, 197)]
CAR_CLASSES = [(1, 98, 99, 196)[i % 4] for i in range(1, 13)]  # of the 12 images


def cars_archive(root):
    """car_ims/ and cars_annos.mat."""
    names = [f"car_ims/{i:06d}.jpg" for i in range(1, 13)]
    for name in names:
        write(root / name)
    rows = [{"relative_im_path": name, "bbox_x1": 1, "class": c, "test": 0} for name, c in zip(names, CAR_CLASSES)]
    save_mat(root / "cars_annos.mat", annotations=rows, class_names=CAR_NAMES)


def cars_devkit(root, labelled=""):
    """cars_train/, cars_test/ and the devkit, each numbered from 1; `labelled`: where the test annotations lie."""
    save_mat(root / "devkit" / "cars_meta.mat", class_names=CAR_NAMES)
    for part, classes, path in (("train", CAR_CLASSES[:7], "devkit/cars_train_annos.mat"),
                                ("test", CAR_CLASSES[7:], f"{labelled}cars_test_annos_withlabels.mat")):  # fmt: skip
        rows = [{"bbox_x1": 1, "class": c, "fname": f"{i:05d}.jpg"} for i, c in enumerate(classes, 1)]
        for row in rows:
            write(root / f"cars_{part}" / row["fname"])
        save_mat(root / path, annotations=rows)


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
