"""The benchmark program on a small model."""

import json

from avs_jax import benchmark


def test_benchmark_prints_what_a_model_costs(capsys):
    fields = ["dim=32", "pqg_hidden=32", "late_hidden=32", "head_widths=[8,8]", "norm_groups=8"]
    options = ["--backbone=small_resnet", "--audio_backbone=audio_cnn", "--size=32", "--runs=1"]
    benchmark.main([*options, "--seconds=1", *(f"--field={field}" for field in fields)])
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert row["params"] == (
        row["params_backbone"] + row["params_audio_backbone"] + row["params_head"]
    )
    assert all(row[name] > 0 for name in ("gflops", "seconds_batch", "temporary_megabytes"))
