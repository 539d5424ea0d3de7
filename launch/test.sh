#!/usr/bin/env bash
# Runs all tests; makes .venv first if needed. Arguments go to pytest:
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/test_audio.py -k resample
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
prepare_environment test

for argument in "$@"; do
  # A path: that alone.
  [[ $argument == -* ]] || exec python -m pytest "$@"
done
# Whole published networks with gradients take gigabytes: each file of them in a process of its own.
large=(tests/models/test_catr_parity.py tests/models/test_pcmanet_parity.py)
status=0
for file in "${large[@]}"; do
  python -m pytest "$@" "$file" || status=1
done
python -m pytest "$@" "${large[@]/#/--ignore=}" || status=1
exit $status
