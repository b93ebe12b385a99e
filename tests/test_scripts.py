import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bash(*words, **environment):
    return subprocess.run(
        ["bash", *words], cwd="/", capture_output=True, text=True, timeout=120, env={**os.environ, **environment}
    )


def test_usage_and_unknown_task():
    usage = bash(os.path.join(HERE, "antico_runs.sh"))
    assert usage.returncode == 0 and "quickstart" in usage.stdout
    wrong = bash(os.path.join(HERE, "antico_runs.sh"), "quickstrat")
    assert wrong.returncode == 2 and "quickstrat: must be quickstart" in wrong.stderr


@pytest.mark.parametrize("script", ["antico_runs.sh quickstart", "run_tests.sh"])
def test_a_prepared_interpreter_that_lacks_packages_is_refused(script, tmp_path):
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    name, *words = script.split()
    done = bash(os.path.join(HERE, name), *words, ANTICO_PYTHON=str(fake))
    assert done.returncode == 2 and "ANTICO_PYTHON" in done.stderr


def test_run_tests_uses_the_prepared_interpreter():
    done = bash(
        os.path.join(HERE, "run_tests.sh"),
        "tests/test_parameters.py",
        "-k",
        "help_explains",
        ANTICO_PYTHON=sys.executable,
    )
    assert done.returncode == 0 and "1 passed" in done.stdout


def test_environment_is_made_once_and_named_by_the_requirements(tmp_path):
    """With a pip that does nothing: the marks, the name's hash, and the second run that installs nothing."""
    script = f'cd {HERE} && source utilities/environment.sh && antico_install() {{ [ -e "$3" ] && return; echo "installing $2"; touch "$3"; }} && antico_environment test && echo "$PYTHON"'
    environment = {"XDG_CACHE_HOME": str(tmp_path), "ANTICO_PYTHON": ""}
    first, second = bash("-c", script, **environment), bash("-c", script, **environment)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout.count("installing") == 2 and "installing" not in second.stdout
    python = second.stdout.split()[-1]
    assert os.path.exists(python) and python == first.stdout.split()[-1] and "venv-" in python
