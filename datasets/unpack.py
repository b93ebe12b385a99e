"""Unpacking an archive from somewhere: everything in it is looked at before the first byte is written."""

import bz2
import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from typing import NamedTuple

from tqdm import tqdm

RATIO, SLACK = 20, 64 << 20  # an archive may unpack to 20 times its size and 64 MiB: photographs hardly shrink, lists of text do
BLOCK = 1 << 20
HEADER = 16 << 20  # what tarfile may read at once: long names and the like are read whole
ENTRIES = 2_000_000
OPENERS = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, NotImplementedError)
LITTER = re.compile(r"(^|/)(\._[^/]*|\.DS_Store|__MACOSX(/.*)?)$")  # what macOS puts into archives


class Member(NamedTuple):
    name: str
    size: int  # bytes when unpacked
    open: object  # () → file


class BadArchive(ValueError):
    """One line that names the archive and what is wrong with it."""


class Guarded:
    """A decompressed stream of which nobody reads more than HEADER bytes at once, nor beyond `limit`."""

    def __init__(self, stream, limit, path):
        self.stream, self.limit, self.path = stream, limit, path

    def read(self, n=-1):
        if n < 0 or n > HEADER:
            raise BadArchive(f"{self.path}: has a header of {n:,} bytes; refused")
        return self.stream.read(n)

    def tell(self):
        return self.stream.tell()

    def seek(self, position, whence=0):
        if whence or position > self.limit:
            raise BadArchive(f"{self.path}: unpacks to more than {self.limit:,} bytes, {RATIO} times its size; refused")
        return self.stream.seek(position)

    def close(self):
        self.stream.close()


def limit_of(path):
    return RATIO * os.path.getsize(path) + SLACK


def checked_name(path, name):
    """The name with forward slashes, without a leading ./; BadArchive if it would leave the folder."""
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain) or ".." in parts or "\0" in plain:
        raise BadArchive(f"{path}: has the entry {name!r}, which would leave the folder; refused")
    return "/".join(parts)


class Archive:
    """A tar (plain, gz, bz2, xz) or zip archive; `members` are its files in order. A context manager.

    Raises BadArchive, one line, for links, devices, encrypted files, names that leave the folder, more than 20 times the archive's
    size (and 64 MiB) of content, and for what is no archive or is damaged.
    """

    def __init__(self, path):
        self.path = path
        self.zip = zipfile.is_zipfile(path)
        try:
            self.file = zipfile.ZipFile(path) if self.zip else self.open_tar()
        except (*DAMAGED, OSError, ValueError) as problem:
            if isinstance(problem, (FileNotFoundError, PermissionError, BadArchive)):
                raise
            raise BadArchive(f"{path}: not a tar or zip archive, or a damaged one ({problem})") from problem

    def open_tar(self):
        with open(self.path, "rb") as file:
            start = file.read(2)
        self.stream = Guarded(OPENERS.get(start, open)(self.path, "rb"), limit_of(self.path), self.path)
        return tarfile.open(fileobj=self.stream, mode="r:")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()
        if not self.zip:
            self.stream.close()

    def entries(self):
        """(name, unpacked size, kind, function that opens it) of each entry; kind is 'file', 'folder' or what is refused."""
        if self.zip:
            for info in self.file.infolist():
                mode = info.external_attr >> 16
                kind = "folder" if info.is_dir() else "encrypted file" if info.flag_bits & 1 else "link" if stat.S_ISLNK(mode) else "file"
                yield info.orig_filename if "\0" in info.orig_filename else info.filename, info.file_size, kind, lambda info=info: self.file.open(info)
            return
        for info in self.file:
            kind = ("folder" if info.isdir() else "sparse file" if info.issparse() else "file" if info.isreg()
                    else "link" if info.issym() or info.islnk() else "device")
            yield info.name, info.size, kind, lambda info=info: self.file.extractfile(info)

    def members(self):
        """Its files as Members, one after the other as they are found; everything is refused that should be."""
        total, limit = 0, limit_of(self.path)
        try:
            for count, (name, size, kind, opener) in enumerate(self.entries()):
                plain = checked_name(self.path, name)
                if kind not in ("file", "folder"):
                    raise BadArchive(f"{self.path}: has the {kind} {name!r}; only files and folders are unpacked; refused")
                total += size
                if total > limit or count >= ENTRIES:
                    raise BadArchive(f"{self.path}: unpacks to more than {limit:,} bytes, {RATIO} times its size, or to more than {ENTRIES:,} files; refused")
                if kind == "file" and plain and not LITTER.search(plain):
                    yield Member(plain, size, opener)
        except (*DAMAGED, OSError) as problem:
            raise BadArchive(f"{self.path}: damaged or not whole ({problem}); download it again") from problem


def placed(name, places):
    """Where an entry goes: places = {start of a name ending in /, or a file's own name: place}; None for what is not wanted."""
    for start, place in places.items():
        if start.endswith("/") and name.startswith(start):
            return place + name[len(start):]
        if not start.endswith("/") and name.split("/")[-1] == start:
            return place
    return None


def unpack(path, folder, places):
    """Unpack what `places` wants of an archive into `folder`, under progress bars; how many files are there now.

    The whole archive is read and judged first. A file is written beside its place and then named, so that one which has its name is
    whole, and is not written again by a second call. Raises BadArchive, one line.
    """
    with Archive(path) as archive:
        members = tqdm(archive.members(), desc=f"{os.path.basename(path)}: reading", unit=" files", leave=False, disable=None)
        wanted = {}  # place → size; the last of entries that have one name
        for member in members:
            place = placed(member.name, places)
            if place is not None:
                wanted[place] = member.size
    if not wanted:
        raise BadArchive(f"{path}: has nothing of {', '.join(places)}; is it the right archive?")
    root = os.path.realpath(folder)
    with Archive(path) as archive, tqdm(total=sum(wanted.values()), desc=f"{os.path.basename(path)}: unpacking", unit="B", unit_scale=True,
                                        leave=False, disable=None) as bar:
        for member in archive.members():
            place = placed(member.name, places)
            if place is not None and member.size == wanted[place]:
                target = os.path.join(folder, *place.split("/"))
                if os.path.commonpath([root, os.path.realpath(target)]) != root:
                    raise BadArchive(f"{path}: {target} leads out of {folder} through a link; refused")
                if not (os.path.isfile(target) and os.path.getsize(target) == member.size):
                    write(path, member, target)
                bar.update(member.size)
    return len(wanted)


def write(path, member, target):
    os.makedirs(os.path.dirname(target), exist_ok=True)
    unfinished = target + ".unfinished"
    try:
        with member.open() as source, open(unfinished, "wb") as file:
            left = member.size
            while block := source.read(min(BLOCK, left + 1)):
                left -= len(block)
                if left < 0:
                    raise BadArchive(f"{path}: {member.name!r} is larger than the archive says; refused")
                file.write(block)
        if left:
            raise BadArchive(f"{path}: damaged or not whole, {member.name!r} ends early; download it again")
        os.replace(unfinished, target)
    except DAMAGED as problem:
        raise BadArchive(f"{path}: damaged or not whole, {member.name!r} ({problem}); download it again") from problem
    finally:
        if os.path.lexists(unfinished):
            os.unlink(unfinished)
