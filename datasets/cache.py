"""Decoded images in one memory-mapped file, made once and thrown away when a source file changes."""

import glob
import hashlib
import json
import os
import shutil
import tempfile

import numpy as np

from datasets.images import BrokenImage, Reader, in_parallel

FORMAT = 1  # to be raised when what is written changes


class Cache:
    """Decoded images by index: cache[i] → (uint8 pixels (h, w, 3), (height, width) of the file's image). Workers map the file themselves."""

    def __init__(self, data, index):
        self.data, self.shapes, self.full = data, np.array(index["shapes"]), np.array(index["full"])
        self.starts = np.concatenate([[0], np.cumsum(self.shapes.prod(1) * 3)])
        self.broken = {int(i): line for i, line in index["broken"].items()}
        self.map = None

    def __getstate__(self):
        return {**self.__dict__, "map": None}  # a pickled memory map would be a copy of it

    def __getitem__(self, i):
        if i in self.broken:
            raise BrokenImage(self.broken[i])
        if self.map is None:
            self.map = np.memmap(self.data, dtype=np.uint8, mode="r")
        return self.map[self.starts[i] : self.starts[i + 1]].reshape(*self.shapes[i], 3), tuple(self.full[i].tolist())


def open_or_build(folder, name, source, paths, shorter, workers, skip_broken=False):
    """The Cache of the files `paths` in `folder`, built if it is not there or a file's size or time has changed.

    Images are kept with a shorter side of at most `shorter` pixels. Former states of the same data set are deleted. Raises ValueError,
    one line, if the folder cannot be written or has no room, and BrokenImage for a file that cannot be decoded unless skip_broken.
    """
    stats = [os.stat(path) for path in paths]
    state = hashlib.blake2b(digest_size=8)
    for path, stat in zip(paths, stats):
        state.update(f"{os.path.relpath(path, source)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    origin = hashlib.blake2b(f"{FORMAT} {shorter} {os.path.abspath(source)}".encode(errors="surrogateescape"), digest_size=4).hexdigest()
    base = os.path.join(folder, f"{name}-{origin}-")
    data, index = f"{base}{state.hexdigest()}.u8", f"{base}{state.hexdigest()}.json"
    cache = opened(data, index)
    if cache is None:
        try:
            os.makedirs(folder, exist_ok=True)
            build(folder, data, index, name, paths, shorter, workers, skip_broken)
        except OSError as problem:
            raise ValueError(f"--cache {folder}: cannot be written ({problem.strerror or problem})") from problem
        cache = opened(data, index)
    for old in set(glob.glob(glob.escape(base) + "*")) - {data, index}:
        os.unlink(old)
    if cache.broken and not skip_broken:
        raise BrokenImage(next(iter(cache.broken.values())))
    return cache


def opened(data, index):
    """The Cache, or None where it is not there or not whole."""
    try:
        with open(index, encoding="utf-8") as file:
            cache = Cache(data, json.load(file))
        return cache if os.path.getsize(data) == cache.starts[-1] else None
    except (OSError, ValueError, KeyError):
        return None


def build(folder, data, index, name, paths, shorter, workers, skip_broken):
    shapes, full, broken, written = [], [], {}, 0
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".building-")
    try:
        with os.fdopen(handle, "wb") as file:
            for i, item in enumerate(in_parallel(Reader(paths, shorter), workers, f"--cache: {name}")):
                if isinstance(item, str):
                    if not skip_broken:
                        raise BrokenImage(item)
                    broken[i], item = item, None
                pixels, size = item or (np.empty((0, 0, 3), np.uint8), (0, 0))
                shapes.append(list(pixels.shape[:2]))
                full.append(list(size))
                written += pixels.nbytes
                file.write(memoryview(np.ascontiguousarray(pixels)))
                if i == 99:  # enough to tell the size of the whole
                    whole, room = written * len(paths) / 100, shutil.disk_usage(folder).free
                    if whole - written > room:
                        raise OSError(28, f"about {whole / 1e9:.1f} GB are needed, {room / 1e9:.1f} GB are free")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, data)
    except BaseException:
        os.unlink(temporary)
        raise
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".building-")
    with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:  # last: with it the cache is whole
        json.dump({"shapes": shapes, "full": full, "broken": broken}, file)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, index)
