#!/usr/bin/env bash
# etils 1.15.0: `epath.Path("gs://bucket/run").resolve()` is a local path below the working directory.
#
# Guess: a path that says `is_absolute()` is left as it is by `resolve()` and `absolute()`; training code
# makes its work folder absolute before handing it to orbax, which wants that.
# Seen: "$PWD/gs:/bucket/run", without an error: checkpoints would be written to a local folder called "gs:".
# Source: etils/epath/gpath.py; resolve() is pathlib's, by os.path.abspath, which knows no schemes.
# So: make a path absolute only where it has no "://".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  etils==1.15.0 fsspec==2026.9.0 importlib_resources==7.1.0 typing_extensions==4.16.0 zipp==4.1.0
cd "$folder"
PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import os
from etils import epath

path = epath.Path("gs://bucket/run")
print("is_absolute", path.is_absolute())
print("resolve    ", path.resolve())
print("absolute   ", path.absolute())
here = os.path.realpath(os.getcwd())
assert path.is_absolute()
assert os.fspath(path) == "gs://bucket/run"
assert os.fspath(path.resolve()) == f"{here}/gs:/bucket/run"
assert os.fspath(path.absolute()) == f"{here}/gs:/bucket/run"
PYTHON
