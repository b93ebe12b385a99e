"""A run that is killed, stopped or resumed loses nothing, and a run that is resumed wrongly stays as it was."""

import csv
import json
import os
import shutil
import signal
import threading
import time

import pytest
from runs import SMALL, image_folder, kill_and_resume, outcome, same, start

from utilities import folders, state

LONG = 300  # seconds: the machine may be busy


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def argv(images):
    return [*SMALL, *images, "--kernels", "0"]


@pytest.fixture(scope="module")
def whole(server, argv, tmp_path_factory):
    """(the folder of the run that nobody disturbs, how long it takes in seconds)."""
    place = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    status, text = server.run([*argv, "--save_path", place], place / "log")
    assert status == 0, text
    return place / "folder" / "Sample_Run_s0", time.monotonic() - began


@pytest.fixture
def run(server, argv, tmp_path):
    """A function of more flags: (status, what was printed); its runs are under tmp_path."""
    return lambda *more, meanwhile=None: server.run(
        [*argv, "--save_path", tmp_path, *more], tmp_path / "log", meanwhile
    )


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the undisturbed run's folder."""
    return shutil.copytree(whole[0], tmp_path / "folder" / "Sample_Run_s0")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share", [0.5, 0.8])  # of the run's time
def test_killed_at_any_moment_and_resumed_it_is_as_if_undisturbed(server, argv, whole, tmp_path, share, workers):
    """20 moments for each setting, glyphs as well: python -m tests.runs 20"""
    folder, seconds = whole
    argv = [*argv, "--kernels", workers]
    first, _, last, text = kill_and_resume(server, argv, str(tmp_path), share * seconds)
    assert first in (-signal.SIGKILL, 0) and last == 0, text
    assert same(outcome(folder), outcome(tmp_path / "folder" / "Sample_Run_s0"))


def after_epoch_1(action):
    """For `meanwhile`: action(process id) once the line of epoch 1 is printed."""

    def act(process, log):
        end = time.monotonic() + LONG
        while "epoch   1" not in log.read_text() and time.monotonic() < end:
            time.sleep(0.005)
        action(process)

    return act


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_one_line_and_loses_nothing(server, argv, whole, tmp_path, number):
    argv, log = [*argv, "--save_path", tmp_path], tmp_path / "log"
    status, text = server.run(argv, log, after_epoch_1(lambda process: os.kill(process, number)))
    assert status == 128 + number and "Traceback" not in text, text
    line = text.splitlines()[-1]
    assert line.startswith(f"stopped by {number.name} ") and f"--resume {tmp_path}" in line
    assert server.run([*argv, "--resume"], log)[0] == 0
    assert same(outcome(whole[0]), outcome(tmp_path / "folder" / "Sample_Run_s0"))


FLAGS = [
    "--arch conv4_normalize_double",
    "--embed_dim 8",
    "--loss proxyanchor",
    "--antico_base contrastive",
    "--bs 16",
    "--lr 0.01",
    "--optim sgd",
    "--dataset glyphs",
    "--seed 1",
    "--batch_mining semihard",
    "--tau 1",
]


@pytest.mark.parametrize("flag", FLAGS)
def test_another_setting_is_one_line_and_the_record_stays(run, copy, flag):
    before = contents(copy)
    status, text = run(*flag.split(), "--resume", copy)
    assert status == 2 and text.count("\n") == 1
    assert all(word in text for word in [*flag.split(), str(copy)])
    assert contents(copy) == before


def test_other_data_is_one_line_and_the_record_stays(run, copy, images, tmp_path):
    fewer = shutil.copytree(images[-1], tmp_path / "fewer")
    for name in ("class00", "class15"):
        shutil.rmtree(fewer / name)
    before = contents(copy)
    status, text = run("--source_path", fewer, "--resume", copy)
    assert status == 2 and text.count("\n") == 1 and "has n_classes 8, here it is 7" in text
    assert contents(copy) == before


def test_what_may_change_acts_and_stands_in_the_history(run, copy):
    before = json.loads((copy / "config.json").read_text())
    status, text = run(
        "--resume", copy, "--n_epochs", 4, "--evaluation_metrics", "nmi", "--eval_every", 2, "--kernels", 1
    )
    assert status == 0, text
    with open(copy / "metrics.csv", encoding="utf-8", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert last["epoch"] == "4" and last["test/nmi"] and not last["test/e_recall@1"]
    config = json.loads((copy / "config.json").read_text())
    entry = config["history"][-1]
    saved_to = entry["changed"].pop("save_path")  # the copy's
    assert saved_to == [before["flags"]["save_path"], str(copy.parent.parent)]
    assert entry["from_epoch"] == 3 and entry["changed"] == {
        "n_epochs": [3, 4], "evaluation_metrics": [["e_recall@1"], ["nmi"]], "eval_every": [1, 2], "kernels": [0, 1],
        "storage_metrics": [["e_recall@1"], ["nmi"]]}  # fmt: skip
    assert folders.all_flags(config) == {
        **folders.all_flags(before),
        "save_path": saved_to[1],
        **{name: new for name, (_, new) in entry["changed"].items()},
    }
    assert config["started"] == before["started"] and config["command"] == before["command"]


def test_nothing_changed_is_nothing_in_the_history(server, copy, tmp_path):
    assert server.run(["--resume", copy], tmp_path / "log")[0] == 0  # all flags are the run's own
    assert json.loads((copy / "config.json").read_text())["history"][-1]["changed"] == {}


def test_resume_takes_the_newest_run_of_the_name(run, copy, tmp_path):
    newest = shutil.copytree(copy, tmp_path / "folder" / "Sample_Run_s0-10")
    shutil.copytree(copy, tmp_path / "folder" / "Sample_Run_s0-9")
    before = contents(copy)
    status, text = run("--resume", "--n_epochs", 4)
    assert status == 0 and f"{newest}; going on after epoch 3" in text
    assert state.load(newest / "checkpoint.pt")["epoch"] == 4 and contents(copy) == before


def test_a_folder_without_config_is_not_overwritten(run, copy, tmp_path):
    (copy / "config.json").unlink()
    before = contents(copy)
    status, text = run("--resume", "--n_epochs", 0)
    assert status == 0 and "--resume: there is no run of this name yet" in text
    assert contents(copy) == before and (copy.parent / "Sample_Run_s0-2" / "metrics.csv").exists()


@pytest.mark.parametrize("folder", ["", "none", "file"])
def test_resume_of_no_run_is_one_line(run, tmp_path, folder):
    (tmp_path / "file").write_text("")
    status, text = run("--resume", folder and tmp_path / folder)
    assert status == 2 and text.startswith("error: --resume") and "no run there" in text and text.count("\n") == 1


def test_lost_metrics_are_written_anew_and_leftovers_deleted(run, copy):
    table = (copy / "metrics.csv").read_bytes()
    (copy / "metrics.csv").unlink()
    (copy / ".writing-abc").write_bytes(b"half")
    assert run("--resume", copy)[0] == 0
    assert (copy / "metrics.csv").read_bytes() == table and not (copy / ".writing-abc").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_falls_back_and_two_stop(run, whole, copy):
    flip(copy / "checkpoint.pt")
    status, text = run("--resume", copy)
    assert status == 0 and "damaged one" in text and "going on from checkpoint_before.pt" in text
    assert same(outcome(whole[0]), outcome(copy))
    for name, damage in (("checkpoint.pt", flip), ("checkpoint_before.pt", lambda path: path.write_bytes(b""))):
        damage(copy / name)
    before = contents(copy)
    status, text = run("--resume", copy)
    assert status == 2 and text.count("\n") == 1 and "no whole checkpoint is left" in text
    assert contents(copy) == before


def test_a_checkpoint_of_another_version_is_one_line(run, copy):
    state.save(copy / "checkpoint.pt", {"model": {}, "arch": "conv4"})
    before = contents(copy)
    status, text = run("--resume", copy)
    assert status == 2 and text.count("\n") == 1 and "of another version of this program" in text
    assert contents(copy) == before


def test_two_processes_do_not_resume_one_run(run, copy):
    before = contents(copy)
    folders.lock(str(copy))  # by this process
    try:
        status, text = run("--resume", copy)
    finally:
        folders.release()
    assert status == 2 and text.count("\n") == 1 and "another process is training this run now" in text
    assert contents(copy) == before
    assert run("--resume", copy)[0] == 0


def test_folders_are_claimed_by_one(tmp_path):
    """Six threads at once, 20 times: what decides is the system's mkdir, which processes share as well."""
    for n in range(20):
        barrier, claimed = threading.Barrier(6), []

        def claim(n=n, barrier=barrier, claimed=claimed):
            barrier.wait()
            claimed.append(folders.claim(str(tmp_path), "d", f"r{n}"))

        threads = [threading.Thread(target=claim) for _ in range(6)]
        [thread.start() for thread in threads], [thread.join() for thread in threads]
        assert len(set(claimed)) == 6 and all(os.path.isdir(folder) for folder in claimed)


def test_a_killed_worker_is_one_line(run, whole, tmp_path):
    def kill_a_worker(process):
        with open(f"/proc/{process}/task/{process}/children", encoding="utf-8") as file:
            os.kill(int(file.read().split()[0]), signal.SIGKILL)

    if not os.path.exists("/proc/self/task"):
        pytest.skip("needs /proc to find the worker")
    status, text = run("--kernels", 2, "--n_epochs", 100, meanwhile=after_epoch_1(kill_a_worker))
    assert status == 1 and text.splitlines()[-1].startswith("error: a data loading process was killed"), text
    assert "Traceback" not in text
    assert "Last good checkpoint: epoch " in text


def test_closed_pipes_are_one_line_at_most(argv, tmp_path):
    read, write = os.pipe()
    os.close(read)
    listings = [start([flag], stdout=write) for flag in ("--list", "--help")]
    os.close(write)
    run = start([*argv, "--save_path", tmp_path])
    assert run.stdout.readline().startswith("folder: ")
    run.stdout.close()
    text = run.stderr.read()
    assert run.wait(LONG) == 141 and text.count("\n") == 1 and "a closed pipe" in text
    for process in listings:
        text = process.communicate(timeout=LONG)[1]
        assert "Traceback" not in text and "Exception" not in text and text.count("\n") <= 1
