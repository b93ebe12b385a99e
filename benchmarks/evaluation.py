"""Time and memory of the evaluation against named peers, in one run: python -m benchmarks.evaluation [--device cuda]

Embeddings are unit vectors, class centres plus noise, so that Recall@1 is neither 0 nor 1. Each is timed `--repeats`
times in turn, the fastest counts. The ratio is a time over that of ours.
"""

import argparse
import sys
import time

import numpy as np
import torch

import evaluation
from benchmarks.memory import in_a_process_of_its_own
from evaluation import clustering

OURS = ["e_recall@1", "e_recall@10", "e_recall@100", "e_recall@1000", "mAP@R", "R-precision"]
THEIRS = ["e_recall@1", "mAP@R", "R-precision"]  # what AccuracyCalculator is asked for
SOP = (60_502, 11_316)  # images and classes of the test split


def data(n, n_classes, d=512, device="cpu", noise=3.0):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(n_classes, (n,), generator=generator)
    centres = torch.randn(n_classes, d, generator=generator) / d**0.5
    embeddings = torch.nn.functional.normalize(
        centres[labels] + noise * torch.randn(n, d, generator=generator) / d**0.5, dim=1
    )
    return embeddings.to(device), labels.to(device)


def loop_of(embeddings, labels, queries):
    """The same metrics, a query at a time in numpy."""
    x, y = embeddings.cpu().numpy(), labels.cpu().numpy()
    squared = (x**2).sum(1)
    recalls, average, precision = {k: [] for k in (1, 10, 100, 1000)}, [], []
    for i in queries.tolist():
        distance = squared - 2 * x @ x[i]
        distance[i] = np.inf
        match = y[np.argsort(distance, kind="stable")[:-1]] == y[i]
        for k, found in recalls.items():
            found.append(match[:k].any())
        r = match.sum()
        if r:
            average.append((match[:r].cumsum() / np.arange(1, r + 1) * match[:r]).sum() / r)
            precision.append(match[:r].mean())
    return [*(np.mean(found) for found in recalls.values()), np.mean(average), np.mean(precision)]


def fastest(runs, repeats, device):
    """Seconds of each function, the fastest of `repeats` turns, and what each gave."""
    times, results = [float("inf")] * len(runs), [None] * len(runs)
    for _ in range(repeats):
        for i, run in enumerate(runs):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            results[i] = run()
            if device == "cuda":
                torch.cuda.synchronize()
            times[i] = min(times[i], time.perf_counter() - start)
    return times, results


def sop_metrics(device):
    embeddings, labels = data(*SOP, device=device)
    evaluation.compute(embeddings[:500], labels[:500], OURS)  # libraries are loaded and have their buffers
    return lambda: evaluation.compute(embeddings, labels, [*OURS, "mAP_1000"])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--loop_queries",
        type=int,
        default=2000,
        help="queries that the Python loop is timed on; its time is scaled to all",
    )
    args = parser.parse_args(argv)
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}; torch {torch.__version__}; fastest of {args.repeats}\n")
    n, n_classes = 20_000, 3_700
    embeddings, labels = data(n, n_classes, device=args.device)
    theirs = AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r", "r_precision"), k="max_bin_count"
    )
    other = "torch" if evaluation.search.have_faiss() else "auto"
    collapsed, long = embeddings[:1].repeat(n, 1), embeddings.clone()
    long[n // 2] *= 1e6
    runs = [
        lambda: evaluation.compute(embeddings, labels, OURS),
        lambda: theirs.get_accuracy(embeddings, labels),
        lambda: evaluation.compute(embeddings, labels, THEIRS),
        lambda: evaluation.compute(embeddings, labels, OURS, search=other),
        lambda: evaluation.compute(collapsed, labels, OURS),
        lambda: evaluation.compute(long, labels, OURS),
    ]
    times, (ours, their, *_, far) = fastest(runs, args.repeats, args.device)
    assert (
        abs(ours["mAP@R"] - their["mean_average_precision_at_r"]) < 1e-6
        and abs(ours["R-precision"] - their["r_precision"]) < 1e-6
    )
    assert all(abs(far[name] - ours[name]) < 10 / n for name in OURS)  # one row more or less
    part = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: args.loop_queries]
    start = time.perf_counter()
    loop_of(embeddings, labels, part)
    looped = (time.perf_counter() - start) * n / len(part)
    values = ", ".join(f"{v:.4f}" for v in ours.values())
    print(f"{n:,} x 512, {n_classes:,} classes: Recall@1, 10, 100, 1000, mAP@R, R-precision ({values})\n")
    print("| | seconds | ratio | wanted |\n|---|---:|---:|---:|")
    print(f"| ours | {times[0]:.2f} | | |")
    print(f"| ours, --search {other} | {times[3]:.2f} | {times[3] / times[0]:.2f} | |")
    ratio = times[1] / times[0]
    print(f"| AccuracyCalculator: precision@1, mAP@R, R-precision | {times[1]:.2f} | {ratio:.2f} | ≥ 1 |")
    print(f"| ours, these three | {times[2]:.2f} | {times[2] / times[0]:.2f} | |")
    loop = f"a numpy loop over the queries ({len(part):,} of them, scaled)"
    print(f"| {loop} | {looped:.1f} | {looped / times[0]:.1f} | ≥ 5 |")
    print(f"| ours, all rows identical | {times[4]:.2f} | {times[4] / times[0]:.2f} | ≤ 2 |")
    print(f"| ours, one row a million times longer | {times[5]:.2f} | {times[5] / times[0]:.2f} | ≤ 2 |", flush=True)

    clusters = np.random.default_rng(0).integers(n_classes, size=n)
    classes = labels.cpu().numpy()
    (seconds,), _ = fastest(
        [lambda: (clustering.nmi(classes, clusters), clustering.f1(classes, clusters))], args.repeats, args.device
    )
    print(f"\nNMI and F1 of {n:,} given clusters: {seconds * 1e3:.0f} ms")
    (seconds,), _ = fastest([sop_metrics(args.device)], 1, args.device)
    print(f"SOP's size, {SOP[0]:,} x 512: the same metrics and mAP_1000 in {seconds:.1f} s", flush=True)
    memory = in_a_process_of_its_own(sop_metrics, args.device)
    if memory is not None:
        print(f"at the peak {memory:.0f} MiB beyond the embeddings (wanted: under 1536)", flush=True)
    if args.device == "cuda":
        embeddings, labels = data(*SOP, device="cuda")
        names = [*OURS, "mAP_1000", "nmi", "f1"]
        (seconds,), _ = fastest([lambda: evaluation.compute(embeddings, labels, names)], 1, args.device)
        print(f"with k-means, NMI and F1: {seconds:.1f} s (wanted: under 10)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
