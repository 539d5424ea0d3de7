"""A program of several processes, as small as can be: meets the others and ends, or lasts.

python -m tests.joining [--coordinator .. --process_id .. --num_processes .. --wait_seconds ..]
    [--field NAME=VALUE] [--patience SECONDS] [--then lasts|fails|refuses|stops]
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from avs_jax import devices, errors, hosts, peers


def start(*options, **environment):
    """-> the process; standard output and error are pipes."""
    # Of proxies jax 0.12 warns where processes meet.
    own = {name: x for name, x in os.environ.items() if not name.lower().endswith("_proxy")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.joining", *map(str, options)],
        cwd=Path(__file__).parents[1],
        env=own | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def main():
    parser = argparse.ArgumentParser()
    hosts.add_arguments(parser)
    parser.add_argument("--field", default="a=1")
    parser.add_argument("--patience", type=float, default=30)
    parser.add_argument("--then", default="ends")
    args = parser.parse_args()
    place = (args.coordinator, args.process_id, args.num_processes, args.wait_seconds)
    devices.start_jax(hosts.read_job(args.distributed, *place))
    hosts.check_same(dict([args.field.split("=")]))
    with peers.watched(beat=0.5, patience=args.patience) as others:
        if others:
            others.saved_step = lambda: 4
        print("joined", flush=True)
        if args.then == "fails":
            raise RuntimeError("no luck")
        if args.then == "refuses":
            raise errors.BadValueError("no such file here.")
        if args.then == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if args.then == "lasts":
            time.sleep(60)


if __name__ == "__main__":
    errors.run_program(main)
