#!/usr/bin/env bash
# What one CUDA GPU makes of this package, in six minutes: numbers beside the CPU's, cuDNN's
# attention beside ours, times, memory. Tables, and gpu_check.json. Without a GPU the least of it
# runs on the CPU, as a test of itself.
#
#   launch/gpu_check.sh [--minutes 6] [--output gpu_check.json] [--platform cpu] [--only SECTION ..]
#
# By the machine's own jax where python3 has one that sees the GPU, and what else is needed; else by
# .venv, with the extra cuda where there is a driver (a download of gigabytes that is not counted).
set -euo pipefail
cd "$(dirname -- "$0")/.."
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-0} # one GPU is checked
python=python3
if ! python3 -c 'import av, cv2, flax, grain, jax, ml_collections, optax, orbax.checkpoint, tensorflow_datasets
assert jax.default_backend() == "gpu"' 2>/dev/null; then
  # shellcheck source-path=SCRIPTDIR
  source launch/environment.sh
  extras=
  if command -v nvidia-smi >/dev/null; then extras=cuda; fi
  prepare_environment "$extras"
  python=python
fi
exec "$python" -m tests.gpu.check "$@"
