"""Runs of main.py that may be killed: a server imports torch once and forks a process for each, which saves seconds.

By hand, with counts of what was seen: python -m tests.runs MOMENTS. It kills runs at MOMENTS random moments for glyphs
and a folder of images, each with 0 and 2 workers, resumes them, and compares with the run that nobody disturbed.
"""

import contextlib
import csv
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from utilities import interrupts

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SMALL = (
    "--input_size 16 --arch conv4_normalize --embed_dim 16 --bs 32 --samples_per_class 4 --lr 1e-3 --loss antico_pair "
    "--antico_base margin --batch_mining distance --n_epochs 3 --tau 2 --no_train_metrics "
    "--evaluation_metrics e_recall@1 --checkpoint_minutes 0"
).split()  # every step saves


def start(argv, **more):
    """A process of its own, from the first import on."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more.pop("env", {})}
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, "main.py", *map(str, argv)], cwd=HERE, text=True, env=environment, **more)


class Server:
    """Forks processes that run main.main. Their glyphs have 20 + 20 classes. Used as a context manager."""

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

    def ask(self, *words):
        print(json.dumps(words), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def start(self, argv, log, program="main", **environment):
        """The process id of `program` (main, or ranks: tests/ranks.py); what it prints goes to the file `log`."""
        open(log, "w").close()
        return self.ask("start", program, list(map(str, argv)), str(log), environment)

    def wait(self, number, seconds=300):
        """The exit status; killed by signal n, or after so many seconds by SIGKILL: -n."""
        return os.waitstatus_to_exitcode(self.ask("wait", number, seconds))

    def run(self, argv, log, meanwhile=None):
        """(exit status, what it printed); meanwhile(process id, log) is called while it runs."""
        number = self.start(argv, log)
        try:
            if meanwhile:
                meanwhile(number, log)
        except BaseException:
            self.wait(number, 0)
            raise
        status = self.wait(number)
        with open(log, encoding="utf-8") as file:
            return status, file.read()

    def ranks(self, world, argv, folder, program="main"):
        """[(exit status, what it printed)] of so many processes of one run, as torchrun would start them."""
        where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        logs = [os.path.join(folder, f"log{r}") for r in range(world)]
        numbers = [
            self.start(argv, log, program, RANK=str(r), LOCAL_RANK=str(r), **where) for r, log in enumerate(logs)
        ]
        statuses = [self.wait(number) for number in numbers]
        return [(status, open(log, encoding="utf-8").read()) for status, log in zip(statuses, logs)]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def serve():
    import main
    from tests import ranks

    programs = {"main": main.main, "ranks": ranks.write_everything}
    fewer_glyphs()
    print("ready", flush=True)
    for line in sys.stdin:
        what, *words = json.loads(line)
        if what == "start":
            name, argv, log, environment = words
            answer = os.fork()
            if answer == 0:
                os.environ.update(environment)
                run_here(programs[name], argv, log)
        else:
            answer = wait_for(*words)
        print(answer, flush=True)


def wait_for(number, seconds):
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return status
        if time.monotonic() > end:
            os.kill(number, signal.SIGKILL)
        time.sleep(0.005)


def run_here(run, argv, log):
    output, nothing = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(output, 1), os.dup2(output, 2)
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
        if os.environ.get("RANK") == "0":
            time.sleep(1)  # it keeps the processes' store, which under torchrun outlives all
        os._exit(status)


def fewer_glyphs():
    """From here on --dataset glyphs has 20 + 20 classes, read once."""
    import torch

    import datasets
    from datasets import Splits, glyphs

    def few(split):
        return split.subset(torch.nonzero(split.labels < 20).flatten().tolist())

    @functools.cache
    def splits(size, augmentation):
        whole = glyphs.splits(size, augmentation)
        return dict(train=few(whole.train), test=few(whole.test))

    entry = datasets.DATASETS["glyphs"]
    datasets.DATASETS["glyphs"] = entry._replace(load=lambda opt, size: Splits(**splits(size, opt.augmentation)))


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
