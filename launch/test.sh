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
# Half of the time goes into three files: each in a process of its own (whole published networks with
# gradients take 12 GB), beside the other tests where the memory is there for it.
long=(tests/models/test_catr_parity.py tests/models/test_pcmanet_parity.py tests/test_train.py)
run_long() {
  local status=0
  for file in "${long[@]}"; do
    python -m pytest "$@" "$file" || status=1
  done
  return $status
}
status=0
available=$(awk '/MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo 2>/dev/null || echo 0)
limit=$(cat /sys/fs/cgroup/memory.max 2>/dev/null || echo max)
if [ "$limit" != max ] && [ $((limit >> 30)) -lt "${available:-0}" ]; then available=$((limit >> 30)); fi
if [ "${available:-0}" -ge 18 ]; then
  log=$(mktemp)
  set -m # a group of its own, so that all of it ends with this
  run_long "$@" >"$log" 2>&1 &
  set +m
  beside=$!
  trap 'kill -- "-$beside" 2>/dev/null || true; cat "$log"; rm -f "$log"' EXIT
  python -m pytest "$@" "${long[@]/#/--ignore=}" || status=1
  wait "$beside" || status=1
else
  run_long "$@" || status=1
  python -m pytest "$@" "${long[@]/#/--ignore=}" || status=1
fi
exit $status
