"""Time and memory of the losses against named peers: python -m benchmarks.criteria [--small]

A row is one forward and backward of both, in turns, on the same batch (90 embeddings of 512 dimensions, 45 classes,
float32); times are medians. A ratio above 1 says how many times faster ours is. Needs pytorch-metric-learning.
"""

import functools
import statistics
import sys

import numpy as np
import torch
from torch.nn.functional import normalize

from benchmarks import DEVICE, head, heading, parser, peak, row, seconds, turns
from criteria import MINERS, AntiCo, Contrastive, Margin, MultiSimilarity, OProxy, ProxyAnchor, Triplet, coding_rate

BATCH, DIM, SOP = 90, 512, 11_318
LIBRARY = "pytorch-metric-learning"


def batch(n_classes):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randperm(n_classes, generator=generator)[: BATCH // 2].repeat_interleave(2)
    embeddings = normalize(torch.randn(BATCH, DIM, generator=generator), dim=1)
    return embeddings.to(DEVICE).requires_grad_(), labels.to(DEVICE)


def step(loss, embeddings, labels):
    """A function that runs one forward and backward of `loss` from empty gradients."""

    def run():
        embeddings.grad = None
        if isinstance(loss, torch.nn.Module):
            loss.zero_grad(set_to_none=True)
        loss(embeddings, labels).backward()

    return run


def medians(ours, theirs, repeats):
    """Milliseconds of a call of each. A turn is as many calls in a row as take 20 ms, as in a training loop."""
    runs = {"ours": ours, "theirs": theirs}
    n = {name: max(1, round(0.02 / min(seconds(run)[0] for _ in range(3)))) for name, run in runs.items()}
    works = {name: lambda run=run, n=n[name]: [run() for _ in range(n)] for name, run in runs.items()}
    times = turns(works, repeats)
    return [1e3 * statistics.median(times[name]) / n[name] for name in runs]


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


def published_base(n_classes):
    """The Proxy-Anchor term as published with AntiCo, under which it stands here."""
    return OProxy(n_classes, DIM, mode="anchor").to(DEVICE)


def antico_rows(n_classes):
    """(ours, its function, peer, its function, wanted ratio): AntiCo against its base alone, and the larger matrix."""
    (embeddings, labels), base, of = batch(n_classes), published_base(n_classes), f"{n_classes:,} classes"
    alone = step(base, embeddings, labels)
    for variant, w in (("pair", None), ("pair", 1), ("batch_proxy", 1), ("all_proxy", 1)):
        ours, name = step(AntiCo(published_base(n_classes), variant, w=w), embeddings, labels), "" if w else "'s guard"
        yield f"AntiCo {variant}{name} over Proxy-Anchor, {of}", ours, "Proxy-Anchor (ours) alone", alone, 0.5
    determinant = lambda: rate_of_all_pairs(base.proxies).backward()  # noqa: E731
    yield f"the last, {of}", ours, "n x n determinant alone", determinant, 100


def baseline_rows(many):
    """The same of the baselines, against pytorch-metric-learning, torch.cdist's distances and a loop."""
    from pytorch_metric_learning import losses
    from pytorch_metric_learning import miners as their_miners

    for n_classes in (100, many):
        embeddings, labels = batch(n_classes)
        ours = step(ProxyAnchor(n_classes, DIM).to(DEVICE), embeddings, labels)
        theirs = losses.ProxyAnchorLoss(n_classes, DIM, margin=0.1, alpha=64).to(DEVICE)
        yield f"Proxy-Anchor, {n_classes:,} classes", ours, LIBRARY, step(theirs, embeddings, labels), 1
    mine, loss = their_miners.MultiSimilarityMiner(0.1), losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    for n_classes in (100, many):
        embeddings, labels = batch(n_classes)
        theirs = step(lambda e, y: loss(e, y, mine(e, y)), embeddings, labels)
        ours = step(MultiSimilarity(), embeddings, labels)
        yield f"MultiSimilarity with its mining, {n_classes:,} classes", ours, LIBRARY, theirs, 1
    for ours in (Contrastive(), Triplet(MINERS["all"]), Margin(MINERS["distance"]).to(DEVICE)):
        theirs = step(by_cdist(ours), embeddings, labels)  # wanted: at most 1.3 times the cost
        what = f"{ours._get_name().lower()}, distances exact near collapse"
        yield what, step(ours, embeddings, labels), "the same by torch.cdist", theirs, 0.77
    ours, theirs = (functools.partial(f, embeddings, labels) for f in (MINERS["distance"], loop_of_distance_mining))
    yield "distance-weighted mining", ours, "numpy loop over the anchors", theirs, 20


def memory_of_rate(n_classes):
    """A line on the memory of one forward and backward of the coding rate of all proxies, as in the all-proxy term."""
    embeddings, labels = batch(n_classes)
    step(
        AntiCo(published_base(n_classes), "all_proxy", w=1), embeddings, labels
    )()  # libraries are loaded, with buffers
    proxies, unit = published_base(n_classes).proxies, (n_classes + DIM) * DIM * 4 / 2**20
    scale = n_classes / (DIM * 0.5)
    taken = peak(lambda: coding_rate(normalize(proxies, dim=1), scale, torch.float32).backward())
    of = f"AntiCo's all-proxy term, {n_classes:,} classes: {taken:.0f} MiB at the peak beyond the parameters (gradient"
    return f"{of} included), {taken / unit:.1f} times C d + d² floats; n² floats are {n_classes**2 / 2**18:.0f} MiB"


def main(argv=None):
    args = parser(__doc__, 15).parse_args(argv)
    torch.manual_seed(0)
    n_classes, repeats = (300, 1) if args.small else (SOP, args.repeats)
    what = f"batch {BATCH}, {DIM} dimensions, float32, forward and backward, median of {repeats}"
    print(f"{heading(what, args.small)}\n\n{memory_of_rate(n_classes)}\n")
    print(head("ours", "ms:", "peer", "ms:", "ratio:", "wanted:"))
    for what, ours, peer, theirs, wanted in (*antico_rows(n_classes), *baseline_rows(n_classes)):
        if wanted == 100:  # the peer takes so long that it is timed once, by itself
            mine, other = medians(ours, ours, repeats)[0], 1e3 * seconds(theirs)[0]
        else:
            mine, other = medians(ours, theirs, repeats)
        print(row(what, mine, peer, other, other / mine, f"≥ {wanted}"), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
