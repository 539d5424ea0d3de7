"""A program that trains on batches of one reader process: `to the end`, or `until killed`."""

import sys
import time

import jax
from jax.sharding import SingleDeviceSharding

from avs_jax.data import pipeline
from tests.data.test_pipeline import Clips


def main(how):
    clips = Clips(9, seconds=2, size=32)
    batches = pipeline.train_batches(clips, batch_size=3, seed=0, num_workers=1)
    step = jax.jit(lambda batch: batch["label"].max())
    seen = []
    for number in (1, 2, 3):
        batch, _ = pipeline.to_device(next(batches), SingleDeviceSharding(jax.devices()[0]))
        step(batch).block_until_ready()
        seen.append(number)
    if how == "until killed":
        print("reading", flush=True)
        time.sleep(60)
    batches.close()
    print(seen)


if __name__ == "__main__":
    main(sys.argv[1])
