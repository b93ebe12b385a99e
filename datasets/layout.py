"""The files of a data set: finding its folder, listing its classes, and counting whether all of it is there."""

import functools
import os
import re

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def find_layout(source_path, name, layouts, tree, get=""):
    """The first (folder, marker) that is there: layouts = [(folder, marker file or folder in it), ...].

    Raises FileNotFoundError: a line that names the flags, then the expected tree and where the archive is to be had.
    """
    for folder, marker in layouts:
        folder = os.path.normpath(os.path.join(source_path, folder))
        if os.path.exists(os.path.join(folder, marker)):
            return folder, marker
    problem = "has none of the layouts below" if os.path.isdir(source_path) else "is no folder"
    expected = f"Expected, DIR being --source_path:\n{tree}" + (f"\nTo be had: {get}" if get else "")
    raise FileNotFoundError(f"--dataset {name} --source_path {source_path}: {problem}. {expected}")


def class_folders(folder):
    """[(class name, [image path, ...]), ...] of <folder>/<class>/*.jpg by name; folders without images are left out."""
    classes = []
    for name in sorted(os.listdir(folder)):
        inner = os.path.join(folder, name)
        if os.path.isdir(inner) and not name.startswith((".", "__")):
            # macOS leaves ._name beside an image
            images = sorted(n for n in os.listdir(inner) if n.lower().endswith(SUFFIXES) and not n.startswith("."))
            classes += [(name, [os.path.join(inner, image) for image in images])] if images else []
    return classes


def read_list(path, form):
    """The words of each line that matches the pattern `form`; a head does not, and a damaged line counts as missing."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return [words for words in lines if re.fullmatch(form, " ".join(words))]


def on_disk(module, source_path):
    """({split: module's rows whose file is there}, a line that says what they lack of the published counts and of their
    own lists, empty where nothing is lacking)."""
    # a folder is listed once, which is faster than to ask for each of its files
    names = functools.cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else ())

    def is_there(path):
        return os.path.basename(path) in names(os.path.dirname(path))

    rows, problems, missing = {}, [], []
    for split, listed in module.rows(source_path).items():
        rows[split] = [row for row in listed if is_there(row[2])]
        missing += [path for *_, path in listed if not is_there(path)]
    for split, (classes, images) in getattr(module, "COUNTS", {}).items():
        found = len({c for c, _, _ in rows[split]}), len(rows[split])
        if found != (classes, images):
            counted = f"{split}: found {found[0]:,} classes, {found[1]:,} images"
            problems.append(f"{counted}, expected {classes:,} classes, {images:,} images")
    if missing:
        problems.append(f"{len(missing):,} listed images are missing, first {missing[0]}")
    return rows, "; ".join(problems)
