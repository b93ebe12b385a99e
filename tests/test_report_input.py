"""The report's bad input: one line, status 2; and what it passes over."""

import csv
import json
import os
from pathlib import Path

import pytest

from tests.report_runs import lines_of, text_of, write
from utilities import folders
from utilities.report import collect
from utilities.report.__main__ import main


def spoil_config(text):
    return lambda folder: open(os.path.join(folder, "config.json"), "w").write(text)


def spoil_metrics(text):
    return lambda folder: open(os.path.join(folder, "metrics.csv"), "w").write(text)


@pytest.mark.parametrize("spoil", [
    spoil_config(""), spoil_config("{"), spoil_config("[]"), spoil_config("{}"), spoil_config('{"flags": {}}'),
    spoil_config('{"flags": {"loss": "proxyanchor", "dataset": "glyphs", "arch": "a", "n_epochs": 1}}'),
    spoil_config('{"flags": {"loss": 3, "dataset": "glyphs", "arch": "a", "n_epochs": 1}, "seed": 0}'),
    spoil_config('{"flags": {"loss": "antico", "dataset": "glyphs", "arch": "a", "n_epochs": 1, "antico_base": []}, '
                 '"seed": 0}'),
    lambda folder: os.remove(os.path.join(folder, "config.json")),
    lambda folder: open(os.path.join(folder, "config.json"), "wb").write(b"\xff\xfe{"),
    spoil_metrics(""), spoil_metrics("epoch,test/e_recall@1\n"), spoil_metrics("a,b\n1,2\n"),
    spoil_metrics("epoch,test/e_recall@1\n1\n"), spoil_metrics("epoch,test/e_recall@1\n1,2,3\n"),
    spoil_metrics("epoch,test/e_recall@1\n1,half\n"), spoil_metrics("epoch,epoch\n1,1\n"),
    spoil_metrics("epoch,test/e_recall@1\n1,0.5\n1,0.6\n"), spoil_metrics('epoch,a\n1,"0.5\n'),
    spoil_metrics("epoch,a\n,0.5\n"), spoil_metrics("epoch,a\nnan,0.5\n"), spoil_metrics("epoch,a\n0.5,0.5\n"),
    lambda folder: open(os.path.join(folder, "metrics.csv"), "wb").write(b"epoch,a\n1,\x00\xff\n"),
])  # fmt: skip
def test_damaged_files_are_one_line(tmp_path, capsys, spoil):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    spoil(folder)
    assert main([str(tmp_path), "--out", str(tmp_path / "out" / "t")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and folder in error
    assert not (tmp_path / "out").exists()


def test_the_logs_of_a_queue_stand_beside_its_runs(tmp_path, capsys):
    """RUNS/* of a shell has them too."""
    for seed in (0, 1):
        folder = write(tmp_path / "runs", "proxyanchor", seed, [0.1, 0.4])
        with open(f"{folder}.log", "w") as file:
            file.write("epoch ...")
    given = sorted(str(path) for path in Path(folder).parent.iterdir())
    assert len(given) == 4 and main([*given, "--out", str(tmp_path / "t")]) == 0
    with open(tmp_path / "t.csv", newline="") as file:
        (line,) = csv.DictReader(file)
    assert line["n"] == "2"


def test_other_bad_input_is_one_line(tmp_path, capsys, monkeypatch):
    good = write(tmp_path / "runs", "proxyanchor", 0, [0.1, 0.4])
    (tmp_path / "empty").mkdir()
    out = str(tmp_path / "t")
    for argv, message in (
        ([str(tmp_path / "none"), "--out", out], "no such folder"),
        ([str(tmp_path / "empty"), "--out", out], "no run there"),
        ([good, str(tmp_path / "empty"), "--out", out], "no run there"),
        ([os.path.join(good, "metrics.csv"), "--out", out], "a file, not a folder of runs"),
        ([good, "--out", out, "--split", "val"], "--split val: no run has measured it; --use_tv_split makes one"),
        ([good, "--out", out, "--row", "best-val"], "has measured no val/e_recall@1"),
        ([good, "--out", str(tmp_path)], "is a folder"),
        ([good, "--out", good + "/metrics.csv/t"], "metrics.csv/t.md: "),
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
    for argv in ([good], [], [good, "--out", out, "--row", "first"], [good, "--out", out, "--nonsense"]):
        with pytest.raises(SystemExit) as end:
            main(argv)
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert main([good, "--out", out]) == 2
    assert capsys.readouterr().err == f"error: {out}.md: No space left on device\n"


def test_nothing_that_counts_is_a_table_without_means(tmp_path, capsys):
    write(tmp_path, "proxyanchor", 0, [], epochs=1)
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "0" and "To do" in text_of(tmp_path)


def test_a_run_named_twice_or_by_a_link_counts_once(tmp_path):
    folder = write(tmp_path / "runs", "proxyanchor", 0, [0.1, 0.4])
    os.symlink(folder, tmp_path / "link")
    os.symlink(tmp_path / "runs", tmp_path / "runs" / "round")  # a circle
    found = collect.find_runs([str(tmp_path / "runs"), folder, str(tmp_path / "link")])
    assert len(found) == 1


def test_other_programs_config_files_are_passed_over(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    (tmp_path / "network").mkdir()
    (tmp_path / "network" / "config.json").write_text(json.dumps({"architectures": ["ViT"]}))
    assert len(lines_of(tmp_path)) == 1


def test_out_takes_a_name_with_a_suffix(tmp_path):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    assert main([folder, "--out", str(tmp_path / "table.md")]) == 0
    assert (tmp_path / "table.md").exists() and (tmp_path / "table_runs.csv").exists()
    assert folders.read_config(folder)["seed"] == 0
