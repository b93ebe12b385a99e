"""The report's tables on runs with known numbers: ten ways to a wrong row."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from tests.report_runs import FACTS, edit, lines_of, text_of, write
from utilities import folders
from utilities.report import collect, tables
from utilities.report.__main__ import main

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
pytestmark = pytest.mark.usefixtures("no_figures")  # which have tests of their own


# --- ten wrong-table traps ---


def test_runs_with_mixed_weights_are_rows_of_their_own(tmp_path):
    for w, value in ((10, 0.4), (100, 0.43), (1000, 0.39)):
        for seed in (0, 1):
            write(tmp_path, "antico_batch_proxy", seed, [0.1, value + 0.01 * seed], "--antico_w", w)
    table = lines_of(tmp_path)
    head = "AntiCo batch_proxy over ProxyAnchor"
    assert list(table) == [f"{head} (antico_w {w})" for w in (10, 100, 1000)]  # not by the alphabet
    assert [float(line["Recall@1"]) for line in table.values()] == pytest.approx([40.5, 43.5, 39.5])
    assert {line["n"] for line in table.values()} == {"2"}


def test_runs_with_mixed_bases_forms_and_other_flags_are_rows_of_their_own(tmp_path):
    variants = [(), ("--antico_base", "multisimilarity"), ("--antico_form", "neg"), ("--antico_eps", 1),
                ("--loss_oproxy_pos_alpha", 32), ("--decay", 0), ("--augmentation", "big")]  # fmt: skip
    for number, variant in enumerate(variants):
        write(tmp_path, "antico_pair", 0, [0.1, 0.3 + 0.01 * number], "--antico_base", "proxyanchor", *variant)
    table = lines_of(tmp_path)
    assert len(table) == len(variants) and {line["n"] for line in table.values()} == {"1"}
    assert sorted(float(line["Recall@1"]) for line in table.values()) == pytest.approx(list(range(30, 37)))
    assert sum("over MultiSimilarity" in label for label in table) == 1
    assert sum("neg form" in label for label in table) == 1 and sum("augmentation big" in label for label in table) == 1


def test_an_unfinished_run_counts_in_no_mean(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.3, 0.5])
    killed = write(tmp_path, "proxyanchor", 1, [0.1, 0.2], epochs=2)
    never = write(tmp_path, "proxyanchor", 2, [], epochs=2)
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], line["left out"], float(line["Recall@1"]), line["Recall@1 std"]) == ("1", "2", 50, "")
    text = text_of(tmp_path)
    assert "| 1 of 3 |" in text and f"python main.py --resume {killed}" in text and "stopped after epoch 1 of 2" in text
    assert f"`{never}`: stopped before its first evaluation" in text and "±  " not in text


def test_a_run_that_trains_now_is_waited_for(tmp_path):
    folder = write(tmp_path, "proxyanchor", 1, [0.1, 0.2], epochs=2)
    code = "import sys; from utilities import folders; folders.lock(sys.argv[1]); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code, folder], cwd=HERE, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        (run,) = collect.collect([folder], "test", "last")
        assert "is training now: epoch 1 of 2" in run.reason and "--resume" not in run.advice
    finally:
        holder.communicate("\n")
    (run,) = collect.collect([folder], "test", "last")
    assert "stopped after epoch 1 of 2" in run.reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_counts_in_no_mean(tmp_path, bad):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.5])
    folder = write(tmp_path, "proxyanchor", 1, [0.1, 0.4], columns={"loss": [None, bad]})
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], float(line["Recall@1"])) == ("1", 50) and "nan" not in text_of(tmp_path)
    assert f"`{folder}`: diverged: loss is not finite in epoch 1" in text_of(tmp_path)


def test_a_run_that_its_loss_ended_is_diverged_not_unfinished(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.5, 0.6])
    folder = write(tmp_path, "proxyanchor", 1, [0.1, 0.4], epochs=2)
    folders.note_divergence(folder, "the loss is not finite, in step 9 of epoch 2")
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], line["left out"], float(line["Recall@1"])) == ("1", "1", 60)
    why = f"`{folder}`: diverged: the loss is not finite, in step 9 of epoch 2. **To do:** start it anew with"
    assert why in text_of(tmp_path) and "--resume" not in text_of(tmp_path)


def test_a_second_run_of_the_same_seed_counts_in_no_mean(tmp_path):
    first = write(tmp_path, "proxyanchor", 0, [0.1, 0.5])
    again = write(tmp_path, "proxyanchor", 0, [0.1, 0.9])
    other = write(tmp_path, "proxyanchor", 1, [0.1, 0.6])
    for folder, hour in ((first, 11), (again, 12), (other, 13)):
        edit(folder, started=f"2026-01-01T{hour}:00:00+0000")
    (line,) = lines_of(tmp_path).values()
    assert line["seeds"] == "0 1" and float(line["Recall@1"]) == pytest.approx(55)
    assert f"`{again}`: repeats seed 0 of {first}, which began first" in text_of(tmp_path)
    edit(again, started="2026-01-01T12:30:00+0200")  # half an hour before the first
    (line,) = lines_of(tmp_path).values()
    assert float(line["Recall@1"]) == pytest.approx(75)


def test_an_unfinished_run_does_not_keep_its_repetition_out(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1], epochs=1)
    write(tmp_path, "proxyanchor", 0, [0.1, 0.9])
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], line["left out"], float(line["Recall@1"])) == ("1", "1", 90)


def test_a_collapsed_first_run_is_not_replaced_by_its_repetition(tmp_path):
    for name, rank in (("a", 1.5), ("b", 30.0)):
        folder = write(tmp_path / name, "proxyanchor", 0, [0.1, 0.5], columns={"test/effective_rank": [40.0, rank]})
        edit(folder, started=f"2026-01-01T{11 + (name == 'b')}:00:00+0000")
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "0" and text_of(tmp_path).count("**To do:**") == 2


def test_a_flag_that_an_old_run_lacks_counts_as_its_default(tmp_path):
    old = {"antico_scale": None, "tf32": None, "grad_cache": None, "compile": None, "gpu_augment": None}
    write(tmp_path, "antico_pair", 0, [0.1, 0.4], changed=old)
    write(tmp_path, "antico_pair", 1, [0.1, 0.6])
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "2" and line["loss"] == "AntiCo pair over MultiSimilarity"
    write(tmp_path, "antico_pair", 2, [0.1, 0.9], "--antico_scale", "mcr2")
    table = lines_of(tmp_path)
    assert [line["n"] for line in table.values()] == ["2", "1"] and list(table)[1].endswith(", mcr2 scale")


def test_a_default_that_depends_on_the_loss_is_that_of_the_loss(tmp_path):
    write(tmp_path, "antico_all_proxy", 0, [0.1, 0.4], changed={"antico_w": None})  # 100 there, 1 for antico
    write(tmp_path, "antico_all_proxy", 1, [0.1, 0.6], "--antico_w", 100)
    assert len(lines_of(tmp_path)) == 1


def test_a_removed_flag_with_a_value_of_its_own_is_another_row(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4], changed={"former_flag": 3})
    write(tmp_path, "proxyanchor", 1, [0.1, 0.6])
    assert len(lines_of(tmp_path)) == 2


def test_differences_are_of_common_seeds_alone(tmp_path):
    base, ours = {0: 0.50, 1: 0.52, 2: 0.49, 3: 0.20}, {0: 0.53, 1: 0.54, 2: 0.53, 4: 0.95}
    for seed, value in base.items():
        write(tmp_path, "proxyanchor", seed, [0.1, value])
    for seed, value in ours.items():
        write(tmp_path, "antico_batch_proxy", seed, [0.1, value])
    line = lines_of(tmp_path)["AntiCo batch_proxy over ProxyAnchor"]
    pairs = 100 * np.array([[ours[seed], base[seed]] for seed in (0, 1, 2)])
    difference = pairs[:, 0] - pairs[:, 1]
    expected = stats.ttest_1samp(difference, 0)
    interval = expected.confidence_interval(0.95)
    assert float(line["Recall@1"]) == pytest.approx(100 * np.mean(list(ours.values())))
    assert float(line["Recall@1 std"]) == pytest.approx(100 * np.std(list(ours.values()), ddof=1))
    shown = [float(line[f"Recall@1 {name}"]) for name in ("difference", "low", "high", "p")]
    assert shown == pytest.approx([difference.mean(), interval.low, interval.high, expected.pvalue])
    text = text_of(tmp_path)
    assert "| 0, 1, 2 " in text and "seeds differ: ProxyAnchor: 0, 1, 2, 3; AntiCo" in text


def test_tuned_rows_have_the_one_row_of_their_base(tmp_path):
    for seed, base, ours in ((0, 0.50, 0.55), (1, 0.52, 0.56)):
        write(tmp_path / "a", "proxyanchor", seed, [0.1, base], "--lr", 1e-3)
        write(tmp_path / "a", "antico_pair", seed, [0.1, ours], "--antico_base", "proxyanchor", "--lr", 3e-3)
        write(tmp_path / "a", "multisimilarity", seed, [0.1, 0.9])
    label = next(label for label in lines_of(tmp_path / "a") if label.startswith("AntiCo"))
    assert lines_of(tmp_path / "a")[label]["Recall@1 difference"] == ""
    line = lines_of(tmp_path / "a", "--tuned")[label]
    assert float(line["Recall@1 difference"]) == pytest.approx(4.5)
    assert "flags of its own, tuned for it" in text_of(tmp_path / "a") and "lr 0.001" in text_of(tmp_path / "a")
    write(tmp_path / "a", "proxyanchor", 0, [0.1, 0.4], "--lr", 1e-2)  # two rows of the base: neither is it
    assert lines_of(tmp_path / "a", "--tuned")[label]["Recall@1 difference"] == ""


def test_classes_drawn_by_seed_are_one_table(tmp_path):
    for seed, images in ((0, 790), (1, 803)):
        facts = dict(data=FACTS | dict(n_classes=50, n_images=images))
        write(tmp_path, "proxyanchor", seed, [0.1, 0.5], "--train_classes", 50, **facts)
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "2" and "(50 training classes)" in text_of(tmp_path)


def test_parts_of_the_classes_and_other_test_images_are_tables_of_their_own(tmp_path):
    def run(seed, contents, *more):
        facts = FACTS | dict(n_classes=50, n_images=200 + seed, contents=contents)
        write(tmp_path, "proxyanchor", seed, [0.1, 0.5], "--train_classes", 50, *more, data=facts)

    run(0, "train 200 (1a), test 7446 (2b)")
    run(1, "train 201 (3c), test 7446 (2b)")
    run(2, "train 202 (1a), test 7000 (2b)")  # other images are tested
    run(3, "train 203 (4d), test 7446 (2b)", "--train_images", 4)
    lines_of(tmp_path)
    runs = collect.collect([str(tmp_path)], "test", "last")
    sizes = [[run.seed for row in table.rows for run in row.runs] for table in tables.make_tables(runs, "test")]
    assert sorted(sizes) == [[0, 1], [2], [3]]
    with open(tmp_path / "out" / "t_runs.csv", encoding="utf-8", newline="") as file:
        named = {line["seed"]: line["data set"] for line in csv.DictReader(file)}
    assert named["0"] == named["1"] and len(set(named.values())) == 3 and named["3"] == "glyphs, 50 classes x 4 images"
    assert "(50 training classes, at most 4 images each)" in text_of(tmp_path)


def test_other_data_is_another_table(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    write(
        tmp_path, "proxyanchor", 1, [0.1, 0.5], data=dict(dataset="glyphs", n_classes=20, n_images=300, input_size=32)
    )
    write(tmp_path, "proxyanchor", 2, [0.1, 0.6], "--dataset", "folder", "--source_path", "/a/birds")
    write(tmp_path, "proxyanchor", 3, [0.1, 0.7], "--dataset", "folder", "--source_path", "/a/cars")
    write(tmp_path, "proxyanchor", 4, [0.1, 0.8], skipped_broken=["x.jpg"])
    assert main([str(tmp_path), "--out", str(tmp_path / "out" / "t")]) == 0
    with open(tmp_path / "out" / "t.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    values = [(line["n"], float(line["Recall@1"])) for line in lines]
    assert len({line["data set"] for line in lines}) == 5
    assert sorted(values) == [("1", pytest.approx(value)) for value in (40, 50, 60, 70, 80)]
    text = text_of(tmp_path)
    assert text.count("## ") == 5 and "1 broken images skipped" in text and "## folder birds" in text


def test_partial_data_counts_in_no_mean(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    write(tmp_path, "proxyanchor", 1, [0.1, 0.8], partial="train: found 2 classes, expected 100")
    (line,) = lines_of(tmp_path).values()
    assert (line["n"], line["left out"]) == ("1", "1")
    assert "partial data (train: found 2 classes, expected 100)" in text_of(tmp_path)


def test_other_epochs_are_another_row(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4])
    write(tmp_path, "proxyanchor", 1, [0.1, 0.4, 0.8])
    assert list(lines_of(tmp_path)) == ["ProxyAnchor (n_epochs 1)", "ProxyAnchor (n_epochs 2)"]


def test_a_resumed_run_is_of_its_last_flags_and_its_starts_are_said(tmp_path):
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4, 0.5])
    longer = write(tmp_path, "proxyanchor", 1, [0.1, 0.4, 0.7])  # began with --n_epochs 1
    entry = dict(when="2026-01-02T00:00:00+0000", from_epoch=1, from_step=0, changed={"n_epochs": [1, 2]},
                 command=["main.py"], commit="a" * 40, versions={"torch": "9.9"})  # fmt: skip
    edit(longer, history=[entry])
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "2" and float(line["Recall@1"]) == pytest.approx(60)
    text = text_of(tmp_path)
    assert "commit differs within a row (ProxyAnchor): " in text and "aaaaaaaa" in text and "version of torch" in text
    shorter = write(tmp_path, "proxyanchor", 2, [0.1, 0.4, 0.9], epochs=1)  # --resume --n_epochs 1 does not untrain
    (line,) = lines_of(tmp_path).values()
    assert line["n"] == "3" and shorter not in text_of(tmp_path)
    beyond = write(tmp_path, "proxyanchor", 3, [0.1, 0.4, 0.9], epochs=9)  # goes on to 9 and was killed
    assert "9" in list(lines_of(tmp_path))[1] and f"--resume {beyond}" in text_of(tmp_path)
