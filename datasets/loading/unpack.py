"""Unpacking an archive from somewhere: all of it is read, checksums included, before the first byte is written."""

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
from functools import partial

from tqdm import tqdm

RATIO, SLACK = (
    20,
    64 << 20,
)  # it may unpack to 20 times its size and 64 MiB: photographs hardly shrink, lists of text do
BLOCK = 1 << 20
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


def below(limit, size):
    if size > limit:
        raise BadArchive(f"unpacks to more than {limit:,} bytes, {RATIO} times its size; refused")


@contextlib.contextmanager
def opened(path, limit):
    """The ZipFile or TarFile; a tar's stream has been read to its end, where gzip keeps its checksum."""
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK":
        with zipfile.ZipFile(path) as archive:
            yield archive
        return
    with OPENERS.get(start, open)(path, "rb") as stream:
        blocks, title = iter(partial(stream.read, BLOCK), b""), f"{os.path.basename(path)}: reading"
        for _ in tqdm(blocks, title, unit=" MiB", leave=False, disable=None):
            below(limit, stream.tell())
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            yield archive


def tar_entries(archive):
    """[(TarInfo, () → open file), ...] of a TarFile."""
    entries = [(info, partial(archive.extractfile, info)) for info in archive]
    archive.fileobj.seek(archive.offset)
    if any(archive.fileobj.read(512)):  # tarfile takes whatever is no header for the end
        raise tarfile.ReadError("a header's checksum is wrong")
    return entries


def zip_entries(archive):
    """The same of a ZipFile."""
    entries, end = [], zipfile._EndRecData(archive.fp)
    if len(archive.infolist()) != end[zipfile._ECD_ENTRIES_TOTAL]:  # which zipfile does not compare
        raise zipfile.BadZipFile("its directory lists fewer files than it should")
    for file in archive.infolist():
        if file.flag_bits & 1:
            raise BadArchive(f"has the encrypted file {file.filename!r}; refused")
        info, link = tarfile.TarInfo(file.orig_filename), stat.S_ISLNK(file.external_attr >> 16)
        info.size, info.type = file.file_size, tarfile.SYMTYPE if link else tarfile.REGTYPE
        if not file.is_dir():
            entries.append((info, partial(archive.open, file)))
    return entries


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


def wanted(archive, folder, places, limit):
    """{target path: (size, () → open file)} of what `places` wants; all else is judged too. A name's last wins."""
    total, files = 0, {}
    is_zip = isinstance(archive, zipfile.ZipFile)
    for info, opener in zip_entries(archive) if is_zip else tar_entries(archive):
        name = posixpath.normpath(info.name.replace("\\", "/"))
        if name.startswith("/") or name[1:2] == ":":
            raise BadArchive(f"entry {info.name!r} is outside the destination; refused")
        place = None if LITTER.search(name) else placed(name, places)
        info.name = place or name
        target, total = inside(folder, info), total + info.size
        below(limit, total)
        if place and info.isreg():
            files.pop(target, None)  # so that files stay in the archive's order
            files[target] = info.size, opener
    if is_zip and archive.testzip():
        raise zipfile.BadZipFile(f"{archive.testzip()}: its checksum is wrong")
    if not files:
        raise BadArchive(f"has nothing of {', '.join(places)}; is it the right archive?")
    return files


def unpack(path, folder, places):
    """Unpack what `places` wants of an archive into `folder`; how many files of it are there now.

    A file is written elsewhere and then moved to its place, so that one in its place is whole, and is not written again
    by a second call. Raises BadArchive, one line; OSError where the disk fails.
    """
    limit = RATIO * os.path.getsize(path) + SLACK
    try:
        with opened(path, limit) as archive:
            files = wanted(archive, folder, places, limit)
            os.makedirs(folder, exist_ok=True)
            # not write_whole, which flushes each file to the disk: 5 ms, 10 minutes for Stanford Online Products
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as elsewhere:
                title = f"{os.path.basename(path)}: unpacking"
                for target, (size, opener) in tqdm(files.items(), title, unit=" files", leave=False, disable=None):
                    if not (os.path.isfile(target) and os.path.getsize(target) == size):
                        with opener() as source, open(os.path.join(elsewhere, "unfinished"), "wb") as file:
                            shutil.copyfileobj(source, file, BLOCK)
                        os.makedirs(os.path.dirname(target), exist_ok=True)
                        os.replace(file.name, target)
    except (BadArchive, *DAMAGED, OSError) as problem:
        if isinstance(problem, BadArchive):
            raise BadArchive(f"{path}: {problem}") from problem
        if isinstance(problem, OSError) and problem.errno is not None:  # the disk's; bz2 and gzip give theirs no number
            raise
        reason = f"damaged or not whole, or no tar or zip archive ({problem}); download it again"
        raise BadArchive(f"{path}: {reason}") from problem
    return len(files)
