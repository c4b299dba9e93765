#!/usr/bin/env bash
# Makes or mends the environment in .venv; see ./install.sh --help. Safe to run again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# step: find Python
PYTHON=
candidates=(python3.11 python3.12 python3.10 python3 python)
[ -z "${AUDIOCRAFT_WEBUI_PYTHON:-}" ] || candidates=("$AUDIOCRAFT_WEBUI_PYTHON")
for candidate in "${candidates[@]}"; do
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' >/dev/null 2>&1; then
    PYTHON=$candidate
    break
  fi
done
# Conda brings the environment's Python: whichever runs the installer will do.
if [ -z "$PYTHON" ] && [[ " $* " == *" --conda "* ]]; then
  for candidate in "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1; then
      PYTHON=$candidate
      break
    fi
  done
fi

# step: no Python
if [ -z "$PYTHON" ]; then
  echo "install: no Python 3.10, 3.11 or 3.12 with venv was found." >&2
  echo "install: install Python 3.11 (Debian and Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.11)," >&2
  echo "install: or name one: AUDIOCRAFT_WEBUI_PYTHON=/path/to/python3.11 ./install.sh" >&2
  exit 1
fi

# step: install
exec "$PYTHON" scripts/install.py "$@"
