"""Unpacking an archive from somewhere: its files get their names when all of it was read, checksums included."""

import bz2
import contextlib
import gzip
import lzma
import os
import posixpath
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib

from tqdm import tqdm

# it may unpack to 20 times its size and 64 MiB: photographs hardly shrink, lists of text do
RATIO, SLACK = 20, 64 << 20
TOO_LARGE = f"unpacks to more than {RATIO} times its size; refused"
BLOCK = 1 << 20
OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, struct.error,
           NotImplementedError)  # fmt: skip
LITTER = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX(/.*)?)$")  # what macOS puts into archives


class BadArchive(ValueError):
    """One line that names the archive and what is wrong with it."""


class Limited:
    """A file of which at most `left` bytes are read; more are a BadArchive."""

    def __init__(self, file, left):
        self.file, self.left = file, left

    def read(self, size):
        data = self.file.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise BadArchive(TOO_LARGE)
        return data


def entries(path):
    """(TarInfo, its open file) of all files of a tar or zip; an error at the end where a checksum is wrong."""
    with open(path, "rb") as file:
        start, limit = file.read(2), RATIO * os.path.getsize(path) + SLACK
    if start == b"PK":
        with zipfile.ZipFile(path) as archive:
            if sum(file.file_size for file in archive.infolist()) > limit:
                raise BadArchive(TOO_LARGE)
            for file in archive.infolist():
                if file.flag_bits & 1:
                    raise BadArchive(f"has the encrypted file {file.filename!r}; refused")
                info, link = tarfile.TarInfo(file.orig_filename), stat.S_ISLNK(file.external_attr >> 16)
                info.type = tarfile.SYMTYPE if link else tarfile.REGTYPE
                if not file.is_dir():
                    yield info, archive.open(file)
        return
    with OPENERS.get(start, open)(path, "rb") as stream:
        with tarfile.open(fileobj=Limited(stream, limit), mode="r|") as archive:
            for info in archive:
                yield info, archive.extractfile(info) if info.isreg() else None
            rest = iter(lambda: archive.fileobj.read(BLOCK), b"")  # to the end, where gzip has its checksum
            if any(map(any, rest)):
                raise tarfile.ReadError("a header's checksum is wrong")  # tarfile takes it for the end


def inside(folder, info):
    """The path of a TarInfo in `folder`. Raises BadArchive for links, devices, and what leads out of the folder."""
    if not hasattr(tarfile, "data_filter"):
        raise BadArchive("unpacking needs Python 3.10.12, 3.11.4 or later, which check names")
    if info.issym() or info.islnk():
        raise BadArchive(f"has the link {info.name!r}; refused")
    try:
        return os.path.join(folder, tarfile.data_filter(info, folder).name)
    except (tarfile.FilterError, ValueError) as problem:  # the latter for a NUL in the name
        raise BadArchive(f"entry {problem}; refused") from problem


def placed(name, places):
    """Where an entry goes: places = {start of a name ending in /, or a file's own name: place}; None if nowhere."""
    for start, place in places.items():
        if name.startswith(start) and start.endswith("/"):
            return place + name[len(start) :]
        if name.split("/")[-1] == start:
            return place
    return None


def target_of(info, folder, places):
    """The path of an entry in `folder`, None where `places` does not want it. Every name is judged, wanted or not."""
    name = posixpath.normpath(info.name.replace("\\", "/"))
    if name.startswith("/") or name[1:2] == ":":
        raise BadArchive(f"entry {info.name!r} is outside the destination; refused")
    place = None if LITTER.search(name) else placed(name, places)
    info.name = place or name
    target = inside(folder, info)
    return target if place and info.isreg() else None


def unpack(path, folder, places):
    """Unpack what `places` wants of an archive into `folder`; how many files of it are there now.

    All is written elsewhere in the folder, and moved to its place when the archive was read to its end; a file that is
    there with the same size stays. Raises BadArchive, one line; OSError where the disk fails.
    """
    new = not os.path.isdir(folder)
    os.makedirs(folder, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as elsewhere:
            written, title = {}, f"{os.path.basename(path)}: unpacking"
            for info, source in tqdm(entries(path), title, unit=" files", leave=False, disable=None):
                target = target_of(info, folder, places)
                if source:  # what is not wanted is read too: its checksum tells of the archive
                    copy = (
                        written.setdefault(target, os.path.join(elsewhere, str(len(written)))) if target else os.devnull
                    )
                    with source, open(copy, "wb") as file:
                        shutil.copyfileobj(source, file, BLOCK)
            if not written:
                raise BadArchive(f"has nothing of {', '.join(places)}; is it the right archive?")
            for target, copy in written.items():
                if not (os.path.isfile(target) and os.path.getsize(target) == os.path.getsize(copy)):
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    os.replace(copy, target)
    except (BadArchive, *DAMAGED, OSError) as problem:
        if isinstance(problem, BadArchive):
            raise BadArchive(f"{path}: {problem}") from problem
        if isinstance(problem, OSError) and problem.errno is not None:  # the disk's; bz2 and gzip give theirs no number
            raise
        reason = f"damaged or not whole, or no tar or zip archive ({problem}); download it again"
        raise BadArchive(f"{path}: {reason}") from problem
    finally:
        if new:
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # where nothing came of it
    return len(written)
