"""The benchmark program on small models."""

import json
import time

import jax
import numpy as np
import pytest

from avs_jax import benchmark, errors
from tests.weights.zoo import stand_in

TINY = ["--backbone=small_resnet", "--audio_backbone=audio_cnn", "--size=32", "--runs=2"]
TINY += ["--seconds=1", "--field=dim=16", "--field=num_heads=2", "--field=num_prompts=2"]
TINY += ["--field=pqg_layers=1", "--field=pqg_hidden=16", "--field=early_stages=0"]
TINY += ["--field=late_stages=1", "--field=late_hidden=16", "--field=head_widths=[8,8]"]
TINY += ["--field=norm_groups=4"]


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
    assert f"{figures['peak_resident_megabytes']:.0f} MB in RAM" in table[-1]


def test_two_variants_stand_side_by_side(capsys):
    benchmark.main([*TINY, "--compare=late_hidden=32,head_widths=[8,4]"])
    header, *lines, summary = capsys.readouterr().out.splitlines()
    assert header.split() == ["avesformer", "avesformer:late_hidden=32,head_widths=[8,4]", "ratio"]
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


def test_rounds_are_interleaved_forwards_and_backwards():
    order = []
    runs = [lambda k=k: order.append(k) for k in range(3)]
    times = benchmark.time_rounds(runs, 2, "test")
    assert order == [0, 1, 2, 0, 1, 2, 2, 1, 0]
    assert times.shape == (3, 2)


def test_times_belong_to_what_ran():
    runs = [lambda: None, lambda: time.sleep(0.02)]
    quick, slow = benchmark.time_rounds(runs, 3, "test")
    assert np.median(quick) < 0.02 <= slow.min()


def test_peak_is_in_bytes():
    held = np.ones(8_000_000)
    assert held.nbytes < benchmark.peak_resident_bytes() < 1e12
