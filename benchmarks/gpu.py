"""What a CPU cannot show, in one run: python -m benchmarks.gpu | tee benchmarks/results/gpu.md

A row is printed as soon as it is measured, the most valuable first; all take an estimated 6 minutes on 16 cores. One
that fails says why, the others go on, and the exit status is then 1. It needs neither internet nor faiss.
With --small, and where there is no GPU, it takes tiny networks, not compiled: whether it runs, not how fast.
"""

import contextlib
import copy
import functools
import io
import itertools
import os
import subprocess
import sys
import tempfile
import traceback

import pandas
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import criteria
import evaluation
import main as program
import parameters
from benchmarks import DEVICE, head, heading, now, parser, row, seconds, training
from benchmarks import evaluation as evaluations
from benchmarks import input as inputs
from benchmarks.criteria import SOP
from utilities import run as runs

CUDA = DEVICE.type == "cuda"
GLYPHS = "--dataset glyphs --embed_dim 64 --bs 96 --n_epochs 3".split()
TINY = "--dataset folder --embed_dim 16 --bs 4 --n_epochs 1 --input_size 16".split()
RECIPE = "--arch conv4_normalize --lr 1e-3 --samples_per_class 4 --kernels 0 --no_train_metrics".split()
RECIPE += "--loss antico_all_proxy --antico_w 30 --loss_oproxy_lrmulti 3 --evaluation_metrics e_recall@1".split()
NETWORK = "--loss antico_batch_proxy --antico_w 30 --lr 1e-4 --embed_dim 512 --not_pretrained --dataset folder".split()
LOSSES = [name for name in criteria.CRITERIA if name != "nir"] + ["antico_pair --antico_form guard"]  # nir needs FrEIA
LOSSES += [f"{a} --batch_mining {b}" for a in ("contrastive", "triplet", "margin") for b in criteria.MINERS]
DIES_IN_ITS_THIRD_STEP = """
import itertools, os, sys, main, torch.optim.optimizer as optimizers
steps = itertools.count(1)
optimizers.register_optimizer_step_post_hook(lambda *_: next(steps) == 3 and os.kill(os.getpid(), 9))
main.main(sys.argv[1:])
"""


def on_one_batch(run, loss="antico_batch_proxy", n_classes=100, on_device=True):
    """A function that trains so many steps of our loop on one batch; if it is on the device, this is the ceiling."""
    run, size, bs, lr = copy.copy(run), run.model.input_size, run.opt.bs, run.opt.lr
    run.criterion = criteria.select(parameters.parse([*NETWORK, "--loss", *loss.split()]), n_classes).to(DEVICE)
    run.optimizer = torch.optim.Adam(run.model.param_groups(lr) + run.criterion.param_groups(lr), fused=True)
    images = torch.randint(0, 256, (bs, 3, size, size), dtype=torch.uint8).to(memory_format=torch.channels_last)
    batch = [x.to(DEVICE) if on_device or not CUDA else x.pin_memory() for x in (images, torch.arange(bs) // 2)]

    def train(steps):
        run.loader, run.net = torch.utils.data.DataLoader([batch] * steps, batch_size=None), None  # wrapped anew
        training.ours(run, steps)

    return train


class Bench:
    """Images, runs of main.py and networks; and the rows, methods row_... that give (claim, ours, peer, ratio, ok)."""

    def __init__(self, folder, small):
        self.small, self.compile = small, ["--compile", "off" if small else "on"]
        self.images, self.runs = os.path.join(folder, "images"), os.path.join(folder, "runs")
        inputs.make(self.images, "CUB's, 500 x 375", *((16, 4) if small else (2000, 100)))
        self.flags = [*(TINY if small else GLYPHS), *RECIPE, "--source_path", self.images, "--save_path", self.runs]
        self.folder = os.path.join(self.runs, self.flags[1])  # of the data set

    @functools.cache
    def run(self, name, *flags):
        """metrics.csv of a run of main.py. RuntimeError with its last line if it fails."""
        torch.compiler.reset()  # the compiler takes one network eight times at the most
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as errors:
            if program.main([*self.flags, *self.compile, "--savename", name, *flags]):
                raise RuntimeError(errors.getvalue())
        return pandas.read_csv(os.path.join(self.folder, name, "metrics.csv"))

    def process(self, start, name, *flags):
        """(exit status, last line) of a run in a process of its own."""
        command = [sys.executable, *start, *self.flags, *self.compile, "--savename", name, *flags]
        ended = subprocess.run(command, cwd=os.path.dirname(program.__file__), capture_output=True, text=True)
        return ended.returncode, ended.stderr.strip().rpartition("\n")[2]

    @functools.cache
    def network(self, arch="resnet50_frozen_normalize", *flags):
        """A Run of this network at batch 90 and 224 px."""
        arch, size, bs = ("conv4_normalize", 16, 8) if self.small else (arch, 224, 90)
        sizes = ("--arch", arch, "--input_size", size, "--bs", bs, "--kernels", 0 if self.small else os.cpu_count())
        return training.build(self.runs, *NETWORK, "--source_path", self.images, *sizes, *self.compile, *flags)

    def ms(self, loop, steps=60):
        """Milliseconds a step of a function that trains so many, from the 40th on: what was read ahead is used up."""
        began, count, (first, steps) = [], itertools.count(1), (1, 2) if self.small else (40, steps)
        hook = register_optimizer_step_post_hook(lambda *_: next(count) == first and began.append(now()))
        loop(first + steps)
        hook.remove()
        return 1e3 * (now() - began[0]) / steps

    def row_waits_and_nan(self):
        run, found = self.network("conv4_normalize", "--input_size", 32, "--compile", "off"), []
        mode = torch.cuda.set_sync_debug_mode if CUDA else str
        for loss in LOSSES:
            train, count = on_one_batch(run, loss, on_device=False), itertools.count(1)
            hook = register_optimizer_step_post_hook(lambda *_: mode("error" if next(count) < 5 else "default"))
            try:
                train(6)
            except RuntimeError as problem:
                found.append(f"{loss} ({problem} {traceback.extract_tb(problem.__traceback__)[-1]})")
            hook.remove()
            mode("default")
        yield "waits for the GPU in steps 2 to 5", "; ".join(found) or "none", f"{len(LOSSES)} losses", "", not found
        diverges = "nan --loss margin --batch_mining distance --lr 1e30 --compile off"
        status, line = self.process(["main.py"], *diverges.split())
        yield "NaN under margin is one line", line, f"exit status {status}", "", (status, line[:7]) == (1, "error: ")

    def row_quickstart(self):
        whole, again, half = self.run("whole"), self.run("again"), self.run("half", "--use_float16")
        recall, other = (rows["test/e_recall@1"].iloc[-1] for rows in (whole, half))
        learned, noise = self.small or min(recall, other) > 0.3, float((again.loss / whole.loss - 1).abs().max())
        yield "quickstart, compiled, bf16: Recall@1 (> 0.3)", recall, f"fp16 {other:.2f}", "", learned
        yield "its losses, a second time", f"up to {noise:.0e} off", "", "", noise == 0
        graphs = self.run("graphs", *(() if self.small else ("--compile", "graphs")))
        off = float((graphs.loss / whole.loss - 1).abs().max())
        yield "its losses with --compile graphs", f"up to {off:.0e} off", "", "", off <= 1e-6
        killed, _ = self.process(["-c", DIES_IN_ITS_THIRD_STEP], "killed", "--checkpoint_minutes", "0")
        step = runs.newest(f"{self.folder}/killed")[1]["step"]
        off = float((self.run("killed", "--resume", f"{self.folder}/killed").loss / whole.loss - 1).abs().max())
        claim, ok = f"killed in its third step, resumed from step {step}", killed == -9 and 0 < step < 3 and off <= 1e-6
        yield claim, f"up to {off:.0e} off", "", "", ok

    def row_steps(self):
        graphs = self.network("resnet50_frozen_normalize", "--compile", "off" if self.small else "graphs")
        run, one = self.network(), "one batch on the device"
        loops = {**training.loops(run), one: on_one_batch(run), "graphs": functools.partial(training.ours, graphs)}
        rate = {name: 1e3 * run.opt.bs / self.ms(loop, 150) for name, loop in loops.items()}
        for peer, least in {"plain": 1, "plain, tuned": 0.95, one: 0.95}.items():
            ratio, claim = rate["ours"] / rate[peer], f"ResNet-50 at 224 px, batch 90: images/s (≥ {least})"
            yield claim, rate["ours"], f"{peer} {rate[peer]:.0f}", ratio, self.small or ratio >= least
        yield "the same with --compile graphs", rate["graphs"], "ours, on", rate["graphs"] / rate["ours"], None
        losses = ("antico_all_proxy", "antico_class_means --antico_form guard", "proxyanchor")
        rates, guard, base = (self.ms(on_one_batch(graphs, loss, SOP)) for loss in losses)
        claim, peer = f"ms with the rate of {SOP:,} proxies, graphs (≥ 0.98)", f"Proxy-Anchor alone {base:.2f}"
        yield claim, rates, peer, base / rates, self.small or base >= 0.98 * rates
        yield "ms with the guard of class means, graphs", guard, peer, base / guard, None

    def row_beside_the_loop(self):
        run, split, in_use = self.network(), self.network().loader.dataset.unaugmented(), []
        embed = evaluation.embed, run.model, split, 256, run.opt.kernels
        (first, _), (again, _) = seconds(*embed), seconds(*embed)
        yield f"seconds to embed {len(split)} JPEGs", first, f"again {again:.2f}", first / again, None
        (waited, _), (more, _) = seconds(run.save), seconds(run.written)
        yield "seconds that the loop waits for a checkpoint", waited, f"its thread {more:.2f} more", "", None
        for _ in range(3 if self.small else 40):
            training.ours(run, 4)
            in_use.append(torch.cuda.memory_allocated() / 2**20 if CUDA else 0.0)
        two, last = in_use[1], in_use[-1]
        yield "MiB in use after 40 epochs", last, f"after two {two:.0f}", "", last <= 1.05 * two
        sets = evaluations.data(*((500, 100) if self.small else evaluations.SOP))
        work = lambda where: evaluation.compute(*(x.to(where) for x in sets), evaluations.OURS)  # noqa: E731
        work(DEVICE)  # libraries are loaded and have their buffers
        (ours, values), (host, wanted) = seconds(work, DEVICE), seconds(work, "cpu")
        off = max(abs(values[name] - wanted[name]) for name in wanted)
        claim, peer = f"seconds of the search of {len(sets[1]):,} x 512", f"the CPU {host:.2f}, up to {off:.0e} off"
        yield claim, ours, peer, host / ours, off < 10 / len(sets[1])

    def row_kernels(self):  # last: what the profiler leaves behind slows every launch after it
        run, kind, steps = self.network(), DEVICE.type.upper(), 3 if self.small else 50
        whole = self.ms(functools.partial(training.ours, run))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.__members__[kind]]) as seen:
            training.ours(run, steps)
        events = [e for e in seen.events() if e.device_type.name == kind and not e.is_user_annotation]
        busy = sum(e.time_range.elapsed_us() for e in events if not e.name.startswith("Mem")) / 1e3 / steps
        yield "ms of a step in the GPU's kernels", busy, f"the step {whole:.2f}", busy / whole, None


def main(argv=None):
    small, failed = parser(__doc__).parse_args(argv).small or not CUDA, False
    print(heading("the GPU's claims", small), "", head("claim", "ours", "peer", "ratio:", "ok"), sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, small)
        for name in [name for name in vars(Bench) if name.startswith("row_")]:
            try:
                for *cells, ok in getattr(bench, name)():
                    print(row(*cells, {True: "yes", False: "NO", None: "-"}[ok]), flush=True)
                    failed |= ok is False
            except (Exception, SystemExit) as problem:  # whatever a machine says that never ran this
                print(row(name, repr(problem)[:300].replace("|", "/"), "", "", "FAILED"), flush=True)
                traceback.print_exc()
                failed = True
        Bench.network.cache_clear()  # else torch waits 5 seconds for each data process when Python ends
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
