"""What the data sets of image files share: finding their folder, and splits over files."""

import functools
import os

from datasets import transforms
from datasets.split import Split, Splits

SUFFIXES = (".jpg", ".jpeg", ".png")


def find_layout(source_path, name, layouts, archive):
    """The first (layout name, folder) whose marker exists: layouts = [(layout, folder, marker file or folder), ...].

    Raises FileNotFoundError, one line with what was looked for and where the archive is to be had.
    """
    for layout, folder, marker in layouts:
        folder = os.path.join(source_path, folder)
        if os.path.exists(os.path.join(folder, marker)):
            return layout, folder
    looked = " or ".join(os.path.join(source_path, folder, marker) for _, folder, marker in layouts)
    raise FileNotFoundError(f"--dataset {name} --source_path {source_path}: found neither {looked}; {archive}")


def class_folders(folder):
    """[(class name, [image path, ...]), ...] of <folder>/<class>/*.jpg, sorted by name."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.is_dir():
            images = sorted(os.path.join(entry.path, f) for f in os.listdir(entry.path) if f.lower().endswith(SUFFIXES))
            if images:
                found.append((entry.name, images))
    if not found:
        raise FileNotFoundError(f"{folder}: no folder in it has images ({', '.join(SUFFIXES)}); one folder a class is expected")
    return found


def fetch(steps, paths, augmented):
    return [steps[augmented](transforms.read_image(path)) for path in paths]


def file_splits(train, test, input_size, augmentation):
    """Splits from two lists of (class number, class name, path)."""
    # a partial and no closure: data workers that are spawned get it pickled
    fetch_paths = functools.partial(fetch, {True: transforms.training(augmentation, input_size), False: transforms.evaluation(input_size)})

    def split(rows, augmented):
        return Split(fetch_paths, [p for _, _, p in rows], [c for c, _, _ in rows], {c: n for c, n, _ in rows}, [p for _, _, p in rows], augmented)

    return Splits(train=split(train, True), test=split(test, False))


def halves(classes, n_train, input_size, augmentation):
    """Splits of [(class name, [path, ...]), ...]: the first n_train classes for training, the others for testing."""
    rows = [(c, name, path) for c, (name, paths) in enumerate(classes) for path in paths]
    return file_splits([r for r in rows if r[0] < n_train], [r for r in rows if r[0] >= n_train], input_size, augmentation)
