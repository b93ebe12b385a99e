"""Cars196: 196 car models, the first 98 for training. Source: Krause et al., 3D Object Representations, ICCV-W 2013."""

import os

from datasets.layout import class_folders, find_layout

ABOUT = "Cars196, 196 models of cars (Krause et al., 3dRR 2013)"
COUNTS = {"train": (98, 8054), "test": (98, 8131)}
LAYOUTS = [(folder, marker) for folder in ("cars196", "") for marker in ("images", "cars_annos.mat", "cars_train")]
TREE = """\
  DIR/car_ims/000001.jpg ... and DIR/cars_annos.mat, or
  DIR/cars_train/00001.jpg ... and DIR/cars_test/00001.jpg ... with cars_train_annos.mat, cars_meta.mat and
      cars_test_annos_withlabels.mat in DIR/ or DIR/devkit/, or either of these in DIR/cars196/, or
  DIR/cars196/images/<class name>/*.jpg                                         as published"""
GET = """car_ims.tgz and cars_annos.mat, or cars_train.tgz, cars_test.tgz, car_devkit.tgz and \
cars_test_annos_withlabels.mat (the devkit has no image, and no class of a test image). Their addresses at \
ai.stanford.edu have been gone since 2023; https://github.com/pytorch/vision/issues/7545 says where copies are"""
TRAIN, TEST = "cars_train_annos.mat", "cars_test_annos_withlabels.mat"
UNPACK = {name: f"cars196/{name}" for name in ("car_ims", "cars_annos.mat", "cars_train", "cars_test", "devkit", TEST)}


def rows(source_path):
    """{split: [(class, class name, path), ...]} of one of the layouts in TREE."""
    folder, marker = find_layout(source_path, "cars196", LAYOUTS, TREE, GET)
    if marker == "images":
        folders = class_folders(os.path.join(folder, "images"))
        images = [(c, name, path) for c, (name, paths) in enumerate(folders, 1) for path in paths]
        last_of_train = len(folders) // 2  # the folders carry no numbers: 98 where all are there
    else:  # both cars_train and cars_test have images of every class
        files = {TRAIN: "cars_train", TEST: "cars_test"} if marker == "cars_train" else {marker: ""}
        images, last_of_train = sorted(annotated(folder, files)), 98
    return {"train": [i for i in images if i[0] <= last_of_train], "test": [i for i in images if i[0] > last_of_train]}


def annotated(folder, files):
    """[(class number from 1, class name, path), ...] of files = {annotations: the folder of their images}."""
    from scipy.io import loadmat  # comes with scikit-learn

    mats, classes = {}, "cars_meta.mat" if len(files) > 1 else "cars_annos.mat"
    try:
        for file in {classes: "", **files}:
            path = os.path.join(folder, file)
            path = path if os.path.exists(path) else os.path.join(folder, "devkit", file)
            mats[file] = loadmat(path, squeeze_me=True)
        images, names = [], mats[classes]["class_names"]
        for file, part in files.items():
            field = "fname" if part else "relative_im_path"
            found = [
                (int(row["class"]), os.path.join(folder, part, str(row[field]))) for row in mats[file]["annotations"]
            ]
            images += [(c, str(names[c - 1]), path) for c, path in found]
        return images
    except Exception as problem:  # scipy raises whatever comes for a file that is no .mat, or a damaged one
        reason = " ".join(str(problem).split())
        raise ValueError(f"{path}: not the annotations of Cars196 ({reason}). To be had: {GET}") from problem
