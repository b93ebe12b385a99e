"""The nearest neighbours of embeddings: exact to float32, from faiss or from torch."""

import functools
import importlib.util
import logging
import math

import torch

BACKENDS = ("auto", "faiss", "torch")
BLOCK_BYTES = 256 * 2**20  # memory that the distances of a block of queries may take
FAISS_GPU_K = 2048  # the most neighbours that faiss finds on a GPU
ROUNDING = 2  # units of the last place: the warning then comes where about as many queries find a wrong neighbour
SAMPLE = 1000  # rows that the centre and the unit of length are taken from
LONGEST = 1e15  # in that unit: coordinates beyond are cut to it, or their squares would overflow


class Unmeasurable(FloatingPointError, ValueError):
    """Embeddings that no metric is defined for: not finite."""


@functools.cache
def faiss():
    """The library, or None where it is not installed or cannot be loaded."""
    try:
        return importlib.import_module("faiss")
    except Exception as problem:  # built for another NumPy, CUDA or processor, it raises whatever comes
        if importlib.util.find_spec("faiss"):
            logging.getLogger("antico").warning(f"note: faiss cannot be loaded ({problem}); torch searches")
        return None


@functools.cache
def gpu_resources():
    """faiss's memory on the GPU, made once."""
    importlib.import_module("faiss.contrib.torch_utils")  # it then takes tensors as they are
    resources = faiss().StandardGpuResources()
    resources.setTempMemory(256 * 2**20)  # beside what torch takes; its default is 1.5 GB
    return resources


def check_backend(backend):
    """ValueError, one line, for a back-end that is unknown or not installed."""
    if backend not in BACKENDS or (backend == "faiss" and not faiss()):
        raise ValueError(f"--search {backend}: must be auto, torch or, where that is installed, faiss")


def well_scaled(sets):
    """Sets of rows (n_i, d), centred and scaled alike in float64, as float32, which can then tell neighbours apart.

    The centre and the unit of length are medians of the first set: a few rows far away take no precision from others.
    """
    sample = sets[0][:: -(-len(sets[0]) // SAMPLE)].double()
    centre = sample.median(0).values
    lengths = (sample - centre).abs().amax(1)  # no squares: these may overflow
    length = float(lengths[lengths > 0].median()) if lengths.any() else 1.0
    scale = 2.0 ** min(-math.frexp(length)[1], 1000)  # powers of two do not round: what is equally far stays so

    def move(rows):
        return ((rows.double() - centre) * scale).clamp_(-LONGEST, LONGEST).float()

    return [torch.cat([move(rows) for rows in x.split(1024)]) for x in sets]  # in float64 they fit into the cache


def nearest_neighbours(queries, gallery, k, exclude_self=False, backend="auto"):
    """Indices (n, k) of the k gallery rows (m, d) nearest to each query (n, d) by Euclidean distance, nearest first.

    k is cut to what there is. exclude_self: query i is gallery row i and is left out by its index; a duplicate of it
    counts. backend: "auto" is faiss where it is installed and, on a GPU, built for it, else torch.
    """
    return torch.cat([found for _, found, _ in blocks_of_neighbours(queries, gallery, k, exclude_self, backend)])


@torch.no_grad()
def blocks_of_neighbours(queries, gallery, k, exclude_self=False, backend="auto"):
    """For each block of queries: their numbers (b,), neighbours (b, k), and which are as near as the first (b, k)."""
    check_backend(backend)
    sets = well_scaled([gallery] if queries is gallery else [gallery, queries])
    gallery, queries = sets[0], sets[-1]
    k, block = min(k + exclude_self, len(gallery)), max(1, BLOCK_BYTES // (4 * len(gallery)))
    squares = gallery.square().sum(1)
    rounding = ROUNDING * max(1, gallery.shape[1] / 512) ** 0.5 * torch.finfo(torch.float32).eps  # as products round
    for numbers, rows in zip(torch.arange(len(queries), device=gallery.device).split(block), queries.split(block)):
        distances, found = nearest_rows(rows, gallery, squares, k, backend)
        if exclude_self:
            own = found == numbers[:, None]
            own[:, -1] |= ~own.any(1)  # it lies behind its duplicates: the last goes
            before = torch.arange(k - 1, device=found.device) < own.byte().argmax(1, keepdim=True)
            distances, found = (torch.where(before, x[:, :-1], x[:, 1:]) for x in (distances, found))
        terms = rows.square().sum(1, keepdim=True) + distances[:, :1]  # the size of those of |x|² - 2 x·y + |y|²
        yield numbers, found, distances - distances[:, :1] <= rounding * terms


def nearest_rows(queries, gallery, squares, k, backend):
    """Squared distances (b, k) of queries (b, d) to the k nearest gallery rows, which have `squares`; their indices."""
    if backend != "torch" and not gallery.is_cuda and faiss():
        return map(torch.from_numpy, faiss().knn(queries.numpy(), gallery.numpy(), k))
    if backend != "torch" and gallery.is_cuda and k <= FAISS_GPU_K and hasattr(faiss(), "StandardGpuResources"):
        return faiss().knn_gpu(gpu_resources(), queries, gallery, k, device=gallery.get_device())
    products = torch.addmm(squares, queries, gallery.T, alpha=-2)
    distances, found = products.min(1, keepdim=True) if k == 1 else products.topk(k, largest=False)
    return distances + queries.square().sum(1, keepdim=True), found
