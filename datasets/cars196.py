"""Cars196: 196 car models, the first 98 for training. Source: Krause et al., 3D Object Representations, ICCV-W 2013."""

import os

from datasets.files import class_folders, find_layout, halves


def splits(source_path, input_size, augmentation):
    """Splits from car_ims/ + cars_annos.mat (as the archives unpack, in source_path or its cars196 folder), or cars196/images/<class>/ (as published)."""
    layout, folder = find_layout(source_path, "cars196", [("published", "cars196", "images"), ("archive", "cars196", "cars_annos.mat"), ("archive", "", "cars_annos.mat")],
                                 "both are needed there: the images car_ims.tgz and the annotations cars_annos.mat of Stanford's Cars196 (the devkit alone has no images)")
    if layout == "published":
        classes = class_folders(os.path.join(folder, "images"))
    else:
        classes = annotated(folder)
    return halves(classes, len(classes) // 2, input_size, augmentation)


def annotated(folder):
    """[(class name, [path, ...]), ...] in the order of cars_annos.mat."""
    from scipy.io import loadmat  # comes with scikit-learn
    path = os.path.join(folder, "cars_annos.mat")
    if not os.path.isdir(os.path.join(folder, "car_ims")):
        raise FileNotFoundError(f"--dataset cars196: {os.path.join(folder, 'car_ims')} is missing; unpack the images car_ims.tgz beside cars_annos.mat")
    try:
        mat = loadmat(path, squeeze_me=True)
        names = [str(n) for n in mat["class_names"]]
        rows = [(str(a["relative_im_path"]), int(a["class"])) for a in mat["annotations"]]
    except (KeyError, ValueError, TypeError, NotImplementedError) as problem:
        raise ValueError(f"{path}: not the annotations of Cars196 ({problem})") from problem
    images = {c: [] for c in range(1, len(names) + 1)}
    for file, c in rows:
        images[c].append(os.path.join(folder, file))
    return [(names[c - 1], sorted(paths)) for c, paths in images.items() if paths]
