"""The queue of antico_runs.sh with runs that take no time (fake_main.py), and one table of true ones."""

import collections
import json
import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

import main  # noqa: F401  with torch, once for all forks
from tables import runs

ROOT = runs.ROOT
FOUR = shlex.split("grid --grid loss=proxyanchor,margin,triplet,npair --n_epochs 2")  # of 3 epochs, 0 is untrained
REPORT = "import sys; a = sys.argv; open(a[a.index('--out') + 1] + '.md', 'w').write('\\n'.join(a))"
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "PROGRAM", [sys.executable, f"{ROOT}/tests/fake_main.py"])
    monkeypatch.setattr(runs, "REPORT", [sys.executable, "-c", REPORT])
    monkeypatch.setattr(runs, "TICK", 0.01)
    return Queue(tmp_path)


class Queue:
    """Commands whose runs and table are in one folder."""

    def __init__(self, out):
        self.out = out

    def start(self, *words, **environment):
        """A command in a process of its own: a fork, which has torch loaded already."""
        said = self.out / f"said{len([*self.out.glob('said*')])}.txt"
        said.touch()

        def command():
            os.environ.update(environment)
            with open(said, "w", buffering=1) as sys.stdout:
                sys.stderr = sys.stdout
                os.dup2(sys.stdout.fileno(), 1)
                os._exit(runs.main([*(words or FOUR), "--out", str(self.out)]))

        process = multiprocessing.get_context("fork").Process(target=command)
        process.said = said
        process.start()
        return process

    def run(self, *words, **environment):
        """(exit status, all that is said)"""
        process = self.start(*words, **environment)
        process.join(60)
        return process.exitcode, process.said.read_text()

    def lines(self):
        return [line.split() for path in self.out.glob("runs/epochs.txt") for line in path.open()]

    def is_whole(self, twice=0):
        """Whether each of four runs has trained each epoch once; but `twice` of them twice."""
        trained = collections.Counter((run, epoch) for run, epoch, *_ in self.lines())
        return len(trained) == 12 and trained.total() - 12 <= twice

    def wait(self, count):
        while len(self.lines()) < count:
            time.sleep(0.01)

    def table(self):
        (path,) = self.out.glob("*.md")
        return path.read_text()


def test_every_run_once_then_nothing_but_the_table(queue):
    status, said = queue.run(FAKE_SECONDS="0.1")
    assert status == 0 and "4 of 4 done" in said and queue.is_whole()
    ran = {line[0] for line in queue.lines()}
    assert {os.path.basename(word) for word in queue.table().splitlines()[1:5]} == ran
    assert re.search("about 0:00:0[1-9] to go", said.split("begins")[2])  # three runs of three epochs and a start
    status, said = queue.run()
    assert status == 0 and "begins" not in said and "goes on" not in said and queue.is_whole()


@pytest.mark.parametrize("moment, alone", [(1, False), (5, False), (1, True)])
def test_killed_in_the_middle_the_same_command_finishes(queue, moment, alone):
    """The queue and its run, or the queue alone, which leaves the run to itself."""
    process = queue.start(FAKE_SECONDS="1" if alone else "0.1")
    queue.wait(moment)
    for pid in (process.pid, *([] if alone else [int(queue.lines()[-1][2])])):
        os.kill(pid, signal.SIGKILL)
    process.join()
    status, said = queue.run()
    assert status == 0 and "4 of 4 done" in said and queue.is_whole(twice=not alone), said
    assert ("1 in another queue" if alone else "goes on") in said


def test_two_queues_at_once_do_each_run_once(queue):
    both = [queue.start(FAKE_SECONDS="0.03"), queue.start(FAKE_SECONDS="0.03")]
    for process in both:
        process.join(60)
    said = [process.said.read_text() for process in both]
    begun = [text.count("begins") for text in said]
    assert [process.exitcode for process in both] == [0, 0] and all("4 of 4 done" in text for text in said)
    assert queue.is_whole() and sum(begun) == 4 and min(begun) > 0


def test_a_failed_run_stops_nothing_and_is_named(queue):
    status, said = queue.run(FAKE_FAIL="margin")
    assert status == 1 and "1 of 4 runs failed" in said and "3 of 4 done" in said
    why = "_s0: no space left, in step 3 of epoch 1 (its output: "
    assert why in said.split("runs failed:")[1] and why in queue.table().split("--failed")[1]
    status, said = queue.run()  # what made it fail is mended
    assert status == 0 and "--failed" not in queue.table() and queue.is_whole()


def test_a_diverged_run_is_named_and_not_started_again_but_with_other_flags_it_is_a_new_one(queue):
    one = shlex.split("grid --grid loss=margin --n_epochs 1")
    for environment in (dict(FAKE_DIVERGE="margin"), {}):  # nothing would diverge the second time
        status, said = queue.run(*one, **environment)
        assert status == 1 and "diverged: the loss is not finite; give a lower --lr" in said and len(queue.lines()) == 1
    assert "begins" not in said and "1 diverged" in queue.run(*one, "--dry_run")[1]
    status, said = queue.run(*one, "--lr", "0.0001")
    assert status == 0 and "begins" in said and len(queue.lines()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_lets_the_run_save_and_says_how_to_go_on(queue, number):
    process = queue.start(FAKE_SECONDS="0.1")
    queue.wait(4)
    os.kill(process.pid, number)
    process.join(30)
    said = process.said.read_text()
    assert process.exitcode == 128 + number and "1 of 4 done, 3 left" in said
    assert f"The same command goes on: bash antico_runs.sh {shlex.join(FOUR)} --out {queue.out}" in said
    assert not [*queue.out.glob("*.md")]
    states = [line.split()[0] for line in queue.run(*FOUR, "--dry_run")[1].splitlines()[:4]]
    assert states == ["done", "interrupted", "new", "new"]
    assert queue.run()[0] == 0 and queue.is_whole()


def test_one_worker_a_gpu_or_several_with_a_thread_each(queue):
    status, _ = queue.run(*FOUR, "--gpus", "0,3", FAKE_SECONDS="0.02")
    assert status == 0 and {line[3] for line in queue.lines()} == {"0", "3"}
    status, _ = queue.run(*FOUR, "--jobs", "4", "--lr", "1", FAKE_SECONDS="0.5")
    assert status == 0 and {line[4] for line in queue.lines()[12:]} == {"1"}
    epochs = [line[1] for line in queue.lines()[12:]]
    assert "0" not in epochs[epochs.index("2") :]  # all began before one had ended


def test_a_run_is_found_by_its_hash_whatever_its_table_and_name(queue):
    one = shlex.split("grid --grid loss=proxyanchor --n_epochs 2")
    queue.run(*one)
    queue.run()  # the same run among others
    assert len(queue.lines()) == 12
    (folder,) = (queue.out / "runs" / "glyphs").glob("proxyanchor-*_s0")
    folder = folder.rename(folder.with_name(folder.name.replace("proxyanchor-", "renamed,by=hand-")))
    more = ["--kernels", "1", "--eval_every", "3", "--antico_w", "7"]  # antico_w does nothing to this loss
    status, said = queue.run(*one, *more)
    assert status == 0 and len(queue.lines()) == 12 and "note: --antico_w: no effect on any of these runs" in said
    config = folder / "config.json"
    config.write_text(json.dumps({"flags": {"loss": "proxyanchor", "decay": 0.5}}))  # of a time with another default
    assert queue.run(*one)[0] == 0 and len(queue.lines()) == 15 and "0.5" in config.read_text()


def test_slurm_writes_an_array_of_what_is_left(queue):
    queue.run(*FOUR, "--number", "1")
    status, said = queue.run(*FOUR, "--slurm")
    (path,) = queue.out.glob("*.sbatch")
    text = path.read_text()
    assert status == 0 and f"sbatch {shlex.quote(str(path))}" in said and (queue.out / "slurm").is_dir()
    assert "--array=0,2,3 " in text and " --signal=B:USR1" in text and "--slurm" not in text
    words = shlex.split(text.splitlines()[-1])
    assert words[:3] == ["exec", "bash", f"{ROOT}/antico_runs.sh"] and not [*queue.out.glob("*.md")]
    assert words[3:] == [*FOUR, "--out", str(queue.out), "--number", "$SLURM_ARRAY_TASK_ID"]


def test_a_table_of_a_true_run_whose_paths_have_spaces_and_are_of_where_the_user_stands(tmp_path):
    line = "--grid loss=antico_pair --antico_base multisimilarity --n_epochs 1 --train_classes 10 --bs 16"
    line += " --input_size 16 --evaluation_metrics e_recall@1 --save_embeddings off"
    words = ["bash", f"{ROOT}/antico_runs.sh", "grid", "--out", "my results", *shlex.split(line)]
    environment = {**os.environ, "ANTICO_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (tmp_path / "my results" / "runs" / "glyphs").glob("antico_pair*_s0")
    assert (folder / "metrics.csv").read_text().count("\n") == 3
    (table,) = (tmp_path / "my results").glob("*.md")
    assert "AntiCo pair over MultiSimilarity" in table.read_text()
