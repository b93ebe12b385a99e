"""Unpack and check a data set:

    python -m datasets.prepare cub200 --archive CUB_200_2011.tgz --source_path DIR [--verify]

Archives are unpacked safely (nothing leaves DIR, and nothing stays of one with a wrong checksum; a plain .tar has
none), then classes and images are counted. It can be interrupted and repeated; files that are there are not written
again. --verify decodes every image and lists the broken ones; without --archive it checks what is there. Exit status:
0 all is well, 1 broken images, 2 anything else, 130 interrupted.
"""

import argparse
import os
import shutil
import sys
import tarfile

from datasets import DATASETS
from datasets.loading import decode
from datasets.loading.layout import rows_on_disk, shortfall
from datasets.loading.unpack import inside, unpack
from utilities.command_line import OneLineParser, one_line_errors
from utilities.files import write_whole

MODULES = {name: entry.module for name, entry in DATASETS.items() if entry.module}


def place_file(path, source_path, places):
    """Copy a file that is no archive, such as cars_annos.mat, to its place; True if it is one."""
    place = places.get(os.path.basename(path))
    if place is None:
        return False
    target = inside(source_path, tarfile.TarInfo(place))
    if not (os.path.exists(target) and os.path.samefile(path, target)):
        with open(path, "rb") as source:
            write_whole(target, lambda file: shutil.copyfileobj(source, file), "wb")
    return True


def unpack_all(name, archives, source_path):
    module = MODULES[name]
    if archives and not hasattr(module, "UNPACK"):
        tree = f". Expected:\n{module.TREE}" if hasattr(module, "TREE") else ""
        raise ValueError(f"{name}: has no archive of its own; unpack yours as you like and leave --archive away{tree}")
    for path in archives:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"--archive {path}: there is no such file. To be had: {module.GET}")
    for path in archives:
        if place_file(path, source_path, module.UNPACK):
            print(f"{path}: put in place")
        else:
            print(f"{path}: {unpack(path, source_path, module.UNPACK):,} files unpacked into {source_path}")


def prepare(name, archives, source_path, verify=False, allow_partial=False, workers=0):
    """Unpack, count and, with verify, decode; the exit status. Raises ValueError or OSError that says what is wrong."""
    unpack_all(name, archives, source_path)
    rows, missing = rows_on_disk(MODULES[name], source_path)
    partial = shortfall(MODULES[name], rows, missing)
    for split, part in rows.items():
        print(f"{name} {split}: {len({c for c, _, _ in part}):,} classes, {len(part):,} images")
    if partial and not allow_partial:
        raise ValueError(f"{name} in {source_path} is not whole: {partial}")
    published = getattr(MODULES[name], "COUNTS", None)
    verdict = "whole" if published else "counted; there are no published counts to hold it against"
    print(f"{name}: " + (f"PARTIAL: {partial}" if partial else verdict))
    if not verify:
        return 0
    paths = [path for part in rows.values() for _, _, path in part]
    problems = decode.broken(paths, workers, f"{name}: decoding")
    for line in problems.values():
        print(line)
    verdict = f"{len(problems):,} of {len(paths):,} images are broken"
    print(f"{name}: " + (verdict if problems else f"all {len(paths):,} images can be decoded"))
    return 1 if problems else 0


@one_line_errors
def main(argv):
    form = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser("python -m datasets.prepare", description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("name", choices=list(MODULES))
    add("--archive", nargs="+", default=[], metavar="FILE", help="downloaded archives, and files like cars_annos.mat")
    add("--source_path", required=True, metavar="DIR", help="folder that holds the data sets, as main.py's")
    add("--verify", action="store_true", help="decode every image and list the broken ones")
    add("--allow_partial", action="store_true", help="count and go on though classes or images are missing")
    add("--kernels", type=int, default=os.cpu_count() or 1, help="processes that decode")
    args = parser.parse_args(argv)
    try:
        workers = max(args.kernels, 0)
        return prepare(args.name, args.archive, args.source_path, args.verify, args.allow_partial, workers)
    except KeyboardInterrupt:
        print("\nstopped; give the same command again", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
