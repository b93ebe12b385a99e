"""Time and memory of the evaluation against named peers: python -m benchmarks.evaluation [--small]

Embeddings are unit vectors, class centres plus noise, so that Recall@1 is neither 0 nor 1. The fastest of the turns
counts. A ratio is a time over that of the first row. Needs pytorch-metric-learning.
"""

import functools
import importlib.util
import sys

import numpy as np
import torch

import evaluation
from benchmarks import DEVICE, head, heading, parser, peak, row, seconds, turns

OURS = ["e_recall@1", "e_recall@10", "e_recall@100", "e_recall@1000", "mAP@R", "R-precision"]
THEIRS = ["e_recall@1", "mAP@R", "R-precision"]
INCLUDE = ("precision_at_1", "mean_average_precision_at_r", "r_precision")  # the library's names
SOP = (60_502, 11_316)  # images and classes of the test split


def data(n, n_classes, d=512, noise=3.0):
    """(embeddings (n, d), labels (n,)) on the device."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, d, generator=generator) / d**0.5
    embeddings = centres[labels] + noise * torch.randn(n, d, generator=generator) / d**0.5
    return torch.nn.functional.normalize(embeddings, dim=1).to(DEVICE), labels.to(DEVICE)


def loop(embeddings, labels, queries):
    """{metric of OURS: value} of some queries, a query at a time in numpy."""
    x, y = embeddings.cpu().numpy(), labels.cpu().numpy()
    squared, ks = (x**2).sum(1), (1, 10, 100, 1000)
    values = []
    for i in queries.tolist():
        distance = squared - 2 * x @ x[i]
        distance[i] = np.inf
        match = y[np.argsort(distance, kind="stable")[:-1]] == y[i]
        r = match.sum()  # without another of its class a query counts for Recall@K alone
        precision = match[:r].cumsum() / np.arange(1, r + 1)
        of_r = ((precision * match[:r]).mean(), match[:r].mean()) if r else (np.nan, np.nan)
        values.append([*(match[:k].any() for k in ks), *of_r])
    return dict(zip(OURS, np.nanmean(values, axis=0)))


def of_sop(n, n_classes):
    """A line on the time and the memory of the evaluation of SOP's size."""
    embeddings, labels = data(n, n_classes)
    evaluation.compute(embeddings[:500], labels[:500], OURS)  # libraries are loaded and have their buffers
    times, work = [], functools.partial(evaluation.compute, embeddings, labels, [*OURS, "mAP_1000"])
    memory = peak(lambda: times.append(seconds(work)[0]))
    of = f"SOP's size, {n:,} x 512: the metrics below and mAP_1000 in {times[0]:.1f} s"
    return f"{of}, at the peak {memory:.0f} MiB beyond the embeddings (wanted: under 1536)"


def check(embeddings, labels, theirs, long):
    """Our numbers are the library's, and those of a set with one long row but for that row."""
    ours, their = evaluation.compute(embeddings, labels, OURS), theirs.get_accuracy(embeddings, labels)
    pairs = [*zip(THEIRS, INCLUDE)][1:]  # its precision@1 leaves out queries that are the only ones of their class
    assert all(abs(ours[name] - their[other]) < 1e-6 for name, other in pairs), (ours, their)
    far = evaluation.compute(long, labels, OURS)
    assert all(abs(far[name] - ours[name]) < 10 / len(labels) for name in OURS), (ours, far)
    return ", ".join(f"{value:.4f}" for value in ours.values())


def main(argv=None):
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    args = parser(__doc__, 3).parse_args(argv)
    n, n_classes, n_looped = (1200, 240, 5) if args.small else (20_000, 3_700, 100)
    print(f"{heading(f'fastest of {args.repeats}', args.small)}\n")
    print(f"{of_sop(*((2000, 400) if args.small else SOP))}\n", flush=True)
    embeddings, labels = data(n, n_classes)
    theirs = AccuracyCalculator(include=INCLUDE, k="max_bin_count")
    other = "torch" if importlib.util.find_spec("faiss") else "auto"
    long = embeddings.clone()
    long[n // 2] *= 1e6
    values = check(embeddings, labels, theirs, long)

    def ours(names=THEIRS, of=embeddings, **how):
        return functools.partial(evaluation.compute, of, labels, names, **how)

    works = {
        "ours": ours(),
        f"ours, --search {other}": ours(search=other),
        "AccuracyCalculator, the same metrics": lambda: theirs.get_accuracy(embeddings, labels),
        "ours, Recall@10, 100 and 1000 too": ours(OURS),
        "ours, all rows identical": ours(of=embeddings[:1].repeat(n, 1)),
        "ours, one row a million times longer": ours(of=long),
    }
    wanted = dict(zip(works, ("", "", "≥ 1", "", "≤ 2", "≤ 2")))
    times = {what: min(found) for what, found in turns(works, args.repeats).items()}
    queries = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:n_looped]
    looped = f"a numpy loop over the queries ({n_looped} of them, scaled)"
    times[looped], wanted[looped] = seconds(loop, embeddings, labels, queries)[0] * n / n_looped, "≥ 5"
    print(f"{n:,} x 512, {n_classes:,} classes: Recall@1, mAP@R, R-precision (with Recall@10, 100, 1000: {values})\n")
    print(head("", "seconds:", "ratio:", "wanted:"))
    for what, found in times.items():
        print(row(what, found, "" if what == "ours" else found / times["ours"], wanted[what]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
