"""The report's figures: that what is drawn are the numbers, that it fits, and which figures are made when."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

import criteria
import parameters
from tests.report_runs import write, write_spaces
from utilities.recipes import PROXY_BASES
from utilities.report import collect, figures, spaces, style, tables
from utilities.report.__main__ import main

SHARE = "test/coding_rate@share"


@pytest.fixture(autouse=True)
def closed():
    yield
    style.plt.close("all")


def made(place, *more):
    runs = collect.collect([str(place)], "test", "last")
    return tables.make_tables(runs, "test", *more)


def lines(axis):
    """{label: (x, y)} of the lines with a label."""
    found = {line.get_label(): line.get_data() for line in axis.get_lines()}
    return {label: (list(x), list(y)) for label, (x, y) in found.items() if not label.startswith("_")}


def test_curves_are_the_means_of_the_same_seeds(tmp_path):
    recalls = [[0.1, 0.30, 0.5], [0.2, 0.40, 0.7]]
    for seed, values in enumerate(recalls):
        # the second run did not evaluate epoch 1: no mean of one seed between means of two
        values = values if seed == 0 else [values[0], None, values[2]]
        write(tmp_path, "proxyanchor", seed, values, columns={SHARE: [0.7, 0.5, 0.3 + 0.1 * seed]})
    write(tmp_path, "multisimilarity", 0, [0.1, 0.2, 0.3], columns={SHARE: [0.7, 0.4, 0.05]})
    figure = figures.curves(made(tmp_path), "test")
    recall, share = figure.axes
    drawn = lines(recall)
    assert drawn["ProxyAnchor"] == ([0, 2], pytest.approx([15, 60]))
    assert drawn["MultiSimilarity (collapsed)"] == ([0, 1, 2], pytest.approx([10, 20, 30]))  # in no mean, in sight
    assert lines(share)["ProxyAnchor"][1] == pytest.approx([70, 50, 35])
    (band,) = recall.collections
    y = band.get_paths()[0].vertices[:, 1]
    assert {round(v, 6) for v in y} == {10, 20, 50, 70}


def test_many_rows_with_one_flag_varied_at_a_time_are_parted_by_flag(tmp_path):
    """Each panel has the row in the center; another form is a name, and in a panel of names."""
    changes = [[], *(["--antico_w", w] for w in (3, 10, 100)), *(["--bs", n] for n in (48, 64)),
               *(["--antico_eps", e] for e in (0.1, 2)), ["--antico_form", "neg"]]  # fmt: skip
    for number, change in enumerate(changes):
        write(tmp_path, "antico_batch_proxy", 0, [0.1, 0.3 + number / 100], *change)
    figure = figures.curves(made(tmp_path), "test")
    drawn = {axis.get_title(): {k: round(float(y[-1]), 6) for k, (_, y) in lines(axis).items()} for axis in figure.axes}
    bs = next(title for title in drawn["bs"] if title not in ("bs 48", "bs 64"))
    assert drawn == {
        "antico_w": {"antico_w 30": 30, "antico_w 3": 31, "antico_w 10": 32, "antico_w 100": 33},
        "bs": {bs: 30, "bs 48": 34, "bs 64": 35},
        "antico_eps": {"antico_eps 0.5": 30, "antico_eps 0.1": 36, "antico_eps 2": 37},
        "loss": {"AntiCo batch_proxy over ProxyAnchor": 30, "AntiCo batch_proxy over ProxyAnchor, neg form": 38},
    }
    # two rows of one name keep what tells them apart, and a collapsed run says so there too
    write(tmp_path, "antico_batch_proxy", 0, [0.1, 0.5], "--antico_form", "neg", "--antico_w", 3)
    write(tmp_path, "antico_batch_proxy", 0, [0.1, 0.6], "--antico_form", "exp", columns={SHARE: [0.7, 0.01]})
    panels = dict(spaces.parts_of(made(tmp_path)[0]))
    labels = [label for _, label, _ in panels["loss"]]
    assert len({number for number, _, _ in panels["loss"]}) == len(set(labels)) == 4
    assert any("exp form" in label and label.endswith(" (collapsed)") for label in labels)
    assert sum("neg form (" in label for label in labels) == 2


def test_many_rows_of_losses_with_values_of_their_own_are_parted_by_loss(tmp_path):
    for loss, weights in (("antico_pair", (0.1, 1, 0)), ("antico_all_proxy", (10, 30, 100, 300, 1000, 0))):
        for number, w in enumerate(weights):
            write(tmp_path, loss, 0, [0.1, 0.3 + number / 100], "--antico_w", w, "--antico_base", "oproxy")
    figure = figures.curves(made(tmp_path), "test")
    drawn = {axis.get_title(): sorted(lines(axis)) for axis in figure.axes}
    assert sorted(map(len, drawn.values())) == [3, 6] and "AntiCo pair over oproxy nca" in drawn
    colors = {}
    for axis in figure.axes:
        for line in axis.get_lines():
            colors.setdefault(line.get_label(), set()).add((line.get_color(), line.get_marker()))
    assert len(colors) == 8 and all(len(looks) == 1 for looks in colors.values())  # antico_w 0 looks alike in both


def test_a_difference_of_a_rounding_is_not_drawn_as_a_trend(tmp_path):
    for seed, share in enumerate((0.0707, 0.0709)):
        write(tmp_path, "proxyanchor", seed, [0.3, 0.3001], columns={SHARE: [0.0708, share]})
    shown = made(tmp_path)
    curves, rate = figures.curves(shown, "test").axes[0], figures.against_rate(shown, "test").axes[0]
    for (low, high), value in ((curves.get_ylim(), 30), (rate.get_ylim(), 30), (rate.get_xlim(), 7.08)):
        assert high - low > 0.999 and low < value < high


def test_every_loss_with_proxies_is_looked_into():
    """Told by its flags alone, without torch."""
    for name in criteria.BASES:
        opt = parameters.parse(["--loss", name])
        learned = criteria.acting_flags(opt)
        with_proxies = name in PROXY_BASES
        assert spaces.has_proxies(learned) == with_proxies, name


def test_many_rows_are_parted_by_what_is_varied_and_a_loss_has_one_look(tmp_path):
    for dims in (8, 16, 32):
        for loss in ("proxyanchor", "antico_batch_proxy", "antico_all_proxy"):
            folder = write(tmp_path, loss, 0, [0.1, 0.3 + dims / 100], "--embed_dim", dims)
            write_spaces(folder, 5, dims=dims)
    shown = made(tmp_path)
    figure = figures.curves(shown, "test")
    assert [axis.get_title() for axis in figure.axes] == ["embed_dim 8", "embed_dim 16", "embed_dim 32"]
    for axis, dims in zip(figure.axes, (8, 16, 32)):
        assert lines(axis)["ProxyAnchor"] == ([0, 1], pytest.approx([10, 30 + dims])) and len(lines(axis)) == 3
    looks = [[(line.get_label(), line.get_color()) for line in axis.get_lines()] for axis in figure.axes]
    assert looks[0] == looks[1] == looks[2] and len(set(looks[0])) == 3
    spectrum = spaces.spectrum(shown, "test")
    spectra = spectrum.axes[:3]
    assert [len(lines(axis)["ProxyAnchor"][0]) for axis in spectra] == [8, 16, 32]
    assert spectra[1].get_title() == "glyphs, embeddings_test.npz\nembed_dim 16"
    for figure in (spectrum, spaces.proxies(shown)):
        FigureCanvasAgg(figure).draw()
        left, right = (axis.title.get_window_extent() for axis in figure.axes[:2])
        assert len(figure.axes) == 4 and 0 < left.x0 and left.x1 < right.x0 and right.x1 < figure.bbox.x1
    (by,) = made(tmp_path, ["embed_dim"])  # the flag has a column of its own: figures need it all the same
    assert {row.label for row in by.rows} == {row.head for row in by.rows}
    assert len({label for _, label, _ in spaces.lines_of(by)}) == 9


def test_many_base_losses_have_a_panel_each_and_a_variant_one_look(tmp_path):
    names, recall = dict(contrastive="Contrastive", triplet="Triplet", margin="Margin", proxyanchor="ProxyAnchor"), {}
    for number, (base, title) in enumerate(names.items()):
        for kind, value in (("base loss alone", 0.3), ("AntiCo pair", 0.4), ("AntiCo class_means", 0.5)):
            value += number / 100
            loss = [base] if kind == "base loss alone" else [f"antico_{kind.split()[1]}", "--antico_base", base]
            columns = {"test/coding_rate@share": [0.1, value / 2]}
            write(tmp_path, loss[0], 0, [0.1, value], *loss[1:], columns=columns)
            recall.setdefault(title, {})[kind] = [pytest.approx(50 * value)], [pytest.approx(100 * value)]
    rate = figures.against_rate(made(tmp_path), "test")
    drawn = {axis.get_title(): axis for axis in rate.axes[:4]}
    assert {title: lines(axis) for title, axis in drawn.items()} == recall
    looks = [{line.get_label(): line.get_color() for line in axis.get_lines()} for axis in drawn.values()]
    assert looks[0] == looks[1] == looks[2] == looks[3] and len(set(looks[0].values())) == 3
    # a second row of one loss and variant would look like the first: then all are in one panel
    write(tmp_path, "antico_pair", 0, [0.1, 0.2], "--antico_base", "margin", "--antico_w", 9)
    assert [title for title, _ in spaces.parts_of(made(tmp_path)[0])] == [""]


def test_singular_values_are_those_of_the_file(tmp_path):
    for seed in (0, 1):
        rows, _, _ = write_spaces(write(tmp_path, "proxyanchor", seed, [0.1, 0.5]), 20, seed)
    write_spaces(write(tmp_path, "multisimilarity", 0, [0.1, 0.5]), 3)
    figure = spaces.spectrum(made(tmp_path), "test")
    (axis,) = figure.axes
    # independent: of the Gram matrix's eigenvalues
    with np.load(next((tmp_path / "glyphs").glob("*proxyanchor_s1")) / "embeddings_test.npz") as file:
        gram = file["embeddings"].astype(np.float64).T @ file["embeddings"].astype(np.float64)
    expected = np.sqrt(np.linalg.eigvalsh(gram)[::-1])
    own = spaces.singular_values(rows.astype(np.float32).astype(np.float64))
    assert own == pytest.approx(expected / expected.sum(), rel=1e-5)
    shown = lines(axis)
    assert list(shown["ProxyAnchor"][0]) == list(range(1, 65)) and sum(shown["ProxyAnchor"][1]) == pytest.approx(1)
    assert shown["MultiSimilarity"][1][10] < 0.3 * shown["ProxyAnchor"][1][10]  # the collapse is what one sees


def test_proxy_similarity_is_the_distribution_of_cosines(tmp_path):
    _, _, proxies = write_spaces(write(tmp_path, "antico_batch_proxy", 0, [0.1, 0.5]), 20)
    write_spaces(write(tmp_path, "multisimilarity", 0, [0.1, 0.5]), 20)  # has none that act
    cosines = spaces.similarities(proxies)
    by_hand = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for i, a in enumerate(proxies) for b in proxies[:i]]
    assert sorted(cosines) == pytest.approx(sorted(by_hand))
    figure = spaces.proxies(made(tmp_path))
    shown = lines(figure.axes[0])
    assert list(shown) == ["AntiCo batch_proxy over ProxyAnchor"]
    x, y = map(np.array, next(iter(shown.values())))
    assert y.sum() == pytest.approx(100) and (x * y).sum() / 100 == pytest.approx(np.mean(by_hand), abs=0.03)


def test_tsne_shows_the_same_classes_of_each_loss(tmp_path):
    for loss, rank in (("proxyanchor", 5), ("multisimilarity", 30)):
        write_spaces(write(tmp_path, loss, 0, [0.1, 0.5]), rank)
    figure = spaces.tsne(made(tmp_path), "test")
    shown = [axis for axis in figure.axes if axis.get_visible()]
    assert [len(axis.get_lines()) for axis in shown] == [spaces.CLASSES] * 2
    assert all(len(line.get_xdata()) == 12 for axis in shown for line in axis.get_lines())
    again = spaces.tsne(made(tmp_path), "test")
    assert np.array_equal(shown[0].get_lines()[0].get_xdata(), again.axes[0].get_lines()[0].get_xdata())
    collapsed, labels = spaces.flat(np.ones((40, 8)), np.repeat(np.arange(4), 10))
    assert collapsed.shape == (40, 2) and len(labels) == 40


def test_a_hyperparameter_and_the_rate(tmp_path):
    for seed in (0, 1):
        write(tmp_path, "multisimilarity", seed, [0.1, 0.5], columns={SHARE: [0.7, 0.3]})
        for w in (1, 10, 100):
            value = 0.4 + 0.001 * w + 0.01 * seed
            write(tmp_path, "antico_pair", seed, [0.1, value], "--antico_w", w, columns={SHARE: [0.7, w / 200 + 0.2]})
    drawn = figures.draw_all(made(tmp_path), "test")
    (axis,) = drawn["_hyper"].axes
    shown = lines(axis)
    assert shown["AntiCo pair over MultiSimilarity"] == ([1, 10, 100], pytest.approx([40.6, 41.5, 50.5]))
    assert shown["MultiSimilarity"][1] == pytest.approx([50, 50])  # the base, level
    assert axis.get_xscale() == "log" and axis.get_xlabel() == "--antico_w"
    (axis,) = drawn["_rate"].axes
    assert lines(axis)["AntiCo pair over MultiSimilarity (antico_w 100)"] == (
        pytest.approx([70, 70]), pytest.approx([50, 51]))  # fmt: skip
    write(tmp_path, "antico_pair", 0, [0.1, 0.5], "--antico_w", 10, "--antico_eps", 1)
    figure = figures.against_hyperparameter(made(tmp_path), "test")  # one at a time: a panel each
    assert {axis.get_xlabel(): lines(axis)["AntiCo pair over MultiSimilarity"][0] for axis in figure.axes} == {
        "--antico_w": [1, 10, 100], "--antico_eps": [0.5, 1]}  # fmt: skip
    write(tmp_path, "antico_pair", 0, [0.1, 0.5], "--antico_w", 1, "--antico_eps", 2)
    assert "no numeric flag alone" in figures.against_hyperparameter(made(tmp_path), "test")
    for seed in (0, 1):  # a weight of 0 has a place on a logarithmic axis too
        write(tmp_path / "b", "antico_pair", seed, [0.1, 0.5], "--antico_w", 0)
        write(tmp_path / "b", "antico_pair", seed, [0.1, 0.5], "--antico_w", 1)
        write(tmp_path / "b", "antico_pair", seed, [0.1, 0.5], "--antico_w", 100)
    (axis,) = figures.against_hyperparameter(made(tmp_path / "b"), "test").axes
    assert axis.get_xscale() == "symlog"


def test_what_the_runs_lack_is_said_and_what_is_damaged_named(tmp_path, capsys):
    folder = write(tmp_path, "proxyanchor", 0, [0.1, 0.5])
    out = str(tmp_path / "t")
    assert main([folder, "--out", out]) == 0
    text = capsys.readouterr().out
    for line in (f"no {out}_spectrum.png: no run left embeddings_test.npz (--save_embeddings)",
                 f"no {out}_proxies.png: no run's checkpoint.pt has proxies", f"no {out}_hyper.png: ",
                 f"no {out}_rate.png: no run measured coding_rate@share"):  # fmt: skip
        assert line in text
    write_spaces(folder, 20)
    assert main([folder, "--out", out]) == 0
    assert ", _tsne.pdf" in capsys.readouterr().out and (tmp_path / "t_proxies.png").exists()
    for name in ("embeddings_test.npz", "checkpoint.pt"):
        with open(f"{folder}/{name}", "r+b") as file:
            file.truncate(500)
    assert main([folder, "--out", out]) == 0  # the tables do not need them
    text = capsys.readouterr().out
    assert f"no {out}_spectrum.png: {folder}/embeddings_test.npz: damaged" in text
    assert f"no {out}_proxies.png: {folder}/checkpoint.pt: not a checkpoint" in text
    assert text.count("is of a former report") == 3  # so that nobody takes it for this one's


def test_embeddings_are_checked(tmp_path):
    for number, arrays in enumerate((dict(embeddings=np.full((3, 2), np.nan), labels=np.zeros(3)),
                                     dict(embeddings=np.zeros((3, 2)), labels=np.zeros(2)),
                                     dict(embeddings=np.zeros(3), labels=np.zeros(3)), dict(labels=np.zeros(3)),
                                     dict(embeddings=np.array([[{}]]), labels=np.zeros(1)))):  # fmt: skip
        place = tmp_path / str(number)
        place.mkdir()
        np.savez(place / "embeddings_test.npz", **arrays)
        with pytest.raises(spaces.Unreadable, match="embeddings_test.npz: damaged"):
            spaces.load_embeddings(str(place), "test")


def test_every_figure_fits_and_is_legible(tmp_path):
    """At half size type of 9 points is 4.5; nothing lies outside the figure, no two tick labels over each other."""
    for seed in (0, 1):
        for w in (1, 3, 10, 30, 100):
            folder = write(tmp_path, "antico_pair", seed, [0.1, 0.4, 0.5 + w / 1000], "--antico_w", w,
                           columns={SHARE: [0.7, 0.6, 0.3], "test/effective_rank": [40.0, 30.0, 20.0]})  # fmt: skip
            write_spaces(folder, 20, seed)
        write_spaces(write(tmp_path, "antico", seed, [0.1, 0.4, 0.5], "--loss_ac_w_align", 0.0035), 10)
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4, 0.5], "--decay", 0.5)
    for suffix, figure in figures.draw_all(made(tmp_path), "test").items():
        assert not isinstance(figure, str), (suffix, figure)
        drawn = style.finish(figure)
        assert drawn["png"][:4] == b"\x89PNG" and drawn["pdf"][:4] == b"%PDF" and len(drawn["png"]) < 600_000
        canvas, page = FigureCanvasAgg(figure), figure.bbox
        canvas.draw()
        renderer = canvas.get_renderer()
        for text in texts(figure):
            box = text.get_window_extent(renderer)
            assert text.get_fontsize() >= 9, (suffix, text)
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= page.x1 + 1 and box.y1 <= page.y1 + 1, (suffix, text)
        for axis in figure.axes:
            ticks = [t.get_window_extent(renderer) for t in axis.get_xticklabels() if t.get_text()]
            inside = [b for b in ticks if axis.bbox.x0 - 2 <= (b.x0 + b.x1) / 2 <= axis.bbox.x1 + 2]
            assert all(a.x1 < b.x0 for a, b in zip(inside, inside[1:])), suffix


def texts(figure):
    """Titles, names of the axes and the legend."""
    found = [text for axis in figure.axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label)]
    return [text for text in found + [t for legend in figure.legends for t in legend.get_texts()] if text.get_text()]


def test_no_two_rows_look_alike():
    looks = {(look["color"], str(look["linestyle"]), look["marker"]) for look in map(style.look, range(35))}
    assert len(looks) == 35
