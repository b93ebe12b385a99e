"""The files of a data set: finding its folder, listing its classes, and counting whether all of it is there."""

import os

from datasets.loading.decode import SUFFIXES, image_names


def find_layout(source_path, name, layouts, tree, get):
    """The first (layout, folder) whose marker exists: layouts = [(layout, folder, marker file or folder), ...].

    Raises FileNotFoundError: a line that names the flags, then the expected tree and where the archive is to be had.
    """
    for layout, folder, marker in layouts:
        folder = os.path.normpath(os.path.join(source_path, folder))
        if os.path.exists(os.path.join(folder, marker)):
            return layout, folder
    problem = "has none of the layouts below" if os.path.isdir(source_path) else "is no folder"
    expected = f"Expected, DIR being --source_path:\n{tree}" + (f"\nTo be had: {get}" if get else "")
    raise FileNotFoundError(f"--dataset {name} --source_path {source_path}: {problem}. {expected}")


def class_folders(folder):
    """[(class name, [image path, ...]), ...] of <folder>/<class>/*.jpg by name; folders without images are left out."""
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: is no folder; it should have one folder a class")
    classes = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        # entry.is_dir() would raise on a loop of links
        if os.path.isdir(entry.path) and not entry.name.startswith((".", "__")):
            paths = [os.path.join(entry.path, name) for name in image_names(os.listdir(entry.path))]
            if paths:
                classes.append((entry.name, paths))
    if not classes:
        suffixes = ", ".join(SUFFIXES)
        raise FileNotFoundError(f"{folder}: no folder in it has images ({suffixes}); one folder a class is expected")
    return classes


def read_lines(path, name):
    """The lines of a list of data set `name`; FileNotFoundError or ValueError, one line, where it cannot be read."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"--dataset {name}: {path} is missing")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path}: cannot be read ({problem})") from problem


def rows_on_disk(module, source_path):
    """({split: [(class, class name, path), ...]} of the files on disk, paths of those that are only listed)."""
    listed, on_disk, missing, names = module.rows(source_path), {}, [], {}
    for split, rows in listed.items():
        on_disk[split] = []
        for row in rows:
            folder, name = os.path.split(row[2])
            if folder not in names:  # every folder is listed once
                names[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
            if name in names[folder]:
                on_disk[split].append(row)
            else:
                missing.append(row[2])
    return on_disk, missing


def shortfall(module, rows, missing):
    """What the data lacks of the published counts (module.COUNTS) and of its own lists, a line; empty if nothing."""
    problems = []
    for split, (classes, images) in getattr(module, "COUNTS", {}).items():
        counted = len({c for c, _, _ in rows[split]}), len(rows[split])
        if counted != (classes, images):
            expected = f"expected {classes:,} classes, {images:,} images"
            problems.append(f"{split}: found {counted[0]:,} classes, {counted[1]:,} images, {expected}")
    if missing:
        problems.append(f"{len(missing):,} listed images are missing, first {missing[0]}")
    return "; ".join(problems)
