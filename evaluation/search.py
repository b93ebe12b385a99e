"""The nearest neighbours of embeddings: exact to float32, from faiss or from torch."""

import importlib.util
import math

import torch

BACKENDS = ("auto", "faiss", "torch")
BLOCK_BYTES = 256 * 2**20  # memory that the distances of a block of queries may take
FAISS_GPU_K = 2048  # the most neighbours that faiss finds on a GPU
ROUNDING = 2  # units of the last place: the warning then comes where about as many queries find a wrong neighbour
SAMPLE = 1000  # rows that the centre and the unit of length are taken from
LONGEST = 1e15  # in that unit: coordinates beyond are cut to it, or their squares would overflow


class Unmeasurable(FloatingPointError, ValueError):
    """Embeddings that a metric is not defined for: not finite, or all zero."""


def have_faiss():
    return importlib.util.find_spec("faiss") is not None


def check_backend(backend):
    """ValueError, one line, for a back-end that is unknown or not installed."""
    if backend not in BACKENDS or (backend == "faiss" and not have_faiss()):
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
    counts. Equally near rows come in the library's order. backend: "auto" is faiss where it is installed, else torch.
    """
    return torch.cat([found for _, found, _ in blocks_of_neighbours(queries, gallery, k, exclude_self, backend)])


@torch.no_grad()
def blocks_of_neighbours(queries, gallery, k, exclude_self=False, backend="auto"):
    """nearest_neighbours by blocks of queries: yields their numbers (b,), the indices (b, k), and which of these are as
    near as the first, to float32's rounding: bool (b, k)."""
    check_backend(backend)
    sets = well_scaled([gallery] if queries is gallery else [gallery, queries])
    gallery, queries = sets[0], sets[-1]
    k, block = min(k + exclude_self, len(gallery)), min(max(1, BLOCK_BYTES // (4 * len(gallery))), len(queries))
    find = finder(gallery, k, backend, block)
    for numbers, rows in zip(torch.arange(len(queries), device=gallery.device).split(block), queries.split(block)):
        distances, found = find(rows)
        if exclude_self:
            own = found == numbers[:, None]
            own[:, -1] |= ~own.any(1)  # it lies behind its duplicates: the last goes
            distances, found = (x[~own].view(len(rows), k - 1) for x in (distances, found))
        terms = rows.square().sum(1, keepdim=True) + distances[:, :1]  # the size of those of |x|² - 2 x·y + |y|²
        yield numbers, found, distances - distances[:, :1] <= ROUNDING * torch.finfo(torch.float32).eps * terms


def finder(gallery, k, backend, block):
    """A function of up to `block` queries (b, d) to squared distances (b, k), rising, and indices of gallery rows."""
    if backend != "torch" and have_faiss():
        import faiss

        if gallery.is_cuda and faiss.get_num_gpus() > 0 and k <= FAISS_GPU_K:
            import faiss.contrib.torch_utils  # noqa: F401  # faiss then takes tensors

            resources = faiss.StandardGpuResources()
            return lambda rows: faiss.knn_gpu(resources, rows, gallery, k)
        if backend == "faiss" or not gallery.is_cuda:
            there = gallery.cpu().numpy()
            return lambda rows: [torch.from_numpy(x).to(rows.device) for x in faiss.knn(rows.cpu().numpy(), there, k)]
    squares = gallery.square().sum(1)
    buffer = gallery.new_empty(block, len(gallery))  # fresh memory for each block would cost as much as topk

    def find(rows):
        products = torch.addmm(squares, rows, gallery.T, alpha=-2, out=buffer[: len(rows)])
        distances, found = products.topk(k, largest=False)
        return distances + rows.square().sum(1, keepdim=True), found

    return find
