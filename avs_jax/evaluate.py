"""Evaluate a checkpoint: every figure of a split, with the sound it came with and without it.

    python -m avs_jax.evaluate --checkpoint WORKDIR
    python -m avs_jax.evaluate --checkpoint WORKDIR --metrics paper,strict,dataset,jf,robust

WORKDIR is what `avs_jax.train` wrote; the model, its data set and picture size come from the
checkpoint's own config. To evaluate weights that `avs_jax.convert` wrote, name the config they are
for: --config configs/pcmanet.py:subset=s4 --checkpoint CONVERTED.

Prints tables and one JSON line, and writes results.json (the same line), results.md (the tables)
and, with --metrics, details.json (by clip, class and group) to --output, by default WORKDIR:

    miou           mean IoU over frames (AVSBench's; on AVSS over classes)
    f_measure      best F-measure over thresholds, per video (AVSBench's with batches of one video)
    *_mute         the sound replaced by silence; *_swap by another clip's
    *_all_objects_oracle    a deaf model that marks every visible object perfectly, where the data
                   set knows them: a result near it shows nothing about listening

--metrics adds families of figures that other papers report; they differ by ten points and more on
the same masks, so compare within one family only:

    paper    AVSBench's evaluation code, batch by batch (--f_batch_videos), to the digit
    strict   every frame weighs the same, one threshold for the set, no padded frames: recommended
    dataset  pixels summed over the whole set before anything is divided
    jf       DAVIS: region similarity J, boundary accuracy F
    robust   silence, noise, a sound from off the screen, another clip's, a late one
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from tqdm import tqdm

from avs_jax import __version__, devices, errors
from avs_jax.backbones import get_normalization
from avs_jax.data import load_class_names, open_split, pipeline, transforms
from avs_jax.devices import quiet_libraries
from avs_jax.models.forward import count_params, make_forward
from avs_jax.scoring import modes, report, sounds
from avs_jax.scoring.evaluators import ORACLE, oracle_logits, split_name
from avs_jax.scoring.records import Records, collect, make_score
from avs_jax.weights import open_model, trained
from avs_jax.weights.trained import Loaded

FAMILIES = (*modes.MODES, "robust")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    quiet_libraries()
    devices.start_jax(args.distributed)
    started = time.monotonic()
    loaded = open_model(args.checkpoint, args.which, args.config)
    config = override(loaded.config, args)
    if args.original_size and args.distributed:
        raise errors.BadValueError("--original_size works on one host; leave out --distributed.")
    # Clips of their original size do not fit into one batch: one clip at a time, on one device.
    mesh = devices.make_mesh(devices=jax.local_devices()[:1] if args.original_size else None)
    if args.batch_size is None:
        config.eval.batch_size = devices.round_up(config.eval.batch_size, mesh)
    devices.check_batch_size(config.eval.batch_size, mesh, "--batch_size")
    data = config.data
    source = open_split(data.name, data.subset, config.eval.split, data.data_dir)
    errors.check_writable("--output", output_folder(args))
    folder = None
    if args.save_masks:
        folder = report.MaskFolder(args.save_masks, config.model.num_classes)

    passes = Passes(loaded, config, source, mesh, args.original_size, folder)
    records = run_passes(passes, args.sounds, "jf" in args.metrics, "robust" in args.metrics)

    if jax.process_index() == 0:
        about = describe(loaded, config, args) | {
            "clips": len(records["own"].clips),
            "frames": int(records["own"].use.sum()),
            "eval/seconds": round(time.monotonic() - started, 1),
        }
        present(records, about, config, args)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m avs_jax.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def names(kind, known):
        def parse(text):
            chosen = known if text == "all" else tuple(filter(None, text.split(",")))
            for name in chosen:
                if name not in known:
                    raise errors.unknown_name(kind, name, (*known, "all"))
            return chosen

        return parse

    add = parser.add_argument
    add("--checkpoint", required=True, help="WORKDIR of a training run, or converted weights")
    add("--which", default="best", help="best, latest or a step (default: best)")
    add("--config", help="FILE[:arguments], for converted weights or another data set")
    add(
        "--split",
        default="test",
        help="e.g. test, validation, test[:100], its first (default: test)",
    )
    add(
        "--sounds",
        type=names("sound", sounds.SOUNDS),
        default=pipeline.SOUNDS,
        help=f"comma-separated, of {', '.join(sounds.SOUNDS)}, or all (default: own,mute,swap)",
    )
    add(
        "--metrics",
        type=names("metric", FAMILIES),
        default=(),
        help=f"comma-separated, of {', '.join(FAMILIES)}, or all (default: none)",
    )
    add("--f_batch_videos", type=int, default=4, help="clips of a batch in paper mode (default: 4)")
    add("--no_padded_frames", action="store_true", help="leave them out of AVSS in paper mode")
    add("--original_size", action="store_true", help="score at the size on disk, not the model's")
    add("--save_masks", metavar="DIR", help="folder for every predicted mask, as ids and colours")
    add("--batch_size", type=int, help="clips, over all devices")
    add("--data_dir", help="where the data set is built, if not where it was")
    add("--output", metavar="DIR", help="folder for the results (default: the checkpoint's)")
    add("--distributed", action="store_true", help="one of several hosts (jax.distributed)")
    args = parser.parse_args(argv)
    if args.f_batch_videos < 1:
        raise errors.BadValueError(f"--f_batch_videos={args.f_batch_videos}: wanted 1 or more.")
    return args


# ------------------------------------------------------------------------------------------ inputs


def override(
    config: ml_collections.ConfigDict, args: argparse.Namespace
) -> ml_collections.ConfigDict:
    """The checkpoint's config with what the command line says instead."""
    config = ml_collections.ConfigDict(config)
    with config.unlocked():
        config.eval.split = args.split
        if args.original_size:
            config.eval.batch_size = 1
        elif args.batch_size is not None:
            config.eval.batch_size = args.batch_size
        if args.data_dir is not None:
            config.data.data_dir = args.data_dir
    return config


def output_folder(args: argparse.Namespace) -> epath.Path:
    """Where results are written."""
    return epath.Path(args.output or args.checkpoint)


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Host or local arrays -> the same on every device of every process."""
    everywhere = devices.replicated(mesh)

    def place(x):
        host = np.asarray(x)
        return jax.make_array_from_callback(host.shape, everywhere, lambda index: host[index])

    return jax.tree.map(place, tree)


# ------------------------------------------------------------------------------------------ passes


class Passes:
    """Passes of one model over one split."""

    def __init__(
        self,
        loaded: Loaded,
        config: ml_collections.ConfigDict,
        source: Any,
        mesh: jax.sharding.Mesh,
        original_size: bool = False,
        folder: report.MaskFolder | None = None,
    ):
        self.source = source
        self.num_classes = config.model.num_classes
        self._kind = "binary" if self.num_classes == 1 else "semantic"
        self._config = config
        self._folder = folder
        self._transforms = transforms.eval_transforms(None if original_size else config.data.size)
        self._clips = devices.batch_sharding(mesh)
        self._variables = replicate(loaded.variables, mesh)
        self._forward = make_forward(
            loaded.model,
            normalization=get_normalization(config.model.backbone),
            size=config.data.size,
            alignment=config.data.alignment,
        )
        self._scores: dict[tuple, Callable] = {}

    def run(
        self,
        sound: str,
        others: Sequence[int] | None = None,
        *,
        boundaries: bool = False,
        oracle: bool = False,
    ) -> Records:
        """One pass with that sound; `others` as for `sounds.Heard`.

        oracle: score perfect masks of all visible objects instead of the model's.
        """
        saves = self._folder is not None and sound == "own" and not oracle
        options = (boundaries, saves, oracle)
        if options not in self._scores:  # sounds share a compilation
            forward = self._deaf if oracle else self._forward
            self._scores[options] = make_score(
                forward, self._kind, self._clips, boundaries=boundaries, masks=saves
            )
        batches = pipeline.eval_batches(
            sounds.Heard(self.source, sound, others),
            batch_size=self._config.eval.batch_size // jax.process_count(),
            transforms=self._transforms,
            sound=sounds.pipeline_sound(sound),
            shard=(jax.process_index(), jax.process_count()),
            num_threads=self._config.data.num_threads,
        )
        name = ORACLE if oracle else sound

        def track(batches):
            return tqdm(batches, desc=name, unit="batch", disable=jax.process_index() > 0)

        return collect(
            self._scores[options],
            self._variables,
            batches,
            self._clips,
            self._kind,
            track=track,
            on_masks=self._folder.save if saves else None,
        )

    def _deaf(self, _, batch):
        return oracle_logits(batch["objects"], self.num_classes)


def run_passes(
    passes: Passes, names: Sequence[str], boundaries: bool, robust: bool
) -> dict[str, Records]:
    """The clips' own sound, the others asked for, and the oracle where objects are known."""
    wanted = dict.fromkeys([*names, *(sounds.SOUNDS if robust else ())])
    wanted.pop("own", None)
    records = {"own": passes.run("own", boundaries=boundaries)}
    for sound in wanted:
        others = None
        if sound == "offscreen":
            clips = records["own"].clips
            try:
                others = sounds.choose_offscreen(
                    [clip.visible for clip in clips], [clip.sounding for clip in clips]
                )
            except errors.BadValueError as error:
                if sound in names:
                    raise
                tqdm.write(f"off-screen test left out: {error}", file=sys.stderr)
                continue
        records[sound] = passes.run(sound, others)
    if "objects" in passes.source[0]:
        records[ORACLE] = passes.run("own", oracle=True)
    return records


# ----------------------------------------------------------------------------------------- figures


def describe(
    loaded: Loaded, config: ml_collections.ConfigDict, args: argparse.Namespace
) -> dict[str, Any]:
    """What the figures are of: they mean nothing without it."""
    words = json.dumps(json.loads(loaded.config.to_json()), sort_keys=True)
    about = {
        "params": count_params(loaded.variables["params"]),
        "model": config.model.name,
        "data": f"{config.data.name}/{config.data.subset}/{config.eval.split}",
        "size": config.data.size,
        "batch_size": config.eval.batch_size,
        "scored_at": "original size" if args.original_size else "model size",
        "checkpoint": str(args.checkpoint),
        "step": loaded.step,
        "config_hash": hashlib.sha256(words.encode()).hexdigest()[:12],
        "avs_jax": __version__,
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }
    seconds = trained.last_value(epath.Path(args.checkpoint) / "metrics.jsonl", "train/seconds")
    if seconds is not None:
        about["train/seconds"] = round(seconds, 1)
    return about


def compute_families(
    records: Mapping[str, Records], args: argparse.Namespace
) -> dict[str, dict[str, float | int]]:
    """{family: {figure: value}} of the families asked for, and a bootstrap interval."""
    own = records["own"]
    families = {}
    for family in args.metrics:
        if family == "robust":
            heard = {s: r for s, r in records.items() if s in sounds.SOUNDS[1:]}
            families[family] = modes.robust(own, heard)
        elif family == "paper":
            families[family] = modes.paper(own, args.f_batch_videos, not args.no_padded_frames)
        else:
            families[family] = modes.MODES[family](own)
    if args.metrics:
        families["interval"] = {
            f"{name}_{end}": value
            for name, ends in modes.intervals(own).items()
            for end, value in zip(("low", "high"), ends, strict=True)
        }
    return families


def present(
    records: Mapping[str, Records],
    about: Mapping,
    config: ml_collections.ConfigDict,
    args: argparse.Namespace,
) -> None:
    """Prints tables and the JSON line, and writes them."""
    split = split_name(config.eval.split)
    shown = [sound for sound in records if sound in (*args.sounds, "own", ORACLE)]
    by_sound = {sound: modes.summary(records[sound]) for sound in shown}
    results = {
        f"{split}/{metric}" + ("" if sound == "own" else f"_{sound}"): value
        for sound, figures in by_sound.items()
        for metric, value in figures.items()
    }
    tables = [report.table_of_sounds(split, by_sound)]
    for family, figures in compute_families(records, args).items():
        results |= {f"{family}/{name}": value for name, value in figures.items()}
        title = f"95 % interval over clips, of {split}" if family == "interval" else family
        tables.append(report.table_of_figures(title, figures))
    details = (
        report.breakdown(records["own"], load_class_names(config.data.name)) if args.metrics else {}
    )
    tables.append(report.table_of_groups(details))
    results |= about
    tables.append("\n".join(f"- {name}: {value}" for name, value in about.items()) + "\n")
    text = "\n".join(filter(None, tables))
    print(f"\n{text}\n{json.dumps(results)}")
    text = "\n".join(filter(None, [text, report.table_of_classes(details)]))  # too long to print
    report.write(output_folder(args), results, details, text)


if __name__ == "__main__":
    errors.run_program(main)
