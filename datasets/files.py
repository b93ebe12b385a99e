"""What the data sets of image files share: finding their folder, checking that it is whole, and splits over files."""

import os

import torch

from datasets import cache, images, transforms
from datasets.split import Split, Splits

CACHED = 1.75  # shorter side of cached images as a multiple of the input size: 392 pixels for 224, so that CUB's 375 stay as they are


def find_layout(source_path, name, layouts, tree, get):
    """The first (layout name, folder) whose marker exists: layouts = [(layout, folder, marker file or folder), ...].

    Raises FileNotFoundError: a line that names the flags, then the expected tree and where the archive is to be had.
    """
    for layout, folder, marker in layouts:
        folder = os.path.normpath(os.path.join(source_path, folder))
        if os.path.exists(os.path.join(folder, marker)):
            return layout, folder
    there = "has none of the layouts below" if os.path.isdir(source_path) else "is no folder"
    raise FileNotFoundError(
        f"--dataset {name} --source_path {source_path}: {there}. Expected, DIR being --source_path:\n{tree}\nTo be had: {get}"
    )


def class_folders(folder):
    """[(class name, [image path, ...]), ...] of <folder>/<class>/*.jpg, sorted by name; folders without images are left out."""
    found = []
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        # entry.is_dir() would raise on a loop of links
        if os.path.isdir(entry.path) and not entry.name.startswith((".", "__")):
            paths = [os.path.join(entry.path, f) for f in images.image_names(os.listdir(entry.path))]
            if paths:
                found.append((entry.name, paths))
    if not found:
        raise FileNotFoundError(
            f"{folder}: no folder in it has images ({', '.join(images.SUFFIXES)}); one folder a class is expected"
        )
    return found


def read_lines(path, name):
    """The lines of a list that belongs to the data set; FileNotFoundError or ValueError, one line, where it cannot be read."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--dataset {name}: {path} is missing")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: cannot be read ({problem})") from problem


def on_disk(rows):
    """(rows whose file is there, paths of the others); every folder is listed once."""
    listed = {}
    for _, _, path in rows:
        folder = os.path.dirname(path)
        if folder not in listed:
            listed[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    there = [os.path.basename(path) in listed[os.path.dirname(path)] for _, _, path in rows]
    return [r for r, t in zip(rows, there) if t], [r[2] for r, t in zip(rows, there) if not t]


def found_rows(module, source_path):
    """(rows of each split whose file is there, paths of the listed files that are not)."""
    rows, missing = module.rows(source_path), []
    for name in rows:
        rows[name], lost = on_disk(rows[name])
        missing += lost
    return rows, missing


def completeness(rows, counts, missing):
    """What is not as published, a line; empty where the counts of classes and images of each split are right and no file is missing.

    rows = {split: [(class, class name, path), ...]}, counts = {split: (classes, images)}.
    """
    wrong = []
    for split, (classes, n) in counts.items():
        found = len({c for c, _, _ in rows[split]}), len(rows[split])
        if found != (classes, n):
            wrong.append(
                f"{split}: found {found[0]:,} classes, {found[1]:,} images, expected {classes:,} classes, {n:,} images"
            )
    if missing:
        wrong.append(f"{len(missing):,} listed images are missing, first {missing[0]}")
    return "; ".join(wrong)


class Fetch:
    """What a Split asks for images: indices into `paths` → uint8 images. Decodes files, or takes them from a cache.

    Each image is augmented by its own seed alone: the number of worker processes changes nothing.
    """

    def __init__(self, paths, size, augmentation="base", cached=None, on_device=False):
        self.paths, self.cached = paths, cached
        self.views = {
            True: transforms.Square(size) if on_device else transforms.training(augmentation, size),
            False: transforms.evaluation(size),
        }
        self.on_device = transforms.OnDevice(augmentation, size) if on_device else None

    def __call__(self, indices, seeds):
        if seeds is None:
            return [self.one(i, self.views[False]) for i in indices]
        if self.on_device:
            return [(*self.one(i, self.views[True]), torch.tensor(seed)) for i, seed in zip(indices, seeds)]
        made = []
        with torch.random.fork_rng(devices=[]):
            for i, seed in zip(indices, seeds):
                torch.default_generator.manual_seed(seed)  # what torchvision's transforms draw from
                made.append(self.one(i, self.views[True]))
        return made

    def one(self, i, view):
        if self.cached is None:
            pixels, found = images.read(self.paths[i], view.plan, view.margin)
            return view(pixels, *found)
        pixels, full = self.cached[i]
        return view(pixels, full, *view.plan(*full))


def load(opt, size, module):
    """The splits of a data set of image files, checked against its published counts.

    module.rows(source_path) → {split: [(class, class name, path), ...]} for train and test, or train, query and gallery;
    module.COUNTS → {split: (classes, images)}, empty where nothing is published.
    """
    rows, missing = found_rows(module, opt.source_path)
    partial = completeness(rows, module.COUNTS, missing)
    if partial and not opt.allow_partial:
        raise ValueError(
            f"--dataset {opt.dataset} --source_path {opt.source_path}: {partial}; unpack the archive again, or give "
            "--allow_partial to go on with what is there (the run is then marked partial)"
        )
    for name in rows:
        if not rows[name]:
            raise ValueError(
                f"--dataset {opt.dataset} --source_path {opt.source_path}: no image of the {name} split is there"
            )

    paths = [path for part in rows.values() for _, _, path in part]
    cached = None
    if opt.cache == "":
        raise ValueError("--cache: is empty; give a folder, or leave the flag away")
    if opt.cache:
        cached = cache.open_or_build(
            opt.cache, opt.dataset, opt.source_path, paths, round(CACHED * size), opt.kernels, opt.skip_broken
        )
    skipped = {}
    if opt.skip_broken:
        skipped = cached.broken if cached else images.broken(paths, opt.kernels, "--skip_broken: checking", quick=True)
        if skipped:
            print(
                f"--skip_broken: {len(skipped)} of {len(paths)} images left out; the first: {next(iter(skipped.values()))}"
            )

    fetch = Fetch(paths, size, opt.augmentation, cached, opt.gpu_augment)
    tested = {
        c for name in ("query", "gallery") if name in rows for c, _, _ in rows[name]
    }  # query and gallery number their classes alike
    made, start = {}, 0
    for name, part in rows.items():
        keep = [i for i in range(len(part)) if start + i not in skipped]
        if not keep:
            raise ValueError(
                f"--dataset {opt.dataset} --skip_broken: every image of the {name} split is broken, the first: {skipped[start]}"
            )
        made[name] = Split(
            fetch,
            [start + i for i in keep],
            [part[i][0] for i in keep],
            {c: n for p in rows.values() for c, n, _ in p},
            [part[i][2] for i in keep],
            augmented=name == "train",
            numbering=tested if name in ("query", "gallery") else None,
        )
        start += len(part)
    return Splits(**made, partial=partial, skipped=tuple(paths[i] for i in skipped))
