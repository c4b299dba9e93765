#!/usr/bin/env bash
# Installs what is missing, then runs every check. ./test.sh --fast leaves out the browser and the slow tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

selection='not gpu'
case "${1:-}" in
  '') ;;
  --fast) selection='not gpu and not browser and not slow' ;;
  *) echo "usage: ./test.sh [--fast]" >&2; exit 2 ;;
esac

PYTHON=.venv/bin/python
if ! "$PYTHON" scripts/install.py --dev --check >/dev/null 2>&1; then
  ./install.sh --dev
fi

export PATH="$PWD/.venv/bin:$PATH"
if [ -z "${1:-}" ] && ! command -v chromium >/dev/null 2>&1; then
  echo "test: Chromium is missing; installing it"
  as_root=
  [ "$(id -u)" = 0 ] || as_root=sudo
  if ! command -v apt-get >/dev/null 2>&1; then
    echo "test: install Chromium so that /usr/bin/chromium starts, or run ./test.sh --fast" >&2
    exit 1
  fi
  $as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive $as_root apt-get install -y -qq chromium chromium-driver >/dev/null
fi

check() {
  local name=$1
  shift
  echo
  echo "== $name"
  local started=$SECONDS
  if "$@"; then
    echo "== $name: passed in $((SECONDS - started)) s"
  else
    echo "== $name: FAILED in $((SECONDS - started)) s"
    echo "$name" >> "$beside/failed"
  fi
}

tests_of() {
  local status=0
  python -m pytest -q -m "$selection" "$1" || status=$?
  # 5: every test of the file is left out by the selection
  [ "$status" = 0 ] || [ "$status" = 5 ]
}

static_checks() {
  check "ruff" ruff check .
  check "ruff format" ruff format --check .
  check "mypy" mypy modules scripts training bench webui.py tests
  check "tsc" npm run --silent check
  check "eslint" npm run --silent lint
  check "node tests" npm run --silent test
}

# A file a process: the model stack is mended in place when it is imported, and --offline shuts the hub's client for
# the whole process, so what one file leaves behind must not decide what the next one finds.
# Two lanes take the files from both ends until none is left, because a browser test waits half of its time. What the
# second lane has to say is shown after the first.
lane() {
  local file
  for file in "$@"; do
    # Whoever makes the folder has the file.
    mkdir "$beside/taken/${file//\//-}" 2>/dev/null || continue
    check "pytest $file" tests_of "$file"
  done
}

files=(tests/test_*.py tests/browser/test_*.py)
backwards=()
for file in "${files[@]}"; do backwards=("$file" ${backwards[@]+"${backwards[@]}"}); done
beside=$(mktemp -d)
mkdir "$beside/taken"
touch "$beside/failed"
{ static_checks; lane "${backwards[@]}"; echo done > "$beside/ended"; } > "$beside/shown" 2>&1 &
second=$!
trap 'kill "$second" $(pgrep -P "$second") 2>/dev/null || true; rm -rf "$beside"' EXIT
lane "${files[@]}"
wait "$second" || true
cat "$beside/shown"
[ -e "$beside/ended" ] || echo "the second lane" >> "$beside/failed"

echo
if [ -s "$beside/failed" ]; then
  echo "test: FAILED: $(paste -sd, "$beside/failed")"
  exit 1
fi
echo "test: every check passed in $SECONDS s"
