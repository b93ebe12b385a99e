#!/usr/bin/env bash
# The runs behind every table: bash antico_runs.sh TABLE [DATA] [flags]; without words it says which tables there are.
# It prepares Python (once) and calls utilities/runs; the recipes are in utilities/recipes.py.
#
# ANTICO_PYTHON: a prepared interpreter, instead of the environment made under ~/.cache/antico
set -euo pipefail
export ANTICO_STARTED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source utilities/environment.sh

if [ -z "${ANTICO_PYTHON:-}" ]; then # what needs no environment, or is wrong, is answered before one is made
    python=$(antico_find_python)
    case " $* " in
    "  " | " -h " | " --help " | *" --dry_run "*) exec "$python" -m utilities.runs "$@" ;;
    esac
    "$python" -m utilities.runs "$@" --check
fi
# nir and timm's networks need packages that the tests bring
case "${1:-}" in quickstart | sweep) antico_environment ;; *) antico_environment test ;; esac
exec "$PYTHON" -m utilities.runs "$@"
