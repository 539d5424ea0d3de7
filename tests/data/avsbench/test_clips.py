"""Reading one clip of AVSBench: what it becomes, and what is said about a broken one."""

import os
import pathlib
import struct

import cv2
import jax
import numpy as np
import pytest
import scipy.io.wavfile
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax.data.avsbench import classes, clips, faults, layouts
from avs_jax.media import audio
from tests.data.avsbench import mini_avsbench as mini
from tests.data.avsbench.planted_faults import FAULTS, write_broken

RELEASE = pathlib.Path(os.environ.get("AVSBENCH_RELEASE", "/nonexistent"))
needs_release = pytest.mark.skipif(not RELEASE.exists(), reason="AVSBENCH_RELEASE is not set")


def list_clips(folder):
    found = layouts.find_layouts(folder).values()
    return {clip.id: clip for layout in found for clip in layouts.read_clips(layout)[0]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return list_clips(mini.write_all(tmp_path_factory.mktemp("clips")))


@pytest.fixture
def s4_clip(tmp_path):
    mini.write_s4(tmp_path, clips={"test": [("x", "dog_barking")]})
    return list_clips(tmp_path)["x"]


@pytest.fixture
def v2_clip(tmp_path):
    mini.write_semantic(tmp_path, (mini.Row("x_0_10000", "dog_man", "test", "v2"),))
    return list_clips(tmp_path)["x_0_10000"]


def decode(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def test_every_whole_clip_is_read_without_a_finding(whole):
    for name, clip in whole.items():
        example, findings = clips.read_clip(clip)
        kinds = [finding.kind for finding in findings]
        assert example is not None
        assert kinds == (["short_wav"] if name == "Cd_0_5000" else [])


@pytest.mark.parametrize(("what", "pixels"), [("mask", "masks"), ("frame", "frames")])
def test_every_bit_that_flips_in_a_png_is_found(s4_clip, what, pixels):
    path = pathlib.Path(getattr(s4_clip, pixels)[0])
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    found = []
    for place in rng.integers(8 * 8, 8 * (len(whole) - 12), 60):  # not in the signature, nor IEND
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        example, findings = clips.read_clip(s4_clip)
        found.append(example is None and f"unreadable_{what}" in {f.kind for f in findings})
    path.write_bytes(whole)
    assert all(found)


@pytest.mark.parametrize("rate", [1, 100, 2_000_000_000])
def test_wav_whose_header_lies_about_its_rate_is_not_resampled(s4_clip, rate, monkeypatch):
    mini.write_sound(pathlib.Path(s4_clip.wav), rate, np.zeros(12_000, np.int16))
    monkeypatch.setattr(audio, "resample", None)
    example, findings = clips.read_clip(s4_clip)
    assert example is None
    assert f"a rate of {rate} Hz in its header" in findings[0].detail


@pytest.mark.parametrize("name", ["-_wznbUu3DY", "xv7eM6-UmkY_36", "1-j_0_10000"])
def test_frames_keep_the_bytes_of_the_release(whole, name):
    clip = whole[name]
    example, _ = clips.read_clip(clip)
    assert example["frames"] == [pathlib.Path(path).read_bytes() for path in clip.frames]


def test_repacked_frames_have_the_same_pixels(whole):
    clip = whole["-_wznbUu3DY"]
    example, findings = clips.read_clip(clip, repack=True)
    assert not findings
    for data, path in zip(example["frames"], clip.frames, strict=True):
        assert len(data) > 224 * 224 * 3
        np.testing.assert_array_equal(decode(data), cv2.imread(path))


def test_repacking_leaves_jpeg_as_it_is(whole):
    clip = whole["1-j_0_10000"]
    example, _ = clips.read_clip(clip, repack=True)
    assert example["frames"] == [pathlib.Path(path).read_bytes() for path in clip.frames]


@pytest.mark.parametrize("name", ["-_wznbUu3DY", "Ab-c_d"])
def test_s4_masks_become_zero_and_one(whole, name):
    example, _ = clips.read_clip(whole[name])
    assert example["num_labelled"] == len(example["label"])
    for index, data in enumerate(example["label"]):
        np.testing.assert_array_equal(decode(data), mini.draw_mask(name, index, 224, 224))


def test_ms3_mask_without_an_object_is_all_zero(whole):
    name, number = mini.MS3_BLACK
    example, _ = clips.read_clip(whole[name])
    assert not decode(example["label"][number - 1]).any()


@pytest.mark.parametrize("row", mini.SEMANTIC_CLIPS, ids=lambda row: row.uid)
def test_semantic_labels_are_class_ids(whole, row):
    example, _ = clips.read_clip(whole[row.uid])
    assert len(example["label"]) == row.num_labelled
    for index, data in enumerate(example["label"]):
        np.testing.assert_array_equal(decode(data), mini.draw_label(row, index))


def test_palette_colours_serve_where_there_are_no_ids(v2_clip):
    expected, _ = clips.read_clip(v2_clip)
    for path in v2_clip.masks:
        os.remove(path)
    example, findings = clips.read_clip(v2_clip)
    assert not findings
    for ours, theirs in zip(example["label"], expected["label"], strict=True):
        np.testing.assert_array_equal(decode(ours), decode(theirs))


def test_ids_serve_where_there_are_no_palette_colours(v2_clip):
    for path in v2_clip.colours:
        os.remove(path)
    example, findings = clips.read_clip(v2_clip)
    assert example is not None and not findings


def test_binary_labels_from_class_ids_mark_every_class(whole):
    row = next(row for row in mini.SEMANTIC_CLIPS if row.uid == "_19NVGk6Zt8_0")
    clip = layouts.as_binary([whole[row.uid]], "ms3")[0]
    example, _ = clips.read_clip(clip)
    expected = (mini.draw_label(row, 2) > 0).astype(np.uint8)
    np.testing.assert_array_equal(decode(example["label"][2]), expected)


def test_unknown_colour_becomes_background(v2_clip):
    for path in v2_clip.masks:
        os.remove(path)
    FAULTS_BY_NAME["odd_colour"].plant(v2_clip)
    example, findings = clips.read_clip(v2_clip)
    assert [(f.kind, f.detail) for f in findings] == [
        ("unknown_colour", "1 pixels, e.g. RGB (1, 2, 3)")
    ]
    assert decode(example["label"][0])[0, 3] == 0


def test_unknown_id_becomes_background(v2_clip):
    FAULTS_BY_NAME["odd_id"].plant(v2_clip)
    assert decode(clips.read_clip(v2_clip)[0]["label"][0])[0, 3] == 0


FAULTS_BY_NAME = {fault.name: fault for fault in FAULTS}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    paths = write_broken(folder)
    found = list_clips(folder)
    return paths, {name.removesuffix("_0_10000"): clips.read_clip(c) for name, c in found.items()}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_found_with_its_file(broken, fault):
    paths, read = broken
    found = [(finding.kind, finding.path) for finding in read[fault.name][1]]
    assert (fault.kind, paths[fault.name]) in found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_clip_is_kept_exactly_if_its_fault_allows(broken, fault):
    example, findings = broken[1][fault.name]
    assert (example is None) == faults.KINDS[fault.kind].fatal
    assert all(faults.KINDS[finding.kind].fix for finding in findings)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_nothing_else_is_said_about_a_clip_with_one_fault(broken, fault):
    others = {finding.kind for finding in broken[1][fault.name][1]} - {fault.kind}
    # A frame has a mask to fit, a label two encodings: what is changed in one is told of both.
    allowed = {
        "other_frame_size": {"mask_size"},
        "odd_id": {"labels_differ"},
        "turned_label": {"labels_differ"},
    }
    assert others <= allowed.get(fault.name, set())


@pytest.mark.parametrize("name", ["grey_frame", "rgba_frame", "cmyk_frame", "deep_frame"])
def test_frames_of_other_modes_become_rgb(broken, name):
    for data in broken[1][name][0]["frames"]:
        pixels = decode(data)
        assert pixels.shape[2:] == (3,) and pixels.dtype == np.uint8


@pytest.mark.parametrize("name", ["white_rgb_mask", "one_bit_mask", "palette_mask", "grey_pixel"])
def test_masks_of_other_modes_mean_the_same(broken, name):
    label = decode(broken[1][name][0]["label"][0])
    np.testing.assert_array_equal(label, mini.draw_mask(name, 0, 224, 224))


def test_pickle_is_never_loaded(broken):
    paths, _ = broken
    assert not os.path.exists(f"{paths['pickle_as_wav']}.exploded")


def test_truncated_wav_says_so(broken):
    assert broken[1]["cut_wav"][1][0].detail == "cut off: 160662 of 321324 bytes"


def test_wav_from_a_pipe_does_not_know_its_length(s4_clip):
    path = pathlib.Path(s4_clip.wav)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 4 + data[8:40] + b"\xff" * 4 + data[44:])
    example, findings = clips.read_clip(s4_clip)
    assert not findings and len(example["waveform"]) == 80_320


def convert_24_bit(path, samples):
    """Writes int16 samples as a 24-bit wav, which scipy cannot write."""
    body = np.frombuffer((samples.astype("<i4") << 8).tobytes(), np.uint8)
    body = body.reshape(-1, 4)[:, :3].tobytes()
    width = 3 * samples.shape[1]
    form = struct.pack("<HHIIHH", 1, samples.shape[1], 16_000, 16_000 * width, width, 24)
    sections = b"fmt " + struct.pack("<I", len(form)) + form
    sections += b"data" + struct.pack("<I", len(body)) + body
    path.write_bytes(b"RIFF" + struct.pack("<I", 4 + len(sections)) + b"WAVE" + sections)


def write_as(path, samples, coding):
    if coding == "int24":
        convert_24_bit(path, samples)
        return
    scaled = {
        "int16": samples,
        "int32": samples.astype(np.int32) << 16,
        "uint8": ((samples >> 8) + 128).astype(np.uint8),
        "float32": samples.astype(np.float32) / 32768,
        "float64": samples.astype(np.float64) / 32768,
    }[coding]
    scipy.io.wavfile.write(path, 16_000, scaled)


@pytest.mark.parametrize("coding", ["int16", "int24", "int32", "uint8", "float32", "float64"])
def test_every_coding_of_a_wav_sounds_the_same(s4_clip, coding):
    samples = mini.draw_sound("x", 5.02, 16_000)
    write_as(pathlib.Path(s4_clip.wav), samples, coding)
    example, findings = clips.read_clip(s4_clip)
    assert not findings
    expected = samples.astype(np.float32).mean(axis=1)
    tolerance = 256 if coding == "uint8" else 1  # steps of int16: an 8-bit wav has 256 levels
    np.testing.assert_allclose(example["waveform"], expected, atol=tolerance)


def test_mono_int16_is_kept_as_it_is(s4_clip):
    samples = mini.draw_sound("x", 5.02, 16_000)[:, 0]
    scipy.io.wavfile.write(s4_clip.wav, 16_000, samples)
    np.testing.assert_array_equal(clips.read_clip(s4_clip)[0]["waveform"], samples)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(s4_clip, rate):
    mini.write_sound(pathlib.Path(s4_clip.wav), rate, mini.draw_sound("x", 5.02, rate))
    waveform = clips.read_clip(s4_clip)[0]["waveform"]
    expected = mini.draw_sound("x", 5.02, 16_000).mean(axis=1)
    assert abs(len(waveform) - 80_320) <= 1
    inside = slice(800, 79_200)  # away from the ends, where the resampler's filter rings
    np.testing.assert_allclose(waveform[inside], expected[inside], atol=20)


def test_loud_floats_are_clipped(s4_clip):
    samples = np.array([2.0, -2.0] * 40_160, np.float32)
    scipy.io.wavfile.write(s4_clip.wav, 16_000, samples)
    assert set(clips.read_clip(s4_clip)[0]["waveform"].tolist()) == {32767, -32768}


@given(st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(deadline=None)
def test_int16_survives_scaling(samples):
    samples = np.array(samples, np.int16)
    np.testing.assert_array_equal(clips.to_int16(clips.scale_samples(samples)), samples)


@pytest.mark.parametrize("seconds", [1.2, 2.0, 4.0])
def test_short_sound_has_the_patches_of_the_published_loader(seconds):
    rng = np.random.default_rng(0)
    short = rng.integers(-9000, 9000, int(seconds * 16_000)).astype(np.int16)
    log_mel = jax.jit(lambda samples: audio.log_mel(samples / 32768.0, 5))
    published = log_mel(short.astype(np.float32))  # repeats the last patch of the log-mel
    ours = log_mel(clips.repeat_end(short, 5).astype(np.float32))
    # Two windows of each patch of 96 reach into the next 0.96 s.
    np.testing.assert_allclose(ours[:, :94], published[:, :94], atol=1e-4)


@pytest.mark.parametrize("samples", [0, 100, 15_599, 77_040, 80_000])
def test_sound_without_a_whole_patch_or_with_all_of_them_is_kept(samples):
    waveform = np.arange(samples).astype(np.int16)
    np.testing.assert_array_equal(clips.repeat_end(waveform, 5), waveform)


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_damaged_files_are_told_and_never_raise(whole, data):
    clip = whole[data.draw(st.sampled_from(["Ab-c_d", "1-j_0_10000"]))]
    path = pathlib.Path(data.draw(st.sampled_from([clip.frames[0], clip.masks[0], clip.wav])))
    original = path.read_bytes()
    damaged = bytearray(original)
    if data.draw(st.booleans()):
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    else:
        start = data.draw(st.integers(0, min(len(damaged) - 1, 300)))
        noise = data.draw(st.binary(min_size=1, max_size=30))
        damaged[start : start + len(noise)] = noise
    path.write_bytes(bytes(damaged))
    try:
        example, findings = clips.read_clip(clip)
        assert (example is None) == any(finding.fatal for finding in findings)
    finally:
        path.write_bytes(original)


@needs_release
@pytest.mark.parametrize(
    ("subset", "index", "size", "names", "samples"),
    [
        ("v1s", 0, (720, 540), {"mower"}, 80_320),
        ("v1m", 1, (1280, 720), {"man", "boy"}, 80_320),
        ("v2", 0, (1280, 720), {"clarinet"}, 160_000),
    ],
)
def test_files_of_the_release_decode(subset, index, size, names, samples):
    folder = RELEASE / "samples" / subset
    frame, label = str(folder / f"{index}.jpg"), str(folder / f"{index}.png")
    is_colour = subset == "v2"
    clip = layouts.Clip(
        id="x",
        split="train",
        subset=subset,
        category="",
        frames=(frame,),
        masks=("/nonexistent" if is_colour else label,),
        colours=(label if is_colour else "/nonexistent",),
        wav=str(folder / "audio.wav"),
        binary=False,
    )
    example, findings = clips.read_clip(clip)
    assert {finding.kind for finding in findings} == {"long_wav"}  # one frame, the whole sound
    assert decode(example["frames"][0]).shape == (*size[::-1], 3)
    found = {classes.CLASS_NAMES[index] for index in np.unique(decode(example["label"][0]))}
    assert found == {"background", *names}
    assert len(example["waveform"]) == samples
