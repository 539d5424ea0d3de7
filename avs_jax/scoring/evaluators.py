"""Evaluators: objects whose `run(variables)` yields (name, value) for a whole split.

One evaluator is one pass over the split: a forward function, batches, and the kind of metric. A
model that listens is told from one that only sees by further passes with another sound, `mute`
(silence) and `swap` (another clip's), and by an oracle without ears: perfect masks of all visible
objects, scored by the same code. Names are SPLIT/METRIC for a clip's own sound, else
SPLIT/METRIC_SOUND, e.g. test/miou, test/miou_swap, test/miou_all_objects_oracle.

Sums stay on the devices from the first batch to the last (see `metrics`): a pass transfers
nothing but its batches, and one result at the end.
"""

import collections
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import NamedSharding, PartitionSpec

from avs_jax import errors
from avs_jax.data import pipeline, transforms
from avs_jax.scoring import metrics
from avs_jax.types import Array, Float, Int, PyTree, UInt8

# kind -> the empty sums of a model with that many classes
EVALUATORS: dict[str, Callable[[int], Any]] = {
    "binary": lambda num_classes: metrics.BinaryState.empty(),
    "semantic": metrics.SemanticState.empty,
}

ORACLE = "all_objects_oracle"

# Batches that may wait on the devices while earlier ones are worked through: enough to keep them
# busy, few enough that a fast host does not fill their memory.
_MAX_AHEAD = 3


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """One pass over a split.

    Attributes:
      start: () -> empty sums, placed on the devices.
      update: (variables, sums, device batch) -> (sums, a token to wait for); the sums are donated.
      batches: host batches; gone through anew by every run.
      sharding: of the batch axis.
      name: what comes before the metric, e.g. "test".
      suffix: what comes after it, e.g. "_mute"; empty for a clip's own sound.
    """

    start: Callable[[], Any]
    update: Callable[[PyTree, Any, dict], tuple[Any, Array]]
    batches: Iterable[dict]
    sharding: NamedSharding
    name: str
    suffix: str = ""

    def run(
        self, variables: PyTree, track: Callable[[Iterable], Iterable] = lambda batches: batches
    ) -> Iterator[tuple[str, float]]:
        """Yields (name, value) of every figure of the pass.

        Args:
          variables: what `forward` takes; the oracle ignores them.
          track: wraps the iteration over batches, e.g. in a progress bar.

        Raises:
          BadValueError: no frame of the split is labelled.
        """
        sums = self.start()
        waiting = collections.deque()
        for batch in track(self.batches):
            on_device, _ = pipeline.to_device(batch, self.sharding)
            sums, token = self.update(variables, sums, on_device)
            waiting.append(token)
            if len(waiting) > _MAX_AHEAD:
                jax.block_until_ready(waiting.popleft())
        for metric, value in sums.compute().items():
            yield f"{self.name}/{metric}{self.suffix}", value


def frames_in_use(batch: dict[str, Array]) -> Array:
    """bool[b t]: frames that exist, carry a label, and belong to a clip that is not padding."""
    return batch["frame_mask"] & batch["label_mask"] & batch["example_mask"][:, None]


def make_update(
    forward: Callable[[PyTree, dict], Array], kind: str, sharding: NamedSharding
) -> Callable:
    """`update` of an Evaluator: one jitted step from a batch to the sums.

    Args:
      forward: (variables, device batch) -> logits f32[b t h w k] at the size of the labels.
      kind: a key of EVALUATORS.
      sharding: of the batch axis; the sums are the same on all devices of its mesh.

    Raises:
      UnknownNameError: for the kind.
    """
    if kind not in EVALUATORS:
        raise errors.unknown_name("kind of evaluation", kind, EVALUATORS)

    def update(variables, sums, batch):
        logits = forward(variables, batch)
        if kind == "binary":
            logits = logits[..., 0]
        use = frames_in_use(batch)
        return sums.update(logits, batch["label"].astype(jnp.int32), use), use.sum()

    return jax.jit(update, donate_argnums=1, out_shardings=_replicated(sharding))


def _replicated(sharding):
    return NamedSharding(sharding.mesh, PartitionSpec())


def oracle_logits(
    objects: UInt8[Array, "b t h w"] | Int[Array, "b t h w"], num_classes: int
) -> Float[Array, "b t h w k"]:
    """Logits of a model that sees perfectly and hears nothing: all visible objects, by class id."""
    if num_classes == 1:
        return jnp.where(objects > 0, 20.0, -20.0)[..., None]
    return 20.0 * jax.nn.one_hot(objects.astype(jnp.int32), num_classes)


def split_name(split: str) -> str:
    """The split that a slice is of: "test[:100]" -> "test"."""
    return re.split(r"[\[+]", split)[0]


def build_evaluators(
    config: ml_collections.ConfigDict,
    forward: Callable[[PyTree, dict], Array],
    source: Any,
    sharding: NamedSharding,
    batch_size: int | None = None,
) -> list[Evaluator]:
    """The passes that `config.eval` asks for: each of its sounds, then the oracle.

    Args:
      config: reads model.num_classes, data.size, data.num_threads and eval {batch_size (over all
        processes), split, sounds, oracle}.
      forward: (variables, device batch) -> logits f32[b t h w k] at the size of the labels.
      source: of the split, see `avs_jax.data.open_split`.
      sharding: of the batch axis.
      batch_size: over all processes, instead of eval.batch_size.

    Raises:
      UnknownNameError: for a sound.
      BadValueError: the oracle is asked for and the data set does not know its objects.
    """
    num_classes = config.model.num_classes
    kind = "binary" if num_classes == 1 else "semantic"
    # Made under jit: every array of the sums is a buffer of its own, as donation wants.
    start = jax.jit(lambda: EVALUATORS[kind](num_classes), out_shardings=_replicated(sharding))

    def evaluator(update, sound, suffix):
        batches = pipeline.eval_batches(
            source,
            batch_size=(batch_size or config.eval.batch_size) // jax.process_count(),
            transforms=transforms.eval_transforms(config.data.size),
            sound=sound,
            shard=(jax.process_index(), jax.process_count()),
            num_threads=config.data.num_threads,
        )
        name = split_name(config.eval.split)
        return Evaluator(start, update, batches, sharding, name, suffix)

    update = make_update(forward, kind, sharding)  # shared: one compilation for all sounds
    passes = [
        evaluator(update, sound, "" if sound == "own" else f"_{sound}")
        for sound in config.eval.sounds
    ]
    if config.eval.oracle:
        if "objects" not in source[0]:
            raise errors.BadValueError(
                f"eval.oracle needs the masks of all objects, which {source!r} does not have; "
                "set eval.oracle=False."
            )
        deaf = make_update(
            lambda _, batch: oracle_logits(batch["objects"], num_classes), kind, sharding
        )
        passes.append(evaluator(deaf, "own", f"_{ORACLE}"))
    return passes
