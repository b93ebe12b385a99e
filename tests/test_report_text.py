"""The report's words: what is shown, labels, published numbers and LaTeX."""

import csv
import os
import shutil
import subprocess

import numpy as np
import pytest

import parameters
from tests.report_runs import RECIPE, lines_of, text_of, write
from utilities.report import collect, formats, rows
from utilities.report.__main__ import main

pytestmark = pytest.mark.usefixtures("no_figures")  # which have tests of their own


# --- what is shown ---


def test_collapsed_runs_are_listed_or_counted(tmp_path):
    share = {"test/coding_rate@share": [0.7, 0.05]}
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4], columns=share)
    write(tmp_path, "proxyanchor", 1, [0.1, 0.6], columns={"test/coding_rate@share": [0.7, 0.5]})
    write(tmp_path, "proxyanchor", 2, [0.1, 0.8], columns={"test/effective_rank": [40.0, 3.1]})  # 3.2 is 5% of 64
    write(tmp_path, "proxyanchor", 3, [0.1, 0.6], columns={"test/effective_rank": [1.0, 3.3]})
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], float(line["Recall@1"])) == ("2", pytest.approx(60))
    text = text_of(tmp_path)
    assert "coding rate 5.0% of its maximum, e_recall@1 0.400" in text and "effective rank 3.1 of 64" in text
    (line,) = lines_of(tmp_path, "--count_collapsed").values()
    assert line["n"] == "4" and line["coding rate n"] == "2" and "(n = 2)" in text_of(tmp_path)
    assert "2 of the 4 runs collapsed, and count" in text_of(tmp_path)


def test_housekeeping_flags_tell_no_rows_apart(tmp_path):
    flags = [(), ("--kernels", 2, "--group", "other", "--gpu", 1), ("--eval_every", 2, "--save_path", "/x"),
             ("--evaluation_metrics", "e_recall@1", "f1", "--search", "ivf", "--grad_cache", 8),
             ("--tensorboard", "--save_embeddings", "--cache", "/c", "--dataset", "glyphs2")]  # fmt: skip
    for seed, more in enumerate(flags):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4], *more, changed={"dataset": "glyphs"})
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "5" and "search differs within a row (ProxyAnchor): auto, ivf" in text_of(tmp_path)


def test_every_flag_is_training_or_housekeeping():
    opt = parameters.parse(["--loss", "proxyanchor"])
    acting = collect.acting_flags({"without_effect": {}}, {**vars(opt), "loss": "proxyanchor"})
    assert {"lr", "arch", "bs", "use_tv_split", "amp", "loss_oproxy_lrmulti"} <= set(acting)
    assert not {"seed", "kernels", "antico_w", "save_path", "loss_oproxy_mode"} & set(acting)


def test_means_percent_units_and_columns_of_what_was_measured(tmp_path):
    values = np.array([0.501, 0.532, 0.517])
    for seed, value in enumerate(values):
        more = {"test/effective_rank": [9.0, 30.123 + seed], "test/f1": [0.1, 0.3], "test/mAP_1000": [0.1, 0.25],
                "test/dists@intra": [0.5, 0.0123 + 0.001 * seed], "loss": [None, 3.0]}  # fmt: skip
        write(tmp_path, "proxyanchor", seed, [0.1, float(value)], columns=more)
    (line,) = lines_of(tmp_path).values()
    text = text_of(tmp_path)
    heading, _, row = text.splitlines()[:3]
    names = [name.strip() for name in heading.split("|")[1:-1]]
    cells = dict(zip(names, (cell.strip() for cell in row.split("|")[1:-1])))
    assert names == ["loss", "n", "Recall@1", "effective rank", "F1", "mAP_1000", "dists@intra", "seconds"]
    assert cells["Recall@1"] == f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
    assert cells["effective rank"] == "31.1 ± 1.0" and cells["dists@intra"] == "0.0133 ± 0.0010"
    assert cells["F1"] == "30.0 ± 0.0" and "Percent: Recall@1, F1, mAP_1000;" in text and "seed 0, 1, 2" in text
    assert float(line["effective rank"]) == pytest.approx(31.123)
    assert list(lines_of(tmp_path, "--columns", "mAP_1000", "Recall@1").values())[0]["mAP_1000"] == "25.0"
    assert text_of(tmp_path).splitlines()[0].split("|")[3].strip() == "mAP_1000"


def test_the_long_table_has_each_run_metric_and_flag(tmp_path):
    for seed in (0, 1):
        for w in (1, 3):
            write(tmp_path, "antico_pair", seed, [0.1, 0.1 * w + 0.0123456789 * seed], "--antico_w", w)
    table = lines_of(tmp_path)
    with open(tmp_path / "out" / "t_runs.csv", encoding="utf-8", newline="") as file:
        long = [line for line in csv.DictReader(file) if line["metric"] == "e_recall@1"]
    assert len(long) == 4 and {line["antico_w"] for line in long} == {"1", "3"}
    assert {(line["split"], line["row"], line["epoch"]) for line in long} == {("test", "last", "1")}
    for label, line in table.items():
        own = [float(entry["value"]) for entry in long if entry["label"] == label]
        assert float(line["Recall@1"]) == pytest.approx(100 * np.mean(own)) and len(own) == 2
    assert long[-1]["value"] == repr(0.1 * 3 + 0.0123456789) and os.path.isdir(long[0]["folder"])


def test_rows_last_best_test_best_val(tmp_path):
    columns = {"val/e_recall@1": [0.1, 0.2, 0.9, 0.3]}
    write(tmp_path, "proxyanchor", 0, [0.1, 0.8, 0.4, 0.6], "--use_tv_split", "--tv_split_perc", 0.5, columns=columns)
    for which, value in (("last", 60), ("best-test", 80), ("best-val", 40)):
        (line,) = lines_of(tmp_path, "--row", which).values()
        assert float(line["Recall@1"]) == pytest.approx(value)
    assert "best epoch on the validation split by e_recall@1" in text_of(tmp_path)
    (line,) = lines_of(tmp_path, "--split", "val").values()
    assert float(line["Recall@1"]) == pytest.approx(30)


def test_by_gives_flags_a_column_and_refuses_others(tmp_path, capsys):
    for w in (3, 1):
        write(tmp_path, "antico_pair", 0, [0.1, 0.1 * w], "--antico_w", w)
    write(tmp_path, "multisimilarity", 0, [0.1, 0.3])
    assert main([str(tmp_path), "--out", str(tmp_path / "out" / "t"), "--by", "antico_w"]) == 0
    with open(tmp_path / "out" / "t.csv", encoding="utf-8", newline="") as file:
        table = [(line["loss"], line["antico_w"]) for line in csv.DictReader(file)]
    head = "AntiCo pair over MultiSimilarity"
    assert table == [("MultiSimilarity", ""), (head, "1"), (head, "3")]
    capsys.readouterr()
    for name, message in (("antico_v", "did you mean antico_w?"), ("group", "tells no rows apart")):
        assert main([str(tmp_path), "--out", str(tmp_path / "t"), "--by", name]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert main([str(tmp_path), "--out", str(tmp_path / "t"), "--columns", "recall@1"]) == 2
    assert "--columns recall@1: unknown (did you mean e_recall@1?)" in capsys.readouterr().err


def flags(*argv):
    opt = parameters.parse([*RECIPE, *argv])
    return {name: value for name, value in vars(opt).items() if name not in parameters.without_effect(opt)}


@pytest.mark.parametrize("argv, label", [
    (["--loss", "antico_batch_proxy"], "AntiCo batch_proxy over ProxyAnchor"),
    (["--loss", "antico_pair", "--antico_base", "none"], "AntiCo pair without a base loss"),
    (["--loss", "antico"], "AntiCo batch_proxy over oproxy anchor, exp form, as published"),
    (["--loss", "antico", "--antico_type", "pair", "--loss_oproxy_mode", "nca"],
     "AntiCo pair over oproxy nca, exp form"),
    (["--loss", "antico_pair", "--antico_base", "pml.CircleLoss", "--antico_form", "exp"],
     "AntiCo pair over CircleLoss (pytorch-metric-learning), exp form"),
    (["--loss", "oproxy"], "oproxy nca"),
])  # fmt: skip
def test_labels_say_what_acted(argv, label):
    assert rows.head_of(flags(*argv)) == label


def test_labels_where_one_flag_at_a_time_is_varied(tmp_path):
    for flags in (["--antico_w", 10], [], ["--antico_eps", 1], ["--decay", 0.5]):
        write(tmp_path, "antico_batch_proxy", 0, [0.1, 0.4], *flags)
    head = "AntiCo batch_proxy over ProxyAnchor"
    labels = [label.removeprefix(head) for label in lines_of(tmp_path)]
    center = labels[0].strip(" ()").split(", ")
    assert sorted(center) == ["antico_eps 0.5", "antico_w 30", "decay 0.0004"]
    assert sorted(labels[1:]) == [" (antico_eps 1)", " (antico_w 10)", " (decay 0.5)"]
    assert f"brackets with one flag: all others as in {head} ({', '.join(center)})" in text_of(tmp_path)


def test_labels_show_flags_of_the_recipe_that_differ_between_losses(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    write(tmp_path, "multisimilarity", 0, [0.1, 0.4], "--lr", "1e-4")
    write(tmp_path, "antico_pair", 0, [0.1, 0.4], "--lr", "1e-3")  # another lr than its base: no difference to it
    table = lines_of(tmp_path)
    ours = "AntiCo pair over MultiSimilarity (lr 0.001)"
    assert [*table] == ["MultiSimilarity (lr 0.0001)", ours, "ProxyAnchor (lr 0.001)"]  # a base, then its variants
    assert table[ours]["base"] == ""
    assert "no difference to a base loss: no run of one with the same flags" in text_of(tmp_path)
    write(tmp_path, "antico_pair", 0, [0.1, 0.4], "--lr", "1e-4")
    lines_of(tmp_path)
    assert "no run of its base with the same flags" in text_of(tmp_path)


# --- published numbers ---


def test_published_numbers_stand_apart_and_only_where_they_belong(tmp_path):
    flags = ["--dataset", "cub200", "--arch", "resnet50_frozen_normalize_double", "--embed_dim", 512]
    data = dict(dataset="cub200", n_classes=100, n_images=5864, input_size=224)
    for seed in (0, 1):
        write(tmp_path / "a", "proxyanchor", seed, [0.1, 0.6], *flags, data=data)
    table = lines_of(tmp_path / "a")
    published = [label for label in table if "published" in label]
    assert len(published) == 1 and "authors' repository" in published[0] and table[published[0]]["n"] == ""
    assert float(table[published[0]]["Recall@1"]) == 69.9 and float(table["ProxyAnchor"]["Recall@1"]) == 60
    assert "69.9" not in text_of(tmp_path / "a", "_runs.csv")
    write(tmp_path / "b", "proxyanchor", 0, [0.1, 0.6], *flags, "--embed_dim", 128, data=data)
    write(tmp_path / "c", "multisimilarity", 0, [0.1, 0.6], *flags, data=data)
    write(tmp_path / "d", "proxyanchor", 0, [0.1, 0.6])
    for name in "bcd":
        assert not any("published" in label for label in lines_of(tmp_path / name))


# --- LaTeX ---


def test_latex_is_escaped(tmp_path):
    assert formats.tex("a_b & 50% ± {x} $ # ~ ^ \\ é") == (
        r"a\_b \& 50\% $\pm$ \{x\} \$ \# \textasciitilde{} \textasciicircum{} \textbackslash{} ?"
    )
    write(tmp_path, "multisimilarity", 0, [0.1, 0.4])
    write(tmp_path, "antico_pair", 0, [0.1, 0.4], "--antico_w", 3)
    write(tmp_path, "antico_pair", 0, [0.1, 0.4], "--antico_w", 1)
    write(tmp_path, "antico_pair", 1, [0.1], "--antico_w", 1, "--group", "50%_&", epochs=1)
    lines_of(tmp_path)
    text = text_of(tmp_path, ".tex")
    for line in text.splitlines():
        if not line.startswith("%"):
            assert not set("_%&") & set(line.replace(r"\_", "").replace(r"\%", "").replace(" & ", "")), line
    assert r"antico\_w 3" in text and text.count(r"\toprule") == 2 and "% left out: " in text


def test_what_the_queue_says_of_failed_runs_is_in_every_text(tmp_path):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    lines = ["glyphs/a_s0: killed by SIGKILL & <gone> (its output: a_s0.log)", "glyphs/b_s0: memory\nran out"]
    assert main([folder, "--out", str(tmp_path / "out" / "t"), "--html", "--failed", *lines]) == 0
    assert f"**Failed:**\n\n- {lines[0]}\n- " in text_of(tmp_path)
    assert text_of(tmp_path, ".tex").endswith(f"% failed: {lines[0]}\n% failed: glyphs/b_s0: memory ran out\n")
    assert "<li>glyphs/a_s0: killed by SIGKILL &amp; &lt;gone&gt; (its output: a_s0.log)</li>" in text_of(
        tmp_path, ".html"
    )
    lines_of(tmp_path, "--html")
    assert not any("ailed:" in text_of(tmp_path, suffix) for suffix in (".md", ".tex", ".html"))


def test_latex_is_narrow_and_compiles_with_booktabs(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4 + 0.01 * seed])
        write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.43 + 0.02 * seed])
    write(tmp_path, "antico", 1, [0.1], "--group", "ü%_\\x", epochs=1)
    lines_of(tmp_path)
    text = text_of(tmp_path, ".tex")  # p, the base and the seeds are too much for a page
    assert "same flags and seeds (0, 1):" in text and "seeds &" not in text and "p = " not in text and "[" in text
    if not shutil.which("pdflatex") or subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True).returncode:
        pytest.skip("pdflatex with booktabs is not installed")
    document = "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{t}\\end{document}"
    (tmp_path / "out" / "main.tex").write_text(document)
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"],
                          cwd=tmp_path / "out", capture_output=True, text=True, errors="replace")  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
