"""The tables of antico_runs.sh: which command lines they mean."""

import os
import shlex

import pytest

import architectures
import criteria
import datasets
import evaluation
import parameters
from utilities import recipes, study
from utilities.runs import options, plan, records, slurm
from utilities.runs.__main__ import main

PHOTOGRAPHS = ["cub200", "cars196", "online_products", "inshop", "folder"]
TABLES = [
    (name, data)
    for name in recipes.TABLES
    if name != "grid"
    for data in (["glyphs"] if name in study.TABLES else [*PHOTOGRAPHS, "glyphs"])
]


def planned(line, data="/data/with spaces"):
    name, *words = shlex.split(line)
    name, given, extras = options.parse([name, data, *words, "--dry_run"])
    return plan.plan(name, given, extras)


@pytest.mark.parametrize("name, data", TABLES)
def test_every_command_line_of_every_table_is_one_that_main_accepts(name, data, capsys):
    assert main([name, "/data/with spaces", "--datasets", data, "--dry_run", "--out", "/results of/mine"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"{len(lines)} runs: {len(lines)} new; then: python -m ") and len(lines) > 5
    for line in lines:
        state, python, program, *words = shlex.split(line)
        assert (state, python) == ("new", "python")
        words = words[2:] if name == "cost" else words  # -m benchmarks.cost FILE.json FLAGS
        opt = parameters.parse(words)
        assert opt.dataset == data in datasets.DATASETS and not parameters.note(opt)
        assert data == "glyphs" or opt.source_path == "/data/with spaces"
        criteria.acting_flags(opt)
        architectures.parse_arch(opt.arch)
        evaluation.check_names(opt.evaluation_metrics, opt.embed_dim)


def test_no_two_runs_of_a_table_have_one_name_or_one_meaning():
    for name, data in [table for table in TABLES if table[1] in ("cub200", "glyphs")]:
        runs = planned(f"{name} --datasets {data} --seeds 0")
        assert len({run.name for run in runs}) == len({run.key for run in runs}) == len(runs), (name, data)


# of the published commands: data, epochs, tau, gamma, warmup; and the data set's own K
PUBLISHED = [
    ("cub200", 100, [100], 0.5, 0, "1 2 4 8"),
    ("cars196", 300, [100], 0.5, 0, "1 2 4 8"),
    ("online_products", 400, [190, 250], 0.2, 1, "1 10 100 1000"),
]


@pytest.mark.parametrize("data, epochs, tau, gamma, warmup, ks", PUBLISHED)
@pytest.mark.parametrize("arch", ["bninception", "resnet50"])
def test_main_has_the_published_command_lines(data, epochs, tau, gamma, warmup, ks, arch):
    line = (
        f"--dataset {data} --arch {arch}_frozen_normalize_double --embed_dim 512 --n_epochs {epochs} --gamma {gamma} "
        f"--tau {' '.join(map(str, tau))} --warmup {warmup} --bs 90 --samples_per_class 2 --lr 1e-5 --decay 4e-4 "
        "--optim adam --loss antico --antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035 "
        "--loss_oproxy_lrmulti 2000 --data_sampler class_random"
    )
    wanted = records.key(vars(parameters.parse(shlex.split(line))))
    (run,) = [r for r in planned(f"main --datasets {data} --archs {arch}") if r.opt.loss == "antico"]
    assert run.key == wanted
    assert [m for m in run.opt.evaluation_metrics if "recall" in m] == [f"e_recall@{k}" for k in ks.split()]


def test_main_has_the_losses_and_networks_of_the_issue():
    runs = planned("main --datasets cub200 --seeds 3")
    losses = {(r.opt.loss, r.opt.antico_base if r.opt.loss == "antico_pair" else "") for r in runs}
    assert losses == {
        ("proxyanchor", ""), ("oproxy", ""), ("nir", ""), ("antico", ""), ("multisimilarity", ""),
        ("antico_batch_proxy", ""), ("antico_all_proxy", ""),
        ("antico_pair", "proxyanchor"), ("antico_pair", "multisimilarity"),
    }  # fmt: skip
    assert {r.opt.arch.split("_")[0] for r in runs} == {"bninception", "resnet50"} and len(runs) == 18
    inshop = planned("main --datasets inshop")[0].opt.evaluation_metrics
    assert inshop[:4] == ["e_recall@1", "e_recall@10", "e_recall@20", "e_recall@30"]


def test_bases_are_those_of_the_program_and_the_proxy_variants_are_over_those_that_have_proxies():
    assert set(recipes.PAIR_BASES + recipes.PROXY_BASES) == set(criteria.BASES)
    for base in criteria.BASES:
        if base == "nir":
            pytest.importorskip("FrEIA")
        criterion = criteria.select(parameters.parse(["--loss", base, "--embed_dim", "8"]), 4)
        assert hasattr(criterion, "proxies") == (base in recipes.PROXY_BASES), base
    for run in planned("bases --datasets glyphs"):
        criteria.select(run.opt, 10)  # none is refused


def test_hyper_changes_one_thing_at_a_time():
    first, *others = planned("hyper --datasets cub200")
    changed = {name for run in others for name in vars(run.opt) if getattr(run.opt, name) != getattr(first.opt, name)}
    assert changed - {"given"} == {
        "antico_eps", "antico_w", "antico_scale", "antico_form", "bs", "samples_per_class", "warmup", "loss_ac_w_align"
    }  # fmt: skip
    assert {run.opt.loss for run in planned("hyper --datasets cub200 --loss antico_all_proxy")} == {"antico_all_proxy"}


def test_tables_share_runs():
    """The run of 512 dimensions is that of `main`: nobody trains it twice."""
    main_keys = {run.key for run in planned("main --datasets cub200 --archs resnet50")}
    dims = [run.key for run in planned("dims --datasets cub200") if run.opt.embed_dim == 512]
    assert len(dims) == 4 and set(dims) <= main_keys
    assert {run.key for run in planned("quickstart")} <= {run.key for run in planned("study")}


def test_the_former_spelling_is_main_on_one_data_set():
    assert [r.key for r in planned("cars196 --seeds '0 1'")] == [
        r.key for r in planned("main --datasets cars196 --seeds 0,1")
    ]


def test_more_flags_win_over_the_recipe_and_are_in_the_names():
    for run in planned("main --datasets glyphs --lr 1e-4 --tau 2 3 --no_train_metrics off"):
        assert run.opt.lr == 1e-4 and run.opt.tau == [2, 3] and not run.opt.no_train_metrics
        assert "lr=0.0001,tau=2+3" in run.group
    name, given, extras = options.parse(shlex.split("quickstart --lr 1e-4"))
    assert plan.table_path(name, given, extras) != plan.table_path(name, given, {})


def test_grid_is_the_product_each_meaning_once():
    runs = planned("grid --grid antico_w=10,100 loss=antico_pair,proxyanchor --seeds '0 1'")
    assert [(r.opt.loss, r.opt.seed) for r in runs].count(("proxyanchor", 0)) == 1  # antico_w does nothing there
    assert sorted((r.opt.antico_w, r.opt.seed) for r in runs if r.opt.loss == "antico_pair") == [
        (10, 0), (10, 1), (100, 0), (100, 1)
    ]  # fmt: skip
    (a, b) = planned("grid --grid 'tau=2 3,4' --loss antico_pair")
    assert (a.opt.tau, b.opt.tau) == ([2, 3], [4])


@pytest.mark.parametrize(
    "line, words",
    [
        ("quickstrat", "TABLE quickstrat: unknown (did you mean quickstart?)"),
        ("main --datasets cub", "--datasets cub: unknown (did you mean cub200?)"),
        ("quickstart --n_epoch 1", "--n_epoch: unknown (did you mean --n_epochs?)"),
        ("quickstart --n_epochs one", "--n_epochs: 'one' is not a whole number"),
        ("quickstart --sedes 1", "--sedes: unknown (did you mean --seeds?)"),
        ("quickstart --seeds x", "--seeds x: is not a whole number"),
        ("quickstart --seeds ''", "--seeds: is empty"),
        ("quickstart --seed 1", '--seed: give --seeds "0 1 2" instead'),
        ("quickstart --save_path x", "--save_path: give --out DIR instead"),
        ("main --dataset cub200", "--dataset: give --datasets NAME ... instead"),
        ("grid", "grid: needs --grid FLAG=VALUE,VALUE"),
        ("grid --grid antico_ww=1", "--grid antico_ww: unknown (did you mean --grid antico_w?)"),
        ("grid --grid antico_w", "--grid antico_w: write FLAG=VALUE,VALUE"),
        ("grid --grid seed=1,2", "--grid seed: give --seeds"),
        ("grid --grid lr=1,2 lr=3", "--grid lr: stands twice"),
        ("main --grid lr=1", "--grid: is for the table grid"),
        ("quickstart --slurm --gpus 0", "leave --gpus out"),
        ("main /no/such/folder", "/no/such/folder: no such folder; give the one that holds cub200, cars196"),
        ("quickstart --tf32 maybe", "--tf32 maybe: is a switch, on or off"),
        ("quickstart --bs 90 --samples_per_class 4", "90 is not divisible by 4"),
    ],
)
def test_a_wrong_word_is_one_line_and_status_2(line, words, capsys):
    try:
        status = main(shlex.split(line))
    except SystemExit as end:  # main.py's parser
        status = end.code
    text = capsys.readouterr().err
    assert status == 2 and words in text and text.startswith("error: ") and text.count("\n") == 1


def test_relative_paths_are_of_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my data").mkdir()
    name, given, extras = options.parse(["cub200", "my data", "--out", "my results", "--weights", "w.pth"])
    assert (given.data, given.out) == (str(tmp_path / "my data"), str(tmp_path / "my results"))
    assert extras["weights"] == str(tmp_path / "w.pth")
    assert options.parse(["quickstart", "--weights", "https://x/y-abc.pth"])[2]["weights"] == "https://x/y-abc.pth"


def test_data_known_by_its_place_where_it_is_not_counted():
    def key(line, data):
        return planned(line, data)[0].key

    assert key("cub200", "/a") == key("cub200", "/b")
    assert key("cub200 --allow_partial", "/a") != key("cub200 --allow_partial", "/b")
    assert key("main --datasets folder", "/a") != key("main --datasets folder", "/b")


def test_slurm_writes_an_array_of_what_is_left(tmp_path, capsys):
    out = tmp_path / "with space"
    assert main(["quickstart", "--out", str(out), "--seeds", "0 1", "--slurm"]) == 0
    text = (out / "quickstart.sbatch").read_text()
    assert f"sbatch '{out / 'quickstart.sbatch'}'" in capsys.readouterr().out
    assert "#SBATCH --array=0-11\n" in text and "--slurm" not in text and os.path.isdir(out / "slurm")
    last = shlex.split(text.splitlines()[-1])
    script = os.path.join(records.ROOT, "antico_runs.sh")
    assert last == ["exec", "bash", script, "quickstart", "--out", str(out), "--seeds", "0 1", "--number",
                    "$SLURM_ARRAY_TASK_ID"]  # fmt: skip
    assert main([*last[3:-1], "12"]) == 2
    assert "error: --number 12: the list has 12 runs" in capsys.readouterr().err


def test_ranges():
    assert slurm.ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and slurm.ranges([4]) == "4"
