"""Cars196: 196 car models, the first 98 for training. Source: Krause et al., 3D Object Representations, ICCV-W 2013."""

import os

from datasets.layout import class_folders, find_layout

ABOUT = "Cars196, 196 models of cars (Krause et al., 3dRR 2013)"
COUNTS = {"train": (98, 8054), "test": (98, 8131)}
LAYOUTS = [("cars196", "images"), ("cars196", "cars_annos.mat"), ("", "cars_annos.mat"), ("", "images")]
TREE = """\
  DIR/car_ims/000001.jpg ... and DIR/cars_annos.mat, or both in DIR/cars196/   as the archive unpacks, or
  DIR/cars196/images/<class name>/*.jpg                                         as published"""
GET = """both car_ims.tgz (the images) and cars_annos.mat (their classes; the devkit alone has neither), \
http://ai.stanford.edu/~jkrause/car196/car_ims.tgz and http://ai.stanford.edu/~jkrause/car196/cars_annos.mat"""
UNPACK = {"car_ims": "cars196/car_ims", "cars_annos.mat": "cars196/cars_annos.mat"}


def rows(source_path):
    """{split: [(class, class name, path), ...]} of car_ims/ and cars_annos.mat, or of cars196/images/<class>/."""
    folder, marker = find_layout(source_path, "cars196", LAYOUTS, TREE, GET)
    if marker == "images":
        classes = [(c, *entry) for c, entry in enumerate(class_folders(os.path.join(folder, "images")), 1)]
        last_of_train = len(classes) // 2  # the folders carry no numbers: 98 where all are there
    else:
        classes, last_of_train = annotated(folder), 98
    splits = {"train": [], "test": []}
    for c, name, paths in classes:
        splits["train" if c <= last_of_train else "test"] += [(c, name, path) for path in paths]
    return splits


def annotated(folder):
    """[(class number from 1, class name, [path, ...]), ...] of cars_annos.mat."""
    from scipy.io import loadmat  # comes with scikit-learn

    path = os.path.join(folder, "cars_annos.mat")
    try:
        mat = loadmat(path, squeeze_me=True)
        names = [str(name) for name in mat["class_names"]]
        files = {c: [] for c in range(1, len(names) + 1)}
        for row in mat["annotations"]:
            files[int(row["class"])].append(os.path.join(folder, str(row["relative_im_path"])))
    except Exception as problem:  # scipy raises whatever comes for a file that is no .mat, or a damaged one
        raise ValueError(f"{path}: not the annotations of Cars196 ({' '.join(str(problem).split())})") from problem
    return [(c, names[c - 1], sorted(paths)) for c, paths in files.items() if paths]
