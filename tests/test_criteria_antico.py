"""AntiCo against the published code's numbers (float64) and its formulas, and the life of its gradients."""

import math

import numpy as np
import pytest
import torch
from criteria_tools import GOLDEN, build, close, select
from torch.nn.functional import normalize

from criteria import AntiCo, NoBase, OProxy
from criteria.pml import ModuleLoss

VARIANTS = ["pair", "batch_proxy", "all_proxy", "class_means"]
OF_EMBEDDINGS = ("pair", "class_means")
NORMALIZED_SOFTMAX = "pml.NormalizedSoftmaxLoss"


# against the published code


def golden(case, words, *more):
    """(criterion with the case's proxies, embeddings, labels); of its flags, those of oproxy and those in `more`."""
    config = case["config"]
    alpha, delta = config["loss_oproxy_alpha"], config["loss_oproxy_delta"]
    words += f" --embed_dim {config['embed_dim']} --loss_oproxy_pos_alpha {alpha} --loss_oproxy_neg_alpha {alpha}"
    words += f" --loss_oproxy_pos_delta {delta} --loss_oproxy_neg_delta {-delta}"
    loss = select(" ".join([words, *(f"--{flag} {config[flag]}" for flag in more)]), config["n_classes"])
    loss.proxies.data = torch.tensor(case["proxies"])
    return loss, torch.tensor(case["embeddings"], requires_grad=True), torch.tensor(case["labels"])


@pytest.mark.parametrize("own_name", [False, True], ids=["antico", "own name over oproxy"])
@pytest.mark.parametrize("name", GOLDEN)
def test_published_objective(name, own_name):
    case = GOLDEN[name]
    config, variant = case["config"], case["config"]["antico_type"]
    words = f"antico --antico_type {variant}"
    if own_name:
        words = f"antico_{variant} --antico_base oproxy --loss_oproxy_mode anchor --antico_form exp"
    flags = "antico_eps", "antico_w", "loss_ac_w_align", "antico_gam1", "antico_gam2"
    loss, embeddings, labels = golden(case, words, *flags)
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case["antico_loss"])
    expected = case["antico_grad_embeddings"]
    if own_name and variant == "pair":  # normalises by itself: no gradient along the rows
        rows = case["embeddings"]
        expected = expected - (rows * expected).sum(1, keepdims=True) * rows
    assert close(embeddings.grad, expected)
    assert close(loss.proxies.grad, case["antico_grad_proxies"])
    assert close(-config["antico_gam2"] * loss.logs["coding_rate"], case["neg_rate"])


@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("mode", ["anchor", "nca"])
def test_oproxy(name, mode):
    case = GOLDEN[name]
    loss, embeddings, labels = golden(case, f"oproxy --loss_oproxy_mode {mode}")
    value = loss(embeddings, labels)
    value.backward()
    assert close(value, case[f"oproxy_{mode}_loss"])
    assert close(embeddings.grad, case[f"oproxy_{mode}_grad_embeddings"])
    assert close(loss.proxies.grad, case[f"oproxy_{mode}_grad_proxies"])


@pytest.mark.parametrize(
    "words, std",
    [("oproxy", 1 / 8), ("antico", 1 / 8), ("antico_all_proxy --antico_base oproxy", 1 / 8), ("nir", 1)]
    + [("proxyanchor", (2 / 1000) ** 0.5), ("antico_all_proxy", (2 / 1000) ** 0.5)],
)
def test_proxies_start_as_published_where_the_loss_is(words, std):
    """Normal numbers / 8, those themselves for nir, and Kaiming's for fan-out C."""
    torch.manual_seed(0)
    proxies = select(f"{words} --embed_dim 64", 1000).proxies
    assert float(proxies.std()) == pytest.approx(std, rel=0.02) and abs(float(proxies.mean())) < 0.02 * std


# against the formulas


@pytest.mark.parametrize("scale", ["published", "mcr2"])
@pytest.mark.parametrize("form", ["exp", "neg", "normalized"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_and_scale_is_its_formula(variant, form, scale):
    """0.5 · base + 3 · term, the determinant by numpy from the definition, the maximum by its closed form."""
    torch.manual_seed(0)
    d, eps, gam1, gam2 = 12, 0.4, 1.3, 0.2
    words = f"antico_{variant} --antico_base proxyanchor --embed_dim {d} --antico_form {form} --antico_scale {scale} "
    words += f"--antico_w 3 --loss_ac_w_align 0.5 --antico_eps {eps} --antico_gam1 {gam1} --antico_gam2 {gam2}"
    loss = select(words, 8)
    embeddings, labels = torch.randn(10, d, dtype=torch.float64), torch.tensor([0, 0, 0, 3, 3, 5, 5, 5, 7, 7])
    unit = normalize(embeddings, dim=1).numpy()
    proxies = normalize(loss.proxies, dim=1).detach().numpy()
    means = np.stack([unit[:3].mean(0), unit[3:5].mean(0), unit[5:8].mean(0), unit[8:].mean(0)])
    Z = {"pair": unit, "batch_proxy": proxies[[0, 3, 5, 7]], "all_proxy": proxies, "class_means": means}[variant]
    n = len(Z)
    s = d / (n * eps**2) if scale == "mcr2" else n / (d * eps) if "proxy" in variant else d / (n * eps)
    rate = 0.5 * np.linalg.slogdet(np.eye(d) + gam1 * s * Z.T @ Z)[1]
    largest = min(n, d) / 2 * math.log(1 + gam1 * s * n / min(n, d))
    term = {"exp": math.exp(-gam2 * rate), "neg": -gam2 * rate, "normalized": 1 - rate / largest}[form]
    expected = 0.5 * float(loss.base(embeddings, labels)) + 3 * term
    assert float(loss(embeddings, labels)) == pytest.approx(expected, rel=1e-6)
    assert loss.logs["coding_rate_share"] == pytest.approx(rate / largest, rel=1e-6)


@pytest.mark.parametrize("form", ["exp", "neg", "normalized"])
def test_the_term_alone_needs_no_labels(form):
    torch.manual_seed(0)
    loss = select(f"antico_pair --antico_base none --antico_form {form} --antico_w 2", 8)
    assert isinstance(loss.base, NoBase) and loss.param_groups(1.0) == []
    embeddings = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    values = [loss(embeddings, torch.randint(8, (10,))) for _ in range(2)]
    assert float(values[0]) == float(values[1]) == pytest.approx(2 * loss.logs["term"])


def test_tiny_precision_goes_to_float64():
    """eps = 1e-6 on a collapsed batch: float32 products would err by more than the identity's 1."""
    rows = normalize(torch.ones(40, 16) + 1e-4 * torch.randn(40, 16), dim=1).repeat(2, 1)
    for variant in ("pair", "batch_proxy", "all_proxy"):
        base = OProxy(80, 16, mode="anchor")
        base.proxies.data = rows
        loss = AntiCo(base, variant, form="neg", align=0.0, eps=1e-6, scale="mcr2")
        value, exact = loss(rows, torch.arange(80)), loss.double()(rows.double(), torch.arange(80))
        assert value.dtype == torch.float32 and float(value) == pytest.approx(float(exact), rel=1e-3)


class ClassCentres(torch.nn.Module):
    """A loss that knows nothing of this project."""

    def __init__(self, n_classes, d):
        super().__init__()
        self.proxies = torch.nn.Parameter(torch.randn(n_classes, d))

    def forward(self, embeddings, labels):
        return (embeddings - self.proxies[labels]).square().sum(1).mean()


@pytest.mark.parametrize("variant", ["pair", "batch_proxy", "all_proxy"])
def test_a_plain_module_is_a_base(variant):
    """Against the objective written out: base + w (1 - R/R_max), R of the module's vectors or of the embeddings."""
    torch.manual_seed(0)
    module = ClassCentres(6, 8).double()
    criterion = AntiCo(module, variant, w=3.0)
    embeddings, labels = torch.randn(10, 8, dtype=torch.float64, requires_grad=True), torch.arange(10) % 4
    value = criterion(embeddings, labels)
    rows = {"pair": embeddings, "batch_proxy": module.proxies[:4], "all_proxy": module.proxies}[variant]
    Z = normalize(rows, dim=1).detach()
    n, d = Z.shape
    s = d / (n * 0.5) if variant == "pair" else n / (d * 0.5)
    share = 0.5 * float(torch.logdet(torch.eye(d) + s * Z.T @ Z)) / (min(n, d) / 2 * np.log1p(s * n / min(n, d)))
    assert float(value) == pytest.approx(float(module(embeddings, labels)) + 3 * (1 - share), rel=1e-9)
    (group,) = criterion.param_groups(1e-3)
    assert group["lr"] == 2.0 and {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}
    with pytest.raises(ValueError):
        criterion.base(embeddings, torch.arange(10) % 7)


def test_a_plain_module_without_one_vector_a_class_is_told():
    for module in (torch.nn.Linear(3, 3), ModuleLoss(ClassCentres(12, 8), n_classes=6)):
        with pytest.raises(ValueError, match="proxies"):
            AntiCo(module, "all_proxy")


# what it does to the space


# the guard


def partly_collapsed(n_classes, d, criterion, collapse):
    """Embeddings of 45 classes by two; collapse 0: spread, 1: all in one direction, but for a little noise."""
    labels = torch.randperm(n_classes)[:45].repeat_interleave(2)
    centres = torch.randn(45, d).repeat_interleave(2, 0)
    pull = normalize(centres if criterion.variant in OF_EMBEDDINGS else criterion.proxies.detach()[labels], dim=1)
    common, noise = normalize(torch.randn(1, d), dim=1), normalize(torch.randn(90, d), dim=1)
    mixed = collapse * common + (1 - collapse) * pull + (1.1 - collapse) * noise
    return normalize(mixed, dim=1).requires_grad_(), labels


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_classes", [98, 100, 11318], ids=["cars", "cub", "sop"])
def test_every_variant_pushes_as_hard_as_its_base_when_the_space_collapses(variant, n_classes):
    """By default, in float32: the term's gradient is 1/10 to 10 times as long as the base's."""
    torch.manual_seed(0)
    criterion = build(f"antico_{variant} --embed_dim 512 --bs 90", n_classes)
    with torch.no_grad():  # what a proxy loss does to its proxies, as to embeddings
        criterion.proxies.add_(criterion.proxies.norm(dim=1).mean() * normalize(torch.randn(1, 512), dim=1))
    for collapse in (0.0, 0.8):
        embeddings, labels = partly_collapsed(n_classes, 512, criterion, collapse)
        target = embeddings if variant in OF_EMBEDDINGS else criterion.proxies
        (base,) = torch.autograd.grad(criterion.base(embeddings, labels), target)
        (both,) = torch.autograd.grad(criterion(embeddings, labels), target)
    assert 0.1 < float((both - base).norm() / base.norm()) < 10


def gradient_of_share(Z, s, largest):
    """Of 1 - R/R_max at rows that are normalised on the way, from the closed form of the gradient of logdet."""
    unit = normalize(Z, dim=1)
    gradient = -s / largest * unit @ torch.linalg.inv(torch.eye(Z.shape[1], dtype=Z.dtype) + s * unit.T @ unit)
    return (gradient - (gradient * unit).sum(1, keepdim=True) * unit) / Z.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("base", ["proxyanchor", "arcface", "multisimilarity", "contrastive", "pml.ArcFaceLoss"])
def test_the_guards_weight_is_its_formula(base):
    """20 batches that collapse and recover, and a user's target: the weight by hand, from closed forms in float64."""
    torch.manual_seed(0)
    n, d, before, acted = 24, 12, None, []
    s, largest = d / (n * 0.005), d / 2 * math.log(1 + 1 / 0.005)
    for target in (None, 0.8):
        loss = select(f"antico_pair --antico_base {base} --embed_dim {d} --antico_w 2 --antico_form guard", 6)
        loss.guard = type(loss.guard)(loss.base, "pair", target)
        norms = []
        for step in range(20):
            Z = (torch.randn(n, d) + 4 * math.sin(step / 3) ** 2 * torch.ones(d)).double().requires_grad_()
            labels = torch.arange(n) % 6
            value, (pull,) = loss(Z, labels), torch.autograd.grad(loss.base(Z, labels), Z)
            share = 0.5 * float(torch.logdet(torch.eye(d) + s * normalize(Z, dim=1).T @ normalize(Z, dim=1))) / largest
            norms.append([float(pull.norm()), float(gradient_of_share(Z.detach(), s, largest).norm())])
            means = 0.98 ** np.arange(step, -1, -1) @ np.array(norms)  # the newest counts most, the first as the others
            before = share if step == 0 else before
            rule = max(0.5, before) if hasattr(loss.base, "proxies") else before / 2
            weight = 2 * means[0] / means[1] * min(max(((target or rule) - share) / 0.1, 0), 1)
            assert loss.logs["weight"] == pytest.approx(weight, rel=1e-6, abs=1e-12)
            assert float(value) == pytest.approx(loss.logs["base"] + weight * (1 - share), rel=1e-6)
            acted.append(weight > 0)
    assert 0 < sum(acted) < 40


def test_a_pair_loss_that_does_not_collapse_trains_as_without_a_guard():
    """To the last bit: the same gradient, while the space holds half of what it had."""
    torch.manual_seed(0)
    for variant in ("class_means", "pair"):
        alone, guarded = build("multisimilarity"), build(f"antico_{variant} --antico_base multisimilarity")
        for spread in (1.0, 0.7, 0.5):
            x = (torch.randn(40, 16) * torch.linspace(spread, 1, 16) ** 2).requires_grad_()
            found = [torch.autograd.grad(loss(x, torch.arange(40) % 10), x)[0] for loss in (alone, guarded)]
            assert torch.equal(*found) and guarded.logs["weight"] == 0
    assert guarded(1 + 0.01 * x, torch.arange(40) % 10) > guarded.logs["base"] + 0.1  # a collapse


def test_the_guard_forgets_what_is_not_finite_and_learns_from_training_alone():
    loss = build("antico_class_means --antico_base multisimilarity --antico_target 2")
    x, labels = torch.randn(40, 16, requires_grad=True), torch.arange(40) % 10
    loss(x, labels)
    state = {name: value.clone() for name, value in loss.state_dict().items()}
    assert state["guard.pulls"].dtype == torch.float64 and float(state["guard.pulls"].min()) > 0
    with torch.no_grad():
        loss(2 * x, labels)
    loss.eval()(3 * x, labels)
    loss.train().align = math.inf
    loss(4 * x, labels)
    assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    loss.align = 1.0
    value = loss(torch.ones(40, 16, requires_grad=True), labels)  # all alike: no direction to push in
    assert math.isfinite(value) and loss.logs["weight"] < 1e6


@pytest.mark.parametrize("variant", ["batch_proxy", "all_proxy"])
def test_the_guard_of_anothers_class_weights(variant):
    """Those of pytorch-metric-learning are W (d, C), seen through a transposition."""
    torch.manual_seed(0)
    ours, theirs = (select(f"antico_{variant} --antico_base {b}") for b in ("normalized_softmax", NORMALIZED_SOFTMAX))
    theirs.base.inner.W.data = ours.proxies.data.T.clone()
    embeddings, labels = torch.randn(20, 128, dtype=torch.float64), torch.arange(20) % 7
    assert float(ours(embeddings, labels)) == pytest.approx(float(theirs(embeddings, labels)), rel=1e-6)
    assert ours.logs["weight"] == pytest.approx(theirs.logs["weight"], rel=1e-6) and ours.logs["weight"] > 0


def test_what_a_guard_cannot_weigh():
    """Proxies made on access are not those that the base saw; where nothing of the base is left, the weight is 1."""

    class OnAccess(torch.nn.Linear):
        proxies = property(lambda self: normalize(self.weight, dim=1))

    with pytest.raises(ValueError, match="proxies"):
        AntiCo(OnAccess(8, 6), "all_proxy")
    loss, x = AntiCo(OProxy(6, 8), "class_means", align=0.0), torch.randn(12, 8)
    assert float(loss(x, torch.arange(12) % 6)) == pytest.approx(loss.logs["term"]) and loss.logs["weight"] == 1


def test_the_first_epoch_says_that_the_guard_did_not_act():
    loss = AntiCo(OProxy(10, 16, mode="anchor"), "pair")
    still, acting = ({"loss/weight": w, "loss/coding_rate_share": 0.6} for w in (0.0, 0.1))
    assert [bool(loss.note(rows)) for rows in ([{}, still], [{}, acting], [{}, still, still])] == [True, False, False]


def test_a_dead_exponential_is_noted_in_the_first_epoch_that_shows_it():
    """From the rows of metrics.csv, which a resumed run has too."""

    criterion = AntiCo(OProxy(10, 512, mode="anchor"), "pair", form="exp", w=1.0)
    criterion(normalize(torch.randn(90, 512), dim=1), torch.arange(90) % 10)
    untrained, dead = {"test/e_recall@1": 0.5}, {f"loss/{name}": value for name, value in criterion.logs.items()}
    alive = {"loss/term": 0.3, "loss/coding_rate": 1.2}
    noted = [bool(criterion.note([untrained, *rows])) for rows in ([dead], [alive, dead], [dead, dead], [alive], [])]
    assert noted == [True, True, False, False, False]
