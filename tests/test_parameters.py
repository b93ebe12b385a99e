import csv
import os
import shlex
import subprocess
import sys

import pytest

import criteria
import parameters


def published():
    with open(os.path.join(os.path.dirname(__file__), "reference", "published_flags.tsv"), encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("row", published(), ids=lambda row: row["flag"])
def test_published_flag_has_its_type_and_default(row):
    name = row["flag"].removeprefix("--")
    default = getattr(parameters.parse([]), name)
    if "folder beside" in row["default"]:
        checkout = os.path.dirname(os.path.abspath(parameters.__file__))
        assert os.path.dirname(default) == os.path.dirname(checkout)
    else:
        kind = {"str": str, "int": int, "float": float, "flag": lambda text: text == "True"}.get(row["type"])
        assert default == (kind(row["default"]) if kind else eval(row["default"])) and (
            kind is None or type(default) is type(kind(row["default"]))
        )


@pytest.mark.parametrize(
    "line",
    [
        "--kernels 6 --source_path /data --n_epochs 100 --tau 100 --gamma 0.5 --dataset cub200 --seed 0 --bs 90 "
        "--samples_per_class 2 --loss antico --arch resnet50_frozen_normalize_double --embed_dim 512 "
        "--loss_oproxy_lrmulti 2000 --antico_type batch_proxy --antico_w 1 --antico_eps 0.5 --loss_ac_w_align 0.0035 "
        "--gpu 0 --evaluate_on_cpu --group cub --savename group_plus_seed --warmup 0 --data_sampler class_random "
        "--no_train_metrics",
        "--dataset online_products --n_epochs 400 --tau 190 250 --gamma 0.2 --warmup 1 --loss oproxy "
        "--loss_oproxy_mode nca --internal_split 1 --data_ssl_set --completed",
    ],
)
def test_published_command_lines_parse(line):
    opt = parameters.parse(shlex.split(line))
    assert opt.gamma in (0.5, 0.2) and isinstance(opt.tau, list)


def test_defaults_follow_the_loss_and_what_is_given_wins():
    assert parameters.parse(["--loss", "antico"]).antico_form == "exp"
    assert parameters.parse(["--loss", "antico"]).loss_ac_w_align == 0.01
    pair = parameters.parse(["--loss", "antico_pair"])
    assert (pair.antico_form, pair.antico_base, pair.loss_ac_w_align) == ("normalized", "multisimilarity", 1)
    given = parameters.parse(["--antico_w", "7", "--loss=antico_batch_proxy", "--antico_form", "exp"])
    assert (given.antico_w, given.antico_form, given.antico_base) == (7, "exp", "proxyanchor")


def test_defaults_of_antico_follow_its_base():
    assert set(criteria.OVER) <= {(variant, base) for variant in ("pair", "class_means") for base in criteria.BASES}
    for (variant, base), defaults in criteria.OVER.items():
        opt = vars(parameters.parse(["--loss", f"antico_{variant}", "--antico_base", base]))
        assert {name: opt[name] for name in defaults} == defaults != {}
        published = parameters.parse(["--loss", "antico", "--antico_type", variant, "--antico_base", base])
        assert (published.antico_w, published.antico_eps) == (1, 0.5)
    assert parameters.parse(["--loss", "antico_pair"]).antico_w == 0.1
    given = parameters.parse(["--loss", "antico_pair", "--antico_base", "proxyanchor", "--antico_w", "2"])
    assert (given.antico_w, given.antico_eps) == (2, criteria.OVER["pair", "proxyanchor"]["antico_eps"])


@pytest.mark.parametrize(
    "line, words",
    [
        ("--bs 90 --samples_per_class 4", "90 is not divisible by 4"),
        ("--lr fast", "--lr: 'fast' is not a number from 0 to 1e+30"),
        ("--bs 0", "--bs: '0' is not a whole number from 1 to 1000000"),
        ("--lr nan", "--lr"),
        ("--antico_w inf", "--antico_w"),
        ("--data_sampler balanced", "--data_sampler"),
        ("--los antico", "--los"),
        ("--use_tv_split", "--tv_split_perc 0: the share must lie between 0 and 1"),
        ("--tv_split_by_samples", "needs --use_tv_split"),
        ("--gpu 0 1", "a run uses one GPU"),
        ("--not_pretrained --weights x", "give one of the two"),
        ("--loss antico_pair --antico_gam2 2", "--antico_gam2: acts on --antico_form exp and neg"),
        ("--antico_eps=-inf", "--antico_eps: '-inf' is not a number from -1e+30 to 1e+30"),
        ("--antico_eps small", "--antico_eps: 'small' is not a number"),
        ("--antico_form log", "--antico_form: invalid choice: 'log' (choose from"),
        ("--loss_nir_nf_cblocks 2.5", "--loss_nir_nf_cblocks: '2.5' is not a whole number"),
        ("--loss antico_pair --antico_type all_proxy", "the loss's name fixes the type"),
        ("--loss proxyanchor --pml_args m=1", "--pml_args m=1: needs a loss of pytorch-metric-learning"),
        ("--storage_metrics mAP@R", "--storage_metrics mAP@R: not among"),
        ("--no_train_metrics --no_test_metrics", "nothing is left to evaluate"),
        ("--use_float16 --amp bf16", "give one of the two"),
    ],
)
def test_bad_input_is_one_line_and_status_2(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parameters.parse(shlex.split(line))
    text = capsys.readouterr().err
    assert stop.value.code == 2 and words in text and text.count("\n") == 1


def test_help_explains_every_flag():
    actions = [a for a in parameters.build_parser()._actions if a.option_strings]
    assert all(a.help for a in actions) and len(actions) > 120
    assert not [a.dest for a in actions if len(a.help.split(" (default:")[0]) > 100]
    text = parameters.build_parser().format_help()  # a stray % in a help text would raise
    assert "%" not in text.replace("100%", "")


def test_help_begins_with_examples_and_says_defaults(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parameters.parse(["--help"])
    text = capsys.readouterr().out
    assert text.index("--dataset glyphs") < text.index("--dataset cub200") < text.index("options:")
    assert "weight of the coding-rate term (default: 1.0; antico_pair: 0.1, antico_batch_proxy: 30.0" in text
    assert "epochs (default: 150)" in text and "default: None" not in text


def test_examples_of_the_help_parse():
    lines = parameters.EXAMPLES.replace("\\\n", " ").splitlines()
    commands = [line.split("main.py ")[1] for line in lines if "python main.py" in line]
    assert len(commands) == 5
    for command in commands:
        parameters.parse(shlex.split(command))


def test_a_wrong_flag_is_answered_without_torch():
    code = "import sys, parameters; parameters.build_parser().format_help(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=os.path.dirname(parameters.__file__), capture_output=True)
    assert done.stdout.split() == [b"False"]


@pytest.mark.parametrize(
    "line, words",
    [
        ("--seed 4294967296", "--seed: '4294967296' is not a whole number from 0 to 4294967295"),
        ("--seed 18446744073709551616", "--seed"),
        ("--gamma 1e30 --tau 1 2 3 4 5 6 7 8 9 10 11 12", "--gamma 1e+30: the learning rate would grow beyond 1e+30"),
        ("--embed_dim 1000000000", "--embed_dim: '1000000000' is not a whole number from 1"),
        ("--bs 10000000000000000000000", "--bs"),
        ("--lr 1e305", "--lr: '1e305' is not a number from 0 to 1e+30"),
        ("--gamma 1e308", "--gamma"),
        ("--gamma 1e20 --tau 1 2 3", "--gamma 1e+20"),
        ("--kmeans_restarts 0", "--kmeans_restarts: '0'"),
        ("--resume ''", "--resume"),
    ],
)
def test_values_beyond_all_bounds_are_one_line(line, words, capsys):
    with pytest.raises(SystemExit) as stop:
        parameters.parse(shlex.split(line))
    text = capsys.readouterr().err
    assert stop.value.code == 2 and words in text and text.count("\n") == 1


def test_the_first_metric_evaluated_chooses_the_best():
    assert parameters.parse(["--evaluation_metrics", "mAP@R"]).storage_metrics == ["mAP@R"]
    assert parameters.parse(["--evaluation_metrics", "nmi", "e_recall@1"]).storage_metrics == ["e_recall@1"]
    given = parameters.parse(["--evaluation_metrics", "mAP@R", "nmi", "--storage_metrics", "nmi"])
    assert given.storage_metrics == ["nmi"]


@pytest.mark.parametrize(
    "line, idle",
    [
        ("--loss proxyanchor --antico_w 3", "note: --antico_w: no effect on a run of --loss proxyanchor"),
        ("--loss antico_pair --loss_nir_margin 1 --completed", "note: --completed, --loss_nir_margin: no effect"),
        (
            "--loss margin --loss_margin_beta 1 --batch_mining all --miner_semihard_margin 1",
            "note: --miner_semihard_margin: no effect",
        ),
        ("--dataset glyphs --skip_broken --source_path DIR", "note: --skip_broken, --source_path: no effect"),
        ("--evaluation_metrics mAP@R --kmeans_restarts 3", "note: --kmeans_restarts: no effect"),
        ("--evaluation_metrics mAP@R c_nmi --kmeans_restarts 3", ""),
        ("--loss antico_pair --antico_base none --loss_ac_w_align 2", "note: --loss_ac_w_align: no effect"),
        ("--loss antico --antico_w 3 --antico_gam2 2", ""),
        (
            "--loss antico_pair --antico_base triplet --loss_triplet_margin 1 --batch_mining semihard "
            "--miner_semihard_margin 1",
            "",
        ),
        ("--loss nir --loss_oproxy_lrmulti 3 --loss_oproxy_pos_alpha 3", "note: --loss_oproxy_lrmulti: no effect"),
        ("--loss proxyanchor --loss_oproxy_mode nca --loss_oproxy_lrmulti 3", "note: --loss_oproxy_mode: no effect"),
        ("--loss antico --loss_oproxy_mode nca", ""),
        (
            "--loss npair --batch_mining all --antico_base none --pml_lrmulti 3",
            "note: --antico_base, --batch_mining, --pml_lrmulti: no effect",
        ),
    ],
)
def test_a_flag_that_acts_on_nothing_is_a_note_in_one_line(line, idle):
    note = parameters.note(parameters.parse(shlex.split(line)))
    assert note.startswith(idle) and bool(note) == bool(idle) and "\n" not in note


def test_what_a_name_stands_for_is_what_config_says():
    opt = parameters.parse(["--loss", "antico_all_proxy"])
    assert opt.antico_type == "all_proxy" and "antico_type" not in parameters.without_effect(opt)
    for loss, entry in criteria.CRITERIA.items():
        opt = vars(parameters.parse(["--loss", loss]))
        assert {name: opt[name] for name in entry.defaults} == entry.defaults


def test_flags_without_effect_are_the_last_group_of_help():
    *others, last = parameters.build_parser()._action_groups
    assert "act on nothing" in last.title and {"data_ssl_set", "internal_split", "completed"} <= {
        a.dest for a in last._group_actions
    }
    always = {a.dest for a in last._group_actions}
    assert not any(a.help.startswith("accepted for") for group in others for a in group._group_actions)
    for loss in ("antico", "nir", "margin"):
        assert always <= parameters.without_effect(
            parameters.parse(["--loss", loss, "--log_online", "--scheduler", "step"])
        )
    assert parameters.build_parser().format_help().rstrip().rfind(
        last.title
    ) > parameters.build_parser().format_help().find("writing down")
