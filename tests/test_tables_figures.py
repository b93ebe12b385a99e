"""The report's figures: that what is drawn are the numbers, and fits; and the page, which has all in one file."""

import html
import os
import re
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

import criteria
import parameters
from evaluation import pictures
from tables import figures, recipes
from tables.report import main, make_tables
from tables.rows import collect
from tests.report_runs import report, write, write_spaces
from tests.test_tables_report import cells_of

SHARE, RANK = "test/coding_rate@share", "test/effective_rank"
HEAD = "AntiCo batch_proxy over ProxyAnchor"


def made(place, *by):
    given = dict(runs=[str(place)], split="test", row="last", by=by, columns=(), tuned=False, count_collapsed=False)
    given = SimpleNamespace(**given)
    return make_tables(collect(given), given)


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
            columns = {SHARE: [0.1, 0.1, value / 2]}
            write(tmp_path / "a", loss[0], 0, [0.1, 0.1, value], *loss[1:], columns=columns)
    axes = figures.against_rate(made(tmp_path / "a")).axes
    drawn = {axis.get_title(): lines(axis) for axis in axes}
    assert drawn["Margin"] == {"base loss alone": ([pytest.approx(16)], [pytest.approx(32)]),
                               "AntiCo pair": ([pytest.approx(21)], [pytest.approx(42)]),
                               "AntiCo class_means": ([pytest.approx(26)], [pytest.approx(52)])}  # fmt: skip
    looks = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in axes]
    assert len(drawn) == 4 and all(look == looks[0] for look in looks)
    for dims in (8, 16, 32):  # of one base loss: a panel for each value of what is varied
        for loss in ("proxyanchor", "antico_batch_proxy", "antico_all_proxy", "antico_pair"):
            base = ["--antico_base", "proxyanchor"] if loss == "antico_pair" else []
            write(tmp_path / "b", loss, 0, [0.1, 0.2, 0.3], "--embed_dim", dims, *base)
    axes = figures.curves(made(tmp_path / "b")).axes
    assert [axis.get_title() for axis in axes if axis.get_visible()] == ["embed_dim 8", "embed_dim 16", "embed_dim 32"]
    assert all(len(lines(axis)) == 4 for axis in axes[:3])


def test_against_a_flag(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "multisimilarity", seed, [0.1, 0.5])
        for w in (0, 10, 100):
            write(tmp_path, "antico_pair", seed, [0.1, 0.4 + 0.001 * w + 0.01 * seed], "--antico_w", w)
    for eps in (1, 2):
        write(tmp_path, "antico_pair", 0, [0.1, 0.3], "--antico_w", 10, "--antico_eps", eps)
    axes = figures.against_flags(made(tmp_path)).axes
    drawn = {axis.get_xlabel(): lines(axis) for axis in axes}
    label = "AntiCo pair over MultiSimilarity"
    assert drawn["--antico_w"][label] == ([0, 10, 100], pytest.approx([40.5, 41.5, 50.5]))
    assert drawn["--antico_w"]["MultiSimilarity"][1] == pytest.approx([50, 50, 50])  # the base, level
    assert axes[0].get_xscale() == "symlog" and len(drawn["--antico_eps"]) == 2
    assert list(figures.sweeps(made(tmp_path, "antico_eps")[0])) == [("MultiSimilarity", "antico_eps")]
    with pytest.raises(ValueError, match="no numeric flag alone"):
        figures.against_flags(made(tmp_path / "glyphs" / "multisimilarity_s0"))


def test_what_runs_left_is_drawn(tmp_path):
    spaces = [write_spaces(write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.5]), 20, seed) for seed in (0, 1)]
    write_spaces(write(tmp_path, "multisimilarity", 0, [0.1, 0.5]), 3)  # whose proxies do not act
    shown = made(tmp_path)
    drawn = lines(figures.spectrum(shown).axes[0])
    own = [np.linalg.svd(embeddings, compute_uv=False) for embeddings, _ in spaces]
    assert drawn[HEAD] == (
        list(range(1, 65)),
        pytest.approx(np.mean([values / values.sum() for values in own], axis=0)),
    )
    (proxies,), found = lines(figures.proxies(shown).axes[0]).items(), spaces[0][1]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(found) for b in found[:i]]
    assert sorted(figures.similarities(found)) == pytest.approx(sorted(cosines))
    assert proxies[0] == HEAD and np.dot(*proxies[1]) / 100 == pytest.approx(np.mean(cosines), abs=0.03)
    titles = [axis.get_title().replace("\n", " ") for axis in figures.tsne(shown).axes]
    assert sorted(titles) == [f"{HEAD}, seed 0", "MultiSimilarity, seed 0"]


def test_a_loss_with_proxies_is_told_by_its_flags():
    """So that no checkpoint is opened in vain."""
    for name in criteria.BASES:
        flags = criteria.acting_flags(parameters.parse(["--loss", name]))
        assert any(flag.endswith("lrmulti") for flag in flags) == (name in recipes.PROXY_BASES), name


def test_what_the_runs_lack_is_said_and_what_is_damaged_named(tmp_path, capsys):
    folder, out = write(tmp_path, "proxyanchor", 0, [0.1, 0.5]), tmp_path / "t"
    write_spaces(folder, 20)
    for name in ("embeddings_test.npz", "checkpoint.pt"):
        os.truncate(f"{folder}/{name}", 500)
    assert main([folder, "--out", out]) == 0  # the tables do not need them
    text = capsys.readouterr().out
    reasons = ["t.png: no run was evaluated in three", "t_hyper.png: no numeric flag", "t_rate.png: no run measured"]
    reasons += [f"t_spectrum.png: {folder}/embeddings_test.npz: ", f"t_proxies.png: {folder}/checkpoint.pt: "]
    assert all(reason in text for reason in reasons)


def test_every_figure_fits_and_is_legible(tmp_path, monkeypatch):
    """At half size type of 9 points is 4.5; no text lies outside the figure."""
    columns = {SHARE: [0.7, 0.6, 0.3], RANK: [40.0, 30.0, 20.0]}
    for w in (1, 10, 100):
        folder = write(tmp_path, "antico_pair", 0, [0.1, 0.4, 0.5 + w / 999], "--antico_w", w, columns=columns)
        write_spaces(folder, 20)
    write_spaces(write(tmp_path, "antico", 0, [0.1, 0.4, 0.5], "--loss_ac_w_align", 0.0035), 10)
    write(tmp_path, "proxyanchor", 0, [0.1, 0.4, 0.5], "--decay", 0.5, columns=columns)
    drawn = {}
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.update({path: figure}))
    shown, none = figures.write_all(made(tmp_path), str(tmp_path / "t"))
    assert not none and len(shown) == 6 and len(drawn) == 12
    for figure in (figure for path, figure in drawn.items() if path.endswith("png")):
        FigureCanvasAgg(figure).draw()
        texts = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
        texts += [text for legend in figure.legends for text in legend.get_texts()]
        for text in filter(lambda text: text.get_text(), texts):
            box, page = text.get_window_extent(), figure.bbox
            assert text.get_fontsize() >= 9 and min(box.x0, box.y0, page.x1 - box.x1, page.y1 - box.y1) >= -1, text


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
    assert "http" not in re.sub('base64,[^"]*', "", page) and nasty not in page and html.escape(nasty) in page
    rows = [re.findall("<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall("<tr>(.*?)</tr>", page, re.DOTALL)]
    of_page = [[html.unescape(cell).replace("\n", " ") for cell in row] for row in rows if row]
    of_text = [[cell.strip("*") for cell in row] for row in cells_of(found.md) if row[0][0].isdigit()]
    assert [row[1:] for row in of_page] == of_text and len(of_text) == 3
    for cell in (cell for row in of_text for cell in row if " p " not in cell):
        assert f"& {cell} " in found.tex
    assert f"**Failed:**\n\n- {lines[0]}\n- b_s0: memory ran out" in found.md and "% Failed: b_s0: memory" in found.tex
    assert f"<li>{html.escape(lines[0])}</li>" in page and r"\textbf{+" in found.tex
