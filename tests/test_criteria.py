"""The losses against the published code's numbers, pytorch-metric-learning and naive loops, all in float64."""

import logging
import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import criteria
import parameters
from criteria.antico import AntiCo
from criteria.coding_rate import coding_rate, coding_rate_share, max_coding_rate
from criteria.margin import Margin
from criteria.miners import distance_weighted
from criteria.multisimilarity import MultiSimilarity
from criteria.oproxy import OProxy

CASES = ["batch_proxy_small", "batch_proxy_cub", "batch_proxy_weighted", "all_proxy_small", "all_proxy_more_classes_than_dim", "pair_small", "pair_collapsed"]
VARIANTS = ["antico_pair", "antico_batch_proxy", "antico_all_proxy"]


def close(ours, theirs, tolerance=1e-6):
    ours = ours.detach().numpy() if torch.is_tensor(ours) else np.asarray(ours)
    return np.linalg.norm(ours - theirs) <= tolerance * np.linalg.norm(theirs)


def select(n_classes, *argv):
    return criteria.select(parameters.parse([str(a) for a in argv]), n_classes).double()


def inputs(case):
    return torch.tensor(case["embeddings"], requires_grad=True), torch.tensor(case["labels"])


def published_flags(config):
    return ["--embed_dim", config["embed_dim"], "--bs", config["bs"], "--samples_per_class", config["samples_per_class"],
            "--loss_oproxy_pos_alpha", config["loss_oproxy_alpha"], "--loss_oproxy_neg_alpha", config["loss_oproxy_alpha"],
            "--loss_oproxy_pos_delta", config["loss_oproxy_delta"], "--loss_oproxy_neg_delta", -config["loss_oproxy_delta"]]


@pytest.mark.parametrize("name", CASES)
def test_published_objective(antico_cases, name):
    case = antico_cases[name]
    config = case["config"]
    loss = select(config["n_classes"], "--loss", "antico", *published_flags(config), *(w for flag in (
        "antico_type", "antico_eps", "antico_w", "loss_ac_w_align", "antico_gam1", "antico_gam2") for w in (f"--{flag}", config[flag])))
    loss.proxies.data = torch.tensor(case["proxies"])
    embeddings, labels = inputs(case)
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case["antico_loss"])
    assert close(embeddings.grad, case["antico_grad_embeddings"])
    assert close(loss.proxies.grad, case["antico_grad_proxies"])
    assert close(-config["antico_gam2"] * loss.logs["coding_rate"], case["neg_rate"])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mode", ["anchor", "nca"])
def test_oproxy(antico_cases, name, mode):
    case = antico_cases[name]
    loss = select(case["config"]["n_classes"], "--loss", "oproxy", "--loss_oproxy_mode", mode, *published_flags(case["config"]))
    loss.proxies.data = torch.tensor(case["proxies"])
    embeddings, labels = inputs(case)
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case[f"oproxy_{mode}_loss"])
    assert close(embeddings.grad, case[f"oproxy_{mode}_grad_embeddings"])
    assert close(loss.proxies.grad, case[f"oproxy_{mode}_grad_proxies"])


def test_proxyanchor_is_oproxy_in_mode_anchor_and_pml_agrees(antico_cases):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    case = antico_cases["batch_proxy_cub"]
    ours = select(100, "--loss", "proxyanchor", "--embed_dim", 128)
    theirs = losses.ProxyAnchorLoss(100, 128, margin=0.1, alpha=64).double()
    ours.proxies.data = torch.tensor(case["proxies"])
    theirs.proxies.data = torch.tensor(case["proxies"])
    embeddings, labels = inputs(case)
    assert close(ours(embeddings, labels), float(theirs(embeddings, labels)))


def imbalanced(n=40, d=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.randint(6, (n - 3,), generator=generator), torch.tensor([7, 8, 9])])  # three single images
    centres = torch.randn(10, d, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return normalize(embeddings, dim=1).requires_grad_(), labels


@pytest.mark.parametrize("seed", range(4))
def test_multisimilarity_against_pml(seed):
    losses, miners = pytest.importorskip("pytorch_metric_learning.losses"), pytest.importorskip("pytorch_metric_learning.miners")
    embeddings, labels = imbalanced(seed=seed)
    ours = MultiSimilarity()(embeddings, labels)
    pairs = miners.MultiSimilarityMiner(0.1)(embeddings, labels)
    theirs = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)(embeddings, labels, pairs)
    assert close(ours, float(theirs))
    mine, other = torch.autograd.grad(ours, embeddings)[0], torch.autograd.grad(theirs, embeddings)[0]
    assert close(mine, other.numpy())


def test_margin_against_a_loop():
    embeddings, labels = imbalanced()
    triplets = distance_weighted(embeddings, labels)
    loss = Margin(lambda e, y: triplets, margin=0.2, beta=1.1)
    total, active = 0.0, 0
    for a, p, n in zip(*(t.tolist() for t in triplets)):
        d_ap, d_an = ((embeddings[a] - embeddings[i]).norm().item() for i in (p, n))
        for term in (max(0, d_ap - 1.1 + 0.2), max(0, 1.1 - d_an + 0.2)):
            total, active = total + term, active + (term > 0)
    assert float(loss(embeddings, labels)) == pytest.approx(total / active, rel=1e-6)


def test_distance_weighted_triplets_and_their_frequencies():
    embeddings, labels = imbalanced(d=5)
    a, p, n = distance_weighted(embeddings, labels)
    assert len(a) == sum(int((labels == y).sum()) - 1 for y in labels)
    assert bool((labels[a] == labels[p]).all() and (a != p).all() and (labels[a] != labels[n]).all())
    # frequencies of one anchor's negatives against the densities of the formula
    anchor, d = 0, 5
    counts, weights = np.zeros(len(labels)), np.zeros(len(labels))
    torch.manual_seed(0)
    for _ in range(600):
        a, p, n = distance_weighted(embeddings, labels)
        np.add.at(counts, n[a == anchor].numpy(), 1)
    for j in range(len(labels)):
        t = (embeddings[anchor] - embeddings[j]).norm().item()
        if labels[j] != labels[anchor] and t < 1.4:
            t = max(t, 0.5)
            weights[j] = 1 / (t ** (d - 2) * (1 - t * t / 4) ** ((d - 3) / 2))
    assert np.abs(counts / counts.sum() - weights / weights.sum()).max() < 0.02


# the coding rate

@pytest.mark.parametrize("n, d", [(7, 20), (20, 7), (1, 5), (6, 6)])
def test_coding_rate_is_the_determinant(n, d):
    Z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * np.linalg.slogdet(np.eye(d) + 0.7 * Z.detach().numpy().T @ Z.detach().numpy())[1]
    assert float(coding_rate(Z, 0.7)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.7), Z)


def test_coding_rate_of_golden_embeddings(metrics_case):
    assert float(coding_rate(torch.tensor(metrics_case["embeddings"]).double())) == pytest.approx(float(metrics_case["coding_rate_dis"]), rel=1e-9)


@pytest.mark.parametrize("n, d", [(90, 512), (512, 90)])
def test_rate_lies_below_its_maximum_and_reaches_it(n, d):
    spread = torch.eye(max(n, d), dtype=torch.float64)[:n, :d]
    if n > d:
        spread = torch.eye(d, dtype=torch.float64).repeat(math.ceil(n / d), 1)[: n // d * d]
    scale = 1.3
    assert float(coding_rate(spread, scale)) == pytest.approx(max_coding_rate(*spread.shape, scale), rel=1e-9)
    assert 0.9 < float(coding_rate_share(torch.randn(n, d))) < 1
    assert float(coding_rate_share(torch.ones(n, d))) < 0.06
    assert float(max_coding_rate(torch.tensor(n), d, scale)) == pytest.approx(max_coding_rate(n, d, scale))


def test_coding_rate_takes_duplicates_zero_rows_and_half_precision_under_autocast():
    Z = normalize(torch.randn(6, 32), dim=1)
    Z = torch.cat([Z, Z, torch.zeros(2, 32)]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rate = coding_rate(Z.bfloat16(), 2.0)
    rate.backward()
    assert rate.dtype == torch.float32 and torch.isfinite(Z.grad).all()
    assert float(rate) == pytest.approx(float(coding_rate(Z.double(), 2.0)), rel=1e-2)
    with pytest.raises(ValueError, match="non-empty"):
        coding_rate(torch.zeros(0, 4))


# the variants

def problem(n_classes, loss, n=90, d=512, seed=0):
    torch.manual_seed(seed)
    criterion = criteria.select(parameters.parse(["--loss", loss, "--embed_dim", str(d), "--bs", str(n)]), n_classes)
    labels = torch.randperm(n_classes)[: n // 2].repeat_interleave(2)
    return criterion, labels


@pytest.mark.parametrize("loss", VARIANTS)
@pytest.mark.parametrize("n_classes", [98, 100, 11318], ids=["cars", "cub", "sop"])
def test_every_variant_has_a_living_gradient_at_its_defaults(loss, n_classes):
    """The term's share of the gradient is between 1/100 and 100 times the base's, in float32, while training is under way."""
    criterion, labels = problem(n_classes, loss)
    pull = criterion.proxies.detach()[labels] if loss != "antico_pair" else torch.randn(45, 512).repeat_interleave(2, 0)
    common = 0.7 * normalize(torch.randn(1, 512), dim=1)  # a partly collapsed space, classes half separated
    embeddings = normalize(common + 0.3 * normalize(pull, dim=1) + 0.7 * normalize(torch.randn(90, 512), dim=1), dim=1).requires_grad_()
    target = embeddings if loss == "antico_pair" else criterion.proxies
    (base,) = torch.autograd.grad(criterion.align * criterion.base(embeddings, labels), target)
    (both,) = torch.autograd.grad(criterion(embeddings, labels), target)
    share = float((both - base).norm() / base.norm())
    assert 0.01 < share < 100, share


@pytest.mark.parametrize("loss", VARIANTS)
def test_the_term_opposes_collapse(loss):
    """A small step against the term's gradient raises the rate of a collapsed set."""
    criterion, labels = problem(60, loss, n=40, d=32)
    target = normalize(torch.ones(1, 32) + 0.05 * torch.randn(40 if loss == "antico_pair" else 60, 32), dim=1).requires_grad_()
    embeddings = target if loss == "antico_pair" else normalize(torch.randn(40, 32), dim=1)
    if loss != "antico_pair":
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


def test_raw_embeddings_only_on_the_published_command_line():
    assert select(10, "--loss", "antico", "--antico_type", "pair").raw_embeddings
    assert not select(10, "--loss", "antico_pair").raw_embeddings


def test_dead_exponential_is_said_once(caplog):
    criterion = AntiCo(OProxy(10, 512), "pair", form="exp", w=1.0)
    embeddings, labels = normalize(torch.randn(90, 512), dim=1), torch.arange(90) % 10
    with caplog.at_level(logging.WARNING):
        for _ in range(300):
            criterion(embeddings, labels)
    assert len(caplog.records) == 1 and "--antico_form normalized" in caplog.text
    caplog.clear()
    alive = AntiCo(OProxy(100, 512), "batch_proxy", form="exp")
    alive(embeddings, labels)
    assert not caplog.records


def test_published_forms_die_where_the_normalized_one_lives():
    embeddings, labels = normalize(torch.randn(90, 512), dim=1).requires_grad_(), torch.arange(90) // 2
    norms = {}
    for form in ("exp", "normalized"):
        loss = AntiCo(OProxy(100, 512), "pair", form=form, align=0.0)
        (gradient,) = torch.autograd.grad(loss(embeddings, labels), embeddings, allow_unused=True)
        norms[form] = float(gradient.norm())
    assert norms["exp"] == 0 and norms["normalized"] > 1e-3


# what every criterion does

@pytest.mark.parametrize("name", list(criteria.CRITERIA))
def test_every_criterion_trains_logs_and_checks(name):
    criterion = criteria.select(parameters.parse(["--loss", name, "--embed_dim", "8", "--bs", "12"]), 10)
    embeddings = torch.randn(12, 8, requires_grad=True)
    for labels in (torch.arange(12) // 2, torch.zeros(12, dtype=torch.long), torch.arange(12) % 10):  # pairs; one class; mixed
        value = criterion(embeddings, labels)
        value.backward()
        assert value.shape == () and torch.isfinite(value) and torch.isfinite(embeddings.grad).all()
    assert criterion.logs and all(isinstance(v, float) for v in criterion.logs.values())
    own = {id(p) for group in criterion.param_groups(1e-3) for p in group["params"]}
    assert own == {id(p) for p in criterion.parameters()}  # nothing learnable is left out of the optimizer
    assert all(group["weight_decay"] == 0 for group in criterion.param_groups(1e-3))
    with pytest.raises(ValueError, match="expects embeddings"):
        criterion(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    if hasattr(criterion, "proxies"):
        assert criterion.proxies.shape == (10, 8)
        with pytest.raises(ValueError, match=r"labels must be in 0\.\.9"):
            criterion(embeddings, torch.full((12,), 10))


@pytest.mark.parametrize("name", list(criteria.CRITERIA))
def test_autocast_does_not_reach_the_loss(name):
    torch.manual_seed(0)
    criterion = criteria.select(parameters.parse(["--loss", name, "--embed_dim", "32", "--bs", "12"]), 10)
    embeddings, labels = normalize(torch.randn(12, 32), dim=1), torch.arange(12) // 2
    values = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(float(criterion(embeddings, labels)))
    assert values[0] == values[1]


@pytest.mark.parametrize("argv, words", [
    (["--loss", "antico_pear"], ["--loss antico_pear", "antico_pair", "known"]),
    (["--loss", "antico_pair", "--antico_base", "multisimilarit"], ["--antico_base", "multisimilarity"]),
    (["--loss", "antico_batch_proxy", "--antico_base", "multisimilarity"], ["--antico_base multisimilarity", "no proxies", "proxyanchor"]),
    (["--loss", "margin", "--batch_mining", "distanze"], ["--batch_mining distanze", "distance"]),
])
def test_errors_are_one_line_that_names_the_flag(argv, words):
    with pytest.raises(ValueError) as problem:
        criteria.select(parameters.parse(argv), 10)
    assert "\n" not in str(problem.value) and all(word in str(problem.value) for word in words)
