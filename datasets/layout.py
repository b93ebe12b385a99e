"""The files of a data set: finding its folder, listing its classes, and counting whether all of it is there."""

import contextlib
import functools
import os
import re

from PIL import Image

from utilities.distributed import print_once

Image.init()  # or Pillow knows only the commonest formats
# of those that Pillow opens: EPS runs Ghostscript, IPTC may have an EPS in it, others carry no mark or are not decoded
FORMATS = "JPEG PNG GIF BMP WEBP TIFF AVIF JPEG2000 PPM ICO PSD QOI SGI PCX".split()
FORMATS = [name for name in FORMATS if name in Image.OPEN]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")  # need not be opened to be listed
HIDDEN = (".", "__")  # how names begin that no one gave: .git, .ipynb_checkpoints, __MACOSX


def find_layout(source_path, name, layouts, tree, get=""):
    """The first (folder, marker) that is there: layouts = [(folder, marker file or folder in it), ...]. Raises
    FileNotFoundError: a line that names the flags, then the expected tree and where the archive is to be had."""
    for folder, marker in layouts:
        folder = os.path.normpath(os.path.join(source_path, folder))
        if os.path.exists(os.path.join(folder, marker)):
            return folder, marker
    problem = "has none of the layouts below" if os.path.isdir(source_path) else "is no folder"
    expected = f"Expected, DIR being --source_path:\n{tree}" + (f"\nTo be had: {get}" if get else "")
    raise FileNotFoundError(f"--dataset {name} --source_path {source_path}: {problem}. {expected}")


def class_folders(folder, flat=False):
    """[(class name, [image path, ...]), ...] of the folders in `folder` by name; folders within belong to the class.
    flat: where there is no class, the images in `folder` itself are one. What is left out is printed."""
    classes, left_out, followed, root = {}, [], set(), os.path.join(os.path.realpath(folder), "")

    def unreadable(problem):
        raise problem

    for inner, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        real, above = (os.path.join(os.path.realpath(path), "") for path in (inner, os.path.dirname(inner)))
        again = os.path.islink(inner) and (real.startswith(root) or above.startswith(real) or real in followed)
        if inner != folder and (os.path.basename(inner).startswith(HIDDEN) or again or not folders + names):
            left_out.append(inner)
            folders.clear()  # the walk goes on elsewhere
            continue
        followed.add(real)
        images = classes.setdefault(os.path.relpath(inner, folder).split(os.sep)[0], [])  # "." is `folder`
        for path in [os.path.join(inner, name) for name in names]:
            (images if is_image(path) else left_out).append(path)
    beside = classes.pop(".", [])
    if flat and beside and not any(classes.values()):
        classes, beside = {os.path.basename(os.path.abspath(folder)): beside}, []
    say_left_out(folder, sorted(beside + left_out))
    return [(name, sorted(paths)) for name, paths in sorted(classes.items()) if paths]


def is_image(path):
    """By the suffix, which costs nothing, else by the content; macOS leaves ._name.jpg beside an image."""
    name = os.path.basename(path)
    if name.lower().endswith(SUFFIXES) and not name.startswith("."):
        return True
    with contextlib.suppress(Exception):  # Pillow raises whatever comes
        if os.path.isfile(path):  # no pipe, which would wait
            with Image.open(path, formats=FORMATS):
                return True
    return False


def say_left_out(folder, paths):
    """A line that counts what a reader of `folder` leaves out, and names the first."""
    if paths:
        names = [os.fsencode(os.path.relpath(path, folder)).decode(errors="backslashreplace") for path in paths[:3]]
        line = ", ".join(names + ["..."] * (len(paths) > 3))
        print_once(f"note: {folder}: {len(paths):,} files or folders left out (no images, or of no class): {line}")


def read_list(path, form):
    """The words of each line that matches the pattern `form`; a head does not, and a damaged line counts as missing."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return [words for words in lines if re.fullmatch(form, " ".join(words))]


def on_disk(module, source_path):
    """({split: module's rows whose file is there}, a line that says what they lack of the published counts and of their
    own lists, empty where nothing is lacking)."""
    # a folder is listed once, which is faster than to ask for each of its files
    names = functools.cache(lambda folder: set(os.listdir(folder)) if os.path.isdir(folder) else ())
    rows, problems, missing = {}, [], []
    for split, listed in module.rows(source_path).items():
        rows[split] = [row for row in listed if os.path.basename(row[2]) in names(os.path.dirname(row[2]))]
        missing += [path for *_, path in set(listed) - set(rows[split])]
    for split, (classes, images) in getattr(module, "COUNTS", {}).items():
        found = len({c for c, _, _ in rows[split]}), len(rows[split])
        if found != (classes, images):
            wanted = f"expected {classes:,} classes, {images:,} images"
            problems.append(f"{split}: found {found[0]:,} classes, {found[1]:,} images, {wanted}")
    if missing:
        problems.append(f"{len(missing):,} listed images are missing, first {min(missing)}")
    return rows, "; ".join(problems)
