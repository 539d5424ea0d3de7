"""Writing shards: in parallel, restartable, the same every time."""

import dataclasses
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from array_record.python import array_record_data_source

from avs_jax import errors
from avs_jax.data import shards
from avs_jax.data.avsbench import clips as clips_lib
from avs_jax.data.avsbench import layouts
from tests.data.avsbench import mini_avsbench as mini


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    names = [(f"clip{index}", "dog_barking") for index in range(6)]
    return mini.write_s4(tmp_path_factory.mktemp("shards"), 16, {"test": names})


@pytest.fixture
def source(release, tmp_path):
    return shutil.copytree(release, tmp_path / "source")


@pytest.fixture
def plan(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "CLIPS_PER_SHARD", 2)
    clips, _ = layouts.read_clips(layouts.find_layouts(source)["s4"])
    folder = tmp_path / "staging"
    folder.mkdir()
    return shards.plan_shards(folder, {"test": clips})


def write(plan, num_workers=1):
    return shards.write_shards(plan, num_workers, lambda count: None)


def stamps(plan):
    return [os.stat(shard.path).st_ino for shard in plan]


def test_every_clip_is_in_one_shard(plan):
    names = [clip.id for shard in plan for clip in shard.clips]
    assert sorted(names) == [f"clip{index}" for index in range(6)]


def test_training_clips_do_not_follow_the_order_of_the_table(plan, tmp_path):
    clips = [clip for shard in plan for clip in shard.clips]
    shuffled = shards.plan_shards(tmp_path, {"train": clips})
    assert shards.plan_shards(tmp_path, {"train": clips[::-1]}) == shuffled
    assert [clip for shard in shuffled for clip in shard.clips] != clips


@pytest.mark.parametrize("split", ["validation", "test"])
def test_evaluated_clips_keep_the_order_of_the_table(plan, tmp_path, split):
    clips = [clip for shard in plan for clip in shard.clips]
    for order in (clips, clips[::-1]):
        planned = shards.plan_shards(tmp_path, {split: order})
        assert [clip for shard in planned for clip in shard.clips] == order


def test_report_counts_what_is_written(plan):
    reports = write(plan)
    assert [report.num_clips for report in reports] == [2, 2, 2]
    assert reports[0].counts == {"s4": {"clips": 2, "frames": 10, "labelled": 10}}
    assert [os.path.getsize(shard.path) for shard in plan] == [r.num_bytes for r in reports]


def test_progress_counts_clips(plan):
    done = []
    shards.write_shards(plan, 1, done.append)
    assert done == [2, 2, 2]


def test_finished_shards_are_not_written_again(plan):
    first = write(plan)
    before = stamps(plan)
    assert write(plan) == first
    assert stamps(plan) == before


def test_shard_without_a_report_is_written_again(plan):
    write(plan)
    before = stamps(plan)
    os.remove(f"{plan[1].path}.json")
    write(plan)
    assert [old == new for old, new in zip(before, stamps(plan), strict=True)] == [
        True,
        False,
        True,
    ]


def test_report_that_was_cut_off_does_not_count(plan):
    first = write(plan)
    path = pathlib.Path(f"{plan[0].path}.json")
    path.write_text(path.read_text()[:50])
    assert write(plan) == first


def test_report_without_its_shard_does_not_count(plan):
    write(plan)
    os.remove(plan[2].path)
    write(plan)
    assert os.path.exists(plan[2].path)


def test_shard_of_changed_files_is_written_again(plan):
    write(plan)
    before = stamps(plan)
    frame = pathlib.Path(plan[0].clips[0].frames[0])
    os.utime(frame, ns=(1, 1))
    write(plan)
    assert stamps(plan)[0] != before[0] and stamps(plan)[1:] == before[1:]


def test_shards_in_another_packing_are_written_again(plan):
    write(plan)
    before = stamps(plan)
    write([dataclasses.replace(shard, repack=True) for shard in plan])
    assert not set(before) & set(stamps(plan))


def test_broken_clip_is_left_out_and_told(plan):
    os.remove(plan[1].clips[0].wav)
    reports = write(plan)
    assert [report.num_clips for report in reports] == [2, 1, 2]
    assert [finding.kind for finding in reports[1].findings if finding.fatal] == ["missing_wav"]


def test_shard_with_a_broken_clip_is_tried_again(plan):
    wav = plan[1].clips[0].wav
    os.rename(wav, f"{wav}.away")
    write(plan)
    os.rename(f"{wav}.away", wav)
    assert [report.num_clips for report in write(plan)] == [2, 2, 2]


def test_interrupted_shard_leaves_nothing_under_its_name(plan, monkeypatch):
    read = clips_lib.read_clip

    def stop_at_third(clip, repack):
        if clip is plan[1].clips[0]:
            raise KeyboardInterrupt
        return read(clip, repack)

    monkeypatch.setattr(clips_lib, "read_clip", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        write(plan)
    assert [os.path.exists(shard.path) for shard in plan] == [True, False, False]


def read_records(shard):
    source = array_record_data_source.ArrayRecordDataSource([shard.path])
    features = clips_lib.features()
    return [features.deserialize_example_np(source[index]) for index in range(len(source))]


def test_workers_write_the_same_as_one_process(plan):
    write(plan)
    alone = [read_records(shard) for shard in plan]
    for shard in plan:
        os.remove(shard.path)
    write(plan, num_workers=2)
    jax.tree.map(np.testing.assert_array_equal, [read_records(shard) for shard in plan], alone)


def test_error_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        list(shards.run_parallel(lambda number: 1 / number, [1, 0], num_workers=1))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_full_disk_is_an_error_in_one_line(plan):
    os.symlink("/dev/full", f"{plan[0].path}.{os.getpid()}.tmp")
    with pytest.raises(errors.BadValueError, match=r"cannot write .*No space left"):
        shards.write_shard(plan[0])
