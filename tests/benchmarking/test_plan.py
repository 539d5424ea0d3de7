"""What a training step will cost elsewhere: counted in a program, reckoned, told."""

import dataclasses
import math

import jax
import pytest

from avs_jax import devices, errors
from avs_jax.benchmarking import plan
from avs_jax.benchmarking.messages import count_messages
from avs_jax.config import read_config
from tests.test_train import TINY


def make_config(**fields):
    config = read_config("configs/quickstart.py:steps=4")
    tiny = {name: x for name, x in TINY.items() if name.startswith("model.")}
    for name, value in (tiny | {"data.size": 32, "batch_size": 8} | fields).items():
        node = config
        *path, last = name.split(".")
        for part in path:
            node = node[part]
        with config.unlocked():
            node[last] = (8, 8) if last == "head_widths" else value
    return config


def test_compiled_step_sums_the_gradients_of_what_learns_once():
    config = make_config()
    compiled, shapes, flops = plan.compile_train_step(config, devices.make_mesh())
    _, sent = count_messages(compiled.as_text())["all-reduce"]
    # Adam has two moments of each number that learns, and the averages one more.
    moments = jax.tree.leaves(shapes.opt_state)
    learning = sum(x.dtype.itemsize * math.prod(x.shape) for x in moments) / 2
    assert learning <= sent <= 1.05 * learning + 20_000
    assert flops > 0


CHIP = plan.Chip(flops=100e12, bandwidth=1e12, wires=100e9, memory=16 * 2**30, per_host=4)
ABOUT = {"flops": 10e12, "bytes_touched": 7e9, "messages": {"all-reduce": [3, 7e8]}, "hosts": 2}


def test_time_is_the_longer_of_products_and_memory_and_then_the_messages():
    found = plan.reckon(ABOUT, CHIP, make_config())
    # 10 TFLOP at 50 and 40 % of 100 TFLOP/s; 0.7 GB twice at 70 % of 100 GB/s
    assert found["step_seconds"] == pytest.approx([0.2 + 0.02, 0.25 + 0.02])
    assert found["bound"] == "products"
    assert found["clips_per_second_host"] == pytest.approx([8 / 0.27 / 2, 8 / 0.22 / 2])
    busy = plan.reckon(ABOUT | {"bytes_touched": 700e9}, CHIP, make_config())
    assert busy["step_seconds"] == pytest.approx([1.02, 1.02])
    assert busy["bound"] == "memory"


def test_exact_products_of_float32_take_six_passes():
    exact = plan.reckon(ABOUT, CHIP, make_config(matmul_precision="highest"))
    assert exact["step_seconds"] == pytest.approx([1.2 + 0.02, 1.5 + 0.02])


@pytest.mark.parametrize(
    "fields, passes",
    [({}, 2), ({"matmul_precision": "highest"}, 15), ({"model.dtype": "bfloat16"}, 1)],
    ids=str,
)
def test_gpus_multiply_float32_as_tf32_or_slowly(fields, passes):
    gpu = dataclasses.replace(CHIP, passes=plan.GPUS["h100"].passes)
    fast, _ = plan.reckon(ABOUT, gpu, make_config(**fields))["computing"]
    assert fast == pytest.approx(passes * 0.2)


def test_gpus_that_are_not_here_are_planned_with_cpus():
    about = plan.plan_training("h100:8", make_config())
    assert (about["chips"], about["hosts"], about["compiler"]) == (8, 1, "cpu's")
    assert about["messages"]["all-reduce"][1] > 0
    lines = plan.make_lines(about)
    assert "h100:8 (8 chips, 1 hosts)" in lines[0] and "by cpu's compiler" in "".join(lines)


def test_cpus_that_stand_in_for_gpus_take_no_shortcuts(monkeypatch):
    asked = []

    def note(config, mesh):
        asked.append(config.matmul_precision)
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: enough was seen")

    monkeypatch.setattr(plan, "compile_train_step", note)
    config = make_config()
    plan.plan_training("h100:8", config)
    assert asked == ["highest"]
    assert config.matmul_precision is None


def test_more_gpus_than_devices_are_one_line():
    with pytest.raises(errors.BadValueError, match="8 CPU devices to compile for, wanted 16"):
        plan.find_chips("h100:16")


@pytest.mark.parametrize(
    "topology", ["v5e", "v5e:4", "v5e:axb", "v9:2x2", "h100:2x4", "h100", "h100:1000"]
)
def test_a_slice_that_cannot_be_is_refused(topology):
    with pytest.raises(errors.BadValueError, match="wanted KIND:SHAPE with KIND of v4, v5e"):
        plan.find_chips(topology)


def test_pmap_cannot_be_planned():
    with pytest.raises(errors.BadValueError, match="plan parallel='sharded'"):
        plan.plan_training("h100:8", make_config(parallel="pmap"))


def test_what_does_not_fit_is_told_with_what_to_set():
    about = {
        "model": "catr",
        "backbone": "pvt_v2_b5",
        "dtype": "float32",
        "batch_size": 64,
        "topology": "v5e:2x2",
        "chips": 4,
        "hosts": 1,
        "fsdp": 1,
        "fits": False,
        "reason": "needs 21.5G of 15.75G of a chip's memory",
    }
    lines = plan.make_lines(about)
    assert "needs 21.5G of 15.75G" in lines[1]
    assert "config.fsdp" in lines[2] and "remat='blocks'" in lines[2]


def test_fields_are_set_as_words_and_numbers():
    spec = "configs/quickstart.py:steps=4"
    config = plan.read_fields(spec, ["batch_size=64", "model.dtype=bfloat16", "fsdp=4"])
    assert (config.batch_size, config.model.dtype, config.fsdp) == (64, "bfloat16", 4)


@pytest.mark.parametrize(
    "field, error",
    [
        ("batch_size", "wanted NAME=VALUE"),
        ("batchsize=4", "unknown config field"),
        ("batch_size=many", "--set batch_size=many"),
    ],
)
def test_a_field_that_cannot_be_set_is_one_line(field, error):
    with pytest.raises(errors.InputError, match=error):
        plan.read_fields("configs/quickstart.py:steps=4", [field])
