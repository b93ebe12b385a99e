"""Sizes and speed."""

import os
import time

import torch

import evaluation
import main as program
from benchmarks import criteria as losses
from benchmarks import evaluation as evaluations
from benchmarks import training
from benchmarks.gpu.rows import expect, need, row
from benchmarks.memory import in_a_process_of_its_own


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
    peak = f"peak {memory or float('nan'):.0f} MiB beyond the embeddings"
    return f"{seconds:.1f} s, {peak}; Recall@1 {metrics['e_recall@1']:.3f}"


def network_run(bench, name, batch, *flags):
    """A Run of ResNet-50 at 224 pixels (small: conv4 at 32) on generated JPEGs."""
    arch, size = ("conv4_normalize", 32) if bench.small else ("resnet50_frozen_normalize", 224)
    fixed = "--not_pretrained --embed_dim 512 --loss antico_batch_proxy --evaluation_metrics e_recall@1".split()
    fixed += ["--dataset", "folder", "--source_path", bench.images(), "--arch", arch, "--input_size", size]
    workers = 0 if bench.small else os.cpu_count()
    return training.build(os.path.join(bench.folder, name), *fixed, "--bs", batch, "--kernels", workers, *flags)


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
    return "small: conv4 at 32 px, batch 8: " * bench.small + loops(bench, 8 if bench.small else 90)


@row("ResNet-50 at 224 px, batch 256: the same")
def loops_256(bench):
    need(not bench.small, "as the row before in a small size")
    return loops(bench, 256)


@row("ResNet-50 at 224 px, batch 90: compile x AMP, ms a step on the device")
def compile_and_amp(bench):
    ways = {"bf16": ("--amp", "bf16"), "float32": ("--amp", "none")}
    ways |= {"fp16": ("--amp", "fp16"), "float32 --tf32": ("--amp", "none", "--tf32")} if bench.gpu else {}
    steps, results = 1 if bench.small else 10, []
    for number, (name, flags) in enumerate(ways.items()):
        for compiled in ("off", "on") if bench.gpu and number < 2 else ("off",):
            built = network_run(
                bench, f"ways{number}{compiled}", 8 if bench.small else 90, *flags, "--compile", compiled
            )
            ms = 1e3 * seconds_of(bench, on_the_device(bench, built, steps)) / steps
            results.append(f"{name}{' compiled' if compiled == 'on' else ''} {ms:.1f}")
            del built
    return "small: conv4 at 32 px, batch 8: " * bench.small + ", ".join(results)


@row("AntiCo's all-proxy term in a ResNet-50 step, batch 90, SOP's classes")
def share(bench):
    need(bench.gpu, "a ResNet-50 step takes a minute here")
    times = losses.share_of_a_training_step(10)
    part = 1 - times["Proxy-Anchor"] / times["AntiCo all_proxy"]
    return f"{', '.join(f'{name} {ms:.1f} ms' for name, ms in times.items())}: {part:.1%}"
