"""The study: when does the space collapse, and what does AntiCo do about it? Its recipes. README.md: its map.

What is tuned was tuned on validation classes (20% of the training classes) with seed 0: the base loss alone in
tune_first and tune_second, then AntiCo on the tuned base in tune_third, with fewer runs than the base had. Then the
main comparison (study), on test classes, with all training classes and five seeds.
"""

import itertools

# letters of 16 pixels, some 300 steps: half a minute a run on one core
STUDY = dict(input_size=16, n_epochs=3, tau=2, eval_every=3)
COLUMNS = ["e_recall@1", "mAP@R", "nmi", "coding_rate@share", "effective_rank"]
VALIDATION = dict(use_tv_split=True, tv_split_perc=0.8, no_test_metrics=True, save_embeddings=False)


def supcon(temperature):
    return dict(pml_args=f"temperature={temperature:g}")


def both_alphas(alpha):
    return dict(loss_oproxy_pos_alpha=alpha, loss_oproxy_neg_alpha=alpha)


# Of a base: `first`, tried at each learning rate; `second`, tried at the two best of these. `w`: of AntiCo's term
# (normalized) on it, from about a tenth of what the base loss is in the first epoch to all of it, a list a variant.
# `pair` with a finer precision too: (w, eps).
TUNED_BASES = {
    "proxyanchor": dict(
        first=[dict(loss_oproxy_lrmulti=m) for m in (3, 30)],
        second=[*(both_alphas(a) for a in (8, 16, 32)), dict(loss_oproxy_lrmulti=1)],
        w=dict(pair=[(10, 0.5), (10, 0.005), (3, 0.005)], class_means=[30, 300], batch_proxy=[10, 100],
               all_proxy=[10, 100]),
    ),
    "proxynca": dict(
        first=[dict(loss_proxynca_scale=9, loss_proxynca_lrmulti=m) for m in (3, 30)],
        second=[*(dict(loss_proxynca_scale=s) for s in (1, 3, 27)), dict(loss_proxynca_lrmulti=1)],
        w=dict(pair=[(3, 0.5), (3, 0.005), (1, 0.005)], class_means=[10, 100], batch_proxy=[1, 10], all_proxy=[1, 10]),
    ),
    "normalized_softmax": dict(
        first=[dict(loss_normalized_softmax_lrmulti=m) for m in (3, 30)],
        second=[
            *(dict(loss_normalized_softmax_temperature=t) for t in (0.02, 0.1, 0.2)),
            dict(loss_normalized_softmax_lrmulti=1),
        ],
        w=dict(pair=[(3, 0.5), (3, 0.005), (1, 0.005)], class_means=[10, 100], batch_proxy=[1, 10], all_proxy=[1, 10]),
    ),
    "arcface": dict(
        first=[dict(loss_arcface_lrmulti=m) for m in (3, 30)],
        second=[
            *(dict(loss_arcface_margin=m, loss_arcface_scale=s) for m, s in ((0.5, 16), (0.2, 16), (0.2, 64))),
            dict(loss_arcface_lrmulti=1),
        ],
        w=dict(pair=[(10, 0.5), (10, 0.005), (3, 0.005)], class_means=[30, 300], batch_proxy=[10, 100],
               all_proxy=[10, 100]),
    ),
    "multisimilarity": dict(
        first=[dict(loss_multisimilarity_beta=b) for b in (25, 50)],
        second=[
            dict(loss_multisimilarity_base=0.3),
            dict(loss_multisimilarity_base=0.7),
            dict(loss_multisimilarity_alpha=10),
        ],
        w=dict(pair=[(0.03, 0.5), (0.1, 0.5), (0.03, 0.005)], class_means=[0.3, 1]),
    ),
    "margin": dict(
        first=[dict(loss_margin_beta=b) for b in (0.6, 1.2)],
        second=[dict(loss_margin_margin=0.1), dict(loss_margin_margin=0.4), dict(batch_mining="semihard")],
        w=dict(pair=[(0.03, 0.5), (0.1, 0.5), (0.03, 0.005)], class_means=[0.1, 1]),
    ),
    "contrastive": dict(
        first=[dict(loss_contrastive_neg_margin=m) for m in (0.5, 1)],
        second=[
            dict(loss_contrastive_pos_margin=0.1),
            dict(loss_contrastive_pos_margin=0.3),
            dict(batch_mining="distance"),
        ],
        w=dict(pair=[(0.03, 0.5), (0.1, 0.5), (0.03, 0.005)], class_means=[0.1, 1]),
    ),
    "pml.SupConLoss": dict(
        first=[supcon(t) for t in (0.05, 0.1)],
        second=[supcon(t) for t in (0.02, 0.2, 0.5)],
        w=dict(pair=[(0.1, 0.5), (0.3, 0.5), (0.1, 0.005)], class_means=[1, 10]),
    ),
}  # fmt: skip
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]


def over(base, variant):
    """The flags of AntiCo's variant on a base loss, or of the base alone (variant None)."""
    return dict(loss=base) if variant is None else dict(loss=f"antico_{variant}", antico_base=base)


def tune_first():
    """Every base alone: four or five learning rates by two values of what matters most beside it."""
    for base, tried in TUNED_BASES.items():
        rates = RATES if "all_proxy" in tried["w"] else RATES[1:]
        yield from (over(base, None) | dict(lr=lr) | flags for lr in rates for flags in tried["first"])


# of tune_first: the two learning rates with the highest Recall@1 on validation classes, the best one's other flags
BEST = {
    "proxyanchor": ([3e-4, 1e-4], dict(loss_oproxy_lrmulti=3)),
    "proxynca": ([3e-4, 1e-3], dict(loss_proxynca_scale=9, loss_proxynca_lrmulti=30)),
    "normalized_softmax": ([3e-4, 1e-3], dict(loss_normalized_softmax_lrmulti=30)),
    "arcface": ([1e-3, 3e-4], dict(loss_arcface_lrmulti=3)),
    "multisimilarity": ([1e-3, 3e-3], dict(loss_multisimilarity_beta=25)),
    "margin": ([3e-3, 1e-3], dict(loss_margin_beta=0.6)),
    "contrastive": ([1e-3, 3e-3], dict(loss_contrastive_neg_margin=0.5)),
    "pml.SupConLoss": ([1e-3, 3e-3], supcon(0.1)),
}


def tune_second():
    """The base's further hyperparameters at its two best learning rates, and at 1e-3, where AntiCo is tried too."""
    for base, (rates, flags) in BEST.items():
        for lr in dict.fromkeys([*rates, 1e-3]):
            yield from (over(base, None) | flags | dict(lr=lr) | change for change in TUNED_BASES[base]["second"])


# of both: the base's best flags
TUNED = {
    "proxyanchor": dict(lr=3e-4, loss_oproxy_lrmulti=3, **both_alphas(8)),
    "proxynca": dict(lr=3e-4, loss_proxynca_scale=1, loss_proxynca_lrmulti=30),
    "normalized_softmax": dict(
        lr=3e-4, loss_normalized_softmax_lrmulti=30, loss_normalized_softmax_temperature=0.2
    ),
    "arcface": dict(lr=3e-4, loss_arcface_lrmulti=3, loss_arcface_margin=0.2, loss_arcface_scale=16),
    "multisimilarity": dict(lr=1e-3, loss_multisimilarity_beta=25, loss_multisimilarity_base=0.7),
    "margin": dict(lr=3e-3, loss_margin_beta=0.6),
    "contrastive": dict(lr=1e-3, loss_contrastive_neg_margin=0.5, loss_contrastive_pos_margin=0.1),
    "pml.SupConLoss": dict(lr=1e-3, **supcon(0.1)),
}  # fmt: skip


def tune_third():
    """The weights of AntiCo on the tuned base. What keeps a space from collapsing may allow another learning rate: over
    proxies each is tried at two."""
    for base, flags in TUNED.items():
        proxies = "all_proxy" in TUNED_BASES[base]["w"]
        for variant, weights in TUNED_BASES[base]["w"].items():
            other = [1e-3 if flags["lr"] < 1e-3 else 3e-4] if proxies else []
            for lr in [flags["lr"], *other]:
                for w in weights:
                    weight = dict(antico_w=w) if variant != "pair" else dict(antico_w=w[0], antico_eps=w[1])
                    yield over(base, variant) | flags | dict(lr=lr) | weight


# of tune_third: what the best run of a variant has beside its tuned base
CHOSEN = {
    ("proxyanchor", "pair"): dict(lr=0.001, antico_w=3, antico_eps=0.005),
    ("proxyanchor", "class_means"): dict(lr=0.001, antico_w=30),
    ("proxyanchor", "batch_proxy"): dict(lr=0.0003, antico_w=10),
    ("proxyanchor", "all_proxy"): dict(lr=0.001, antico_w=100),
    ("proxynca", "pair"): dict(lr=0.001, antico_w=1, antico_eps=0.005),
    ("proxynca", "class_means"): dict(lr=0.001, antico_w=10),
    ("proxynca", "batch_proxy"): dict(lr=0.0003, antico_w=1),
    ("proxynca", "all_proxy"): dict(lr=0.0003, antico_w=1),
    ("normalized_softmax", "pair"): dict(lr=0.001, antico_w=3, antico_eps=0.5),
    ("normalized_softmax", "class_means"): dict(lr=0.001, antico_w=100),
    ("normalized_softmax", "batch_proxy"): dict(lr=0.0003, antico_w=1),
    ("normalized_softmax", "all_proxy"): dict(lr=0.0003, antico_w=1),
    ("arcface", "pair"): dict(lr=0.001, antico_w=10, antico_eps=0.005),
    ("arcface", "class_means"): dict(lr=0.001, antico_w=30),
    ("arcface", "batch_proxy"): dict(lr=0.0003, antico_w=100),
    ("arcface", "all_proxy"): dict(lr=0.001, antico_w=100),
    ("multisimilarity", "pair"): dict(lr=0.001, antico_w=0.1, antico_eps=0.5),
    ("multisimilarity", "class_means"): dict(lr=0.001, antico_w=0.3),
    ("margin", "pair"): dict(lr=0.003, antico_w=0.1, antico_eps=0.5),
    ("margin", "class_means"): dict(lr=0.003, antico_w=1),
    ("contrastive", "pair"): dict(lr=0.001, antico_w=0.03, antico_eps=0.005),
    ("contrastive", "class_means"): dict(lr=0.001, antico_w=0.1),
    ("pml.SupConLoss", "pair"): dict(lr=0.001, antico_w=0.3, antico_eps=0.5),
    ("pml.SupConLoss", "class_means"): dict(lr=0.001, antico_w=1),
}


def chosen(base, variant=None):
    return over(base, variant) | TUNED[base] | CHOSEN.get((base, variant), {})


def main_comparison():
    yield from (chosen(base) for base in TUNED)
    for variant in ("pair", "class_means", "batch_proxy", "all_proxy"):
        yield from (chosen(base, variant) for base in TUNED if variant in TUNED_BASES[base]["w"])
    yield dict(loss="antico_class_means", antico_base="none", antico_w=1, lr=1e-3)  # the term alone


def tune_warmup():
    """The best of all these with an epoch in which only the last linear layer and the proxies learn."""
    for base, tried in TUNED_BASES.items():
        for variant in (None, "pair", "class_means") if "all_proxy" in tried["w"] else (None,):
            yield chosen(base, variant) | dict(warmup=1)


# where that was the better, by about a point: looked at again with five seeds
WARMER = [("normalized_softmax",), ("proxynca", "pair")]

# What the published objective and the proxies' scale do: (variant, its flags, its weights). The form `neg` is not here:
# where every batch has as many rows, its gradient is that of `normalized` at w / R_max.
FORMS = {
    "proxyanchor": [
        ("batch_proxy", dict(antico_scale="mcr2"), [10, 100]),
        ("all_proxy", dict(antico_scale="mcr2"), [10, 100]),
        ("batch_proxy", dict(antico_form="exp"), [100, 1000]),
        ("pair", dict(antico_form="exp", antico_eps=0.5), [10, 100, 1000, 10000]),
    ],
    "proxynca": [
        ("batch_proxy", dict(antico_scale="mcr2"), [1, 10]),
        ("all_proxy", dict(antico_scale="mcr2"), [1, 10]),
        ("batch_proxy", dict(antico_form="exp"), [10, 100]),
        ("pair", dict(antico_form="exp", antico_eps=0.5), [1, 10, 100, 1000, 10000]),
    ],
}


def tune_forms():
    for base, kinds in FORMS.items():
        for variant, flags, weights in kinds:
            for lr, w in itertools.product((3e-4, 1e-3), weights):
                yield over(base, variant) | TUNED[base] | flags | dict(lr=lr, antico_w=w)


# of tune_forms: the best of each kind
FORMS_CHOSEN = {
    "proxyanchor": [(3e-4, 10), (1e-3, 10), (3e-4, 100), (1e-3, 1000)],
    "proxynca": [(3e-4, 1), (3e-4, 1), (3e-4, 10), (1e-3, 10000)],
}


def forms():
    """Beside their bases, the variants as the main comparison has them."""
    for base, kinds in FORMS.items():
        yield from (chosen(base, variant) for variant in (None, "pair", "batch_proxy", "all_proxy"))
        for (variant, flags, _), (lr, w) in zip(kinds, FORMS_CHOSEN[base], strict=True):
            yield over(base, variant) | TUNED[base] | flags | dict(lr=lr, antico_w=w)


def rates():
    """Every learning rate, ProxyAnchor alone and under two variants, their other flags as they were tuned."""
    for variant in (None, "pair", "class_means"):
        yield from (chosen("proxyanchor", variant) | dict(lr=lr) for lr in (*RATES, 3e-2))


def subsets():
    """Few and many classes of few and many images; as many steps as with all of them, some 300."""
    few_classes, few_images, pairs = dict(train_classes=50), dict(train_images=4), dict(train_images=2)
    pairs["samples_per_class"] = 2
    parts = [({}, 3), (few_images, 12), (pairs, 24), (few_classes, 36), (few_classes | few_images, 144)]
    for part, epochs in parts:
        part = part | dict(n_epochs=epochs, tau=2 * epochs // 3, eval_every=epochs)
        for base in ("proxyanchor", "multisimilarity"):
            yield from (chosen(base, variant) | part for variant in (None, "pair", "class_means"))


def table(about, rows, flags, *report, seeds=1):
    return dict(
        about=about, datasets=["glyphs"], rows=[*rows], flags=flags, seeds=range(seeds), jobs=2,
        report=[*report, "--columns", *COLUMNS],
    )  # fmt: skip


def tuning(about, rows):
    return table(f"{about}, on validation classes", rows, STUDY | VALIDATION, "--split", "val")


TABLES = {
    "tune_first": tuning("the study's learning rates: every base loss alone", tune_first()),
    "tune_second": tuning("the study's base losses: their other hyperparameters", tune_second()),
    "tune_third": tuning("the study's weights: AntiCo on the tuned bases", tune_third()),
    "tune_warmup": tuning("the study's warm-up: what was chosen, with an epoch of it", tune_warmup()),
    "tune_forms": tuning("the study's forms and scales: their weights and learning rates", tune_forms()),
    "study": table(
        "the main comparison: each base loss and each variant on it, all tuned on validation classes",
        main_comparison(), STUDY, "--tuned", seeds=5,
    ),
    "study_forms": table(
        "the published form and MCR2's scale, over two proxy losses", forms(), STUDY, "--tuned", seeds=5,
    ),
    "study_warmup": table(
        "where tune_warmup is the better: with and without an epoch of it, on test classes",
        [chosen(*which) | warm for which in WARMER for warm in ({}, dict(warmup=1))], STUDY, "--by", "warmup", seeds=5,
    ),
    "study_rates": table(
        "Recall@1 against the learning rate, ProxyAnchor alone and under two variants", rates(), STUDY, "--by", "lr",
        seeds=5,
    ),
    "study_subsets": table(
        "few and many classes, few and many images of each, two base losses alone and under two variants",
        subsets(), STUDY, "--tuned", seeds=5,
    ),
}  # fmt: skip
