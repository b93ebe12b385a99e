"""Any images: one folder a class."""

import os

from datasets.layout import HIDDEN, class_folders, find_layout, say_left_out

ABOUT = "any images: <source_path>/<class>/*, <source_path>/{train,test}/<class>/*, or train, query and gallery"
TREE = """\
  DIR/<class>/*.jpg (the first half of the classes by name trains, the others test), or
  DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg, or DIR/train/, DIR/query/ and DIR/gallery/ alike, or
  for --evaluate_only also DIR/test/ alone, or DIR/*.jpg, which are one class"""


def rows(source_path):
    """{split: [(class, class name, path), ...]} for train and test, or for train, query and gallery."""
    find_layout(source_path, "folder", [("", "")], TREE)
    entries = [name for name in os.listdir(source_path) if not name.startswith(HIDDEN)]
    folders = {name.lower(): name for name in entries if os.path.isdir(os.path.join(source_path, name))}
    if "train" in folders or folders and folders.keys() <= {"test", "query", "gallery"}:
        parts = ("train", "query", "gallery") if folders.keys() & {"query", "gallery"} else ("train", "test")
        there = {part: os.path.join(source_path, folders[part]) for part in parts if part in folders}  # maybe Train
        classes = {p: class_folders(there[p], "train" not in folders) if p in there else [] for p in parts}
        others = sorted(set(entries) - {folders.get(part) for part in parts})
        say_left_out(source_path, [os.path.join(source_path, name) for name in others])
    else:
        of_all = class_folders(source_path, flat=True)
        half = len(of_all) // 2  # of one class nothing can be learned
        classes = {"train": of_all[:half], "test": of_all[half:]}
    return {part: [(name, name, path) for name, paths in of for path in paths] for part, of in classes.items()}
