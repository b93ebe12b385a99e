"""What every criterion does: checks its input, logs, keeps to full precision, compiles."""

import sys

import numpy as np
import pytest
import torch
from criteria_tools import build, parse
from torch.nn.functional import normalize

import criteria

NAMES = list(criteria.CRITERIA)
# a guard asks for gradients within the loss, which is no one graph
FIXED = [f"{name} --antico_form normalized" if name.startswith("antico_") else name for name in NAMES]
UNMINED = [words for words in FIXED if words not in ("triplet", "margin")]
LABELS = torch.arange(12) // 2


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_trains_and_logs(name):
    criterion = build(f"{name} --embed_dim 8")
    spread, equal = torch.randn(12, 8, requires_grad=True), torch.ones(12, 8, requires_grad=True)
    one_class, one_image = torch.zeros(12, dtype=torch.long), torch.tensor([3])
    for labels in (LABELS, one_class, torch.arange(12) % 10, torch.arange(10), one_image):
        for embeddings in (spread, equal):
            criterion.zero_grad()
            embeddings.grad = None
            value = criterion(embeddings[: len(labels)], labels)
            value.backward()
            assert value.shape == () and torch.isfinite(value) and torch.isfinite(embeddings.grad).all()
            assert all(torch.isfinite(p.grad).all() for p in criterion.parameters() if p.grad is not None)
    assert criterion.logs and all(isinstance(v, float) for v in criterion.logs.values())
    groups = criterion.param_groups(1e-3)
    own = [id(p) for group in groups for p in group["params"]]
    assert sorted(own) == sorted(id(p) for p in criterion.parameters() if p.requires_grad)  # nothing is left out
    assert all(group["weight_decay"] == 0 for group in groups)


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_refuses_bad_input(name):
    criterion = build(f"{name} --embed_dim 8")
    wrong = [
        (torch.zeros(0, 8), LABELS[:0]),
        (torch.randn(12, 8), LABELS[:5]),
        (torch.randn(12, 8), LABELS.float()),
        *((torch.randn(12, 8), torch.full((12,), label)) for label in (10, -1)),
    ]
    if hasattr(criterion, "proxies"):
        assert criterion.proxies.shape == (10, 8)
        wrong.append((torch.randn(12, 7), LABELS))
    for embeddings, labels in wrong:
        with pytest.raises(ValueError) as problem:
            criterion(embeddings, labels)
        assert not isinstance(problem.value, criteria.NonFinite) and "\n" not in str(problem.value)
    for value in (float("nan"), float("inf"), 1e20):  # a float32 row of that length would be normalised to 0
        embeddings = torch.randn(12, 8)
        embeddings[3, 2] = value
        with pytest.raises(criteria.NonFinite, match=": 1 of 12 embeddings"):
            criterion(embeddings, LABELS)
    assert torch.isfinite(criterion(embeddings.double(), LABELS))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_loss(name):
    torch.manual_seed(0)
    criterion = build(f"{name} --embed_dim 32")
    embeddings, values = normalize(torch.randn(12, 32), dim=1), []
    for enabled in (False, True):
        torch.manual_seed(1)  # of what is mined
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(float(criterion(embeddings, LABELS)))
    assert values[0] == values[1]
    assert criterion(embeddings.bfloat16(), LABELS).dtype == torch.float32


HALF, FULL, DOUBLE = torch.float16, torch.float32, torch.float64
PRECISIONS = [(DOUBLE, FULL), (HALF, FULL), (FULL, HALF), (HALF, HALF), (FULL, DOUBLE), (DOUBLE, HALF)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("given, own", PRECISIONS, ids=str)
def test_any_precision_of_embeddings_and_proxies(name, given, own):
    """A value near float32's, and gradients in the inputs' own dtypes."""
    torch.manual_seed(0)
    criterion = build(f"{name} --embed_dim 16").eval()
    embeddings = normalize(torch.randn(12, 16), dim=1)
    torch.manual_seed(1)
    expected = float(criterion(embeddings, LABELS))
    criterion.to(own)
    x = embeddings.to(given).requires_grad_()
    torch.manual_seed(1)
    value = criterion(x, LABELS)
    value.backward()
    dtypes = [given, *(p.dtype for p in criterion.parameters())]
    if (name, own) != ("nir", HALF):  # its flow computes in what it is
        assert value.dtype == (DOUBLE if DOUBLE in dtypes else FULL)
    assert float(value) == pytest.approx(expected, rel=2e-2, abs=2e-2)
    assert x.grad.dtype == given and torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", UNMINED)
def test_compiles_whole_and_once_if_not_mined(name):
    """fullgraph, the same values, gradients and logs, and no recompilation when the labels change."""
    backend = "inductor" if name.startswith("antico_batch_proxy") else "aot_eager"  # the former takes its time
    torch._dynamo.reset()
    criterion = build(f"{name} --embed_dim 16 --loss_nir_nf_cblocks 1 --loss_nir_nf_fc_depth 2", 20)
    assert criterion.compiles == (name != "nir") and not build("antico_pair").compiles
    assert not criterion.mined and build("antico_pair --antico_base triplet").mined and build("pml.CircleLoss").mined
    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for labels in (torch.zeros(12, dtype=torch.long), torch.arange(12), LABELS, torch.randint(20, (12,))):
            embeddings = torch.randn(12, 16, requires_grad=True)
            inputs = [embeddings, *(p for p in criterion.parameters() if p.requires_grad)]
            value = compiled(embeddings, labels)
            gradients, logs = torch.autograd.grad(value, inputs), criterion.logs
            expected = criterion(embeddings, labels)
            torch.testing.assert_close(value, expected)
            for ours, plain in zip(gradients, torch.autograd.grad(expected, inputs)):
                torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
            assert logs == pytest.approx(criterion.logs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["proxynca", "proxyanchor", "antico_batch_proxy", "multisimilarity"])
def test_labels_of_any_whole_number_type(name):
    criterion = build(f"{name} --embed_dim 8")
    embeddings, labels = torch.randn(20, 8), torch.arange(20) % 10
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert criterion(embeddings, labels.to(dtype)) == criterion(embeddings, labels)


@pytest.mark.parametrize(
    "words, named",
    [
        ("antico_pear", "antico_pair"),
        ("none", "margin"),
        ("antico_pair --antico_base multisimilarit", "multisimilarity"),
        ("antico_pair --antico_base antico", "margin"),
        ("margin --batch_mining distanze", "distance"),
    ],
)
def test_an_unknown_name_is_one_line_that_says_a_known_one(words, named):
    with pytest.raises(ValueError, match=f"{words.split()[-1]}.*{named}") as problem:
        criteria.acting_flags(parse(words))
    assert "\n" not in str(problem.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: criteria.NPair(temperature=0),
        lambda: criteria.NormalizedSoftmax(10, 8, temperature=1e29),
        lambda: criteria.MultiSimilarity(alpha=-1),
        lambda: criteria.ProxyAnchor(10, 8, pos_alpha=0),
        lambda: criteria.ProxyNCA(10, 8, scale=0),
        lambda: criteria.ArcFace(10, 8, margin=28.6),  # degrees
        lambda: criteria.OProxy(10, 8, mode="none"),
        lambda: criteria.AntiCo(criteria.MultiSimilarity(), "pair", eps=0),
        lambda: criteria.AntiCo(criteria.MultiSimilarity(), "pear"),
        lambda: criteria.AntiCo(criteria.MultiSimilarity(), "pair", form="log"),
    ],
)
def test_constructors_refuse_what_leaves_no_gradient(make):
    with pytest.raises(ValueError):
        make()


def test_names_and_packages_are_checked_before_there_are_data_without_random_numbers(monkeypatch):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in NAMES:
        assert "loss" in criteria.acting_flags(parse(name))
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    for name, module in (("nir", "FrEIA"), ("pml.CircleLoss", "pytorch_metric_learning")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ValueError, match=f"pip install {module.replace('_', '-')}"):
            criteria.acting_flags(parse(name))


def test_a_base_has_the_defaults_of_its_own_name():
    alone, under = build("triplet"), build("antico_pair --antico_base triplet --batch_mining all").base
    assert alone.miner is under.miner is criteria.miners.every
    assert build("antico_pair --antico_base triplet").base.miner is criteria.miners.every
    assert build("antico_pair --antico_base triplet --batch_mining random").base.miner is criteria.miners.random
