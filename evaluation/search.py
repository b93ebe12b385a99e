"""Exact nearest neighbours: one function, computed by faiss or by torch."""

import torch

BLOCK_BYTES = 256 * 2**20  # memory that a block of distances may take
FAISS_GPU_K = 2048  # the most neighbours that faiss's selection on a GPU can hold


def have_faiss():
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


@torch.no_grad()
def nearest_neighbours(queries, gallery, k, exclude_self=False, backend="auto", on_cpu=False):
    """Indices (n, k) of the k gallery rows nearest to each query in Euclidean distance, nearest first.

    Exact, in float32, in blocks of queries so that memory stays bounded. Deterministic; but neighbours whose distances
    differ by no more than float32's rounding (duplicates, say) come in an order that depends on the back-end.

    Parameters
    ----------
    queries (n, d), gallery (m, d) : tensors
    k : int
        Cut to what the gallery has.
    exclude_self : bool
        Query i is gallery row i, and is not its own neighbour. It is removed by its index: with duplicates it need not
        come first.
    backend : "auto", "faiss", "torch" or "ivf"
        ivf: faiss's inverted lists, approximate (sqrt(m) lists, an eighth of them visited), for galleries past memory's patience.
        auto: faiss where it is installed and can search on the tensors' device (on a GPU not beyond 2048 neighbours), else torch.
    on_cpu : bool
        Search on the CPU though the tensors are on a GPU.

    Raises
    ------
    ValueError
        If the gallery is empty or holds the query alone, or if exclude_self is asked of queries that are not the gallery's rows.
    """
    if on_cpu:
        queries, gallery = (gallery.cpu(),) * 2 if queries is gallery else (queries.cpu(), gallery.cpu())
    if exclude_self and queries.shape != gallery.shape:
        raise ValueError(f"nearest_neighbours: exclude_self needs the gallery as queries, got {tuple(queries.shape)} and {tuple(gallery.shape)}")
    k = min(k, len(gallery) - exclude_self)
    if k < 1:
        raise ValueError("nearest_neighbours: the gallery has no image to find")
    if backend == "auto":
        able = have_faiss() and (not queries.is_cuda or (faiss_gpus() > 0 and k + exclude_self <= FAISS_GPU_K))
        backend = "faiss" if able else "torch"
    if backend in ("faiss", "ivf") and not have_faiss():
        raise ValueError(f"--search {backend}: needs faiss: pip install faiss-gpu (or faiss-cpu); --search torch needs nothing")
    find = {"faiss": search_faiss, "torch": search_torch, "ivf": search_ivf}[backend]
    found = find(*well_scaled(queries, gallery), k + exclude_self)
    return drop_self(found, k) if exclude_self else found


def well_scaled(queries, gallery):
    """Both in float32, moved and scaled alike, which leaves the neighbours as they are.

    Both back-ends take distances from |q|² - 2 q·g + |g|²: far from the origin the terms cancel (at a mean of 100 a quarter
    of the neighbours were wrong), and beyond 1e19 they overflow.
    """
    centre = gallery.mean(0, dtype=torch.float64).float()
    moved = gallery.float() - centre
    others = moved if queries is gallery else queries.float() - centre
    largest = torch.maximum(moved.abs().max(), others.abs().max())
    scale = 2.0 ** -int(torch.frexp(largest).exponent)  # a power of two does not round
    scaled = (moved * scale).contiguous()
    return (scaled if others is moved else (others * scale).contiguous()), scaled


def drop_self(found, k):
    """From indices (n, k + 1) drop query i's own index i, or the last one where i is not among them."""
    own = found == torch.arange(len(found), device=found.device)[:, None]
    own[:, -1] |= ~own.any(1)
    return found[~own].view(len(found), k)


def search_torch(queries, gallery, k):
    squared = gallery.square().sum(1)
    block = max(1, BLOCK_BYTES // (4 * len(gallery)))
    with torch.autocast(queries.device.type, enabled=False):  # half precision would merge near neighbours
        found = [torch.addmm(squared, part, gallery.T, alpha=-2).topk(k, largest=False).indices for part in queries.split(block)]
    return torch.cat(found)


def faiss_gpus():
    import faiss
    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def search_faiss(queries, gallery, k):
    import faiss
    device = queries.device
    index = faiss.IndexFlatL2(gallery.shape[1])
    if device.type == "cuda" and k <= FAISS_GPU_K:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), device.index or 0, index)
    index.add(gallery.cpu().numpy())
    return torch.from_numpy(index.search(queries.cpu().numpy(), k)[1]).to(device)


def search_ivf(queries, gallery, k):
    import faiss
    points = gallery.cpu().numpy()
    lists = max(1, int(len(points) ** 0.5))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
    index.cp.min_points_per_centroid = 1
    index.train(points)
    index.add(points)
    index.nprobe = max(1, lists // 8)
    found = index.search(queries.cpu().numpy(), k)[1]
    short = (found < 0).any(1)
    if short.any():  # the visited lists held fewer than k: all of them for these queries
        index.nprobe = lists
        found[short] = index.search(queries.cpu().numpy()[short], k)[1]
    return torch.from_numpy(found).to(queries.device)
