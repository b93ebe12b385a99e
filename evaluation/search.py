"""Exact nearest neighbours: one function, computed by faiss or by torch, the same neighbours in the same order from both."""

import torch

BLOCK_BYTES = 256 * 2**20  # memory that a block of distances may take
FAISS_GPU_K = 2048  # the most neighbours that faiss's selection on a GPU can hold
BACKENDS = ("auto", "faiss", "torch", "ivf")
SPARE = 8  # neighbours beyond the last wanted one, among which a tie with it is looked for


class Unmeasurable(ValueError):
    """Embeddings that a metric is not defined for: not finite, or all zero."""


def have_faiss():
    try:
        import faiss  # noqa: F401
    except ImportError:
        return False
    return True


@torch.no_grad()
def nearest_neighbours(queries, gallery, k, exclude_self=False, backend="auto", on_cpu=False):
    """Indices (n, k) of the k gallery rows nearest to each query in Euclidean distance, nearest first, ties by index.

    Exact: distances are taken in float32, in blocks of queries so that memory stays bounded, and neighbours whose
    distances differ by no more than float32's rounding are put in order by their float64 distances. So the result does
    not depend on the back-end, also with duplicates.

    Parameters
    ----------
    queries (n, d), gallery (m, d) : tensors
    k : int
        Cut to what the gallery has.
    exclude_self : bool
        Query i is gallery row i, and is not its own neighbour. It is removed by its index: with duplicates it need not
        come first.
    backend : "auto", "torch", "faiss" or "ivf"
        auto: torch, which was never slower in benchmarks/evaluation.py. faiss: its flat index, on the GPU where the
        tensors are there. ivf: faiss's inverted lists, approximate (sqrt(m) lists, an eighth of them visited).
    on_cpu : bool
        Search on the CPU though the tensors are on a GPU.

    Raises
    ------
    ValueError
        If the gallery is empty or holds the query alone, if exclude_self is asked of queries that are not the gallery's
        rows, or if the back-end is unknown or faiss is not installed.
    """
    space = Space(queries, gallery, exclude_self, on_cpu)
    found = [settle(space, *part, min(k, space.available)) for part in candidates(space, k, backend)]
    return torch.cat(found).to(queries.device)


class Space:
    """Queries and gallery: distances by block in float32, and of single pairs in float64."""

    def __init__(self, queries, gallery, exclude_self=False, on_cpu=False):
        if on_cpu:
            queries, gallery = (gallery.cpu(),) * 2 if queries is gallery else (queries.cpu(), gallery.cpu())
        if exclude_self and queries.shape != gallery.shape:
            raise ValueError(f"nearest_neighbours: exclude_self needs the gallery as queries, got {tuple(queries.shape)} and {tuple(gallery.shape)}")
        self.available = len(gallery) - exclude_self
        if self.available < 1:
            raise ValueError("nearest_neighbours: the gallery has no image to find")
        self.queries, self.gallery, self.exclude_self = queries, gallery, exclude_self
        self.q, self.g, self.scale = well_scaled(queries, gallery)
        self.q_norm, self.g_norm = self.q.norm(dim=1), self.g.norm(dim=1)
        # |g|² - 2 q·g as one product, (-2 q, 1) · (g, |g|²)
        self.left = torch.nn.functional.pad(-2 * self.q, (0, 1), value=1.0)
        self.right = torch.cat([self.g, self.g_norm.square()[:, None]], 1)
        self.ids = None

    def distances(self, rows, out=None):
        """Squared distances (b, m) less the query's own square, which does not change the order; infinite to the query itself."""
        with torch.autocast(self.q.device.type, enabled=False):  # half precision would merge near neighbours
            D = torch.mm(self.left[rows], self.right.T, out=out)
        if self.exclude_self:
            D.scatter_(1, rows[:, None], torch.inf)
        return D

    def tolerance(self, rows, found):
        """(b, 1): what rounding may have done to the distances of these neighbours."""
        return 4 * torch.finfo(torch.float32).eps * (self.q_norm[rows] + self.g_norm[found].amax(1))[:, None].square()

    def exact(self, rows, columns):
        """Float64 squared distances (p,) of pairs, in the unit of `distances`. Equal pairs of vectors are computed once."""
        if not len(rows):
            return torch.zeros(0, dtype=torch.float64, device=rows.device)
        if self.ids is None:
            both = self.gallery if self.exclude_self else torch.cat([self.gallery, self.queries])
            self.ids = same_rows(both)
        q_ids, n = (self.ids if self.exclude_self else self.ids[len(self.gallery):]), int(self.ids.max()) + 1
        _, which = (q_ids[rows] * n + self.ids[columns]).unique(return_inverse=True)
        first = torch.zeros(int(which.max()) + 1, dtype=torch.long, device=which.device).scatter_(0, which, torch.arange(len(which), device=which.device))
        values = [(self.queries[r].double() - self.gallery[c].double()).square().sum(1)
                  for r, c in zip(rows[first].split(1 << 14), columns[first].split(1 << 14))]
        return torch.cat(values)[which] * self.scale**2


def same_rows(x):
    """A number for each row, the same for equal rows: (n,)."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(x.shape[1], generator=generator, dtype=torch.float64).to(x.device)
    key = torch.cat([(part.double() * weights).sum(1) for part in x.split(1 << 14)])
    order = key.argsort(stable=True)
    changes = (x[order[1:]] != x[order[:-1]]).any(1)  # equal rows have equal keys, so they lie side by side
    ids = torch.zeros(len(x), dtype=torch.long, device=x.device)
    ids[order[1:]] = changes.long().cumsum(0)
    return ids


def well_scaled(queries, gallery):
    """Both in float32, moved and scaled alike, which leaves the neighbours as they are; and the scale.

    Both back-ends take distances from |q|² - 2 q·g + |g|²: far from the origin the terms cancel (at a mean of 100 a quarter
    of the neighbours were wrong), and beyond 1e19 they overflow.
    """
    centre = gallery.mean(0, dtype=torch.float64).float()
    moved = gallery.float() - centre
    others = moved if queries is gallery else queries.float() - centre
    largest = torch.maximum(moved.abs().max(), others.abs().max())
    scale = 2.0 ** -int(torch.frexp(largest).exponent)  # a power of two does not round
    scaled = (moved * scale).contiguous()
    return (scaled if others is moved else (others * scale).contiguous()), scaled, scale


def candidates(space, k, backend="auto"):
    """For blocks of queries: rows (b,), distances (b, k') ascending and indices (b, k') of the nearest found, k' ≥ k where there are so many,
    and the block of all distances (b, m), which the next block overwrites, where it is at hand, else None."""
    if backend not in BACKENDS:
        raise ValueError(f"--search {backend}: must be one of {', '.join(BACKENDS)}")
    if backend in ("faiss", "ivf") and not have_faiss():
        raise ValueError(f"--search {backend}: needs faiss: pip install faiss-gpu (or faiss-cpu); --search torch needs nothing")
    wanted = min(k + SPARE, space.available)
    rows = torch.arange(len(space.q), device=space.q.device)
    block = max(1, BLOCK_BYTES // (4 * len(space.g)))
    if backend in ("auto", "torch"):
        buffer = torch.empty(min(block, len(rows)), len(space.g), device=rows.device)  # fresh memory for each block costs as much as the topk
        for part in rows.split(block):
            D = space.distances(part, out=buffer[: len(part)])
            yield part, *D.topk(wanted, largest=False), D
        return
    search = faiss_index(space.g, wanted + space.exclude_self, approximate=backend == "ivf")
    for part in rows.split(4096):
        d, found = search(space.q[part], wanted + space.exclude_self)
        if space.exclude_self:
            d, found = drop_self(part, d, found)
        yield part, d, found, None


def drop_self(rows, d, found):
    """From (b, k + 1) neighbours drop the query itself, or the last one where it is not among them: (b, k)."""
    own = found == rows[:, None]
    own[:, -1] |= ~own.any(1)
    return d[~own].view(len(found), -1), found[~own].view(len(found), -1)


def settle(space, rows, d, found, D, k, match=None):
    """The first k of `candidates`, in the exact order: indices (b, k).

    Where neighbours lie nearer together than rounding allows to tell, they are ordered by float64 distance, then index;
    if such a run reaches the last candidate, all of the gallery that may belong to it is looked at. With `match`
    (a function (rows, indices) → bool) runs in which all match or none does are left as they are: metrics see no difference.
    """
    tolerance = space.tolerance(rows, found)
    near = d[:, 1:] - d[:, :-1] <= tolerance
    matters = near
    if match is not None:
        flags = match(rows, found)
        matters = near & (flags[:, 1:] != flags[:, :-1])
    beyond = near[:, k - 1 :].all(1) if found.shape[1] < space.available else torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    chosen = (matters.any(1) & ~beyond).nonzero().squeeze(1)
    if len(chosen):
        run = torch.nn.functional.pad((~near[chosen]).long().cumsum(1), (1, 0))  # number of the run a neighbour is in
        hit = torch.zeros_like(run).scatter_add_(1, run[:, 1:], matters[chosen].long()) > 0
        r, c = hit.gather(1, run).nonzero(as_tuple=True)
        values = found[chosen[r], c]
        found = found.clone()
        found[chosen[r], c] = values[lexsort(r, run[r, c], space.exact(rows[chosen[r]], values), values)]
    for part in beyond.nonzero().squeeze(1).split(max(1, (1 << 22) // len(space.g))):
        if not len(part):
            break
        whole = space.distances(rows[part]) if D is None else D[part]
        if D is None:  # the same tie, measured by the other back-end's rounding
            limit = whole.gather(1, found[part, :k]).amax(1, keepdim=True) + tolerance[part]
        else:
            limit = d[part, k - 1 : k] + tolerance[part]
        r, c = (whole <= limit).nonzero(as_tuple=True)
        order = lexsort(r, space.exact(rows[part][r], c), c)
        start = torch.nn.functional.pad(r.bincount(minlength=len(part)).cumsum(0)[:-1], (1, 0))
        found[part, :k] = c[order][start[:, None] + torch.arange(k, device=c.device)]
    return found[:, :k]


def lexsort(*keys):
    """Order by the first key, then the second, and so on."""
    order = torch.arange(len(keys[0]), device=keys[0].device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def faiss_gpus():
    import faiss
    return faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0


def faiss_index(gallery, k, approximate=False):
    """A function (queries, k) → (squared distances, indices) tensors, of faiss's flat index or of inverted lists."""
    import faiss
    points, d = gallery.cpu().numpy(), gallery.shape[1]
    index = faiss.IndexFlatL2(d)
    if approximate:
        lists = max(1, int(len(points) ** 0.5))
        index = faiss.IndexIVFFlat(index, d, lists)
        index.cp.min_points_per_centroid = 1
        index.nprobe = max(1, lists // 8)
    if gallery.is_cuda and faiss_gpus() > 0 and k <= FAISS_GPU_K:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), gallery.device.index or 0, index)
    if approximate:
        index.train(points)
    index.add(points)

    def search(queries, k):
        d, found = index.search(queries.cpu().numpy(), k)
        short = (found < 0).any(1)
        if short.any():  # the visited lists held fewer than k: all of them for these queries
            visited, index.nprobe = index.nprobe, index.nlist
            d[short], found[short] = index.search(queries.cpu().numpy()[short], k)
            index.nprobe = visited
        return torch.from_numpy(d).to(queries.device), torch.from_numpy(found).to(queries.device)

    return search
