import os
import subprocess
import sys

import pytest

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def bash(*words, cwd="/", **environment):
    environment = {**os.environ, **environment}
    return subprocess.run(["bash", *words], cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def interpreter(path, script):
    """A prepared interpreter that is a shell script."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_without_words_it_says_which_tables_there_are_and_installs_nothing(tmp_path):
    done = bash(os.path.join(HERE, "antico_runs.sh"), XDG_CACHE_HOME=str(tmp_path), ANTICO_PYTHON="")
    assert done.returncode == 0 and "quickstart" in done.stdout and os.listdir(tmp_path) == []


@pytest.mark.parametrize("script", ["antico_runs.sh quickstart", "run_tests.sh"])
def test_a_prepared_interpreter_that_lacks_packages_is_refused(script, tmp_path):
    name, *words = script.split()
    done = bash(os.path.join(HERE, name), *words, ANTICO_PYTHON=interpreter(tmp_path / "python", "exit 1"))
    assert done.returncode == 2 and "ANTICO_PYTHON" in done.stderr


def test_run_tests_hands_its_words_to_pytest_of_the_prepared_interpreter(tmp_path):
    prepared = interpreter(tmp_path / "python", f'echo "given: $*"\nexec {sys.executable} "$@"')
    done = bash(os.path.join(HERE, "run_tests.sh"), "--version", ANTICO_PYTHON=prepared)
    assert done.returncode == 0 and "given: -m pytest --version\npytest " in done.stdout


def test_the_environment_is_made_once(tmp_path):
    """With a venv and a pip that do nothing: the second run installs nothing and has the same interpreter."""
    make = f'case "$2" in venv) mkdir -p "$4/bin" && ln -s {sys.executable} "$4/bin/python" ;;'
    interpreter(tmp_path / "python3", f'{make} *) exec {sys.executable} "$@" ;; esac')
    install = '[ -e "$3" ] && return; echo "installing $2"; touch "$3"'
    script = f"cd '{HERE}' && source utilities/environment.sh && antico_install() {{ {install}; }}"
    script += ' && antico_environment test && echo "$PYTHON"'
    environment = {"XDG_CACHE_HOME": str(tmp_path), "ANTICO_PYTHON": "", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    first, second = bash("-c", script, **environment), bash("-c", script, **environment)
    assert first.returncode == second.returncode == 0, first.stderr
    assert first.stdout.count("installing") == 2 and "installing" not in second.stdout
    assert os.path.exists(second.stdout.split()[-1]) and second.stdout.split()[-1] == first.stdout.split()[-1]
