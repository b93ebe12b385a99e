"""The study's chosen flags are what its own runs say: the best on validation classes, in the files of its tables."""

import csv
from pathlib import Path

import pytest

from utilities import study
from utilities.runs import plan

RESULTS = Path(__file__).resolve().parents[1] / "criteria" / "study"


def runs(*names):
    """[(Recall@1 on validation classes, {column: text})] of all runs of these tables."""
    found = []
    for name in names:
        with open(RESULTS / f"{name}_runs.csv", encoding="utf-8", newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["metric"] == "e_recall@1"]
        assert {(line["split"], line["row"], line["seed"]) for line in lines} == {("val", "last", "0")}
        found += [(float(line["value"]), line) for line in lines]
    return found


def of(found, base, variant):
    """Those of a base alone, or of a variant on it."""
    loss = base if variant is None else f"antico_{variant}"
    return [
        (value, line) for value, line in found if line["loss"] == loss and line.get("antico_base") in (base, "", None)
    ]


def has(line, flags):
    """Whether a line of the table has these flags."""
    return all(line[name] == plan.words_of({name: value})[1] for name, value in flags.items())


@pytest.mark.parametrize("base", study.BEST)
def test_first_rates_and_flags_are_the_best(base):
    rates, flags = study.BEST[base]
    found = of(runs("tune_first"), base, None)
    assert len(found) == (10 if "all_proxy" in study.TUNED_BASES[base]["w"] else 8)
    best = {}
    for value, line in found:
        best[float(line["lr"])] = max(value, best.get(float(line["lr"]), 0))
    assert sorted(best, key=best.get, reverse=True)[:2] == rates
    assert has(max(found, key=lambda each: each[0])[1], flags)


@pytest.mark.parametrize("base", study.TUNED)
def test_tuned_bases_are_the_best_of_both(base):
    found = of(runs("tune_first", "tune_second"), base, None)
    assert has(max(found, key=lambda each: each[0])[1], study.TUNED[base])


@pytest.mark.parametrize("base, variant", study.CHOSEN)
def test_chosen_weights_are_the_best(base, variant):
    found = of(runs("tune_third"), base, variant)
    assert len(found) >= 2 and has(max(found, key=lambda each: each[0])[1], study.CHOSEN[base, variant])
    assert len(found) < len(of(runs("tune_first", "tune_second"), base, None))  # the base was tuned harder


def test_the_map_compares_what_was_tuned():
    assert {base for base, _ in study.CHOSEN} == set(study.TUNED) == set(study.BEST) == set(study.TUNED_BASES)
    assert {variant for _, variant in study.CHOSEN} == {"pair", "batch_proxy", "all_proxy", "class_means"}


def test_chosen_forms_are_the_best():
    """Each kind's own runs, told by the variant, its form, scale and the proxies' weight."""
    found = runs("tune_forms")
    assert len(found) == len([*study.tune_forms()])
    for base, kinds in study.FORMS.items():
        for (variant, flags, weight, values), (lr, w) in zip(kinds, study.FORMS_CHOSEN[base], strict=True):
            same = [
                (value, line)
                for value, line in of(found, base, variant)
                if has(line, flags) and (weight == "antico_w_proxies") == (float(line["antico_w_proxies"] or 0) > 0)
            ]
            assert len(same) == 2 * len(values)
            assert has(max(same, key=lambda each: each[0])[1], {"lr": lr, weight: w}), (base, variant, flags)


def test_a_warm_up_is_no_better_but_where_it_was_looked_at_again():
    """tune_warmup has what was chosen, with an epoch of warm-up."""
    before = {}
    for value, line in runs("tune_first", "tune_second", "tune_third"):
        key = line.get("antico_base") or line["loss"], line["loss"]
        before[key] = max(value, before.get(key, 0))
    found = runs("tune_warmup")
    assert len(found) == len([*study.tune_warmup()])
    better = [
        key for value, line in found if value > before[key := (line["antico_base"] or line["loss"], line["loss"])]
    ]
    again = [(base, f"antico_{variant[0]}" if variant else base) for base, *variant in study.WARMER]
    assert sorted(better) == sorted(again)
