"""The report: its numbers by hand and as they were stored, which runs count, which make a row, and bad input."""

import html
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tables import figures
from tables.report import main
from tests.report_runs import DATA, report, write
from utilities import records

KEPT = Path(__file__).parents[1] / "tables" / "figures"
SHARE, RANK = "test/coding_rate@share", "test/effective_rank"
GOOD = {SHARE: [0.7, 0.3], RANK: [30.0, 20.0]}


@pytest.fixture(autouse=True)
def without_figures(monkeypatch):  # they have tests of their own, and take seconds
    monkeypatch.setattr(figures, "write_all", lambda tables, out: ({}, []))


def cells_of(text):
    """The rows of the tables of a Markdown text, without their first cell."""
    rows = [line.strip("| \n").split("|") for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row[1:]] for row in rows]


def test_means_and_differences_are_those_that_the_former_report_stored(tmp_path):
    """18 runs of the README's table, and its 36 means, 20 differences, 15 intervals and p, to the last digit."""
    lines = pd.read_csv(KEPT / "quickstart_runs.csv", dtype=str)
    flags = [name for name in lines if name not in ("folder", "data set", "label", "seed", "split", "row", "epoch")]
    for _, run in lines.groupby("folder", sort=False):
        given = run.iloc[0][flags].drop(["metric", "value", "loss"]).dropna()
        columns = {f"test/{name}": [0.0, 0.0, 0.0, float(value)] for name, value in zip(run["metric"], run["value"])}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        recalls = columns.pop("test/e_recall@1")
        write(tmp_path, run["loss"].iloc[0], run["seed"].iloc[0], recalls, *words, columns=columns)
    found = report(tmp_path, "--tuned", "--columns", *lines["metric"].unique())
    numbers, kept = (
        [[cell for cell in row if re.match(r"\**[-+\d]", cell)] for row in cells_of(text)]
        for text in (found.md, (KEPT / "quickstart.md").read_text())
    )
    assert sorted(numbers) == sorted(kept) and sum(map(len, kept)) == 6 * 6 + 4 * 6 and "which is 15 here" in found.md
    old, new = (set(zip(table["metric"], map(float, table["value"]))) for table in (lines, found.runs))
    assert old == new


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_paired_test_is_the_formula(tmp_path, n):
    generator = np.random.default_rng(n)
    base, ours = generator.normal(0.5, 0.03, n + 1), generator.normal(0.51, 0.03, n + 1)
    for seed in range(n + 1):  # the last seeds are not common
        write(tmp_path, "proxyanchor", seed, [0.1, base[seed]])
        write(tmp_path, "antico_batch_proxy", seed if seed < n else 9, [0.1, ours[seed]])
    line = report(tmp_path).csv.loc["AntiCo batch_proxy over ProxyAnchor"]
    d = 100 * (ours - base)[:n]
    error = d.std(ddof=1) / np.sqrt(n)
    half, p = stats.t.ppf(0.975, n - 1) * error, 2 * stats.t.sf(abs(d.mean() / error), n - 1)
    shown = [line[f"Recall@1{name}"] for name in ("", " std", " difference", " low", " high", " p")]
    mean = [100 * ours.mean(), 100 * ours.std(ddof=1)]
    assert shown == pytest.approx([*mean, d.mean(), d.mean() - half, d.mean() + half, p])


def test_equal_differences_and_one_seed_have_no_test(tmp_path):
    for seed, text in enumerate(("+10.0", "+10.0 (all equal: no test)")):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.1 * seed + 0.2])
        write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.1 * seed + 0.3])
        found = report(tmp_path)
        assert cells_of(found.md)[-1][1] == text and found.csv["Recall@1 p"].isna().all() and "nan" not in found.md


def test_units_and_digits(tmp_path):
    for seed, value in enumerate((0.501, 0.532, 0.517)):
        more = {RANK: [9.0, 30.123 + seed], "test/mAP_1000": [0.1, 0.25]}
        more["test/dists@intra"] = [0.5, 0.0123 + seed / 1000]
        write(tmp_path, "proxyanchor", seed, [0.1, value], columns=more)
    found = report(tmp_path)
    assert cells_of(found.md)[1] == ["3", "51.7 ± 1.6", "31.1 ± 1.0", "25.0 ± 0.0", "0.0133 ± 0.0010"]
    assert report(tmp_path, "--columns", "mAP_1000", "Recall@1").md.split("|")[3].strip() == "mAP_1000"
    assert "; percent: Recall@1, mAP_1000." in found.md
    assert "percent" not in report(tmp_path, "--columns", "effective_rank").md


def test_every_training_flag_makes_a_row_and_its_label(tmp_path):
    changes = [(), ("--antico_base", "multisimilarity"), ("--antico_form", "neg"), ("--antico_eps", 1),
               ("--antico_w", 3), ("--loss_oproxy_pos_alpha", 32), ("--decay", 0), ("--augmentation", "big"),
               ("--tau", 3, 5)]  # fmt: skip
    for number, change in enumerate(changes):
        for seed in (0, 1):
            value = 0.3 + number / 100
            write(tmp_path, "antico_pair", seed, [0.1, 0.2, value], "--antico_base", "proxyanchor", *change)
    write(tmp_path, "antico_pair", 0, [0.1, 0.9], "--antico_base", "proxyanchor")  # another number of epochs
    found = report(tmp_path, "--columns", "e_recall@1")
    head = "AntiCo pair over ProxyAnchor"
    assert set(found.csv.index) == {
        head, "AntiCo pair over MultiSimilarity", f"{head}, neg form", f"{head}, fixed weight", f"{head} (decay 0)",
        f"{head} (antico_eps 1)", f"{head} (loss_oproxy_pos_alpha 32)", f"{head} (augmentation big)",
        f"{head} (tau 3 5)", f"{head} (n_epochs 1)",
    }  # fmt: skip
    assert "In brackets: what differs from antico_eps 0.005, augmentation base, decay 0.0004," in found.md
    assert sorted(found.csv["n"]) == [1] + [2] * 9 and found.csv.loc[f"{head} (decay 0)", "Recall@1"] == 36


def test_numbers_in_labels_rise_and_tell_rows_apart(tmp_path):
    for w in (100, 10, 1000):
        write(tmp_path, "antico_batch_proxy", 0, [0.1, w / 2000], "--antico_w", w)
    head = "AntiCo batch_proxy over ProxyAnchor, fixed weight"
    assert list(report(tmp_path).csv.index) == [f"{head} (antico_w {w})" for w in (10, 100, 1000)]
    found = report(tmp_path, "--by", "antico_w")
    assert list(found.csv["Recall@1"]) == [0.5, 5, 50] and set(found.runs["antico_w"]) == {"10", "100", "1000"}
    assert list(found.csv.index) == [head] * 3 and list(found.csv["antico_w"]) == [10, 100, 1000]


def test_what_does_not_train_tells_no_rows_apart(tmp_path):
    every = [(), ("--kernels", 2, "--group", "other", "--gpu", 1), ("--eval_every", 2, "--save_path", "/x"),
             ("--evaluation_metrics", "e_recall@1", "f1", "--search", "torch", "--grad_cache", 8),
             ("--tensorboard", "--save_embeddings", "--cache", "/c", "--antico_w", 9)]  # fmt: skip
    for seed, flags in enumerate(every):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4], *flags)
    found = report(tmp_path)
    assert list(found.csv["n"]) == [5] and "Not the same in all runs: search." in found.md


def test_flags_that_are_new_or_gone(tmp_path):
    write(tmp_path, "antico_all_proxy", 0, [0.1, 0.4], changed={"augmentation": None})
    write(tmp_path, "antico_all_proxy", 1, [0.1, 0.6], changed={"former_flag": False})
    write(tmp_path, "proxyanchor", 0, [0.1, 0.5], changed={"antico_scale": None, "warmup": None})
    write(tmp_path, "proxyanchor", 1, [0.1, 0.5])
    assert list(report(tmp_path).csv["n"]) == [2, 2]
    write(tmp_path, "antico_all_proxy", 2, [0.1, 0.6], changed={"antico_scale": None})
    write(tmp_path, "proxyanchor", 2, [0.1, 0.5], changed={"former_flag": 3})
    assert sorted(report(tmp_path).csv["n"]) == [1, 1, 2, 2]


def test_other_data_is_another_table(tmp_path):
    part = DATA | dict(n_classes=50, contents="train 200 (1a), test 7446 (2b)")
    other_part = part | dict(n_images=201, contents="train 201 (3c), test 7446 (2b)")
    other_test = part | dict(contents="train 202 (1a), test 7000 (2b)")
    cases = [((), {}), ((), dict(data=DATA | dict(n_classes=20, n_images=300))), ((), dict(skipped_broken=["x.jpg"])),
             *((("--dataset", "folder", "--source_path", path), {}) for path in ("/a/birds", "/a/cars")),
             *((("--train_classes", 50), dict(data=data)) for data in (part, other_part, other_test)),
             (("--train_classes", 50, "--train_images", 4), dict(data=part))]  # fmt: skip
    for seed, (flags, facts) in enumerate(cases):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.1], *flags, **facts)
    found = report(tmp_path)
    sizes = {name: sorted(table["n"]) for name, table in found.csv.groupby("data set")}
    assert sorted(sizes.values()) == [[1]] * 7 + [[2]]  # training classes drawn by the seed are the same data
    assert {"folder birds", "glyphs, 50 classes x 4 images"} <= set(sizes) and "1 broken images skipped" in found.md


def test_runs_that_do_not_count_are_listed_with_what_to_do(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.5], columns=GOOD, started="2026-01-01T13:00:00+0200")
    cases = [
        (write(tmp_path, "proxyanchor", 1, [0.1], epochs=1), "unfinished, after epoch 0 of 1", "main.py --resume {}"),
        (write(tmp_path, "proxyanchor", 2, [], epochs=1), "unfinished, before its first", "main.py --resume {}"),
        (write(tmp_path, "proxyanchor", 3, [0.1, 0.9], columns={"loss": [None, float("nan")]}),
         "diverged: loss not finite", "start it anew"),
        (write(tmp_path, "proxyanchor", 4, [0.1], epochs=1), "diverged: it blew up", "start it anew"),
        (write(tmp_path, "proxyanchor", 5, [0.1, 0.9], partial="2 of 100 classes"), "partial data (2 of", "complete"),
        (write(tmp_path, "proxyanchor", 0, [0.1, 0.9], started="2026-01-01T11:30:00+0000"),
         "repeats a seed", "began first counts"),
        (write(tmp_path, "proxyanchor", 6, [0.1, 0.9], columns={SHARE: [0.7, 0.05]}), "collapsed", "--count_collapsed"),
        (write(tmp_path, "proxyanchor", 7, [0.1, 0.9], columns={RANK: [0.7, 3.1]}),  # 3.2 is 5% of 64
         "collapsed", "--count_collapsed"),
    ]  # fmt: skip
    records.write_json(os.path.join(cases[3][0], "diverged.json"), {"reason": "it blew up"})
    found = report(tmp_path, "--html")
    page = html.unescape((tmp_path / "out" / "t.html").read_text())
    for text in (found.md, found.tex, page):
        text = text.replace("`", "")
        for folder, reason, advice in cases:
            assert advice.format(folder) in text.split(f"{folder}: {reason}")[1]
    (line,) = found.csv.itertuples()
    assert (line.n, line[3], line.seeds, line[7]) == (1, 8, "0", 50) and cells_of(found.md)[1][0] == "1 of 9"


def test_collapsed_runs_that_count_are_marked_in_their_row(tmp_path):
    for seed, share in enumerate((0.05, 0.5, 0.06)):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.2 * (seed + 1)], columns={SHARE: [0.7, share]})
    found = report(tmp_path, "--count_collapsed")
    assert cells_of(found.md)[1][:2] == ["3 (2 collapsed)", "40.0 ± 20.0"]
    assert list(found.csv["n"]) == [3] and list(found.csv["collapsed"]) == [2]


def test_few_images_span_few_dimensions(tmp_path):
    """As in training: an effective rank of 3 is 5% of 60 dimensions, but more than 5% of 20 images' 20."""
    for seed, contents in enumerate(("train 400 (1a), test 20 (2b)", "train 400 (1a), query 9 (2b), gallery 20 (2b)")):
        facts = dict(data=DATA | dict(contents=contents))
        write(tmp_path, "proxyanchor", seed, [0.1, 0.5], columns={RANK: [9.0, 3.1]}, **facts)
    assert list(report(tmp_path).csv["n"]) == [1, 1]


def test_an_unfinished_or_collapsed_run_and_its_repetition(tmp_path):
    first, second = (dict(started=f"2026-01-01T1{hour}:00:00+0000") for hour in (1, 2))
    write(tmp_path, "proxyanchor", 0, [0.1], epochs=1, **first)
    write(tmp_path, "proxyanchor", 0, [0.1, 0.9], **second)
    write(tmp_path, "proxyanchor", 1, [0.1, 0.5], columns={RANK: [40.0, 1.5]}, **first)
    write(tmp_path, "proxyanchor", 1, [0.1, 0.5], columns=GOOD, **second)  # nobody picks the better one
    assert list(report(tmp_path).csv["Recall@1"]) == [90]


def test_resumed_runs_and_what_differs_in_their_starts(tmp_path):
    entry = dict(when="2026", command=["main.py"], commit="a" * 40, device="GPU", versions={"torch": "9.9"})
    for seed, more in enumerate(({}, dict(history=[entry]), dict(epochs=1))):  # --n_epochs 1 does not untrain
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4, 0.5], **more)
    found = report(tmp_path, "--html")
    assert list(found.csv["n"]) == [3] and "Not the same in all runs: commit, device, torch." in found.md


def test_which_epoch_is_shown(tmp_path):
    columns, flags = {"val/e_recall@1": [0.9, 0.2, 0.8, 0.3]}, ["--use_tv_split", "--tv_split_perc", 0.5]
    write(tmp_path, "proxyanchor", 0, [0.99, 0.8, 0.4, 0.6], *flags, columns=columns)
    for more, value in ((["last"], 60), (["best-test"], 80), (["best-val"], 40), (["last", "--split", "val"], 30)):
        assert list(report(tmp_path, "--row", *more).csv["Recall@1"]) == [value]  # epoch 0 is never the best


def test_tuned_rows_are_compared_with_the_one_row_of_their_base(tmp_path):
    for seed, base, ours in ((0, 0.50, 0.55), (1, 0.52, 0.56)):
        write(tmp_path, "proxyanchor", seed, [0.1, base], "--lr", 1e-3)
        write(tmp_path, "antico_pair", seed, [0.1, ours], "--antico_base", "proxyanchor", "--lr", 3e-3)
    row = "AntiCo pair over ProxyAnchor (lr 0.003)"
    found = report(tmp_path)
    assert np.isnan(found.csv.loc[row, "Recall@1 difference"])
    assert "--loss proxyanchor" in found.md and "--lr 0.003 --loss_oproxy_lrmulti 3" in found.md  # what would make it
    assert report(tmp_path, "--tuned").csv.loc[row, "Recall@1 difference"] == pytest.approx(4.5)
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4], "--lr", 1e-2)  # two rows of the base: neither is it
    found = report(tmp_path, "--tuned")
    assert np.isnan(found.csv.loc[row, "Recall@1 difference"]) and "no run has" not in found.md


def test_latex_is_escaped(tmp_path):
    for weights in ("/a/50%_&ü#{~^$", "b"):
        write(tmp_path, "multisimilarity", 0, [0.1, 0.4], "--weights", weights)
    assert r"(weights /a/50\%\_\&ü\#\{\textasciitilde \textasciicircum \$)" in report(tmp_path).tex


def error_of(capsys, *words):
    """The one line with which a report of bad input ends."""
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(words))
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name, text", [
    ("config.json", ""), ("config.json", "{"), ("config.json", "[]"), ("config.json", '{"flags": {}}'),
    ("metrics.csv", ""), ("metrics.csv", "a,b\n1,2\n"), ("metrics.csv", "epoch,a\n1,half\n"),
    ("metrics.csv", 'epoch,a\n1,"0.5\n'), ("metrics.csv", "epoch,a\n,0.5\n"),
])  # fmt: skip
def test_damaged_files_are_one_line(tmp_path, capsys, name, text):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    Path(folder, name).write_text(text)
    assert folder in error_of(capsys, tmp_path, "--out", tmp_path / "out" / "t") and not (tmp_path / "out").exists()


@pytest.mark.parametrize("more, message", [
    (("{runs}/none",), "none: no run there"), (("--split", "val"), "--split val: unknown; known: test"),
    (("--row", "best-val"), "_s0: val/e_recall@1: unknown"), (("--by", "antico_v"), "--by antico_v: unknown"),
    (("--columns", "recall@1"), "--columns recall@1: unknown (did you mean e_recall@1?)"),
    (("--out", "{runs}"), "is a folder"), (("--out", "{runs}/a_file/t"), "a_file/t.md: "),
])  # fmt: skip
def test_other_bad_input_is_one_line(tmp_path, capsys, more, message):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    (tmp_path / "a_file").touch()
    more = [word.replace("{runs}", str(tmp_path)) for word in more]
    assert message in error_of(capsys, "--out", tmp_path / "t", tmp_path, *more)


def test_what_is_passed_over(tmp_path):
    """A queue's logs beside its runs, links to them; and nothing that counts."""
    folder = write(tmp_path, "proxyanchor", 0, [0.1], epochs=1)
    Path(f"{folder}.log").write_text("epoch ...")
    os.symlink(folder, tmp_path / "link")
    found = report(tmp_path, "--columns", "e_recall@1", runs=[tmp_path, folder, f"{folder}.log"])
    assert list(found.csv["n"]) == [0] and found.md.count("unfinished, after epoch 0 of 1") == 1
