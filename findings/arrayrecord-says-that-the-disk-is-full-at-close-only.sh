#!/usr/bin/env bash
# array_record 0.8.6: where the disk is full, `write()` returns and `ok()` is True; only `close()` raises.
#
# Guess: the write that does not fit raises, or at least `ok()` turns False, so that a builder of a large
# data set notices within a record or two.
# Seen: 64 records of 100 kB into a file that may have 1 MB: every write returns None, ok() is True,
# close() raises RuntimeError ("File too large"). Hours of building can go on after the disk is full.
# Source: the writer hands chunks to threads; the error is kept until they are joined in close().
# So: ask the file system for room while building, and call close() where an exception can be caught.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --target "$folder/packages" \
  array_record==0.8.6 "etils[epath]==1.15.0" absl-py==2.5.0
cd "$folder"
PYTHONPATH=$folder/packages python3 - <<'PYTHON'
import os
import resource
import signal

from array_record.python import array_record_module

# A limit on the size of files stands in for a full disk: the write fails in the same place.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
writer = array_record_module.ArrayRecordWriter("full.array_record", "group_size:1")
returned = {writer.write(os.urandom(100_000)) for _ in range(64)}
print("64 writes returned", returned, "and ok() is", writer.ok())
assert returned == {None} and writer.ok()
try:
    writer.close()
except RuntimeError as error:
    print("close() raises:", str(error)[:60])
    assert "File too large" in str(error)
else:
    raise SystemExit("close() raised nothing")
PYTHON
