#!/usr/bin/env bash
# Trains on all hosts of a Cloud TPU slice; run it on your workstation, with gcloud set up:
#   export TPU=avs-v5e-16 ZONE=us-central1-a TYPE=v5litepod-16
#   bash launch/tpu_vm.sh create                 the slice; SPOT=1: cheaper, may be preempted
#   bash launch/tpu_vm.sh setup                  this repository and its environment on every host
#   bash launch/tpu_vm.sh run --config configs/avesformer.py:subset=s4 \
#     --config.batch_size=32 --config.data.data_dir=/mnt/data --workdir /mnt/runs/s4
#   bash launch/tpu_vm.sh logs                   follows the first host's
#   bash launch/tpu_vm.sh delete
# `run` makes a preempted slice anew and goes on with the same command, up to RETRIES times (20).
# --dry-run before the verb prints the commands and runs none.
# /mnt/data and /mnt/runs: a bucket mounted on every host (gcsfuse), or a shared disk; or gs://.
set -euo pipefail

usage() {
  sed -n '2,13s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

dry=
if [[ ${1:-} == --dry-run ]]; then
  dry=1
  shift
fi
verb=${1:-}
[[ $verb =~ ^(create|setup|run|logs|delete)$ ]] || usage
shift
: "${TPU:?name of the TPU}" "${ZONE:?its zone}"

# Prints the command in a dry run, as it would be typed; else runs it.
call() {
  if [ -n "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpu() {
  local what=$1
  shift
  call gcloud compute tpus tpu-vm "$what" "$TPU" --zone="$ZONE" "$@"
}

create() {
  : "${TYPE:?accelerator type, e.g. v5litepod-16}"
  tpu create --accelerator-type="$TYPE" --version="${VERSION:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
}

setup() {
  : "${REPOSITORY:?where hosts clone this repository from}"
  tpu ssh --worker=all --command="
    set -e
    [ -d avs_jax ] || git clone --quiet $(printf %q "$REPOSITORY") avs_jax
    cd avs_jax && git pull --quiet
    EXTRA=tpu bash launch/local.sh --help >/dev/null"
}

# READY, PREEMPTED, ...; empty where there is none.
state() {
  gcloud compute tpus tpu-vm describe "$TPU" --zone="$ZONE" --format='value(state)' 2>/dev/null || true
}

run() {
  local arguments tries=0
  printf -v arguments '%q ' "$@"
  until tpu ssh --worker=all --command="
    cd avs_jax && set -o pipefail
    bash launch/local.sh --distributed $arguments 2>&1 | tee -a ~/train.log"; do
    # What the program refuses (status 2) would be refused again: only a lost slice is made anew.
    [[ $(state) == READY ]] && return 1
    tries=$((tries + 1))
    [ "$tries" -le "${RETRIES:-20}" ] || return 1
    echo "== the slice is gone; making it anew ($tries)" >&2
    tpu delete --quiet || true
    until create; do sleep 60; done # no capacity: it comes and goes
    setup
  done
}

case $verb in
  create) create ;;
  setup) setup ;;
  run)
    [ $# -gt 0 ] || usage
    run "$@"
    ;;
  logs) tpu ssh --worker=0 --command="tail -n 50 -F ~/train.log" ;;
  delete) tpu delete --quiet ;;
esac
