#!/usr/bin/env bash
# Make the environment with the test tools (once) and run the suite; arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source utilities/environment.sh
antico_environment test
exec "$PYTHON" -m pytest "${@:-tests}"
