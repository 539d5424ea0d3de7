"""Small pretrained models that come with the package: they work without anything to fetch.

NAME.npz     the weights: what has one dimension in float32, the rest in float16
NAME.json    config, temperature, threshold, sha256 of the weights, versions
NAME.md      the model card (NAME.png its plot): data, licences, figures, limits, how it was trained

`python -m avs_jax.convert avesformer WORKDIR --to-zoo --output avs_jax/weights/zoo/lite` writes the
first two from a training run.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import ml_collections
import numpy as np

from avs_jax import __version__, errors
from avs_jax.media.partial import write_whole
from avs_jax.models.forward import init_shapes
from avs_jax.weights.converted import ConversionError, flatten, list_names, unflatten
from avs_jax.weights.trained import Loaded, build_model

NAMES = ("lite",)
DEFAULT = "lite"
FOLDER = Path(__file__).parent
_CURE = "install avs_jax again (pip install --force-reinstall --no-deps)"


def is_zoo(directory: str | os.PathLike) -> bool:
    """Whether the name of a checkpoint is that of a model of the package; ./NAME is a folder."""
    return os.fspath(directory) in NAMES


def open_zoo(name: str) -> Loaded:
    """A model of the package, its weights in float32.

    Raises:
      UnknownNameError: there is no model of this name.
      NotFoundError: its files are missing from this installation.
      BadValueError: they are damaged, or of another version of the package.
    """
    about = read_about(name)
    path = FOLDER / f"{name}.npz"
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise errors.BadValueError(
            f"the weights of model {name!r}, {path}, are damaged: {len(data):,} bytes with another "
            f"sha256 than {about['sha256'][:12]}...; {_CURE}."
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        flat = {path: arrays[path].astype(np.float32) for path in arrays.files}
    config = ml_collections.FrozenConfigDict(about["config"])
    model = build_model(config)
    if about["versions"]["avs_jax"] != __version__:  # else a test has seen that they fit: 2 s
        _check_fits(name, flat, model, config)
    return Loaded(
        config,
        model,
        unflatten(flat),
        step=about["step"],
        temperature=about["temperature"],
        threshold=about["threshold"],
    )


def read_about(name: str) -> dict[str, Any]:
    """What NAME.json says: "config", "step", "temperature", "threshold", "sha256", ...

    Raises:
      UnknownNameError, NotFoundError, BadValueError: see `open_zoo`.
    """
    if name not in NAMES:
        raise errors.unknown_name("model of the package", name, NAMES)
    path = FOLDER / f"{name}.json"
    try:
        about = json.loads(_read(path))
        wanted = ("config", "step", "temperature", "threshold", "sha256", "versions")
        missing = [field for field in wanted if field not in about]
    except (ValueError, TypeError) as error:
        raise errors.BadValueError(f"{path} is damaged ({error}); {_CURE}.") from error
    if missing:
        raise errors.BadValueError(f"{path} is damaged: no {', '.join(missing)}; {_CURE}.")
    return about


def own_folder(checkpoint: str | os.PathLike) -> str:
    """Where programs write about a checkpoint unless told: into it, or here into NAME_results."""
    return f"{checkpoint}_results" if is_zoo(checkpoint) else os.fspath(checkpoint)


def tell_folder(name: str) -> None:
    """Says, where a folder has the name of the model that was taken, how to name the folder."""
    if os.path.isdir(name):
        print(
            f"{name} is the model that comes with avs_jax; for the folder of that name give "
            f"./{name}",
            file=sys.stderr,
        )


def save_zoo(
    path: str | os.PathLike, loaded: Loaded, *, temperature: float = 1.0, threshold: float = 0.5
) -> dict[str, Any]:
    """Writes PATH.npz and PATH.json of a model, and returns what the latter says.

    Args:
      path: folder and name, e.g. avs_jax/weights/zoo/lite.
      temperature: that logits are divided by for calibrated probabilities.
      threshold: of the calibrated probability of a sounding pixel.

    Raises:
      BadValueError: a weight that float16 cannot hold, settings out of their range, or a folder
        that cannot be written.
    """
    if not (temperature > 0 and 0 < threshold < 1):
        raise errors.BadValueError(
            f"temperature={temperature}, threshold={threshold}: wanted a positive number and a "
            "probability between 0 and 1."
        )
    flat = {path: np.asarray(x) for path, x in sorted(flatten(loaded.variables).items())}
    _check_fits(os.path.basename(path), flat, loaded.model, loaded.config)
    with np.errstate(over="ignore"):  # it is looked for below
        packed = {path: x if x.ndim < 2 else x.astype(np.float16) for path, x in flat.items()}
    unfit = [path for path, x in packed.items() if not np.isfinite(x).all()]
    if unfit:
        raise errors.BadValueError(
            f"float16 cannot hold {list_names(unfit)}: numbers over 65504, or no numbers."
        )
    file = io.BytesIO()
    np.savez(file, **packed)
    data = file.getvalue()
    about = {
        "config": _without_places(json.loads(loaded.config.to_json())),
        "step": int(loaded.step),
        "temperature": temperature,
        "threshold": threshold,
        "parameters": sum(x.size for path, x in flat.items() if path.startswith("params/")),
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "versions": {"avs_jax": __version__, "jax": jax.__version__, "flax": flax.__version__},
    }
    path = os.fspath(path)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        write_whole(f"{path}.npz", data)
        write_whole(f"{path}.json", json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise errors.BadValueError(f"cannot write {path}.npz: {error.strerror}.") from error
    return about


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """The config without the folders of the machine that it was trained on."""
    places = {"init_from": dict.fromkeys(config.get("init_from") or {}, "")}
    if "remember" in config:
        places["remember"] = config["remember"] | {"folder": ""}
    # As configs/common.py has them.
    data_dir = {"stamps": "data/media"}.get(config["data"].get("name"), "data")
    return config | places | {"data": config["data"] | {"data_dir": data_dir}}


def _check_fits(name: str, flat: Mapping, model, config) -> None:
    shapes = {"batch_stats": {}} | dict(init_shapes(model, 1, config.data.size))
    wanted = {path: x.shape for path, x in flatten(shapes).items()}
    found = {path: x.shape for path, x in flat.items()}
    wrong = sorted(path for path in wanted | found if wanted.get(path) != found.get(path))
    if wrong:
        raise ConversionError(
            f"the weights of model {name!r} do not fit its network in this version of avs_jax: "
            f"{list_names(wrong)} differ; {_CURE}.",
            {"wrong shapes": wrong},
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise errors.NotFoundError(
            f"{path} of this installation cannot be read ({error.strerror}); {_CURE}."
        ) from error
