#!/usr/bin/env bash
# Makes .venv in the repository, or brings it up to date, from the requirement files named.
#
#   launch/venv.sh requirements.txt tests/requirements.txt
#
# Costs: one to four minutes, 0.5 GB of downloads and 1.5 GB of disk the first time; nothing until
# a requirement file changes after that. PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
candidates=${PYTHON:-python3 python3.11 python3.12 python3.13}

find_python() {
  local candidate
  for candidate in $candidates; do
    if is_recent "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python >= 3.11 among: $candidates" >&2
  echo "Install one (apt install python3.11 python3.11-venv; brew install python@3.12), or name" >&2
  echo "the one you have: PYTHON=/path/to/python3.11 launch/quickstart.sh" >&2
  return 1
}

if ! is_recent .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python=$(find_python)
  echo "+ $python -m venv .venv" >&2
  if ! "$python" -m venv --clear .venv; then
    echo "error: $python cannot make .venv; apt install python3-venv, or set PYTHON" >&2
    exit 1
  fi
fi
# Of what pip says, hundreds of lines, which package it has come to.
tell() {
  local word name rest
  while read -r word name rest; do
    [[ $word =~ ^(Collecting|Downloading|Installing)$ ]] || continue
    [[ $word == Installing ]] && name="$(wc -w <<<"$rest" | tr -d ' ') packages"
    if [[ -t 2 ]]; then
      printf '\r\033[K  %s %s' "$word" "${name##*/}" >&2
    elif [[ $word == Installing ]]; then
      echo "  $word $name" >&2
    fi
  done
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
}

for file in "$@"; do
  stamp=.venv/installed-${file//\//-}  # a copy of the file as it was installed
  if ! cmp -s "$file" "$stamp"; then
    echo "+ .venv/bin/python -m pip install -r $file" >&2
    PYTHONUNBUFFERED=1 .venv/bin/python -m pip install --progress-bar=off \
      --disable-pip-version-check -r "$file" | tell
    cp "$file" "$stamp"
  fi
done
