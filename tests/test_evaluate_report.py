"""`evaluate --report`: the page of a real run on a tiny checkpoint and the tiny data set."""

import json

import pytest

from avs_jax import errors, evaluate
from tests.data.tiny import build_tiny
from tests.reporting.read_page import Page, seconds_of
from tests.scored_run import make_config, save_run

CLIPS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory, fill_variables):
    """(checkpoint folder, data folder)."""
    data_dir = build_tiny(tmp_path_factory.mktemp("data"), "ms3", clips=(1, 1, CLIPS))
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, make_config(data_dir), fill_variables)
    lines = [{"step": s, "train/loss": 1 / (s + 1)} for s in range(5)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return workdir, data_dir


@pytest.fixture(scope="module")
def reported(run, tmp_path_factory):
    """(results.json, details.json, report.html as text) of one run."""
    output, folder = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("page") / "new"
    arguments = ["--output", str(output), "--report", str(folder), "--metrics", "strict"]
    evaluate.main(["--checkpoint", str(run[0]), *arguments])
    results, details = (
        json.loads((output / f"{n}.json").read_text()) for n in ("results", "details")
    )
    return results, details, (folder / "report.html").read_text()


def test_page_of_a_run_is_one_file_that_needs_no_network(reported):
    assert 50_000 < len(reported[2]) < 2_000_000
    found = Page(reported[2])
    assert all(r.startswith(("data:", "#")) for r in found.resources)
    for title in (
        "Figures",
        "other sounds",
        "By group",
        "Best and worst",
        "Reliability",
        "Training",
    ):
        assert title in found.text


def test_figures_of_the_page_are_those_of_the_results(reported):
    results, _, text = reported
    figures = Page(text).figures
    for name in ("miou", "miou_swap", "miou_mute", "miou_noise", "f_measure_all_objects_oracle"):
        assert f"test/{name}" in figures
    assert "strict/miou" in figures
    assert figures == {name: f"{results[name]:.4f}" for name in figures}
    assert results["interval/miou_low"] <= results["test/miou"] <= results["interval/miou_high"]


def test_clips_of_the_page_are_the_best_and_the_worst_of_the_details(reported):
    _, details, text = reported
    scores = sorted(details["clips"].values(), reverse=True)
    found = Page(text)
    worst = scores[:2:-1]
    best = found.scores[: -len(worst)]  # of those in which something sounds
    assert found.scores[len(best) :] == pytest.approx(worst, abs=1e-5)
    assert 0 < len(best) <= 3 and best == sorted(best, reverse=True) and best[-1] >= worst[-1]
    for sound in found.of_kind("audio/mpeg"):
        assert seconds_of(sound) == pytest.approx(5, abs=0.15)


def test_several_runs_of_classes_have_a_page_each_and_one_together(tmp_path, fill_variables):
    data_dir = build_tiny(tmp_path / "data", "avss", clips=(1, 1, 3))
    for seed in (0, 1):
        save_run(tmp_path / f"s{seed}", make_config(data_dir, "avss"), fill_variables, seed=seed)
    page = tmp_path / "page"
    arguments = ["--output", str(tmp_path / "out"), "--report", str(page), "--sounds", "own"]
    evaluate.main(["--checkpoint", f"{tmp_path / 's0'},{tmp_path / 's1'}", *arguments])
    together = json.loads((tmp_path / "out" / "results.json").read_text())
    found = Page((page / "report.html").read_text())
    assert found.figures["test/miou_std"] == f"{together['test/miou_std']:.4f}"
    assert [r for r in found.resources if r != "data:,"] == [f"run_{i}/report.html" for i in (0, 1)]
    for i in (0, 1):
        one = Page((page / f"run_{i}" / "report.html").read_text())
        own = together["runs"][str(tmp_path / f"s{i}")]
        assert one.figures["test/miou"] == f"{own['test/miou']:.4f}"
        assert "By class" in one.text and "bell disc" in one.text and 2 <= len(one.scores) <= 3


@pytest.mark.parametrize("other", [["--calibrate"], ["--real", "films"], ["--distributed"]])
def test_report_of_what_is_no_evaluation_is_refused(other):
    with pytest.raises(errors.BadValueError, match=f"leave out {other[0]}"):
        evaluate.main(["--checkpoint", "lite", "--report", "page", *other])


def test_report_that_cannot_be_written_is_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "open_model", lambda *_: pytest.fail("opened the model"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.BadValueError, match=r"--report .* is not writable"):
        evaluate.main(["--checkpoint", str(run[0]), "--report", str(tmp_path / "file")])
    assert (tmp_path / "file").read_text() == "mine"
