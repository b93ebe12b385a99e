"""Parts of a run, each against what it must give."""

import copy
import importlib.util
import time

import torch

import criteria
import parameters
from benchmarks import evaluation as evaluations
from benchmarks.gpu.rows import expect, need, row
from evaluation import clustering, search
from utilities import device as devices


@row("prefetch gives the loader's batches while the device is busy")
def prefetched(bench):
    images = torch.randint(0, 256, (40, 3, 64, 64), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.arange(40))
    loader = torch.utils.data.DataLoader(data, batch_size=4, pin_memory=bench.gpu)
    work, sums = torch.randn(64 if bench.small else 4096, 64 if bench.small else 4096, device=bench.device), []
    for pixels, labels in devices.prefetch(loader, bench.device):
        for _ in range(4):
            work = torch.nn.functional.normalize(work @ work, dim=1)
        sums.append((pixels.long().flatten(1).sum(1), labels))  # behind that work, while the next batch is being copied
    expect(torch.cat([s for s, _ in sums]).tolist() == images.long().flatten(1).sum(1).tolist(), "pixels differ")
    expect(torch.cat([y for _, y in sums]).tolist() == list(range(40)), "labels differ")
    return f"{len(sums)} batches"


def value_and_gradient(criterion, embeddings, labels):
    embeddings = embeddings.clone().requires_grad_()
    torch.manual_seed(0)
    loss = criterion(embeddings, labels)
    loss.backward()
    gradients = [embeddings.grad, *(p.grad for p in criterion.parameters() if p.grad is not None)]
    return loss.detach().cpu().double(), torch.cat([g.detach().flatten().cpu().double() for g in gradients])


@row("losses: value and gradient against float64 on the CPU")
def loss_values(bench):
    labels = torch.arange(12).repeat_interleave(3)
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(36, 32, generator=generator, dtype=torch.float64), dim=1)
    worst, left_out = ("", 0.0), []
    for name in criteria.CRITERIA:
        if name == "nir" and importlib.util.find_spec("FrEIA") is None:
            left_out.append("nir (no FrEIA)")
            continue
        opt = parameters.parse(["--loss", name, "--embed_dim", "32", "--batch_mining", "all"])
        torch.manual_seed(0)
        exact = criteria.select(opt, 12)
        tested = copy.deepcopy(exact).to(bench.device)
        value, gradient = value_and_gradient(exact.double(), embeddings, labels)
        inputs = embeddings.float().to(bench.device), labels.to(bench.device)
        tested_value, tested_gradient = value_and_gradient(tested, *inputs)
        value_apart = (tested_value - value).abs() / value.abs().clamp(min=1e-3)
        gradient_apart = (tested_gradient - gradient).norm() / gradient.norm().clamp(min=1e-6)
        apart = float(max(value_apart, gradient_apart))
        expect(apart < 1e-3, f"{name}: value or gradient differ by {apart:.1e} of their size")
        worst = max(worst, (name, apart), key=lambda pair: pair[1])
    return f"differ by {worst[1]:.1e} at most ({worst[0]})" + "".join(f"; without {what}" for what in left_out)


def searched(bench, backend):
    n = 500 if bench.small else 20_000
    embeddings, labels = evaluations.data(n, n // 5, device=bench.device)
    (seconds,), (found,) = evaluations.fastest(
        [lambda: search.nearest_neighbours(embeddings, embeddings, 10, exclude_self=True, backend=backend)],
        2,
        bench.device.type,
    )
    some = torch.arange(0, n, max(1, n // 200))
    exact = torch.cdist(embeddings[some].cpu().double(), embeddings.cpu().double())
    exact[torch.arange(len(some)), some] = torch.inf
    nearest = exact.topk(10, largest=False)[0]
    apart = (exact.gather(1, found.cpu()[some]) - nearest).abs().max()
    expect(apart < 1e-6, f"neighbours are farther than the nearest by {apart:.1e}")
    return f"{n:,} x 512, 10 nearest: {1e3 * seconds:.0f} ms"


@row("search by torch against float64")
def search_torch(bench):
    return searched(bench, "torch")


@row("search by faiss against float64")
def search_faiss(bench):
    need(search.have_faiss(), "faiss is not installed")
    return searched(bench, "faiss")


def clustered(bench):
    n, k = (300, 20) if bench.small else (20_000, 1_000)
    embeddings, _ = evaluations.data(n, k, device=bench.device)
    start = time.perf_counter()
    clusters = clustering.kmeans(embeddings, k, seed=0)
    seconds = time.perf_counter() - start
    again = clustering.kmeans(embeddings, k, seed=0)
    same = float((clusters == again).mean())
    least, most = clusters.min(), clusters.max()
    expect(clusters.shape == (n,) and 0 <= least and most < k, f"clusters {least} to {most}")
    points, number = embeddings.cpu().double(), torch.from_numpy(clusters).long()
    sums = torch.zeros(k, points.shape[1], dtype=torch.float64).index_add_(0, number, points)
    means = sums / torch.bincount(number, minlength=k).clamp(min=1)[:, None]
    spread = float((points - means[number]).square().sum() / (points - points.mean(0)).square().sum())
    expect(spread < 0.98, f"the clusters keep {spread:.3f} of the variance")
    quality = f"within {spread:.3f} of the variance, {same:.1%} alike when repeated"
    return f"{n:,} x 512, {k:,} clusters: {seconds:.2f} s, {quality}"


@row("k-means by faiss")
def kmeans_faiss(bench):
    need(search.have_faiss(), "faiss is not installed")
    return clustered(bench)


@row("k-means without faiss")
def kmeans_plain(bench):
    have, clustering.have_faiss = clustering.have_faiss, lambda: False
    try:
        return clustered(bench)
    finally:
        clustering.have_faiss = have
