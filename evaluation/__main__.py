"""Metrics and pictures of saved embeddings, without a model, e.g. of the files that main.py --save_embeddings writes.

  python -m evaluation FILE.npz --metrics e_recall@1 mAP@R [--json]
  python -m evaluation FILE.npz --panel OUT.png           queries and their nearest images, right and wrong marked
  python -m evaluation FILE.npz ... --spectrum OUT.pdf    singular values: the picture of a collapse
  python -m evaluation FILE.npz ... --tsne OUT.png

FILE.npz holds embeddings (n, d) and labels (n,), and may hold query_embeddings and query_labels; --panel also needs
paths (n,), and query_paths.
"""

import argparse
import json
import os
import sys

import numpy as np
import torch
from PIL import Image, ImageOps

import evaluation
from datasets import glyphs, images  # which the package itself does not know
from evaluation import pictures
from utilities.command_line import OneLineParser, number, one_line_errors

DEFAULT = "e_recall@1 e_recall@2 e_recall@4 e_recall@8 mAP@R R-precision nmi f1 coding_rate@share".split()
SIDE = 160  # pixels of an image in a panel


def images_of(paths):
    """Images (n, SIDE, SIDE, 3), uint8, of files, or of glyphs by the names that are their paths."""
    drawn = {}
    if any(".ttf:U+" in path for path in paths):
        splits = glyphs.splits(SIDE)
        for split in (splits.train.unaugmented(), splits.test):
            drawn |= {path: split[i][0].permute(1, 2, 0).numpy() for i, path in enumerate(split.paths) if path in paths}
    for path in (path for path in paths if path not in drawn):
        drawn[path] = np.asarray(ImageOps.pad(Image.fromarray(images.read(path)), (SIDE, SIDE), color="white"))
    return np.stack([drawn[path] for path in paths])


def panel(path, arrays, given):
    """Queries that the seed draws, and their nearest images."""
    of_queries = "query_" if "query_labels" in arrays else ""
    names, numbers = arrays.get("class_names"), arrays[f"{of_queries}labels"] - arrays.get("first_label", 0)
    sizes = {prefix: arrays.get(f"{prefix}paths", np.array("")).shape for prefix in ("", of_queries)}
    wrong = [f"{prefix}paths" for prefix in sizes if sizes[prefix] != arrays[f"{prefix}labels"].shape]
    wrong += ["class_names"] if names is not None and not np.isin(numbers, np.arange(names.size)).all() else []
    if wrong:
        raise ValueError(f"{path}: --panel needs `{wrong[0]}` that fit the labels; --save_embeddings writes them")
    rows, nearest, right = pictures.nearest_images(arrays, seed=given.seed)
    shown = np.column_stack([arrays[f"{of_queries}paths"][rows], arrays["paths"][nearest]])
    files, which = np.unique(shown, return_inverse=True)
    images = images_of(files.tolist())[which.reshape(shown.shape)]
    words = [f"class {number}" for number in numbers[rows]] if names is None else names[numbers[rows]].tolist()
    title = f"{names_of([path])[path]}: {len(rows)} of {len(numbers):,} queries (seed {given.seed}) and what is nearest"
    return pictures.panel(images, right, words, title)


def spectrum(spaces):
    """Singular values of {name: (embeddings, labels)}, with their effective ranks."""
    lines = []
    for name, (embeddings, _) in spaces.items():
        rank = evaluation.collapse.effective_rank(torch.from_numpy(shares := pictures.shares(embeddings)))
        lines.append((len(lines), f"{name}: effective rank {rank:.1f} of {len(shares)}", [shares]))
    return pictures.spectrum([("Singular values of the embeddings", lines)])


def names_of(paths):
    """{path: its run's folder, or the file's own name}; whole paths where these do not tell them apart."""
    names = {}
    for path in paths:
        folder, file = os.path.split(os.path.abspath(path))
        names[path] = os.path.basename(folder) if file.startswith("embeddings_") else os.path.splitext(file)[0]
    return names if len(set(names.values())) == len(names) else {path: path for path in paths}


def parse(argv):
    form = argparse.RawDescriptionHelpFormatter
    add = (parser := OneLineParser("python -m evaluation", description=__doc__, formatter_class=form)).add_argument
    add("files", nargs="+", metavar="FILE", help="npz of embeddings (n, d) and labels (n,)")
    add("--metrics", nargs="+", help=f"by name, see main.py --list; {' '.join(DEFAULT)} unless a picture is asked for")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    add("--search", default="auto", choices=evaluation.search.BACKENDS, help="search back-end of the metrics")
    add("--seed", type=number(int, 0, 2**32 - 1), default=0, help="of k-means, of the panel's queries and of t-SNE")
    add("--restarts", type=number(int, 1, 1000), default=1, help="starts of k-means: the best counts")
    out = dict(metavar="OUT", help="PNG or PDF file to draw; a panel is of the first FILE")
    drawn = [add(f"--{name}", **out) for name in ("panel", "spectrum", "tsne")]
    given = parser.parse_args(argv)
    given.pictures = [path for action in drawn if (path := getattr(given, action.dest))]
    given.metrics = given.metrics or ([] if given.pictures else DEFAULT)
    evaluation.check_names(given.metrics, flag="--metrics")
    return given


@one_line_errors
def main(argv):
    given = parse(argv)
    files = {path: pictures.load(path) for path in given.files}
    how = dict(names=given.metrics, seed=given.seed, search=given.search, restarts=given.restarts)
    values = {path: evaluation.compute(**pictures.measured(files[path]), **how) for path in files if given.metrics}
    if given.panel:
        pictures.save(panel(given.files[0], files[given.files[0]], given), given.panel)
    spaces = {name: pictures.everything(files[path]) for path, name in names_of(files).items() if given.pictures}
    if given.spectrum:
        pictures.save(spectrum(spaces), given.spectrum)
    if given.tsne:
        pictures.save(pictures.tsne(spaces, given.seed), given.tsne)
    if given.json:
        print(json.dumps(values if len(files) > 1 else values.get(given.files[0], {})))
        return 0
    for path, its_own in values.items():
        lines = [f"{path}:"] * (len(files) > 1) + [f"{name:24s} {value:.6f}" for name, value in its_own.items()]
        print(*lines, sep="\n")
    print(*(f"written: {path}\n" for path in given.pictures), sep="", end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
