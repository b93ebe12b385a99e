import csv
import json
import os
import shlex
import subprocess
import sys

import pytest

import criteria
import parameters
from utilities.command_line import add_group, flag
from utilities.folders import flags_of_run

HERE = os.path.dirname(os.path.abspath(parameters.__file__))


def parse(line):
    return parameters.parse(shlex.split(line))


# the published command line


def published():
    with open(os.path.join(HERE, "tests", "reference", "published_flags.tsv"), encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.parametrize("row", published(), ids=lambda row: row["flag"])
def test_published_flag_has_its_type_and_default(row):
    default = getattr(parameters.parse([]), row["flag"].removeprefix("--"))
    if "folder beside" in row["default"]:
        assert os.path.dirname(default) == os.path.dirname(HERE)
    elif kind := {"str": str, "int": int, "float": float, "flag": lambda text: text == "True"}.get(row["type"]):
        expected = kind(row["default"])
        assert default == expected and type(default) is type(expected)
    else:
        assert default == eval(row["default"])


# defaults


def test_defaults_follow_the_loss_and_what_is_given_wins():
    opt = parse("--loss antico")
    assert (opt.antico_form, opt.antico_base, opt.loss_ac_w_align, opt.antico_w) == ("exp", "oproxy", 0.01, 1)
    for base in ("proxyanchor", "multisimilarity"):
        opt = parse(f"--loss antico_pair --antico_base {base}")
        assert (opt.antico_form, opt.antico_type, opt.antico_w, opt.antico_eps) == ("guard", "pair", 1, 0.005)
    opt = parse("--antico_w 7 --loss=antico_batch_proxy --antico_form exp")
    assert (opt.antico_w, opt.antico_form, opt.antico_base) == (7, "exp", "proxyanchor")
    opt = parse("--loss antico_pair --antico_w 2")  # a weight of one's own is fixed
    assert (opt.antico_w, opt.antico_form, opt.antico_eps) == (2, "normalized", 0.5)
    assert parse("--loss antico_pair --antico_w 2 --antico_form guard").antico_form == "guard"
    assert parse("--loss antico --antico_w 2").antico_form == "exp"


def test_the_first_metric_evaluated_chooses_the_best():
    assert parse("--evaluation_metrics mAP@R").storage_metrics == ["mAP@R"]
    assert parse("--evaluation_metrics nmi e_recall@1").storage_metrics == ["e_recall@1"]
    assert parse("--evaluation_metrics mAP@R nmi --storage_metrics nmi").storage_metrics == ["nmi"]


# bad input


BAD = """
--bs 90 --samples_per_class 4 | --lr fast | --lr nan | --lr 1e305 | --bs 0 | --bs 10000000000000000000000 |
--seed 4294967296 | --seed 18446744073709551616 | --gamma 1e308 | --embed_dim 1000000000 | --kmeans_restarts 0 |
--data_sampler balanced | --los antico | --use_tv_split | --gpu 0 1 | --not_pretrained --weights x | --resume '' |
--antico_w inf | --antico_eps small | --antico_eps=-inf | --antico_eps 0 | --antico_gam1 1e29 |
--antico_form log | --antico_type all_proxy --loss antico_pair | --loss_npair_temperature 0 |
--loss_multisimilarity_beta -1 | --loss_oproxy_pos_alpha 0 | --loss_oproxy_lrmulti -1 |
--loss_arcface_margin 28.6 | --loss_margin_beta_lr -1 | --loss_nir_nf_cblocks 2.5 | --loss_nir_nf_fc_depth 0 |
--loss_nir_nf_fc_dropout 2 | --pml_lrmulti -1 | --miner_distance_lower_cutoff 1.5 |
--miner_rho_distance_lower_cutoff 1.9 | --miner_distance_upper_cutoff 2.5 | --miner_rho_distance_cp 1.5 |
--miner_semihard_margin -1 | --storage_metrics mAP@R | --no_train_metrics --no_test_metrics |
--use_float16 --amp bf16 | --loss nir_mcr2
"""


@pytest.mark.parametrize("line", [line.strip() for line in BAD.split("|")])
def test_bad_input_is_one_line_that_names_the_flag_and_status_2(line, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(line)
    text = capsys.readouterr().err
    assert stop.value.code == 2 and line.split()[0].split("=")[0] in text and text.count("\n") == 1


@pytest.mark.parametrize("line", ["--epochs 3 --n_epochs", "--batch-size=9 --bs", "--learning_rate 1 --lr"])
def test_flags_of_other_programs_are_answered_with_ours(line, capsys):
    theirs, _, ours = line.rpartition(" ")
    with pytest.raises(SystemExit):
        parse(theirs)
    assert f"did you mean {ours}?" in capsys.readouterr().err


def test_published_spellings():
    opt = parse("--optim adamW --scheduler exp")
    assert opt.optim == "adamw" and not parameters.without_effect(opt, set()) & {"tau", "gamma"}


# help


def test_help_explains_every_flag_and_says_its_defaults(capsys, monkeypatch):
    known = parameters.flags()
    assert all(action.help for action in known.values()) and len(known) > 120
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    assert "%" not in text.replace("100%", "") and "default: None" not in text
    assert "(default: 150)" in text and "(default: guard; antico: exp)" in text


def test_examples_of_the_help_parse():
    lines = parameters.EXAMPLES.replace("\\\n", " ").splitlines()
    commands = [line.split("main.py ")[1] for line in lines if "python main.py" in line]
    assert len(commands) == 5
    for command in commands:
        parse(command)


def test_flags_are_read_without_torch_or_the_losses():
    code = "import sys, parameters; parameters.parse([]); print({'torch', 'criteria'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


# what acts


@pytest.mark.parametrize(
    "line, idle",
    [
        ("--loss proxyanchor --antico_w 3", "antico_w"),
        ("--loss antico_pair --loss_nir_margin 1 --completed", "completed loss_nir_margin"),
        ("--loss nir --loss_nir_logmatch 0.7 --loss_nir_noise 0.1", "loss_nir_logmatch"),
        ("--loss margin --loss_margin_beta 1 --batch_mining all --miner_semihard_margin 1", "miner_semihard_margin"),
        ("--dataset glyphs --skip_broken --source_path DIR --cache DIR", "cache skip_broken source_path"),
        ("--evaluation_metrics mAP@R --kmeans_restarts 3", "kmeans_restarts"),
        ("--evaluation_metrics mAP@R c_nmi --kmeans_restarts 3", ""),
        ("--loss antico_pair --antico_base none --loss_ac_w_align 2", "loss_ac_w_align"),
        ("--loss antico_pair --antico_gam2 2 --antico_eps 0.1", "antico_gam2"),
        ("--loss antico --antico_w 3 --antico_gam2 2", ""),
        ("--loss antico_pair --antico_base triplet --batch_mining semihard --miner_semihard_margin 1", ""),
        ("--loss nir --loss_oproxy_lrmulti 3 --loss_oproxy_pos_alpha 3", "loss_oproxy_lrmulti"),
        ("--loss proxyanchor --loss_oproxy_mode nca --loss_oproxy_lrmulti 3", "loss_oproxy_mode"),
        ("--loss antico --loss_oproxy_mode nca", ""),
        ("--loss proxyanchor --pml_args m=1", "pml_args"),
        ("--loss npair --batch_mining all --antico_base none --pml_lrmulti 3", "antico_base batch_mining pml_lrmulti"),
        ("--tv_split_by_samples", "tv_split_by_samples"),
        ("--data_sampler random --samples_per_class 4 --scheduler none --tau 3", "samples_per_class tau"),
    ],
)
def test_flags_that_do_nothing_are_known(line, idle):
    opt = parse(line)
    assert parameters.without_effect(opt, criteria.acting_flags(opt)) & set(opt.given) == set(idle.split())


def test_every_flag_has_a_role_and_those_of_none_act_on_nothing():
    known = parameters.flags()
    assert {action.role for action in known.values()} == {"training", "evaluation", "housekeeping", "nothing"}
    idle = {name for name, action in known.items() if action.role == "nothing"}
    for line in ("--loss antico", "--loss nir", "--log_online --use_tv_split --tv_split_perc 0.5"):
        opt = parse(line)
        assert idle <= parameters.without_effect(opt, criteria.acting_flags(opt))


def test_a_new_flag_of_housekeeping_tells_no_two_runs_apart(tmp_path):
    """And --resume may change it, where it may not change what is learned."""

    def telling(known):
        return {name for name, action in known.items() if action.role == "training"}

    parser = parameters.build_parser()
    flag(add_group(parser, "mine", "housekeeping"), "colour", 3, "of the terminal")
    flag(add_group(parser, "more of mine"), "wobble", 0.5, "of the weights")
    known = parameters.flags(parser)
    assert telling(known) == telling(parameters.flags()) | {"wobble"}
    saved = {name: action.default for name, action in known.items()}
    (tmp_path / "config.json").write_text(json.dumps({"flags": saved}))
    resume = {"resume": str(tmp_path)}
    assert flags_of_run({**resume, "colour": 4, "wobble": 0.5}, known) == (saved, str(tmp_path))
    with pytest.raises(ValueError, match="--wobble"):
        flags_of_run({**resume, "wobble": 0.4}, known)
