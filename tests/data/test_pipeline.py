"""From random access to batches on devices."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import data, errors
from avs_jax.data import pipeline, transforms
from tests.data.tiny import build_tiny

ROOT = Path(__file__).parents[2]


class Clips:
    """A source of `count` tiny clips; everything in clip i says i."""

    def __init__(self, count, seconds=2, size=4):
        self.count, self.seconds, self.size = count, seconds, size

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        index = int(index)
        shape = (self.seconds, self.size, self.size)
        return {
            "frames": np.full((*shape, 3), index, np.uint8),
            "waveform": np.full(self.seconds * 16, index + 1, np.float32),
            "label": np.full(shape, index, np.int32),
            "label_mask": np.ones(self.seconds, bool),
            "frame_mask": np.ones(self.seconds, bool),
            "id": f"clip{index}",
        }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = build_tiny(tmp_path_factory.mktemp("tiny"))
    return data.open_split("sounding_shapes", "ms3", "train", folder)


AUGMENT = transforms.train_transforms(
    24, scale=(0.8, 1.3), brightness=0.2, contrast=0.2, saturation=0.2, gain_db=(-6, 6)
)


def train(source, **options):
    defaults = {"batch_size": 3, "seed": 5, "transforms": AUGMENT, "num_threads": 0}
    return pipeline.train_batches(source, **(defaults | options))


def assert_same(batch, other):
    assert batch.keys() == other.keys()
    for key in batch:
        np.testing.assert_array_equal(batch[key], other[key])


def take(batches, count):
    return [next(batches) for _ in range(count)]


def ids_of(batches, count):
    return [str(name) for batch in take(batches, count) for name in batch["id"]]


def test_batches_keep_the_contract(source):
    batch = next(train(source))
    expected = {
        "frames": ((3, 5, 24, 24, 3), np.uint8),
        "waveform": ((3, 80_000), np.float32),
        "label": ((3, 5, 24, 24), np.uint8),
        "label_mask": ((3, 5), np.bool_),
        "frame_mask": ((3, 5), np.bool_),
        "example_mask": ((3,), np.bool_),
    }
    assert set(batch) == {*expected, "id"}
    for key, (shape, dtype) in expected.items():
        assert (key, batch[key].shape, batch[key].dtype) == (key, shape, dtype)
    assert batch["example_mask"].all()


def test_every_pass_shows_every_clip_once_in_a_new_order():
    batches = train(Clips(12), transforms=())
    first, second = ids_of(batches, 4), ids_of(batches, 4)
    assert sorted(first) == sorted(second) == sorted(f"clip{i}" for i in range(12))
    assert first != second


def test_a_seed_gives_the_same_batches_and_another_others(source):
    for batch, other in zip(take(train(source), 4), take(train(source), 4), strict=True):
        assert_same(batch, other)
    assert ids_of(train(Clips(50)), 4) != ids_of(train(Clips(50), seed=6), 4)


def test_threads_change_nothing(source):
    for batch, other in zip(
        take(train(source), 5), take(train(source, num_threads=2), 5), strict=True
    ):
        assert_same(batch, other)


@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_saved_position_continues_exactly(source, num_threads):
    batches = train(source, num_threads=num_threads)
    take(batches, 3)
    state = batches.get_state()
    expected = take(batches, 3)
    fresh = train(source, num_threads=num_threads)
    fresh.set_state(state)
    for batch, other in zip(take(fresh, 3), expected, strict=True):
        assert_same(batch, other)


def test_the_position_is_saved_and_restored_by_orbax(source, tmp_path):
    batches = train(source)
    take(batches, 2)
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointSave(batches)))
        manager.wait_until_finished()
        expected = next(batches)
        fresh = train(source)
        manager.restore(2, args=ocp.args.Composite(data=grain.checkpoint.CheckpointRestore(fresh)))
    assert_same(next(fresh), expected)


def test_an_iterator_of_another_size_goes_on_where_the_first_stood(source):
    small, large = train(source), train(source, transforms=transforms.train_transforms(32))
    take(small, 3)
    large.set_state(small.get_state())
    batch, other = next(small), next(large)
    assert batch["id"].tolist() == other["id"].tolist()
    assert other["frames"].shape[2] == 32


@pytest.mark.parametrize(
    "saved",
    [
        {"clips_of_all": 9},
        {"clips": 9},  # each process counted its own
        {"next_index": 3},  # of a version that counted batches
        {  # the same by two worker processes
            "next_index_in_cycle": 1,
            "next_index_in_datasets": 2,
            "iterators_in_use_indices": [0, 1],
            "iterators_in_use_states": [{"next_index": 2}, {"next_index": 1}],
            "exhausted": [0, 0],
            "future_states": {},
        },
    ],
    ids=["clips", "own clips", "batches", "batches of workers"],
)
def test_a_position_of_any_version_goes_on_at_the_same_clip(saved):
    whole = train(Clips(10), transforms=(), batch_size=3)
    take(whole, 3)
    fresh = train(Clips(10), transforms=(), batch_size=3, num_threads=2)
    fresh.set_state(saved)
    assert ids_of(fresh, 4) == ids_of(whole, 4)


def test_a_position_holds_for_another_batch_size():
    small, large = (train(Clips(20), transforms=(), batch_size=size) for size in (3, 6))
    take(small, 4)
    large.set_state(small.get_state())
    assert ids_of(large, 2) == ids_of(small, 4)


def test_a_position_of_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"\{'step': 3\}, is of an unknown kind"):
        train(Clips(10)).set_state({"step": 3})


class Watched(Clips):
    """Notes which thread read which clip; reading takes a moment."""

    def __init__(self, count):
        super().__init__(count)
        self.readers = {}

    def __getitem__(self, index):
        self.readers[f"clip{index}"] = threading.get_ident()
        time.sleep(0.01)
        return super().__getitem__(index)


def both_kinds(source):
    yield train(source, transforms=(), batch_size=8, num_threads=2)
    yield iter(pipeline.eval_batches(source, batch_size=8, num_threads=2))


@pytest.mark.parametrize("kind", [0, 1], ids=["training", "evaluation"])
def test_all_threads_work_at_the_first_batch(kind):
    source = Watched(80)
    batch = next(list(both_kinds(source))[kind])
    assert len({source.readers[name] for name in batch["id"]}) == 2


@pytest.mark.parametrize("kind", [0, 1], ids=["training", "evaluation"])
def test_one_batch_is_read_ahead_and_no_more(kind):
    source = Watched(80)
    batches = list(both_kinds(source))[kind]
    next(batches)
    time.sleep(0.5)  # more than reading all of them takes
    assert len(source.readers) == 16


@pytest.mark.slow
def test_a_position_holds_for_another_number_of_workers():
    one, two = (
        train(Clips(10), transforms=(), num_workers=number, batch_size=3) for number in (0, 2)
    )
    take(two, 3)
    one.set_state(two.get_state())
    expected = ids_of(one, 3)
    assert ids_of(two, 3) == expected
    two.close()


@pytest.mark.slow
def test_a_worker_process_resumes_exactly(source):
    batches = train(source, num_workers=1)
    for batch, other in zip(take(batches, 2), take(train(source), 2), strict=True):
        assert_same(batch, other)
    state = batches.get_state()
    expected = take(batches, 2)
    batches.set_state(state)
    for batch, other in zip(take(batches, 2), expected, strict=True):
        assert_same(batch, other)


def train_together(processes, batch_size=8, **options):
    """Each process's iterator; together they make batches of `batch_size` clips."""
    own = batch_size // processes
    return [
        train(batch_size=own, shard=(index, processes), **options) for index in range(processes)
    ]


def take_together(iterators, count):
    """Global batches, as devices in the order of the processes get them."""
    parts = [take(iterator, count) for iterator in iterators]
    return [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_have_together_what_one_has_alone(source, processes):
    options = {"source": source, "batch_size": 4}
    alone = take_together(train_together(1, **options), 5)
    together = take_together(train_together(processes, **options), 5)
    for batch, other in zip(alone, together, strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize(("before", "after"), [(1, 4), (2, 1), (4, 2), (2, 2)])
def test_a_position_holds_for_another_number_of_processes(before, after):
    options = {"source": Clips(30), "transforms": ()}
    whole = take_together(train_together(1, **options), 6)
    first = train_together(before, **options)
    take_together(first, 2)
    (state,) = {tuple(iterator.get_state().items()) for iterator in first}
    then = train_together(after, **options)
    for iterator in then:
        iterator.set_state(dict(state))
    for batch, other in zip(whole[2:], take_together(then, 4), strict=True):
        assert_same(batch, other)


@pytest.mark.parametrize(
    ("state", "after"),
    [({"clips": 4}, 2), ({"clips": 4, "processes": 2}, 1), ({"next_index": 2}, 2)],
)
def test_a_position_of_one_of_two_older_processes_is_counted_over_both(state, after):
    options = {"source": Clips(30), "transforms": (), "batch_size": 4}
    whole = take_together(train_together(1, **options), 4)
    then = train_together(after, **options)
    for iterator in then:
        iterator.set_state(state)
    assert_same(take_together(then, 1)[0], whole[2])


@settings(deadline=None, max_examples=25)
@given(count=st.integers(8, 40), processes=st.integers(1, 4), seed=st.integers(0, 9))
def test_processes_share_a_pass_without_overlap(count, processes, seed):
    iterators = [
        train(Clips(count), batch_size=1, seed=seed, transforms=(), shard=(index, processes))
        for index in range(processes)
    ]
    seen = [name for iterator in iterators for name in ids_of(iterator, count // processes)]
    assert len(set(seen)) == len(seen) == count // processes * processes


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 20), processes=st.integers(1, 4), batch_size=st.integers(1, 6))
def test_evaluation_sees_every_clip_once_for_any_batch_and_process_number(
    count, processes, batch_size
):
    seen, lengths = [], set()
    for index in range(processes):
        batches = pipeline.eval_batches(
            Clips(count), batch_size=batch_size, shard=(index, processes)
        )
        batches_seen = list(batches)
        assert len(batches_seen) == len(batches)
        lengths.add(len(batches_seen))
        for batch in batches_seen:
            assert len(batch["frames"]) == batch_size
            real = batch["example_mask"]
            seen += batch["frames"][real, 0, 0, 0, 0].tolist()
            assert not batch["label_mask"][~real].any()
            assert batch["frame_mask"].all()
    assert sorted(seen) == list(range(count))
    assert len(lengths) == 1


def test_evaluation_goes_in_order_and_again():
    batches = pipeline.eval_batches(Clips(5), batch_size=2)
    for _ in range(2):
        names = [str(name) for batch in batches for name in batch["id"]]
        assert names[:5] == [f"clip{i}" for i in range(5)]


def test_eval_transforms_apply(source):
    batch = next(
        iter(
            pipeline.eval_batches(
                source, batch_size=2, transforms=transforms.eval_transforms(20), num_threads=1
            )
        )
    )
    assert batch["frames"].shape == (2, 5, 20, 20, 3)
    assert batch["objects"].shape == (2, 5, 20, 20)


def test_to_device_makes_global_arrays_and_keeps_the_ids():
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.NamedSharding(mesh, jax.P("data"))
    batch = next(iter(pipeline.eval_batches(Clips(8), batch_size=8)))
    arrays, ids = pipeline.to_device(batch, sharding)
    assert ids == [f"clip{i}" for i in range(8)]
    assert set(arrays) == set(batch) - {"id"}
    for key, array in arrays.items():
        assert array.sharding.is_equivalent_to(sharding, array.ndim)
        assert array.dtype == batch[key].dtype
        np.testing.assert_array_equal(array, batch[key])


def test_frames_of_several_sizes_need_a_transform():
    class Mixed(Clips):
        def __getitem__(self, index):
            self.size = 4 + int(index)
            return super().__getitem__(index)

    with pytest.raises(
        errors.BadValueError, match=r"frames differ in shape .*clip1 \(2, 5, 5, 3\)"
    ):
        list(pipeline.eval_batches(Mixed(3), batch_size=3))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 9}, "batch_size=9 for each of 1 .* only 8 clips"),
        ({"batch_size": 5, "shard": (0, 2)}, "batch_size=5 for each of 2 .* only 8 clips"),
        ({"shard": (2, 2)}, r"shard=\(2, 2\)"),
    ],
)
def test_impossible_training_batches_are_refused(options, said):
    with pytest.raises(errors.BadValueError, match=said):
        train(Clips(8), **options)


def test_impossible_evaluation_batches_are_refused():
    with pytest.raises(errors.BadValueError, match="no clips"):
        pipeline.eval_batches(Clips(0), batch_size=1)
    with pytest.raises(errors.BadValueError, match="is random"):
        pipeline.eval_batches(Clips(2), batch_size=1, transforms=[transforms.Flip()])


def start_reader(how):
    """A program that takes batches of a reader process, as training does."""
    command = [sys.executable, "-m", "tests.data.reading", how]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def test_a_program_with_reader_processes_ends_without_a_word():
    reader = start_reader("to the end")
    output, said = reader.communicate(timeout=120)
    assert reader.returncode == 0, said
    assert output == "[1, 2, 3]\n"
    assert said == ""


def test_reader_processes_end_with_a_program_that_is_killed():
    reader = start_reader("until killed")
    assert reader.stdout.readline() == "reading\n"
    reader.kill()
    reader.communicate(timeout=20)  # comes back once nobody holds the pipes
