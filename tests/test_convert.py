"""PyTorch's files -> ours and back: what people really have, and what they do wrong."""

import re
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest

from avs_jax import convert, errors
from avs_jax.weights import open_model, zoo
from avs_jax.weights.converted import load_converted, unflatten
from avs_jax.weights.torch_files import read_torch_file
from tests.parity import fill
from tests.training.small_run import save_two


def make_state(network, **fields):
    """A state_dict that fits, random, with the counters that PyTorch keeps."""
    rng = np.random.default_rng(0)
    flat = {
        path: rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in convert.target_shapes(network, **fields).items()
    }
    state_dict = convert.to_torch(network, unflatten(flat), **fields)
    for name in list(state_dict):
        if name.endswith("running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            state_dict[counter] = np.zeros((), np.int64)
    return state_dict


@pytest.fixture(scope="module")
def resnet18():
    """As torchvision's file: with the classifier."""
    classifier = {"fc.weight": np.ones((1000, 512), np.float32), "fc.bias": np.ones(1000)}
    return make_state("resnet18") | classifier


def tensors(torch, state_dict):
    return {name: torch.from_numpy(np.array(x)) for name, x in state_dict.items()}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, args)])
    convert.main()


# ---------------------------------------------------------------- the mapping


def test_values_reach_their_places(resnet18):
    variables = convert.from_torch("resnet18", resnet18)
    params, statistics = variables["params"], variables["batch_stats"]
    kernel = resnet18["layer2.0.downsample.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(params["layer2_0"]["downsample_conv"]["kernel"], kernel)
    np.testing.assert_array_equal(params["bn1"]["scale"], resnet18["bn1.weight"])
    np.testing.assert_array_equal(
        statistics["layer4_1"]["bn2"]["var"], resnet18["layer4.1.bn2.running_var"]
    )


def test_round_trip_is_exact(resnet18):
    back = convert.to_torch("resnet18", convert.from_torch("resnet18", resnet18))
    left_out = {name for name in resnet18 if name not in back}
    assert {re.sub(r".*num_batches_tracked", "counter", name) for name in left_out} == {
        "counter",
        "fc.weight",
        "fc.bias",
    }
    for name, array in back.items():
        np.testing.assert_array_equal(array, resnet18[name])


def test_avsbench_names_with_a_second_branch(resnet18):
    renamed = {}
    for name, array in resnet18.items():
        for layer in ("layer3.", "layer4."):
            if name.startswith(layer):
                renamed[name.replace(".", "_2.", 1)] = array + 1
                name = name.replace(".", "_1.", 1)
        renamed[name] = array
    assert_same(convert.from_torch("resnet18", renamed), convert.from_torch("resnet18", resnet18))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_prefix_of_wrappers_is_dropped(resnet18, prefix):
    wrapped = {prefix + name: array for name, array in resnet18.items()}
    assert_same(convert.from_torch("resnet18", wrapped), convert.from_torch("resnet18", resnet18))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_floats_become_float32(resnet18, dtype):
    cast = {name: array.astype(dtype) for name, array in resnet18.items()}
    variables = convert.from_torch("resnet18", cast)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype("float32")}
    expected = resnet18["bn1.weight"].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(variables["params"]["bn1"]["scale"], expected)


def test_torch_tensors_of_bfloat16_become_float32(torch, resnet18):
    cast = {name: tensor.bfloat16() for name, tensor in tensors(torch, resnet18).items()}
    scale = convert.from_torch("resnet18", cast)["params"]["bn1"]["scale"]
    np.testing.assert_array_equal(scale, cast["bn1.weight"].float().numpy())


def test_shapes_are_of_the_fields_and_the_callers_own():
    shapes = convert.target_shapes("resnet18")
    wide = convert.target_shapes("resnet18", stem_width=32)
    assert wide["params/conv1/kernel"] != shapes["params/conv1/kernel"]
    del shapes["params/conv1/kernel"]
    assert "params/conv1/kernel" in convert.target_shapes("resnet18")


def test_models_files_keep_vggish_under_a_prefix():
    sources = {rule.source for rule in convert.TABLES["pcmanet"]().rules}
    assert "audio_backbone.features.{i}.weight" in sources


# ---------------------------------------------------------------- what does not fit


def problems_of(state_dict, network="resnet18"):
    with pytest.raises(convert.ConversionError) as caught:
        convert.from_torch(network, state_dict)
    return caught.value


def test_missing_entries_are_told(resnet18):
    error = problems_of({name: x for name, x in resnet18.items() if not name.startswith("bn1.")})
    assert list(error.problems) == ["missing"]
    leaves = ["batch_stats/bn1/mean", "batch_stats/bn1/var", "params/bn1/bias", "params/bn1/scale"]
    assert sorted(error.problems["missing"]) == leaves


def test_extra_entries_are_told(resnet18):
    error = problems_of(resnet18 | {"neck.weight": np.ones(3), "layer1.7.bn1.bias": np.ones(64)})
    assert error.problems == {"unknown entries": ["neck.weight", "layer1.7.bn1.bias"]}


def test_wrong_shapes_are_told_with_both(resnet18):
    error = problems_of(resnet18 | {"conv1.weight": np.ones((64, 1, 7, 7))})
    assert error.problems == {
        "wrong shapes": ["conv1.weight [64, 1, 7, 7] for params/conv1/kernel [7, 7, 3, 64]"]
    }


def test_wrong_rank_is_a_wrong_shape(resnet18):
    assert set(problems_of(resnet18 | {"conv1.weight": np.ones(3)}).problems) == {"wrong shapes"}


def test_double_match_is_told(resnet18):
    error = problems_of(resnet18 | {"layer3_1.0.bn1.bias": resnet18["layer3.0.bn1.bias"]})
    assert error.problems == {"double matches": ["layer3.0.bn1.bias and layer3_1.0.bn1.bias"]}


def test_all_kinds_are_told_together(resnet18):
    broken = resnet18 | {"neck.weight": np.ones(3), "bn1.bias": np.ones(5)}
    del broken["bn1.weight"]
    error = problems_of(broken)
    assert set(error.problems) == {"unknown entries", "missing", "wrong shapes"}
    assert "\n" not in str(error)


def test_other_networks_file_is_recognised(resnet18):
    with pytest.raises(
        convert.ConversionError, match=r"does not fit vggish \(it looks like resnet18"
    ):
        convert.from_torch("vggish", resnet18)


@pytest.mark.parametrize(
    "file, network, hint",
    [
        ("catr_pvt_s4", "catr", "catr with backbone=pvt_v2_b5"),
        ("catr_resnet50_s4", "pcmanet", "catr with backbone=resnet50"),
        ("pcmanet_resnet50_s4", "pcmanet", "pcmanet with backbone=resnet50, groups=4"),
        ("pcmanet_pvt_s4", "vggish", "pcmanet with backbone=pvt_v2_b5, groups=8"),
    ],
)
def test_models_file_is_recognised_with_its_fields(file, network, hint):
    # Shapes are what counts; one zero in memory stands for all values.
    state_dict = {
        f"{prefix}{name}": np.broadcast_to(np.float32(0), shape)
        for prefix, manifest in (("", file), ("audio_backbone.", "vggish"))
        for name, shape in fill.manifest(manifest).items()
    }
    with pytest.raises(convert.ConversionError) as caught:
        convert.from_torch(network, state_dict)
    assert f"does not fit {network} (it looks like {hint}):" in str(caught.value)


def test_whole_segmentor_says_how_to_take_its_backbone_out(resnet18):
    whole = {f"backbone.{name}": value for name, value in resnet18.items()}
    whole["decode_head.conv_seg.weight"] = np.ones((150, 512, 1, 1), np.float32)
    error = problems_of(whole)
    assert "Its entries that begin with 'backbone.' do" in str(error)
    take = re.search(r"torch.save\((\{.*?\}), FILE\)", str(error))[1]
    assert eval(take, {"weights": whole}).keys() == resnet18.keys()


def test_incomplete_file_of_the_wanted_network_gets_no_guess(resnet18):
    error = problems_of({name: x for name, x in resnet18.items() if not name.startswith("bn1.")})
    assert "looks like" not in str(error)


def test_file_of_no_known_network_gets_no_guess():
    error = problems_of({"encoder.weight": np.ones((2, 2))})
    assert "looks like" not in str(error)


def test_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(errors.UnknownNameError, match=r"to convert 'resnet34'; known: .*vggish"):
        convert.from_torch("resnet34", {})


def test_model_without_published_weights_is_refused_with_the_reason():
    with pytest.raises(errors.UnknownNameError, match=r"no weights of 'avesformer' were ever publ"):
        convert.from_torch("avesformer", {}, backbone="resnet50")


@pytest.mark.parametrize(
    ("field", "part", "known"),
    [
        ("backbone", "small_resnet", "known: .*pvt_v2_b0, .*resnet50"),
        ("audio_backbone", "audio_cnn", "known: vggish"),
    ],
)
@pytest.mark.parametrize("convert_one_way", [convert.from_torch, convert.to_torch])
def test_backbone_without_a_table_is_refused_with_the_known_ones(
    convert_one_way, field, part, known
):
    told = f"unknown {field} to convert '{part}'; {known}"
    with pytest.raises(errors.UnknownNameError, match=told):
        convert_one_way("pcmanet", {}, **{field: part})


def test_to_torch_refuses_variables_of_another_network(resnet18):
    variables = convert.from_torch("resnet18", resnet18)
    with pytest.raises(convert.ConversionError, match="do not fit vggish"):
        convert.to_torch("vggish", variables)


def without_safetensors(monkeypatch):
    for name in ("safetensors", "safetensors.torch", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)


def test_missing_safetensors_is_told_where_it_is_read(torch, tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(b"")
    without_safetensors(monkeypatch)
    told = r'reading a.safetensors needs safetensors .* "\.\[convert\]"'
    with pytest.raises(errors.BadValueError, match=told):
        read_torch_file(tmp_path / "a.safetensors")
    assert list(read_torch_file(tmp_path / "a.pth")) == ["a"]


def test_missing_safetensors_is_told_where_it_is_written(tmp_path, monkeypatch):
    without_safetensors(monkeypatch)
    told = r'writing .*b.safetensors needs safetensors .* "\.\[convert\]"'
    with pytest.raises(errors.BadValueError, match=told):
        run(monkeypatch, "vggish", tmp_path, "--to-torch", "--output", tmp_path / "b.safetensors")


PROGRAMS = ["train", "evaluate", "predict", "benchmark", "pictures", "convert", "data.benchmark"]
PROGRAMS += ["demo", "export"]


def test_programs_do_not_load_what_only_conversion_needs_even_where_it_is():
    # One process for all: what is loaded stays, so the first program named is the one to blame.
    code = f"""
import importlib, sys
for program in {PROGRAMS}:
    importlib.import_module("avs_jax." + program)
    loaded = {{"torch", "safetensors", "tensorflow"}} & set(sys.modules)
    assert not loaded, (program, loaded)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- the program


def test_program_there_and_back(torch, tmp_path, monkeypatch, capsys, resnet18):
    path, folder, back = tmp_path / "r.pth", tmp_path / "r18", tmp_path / "back.safetensors"
    torch.save(tensors(torch, resnet18), path)
    run(monkeypatch, "resnet18", path, "--output", folder)
    _, provenance = load_converted(folder)
    assert provenance["source"]["file"] == "r.pth"
    assert len(provenance["source"]["sha256"]) == 64
    run(monkeypatch, "resnet18", folder, "--to-torch", "--output", back)
    out = capsys.readouterr().out
    assert "11,176,512 parameters of r.pth" in out
    read = read_torch_file(back)
    assert len(read) == 100
    assert all(np.array_equal(read[name], resnet18[name]) for name in read)


def test_program_writes_nothing_of_a_file_that_does_not_fit(torch, tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(convert.ConversionError, match=r"other.pth does not fit resnet18"):
        run(monkeypatch, "resnet18", tmp_path / "other.pth", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_program_refuses_to_write_torch_files_of_other_kinds(tmp_path, monkeypatch):
    with pytest.raises(errors.BadValueError, match=r"writes a .safetensors file"):
        run(monkeypatch, "vggish", tmp_path, "--to-torch", "--output", tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("num_classes=71", ("num_classes", 71)),
        ("backbone=pvt_v2_b5", ("backbone", "pvt_v2_b5")),
        ("corrected=True", ("corrected", True)),
    ],
)
def test_fields_are_parsed(text, expected):
    assert convert.parse_field(text) == expected


def test_field_without_a_value_is_refused():
    with pytest.raises(errors.BadValueError, match="NAME=VALUE, not 'backbone'"):
        convert.parse_field("backbone")


def test_program_packs_a_run_as_a_model_of_the_package(tmp_path, monkeypatch, capsys):
    run_dir, output = save_two(tmp_path / "run"), tmp_path / "zoo" / "lite"
    settings = ("--temperature", "1.3", "--threshold", "0.4", "--field", "silence=0.1")
    run(monkeypatch, "avesformer", run_dir, "--to-zoo", "--output", output, *settings)
    assert f"step 4, written to {output}.npz" in capsys.readouterr().out
    monkeypatch.setattr(zoo, "FOLDER", output.parent)
    packed = open_model("lite")
    assert (packed.step, packed.temperature, packed.threshold) == (4, 1.3, 0.4)
    assert packed.model.silence == 0.1
    whole = open_model(run_dir).variables

    def close(a, b):  # to half of float16's last bit, also of its smallest numbers
        np.testing.assert_allclose(a, b, rtol=2**-11, atol=2**-25)

    jax.tree.map(close, packed.variables, whole)


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        ("catr", (), "holds weights of avesformer, not of catr"),
        ("avesformer", ("--temperature", "0"), "temperature=0.0, threshold=0.5: wanted a positive"),
    ],
)
def test_packing_what_does_not_fit_is_refused(tmp_path, monkeypatch, network, settings, message):
    run_dir = save_two(tmp_path / "run")
    with pytest.raises(errors.BadValueError, match=message):
        run(monkeypatch, network, run_dir, "--to-zoo", "--output", tmp_path / "lite", *settings)
