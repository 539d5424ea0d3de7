"""The train program, as users start it: resuming, stopping, devices, bad input."""

import functools
import gzip
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from avs_jax import errors, train
from avs_jax.models.forward import init_shapes
from avs_jax.weights import trained
from tests import quick_xla
from tests.data.tiny import build_tiny
from tests.training.event_files import read_events

ROOT = Path(__file__).parents[1]
TINY = {
    "model.dim": 16,
    "model.num_heads": 2,
    "model.pqg_hidden": 16,
    "model.late_hidden": 16,
    "model.late_stages": 1,
    "model.head_widths": "(8,8)",
    "data.size": 32,
    "data.num_threads": 0,
    "size_schedule": "((0,32),)",
    "eval.batch_size": 8,
    "log_every": 1,
    "checkpoint_every": 2,
    "eval.every": 4,
}
# Where only the program's course matters: tests/faults/config.py, of a smaller network still. It
# warms up all the time, for the rate of a step is not to depend on how many are to come.
SMALL = {"batch_size": 8, "checkpoint_every": 2, "eval.every": 4, "optimizer.warmup_steps": 100}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("data"), clips=(16, 4, 4))


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    """`run(workdir, steps, devices=1, **fields)` -> a started train program."""
    # What one run compiled, the next one reuses.
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path_factory.mktemp("xla"))

    def start(
        workdir,
        steps=4,
        devices=1,
        config=None,
        program="avs_jax.train",
        options=(),
        **fields,
    ):
        fields = (SMALL if config else TINY) | {"data.data_dir": data_dir} | fields
        config = f"{config or 'configs/quickstart.py'}:steps={steps}"
        command = [sys.executable, "-m", program, "--config", config]
        command += [f"--workdir={workdir}", *options]
        command += [f"--config.{name}={value}" for name, value in fields.items()]
        variables = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": quick_xla.flags(devices),
            "JAX_COMPILATION_CACHE_DIR": cache,
        }
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env=variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="module")
def run_small(run):
    """`run` of a network that compiles in a second."""
    return functools.partial(run, config="tests/faults/config.py")


def finish(process, code=0):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == code, output
    return output


def losses(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["train/loss"] for x in lines if "train/loss" in x}


def scores(workdir):
    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {x["step"]: x["validation/miou"] for x in lines if "validation/miou" in x}


def assert_trained_alike(one, other):
    """Equal losses but for the order of sums.

    Of the first five steps: this tiny run multiplies what rounding does. By the sixth one device
    differs from itself by 2e-5 where XLA optimises, in the first five by 1e-6.
    """
    one, other = losses(one), losses(other)
    assert one.keys() == other.keys()
    first = [step for step in one if step <= 5]
    np.testing.assert_allclose([other[i] for i in first], [one[i] for i in first], rtol=1e-5)


def sums(workdir, step):
    """Checksums of every array of a saved state, as the run itself recorded them."""
    path = workdir / "checkpoints" / str(step) / "meta" / "metadata"
    return json.loads(path.read_text())["checksums"]


@pytest.fixture(scope="module")
def guarded_run(run, tmp_path_factory):
    """(workdir, what it printed) of six steps that nobody disturbed, nor an implicit transfer."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, finish(run(workdir, steps=6, program="tests.training.guarded_train"))


@pytest.fixture(scope="module")
def whole_run(guarded_run):
    return guarded_run[0]


@pytest.fixture(scope="module")
def small_run(run_small, tmp_path_factory):
    """Six steps of the smaller network that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("small")
    finish(run_small(workdir, steps=6))
    return workdir


def wait_for(condition, process, seconds=300):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, "the run did not get there"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_and_resumed_run_ends_with_the_same_bits(run, whole_run, tmp_path):
    process = run(tmp_path, steps=6)
    wait_for(lambda: (tmp_path / "checkpoints" / "2").exists(), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    output = finish(run(tmp_path, steps=6))
    assert re.search(r"going on at step [24] of 6", output), output
    assert sums(tmp_path, 6) == sums(whole_run, 6)
    assert losses(tmp_path) == losses(whole_run)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [6, 4])  # at the end too, where nothing else is left to do
def test_a_run_killed_in_an_evaluation_makes_up_for_it(
    run_small, small_run, tmp_path, steps, monkeypatch
):
    monkeypatch.setenv("KILLED_TRAIN", "dies")
    fields = {"checkpoint_every": 100}  # nothing but the evaluation says that it is to be saved
    killed = run_small(tmp_path, steps=steps, program="tests.training.killed_train", **fields)
    finish(killed, -signal.SIGKILL)
    output = finish(run_small(tmp_path, steps=steps, **fields))
    assert "going on at step 4" in output
    assert "step 4 was not evaluated to the end: now" in output
    assert scores(tmp_path)[4] == scores(small_run)[4]
    if steps == 6:
        assert sums(tmp_path, 6) == sums(small_run, 6)
        assert scores(tmp_path) == scores(small_run)
    assert "nothing to do: step" in finish(run_small(tmp_path, steps=steps, **fields))


@pytest.mark.slow
def test_a_second_run_in_a_workdir_ends_at_once_and_the_first_goes_on(run_small, tmp_path):
    first = run_small(tmp_path, steps=100_000, **{"eval.every": 100_000})
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), first)
    last = finish(run_small(tmp_path, steps=100_000), code=2).strip().splitlines()[-1]
    assert f"in use by process {first.pid} on {socket.gethostname()}" in last
    before = len(losses(tmp_path))
    wait_for(lambda: len(losses(tmp_path)) > before, first)
    first.send_signal(signal.SIGTERM)
    finish(first)
    lines = [json.loads(x)["step"] for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == len(set(lines))  # no step twice
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.slow
def test_sigterm_saves_and_exits_with_0(run_small, tmp_path):
    process = run_small(
        tmp_path, steps=100_000, **{"checkpoint_every": 100_000, "eval.every": 100_000}
    )
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists(), process)
    process.send_signal(signal.SIGTERM)
    output = finish(process)
    saved = int(re.search(r"SIGTERM: saved step (\d+)", output).group(1))
    assert (tmp_path / "checkpoints" / str(saved)).is_dir()


@pytest.mark.slow
def test_sigterm_before_the_first_step_ends_the_run_with_nothing_to_save(run_small, tmp_path):
    process = run_small(tmp_path, steps=100_000)
    wait_for(lambda: (tmp_path / "checkpoints").exists(), process)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM: nothing new to save" in finish(process)


@pytest.mark.slow
def test_eight_devices_train_and_evaluate_as_one(run, whole_run, tmp_path):
    finish(run(tmp_path, steps=6, devices=8))
    assert_trained_alike(whole_run, tmp_path)
    # A mask's border moves by a pixel where a loss does by 1e-5: not after the sixth step.
    assert scores(whole_run)[4] == pytest.approx(scores(tmp_path)[4], abs=1e-4)


@pytest.fixture
def run_two(run_small, tmp_path, address):
    """`run_two(steps, **fields)` -> what two processes of two devices each print."""

    def start(steps, **fields):
        place = (f"--coordinator={address}", "--num_processes=2")
        processes = [
            run_small(tmp_path, steps, 2, options=(*place, f"--process_id={i}"), **fields)
            for i in range(2)
        ]
        return [finish(process) for process in processes]

    return start


@pytest.mark.slow
def test_two_processes_train_as_one_which_goes_on_and_they_after_it(
    run_small, run_two, small_run, tmp_path
):
    run_two(2)
    assert "going on at step 2 of 4" in finish(run_small(tmp_path, steps=4, devices=4))
    assert "going on at step 4 of 6" in run_two(6)[0]
    assert_trained_alike(small_run, tmp_path)


@pytest.mark.slow
def test_two_processes_train_and_go_on_in_another_mode(run_two, tmp_path):
    run_two(2, parallel="pmap")
    outputs = run_two(4)
    assert "going on at step 2 of 4" in outputs[0]
    assert "changed since: parallel is 'pmap' there and 'sharded' here" in outputs[0]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]
    assert 4 in scores(tmp_path)


@pytest.mark.slow
def test_fsdp_over_two_processes_starts_from_a_model_as_one_process_does(
    run_small, run_two, small_run, tmp_path
):
    from_model = {"fsdp": 4, "init_from.model": str(small_run)}
    alone = tmp_path.with_name(f"{tmp_path.name}_alone")
    finish(run_small(alone, 4, 4, **from_model))
    run_two(4, **from_model)
    assert losses(alone)[1] < losses(small_run)[1]  # it does not start from random numbers
    assert_trained_alike(alone, tmp_path)


@pytest.mark.slow
def test_fsdp_trains_as_plain_data_parallel(run, whole_run, tmp_path):
    finish(run(tmp_path, steps=6, devices=8, fsdp=4))
    assert_trained_alike(whole_run, tmp_path)


def test_training_lowers_the_loss(whole_run):
    values = list(losses(whole_run).values())
    assert values[-1] < values[0]


def test_a_run_leaves_config_and_curves(whole_run):
    config = json.loads((whole_run / "config.json").read_text())
    assert config["model"]["dim"] == 16
    assert list((whole_run / "tensorboard").iterdir())
    assert sorted(losses(whole_run)) == [1, 2, 3, 4, 5, 6]


def test_finished_run_has_nothing_to_do(run, whole_run):
    assert "nothing to do: step 6 of 6" in finish(run(whole_run, steps=6))


def test_checkpoint_of_another_model_is_refused_with_the_fields(run, whole_run):
    output = finish(run(whole_run, steps=6, **{"model.dim": 32}), code=2)
    assert "model.dim is 16 there and 32 here" in output
    assert "Traceback" not in output


def test_loaded_model_has_the_saved_bits(whole_run):
    loaded = trained.load_model(str(whole_run), "latest")
    saved = sums(whole_run, 6)
    found = trained.checksums({"model": {"params": loaded.variables["params"]}})
    assert loaded.step == 6
    assert found.items() <= saved.items()


@pytest.mark.parametrize(
    "arguments, error",
    [
        (
            ["--config", "configs/quickstart.py", "--config.batchsize=8"],
            "config.batchsize'; known:",
        ),
        (["--config=configs/quickstart.py", "--config.data.siz", "8"], "config.data.siz'; known:"),
        (["--config=configs/avesformer.py:subset=s5"], "unknown subset 's5'; known: avss, ms3, s4"),
        (["--config=configs/avesformer.py:sub=s4"], "unknown config argument 'sub'; known: backb"),
        (["--config=configs/avesformer.py:subset"], "is not of the form name=value"),
        (["--config=configs/nothing.py"], "no config file 'configs/nothing.py'"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
    ],
    ids=lambda x: x[-1] if isinstance(x, list) else "",
)
def test_a_bad_config_is_refused_with_what_is_known(monkeypatch, arguments, error):
    monkeypatch.chdir(ROOT)
    with pytest.raises(errors.InputError, match=re.escape(error)):
        train.parse_flags(["train", *arguments])


@pytest.mark.parametrize(
    "name, arguments, fields, given, told",
    [
        ("avesformer", "subset=ms3", {}, (), {"backbone": "learns at 0.1 of the rate"}),
        ("avesformer", "subset=ms3", {"optimizer.rate_rules": ()}, (), {}),
        ("avesformer", "subset=ms3", {}, ("backbone",), {}),
        ("avesformer", "subset=ms3", {}, ("model",), None),
        ("avesformer", None, {"optimizer.freeze": (".*backbone/.*",)}, (), {"backbone": "never"}),
        ("quickstart", None, {}, (), None),
    ],
)
def test_a_backbone_of_random_numbers_that_hardly_learns_is_announced(
    name, arguments, fields, given, told
):
    get_config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]
    config = get_config(arguments)
    config.update_from_flattened_dict(fields)
    shapes = init_shapes(trained.build_model(config), 1, 32)
    lines = train.warn_of_random_parts(config, shapes["params"], given)
    expected = {} if told is None else {"audio_backbone": "never learns"} | told
    assert len(lines) == len(expected)
    for part, how in expected.items():
        assert any(f"CAREFUL: {part} starts from random numbers and {how}" in x for x in lines)


@pytest.mark.parametrize(
    "fields, error",
    [
        ({"batch_size": 6}, "batch_size=6 is not divisible by the 8 devices"),
        ({"model.backbone": "resnet51"}, "unknown backbone 'resnet51'; known: audio_cnn"),
        ({"model.name": "catrr"}, "unknown model 'catrr'; known: avesformer"),
        ({"data.data_dir": "/nowhere"}, "no data directory /nowhere"),
        ({"data.subset": "avss"}, "avss"),
        ({"optimizer.freeze": ("vggish/.*",)}, "optimizer.freeze: the regex 'vggish/.*' decides"),
        ({"model.num_classes": 71}, "model.num_tags=10: the head is to name the 70 classes"),
        ({"steps": 0}, "steps=0: wanted 1 or more"),
        ({"eval.every": 0}, "eval.every=0: wanted 1 or more"),
        ({"optimizer.decay": "linear"}, "unknown learning-rate decay 'linear'; known: constant"),
        ({"sharding_rules": (("haed/.*", ("fsdp",)),)}, "sharding_rules: the regex 'haed/.*' deci"),
        ({"matmul_precision": "hihgest"}, "unknown matmul_precision 'hihgest'; known: default"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_refused(data_dir, tmp_path, fields, error):
    config = runpy.run_path(str(ROOT / "configs" / "quickstart.py"))["get_config"]("steps=2")
    config.data.data_dir = data_dir
    config.data.size = 32
    config.update_from_flattened_dict(fields)
    with pytest.raises(errors.InputError, match=re.escape(error)):
        train.train(config, str(tmp_path))


def test_a_workdir_that_is_not_writable_is_refused_before_work_starts():
    with pytest.raises(errors.BadValueError, match="--workdir /proc/nowhere is not writable"):
        train.make_workdir("/proc/nowhere")


@pytest.mark.parametrize(
    "step, best_step, stops",
    [(40, 10, True), (30, 10, False), (35, 15, False), (10, None, False), (60, 10, True)],
)
def test_a_run_ends_early_after_so_many_evaluations_without_a_better_score(step, best_step, stops):
    config = ml_collections.ConfigDict({"early_stop": 3, "eval": {"every": 10}})
    assert train.stops_early(config, step, best_step) == stops
    config.early_stop = None
    assert not train.stops_early(config, step, best_step)


@pytest.mark.slow
def test_a_run_stops_early_draws_pictures_and_writes_a_trace(run_small, tmp_path):
    fields = {"eval.every": 2, "early_stop": 2, "eval.pictures": 2}
    fields |= {"optimizer.learning_rate": 0.0, "optimizer.warmup_steps": 0}  # nothing is learnt
    output = finish(run_small(tmp_path, steps=50, options=["--profile=2"], **fields))
    best = int(re.search(r"no better than at step (\d+): done", output).group(1))
    found = scores(tmp_path)
    assert sorted(found) == list(range(2, best + 5, 2))
    assert max(found, key=found.get) == best
    assert (tmp_path / "checkpoints" / str(best + 4)).exists()
    again = finish(run_small(tmp_path, steps=50, **fields))
    assert f"nothing to do: no better than at step {best}" in again

    events = [e for p in (tmp_path / "tensorboard").glob("events*") for e in read_events(p)]
    drawn = {(e.step, v.tag) for e in events for v in e.summary.value if v.HasField("image")}
    names = [f"validation/ms3/validation/{i:06}" for i in (0, 2)]
    assert drawn == {(step, name) for step in found for name in names}

    (trace,) = (tmp_path / "tensorboard" / "plugins" / "profile").iterdir()
    assert list(trace.glob("*.xplane.pb"))  # what TensorBoard reads
    (perfetto,) = trace.glob("perfetto_trace.json.gz")
    spans = json.loads(gzip.decompress(perfetto.read_bytes()))
    steps = {e["args"]["step_num"] for e in spans["traceEvents"] if e.get("name") == "train"}
    assert steps == {"3", "4"}


@pytest.mark.slow
def test_the_loop_makes_no_implicit_transfer(guarded_run):
    workdir, output = guarded_run
    assert "steps without an implicit transfer: 6" in output
    assert sorted(losses(workdir)) == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_clips(run_small, tmp_path):
    fields = {"optimizer.learning_rate": 1e30, "optimizer.warmup_steps": 0, "log_every": 2}
    output = finish(run_small(tmp_path, steps=20, **fields), code=2)
    last = output.strip().splitlines()[-1]
    assert re.search(r"NaN or infinite at step \d+; its clips: .*ms3.*; .*checkpoint", last), last
