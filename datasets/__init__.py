"""The data sets by name. To add one: write its file, then add one line to DATASETS; see README.md."""

import zlib
from types import ModuleType
from typing import Callable, NamedTuple, Optional

from datasets import cars196, cub200, emoji, folder, glyphs, images, inshop, online_products
from datasets.images import BrokenImage
from datasets.split import QueryGallery, Split, Splits, subset_of_classes, train_val_split
from utilities.command_line import lookup

__all__ = ["DATASETS", "BrokenImage", "QueryGallery", "Split", "Splits", "evaluated_splits", "select"]


class DataSet(NamedTuple):
    about: str  # one line for main.py --list
    load: Callable  # (opt, input_size) → Splits
    module: Optional[ModuleType] = None  # of image files: what datasets.prepare unpacks and counts


def image_files(module):
    return DataSet(module.ABOUT, lambda opt, input_size: images.load(opt, input_size, module), module)


DATASETS = {
    "glyphs": DataSet(glyphs.ABOUT, lambda opt, input_size: glyphs.splits(input_size, opt.augmentation)),
    "emoji": image_files(emoji),
    "cub200": image_files(cub200),
    "cars196": image_files(cars196),
    "online_products": image_files(online_products),
    "inshop": image_files(inshop),
    "folder": image_files(folder),
}


def check_name(opt):
    """ValueError, one line, if --dataset names something unknown: before anything is loaded."""
    lookup("--dataset", opt.dataset, DATASETS)


def select(opt, input_size=224):
    """The splits that --dataset names: .train, .test (or .query and .gallery), and .val with --use_tv_split.

    --train_classes and --train_images make .train smaller; what is evaluated stays whole, so runs can be compared.

    split[i] → (uint8 image (3, H, W), label). Raises ValueError or FileNotFoundError that names the flag or the file.
    """
    splits = lookup("--dataset", opt.dataset, DATASETS).load(opt, input_size)
    learns, problem = not opt.evaluate_only, ""  # images that are only embedded need no training split
    missing = [name for name, split in parts(splits).items() if not split and (learns or name != "train")]
    if opt.use_tv_split and splits.train:
        splits.train, splits.val = train_val_split(splits.train, opt.tv_split_perc, opt.tv_split_by_samples, opt.seed)
    if opt.train_classes or opt.train_images:
        splits.train = subset_of_classes(splits.train, opt.train_classes, opt.train_images, opt.seed)
    n_classes = len(splits.train.class_names)
    if missing:
        problem = f"--source_path {opt.source_path}: no image of the {missing[0]} split is there or can be decoded"
    elif learns and splits.val is not None and not (splits.val and splits.train):
        problem = f"--tv_split_perc {opt.tv_split_perc:g}: leaves nothing for training, or nothing for validation"
    elif learns and n_classes < (opt.train_classes or 0):
        problem = f"--train_classes {opt.train_classes}: the training split has {n_classes}"
    if problem:
        raise ValueError(problem)
    return splits


def parts(splits):
    return {name: split for name, split in vars(splits).items() if isinstance(split, Split)}


def contents(splits):
    """A line that tells these data from others: each split's number of images and the checksum of its class names."""

    def checksum(split):
        return zlib.crc32("\n".join(split.class_names).encode(errors="surrogateescape"))

    return ", ".join(f"{name} {len(split)} ({checksum(split):08x})" for name, split in parts(splits).items())


def evaluated_splits(opt, splits):
    """{name: split} of what is evaluated."""
    train = None if opt.no_train_metrics else splits.train.unaugmented()
    every = {"train": train, "val": splits.val, "test": None if opt.no_test_metrics else splits.tested}
    return {name: split for name, split in every.items() if split}
