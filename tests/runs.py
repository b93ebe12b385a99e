"""Runs of main.py that may be killed: a server imports torch once and forks a process for each run, which saves seconds.

By hand, with counts of what was seen: python -m tests.runs MOMENTS. It kills runs at MOMENTS random moments for glyphs
and a folder of images, each with 0 and 2 workers, resumes them, and compares with the run that nobody disturbed.
"""

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback

from utilities import interrupts

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = [
    "--arch",
    "conv4_normalize",
    "--embed_dim",
    "16",
    "--bs",
    "32",
    "--samples_per_class",
    "4",
    "--lr",
    "1e-3",
    "--loss",
    "antico_pair",
    "--antico_base",
    "margin",
    "--batch_mining",
    "distance",
    "--n_epochs",
    "3",
    "--tau",
    "2",
    "--no_train_metrics",
    "--evaluation_metrics",
    "e_recall@1",
    "--checkpoint_minutes",
    "0",
]  # every step saves


def start(argv, **more):
    """A process of its own, from the first import on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "main.py", *map(str, argv)], cwd=HERE, text=True, env=environment, **more)


class Server:
    """Forks processes that run main.main, one at a time. Their glyphs have 20 + 20 classes. Used as a context manager."""

    def __enter__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.runs", "serve"],
            cwd=HERE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(60)

    def run(self, argv, log, meanwhile=None):
        """(exit status, what it printed); meanwhile(process id, log) is called while it runs. Killed by signal n: -n."""
        open(log, "w").close()  # there for `meanwhile`
        print(json.dumps([list(map(str, argv)), str(log)]), file=self.process.stdin, flush=True)
        number = int(self.process.stdout.readline())
        try:
            if meanwhile:
                meanwhile(number, log)
        except BaseException:
            os.kill(number, signal.SIGKILL)
            self.process.stdout.readline()
            raise
        status = os.waitstatus_to_exitcode(int(self.process.stdout.readline()))
        with open(log, encoding="utf-8") as file:
            return status, file.read()


def serve():
    import main

    fewer_glyphs()
    print("ready", flush=True)
    for line in sys.stdin:
        argv, log = json.loads(line)
        child = os.fork()
        if child == 0:
            run_here(main.main, argv, log)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


def run_here(run, argv, log):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(handle, 1), os.dup2(handle, 2)
    sys.argv = ["main.py", *argv]
    status = 99
    interrupts.end_at_once()  # as `python main.py` does
    try:
        status = run(argv)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def fewer_glyphs():
    import torch

    import datasets
    from datasets import Splits, glyphs

    def select(opt, size):
        splits = glyphs.splits(size, opt.augmentation)
        first = [
            split.subset(torch.nonzero(split.labels < 20).flatten().tolist()) for split in (splits.train, splits.test)
        ]
        return Splits(train=first[0], test=first[1])

    datasets.DATASETS["glyphs"] = datasets.DATASETS["glyphs"]._replace(load=select)


def image_folder(root):
    """The flags of a data set of 8 + 8 classes of 12 images."""
    from pathlib import Path

    from tests import miniatures

    for c in range(16):
        for i in range(12):
            miniatures.noise(Path(root) / f"class{c:02d}" / f"{i}.jpg", size=(50, 40), seed=100 * c + i)
    return ["--dataset", "folder", "--source_path", str(root)]


def outcome(folder):
    """What two runs are compared by: the last checkpoint and metrics.csv, but for the seconds."""
    from utilities import state

    saved = state.load(os.path.join(folder, "checkpoint.pt"))
    del saved["seconds"]
    for row in saved["rows"]:
        del row["seconds"]
    with open(os.path.join(folder, "metrics.csv"), encoding="utf-8", newline="") as file:
        rows = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return saved, rows


def same(a, b):
    """Whether two nests of containers, numbers and tensors are equal bit by bit."""
    import torch

    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def after(seconds, number=signal.SIGKILL):
    """For `meanwhile`: a signal after so many seconds, if the process still runs."""

    def act(process, _):
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)

    return act


def kill_and_resume(server, argv, place, seconds, number=signal.SIGKILL):
    """(exit status of the run that got a signal, what it printed, status and text of the one that went on)."""
    log = os.path.join(place, "log")
    first = server.run([*argv, "--save_path", place], log, after(seconds, number))
    return *first, *server.run([*argv, "--save_path", place, "--resume"], log)


def by_hand(moments):
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as place, Server() as server:
        folder_flags = image_folder(os.path.join(place, "images"))
        for flags in (["--dataset", "glyphs"], folder_flags):
            for workers in (0, 2):
                argv, name = [*SMALL, *flags, "--kernels", str(workers)], f"{flags[1]}{workers}"
                root = os.path.join(place, name)
                os.mkdir(root)
                began = time.monotonic()
                status, text = server.run([*argv, "--save_path", root], os.path.join(root, "log"))
                took = time.monotonic() - began
                assert status == 0, text
                whole = outcome(os.path.join(root, flags[1], "Sample_Run_s0"))
                counts = {"killed": 0, "identical": 0}
                for n in range(moments):
                    here = os.path.join(place, f"{name}_{n}")
                    os.mkdir(here)
                    first, _, last, text = kill_and_resume(server, argv, here, generator.uniform(0, took))
                    (folder,) = os.listdir(os.path.join(here, flags[1]))
                    identical = last == 0 and same(whole, outcome(os.path.join(here, flags[1], folder)))
                    counts["killed"] += first == -signal.SIGKILL
                    counts["identical"] += identical
                    if not identical:
                        print(text)
                print(f"{flags[1]}, {workers} workers: a run of {took:.1f} s, {moments} moments, {counts}", flush=True)


if __name__ == "__main__":
    serve() if sys.argv[1] == "serve" else by_hand(int(sys.argv[1]))
