#!/usr/bin/env bash
# Trains on all devices of this machine. Everything goes to avs_jax.train:
#   bash launch/local.sh --config configs/avesformer.py:subset=s4 --workdir workdir/s4
# EXTRA=cuda installs jax for NVIDIA GPUs first, EXTRA=tpu for TPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
prepare_environment "${EXTRA:-}"
exec python -m avs_jax.train "$@"
