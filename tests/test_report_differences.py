"""The report's differences: the paired test, its interval, and what is bold."""

import numpy as np
import pytest
from scipy import stats

from tests.report_runs import lines_of, text_of, write
from utilities.report import tables


def cells(ours, base):
    return [tables.Cell(values, float(np.mean(list(values.values()))), None) for values in (ours, base)]


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_paired_test_is_the_formula(n):
    generator = np.random.default_rng(n)
    base = generator.normal(50, 3, n)
    ours = base + generator.normal(1, 0.5, n)
    found = tables.paired(*cells(dict(enumerate(ours)), dict(enumerate(base))))
    d = ours - base
    t = d.mean() / (d.std(ddof=1) / np.sqrt(n))
    assert found.p == pytest.approx(2 * stats.t.sf(abs(t), n - 1))
    width = (found.high - found.low) / 2
    assert stats.t.cdf(width / (d.std(ddof=1) / np.sqrt(n)), n - 1) == pytest.approx(0.975)
    assert (found.low > 0 or found.high < 0) == found.significant  # the interval and the test say the same


def test_equal_differences_and_single_pairs_have_no_test(tmp_path):
    for ours, base, why in (
        ({0: 50.0}, {0: 40.0}, "1 pair"),
        ({0: 50.0, 1: 51.0}, {0: 50.0, 1: 51.0}, "all equal"),
        ({0: 0.1 + 0.2, 1: 0.7, 2: 1.1}, {0: 0.2, 1: 0.6, 2: 1.0}, "all equal"),  # 0.1 each, but for rounding
    ):
        found = tables.paired(*cells(ours, base))
        assert found.p is None and why in found.why and not found.significant and np.isfinite(found.mean)
    assert tables.paired(*cells({0: 1.0}, {1: 2.0})) is None
    for seed in (0, 1, 2):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4])
        write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.5])
    lines_of(tmp_path)
    text = text_of(tmp_path)
    assert "+10.0 (all equal: no test)" in text and "nan" not in text and "**+10" not in text


def test_one_seed_is_plain(tmp_path):
    write(tmp_path, "proxyanchor", 3, [0.1, 0.40])
    write(tmp_path, "antico_batch_proxy", 3, [0.1, 0.43])
    table = lines_of(tmp_path)["AntiCo batch_proxy over ProxyAnchor"]
    assert (table["Recall@1 std"], table["Recall@1 p"], table["Recall@1 low"]) == ("", "", "")
    assert float(table["Recall@1 difference"]) == pytest.approx(3)
    for suffix in (".md", ".tex"):
        text = text_of(tmp_path, suffix)
        assert "one seed a row: no deviation and no test. Difference: row - base. seed 3." in text and "+3.0" in text
        assert not any(word in text for word in ("±", "pm", "p =", "bold", "1 pair", "95"))


def test_bold_is_what_is_significant_in_either_direction(tmp_path):
    noise = [0.0, 0.003, -0.002]
    for seed in (0, 1, 2):
        write(tmp_path, "proxyanchor", seed, [0.1, 0.4], columns={"test/nmi": [0.1, 0.7], "test/f1": [0.1, 0.3]})
        columns = {"test/nmi": [0.1, 0.6 + noise[seed]], "test/f1": [0.1, 0.3 + noise[seed]]}
        write(tmp_path, "antico_batch_proxy", seed, [0.1, 0.5 + noise[seed]], columns=columns)
    lines_of(tmp_path)
    text = text_of(tmp_path)
    assert "**+10.0 [" in text and "**-10.0 [" in text and "| +0.0 [" in text
    assert "bold: p < 0.05" in text and "number of tests, which is 3 here" in text
    assert r"\textbf{+10.0 [" in text_of(tmp_path, ".tex")
