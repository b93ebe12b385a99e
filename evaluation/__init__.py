"""Embed a split, search it, and return a flat {metric name: float}."""

import os

import numpy as np
import torch

from evaluation import clustering, collapse, retrieval, search
from evaluation.metrics import METRICS, Metric, check_names, compute
from evaluation.search import Unmeasurable
from utilities import distributed
from utilities.folders import write_whole
from utilities.signals import shield_worker

SMALL = 20_000_000  # pixels: a split below is embedded faster without starting worker processes


@torch.inference_mode()
def embed(model, split, batch_size=256, workers=0):
    """Embeddings (n, d), float32, and labels (n,) of all images of a split, in order; ValueError if it is empty.

    The model runs in eval mode and float32, whatever the training's precision; its mode is restored. Of several
    processes each embeds every world-th image, and all get all.
    """
    if len(split) == 0:
        raise ValueError("evaluation: the split has no image")
    n, mine = len(split), range(distributed.rank(), len(split), distributed.world())
    if distributed.world() > 1:
        split = torch.utils.data.Subset(split, mine or [0])  # a process without images learns the dimension from one
    device, training, parts = next(model.parameters()).device, model.training, []
    small = len(split) * split[0][0].shape[-1] ** 2 < SMALL
    loader = torch.utils.data.DataLoader(
        split, batch_size, num_workers=0 if small else min(workers, os.cpu_count() or 1),
        pin_memory=device.type == "cuda", worker_init_fn=shield_worker,
        generator=torch.Generator(),  # its own, or the training's random numbers would move
    )  # fmt: skip
    model.eval()
    try:
        for images, labels in loader:
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            parts.append((model(images).float(), labels))
    finally:
        model.train(training)
    return tuple(distributed.gather_rows(torch.cat(column)[: len(mine)], n) for column in zip(*parts))


def parts_of(split):
    """{prefix of the arrays' names: the images}: of a split with .query and .gallery (In-Shop) there are two."""
    return {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}


def embed_split(model, split, opt):
    """The arrays that `compute` takes, by name: embeddings and labels, of a query/gallery split also the queries'."""
    arrays = {}
    for prefix, part in parts_of(split).items():
        pair = embed(model, part, batch_size=max(opt.bs, 256), workers=opt.kernels)
        arrays[f"{prefix}embeddings"], arrays[f"{prefix}labels"] = (
            [x.cpu() for x in pair] if opt.evaluate_on_cpu else pair
        )
    return arrays


def evaluate(model, split, opt, also=()):
    """Embed `split` and compute opt.evaluation_metrics and `also`, on the first process for all: {name: float}."""
    arrays, names = embed_split(model, split, opt), list(dict.fromkeys([*opt.evaluation_metrics, *also]))
    how = dict(seed=opt.seed, search=opt.search, restarts=opt.kmeans_restarts)
    return distributed.on_first(lambda: compute(**arrays, names=names, **how))


def save_all_embeddings(model, evaluated, opt, folder, n_classes):
    """Write embeddings_<split>.npz, for python -m evaluation, of each of the splits {name: split}.

    Labels go on after those of the splits before, first the n_classes for training, so that no two splits share one.
    """
    first = 0 if "train" in evaluated else n_classes
    for name, split in evaluated.items():
        arrays = {key: values.cpu().numpy() for key, values in embed_split(model, split, opt).items()}
        for prefix, part in parts_of(split).items():
            arrays[f"{prefix}labels"] += first
            paths = [str(path) for path in part.paths or ()]
            paths = [os.path.abspath(path) if os.path.exists(path) else path for path in paths]  # glyphs have no file
            arrays |= {f"{prefix}paths": np.array(paths), "class_names": np.array(part.class_names)}
        arrays |= dict(dataset=opt.dataset, split=name, first_label=first)
        path = os.path.join(folder, f"embeddings_{name}.npz")
        distributed.on_first(lambda: write_whole(path, lambda file: np.savez(file, **arrays), "wb"))
        distributed.print_once(f"written: {path}")
        first += len(arrays["class_names"])
