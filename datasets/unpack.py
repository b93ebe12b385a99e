"""Unpacking an archive from somewhere: all of it is read, checksums included, before the first byte is written."""

import bz2
import contextlib
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from functools import partial

from tqdm import tqdm

RATIO, SLACK = (
    20,
    64 << 20,
)  # an archive may unpack to 20 times its size and 64 MiB: photographs hardly shrink, lists of text do
BLOCK = 1 << 20
HEADER = 16 << 20  # what tarfile may read at once: long names and the like are read whole
ENTRIES = 2_000_000
OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    NotImplementedError,
)
LITTER = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX(/.*)?)$")  # what macOS puts into archives


class BadArchive(ValueError):
    """One line that names the archive and what is wrong with it."""


class Guarded:
    """What tarfile reads a decompressed stream through: at most HEADER bytes at once, and nothing beyond `limit`."""

    def __init__(self, stream, limit, path):
        self.stream, self.limit, self.path, self.last = stream, limit, path, b""
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, n):
        if n > HEADER:
            raise BadArchive(f"{self.path}: has a header of {n:,} bytes; refused")
        self.last = self.stream.read(n)
        if self.tell() > self.limit:
            raise BadArchive(f"{self.path}: unpacks to more than {self.limit:,} bytes, {RATIO} times its size; refused")
        return self.last


def entries(path, limit):
    """(name, unpacked size, kind, () → file) of each entry; kind is "file", "folder" or what is refused.

    A tar (plain, gz, bz2, xz) is read to the end of its stream, where gzip keeps its checksum; a plain tar has none.
    """
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK":
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = (
                    "folder"
                    if info.is_dir()
                    else "encrypted file"
                    if info.flag_bits & 1
                    else "link"
                    if stat.S_ISLNK(info.external_attr >> 16)
                    else "file"
                )
                yield info.orig_filename, info.file_size, kind, partial(archive.open, info)
        return
    with OPENERS.get(start, open)(path, "rb") as stream:
        guarded = Guarded(stream, limit, path)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:
            for info in archive:
                kind = (
                    "folder"
                    if info.isdir()
                    else "sparse file"
                    if info.issparse()
                    else "file"
                    if info.isreg()
                    else "link"
                    if info.issym() or info.islnk()
                    else "device"
                )
                yield info.name, info.size, kind, partial(archive.extractfile, info)
        if any(guarded.last):  # tarfile takes whatever is no header for the end
            raise tarfile.ReadError("a header's checksum is wrong")
        while guarded.read(BLOCK):
            pass


def checked_name(path, name):
    """The name with forward slashes, without a leading ./; BadArchive if it would leave the folder."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in parts or "\0" in plain:
        raise BadArchive(f"{path}: has the entry {name!r}, which would leave the folder; refused")
    return "/".join(parts)


def placed(name, places):
    """Where an entry goes: places = {start of a name ending in /, or a file's own name: place}; None for what is not wanted."""
    for start, place in places.items():
        if start.endswith("/") and name.startswith(start):
            return place + name[len(start) :]
        if not start.endswith("/") and name.split("/")[-1] == start:
            return place
    return None


def all_files(path, places, doing):
    """(number, place, size, () → file) of the archive's files in order; place is None for what `places` does not want.

    Raises BadArchive for links, devices, encrypted files, names that leave the folder, and too much content.
    """
    total, limit = 0, RATIO * os.path.getsize(path) + SLACK
    title = f"{os.path.basename(path)}: {doing}"
    bar = tqdm(entries(path, limit), desc=title, unit=" files", leave=False, disable=None)
    for number, (name, size, kind, opener) in enumerate(bar):
        plain = checked_name(path, name)
        if kind not in ("file", "folder"):
            raise BadArchive(f"{path}: has the {kind} {name!r}; only files and folders are unpacked; refused")
        total += size
        if total > limit or number >= ENTRIES:
            raise BadArchive(
                f"{path}: unpacks to more than {limit:,} bytes, {RATIO} times its size, "
                f"or to more than {ENTRIES:,} files; refused"
            )
        if kind == "file":
            place = None if LITTER.search(plain) else placed(plain, places)
            yield number, place, size, opener


def unpack(path, folder, places):
    """Unpack what `places` wants of an archive into `folder`; how many files of it are there now.

    The whole archive is read and judged first; of entries with one name the last wins. A file is written beside its
    place and then named, so that one which has its name is whole, and is not written again by a second call. Raises
    BadArchive, one line; OSError where the disk fails.
    """
    last = {}  # place → number of its entry
    try:
        for number, place, size, opener in all_files(path, places, "reading"):
            with opener() as source:
                if sum(len(block) for block in iter(partial(source.read, BLOCK), b"")) != size:
                    raise EOFError(f"file {number + 1} ends early")
            if place is not None:
                last[place] = number
        if not last:
            raise BadArchive(f"{path}: has nothing of {', '.join(places)}; is it the right archive?")
        for number, place, size, opener in all_files(path, places, "unpacking"):
            if last.get(place) != number:
                continue
            target = inside(folder, place)
            if not (os.path.isfile(target) and os.path.getsize(target) == size):
                with opener() as source:
                    write(source, target)
    except (*DAMAGED, OSError) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:  # the disk's; bz2 and gzip give theirs no number
            raise
        raise BadArchive(
            f"{path}: damaged or not whole, or no tar or zip archive ({problem}); download it again"
        ) from problem
    return len(last)


def inside(folder, place):
    """The path of `place` in `folder`; ValueError, one line, where a link leads out of it."""
    target, root = os.path.join(folder, *place.split("/")), os.path.realpath(folder)
    if os.path.commonpath([root, os.path.realpath(target)]) != root:
        raise ValueError(f"{target}: leads out of {folder} through a link; refused")
    return target


def write(source, target):
    """Copy an open file to the path `target`, which appears only when it is whole."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    unfinished = target + ".unfinished"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(unfinished)  # of a process that was killed, or planted
    try:
        with open(unfinished, "xb") as file:  # x: a new file, never one that a link leads to
            shutil.copyfileobj(source, file, BLOCK)
        os.replace(unfinished, target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
