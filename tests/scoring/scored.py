"""Records of made-up logits, by the package's own scorer."""

import jax
import jax.numpy as jnp
import numpy as np

from avs_jax.scoring.records import Clip, Records, Table, score_frames

_score = jax.jit(score_frames, static_argnames=("kind", "boundaries"))


def make_records(logits, label, use=None, *, clips=None, batch_size=None, sharding=None):
    """Records of logits [c t h w] (binary) or [c t h w k], scored in padded batches.

    The padding holds NaN and other labels; frames are in use unless `use` says otherwise.
    """
    logits, label = np.asarray(logits, np.float32), np.asarray(label, np.int32)
    kind = "binary" if logits.ndim == 4 else "semantic"
    logits = logits[..., None] if kind == "binary" else logits
    use = np.ones(label.shape[:2], bool) if use is None else np.asarray(use)
    number = len(label)
    batch_size = batch_size or number
    table = Table(number)
    for start in range(0, number, batch_size):
        index = np.arange(start, start + batch_size)
        parts = [_pad(x[start : start + batch_size], batch_size) for x in (logits, label)]
        put = jnp.asarray if sharding is None else lambda x: jax.device_put(x, sharding)
        scores = jax.device_get(_score(*map(put, parts), kind=kind, boundaries=True))
        rows = _pad(use[start : start + batch_size], batch_size)
        scores |= {"use": rows.astype(bool), "exists": np.ones_like(rows, bool)}
        table.add(scores, index, index < number)
    clips = clips or [Clip(str(i)) for i in range(number)]
    records: Records = table.records(kind, dict(enumerate(clips)))
    return records


def _pad(rows, length):
    fill = np.nan if rows.dtype == np.float32 else 1
    missing = np.full((length - len(rows), *rows.shape[1:]), fill, rows.dtype)
    return np.concatenate([rows, missing])
