"""The nearest neighbours of embeddings, by faiss or by torch: the same ones in the same order.

1. Equal rows are one point, found once: a collapsed model has few, and costs no more than any other.
2. The k + 8 nearest points are found by float32 products.
3. Those as near as each other to float32's rounding are put in order by (float64 distance, index).
4. Where such a tie goes on beyond the k + 8, the query is held against all points again, in float64.
"""

from functools import cached_property

import torch
from torch.nn.functional import pad

from evaluation.rows import ROWS, Unmeasurable, same_rows, well_scaled

__all__ = ["Search", "Unmeasurable", "check_backend", "have_faiss", "nearest_neighbours"]

SPARE = 8  # neighbours looked at beyond the k-th, so that its ties are put in order with it
BLOCK_BYTES = 256 * 2**20  # memory that a block of distances may take
ROUNDING = 12  # units of the last place between two products; up to 10 were seen in 32 to 2048 dimensions
FAISS_GPU_K = 2048  # the most neighbours that faiss's selection on a GPU can hold
PAIR_BYTES = 64  # of such a block, for each query and point, where a tie is searched again
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

    The order is that of a stable sort of float64 distances, whatever the back-end and however long a tie ("ivf" only
    approximates it). Queries whose ties go on beyond the k + 8 nearest are searched in float64, at several times the
    cost and in bounded memory: a collapse onto a few points, unless these are copies, which may be any number.

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
    neighbours = torch.cat([search.nearest(rows, k) for rows in search.blocks()])
    return neighbours.to(queries.device) if torch.is_tensor(queries) else neighbours


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
        self.has_copies = len(self.copies) < len(gallery)
        self.points, self.queries = gallery[self.by_point[self.start]] if self.has_copies else gallery, queries
        p, self.q, self.scale = self.scaled(torch.float32)
        self.p_norm, self.q_norm = p.norm(dim=1), self.q.norm(dim=1)
        if backend == "auto":
            on_gpu = p.is_cuda and have_faiss() and faiss_gpus() > 0 and self.points_for(deepest) <= FAISS_GPU_K
            backend = "faiss" if have_faiss() and (on_gpu or not p.is_cuda) else "torch"
        self.block = max(1, BLOCK_BYTES // (4 * len(p))) if backend == "torch" else 4096
        self.approximate = backend == "ivf"
        if backend == "torch":
            self.find = torch_index(p, min(self.block, len(queries)))
        else:
            self.find = faiss_index(p, self.points_for(deepest), self.approximate)

    def scaled(self, dtype):
        """Points and queries, moved and scaled alike, and the scale."""
        same = self.queries is self.points
        rows, scale = well_scaled([self.points] if same else [self.points, self.queries], dtype)
        return rows[0], rows[-1], scale

    @cached_property
    def in_float64(self):
        return self.scaled(torch.float64)[:2]

    def points_for(self, k):
        """How many points are looked at for the k nearest rows."""
        return min(k + self.exclude_self + SPARE, len(self.points))

    def blocks(self, rows=None):
        """Numbers of queries (all of them without `rows`) in blocks that `nearest` takes."""
        return (torch.arange(len(self.q), device=self.device) if rows is None else rows).split(self.block)

    def nearest(self, rows, k, right=None):
        """Gallery indices (b, k) of the k nearest to queries `rows` (b,); k is cut to what there is.

        right : function of rows (b,) and gallery indices (b, j) to bool (b, j). If given, only which places it is true
        in counts: ties all of which are right, or all wrong, need not be put in order.
        """
        k = min(k, self.available)
        distances, points = self.nearest_points(rows, k, None if self.has_copies else right)
        neighbours = self.rows_of(points, distances, k + self.exclude_self) if self.has_copies else points
        if not self.exclude_self:
            return neighbours
        own = neighbours == rows[:, None]
        own[:, -1] |= ~own.any(1)  # it lies behind its copies: the last goes
        return neighbours[~own].view(len(rows), k)

    def nearest_points(self, rows, k, right):
        """Squared distances and numbers (b, k') of the points that hold the k nearest rows, by (distance, number)."""
        wanted = min(k + self.exclude_self, len(self.points))
        d, points = self.find(self.q[rows], self.points_for(k))
        q, last = self.q_norm[rows], d[:, wanted - 1]
        farthest = (q + (last + q**2).clamp(min=0).sqrt()).clamp(max=self.p_norm.max())  # from 0, of what is as near
        open_end = d[:, -1] - last <= rounding_of(d.dtype, farthest, q)
        open_end &= d.shape[1] < len(self.points)
        near = self.near(rows, d, points)
        if right is not None:
            near &= (near & right(rows, points).diff(dim=1)).any(1, keepdim=True)
        open_end |= near.sum(1) > len(self.points) // 32  # products with all cost less than so many differences
        open_end &= not self.approximate
        if not open_end.any():
            return self.in_order(rows, self.q, d, points, near, wanted)
        nearest = d.double()[:, :wanted], points[:, :wanted].clone()
        closed = ~open_end
        in_order = self.in_order(rows[closed], self.q, d[closed], points[closed], near[closed], wanted)
        for both, closed_ones, open_ones in zip(nearest, in_order, self.in_order_of_all(rows[open_end], wanted)):
            both[closed], both[open_end] = closed_ones, open_ones
        return nearest

    def in_order_of_all(self, rows, wanted):
        """The `wanted` nearest by float64 products with all points, as `in_order` gives them."""
        points, queries = self.in_float64
        squares, parts = points.square().sum(1), []
        for part in rows.split(max(1, BLOCK_BYTES // (PAIR_BYTES * len(points)))):
            d = torch.addmm(squares, queries[part], points.T, alpha=-2)
            last = d.kthvalue(wanted, dim=1, keepdim=True).values
            excluded = d - last > rounding_of(d.dtype, self.p_norm, self.q_norm[part, None])
            possible = len(points) - int(excluded.sum(1).min())
            d, numbers = d.masked_fill_(excluded, torch.inf).topk(possible, largest=False)
            parts.append(self.in_order(part, queries, d, numbers, self.near(part, d, numbers), wanted))
        return tuple(map(torch.cat, zip(*parts)))

    def in_order(self, rows, queries, d, points, near, wanted):
        """The first by (distance, number), (b, wanted) each, of d and points (b, k) that `find` gives for queries."""
        i, j = (pad(near, (1, 0)) | pad(near, (0, 1))).nonzero(as_tuple=True)
        distances = d.double() + queries[rows].double().square().sum(1, keepdim=True)
        distances[i, j] = self.exact(rows[i], points[i, j])
        tied = near.any(1)
        by_number, order = points[tied].sort(1)
        distances[tied], order = distances[tied].gather(1, order).sort(stable=True, dim=1)
        points[tied] = by_number.gather(1, order)
        return distances[:, :wanted], points[:, :wanted]

    def near(self, rows, d, points):
        """Whether rounding may hide the order of a point and the next: bool (b, k - 1) of d and points (b, k)."""
        rounding = rounding_of(d.dtype, self.p_norm[points], self.q_norm[rows, None])
        return d.diff(dim=1) <= torch.maximum(rounding[:, 1:], rounding[:, :-1])

    def exact(self, queries, points):
        """Squared distances (c,) in float64 of pairs of numbers."""
        pairs = zip(queries.split(ROWS), points.split(ROWS))
        parts = [((self.queries[q].double() - self.points[p]) * self.scale).square().sum(1) for q, p in pairs]
        return torch.cat(parts)

    def rows_of(self, points, distances, k):
        """Gallery rows (b, k) of points (b, j): each point's copies in its place, equally far points' by index."""
        end = self.copies[points].cumsum(1)
        place = torch.arange(k, device=self.device).repeat(len(end), 1)
        which = torch.searchsorted(end, place, right=True)  # of the points, the one whose copy comes in this place
        first = (self.start[points] - end + self.copies[points]).gather(1, which)
        rows = self.by_point[first + place]
        tied = (distances.diff(dim=1) <= 0).any(1).nonzero().squeeze(1)
        for part in tied.split(max(1, BLOCK_BYTES // (PAIR_BYTES * len(self.by_point)))):
            rows[part] = self.merged(points[part], distances[part], k)
        return rows

    def merged(self, points, distances, k):
        """Gallery rows (b, k) by (distance, index), of points (b, j) some of which are equally far."""
        copies = self.copies[points].clamp(max=k)
        count = copies.flatten()
        owner = torch.arange(len(count), device=self.device).repeat_interleave(count)
        which = torch.arange(len(owner), device=self.device) - (count.cumsum(0) - count)[owner]
        rows = self.by_point[self.start[points].flatten()[owner] + which]
        ahead = pad(distances.diff(dim=1) > 0, (1, 0)).flatten().cumsum(0)  # points of one distance have one number
        ahead += torch.arange(len(points), device=self.device).repeat_interleave(points.shape[1])
        rows = (ahead[owner] * len(self.by_point) + rows).sort().values % len(self.by_point)
        counts = copies.sum(1)
        return rows[(counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=self.device)]


def check_rows(queries, gallery, k, exclude_self):
    shapes = [tuple(x.shape) for x in (queries, gallery)]
    if k < 1:
        raise ValueError(f"nearest_neighbours: k must be at least 1, got {k}")
    others = len(gallery) > exclude_self and len(queries) > 0
    if not others or {len(shape) for shape in shapes} != {2} or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"nearest_neighbours: needs queries (n, d) and a gallery (m, d) with others, got {shapes}")
    if exclude_self and shapes[0] != shapes[1]:
        raise ValueError(f"nearest_neighbours: exclude_self needs the gallery as queries, got {shapes}")


def rounding_of(dtype, p, q):
    """What rounding can hide between two values of |p|² - 2 q·p, of points of lengths p and queries of lengths q."""
    return ROUNDING * torch.finfo(dtype).eps * p * (p + 2 * q)


# --- back-ends: functions of scaled queries (b, d) and k to |p|² - 2 q·p (b, k), rising, and the points' numbers ---


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
