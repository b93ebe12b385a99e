#!/usr/bin/env bash
# Make the environment with the test tools (once), look at the style, run the suite in two processes. Arguments go to
# pytest, which then runs alone: bash run_tests.sh tests/test_state.py
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utilities/environment.sh
antico_environment test
if [ $# -eq 0 ]; then
    if "$PYTHON" -m ruff --version >/dev/null 2>&1; then
        "$PYTHON" -m ruff check --quiet .
        "$PYTHON" -m ruff format --check --quiet . || { echo "error: not formatted; run: ruff format ." >&2; exit 1; }
    else
        echo "note: $PYTHON has no ruff; the style is not checked"
    fi
    set -- tests
    if "$PYTHON" -c "import xdist" 2>/dev/null; then # a test has one thread; the files that take longest come first
        longest=(tests/test_{scripts,torchrun,distributed,main,benchmarks,resume}.py)
        set -- -n 2 --dist loadfile --no-loadscope-reorder "${longest[@]}" tests
    fi
fi
exec "$PYTHON" -m pytest "$@"
