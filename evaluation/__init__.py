"""Embed a split, search it, and return a flat {metric name: float}."""

import os
import weakref
from pathlib import Path

import numpy as np
import torch

from evaluation import clustering, collapse, retrieval, search
from evaluation.metrics import METRICS, Metric, check_names, compute
from evaluation.search import Unmeasurable
from utilities import distributed
from utilities.folders import write_whole
from utilities.signals import shield_worker

SMALL = 20_000_000  # pixels: a split below is embedded faster without starting worker processes
CROPS = weakref.WeakKeyDictionary()  # {split: this process's batches}, decoded and cropped once
CONTAINER = Path("/sys/fs/cgroup/memory.max")  # the bytes that a container may have, or "max"
MEMORY = Path("/proc/meminfo")  # kB; elsewhere than on Linux 4 GiB count as free


def memory_for_crops():
    """Bytes that the images of a split may take: a quarter of the memory that is free, or of the container's."""
    limit, words = (path.read_text().split() if path.is_file() else [] for path in (CONTAINER, MEMORY))
    free = 1024 * int(words[words.index("MemAvailable:") + 1]) if words else 4 * 2**30
    return min([free, *(int(word) for word in limit if word.isdigit())]) // 4


def batches(split, batch_size, workers, pin_memory):
    """(uint8 images (b, 3, H, W), labels (b,)) of this process, every world-th image; kept where there is memory."""
    if split in CROPS:
        yield from CROPS[split]
        return
    mine, first, parts = range(distributed.rank(), len(split), distributed.world()), split[0][0], []
    keep, small = len(split) * first.nbytes < memory_for_crops(), len(split) * first.shape[-1] ** 2 < SMALL
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(split, mine or [0]),  # a process without images learns the dimension from one
        batch_size, num_workers=0 if small else min(workers, os.cpu_count() or 1), pin_memory=pin_memory,
        worker_init_fn=shield_worker, generator=torch.Generator(),  # its own, or the training's numbers would move
    )  # fmt: skip
    for batch in loader:
        parts += [[values.clone() for values in batch]] * keep  # no workers' memory, of which there may be little
        yield batch
    if keep:
        CROPS[split] = parts


@torch.inference_mode()
def embed(model, split, batch_size=256, workers=0):
    """Embeddings (n, d), float32, and labels (n,) of all images of a split that has some, in order.

    The model runs in eval mode and float32: bf16 moves the metrics by more than 1e-3. All processes get all.
    """
    device, training, parts = next(model.parameters()).device, model.training, []
    model.eval()
    try:
        for images, labels in batches(split, batch_size, workers, device.type == "cuda"):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            parts.append((model(images).float(), labels))
    finally:
        model.train(training)
    mine = len(range(distributed.rank(), len(split), distributed.world()))
    return tuple(distributed.gather_rows(torch.cat(column)[:mine], len(split)) for column in zip(*parts))


def parts_of(split):
    """{prefix of the arrays' names: the images}: of a split with .query and .gallery (In-Shop) there are two."""
    return {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}


def embed_split(model, split, opt):
    """The arrays that `compute` takes, by name: embeddings and labels, of a query/gallery split also the queries'."""
    arrays = {}
    for prefix, part in parts_of(split).items():
        for name, values in zip(("embeddings", "labels"), embed(model, part, max(opt.bs, 256), opt.kernels)):
            arrays[prefix + name] = values.cpu() if opt.evaluate_on_cpu else values
    return arrays


def evaluate(model, split, opt, also=()):
    """Embed `split` and compute opt.evaluation_metrics and `also`, on the first process for all: {name: float}."""
    arrays, names = embed_split(model, split, opt), list(dict.fromkeys([*opt.evaluation_metrics, *also]))
    how = dict(names=names, seed=opt.seed, search=opt.search, restarts=opt.kmeans_restarts)
    return distributed.on_first(lambda: compute(**arrays, **how))


def save_all_embeddings(model, evaluated, opt, folder, n_classes, of=""):
    """Write embeddings_<split><of>.npz, for python -m evaluation, of each of the splits {name: split}.

    Labels go on after those of the splits before, first the n_classes for training: no two splits share one. of: ""
    for a run's own data, else what tells their files from its.
    """
    first = 0 if "train" in evaluated else n_classes
    for name, split in evaluated.items():
        arrays = {key: values.cpu().numpy() for key, values in embed_split(model, split, opt).items()}
        for prefix, part in parts_of(split).items():
            arrays[f"{prefix}labels"] += first
            paths = [os.path.abspath(path) if os.path.exists(path) else path for path in part.paths]  # glyphs have none
            arrays |= {f"{prefix}paths": np.array(paths), "class_names": np.array(part.class_names)}
        arrays |= dict(dataset=opt.dataset, split=name, first_label=first)
        path = os.path.join(folder, f"embeddings_{name}{of}.npz")
        distributed.on_first(lambda: write_whole(path, lambda file: np.savez(file, **arrays), "wb"))
        distributed.print_once(f"written: {path}")
        first += len(arrays["class_names"])
