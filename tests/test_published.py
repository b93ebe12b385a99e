"""The published command lines run to their ends on miniatures of the four benchmarks."""

import numpy as np
import pytest
from miniatures import LAYOUTS, short_run
from runs import rows

import main

# the published commands, apart from paths, the number of epochs and the network, which needs a download here
PUBLISHED = {
    "cub200": "--n_epochs 100 --tau 100 --gamma 0.5 --warmup 0",
    "cars196": "--n_epochs 300 --tau 100 --gamma 0.5 --warmup 0",
    "online_products": "--n_epochs 400 --tau 190 250 --gamma 0.2 --warmup 1",
}
OF_ALL = (
    "--kernels 6 --seed 0 --bs 90 --samples_per_class 2 --loss antico --antico_type batch_proxy --antico_w 1 "
    "--antico_eps 0.5 --loss_ac_w_align 0.0035 --arch resnet50_frozen_normalize_double --embed_dim 512 "
    "--loss_oproxy_lrmulti 2000 --lr 1e-5 --decay 4e-4 --data_sampler class_random --no_train_metrics --gpu 0 "
    "--evaluate_on_cpu --group published --savename group_plus_seed --augmentation base"
)


@pytest.mark.parametrize("name, layout", [key for key in LAYOUTS if key[0] in PUBLISHED])
def test_the_published_command_lines_run_to_the_end(name, layout, tmp_path):
    LAYOUTS[name, layout](tmp_path)
    line = f"--dataset {name} {PUBLISHED[name]} {OF_ALL}".split()
    here = "--allow_partial --n_epochs 2 --arch conv4_frozen_normalize_double --source_path".split()
    assert main.main([*line, *here, str(tmp_path), "--save_path", str(tmp_path / "runs")]) == 0
    table = rows(tmp_path / "runs" / name / "published_s0")
    assert np.isfinite([float(row["test/e_recall@1"]) for row in table]).all() and len(table) == 3
    assert np.isfinite(float(table[2]["loss"]))


def test_inshop_trains_and_is_evaluated_query_against_gallery(tmp_path):
    LAYOUTS["inshop", "archive"](tmp_path)
    more = ["--kernels", "0", "--no_train_metrics", "--save_embeddings"]
    assert main.main([*short_run("inshop", tmp_path), *more]) == 0
    (path,) = (tmp_path / "runs").rglob("embeddings_test.npz")
    with np.load(path) as saved:
        x, y = saved["query_embeddings"], saved["embeddings"]
        assert [len(saved[name]) for name in ("paths", "labels", "query_paths", "query_labels")] == [4, 4, 2, 2]
        nearest = ((x[:, None] - y[None]) ** 2).sum(2).argmin(1)
        recall = (saved["labels"][nearest] == saved["query_labels"]).mean()
    assert float(rows(path.parent)[-1]["test/e_recall@1"]) == recall
