"""Any images: one folder a class."""

import os

from datasets.layout import class_folders, find_layout

ABOUT = "any <source_path>/<class>/*.jpg, or <source_path>/{train,test}/<class>/*.jpg, or train, query and gallery"
TREE = """\
  DIR/<class>/*.jpg (the first half of the classes by name trains, the others test), or
  DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg, or DIR/train/, DIR/query/ and DIR/gallery/ alike"""


def rows(source_path):
    """{split: [(class, class name, path), ...]} for train and test, or for train, query and gallery."""
    find_layout(source_path, "folder", [("", "")], TREE)
    present = [name for name in ("train", "query", "gallery") if os.path.isdir(os.path.join(source_path, name))]
    if "train" in present:
        parts = ("train", "query", "gallery") if len(present) > 1 else ("train", "test")
        classes = {part: class_folders(os.path.join(source_path, part)) for part in parts}
    else:
        of_all = class_folders(source_path)
        half = max(1, len(of_all) // 2)
        classes = {"train": of_all[:half], "test": of_all[half:]}
    return {part: [(name, name, path) for name, paths in of for path in paths] for part, of in classes.items()}
