"""Any images: one folder a class."""

import os

from datasets.loading.layout import class_folders

ABOUT = "any <source_path>/<class>/*.jpg, or <source_path>/{train,test}/<class>/*.jpg, or train, query and gallery"
TREE = """\
  DIR/<class>/*.jpg (the first half of the classes by name trains, the others test), or
  DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg, or DIR/train/, DIR/query/ and DIR/gallery/ alike"""


def rows(source_path):
    """{split: [(class, class name, path), ...]} for train and test, or for train, query and gallery."""
    named = f"--dataset folder --source_path {source_path}"
    expected = f"Expected, DIR being --source_path:\n{TREE}"
    if not os.path.isdir(source_path):
        raise FileNotFoundError(f"{named}: is no folder. {expected}")
    present = {name for name in ("train", "test", "query", "gallery") if os.path.isdir(os.path.join(source_path, name))}
    if "train" not in present:
        return halves(source_path, named)
    splits = {}
    for split in ("train", "query", "gallery") if present & {"query", "gallery"} else ("train", "test"):
        folder = os.path.join(source_path, split)
        if split not in present:
            raise FileNotFoundError(f"{named}: {folder} is missing. {expected}")
        splits[split] = [(name, name, path) for name, paths in class_folders(folder) for path in paths]
    return splits


def halves(folder, named):
    """The first half of the classes by name trains, the others test."""
    classes = class_folders(folder)
    if len(classes) < 2:
        problem = f"has one class, {classes[0][0]}; at least two are needed, one to train and one to test"
        raise ValueError(f"{named}: {problem}")
    splits = {"train": [], "test": []}
    for number, (name, paths) in enumerate(classes):
        splits["train" if number < len(classes) // 2 else "test"] += [(name, name, path) for path in paths]
    return splits
