"""Any images: one folder a class."""

import os

from datasets.files import class_folders

ABOUT = "any <source_path>/<class>/*.jpg, or <source_path>/{train,test}/<class>/*.jpg, or train, query and gallery"
COUNTS = {}
TREE = """  DIR/<class>/*.jpg (the first half of the classes by name trains, the others test), or
  DIR/train/<class>/*.jpg and DIR/test/<class>/*.jpg, or DIR/train/, DIR/query/ and DIR/gallery/ alike"""


def rows(source_path):
    """{split: [(class, class name, path), ...]} for train and test, or for train, query and gallery."""
    if not os.path.isdir(source_path):
        raise FileNotFoundError(
            f"--dataset folder --source_path {source_path}: is no folder. Expected, DIR being --source_path:\n{TREE}"
        )
    has = [name for name in ("train", "test", "query", "gallery") if os.path.isdir(os.path.join(source_path, name))]
    if "train" in has:
        parts = ["train", "query", "gallery"] if "query" in has or "gallery" in has else ["train", "test"]
        lacking = [name for name in parts if name not in has]
        if lacking:
            absent = os.path.join(source_path, lacking[0])
            raise FileNotFoundError(
                f"--dataset folder --source_path {source_path}: {absent} is missing. Expected, DIR being --source_path:\n{TREE}"
            )
        return {
            part: [
                (name, name, path) for name, paths in class_folders(os.path.join(source_path, part)) for path in paths
            ]
            for part in parts
        }
    classes = class_folders(source_path)
    if len(classes) < 2:
        raise ValueError(
            f"--dataset folder --source_path {source_path}: has one class, {classes[0][0]}; at least two are needed, one to train and one to test"
        )
    first = {name for name, _ in classes[: len(classes) // 2]}
    every = [(name, name, path) for name, paths in classes for path in paths]
    return {"train": [row for row in every if row[0] in first], "test": [row for row in every if row[0] not in first]}
