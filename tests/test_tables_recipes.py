"""The tables of antico_runs.sh: which command lines they mean, and when two of these are one run."""

import re
import shlex

import pytest

import criteria
import parameters
from tables import recipes, runs, study

TABLES = [(name, data) for name in recipes.TABLES for data in ("glyphs", "cub200") if name != "grid"]
TABLES = [(name, data) for name, data in TABLES if data == "glyphs" or name not in study.TABLES]


def planned(line, data="/data/with spaces"):
    name, *words = shlex.split(line)
    return runs.plan(*runs.parse([name, data, *words]))[0]


def keys(line, data="/data"):
    return [(run.opt.dataset, run.key) for run in planned(line, data)]


@pytest.mark.parametrize("name, data", TABLES)
def test_every_command_line_of_every_table_is_one_that_main_accepts_and_means_another_run(name, data, capsys):
    words = [name, "/data/with spaces", "--datasets", data, "--dry_run", "--seeds", "0", "--out", "/results of/mine"]
    assert runs.main(words) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert last.startswith(f"{len(lines)} runs: {len(lines)} new; then: python -m tables.report RUNS --out '/results")
    options = [parameters.parse(shlex.split(line)[3:]) for line in lines]  # after the state, python and main.py
    for opt in options:
        assert opt.dataset == data and (data == "glyphs" or opt.source_path == "/data/with spaces")
        assert not parameters.without_effect(opt, criteria.acting_flags(opt)) & set(opt.given)
    assert len({opt.group for opt in options}) == len(lines) > 1


PUBLISHED = [  # commands: data, epochs, tau, gamma, warmup, and what they have for nir; then the data set's own K
    ("cub200", "100", "100", "0.5", "0", "--loss_nir_w_align 0.0075 --warmup 1", "1 2 4 8"),
    ("cars196", "300", "100", "0.5", "0", "--loss_nir_w_align 0.01 --warmup 1", "1 2 4 8"),
    ("online_products", "400", "190 250", "0.2", "1",
     "--loss_nir_w_align 0.3 --loss_nir_lrmulti 1 --warmup 5 --n_epochs 300 --tau 140 230", "1 10 100 1000"),
]  # fmt: skip


@pytest.mark.parametrize("data, epochs, tau, gamma, warmup, nir, ks", PUBLISHED)
def test_main_has_the_published_command_lines(data, epochs, tau, gamma, warmup, nir, ks):
    for arch in ("bninception_frozen_normalize_double", "resnet50_frozen_normalize_double"):
        antico = "--antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035"
        for loss, flags in (("antico", f"{antico} --loss_oproxy_lrmulti 2000"), ("nir", nir)):
            opt = vars(parameters.parse(shlex.split(
                f"--dataset {data} --arch {arch} --embed_dim 512 --n_epochs {epochs} --tau {tau} --gamma {gamma} "
                f"--warmup {warmup} --bs 90 --samples_per_class 2 --lr 1e-5 --decay 4e-4 --optim adam --amp none "
                f"--data_sampler class_random --loss {loss} {flags}"
            )))  # fmt: skip
            (run,) = [r for r in planned(f"main --datasets {data}") if (r.opt.loss, r.opt.arch) == (loss, arch)]
            assert run.trained == {name: opt[name] for name in run.trained} and run.opt.amp == "none"
            assert [m for m in run.opt.evaluation_metrics if "recall" in m] == [f"e_recall@{k}" for k in ks.split()]


def test_every_base_is_in_bases_and_hyper_changes_one_thing_at_a_time():
    assert set(recipes.PAIR_BASES + recipes.PROXY_BASES) == set(criteria.BASES)
    for run in planned("bases --datasets glyphs"):
        if "nir" in (run.opt.loss, run.trained.get("antico_base")):
            pytest.importorskip("FrEIA")
        criterion = criteria.select(run.opt, 10)  # none is refused
        assert run.opt.loss in criteria.ANTICO or hasattr(criterion, "proxies") == (run.opt.loss in recipes.PROXY_BASES)
    first, *others = planned("hyper --datasets cub200")
    changed = {name for run in others for name in run.chosen if run.trained[name] != first.trained.get(name)}
    told = "antico_eps antico_w antico_scale antico_form bs samples_per_class warmup loss_ac_w_align"
    assert changed == {*told.split()}


def test_tables_share_runs():
    """The run of 512 dimensions is that of `main`: nobody trains it twice."""
    dims = [r.key for r in planned("dims --datasets cub200") if r.opt.embed_dim == 512]
    assert len(dims) == 4 and set(dims) <= {r.key for r in planned("main --datasets cub200")}
    assert len(set(keys("quickstart")) & set(keys("study_guard"))) == 5 * 3
    tables = {runs.table_path(*runs.parse(["quickstart", *more])) for more in ([], ["--lr", "1"], ["--seeds", "7"])}
    assert len(tables) == 3  # but none overwrites another's table


def test_what_tells_two_runs_apart():
    plain = keys("main --datasets glyphs")
    same = "--kernels 3 --eval_every 2 --evaluation_metrics f1 --no_train_metrics off --save_embeddings off --fc_lr -1"
    assert keys(f"main --datasets glyphs {same}", "/other") == plain
    for other in ("--lr 1e-4", "--tau 2 3", "--n_epochs 6", "--train_classes 9", "--use_float16", "--seeds 1"):
        assert not set(keys(f"main --datasets glyphs {other}")) & set(plain)
    for same, line in ((True, "cub200"), (False, "cub200 --allow_partial"), (False, "folder")):  # one's own images
        assert (keys(f"main --datasets {line}", "/a") == keys(f"main --datasets {line}", "/b")) is same


def test_a_flag_that_is_new_changes_no_hash_at_its_default(monkeypatch):
    before, build = keys("main --datasets glyphs"), parameters.build_parser

    def with_one_more():
        parser = build()
        parameters.flag(parser, "new", 1.5, "of tomorrow", role="training")
        return parser

    monkeypatch.setattr(parameters, "build_parser", with_one_more)
    monkeypatch.setattr(runs, "FLAGS", parameters.flags())
    assert keys("main --datasets glyphs") == before
    assert not set(keys("main --datasets glyphs --new 2")) & set(before)


def test_more_flags_win_over_the_recipe_and_paths_are_of_where_the_user_stands(tmp_path, monkeypatch):
    (run, *_) = planned("main --datasets glyphs --lr 1e-4 --tau 2 3 --no_train_metrics off")
    assert run.opt.lr == 1e-4 and run.opt.tau == [2, 3] and not run.opt.no_train_metrics
    monkeypatch.chdir(tmp_path)
    given, extras = runs.parse(["main", "my data", "--out", "my results", "--weights", "w.pth"])
    assert (given.data, given.out) == (str(tmp_path / "my data"), str(tmp_path / "my results"))
    assert extras == {"weights": str(tmp_path / "w.pth")}
    assert runs.parse(["quickstart", "--weights", "https://x/y.pth"])[1] == {"weights": "https://x/y.pth"}


def test_a_grid_has_one_row_for_what_does_not_tell_runs_apart(capsys):
    line = "grid --grid loss=proxyanchor,antico_pair antico_w=1,10 --antico_base proxyanchor"
    assert [(r.opt.loss, r.trained.get("antico_w")) for r in planned(line)] == [
        ("proxyanchor", None), ("antico_pair", 1), ("antico_pair", 10)
    ]  # fmt: skip
    assert runs.main([*shlex.split(line), "--dry_run"]) == 0
    assert capsys.readouterr().err == "note: --grid antico_w: no effect on proxyanchor: one row for all its values\n"


def test_a_grid_without_a_base_says_what_would_have_it(capsys):
    line = "grid --grid antico_w=1,10 --lr 1e-3"
    assert runs.main([*shlex.split(line), "--loss", "antico_pair", "--dry_run"]) == 0
    (axis,) = re.findall(r"alone to compare with; --grid (\S+) instead of --loss makes one", capsys.readouterr().err)
    base, *others = planned(line.replace("--grid", f"--grid {axis}"))
    assert base.opt.loss == "proxyanchor" and others
    assert [r.key for r in others] == [r.key for r in planned(f"{line} --loss antico_pair")]


WRONG = [
    ("quickstrat", "invalid choice: 'quickstrat'"),
    ("main --datasets cub", "--datasets cub: unknown (did you mean cub200?)"),
    ("quickstart --seeds ''", "--seeds: is empty"),
    ("quickstart --seed 1", "--seed: the queue gives it itself"),
    ("grid", "--grid FLAG=VALUE,VALUE"),
    ("grid --grid lr=1,2 --lr 3", "--grid lr: changes nothing"),
    ("grid --grid loss=margin,proxyanchor antico_w=1,2", "antico_w: changes nothing that margin, proxyanchor learns"),
    ("quickstart --slurm --gpus 0", "--gpus: not allowed with argument --slurm"),
    ("quickstart --bs 90 --samples_per_class 4", "--bs 90 --samples_per_class 4: not divisible"),
    ("main /no/such/folder", "/no/such/folder: no such folder; where are the data sets? bash antico_runs.sh main DATA"),
]


@pytest.mark.parametrize("line, words", WRONG)
def test_a_wrong_word_is_one_line_and_status_2(line, words, capsys, monkeypatch):
    monkeypatch.setattr(runs, "Queue", None)  # nothing runs
    try:
        status = runs.main(shlex.split(line))
    except SystemExit as end:  # a parser
        status = end.code
    text = capsys.readouterr().err
    assert status == 2 and words in text and text.startswith("error: ") and text.count("\n") == 1
