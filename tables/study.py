"""The study: when does the space collapse, and what does AntiCo do about it? Its recipes. README.md: its map.

What is tuned was tuned on validation classes (20% of the training classes) with seed 0: the base loss alone in
tune_first and tune_second, then AntiCo on the tuned base in tune_third, with fewer runs than the base had. Then the
main comparison (study), on test classes, with all training classes and five seeds.
"""

import itertools

# --- how rows are written, here and in recipes.py: a row is a dict of main.py's flags ---


def each(flag, *values):
    """A row for each value of a flag."""
    return [{flag: value} for value in values]


def product(*axes):
    """A row for each combination of these rows, the first axis slowest; of a flag the later value wins."""
    return [{name: row[name] for row in rows for name in row} for rows in itertools.product(*axes)]


def over(base, variant=None):
    """The flags of AntiCo's variant on a base loss, or of the base alone."""
    return dict(loss=f"antico_{variant}", antico_base=base) if variant else dict(loss=base)


# --- what is tried ---

OVER_PROXIES = ["proxyanchor", "proxynca", "normalized_softmax", "arcface"]
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]
# Every base alone: four or five learning rates by two values of what matters most beside it.
FIRST = {
    "proxyanchor": each("loss_oproxy_lrmulti", 3, 30),
    "proxynca": product([dict(loss_proxynca_scale=9)], each("loss_proxynca_lrmulti", 3, 30)),
    "normalized_softmax": each("loss_normalized_softmax_lrmulti", 3, 30),
    "arcface": each("loss_arcface_lrmulti", 3, 30),
    "multisimilarity": each("loss_multisimilarity_beta", 25, 50),
    "margin": each("loss_margin_beta", 0.6, 1.2),
    "contrastive": each("loss_contrastive_neg_margin", 0.5, 1),
    "pml.SupConLoss": each("pml_args", "temperature=0.05", "temperature=0.1"),
}
TUNE_FIRST = [
    row
    for base, rows in FIRST.items()
    for row in product([over(base)], each("lr", *(RATES if base in OVER_PROXIES else RATES[1:])), rows)
]

# From tune_first the two learning rates with the highest Recall@1 on validation classes and the best one's other flags;
# then the further hyperparameters that are tried at these rates, and at 1e-3, where AntiCo is tried too.
SECOND = {
    "proxyanchor": ([3e-4, 1e-4], dict(loss_oproxy_lrmulti=3), [
        *(dict(loss_oproxy_pos_alpha=a, loss_oproxy_neg_alpha=a) for a in (8, 16, 32)), dict(loss_oproxy_lrmulti=1)]),
    "proxynca": ([3e-4, 1e-3], dict(loss_proxynca_scale=9, loss_proxynca_lrmulti=30), [
        *each("loss_proxynca_scale", 1, 3, 27), dict(loss_proxynca_lrmulti=1)]),
    "normalized_softmax": ([3e-4, 1e-3], dict(loss_normalized_softmax_lrmulti=30), [
        *each("loss_normalized_softmax_temperature", 0.02, 0.1, 0.2), dict(loss_normalized_softmax_lrmulti=1)]),
    "arcface": ([1e-3, 3e-4], dict(loss_arcface_lrmulti=3), [
        *(dict(loss_arcface_margin=m, loss_arcface_scale=s) for m, s in ((0.5, 16), (0.2, 16), (0.2, 64))),
        dict(loss_arcface_lrmulti=1)]),
    "multisimilarity": ([1e-3, 3e-3], dict(loss_multisimilarity_beta=25), [
        *each("loss_multisimilarity_base", 0.3, 0.7), dict(loss_multisimilarity_alpha=10)]),
    "margin": ([3e-3, 1e-3], dict(loss_margin_beta=0.6), [
        *each("loss_margin_margin", 0.1, 0.4), dict(batch_mining="semihard")]),
    "contrastive": ([1e-3, 3e-3], dict(loss_contrastive_neg_margin=0.5), [
        *each("loss_contrastive_pos_margin", 0.1, 0.3), dict(batch_mining="distance")]),
    "pml.SupConLoss": ([1e-3, 3e-3], dict(pml_args="temperature=0.1"),
        each("pml_args", "temperature=0.02", "temperature=0.2", "temperature=0.5")),
}  # fmt: skip
TUNE_SECOND = [
    row
    for base, (rates, flags, rows) in SECOND.items()
    for row in product([over(base) | flags], each("lr", *dict.fromkeys([*rates, 1e-3])), rows)
]

# of both: the base's best flags
TUNED = {
    "proxyanchor": dict(lr=3e-4, loss_oproxy_lrmulti=3, loss_oproxy_pos_alpha=8, loss_oproxy_neg_alpha=8),
    "proxynca": dict(lr=3e-4, loss_proxynca_scale=1, loss_proxynca_lrmulti=30),
    "normalized_softmax": dict(lr=3e-4, loss_normalized_softmax_lrmulti=30, loss_normalized_softmax_temperature=0.2),
    "arcface": dict(lr=3e-4, loss_arcface_lrmulti=3, loss_arcface_margin=0.2, loss_arcface_scale=16),
    "multisimilarity": dict(lr=1e-3, loss_multisimilarity_beta=25, loss_multisimilarity_base=0.7),
    "margin": dict(lr=3e-3, loss_margin_beta=0.6),
    "contrastive": dict(lr=1e-3, loss_contrastive_neg_margin=0.5, loss_contrastive_pos_margin=0.1),
    "pml.SupConLoss": dict(lr=1e-3, pml_args="temperature=0.1"),
}  # fmt: skip
# the weights of AntiCo's term (normalized), for `pair` a finer precision, too: (w, eps); from about a tenth of what the
# base loss is in the first epoch to all of it
BIG = dict(pair=[(10, 0.5), (10, 0.005), (3, 0.005)], class_means=[30, 300], batch_proxy=[10, 100], all_proxy=[10, 100])
MIDDLE = dict(pair=[(3, 0.5), (3, 0.005), (1, 0.005)], class_means=[10, 100], batch_proxy=[1, 10], all_proxy=[1, 10])
SMALL = dict(pair=[(0.03, 0.5), (0.1, 0.5), (0.03, 0.005)], class_means=[0.1, 1])
WEIGHTS = {
    "proxyanchor": BIG, "proxynca": MIDDLE, "normalized_softmax": MIDDLE, "arcface": BIG,
    "multisimilarity": SMALL | dict(class_means=[0.3, 1]), "margin": SMALL, "contrastive": SMALL,
    "pml.SupConLoss": dict(pair=[(0.1, 0.5), (0.3, 0.5), (0.1, 0.005)], class_means=[1, 10]),
}  # fmt: skip


def tune_third():
    """The weights of AntiCo on the tuned base, over proxies at two learning rates, since it may allow a higher."""
    for base, flags in TUNED.items():
        other = [1e-3 if flags["lr"] < 1e-3 else 3e-4] if base in OVER_PROXIES else []
        for variant, weights in WEIGHTS[base].items():
            rows = each("antico_w", *weights)
            if variant == "pair":
                rows = [dict(antico_w=w, antico_eps=eps) for w, eps in weights]
            yield from product([over(base, variant) | flags], each("lr", flags["lr"], *other), rows)


# of tune_third: learning rate and weight of a variant's best run, of `pair` also the precision
CHOSEN = {
    "proxyanchor": dict(pair=(1e-3, 3, 0.005), class_means=(1e-3, 30), batch_proxy=(3e-4, 10), all_proxy=(1e-3, 100)),
    "proxynca": dict(pair=(1e-3, 1, 0.005), class_means=(1e-3, 10), batch_proxy=(3e-4, 1), all_proxy=(3e-4, 1)),
    "normalized_softmax":
        dict(pair=(1e-3, 3, 0.5), class_means=(1e-3, 100), batch_proxy=(3e-4, 1), all_proxy=(3e-4, 1)),
    "arcface": dict(pair=(1e-3, 10, 0.005), class_means=(1e-3, 30), batch_proxy=(3e-4, 100), all_proxy=(1e-3, 100)),
    "multisimilarity": dict(pair=(1e-3, 0.1, 0.5), class_means=(1e-3, 0.3)),
    "margin": dict(pair=(3e-3, 0.1, 0.5), class_means=(3e-3, 1)),
    "contrastive": dict(pair=(1e-3, 0.03, 0.005), class_means=(1e-3, 0.1)),
    "pml.SupConLoss": dict(pair=(1e-3, 0.3, 0.5), class_means=(1e-3, 1)),
}  # fmt: skip


def chosen(base, variant=None):
    """A base loss, or AntiCo's variant on it, as it was tuned."""
    own = zip(("lr", "antico_w", "antico_eps"), CHOSEN[base].get(variant, ()))
    return over(base, variant) | TUNED[base] | dict(own)


VARIANTS = (None, "pair", "class_means")  # of the smaller comparisons


def main_comparison():
    yield from map(chosen, TUNED)
    for variant in ("pair", "class_means", "batch_proxy", "all_proxy"):
        yield from (chosen(base, variant) for base in TUNED if variant in CHOSEN[base])
    yield dict(loss="antico_class_means", antico_base="none", antico_w=1, lr=1e-3)  # the term alone


def subsets():
    """Few and many classes of few and many images; as many steps as with all of them, some 300."""
    rows = [chosen(base, variant) for base in ("proxyanchor", "multisimilarity") for variant in VARIANTS]
    few = dict(train_classes=50)
    parts = [({}, 3), (dict(train_images=4), 12), (dict(train_images=2, samples_per_class=2), 24), (few, 36)]
    parts += [(few | dict(train_images=4), 144)]
    for part, epochs in parts:
        yield from product(rows, [part | dict(n_epochs=epochs, tau=2 * epochs // 3, eval_every=epochs)])


# --- the guard, which needs no weight, on letters and on emoji ---

GUARDED = [(base, variant) for variant in ("pair", "class_means") for base in ("proxyanchor", "proxynca", "arcface")]
TUNE_GUARD = [
    row for base, variant in GUARDED for row in product([over(base, variant) | TUNED[base]], each("lr", *RATES[1:]))
]
# the best rates of tune_guard
GUARD_RATES = {(base, variant): 1e-3 if base == "proxynca" else 3e-3 for base, variant in GUARDED}


def guard_rows(tuned, rates):
    """Six base losses alone, the three with proxies under both guards, the others under that of `pair`."""
    yield from (over(base) | tuned[base] for base in EMOJI_FIRST)
    yield from (over(*pair) | tuned[pair[0]] | dict(lr=rates[pair]) for pair in GUARDED)
    yield from (over(base, "pair") | tuned[base] for base in EMOJI_FIRST if base not in OVER_PROXIES)


EMOJI = dict(eval_every=6)  # a pretrained network, 234 steps: four minutes a run on one core
# tune_emoji_first, smaller and by half the steps: three learning rates by two values of what matters most beside them
HALF_EMOJI = dict(input_size=48, n_epochs=3, tau=2, eval_every=3)
PROXY_RATES, PAIR_RATES = (1e-5, 3e-5, 1e-4), (1e-4, 3e-4, 1e-3)
EMOJI_FIRST = {
    "proxyanchor": [dict(loss_oproxy_pos_alpha=a, loss_oproxy_neg_alpha=a) for a in (64, 16)],
    "proxynca": each("loss_proxynca_scale", 1, 9),
    "arcface": [dict(loss_arcface_margin=m, loss_arcface_scale=s) for m, s in ((0.5, 64), (0.2, 16))],
    "multisimilarity": [{}, dict(loss_multisimilarity_beta=25, loss_multisimilarity_base=0.7)],
    "margin": each("loss_margin_beta", 1.2, 0.6),
    "contrastive": [{}, dict(loss_contrastive_neg_margin=0.5, loss_contrastive_pos_margin=0.1)],
}
# the best flags of tune_emoji_first, with the best learning rate of tune_emoji_second
EMOJI_TUNED = {
    "proxyanchor": dict(lr=3e-5, loss_oproxy_pos_alpha=16, loss_oproxy_neg_alpha=16),
    "proxynca": dict(lr=3e-5, loss_proxynca_scale=1),
    "arcface": dict(lr=3e-5, loss_arcface_margin=0.2, loss_arcface_scale=16),
    "multisimilarity": dict(lr=3e-4, loss_multisimilarity_beta=25, loss_multisimilarity_base=0.7),
    "margin": dict(lr=3e-4, loss_margin_beta=0.6),
    "contrastive": dict(lr=3e-4),
}
EMOJI_RATES = dict.fromkeys(GUARDED, 3e-4) | {("proxyanchor", "pair"): 1e-4}  # of `pair` by tune_emoji_third
# fixed weights of `pair`: some 0.3, 1 and 3 times what the guard finds in the first epoch, and the best of these
EMOJI_WEIGHTS = {"proxyanchor": (1, 3, 10), "proxynca": (0.3, 1, 3), "arcface": (1, 3, 10)}
EMOJI_FIXED = {"proxyanchor": [3], "proxynca": [1], "arcface": [3]}


def fixed(weights):
    """`pair` on emoji with these weights, at the guard's precision and the rate that suits all three bases."""
    for base, tried in weights.items():
        flags = EMOJI_TUNED[base] | dict(lr=1e-4, antico_eps=0.005)
        yield from product([over(base, "pair") | flags], each("antico_w", *tried))


def tune_emoji_first():
    for base, rows in EMOJI_FIRST.items():
        yield from product([over(base)], each("lr", *(PROXY_RATES if base in OVER_PROXIES else PAIR_RATES)), rows)
    yield over("margin") | dict(lr=3e-5, loss_margin_beta=0.6)  # the lowest rate was its best


def tune_emoji_second():
    """In the study's form: learning rates alone and with the guard, of the proxy losses the other value, too."""
    for base, rows in EMOJI_FIRST.items():
        rates = PROXY_RATES[1:] if base in OVER_PROXIES else PAIR_RATES[:2]
        yield from product([over(base) | EMOJI_TUNED[base]], each("lr", *rates))
        yield from product([over(base)], rows if base in OVER_PROXIES else (), each("lr", rates[0]))
    for base, variant in GUARDED:
        rates = (3e-5, 1e-4, 3e-4) if variant == "pair" else (1e-4, 3e-4)
        yield from product([over(base, variant) | EMOJI_TUNED[base]], each("lr", *rates))
    yield from fixed(EMOJI_WEIGHTS)


# --- the tables ---

# letters of 16 pixels, some 300 steps: half a minute a run on one core
STUDY = dict(input_size=16, n_epochs=3, tau=2, eval_every=3)
VALIDATION = dict(use_tv_split=True, tv_split_perc=0.8, no_test_metrics=True, save_embeddings=False)
COLUMNS = "e_recall@1 mAP@R nmi coding_rate@share effective_rank"


def table(about, rows, report, seeds=5, flags=STUDY, data="glyphs"):
    report = f"{report} --count_collapsed --columns {COLUMNS}".split()
    return dict(about=about, datasets=[data], rows=[*rows], flags=flags, seeds=range(seeds), jobs=2, report=report)


def tuning(about, rows, flags=STUDY, data="glyphs", seeds=1):
    return table(f"{about}, on validation classes", rows, "", seeds, flags | VALIDATION, data)


def by_rate(tuned, rates, *more):
    rows = product([over("proxyanchor", variant) | tuned["proxyanchor"] for variant in VARIANTS], each("lr", *rates))
    return table("ProxyAnchor alone and under the guard, by the learning rate", rows, "--by lr", *more)


# ProxyAnchor alone, under the published batch_proxy and under both guards; a pair loss, which the guard leaves alone
SIX = [chosen("proxyanchor"), over("proxyanchor", "batch_proxy") | TUNED["proxyanchor"]]
SIX += [over(b, v) | TUNED[b] | dict(lr=GUARD_RATES[b, v]) for b, v in GUARDED if b == "proxyanchor"]
SIX += [over("multisimilarity", v) | TUNED["multisimilarity"] for v in (None, "pair")]
CLOSE = [over(b, v) | EMOJI_TUNED[b] | dict(lr=lr) for b, v in GUARDED[:3] for lr in (1e-4, 3e-4)]  # the best
EMOJI_ROWS = [*guard_rows(EMOJI_TUNED, EMOJI_RATES), *fixed(EMOJI_FIXED), *CLOSE[::2]]  # guard and weight at one rate
QUICKSTART = table("six losses by three seeds, no data needed: 3 to 5 minutes on two CPU cores", SIX, "--tuned", 3)
TABLES = {
    "tune_first": tuning("the study's learning rates: every base loss alone", TUNE_FIRST),
    "tune_second": tuning("the study's base losses: their other hyperparameters", TUNE_SECOND),
    "tune_third": tuning("the study's weights: AntiCo on the tuned bases", tune_third()),
    "tune_guard": tuning("the guard's learning rates on letters", TUNE_GUARD),
    "tune_emoji_first": tuning("every base loss on emoji, small", tune_emoji_first(), HALF_EMOJI, "emoji"),
    "tune_emoji_second": tuning("learning rates on emoji, alone and guarded", tune_emoji_second(), EMOJI, "emoji"),
    "tune_emoji_third": tuning("the closest of these rates by three seeds", CLOSE, EMOJI, "emoji", 3),
    "study": table("the main comparison: each base loss and each variant on it, tuned", main_comparison(), "--tuned"),
    "study_guard": table("the guard on letters", guard_rows(TUNED, GUARD_RATES), "--tuned"),
    "study_emoji": table("the guard on emoji", EMOJI_ROWS, "--tuned", 5, EMOJI, "emoji"),
    "study_rates": by_rate(TUNED, [*RATES, 3e-2], 2),
    "study_emoji_rates": by_rate(EMOJI_TUNED, [3e-5, 1e-4, 3e-4], 2, EMOJI, "emoji"),
    "study_subsets": table("few and many classes of few and many images, two base losses", subsets(), "--tuned"),
}
