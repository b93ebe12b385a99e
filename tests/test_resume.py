"""A run that is killed or resumed loses nothing, and a run that is resumed wrongly stays as it was."""

import contextlib
import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runs import SMALL, image_folder, once, outcome, rows, run, same

from utilities import folders
from utilities.run import load


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def argv(images):
    return [*SMALL, *images, "--kernels", "0"]


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory):
    """(the folder of the run that nobody disturbs, how long it takes in seconds)."""
    place = tmp_path_factory.mktemp("whole")
    run(["--list"], place / "log")  # torch is imported
    began = time.monotonic()
    status, text = run([*argv, "--save_path", place], place / "log")
    assert status == 0, text
    return place / "folder" / "Sample_Run_s0", time.monotonic() - began


@pytest.fixture
def go(argv, tmp_path):
    """A function of more flags: (status, what was printed); its runs are under tmp_path."""
    return lambda *more: run([*argv, "--save_path", tmp_path, *more], tmp_path / "log")


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of the undisturbed run's folder."""
    return shutil.copytree(whole[0], tmp_path / "folder" / "Sample_Run_s0")


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(result, folder, before, *words):
    """Whether that was one line with these words, and the folder is as before."""
    status, text = result
    assert status == 2 and text.count("\n") == 1 and all(word in text for word in words), text
    assert contents(folder) == before


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("share", np.linspace(0.5, 0.8, int(os.environ.get("MOMENTS", 2))))  # of the run's time
def test_killed_at_any_moment_and_resumed_it_is_as_if_undisturbed(argv, whole, tmp_path, share, workers):
    """20 moments for each setting: MOMENTS=20 python -m pytest tests/test_resume.py -k any_moment"""
    folder, seconds = whole
    argv = [*argv, "--kernels", workers, "--save_path", tmp_path]

    def kill(process, _):
        time.sleep(share * seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    assert run(argv, tmp_path / "log", kill)[0] in (-signal.SIGKILL, 0)
    status, text = run([*argv, "--resume"], tmp_path / "log")
    assert status == 0, text
    assert same(outcome(folder), outcome(next((tmp_path / "folder").iterdir())))


def test_more_epochs_are_as_if_asked_for_at_first(go, whole, tmp_path):
    assert go("--n_epochs", 2)[0] == 0 and go("--n_epochs", 3, "--resume")[0] == 0
    assert same(outcome(whole[0]), outcome(tmp_path / "folder" / "Sample_Run_s0"))


FLAGS = [
    "--arch conv4_normalize_double", "--embed_dim 8", "--loss proxyanchor", "--antico_base contrastive", "--bs 16",
    "--lr 0.01", "--optim sgd", "--dataset glyphs", "--seed 1", "--batch_mining semihard", "--tau 1",
]  # fmt: skip


@pytest.mark.parametrize("flag", FLAGS)
def test_another_setting_is_one_line_and_the_record_stays(go, copy, flag):
    before = contents(copy)
    refused(go(*flag.split(), "--resume", copy), copy, before, *flag.split(), str(copy))


def test_other_data_is_one_line_and_the_record_stays(go, copy, images, tmp_path):
    fewer = shutil.copytree(images[-1], tmp_path / "fewer")
    for name in ("class00", "class15"):
        shutil.rmtree(fewer / name)
    before = contents(copy)
    refused(go("--source_path", fewer, "--resume", copy), copy, before, "n_classes 8", "7")


def test_what_may_change_acts_and_stands_in_the_history(go, copy):
    before = json.loads((copy / "config.json").read_text())
    more = "--n_epochs 4 --evaluation_metrics nmi --eval_every 2 --kernels 1".split()
    status, text = go("--resume", copy, *more)
    assert status == 0, text
    last = rows(copy)[-1]
    assert last["epoch"] == "4" and last["test/nmi"] and not last["test/e_recall@1"]
    config = json.loads((copy / "config.json").read_text())
    (entry,) = config["history"]
    moved = entry["changed"].pop("save_path")  # the copy's
    assert entry["from_epoch"] == 3 and entry["changed"] == {
        "n_epochs": [3, 4], "evaluation_metrics": [["e_recall@1"], ["nmi"]], "eval_every": [1, 2], "kernels": [0, 1],
        "storage_metrics": [["e_recall@1"], ["nmi"]]}  # fmt: skip
    now = {name: new for name, (_, new) in entry["changed"].items()} | {"save_path": moved[1]}
    assert folders.all_flags(config) == folders.all_flags(before) | now
    assert config["started"] == before["started"] and config["command"] == before["command"]


def test_a_run_that_fails_at_once_when_it_goes_on_stays_finished(copy, images, monkeypatch, capsys):
    import main

    def no_memory(*_):
        raise RuntimeError("Tried to allocate: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)")

    before = contents(copy)
    monkeypatch.setattr(main, "embed", no_memory)
    assert main.main(["--resume", str(copy), "--n_epochs", "5", *images, "--save_path", str(copy.parents[1])]) == 1
    text = capsys.readouterr().err
    assert "memory ran out; lower --bs" in text and "Last checkpoint: epoch 3" in text and contents(copy) == before


def test_resume_alone_takes_the_newest_run_of_the_name_with_its_own_flags(copy, tmp_path):
    newest = shutil.copytree(copy, tmp_path / "folder" / "Sample_Run_s0-10")
    shutil.copytree(copy, tmp_path / "folder" / "Sample_Run_s0-9")
    before = contents(copy)
    flags = ["--dataset", "folder", "--save_path", tmp_path, "--resume"]
    status, text = run([*flags, "--n_epochs", 4], tmp_path / "log")
    assert status == 0 and f"{newest}; going on after epoch 3" in text
    assert load(newest / "checkpoint.pt")["epoch"] == 4 and contents(copy) == before
    assert run(flags, tmp_path / "log")[0] == 0  # nothing is left to do, and nothing has changed
    assert json.loads((newest / "config.json").read_text())["history"][-1]["changed"] == {}


def test_a_folder_without_config_is_not_overwritten(go, copy):
    (copy / "config.json").unlink()
    before = contents(copy)
    status, text = go("--resume", "--n_epochs", 0)
    assert status == 0 and "there is no run of this name yet" in text
    assert contents(copy) == before and (copy.parent / "Sample_Run_s0-2" / "metrics.csv").exists()


def test_lost_metrics_are_written_anew_and_leftovers_deleted(go, copy):
    table = (copy / "metrics.csv").read_bytes()
    (copy / "metrics.csv").unlink()
    (copy / ".writing-abc").write_bytes(b"half")
    assert go("--resume", copy)[0] == 0
    assert (copy / "metrics.csv").read_bytes() == table and not (copy / ".writing-abc").exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 9] = b"\x55" * 9
    path.write_bytes(data)


def test_a_damaged_checkpoint_falls_back_and_two_stop(go, whole, copy):
    for _ in range(2):  # the damaged one has not taken the place of the good one
        flip(copy / "checkpoint.pt")
        status, text = go("--resume", copy)
        assert status == 0 and "damaged one" in text and "going on from checkpoint_before.pt" in text
        assert same(outcome(whole[0]), outcome(copy))
        assert load(copy / "checkpoint_before.pt")["step"] == 3
    flip(copy / "checkpoint.pt")
    (copy / "checkpoint_before.pt").write_bytes(b"")
    before = contents(copy)
    refused(go("--resume", copy), copy, before, "checkpoint.pt", "checkpoint_before.pt", "damaged")


def test_a_best_checkpoint_is_not_gone_on_from(go, copy):
    shutil.copy(copy / "best.pt", copy / "checkpoint.pt")
    status, text = go("--resume", copy)
    assert status == 0 and "has no optimizer" in text
    assert load(copy / "checkpoint.pt")["before"].keys() == {"effective_rank", "coding_rate@share"}


def test_two_processes_do_not_train_one_run(argv, tmp_path):
    folder = tmp_path / "folder" / "Sample_Run_s0"
    answers = []

    def second(process):
        answers.append(run(["--resume", folder], tmp_path / "second"))
        os.kill(process, signal.SIGTERM)

    status, _ = run([*argv, "--save_path", tmp_path, "--n_epochs", 1000], tmp_path / "log", once("epoch   1", second))
    assert status == 143 and answers[0][0] == 2 and answers[0][1].count("\n") == 1
    assert "another process is training this run" in answers[0][1]
    assert len(json.loads((folder / "config.json").read_text())["history"]) == 0
    assert run(["--resume", folder, "--n_epochs", 0], tmp_path / "log")[0] == 0


def test_folders_are_claimed_by_one(tmp_path):
    """20 names, each by six threads: what decides is the system's mkdir, which processes share as well."""
    with ThreadPoolExecutor(6) as pool:
        claimed = list(pool.map(lambda n: folders.claim(str(tmp_path), "d", f"r{n // 6}"), range(120)))
    assert len(set(claimed)) == 120 and all(map(os.path.isdir, claimed))
