import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from tests.runs import image_folder

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bash(*words, cwd="/", **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", *words], cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def test_usage_and_unknown_task():
    usage = bash(os.path.join(HERE, "antico_runs.sh"))
    assert usage.returncode == 0 and "quickstart" in usage.stdout
    wrong = bash(os.path.join(HERE, "antico_runs.sh"), "quickstrat")
    assert wrong.returncode == 2 and "TABLE quickstrat: unknown (did you mean quickstart?)" in wrong.stderr
    assert wrong.stderr.count("\n") == 1


def test_nothing_is_installed_for_a_wrong_word_or_a_dry_run(tmp_path):
    script = os.path.join(HERE, "antico_runs.sh")
    for words, status in ((["main", "/no such"], 2), (["quickstart", "--dry_run"], 0), (["grid", "--grid", "x"], 2)):
        done = bash(script, *words, XDG_CACHE_HOME=str(tmp_path), ANTICO_PYTHON="")
        assert done.returncode == status and os.listdir(tmp_path) == [], done.stderr


def test_a_table_of_true_runs_killed_and_finished(tmp_path):
    """Words with spaces, relative to where the user stands; the run in the middle of which all was killed goes on."""
    image_folder(tmp_path / "my data")
    words = ["grid", "my data", "--datasets", "folder", "--archs", "conv4", "--out", "my results"]
    words += shlex.split(
        "--grid loss=antico_pair,proxyanchor --n_epochs 3 --bs 16 --embed_dim 8 --kernels 0 --lr 1e-3 --input_size 32"
    )
    words += shlex.split("--evaluation_metrics e_recall@1 coding_rate@share --allow_partial")
    line = ["bash", os.path.join(HERE, "antico_runs.sh"), *words]
    environment = {"ANTICO_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    runs = tmp_path / "my results" / "runs" / "folder"

    def lines():
        return {path.parent.name: path.read_text().count("\n") for path in runs.glob("*/metrics.csv")}

    process = subprocess.Popen(line, cwd=tmp_path, env={**os.environ, **environment}, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(3 <= count < 5 for count in lines().values()):
        time.sleep(0.01)
    children = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    for pid in [process.pid, *(int(word) for path in children for word in path.read_text().split())]:
        os.kill(pid, signal.SIGKILL)
    process.wait()
    before = lines()
    assert any(count < 5 for count in before.values())  # a heading, the untrained network, three epochs

    done = bash(*line[1:], cwd=tmp_path, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(lines()) == 2 and set(lines().values()) == {5}
    for folder in runs.glob("*_s?"):
        config = json.loads((folder / "config.json").read_text())
        assert len(config["history"]) == (before.get(folder.name, 5) < 5), folder
        assert config["flags"]["source_path"] == str(tmp_path / "my data")
    (table,) = (tmp_path / "my results").glob("*.md")
    assert "proxyanchor" in table.read_text().lower()


@pytest.mark.parametrize("script", ["antico_runs.sh quickstart", "run_tests.sh"])
def test_a_prepared_interpreter_that_lacks_packages_is_refused(script, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    name, *words = script.split()
    done = bash(os.path.join(HERE, name), *words, ANTICO_PYTHON=str(fake))
    assert done.returncode == 2 and "ANTICO_PYTHON" in done.stderr


def test_run_tests_hands_its_words_to_pytest_of_the_prepared_interpreter(tmp_path):
    prepared = tmp_path / "python"
    prepared.write_text(f'#!/bin/sh\necho "given: $*"\nexec {sys.executable} "$@"\n')
    prepared.chmod(0o755)
    done = bash(os.path.join(HERE, "run_tests.sh"), "--version", ANTICO_PYTHON=str(prepared))
    assert done.returncode == 0 and "given: -m pytest --version\npytest " in done.stdout


def test_environment_is_made_once_and_named_by_the_requirements(tmp_path):
    """With a pip that does nothing: the marks, the name's hash, and the second run that installs nothing."""
    install = '[ -e "$3" ] && return; echo "installing $2"; touch "$3"'
    script = f"cd '{HERE}' && source utilities/environment.sh && antico_install() {{ {install}; }}"
    script += ' && antico_environment test && echo "$PYTHON"'
    environment = {"XDG_CACHE_HOME": str(tmp_path), "ANTICO_PYTHON": ""}
    first, second = bash("-c", script, **environment), bash("-c", script, **environment)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout.count("installing") == 2 and "installing" not in second.stdout
    python = second.stdout.split()[-1]
    assert os.path.exists(python) and python == first.stdout.split()[-1] and "venv-" in python
