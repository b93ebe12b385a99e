"""Runs of main.py that may be killed, each a process forked from one that has torch imported, which saves seconds."""

import csv
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path

HERE = Path(__file__).parent.parent
LONG = 300  # seconds: the machine may be busy
SMALL = (
    "--input_size 16 --arch conv4_normalize --embed_dim 16 --bs 32 --samples_per_class 4 --lr 1e-3 --loss antico_pair "
    "--antico_base margin --antico_target 0.9 --batch_mining distance --n_epochs 3 --tau 2 --no_train_metrics "
    "--evaluation_metrics e_recall@1 --checkpoint_minutes 0"
).split()  # every step saves
os.environ["OMP_NUM_THREADS"] = "1"  # of all processes that are started here
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["main", "tests.ranks"])


def launch(argv, log, program="main", unread=False, **environment):
    """A process that runs main.main, or tests/ranks.py; what it prints goes to the file `log`, or with `unread` only
    its errors, the rest to a closed pipe. Its glyphs are few."""
    Path(log).write_text("")
    process = FORKS.Process(target=run_here, args=(program, list(map(str, argv)), str(log), unread, environment))
    process.start()
    return process


def run_here(program, argv, log, unread, environment):
    import main
    from tests import ranks

    os.setsid()  # a group of its own, for signals to all of it
    multiprocessing.set_start_method(None, force=True)  # its data workers start as those of python main.py
    os.environ.update(environment)
    output, nothing = os.open(log, os.O_WRONLY | os.O_TRUNC), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0), os.dup2(output, 1), os.dup2(output, 2)
    if unread:
        read, write = os.pipe()
        os.close(read), os.dup2(write, 1)
        sys.stdout = open(1, "w", encoding="utf-8")  # buffered, whatever PYTHONUNBUFFERED says
    sys.argv, status = ["main.py", *argv], 99
    fewer_glyphs()
    try:
        status = {"main": main.main, "ranks": ranks.write_everything}[program](argv)
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(process, seconds=LONG):
    """The exit status; -n where signal n killed it, or SIGKILL after so many seconds."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
    return process.exitcode


def run(argv, log, meanwhile=None):
    """(exit status, what it printed); meanwhile(process id, log) is called while it runs."""
    process = launch(argv, log)
    try:
        if meanwhile:
            meanwhile(process.pid, log)
        return wait(process), Path(log).read_text(encoding="utf-8")
    finally:
        wait(process, 0)


def once(words, action):
    """For `meanwhile`: action(process id) once these words are printed."""

    def act(process, log):
        end = time.monotonic() + LONG
        while words not in Path(log).read_text(encoding="utf-8") and time.monotonic() < end:
            time.sleep(0.005)
        action(process)

    return act


def run_ranks(world, argv, folder, program="main"):
    """[(exit status, what it printed)] of so many processes of one run, as torchrun would start them."""
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # it outlives them, as torchrun's does
    where = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    where["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    logs = [Path(folder, f"log{r}") for r in range(world)]
    processes = [launch(argv, log, program, RANK=str(r), LOCAL_RANK=str(r), **where) for r, log in enumerate(logs)]
    return [(wait(process), log.read_text(encoding="utf-8")) for process, log in zip(processes, logs)]


def start(argv, *launcher, **more):
    """main.py in a process of its own, from the first import on; `launcher`: words between python and main.py."""
    more = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
    return subprocess.Popen([sys.executable, *launcher, "main.py", *map(str, argv)], cwd=HERE, text=True, **more)


def fewer_glyphs(patch=setattr):
    """From here on --dataset glyphs has 20 + 20 classes."""
    import datasets

    whole = datasets.select

    def few(opt, input_size=224):
        splits = whole(opt, input_size)
        if opt.dataset == "glyphs":
            for name in [name for name in ("train", "val", "test") if getattr(splits, name)]:
                split = getattr(splits, name)
                setattr(splits, name, split.subset((split.labels < 20).nonzero().flatten().tolist()))
        return splits

    patch(datasets, "select", few)


def image_folder(root):
    """The flags of a data set of 8 + 8 classes of 12 images."""
    from tests import miniatures

    for c in range(16):
        for i in range(12):
            miniatures.noise(Path(root) / f"class{c:02d}" / f"{i}.jpg", size=(50, 40), seed=100 * c + i)
    return ["--dataset", "folder", "--source_path", str(root)]


def rows(folder):
    """metrics.csv, but for the seconds: a dict of strings an epoch."""
    with open(os.path.join(folder, "metrics.csv"), encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def outcome(folder):
    """What two runs are compared by: the last checkpoint and metrics.csv, but for the seconds."""
    from utilities.run import load

    saved = load(os.path.join(folder, "checkpoint.pt"))
    del saved["seconds"]
    for row in saved["rows"]:
        del row["seconds"]
    return saved, rows(folder)


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
