"""The benchmark program on small models."""

import json

import jax
import numpy as np
import pytest

from avs_jax import benchmark, errors, models
from avs_jax.benchmarking import plan, scaling
from avs_jax.benchmarking.variant import Part
from avs_jax.training import sharding
from tests.weights.zoo import stand_in

TINY = ["--backbone=small_resnet", "--audio_backbone=audio_cnn", "--size=32", "--runs=2"]
TINY += ["--seconds=1", "--field=dim=16", "--field=num_heads=2", "--field=num_prompts=2"]
TINY += ["--field=pqg_layers=1", "--field=pqg_hidden=16", "--field=early_stages=0"]
TINY += ["--field=late_stages=1", "--field=late_hidden=16", "--field=head_widths=[8,8]"]
TINY += ["--field=norm_groups=4", "--field=refine=[8,4]"]


@pytest.fixture(autouse=True)
def kept_cache():
    """The program turns the cache of compiled programs off; other tests of this process use it."""
    before = jax.config.jax_enable_compilation_cache
    yield
    jax.config.update("jax_enable_compilation_cache", before)


def test_benchmark_prints_what_a_model_costs(capsys):
    benchmark.main(TINY)
    *table, summary = capsys.readouterr().out.splitlines()
    figures = json.loads(summary)
    (row,) = figures["rows"]
    assert row["params"] == (
        row["params_backbone"] + row["params_audio_backbone"] + row["params_head"]
    )
    assert all(row[name] > 0 for name in ("gflops", "seconds_batch", "temporary_megabytes"))
    assert "ratio" not in table[0] and "time_ratio" not in figures
    assert row["cpu_seconds_batch"] > 0
    assert f"{figures['peak_resident_megabytes']:.0f} MB in RAM" in table[-1]


def test_two_variants_stand_side_by_side(capsys):
    compare = "--compare=late_hidden=32,head_widths=[8,16]"
    benchmark.main([*TINY, compare, "--max_spread=1e9"])
    header, *lines, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["avesformer", "avesformer:late_hidden=32,head_widths=[8,16]", "ratio"]
    figures = json.loads(summary)
    first, second = figures["rows"]
    assert second["params_head"] > first["params_head"]
    assert second["params_backbone"] == first["params_backbone"]
    (line,) = (line.split() for line in lines if line.startswith("  head"))
    assert float(line[-1]) == pytest.approx(second["params_head"] / first["params_head"], abs=1e-3)
    (line,) = (line for line in lines if line.startswith("ms a clip"))
    assert float(line.split()[-3]) == pytest.approx(first["seconds_batch"] * 1e3, abs=0.1)
    assert float(line.split()[-1]) == pytest.approx(figures["time_ratio"], abs=1e-3)


def parse(*arguments):
    return benchmark.list_variants(benchmark.parse_arguments([*arguments]))


def test_a_model_of_the_package_has_its_own_fields_and_size(tmp_path, monkeypatch):
    loaded = stand_in.write(tmp_path, monkeypatch)
    args = benchmark.parse_arguments(["--model=lite", "--backbone=resnet50"])
    ((label, fields),) = benchmark.list_variants(args)
    assert (label, fields) == ("lite", dict(loaded.config.model))
    assert args.size == stand_in.SIZE


def test_compared_variant_has_the_other_fields_of_the_first():
    (_, first), (label, second) = parse(
        "--model=avesformer", "--field=dim=32", "--compare=head_widths=[8,8],dtype=bfloat16"
    )
    assert label == "avesformer:head_widths=[8,8],dtype=bfloat16"
    assert second == first | {"head_widths": (8, 8), "dtype": "bfloat16"}
    assert first["dim"] == 32 and first["dtype"] == "float32"


def test_unknown_field_is_an_error():
    with pytest.raises(errors.UnknownNameError, match=r"'pcmanet' 'maskin'; known: .*masking"):
        parse("--model=pcmanet", "--compare=maskin=false")


def test_field_of_flax_is_an_error():
    with pytest.raises(errors.UnknownNameError, match="unknown field of model 'catr' 'name'"):
        parse("--model=catr", "--compare=name=catr")


def test_unknown_model_is_an_error():
    with pytest.raises(errors.UnknownNameError, match="unknown model 'catrr'"):
        parse("--model=catrr")


@pytest.mark.parametrize("text", ["masking=no", "dim=wide", "dim=1.5", "dim=true", "confidence=x"])
def test_value_of_another_kind_is_an_error(text):
    with pytest.raises(errors.BadValueError, match=f"--compare {text}: wanted a value of the kind"):
        parse("--model=pcmanet", f"--compare={text}")


def test_field_without_a_value_is_an_error():
    with pytest.raises(errors.BadValueError, match="--field 'dim': wanted NAME=VALUE"):
        parse("--field=dim")


def test_no_rounds_are_an_error():
    with pytest.raises(errors.BadValueError, match="--runs=0: wanted 1 or more"):
        parse("--runs=0")


def test_parts_are_told_with_what_they_compute(capsys):
    benchmark.main([*TINY, "--parts"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    (row,) = figures["rows"]
    names = [part["part"] for part in row["parts"]]
    assert names == ["picture backbone", "sound backbone", "neck, decoder, head"]
    assert all(part["seconds"] > 0 for part in row["parts"])


def parts_of(*flops):
    return [Part(name, lambda: None, x) for name, x in zip("abc", flops, strict=True)]


def test_a_part_far_below_the_others_rate_is_told(capsys):
    rows = benchmark.tell_parts("m", parts_of(9e9, 9e9, 1e9), np.array([[0.1], [0.1], [0.1]]))
    assert [row["slow"] for row in rows] == [False, False, True]
    assert "SLOW: m's c computes at 10.0 GFLOP/s, less than a third" in capsys.readouterr().out


def test_parts_at_like_rates_are_not(capsys):
    benchmark.tell_parts("m", parts_of(9e9, 9e9, 4e9), np.array([[0.1], [0.1], [0.1]]))
    assert "SLOW" not in capsys.readouterr().out


def test_share_of_what_the_machine_can_do(capsys):
    rows = [{"model": "m", "gflops": 10.0, "seconds_batch": 0.5}]
    best = benchmark.tell_peaks({"matmul": (None, 40e9)}, np.array([[1.0, 1.0]]), rows)
    assert best == {"matmul": 40.0} and rows[0]["share_of_peak"] == {"matmul": 0.5}
    assert "20.0 GFLOP/s: 50% of matmul's 40 GFLOP/s" in capsys.readouterr().out


def test_growth_is_told_for_each_axis(capsys):
    benchmark.main([*TINY, "--sweep", "size=32,64", "--max_spread=1e9"])
    (size,) = json.loads(capsys.readouterr().out.splitlines()[-1])["growth"]
    assert (size["axis"], size["values"]) == ("size", [32, 64])
    assert 0 < size["exponent_flops"] < 1  # what hears does not grow with pixels
    assert size["exponent_time"] is not None


def test_from_rounds_that_spread_nothing_is_concluded(capsys):
    benchmark.main([*TINY, "--compare=late_hidden=32", "--max_spread=0"])
    *lines, summary = capsys.readouterr().out.splitlines()
    assert json.loads(summary)["time_ratio"] is None
    assert [line.split()[-1] for line in lines if line.startswith(("ms a clip", "CPU-s"))] == [
        "?",
        "?",
    ]
    assert any(line.startswith("no ratio: the rounds' spread") for line in lines)
    assert any(line.startswith("no conclusion about avesformer: half of its") for line in lines)


@pytest.mark.slow
def test_a_train_step_of_two_devices_is_told_with_what_they_exchange(capsys, monkeypatch):
    two = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: two)
    monkeypatch.setattr(sharding, "MODES", ("pmap",))  # half the time; the other is all of training
    benchmark.main([*TINY, "--train", "--batch_size=2", "--runs=1"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["devices"] == 2
    (row,) = figures["steps"]
    assert row["step"] == "avesformer pmap"
    assert row["seconds_batch"] > 0 and row["gflops"] > 0 and row["peak_megabytes"] > 1
    # Gradients of all that learns, in float32, at least.
    assert row["collective_megabytes"] > 0.1


@pytest.mark.parametrize("text", ["size=224", "size=224,224", "size=a,b", "size=0,224", "size"])
def test_sweep_of_one_value_is_an_error(text):
    with pytest.raises(errors.BadValueError, match=f"--sweep {text}: wanted two or more"):
        parse("--sweep", text)


def test_unknown_axis_is_an_error():
    with pytest.raises(errors.UnknownNameError, match="axis of --sweep 'width'; known: batch, s"):
        parse("--sweep", "width=1,2")


def test_scaling_is_told_row_by_row_and_growth_at_the_end(capsys, monkeypatch):
    def measure(config, way, count, clips):
        assert config.model.width == 4 and clips == 3
        row = {"model": "m", "backbone": "b", "way": way, "devices": count, "clips": clips}
        grows = 100 * (count if way == "pmap" else 1)
        return row | {"state": 100, "temporary": grows, "messages": 7, "collective": 100}

    monkeypatch.setattr(scaling, "measure", measure)
    monkeypatch.setitem(models.MODELS, "small_network", None)  # the config sets it: not for good
    config = "tests/faults/config.py"
    benchmark.main(
        ["--scaling=4,1,2", f"--config={config}", "--batch_size=3", "--set=model.width=4"]
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[2] for line in lines[2:11]] == ["1", "2", "4"] * 3
    assert lines[11] == f"GROWS: {config}, pmap: temporary bytes a device by 100.0%"
    figures = json.loads(lines[-1])
    assert figures["growth"][f"{config}, pmap, temporary"] == 2.0
    assert len(figures["scaling"]) == 9


@pytest.mark.parametrize(
    "asked, batch_size, dtype",
    [
        ([], 8, "float32"),  # as the file has them
        (["--batch_size=1"], 1, "float32"),
        (["--dtype=bfloat16", "--set=batch_size=4"], 4, "bfloat16"),
    ],
    ids=str,
)
def test_a_config_s_batch_and_type_are_its_own_unless_asked_otherwise(asked, batch_size, dtype):
    spec = "configs/quickstart.py"
    args = benchmark.parse_arguments(["--plan=v5e:2x2", f"--config={spec}", *asked])
    ((_, config),) = benchmark.read_configs(args, plan.read_fields)
    assert (config.batch_size, config.model.dtype) == (batch_size, dtype)


def test_two_questions_at_once_are_an_error():
    with pytest.raises(errors.BadValueError, match="--train and --parts: one at a time"):
        parse("--train", "--parts")


def test_unknown_clock_is_an_error():
    with pytest.raises(errors.UnknownNameError, match="unknown clock 'sun'; known: cpu, wall"):
        benchmark.main([*TINY, "--clock=sun"])
