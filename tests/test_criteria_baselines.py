"""Every baseline against pytorch-metric-learning or a naive loop: values and gradients, float64, uneven batches."""

import math

import numpy as np
import pytest
import torch
from criteria_tools import GOLDEN, build, close, imbalanced, parse, select
from torch.nn.functional import normalize

import criteria
from criteria import MultiSimilarity

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


PAIR_LOSSES = {
    "contrastive": lambda: losses.ContrastiveLoss(),
    "contrastive --loss_contrastive_pos_margin 0.3": lambda: losses.ContrastiveLoss(0.3),
    "triplet": lambda: losses.TripletMarginLoss(margin=0.2),
    "triplet --loss_triplet_margin 0.5": lambda: losses.TripletMarginLoss(margin=0.5),
    "margin --batch_mining all": lambda: losses.MarginLoss(margin=0.2, beta=1.2),
    "npair": lambda: losses.NPairsLoss(),
    "pml.CircleLoss --pml_args m=0.3 gamma=60": lambda: losses.CircleLoss(m=0.3, gamma=60),
    "pml.SupConLoss": lambda: losses.SupConLoss(),
    "pml.LiftedStructureLoss": lambda: losses.LiftedStructureLoss(),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("words", PAIR_LOSSES)
def test_pair_losses(words, seed):
    same_as(select(words), PAIR_LOSSES[words](), *batch(seed))


@pytest.mark.parametrize("seed", range(3))
def test_multisimilarity(seed):
    mine = miners.MultiSimilarityMiner(0.1)
    theirs = losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)
    same_as(MultiSimilarity(), lambda e, y: theirs(e, y, mine(e, y)), *batch(seed))


PROXY_LOSSES = {
    "proxyanchor": lambda: losses.ProxyAnchorLoss(10, 16, margin=0.1, alpha=64),
    "proxyanchor --loss_oproxy_pos_alpha 9 --loss_oproxy_neg_alpha 9": lambda: losses.ProxyAnchorLoss(10, 16, alpha=9),
    "proxynca": lambda: losses.ProxyNCALoss(10, 16),
    "proxynca --loss_proxynca_scale 9": lambda: losses.ProxyNCALoss(10, 16, softmax_scale=9),
    "normalized_softmax": lambda: losses.NormalizedSoftmaxLoss(10, 16, temperature=0.05),
    "arcface": lambda: losses.ArcFaceLoss(10, 16, margin=math.degrees(0.5), scale=64),
    "arcface --loss_arcface_margin 1.5": lambda: losses.ArcFaceLoss(10, 16, margin=math.degrees(1.5)),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("words", PROXY_LOSSES)
def test_proxy_losses(words, seed):
    embeddings, labels = batch(seed)
    ours, theirs = select(f"{words} --embed_dim 16"), PROXY_LOSSES[words]().double()
    own = theirs.proxies if hasattr(theirs, "proxies") else theirs.W
    own.data = (ours.proxies if own.shape == ours.proxies.shape else ours.proxies.T).data.clone()
    same_as(ours, theirs, embeddings, labels, [ours.proxies], [own])


def test_smooth_proxy_nca_against_a_loop():
    embeddings, labels = batch(0)
    ours = select("oproxy --embed_dim 16")
    cosine = (normalize(embeddings, dim=1) @ normalize(ours.proxies, dim=1).T).tolist()
    total, y = 0.0, labels.tolist()
    for i, own in enumerate(y):
        pull = sum(math.exp(-64 * (cosine[i][own] - 0.1)) for other in y if other == own)
        push = sum(math.exp(64 * (cosine[i][c] + 0.1)) for c in range(10) if c != own)
        total += math.log1p(pull) + math.log1p(push)
    assert float(ours(embeddings, labels)) == pytest.approx(total / len(y), rel=1e-6)


def test_margin_learns_its_boundary():
    embeddings, labels = batch(1)
    loss = select("margin --batch_mining all --loss_margin_beta 1.1")
    theirs = losses.MarginLoss(margin=0.2, beta=1.1, learn_beta=True).double()
    same_as(loss, theirs, embeddings, labels, [loss.beta], [theirs.beta])
    (group,) = loss.param_groups(1e-3)
    assert group["params"] == [loss.beta] and group["lr"] == 5e-4


def test_mined_triplets_are_the_only_ones():
    embeddings, labels = batch(2)
    a = torch.tensor([0, 1, 5])
    p = torch.stack([(labels == labels[i]).nonzero()[0, 0] for i in a])
    n = torch.stack([(labels != labels[i]).nonzero()[-1, 0] for i in a])
    theirs = losses.TripletMarginLoss(margin=0.2), losses.ContrastiveLoss(), losses.MarginLoss()
    for cls, other in zip((criteria.Triplet, criteria.Contrastive, criteria.Margin), theirs):
        ours = cls(miner=lambda e, y: (a, p, n))
        assert close(ours(embeddings, labels), float(other(embeddings, labels, (a, p, n))))


# non-isotropy regularisation


@pytest.mark.parametrize("form", ["exp", "nll"])
@pytest.mark.parametrize("conditioning", ["dense", "mid", "dense_embed", "dense_embed_multi_stacked"])
def test_nir_against_the_jacobian(form, conditioning):
    torch.manual_seed(0)
    embeddings, labels = batch(0)
    flow = "--loss_nir_nf_fc_width 16 --loss_nir_nf_fc_depth 3 --loss_nir_nf_fc_init xavier"
    words = f"nir --embed_dim 16 --loss_nir_form {form} --loss_nir_w_align 0.3 {flow}"
    ours = select(f"{words} --loss_nir_nf_cond_mode {conditioning}")
    base = float(ours.base(embeddings, labels))
    total = 0.0
    for x, proxy in zip(normalize(embeddings, dim=1), normalize(ours.proxies, dim=1)[labels]):

        def latent(v):
            return ours.flow(v[None], c=ours.conditions(proxy[None]))[0][0]

        jacobian = torch.autograd.functional.jacobian(latent, x)
        nll = float(0.5 * latent(x).square().sum() - torch.linalg.slogdet(jacobian).logabsdet)
        total += math.exp(nll) if form == "exp" else nll
    assert float(ours(embeddings, labels)) == pytest.approx(0.3 * base + total / len(labels), rel=1e-9)


def test_nir_is_a_function_of_torchs_seed():
    """FrEIA draws its permutations from numpy, which nothing seeds: runs, or the processes of one, would differ."""

    def permutations(seed):
        torch.manual_seed(seed)
        return [value.tolist() for name, value in select("nir").state_dict().items() if "perm" in name]

    first = permutations(0)
    np.random.seed(3)
    state = np.random.get_state()[1].copy()
    assert first == permutations(0) != permutations(1) and first[0] != first[2]
    assert (np.random.get_state()[1] == state).all()


def test_nir_proxy_part_is_the_published_one():
    case = GOLDEN["batch_proxy_drawn_twice"]
    loss = select(f"nir --embed_dim {case['config']['embed_dim']}", case["config"]["n_classes"])
    loss.proxies.data = torch.tensor(case["proxies"])
    loss(torch.tensor(case["embeddings"]), torch.tensor(case["labels"]))
    assert loss.logs["base"] == pytest.approx(float(case["oproxy_anchor_loss"]), rel=1e-6)


def test_antico_on_top_of_nir():
    loss = select("antico_all_proxy --antico_base nir --embed_dim 16 --antico_w 2 --loss_nir_noise 0.1")
    value = loss(*batch(0))
    value.backward()
    assert float(value) == pytest.approx(loss.logs["base"] + 2 * loss.logs["term"])
    assert {"flow", "nll", "coding_rate"} <= set(loss.logs) and loss.proxies.grad.norm() > 0


# the bridge


def test_antico_on_top_of_the_bridge():
    """The same objective over their Proxy-Anchor as over ours, and over weights that stand the other way round."""
    shared = "antico_all_proxy --embed_dim 16"
    ours = select(shared)
    theirs = select(f"{shared} --antico_base pml.ProxyAnchorLoss --pml_args alpha=64")
    theirs.base.inner.proxies.data = ours.proxies.data.clone()
    same_as(ours, theirs, *batch(0), [ours.proxies], [theirs.base.inner.proxies])
    arcface = select(f"{shared} --antico_base pml.ArcFaceLoss")
    assert arcface.proxies.shape == (10, 16) and torch.isfinite(arcface(*batch(0)))
    assert {id(p) for g in arcface.param_groups(1) for p in g["params"]} == {id(arcface.base.inner.W)}


@pytest.mark.parametrize(
    "words, said",
    [
        ("pml.CircelLoss", "CircleLoss"),
        ("pml.CircleLoss --pml_args gama=3", "gama"),
        ("pml.CrossBatchMemory", "loss"),  # an argument that it needs
        ("pml.VICRegLoss", "labels"),  # takes none
        ("pml.DynamicSoftMarginLoss", "second time"),  # keeps the graph of the batch before
        ("pml.BaseMetricLossFunction", "NotImplementedError"),
        ("antico_all_proxy --antico_base none", "proxies"),
        ("antico_batch_proxy --antico_base multisimilarity", "proxies"),
        ("antico_all_proxy --antico_base pml.SoftTripleLoss", "proxies"),
    ],
)
def test_errors_are_one_line_before_there_are_data(words, said):
    with pytest.raises(ValueError, match=said) as problem:
        criteria.acting_flags(parse(words))
    assert "\n" not in str(problem.value)


LIBRARY = sorted(name for name, cls in vars(losses).items() if isinstance(cls, type) and name.endswith("Loss"))
NEEDS = {"HistogramLoss": "differ", "TupletMarginLoss": "differ", "NCALoss": "two images", "SmoothAPLoss": "equally"}


@pytest.mark.parametrize("name", LIBRARY)
def test_a_batch_is_finite_or_the_loss_says_what_it_needs(name):
    """Value and gradient: a class drawn twice, uneven, distinct, one class; images that differ, twice, all equal."""
    torch.manual_seed(0)
    try:
        criterion, said = build(f"pml.{name} --embed_dim 8"), []
    except ValueError:
        pytest.skip("is refused before there are data")
    for labels in ([0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 2], range(6), [0] * 6):
        for x in (torch.randn(6, 8), torch.randn(3, 8).repeat_interleave(2, 0), torch.ones(6, 8)):
            x = x.clone().requires_grad_()
            try:
                criterion(x, torch.tensor(labels)).backward()
            except ValueError as problem:
                said.append(str(problem))
            else:
                assert torch.isfinite(x.grad).all()
    assert bool(said) == (name in NEEDS) and all(f"{name}: each batch needs" in line for line in said)
    assert all(NEEDS[name] in line for line in said)
