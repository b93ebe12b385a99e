"""The rows last / best-test / best-val, --evaluate_only and --save_embeddings on a small run."""

import json
import os

import miniatures
import numpy as np
import pytest
import torch
from runs import SMALL, image_folder, rows

import evaluation
import main
import parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose best epoch is not its last."""
    place = tmp_path_factory.mktemp("run")
    more = "--kernels 0 --lr 3e-2 --seed 3 --kmeans_restarts 2 --gpu 0 --save_embeddings --evaluation_metrics".split()
    argv = [*SMALL, *image_folder(place / "images"), *more, "e_recall@1", "nmi", "--save_path", str(place)]
    assert main.main([*argv, "--group", "g"]) == 0
    return place / "folder" / "g_s3"


def test_a_checkpoint_is_evaluated_as_its_run_did(folder, capsys):
    """best.pt has the best epoch's numbers, checkpoint.pt the last one's; the run's own flags hold unless given."""
    recalls, scores = ([float(row[f"test/{name}"]) for row in rows(folder)] for name in ("e_recall@1", "nmi"))
    best = 1 + int(np.argmax(recalls[1:]))  # epoch 0 is before training
    assert best != 3 and len({*zip(recalls, scores)}) == 4  # another epoch's numbers would be noticed
    for name, epoch in (("best", best), ("checkpoint", 3)):
        assert main.main(["--evaluate_only", "--checkpoint", str(folder / f"{name}.pt"), "--embed_dim", "99"]) == 0
        assert "test/e_recall@1" in capsys.readouterr().out
        record = json.loads(next(folder.glob(f"{name}_folder_images_*.json")).read_text())
        assert (record["epoch"], record["seed"], record["kmeans_restarts"]) == (epoch, 3, 2)
        assert record["metrics"] == {"test/e_recall@1": recalls[epoch], "test/nmi": scores[epoch]}
    opt = parameters.parse(["--evaluate_only", "--checkpoint", str(folder / "best.pt"), "--search", "torch"])
    assert (opt.embed_dim, opt.no_train_metrics, opt.search) == (16, True, "torch")
    assert opt.kernels == 6 and opt.group == "Sample_Run" and not opt.save_embeddings  # housekeeping is not the run's


def test_saved_embeddings_have_the_runs_numbers(folder):
    with np.load(folder / "embeddings_test.npz", allow_pickle=False) as saved:
        assert len(saved["paths"]) == len(saved["labels"]) == 96
        found = evaluation.compute(saved["embeddings"], saved["labels"], ["e_recall@1"])
    assert found["e_recall@1"] == float(rows(folder)[-1]["test/e_recall@1"])


def test_any_images_are_embedded_beside_the_runs_own(folder, tmp_path):
    """A folder without classes; what the run wrote stays."""
    before = (folder / "embeddings_test.npz").read_bytes()
    for i in range(5):
        miniatures.noise(tmp_path / "mine" / f"{i}.png", seed=i)
    flags = ["--evaluate_only", "--checkpoint", folder / "best.pt", "--dataset", "folder", "--save_embeddings"]
    assert main.main([*map(str, flags), "--source_path", str(tmp_path / "mine")]) == 0
    assert (folder / "embeddings_test.npz").read_bytes() == before
    (path,) = folder.glob("embeddings_test_best_folder_mine_*.npz")
    with np.load(path) as saved:
        assert saved["embeddings"].shape == (5, 16) and saved["class_names"].tolist() == ["mine"]
        assert [os.path.basename(path) for path in saved["paths"]] == [f"{i}.png" for i in range(5)]


def test_what_is_no_checkpoint_of_a_run_is_one_line(tmp_path, capsys):
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.pt")
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for name in ("none.pt", "other.pt", "tensor.pt", "text.pt"):
        assert main.main(["--evaluate_only", "--checkpoint", str(tmp_path / name)]) == 2
        text = capsys.readouterr().err
        assert text.startswith("error: ") and name in text and text.count("\n") == 1
    with pytest.raises(SystemExit):
        main.main(["--evaluate_only"])
    assert "--checkpoint" in capsys.readouterr().err
