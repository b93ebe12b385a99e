"""Exact nearest neighbours: one function, computed by faiss or by torch."""

import torch

BLOCK_BYTES = 256 * 2**20  # memory that a block of distances may take


def have_faiss():
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def nearest_neighbours(queries, gallery, k, exclude_self=False, backend="auto", on_cpu=False):
    """Indices (n, k) of the k gallery rows nearest to each query in Euclidean distance, nearest first.

    Exact, in float32, in blocks of queries so that memory stays bounded.

    Parameters
    ----------
    queries (n, d), gallery (m, d) : tensors
    k : int
        Cut to what the gallery has.
    exclude_self : bool
        Query i is gallery row i, and is not its own neighbour. It is removed by its index: with duplicates it need not
        come first.
    backend : "auto", "faiss" or "torch"
        auto: torch where the tensors are on a GPU, else faiss, or torch where faiss is not installed.
    on_cpu : bool
        Search on the CPU though the tensors are on a GPU.
    """
    if on_cpu:
        queries, gallery = queries.cpu(), gallery.cpu()
    queries, gallery = queries.float().contiguous(), gallery.float().contiguous()
    k = min(k, len(gallery) - exclude_self)
    if k < 1:
        raise ValueError("nearest_neighbours: the gallery has no image to find")
    if backend == "auto":
        backend = "faiss" if have_faiss() and (not queries.is_cuda or faiss_gpus()) else "torch"
    find = {"faiss": search_faiss, "torch": search_torch}[backend]
    found = find(queries, gallery, k + exclude_self)
    return drop_self(found, k) if exclude_self else found


def drop_self(found, k):
    """From indices (n, k + 1) drop query i's own index i, or the last one where i is not among them."""
    own = found == torch.arange(len(found), device=found.device)[:, None]
    own[:, -1] |= ~own.any(1)
    return found[~own].view(len(found), k)


def search_torch(queries, gallery, k):
    squared = gallery.square().sum(1)
    block = max(1, BLOCK_BYTES // (4 * len(gallery)))
    found = [torch.addmm(squared, part, gallery.T, alpha=-2).topk(k, largest=False).indices for part in queries.split(block)]
    return torch.cat(found)


def faiss_gpus():
    import faiss
    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def search_faiss(queries, gallery, k):
    import faiss
    device = queries.device
    index = faiss.IndexFlatL2(gallery.shape[1])
    if device.type == "cuda" and k <= 2048:  # what faiss's GPU selection can hold
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
    index.add(gallery.cpu().numpy())
    return torch.from_numpy(index.search(queries.cpu().numpy(), k)[1]).to(device)
