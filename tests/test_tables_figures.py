"""The report's figures: that what is drawn are the numbers, and fits; and the page, which has all in one file."""

import html
import os
import re
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from tables import figures
from tables.report import main, make_tables
from tables.rows import collect
from tests.report_runs import DATA, report, write, write_spaces
from tests.test_tables_report import cells_of

SHARE = "test/coding_rate@share"
HEAD = "AntiCo batch_proxy over ProxyAnchor"


def made(place, *by):
    given = dict(runs=[str(place)], split="test", row="last", by=by, columns=(), tuned=False, count_collapsed=False)
    return make_tables(collect(SimpleNamespace(**given)), SimpleNamespace(**given))


def lines(axis):
    """{label: (x, y)} of the lines with a label."""
    found = {line.get_label(): line.get_data() for line in axis.get_lines()}
    return {label: (list(x), list(y)) for label, (x, y) in found.items() if not label.startswith("_")}


def test_curves_are_the_means_of_the_same_seeds(tmp_path):
    for seed, values in enumerate([[0.1, 0.30, 0.5], [0.2, None, 0.7]]):  # no mean of one seed between means of two
        write(tmp_path, "proxyanchor", seed, values, columns={SHARE: [0.7, 0.5, 0.3 + 0.1 * seed]})
    write(tmp_path, "multisimilarity", 0, [0.1, 0.2, 0.3], columns={SHARE: [0.7, 0.4, 0.05]})
    recall, share = figures.curves(made(tmp_path)).axes
    assert lines(recall)["ProxyAnchor"] == ([0, 2], pytest.approx([15, 60]))
    assert lines(recall)["MultiSimilarity (collapsed)"] == ([0, 1, 2], pytest.approx([10, 20, 30]))  # in no mean
    assert lines(share)["ProxyAnchor"] == ([0, 1, 2], pytest.approx([70, 50, 35]))
    bands = [{round(y, 6) for y in band.get_paths()[0].vertices[:, 1]} for band in recall.collections]
    assert {10, 20, 50, 70} in bands  # their range


def test_many_rows_have_panels_in_which_a_variant_has_one_look(tmp_path):
    for number, base in enumerate(("contrastive", "triplet", "margin", "proxyanchor")):
        for kind, value in ((None, 0.3), ("pair", 0.4), ("class_means", 0.5)):
            loss = [f"antico_{kind}", "--antico_base", base] if kind else [base]
            value += number / 100
            write(tmp_path, loss[0], 0, [0.1, value], *loss[1:], columns={SHARE: [0.1, value / 2]})
    axes = figures.against_rate(made(tmp_path)).axes
    drawn = {axis.get_title(): lines(axis) for axis in axes}
    assert drawn["Margin"] == {"base loss alone": ([pytest.approx(16)], [pytest.approx(32)]),
                               "AntiCo pair": ([pytest.approx(21)], [pytest.approx(42)]),
                               "AntiCo class_means": ([pytest.approx(26)], [pytest.approx(52)])}  # fmt: skip
    looks = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in axes]
    assert len(drawn) == 4 and all(look == looks[0] for look in looks)


def test_against_a_flag(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.5])
        for w in (0, 10, 100):
            write(tmp_path, "antico_pair", seed, [0.1, 0.4 + 0.001 * w + 0.01 * seed], "--antico_w", w)
    for eps in (1, 2):
        write(tmp_path, "antico_pair", 0, [0.1, 0.3], "--antico_w", 10, "--antico_eps", eps)
    axes = figures.against_flags(made(tmp_path)).axes
    drawn = {axis.get_xlabel(): lines(axis) for axis in axes}
    label = "AntiCo pair over ProxyAnchor, fixed weight"
    assert drawn["--antico_w"][label] == ([0, 10, 100], pytest.approx([40.5, 41.5, 50.5]))
    assert drawn["--antico_w"]["ProxyAnchor"][1] == pytest.approx([50, 50, 50])  # the base, level
    assert axes[0].get_xscale() == "symlog" and len(drawn["--antico_eps"]) == 2
    assert [axis.get_xlabel() for axis in figures.against_flags(made(tmp_path, "antico_eps")).axes] == ["--antico_eps"]
    with pytest.raises(ValueError, match="no numeric flag alone"):
        figures.against_flags(made(tmp_path / "glyphs" / "proxyanchor_s0"))


def test_what_runs_left_is_drawn(tmp_path):
    spaces = [write_spaces(write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.5]), 20, seed) for seed in (0, 1)]
    write_spaces(write(tmp_path, "multisimilarity", 0, [0.1, 0.5]), 3)  # whose proxies do not act
    shown = made(tmp_path)
    drawn = lines(figures.spectrum(shown).axes[0])
    own = [np.linalg.svd(embeddings, compute_uv=False) for embeddings, _ in spaces]
    mean = np.mean([values / values.sum() for values in own], axis=0)
    assert drawn[HEAD] == (list(range(1, 65)), pytest.approx(mean))
    (proxies,), found = lines(figures.proxies(shown).axes[0]).items(), spaces[0][1]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(found) for b in found[:i]]
    assert proxies[0] == HEAD and np.dot(*proxies[1]) / 100 == pytest.approx(np.mean(cosines), abs=0.03)
    titles = [axis.get_title().replace("\n", " ") for axis in figures.tsne(shown).axes]
    assert sorted(titles) == [f"{HEAD}, seed 0", "MultiSimilarity, seed 0"]


@pytest.mark.parametrize("wrong", [dict(dataset="folder"), dict(split="train"), dict(images=3), dict(dataset="cub200")])
def test_embeddings_of_other_images_are_refused(tmp_path, wrong):
    """As --evaluate_only may leave them in a run's folder; files of before have no names."""
    data = DATA | dict(contents="train 90 (1a), gallery 360 (2b)")
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.5], data=data)
    for names in ({}, dict(dataset="glyphs", split="test")):
        write_spaces(folder, 20, **names)
        assert figures.spectrum(made(tmp_path)) and figures.tsne(made(tmp_path))
    write_spaces(folder, 20, **dict(dataset="glyphs", split="test") | wrong)
    for draw in (figures.spectrum, figures.tsne):
        with pytest.raises(ValueError, match=f"^{re.escape(folder)}/embeddings_test.npz: holds .* glyphs test, 360"):
            draw(made(tmp_path))


@pytest.mark.filterwarnings("error")
def test_names_are_drawn_as_they_are_and_what_is_missing_without_a_warning(tmp_path):
    """Also where the user's matplotlibrc has TeX typeset everything."""
    for weights in ("a_$x^2$_%", "$", "_b"):
        for seed, last in enumerate((0.5, None)):  # measured before, and not in the last epoch
            columns = {SHARE: [0.7, 0.6, last]}
            write(tmp_path, "proxyanchor", seed, [0.1, 0.4, last], "--weights", weights, columns=columns)
    with matplotlib.rc_context({"text.usetex": True}):
        shown, none = figures.write_all(made(tmp_path), str(tmp_path / "t"))
        figure = figures.curves(made(tmp_path))
    assert len(shown) == 2 and "three rows" in none[0]
    texts = [text.get_text().replace("\\$", "$") for text in figure.legends[0].get_texts()]
    assert texts == [f"ProxyAnchor (weights {weights})" for weights in ("$", "_b", "a_$x^2$_%")]
    assert not any(text.get_usetex() for text in figure.findobj(Text))


def test_damaged_files_are_named_and_cost_only_their_figures(tmp_path, capsys):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.5])
    write_spaces(folder, 20)
    for name in ("embeddings_test.npz", "checkpoint.pt"):
        os.truncate(f"{folder}/{name}", 500)
    assert main([folder, "--out", tmp_path / "t"]) == 0 and (tmp_path / "t.md").exists()
    text = capsys.readouterr().out
    assert f"t_spectrum.png: {folder}/embeddings_test.npz: " in text
    assert f"t_proxies.png: {folder}/checkpoint.pt: " in text


def test_all_files_agree_and_the_page_is_one_file(tmp_path):
    nasty, lines = "<script>alert(1)</script>", ["a_s0: killed & <gone>", "b_s0: memory\nran out"]
    for seed in (0, 1, 2):
        folder = write(tmp_path, "proxyanchor", seed, [0.1, 0.2, 0.39 + 0.01 * seed])
        write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.2, 0.52 + 0.011 * seed], "--weights", nasty)
        write_spaces(folder, 20)
    Image.new("RGB", (40, 30), "red").save(f"{folder}/panel.png")
    found = report(tmp_path, "--html", "--tuned", "--failed", *lines)
    page = (tmp_path / "out" / "t.html").read_text()
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]*)""", page)
    assert len(addresses) == 5 and all(address.startswith("data:image/png;base64,") for address in addresses)
    assert nasty not in page and html.escape(nasty) in page and f"<li>{html.escape(lines[0])}</li>" in page
    rows = [re.findall("<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)]
    of_page = [[html.unescape(cell).replace("\n", " ") for cell in row[1:]] for row in rows if row]
    of_text = [[cell.strip("*") for cell in row] for row in cells_of(found.md) if row[0][0].isdigit()]
    assert of_page == of_text and len(of_text) == 3 and r"\textbf{+" in found.tex
    assert all(f"& {cell} " in found.tex for row in of_text for cell in row if " p " not in cell)
    assert f"**Failed:**\n\n- {lines[0]}\n- b_s0: memory ran out" in found.md and "% Failed: b_s0: memory" in found.tex
