"""The study's chosen flags are what its own runs say: the best on validation classes, in the files of its tables."""

from pathlib import Path

import pandas
import pytest

from tables import study
from tables.runs import words_of

RESULTS = Path(study.__file__).parent / "study"


def results(*names):
    """A line a run of these tables, with its Recall@1 on validation classes, flags as text."""
    found = pandas.concat(pandas.read_csv(RESULTS / f"{name}_runs.csv", dtype=str) for name in names)
    found = found[found.metric == "e_recall@1"].fillna("").astype({"value": float})
    assert {*zip(found.split, found.row)} == {("val", "last")} and set(found.seed) <= {"0", "1", "2"}
    return found


def of(found, base, variant):
    """Those of a base alone, or of a variant on it."""
    loss = base if variant is None else f"antico_{variant}"
    losses = found.get("loss", pandas.Series(loss, found.index))  # no column where all have one
    return found[(losses == loss) & found.get("antico_base", losses).isin([base, ""])]


def having(found, flags):
    for name, value in flags.items():
        found = found[found[name] == words_of({name: value})[1]]
    return found


def best(found):
    return found[found.value == found.value.max()]


@pytest.mark.parametrize("base", study.SECOND)
def test_first_rates_and_flags_are_the_best(base):
    rates, flags, _ = study.SECOND[base]
    found = of(results("tune_first"), base, None)
    assert len(found) == (10 if base in study.OVER_PROXIES else 8)
    by_rate = found.groupby("lr").value.max().sort_values(ascending=False)
    assert [float(lr) for lr in by_rate.index[:2]] == rates and len(having(best(found), flags))


@pytest.mark.parametrize("base", study.TUNED)
def test_tuned_bases_are_the_best_of_both(base):
    assert len(having(best(of(results("tune_first", "tune_second"), base, None)), study.TUNED[base]))


@pytest.mark.parametrize("base, variant", [(base, variant) for base in study.CHOSEN for variant in study.CHOSEN[base]])
def test_chosen_weights_are_the_best(base, variant):
    found, names = of(results("tune_third"), base, variant), ("lr", "antico_w", "antico_eps")
    assert len(found) >= 2 and len(having(best(found), dict(zip(names, study.CHOSEN[base][variant]))))
    assert len(found) < len(of(results("tune_first", "tune_second"), base, None))  # the base was tuned harder


@pytest.mark.parametrize("base, variant", study.GUARDED)
def test_the_guards_rates_are_the_best(base, variant):
    """Of `pair` on emoji by three seeds, the two rates that were the best by one."""
    on_emoji = "tune_emoji_third" if variant == "pair" else "tune_emoji_second"
    for name, rates in (("tune_guard", study.GUARD_RATES), (on_emoji, study.EMOJI_RATES)):
        found = of(results(name), base, variant)
        means = found.groupby("lr").value.mean()
        assert len(means) >= 2 and len(set(found.groupby("lr").size())) == 1
        assert float(means.idxmax()) == rates[base, variant]


@pytest.mark.parametrize("base", study.EMOJI_FIXED)
def test_the_fixed_weights_on_emoji_are_the_best(base):
    found = of(results("tune_emoji_second"), base, "pair")
    found = found[found.antico_form == "normalized"]
    assert len(found) == 3 and len(having(best(found), dict(antico_w=study.EMOJI_FIXED[base][0])))


@pytest.mark.parametrize("base", study.EMOJI_TUNED)
def test_the_flags_on_emoji_are_the_best(base):
    first, second = (of(results(name), base, None) for name in ("tune_emoji_first", "tune_emoji_second"))
    flags = study.EMOJI_TUNED[base]
    assert len(first) >= 6 and len(having(best(first), {name: flags[name] for name in flags if name != "lr"}))
    assert len(second) >= 2 and len(having(best(second), flags))
