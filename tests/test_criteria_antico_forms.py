"""AntiCo's forms and scales against their formulas, both terms together, the term alone."""

import math

import numpy as np
import pytest
import torch
from criteria_tools import close, select
from torch.nn.functional import normalize

from criteria.antico import AntiCo, NoBase
from criteria.oproxy import OProxy


@pytest.mark.parametrize("scale", ["published", "mcr2"])
@pytest.mark.parametrize("form", ["exp", "neg", "normalized"])
@pytest.mark.parametrize("variant", ["pair", "batch_proxy", "all_proxy", "class_means"])
def test_every_form_and_scale_is_its_formula(variant, form, scale):
    """0.5 · base + 3 · term, the determinant by numpy from the definition, the maximum by its closed form."""
    torch.manual_seed(0)
    d, eps, gam1, gam2 = 12, 0.4, 1.3, 1.0 if form == "normalized" else 0.2
    loss = select(
        8,
        "--loss",
        f"antico_{variant}",
        "--antico_base",
        "proxyanchor",
        "--embed_dim",
        d,
        "--antico_form",
        form,
        "--antico_scale",
        scale,
        "--antico_w",
        3,
        "--loss_ac_w_align",
        0.5,
        "--antico_eps",
        eps,
        "--antico_gam1",
        gam1,
        "--antico_gam2",
        gam2,
    )
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
    assert float(loss(embeddings, labels)) == pytest.approx(
        0.5 * float(loss.base(embeddings, labels)) + 3 * term, rel=1e-6
    )
    assert loss.logs["coding_rate_share"] == pytest.approx(rate / largest, rel=1e-6)


@pytest.mark.parametrize("variant", ["pair", "class_means"])
def test_both_terms_are_the_sum_of_the_two(variant):
    """--antico_w_proxies: base + w · term of embeddings + w_proxies · term of all proxies, each as alone."""
    torch.manual_seed(0)
    loss = select(8, "--loss", f"antico_{variant}", "--antico_base", "proxyanchor", "--antico_w", 3,
                  "--antico_w_proxies", 7, "--antico_eps", 0.1)  # fmt: skip
    embeddings, labels = torch.randn(10, loss.embed_dim, dtype=torch.float64, requires_grad=True), torch.arange(10) // 2
    base = select(8, "--loss", "proxyanchor").double()
    base.proxies.data = loss.double().proxies.data
    alone = AntiCo(base, variant, w=3, eps=0.1), AntiCo(base, "all_proxy", align=0, w=7)
    values = [each(embeddings, labels) for each in alone]
    together = loss(embeddings, labels)
    assert close(together, sum(values).detach().numpy())
    assert loss.logs["base"] == pytest.approx(alone[0].logs["base"])
    for name in ("term", "coding_rate", "coding_rate_share"):
        assert loss.logs[name] == pytest.approx(alone[0].logs[name])
        assert loss.logs[f"proxies_{name}"] == pytest.approx(alone[1].logs[name])
    gradient = torch.autograd.grad(together, [embeddings, loss.proxies])
    for ours, theirs in zip(gradient, torch.autograd.grad(sum(values), [embeddings, base.proxies]), strict=True):
        assert close(ours, theirs.numpy())
    assert [group["lr"] for group in loss.param_groups(1.0)] == [group["lr"] for group in base.param_groups(1.0)]


@pytest.mark.parametrize(
    "flags", [["antico_batch_proxy"], ["antico_all_proxy"], ["antico_pair"], ["antico_pair", "--antico_base", "none"]]
)
def test_both_terms_need_embeddings_and_proxies(flags):
    with pytest.raises(ValueError, match="--antico_w_proxies 1: goes with .* over a loss with proxies"):
        select(8, "--antico_w_proxies", 1, "--loss", *flags)


@pytest.mark.parametrize("form", ["exp", "neg", "normalized"])
def test_the_term_alone_needs_no_labels(form):
    torch.manual_seed(0)
    loss = select(8, "--loss", "antico_pair", "--antico_base", "none", "--antico_form", form, "--antico_w", 2)
    assert isinstance(loss.base, NoBase) and loss.param_groups(1.0) == []
    embeddings = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    values = [loss(embeddings, torch.randint(8, (10,))) for _ in range(2)]
    assert float(values[0]) == float(values[1]) == pytest.approx(2 * loss.logs["term"])
    values[0].backward()
    with torch.no_grad():
        moved = embeddings - 0.1 * embeddings.grad
    assert float(loss.rate(moved, None)[0]) > float(loss.rate(embeddings, None)[0])


def test_tiny_precision_goes_to_float64():
    """eps = 1e-6 on a collapsed batch: float32 products would err by more than the identity's 1."""
    rows = normalize(torch.ones(40, 16) + 1e-4 * torch.randn(40, 16), dim=1).repeat(2, 1)
    for variant in ("pair", "batch_proxy", "all_proxy"):
        base = OProxy(80, 16, mode="anchor")
        base.proxies.data = rows
        loss = AntiCo(base, variant, form="neg", align=0.0, eps=1e-6, scale="mcr2")
        value, exact = loss(rows, torch.arange(80)), loss.double()(rows.double(), torch.arange(80))
        assert value.dtype == torch.float32 and float(value) == pytest.approx(float(exact), rel=1e-3)
