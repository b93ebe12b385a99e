"""Image files as upright RGB, read or taken from a cache (--cache), and the splits that are made of them."""

import contextlib
import functools
import glob
import hashlib
import io
import os
import zlib

import numpy as np
import torch
import torchvision.io
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from datasets import transforms
from datasets.layout import FORMATS, on_disk
from datasets.split import Split, Splits
from utilities.distributed import print_once
from utilities.folders import DAY, remove_unfinished, write_whole
from utilities.signals import shield_worker

ORIENTATION = 0x0112  # EXIF tag
BITS, WHITE = 258, 262  # TIFF tags BitsPerSample and PhotometricInterpretation, where 0 says that 0 is white
# what a run is learned from stays as it is when the run goes on, so a file is left out from the start or not at all
ADVICE = "; replace it, or leave it out by --skip_broken (in a new run: --resume goes on with the same images)"
# shorter side of cached images as a multiple of the input size: 392 pixels for 224, so that CUB's 375 stay as they are
CACHED = 1.75
CACHE_FORMAT = 4  # to be raised when what is written changes
# a seventh faster than Pillow alone, the same pixels; deprecated, so it may be missing one day
decode_jpeg = getattr(torchvision.io, "decode_jpeg", None)


class BrokenImage(ValueError):
    """One line that names a file which cannot be decoded."""

    def __init__(self, text):
        # a DataLoader raises a worker's error anew with the traceback as its text, and the line is the end of that
        super().__init__(text.rpartition("BrokenImage: ")[2].strip())


def read(path, advice=""):
    """An image file as uint8 RGB pixels (h, w, 3), upright. Raises BrokenImage for one that cannot be decoded."""
    pixels, problem = attempt(path)
    if problem:
        raise BrokenImage(problem + advice)
    return pixels


def attempt(path):
    """(pixels, None) of an image file, or (None, a line that says why it cannot be decoded)."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return decode(data, image), None
    except Exception as problem:  # Pillow raises whatever comes: OSError, SyntaxError, ValueError, struct.error, ...
        reason = " ".join(str(getattr(problem, "strerror", None) or problem).split()) or type(problem).__name__
        if isinstance(problem, UnidentifiedImageError):
            reason = f"not an image in {', '.join(FORMATS)}" if data else "the file is empty"
        name = os.fsencode(path).decode(errors="backslashreplace")  # which a terminal can show
        return None, f"{name}: cannot be decoded as an image ({reason})"


def decode(data, image):
    """Upright RGB pixels of a file's bytes, opened as `image`."""
    is_jpeg, turned = image.format == "JPEG", 1
    if not is_jpeg:
        image.load()  # its errors are not EXIF's: Pillow reads a PNG to its end to find that
    with contextlib.suppress(Exception):  # damaged EXIF beside a good image
        turned = image.getexif().get(ORIENTATION, 1)
    if is_jpeg and turned == 1 and image.mode in ("RGB", "L") and decode_jpeg:
        with contextlib.suppress(RuntimeError):  # Pillow can, or says why not
            pixels = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), torchvision.io.ImageReadMode.RGB)
            return pixels.permute(1, 2, 0).numpy()
    return np.asarray(rgb(ImageOps.exif_transpose(image) if turned != 1 else image, image))


def rgb(image, file):
    """8-bit RGB of an image that was opened as `file`; what is transparent becomes white."""
    if image.mode.startswith("I;16"):
        tags = getattr(file, "tag_v2", {})  # a TIFF's 12 bits come as 16, and its white may be 0
        grey = np.asarray(image).astype(np.int64) >> tags.get(BITS, (16,))[0] - 8  # convert would clip at 255
        image = Image.fromarray((255 - grey if tags.get(WHITE) == 0 else grey).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("grey in floats or 32-bit integers, where nothing says what is white; save it in 8 or 16 bits")
    elif image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def in_parallel(function, paths, workers, title):
    """function(path) of each path in order, in worker processes, under a progress bar."""
    how = dict(num_workers=min(workers, os.cpu_count() or 1), worker_init_fn=shield_worker, collate_fn=function)
    how |= dict(batch_size=None, generator=torch.Generator())  # its own, or the training's random numbers would move
    return tqdm(torch.utils.data.DataLoader(paths, **how), title, unit=" images", leave=False, disable=None)


def problem_of(path):
    return attempt(path)[1]


def broken(paths, workers, title):
    """{path: line} of the files that cannot be decoded."""
    return {path: line for path, line in zip(paths, in_parallel(problem_of, paths, workers, title)) if line}


class Cache:
    """Decoded images in one file: cache[i] → (uint8 pixels (h, w, 3), (height, width) of the file's image).

    index : int64 (n, 5): height and width in the file, height and width kept (0 if broken), CRC of the pixels, which is
    compared where a process reads them first. A file that is cut off under a memory map would end it with SIGBUS.
    """

    def __init__(self, path, index):
        self.path, self.index, self.checked = path, index, set()
        self.starts = np.append(0, np.cumsum(index[:, 2] * index[:, 3] * 3))
        self.file = open(path, "rb", buffering=0)

    def __reduce__(self):  # for worker processes that are spawned
        return Cache, (self.path, self.index)

    def __getitem__(self, i):
        *full, height, width, crc = self.index[i].tolist()
        size = height * width * 3
        pixels = os.pread(self.file.fileno(), size, int(self.starts[i]))  # forked processes share the file's position
        if len(pixels) != size or i not in self.checked and zlib.crc32(pixels) != crc:
            raise BrokenImage(f"--cache: {self.path} is damaged or cut off (image {i}); delete it, and it is made anew")
        self.checked.add(i)
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3), tuple(full)


def open_or_build(opt, paths, shorter):
    """The Cache of `paths` in the folder --cache, their shorter sides at most `shorter` pixels. It is made where it is
    not there, not whole, or a file's size or time has changed; former ones are deleted."""
    state = hashlib.blake2b(f"{CACHE_FORMAT}\n".encode(), digest_size=8)
    for path in paths:
        stat = os.stat(path) if os.path.exists(path) else None  # a link may lead nowhere
        facts = f"{stat.st_size} {stat.st_mtime_ns}" if stat else ""
        state.update(os.fsencode(f"{os.path.relpath(path, opt.source_path)}\0{facts}\n"))
    place = hashlib.blake2b(os.fsencode(f"{shorter} {os.path.abspath(opt.source_path)}"), digest_size=4).hexdigest()
    prefix = os.path.join(opt.cache, f"{opt.dataset}-{place}-")
    path = f"{prefix}{state.hexdigest()}.u8"
    if index_of(path, len(paths)) is None:
        remove_unfinished(opt.cache, DAY)  # younger ones may be another run's, at work now
        write_whole(path, functools.partial(write_cache, paths, shorter, opt.kernels), "wb")
    for old in set(glob.glob(glob.escape(prefix) + "*")) - {path}:
        with contextlib.suppress(OSError):  # another run may have been faster
            os.unlink(old)
    return Cache(path, index_of(path, len(paths)))


def index_of(path, n):
    """The index (n, 5) of a cache of n images; None where the file is not there or not whole."""
    size, end = os.path.getsize(path) if os.path.isfile(path) else 0, 8 * (5 * n + 1)
    if size < end:
        return None
    numbers = np.fromfile(path, np.int64, offset=size - end)
    index, crc = numbers[:-1].reshape(n, 5), numbers[-1]
    return index if crc == zlib.crc32(index) and size - end == 3 * (index[:, 2] * index[:, 3]).sum() else None


def write_cache(paths, shorter, workers, file):
    """The pixels of all images, the index, the index's CRC."""
    index = []
    for pixels, full in in_parallel(functools.partial(shrunk, shorter), paths, workers, "--cache"):
        file.write(pixels)
        index.append([*full, *pixels.shape[:2], zlib.crc32(pixels)])
    index = np.array(index, np.int64)
    file.write(index)
    file.write(np.int64(zlib.crc32(index)).tobytes())


def shrunk(shorter, path):
    """(pixels (h, w, 3), (height, width) in the file) of an image, its shorter side at most `shorter`; 0 if broken."""
    pixels, problem = attempt(path)
    if problem:
        return np.empty((0, 0, 3), np.uint8), (0, 0)
    height, width = pixels.shape[:2]
    factor = shorter / min(height, width)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    return np.ascontiguousarray(pixels), (height, width)  # no tensor: its thread in the worker complains of a Ctrl-C


def fetch(paths, cache, training, evaluation, indices, seeds):
    """What a Split asks for images: indices into `paths` → uint8 images, from the cache where it has them. Each is
    augmented by its own seed alone: the number of worker processes changes nothing."""
    images, view = [], evaluation if seeds is None else training
    with torch.random.fork_rng(devices=[], enabled=seeds is not None):
        for number, i in enumerate(indices):
            if seeds:
                torch.default_generator.manual_seed(seeds[number])  # what torchvision's transforms draw from
            cached = cache and cache.index[i, 2]  # its height, 0 if the file is broken
            images.append(view(*cache[i]) if cached else view(read(paths[i], ADVICE)))
    return images


def load(opt, size, module):
    """The splits of a data set of image files: module.rows(source_path) → {split: [(class, class name, path), ...]} for
    train and test, or train, query and gallery, checked against module.COUNTS = {split: (classes, images)} if any."""
    rows, partial = on_disk(module, opt.source_path)
    if partial and not opt.allow_partial:
        raise ValueError(f"--source_path {opt.source_path}: {partial}; unpack the archive again, or --allow_partial")
    paths = [path for part in rows.values() for *_, path in part]
    cache = open_or_build(opt, paths, round(CACHED * size)) if opt.cache else None
    views, skipped = (transforms.training(opt.augmentation, size), transforms.evaluation(size)), {}
    fetch_keys = functools.partial(fetch, paths, cache, *views)
    if opt.skip_broken:
        suspects = np.flatnonzero(cache.index[:, 2] == 0) if cache else range(len(paths))
        skipped = broken([paths[i] for i in suspects], opt.kernels, "--skip_broken: checking")
        first = f"; the first: {min(skipped.values())}" if skipped else ""
        print_once(f"--skip_broken: {len(skipped)} of {len(paths)} images left out{first}")
    names = {c: class_name for part in rows.values() for c, class_name, _ in part}
    tested = {c for name in ("query", "gallery") for c, *_ in rows.get(name, ())}  # they number their classes alike
    splits, numbers = {}, iter(range(len(paths)))
    for name, part in rows.items():
        kept = [(i, c, path) for (c, _, path), i in zip(part, numbers) if path not in skipped]
        keys, classes, kept_paths = zip(*kept) if kept else ((), (), ())
        numbering = tested if name in ("query", "gallery") else None
        splits[name] = Split(fetch_keys, keys, classes, names, kept_paths, name == "train", numbering)
    return Splits(**splits, partial=partial, skipped=tuple(skipped))
