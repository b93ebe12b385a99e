"""The queue of antico_runs.sh, with runs that take no time; tests/test_scripts.py has one with true runs."""

import collections
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from utilities.runs import __main__ as program

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORDS = ["quickstart", "--n_epochs", "2", "--seeds", "0 1", "--jobs", "1"]  # 12 runs of 3 epochs (0: untrained)


def start(out, *words, seconds=0, **environment):
    """A queue in a process group of its own, whose standard output is its whole speech."""
    environment = {**os.environ, "FAKE_SECONDS": str(seconds), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fake_queue", *(words or WORDS), "--out", str(out)], cwd=HERE, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, env=environment,
    )  # fmt: skip


def queue(out, *words, **more):
    process = start(out, *words, **more)
    text, _ = process.communicate(timeout=120)
    return process.returncode, text


def epochs(out):
    """{run: [its epochs as they were trained]}."""
    trained = collections.defaultdict(list)
    for line in (out / "runs" / "epochs.txt").read_text().splitlines():
        run, epoch, _, _ = line.split()
        trained[run].append(int(epoch))
    return trained


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def lines_of(out):
    path = out / "runs" / "epochs.txt"
    return len(path.read_text().splitlines()) if path.exists() else 0


def table(out, name="quickstart_n_epochs_2"):
    return (out / f"{name}.md").read_text()


def test_every_run_once_then_nothing_but_the_table(tmp_path):
    status, text = queue(tmp_path)
    assert status == 0 and "12 of 12 done" in text
    assert len(epochs(tmp_path)) == 12 and all(trained == [0, 1, 2] for trained in epochs(tmp_path).values())
    assert len(table(tmp_path).split()) == 12
    os.remove(tmp_path / "quickstart_n_epochs_2.md")
    status, text = queue(tmp_path)
    assert status == 0 and "begins" not in text and "goes on" not in text
    assert lines_of(tmp_path) == 36 and len(table(tmp_path).split()) == 12


@pytest.mark.parametrize("moment", [1, 3, 8])
def test_killed_in_the_middle_the_same_command_finishes(tmp_path, moment):
    process = start(tmp_path, seconds=0.1)
    wait_for(lambda: lines_of(tmp_path) >= moment)
    for pid in children(process.pid) + [process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    finished = [path.parent.name for path in tmp_path.glob("runs/*/*/metrics.csv") if "\n2," in path.read_text()]
    status, text = queue(tmp_path)
    assert status == 0 and "12 of 12 done" in text
    assert not any(f"{run}: begins" in text or f"{run}: goes on" in text for run in finished)
    after = epochs(tmp_path)
    assert len(after) == 12 and all(sorted(set(trained)) == [0, 1, 2] for trained in after.values())
    assert sum(len(trained) for trained in after.values()) <= 37  # of the one that was killed, an epoch twice
    assert not [name for name in os.listdir(tmp_path / "runs" / "glyphs") if name.endswith("-2")]


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        own = [int(word) for word in file.read().split()]
    with_threads = set(own)
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as file:
            with_threads |= {int(word) for word in file.read().split()}
    return sorted(with_threads)


def test_a_queue_that_is_killed_alone_leaves_its_run_to_itself(tmp_path):
    """The run goes on without its queue, and no other trains it at the same time."""
    process = start(tmp_path, seconds=1.5)
    wait_for(lambda: lines_of(tmp_path) >= 1)
    process.kill()
    process.communicate()
    status, text = queue(tmp_path)
    assert status == 0 and "12 of 12 done" in text and "in another queue" in text
    assert all(trained == [0, 1, 2] for trained in epochs(tmp_path).values())


def test_two_queues_at_once_do_each_run_once(tmp_path):
    both = [start(tmp_path, seconds=0.05), start(tmp_path, seconds=0.05)]
    texts = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(epochs(tmp_path)) == 12 and all(trained == [0, 1, 2] for trained in epochs(tmp_path).values())
    begun = [text.count("begins") for text in texts]
    assert sum(begun) == 12 and min(begun) > 0 and all("12 of 12 done" in text for text in texts)


def test_a_failed_run_stops_nothing_and_is_named(tmp_path):
    status, text = queue(tmp_path, FAKE_FAIL="multisimilarity")
    why = "loss_multisimilarity_base=0.7,n_epochs=2_s{}: the loss is not finite, in step 3 of epoch 1"
    assert status == 1 and "2 of 12 runs failed" in text
    for seed in (0, 1):
        assert why.format(seed) in text.split("runs failed:")[1] and why.format(seed) in table(tmp_path)
    assert "10 of 12 done" in text and sum(trained == [0, 1, 2] for trained in epochs(tmp_path).values()) == 10
    status, text = queue(tmp_path)  # what made it fail is mended
    assert status == 0 and "Failed" not in table(tmp_path)
    assert all(trained == [0, 1, 2] for trained in epochs(tmp_path).values())


def test_a_diverged_run_is_named_and_not_started_again_but_with_other_flags_it_is_a_new_one(tmp_path, capsys):
    one = ["grid", "--grid", "loss=proxyanchor", "--n_epochs", "1"]
    status, text = queue(tmp_path, *one, FAKE_DIVERGE="proxyanchor")
    why = "glyphs/proxyanchor,n_epochs=1_s0: diverged: the loss is not finite, in step 7 of epoch 1; give a lower --lr"
    assert status == 1 and why in text.split("1 of 1 runs failed:")[1]
    trained = lines_of(tmp_path)
    status, text = queue(tmp_path, *one)  # nothing would diverge now
    assert status == 1 and why in text and "begins" not in text and "goes on" not in text
    assert lines_of(tmp_path) == trained == 1 and why in table(tmp_path, "grid_n_epochs_1_loss=proxyanchor")
    for more, words in (("--dry_run", "1 runs: 1 diverged"), ("--slurm", "are done or have diverged")):
        assert program.main([*one, "--out", str(tmp_path), more]) == 0 and words in capsys.readouterr().out
    status, text = queue(tmp_path, *one, "--lr", "0.0001")
    assert status == 0 and "glyphs/proxyanchor,n_epochs=1,lr=0.0001_s0: begins" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_lets_the_run_save_and_says_how_to_go_on(tmp_path, number):
    words = ["quickstart", "--n_epochs", "3", "--seeds", "0", "--jobs", "1"]
    process = start(tmp_path, *words, seconds=0.2)
    wait_for(lambda: lines_of(tmp_path) >= 5)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    again = f"The same command goes on: bash antico_runs.sh {' '.join(words)} --out {tmp_path}"
    assert again in text and "1 of 6 done" in text and "5 left" in text
    assert not (tmp_path / "quickstart_n_epochs_3.md").exists()
    lines = queue(tmp_path, *words, "--dry_run")[1].splitlines()
    assert [line.split()[0] for line in lines[:6]] == ["done", "interrupted", "new", "new", "new", "new"]
    assert ["--resume" in line for line in lines[:6]] == [False, True, False, False, False, False]
    count = lines_of(tmp_path)
    time.sleep(0.5)
    assert lines_of(tmp_path) == count  # nothing trains on in the background
    status, text = queue(tmp_path, *words)
    assert status == 0 and all(trained == [0, 1, 2, 3] for trained in epochs(tmp_path).values())


def test_one_worker_a_gpu(tmp_path):
    status, _ = queue(tmp_path, *WORDS[:-2], "--gpus", "0,3", seconds=0.05)
    gpus = {line.split()[2] for line in (tmp_path / "runs" / "epochs.txt").read_text().splitlines()}
    assert status == 0 and gpus == {"0", "3"} and len(epochs(tmp_path)) == 12


def test_jobs_run_at_once_with_a_thread_each(tmp_path):
    process = start(tmp_path, *WORDS[:-2], "--jobs", "3", seconds=0.2)
    log = tmp_path / "runs" / "epochs.txt"
    wait_for(lambda: log.exists() and len({line.split()[0] for line in log.read_text().splitlines()}) == 3)
    assert max(map(len, epochs(tmp_path).values())) < 3  # none has ended
    assert process.wait(120) == 0 and {line.split()[3] for line in log.read_text().splitlines()} == {"1"}
    for words, line in (
        (["--jobs", "0"], "--jobs 0: is not a whole number from 1 to 1024"),
        (["--jobs", "2", "--gpus", "0"], "--jobs --gpus: give one"),
    ):
        assert line in queue(tmp_path, *WORDS[:-2], *words)[1]


def test_another_flag_is_another_run_and_what_changes_no_number_is_not(tmp_path):
    one = ["grid", "--grid", "loss=proxyanchor", "--n_epochs", "1"]
    assert queue(tmp_path, *one)[0] == 0 and lines_of(tmp_path) == 2
    assert queue(tmp_path, *one, "--kernels", "1", "--eval_every", "3", "--antico_w", "7")[0] == 0
    assert lines_of(tmp_path) == 2  # antico_w does nothing to this loss
    assert queue(tmp_path, *one, "--lr", "0.002")[0] == 0 and lines_of(tmp_path) == 4
    # under the same name: the recipe was edited since
    folder = tmp_path / "runs" / "glyphs" / "proxyanchor,n_epochs=1_s0"
    config = json.loads((folder / "config.json").read_text())
    config["flags"]["decay"] = 0.5
    (folder / "config.json").write_text(json.dumps(config))
    status, _ = queue(tmp_path, *one)
    assert status == 0 and lines_of(tmp_path) == 6
    assert json.loads((folder / "config.json").read_text())["flags"]["decay"] == 0.5
    assert "proxyanchor,n_epochs=1_s0-2" in table(tmp_path, "grid_n_epochs_1_loss=proxyanchor")


def test_what_a_finished_run_lacks_is_said_and_not_trained_again(tmp_path):
    one = ["grid", "--grid", "loss=proxyanchor", "--n_epochs", "1"]
    queue(tmp_path, *one, FAKE_COMMIT="0123456789+")
    status, text = queue(tmp_path, *one, "--evaluation_metrics", "e_recall@1", "f1")
    assert status == 0 and lines_of(tmp_path) == 2
    assert "without test/f1" in text and "--evaluation_metrics f1" in text and "of commit 01234567+, this is" in text


def test_a_damaged_record_is_left_alone_and_said(tmp_path):
    folder = tmp_path / "runs" / "glyphs" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{")
    status, text = queue(tmp_path, "grid", "--grid", "loss=proxyanchor", "--n_epochs", "1")
    assert status == 0 and f"{folder / 'config.json'}: damaged" in text and (folder / "config.json").read_text() == "{"
