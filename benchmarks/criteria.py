"""Time and memory of the losses against named peers, in one run: python -m benchmarks.criteria [--device cuda]

Every row is one forward and backward of both, alternately, on the same batch (90 embeddings of 512 dimensions, 45
classes, float32); times are medians. A ratio above 1 says how many times faster ours is, below 1 how many times slower.
"""

import argparse
import itertools
import statistics
import sys
import time

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks.memory import in_a_process_of_its_own
from criteria import miners
from criteria.antico import AntiCo
from criteria.contrastive import Contrastive
from criteria.margin import Margin
from criteria.multisimilarity import MultiSimilarity
from criteria.oproxy import OProxy, ProxyAnchor
from criteria.triplet import Triplet

BATCH, DIM, SOP = 90, 512, 11_318


def batch(n_classes, device):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(n_classes, generator=generator)[: BATCH // 2].repeat_interleave(2)
    embeddings = normalize(torch.randn(BATCH, DIM, generator=generator), dim=1)
    return embeddings.to(device).requires_grad_(), labels.to(device)


def step(loss, embeddings, labels):
    """A function that runs one forward and backward of `loss` from empty gradients."""

    def run():
        embeddings.grad = None
        if isinstance(loss, torch.nn.Module):
            loss.zero_grad(set_to_none=True)
        loss(embeddings, labels).backward()

    return run


def medians(runs, repeats, device):
    """Median milliseconds of each function, taken in turns so that a slow moment of the machine hits all of them.

    A turn is as many calls in a row as take 20 ms, after one that does not count: a training loop calls a loss when
    its threads are awake. With repeats = 1 a turn is one call, the first.
    """

    def timed(run, calls):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) * 1e3 / calls

    if repeats == 1:
        return [timed(run, 1) for run in runs]
    calls = [max(1, round(20 / min(timed(run, 1) for _ in range(3)))) for run in runs]
    times = [[] for _ in runs]
    for _ in range(repeats):
        for run, n, found in zip(runs, calls, times):
            run()
            found.append(timed(run, n))
    return [statistics.median(found) for found in times]


def rate_of_all_pairs(proxies, eps=0.5):
    """The n x n form: 1/2 logdet(I_n + s Z Zᵀ) of all n proxies by torch.logdet, without Sylvester's identity."""
    Z = normalize(proxies, dim=1)
    n, d = Z.shape
    return 0.5 * torch.logdet(torch.eye(n, device=Z.device) + n / (d * eps) * Z @ Z.T)


def by_cdist(loss):
    """The same loss on torch.cdist's distances, which lose the gradient near collapse."""
    module = sys.modules[type(loss).__module__]

    def matrix_form(embeddings):
        embeddings = normalize(embeddings, dim=1)
        return torch.cdist(embeddings, embeddings)

    def run(embeddings, labels):
        ours, module.distances = module.distances, matrix_form
        try:
            return loss(embeddings, labels)
        finally:
            module.distances = ours

    return run


def loop_of_distance_mining(embeddings, labels, lower=0.5, upper=1.4):
    """Distance-weighted triplets, an anchor at a time in numpy."""
    x, y = embeddings.detach().cpu().double().numpy(), labels.cpu().numpy()
    n, d = x.shape
    triplets = []
    for i in range(n):
        distance = np.maximum(np.sqrt(np.maximum(((x - x[i]) ** 2).sum(1), 0)), lower)
        log_weight = (2.0 - d) * np.log(distance) - (d - 3) / 2 * np.log(np.maximum(1 - distance**2 / 4, 1e-8))
        allowed = (y != y[i]) & (distance < upper)
        if not allowed.any():
            allowed, log_weight = y != y[i], np.zeros(n)
        weight = np.where(allowed, np.exp(log_weight - log_weight[allowed].max()), 0)
        for j in np.flatnonzero((y == y[i]) & (np.arange(n) != i)):
            triplets.append((i, j, np.random.choice(n, p=weight / weight.sum())))
    return triplets


def proxy_anchor(n_classes, device):
    """The published Proxy-Anchor term, under the published AntiCo."""
    return OProxy(n_classes, DIM, mode="anchor").to(device)


def compare(device, repeats):
    """Rows (what, ours ms, peer, peer ms, wanted ratio)."""

    def row(what, ours, peer, theirs, wanted, once=False):
        """`once`: the peer takes so long that it is timed a single time, by itself."""
        if once:
            times = medians([ours], repeats, device) + medians([theirs], 1, device)
        else:
            times = medians([ours, theirs], repeats, device)
        return what, times[0], peer, times[1], wanted

    return [row(*line) for line in itertools.chain(antico_lines(device), baseline_lines(device))]


def antico_lines(device):
    """AntiCo over Proxy-Anchor against Proxy-Anchor alone, and against the determinant of the larger matrix."""
    embeddings, labels = batch(SOP, device)
    anchor = proxy_anchor(SOP, device)
    alone = step(anchor, embeddings, labels)
    for variant in ("all_proxy", "batch_proxy", "pair"):
        ours = step(AntiCo(proxy_anchor(SOP, device), variant), embeddings, labels)
        yield f"AntiCo {variant} over Proxy-Anchor, {SOP:,} classes", ours, "Proxy-Anchor (ours) alone", alone, 0.5
    ours = step(AntiCo(proxy_anchor(SOP, device), "all_proxy"), embeddings, labels)
    determinant = lambda: rate_of_all_pairs(anchor.proxies).backward()  # noqa: E731
    yield f"the same, all_proxy, {SOP:,} classes", ours, "n x n determinant alone", determinant, 100, True


def baseline_lines(device):
    """The baselines against pytorch-metric-learning, against torch.cdist's distances and against a loop."""
    from pytorch_metric_learning import losses
    from pytorch_metric_learning import miners as their_miners

    library = "pytorch-metric-learning"
    for n_classes in (100, SOP):
        embeddings, labels = batch(n_classes, device)
        ours = step(ProxyAnchor(n_classes, DIM).to(device), embeddings, labels)
        theirs = losses.ProxyAnchorLoss(n_classes, DIM, margin=0.1, alpha=64).to(device)
        yield f"Proxy-Anchor, {n_classes:,} classes", ours, library, step(theirs, embeddings, labels), 1
    mine, loss = their_miners.MultiSimilarityMiner(0.1), losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    for n_classes in (100, SOP):
        embeddings, labels = batch(n_classes, device)
        ours = step(MultiSimilarity(), embeddings, labels)
        theirs = step(lambda e, y: loss(e, y, mine(e, y)), embeddings, labels)
        yield f"MultiSimilarity with its mining, {n_classes:,} classes", ours, library, theirs, 1
    for ours in (Contrastive(), Triplet(miners.every), Margin(miners.distance_weighted).to(device)):
        theirs = step(by_cdist(ours), embeddings, labels)  # wanted: at most 1.3 times the cost
        what = f"{ours.name}, distances exact near collapse"
        yield what, step(ours, embeddings, labels), "the same by torch.cdist", theirs, 0.77
    ours = lambda: miners.distance_weighted(embeddings, labels)  # noqa: E731
    theirs = lambda: loop_of_distance_mining(embeddings, labels)  # noqa: E731
    yield "distance-weighted mining", ours, "numpy loop over the anchors", theirs, 20


def all_proxy_term(device):
    """One forward and backward of AntiCo's all-proxy term alone, as a function."""
    device = torch.device(device)
    embeddings, labels = batch(SOP, device)
    antico = AntiCo(proxy_anchor(SOP, device), "all_proxy")
    small = AntiCo(proxy_anchor(600, device), "all_proxy")
    step(small, embeddings, labels % 600)()  # libraries are loaded and have their buffers
    return step(lambda e, y: 1 - antico.rate(e, y)[0], embeddings, labels)


def share_of_a_training_step(repeats):
    """Milliseconds of a ResNet-50 step (bf16 autocast, batch 90 at 224 pixels) and of AntiCo's all-proxy term in it."""
    import torchvision

    device = torch.device("cuda")
    net = torchvision.models.resnet50(num_classes=DIM).to(device, memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 224, 224, device=device).to(memory_format=torch.channels_last)
    _, labels = batch(SOP, device)
    times = {}
    for name, loss in (
        ("Proxy-Anchor", proxy_anchor(SOP, device)),
        ("AntiCo all_proxy", AntiCo(proxy_anchor(SOP, device), "all_proxy")),
    ):

        def run(loss=loss):
            net.zero_grad(set_to_none=True)
            loss.zero_grad(set_to_none=True)
            with torch.autocast("cuda", dtype=torch.bfloat16):
                embeddings = net(images)
            loss(embeddings, labels).backward()

        times[name] = run
    return dict(zip(times, medians(list(times.values()), repeats, device)))


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    what = f"batch {BATCH}, {DIM} dimensions, float32, forward and backward, median of {args.repeats}"
    print(f"{name}; torch {torch.__version__}; {what}\n")
    print("| ours | ms | peer | ms | ratio | wanted |\n|---|---:|---|---:|---:|---:|")
    for what, ours, peer, other, wanted in compare(device, args.repeats):
        print(f"| {what} | {ours:.2f} | {peer} | {other:.1f} | {other / ours:.2f} | ≥ {wanted} |", flush=True)
    memory, unit = in_a_process_of_its_own(all_proxy_term, args.device), (SOP * DIM + DIM * DIM) * 4 / 2**20
    if memory is not None:
        print(
            f"\nAntiCo's all-proxy term, {SOP:,} classes: {memory:.0f} MiB at the peak beyond the parameters (gradient "
            f"included), {memory / unit:.1f} times C d + d² floats; n² floats are {SOP**2 * 4 / 2**20:.0f} MiB"
        )
    if device.type == "cuda":
        times = share_of_a_training_step(args.repeats)
        share = 1 - times["Proxy-Anchor"] / times["AntiCo all_proxy"]
        print(
            f"ResNet-50 step at 224 pixels, bf16: {times['Proxy-Anchor']:.1f} ms with Proxy-Anchor, "
            f"{times['AntiCo all_proxy']:.1f} ms with AntiCo on top: {share:.1%}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
