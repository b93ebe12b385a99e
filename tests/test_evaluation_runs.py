"""The rows last / best-test / best-val, --evaluate_only and --save_embeddings on a small run."""

import csv
import json

import numpy as np
import pytest
from runs import fewer_glyphs

import datasets
import evaluation
import main
from utilities import trackers
from utilities.report import __main__ as report

BASE = [
    "--dataset",
    "glyphs",
    "--arch",
    "conv4_normalize",
    "--embed_dim",
    "16",
    "--bs",
    "32",
    "--samples_per_class",
    "4",
    "--kernels",
    "0",
    "--lr",
    "1e-3",
    "--data_sampler",
    "class_balanced",
    "--n_epochs",
    "2",
    "--no_train_metrics",
    "--evaluation_metrics",
    "e_recall@1",
]


@pytest.fixture
def small(monkeypatch):
    """Glyphs of 20 + 20 classes, read once."""
    monkeypatch.setattr(datasets, "DATASETS", dict(datasets.DATASETS))
    fewer_glyphs()


def test_protocol_rows():
    table = [
        {"epoch": 0, "test/m": 0.2, "val/m": 0.5},
        {"epoch": 1, "test/m": 0.9, "val/m": 0.6},
        {"epoch": 2, "test/m": 0.9, "val/m": 0.7},
        {"epoch": 3, "test/m": 0.4, "val/m": 0.1},
        {"epoch": 4, "loss/rate": 1.0},
    ]
    chosen = trackers.protocol_rows(table, "m")
    assert {name: row["epoch"] for name, row in chosen.items()} == {"last": 3, "best-test": 1, "best-val": 2}
    assert list(trackers.protocol_rows([{"epoch": 0, "test/m": 0.2}], "m")) == ["last", "best-test"]


def test_evaluate_only_and_saved_embeddings_give_the_runs_numbers(tmp_path, small, capsys):
    assert main.main([*BASE, "--save_path", str(tmp_path), "--loss", "multisimilarity", "--save_embeddings"]) == 0
    folder = tmp_path / "glyphs" / "Sample_Run_s0"
    protocol = json.loads((folder / "protocol.json").read_text())
    assert protocol["last"]["epoch"] == 2 and "best-val" not in protocol
    recalls = [float(r["test/e_recall@1"]) for r in csv.DictReader((folder / "metrics.csv").open())]
    assert protocol["best-test"]["test/e_recall@1"] == max(recalls)
    capsys.readouterr()
    assert (
        main.main(["--evaluate_only", "--checkpoint", str(folder / "checkpoint.pt"), "--embed_dim", "999"]) == 0
    )  # the run's own flags
    assert "test/e_recall@1" in capsys.readouterr().out
    again = json.loads((folder / "evaluation_checkpoint.json").read_text())["metrics"]
    assert again["test/e_recall@1"] == recalls[-1]
    with np.load(folder / "embeddings_test.npz", allow_pickle=False) as saved:
        assert len(saved["paths"]) in (0, len(saved["labels"]))
        assert evaluation.compute(saved["embeddings"], saved["labels"], ["e_recall@1"])["e_recall@1"] == recalls[-1]
    out = str(tmp_path / "table")
    assert (
        report.main([str(folder), "--out", out, "--row", "best-test"]) == 0
        and "best epoch on the test split" in capsys.readouterr().out
    )
    assert (
        report.main([str(folder), "--out", out, "--row", "best-val"]) == 2
        and "--row best-val" in capsys.readouterr().err
    )
    assert main.main([*BASE, "--evaluate_only", "--checkpoint", str(tmp_path / "none.pt")]) == 2
    assert "no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main([*BASE, "--evaluate_only"])
    assert "--evaluate_only --checkpoint PATH" in capsys.readouterr().err


def test_the_record_of_an_evaluation_is_of_its_checkpoint(tmp_path, small):
    """best.pt's record has the best epoch and its numbers, checkpoint.pt's the last, and each question one file."""
    flags = [*BASE, "--save_path", str(tmp_path), "--loss", "multisimilarity", "--n_epochs", "3", "--lr", "3e-2"]
    assert main.main(flags) == 0
    folder = tmp_path / "glyphs" / "Sample_Run_s0"
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        recalls = [float(row["test/e_recall@1"]) for row in csv.DictReader(file)]
    best = recalls.index(max(recalls))
    for name, epoch in (("best", best), ("checkpoint", 3)):
        evaluate = ["--evaluate_only", "--checkpoint", str(folder / f"{name}.pt"), *BASE]
        assert main.main(evaluate) == 0
        record = json.loads((folder / f"evaluation_{name}.json").read_text())
        assert (record["epoch"], record["checkpoint"], record["dataset"]) == (epoch, f"{name}.pt", "glyphs")
        assert record["metrics"]["test/e_recall@1"] == recalls[epoch] and not record["partial"]
    assert main.main([*evaluate, "--seed", "1"]) == 0  # another question: the first record stays
    assert record == json.loads((folder / "evaluation_checkpoint.json").read_text())
    assert json.loads((folder / "evaluation_checkpoint-2.json").read_text())["seed"] == 1
    assert main.main(evaluate) == 0  # the same question: its own record, written anew
    assert best != 3 and len(set(recalls)) == len(recalls)  # so that another epoch's numbers would be noticed
    assert len(list(folder.glob("evaluation_*.json"))) == 3
