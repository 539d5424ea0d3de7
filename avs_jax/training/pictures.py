"""What the model marks in a few validation clips, as strips for TensorBoard."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from avs_jax.data import transforms
from avs_jax.media import drawing
from avs_jax.scoring.records import Clip
from avs_jax.training.logs import Logs
from avs_jax.types import UInt8


class ValidationPictures:
    """Draws the same clips at every evaluation, spread evenly over the split.

    An evaluation hands each clip's masks to `note`; `draw` then makes strips of frames, truth,
    masks and sound.
    """

    def __init__(
        self,
        source: Any,
        count: int,
        size: int,
        shard: tuple[int, int] = (0, 1),
        class_names: Sequence[str] | None = None,
    ):
        """source: see `avs_jax.data.open_split`. count: of clips; size: of masks. shard: (process
        index, process count): only its own clips are handed to a process."""
        own = range(shard[0], len(source), shard[1])
        chosen = {own[i * len(own) // count] for i in range(count)} if len(own) else set()
        fit = transforms.eval_transforms(size)
        self._clips: dict[str, dict] = {}
        for index in sorted(chosen):
            example = source[index]
            for transform in fit:
                example = transform.map(example)
            self._clips[example["id"]] = example
        self._masks: dict[str, np.ndarray] = {}
        self._class_names = class_names

    def note(self, clip: Clip, masks: UInt8[np.ndarray, "t h w"]) -> None:
        """Keeps the masks of the clips that are drawn."""
        if clip.id in self._clips:
            self._masks[clip.id] = masks

    def draw(self, logs: Logs, step: int, split: str) -> None:
        """One picture a clip, named SPLIT/CLIP."""
        for name, masks in self._masks.items():
            clip, t = self._clips[name], len(masks)
            picture = drawing.strip(
                clip["frames"][:t],
                clip["label"][:t] if clip["label_mask"][:t].all() else None,
                masks,
                clip["waveform"][: t * (len(clip["waveform"]) // len(clip["frames"]))],
                class_names=self._class_names,
                binary=self._class_names is None,
            )
            logs.draw(step, f"{split}/{name}", picture)
        self._masks = {}
