#!/usr/bin/env bash
# Runs all tests; makes .venv first if needed. Arguments go to pytest:
#   bash launch/test.sh                     everything
#   bash launch/test.sh tests/media/test_audio.py -k resample
# Tests that need PyTorch are left out, and counted at the end, where only the extra `test` is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
prepare_environment test

for argument in "$@"; do
  # A path: that alone.
  [[ $argument == -* ]] || exec python -m pytest "$@"
done
# A process for every 7 GB and core: a whole published network with gradients takes 4.5 GB;
# tests/conftest.py says what starts first.
available=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null || echo 0)
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
if [ "$limit" != max ] && [ $((limit >> 30)) -lt "${available:-0}" ]; then available=$((limit >> 30)); fi
jobs=$((${available:-0} / 7))
cores=$(getconf _NPROCESSORS_ONLN)
if [ "$jobs" -gt "$cores" ]; then jobs=$cores; fi
if [ "$jobs" -gt 8 ]; then jobs=8; fi
if [ "$jobs" -ge 2 ]; then
  exec python -m pytest -n "$jobs" --dist loadfile --no-loadscope-reorder "$@"
fi
exec python -m pytest "$@"
