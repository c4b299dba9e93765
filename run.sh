#!/usr/bin/env bash
# Installs what is missing, then starts the program with the flags given; see ./run.sh --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# step: environment
PYTHON=.venv/bin/python

# step: install if needed
if ! "$PYTHON" scripts/install.py --check >/dev/null 2>&1; then
  ./install.sh
fi

# step: start
exec "$PYTHON" webui.py "$@"
