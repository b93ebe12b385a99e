"""Whole runs of main.py."""

import contextlib
import csv
import io
import json
import os
import signal
import subprocess
import sys

import torch

import main as program
from benchmarks.gpu.rows import expect, need, row
from utilities import state

ROOT = os.path.dirname(os.path.abspath(program.__file__))
GLYPHS = (
    "--dataset glyphs --arch conv4_normalize --bs 112 --lr 1e-3 --loss antico_batch_proxy --loss_oproxy_lrmulti 10 "
    "--kernels 0 --no_train_metrics --evaluation_metrics e_recall@1"
).split()


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
    output = io.StringIO()
    flags = [*flags, "--save_path", bench.folder, "--savename", name]
    with little_data(bench), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        ended = program.main([str(flag) for flag in flags])
    lines = output.getvalue().strip().splitlines() or [""]
    expect(ended == status, f"exit status {ended}, wanted {status}: {lines[-1]}")
    path = os.path.join(bench.folder, flags[flags.index("--dataset") + 1], name, "metrics.csv")
    if not os.path.exists(path):  # stopped before the first row
        return [], output.getvalue()
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), output.getvalue()


def learned(rows):
    values = [float(r["loss"]) for r in rows if r["loss"]]
    expect(values and all(v == v and abs(v) < 1e30 for v in values), f"the losses are {values}")
    first, last = (float(rows[i]["test/e_recall@1"]) for i in (0, -1))
    return f"loss {values[0]:.3f} → {values[-1]:.3f}, Recall@1 {first:.3f} → {last:.3f}"


@row("quickstart: glyphs, AMP and compile as they come")
def quickstart(bench):
    rows, _ = run(bench, "quickstart", *GLYPHS, "--n_epochs", 1 if bench.small else 3)
    expect(bench.small or float(rows[-1]["test/e_recall@1"]) > 0.3, f"it learned nothing: {learned(rows)}")
    return learned(rows) + ("" if bench.gpu else "; on a CPU without both")


@row("--amp fp16 with its scaler")
def half(bench):
    need(bench.gpu, "--amp fp16 needs a GPU")
    return learned(run(bench, "fp16", *GLYPHS, "--n_epochs", 2, "--amp", "fp16")[0])


@row("after --warmup the backbone learns, compiled too")
def warm_up(bench):
    learned(run(bench, "warmed", *GLYPHS, "--n_epochs", 2, "--warmup", 1)[0])
    folder = os.path.join(bench.folder, "glyphs", "warmed")
    before, after = (state.load(os.path.join(folder, name))["model"] for name in (state.BEFORE, state.LAST))
    layers = [name for name in after if name.startswith("features") and name.endswith("weight")]
    same = [name for name in layers if torch.equal(before[name], after[name])]
    expect(layers and not same, f"after the warm-up these did not learn: {', '.join(same)}")
    return f"{len(layers)} of {len(layers)} layers learned"


@row("stopped in mid-epoch by SIGTERM, then --resume")
def resume(bench):
    flags = [*GLYPHS, "--n_epochs", 2, "--amp", "none", "--compile", "off"]
    whole, _ = run(bench, "whole", *flags)
    training_step, taken = program.training_step, []

    def then_stop(*words):
        taken.append(training_step(*words))
        if len(taken) == 2:
            signal.raise_signal(signal.SIGTERM)
        return taken[-1]

    program.training_step = then_stop
    try:
        run(bench, "stopped", *flags, status=128 + signal.SIGTERM)
    finally:
        program.training_step = training_step
    folder = os.path.join(bench.folder, "glyphs", "stopped")
    saved = state.load(os.path.join(folder, "checkpoint.pt"))
    epoch, step = saved["epoch"], saved["step"]
    expect((epoch, step) == (0, 2), f"it was saved after epoch {epoch}, step {step}")
    resumed, _ = run(bench, "stopped", *flags, "--resume", folder)
    apart = max(abs(float(a["loss"]) / float(b["loss"]) - 1) for a, b in zip(whole[1:], resumed[1:], strict=True))
    expect(apart < 1e-3, f"the losses differ by {apart:.1e} of their size from the undisturbed run's")
    return f"losses differ by {apart:.1e} of their size"


@row("--gpu_augment on JPEGs, augmentation adv")
def augment_on_the_device(bench):
    folder = bench.images()
    flags = (
        "--arch conv4_normalize --input_size 64 --bs 16 --loss antico_pair --n_epochs 2 --gpu_augment "
        "--augmentation adv --no_test_metrics --evaluation_metrics e_recall@1 --dataset folder --source_path"
    ).split()
    flags += [folder, "--kernels", 0 if bench.small else 4]
    rows, _ = run(bench, "augmented", *flags)
    return f"loss {float(rows[1]['loss']):.3f} → {float(rows[-1]['loss']):.3f}"


@row("--profile 3")
def profile(bench):
    name = "profiled"
    _, output = run(bench, name, *GLYPHS, "--n_epochs", 4, "--profile", 3)
    with open(os.path.join(bench.folder, "glyphs", name, "profile.json"), encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    kernels = sum(event.get("cat") == "kernel" for event in events)
    expect(kernels > 0 or not bench.gpu, "the trace has no kernel of the GPU")
    line = next(line for line in output.splitlines() if line.startswith("profile of"))
    return line.partition("; trace")[0] + f"; {kernels} kernels"


@row("torchrun --nproc_per_node=1")
def torchrun(bench):
    flags = ["--n_epochs", 0 if bench.small else 1, "--input_size", 16, "--savename", "torchrun"]
    command = [*"-m torch.distributed.run --standalone --nproc_per_node=1 main.py".split(), *GLYPHS, *flags]
    words = [sys.executable, *map(str, command), "--save_path", bench.folder]
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
        large = "--n_epochs 1 --arch resnet50_normalize --not_pretrained --bs 448 --eval_every 10".split()
        _, output = run(bench, "oom", *GLYPHS, *large, status=1)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    line = output.strip().splitlines()[-1]
    expect("memory ran out; lower --bs" in line, line)
    return line.partition(". ")[0]
