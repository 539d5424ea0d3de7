"""What frozen backbones give, computed once for some clips and kept on disk: training then costs
what learns, and a picture may meet several sounds for next to nothing.

    FOLDER/c2.npy .. c5.npy, sources.npy   of each picture [clips*t, ...], float16
    FOLDER/sound.npy, rows.npy, label.npy  of each sound [clips*takes*t, ...]
    FOLDER/about.json                      what they are of; written last

`Remembered` takes the place of the training split. Its examples are single seconds, for the model
that can go on from features (`decide_features`) does not look at others. Pictures are not changed
any more: what is to vary must vary in the clips. Local disks and one process alone.
"""

import concurrent.futures
import functools
import json
from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import NamedSharding

from avs_jax import errors, paths
from avs_jax.models.forward import picture_inputs, sound_inputs
from avs_jax.training.freezing import Frozen
from avs_jax.types import Array, Float, PyTree
from avs_jax.weights import trained

_PREFIX = "features/"  # of names in a batch
_ABOUT = "about.json"
_UNCHANGED = {  # of data.augment, where it is not 0
    "scale": (1.0, 1.0),
    "zoom": (1.0, 1.0),
    "gain_db": (0.0, 0.0),
    "gain_chance": 0.5,
}
_CLIPS = 4  # at a time: pictures of 288 pixels then take 400 MB in the largest layer


class Remembered:
    """Seconds of remembered clips, by number.

    Args:
      config: reads remember, data, size_schedule.
      source: of the training split; with remember.takes it has `takes(index, count)`.
      workdir: of the run.

    Raises:
      BadValueError: more clips than there are, several takes of data that has one, pictures that
      are to be changed, several processes, or a folder with features of something else.
    """

    def __init__(self, config: ml_collections.ConfigDict, source, workdir: epath.Path):
        self._config, self._source = config, source
        self.seconds, self.clips, self.takes = 1, config.remember.clips, config.remember.takes
        self._near = config.remember.get("near", 0.0)  # runs of before have no such field
        self.folder = epath.Path(config.remember.folder or workdir / "remembered")
        self.name = f"{source.name}, remembered"
        if self.clips > len(source) or self.takes < 1:
            raise errors.BadValueError(
                f"remember.clips={self.clips}, takes={self.takes}: {source.name} has "
                f"{len(source)} clips; use at most that many, and one take or more."
            )
        if (self.takes > 1 or self._near) and not hasattr(source, "takes"):
            raise errors.BadValueError(
                f"remember.takes={self.takes}, near={self._near}: {source.name} has one sound for "
                "each clip, and no near ones; use 1 and 0, or stamps whose clips are made when "
                "read."
            )
        if not 0 <= self._near <= 1:
            raise errors.BadValueError(f"remember.near={self._near}: wanted a share, 0 to 1.")
        if jax.process_count() > 1 or paths.in_bucket(self.folder):
            raise errors.BadValueError(
                f"remember.clips={self.clips} is for one process and a local folder, not for "
                f"{jax.process_count()} and {self.folder}; set it to 0."
            )
        augment = config.data.augment
        changed = [name for name, x in augment.items() if x != _UNCHANGED.get(name, 0)]
        if changed or config.size_schedule:
            changed = [f"data.augment.{name}={augment[name]}" for name in changed]
            changed += [f"size_schedule={config.size_schedule}"] * bool(config.size_schedule)
            raise errors.BadValueError(
                f"remember.clips={self.clips} keeps pictures and sounds as they are, but "
                f"{', '.join(changed)}; leave that out or set remember.clips=0."
            )
        if self.is_full():
            self._compare(self._about())

    def check(self, frozen: Frozen) -> None:
        """Raises BadValueError where a backbone learns."""
        for part in ("backbone", "audio_backbone"):
            if part not in frozen.modules:
                raise errors.BadValueError(
                    f"remember.clips={self.clips}, but {part} learns, and its features change; "
                    f"freeze it (optimizer.freeze) or set remember.clips=0."
                )

    # ------------------------------------------------------------ reading

    def __len__(self) -> int:
        return self.clips * self.takes * self._config.data.seconds

    def __repr__(self) -> str:
        return f"Remembered({self.name!r}, {len(self)} seconds)"

    def __getstate__(self) -> dict:  # reader processes open the files themselves
        return {k: v for k, v in self.__dict__.items() if k != "_arrays"}

    def __getitem__(self, index) -> dict:
        """Second `index`: features [1 ...], label u8[1 h w], masks bool[1], id."""
        index, seconds = int(index), self._config.data.seconds
        take, second = divmod(index, seconds)
        picture = take // self.takes * seconds + second
        example = {"id": f"{self.name}/{take:06d}/{second}"}
        for name, values in self._arrays.items():
            key = name if name == "label" else _PREFIX + name
            row = index if len(values) == len(self) else picture  # the same of one take
            example[key] = np.array(values[row])[None]
        return example | {"label_mask": np.ones(1, bool), "frame_mask": np.ones(1, bool)}

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            path.name.removesuffix(".npy"): np.load(path, mmap_mode="r")
            for path in sorted(self.folder.glob("*.npy"))
        }

    def shapes(self, batch_size: int, sharding: NamedSharding) -> dict[str, jax.ShapeDtypeStruct]:
        """What a train step reads of a batch, as shapes to compile for."""
        example = self[0]
        example.pop("id")
        return {
            name: jax.ShapeDtypeStruct((batch_size, *x.shape), x.dtype, sharding=sharding)
            for name, x in example.items()
        }

    # ------------------------------------------------------------ writing

    def is_full(self) -> bool:
        return (self.folder / _ABOUT).exists()

    def _read_about(self) -> dict:
        return json.loads((self.folder / _ABOUT).read_text())

    def _about(self) -> dict:
        data = self._config.data
        about = {name: data[name] for name in ("name", "subset", "size", "seconds", "alignment")}
        return about | {"clips": self.clips, "takes": self.takes, "near": self._near}

    def _compare(self, wanted: dict) -> None:
        found = self._read_about()
        before = {"near": 0.0}  # of folders that do not say
        found = {name: found.get(name, before.get(name)) for name in wanted}
        if found != wanted:
            raise errors.BadValueError(
                f"{self.folder} holds features of {found}, wanted {wanted}; delete it or set "
                "remember.folder to another."
            )

    def fill(
        self,
        model: nn.Module,
        variables: PyTree,
        normalization: tuple,
        say: Callable[[str], None] = print,
    ) -> None:
        """Runs the backbones over all clips, unless that was done before.

        Raises:
          BadValueError: it was done with other weights.
        """
        frozen = {
            kind: {part: tree.get(part, {}) for part in ("backbone", "audio_backbone")}
            for kind, tree in variables.items()
        }
        about = self._about() | {"weights": sum(trained.checksums(frozen).values())}
        if self.is_full():
            self._compare(about)
            return
        data = self._config.data
        self.folder.mkdir(parents=True, exist_ok=True)

        @jax.jit
        def look(variables, frames):
            pictures = picture_inputs(frames, normalization, data.size)
            return _half(model.apply(variables, pictures, method="look"))

        @jax.jit
        def listen(variables, waveform):
            log_mel = sound_inputs(waveform, data.seconds, data.alignment)
            return _half(model.apply(variables, log_mel, method="listen"))

        files, done = {}, 0
        for examples in self._read_clips():
            firsts = np.stack([takes[0]["frames"] for takes in examples])
            sounds = np.stack([take["waveform"] for takes in examples for take in takes])
            labels = np.concatenate([take["label"] for takes in examples for take in takes])
            found = dict(look(variables, firsts)) | dict(listen(variables, sounds))
            found["label"] = labels
            for name, values in found.items():
                values = np.asarray(values)
                per_clip = len(values) // len(examples)
                if name not in files:
                    files[name] = np.lib.format.open_memmap(
                        self.folder / f"{name}.npy",
                        "w+",
                        values.dtype,
                        (self.clips * per_clip, *values.shape[1:]),
                    )
                files[name][done * per_clip :][: len(values)] = values
            done += len(examples)
            if done % (25 * _CLIPS) == 0 or done == self.clips:
                say(f"remembered {done} of {self.clips} clips")
        for values in files.values():
            values.flush()
        (self.folder / _ABOUT).write_text(json.dumps(about) + "\n")

    def _read_clips(self) -> Iterator[list[list[dict]]]:
        """A few clips at a time, each with its takes; the next ones are made meanwhile."""

        def read(index):
            if self.takes == 1 and not self._near:
                return [self._source[index]]
            return self._source.takes(index, self.takes, self._near)

        with concurrent.futures.ThreadPoolExecutor(max(1, self._config.data.num_threads)) as pool:
            ahead: list = []
            for start in range(0, self.clips + _CLIPS, _CLIPS):
                now = ahead
                stop = min(start + _CLIPS, self.clips)
                ahead = [pool.submit(read, i) for i in range(start, stop)]
                if now:
                    yield [future.result() for future in now]


def _half(features: dict[str, Array]) -> dict[str, Array]:
    return {name: x.astype(jnp.float16) for name, x in features.items()}


def features_of(batch: dict[str, Array]) -> dict[str, Float[Array, "b t ..."]]:
    """The features of a batch, by the names that the model gave them."""
    return {name.removeprefix(_PREFIX): x for name, x in batch.items() if name.startswith(_PREFIX)}
