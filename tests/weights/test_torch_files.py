"""PyTorch's files: what people really have."""

import importlib
import os
import pickle
import sys

import numpy as np
import pytest

from avs_jax import errors
from avs_jax.weights.torch_files import read_torch_file
from tests.test_convert import make_state, tensors


@pytest.fixture
def save(torch):
    """save(content, path): as PyTorch's users write it, by the name's suffix."""
    save_safetensors = importlib.import_module("safetensors.torch").save_file

    def save(content, path):
        (save_safetensors if path.suffix == ".safetensors" else torch.save)(content, path)

    return save


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_file_formats(torch, save, tmp_path, suffix):
    state_dict = make_state("resnet18")
    path = tmp_path / f"weights{suffix}"
    content = tensors(torch, state_dict)
    save({name: tensor.contiguous() for name, tensor in content.items()}, path)
    read = read_torch_file(path)
    assert set(read) == set(state_dict)
    assert all(np.array_equal(read[name], state_dict[name]) for name in state_dict)


def test_files_of_old_pytorch(torch, tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a.weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(read_torch_file(path)["a.weight"], np.ones(3))


@pytest.mark.parametrize("keys", [["state_dict"], ["model"], ["model_state_dict"], ["model"] * 2])
def test_wrapped_checkpoints(torch, tmp_path, keys):
    content = {"a.weight": torch.ones(3)}
    for key in keys:
        content = {"epoch": 7, key: content, "optimizer": {"lr": 0.1}}
    torch.save(content, tmp_path / "checkpoint.pth")
    assert list(read_torch_file(tmp_path / "checkpoint.pth")) == ["a.weight"]


def test_half_precision_file(torch, save, tmp_path):
    content = {"a": torch.ones(3).half(), "b": torch.ones(3).bfloat16(), "n": torch.tensor(4)}
    save(content, tmp_path / "half.safetensors")
    read = read_torch_file(tmp_path / "half.safetensors")
    assert [read[name].dtype for name in "abn"] == ["float32", "float32", "int64"]


class RunsCode:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_file_that_would_run_code_is_refused_and_does_not(torch, tmp_path, writer):
    path, proof = tmp_path / "malicious.pth", tmp_path / "owned"
    content = {"state_dict": {"a": torch.ones(2)}, "extra": RunsCode(proof)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(errors.BadValueError, match="could run code: refused"):
        read_torch_file(path)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 10, 5_000])
def test_truncated_file_is_refused_with_its_size(torch, save, tmp_path, suffix, kept):
    path = tmp_path / f"weights{suffix}"
    save({"a.weight": torch.ones(100, 100)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(errors.BadValueError, match=rf"truncated.*\({kept} bytes\)"):
        read_torch_file(path)


def test_missing_pytorch_is_told_with_the_extra_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(errors.BadValueError, match=r'a.pth needs PyTorch .* "\.\[convert\]"'):
        read_torch_file(tmp_path / "a.pth")


def test_directory_is_refused(tmp_path):
    with pytest.raises(errors.BadValueError, match=r"is a directory; give the .pth"):
        read_torch_file(tmp_path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(errors.NotFoundError, match="no file"):
        read_torch_file(tmp_path / "nothing.pth")


@pytest.mark.parametrize(
    ("make_content", "message"),
    [
        (lambda torch: torch.ones(3), "holds a Tensor, not a state_dict"),
        (lambda torch: {}, "holds a dict, not a state_dict"),
        (
            lambda torch: {"a": torch.ones(2), "epoch": 3},
            r"more than a state_dict: epoch \(int\)",
        ),
    ],
)
def test_file_without_a_state_dict_is_refused(torch, tmp_path, make_content, message):
    torch.save(make_content(torch), tmp_path / "other.pth")
    with pytest.raises(errors.BadValueError, match=message):
        read_torch_file(tmp_path / "other.pth")
