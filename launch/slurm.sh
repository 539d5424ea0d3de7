#!/usr/bin/env bash
#SBATCH --job-name=avs_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --signal=TERM@120
#SBATCH --requeue
# Trains on all GPUs of the nodes, one process a GPU. Submit from the repository's root, with a
# .venv made before by `EXTRA=cuda bash launch/local.sh --help` on a shared file system:
#   sbatch launch/slurm.sh --config configs/avesformer.py:subset=s4 --config.batch_size=16 \
#     --config.data.data_dir=/shared/data --workdir /shared/s4
# Two minutes before its time is over the job saves a checkpoint; submitted again it goes on.
set -euo pipefail
srun --kill-on-bad-exit=1 .venv/bin/python -m avs_jax.train --distributed "$@"
