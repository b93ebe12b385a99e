#!/usr/bin/env bash
# The runs behind every table: bash antico_runs.sh TABLE [DATA] [flags]; without words it says which tables there are.
# It prepares Python (once) and calls tables/runs.py; the recipes are in tables/recipes.py.
#
# ANTICO_PYTHON: a prepared interpreter, instead of the environment made under ~/.cache/antico
set -euo pipefail
export ANTICO_STARTED_IN=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
source utilities/environment.sh

case "${1:-}" in
"" | -h | --help) PYTHON=${ANTICO_PYTHON:-$(antico_find_python)} ;; # needs no environment
quickstart) antico_environment ;;
*) antico_environment test ;; # nir and timm's networks need packages that the tests bring
esac
exec "$PYTHON" -m tables.runs "$@"
