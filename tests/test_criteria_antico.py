"""The Anti-Collapse loss against the published code's numbers (float64), and the life of its gradients."""

import math

import pytest
import torch
from criteria_tools import close, select
from torch.nn.functional import normalize

import criteria
import parameters
from criteria.antico import AntiCo, NoBase
from criteria.coding_rate import coding_rate, max_coding_rate
from criteria.oproxy import OProxy

CASES = [
    "batch_proxy_small",
    "batch_proxy_cub",
    "batch_proxy_weighted",
    "all_proxy_small",
    "all_proxy_more_classes_than_dim",
    "pair_small",
    "pair_collapsed",
]
UNEVEN = ["batch_proxy_drawn_twice", "batch_proxy_singles", "all_proxy_imbalanced", "pair_imbalanced"]
VARIANTS = ["antico_pair", "antico_batch_proxy", "antico_all_proxy", "antico_class_means"]
OF_EMBEDDINGS = ("antico_pair", "antico_class_means")


def inputs(case):
    return torch.tensor(case["embeddings"], requires_grad=True), torch.tensor(case["labels"])


def published_flags(config):
    return [
        "--embed_dim",
        config["embed_dim"],
        "--bs",
        config["bs"],
        "--samples_per_class",
        config["samples_per_class"],
        "--loss_oproxy_pos_alpha",
        config["loss_oproxy_alpha"],
        "--loss_oproxy_neg_alpha",
        config["loss_oproxy_alpha"],
        "--loss_oproxy_pos_delta",
        config["loss_oproxy_delta"],
        "--loss_oproxy_neg_delta",
        -config["loss_oproxy_delta"],
    ]


def antico_flags(config):
    return [
        word
        for flag in ("antico_eps", "antico_w", "loss_ac_w_align", "antico_gam1", "antico_gam2")
        for word in (f"--{flag}", config[flag])
    ]


def test_every_golden_case_is_in_the_lists(antico_cases):
    assert sorted(CASES + UNEVEN) == sorted(antico_cases)


@pytest.mark.parametrize("own_name", [False, True], ids=["antico", "own name over oproxy"])
@pytest.mark.parametrize("name", CASES + UNEVEN)
def test_published_objective(antico_cases, name, own_name):
    case = antico_cases[name]
    config = case["config"]
    if own_name:
        which = [
            "--loss",
            f"antico_{config['antico_type']}",
            "--antico_base",
            "oproxy",
            "--loss_oproxy_mode",
            "anchor",
            "--antico_form",
            "exp",
        ]
    else:
        which = ["--loss", "antico", "--antico_type", config["antico_type"]]
    loss = select(config["n_classes"], *which, *published_flags(config), *antico_flags(config))
    loss.proxies.data = torch.tensor(case["proxies"])
    embeddings, labels = inputs(case)
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case["antico_loss"])
    if own_name and config["antico_type"] == "pair":  # normalises by itself: no gradient along the rows
        rows, raw = case["embeddings"], case["antico_grad_embeddings"]
        assert close(embeddings.grad, raw - (rows * raw).sum(1, keepdims=True) * rows)
    else:
        assert close(embeddings.grad, case["antico_grad_embeddings"])
    assert close(loss.proxies.grad, case["antico_grad_proxies"])
    assert close(-config["antico_gam2"] * loss.logs["coding_rate"], case["neg_rate"])


@pytest.mark.parametrize("name", CASES + UNEVEN)
@pytest.mark.parametrize("mode", ["anchor", "nca"])
def test_oproxy(antico_cases, name, mode):
    case = antico_cases[name]
    loss = select(
        case["config"]["n_classes"], "--loss", "oproxy", "--loss_oproxy_mode", mode, *published_flags(case["config"])
    )
    loss.proxies.data = torch.tensor(case["proxies"])
    embeddings, labels = inputs(case)
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case[f"oproxy_{mode}_loss"])
    assert close(embeddings.grad, case[f"oproxy_{mode}_grad_embeddings"])
    assert close(loss.proxies.grad, case[f"oproxy_{mode}_grad_proxies"])


@pytest.mark.parametrize("name", UNEVEN)
def test_the_base_named_is_the_base_that_acts(antico_cases, name):
    """proxyanchor, alone or underneath, counts each class of an uneven batch once: the published value is another."""
    case = antico_cases[name]
    config = case["config"]
    embeddings, labels = inputs(case)
    x, p = normalize(embeddings, dim=1).detach(), normalize(torch.tensor(case["proxies"]), dim=1)
    pull = torch.exp(-config["loss_oproxy_alpha"] * (p @ x.T - config["loss_oproxy_delta"]))
    push = torch.exp(config["loss_oproxy_alpha"] * (p @ x.T + config["loss_oproxy_delta"]))
    own = labels[None, :] == torch.arange(len(p))[:, None]
    paper = (pull * own).sum(1)[own.any(1)].log1p().mean() + (push * ~own).sum(1).log1p().mean()
    assert abs(float(paper) / case["oproxy_anchor_loss"] - 1) > 0.01
    flags = [config["n_classes"], *published_flags(config), "--loss"]
    alone = select(*flags, "proxyanchor")
    under = [select(*flags, loss, "--antico_base", "proxyanchor").base for loss in ("antico", *VARIANTS)]
    for base in (alone, *under):
        base.proxies.data = torch.tensor(case["proxies"])
        assert close(base(embeddings, labels), float(paper))


@pytest.mark.parametrize(
    "argv, std",
    [
        (["--loss", "oproxy"], 1 / 8),
        (["--loss", "oproxy", "--loss_oproxy_mode", "anchor"], 1 / 8),
        (["--loss", "antico"], 1 / 8),
        (["--loss", "antico_all_proxy", "--antico_base", "oproxy"], 1 / 8),
        (["--loss", "nir"], 1 / 8),
        (["--loss", "proxyanchor"], (2 / 1000) ** 0.5),
        (["--loss", "antico_all_proxy"], (2 / 1000) ** 0.5),
        (["--loss", "proxynca"], (2 / 1000) ** 0.5),
    ],
)
def test_proxies_start_as_published_where_the_loss_is(argv, std):
    """Normal numbers / 8 against Kaiming's for fan-out C."""
    if "nir" in argv:
        pytest.importorskip("FrEIA")
    torch.manual_seed(0)
    proxies = select(1000, *argv, "--embed_dim", 64).proxies
    assert float(proxies.std()) == pytest.approx(std, rel=0.02) and abs(float(proxies.mean())) < 0.02 * std


def problem(n_classes, loss, n=90, d=512, seed=0):
    torch.manual_seed(seed)
    criterion = criteria.select(parameters.parse(["--loss", loss, "--embed_dim", str(d), "--bs", str(n)]), n_classes)
    labels = torch.randperm(n_classes)[: n // 2].repeat_interleave(2)
    return criterion, labels


@pytest.mark.parametrize("loss", VARIANTS)
@pytest.mark.parametrize("n_classes", [98, 100, 11318], ids=["cars", "cub", "sop"])
def test_every_variant_has_a_living_gradient_at_its_defaults(loss, n_classes):
    """The term's share of the gradient is 1/100 to 100 times the base's, in float32, while training is under way."""
    criterion, labels = problem(n_classes, loss)
    pull = (
        criterion.proxies.detach()[labels]
        if loss not in OF_EMBEDDINGS
        else torch.randn(45, 512).repeat_interleave(2, 0)
    )
    common = 0.7 * normalize(torch.randn(1, 512), dim=1)  # a partly collapsed space, classes half separated
    embeddings = normalize(
        common + 0.3 * normalize(pull, dim=1) + 0.7 * normalize(torch.randn(90, 512), dim=1), dim=1
    ).requires_grad_()
    target = embeddings if loss in OF_EMBEDDINGS else criterion.proxies
    (base,) = torch.autograd.grad(criterion.align * criterion.base(embeddings, labels), target)
    (both,) = torch.autograd.grad(criterion(embeddings, labels), target)
    share = float((both - base).norm() / base.norm())
    assert 0.01 < share < 100, share


@pytest.mark.parametrize("loss", VARIANTS)
def test_the_term_opposes_collapse(loss):
    """A small step against the term's gradient raises the rate of a collapsed set."""
    criterion, labels = problem(60, loss, n=40, d=32)
    target = normalize(
        torch.ones(1, 32) + 0.05 * torch.randn(40 if loss in OF_EMBEDDINGS else 60, 32), dim=1
    ).requires_grad_()
    embeddings = target if loss in OF_EMBEDDINGS else normalize(torch.randn(40, 32), dim=1)
    if loss not in OF_EMBEDDINGS:
        criterion.proxies.data = target.data
        target = criterion.proxies
    rate, largest = criterion.rate(embeddings, labels)
    (gradient,) = torch.autograd.grad(1 - rate / largest, target)
    with torch.no_grad():
        target -= 0.1 * gradient
    assert float(criterion.rate(embeddings, labels)[0]) > float(rate) * 1.0001


def test_batch_proxy_counts_each_class_once():
    criterion, _ = problem(30, "antico_batch_proxy", n=12, d=16)
    labels = torch.tensor([3, 3, 3, 9, 9, 1])
    rate, largest = criterion.rate(torch.randn(6, 16), labels)
    proxies = normalize(criterion.proxies, dim=1)[[3, 9, 1]]
    assert float(rate) == pytest.approx(float(coding_rate(proxies, 3 / (16 * 0.5))), rel=1e-5)
    assert float(largest) == pytest.approx(max_coding_rate(3, 16, 3 / (16 * 0.5)), rel=1e-5)


def test_class_means_are_at_their_best_where_classes_are_points_apart():
    """Apart and compact: 1; apart but wide, as a batch that `pair` likes best: less; all in one point: little."""
    criterion, labels = problem(16, "antico_class_means", n=32, d=64)
    labels = torch.arange(16).repeat_interleave(2)
    axes = torch.eye(64)
    share = lambda rows: float(torch.divide(*criterion.rate(rows, labels)))  # noqa: E731
    assert share(axes[labels]) == pytest.approx(1, rel=1e-5)
    assert share(axes[:32]) == pytest.approx(math.log1p(4) / math.log1p(8), rel=1e-5)  # means of half the energy
    assert share(axes[:1].expand(32, -1)) < 0.2 < share(axes[labels] + axes[:1])
    single = torch.arange(16)  # one image a class: the means are the embeddings
    rows = torch.randn(16, 64)
    pair = AntiCo(NoBase(), "pair")
    assert float(criterion.rate(rows, single)[0]) == pytest.approx(float(pair.rate(rows, single)[0]), rel=1e-6)


def test_raw_embeddings_only_on_the_published_command_line():
    assert select(10, "--loss", "antico", "--antico_type", "pair").raw_embeddings
    assert not select(10, "--loss", "antico_pair").raw_embeddings


def test_a_dead_exponential_is_noted_in_the_first_epoch_that_shows_it():
    """From the rows of metrics.csv, which a resumed run has too."""

    def row(epoch, criterion, n_classes):
        embeddings, labels = normalize(torch.randn(90, 512), dim=1), torch.arange(90) % n_classes
        criterion(embeddings, labels)
        return {"epoch": epoch, **{f"loss/{name}": value for name, value in criterion.logs.items()}}

    dead = AntiCo(OProxy(10, 512, mode="anchor"), "pair", form="exp", w=1.0)
    untrained, first, second = {"epoch": 0, "test/e_recall@1": 0.5}, row(1, dead, 10), row(2, dead, 10)
    line = dead.note([untrained, first])
    rate = first["loss/coding_rate"]
    assert f"R = {rate:.1f} nats" in line and rate > 100 and "--antico_form normalized" in line and "\n" not in line
    assert dead.note([untrained, first, second]) == dead.note([untrained]) == dead.note([]) == ""
    later = [untrained, {"epoch": 1, "loss/term": 0.3, "loss/coding_rate": 1.2}, second]
    assert dead.note(later)
    alive = AntiCo(OProxy(100, 512, mode="anchor"), "batch_proxy", form="exp")
    assert alive.note([untrained, row(1, alive, 90)]) == ""
    assert AntiCo(OProxy(10, 512, mode="anchor"), "pair", form="neg").note([first]) == ""
    assert OProxy(10, 512).note([first]) == ""


def test_published_forms_die_where_the_normalized_one_lives():
    embeddings, labels = normalize(torch.randn(90, 512), dim=1).requires_grad_(), torch.arange(90) // 2
    norms = {}
    for form in ("exp", "normalized"):
        loss = AntiCo(OProxy(100, 512, mode="anchor"), "pair", form=form, align=0.0)
        (gradient,) = torch.autograd.grad(loss(embeddings, labels), embeddings, allow_unused=True)
        norms[form] = float(gradient.norm())
    assert norms["exp"] == 0 and norms["normalized"] > 1e-3
