"""From the rows of a data set of image files to its splits: counted, decoded or cached, broken images left out."""

import torch

from datasets import transforms
from datasets.loading import cache, decode
from datasets.loading.layout import rows_on_disk, shortfall
from datasets.loading.split import Split, Splits

# shorter side of cached images as a multiple of the input size: 392 pixels for 224, so that CUB's 375 stay as they are
CACHED = 1.75


class Fetch:
    """What a Split asks for images: indices into `paths` → uint8 images. Decodes files, or takes them from a cache.

    Each image is augmented by its own seed alone: the number of worker processes changes nothing.
    """

    def __init__(self, paths, size, augmentation="base", cached=None, on_device=False):
        self.paths, self.cached = paths, cached
        self.training = transforms.Square(size) if on_device else transforms.training(augmentation, size)
        self.evaluation = transforms.evaluation(size)
        self.on_device = transforms.OnDevice(augmentation, size) if on_device else None

    def __call__(self, indices, seeds):
        if seeds is None:
            return [self.one(i, self.evaluation) for i in indices]
        if self.on_device:
            return [(*self.one(i, self.training), torch.tensor(seed)) for i, seed in zip(indices, seeds)]
        images = []
        with torch.random.fork_rng(devices=[]):
            for i, seed in zip(indices, seeds):
                torch.default_generator.manual_seed(seed)  # what torchvision's transforms draw from
                images.append(self.one(i, self.training))
        return images

    def one(self, i, view):
        if self.cached is None:
            pixels, plan = decode.read(self.paths[i], view.plan, view.margin)
            return view(pixels, *plan)
        pixels, full = self.cached[i]
        return view(pixels, full, *view.plan(*full))


def load(opt, size, module):
    """The splits of a data set of image files, checked against its published counts.

    module.rows(source_path) → {split: [(class, class name, path), ...]} for train and test, or train, query and
    gallery; module.COUNTS = {split: (classes, images)}, where something is published.
    """
    named = f"--dataset {opt.dataset} --source_path {opt.source_path}"
    rows, missing = rows_on_disk(module, opt.source_path)
    partial = shortfall(module, rows, missing)
    if partial and not opt.allow_partial:
        advice = "unpack the archive again, or give --allow_partial to go on with what is there"
        raise ValueError(f"{named}: {partial}; {advice} (the run is then marked partial)")
    for name, part in rows.items():
        if not part:
            raise ValueError(f"{named}: no image of the {name} split is there")
    paths = [path for part in rows.values() for _, _, path in part]
    cached, skipped = cache_and_broken(opt, size, paths)
    fetch = Fetch(paths, size, opt.augmentation, cached, opt.gpu_augment)
    return Splits(**make_splits(opt, rows, fetch, skipped), partial=partial, skipped=tuple(paths[i] for i in skipped))


def cache_and_broken(opt, size, paths):
    """(Cache or None, {index: line} of the broken images that --skip_broken leaves out)."""
    if opt.cache == "":
        raise ValueError("--cache: is empty; give a folder, or leave the flag away")
    cached, skipped = None, {}
    if opt.cache:
        shorter = round(CACHED * size)
        where = opt.cache, opt.dataset, opt.source_path
        cached = cache.open_or_build(*where, paths, shorter, opt.kernels, opt.skip_broken)
    if opt.skip_broken:
        skipped = cached.broken if cached else decode.broken(paths, opt.kernels, "--skip_broken: checking", quick=True)
    if skipped:
        first = next(iter(skipped.values()))
        print(f"--skip_broken: {len(skipped)} of {len(paths)} images left out; the first: {first}")
    return cached, skipped


def make_splits(opt, rows, fetch, skipped):
    """{name: Split} of the images of `rows` that are not skipped."""
    names = {c: class_name for part in rows.values() for c, class_name, _ in part}
    # query and gallery number their classes alike
    tested = {c for name in ("query", "gallery") for c, _, _ in rows.get(name, ())}
    splits, start = {}, 0
    for name, part in rows.items():
        kept = [(start + i, c, path) for i, (c, _, path) in enumerate(part) if start + i not in skipped]
        if not kept:
            problem = f"every image of the {name} split is broken, the first: {skipped[start]}"
            raise ValueError(f"--dataset {opt.dataset} --skip_broken: {problem}")
        keys, classes, paths = zip(*kept)
        numbering = tested if name in ("query", "gallery") else None
        splits[name] = Split(fetch, keys, classes, names, paths, augmented=name == "train", numbering=numbering)
        start += len(part)
    return splits
