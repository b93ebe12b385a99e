"""Metrics and pictures of saved embeddings, without a model, e.g. of the files that main.py --save_embeddings writes.

  python -m evaluation FILE.npz --metrics e_recall@1 mAP@R [--json]
  python -m evaluation FILE.npz --panel OUT.png           queries and their nearest images, right and wrong marked
  python -m evaluation FILE.npz ... --spectrum OUT.pdf    singular values: the picture of a collapse
  python -m evaluation FILE.npz ... --tsne OUT.png

FILE.npz holds embeddings (n, d) and labels (n,); with query_embeddings and query_labels, query against gallery. --panel
also needs paths (n,), and query_paths, of the image files (or glyphs' own names).
"""

# this command stands above the package: to show images it asks datasets, which evaluation itself does not know

import argparse
import json
import os
import sys

import numpy as np

import evaluation
from evaluation import pictures
from utilities.command_line import OneLineParser, number, one_line_errors

DEFAULT = "e_recall@1 e_recall@2 e_recall@4 e_recall@8 mAP@R R-precision nmi f1 coding_rate@share".split()
PICTURES = ("panel", "spectrum", "tsne")
SIDE = 160  # pixels of an image in a panel


# --- images ---


def images_of(paths, folder=None):
    """Images (n, SIDE, SIDE, 3), uint8, of files anywhere or in `folder`, or of glyphs; ValueError, one line."""
    from PIL import Image, ImageOps

    from datasets import images

    if any(".ttf:U+" in path for path in paths):
        return glyphs_of(paths)
    found = [Image.fromarray(images.read(find_image(path, folder))) for path in paths]
    return np.stack([np.asarray(ImageOps.pad(image, (SIDE, SIDE), color="white")) for image in found])


def find_image(path, folder):
    """The file of that path, or of the longest end of it that `folder` has."""
    parts = os.path.normpath(path).split(os.sep)
    places = [path] if folder is None else [os.path.join(folder, *parts[i:]) for i in range(1, len(parts))]
    for place in filter(os.path.isfile, places):
        return place
    where = f" in --images {folder}" if folder else "; --images DIR names the folder that has them now"
    raise ValueError(f"{path}: this image is missing{where}")


def glyphs_of(names):
    from datasets import glyphs

    splits = glyphs.splits(SIDE)
    both = splits.train.unaugmented(), splits.test
    where = {path: (split, i) for split in both for i, path in enumerate(split.paths)}
    for name in names:
        if name not in where:
            raise ValueError(f"{name}: not among the glyphs that this version of matplotlib has")
    return np.stack([where[name][0][where[name][1]][0].permute(1, 2, 0).numpy() for name in names])


# --- pictures ---


def draw(picture, files, given):
    """The figure of these files' arrays."""
    names = name_of(files)
    if picture == "panel":
        ((path, arrays),) = files.items()
        return draw_panel(path, names[path], arrays, given)
    spaces = {names[path]: pictures.everything(arrays) for path, arrays in files.items()}
    if picture == "tsne":
        return pictures.tsne(spaces, given.seed)
    lines = [(n, name, [pictures.shares(embeddings)]) for n, (name, (embeddings, _)) in enumerate(spaces.items())]
    return pictures.spectrum([("Singular values of the embeddings", lines)], with_rank=True)


def draw_panel(path, name, arrays, given):
    of_queries = "query_" if "query_labels" in arrays else ""
    for prefix in ("", of_queries):
        if len(arrays.get(f"{prefix}paths", ())) != len(arrays[f"{prefix}labels"]):
            raise ValueError(f"{path}: --panel needs `{prefix}paths`, the image of each row; --save_embeddings has it")
    rows, nearest, right = pictures.nearest_images(**measured(arrays), seed=given.seed)
    queries = images_of(arrays[f"{of_queries}paths"][rows].tolist(), given.images)
    shown, which = np.unique(nearest, return_inverse=True)
    neighbours = images_of(arrays["paths"][shown].tolist(), given.images)[which.reshape(nearest.shape)]
    labels, total = arrays[f"{of_queries}labels"][rows], len(arrays[f"{of_queries}labels"])
    words = [f"class {label}" for label in labels]
    if "class_names" in arrays:
        words = arrays["class_names"][labels - arrays.get("first_label", 0)].tolist()
    title = f"{name}: {len(rows)} of {total:,} queries (seed {given.seed}), their nearest images"
    return pictures.panel(queries, neighbours, right, words, title)


def measured(arrays):
    """What of a file's arrays `compute` takes."""
    return {name: arrays[name] for name in pictures.ARRAYS if name in arrays}


def name_of(paths):
    """{path: its run's folder, or the file's own name}; whole paths where these do not tell them apart."""
    names = {}
    for path in paths:
        folder, file = os.path.split(os.path.abspath(path))
        names[path] = os.path.basename(folder) if file.startswith("embeddings_") else os.path.splitext(file)[0]
    return names if len(set(names.values())) == len(names) else {path: path for path in paths}


# --- the command ---


def parse(argv):
    form = argparse.RawDescriptionHelpFormatter
    add = (parser := OneLineParser("python -m evaluation", description=__doc__, formatter_class=form)).add_argument
    add("files", nargs="+", metavar="FILE", help="npz of embeddings (n, d) and labels (n,)")
    add("--metrics", nargs="+", help=f"by name, see main.py --list; {' '.join(DEFAULT)} unless a picture is asked for")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--search", default="auto", choices=evaluation.search.BACKENDS, help="search back-end of the metrics")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of k-means, of the panel's queries and of t-SNE")
    add("--restarts", type=number(int, 1, 1000), default=1, help="starts of k-means: the best counts")
    for picture in PICTURES:
        add(f"--{picture}", metavar="OUT", help="PNG or PDF file to draw")
    add("--images", metavar="DIR", help="folder of the panel's images, where they are no longer where `paths` says")
    given = parser.parse_args(argv)
    given.pictures = {picture: path for picture in PICTURES if (path := getattr(given, picture))}
    given.metrics = given.metrics or ([] if given.pictures else DEFAULT)
    evaluation.check_names(given.metrics, flag="--metrics")
    evaluation.search.check_backend(given.search)
    for picture, path in given.pictures.items():
        if not path.lower().endswith((".png", ".pdf")):
            raise ValueError(f"--{picture} {path}: must end in .png or .pdf")
    if given.panel and len(given.files) > 1:
        raise ValueError(f"--panel {given.panel}: shows one FILE, {len(given.files)} are given")
    return given


@one_line_errors
def main(argv):
    given = parse(argv)
    files = {path: pictures.load(path) for path in given.files}
    how = dict(names=given.metrics, seed=given.seed, search=given.search, restarts=given.restarts)
    values = {path: evaluation.compute(**measured(files[path]), **how) for path in files if given.metrics}
    for picture, path in given.pictures.items():
        pictures.save(draw(picture, files, given), path)
    if given.json:
        print(json.dumps(values if len(files) > 1 else values.get(given.files[0], {})))
        return 0
    for path, its_own in values.items():
        lines = [f"{path}:"] * (len(files) > 1) + [f"{name:24s} {value:.6f}" for name, value in its_own.items()]
        print(*lines, sep="\n")
    for path in given.pictures.values():
        print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
