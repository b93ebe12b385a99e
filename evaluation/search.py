"""The nearest neighbours of embeddings, by faiss or by torch: the same ones in the same order."""

import torch
from torch.nn.functional import pad

from evaluation.rows import ROWS, Unmeasurable, same_rows, well_scaled

__all__ = ["Unmeasurable", "check_backend", "have_faiss", "nearest_neighbours"]

SPARE = 8  # neighbours looked at beyond the k-th, so that its ties are put in order with it
BLOCK_BYTES = 256 * 2**20  # memory that a block of distances may take
FAISS_GPU_K = 2048  # the most neighbours that faiss's selection on a GPU can hold
BACKENDS = ("auto", "faiss", "torch", "ivf")


def have_faiss():
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


def faiss_gpus():
    import faiss

    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def check_backend(backend):
    """ValueError, one line, for a back-end that is unknown or cannot run here."""
    if backend not in BACKENDS:
        raise ValueError(f"--search {backend}: must be one of {', '.join(BACKENDS)}")
    if backend in ("faiss", "ivf") and not have_faiss():
        raise ValueError(
            f"--search {backend}: needs faiss: pip install faiss-gpu (or faiss-cpu); --search torch needs nothing"
        )


def nearest_neighbours(queries, gallery, k, exclude_self=False, backend="auto", on_cpu=False):
    """Indices (n, k) of the k gallery rows nearest to each query in Euclidean distance, nearest first, ties by index.

    The k + 8 nearest by float32 distance are found, and those as near to float32's rounding are put in order by
    (float64 distance, index): duplicates and ties that end within these k + 8 are in the order of a stable sort of
    float64 distances, whatever the back-end. Of a longer tie (a collapsed model's), which of its images are among the
    k + 8 is the back-end's choice.

    Parameters
    ----------
    queries (n, d), gallery (m, d) : tensors or arrays
    k : int, cut to what the gallery has
    exclude_self : bool; query i is gallery row i and is left out, by its index: among duplicates it need not come first
    backend : str
        "auto": faiss where it is installed (and built for GPUs, for tensors on a GPU), else torch. "faiss": its flat
        index. "ivf": its inverted lists, approximate (sqrt(m) lists, an eighth of them visited). "torch".
    on_cpu : bool; search on the CPU though the tensors are on a GPU

    Raises ValueError if k < 1, there is nothing to find, exclude_self is asked of queries that are not the gallery's
    rows, or the back-end is unknown or not installed; Unmeasurable, one too, if the rows are not finite.
    """
    found = torch.cat([found for _, found in neighbours(Space(queries, gallery, exclude_self, on_cpu), k, backend)])
    return found.to(queries.device) if torch.is_tensor(queries) else found


def neighbours(space, k, backend="auto"):
    """nearest_neighbours by blocks: pairs of queries' numbers (b,) and what is found for them (b, k)."""
    check_backend(backend)
    if k < 1:
        raise ValueError(f"nearest_neighbours: k must be at least 1, got {k}")
    k = min(k, space.available)
    wanted = min(k + SPARE, space.available)
    if backend == "auto":
        fits = have_faiss() and (not space.g.is_cuda or faiss_gpus() > 0 and wanted < FAISS_GPU_K)
        backend = "faiss" if fits else "torch"
    block = 4096 if backend != "torch" else max(1, BLOCK_BYTES // (4 * len(space.g)))
    find = torch_search(space, wanted, block) if backend == "torch" else faiss_search(space, wanted, backend == "ivf")
    for rows in torch.arange(len(space.q), device=space.q.device).split(block):
        yield rows, in_exact_order(space, rows, *find(rows))[:, :k]


class Space:
    """Queries and gallery, moved and scaled alike, and their distances: by block in float32, by pair in float64."""

    def __init__(self, queries, gallery, exclude_self=False, on_cpu=False):
        sets = [torch.as_tensor(x).detach() for x in ([gallery] if queries is gallery else [gallery, queries])]
        self.sets, self.exclude_self = [x.cpu() for x in sets] if on_cpu else sets, exclude_self
        self.available, self.ids = len(sets[0]) - exclude_self, None
        shapes = [tuple(x.shape) for x in (sets[-1], sets[0])]
        if self.available < 1 or not len(sets[-1]) or {len(s) for s in shapes} != {2} or shapes[0][1] != shapes[1][1]:
            raise ValueError(f"nearest_neighbours: needs queries (n, d) and a gallery (m, d) with others, got {shapes}")
        if exclude_self and shapes[0] != shapes[1]:
            raise ValueError(f"nearest_neighbours: exclude_self needs the gallery as queries, got {shapes}")
        moved, self.scale = well_scaled(self.sets)
        self.g, self.q = moved[0], moved[-1]
        self.g_norm, self.q_norm = self.g.norm(dim=1), self.q.norm(dim=1)
        # |g|² - 2 q·g, which orders the gallery as the distance does, as one product
        self.left, self.right = pad(-2 * self.q, (0, 1), value=1.0), torch.cat([self.g, self.g_norm[:, None] ** 2], 1)

    def distances(self, rows, out=None):
        """Squared distances (b, m) of queries, less their own squares; infinite to the query itself."""
        with torch.autocast(self.q.device.type, enabled=False):  # half precision would merge near neighbours
            D = torch.mm(self.left[rows], self.right.T, out=out)
        return D.scatter_(1, rows[:, None], torch.inf) if self.exclude_self else D

    def rounding(self, rows, columns):
        """By how much `distances` of queries (b,) to gallery rows (b, j) may differ where the true ones are equal."""
        g = self.g_norm[columns]
        return 4 * torch.finfo(g.dtype).eps * g * (g + 2 * self.q_norm[rows, None])

    def exact(self, rows, columns):
        """Squared distances (p,) of pairs in float64, in the unit of `distances`; of equal pairs computed once."""
        if self.ids is None:
            self.ids = same_rows(self.sets[0] if self.exclude_self else torch.cat([self.sets[0], self.sets[-1]]))
        n, own = len(self.ids), self.ids[rows - len(self.q)]  # the queries come last
        pairs, which = (own * n + self.ids[columns]).unique(return_inverse=True)
        one = torch.zeros_like(pairs).scatter_(0, which, torch.arange(len(which), device=which.device))
        differences = (
            self.sets[-1][r].double() - self.sets[0][c] for r, c in zip(rows[one].split(ROWS), columns[one].split(ROWS))
        )
        return torch.cat([(each * self.scale).square().sum(1) for each in differences])[which]


def in_exact_order(space, rows, d, found):
    """Neighbours (b, j) sorted by distances d, those equal to rounding put in order by (float64 distance, index)."""
    rounding = space.rounding(rows, found)
    near = d.diff(dim=1) <= torch.maximum(rounding[:, 1:], rounding[:, :-1])
    tied = pad(near, (1, 0)) | pad(near, (0, 1))
    some = tied.any(1).nonzero().squeeze(1)
    if not len(some):
        return found
    rows, part = rows[some], found[some]
    key = d[some].double() + space.q_norm[rows, None].double() ** 2
    i, j = tied[some].nonzero(as_tuple=True)
    key[i, j] = space.exact(rows[i], part[i, j])
    part, order = part.sort(1)  # by index, then by distance
    order = key.gather(1, order).argsort(stable=True, dim=1)
    return found.index_copy(0, some, part.gather(1, order))


def torch_search(space, k, block):
    """A function: queries' numbers (b,), b ≤ block → distances, ascending, and indices of their nearest (b, k)."""
    buffer = space.q.new_empty(min(block, len(space.q)), len(space.g))  # fresh memory costs as much as topk
    return lambda rows: space.distances(rows, out=buffer[: len(rows)]).topk(k, largest=False)


def faiss_search(space, k, approximate=False):
    """As torch_search, by faiss's flat index of products; approximate: by its inverted lists of distances."""
    import faiss

    k += space.exclude_self
    points, asked = (space.g, space.q) if approximate else (space.right, -space.left)
    if approximate:
        lists = max(1, int(len(points) ** 0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
        index.cp.min_points_per_centroid = 1
        index.nprobe = max(1, lists // 8)
    else:
        index = faiss.IndexFlatIP(points.shape[1])
    if points.is_cuda and faiss_gpus() > 0 and k <= FAISS_GPU_K:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), points.device.index or 0, index)
    if approximate:
        index.train(points.cpu().numpy())
    index.add(points.cpu().numpy())

    def find(rows):
        queries = asked[rows].cpu().numpy()
        d, found = index.search(queries, k)
        short = (found < 0).any(1)
        if short.any():  # the visited lists held fewer than k: all of them for these queries
            visited, index.nprobe = index.nprobe, index.nlist
            d[short], found[short] = index.search(queries[short], k)
            index.nprobe = visited
        d, found = torch.from_numpy(d).to(rows.device), torch.from_numpy(found).to(rows.device)
        d = d - space.q_norm[rows, None] ** 2 if approximate else -d
        own = found == rows[:, None]
        own[:, -1] |= ~own.any(1)  # not among its copies: the last goes
        return [x[~own].view(len(rows), -1) for x in (d, found)] if space.exclude_self else (d, found)

    return find
