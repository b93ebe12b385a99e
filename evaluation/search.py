"""The nearest neighbours of embeddings, by faiss or by torch: the same ones in the same order.

1. Equal rows are one point, found once: a collapsed model has few, and costs no more than any other.
2. The k + 8 nearest points are found by float32 products.
3. Those as near as each other to float32's rounding are put in order by (float64 distance, index).
"""

import torch
from torch.nn.functional import pad

from evaluation.rows import ROWS, Unmeasurable, same_rows, well_scaled

__all__ = ["Search", "Unmeasurable", "check_backend", "have_faiss", "nearest_neighbours"]

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

    The order is that of a stable sort of float64 distances, whatever the back-end, as far as ties between different
    points end within the k + 8 nearest; of a longer tie, which of its points are among these is the back-end's choice.
    Copies of a row may be any number.

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
    search = Search(queries, gallery, k, exclude_self, backend, on_cpu)
    found = torch.cat([search.nearest(rows, k) for rows in search.blocks()])
    return found.to(queries.device) if torch.is_tensor(queries) else found


class Search:
    """`nearest_neighbours` by blocks of queries, for any k up to `deepest`."""

    def __init__(self, queries, gallery, deepest, exclude_self=False, backend="auto", on_cpu=False):
        check_backend(backend)
        sets = [torch.as_tensor(x).detach() for x in ([gallery] if gallery is queries else [gallery, queries])]
        gallery, queries = [x.cpu() if on_cpu else x for x in (sets[0], sets[-1])]
        check_rows(queries, gallery, deepest, exclude_self)
        self.device, self.exclude_self, self.available = gallery.device, exclude_self, len(gallery) - exclude_self
        point = same_rows(gallery)
        self.by_point, self.copies = point.argsort(stable=True), point.bincount()  # rows in order of points, how many
        self.start = self.copies.cumsum(0) - self.copies  # where in by_point those of a point begin
        has_copies = len(self.copies) < len(gallery)
        self.points, self.queries = gallery[self.by_point[self.start]] if has_copies else gallery, queries
        scaled, self.scale = well_scaled([self.points] if queries is self.points else [self.points, queries])
        p, self.q = scaled[0], scaled[-1]
        self.p_norm, self.q_norm = p.norm(dim=1), self.q.norm(dim=1)
        if backend == "auto":
            on_gpu = p.is_cuda and have_faiss() and faiss_gpus() > 0 and self.points_for(deepest) <= FAISS_GPU_K
            backend = "faiss" if have_faiss() and (on_gpu or not p.is_cuda) else "torch"
        self.by_chance = 0  # queries so far of whose nearest rows some were chosen among equals, by the back-end
        self.block = max(1, BLOCK_BYTES // (4 * len(p))) if backend == "torch" else 4096
        if backend == "torch":
            self.find = torch_index(p, min(self.block, len(queries)))
        else:
            self.find = faiss_index(p, self.points_for(deepest), backend == "ivf")

    def points_for(self, k):
        """How many points are looked at for the k nearest rows."""
        return min(k + self.exclude_self + SPARE, len(self.points))

    def blocks(self, rows=None):
        """Numbers of queries (all of them without `rows`) in blocks that `nearest` takes."""
        return (torch.arange(len(self.q), device=self.device) if rows is None else rows).split(self.block)

    def nearest(self, rows, k, exact=True):
        """Gallery indices (b, k) of the k nearest to queries `rows` (b,); k is cut to what there is.

        exact=False leaves out float64, whose cost is unbounded where many points lie within float32's rounding.
        """
        k = min(k, self.available)
        distances, points = self.find(self.q[rows], self.points_for(k))
        if exact:
            distances = self.told_apart(rows, distances, points, k + self.exclude_self)
        distances, neighbours = self.rows_of(points, distances, k + self.exclude_self + SPARE)
        tied = (distances.diff(dim=1) <= 0).any(1)
        by_index, order = neighbours[tied].sort(1)
        by_distance = distances[tied].gather(1, order).argsort(stable=True, dim=1)
        neighbours[tied] = by_index.gather(1, by_distance)
        if not self.exclude_self:
            return neighbours[:, :k]
        neighbours = neighbours[:, : k + 1]
        own = neighbours == rows[:, None]
        own[:, -1] |= ~own.any(1)  # it lies behind its copies: the last goes
        return neighbours[~own].view(len(rows), k)

    def told_apart(self, rows, d, points, wanted):
        """Squared distances (b, k) from those less |q|² of `find`: float64's where rounding may hide the order.

        Counts the queries of which a tie begins among the `wanted` nearest and goes on beyond these k.
        """
        p, q = self.p_norm[points], self.q_norm[rows, None]
        rounding = 4 * torch.finfo(d.dtype).eps * p * (p + 2 * q)
        near = d.diff(dim=1) <= torch.maximum(rounding[:, 1:], rounding[:, :-1])
        if near.shape[1] and len(self.points) > points.shape[1]:
            tied_to_the_end = near.flip(1).cumprod(1).sum(1)
            self.by_chance += int((tied_to_the_end > points.shape[1] - 1 - wanted).sum())
        i, j = (pad(near, (1, 0)) | pad(near, (0, 1))).nonzero(as_tuple=True)
        pairs = zip(rows[i].split(ROWS), points[i, j].split(ROWS))
        exact = [((self.queries[r].double() - self.points[c]) * self.scale).square().sum(1) for r, c in pairs]
        distances = d.double() + q.double() ** 2
        distances[i, j] = torch.cat(exact)
        return distances

    def rows_of(self, points, distances, k):
        """Distances and gallery rows of points (b, j): each point's copies in its place, cut to the first k."""
        if len(self.points) == len(self.by_point):  # no row has a copy: points are rows
            return distances, points
        end = self.copies[points].cumsum(1)
        place = torch.arange(min(k, len(self.by_point)), device=self.device).repeat(len(end), 1)
        which = torch.searchsorted(end, place, right=True)  # of the points, the one whose copy comes in this place
        first = (self.start[points] - end + self.copies[points]).gather(1, which)
        return distances.gather(1, which), self.by_point[first + place]


def check_rows(queries, gallery, k, exclude_self):
    shapes = [tuple(x.shape) for x in (queries, gallery)]
    if k < 1:
        raise ValueError(f"nearest_neighbours: k must be at least 1, got {k}")
    others = len(gallery) > exclude_self and len(queries) > 0
    if not others or {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"nearest_neighbours: needs queries (n, d) and a gallery (m, d) with others, got {shapes}")
    if exclude_self and shapes[0] != shapes[1]:
        raise ValueError(f"nearest_neighbours: exclude_self needs the gallery as queries, got {shapes}")


# --- back-ends: functions of scaled queries (b, d) and k to |p|² - 2 q·p (b, k), ascending, and the points' numbers ---


def torch_index(points, block):
    """By a product and topk, of at most `block` queries at once."""
    right = torch.cat([points, points.square().sum(1, keepdim=True)], 1)
    buffer = points.new_empty(block, len(points))  # fresh memory costs as much as topk

    def find(q, k):
        with torch.autocast(q.device.type, enabled=False):  # half precision would merge near neighbours
            D = torch.mm(pad(-2 * q, (0, 1), value=1.0), right.T, out=buffer[: len(q)])
        return D.topk(k, largest=False)

    return find


def faiss_index(points, deepest, approximate=False):
    """By faiss's flat index of products; approximate: by its inverted lists of distances."""
    import faiss

    if approximate:
        lists = max(1, int(len(points) ** 0.5))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(points.shape[1]), points.shape[1], lists)
        index.cp.min_points_per_centroid = 1
        index.nprobe = max(1, lists // 8)
    else:
        points = torch.cat([points, points.square().sum(1, keepdim=True)], 1)
        index = faiss.IndexFlatIP(points.shape[1])
    if points.is_cuda and faiss_gpus() > 0 and deepest <= FAISS_GPU_K:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), points.device.index or 0, index)
    if approximate:
        index.train(points.cpu().numpy())
    index.add(points.cpu().numpy())

    def find(q, k):
        asked = (q if approximate else pad(2 * q, (0, 1), value=-1.0)).cpu().numpy()
        d, points = index.search(asked, k)
        short = (points < 0).any(1)
        if short.any():  # the visited lists held fewer than k: all of them for these queries
            visited, index.nprobe = index.nprobe, index.nlist
            d[short], points[short] = index.search(asked[short], k)
            index.nprobe = visited
        d, points = torch.from_numpy(d).to(q.device), torch.from_numpy(points).to(q.device)
        return d - q.square().sum(1, keepdim=True) if approximate else -d, points

    return find
