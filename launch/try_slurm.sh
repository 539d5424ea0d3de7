#!/usr/bin/env bash
# Runs launch/slurm.sh under a real Slurm, started for it on this machine alone and ended with it:
#   bash launch/try_slurm.sh
# Two processes train together on one node; the job is requeued in its middle, goes on by itself, is
# told by --signal that its time is almost over, saves, and when submitted again trains to its end.
# For root on Debian or Ubuntu, where it installs slurmctld, slurmd and munge if they are missing.
# About five minutes on two idle cores; its folder is kept where something went wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
  echo "try_slurm.sh starts Slurm's daemons, which takes root: sudo bash launch/try_slurm.sh" >&2
  exit 2
fi
source launch/environment.sh
prepare_environment test
missing=()
for program in slurmctld slurmd munged sbatch; do
  command -v "$program" >/dev/null || missing+=("$program")
done
if [ "${#missing[@]}" -gt 0 ]; then
  echo "== installing Slurm (missing: ${missing[*]})" >&2
  apt-get install -y -q slurmctld slurmd slurm-client munge >/dev/null
fi

place=$(mktemp -d /tmp/try_slurm.XXXXXX)
chmod 755 "$place"
export SLURM_CONF=$place/slurm.conf JAX_PLATFORMS=cpu
export XLA_FLAGS=--xla_backend_optimization_level=0 # compiles in a third of the time
export JAX_COMPILATION_CACHE_DIR=$place/compiled
workdir=$place/run
daemons=()
stop() {
  local status=$?
  scancel --user=root >/dev/null 2>&1 || true
  for daemon in "${daemons[@]}"; do kill "$daemon" 2>/dev/null || true; done
  wait 2>/dev/null || true
  if [ "$status" = 0 ]; then rm -rf "$place"; else echo "left as it was: $place" >&2; fi
}
trap stop EXIT

mkdir "$place"/{munge,state,spool}
dd if=/dev/urandom of="$place/munge/key" bs=1024 count=1 status=none
chmod 400 "$place/munge/key"
munged --foreground --force --socket "$place/munge/socket" --key-file "$place/munge/key" \
  --log-file "$place/munge/log" --pid-file "$place/munge/pid" --seed-file "$place/munge/seed" 2>/dev/null &
daemons+=($!)
host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$place/munge/socket
CredType=cred/munge
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
KillWait=60
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld -D >/dev/null 2>&1 &
daemons+=($!)
slurmd -D >/dev/null 2>&1 &
daemons+=($!)

wait_for() { # SECONDS WHAT COMMAND...
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -gt "$end" ]; then
      echo "waited too long: $what" >&2
      tail -n 20 "$place"/job*.log >&2 || true
      return 1
    fi
    sleep 1
  done
  echo "== $what" >&2
}
is_idle() { [ "$(sinfo -h -o %T)" = idle ]; }
has_step() { [ "$(last_step)" -ge "$1" ]; }
last_step() { grep -o '"step": [0-9]*' "$workdir/metrics.jsonl" 2>/dev/null | tail -n 1 | grep -o '[0-9]*' || echo 0; }
is_gone() { [ -z "$(squeue -h -j "$1" 2>/dev/null)" ]; }
said() { grep -q -- "$1" "$place"/job*.log; }

"$PWD/.venv/bin/python" - "$place/data" >/dev/null 2>&1 <<'PYTHON'
import sys

from tests.data.tiny import build_tiny

build_tiny(sys.argv[1], clips=(16, 4, 4))
PYTHON
wait_for 60 "Slurm runs" is_idle

submit() { # STEPS SBATCH-OPTIONS...
  local steps=$1
  shift
  sbatch --parsable --nodes=1 --ntasks-per-node=2 --gpus-per-node=0 --cpus-per-task=1 \
    --output="$place/job-%j.log" --open-mode=append "$@" launch/slurm.sh \
    --config "configs/quickstart.py:steps=$steps" --workdir "$workdir" \
    --config.data.data_dir="$place/data" --config.data.size=32 --config.size_schedule='((0,32),)' \
    --config.data.num_threads=0 --config.model.dim=16 --config.model.num_heads=2 \
    --config.log_every=1 --config.checkpoint_every=20 --config.eval.every=1000000
}
# Requeued in its middle, it goes on by itself; then its time is up.
job=$(submit 1000000 --time=60 --signal=TERM@120)
wait_for 600 "two processes train" has_step 10
said "2 process(es)" || { echo "the tasks did not find each other" >&2; exit 1; }
scontrol requeue "$job"
wait_for 120 "requeued: it saved and ended" said "saved"
requeued_at=$(last_step)
scontrol update "JobId=$job" StartTime=now
wait_for 600 "it goes on by itself after step $requeued_at" has_step $((requeued_at + 5))
said "going on at step" || { echo "it began anew" >&2; exit 1; }
elapsed=$(squeue -h -j "$job" -o %M | awk -F: '{ print NF > 2 ? $1 * 60 + $2 : $1 }')
scontrol update "JobId=$job" TimeLimit=$((elapsed + 3))
wait_for 300 "told that its time is almost over, it saved and ended" is_gone "$job"
signalled_at=$(last_step)
job=$(submit $((signalled_at + 10)))
wait_for 600 "submitted again, it came to its end" is_gone "$job"
has_step $((signalled_at + 10)) || { echo "it ended at step $(last_step)" >&2; exit 1; }
"$PWD/.venv/bin/python" - "$workdir/metrics.jsonl" <<'PYTHON'
import collections
import json
import sys

logged = [json.loads(line) for line in open(sys.argv[1])]
counts = collections.Counter(x["step"] for x in logged if "train/loss" in x)
missing = [step for step in range(1, max(counts) + 1) if step not in counts]
twice = [step for step, count in counts.items() if count > 1]
print(f"== {len(counts)} steps: {len(missing)} never logged, {len(twice)} twice", file=sys.stderr)
sys.exit(bool(missing or twice))
PYTHON
