"""Unpack and check a data set: python -m datasets.prepare cub200 --archive CUB_200_2011.tgz --source_path DIR [--verify]

Archives are unpacked safely (nothing leaves DIR, and nothing is written of one with a wrong checksum; a plain .tar has
none), then classes and images are counted. It can be interrupted and repeated: what has been unpacked is not written
again. --verify decodes every image and lists the broken ones; without --archive it checks what is there. Exit status:
0 all is well, 1 broken images, 2 anything else, 130 interrupted.
"""

import argparse
import os
import sys

from datasets import cars196, cub200, files, folder, images, inshop, online_products
from datasets.unpack import inside, unpack, write

MODULES = {"cub200": cub200, "cars196": cars196, "online_products": online_products, "inshop": inshop, "folder": folder}


def place_file(path, source_path, places):
    """Copy a file that is no archive, such as cars_annos.mat, to its place; True if it is one."""
    place = places.get(os.path.basename(path))
    if place is None:
        return False
    target = inside(source_path, place)
    if not (os.path.exists(target) and os.path.samefile(path, target)):
        with open(path, "rb") as source:
            write(source, target)
    return True


def prepare(name, archives, source_path, verify=False, allow_partial=False, workers=0):
    """Unpack, count and, with verify, decode; the exit status. Raises ValueError or OSError that names what is wrong."""
    module = MODULES[name]
    if archives and not hasattr(module, "UNPACK"):
        raise ValueError(
            f"{name}: has no archive of its own; unpack yours as you like and leave --archive away. Expected:\n{module.TREE}"
        )
    lacking = [path for path in archives if not os.path.isfile(path)]
    if lacking:
        raise FileNotFoundError(f"--archive {lacking[0]}: there is no such file. To be had: {module.GET}")
    for path in archives:
        if place_file(path, source_path, module.UNPACK):
            print(f"{path}: put in place")
        else:
            print(f"{path}: {unpack(path, source_path, module.UNPACK):,} files unpacked into {source_path}")

    rows, missing = files.found_rows(module, source_path)
    partial = files.completeness(rows, module.COUNTS, missing)
    for split, part in rows.items():
        print(f"{name} {split}: {len({c for c, _, _ in part}):,} classes, {len(part):,} images")
    if partial and not allow_partial:
        raise ValueError(f"{name} in {source_path} is not whole: {partial}")
    print(
        f"{name}: "
        + (
            f"PARTIAL: {partial}"
            if partial
            else "whole"
            if module.COUNTS
            else "counted; there are no published counts to hold it against"
        )
    )
    if verify:
        paths = [path for part in rows.values() for _, _, path in part]
        problems = images.broken(paths, workers, f"{name}: decoding")
        for line in problems.values():
            print(line)
        print(
            f"{name}: {len(problems):,} of {len(paths):,} images are broken"
            if problems
            else f"{name}: all {len(paths):,} images can be decoded"
        )
        return 1 if problems else 0
    return 0


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=list(MODULES))
    parser.add_argument(
        "--archive",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what was downloaded: archives, and files like cars_annos.mat",
    )
    parser.add_argument(
        "--source_path",
        required=True,
        metavar="DIR",
        help="folder that holds the data sets, as main.py's --source_path",
    )
    parser.add_argument("--verify", action="store_true", help="decode every image and list the broken ones")
    parser.add_argument(
        "--allow_partial", action="store_true", help="count and go on though classes or images are missing"
    )
    parser.add_argument("--kernels", type=int, default=os.cpu_count() or 1, help="processes that decode")
    given = parser.parse_args(argv)
    try:
        return prepare(
            given.name, given.archive, given.source_path, given.verify, given.allow_partial, max(given.kernels, 0)
        )
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
