#!/usr/bin/env bash
# Trains on all hosts of a TPU VM or pod slice; run it on your workstation, with gcloud set up:
#   TPU=my-v5e-32 ZONE=us-central1-a REPOSITORY=https://github.com/OWNER/avs_jax \
#     bash launch/tpu_vm.sh --config configs/avesformer.py:subset=s4 \
#     --config.batch_size=32 --config.data.data_dir=/mnt/data --workdir /mnt/runs/s4
# /mnt/data and /mnt/runs: a bucket mounted on every host (gcsfuse), or a shared disk.
set -euo pipefail
: "${TPU:?name of the TPU}" "${ZONE:?its zone}" "${REPOSITORY:?where hosts clone this repository from}"
printf -v arguments '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="
  set -e
  [ -d avs_jax ] || git clone --quiet $REPOSITORY avs_jax
  cd avs_jax && git pull --quiet
  EXTRA=tpu bash launch/local.sh --distributed $arguments"
