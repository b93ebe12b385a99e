"""The published command lines run to their ends on miniatures of the four benchmarks."""

import csv

import numpy as np
import pytest
from miniatures import LAYOUTS, short_run

import main

# the published commands, apart from paths, the number of epochs and the network, which needs a download here
PUBLISHED = {
    "cub200": "--n_epochs 100 --tau 100 --gamma 0.5 --warmup 0",
    "cars196": "--n_epochs 300 --tau 100 --gamma 0.5 --warmup 0",
    "online_products": "--n_epochs 400 --tau 190 250 --gamma 0.2 --warmup 1",
}


@pytest.mark.parametrize("name, layout", [key for key in LAYOUTS if key[0] in PUBLISHED])
def test_the_published_command_lines_run_to_the_end(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    line = (
        f"--kernels 6 --dataset {name} {PUBLISHED[name]} --seed 0 --bs 90 --samples_per_class 2 --loss antico "
        "--antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035 "
        "--arch resnet50_frozen_normalize_double --embed_dim 512 --loss_oproxy_lrmulti 2000 --lr 1e-5 --decay 4e-4 "
        "--data_sampler class_random "
        "--no_train_metrics --gpu 0 --evaluate_on_cpu --group published --savename group_plus_seed --augmentation base"
    ).split()
    here = [
        "--source_path",
        str(tmp_path),
        "--save_path",
        str(tmp_path / "runs"),
        "--allow_partial",
        "--n_epochs",
        "2",
        "--arch",
        "conv4_frozen_normalize_double",
    ]
    assert main.main(line + here) == 0
    with open(tmp_path / "runs" / name / "published_s0" / "metrics.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        len(rows) == 3
        and all(np.isfinite(float(row["test/e_recall@1"])) for row in rows)
        and np.isfinite(float(rows[2]["loss"]))
    )


def test_inshop_trains_and_is_evaluated_query_against_gallery(tmp_path, capsys):
    LAYOUTS["inshop", "archive"](tmp_path)
    more = ["--kernels", "0", "--no_train_metrics", "--save_embeddings"]
    assert main.main([*short_run("inshop", tmp_path), *more]) == 0
    assert "test 2 queries in a gallery of 4" in capsys.readouterr().out
    (path,) = (tmp_path / "runs").rglob("embeddings_test.npz")
    with np.load(path) as saved, open(path.parent / "metrics.csv", encoding="utf-8", newline="") as file:
        x, y = saved["query_embeddings"], saved["embeddings"]
        assert [len(saved[name]) for name in ("paths", "labels", "query_paths", "query_labels")] == [4, 4, 2, 2]
        nearest = ((x[:, None] - y[None]) ** 2).sum(2).argmin(1)
        assert (
            float(list(csv.DictReader(file))[-1]["test/e_recall@1"])
            == (saved["labels"][nearest] == saved["query_labels"]).mean()
        )
