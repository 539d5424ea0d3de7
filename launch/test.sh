#!/usr/bin/env bash
# Runs all tests; makes .venv first if needed. Arguments go to pytest:
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/test_audio.py -k resample
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
prepare_environment test
exec python -m pytest "$@"
