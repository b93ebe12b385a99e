"""Decoded images in one file, made once and thrown away when a source file changes. What is read from it is checked."""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import zlib

import numpy as np

from datasets.loading.decode import BrokenImage, Reader, in_parallel
from utilities.files import DAY, remove_unfinished, write_whole

FORMAT = 2  # to be raised when what is written changes


class DamagedCache(BrokenImage):
    """One line that names --cache and its file, which holds something else than was written."""

    advice = ""  # the line has its own


class Cache:
    """Decoded images by index: cache[i] → (uint8 pixels (h, w, 3), (height, width) of the file's image).

    An image's checksum is compared where a process reads it for the first time. Reads, not a memory map: a file that is
    cut off under a map ends the process with SIGBUS. Raises BrokenImage (what was not decoded), DamagedCache.
    """

    def __init__(self, data, index):
        self.data, self.sums = data, index["sums"]
        self.shapes, self.full = np.array(index["shapes"]), np.array(index["full"])
        self.starts = np.concatenate([[0], np.cumsum(self.shapes.prod(1) * 3)]).tolist()
        self.broken = {int(i): line for i, line in index["broken"].items()}
        self.file, self.checked = open(data, "rb", buffering=0), set()

    def __getstate__(self):
        return {**self.__dict__, "file": None, "checked": set()}  # a spawned process opens it anew

    def __getitem__(self, i):
        if i in self.broken:
            raise BrokenImage(self.broken[i])
        start, size = self.starts[i], self.starts[i + 1] - self.starts[i]
        named = f"--cache {os.path.dirname(self.data)}: {self.data}"
        try:
            self.file = self.file or open(self.data, "rb", buffering=0)
            pixels = os.pread(self.file.fileno(), size, start)  # needs no position, which forked processes share
        except OSError as problem:
            raise DamagedCache(f"{named} cannot be read ({problem.strerror})") from problem
        if len(pixels) != size or i not in self.checked and zlib.crc32(pixels) != self.sums[i]:
            raise DamagedCache(f"{named} is damaged or cut off (image {i}); delete it, and the next run makes it anew")
        self.checked.add(i)
        return np.frombuffer(pixels, np.uint8).reshape(*self.shapes[i], 3), tuple(self.full[i].tolist())


def file_state(path):
    """What tells whether a source file has changed: its size and time; a link to nowhere has neither."""
    try:
        stat = os.stat(path)
    except OSError:
        return "not there"
    return f"{stat.st_size}\0{stat.st_mtime_ns}"


def open_or_build(folder, name, source, paths, shorter, workers, skip_broken=False):
    """The Cache of the files `paths` in `folder`, built if it is not there or a file's size or time has changed.

    Images are kept with a shorter side of at most `shorter` pixels. Former states of the same data set are deleted.
    Raises ValueError, one line, if the folder cannot be written or has no room, and BrokenImage for a file that cannot
    be decoded unless skip_broken.
    """
    state = hashlib.blake2b(f"{FORMAT}\n".encode(), digest_size=8)
    for path in paths:
        state.update(f"{os.path.relpath(path, source)}\0{file_state(path)}\n".encode(errors="surrogateescape"))
    origin = f"{shorter} {os.path.abspath(source)}".encode(errors="surrogateescape")
    origin = hashlib.blake2b(origin, digest_size=4).hexdigest()
    base = os.path.join(folder, f"{name}-{origin}-")
    data, index = f"{base}{state.hexdigest()}.u8", f"{base}{state.hexdigest()}.json"
    cache = opened(data, index)
    if cache is None:
        try:
            remove_unfinished(folder, DAY)  # younger ones may be another run's, at work now
            build(folder, data, index, name, paths, shorter, workers, skip_broken)
        except OSError as problem:
            raise ValueError(f"--cache {folder}: cannot be written ({problem.strerror or problem})") from problem
        cache = opened(data, index)
    for old in set(glob.glob(glob.escape(base) + "*")) - {data, index}:
        with contextlib.suppress(OSError):  # another run may have been faster
            os.unlink(old)
    if cache.broken and not skip_broken:
        raise BrokenImage(next(iter(cache.broken.values())))
    return cache


def opened(data, index):
    """The Cache, or None where it is not there, not whole, or its index is not what was written."""
    try:
        with open(index, encoding="utf-8") as file:
            digest, text = file.read().split("\n")
        cache = Cache(data, json.loads(text)) if digest == digest_of(text) else None
        return cache if cache and os.path.getsize(data) == cache.starts[-1] else None
    except (OSError, ValueError):
        return None


def digest_of(text):
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def build(folder, data, index, name, paths, shorter, workers, skip_broken):
    facts = {"shapes": [], "full": [], "sums": [], "broken": {}}
    empty = np.empty((0, 0, 3), np.uint8), (0, 0)

    def write(file):
        for i, item in enumerate(in_parallel(Reader(paths, shorter), workers, f"--cache: {name}")):
            if isinstance(item, str):
                if not skip_broken:
                    raise BrokenImage(item)
                facts["broken"][i] = item
            pixels, full = empty if isinstance(item, str) else item
            pixels = np.ascontiguousarray(pixels)
            facts["shapes"].append(list(pixels.shape[:2]))
            facts["full"].append(list(full))
            facts["sums"].append(zlib.crc32(pixels))
            file.write(memoryview(pixels))
            if i == 99:  # enough to estimate the size of the whole
                written, room = file.tell(), shutil.disk_usage(folder).free
                whole = written * len(paths) / 100
                if whole - written > room:
                    raise OSError(28, f"about {whole / 1e9:.1f} GB are needed, {room / 1e9:.1f} GB are free")

    write_whole(data, write, "wb")
    text = json.dumps(facts)
    write_whole(index, lambda file: file.write(f"{digest_of(text)}\n{text}"))  # last: with it the cache is whole
