"""The data sets by name. To add one: write its file, then add one line to DATASETS."""

import difflib
from typing import Callable, NamedTuple

from datasets import cars196, cub200, glyphs, online_products
from datasets.split import Split, Splits, train_val_split

__all__ = ["DATASETS", "Split", "Splits", "select"]


class DataSet(NamedTuple):
    about: str  # one line for main.py --list
    load: Callable  # (opt, input_size) → Splits


DATASETS = {
    "glyphs": DataSet("1,218 letters of five scripts in several faces, embedded, no download", lambda opt, size: glyphs.splits(size, opt.augmentation)),
    "cub200": DataSet("CUB-200-2011, 200 species of birds (Wah et al., 2011)", lambda opt, size: cub200.splits(opt.source_path, size, opt.augmentation)),
    "cars196": DataSet("Cars196, 196 models of cars (Krause et al., 3dRR 2013)", lambda opt, size: cars196.splits(opt.source_path, size, opt.augmentation)),
    "online_products": DataSet("Stanford Online Products, 22,634 products (Oh Song et al., CVPR 2016)",
                               lambda opt, size: online_products.splits(opt.source_path, size, opt.augmentation)),
}


def select(opt, input_size=224):
    """The splits that --dataset names: .train, .test, and .val with --use_tv_split. split[i] → (uint8 image (3, H, W), label).

    Raises ValueError or FileNotFoundError, one line that names the flag or the file.
    """
    if opt.dataset not in DATASETS:
        near = difflib.get_close_matches(opt.dataset, DATASETS, 1, 0.4)
        raise ValueError(f"--dataset {opt.dataset}: unknown{f' (did you mean {near[0]}?)' if near else ''}; known: {', '.join(DATASETS)}")
    splits = DATASETS[opt.dataset].load(opt, input_size)
    if opt.use_tv_split:
        splits.train, splits.val = train_val_split(splits.train, opt.tv_split_perc, opt.tv_split_by_samples, opt.seed)
    return splits
