"""Every baseline against pytorch-metric-learning or a naive loop: values and gradients, float64, uneven batches."""

import math
import sys

import numpy as np
import pytest
import torch
from criteria_tools import close, imbalanced, select
from torch.nn.functional import normalize

import criteria
import parameters
from criteria.margin import Margin
from criteria.multisimilarity import MultiSimilarity

losses = pytest.importorskip("pytorch_metric_learning.losses")
miners = pytest.importorskip("pytorch_metric_learning.miners")


def same_as(ours, theirs, embeddings, labels, mine=(), other=()):
    """Values, gradients for the embeddings and for the losses' own parameters."""
    a, b = ours(embeddings, labels), theirs(embeddings, labels)
    ga = torch.autograd.grad(a, [embeddings, *mine])
    gb = torch.autograd.grad(b, [embeddings, *other])
    assert close(a, float(b)) and float(b) > 0
    for x, y in zip(ga, gb):
        assert close(x.reshape(y.shape) if x.ndim < 2 or x.shape == y.shape else x.T, y.numpy()) and y.norm() > 0


def batch(seed):
    """Imbalanced classes, three of a single image, rows of all lengths (each loss normalises by itself)."""
    embeddings, labels = imbalanced(seed=seed)
    lengths = 0.5 + torch.rand(len(labels), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (embeddings.detach() * lengths).requires_grad_(), labels


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "argv, theirs",
    [
        ("contrastive", lambda: losses.ContrastiveLoss()),
        (
            "contrastive --loss_contrastive_pos_margin 0.3 --loss_contrastive_neg_margin 1.3",
            lambda: losses.ContrastiveLoss(0.3, 1.3),
        ),
        ("triplet", lambda: losses.TripletMarginLoss(margin=0.2)),
        ("triplet --loss_triplet_margin 0.5", lambda: losses.TripletMarginLoss(margin=0.5)),
        ("margin --batch_mining all", lambda: losses.MarginLoss(margin=0.2, beta=1.2)),
        ("npair", lambda: losses.NPairsLoss()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_pair_losses(argv, theirs, seed):
    same_as(select(10, "--loss", *argv.split()), theirs(), *batch(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "argv, theirs",
    [
        ("proxyanchor", lambda C, d: losses.ProxyAnchorLoss(C, d, margin=0.1, alpha=64)),
        (
            "proxyanchor --loss_oproxy_pos_alpha 32 --loss_oproxy_neg_alpha 32",
            lambda C, d: losses.ProxyAnchorLoss(C, d, margin=0.1, alpha=32),
        ),
        ("proxynca", lambda C, d: losses.ProxyNCALoss(C, d)),
        ("proxynca --loss_proxynca_scale 9", lambda C, d: losses.ProxyNCALoss(C, d, softmax_scale=9)),
        ("normalized_softmax", lambda C, d: losses.NormalizedSoftmaxLoss(C, d, temperature=0.05)),
        ("arcface", lambda C, d: losses.ArcFaceLoss(C, d, margin=math.degrees(0.5), scale=64)),
        (
            "arcface --loss_arcface_margin 1.5 --loss_arcface_scale 16",
            lambda C, d: losses.ArcFaceLoss(C, d, margin=math.degrees(1.5), scale=16),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_proxy_losses(argv, theirs, seed):
    embeddings, labels = batch(seed)
    ours = select(10, "--loss", *argv.split(), "--embed_dim", 16)
    theirs = theirs(10, 16).double()
    own = theirs.proxies if hasattr(theirs, "proxies") else theirs.W
    own.data = (ours.proxies if own.shape == ours.proxies.shape else ours.proxies.T).data.clone()
    same_as(ours, theirs, embeddings, labels, [ours.proxies], [own])


@pytest.mark.parametrize("seed", range(3))
def test_multisimilarity(seed):
    mine = miners.MultiSimilarityMiner(0.1)
    theirs = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    same_as(MultiSimilarity(), lambda e, y: theirs(e, y, mine(e, y)), *batch(seed))


def test_smooth_proxy_nca_against_a_loop():
    embeddings, labels = batch(0)
    ours = select(10, "--loss", "oproxy", "--embed_dim", 16)
    cosine = normalize(embeddings, dim=1) @ normalize(ours.proxies, dim=1).T
    total = 0.0
    for i in range(len(labels)):
        pull = sum(
            math.exp(-64 * (cosine[i, labels[j]].item() - 0.1)) for j in range(len(labels)) if labels[j] == labels[i]
        )
        push = sum(math.exp(64 * (cosine[i, c].item() + 0.1)) for c in range(10) if c != labels[i])
        total += math.log1p(pull) + math.log1p(push)
    assert float(ours(embeddings, labels)) == pytest.approx(total / len(labels), rel=1e-6)


def test_margin_learns_its_boundary():
    embeddings, labels = batch(1)
    loss = select(10, "--loss", "margin", "--batch_mining", "all", "--loss_margin_beta", 1.1)
    theirs = losses.MarginLoss(margin=0.2, beta=1.1, learn_beta=True).double()
    same_as(loss, theirs, embeddings, labels, [loss.beta], [theirs.beta])
    (group,) = loss.param_groups(1e-3)
    assert group["params"] == [loss.beta] and group["lr"] == 5e-4


def test_mined_triplets_are_the_only_ones():
    embeddings, labels = batch(2)
    a, p, n = (torch.tensor(t) for t in ([0, 1, 5], [0, 0, 0], [0, 0, 0]))
    p, n = (
        torch.stack([(labels == labels[i]).nonzero()[0, 0] for i in a]),
        torch.stack([(labels != labels[i]).nonzero()[-1, 0] for i in a]),
    )
    for name, theirs in (
        ("triplet", losses.TripletMarginLoss(margin=0.2)),
        ("contrastive", losses.ContrastiveLoss()),
        ("margin", losses.MarginLoss()),
    ):
        ours = select(10, "--loss", name)
        ours.miner = lambda e, y: (a, p, n)
        assert close(ours(embeddings, labels), float(theirs(embeddings, labels, (a, p, n))))
    assert isinstance(ours, Margin)


# non-isotropy regularisation


@pytest.mark.parametrize("form", ["exp", "nll"])
@pytest.mark.parametrize("conditioning", ["dense", "mid", "dense_embed", "dense_embed_multi_stacked"])
def test_nir_against_the_jacobian(form, conditioning):
    pytest.importorskip("FrEIA")
    torch.manual_seed(0)
    np.random.seed(0)
    embeddings, labels = batch(0)
    ours = select(
        10,
        "--loss",
        "nir",
        "--embed_dim",
        16,
        "--loss_nir_form",
        form,
        "--loss_nir_nf_cond_mode",
        conditioning,
        "--loss_nir_nf_fc_width",
        16,
        "--loss_nir_nf_fc_depth",
        3,
        "--loss_nir_w_align",
        0.3,
        "--loss_nir_nf_fc_init",
        "xavier",
    )
    with torch.no_grad():
        base = float(ours.base(embeddings, labels))
    total = 0.0
    for x, proxy in zip(normalize(embeddings, dim=1), normalize(ours.proxies, dim=1)[labels]):

        def latent(v):
            return ours.flow(v[None], c=ours.conditions(proxy[None]))[0][0]

        jacobian = torch.autograd.functional.jacobian(latent, x)
        nll = float(0.5 * latent(x).square().sum() - torch.linalg.slogdet(jacobian).logabsdet)
        total += math.exp(nll) if form == "exp" else nll
    assert float(ours(embeddings, labels)) == pytest.approx(0.3 * base + total / len(labels), rel=1e-9)


def test_nir_depends_on_the_proxy_and_learns_its_flow():
    pytest.importorskip("FrEIA")
    torch.manual_seed(0)
    ours = select(10, "--loss", "nir", "--embed_dim", 16, "--loss_nir_w_align", 0, "--loss_nir_noise", 0.1)
    embeddings, labels = batch(0)
    ours(embeddings, labels).backward()
    assert ours.proxies.grad.norm() > 0 and all(p.grad is not None for p in ours.flow.parameters() if p.requires_grad)
    proxies, flow = ours.param_groups(1.0)
    assert (proxies["lr"], flow["lr"]) == (4000, 50)


def test_nir_is_a_function_of_torchs_seed():
    """FrEIA draws its permutations from numpy, which nothing seeds: runs, or the processes of one, would differ."""
    pytest.importorskip("FrEIA")

    def permutations():
        return [value.tolist() for name, value in select(10, "--loss", "nir").state_dict().items() if "perm" in name]

    torch.manual_seed(0)
    first = permutations()
    torch.manual_seed(0)
    np.random.seed(3)
    assert first == permutations() and first[0] != first[2]
    torch.manual_seed(1)
    assert first != permutations()


@pytest.mark.parametrize(
    "flag, value",
    [("logmatch", 0.7), ("pair_perc", 0.5), ("pos_alpha", 3), ("neg_alpha", 3), ("margin", 0.3), ("delta", 0.3)],
)
def test_nir_flags_that_the_published_code_reads_and_does_not_use(flag, value):
    pytest.importorskip("FrEIA")
    embeddings, labels = batch(0)
    values = []
    for argv in ([], [f"--loss_nir_{flag}", value]):
        torch.manual_seed(0)
        np.random.seed(0)
        loss = select(10, "--loss", "nir", "--embed_dim", 16, *argv)
        torch.manual_seed(1)
        values.append(float(loss(embeddings, labels)))
    assert values[0] == values[1]
    opt = parameters.parse(["--loss", "nir", f"--loss_nir_{flag}", str(value), "--loss_nir_noise", "0"])
    assert parameters.note(opt) == f"note: --loss_nir_{flag}: no effect on a run of --loss nir with these flags"


def test_nir_proxy_part_is_the_published_one(antico_cases):
    pytest.importorskip("FrEIA")
    case = antico_cases["batch_proxy_drawn_twice"]
    config = case["config"]
    loss = select(config["n_classes"], "--loss", "nir", "--embed_dim", config["embed_dim"])
    loss.proxies.data = torch.tensor(case["proxies"])
    loss(torch.tensor(case["embeddings"]), torch.tensor(case["labels"]))
    assert loss.logs["base"] == pytest.approx(float(case["oproxy_anchor_loss"]), rel=1e-6)


def test_antico_on_top_of_nir():
    pytest.importorskip("FrEIA")
    embeddings, labels = batch(0)
    loss = select(10, "--loss", "antico_all_proxy", "--antico_base", "nir", "--embed_dim", 16, "--antico_w", 2)
    value = loss(embeddings, labels)
    value.backward()
    assert float(value) == pytest.approx(loss.logs["base"] + 2 * loss.logs["term"])
    assert {"flow", "nll", "coding_rate"} <= set(loss.logs) and loss.proxies.grad.norm() > 0


# the bridge


@pytest.mark.parametrize(
    "argv, theirs",
    [
        (["pml.CircleLoss", "--pml_args", "m=0.3", "gamma=60"], lambda: losses.CircleLoss(m=0.3, gamma=60)),
        (["pml.SupConLoss"], lambda: losses.SupConLoss()),
        (["pml.LiftedStructureLoss"], lambda: losses.LiftedStructureLoss()),
    ],
)
def test_bridge_gives_their_value(argv, theirs):
    same_as(select(10, "--loss", *argv), theirs(), *batch(0))


def test_antico_on_top_of_the_bridge():
    """The same objective over their Proxy-Anchor as over ours, and over weights that stand the other way round."""
    embeddings, labels = batch(0)
    shared = ["--loss", "antico_all_proxy", "--embed_dim", 16]
    ours = select(10, *shared)
    theirs = select(10, *shared, "--antico_base", "pml.ProxyAnchorLoss", "--pml_args", "alpha=64")
    theirs.base.inner.proxies.data = ours.proxies.data.clone()
    same_as(ours, theirs, embeddings, labels, [ours.proxies], [theirs.base.inner.proxies])
    arcface = select(10, *shared, "--antico_base", "pml.ArcFaceLoss")
    assert arcface.proxies.shape == (10, 16) and torch.isfinite(arcface(embeddings, labels))
    assert {id(p) for g in arcface.param_groups(1) for p in g["params"]} == {id(arcface.base.inner.W)}


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--loss", "pml.CircelLoss"], ["--loss pml.CircelLoss", "did you mean pml.CircleLoss?"]),
        (["--loss", "antico_pair", "--antico_base", "pml.Nothing"], ["--antico_base pml.Nothing", "CircleLoss"]),
        (["--loss", "pml.CircleLoss", "--pml_args", "gama=3"], ["--pml_args gama=3", "gamma"]),
        (["--loss", "pml.CircleLoss", "--pml_args", "gamma"], ["--pml_args gamma", "key=value"]),
        (["--loss", "pml.ArcFaceLoss", "--pml_args", "num_classes=3"], ["--pml_args num_classes=3", "leave it out"]),
        (["--loss", "pml.CrossBatchMemory"], ["--loss pml.CrossBatchMemory", "cannot be used so", "loss"]),
        (["--loss", "pml.VICRegLoss"], ["--loss pml.VICRegLoss", "cannot be used so"]),
        (
            ["--loss", "pml.DynamicSoftMarginLoss"],
            ["--loss pml.DynamicSoftMarginLoss", "cannot be used so", "second step"],
        ),
        (["--loss", "antico_all_proxy", "--antico_base", "pml.SoftTripleLoss"], ["pml.SoftTripleLoss has no proxies"]),
    ],
)
def test_bridge_errors(argv, words):
    with pytest.raises(ValueError) as problem:
        criteria.select(parameters.parse(argv), 10)
    assert "\n" not in str(problem.value) and all(word in str(problem.value) for word in words), problem.value


@pytest.mark.parametrize("loss, package", [("pml.CircleLoss", "pytorch_metric_learning"), ("nir", "FrEIA")])
def test_missing_packages_are_named(monkeypatch, loss, package):
    for name in [name for name in sys.modules if name.split(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match="pip install"):
        criteria.select(parameters.parse(["--loss", loss]), 10)
