"""The checker's report: counts, each kind of fault with its file and cure, and the exit code."""

import csv
import os
import re
import shutil

import pytest

from avs_jax import errors
from avs_jax.data import check
from avs_jax.data.avsbench import faults, layouts
from tests.data.avsbench import mini_avsbench as mini
from tests.data.avsbench.planted_faults import FAULTS, write_broken


def run(capsys, *args):
    """The program's exit code and what it prints."""
    code = 0
    try:
        check.main(list(map(str, args)))
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    mini.write_s4(folder / "s4")
    mini.write_ms3(folder / "ms3")
    rows = tuple(row for row in mini.SEMANTIC_CLIPS if row.seconds is None)
    mini.write_semantic(folder / "semantic", rows)
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """The paths of the planted faults and the results of checking them."""
    folder = tmp_path_factory.mktemp("broken")
    paths = write_broken(folder)
    return paths, check.check(folder, any_count=True)


@pytest.fixture(scope="module")
def reports(broken):
    """The report on S4 and that on the semantic layout."""
    return [check.describe(result, listed=50) for result in broken[1]]


def test_whole_release_passes_with_code_0(whole, capsys):
    code, text = run(capsys, whole, "--any-count")
    assert code == 0
    assert text.endswith("All is well.\n")


def test_layouts_are_told_with_their_tables(whole, capsys):
    _, text = run(capsys, whole, "--any-count")
    for kind in layouts.KINDS:
        assert layouts.TITLES[kind] in text
    assert f"{whole}/s4/s4_meta_data.csv, 8 clips" in text


def test_clips_are_counted_beside_the_released_numbers(whole, capsys):
    _, text = run(capsys, whole, "--any-count")
    counts = re.findall(r"^  (s4|v2) +(\w+) +(\d+) +(\d+) +(\d+)$", text, re.MULTILINE)
    assert counts == [
        ("s4", "train", "3452", "4", "4"),
        ("s4", "val", "740", "2", "2"),
        ("s4", "test", "740", "2", "2"),
        ("v2", "train", "4750", "2", "2"),
        ("v2", "val", "500", "1", "1"),
        ("v2", "test", "750", "1", "1"),
    ]


def test_table_with_too_few_rows_is_a_fault(whole, capsys):
    code, text = run(capsys, whole / "ms3")
    assert code == 1
    assert "ms3 train: 2, released 296" in text


def test_table_with_other_clips_is_a_fault(whole, monkeypatch, capsys):
    monkeypatch.setattr(
        layouts,
        "RELEASED",
        {("ms3", "train"): (2, "?"), ("ms3", "val"): (1, "?"), ("ms3", "test"): (1, "?")},
    )
    code, text = run(capsys, whole / "ms3")
    assert code == 1 and "[other_rows]: 3" in text


def test_faults_give_code_1(broken, tmp_path, capsys):
    shutil.copytree(os.path.dirname(broken[1][0].layout.table), tmp_path / "s4")
    code, _ = run(capsys, tmp_path, "--any-count")
    assert code == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_named_with_its_file_and_its_cure(broken, reports, fault):
    report = reports[fault.subset == "v2"]
    section = report.partition(f"[{fault.kind}]")[2].partition("Fix:")
    assert broken[0][fault.name] in section[0]
    assert section[2].strip().startswith(faults.KINDS[fault.kind].fix)


def test_usable_clips_are_those_without_a_fatal_fault(broken):
    fatal = [fault for fault in FAULTS if faults.KINDS[fault.kind].fatal]
    for result in broken[1]:
        subset = "v2" if result.layout.kind == "semantic" else "s4"
        count = next(count for count in result.counts if count.rows)
        assert count.rows - count.usable == sum(fault.subset == subset for fault in fatal)


def test_summary_counts_clips_not_files(broken):
    fatal = [fault for fault in FAULTS if faults.KINDS[fault.kind].fatal]
    assert f"cannot be used: {len(fatal)};" in check.summarize(broken[1])


def test_every_kind_that_a_clip_can_have_is_planted():
    of_tables = {"bad_row", "duplicate_row", "row_count", "other_rows", "stray"}
    assert {fault.kind for fault in FAULTS} == set(faults.KINDS) - of_tables


def test_row_without_a_folder_is_told(whole, tmp_path, capsys):
    shutil.copytree(whole / "semantic", tmp_path / "semantic")
    with open(tmp_path / "semantic" / "metadata.csv", "a") as file:
        file.write("a,absent_0_10000,0,0,dog,test,v2\n")
    code, text = run(capsys, tmp_path, "--any-count")
    assert code == 1
    assert re.search(
        r"\[missing_clip\]: 1; clips that cannot be used: 1\n +/.*absent_0_10000", text
    )


def test_bad_and_double_rows_are_told(whole, tmp_path, capsys):
    shutil.copytree(whole / "s4", tmp_path / "s4")
    with open(tmp_path / "s4" / "s4_meta_data.csv", "a") as file:
        file.write("new,0,dog_barking,dev\n-0,0,playing_tabla,val\n")
    _, text = run(capsys, tmp_path, "--any-count")
    assert "[bad_row]: 1" in text and "[duplicate_row]: 1" in text


def test_clip_without_a_row_is_told(whole, tmp_path, capsys):
    shutil.copytree(whole / "s4", tmp_path / "s4")
    table = tmp_path / "s4" / "s4_meta_data.csv"
    table.write_text("".join(x for x in table.read_text().splitlines(True) if "-0" not in x))
    _, text = run(capsys, tmp_path, "--any-count")
    assert re.search(r"\[stray\]: 1; used all the same\n.*/-0$", text, re.MULTILINE)


def test_long_lists_are_cut(broken):
    s4 = next(result for result in broken[1] if result.layout.kind == "s4")
    section = check.describe(s4, listed=2).partition("[unreadable_wav]: 5")[2].partition("Fix:")[0]
    assert section.count("(") == 2 and "... and 3 more" in section


def test_report_file_has_all_findings(broken, tmp_path):
    check.write_report(broken[1], tmp_path / "faults.csv")
    with open(tmp_path / "faults.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(result.findings) for result in broken[1])
    assert {row["kind"] for row in rows} >= {fault.kind for fault in FAULTS}


def test_no_avsbench_is_an_error_of_the_user(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no AVSBench under"):
        check.main([str(tmp_path)])
