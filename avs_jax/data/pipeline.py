"""From random access to batches on devices, by grain.

    train_batches   source -> seeded shuffle -> repeat -> transforms -> rows of a process -> batch
    eval_batches    source -> shard -> transforms -> padded batch
    to_device       host batch -> global arrays

Frames travel as uint8 and sound as a waveform; normalisation and log-mel are the device's work.
There is no prefetch to the device here: JAX dispatches asynchronously, so that the host prepares
and sends the next batch while the devices are busy with this one, as long as the loop does not
wait for its results.
"""

import math
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import connection

import grain
import jax
import numpy as np
from absl import flags

from avs_jax import errors


def collate(examples: Sequence[dict]) -> dict:
    """Examples -> a batch: arrays get a batch axis, `id` becomes str[b], `example_mask` is added.

    Raises BadValueError, with the ids, if the examples differ in shape.
    """
    batch = {}
    for key in examples[0]:
        parts = [np.asarray(example[key]) for example in examples]
        if len({part.shape for part in parts}) > 1:
            odd = ", ".join(f"{e['id']} {p.shape}" for e, p in zip(examples, parts, strict=True))
            raise errors.BadValueError(
                f"{key} differ in shape within a batch ({odd}); "
                "resize them (data.size) or use batch_size=1."
            )
        batch[key] = np.stack(parts)
    batch.setdefault("example_mask", np.ones(len(examples), bool))
    return batch


def _check_batch_size(batch_size: int, shard: tuple[int, int]) -> None:
    index, count = shard
    if batch_size < 1:
        raise errors.BadValueError(f"batch_size={batch_size}: wanted at least 1 clip per process.")
    if not 0 <= index < count:
        raise errors.BadValueError(f"shard={shard}: wanted (process index, process count).")


def _batch_by_threads(
    clips: grain.MapDataset, batch_size: int, num_threads: int, drop_remainder: bool
) -> grain.IterDataset:
    """Threads make clips, and what is ready becomes a batch: all of them work at the first one."""
    # Of clips: the next batch, or two a thread so that none is idle. More would only fill memory.
    ahead = max(batch_size, 2 * num_threads)
    return clips.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    ).batch(batch_size, drop_remainder=drop_remainder, batch_fn=collate)


def _batch_by_processes(
    clips: grain.MapDataset, batch_size: int, num_workers: int
) -> grain.IterDataset:
    """Each process makes every num_workers-th batch. It must be whole before they are dealt out:
    else processes would be given clips, and what is in a batch would depend on their number."""
    if not flags.FLAGS.is_parsed():  # grain reads its own flags before it starts a process
        flags.FLAGS.mark_as_parsed()
    batches = clips.batch(batch_size, drop_remainder=True, batch_fn=collate)
    options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2)
    return batches.to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    ).mp_prefetch(options, worker_init_fn=_end_with_parent)


def _end_with_parent(*_) -> None:
    """In a worker: whatever becomes of the program, `kill -9` too, its readers end with it.

    Else they would wait for ever, with the memory of their batches, and whoever reads the program's
    output would wait for them.
    """
    parent = multiprocessing.parent_process()

    def wait():
        connection.wait([parent.sentinel])
        os._exit(1)

    if parent is not None:
        threading.Thread(target=wait, name="end with parent", daemon=True).start()


def _apply(dataset: grain.MapDataset, transforms: Sequence) -> grain.MapDataset:
    for transform in transforms:
        is_random = isinstance(transform, grain.transforms.RandomMap)
        dataset = dataset.random_map(transform) if is_random else dataset.map(transform)
    return dataset


class _Share(grain.MapDataset):
    """Of every `count` times `batch_size` clips the part of one process, in their order."""

    def __init__(self, clips: grain.MapDataset, batch_size: int, shard: tuple[int, int]):
        super().__init__(clips)
        self._batch_size, self._shard = batch_size, shard

    def __len__(self) -> int:
        return len(self._parent) // self._shard[1]

    def __getitem__(self, place):
        if isinstance(place, slice):
            return self.slice(place)
        index, count = self._shard
        batch, row = divmod(place, self._batch_size)
        return self._parent[(batch * count + index) * self._batch_size + row]


class TrainBatches(grain.DatasetIterator):
    """An endless iterator of batches; see `train_batches`.

    Its state is the number of clips given out by all processes. It holds for any number of them, of
    threads and of workers, and for any batch size: a run can go on with others. States of older
    runs, which count a process's own clips or, being grain's own, batches, are understood.
    """

    def __init__(
        self,
        clips: grain.MapDataset,
        batch_size: int,
        num_threads: int,
        num_workers: int,
        shard: tuple[int, int] = (0, 1),
    ):
        super().__init__()
        self._clips = clips
        self._batch_size = batch_size
        self._shard = shard
        self._num_threads = num_threads
        self._num_workers = num_workers
        self._start(0)

    def _start(self, position: int) -> None:
        self._position = position
        clips, size = self._clips[position:], self._batch_size
        if self._shard[1] > 1:
            clips = _Share(clips, size, self._shard)
        if self._num_workers:
            self._batches = iter(_batch_by_processes(clips, size, self._num_workers))
        else:
            self._batches = iter(_batch_by_threads(clips, size, self._num_threads, True))

    def __next__(self) -> dict:
        batch = next(self._batches)
        if self._num_workers:
            # Arrays of workers are shared memory, which is given back once nothing refers to it. On
            # a CPU JAX does not copy them, and may still refer to the last ones when Python ends.
            batch = {name: np.array(value) for name, value in batch.items()}
        self._position += self._batch_size * self._shard[1]
        return batch

    def get_state(self) -> dict[str, int]:
        return {"clips_of_all": self._position}

    def set_state(self, state: dict) -> None:
        """Raises ValueError for a state of another kind.

        One of an older run is taken to be of as many processes as there are, unless it says.
        """
        self._batches.close()
        self._start(_count_clips(state, self._batch_size, self._shard[1]))

    def close(self) -> None:
        self._batches.close()


def _count_clips(state: dict, batch_size: int, processes: int) -> int:
    """Clips that the iterators of all processes have given out, where one is in that state."""
    processes = state.get("processes", processes)
    match state:
        case {"clips_of_all": int(clips)}:
            return clips
        case {"clips": int(clips)}:  # of one process, as long as each had clips of its own
            return clips * processes
        case {"next_index": int(batches)}:  # before clips were counted
            return batches * batch_size * processes
        case {"iterators_in_use_states": [*workers]} if all(workers):  # the same, with workers
            return sum(worker["next_index"] for worker in workers) * batch_size * processes
    raise ValueError(f"the position in the data, {state}, is of an unknown kind")


def train_batches(
    source,
    *,
    batch_size: int,
    seed: int,
    transforms: Sequence = (),
    num_threads: int = 2,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
) -> TrainBatches:
    """An endless iterator of training batches whose position can be saved and restored exactly.

    The clips come in an order drawn anew for every pass; each meets other random numbers in every
    pass. Each process gets its rows of every global batch, in the order of the processes: together
    they have what one process alone has. Order and numbers depend on the seed only: not on batch
    size, processes, threads, workers or transforms, so that an iterator with another picture size,
    or of another number of processes, can go on where this one stood
    (`other.set_state(this.get_state())`).

    Memory: with threads one batch is kept ready beside the one that was given out (or two clips a
    thread, if that is more), with processes three for each of them. A batch of 8 clips of 5 s and
    224 x 224 pixels takes 11 MB, of 10 s as in AVSS 21 MB.

    Args:
      source: see `avs_jax.data.open_split`. batch_size: clips per process and batch. seed: of
      order and transforms. transforms: see `avs_jax.data.transforms.train_transforms`.
      num_threads: that read and transform; 0 does it in the caller's thread. 0 to 2 on a small
      machine. num_workers: processes of one thread that do it instead; worth it from about eight
      cores on. shard: (process index, process count).

    Returns:
      An iterator with `get_state` and `set_state`, fit for `grain.checkpoint.CheckpointSave`, of
      batches in the contract's format (`id` is a numpy array of str).

    Raises:
      BadValueError: batch size or shard make no sense, or there are fewer clips than in a batch of
      all processes.
    """
    _check_batch_size(batch_size, shard)
    _, count = shard
    if len(source) < batch_size * count:
        raise errors.BadValueError(
            f"batch_size={batch_size} for each of {count} process(es), but there are only "
            f"{len(source)} clips; use a smaller batch or more data."
        )
    # As the first process of several once had it, so that runs of one go on as they were.
    mixed = int(np.random.SeedSequence((seed, 0)).generate_state(1)[0])
    clips = grain.MapDataset.source(source)[::].seed(mixed).shuffle().repeat(None)
    return TrainBatches(_apply(clips, transforms), batch_size, num_threads, num_workers, shard)


class _EvalView:
    """One process's clips in order, padded to whole batches.

    A padding example repeats the last clip with example_mask False and no labelled frame: real
    pictures, so that nothing becomes NaN on the way.
    """

    def __init__(self, source, shard: tuple[int, int], batch_size: int):
        index, count = shard
        self._source = source
        self._indices = range(index, len(source), count)
        largest = math.ceil(len(source) / count)  # the same for every process
        self._length = math.ceil(largest / batch_size) * batch_size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position) -> dict:
        is_real = position < len(self._indices)
        index = self._indices[position] if is_real else len(self._source) - 1
        example = dict(self._source[index])
        example["example_mask"] = np.bool_(is_real)
        if not is_real:
            example["label_mask"] = np.zeros_like(example["label_mask"])
        return example


class EvalBatches:
    """Batches of a split in order; can be gone through again and again. See `eval_batches`."""

    def __init__(self, clips: grain.MapDataset, batch_size: int, num_threads: int):
        self._batches = _batch_by_threads(clips, batch_size, num_threads, False)
        self._length = -(-len(clips) // batch_size)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict]:
        return iter(self._batches)


def eval_batches(
    source,
    *,
    batch_size: int,
    transforms: Sequence = (),
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 0,
) -> EvalBatches:
    """Every clip once, in order; the last batch is padded and `example_mask` says where.

    All processes yield the same number of batches, so that collective steps never wait for one.

    Args:
      source: see `avs_jax.data.open_split`.
      batch_size: clips per process and batch.
      transforms: without random ones, see `avs_jax.data.transforms.eval_transforms`.
      shard: (process index, process count).
      num_threads: that read and transform; 0 does it in the caller's thread.

    Raises:
      BadValueError: batch size or shard make no sense, the source is empty, or a transform is
      random.
    """
    _check_batch_size(batch_size, shard)
    if not len(source):
        raise errors.BadValueError(f"{source!r} holds no clips to evaluate on.")
    for transform in transforms:
        if isinstance(transform, grain.transforms.RandomMap):
            raise errors.BadValueError(f"{transform} is random; evaluation takes fixed transforms.")
    view = grain.MapDataset.source(_EvalView(source, shard, batch_size))
    return EvalBatches(_apply(view, transforms), batch_size, num_threads)


def to_device(batch: dict, sharding: jax.sharding.Sharding) -> tuple[dict, list[str]]:
    """Puts a process's part of a batch onto its devices.

    Args:
      batch: of numpy arrays [b ...], the same b on every process.
      sharding: of axis 0 of the global batch, e.g. NamedSharding(mesh, PartitionSpec("data")).

    Returns:
      Global arrays [b * processes ...] for all numeric entries, and this process's ids, which
      stay here.
    """
    ids = [str(name) for name in batch.get("id", ())]
    numeric = {key: value for key, value in batch.items() if np.asarray(value).dtype.kind in "biuf"}
    return {
        key: jax.make_array_from_process_local_data(sharding, value)
        for key, value in numeric.items()
    }, ids
