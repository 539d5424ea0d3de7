# Sourced by the other scripts: makes .venv beside this repository, once, and puts it first in PATH.
#   prepare_environment [EXTRAS]     EXTRAS: extras of setup.cfg, e.g. test or test,convert
# shellcheck shell=bash

find_python() {
  local candidate
  # Asked for its version, for under pyenv there is a command python3.X of every version that any
  # folder uses: it fails where that version is not chosen. ensurepip: Debian's python3 goes without.
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c \
      'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer with venv (Debian: python3-venv) is needed and was not found; set PYTHON to one." >&2
  return 1
}

prepare_environment() {
  local extras=${1:-} root wanted extra stamp stamps stale=
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  # One stamp for each extra: after test,convert there is nothing to do for test.
  stamps=("$root/.venv/installed")
  for extra in ${extras//,/ }; do
    stamps+=("$root/.venv/installed_$extra")
  done
  wanted=$(cksum <"$root/setup.cfg")
  if [ ! -x "$root/.venv/bin/python" ]; then
    local python
    python=$(find_python) || return 1
    echo "== making .venv with $("$python" --version)" >&2
    if ! "$python" -m venv "$root/.venv"; then
      rm -rf "$root/.venv" # half of one would be taken for a whole one
      return 1
    fi
  fi
  for stamp in "${stamps[@]}"; do
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] || stale=1
  done
  if [ -n "$stale" ]; then
    echo "== installing avs_jax${extras:+[$extras]} (about two minutes)" >&2
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable "$root${extras:+[$extras]}" || return 1
    for stamp in "${stamps[@]}"; do
      echo "$wanted" >"$stamp"
    done
  fi
  PATH="$root/.venv/bin:$PATH"
}
