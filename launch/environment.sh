# Sourced by the other scripts: makes .venv beside this repository, once, and puts it first in PATH.
#   prepare_environment [EXTRA]     EXTRA: an extra of setup.cfg, e.g. test

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed and was not found; set PYTHON to one." >&2
  return 1
}

prepare_environment() {
  local extra=${1:-} root stamp wanted
  root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  stamp="$root/.venv/installed${extra:+_$extra}"
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
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "== installing avs_jax${extra:+[$extra]} (about a minute)" >&2
    "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check \
      --editable "$root${extra:+[$extra]}"
    echo "$wanted" >"$stamp"
  fi
  PATH="$root/.venv/bin:$PATH"
}
