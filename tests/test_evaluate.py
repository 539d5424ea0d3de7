"""The evaluate program on a tiny checkpoint and the tiny data set."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from avs_jax import errors, evaluate
from avs_jax.scoring import report
from avs_jax.weights import converted, trained
from tests import quick_xla
from tests.data.tiny import build_tiny
from tests.scored_run import make_config, save_run

CLIPS = 5


@pytest.fixture(scope="module")
def run(tmp_path_factory, fill_variables):
    """(checkpoint folder, data folder)."""
    data_dir = build_tiny(tmp_path_factory.mktemp("data"), "ms3", clips=(1, 1, CLIPS))
    workdir = tmp_path_factory.mktemp("run")
    save_run(workdir, make_config(data_dir), fill_variables)
    return workdir, data_dir


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """(results.json, results.md) of the program run with its defaults."""
    output = tmp_path_factory.mktemp("out") / "figures"
    evaluate.main(["--checkpoint", str(run[0]), "--output", str(output)])
    return json.loads((output / "results.json").read_text()), (output / "results.md").read_text()


def test_results_hold_every_sound_and_the_oracle(evaluated):
    results, _ = evaluated
    for suffix in ("", "_mute", "_swap", "_all_objects_oracle"):
        assert 0 <= results[f"test/miou{suffix}"] <= 1
        assert 0 <= results[f"test/f_measure{suffix}"] <= 1


def test_results_say_what_they_are_of(evaluated):
    results, _ = evaluated
    assert results["clips"] == CLIPS and results["size"] == 32 and results["step"] == 7
    assert results["data"] == "sounding_shapes/ms3/test" and results["model"] == "avesformer"
    assert results["params"] > 1000 and results["train/seconds"] == 12.3
    assert len(results["config_hash"]) == 12 and results["batch_size"] == 8


def test_table_has_a_column_for_each_sound(evaluated):
    results, table = evaluated
    header, _, *rows = table.splitlines()
    assert header == "| test | own | mute | swap | all objects oracle |"
    miou = next(row for row in rows if row.startswith("| miou |"))
    oracle = results["test/miou_all_objects_oracle"]
    assert miou.split(" | ")[1] == f"{results['test/miou']:.4f}"
    assert miou.rstrip(" |").endswith(f"{oracle:.4f}")


def test_last_printed_line_is_the_results(run, evaluated, tmp_path, capsys):
    evaluate.main(["--checkpoint", str(run[0]), "--output", str(tmp_path), "--sounds", "own"])
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "results.json").read_text())
    assert printed["test/miou"] == evaluated[0]["test/miou"] and "test/miou_mute" not in printed


def test_slice_of_a_split_keeps_its_name(run, tmp_path):
    evaluate.main(
        ["--checkpoint", str(run[0]), "--output", str(tmp_path), "--split=test[:2]", "--sounds=own"]
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["clips"] == 2 and "test/miou" in results


# ----------------------------------------------------------------------------------- all families


@pytest.fixture(scope="module")
def everything(run, tmp_path_factory):
    """The folder of a run with every family, masks saved in masks/."""
    output = tmp_path_factory.mktemp("all")
    evaluate.main(
        [
            "--checkpoint",
            str(run[0]),
            "--output",
            str(output),
            "--metrics",
            "all",
            "--sounds",
            "own",
            "--save_masks",
            str(output / "masks"),
        ]
    )
    return output


def test_every_family_has_its_figures(everything):
    results = json.loads((everything / "results.json").read_text())
    for name in ("paper/miou", "strict/f_measure", "dataset/fdr", "jf/j_and_f", "robust/noise/fpr"):
        assert 0 <= results[name] <= 1
    assert results["paper/f_batch_videos"] == 4
    assert results["interval/miou_low"] <= results["test/miou"] <= results["interval/miou_high"]


def test_robust_family_has_every_sound(everything):
    results = json.loads((everything / "results.json").read_text())
    found = {name.split("/")[1] for name in results if name.startswith("robust/")}
    assert found == {"mute", "noise", "offscreen", "swap", "shift"}


def test_details_are_by_clip_and_group(everything):
    details = json.loads((everything / "details.json").read_text())
    results = json.loads((everything / "results.json").read_text())
    assert len(details["clips"]) == CLIPS
    assert np.mean(list(details["clips"].values())) == pytest.approx(results["test/miou"], abs=1e-5)
    assert {"second_0", "second_1_on"} <= set(details["groups"])


def test_every_family_has_a_table(everything):
    text = (everything / "results.md").read_text()
    for title in ("paper", "strict", "dataset", "jf", "robust", "strict, by group"):
        assert f"\n| {title} |" in text


def test_masks_are_saved_for_every_second(everything):
    folders = sorted((everything / "masks").iterdir())
    assert len(folders) == CLIPS
    for folder in folders:
        assert sorted(p.name for p in (folder / "masks").iterdir()) == [
            f"{i}.png" for i in range(5)
        ]
    mask = np.asarray(Image.open(folders[0] / "masks" / "0.png"))
    colours = np.asarray(Image.open(folders[0] / "palette" / "0.png"))
    assert mask.shape == (32, 32) and set(np.unique(mask)) <= {0, 255}
    np.testing.assert_array_equal(colours.any(-1), mask > 0)


def test_original_size_equals_model_size_where_both_are_the_same(run, evaluated, tmp_path):
    evaluate.main(
        [
            "--checkpoint",
            str(run[0]),
            "--output",
            str(tmp_path),
            "--sounds",
            "own",
            "--original_size",
        ]
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["test/miou"] == pytest.approx(evaluated[0]["test/miou"], abs=1e-4)
    assert results["scored_at"] == "original size"


def test_semantic_model_is_reported_by_class(tmp_path, fill_variables):
    data_dir = build_tiny(tmp_path / "data", "avss", clips=(1, 1, 3))
    save_run(tmp_path / "run", make_config(data_dir, "avss"), fill_variables)
    evaluate.main(
        ["--checkpoint", str(tmp_path / "run"), "--metrics", "paper,strict", "--sounds", "own"]
    )
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    details = json.loads((tmp_path / "run" / "details.json").read_text())
    classes = details["classes"]
    assert len(classes) == 11 and "bell disc" in classes
    mean = np.mean([row["iou"] for row in classes.values()])
    assert results["test/miou"] == results["strict/miou"] == pytest.approx(mean)
    assert results["paper/padded_frames"] is True and "paper/miou_without_last_class" in results


@pytest.fixture(scope="module")
def converted_run(run, tmp_path_factory):
    """(folder of the run's weights as converted ones, the config file they are for)."""
    folder = tmp_path_factory.mktemp("weights")
    loaded = trained.load_model(str(run[0]))
    fields = loaded.config.model.to_dict()
    converted.save_converted(
        str(folder / "converted"), fields.pop("name"), loaded.variables, {}, **fields
    )
    file = folder / "config.py"
    file.write_text(
        "import ml_collections\n"
        f"def get_config(arguments):\n"
        f"    return ml_collections.ConfigDict({json.loads(loaded.config.to_json())!r})\n"
    )
    return folder / "converted", file


def test_converted_weights_are_evaluated_by_their_config(converted_run, evaluated):
    folder, file = converted_run
    evaluate.main(["--checkpoint", str(folder), "--config", str(file), "--sounds", "own"])
    results = json.loads((folder / "results.json").read_text())
    assert results["test/miou"] == evaluated[0]["test/miou"]
    assert results["matmul_precision"] == "highest"


# ------------------------------------------------------------------------- seeds, views, precision


@pytest.fixture(scope="module")
def seeds(run, tmp_path_factory, fill_variables):
    """(folders of three runs, folder of their evaluation together)."""
    folders = [run[0]]
    for seed in (1, 2):
        folders.append(tmp_path_factory.mktemp(f"seed{seed}"))
        save_run(folders[-1], make_config(run[1]), fill_variables, seed=seed)
    output = tmp_path_factory.mktemp("seeds")
    checkpoints = ",".join(map(str, folders))
    evaluate.main(["--checkpoint", checkpoints, "--output", str(output), "--metrics", "strict"])
    return folders, output


def test_several_runs_give_mean_and_deviation_of_every_figure(seeds):
    folders, output = seeds
    together = json.loads((output / "results.json").read_text())
    alone = [json.loads((output / f"run_{i}" / "results.json").read_text()) for i in range(3)]
    assert [run["checkpoint"] for run in alone] == list(map(str, folders))
    assert len({run["test/miou_mute"] for run in alone}) > 1
    for name in ("test/miou", "test/miou_mute", "strict/f_measure", "interval/miou_low"):
        values = [run[name] for run in alone]
        assert together[name] == pytest.approx(np.mean(values))
        assert together[f"{name}_std"] == pytest.approx(np.std(values, ddof=1))
    assert together["clips"] == CLIPS and together["runs"][str(folders[1])] == alone[1]


def test_one_of_several_runs_has_the_figures_it_has_alone(seeds, evaluated):
    together = json.loads((seeds[1] / "results.json").read_text())
    alone = together["runs"][str(seeds[0][0])]
    assert alone["test/miou_swap"] == evaluated[0]["test/miou_swap"]


def test_table_of_several_runs_has_a_column_for_each(seeds):
    folders, output = seeds
    header = (output / "results.md").read_text().splitlines()[0]
    assert header == f"| 3 runs | mean | std | {' | '.join(map(str, folders))} |"


def test_runs_of_different_models_are_not_averaged(run, tmp_path, fill_variables):
    config = make_config(run[1])
    with config.unlocked():
        config.model.late_hidden = 8
    save_run(tmp_path / "other", config, fill_variables)
    with pytest.raises(errors.BadValueError, match=r"model\.late_hidden is 8 there and 16"):
        evaluate.main(
            ["--checkpoint", f"{run[0]},{tmp_path / 'other'}", "--output", str(tmp_path / "out")]
        )


def _evaluate(run, output, *arguments):
    evaluate.main(
        ["--checkpoint", str(run[0]), "--output", str(output), "--sounds", "own", *arguments]
    )
    return json.loads((output / "results.json").read_text())


def test_other_size_is_scored_at_that_size(run, evaluated, tmp_path):
    results = _evaluate(run, tmp_path, "--size", "64")
    assert results["size"] == 64 and results["test/miou"] != evaluated[0]["test/miou"]


def test_augmentation_of_the_test_changes_the_figures_and_is_told(run, evaluated, tmp_path):
    results = _evaluate(run, tmp_path, "--tta", "flip,scales")
    assert results["tta"] == "flip,scales" and evaluated[0]["tta"] == "none"
    assert results["test/f_measure"] != evaluated[0]["test/f_measure"]
    assert 0 < results["test/miou"] < 1


def test_weights_that_give_nan_fail_the_run_with_the_clips(run, tmp_path, fill_variables):
    save_run(tmp_path, make_config(run[1]), fill_variables, factor=np.nan)
    for metrics in ("robust", "strict", "paper"):
        with pytest.raises(errors.BadValueError, match=r"NaN or infinite in 25 of 25 frames.*ms3"):
            evaluate.main(["--checkpoint", str(tmp_path), "--metrics", metrics])


def _precisions(run, monkeypatch, directory, *arguments):
    """The precisions of the products in the programs that an evaluation lowers."""
    lowered = []

    def lower(self, variables, track):
        batch = next(iter(self.batches))
        inputs = {name: batch[name] for name in ("frames", "frame_mask")}
        inputs["waveform"] = batch["waveform/own"]
        text = (
            jax.jit(lambda v, b: self.network.decide(v, self.network.see(v, b), b))
            .lower(variables, inputs)
            .as_text()
        )
        lowered.append(text)
        raise InterruptedError

    monkeypatch.setattr(evaluate.Evaluator, "records", lower)
    with pytest.raises(InterruptedError):
        evaluate.main(["--checkpoint", str(directory), *arguments])
    products = [line for line in lowered[0].splitlines() if "stablehlo.dot_general" in line]
    products += [line for line in lowered[0].splitlines() if "stablehlo.convolution" in line]
    assert len(products) > 20
    return {name for name in ("HIGHEST", "DEFAULT") for line in products if name in line}


def test_program_of_a_run_is_lowered_as_it_was_trained(run, monkeypatch):
    assert "DEFAULT" in _precisions(run, monkeypatch, run[0])  # the rest are resizes and log-mel


def test_program_is_lowered_with_the_precision_asked_for(run, monkeypatch):
    found = _precisions(run, monkeypatch, run[0], "--matmul_precision", "highest")
    assert found == {"HIGHEST"}


def test_program_of_converted_weights_is_lowered_with_the_highest_precision(
    converted_run, run, monkeypatch
):
    directory, file = converted_run
    assert _precisions(run, monkeypatch, directory, "--config", str(file)) == {"HIGHEST"}
    assert "DEFAULT" in _precisions(
        run, monkeypatch, directory, "--config", str(file), "--matmul_precision", "default"
    )


@pytest.mark.slow
def test_two_processes_evaluate_together_as_one(run, everything, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "avs_jax.evaluate", "--distributed", "--metrics", "all"]
    command += ["--checkpoint", str(run[0]), "--output", str(tmp_path), "--sounds", "own"]
    command += ["--save_masks", str(tmp_path / "masks")]
    processes = []
    for i in range(2):
        variables = {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": quick_xla.FLAGS,
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
        processes.append(
            subprocess.Popen(
                command,
                cwd=Path(__file__).parents[1],
                env=os.environ | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    one, two = (
        json.loads((folder / "results.json").read_text()) for folder in (everything, tmp_path)
    )
    figures = [name for name, value in one.items() if "/" in name and isinstance(value, float)]
    figures.remove("eval/seconds")
    assert len(figures) > 50
    assert {n: two[n] for n in figures} == pytest.approx({n: one[n] for n in figures}, abs=1e-4)
    assert len(list((tmp_path / "masks").iterdir())) == CLIPS


# ------------------------------------------------------------------------------------------- report


def test_mask_folder_survives_odd_clip_names(tmp_path):
    clip = report.Clip("-a/b:c d")
    report.MaskFolder(str(tmp_path), 3).save(clip, np.full((1, 4, 4), 2, np.uint8))
    mask = np.asarray(Image.open(tmp_path / "-a_b_c_d" / "masks" / "0.png"))
    assert (mask == 2).all()


def test_table_of_classes_leaves_out_those_never_seen():
    seen = {"iou": 0.5, "frames": 3}
    table = report.table_of_classes({"classes": {"cat": seen, "dog": seen | {"frames": 0}}})
    assert table.splitlines()[2:] == ["| cat | 0.5000 | 3 |"]


def test_table_leaves_blanks_where_there_is_no_figure():
    table = report.table_of_sounds("test", {"own": {"miou": 0.5, "x": 1.0}, "mute": {"miou": 0.25}})
    assert table.splitlines()[2:] == ["| miou | 0.5000 | 0.2500 |", "| x | 1.0000 |  |"]


def test_calibration_is_told_and_drawn(run, tmp_path, capsys):
    arguments = ["--calibrate", "--split", "test", "--output", str(tmp_path)]
    evaluate.main(["--checkpoint", str(run[0]), *arguments])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["temperature"] > 0
    assert 0 < found["threshold"] < 1
    assert found["nll"] <= found["nll_before"]
    assert (tmp_path / "reliability.png").exists()
