#!/usr/bin/env bash
# Builds a data set from a download of AVSBench, by all cores of this machine.
#
#   launch/build_data.sh s4|ms3|avss SOURCE DEST [--skip-broken] [--rebuild_from semantic]
#
# SOURCE: where the release was unpacked (what is in it: python -m avs_jax.data.check SOURCE).
# DEST: what training calls data_dir; the data set becomes DEST/avsbench/s4 (ms3, avss).
# Run it again after an interruption: it goes on where it stopped. Several hosts need DEST on each of
# them: copy it, or build once and mount a bucket with it (gcsfuse) at the same place.
set -euo pipefail

if [[ $# -lt 3 || $1 == -* ]]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
subset=$1 source=$2 dest=$3
shift 3
# A folder's name may begin with "-" like those of AVSBench's clips; "./-x" is not taken for a flag.
[[ $source == -* ]] && source=./$source
[[ $dest == -* ]] && dest=./$dest

# From the caller's folder, for SOURCE and DEST may be relative to it.
# shellcheck source-path=SCRIPTDIR
source "$(dirname -- "$0")/environment.sh"
[ -n "${PYTHON:-}" ] || prepare_environment "" # PYTHON: an interpreter that has avs_jax already
exec "${PYTHON:-python}" -m avs_jax.data.avsbench.build "$subset" "$source" "$dest" "$@"
