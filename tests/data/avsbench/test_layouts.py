"""Finding AVSBench's layouts on disk and the files of its clips."""

import os
import pathlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avs_jax import errors
from avs_jax.data.avsbench import layouts
from tests.data.avsbench import mini_avsbench as mini

RELEASE = pathlib.Path(os.environ.get("AVSBENCH_RELEASE", "/nonexistent"))
needs_release = pytest.mark.skipif(not RELEASE.exists(), reason="AVSBENCH_RELEASE is not set")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return mini.write_all(tmp_path_factory.mktemp("layouts"), size=16)


@pytest.fixture
def s4(tmp_path):
    return mini.write_s4(tmp_path / "Single-source", size=16)


@pytest.fixture
def ms3(tmp_path):
    return mini.write_ms3(tmp_path / "Multi-sources", size=16)


def read(folder, kind):
    clips, bad_rows = layouts.read_clips(layouts.find_layouts(folder)[kind])
    return {clip.id: clip for clip in clips}, bad_rows


def all_exist(clips):
    files = [path for c in clips.values() for path in (*c.frames, *c.masks, *c.colours, c.wav)]
    return all(map(os.path.exists, files))


def test_finds_all_three_below_one_folder(source):
    assert set(layouts.find_layouts(source)) == {"s4", "ms3", "semantic"}


@pytest.mark.parametrize("kind", ["s4", "ms3", "semantic"])
def test_every_file_of_every_clip_is_where_the_release_has_it(source, kind):
    clips, bad_rows = read(source, kind)
    assert clips and not bad_rows
    assert all_exist(clips)


@pytest.mark.parametrize("folder", ["AVSBench_object/Single-source/s4_data", "AVSBench_object"])
def test_finds_s4_from_the_folder_of_its_clips_and_from_above(source, folder):
    assert layouts.find_layouts(source / folder)["s4"].root.name == "s4_data"


def test_folders_may_be_renamed(source, tmp_path):
    shutil.copytree(source / "AVSBench_object" / "Single-source", tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "s4_data").rename(tmp_path / "a" / "b" / "c")
    clips, _ = read(tmp_path, "s4")
    assert all_exist(clips)


@pytest.mark.parametrize(
    ("kind", "name", "frames", "labelled"),
    [
        ("s4", "-_wznbUu3DY", 5, 1),
        ("s4", "Ab-c_d", 5, 5),
        ("ms3", "xv7eM6-UmkY_36", 5, 5),
        ("semantic", "-_9NSq4U3nw_0_5000", 5, 1),
        ("semantic", "Ab_1000_6000", 5, 5),
        ("semantic", "_19NVGk6Zt8_0", 5, 5),
        ("semantic", "_-apT0_16000_26000", 10, 10),
    ],
)
def test_numbers_of_frames_and_labels(source, kind, name, frames, labelled):
    clip = read(source, kind)[0][name]
    assert (len(clip.frames), len(clip.masks)) == (frames, labelled)


def test_names_are_never_taken_for_numbers(source):
    assert {"0012", "1e5", "-0"} <= set(read(source, "s4")[0])


def test_category_is_kept(source):
    assert read(source, "s4")[0]["-0"].category == "playing_tabla"
    assert read(source, "semantic")[0]["__GO_4000_9000"].category == "h orse"


@pytest.mark.parametrize("mark", ["utf-8", "utf-8-sig", "utf-16"])
def test_byte_order_mark_is_no_part_of_a_column(s4, mark):
    table = s4 / "s4_meta_data.csv"
    table.write_text(table.read_text(), encoding=mark)
    if mark == "utf-16":
        with pytest.raises(errors.NotFoundError, match="expected a CSV with the columns name"):
            read(s4, "s4")
    else:
        assert all_exist(read(s4, "s4")[0])


@given(st.permutations(["name", "start", "category", "split"]))
@settings(deadline=None, max_examples=10)
def test_columns_may_have_any_order(source, order):
    layout = layouts.find_layouts(source)["s4"]
    columns = ("name", "start", "category", "split")
    lines = [line.split(",") for line in layout.table.read_text().split()[1:]]
    rows = [[dict(zip(columns, line, strict=True))[column] for column in order] for line in lines]
    table = source / "reordered.csv"
    mini.write_table(table, [f" {column.upper()} " for column in order], rows)
    found = layouts.Layout("s4", layout.root, table)
    assert layouts.read_clips(found) == layouts.read_clips(layout)
    table.unlink()


def test_windows_line_ends_and_blank_lines_are_no_rows(s4):
    table = s4 / "s4_meta_data.csv"
    table.write_bytes(table.read_bytes().replace(b"\n", b"\r\n") + b"\r\n , ,,\r\n")
    clips, bad_rows = read(s4, "s4")
    assert all_exist(clips) and not bad_rows


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("x,0,dog_barking,validation", "split 'validation' is none of train, val, test"),
        (",0,dog_barking,train", "no name"),
        ("x,0,,train", "no category"),
        ("x,0", "no category"),
        ("../x,0,dog_barking,train", "'../x' is not the name of a file"),
        ("x,0,..,train", "'..' is not the name of a file"),
    ],
)
def test_row_that_names_no_clip_is_told_with_its_line(s4, row, why):
    with open(s4 / "s4_meta_data.csv", "a") as file:
        file.write(row + "\n")
    clips, bad_rows = read(s4, "s4")
    assert len(clips) == 8
    assert [(bad.line, bad.kind) for bad in bad_rows] == [(10, "bad_row")]
    assert why in bad_rows[0].why


def test_column_that_is_called_like_a_field_of_our_names_is_no_matter(s4):
    table = s4 / "s4_meta_data.csv"
    head, *rows = table.read_text().splitlines()
    lines = [f"{head},i,self,0", *(f"{row},7,8,9" for row in rows)]
    table.write_text("\n".join(lines))
    clips, bad_rows = read(s4, "s4")
    assert all_exist(clips) and not bad_rows


def test_quote_that_is_not_closed_is_told_with_its_line(s4):
    with open(s4 / "s4_meta_data.csv", "a") as file:
        file.write('x,0,"dog_barking,train\ny,0,dog_barking,train\n')
    clips, bad_rows = read(s4, "s4")
    assert len(clips) == 8
    assert "a quote" in bad_rows[0].why


def test_cell_of_more_than_the_reader_takes_is_an_error_in_one_line(s4):
    with open(s4 / "s4_meta_data.csv", "a") as file:
        file.write(f'x,0,"{"y" * 200_000}\n')
    with pytest.raises(errors.BadValueError, match=r"cannot be read beyond line .*field larger"):
        read(s4, "s4")


def test_folder_that_is_called_like_a_table_is_none(s4):
    (s4 / "metadata.csv").mkdir()  # looked at before S4's own
    assert len(read(s4, "s4")[0]) == 8


def test_second_row_of_a_clip_is_told(s4):
    with open(s4 / "s4_meta_data.csv", "a") as file:
        file.write("-0,0,playing_tabla,train\n")
    clips, bad_rows = read(s4, "s4")
    assert clips["-0"].split == "val"
    assert bad_rows[0].kind == "duplicate_row"


def test_unknown_subset_of_the_semantic_layout_is_told(tmp_path):
    mini.write_semantic(tmp_path, mini.SEMANTIC_CLIPS[:2])
    with open(tmp_path / "metadata.csv", "a") as file:
        file.write("a,a_0_10000,0,0,dog,train,v3\n")
    assert "label 'v3' is none of v1s, v1m, v2" in read(tmp_path, "semantic")[1][0].why


@pytest.mark.parametrize("new", ["{split}/{name}/{name}.mp4_{i}.png", "{name}/{name}_{i}.png"])
def test_ms3_frames_as_copies_name_them(ms3, new):
    frames = ms3 / "ms3_data" / "visual_frames"
    for split, names in mini.MS3_CLIPS.items():
        for name in names:
            for i in range(1, 6):
                target = frames / new.format(split=split, name=name, i=i)
                target.parent.mkdir(parents=True, exist_ok=True)
                (frames / name / f"{name}.mp4_{i}.png").rename(target)
    assert all_exist(read(ms3, "ms3")[0])


def test_table_may_lie_anywhere_in_the_source(source, tmp_path):
    shutil.copytree(source / "AVSBench_object" / "Single-source" / "s4_data", tmp_path / "data")
    (tmp_path / "tables").mkdir()
    shutil.copy(
        source / "AVSBench_object" / "Single-source" / "s4_meta_data.csv", tmp_path / "tables"
    )
    assert len(read(tmp_path, "s4")[0]) == 8


def test_table_of_another_layout_is_not_taken(s4):
    mini.write_table(s4 / "s4_meta_data.csv", ["video_id", "split"], [("a", "train")])
    with pytest.raises(errors.NotFoundError, match=r"found s4_meta_data.csv \(video_id, split\)"):
        layouts.find_layouts(s4)


def test_missing_source_is_an_error():
    with pytest.raises(errors.NotFoundError, match="no folder /nowhere/at/all"):
        layouts.find_layouts("/nowhere/at/all")


def test_folder_without_avsbench_says_what_is_expected(tmp_path):
    with pytest.raises(errors.NotFoundError, match="expected visual_frames/, gt_masks/"):
        layouts.find_layouts(tmp_path)


def test_two_of_a_kind_must_be_told_apart(s4):
    shutil.copytree(s4, s4.parent / "copy")
    with pytest.raises(errors.BadValueError, match=r"two S4 .* give one of them"):
        layouts.find_layouts(s4.parent)


def test_s4_from_the_semantic_layout_has_the_ids_of_s4(source):
    clips, _ = layouts.read_clips(layouts.find_layouts(source)["semantic"])
    rebuilt = layouts.as_binary(clips, "s4")
    assert {clip.id for clip in rebuilt} == {"-_9NSq4U3nw", "__GO", "Ab", "Cd"}
    assert all(clip.binary and clip.subset == "v1s" for clip in rebuilt)


def test_ms3_from_the_semantic_layout_keeps_ids_that_end_in_numbers(source):
    clips, _ = layouts.read_clips(layouts.find_layouts(source)["semantic"])
    ids = {clip.id for clip in layouts.as_binary(clips, "ms3")}
    assert ids == {"_19NVGk6Zt8_0", "-Kot_3", "u4v75o5WxYw_7"}


@pytest.mark.parametrize("kind", ["s4", "ms3", "semantic"])
def test_nothing_is_a_stray_in_a_whole_release(source, kind):
    layout = layouts.find_layouts(source)[kind]
    assert layouts.find_strays(layout, layouts.read_clips(layout)[0]) == []


@pytest.mark.parametrize(("kind", "name"), [("s4", "-0"), ("ms3", "_Q2"), ("semantic", "-Kot_3")])
def test_clip_without_a_row_is_a_stray(source, kind, name):
    layout = layouts.find_layouts(source)[kind]
    clips = [clip for clip in layouts.read_clips(layout)[0] if clip.id != name]
    strays = layouts.find_strays(layout, clips)
    assert len(strays) == 1 and name in strays[0]


@needs_release
@pytest.mark.parametrize(
    ("kind", "table"),
    [("s4", "s4_meta_data.csv"), ("ms3", "ms3_meta_data.csv"), ("semantic", "avss_metadata.csv")],
)
def test_numbers_and_digests_are_those_of_the_released_tables(kind, table):
    layout = layouts.Layout(kind, pathlib.Path("/nonexistent"), RELEASE / table)
    clips, bad_rows = layouts.read_clips(layout)
    assert not bad_rows
    subsets = layouts.SUBSETS if kind == "semantic" else (kind,)
    for subset in subsets:
        for split in layouts.SPLITS:
            part = [clip for clip in clips if (clip.subset, clip.split) == (subset, split)]
            expected = layouts.RELEASED[subset, split]
            assert (len(part), layouts.row_digest(part)) == expected


@needs_release
def test_rebuilt_ids_are_those_of_s4_and_ms3():
    def read_table(kind, table):
        root = pathlib.Path("/nonexistent")
        return layouts.read_clips(layouts.Layout(kind, root, RELEASE / table))[0]

    semantic = read_table("semantic", "avss_metadata.csv")
    for kind, table in (("s4", "s4_meta_data.csv"), ("ms3", "ms3_meta_data.csv")):
        own = {(clip.id, clip.split) for clip in read_table(kind, table)}
        rebuilt = {(clip.id, clip.split) for clip in layouts.as_binary(semantic, kind)}
        assert rebuilt == own
