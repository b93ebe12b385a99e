"""Unpack and check a data set:

    python -m datasets.prepare cub200 --archive CUB_200_2011.tgz --source_path DIR [--verify]

An archive is unpacked into a hidden folder of DIR, and its files get their places when all of it was read. Without one,
npm fetches emoji if DIR/emoji is not there. Then classes and images are counted; --verify decodes every image and lists
the broken ones. Exit status: 0 all is well, 1 broken images, 2 partial data or bad input.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from argparse import RawDescriptionHelpFormatter

from tqdm import tqdm

from datasets import DATASETS, images
from datasets.layout import on_disk
from utilities.command_line import OneLineParser, line_of, one_line_errors

MODULES = {name: entry.module for name, entry in DATASETS.items() if entry.module}


def extract(path, folder):
    """All of a tar or zip, whose checksums are compared, into `folder`; a file that is neither is copied there."""
    how = dict(desc=f"{os.path.basename(path)}: unpacking", unit=" files", leave=False, disable=None)
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as archive:
            archive.extractall(folder, tqdm(archive, **how), filter="data")
            while archive.fileobj.read(1 << 20):  # to the end, where gzip has its checksum
                pass
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder, tqdm(archive.namelist(), **how))
    else:
        shutil.copy(path, folder)


@contextlib.contextmanager
def hidden_folder(source_path):
    """In source_path, which goes too if it was made for it and has nothing else."""
    is_new = not os.path.isdir(source_path)
    os.makedirs(source_path, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=source_path, prefix=".unpacking-") as folder:
            yield folder
    finally:
        if is_new and not os.listdir(source_path):
            os.rmdir(source_path)


def unpack(path, source_path, module):
    """Put what module.UNPACK names of an archive, or the file itself, into source_path: all of it, or a ValueError."""
    try:
        with hidden_folder(source_path) as folder:
            extract(path, folder)
            found = [name for name in module.UNPACK if os.path.exists(os.path.join(folder, name))]
            for name in found:
                source, target = os.path.join(folder, name), os.path.join(source_path, module.UNPACK[name])
                if os.path.isdir(source):
                    shutil.copytree(source, target, symlinks=True, copy_function=shutil.move, dirs_exist_ok=True)
                else:
                    os.makedirs(os.path.dirname(target), exist_ok=True)
                    shutil.move(source, target)
        problem = "" if found else f"damaged, or has nothing of {', '.join(module.UNPACK)}"
    except Exception as error:  # tarfile's, zipfile's, gzip's, bz2's, lzma's, and the disk's
        problem = line_of(error)
    if problem:
        raise ValueError(f"{path}: cannot be unpacked ({problem}). To be had: {module.GET}")


def fetch(name, source_path, module):
    """Put what module.NPM names, packages of npm, into source_path/name: all of it, or a ValueError."""
    command = f"npm pack {' '.join(module.NPM)}"
    print(f"{name}: {command}", flush=True)
    with hidden_folder(source_path) as folder:
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True)
        if done.returncode:  # npm's, or the shell's where there is no npm
            why = " ".join(done.stderr.replace("npm error", "").split())[:200]
            raise ValueError(f"{name}: not fetched ({why}). Where npm works: {command}; then here --archive FILES")
        for archive in os.listdir(folder):
            unpack(os.path.join(folder, archive), folder, module)
        os.rename(os.path.join(folder, name), os.path.join(source_path, name))


@one_line_errors
def main(argv):
    parser = OneLineParser("python -m datasets.prepare", None, __doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", choices=list(MODULES))
    add("--archive", nargs="+", default=[], metavar="FILE", help="downloaded archives, and files like cars_annos.mat")
    add("--source_path", required=True, metavar="DIR", help="folder that holds the data sets, as main.py's")
    add("--verify", action="store_true", help="decode every image and list the broken ones")
    add("--allow_partial", action="store_true", help="exit status 0 though classes or images are missing")
    add("--kernels", type=int, default=os.cpu_count() or 1, help="processes that decode")
    args = parser.parse_args(argv)
    module = MODULES[args.name]
    if args.archive and not hasattr(module, "UNPACK"):
        parser.error(f"{args.name} has no archive of its own: unpack yours as you like, and leave --archive away")
    for path in args.archive:
        unpack(path, args.source_path, module)
        print(f"{path}: unpacked into {args.source_path}")
    if hasattr(module, "NPM") and not args.archive and not os.path.exists(os.path.join(args.source_path, args.name)):
        fetch(args.name, args.source_path, module)

    rows, partial = on_disk(module, args.source_path)
    for split, part in rows.items():
        print(f"{args.name} {split}: {len({c for c, _, _ in part}):,} classes, {len(part):,} images")
    broken = {}
    if args.verify:
        paths = [path for part in rows.values() for *_, path in part]
        broken = images.broken(paths, args.kernels, f"{args.name}: decoding")
        print(*broken.values(), f"{args.name}: {len(broken):,} of {len(paths):,} images are broken", sep="\n")
    verdict = "whole" if hasattr(module, "COUNTS") else "counted; there are no published counts to hold it against"
    print(f"{args.name}: " + (f"PARTIAL: {partial}" if partial else verdict))
    return 2 if partial and not args.allow_partial else int(len(broken) > 0)


if __name__ == "__main__":
    sys.exit(main())
