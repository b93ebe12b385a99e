"""What a CPU cannot show, in one run: python -m benchmarks.gpu [--small] [--out FILE]

A table (claim, ours, peer, ratio, ok) is printed and written to benchmarks/results/gpu.md; with one card and 16 cores
it is meant to take less than 5 minutes. What fails says why in its row, the others go on, and the exit status is then
1. It needs neither internet nor faiss. --small takes conv4 at 16 px, 500 embeddings and 300 proxies instead, on a CPU
too, where compile and fp16 do not act: no measurement, and written only where --out says.
"""

import contextlib
import csv
import importlib.util
import io
import os
import subprocess
import sys
import tempfile
from functools import cached_property, partial
from pathlib import Path
from unittest import mock

import torch

import criteria
import evaluation
import main as program
import parameters
from benchmarks import DEVICE, head, heading, parser, row, seconds, training, turns
from benchmarks import evaluation as evaluations
from benchmarks import input as inputs
from benchmarks.criteria import SOP
from utilities import run as runs

ROOT = Path(program.__file__).resolve().parent
GLYPHS = "--dataset glyphs --embed_dim 64 --bs 96 --n_epochs 3".split()
TINY = "--dataset folder --embed_dim 16 --bs 4 --n_epochs 1 --input_size 16".split()
RECIPE = "--arch conv4_normalize --lr 1e-3 --samples_per_class 4 --kernels 0 --no_train_metrics".split()
RECIPE += "--loss antico_all_proxy --loss_oproxy_lrmulti 3 --evaluation_metrics e_recall@1".split()
EXACT = "--amp none --compile off".split()
NETWORK = "--loss antico_batch_proxy --lr 1e-4 --embed_dim 512 --not_pretrained --dataset folder".split()
DIES = """
import itertools, os, sys, main
from torch.optim.optimizer import register_optimizer_step_post_hook
steps = itertools.count(1)
register_optimizer_step_post_hook(lambda *_: next(steps) == 3 and os.kill(os.getpid(), 9))
main.main(sys.argv[1:])
"""  # a run of main.py that is killed in its third step


class Bench:
    """What the rows share: images, runs of main.py, and a network with the times of its loops."""

    def __init__(self, folder, small):
        self.small, self.images, self.runs = small, os.path.join(folder, "images"), os.path.join(folder, "runs")
        inputs.make(self.images, "CUB's, 500 x 375", *((16, 4) if small else (360, 100)))
        self.flags = [*(TINY if small else GLYPHS), *RECIPE, "--source_path", self.images, "--save_path", self.runs]
        self.folder = os.path.join(self.runs, self.flags[1])  # of the data set

    def run(self, name, *flags):
        """The rows of metrics.csv of a run of main.py. RuntimeError with its last line if it fails."""
        output = io.StringIO()
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            status = program.main([*self.flags, "--savename", name, *flags])
        if status:
            raise RuntimeError(f"exit status {status}: {output.getvalue().strip().splitlines()[-1]}")
        with open(os.path.join(self.folder, name, "metrics.csv"), encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    @cached_property
    def float32(self):
        return self.run("float32", *EXACT)

    @cached_property
    def network(self):
        arch, size, bs = ("conv4_normalize", 16, 8) if self.small else ("resnet50_frozen_normalize", 224, 90)
        sizes = ("--arch", arch, "--input_size", size, "--bs", bs, "--kernels", 0 if self.small else os.cpu_count())
        return training.build(os.path.join(self.runs, "network"), *NETWORK, "--source_path", self.images, *sizes)

    def ms(self, loops):
        """{name: milliseconds a step} of {name: function that trains so many steps}, without what starting takes."""
        short, long = (1, 3) if self.small else (20, 140)
        works = {(name, n): partial(loop, n) for name, loop in loops.items() for n in (short, long)}
        times = {key: min(found) for key, found in turns(works, 2).items()}
        return {name: 1e3 * (times[name, long] - times[name, short]) / (long - short) for name in loops}


def on_the_device(run, criterion):
    """A function that trains so many steps of our loop on one batch that lies on the device: no input, the ceiling."""
    size, bs = run.model.input_size, run.opt.bs
    images = torch.randint(0, 256, (bs, 3, size, size), dtype=torch.uint8, device=run.device)
    batch = images.to(memory_format=torch.channels_last), torch.arange(bs, device=run.device) // 2
    groups = run.model.param_groups(run.opt.lr) + criterion.param_groups(run.opt.lr)
    parts = dict(criterion=criterion, optimizer=torch.optim.Adam(groups, fused=True))

    def train(steps):
        with mock.patch.multiple(run, loader=[batch] * steps, **parts):
            training.ours(run, steps)

    return train


def learned(bench, name, *flags):
    """[(ours, peer, ratio, ok)] of the table, as the other functions of CLAIMS."""
    ours, peer = (float(rows[-1]["test/e_recall@1"]) for rows in (bench.run(name, *flags), bench.float32))
    return [(f"{ours:.3f}", f"float32 {peer:.3f}", ours / peer, bench.small or (peer > 0.3 and ours > 0.85 * peer))]


def resumed(bench):
    whole, again, folder = bench.float32, bench.run("again", *EXACT), os.path.join(bench.folder, "killed")
    words = [*bench.flags, *EXACT, "--savename", "killed", "--checkpoint_minutes", "0"]
    killed = subprocess.run([sys.executable, "-c", DIES, *words], cwd=ROOT, capture_output=True, text=True)
    if killed.returncode != -9:
        raise RuntimeError(f"it was not killed: {(killed.stderr or killed.stdout).strip().splitlines()[-1]}")
    step = runs.newest(folder)[1]["step"]
    rows = bench.run("killed", *EXACT, "--resume", folder, "--checkpoint_minutes", "10")
    ours, peer, twice = ([float(line["loss"]) for line in lines[1:]] for lines in (rows, whole, again))
    apart, noise = (max(abs(a / b - 1) for a, b in zip(losses, peer, strict=True)) for losses in (ours, twice))
    # where a GPU adds in no fixed order two runs differ anyway, and training amplifies it
    ok = step == 2 and apart <= max(1e-6, min(5 * noise, 1e-2))
    cells = f"{ours[-1]:.6f}, up to {apart:.0e} off", f"undisturbed {peer[-1]:.6f}, a second time up to {noise:.0e} off"
    return [(*cells, f"{ours[-1] / peer[-1]:.6f}", ok)]


def searched(bench, backend):
    if backend == "faiss" and not importlib.util.find_spec("faiss"):
        return [("faiss is not installed here", "", "", None)]
    embeddings, labels = evaluations.data(*((500, 100) if bench.small else evaluations.SOP))
    ours, host = (partial(evaluation.compute, e, labels.to(e.device), evaluations.OURS, search=backend)
                  for e in (embeddings, embeddings.cpu()))  # fmt: skip
    seconds(ours)  # libraries are loaded and have their buffers
    (mine, values), (peer, wanted) = seconds(ours), seconds(host)
    apart = max(abs(values[name] - wanted[name]) for name in wanted)
    cells = f"{mine:.2f}, numbers up to {apart:.0e} off", f"the same on the CPU {peer:.2f}"
    return [(*cells, peer / mine, apart < 10 / len(labels))]


def resnet(bench):
    run = bench.network
    ms = bench.ms({**training.loops(run), "one batch on the device": on_the_device(run, run.criterion)})
    rate = {name: 1e3 * run.opt.bs / taken for name, taken in ms.items()}
    wanted = {"plain": 1, "plain, tuned": 0.95, "one batch on the device": 0.9}
    ok = {peer: bench.small or rate["ours"] >= least * rate[peer] for peer, least in wanted.items()}
    return [(f"{rate['ours']:.0f}", f"{peer} {rate[peer]:.0f}", rate["ours"] / rate[peer], ok[peer]) for peer in wanted]


def share(bench):
    run, loops = bench.network, {}
    for loss in ("antico_all_proxy", "proxyanchor"):
        opt = parameters.parse(["--loss", loss, "--embed_dim", str(run.opt.embed_dim)])
        loops[loss] = on_the_device(run, criteria.select(opt, 300 if bench.small else SOP).to(DEVICE))
    ours, base = bench.ms(loops).values()
    cells = f"{ours:.2f}, the rate {1 - base / ours:.1%} of it", f"Proxy-Anchor alone {base:.2f}"
    return [(*cells, base / ours, bench.small or base >= 0.99 * ours)]


SEARCH = f"evaluation of {evaluations.SOP[0]:,} x 512 on the device: the same numbers, seconds"
CLAIMS = {
    "quickstart with compile and AMP: Recall@1 (wanted ≥ 0.85)": lambda bench: learned(bench, "quickstart"),
    "the same with --amp fp16": lambda bench: learned(bench, "half", "--use_float16"),
    "killed in its third step and resumed, the losses are the same: that of the last epoch": resumed,
    f"{SEARCH}, without faiss": partial(searched, backend="torch"),
    f"{SEARCH}, with faiss": partial(searched, backend="faiss"),
    "ResNet-50 at 224 px, batch 90, images/s (wanted ≥ 1, 0.95, 0.9)": resnet,
    f"the rate of {SOP:,} proxies in such a step on the device, ms (wanted ≥ 0.99)": share,
}


def main(argv=None):
    made = parser(__doc__)
    made.add_argument("--out", metavar="FILE", help="where the table goes instead of benchmarks/results/gpu.md")
    args = made.parse_args(argv)
    if DEVICE.type == "cpu" and not args.small:
        made.error("there is no GPU here; --small runs the rows in tiny sizes on a CPU")
    what = "conv4 at 16 px, 500 embeddings, 300 proxies for what is named" if args.small else "the GPU's claims"
    lines = [heading(what, args.small), "", head("claim", "ours", "peer", "ratio:", "ok")]
    print(*lines, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, args.small)
        for claim, measure in CLAIMS.items():
            try:
                rows = [(*cells, {True: "yes", False: "NO", None: "-"}[ok]) for *cells, ok in measure(bench)]
            except (Exception, SystemExit) as problem:  # whatever a machine says that never ran this
                why = " ".join(f"{type(problem).__name__}: {problem}".split())[:300]
                rows = [(why.replace("|", "/"), "", "", "FAILED")]
            lines += [row(f"{'small: ' * args.small}{claim}", *cells) for cells in rows]
            print(*lines[-len(rows) :], sep="\n", flush=True)
    out = args.out or (None if args.small else ROOT / "benchmarks" / "results" / "gpu.md")
    if out:
        Path(out).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(any(line.endswith(("| NO |", "| FAILED |")) for line in lines))


if __name__ == "__main__":
    sys.exit(main())
