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
import math
import os
import sys

import numpy as np

import evaluation
from utilities.command_line import OneLineParser, one_line_errors
from utilities.files import write_whole

DEFAULT = "e_recall@1 e_recall@2 e_recall@4 e_recall@8 mAP@R R-precision nmi f1 coding_rate@share".split()
ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels")
PICTURES = ("panel", "spectrum", "tsne")
# what errors name by main.py's flags
OTHERWISE = {
    "--evaluation_metrics:": "evaluation:",
    "--evaluation_metrics": "--metrics",
    "--kmeans_restarts": "--restarts",
}
SIDE = 160  # pixels of an image in a panel


def load(path):
    """The arrays of a file by name; ValueError, one line, where it does not hold what is needed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*ARRAYS, "paths", "query_paths") if name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as problem:  # numpy has many for a damaged file
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path}: cannot be read as npz of plain arrays ({reason})") from None
    missing = [name for name in ("embeddings", "labels") if name not in arrays]
    if missing or ("query_embeddings" in arrays) != ("query_labels" in arrays):
        raise ValueError(
            f"{path}: {missing[0] if missing else 'one of query_embeddings, query_labels'} is missing; "
            "expected embeddings (n, d), labels (n,), and for query/gallery query_embeddings, query_labels"
        )
    for name in arrays.keys() & set(ARRAYS):
        dtype, whole = arrays[name].dtype, "labels" in name
        kinds = (np.integer,) if whole else (np.integer, np.floating)
        if not any(np.issubdtype(dtype, kind) for kind in kinds):
            raise ValueError(f"{path}: {name} are {dtype}, expected {'whole' if whole else 'real'} numbers")
        arrays[name] = arrays[name].astype(np.int64 if whole else np.float64 if dtype.itemsize >= 8 else np.float32)
    return arrays


def measured(arrays):
    """What of a file's arrays `compute` takes."""
    return {name: arrays[name] for name in ARRAYS if name in arrays}


def everything(arrays):
    """(embeddings, labels) of queries and gallery together, as the metrics of the whole space take them."""
    queries = (arrays["query_embeddings"], arrays["query_labels"]) if "query_labels" in arrays else None
    data = evaluation.metrics.Embedded((arrays["embeddings"], arrays["labels"]), queries, {}, {})
    return data.embeddings, data.labels


# --- images ---


def images_of(paths, folder=None):
    """Images (n, SIDE, SIDE, 3), uint8, of files anywhere or in `folder`, or of glyphs; ValueError, one line."""
    if any(".ttf:U+" in path for path in paths):
        return glyphs_of(paths)
    return np.stack([thumbnail(find_image(path, folder)) for path in paths])


def find_image(path, folder):
    """The file of that path, or of the longest end of it that `folder` has."""
    parts = os.path.normpath(path).split(os.sep)
    places = [path] if folder is None else [os.path.join(folder, *parts[i:]) for i in range(1, len(parts))]
    for place in places:
        if os.path.isfile(place):
            return place
    where = f" in --images {folder}" if folder else "; --images DIR names the folder that has them now"
    raise ValueError(f"{path}: this image is missing{where}")


def thumbnail(path):
    from PIL import Image, ImageOps

    from datasets.loading import decode

    image = Image.fromarray(decode.read(path)[0])
    return np.asarray(ImageOps.pad(image, (SIDE, SIDE), color="white"))


def glyphs_of(names):
    from datasets import glyphs

    splits = glyphs.splits(SIDE)
    where = {
        path: (split, i) for split in (splits.train.unaugmented(), splits.test) for i, path in enumerate(split.paths)
    }
    for name in names:
        if name not in where:
            raise ValueError(f"{name}: not among the glyphs that this version of matplotlib has")
    return np.stack([where[name][0][where[name][1]][0].permute(1, 2, 0).numpy() for name in names])


# --- pictures ---


def draw_panel(files, given):
    from evaluation import pictures

    ((path, arrays),) = files.items()
    apart = "query_labels" in arrays
    paths = {name: arrays.get(name, ()) for name in ("paths", "query_paths" if apart else "paths")}
    for name, values in paths.items():
        if len(values) != len(arrays[name.replace("paths", "labels")]):
            raise ValueError(f"{path}: --panel needs `{name}`, the image of each row; main.py --save_embeddings has it")
    rows, nearest, right = pictures.nearest_images(**measured(arrays), seed=given.seed)
    of_gallery, of_queries = paths["paths"], paths["query_paths" if apart else "paths"]
    queries = images_of([str(of_queries[i]) for i in rows], given.images)
    shown, which = np.unique(nearest, return_inverse=True)
    neighbours = images_of([str(of_gallery[i]) for i in shown], given.images)[which.reshape(nearest.shape)]
    classes = arrays["query_labels" if apart else "labels"][rows]
    title = (
        f"{name_of(files)[path]}: {len(rows)} of {len(of_queries):,} queries (seed {given.seed}), their nearest images"
    )
    return pictures.panel(queries, neighbours, right, [f"class {c}" for c in classes], title)


def draw_spectrum(files, given):
    from evaluation import pictures

    names = name_of(files)
    return pictures.spectrum(
        {names[path]: evaluation.collapse.singular_values(everything(arrays)[0]) for path, arrays in files.items()}
    )


def draw_tsne(files, given):
    from evaluation import pictures

    names = name_of(files)
    return pictures.tsne(
        {names[path]: pictures.flat_points(*everything(arrays), given.seed) for path, arrays in files.items()}
    )


def name_of(paths):
    """{path: its run's folder, or the file's own name}; whole paths where these do not tell them apart."""
    names = {}
    for path in paths:
        folder, file = os.path.split(os.path.abspath(path))
        names[path] = os.path.basename(folder) if file.startswith("embeddings_") else os.path.splitext(file)[0]
    return names if len(set(names.values())) == len(names) else {path: path for path in paths}


def write_picture(figure, path):
    from utilities.report import style

    suffix = path.rpartition(".")[2].lower()
    data = style.finish(figure, [suffix])[suffix]
    write_whole(path, lambda file: file.write(data), "wb")


# --- the command ---


def parse(argv):
    form = argparse.RawDescriptionHelpFormatter
    add = (parser := OneLineParser("python -m evaluation", description=__doc__, formatter_class=form)).add_argument
    add("files", nargs="+", metavar="FILE", help="npz of embeddings (n, d) and labels (n,)")
    add("--metrics", nargs="+", help=f"by name, see main.py --list; {' '.join(DEFAULT)} unless a picture is asked for")
    add("--json", action="store_true", help="print one JSON object and nothing else")
    backends = evaluation.search.BACKENDS
    add("--search", default="auto", choices=backends, help="search back-end of the metrics; ivf is approximate")
    add("--seed", type=int, default=0, help="seed of k-means, of the panel's queries and of t-SNE")
    add("--restarts", type=int, default=1, help="starts of k-means (1 or more): the best counts")
    for picture in PICTURES:
        add(f"--{picture}", metavar="OUT", help="PNG or PDF file to draw")
    add("--images", metavar="DIR", help="folder of the panel's images, where they are no longer where `paths` says")
    return parser.parse_args(argv)


def check(given):
    """ValueError, one line, for flags that cannot be followed."""
    evaluation.check_names(given.metrics)
    evaluation.search.check_backend(given.search)
    evaluation.clustering.check_restarts(given.restarts)
    for picture in PICTURES:
        path = getattr(given, picture)
        if path and not path.lower().endswith((".png", ".pdf")):
            raise ValueError(f"--{picture} {path}: must end in .png or .pdf")
    if given.panel and len(given.files) > 1:
        raise ValueError(f"--panel {given.panel}: shows one FILE, {len(given.files)} are given")
    if given.seed < 0 and (given.panel or given.tsne):
        raise ValueError(f"--seed {given.seed}: must be from 0 for a picture")


def measure(path, arrays, given):
    how = dict(seed=given.seed, search=given.search, restarts=given.restarts)
    values = evaluation.compute(**measured(arrays), names=given.metrics, **how)
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        raise ValueError(f"{path}: {broken[0]} is not finite")
    return values


@one_line_errors
def main(argv):
    given = parse(argv)
    wanted = [picture for picture in PICTURES if getattr(given, picture)]
    given.metrics = given.metrics or ([] if wanted else DEFAULT)
    try:
        check(given)
        files = {path: load(path) for path in given.files}
        values = {path: measure(path, arrays, given) for path, arrays in files.items()} if given.metrics else {}
        for picture in wanted:
            draw = {"panel": draw_panel, "spectrum": draw_spectrum, "tsne": draw_tsne}[picture]
            write_picture(draw(files, given), getattr(given, picture))
    except ValueError as problem:
        line = str(problem)
        for flag, here in OTHERWISE.items():
            line = line.replace(flag, here)
        raise ValueError(line) from problem
    if given.json:
        print(json.dumps(values if len(files) > 1 else values.get(given.files[0], {})))
        return 0
    mark = " (approximate search)" if given.search == "ivf" else ""
    for path, its_own in values.items():
        lines = [f"{path}:"] * (len(files) > 1) + [f"{name:24s} {value:.6f}{mark}" for name, value in its_own.items()]
        print(*lines, sep="\n")
    for picture in wanted:
        print(f"written: {getattr(given, picture)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
