"""The losses' flags in their constructors, what README.md says of adding a loss, and the losses without argparse."""

import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import criteria
import parameters
from criteria import AntiCo, MultiSimilarity, OProxy, ProxyAnchor, coding_rate
from criteria.pml import ModuleLoss
from utilities import registry

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ENTRIES = {**criteria.CRITERIA, **criteria.MINERS, "none": criteria.NONE, "pml.<ClassName>": criteria.BRIDGE}
with open(os.path.join(HERE, "criteria", "README.md"), encoding="utf-8") as README:
    OWN_LOOP, NEW_LOSS, NEW_LINE = re.findall(r"```python\n(.*?)```", README.read(), re.DOTALL)

# the flags


@pytest.mark.parametrize("name", ENTRIES)
def test_flags_read_from_the_source_are_those_of_the_constructor(name):
    """Every argument but those that the run or the entry gives is a flag, and every flag has the argument's default."""
    entry = ENTRIES[name]
    of_signature = inspect.signature(pkgutil.resolve_name(entry.where)).parameters
    flags = {flag.argument: flag for flag in registry.flags(entry.where)}
    of_the_run = {"n_classes", "embed_dim", "embeddings", "labels", "flag", "name", "published", "raw_embeddings"}
    assert set(of_signature) - set(flags) - of_the_run - set(entry.fixed) == set()
    for argument, flag in flags.items():
        default = of_signature[argument].default
        if flag.name not in ("batch_mining", "antico_base"):
            assert flag.default == default and (default is None or flag.kind is type(default))
    assert set(entry.fixed) <= set(of_signature)
    assert set(entry.defaults) <= set(vars(parameters.parse([])))


def test_every_kind_of_flag_is_read(tmp_path, monkeypatch):
    (tmp_path / "some_loss.py").write_text(
        "from typing import Literal\n"
        "raise SystemExit('imported')\n"
        "Modes = Literal['a', 'b']\n"
        "class Other:\n    def __init__(self, x=1,  # --not_this: no\n    ): ...\n"
        "class Plain: ...\n"
        "class Loss:\n"
        "    def helper(self, y=1,  # --nor_this: no\n    ): ...\n"
        "    def __init__(\n        self,\n        n_classes,\n        hidden=3,  # no flag\n"
        "        size=3,  # --size: whole\n        rate=-1e-3,  # --rate: 100% of it, # too\n"
        "        mode: Modes = 'a',  # --mode: one of two\n        w: float | None = None,  # --w: by name\n"
        "        on=False,  # --on: a switch\n        words=(),  # --words: several\n    ): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert [tuple(flag) for flag in registry.flags("some_loss:Loss")] == [
        ("size", "size", 3, int, (), "whole"),
        ("rate", "rate", -1e-3, float, (), "100% of it, # too"),
        ("mode", "mode", "a", str, ("a", "b"), "one of two"),
        ("w", "w", None, float, (), "by name"),
        ("on", "on", False, bool, (), "a switch"),
        ("words", "words", (), tuple, (), "several"),
    ]
    assert registry.flags("some_loss:Plain") == []
    with pytest.raises(ImportError, match="some_loss:Los: .*some_loss.py has no class or function Los"):
        registry.flags("some_loss:Los")
    with pytest.raises(ImportError, match="some_lost:Loss: there is no module some_lost"):
        registry.flags("some_lost:Loss")


def test_every_flag_reaches_its_argument(monkeypatch):
    """Each one given a value of its own on the command line, for each loss: what the constructor is called with."""
    values = {float: "0.625", int: "3", tuple: "m=0.25"}
    for name, entry in {**criteria.CRITERIA, **criteria.MINERS}.items():
        flags = [flag for flag in registry.flags(entry.where) if flag.name not in ("batch_mining", "antico_base")]
        given = {flag: flag.choices[1] if flag.choices else values[flag.kind] for flag in flags}
        if "antico_type" in entry.defaults:  # the name fixes it
            given = {flag: value for flag, value in given.items() if flag.name != "antico_type"}
        loss = ["--loss", "margin", "--batch_mining", name] if name in criteria.MINERS else ["--loss", name]
        if name in ("antico_pair", "antico_class_means"):
            loss += ["--antico_base", "proxyanchor"]
        else:  # which have no use for it, and say so
            given = {flag: value for flag, value in given.items() if flag.name != "antico_w_proxies"}
        opt = parameters.parse([*loss, *(word for flag in given for word in (f"--{flag.name}", given[flag]))])
        called, resolve_name = {}, pkgutil.resolve_name
        make = resolve_name(entry.where)

        def resolve(where, entry=entry, make=make, called=called, resolve_name=resolve_name):
            if where != entry.where or called:
                return resolve_name(where)

            def record(**arguments):
                called.update(arguments)
                return make(**arguments)

            record.__signature__ = inspect.signature(make)
            return record

        if name in criteria.MINERS:
            mined = criteria.select_miner(opt)
            called = mined.keywords if isinstance(mined, partial) else {}
        else:
            monkeypatch.setattr(criteria.pkgutil, "resolve_name", resolve)
            if name == "nir":
                pytest.importorskip("FrEIA")
            criteria.select(opt, 10)
            monkeypatch.undo()
        for flag, value in given.items():
            expected = entry.fixed.get(flag.argument, value if flag.choices else flag.kind(value))
            assert called[flag.argument] == expected, (name, flag)
        assert all(called[argument] == value for argument, value in entry.fixed.items() if argument != "base")


# a loss of one's own, as README.md has it


@pytest.fixture(scope="module")
def checkout_with_a_new_loss(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("criteria", "utilities", "parameters.py"):
        copy = shutil.copytree if "." not in name else shutil.copy
        copy(os.path.join(HERE, name), folder / name)
    assert NEW_LINE.count("\n") == 1
    (folder / "criteria" / "cosine.py").write_text(NEW_LOSS)
    registry_file = folder / "criteria" / "__init__.py"
    text = registry_file.read_text(encoding="utf-8")
    registry_file.write_text(text.replace("BASES = {\n", "BASES = {\n" + NEW_LINE), encoding="utf-8")
    return folder


def test_a_new_loss_is_one_file_and_one_line(checkout_with_a_new_loss):
    code = """
import torch, parameters, criteria
text = parameters.build_parser().format_help()
assert "--loss cosine:" in text and "--loss_cosine_margin X" in text
labels, x = torch.arange(12) // 2, torch.randn(12, 8, requires_grad=True)
alone = parameters.parse(["--loss", "cosine", "--loss_cosine_margin", "0.3", "--embed_dim", "8"])
under = parameters.parse(["--loss", "antico_pair", "--antico_base", "cosine", "--embed_dim", "8"])
other = parameters.parse(["--loss", "margin", "--loss_cosine_margin", "0.3"])
for opt, margin in ((alone, 0.3), (under, 0.4)):
    criteria.check(opt)
    criterion = criteria.select(opt, 6)
    criterion(x, labels).backward()
    assert getattr(criterion, "base", criterion).margin == margin and "positive" in criterion.logs
    assert "loss_cosine_margin" not in parameters.without_effect(opt)
assert parameters.note(other).startswith("note: --loss_cosine_margin: no effect")
from criteria import Cosine
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=checkout_with_a_new_loss, capture_output=True, text=True, timeout=100
    )
    assert done.stdout == "done\n", done.stderr


# in one's own loop


def test_the_ten_lines_of_the_readme_train(capsys):
    torch.manual_seed(0)
    names = {}
    exec(OWN_LOOP, names)
    assert "'coding_rate_share'" in capsys.readouterr().out
    criterion, optimizer = names["criterion"], names["optimizer"]
    assert (criterion.form, criterion.align, criterion.w) == ("normalized", 1.0, 100.0)
    assert [group["lr"] for group in optimizer.param_groups] == [1e-4, 0.2]
    assert criterion.proxies.grad.norm() > 0 and names["network"].weight.grad.norm() > 0


@pytest.mark.parametrize("variant", ["pair", "batch_proxy", "all_proxy", "class_means"])
@pytest.mark.parametrize("name", ["proxyanchor", "normalized_softmax"])
def test_the_constructor_has_the_defaults_of_the_command_line(variant, name):
    base = ["--antico_base", name, "--embed_dim", "8"]
    own = AntiCo(ProxyAnchor(10, 8) if name == "proxyanchor" else criteria.NormalizedSoftmax(10, 8), variant)
    selected = criteria.select(parameters.parse(["--loss", f"antico_{variant}", *base]), 10)
    plain = (str, float, int, bool)
    for a, b in ((own, selected), (own.base, selected.base)):
        assert {k: v for k, v in vars(a).items() if isinstance(v, plain)} == {
            k: v for k, v in vars(b).items() if isinstance(v, plain)
        }


def test_proxyanchor_is_the_class_of_its_name():
    torch.manual_seed(0)
    own = ProxyAnchor(10, 8)
    torch.manual_seed(0)
    selected = criteria.select(parameters.parse(["--loss", "proxyanchor", "--embed_dim", "8"]), 10)
    assert isinstance(own, OProxy) and torch.equal(own.proxies, selected.proxies)
    assert (own.mode, own.published, own.name) == (selected.mode, selected.published, selected.name)


def test_names_come_from_the_package():
    assert criteria.coding_rate is coding_rate and isinstance(MultiSimilarity(), criteria.Criterion)
    with pytest.raises(AttributeError, match="module 'criteria' has no attribute 'Cosinus'"):
        criteria.Cosinus
    with pytest.raises(ImportError):
        from criteria import nothing  # noqa: F401


def test_coding_rate_is_the_module_and_the_function():
    Z = np.random.default_rng(0).normal(size=(7, 5))
    expected = 0.5 * np.linalg.slogdet(np.eye(5) + 5 / (7 * 0.5) * Z.T @ Z)[1]
    assert float(coding_rate(Z)) == float(coding_rate.coding_rate(Z)) == pytest.approx(expected, rel=1e-12)
    assert float(coding_rate(torch.tensor(Z), scale=0.3)) == float(criteria.coding_rate.coding_rate(Z, 0.3))


class ClassCentres(torch.nn.Module):
    """A loss that knows nothing of this project."""

    def __init__(self, n_classes, d, turned_round):
        super().__init__()
        vectors = torch.randn(n_classes, d)
        name, vectors = ("W", vectors.T.contiguous()) if turned_round else ("proxies", vectors)
        setattr(self, name, torch.nn.Parameter(vectors))

    def forward(self, embeddings, labels):
        vectors = self.proxies if hasattr(self, "proxies") else self.W.T
        return (embeddings - vectors[labels]).square().sum(1).mean()


@pytest.mark.parametrize("turned_round", [False, True], ids=["proxies", "W"])
@pytest.mark.parametrize("variant", ["pair", "batch_proxy", "all_proxy"])
def test_a_plain_module_is_a_base(variant, turned_round):
    """Against the objective written out: base + w (1 - R/R_max), R of the module's vectors or of the embeddings."""
    torch.manual_seed(0)
    module = ClassCentres(6, 8, turned_round).double()
    criterion = AntiCo(module, variant, w=3.0)
    embeddings, labels = torch.randn(10, 8, dtype=torch.float64, requires_grad=True), torch.arange(10) % 4
    value = criterion(embeddings, labels)
    vectors = module.W.T if turned_round else module.proxies
    Z = {"pair": embeddings, "batch_proxy": vectors[:4], "all_proxy": vectors}[variant]
    Z = normalize(Z, dim=1).detach()
    n, d = Z.shape
    s = d / (n * 0.5) if variant == "pair" else n / (d * 0.5)
    rate = 0.5 * torch.logdet(torch.eye(d) + s * Z.T @ Z)
    largest = min(n, d) / 2 * np.log1p(s * n / min(n, d))
    expected = float(module(embeddings, labels)) + 3 * (1 - float(rate) / largest)
    assert float(value) == pytest.approx(expected, rel=1e-9) and criterion.logs["base"] > 0
    (group,) = criterion.param_groups(1e-3)
    assert group["lr"] == 2.0 and {id(p) for p in group["params"]} == {id(p) for p in module.parameters()}
    before = vectors.detach().clone()
    value.backward()
    torch.optim.SGD([{"params": [embeddings]}, group], lr=1e-3).step()
    assert not torch.equal(before, (module.W.T if turned_round else module.proxies).detach())
    with pytest.raises(ValueError, match=r"ClassCentres: labels must be in 0\.\.5, got 0\.\.6"):
        criterion.base(embeddings, torch.arange(10) % 7)


def test_a_plain_module_without_one_vector_a_class_is_told():
    for module in (torch.nn.Linear(3, 3), ModuleLoss(ClassCentres(12, 8, False), n_classes=6)):
        with pytest.raises(ValueError, match="has no proxies, one a class: antico_all_proxy needs a proxy loss"):
            AntiCo(module, "all_proxy")


@pytest.mark.parametrize("name", ["ProxyAnchorLoss", "ProxyNCALoss", "NormalizedSoftmaxLoss", "ArcFaceLoss"])
def test_pytorch_metric_learnings_losses_are_bases(name):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    criterion = AntiCo(getattr(losses, name)(num_classes=6, embedding_size=8), "all_proxy")
    embeddings = torch.randn(10, 8, requires_grad=True)
    criterion(embeddings, torch.arange(10) % 6).backward()
    assert criterion.proxies.shape == (6, 8) and criterion.n_classes == 6 and embeddings.grad.norm() > 0
    assert AntiCo(losses.SupConLoss(), "pair").param_groups(1.0) == []
    with pytest.raises(ValueError, match="SubCenterArcFaceLoss has no proxies"):
        AntiCo(losses.SubCenterArcFaceLoss(num_classes=6, embedding_size=8), "all_proxy")
