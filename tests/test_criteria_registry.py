"""The losses' flags are their constructors' arguments, also those of a loss that somebody adds."""

import functools
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from criteria_tools import build, parse

import criteria
import parameters
from criteria import AntiCo
from criteria.base import arguments_of

HERE = Path(__file__).resolve().parents[1]
# facts of the data, parts, and what the name of a loss fixes
NO_FLAGS = {"n_classes", "embed_dim", "embeddings", "labels", "base", "miner", "name", "raw_embeddings", "std"}
LOSSES = [*criteria.CRITERIA, "pml.ArcFaceLoss"]
MINERS = [f"margin --batch_mining {name}" for name in criteria.MINERS]


def recorded(words, more, monkeypatch):
    """(the class or function behind the loss, or behind the miner where one is named; what it is called with)."""
    name = words.split()[-1]
    if name in criteria.MINERS:
        miner = build(f"{words} {more}").miner
        return criteria.MINERS[name], miner.keywords if isinstance(miner, functools.partial) else {}
    make = criteria.CRITERIA.get(name, criteria.library_loss)
    owner, attribute = (criteria, "library_loss") if make is criteria.library_loss else (make, "__init__")
    real, called = getattr(owner, attribute), {}

    @functools.wraps(real)
    def record(*own, **arguments):
        called.update(arguments)
        return real(*own, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, record)
        build(f"{words} {more}")
    return make, called


def value_of_its_own(default, choices, number):
    """A value, another than the default and for each number another: 2, 3, ... or 0.3, 0.31, ..."""
    if choices:
        return next(choice for choice in choices if choice != default)
    return "margin=0.25" if default == [] else number + 2 if type(default) is int else round(0.3 + number / 100, 2)


@pytest.mark.parametrize("words", LOSSES + MINERS)
def test_every_argument_has_its_flag(words, monkeypatch):
    """By default they are equal; and each flag of the loss, given a value of its own, reaches the argument."""
    make, called = recorded(words, "", monkeypatch)
    parts = reversed(make.__mro__[:-1]) if isinstance(make, type) else [make]
    defaults = {name: a.default for part in parts for name, a in inspect.signature(part).parameters.items()}
    expected = {name: defaults[name] for name in arguments_of(make) if name not in NO_FLAGS}
    assert set(expected) == set(called) - NO_FLAGS
    by_name = {"variant"} if words.startswith("antico_") else set()
    for argument, default in expected.items():
        published = words == "antico"  # whose command line has its own
        if default is not None and argument not in by_name and not published:
            assert called[argument] == (list(default) if isinstance(default, tuple) else default), argument

    known, opt = parameters.flags(), parse(words)
    own = criteria.acting_flags(opt) - {"loss", "batch_mining", "antico_base"} - ({"antico_type"} if by_name else set())
    numbered = enumerate(name for name in known if name in own)
    values = {name: value_of_its_own(getattr(opt, name), known[name].choices, number) for number, name in numbered}
    line = " ".join(f"--{name} {value}" for name, value in values.items())
    for argument, value in recorded(words, line, monkeypatch)[1].items():
        if argument not in NO_FLAGS | by_name:
            (flag,) = [name for name in values if value in (values[name], [values[name]])]
            assert flag.endswith(argument.replace("lr_multi", "lrmulti")) or flag in criteria.PUBLISHED.values()


def test_every_flag_of_a_loss_belongs_to_one():
    acting = set().union(*(criteria.acting_flags(parse(words)) for words in LOSSES + MINERS))
    beginnings = ("loss_", "antico_", "miner_", "pml_")
    known = {n for n, flag in parameters.flags().items() if n.startswith(beginnings) and flag.role != "nothing"}
    assert acting == known | {"loss", "batch_mining"}
    assert "pml_lrmulti" not in criteria.acting_flags(parse("pml.CircleLoss"))  # learns nothing


PROXIED = [name for name, cls in criteria.BASES.items() if issubclass(cls, (criteria.ProxyCriterion, criteria.NIR))]
OVER = [(f"{rows}_proxy", base) for rows in ("batch", "all") for base in PROXIED]
OVER += [(v, base) for v in ("pair", "class_means") for base in [*criteria.BASES, "none", "pml.SupConLoss"]]


@pytest.mark.parametrize("variant, base", OVER)
def test_antico_has_the_defaults_of_the_command_line(variant, base):
    selected = build(f"antico_{variant} --antico_base {base}")
    own = AntiCo(selected.base, variant)
    for setting in ("w", "eps", "form", "align", "scale", "gam1", "gam2", "variant"):
        assert getattr(own, setting) == getattr(selected, setting), setting


README = re.findall(r"```python\n(.*?)```", (HERE / "criteria" / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_loop_of_the_readme_trains(capsys):
    torch.manual_seed(0)
    names = {}
    exec(README[0], names)
    assert "'coding_rate_share'" in capsys.readouterr().out
    assert names["criterion"].proxies.grad.norm() > 0 and names["network"].weight.grad.norm() > 0


# a loss of one's own: the README's, and one that derives from another

WIDER = """

class Wider(Margin):
    def __init__(self, extra=0.5, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra
"""
USE = """
import torch, criteria, parameters
labels, x = torch.arange(12) // 2, torch.randn(12, 8)

def make(words):
    opt = parameters.parse([*words.split(), "--embed_dim", "8"])
    criterion = criteria.select(opt, 6)
    assert torch.isfinite(criterion(x, labels))
    return getattr(criterion, "base", criterion), criteria.acting_flags(opt)

assert "--loss_cosine_margin X" in parameters.build_parser().format_help()
for chosen in ("--loss {}", "--loss antico_pair --antico_base {}", "--loss antico --antico_type pair --antico_base {}"):
    cosine, acting = make(chosen.format("cosine"))
    assert (cosine.margin, cosine.weight) == (0.4, 1) and {"loss_cosine_margin", "loss_cosine_weight"} <= acting
    cosine, _ = make(chosen.format("cosine") + " --loss_cosine_margin 0.3 --loss_cosine_weight 4")
    assert (cosine.margin, cosine.weight) == (0.3, 4)
    wider, acting = make(chosen.format("wider"))
    assert (wider.extra, wider.margin, round(float(wider.beta), 4), wider.beta_lr) == (0.5, 0.2, 1.2, 5e-4)
    assert {"loss_wider_extra", "loss_margin_margin", "loss_margin_beta", "batch_mining"} <= acting
    wider, _ = make(chosen.format("wider") + " --loss_wider_extra 0.7 --loss_margin_margin 0.4 --batch_mining all")
    assert (wider.extra, wider.margin, wider.miner) == (0.7, 0.4, criteria.miners.every)
opt = parameters.parse("--loss margin --loss_wider_extra 0.7".split())
assert "loss_wider_extra" in parameters.without_effect(opt, criteria.acting_flags(opt))
print("done")
"""


def insert(path, after, lines):
    text = path.read_text(encoding="utf-8")
    assert text.count(after) == 1
    path.write_text(text.replace(after, after + lines), encoding="utf-8")


def test_a_loss_is_its_file_a_line_and_its_flags(tmp_path):
    for name in ("criteria", "utilities"):
        shutil.copytree(HERE / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "study"))
    shutil.copy(HERE / "parameters.py", tmp_path)
    (tmp_path / "criteria" / "cosine.py").write_text(f"from criteria.margin import Margin\n{README[1]}{WIDER}")
    registry, flags = tmp_path / "criteria" / "__init__.py", tmp_path / "parameters.py"
    insert(registry, "from criteria.triplet import Triplet\n", "from criteria.cosine import Cosine, Wider\n")
    insert(registry, "\nBASES = {\n", f'{README[2]}    "wider": Wider,\n')
    wider = '    flag(g, "loss_wider_extra", 0.5, "what Margin has not")'
    insert(flags, 'add_group(parser, "pair losses")', f"\n{README[3]}{wider}")
    done = subprocess.run([sys.executable, "-c", USE], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stdout == "done\n", done.stderr
