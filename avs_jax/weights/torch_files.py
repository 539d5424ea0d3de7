"""PyTorch's files -> numpy arrays. The one place that needs PyTorch (extra `convert`)."""

import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath

from avs_jax import errors
from avs_jax.weights.converted import list_names


def read_torch_file(path: epath.PathLike) -> dict[str, np.ndarray]:
    """A `.pth`, `.pt` or `.safetensors` file -> {name: array}, floats as float32.

    Wrapped checkpoints are unwrapped. Nothing but tensors and plain containers is unpickled.

    Raises:
      NotFoundError: no such file.
      BadValueError: a directory; a truncated or damaged file; one whose pickle would run code; one
        that holds no tensors; PyTorch not installed.
    """
    path = epath.Path(path).expanduser()
    if path.is_dir():
        raise errors.BadValueError(
            f"{path} is a directory; give the .pth, .pt or .safetensors file."
        )
    if not path.exists():
        raise errors.NotFoundError(f"no file {path}; give a .pth, .pt or .safetensors file.")
    torch = import_extra("torch", f"reading {path.name}")
    if path.suffix == ".safetensors":
        safetensors = import_extra("safetensors.torch", f"reading {path.name}")
    try:
        if path.suffix == ".safetensors":
            content = safetensors.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # RuntimeError, EOFError, UnpicklingError, SafetensorError, ...
        text = str(error)
        if "Unsupported" in text or "GLOBAL" in text:
            culprit = re.search(r"GLOBAL (\S+)|function '?([\w.]+)|class:? '?([\w.]+)", text)
            name = f" ({next(filter(None, culprit.groups()))})" if culprit else ""
            raise errors.BadValueError(
                f"{path} holds Python objects{name}, not tensors only, and opening it could run "
                "code: refused; ask its author for a state_dict or a .safetensors file."
            ) from error
        raise errors.BadValueError(
            f"{path} cannot be read: truncated, damaged or not a PyTorch file "
            f"({path.stat().length} bytes); download it again and compare its size."
        ) from error
    content = _unwrap(content)
    if not isinstance(content, Mapping) or not content:
        raise errors.BadValueError(f"{path} holds a {type(content).__name__}, not a state_dict.")
    odd = [f"{name} ({type(x).__name__})" for name, x in content.items() if not hasattr(x, "shape")]
    if odd:
        raise errors.BadValueError(
            f"{path} holds more than a state_dict: {list_names(odd)}; extract the state_dict first."
        )
    return {name: to_numpy(value) for name, value in content.items()}


def _unwrap(content: Any) -> Any:
    """A checkpoint that wraps its state_dict, as training scripts write them -> the state_dict."""
    while isinstance(content, Mapping):
        inner = [
            content[key] for key in ("state_dict", "model", "model_state_dict") if key in content
        ]
        if not inner or not isinstance(inner[0], Mapping):
            break
        content = inner[0]
    return content


def to_numpy(value: Any) -> np.ndarray:
    """A torch tensor, numpy array or number -> numpy array; floats of any width become float32."""
    if hasattr(value, "detach"):  # a torch tensor; numpy has no bfloat16
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    value = np.asarray(value)
    return value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value


def import_extra(module: str, purpose: str) -> ModuleType:
    """A module of the extra [convert]; raises BadValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = {"torch": "PyTorch"}.get(module, module.partition(".")[0])
        raise errors.BadValueError(
            f'{purpose} needs {name} ({error}); pip install -e ".[convert]".'
        ) from error
