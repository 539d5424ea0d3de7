"""Data sets by name and the sources of their splits."""

import importlib
import pathlib
import pickle
import re
import shutil

import av
import cv2
import google.protobuf.message
import numpy as np
import pytest

from avs_jax import data, errors
from tests.data.tiny import build_tiny


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    build_tiny(folder, "ms3", clips=(4, 1, 2))
    return build_tiny(folder, "avss", clips=(6, 1, 1))


@pytest.fixture
def data_dir(built, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(built, tmp_path / "data")


def folder_of(data_dir):
    return pathlib.Path(data_dir) / "sounding_shapes" / "ms3" / "1.0.0"


def test_examples_keep_the_batch_contract(built):
    example = data.open_split("sounding_shapes", "ms3", "train", built)[0]
    expected = {
        "frames": ((5, 32, 32, 3), np.uint8),
        "waveform": ((80_000,), np.float32),
        "label": ((5, 32, 32), np.uint8),
        "label_mask": ((5,), np.bool_),
        "frame_mask": ((5,), np.bool_),
        "objects": ((5, 32, 32), np.uint8),
        "num_objects": ((), np.int32),
    }
    assert set(example) == {*expected, "id"}
    for key, (shape, dtype) in expected.items():
        assert (key, example[key].shape, example[key].dtype) == (key, shape, dtype)
    assert isinstance(example["id"], str)
    assert 0 < np.abs(example["waveform"]).max() <= 1


def test_short_clips_are_padded_and_masked(built):
    source = data.open_split("sounding_shapes", "avss", "train", built)
    examples = [source[index] for index in range(len(source))]
    lengths = {int(example["frame_mask"].sum()) for example in examples}
    assert lengths == {5, 10}
    for example in examples:
        seconds = int(example["frame_mask"].sum())
        assert example["frames"].shape[0] == 10 and len(example["waveform"]) == 160_000
        np.testing.assert_array_equal(example["frame_mask"], np.arange(10) < seconds)
        np.testing.assert_array_equal(example["label_mask"], example["frame_mask"])
        for key in ("frames", "label", "objects"):
            assert not example[key][seconds:].any()
        assert not example["waveform"][seconds * 16_000 :].any()
        assert example["waveform"][: seconds * 16_000].any()


def test_slices_open_part_of_a_split(built):
    source = data.open_split("sounding_shapes", "ms3", "train[1:3]", built)
    assert [source[i]["id"] for i in range(len(source))] == ["ms3/train/000001", "ms3/train/000002"]


def test_an_index_beyond_the_end_is_an_index_error(built):
    source = data.open_split("sounding_shapes", "ms3", "test", built)
    assert source[-1]["id"] == source[1]["id"]
    with pytest.raises(IndexError):
        source[2]


@pytest.mark.parametrize(
    "name, subset, split, known",
    [
        ("shapes", "ms3", "train", "known: avsbench, sounding_shapes"),
        ("sounding_shapes", "ms4", "train", "known: avss, ms3, s4"),
        ("sounding_shapes", "ms3", "val", "known: test, train, validation"),
    ],
)
def test_unknown_names_list_the_known_ones(built, name, subset, split, known):
    with pytest.raises(errors.UnknownNameError, match=known):
        data.open_split(name, subset, split, built)


def test_a_slice_that_is_none_is_refused_in_one_line(built):
    with pytest.raises(errors.BadValueError, match="train") as caught:
        data.open_split("sounding_shapes", "ms3", "train[1", built)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["missing", "."])
def test_nothing_built_says_how_to_build_it(tmp_path, folder):
    with pytest.raises(
        errors.NotFoundError,
        match=r"python -m avs_jax.data.sounding_shapes.build --subset s4 --data_dir ",
    ):
        data.open_split("sounding_shapes", "s4", "train", tmp_path / folder)


def test_a_half_built_folder_says_so(tmp_path):
    (tmp_path / "sounding_shapes" / "ms3" / "incomplete.AB12CD_1.0.0").mkdir(parents=True)
    with pytest.raises(errors.NotFoundError, match=r"half built.*delete it and build it with"):
        data.open_split("sounding_shapes", "ms3", "train", tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_files_cut_off_are_an_error_at_opening(data_dir, keep):
    path = next(folder_of(data_dir).glob("*train*"))
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(errors.BadValueError, match=r"cannot be read.*build it with") as caught:
        data.open_split("sounding_shapes", "ms3", "train", data_dir)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("chunk data hash mismatch; at byte 7"),
        cv2.error("OpenCV(4.10) error: (-215:Assertion failed) size > 0"),
        OSError(5, "Input/output error"),
        KeyError("frames"),
        google.protobuf.message.DecodeError("Error parsing message"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        av.error.InvalidDataError(1094995529, "Invalid data found"),
        ValueError(),
        MemoryError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_of_a_reader_survive_pickling_and_carry_their_record(error):
    def fail(record):
        raise error

    source = data.Source([b"a"] * 9, fail, 5, "shapes/ms3/train", "build it again")
    with pytest.raises(errors.BadValueError) as caught:
        source[7]
    again = pickle.loads(pickle.dumps(caught.value))
    assert type(again) is errors.BadValueError
    assert str(again) == str(caught.value)
    assert re.fullmatch(
        r"record 7 of shapes/ms3/train cannot be read \(.+\); build it again", str(again)
    )


def test_a_file_that_is_gone_is_an_error_at_opening(data_dir):
    next(folder_of(data_dir).glob("*train*")).unlink()
    with pytest.raises(errors.NotFoundError, match="is gone"):
        data.open_split("sounding_shapes", "ms3", "train", data_dir)


def test_the_newest_version_is_opened(data_dir):
    newer = folder_of(data_dir).with_name("1.0.10")
    shutil.copytree(folder_of(data_dir), newer)
    shutil.copytree(newer, newer.with_name("1.0.9"))
    assert data.find_built("sounding_shapes", "ms3", data_dir) == newer


def test_builders_load_by_name():
    assert data.load_builder("sounding_shapes").__name__ == "SoundingShapes"


ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("name", list(data.DATASETS))
def test_the_command_named_in_errors_is_one_the_program_takes(name, tmp_path):
    with pytest.raises(errors.NotFoundError) as caught:
        data.open_split(name, "ms3", "train", tmp_path)
    if "python -m" not in str(caught.value):  # a script, with the folder that clips are made from
        script, folder = str(caught.value).rpartition("build it with: ")[2].split()
        assert (ROOT / script).is_file()
        assert folder == str(tmp_path)
        return
    words = str(caught.value).rpartition("python -m ")[2].split()
    program = importlib.import_module(words[0])
    # Refused for the folder, which holds nothing, and not for the way it is asked.
    arguments = [str(tmp_path / "none") if word == "SOURCE" else word for word in words[1:]]
    if "SOURCE" in words:
        with pytest.raises(errors.InputError):
            program.main(arguments)
    else:
        program.main([*arguments, "--size", "16", "--clips", "1,1,1"])
        assert len(data.open_split(name, "ms3", "train", tmp_path)) == 1
