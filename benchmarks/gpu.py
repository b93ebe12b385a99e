"""All that never ran on a GPU, in one command: python -m benchmarks.gpu [--quick] [--only WORD ...]

One line a row: what, its result, seconds, ok or the error. A row that fails does not stop the others; the exit
status is then 1. On a CPU the rows that need a GPU say that they are skipped, the others run in a small size. With a GPU it takes
under 9 minutes: what is not begun after 8 is skipped.
"""

import argparse
import contextlib
import copy
import csv
import gc
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import torch

import criteria
import evaluation
import main as program
import parameters
from benchmarks import criteria as losses
from benchmarks import evaluation as evaluations
from benchmarks import input as inputs
from benchmarks import training
from benchmarks.memory import in_a_process_of_its_own
from evaluation import clustering, search
from utilities import device as devices
from utilities import folders, state

LIMIT = 480  # seconds after which no row begins
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROWS = []  # (name, function of the bench → its result in words)


class Skipped(Exception):
    """A row that this machine cannot run, and why."""


def row(name):
    def add(function):
        ROWS.append((name, function))
        return function

    return add


def need(condition, why):
    if not condition:
        raise Skipped(why)


def expect(condition, what):
    """RuntimeError if a result is not what it must be."""
    if not condition:
        raise RuntimeError(what)


# --- whole runs of main.py ---

GLYPHS = ["--dataset", "glyphs", "--arch", "conv4_normalize", "--bs", "112", "--lr", "1e-3", "--loss", "antico_batch_proxy",
          "--loss_oproxy_lrmulti", "10", "--kernels", "0", "--no_train_metrics", "--evaluation_metrics", "e_recall@1"]  # fmt: skip


@contextlib.contextmanager
def little_data(bench):
    """Within it, in a small bench, data sets are cut to 400 images a split, and made once."""
    select = program.datasets.select

    def cut(split):
        return split.subset(range(min(400, len(split))))

    def few(opt, input_size):
        if (opt.dataset, input_size) not in bench.data:
            splits = select(opt, input_size)
            bench.data[opt.dataset, input_size] = program.datasets.Splits(
                train=cut(splits.train), test=cut(splits.test)
            )
        return bench.data[opt.dataset, input_size]

    program.datasets.select = few if bench.small else select
    try:
        yield
    finally:
        program.datasets.select = select


def run(bench, name, *flags, status=0):
    """main.main with these flags: (rows of metrics.csv, what it printed). RuntimeError for another exit status."""
    said = io.StringIO()
    flags = [*flags, "--save_path", bench.folder, "--savename", name]
    with little_data(bench), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        found = program.main([str(flag) for flag in flags])
    lines = said.getvalue().strip().splitlines() or [""]
    expect(found == status, f"exit status {found}, wanted {status}: {lines[-1]}")
    path = os.path.join(bench.folder, flags[flags.index("--dataset") + 1], name, "metrics.csv")
    if not os.path.exists(path):  # stopped before the first row
        return [], said.getvalue()
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), said.getvalue()


def learned(rows):
    values = [float(r["loss"]) for r in rows if r["loss"]]
    expect(values and all(v == v and abs(v) < 1e30 for v in values), f"the losses are {values}")
    return f"loss {values[0]:.3f} → {values[-1]:.3f}, Recall@1 {float(rows[0]['test/e_recall@1']):.3f} → {float(rows[-1]['test/e_recall@1']):.3f}"


@row("quickstart: glyphs, AMP and compile as they come")
def quickstart(bench):
    rows, _ = run(bench, "quickstart", *GLYPHS, "--n_epochs", 1 if bench.small else 3)
    expect(bench.small or float(rows[-1]["test/e_recall@1"]) > 0.3, f"it learned nothing: {learned(rows)}")
    return learned(rows) + ("" if bench.gpu else "; on a CPU without both")


@row("--amp fp16 with its scaler")
def half(bench):
    need(bench.gpu, "--amp fp16 needs a GPU")
    return learned(run(bench, "fp16", *GLYPHS, "--n_epochs", 2, "--amp", "fp16")[0])


@row("stopped in mid-epoch by SIGTERM, then --resume")
def resume(bench):
    flags = [*GLYPHS, "--n_epochs", 2, "--amp", "none", "--compile", "off"]
    whole, _ = run(bench, "whole", *flags)
    step, taken = program.training_step, []

    def then_stop(*words):
        taken.append(step(*words))
        if len(taken) == 2:
            signal.raise_signal(signal.SIGTERM)
        return taken[-1]

    program.training_step = then_stop
    try:
        run(bench, "stopped", *flags, status=128 + signal.SIGTERM)
    finally:
        program.training_step = step
    folder = os.path.join(bench.folder, "glyphs", "stopped")
    saved = state.load(os.path.join(folder, "checkpoint.pt"))
    expect(
        (saved["epoch"], saved["step"]) == (0, 2), f"it was saved after epoch {saved['epoch']}, step {saved['step']}"
    )
    resumed, _ = run(bench, "stopped", *flags, "--resume", folder)
    apart = max(abs(float(a["loss"]) / float(b["loss"]) - 1) for a, b in zip(whole[1:], resumed[1:], strict=True))
    expect(apart < 1e-3, f"the losses differ by {apart:.1e} of their size from the undisturbed run's")
    return f"losses differ by {apart:.1e} of their size"


@row("--gpu_augment on JPEGs, augmentation adv")
def augment_there(bench):
    folder = bench.images()
    flags = ["--dataset", "folder", "--source_path", folder, "--arch", "conv4_normalize", "--input_size", 64, "--bs", 16,
             "--loss", "antico_pair", "--kernels", 0 if bench.small else 4, "--n_epochs", 2, "--gpu_augment",
             "--augmentation", "adv", "--no_test_metrics", "--evaluation_metrics", "e_recall@1"]  # fmt: skip
    rows, _ = run(bench, "augmented", *flags)
    return f"loss {float(rows[1]['loss']):.3f} → {float(rows[-1]['loss']):.3f}"


@row("--profile 3")
def profile(bench):
    name = "profiled"
    _, said = run(bench, name, *GLYPHS, "--n_epochs", 4, "--profile", 3)
    with open(os.path.join(bench.folder, "glyphs", name, "profile.json"), encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    kernels = sum(event.get("cat") == "kernel" for event in events)
    expect(kernels > 0 or not bench.gpu, "the trace has no kernel of the GPU")
    line = next(line for line in said.splitlines() if line.startswith("profile of"))
    return line.partition("; trace")[0] + f"; {kernels} kernels"


@row("torchrun --nproc_per_node=1")
def torchrun(bench):
    flags = [
        *GLYPHS,
        "--n_epochs",
        0 if bench.small else 1,
        "--input_size",
        16,
        "--save_path",
        bench.folder,
        "--savename",
        "torchrun",
    ]
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=1",
        "main.py",
        *map(str, flags),
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=240)
    lines = (done.stderr + done.stdout).strip().splitlines() or [""]
    expect(done.returncode == 0, f"exit status {done.returncode}: {lines[-1]}")
    return f"{'nccl' if bench.gpu else 'gloo'}: {done.stdout.strip().splitlines()[-1]}"


@row("out of memory is one line that names --bs")
def out_of_memory(bench):
    need(bench.gpu, "needs a GPU, whose memory can be limited")
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.01)
    try:
        _, said = run(bench, "oom", *GLYPHS, "--n_epochs", 1, "--arch", "resnet50_normalize", "--not_pretrained", "--bs", 448,
                      "--eval_every", 10, status=1)  # fmt: skip
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    line = said.strip().splitlines()[-1]
    expect("memory ran out; lower --bs" in line, line)
    return line.partition(". ")[0]


# --- parts ---


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
        there = copy.deepcopy(exact).to(bench.device)
        value, gradient = value_and_gradient(exact.double(), embeddings, labels)
        value_there, gradient_there = value_and_gradient(
            there, embeddings.float().to(bench.device), labels.to(bench.device)
        )
        apart = float(max((value_there - value).abs() / value.abs().clamp(min=1e-3),
                          (gradient_there - gradient).norm() / gradient.norm().clamp(min=1e-6)))  # fmt: skip
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
    expect(
        clusters.shape == (n,) and 0 <= clusters.min() and clusters.max() < k,
        f"clusters {clusters.min()} to {clusters.max()}",
    )
    points, number = embeddings.cpu().double(), torch.from_numpy(clusters).long()
    sums = torch.zeros(k, points.shape[1], dtype=torch.float64).index_add_(0, number, points)
    means = sums / torch.bincount(number, minlength=k).clamp(min=1)[:, None]
    spread = float((points - means[number]).square().sum() / (points - points.mean(0)).square().sum())
    expect(spread < 0.98, f"the clusters keep {spread:.3f} of the variance")
    return f"{n:,} x 512, {k:,} clusters: {seconds:.2f} s, within {spread:.3f} of the variance, {same:.1%} alike when repeated"


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


# --- sizes and speed ---


@row("criteria of SOP's size, ms forward and backward")
def sop_criteria(bench):
    n_classes = 600 if bench.small else losses.SOP
    embeddings, labels = losses.batch(n_classes, bench.device)
    anchor = losses.proxy_anchor(n_classes, bench.device)
    runs = {"proxyanchor": losses.step(anchor, embeddings, labels)}
    for variant in ("pair", "batch_proxy", "all_proxy"):
        antico = losses.AntiCo(losses.proxy_anchor(n_classes, bench.device), variant)
        runs[f"antico_{variant}"] = losses.step(antico, embeddings, labels)
    times = dict(zip(runs, losses.medians(list(runs.values()), 2 if bench.small else 15, bench.device)))
    return f"{n_classes:,} classes: " + ", ".join(f"{name} {ms:.2f}" for name, ms in times.items())


@row("evaluation of SOP's size")
def sop_evaluation(bench):
    if bench.small:
        embeddings, labels = evaluations.data(400, 80, device=bench.device)
        metrics = evaluation.compute(embeddings, labels, [*evaluations.OURS, "mAP_1000"])
        return f"small: Recall@1 {metrics['e_recall@1']:.3f}"
    (seconds,), (metrics,) = evaluations.fastest([evaluations.sop_metrics(bench.device.type)], 1, bench.device.type)
    memory = in_a_process_of_its_own(evaluations.sop_metrics, bench.device.type)
    return f"{seconds:.1f} s, peak {memory or float('nan'):.0f} MiB beyond the embeddings; Recall@1 {metrics['e_recall@1']:.3f}"


def network_run(bench, name, batch, *flags):
    """A Run of ResNet-50 at 224 pixels (small: conv4 at 32) on generated JPEGs."""
    arch, size = ("conv4_normalize", 32) if bench.small else ("resnet50_frozen_normalize", 224)
    return training.build(
        os.path.join(bench.folder, name), "--dataset", "folder", "--source_path", bench.images(), "--arch", arch,
        "--input_size", size, "--not_pretrained", "--embed_dim", 512, "--bs", batch, "--loss", "antico_batch_proxy",
        "--kernels", 0 if bench.small else os.cpu_count(), "--evaluation_metrics", "e_recall@1", *flags,
    )  # fmt: skip


def on_the_device(bench, built, steps):
    """A function that trains so many steps on one batch that lies on the device."""
    size, bs = built.model.input_size, built.opt.bs
    images = torch.randint(0, 256, (bs, 3, size, size), dtype=torch.uint8, device=bench.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(bs, device=bench.device) // 2 % built.criterion.n_classes
    program.make_net(built, warming_up=False)
    built.model.train()

    def steps_there():
        for _ in range(steps):
            program.training_step(built, images, labels, 1)

    return steps_there


def seconds_of(bench, function, turns=3):
    function()
    return min(training.in_turns({"": function}, turns, bench.device)[""])


def loops(bench, batch):
    built, steps = network_run(bench, f"loops{batch}", batch), 1 if bench.small else 15
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    training.ours(built, 1)()
    first = time.perf_counter() - start
    peak = f", peak memory {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if bench.gpu else ""
    # constant sizes: what was compiled for the first step serves all others
    before = recompilations()
    times = training.in_turns(training.three(built, steps), 1 if bench.small else 3, bench.device)
    expect(recompilations() == before, "the network was compiled again after the first step")
    times["on the device"] = [seconds_of(bench, on_the_device(bench, built, steps))]
    rates = ", ".join(f"{name} {batch * steps / min(t):.0f}" for name, t in times.items())
    return f"images/s: {rates}; first step after {first:.1f} s{peak}"


def recompilations():
    return torch._dynamo.utils.counters["stats"].get("unique_graphs", 0)


@row("ResNet-50 at 224 px, batch 90: our loop, the plain loops, one batch on the device")
def loops_90(bench):
    return loops(bench, 8 if bench.small else 90)


@row("ResNet-50 at 224 px, batch 256: the same")
def loops_256(bench):
    need(not bench.small, "as the row before in a small size")
    return loops(bench, 256)


@row("ResNet-50 at 224 px, batch 90: compile x AMP, ms a step on the device")
def compile_and_amp(bench):
    ways = {"bf16": ("--amp", "bf16"), "float32": ("--amp", "none")}
    ways |= {"fp16": ("--amp", "fp16"), "float32 --tf32": ("--amp", "none", "--tf32")} if bench.gpu else {}
    steps, found = 1 if bench.small else 10, []
    for number, (name, flags) in enumerate(ways.items()):
        for compiled in ("off", "on") if bench.gpu and number < 2 else ("off",):
            built = network_run(
                bench, f"ways{number}{compiled}", 8 if bench.small else 90, *flags, "--compile", compiled
            )
            ms = 1e3 * seconds_of(bench, on_the_device(bench, built, steps)) / steps
            found.append(f"{name}{' compiled' if compiled == 'on' else ''} {ms:.1f}")
            del built
    return ", ".join(found)


@row("AntiCo's all-proxy term in a ResNet-50 step, batch 90, SOP's classes")
def share(bench):
    need(bench.gpu, "a ResNet-50 step takes a minute here")
    times = losses.share_of_a_training_step(10)
    return f"{', '.join(f'{name} {ms:.1f} ms' for name, ms in times.items())}: {1 - times['Proxy-Anchor'] / times['AntiCo all_proxy']:.1%}"


# --- the table ---


def make_bench(device, quick, folder):
    """What the rows share. small: sizes for a CPU or --quick."""
    gpu = device.type == "cuda"
    small = quick or not gpu
    made = []

    def images():
        if not made:
            made.append(os.path.join(folder, "images"))
            inputs.make(made[0], "CUB's, 500 x 375", 16 if small else 360)
        return made[0]

    return SimpleNamespace(
        device=device, gpu=gpu, small=small, folder=os.path.join(folder, "runs"), images=images, data={}
    )


def attempt(function, bench):
    """(result, "ok", "skipped" or "FAILED"); an error is one line."""
    try:
        return function(bench), "ok"
    except Skipped as reason:
        return str(reason), "skipped"
    except (Exception, SystemExit) as problem:  # whatever never ran here
        lines = str(problem).strip().splitlines() or [""]
        return f"{type(problem).__name__}: {lines[0]}"[:300], "FAILED"
    finally:
        folders.release()
        gc.collect()
        torch._dynamo.reset()
        if bench.gpu:
            torch.cuda.empty_cache()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes on a GPU too: whether it runs, not how fast")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only the rows with one of these words in their name")
    args = parser.parse_args(argv)
    rows = [(name, function) for name, function in ROWS if not args.only or any(word in name for word in args.only)]
    if not rows:
        parser.error(
            f"--only {' '.join(args.only)}: no row has that in its name; rows: {'; '.join(name for name, _ in ROWS)}"
        )
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        device, name = devices.choose_device(parameters.parse([]))
        bench = make_bench(device, args.quick, folder)
        faiss = "with" if search.have_faiss() else "without"
        print(
            f"{name}; torch {torch.__version__}, {os.cpu_count()} cores, {faiss} faiss{'; small sizes' if bench.small else ''}\n"
        )
        print("| what | result | seconds | |\n|---|---|---:|---|", flush=True)
        for what, function in rows:
            began = time.monotonic()
            late = began - start > LIMIT
            result, word = (f"not begun, {LIMIT} s are over", "skipped") if late else attempt(function, bench)
            failed += word == "FAILED"
            print(f"| {what} | {result.replace('|', '/')} | {time.monotonic() - began:.1f} | {word} |", flush=True)
    print(f"\n{len(rows)} rows in {time.monotonic() - start:.0f} s, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
