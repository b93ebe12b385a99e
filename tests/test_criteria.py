"""What every criterion does: checks, logs, autocast, compilation, errors that name the flag."""

import sys

import numpy as np
import pytest
import torch
from criteria_tools import select
from torch.nn.functional import normalize

import criteria
import parameters

NAMES = list(criteria.CRITERIA)
PROXY_LOSSES = ["proxyanchor", "oproxy", "proxynca", "normalized_softmax", "arcface"]


def build(name, d=8, n_classes=10):
    if name == "nir":
        pytest.importorskip("FrEIA")
    return criteria.select(parameters.parse(["--loss", name, "--embed_dim", str(d), "--bs", "12"]), n_classes)


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_trains_and_logs(name):
    criterion = build(name)
    spread, equal = torch.randn(12, 8, requires_grad=True), torch.ones(12, 8, requires_grad=True)
    batches = {
        "pairs": torch.arange(12) // 2,
        "one class": torch.zeros(12, dtype=torch.long),
        "mixed": torch.arange(12) % 10,
        "no positive pair": torch.arange(10),
        "one image": torch.tensor([3]),
    }
    for labels in batches.values():
        for embeddings in (spread, equal):
            criterion.zero_grad()
            embeddings.grad = None
            value = criterion(embeddings[: len(labels)], labels)
            value.backward()
            assert value.shape == () and torch.isfinite(value) and torch.isfinite(embeddings.grad).all()
            assert all(torch.isfinite(p.grad).all() for p in criterion.parameters() if p.grad is not None)
    assert criterion.logs and all(isinstance(v, float) for v in criterion.logs.values())
    own = {id(p) for group in criterion.param_groups(1e-3) for p in group["params"]}
    assert own == {
        id(p) for p in criterion.parameters() if p.requires_grad
    }  # nothing learnable is left out of the optimizer
    assert all(group["weight_decay"] == 0 for group in criterion.param_groups(1e-3))


@pytest.mark.parametrize("name", NAMES)
def test_every_criterion_says_what_is_wrong_with_its_input(name):
    criterion = build(name)
    labels = torch.arange(12) // 2
    named = criterion.name if name != "nir" else "proxyanchor|nir"
    with pytest.raises(ValueError, match=f"({named}): expects embeddings"):
        criterion(torch.zeros(0, 8), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=f"({named}): expects embeddings"):
        criterion(torch.zeros(12, 8), labels[:5])
    for bad in (float("nan"), float("inf")):
        embeddings = torch.randn(12, 8)
        embeddings[3, 2] = bad
        with pytest.raises(criteria.NonFinite, match=f"({named}): 1 of 12 embeddings"):
            criterion(embeddings, labels)
    for wrong in (10, -1):
        with pytest.raises(ValueError, match=rf"({named}): labels must be in 0\.\.9"):
            criterion(torch.randn(12, 8), torch.full((12,), wrong))
    with pytest.raises(ValueError, match=f"({named}): labels must be integers"):
        criterion(torch.randn(12, 8), labels.float())
    if hasattr(criterion, "proxies"):
        assert criterion.proxies.shape == (10, 8)
        with pytest.raises(ValueError, match=f"({named}): expects embeddings of 8 dimensions"):
            criterion(torch.randn(12, 7), labels)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_the_loss(name):
    torch.manual_seed(0)
    criterion = build(name, d=32)
    embeddings, labels = normalize(torch.randn(12, 32), dim=1), torch.arange(12) // 2
    values = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            values.append(float(criterion(embeddings, labels)))
    assert values[0] == values[1]
    assert criterion(embeddings.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize(
    "name",
    [
        "antico",
        "antico_pair",
        "antico_batch_proxy",
        "antico_all_proxy",
        "antico_class_means",
        *PROXY_LOSSES,
        "npair",
        "multisimilarity",
        "contrastive",
    ],
)
def test_compiles_whole_and_once(name):
    """fullgraph, the same values, gradients and logs, and no recompilation when the labels change."""
    backend = "inductor" if name == "antico_batch_proxy" else "aot_eager"  # the former takes its time
    torch._dynamo.reset()
    criterion = build(name, d=16, n_classes=20)
    compiled = torch.compile(criterion, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for labels in (
            torch.zeros(12, dtype=torch.long),
            torch.arange(12),
            torch.arange(12) // 2,
            torch.randint(20, (12,)),
        ):
            embeddings = torch.randn(12, 16, requires_grad=True)
            inputs = [embeddings, *criterion.parameters()]
            value = compiled(embeddings, labels)
            gradients, logs = torch.autograd.grad(value, inputs), criterion.logs
            expected = criterion(embeddings, labels)
            torch.testing.assert_close(value, expected)
            for ours, plain in zip(gradients, torch.autograd.grad(expected, inputs)):
                torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5)
            assert logs == pytest.approx(criterion.logs, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--loss", "antico_pear"], ["--loss antico_pear", "antico_pair", "known"]),
        (["--loss", "antico_pair", "--antico_base", "multisimilarit"], ["--antico_base", "multisimilarity"]),
        (["--loss", "antico_pair", "--antico_base", "antico"], ["--antico_base antico", "known"]),
        (["--loss", "none"], ["--loss none", "known"]),
        (
            ["--loss", "antico_batch_proxy", "--antico_base", "multisimilarity"],
            ["--antico_base multisimilarity", "no proxies", "proxyanchor"],
        ),
        (["--loss", "antico_all_proxy", "--antico_base", "none"], ["--antico_base none", "no proxies"]),
        (["--loss", "margin", "--batch_mining", "distanze"], ["--batch_mining distanze", "distance"]),
        *(
            (["--loss", loss, f"--{flag}", value], [f"--{flag} {value}", "positive"])
            for value in ("0", "1e+29")
            for loss, flag in (
                ("npair", "loss_npair_temperature"),
                ("normalized_softmax", "loss_normalized_softmax_temperature"),
                ("multisimilarity", "loss_multisimilarity_alpha"),
                ("multisimilarity", "loss_multisimilarity_beta"),
                ("proxyanchor", "loss_oproxy_pos_alpha"),
                ("oproxy", "loss_oproxy_neg_alpha"),
                ("proxynca", "loss_proxynca_scale"),
                ("arcface", "loss_arcface_scale"),
                ("antico_pair", "antico_gam1"),
                ("antico", "antico_gam1"),
                ("antico", "antico_gam2"),
            )
        ),
        (
            ["--loss", "antico_pair", "--antico_eps", "1e-8", "--antico_scale", "mcr2"],
            ["--antico_eps 1e-08", "float64"],
        ),
        (["--loss", "arcface", "--loss_arcface_margin", "28.6"], ["--loss_arcface_margin 28.6", "radians"]),
        (["--loss", "antico", "--antico_eps", "0"], ["--antico_eps 0: must be positive"]),
        *(
            (["--loss", "margin", "--batch_mining", miner, f"--{flag}", value], [f"--{flag} {value}: must", words])
            for miner, flag, value, words in (
                ("distance", "miner_distance_lower_cutoff", "1.5", "be below --miner_distance_upper_cutoff 1.4"),
                ("distance", "miner_distance_upper_cutoff", "2.5", "be from 0 to 2"),
                ("rho_distance", "miner_rho_distance_lower_cutoff", "1.9", "below --miner_rho_distance_upper_cutoff"),
                ("rho_distance", "miner_rho_distance_cp", "1.5", "be from 0 to 1"),
                ("semihard", "miner_semihard_margin", "-1", "be from 0 to 2"),
            )
        ),
        *(
            (["--loss", loss, f"--{flag}", "-1"], [f"--{flag} -1: must not be below 0"])
            for loss, flag in (
                ("margin", "loss_margin_beta_lr"),
                ("proxyanchor", "loss_oproxy_lrmulti"),
                ("proxynca", "loss_proxynca_lrmulti"),
                ("normalized_softmax", "loss_normalized_softmax_lrmulti"),
                ("arcface", "loss_arcface_lrmulti"),
                ("nir", "loss_nir_lrmulti"),
                ("nir", "loss_nir_proxy_lrmulti"),
                ("nir", "loss_nir_noise"),
                ("nir", "loss_nir_nf_clamp_alpha"),
                ("pml.CircleLoss", "pml_lrmulti"),
            )
        ),
        *(
            (["--loss", "nir", f"--loss_nir_{flag}", value], [f"--loss_nir_{flag} {value}: must be from"])
            for flag, value in (("nf_cblocks", "0"), ("nf_fc_depth", "0"), ("nf_fc_width", "0"), ("nf_fc_dropout", "2"))
        ),
    ],
)
def test_errors_are_one_line_that_names_the_flag_before_anything_is_loaded(argv, words):
    """Wherever it is checked, in the constructor or in the first step."""
    state = torch.get_rng_state()
    with pytest.raises(ValueError) as problem:
        criteria.check(parameters.parse(argv))
    assert "\n" not in str(problem.value) and all(word in str(problem.value) for word in words), problem.value
    assert torch.equal(torch.get_rng_state(), state)


def test_a_scale_that_only_many_classes_make_too_large_is_one_line():
    opt = parameters.parse(["--loss", "antico_all_proxy", "--antico_eps", "1e-7", "--embed_dim", "8"])
    criteria.check(opt)
    criteria.select(opt, 100)
    with pytest.raises(ValueError, match="--antico_eps 1e-07 .* beyond 1e\\+14: float64 loses the identity"):
        criteria.select(opt, 11318)


def test_a_check_changes_nothing_and_needs_no_library_to_evaluate(monkeypatch):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for name in NAMES:
        if name == "nir":
            pytest.importorskip("FrEIA")
        criteria.check(parameters.parse(["--loss", name, "--embed_dim", "8"]))
    assert torch.equal(torch.get_rng_state(), state) and (np.random.get_state()[1] == numpy_state).all()
    monkeypatch.setitem(sys.modules, "FrEIA.framework", None)
    criteria.check(parameters.parse(["--loss", "nir", "--evaluate_only", "--checkpoint", "nowhere/best.pt"]))
    with pytest.raises(ValueError, match="--loss nir: needs FrEIA: pip install FrEIA"):
        criteria.check(parameters.parse(["--loss", "nir"]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "given, own",
    [
        (torch.float64, None),
        (torch.float16, None),
        (torch.float32, torch.float16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float64),
        (torch.float64, torch.float16),
    ],
    ids=str,
)
def test_any_precision_of_embeddings_and_proxies(name, given, own):
    """A value near float32's and gradients in the inputs' own dtypes, or one line."""
    torch.manual_seed(0)
    criterion = build(name, d=16).eval()
    embeddings, labels = normalize(torch.randn(12, 16), dim=1), torch.arange(12) // 2
    torch.manual_seed(1)  # of what is mined
    expected = float(criterion(embeddings, labels))
    criterion.to(own or torch.float32)
    x = embeddings.to(given).requires_grad_()
    if name == "nir" and own is torch.float16:
        with pytest.raises(ValueError, match="nir: its flow is torch.float16; keep the loss in float32"):
            criterion(x, labels)
        return
    torch.manual_seed(1)
    value = criterion(x, labels)
    value.backward()
    of_all = [given, *(p.dtype for p in criterion.parameters())]
    assert value.dtype == (torch.float64 if torch.float64 in of_all else torch.float32)
    assert float(value) == pytest.approx(expected, rel=2e-2, abs=2e-2)
    assert x.grad.dtype == given and torch.isfinite(x.grad).all()


def test_embeddings_whose_length_overflows_are_told():
    """float32 rows of length 1e20 would be normalised to 0."""
    criterion = build("multisimilarity")
    embeddings = torch.randn(12, 8)
    embeddings[3] *= 1e20
    with pytest.raises(criteria.NonFinite, match="1 of 12 embeddings have a squared length beyond float32"):
        criterion(embeddings, torch.arange(12) // 2)
    assert torch.isfinite(criterion(embeddings.double(), torch.arange(12) // 2))


def test_a_base_has_the_defaults_of_its_own_name():
    """--antico_base triplet is what --loss triplet is: all triplets, not the published default of --batch_mining."""
    alone, under = select(10, "--loss", "triplet"), select(10, "--loss", "antico_pair", "--antico_base", "triplet").base
    assert alone.miner is under.miner is criteria.miners.every
    given = select(10, "--loss", "antico_pair", "--antico_base", "triplet", "--batch_mining", "random").base
    assert given.miner is criteria.miners.random


@pytest.mark.parametrize("loss", ["proxynca", "proxyanchor", "antico_batch_proxy", "multisimilarity"])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_labels_of_any_whole_number_type(loss, dtype):
    criterion = criteria.select(parameters.parse(["--loss", loss, "--embed_dim", "8"]), 10)
    embeddings, labels = torch.randn(20, 8), torch.arange(20) % 10
    assert criterion(embeddings, labels.to(dtype)) == criterion(embeddings, labels)
