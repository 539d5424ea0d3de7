#!/usr/bin/env bash
# grain 0.2.18: processes of mp_prefetch outlive a program that is killed, and wait for ever.
#
# Guess: a worker is a daemon process, and ends with the one that started it.
# Seen: after SIGKILL of that one the worker waits in a queue (should_stop is set by nobody). It keeps its
#   memory and the program's stdout: whoever reads that through a pipe waits too.
# Source: grain/_src/python/dataset/transformations/process_prefetch.py, _put_dataset_elements_in_buffer:
#   the loop ends by should_stop alone; daemon=True is a matter of Python's exit, which SIGKILL skips.
# So: a thread in each worker (worker_init_fn) that waits for multiprocessing.parent_process().sentinel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" grain==0.2.18
cat >"$folder/reads.py" <<'PYTHON'
import multiprocessing, os, signal
import grain
from absl import flags

if __name__ == "__main__":
    flags.FLAGS.mark_as_parsed()
    numbers = grain.MapDataset.range(100).to_iter_dataset()
    batches = iter(numbers.mp_prefetch(grain.MultiprocessingOptions(num_workers=1)))
    next(batches)
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
PYTHON
cd "$folder"
worker=$(PYTHONPATH=$folder/packages python3 reads.py >out 2>/dev/null || true; cat out)
sleep 5
state=$(awk '/^State/ { print $2 }' "/proc/$worker/status")
echo "worker $worker, five seconds after its program was killed: state $state"
kill -9 "$worker"
[ "$state" = S ]
