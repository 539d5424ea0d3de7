r"""Converts published PyTorch weights to this library's, and back.

    python -m avs_jax.convert resnet50 resnet50-0676ba61.pth --output weights/resnet50
    python -m avs_jax.convert vggish vggish-10086976.pth --output weights/vggish
    python -m avs_jax.convert pcmanet PCMANet_S4.pth --audio-backbone vggish-10086976.pth \
        --field backbone=resnet50 --field groups=4 --output weights/pcmanet
    python -m avs_jax.convert efficientnet_lite0 efficientnet-lite0-57934424.pth --output DIR
    python -m avs_jax.convert yamnet backbones/yamnet --field num_classes=521 --output DIR
    python -m avs_jax.convert resnet50 weights/resnet50 --to-torch --output resnet50.safetensors
    python -m avs_jax.convert avesformer WORKDIR --to-zoo --output avs_jax/weights/zoo/lite

FILE is a .pth, .pt or .safetensors file with a state_dict, or a checkpoint that wraps one; of
yamnet the folder of its SavedModel (launch/fetch_media.sh fetches lite0's and yamnet's). With
--to-torch it is a folder written by this program, or the WORKDIR of a training run. With --to-zoo
it is a WORKDIR: lite.npz (float16) and lite.json become a model that comes with the package.
Training starts from converted weights with `--config.init_from.backbone=weights/resnet50` and
`--config.init_from.audio_backbone=weights/vggish`.

Strict: every entry of the file must have its place, every parameter its entry, every shape must
fit; what is left out is named in the tables (`avs_jax/weights/torch_tables.py`). PyTorch is needed
to read its files and for nothing else (`pip install -e ".[convert]"`). A file that would run code
is refused.

There is no avesformer: no weights of it were ever published, so there are no names to convert. It
starts from converted backbones like the others.
"""

import argparse
import ast
import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax import linen as nn
from flax import traverse_util

from avs_jax import errors
from avs_jax.backbones import BACKBONES, PICTURE_BACKBONES, SOUND_BACKBONES, get_backbone
from avs_jax.models import MODELS, get_model
from avs_jax.types import PyTree
from avs_jax.weights import load_weights, merge_init, open_model, zoo
from avs_jax.weights.converted import (
    ConversionError,
    flatten,
    list_names,
    load_converted,
    save_converted,
    unflatten,
)
from avs_jax.weights.tensorflow_files import find_data, read_bundle
from avs_jax.weights.torch_files import import_extra, read_torch_file, to_numpy
from avs_jax.weights.torch_tables import (
    TABLES,
    Table,
    fill_template,
    placeholder_patterns,
    template_regex,
)
from avs_jax.weights.trained import build_model

__all__ = [
    "ConversionError",
    "from_torch",
    "load_converted",
    "load_weights",
    "merge_init",
    "save_converted",
    "target_shapes",
    "to_torch",
]

# ---------------------------------------------------------------- the mapping


def target_shapes(network: str, **fields) -> dict[str, jax.ShapeDtypeStruct]:
    """{"params/conv1/kernel": shape, ...} of a backbone or model, without computing anything.

    Raises:
      UnknownNameError: for a network or backbone without a table, or a field it does not have.
    """
    if network not in TABLES:
        _refuse(network)
    for field, kind in (("backbone", PICTURE_BACKBONES), ("audio_backbone", SOUND_BACKBONES)):
        part = fields.get(field)
        if part in kind and part not in TABLES:  # one of this library's own
            raise errors.unknown_name(f"{field} to convert", part, set(kind) & set(TABLES))
    hashable = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    if network in BACKBONES:
        module = get_backbone(network, **hashable)
        inputs = "picture" if network in PICTURE_BACKBONES else "sound"
    else:
        module, inputs = get_model(network, **hashable), "both"
    return dict(_trace(module, inputs))  # a copy: nobody changes what is remembered


@functools.lru_cache(maxsize=32)
def _trace(module: nn.Module, inputs: str) -> dict[str, jax.ShapeDtypeStruct]:
    """`target_shapes` of a module, whose fields are all that they depend on: seconds if large."""
    picture, sound = jnp.zeros((1, 64, 64, 3)), jnp.zeros((1, 96, 64))
    clip = (jnp.zeros((1, 5, 224, 224, 3)), jnp.zeros((1, 5, 96, 64)), None)
    args = {"picture": (picture,), "sound": (sound,), "both": clip}[inputs]
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *args))
    return traverse_util.flatten_dict(shapes, sep="/")


def _refuse(network: str) -> NoReturn:
    """Raises the UnknownNameError for a network without a table."""
    if network in MODELS:
        raise errors.UnknownNameError(
            f"no weights of {network!r} were ever published, so there is nothing to convert; "
            f"known: {', '.join(sorted(TABLES))}."
        )
    raise errors.unknown_name("network to convert", network, TABLES)


def _strip(names: Iterable[str]) -> dict[str, str]:
    """{name without the wrappers' prefixes: name}: DataParallel's and torch.compile's."""
    short = {name: name for name in names}
    for prefix in ("module.", "_orig_mod.", "module."):
        if short and all(name.startswith(prefix) for name in short):
            short = {name.removeprefix(prefix): whole for name, whole in short.items()}
    return short


def _place(table: Table, names: Iterable[str]) -> tuple[dict[str, list], list[str]]:
    """{name: [(paths, transform), ...]} of every entry, and the names that `ignore` has."""
    rules = [(template_regex(rule.source), rule) for rule in table.rules]
    ignore = [re.compile(pattern) for pattern in table.ignore]
    placed, ignored = {}, []
    for name in names:
        if any(pattern.fullmatch(name) for pattern in ignore):
            ignored.append(name)
            continue
        placed[name] = []
        for regex, rule in rules:
            if match := regex.fullmatch(name):
                paths = tuple(fill_template(path, match.groupdict()) for path in rule.paths)
                placed[name].append((paths, rule.transform))
    return placed, ignored


def _convert(
    table: Table, shapes: Mapping[str, jax.ShapeDtypeStruct], state_dict: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str], dict[str, list[str]]]:
    """-> flat variables, names ignored, problems by kind (empty where all is well)."""
    short = _strip(state_dict)
    placed, ignored = _place(table, short)
    problems = {"unknown entries": [], "missing": [], "wrong shapes": [], "double matches": []}
    flat, origin = {}, {}
    for name, places in placed.items():
        if len(places) != 1:
            kind = "double matches" if places else "unknown entries"
            problems[kind].append(name)
            continue
        (paths, transform), value = places[0], to_numpy(state_dict[short[name]])
        pieces = [value] if len(paths) == 1 else None
        if value.ndim and value.shape[0] % len(paths) == 0:
            pieces = np.split(value, len(paths))
        for i, path in enumerate(paths):
            if path not in shapes:
                problems["unknown entries"].append(name)
                continue
            if path in origin:
                problems["double matches"].append(f"{origin[path]} and {name}")
                continue
            origin[path] = name
            try:
                array = transform.forward(pieces[i])
            except (ValueError, TypeError):  # of another rank, or not divisible
                array = None
            wanted = shapes[path]
            if array is None or array.shape != wanted.shape:
                problems["wrong shapes"].append(
                    f"{name} {list(value.shape)} for {path} {list(wanted.shape)}"
                )
            else:
                flat[path] = np.array(array, wanted.dtype, order="C")  # of any rank, 0 too
    problems["missing"] = [path for path in shapes if path not in origin]
    return flat, ignored, {kind: found for kind, found in problems.items() if found}


def _looks_like(state_dict: Mapping[str, Any], network: str, fields: dict) -> str | None:
    """The published network that takes the most of this file, if it takes most of it.

    None if that is `network` with these `fields` after all.
    """
    best, best_shapes, most = None, None, 0.0
    for other, variant in ((name, variant) for name in TABLES for variant in _variants(name)):
        chosen = (fields if other == network else {}) | variant
        placed, _ = _place(TABLES[other](**chosen), _strip(state_dict))
        if sum(bool(places) for places in placed.values()) < 0.8 * max(1, len(placed)):
            continue
        shapes = target_shapes(other, **chosen)
        flat, _, problems = _convert(TABLES[other](**chosen), shapes, state_dict)
        fits = len(flat) / (len(flat) + sum(map(len, problems.values())))
        if fits > most:
            best, best_shapes, most = (other, variant), shapes, fits
    if most <= 0.5 or best_shapes == target_shapes(network, **fields):
        return None
    name, variant = best
    described = ", ".join(f"{field}={value}" for field, value in variant.items())
    return f"{name} with {described}" if variant else name


def _variants(network: str) -> list[dict[str, Any]]:
    """The fields that tell the published files of a network apart."""
    if network in BACKBONES:
        return [{}]
    variants = [{"backbone": name} for name in ("resnet50", "pvt_v2_b5")]
    if network == "pcmanet":
        variants = [v | {"groups": groups} for v in variants for groups in (8, 4)]
    return variants


def from_torch(
    network: str, state_dict: Mapping[str, Any], *, what: str = "this state_dict", **fields
) -> dict[str, PyTree]:
    """A PyTorch `state_dict` -> {"params", "batch_stats"} of float32 numpy arrays.

    Args:
      network: a key of TABLES: a backbone or a model.
      state_dict: name -> array in PyTorch's layout (numpy or torch, floats of any width). For a
        model, VGGish's entries carry the prefix `audio_backbone.`. A `module.` prefix that all
        entries have is dropped.
      what: how error messages call the state_dict, e.g. the file's name.
      **fields: of the backbone or of the model (backbone=..., num_classes=..., ...).

    Raises:
      UnknownNameError: for an unknown network or field.
      ConversionError: all entries without a place, parameters without an entry, wrong shapes and
        double matches, together.
    """
    shapes = target_shapes(network, **fields)
    flat, _, problems = _convert(TABLES[network](**fields), shapes, state_dict)
    if problems:
        looks = _looks_like(state_dict, network, fields)
        hint = f" (it looks like {looks})" if looks else ""
        found = "; ".join(
            f"{len(names)} {kind}: {list_names(names)}" for kind, names in problems.items()
        )
        part = _find_part(TABLES[network](**fields), shapes, state_dict)
        cure = ""
        if part:
            cure = (
                f" Its entries that begin with {part!r} do: keep those alone, e.g. with torch.save("
                f"{{n[{len(part)}:]: w for n, w in weights.items() if n.startswith({part!r})}}, "
                "FILE), and convert that file."
            )
        raise ConversionError(f"{what} does not fit {network}{hint}: {found}.{cure}", problems)
    return unflatten(flat)


def _find_part(table, shapes, state_dict: Mapping[str, Any]) -> str | None:
    """What the names of those entries begin with that alone would fit: a backbone's in a model."""
    prefixes = {name[: at + 1] for name in state_dict for at, c in enumerate(name) if c == "."}
    for prefix in sorted(prefixes, key=len):
        part = {n[len(prefix) :]: w for n, w in state_dict.items() if n.startswith(prefix)}
        if len(part) >= len(shapes) // 2 and not _convert(table, shapes, part)[2]:
            return prefix
    return None


def to_torch(network: str, variables: Mapping[str, PyTree], **fields) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: {name: array in PyTorch's layout}, exact to the bit.

    Entries that `from_torch` ignores (classifiers, counters, dead branches) do not come back.

    Raises:
      ConversionError: where a parameter has no name in the network's table.
    """
    shapes = target_shapes(network, **fields)
    flat = flatten(variables)
    rules = []
    for rule in TABLES[network](**fields).rules:
        patterns = placeholder_patterns(rule.source)
        rules.append((rule, template_regex(rule.paths[0], patterns)))
    state_dict, done = {}, set()
    missing = [path for path in shapes if path not in flat]
    for path in [] if missing else shapes:
        for rule, regex in rules:
            if match := regex.fullmatch(path):
                values = match.groupdict()
                paths = [fill_template(other, values) for other in rule.paths]
                parts = [rule.transform.backward(np.asarray(flat[p])) for p in paths]
                whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
                state_dict[fill_template(rule.source, values)] = np.asarray(whole, order="C")
                done.update(paths)
                break
    unknown = [path for path in flat if path not in (shapes if missing else done)]
    problems = {"missing": missing, "unknown entries": unknown}
    problems = {kind: names for kind, names in problems.items() if names}
    if problems:
        found = "; ".join(
            f"{len(names)} {kind}: {list_names(names)}" for kind, names in problems.items()
        )
        raise ConversionError(f"these variables do not fit {network}: {found}.", problems)
    return state_dict


# ---------------------------------------------------------------- the program


_OF_TENSORFLOW = ("yamnet",)


def read_weights(network: str, path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({name: array}, {"file", "sha256"}) of a published file, or of a SavedModel's folder.

    Raises:
      NotFoundError, BadValueError: see `read_torch_file` and `read_bundle`.
    """
    is_torch = network not in _OF_TENSORFLOW
    arrays = read_torch_file(path) if is_torch else read_bundle(path)
    data = epath.Path(path).expanduser() if is_torch else find_data(path)
    with data.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return arrays, {"file": data.name, "sha256": sha256}


def parse_field(text: str) -> tuple[str, Any]:
    """NAME=VALUE -> (name, value), where the value is a Python literal or else a plain text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise errors.BadValueError(f"--field takes NAME=VALUE, not {text!r}.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", metavar="NETWORK", help=", ".join(TABLES))
    parser.add_argument(
        "file", metavar="FILE", help="PyTorch file; with --to-torch: folder of ours"
    )
    parser.add_argument("--output", required=True, help="folder to write; with --to-torch: file")
    parser.add_argument(
        "--field",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="field of the network, repeatable: backbone=pvt_v2_b5, num_classes=71; with --to-zoo "
        "one that is to be otherwise than in training",
    )
    parser.add_argument("--audio-backbone", metavar="FILE", help="VGGish's file, for a whole model")
    parser.add_argument(
        "--to-torch", action="store_true", help="write a converted folder back as .safetensors"
    )
    parser.add_argument(
        "--to-zoo", action="store_true", help="write a run's model as one of the package"
    )
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="of its logits, with --to-zoo (default: 1)"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="of its masks, with --to-zoo (default: 0.5)"
    )
    args = parser.parse_args()
    fields = dict(parse_field(text) for text in args.field)
    if args.to_torch:
        _write_torch(args.network, args.file, args.output, fields)
        return
    if args.to_zoo:
        _write_zoo(args, fields)
        return
    state_dict, source = read_weights(args.network, args.file)
    if args.audio_backbone:
        sound_network = fields.get("audio_backbone", "vggish")
        sound, sound_source = read_weights(sound_network, args.audio_backbone)
        state_dict = {
            **{name: state_dict[whole] for name, whole in _strip(state_dict).items()},
            **{f"audio_backbone.{name}": sound[whole] for name, whole in _strip(sound).items()},
        }
        source["audio_backbone"] = sound_source
    variables = from_torch(args.network, state_dict, what=args.file, **fields)
    del state_dict  # a second copy of the weights while the first is written
    provenance = save_converted(args.output, args.network, variables, source, **fields)
    print(
        f"{args.network}: {provenance['parameters']:,} parameters of {source['file']} "
        f"(sha256 {source['sha256'][:12]}...) written to {args.output}"
    )


def _write_torch(network: str, directory: str, output: str, fields: Mapping[str, Any]) -> None:
    if not output.endswith(".safetensors"):
        raise errors.BadValueError(f"--to-torch writes a .safetensors file, not {output}.")
    safetensors = import_extra("safetensors.numpy", f"writing {output}")
    variables, provenance = load_weights(directory)
    if provenance["network"] != network:
        raise errors.BadValueError(
            f"{directory} holds weights of {provenance['network']}, not of {network}."
        )
    state_dict = to_torch(network, variables, **{**provenance["fields"], **fields})
    path = epath.Path(output).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        safetensors.save_file(state_dict, path)
    except OSError as error:
        raise errors.BadValueError(f"cannot write {path}: {error}.") from error
    print(f"{network}: {len(state_dict)} entries written to {output}")


def _write_zoo(args: argparse.Namespace, fields: Mapping[str, Any]) -> None:
    loaded = open_model(args.file)
    network = loaded.config.model.name
    if network != args.network:
        raise errors.BadValueError(
            f"{args.file} holds weights of {network}, not of {args.network}."
        )
    if fields:  # how it is used, not what it learnt: of other shapes the weights would not fit
        config = ml_collections.ConfigDict(loaded.config)
        try:
            with config.unlocked():
                config.model.update(fields)
        except TypeError as error:  # ml_collections: another type than the run's value
            raise errors.BadValueError(f"--field: {error}.") from error
        loaded = loaded._replace(
            config=ml_collections.FrozenConfigDict(config), model=build_model(config)
        )
    about = zoo.save_zoo(
        args.output, loaded, temperature=args.temperature, threshold=args.threshold
    )
    print(
        f"{network}: {about['parameters']:,} parameters of {args.file}, step {loaded.step}, "
        f"written to {args.output}.npz ({about['bytes'] / 1e6:.1f} MB, "
        f"sha256 {about['sha256'][:12]}...)"
    )


if __name__ == "__main__":
    errors.run_program(main)
