#!/usr/bin/env bash
# Kills the train program, fills its disk and damages its checkpoints, and looks whether anything is
# lost: a table, and exit code 1 if something was. About ten seconds of two cores a fault.
#
#   launch/torture.sh [--kills 200] [--minutes 60] [--seed 0] [--only kills|damage|...]
set -euo pipefail
cd "$(dirname -- "$0")/.."
# shellcheck source-path=SCRIPTDIR
source launch/environment.sh
prepare_environment test
exec python -m tests.faults.torture "$@"
