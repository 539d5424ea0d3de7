"""AVESFormer: Efficient Transformer Design for Real-Time Audio-Visual Segmentation.

arXiv 2408.01708 (2024). No code was released: this is re-implemented from the published
description; where it is silent the choices are ours, each a field of the module.

Each frame has its own second of sound. Shapes for frames of 224 x 224, n = b * t:

    log-mel [n 96 64]       -> VGGish [n 128] -> Dense -> audio token [n 1 256]
    frame   [n 224 224 3]   -> ResNet-50 -> C2..C5 at strides 4, 8, 16, 32
    neck    C4 + C5         -> X0 [n 14 14 256], laterals C3 [n 28 28 128] and C2 [n 56 56 64]
    PQG   audio token + 16 prompts -> 2 transformer layers -> 17 tokens [n 17 256]
    ELF   3 convolution stages, 3 transformer stages       -> [n 196 256]
    head  + C3, + C2 -> [n 56 56 k] -> bilinear x4 -> logits [n 224 224 k]

The paper's two observations, and the fields that switch their cures off:

* Attention dissipation: a softmax over one key is 1, so cross-attention to the frame's single audio
  token gives every pixel the same vector. Cure: the prompt query generator (PQG) makes several
  audio-conditioned tokens. `num_prompts=0` goes back to the single token.
* Narrow attention: early decoder stages look at neighbours only. Cure: the early focus (ELF)
  decoder has convolutions there. `early_stages=0, late_stages=6`: transformers alone.

Our choices: positions, norms, widths of neck and head, PQG depth, and the size of the decoder's
map. It is the real-time model of the three: the decoder works at 1/16, its head refines that by C3
and C2 (`refine`): half the FLOPs of PCMANet. `decoder_stride=8, refine=()`: all at 1/8, twice it.

The auxiliary heads (`num_tags`, `num_semantic`, off by default) are not of the paper. Nor is what
makes a small network of it on two pretrained classifiers, off by default too
(configs/avesformer.py:size=lite): `standardise`, `audio_hidden`, `sound_drop`, and two that bring
names together, as maps that are added before the late stages and as discounts on the logits:

    evidence  ImageNet's classes in each cell of C5 x AudioSet's of the second
    match     names learnt of the picture, in each cell of C4 and C5 x the same, learnt of the sound
"""

import functools

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.data.evidence import make_table
from avs_jax.layers import losses
from avs_jax.layers.attention import FeedForward, MultiHeadAttention
from avs_jax.layers.auxiliary import AuxiliaryHeads, auxiliary_losses, by_clip
from avs_jax.layers.conv import Conv
from avs_jax.layers.discount import discount_logits, mark_nothing
from avs_jax.layers.evidence import EvidenceReader, evidence_map, look_for_sources, weigh_sounds
from avs_jax.layers.frames import flatten_clips, run_backbone
from avs_jax.layers.names import NameMatcher, PictureNames, count_names
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.positions import sine_positions_2d
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.layers.resize import resize_bilinear
from avs_jax.types import Array, Bool, Float, PyTree

# Two passes over the data: the one-pass variance (E[x^2] - E[x]^2) loses digits where the mean is
# large.
_group_norm = functools.partial(nn.GroupNorm, use_fast_variance=False)
_layer_norm = functools.partial(nn.LayerNorm, use_fast_variance=False)


class Neck(nn.Module):
    """Pyramid -> one map at 1/8 (or 1/16), and the laterals C2 and C3 for the head.

    Per level a 1x1 convolution and GroupNorm, summed from C5 down; and C4 and C5, standardised.
    """

    dim: int
    norm_groups: int
    stride: int
    fine: tuple[int, ...]  # widths of C3 and C2, where they are for the head alone
    standardise: bool
    regime: Regime
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        pyramid: tuple[Array, ...],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> tuple[Array, Array, Array, list[Array]]:
        def norm(x, name):
            return _group_norm(self.norm_groups, dtype=self.dtype, name=name)(x)

        widths = dict(zip((3, 2), self.fine, strict=False))
        lateral, standard_maps = [], []
        for level, maps in enumerate(pyramid, start=2):
            if self.standardise:
                standard = BatchNorm(
                    self.regime, use_scale=False, dtype=self.dtype, name=f"standard_c{level}"
                )
                maps = standard(maps, train, frame_mask)
            standard_maps.append(maps)
            width = widths.get(level, self.dim)
            x = Conv(width, (1, 1), dtype=self.dtype, name=f"lateral_c{level}")(maps)
            lateral.append(norm(x, f"lateral_c{level}_norm"))
        c2, c3, c4, c5 = lateral
        x = c4 + resize_bilinear(c5, c4.shape[1:3])
        if self.stride == 8:
            x = c3 + resize_bilinear(x, c3.shape[1:3])
        x = Conv(self.dim, (3, 3), dtype=self.dtype, name="smooth")(x)
        return norm(x, "smooth_norm"), c2, c3, standard_maps[2:]


class PromptQueryGenerator(nn.Module):
    """PQG: learnable prompts become tokens that speak of this frame's sound.

    audio token [n 1 d] -> tokens [n 1 + num_prompts d]. Without prompts the token itself.
    """

    num_prompts: int
    num_layers: int
    num_heads: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, audio: Float[Array, "n 1 d"]) -> Float[Array, "n tokens d"]:
        if not self.num_prompts:
            return audio
        n, _, dim = audio.shape
        prompts = self.param("prompts", nn.initializers.normal(0.5), (self.num_prompts, dim))
        prompts = jnp.broadcast_to(prompts.astype(audio.dtype), (n, self.num_prompts, dim))
        z = jnp.concatenate([audio, prompts], axis=1)
        for i in range(self.num_layers):
            x = _layer_norm(dtype=self.dtype, name=f"layer{i}_norm1")(z)
            z = z + MultiHeadAttention(
                self.num_heads, dtype=self.dtype, name=f"layer{i}_self_attention"
            )(x, x, x)
            x = _layer_norm(dtype=self.dtype, name=f"layer{i}_norm2")(z)
            z = z + FeedForward(self.hidden, dtype=self.dtype, name=f"layer{i}_ffn")(x)
        return z


class EarlyStage(nn.Module):
    """ELF, early: convolutions where attention would look at neighbours only."""

    norm_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Float[Array, "n h w d"]) -> Float[Array, "n h w d"]:
        dim = x.shape[-1]
        y = Conv(dim, (3, 3), dtype=self.dtype, name="conv1")(x)
        y = jax.nn.gelu(_group_norm(self.norm_groups, dtype=self.dtype, name="norm1")(y))
        y = Conv(dim, (3, 3), dtype=self.dtype, name="conv2")(y)
        return x + _group_norm(self.norm_groups, dtype=self.dtype, name="norm2")(y)


class LateStage(nn.Module):
    """ELF, late: pixels look at each other, then at the sound.

    The output of `cross_attention` is what dissipates (the same for every pixel) with one token.
    """

    num_heads: int
    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n s d"],
        tokens: Float[Array, "n tokens d"],
        positions: Float[Array, "s d"],
    ) -> Float[Array, "n s d"]:
        def norm(y, name):
            return _layer_norm(dtype=self.dtype, name=name)(y)

        value = norm(x, "norm1")
        query = value + positions
        x = x + MultiHeadAttention(self.num_heads, dtype=self.dtype, name="self_attention")(
            query, query, value
        )
        x = x + MultiHeadAttention(self.num_heads, dtype=self.dtype, name="cross_attention")(
            norm(x, "norm2"), tokens, tokens
        )
        return x + FeedForward(self.hidden, dtype=self.dtype, name="ffn")(norm(x, "norm3"))


class Head(nn.Module):
    """Decoder map + lateral C2 -> logits at 1/4."""

    widths: tuple[int, int]
    num_classes: int
    norm_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w d"], c2: Float[Array, "n h4 w4 d"]
    ) -> Float[Array, "n h4 w4 k"]:
        x = resize_bilinear(x, c2.shape[1:3]) + c2
        x = Conv(self.widths[0], (3, 3), dtype=self.dtype, name="conv1")(x)
        x = jax.nn.relu(_group_norm(self.norm_groups, dtype=self.dtype, name="norm1")(x))
        x = jax.nn.gelu(Conv(self.widths[1], (3, 3), dtype=self.dtype, name="conv2")(x))
        # The last layer in float32: the logits feed losses and thresholds.
        return Conv(self.num_classes, (1, 1), name="logits")(x.astype(jnp.float32))


class RefiningHead(nn.Module):
    """Decoder map at 1/16 + laterals C3 and C2 -> logits at 1/4, step by step.

    Widths fall as maps grow; coarse maps are narrowed before they are enlarged.
    """

    refine: tuple[int, int]  # widths at 1/8 and at 1/4
    widths: tuple[int, int]  # the last layer's alone
    num_classes: int
    norm_groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w d"],
        c2: Float[Array, "n h4 w4 d2"],
        c3: Float[Array, "n h2 w2 d3"],
    ) -> Float[Array, "n h4 w4 k"]:
        for width, lateral, stride in zip(self.refine, (c3, c2), (8, 4), strict=True):
            x = Conv(width, (1, 1), dtype=self.dtype, name=f"narrow{stride}")(x)
            x = jnp.concatenate([resize_bilinear(x, lateral.shape[1:3]), lateral], axis=-1)
            x = Conv(width, (3, 3), dtype=self.dtype, name=f"conv{stride}")(x)
            norm = _group_norm(self.norm_groups, dtype=self.dtype, name=f"norm{stride}")
            x = jax.nn.relu(norm(x))
        x = jax.nn.gelu(Conv(self.widths[1], (3, 3), dtype=self.dtype, name="last")(x))
        # Most pixels are silent: the first steps need not learn that. Float32 as in `Head`.
        rare = nn.initializers.constant(-2.0)
        logits = Conv(self.num_classes, (1, 1), bias_init=rare, name="logits")
        return logits(x.astype(jnp.float32))


@flax.struct.dataclass
class Seen:
    """What the picture alone gives: maps [n h/s w/s d], s = 16 or 8, and c2 [n h/4 w/4 d2].

    For a refining head also c3 [n h/8 w/8 d3]; for evidence sources [n h/32 w/32 rows]; for match
    names [n h/16 w/16 1+k]. size is (h, w).
    """

    maps: PyTree
    c2: PyTree
    size: tuple[int, int] = flax.struct.field(pytree_node=False)
    c3: PyTree = None
    sources: PyTree = None
    names: PyTree = None


class AVESFormer(nn.Module):
    """The whole network. Defaults as published where known, else ours (see above)."""

    backbone: nn.Module  # ResNet-50 fits the paper's parameter budget
    audio_backbone: nn.Module  # VGGish (published)
    num_classes: int = 1  # 1: does it sound? 71: AVSS
    dim: int = 256
    num_heads: int = 8
    num_prompts: int = 16  # 0: the audio token alone (attention dissipation)
    pqg_layers: int = 2
    pqg_hidden: int = 1024
    early_stages: int = 3  # published idea: convolutions early, transformer late
    late_stages: int = 3
    late_hidden: int = 2048
    decoder_stride: int = 16  # or 8
    refine: tuple[int, ...] = (128, 64)  # a RefiningHead of these widths at 1/8 and 1/4; (): Head
    head_widths: tuple[int, int] = (256, 128)
    norm_groups: int = 32
    # Of the small network, not of the paper:
    standardise: bool = False  # each channel of the pyramid, which may be linear and of any size
    audio_hidden: int = 0  # width of a layer between sound and token; 0: none
    sound_drop: float = 0.0  # of training's seconds have no audio token: evidence must do
    evidence: bool = False  # needs backbones with their classifiers
    trust: tuple[float, float] = (0.0, 0.0)  # in evidence, beside what is learnt: EvidenceReader
    match: float = 0.0  # weight of names that it learns for both: NameMatcher; 0: none
    match_drop: float = 0.0  # of training's seconds go without
    silence: float = 0.0  # no row of the evidence's table heard above this: nothing is marked
    mask_padded_frames: bool = True  # they stay out of batch statistics (ours: no code published)
    num_tags: int = 0  # auxiliary heads, training only; not of the paper
    num_semantic: int = 0
    remat: str | bool = "none"  # of the decoder's stages, see layers/remat.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        if self.decoder_stride not in (8, 16):
            raise errors.BadValueError(
                f"decoder_stride={self.decoder_stride} is not possible; use 8 or 16."
            )
        if self.refine and (len(self.refine) != 2 or self.decoder_stride != 16):
            raise errors.BadValueError(
                f"refine={self.refine} with decoder_stride={self.decoder_stride}: wanted widths at "
                "1/8 and 1/4, with decoder_stride=16; or () for none."
            )
        dtype = self.dtype
        stride, fine = self.decoder_stride, self.refine
        self.neck = Neck(
            self.dim, self.norm_groups, stride, fine, self.standardise, self.regime, dtype=dtype
        )
        if self.audio_hidden:
            self.audio_norm = _layer_norm(dtype=dtype)
            self.audio_dense = nn.Dense(self.audio_hidden, dtype=dtype)
        self.audio_token = nn.Dense(self.dim, dtype=dtype)
        self.pqg = PromptQueryGenerator(
            self.num_prompts, self.pqg_layers, self.num_heads, self.pqg_hidden, dtype=dtype
        )
        early_stage = rematerialised(EarlyStage, self.remat)
        for i in range(self.early_stages):
            setattr(self, f"early{i}", early_stage(self.norm_groups, dtype=dtype))
        late_stage = rematerialised(LateStage, self.remat)
        for i in range(self.late_stages):
            setattr(self, f"late{i}", late_stage(self.num_heads, self.late_hidden, dtype=dtype))
        head = functools.partial(RefiningHead, self.refine) if self.refine else Head
        self.head = head(self.head_widths, self.num_classes, self.norm_groups, dtype=dtype)
        if self.evidence:
            self.table = make_table()
            self.reader = EvidenceReader(self.dim, self.trust, dtype=dtype)
        if self.match:
            count = count_names(self.num_tags, self.num_semantic)
            self.picture_names, self.sound_names = PictureNames(count, dtype=dtype), nn.Dense(count)
            self.sound_names_drop = nn.Dropout(0.3)
            self.matcher = NameMatcher(self.dim, self.match, self.match_drop, dtype=dtype)
        self.auxiliary = AuxiliaryHeads(self.num_tags, self.num_semantic)

    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """Frames (normalised) and their log-mel patches -> {"logits": f32[b t h w k]}.

        h and w are multiples of 32. `frame_mask`: frames that exist, None = all. The others enter
        no batch statistics (`mask_padded_frames`); otherwise no frame sees another.
        With `train` and auxiliary heads, or with `match`, also "tags" [b t num_tags] and "semantic"
        [b t h/s w/s num_semantic], s = `decoder_stride` (16 with `match`).

        Raises BadValueError: a decoder_stride that the neck does not have, match without names.
        """
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(
        self,
        frames: Float[Array, "b t h w 3"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Seen:
        """What the picture alone gives, whatever the sound: up to the decoder's early stages."""
        return self._see(self.look(frames, frame_mask, train), frame_mask, train)

    def decide(
        self,
        seen: Seen,
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """What was seen, and log-mel patches -> as `__call__`."""
        heard = self.listen(log_mel, frame_mask, train)
        return self._decide(seen, heard, log_mel.shape[0], train)

    def look(
        self,
        frames: Float[Array, "b t h w 3"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """What the picture backbone gives: "c2" .. "c5" [b*t ...], with evidence also "sources"."""
        exists = frame_mask if self.mask_padded_frames else None
        pyramid = run_backbone(self.backbone, frames, exists, train)
        looked = {f"c{level}": maps for level, maps in enumerate(pyramid, start=2)}
        if self.evidence:
            cells = self.backbone.classify(pyramid[-1])
            looked["sources"] = look_for_sources(cells, self.table.members)
        return looked

    def listen(
        self,
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """What the sound backbone gives: "sound" [b*t d], with evidence also "rows" [b*t r]."""
        exists = frame_mask if self.mask_padded_frames else None
        heard = {"sound": run_backbone(self.audio_backbone, log_mel, exists, train)}
        if self.evidence:
            scores = self.audio_backbone.classify(heard["sound"])
            heard["rows"] = weigh_sounds(scores, self.table.sounds, self.table.weights)
        return heard

    def decide_features(
        self,
        features: dict[str, Float[Array, "b t ..."]],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """As `__call__`, from what `look` and `listen` gave before, in any type of floats."""
        num_clips = features["sound"].shape[0]
        flat = {name: flatten_clips(x).astype(self.dtype) for name, x in features.items()}
        return self._decide(self._see(flat, frame_mask, train), flat, num_clips, train)

    def _see(self, looked, frame_mask, train) -> Seen:
        exists = None
        if self.mask_padded_frames and frame_mask is not None:
            exists = frame_mask.reshape(-1)
        pyramid = tuple(looked[f"c{level}"] for level in range(2, 6))
        x, c2, c3, standard = self.neck(pyramid, train, exists)
        names = self.picture_names(*standard, train) if self.match else None
        for i in range(self.early_stages):
            x = getattr(self, f"early{i}")(x)
        size = tuple(4 * side for side in pyramid[0].shape[1:3])
        return Seen(x, c2, size, c3 if self.refine else None, looked.get("sources"), names)

    def _decide(self, seen, heard, num_clips, train) -> dict[str, Array]:
        sound = heard["sound"]
        if self.audio_hidden:
            sound = jax.nn.relu(self.audio_dense(self.audio_norm(sound)))
        token = self.audio_token(sound)[:, None]
        if train and self.sound_drop:
            kept = jax.random.bernoulli(
                self.make_rng("dropout"), 1 - self.sound_drop, (len(token), 1, 1)
            )
            token = jnp.where(kept, token, 0.0)
        tokens = self.pqg(token)

        x, discounts = seen.maps, []
        if self.evidence:
            found = evidence_map(seen.sources, heard["rows"])
            maps, discount = self.reader(found, heard["rows"])
            x = x + resize_bilinear(maps, x.shape[1:3])
            discounts.append(discount)
        if self.match:
            kept = self.sound_names_drop(sound.astype(jnp.float32), deterministic=not train)
            tags = self.sound_names(kept)
            maps, discount = self.matcher(seen.names, tags, train)
            x = x + resize_bilinear(maps, x.shape[1:3])
            discounts.append(discount)
        n, rows, columns, dim = x.shape
        x = x.reshape(n, rows * columns, dim)
        positions = sine_positions_2d(rows, columns, dim).reshape(-1, dim).astype(x.dtype)
        for i in range(self.late_stages):
            x = getattr(self, f"late{i}")(x, tokens, positions)
        x = x.reshape(n, rows, columns, dim)

        fine = (seen.c2, seen.c3) if self.refine else (seen.c2,)
        logits = self.head(x, *fine)
        for discount in discounts:
            logits = discount_logits(logits, resize_bilinear(discount, logits.shape[1:3]))
        logits = resize_bilinear(logits, seen.size)
        if self.evidence and self.silence and not train:
            heard_at_all = heard["rows"].max(-1) >= self.silence
            logits = jnp.where(heard_at_all[:, None, None, None], logits, mark_nothing(logits))
        outputs = {"logits": logits.reshape(num_clips, -1, *logits.shape[1:])}
        if train or self.is_initializing():
            if self.match:  # its names are what the auxiliary heads would learn
                outputs |= by_clip(num_clips, tags=tags, semantic=seen.names[..., 1:])
            else:
                outputs |= self.auxiliary(sound, seen.maps, num_clips)
        return outputs


def loss(
    outputs: dict[str, Array],
    batch: dict[str, Array],
    *,
    bce_weight: float = 1.0,
    ce_weight: float = 1.0,
    dice_weight: float = 1.0,
    balanced_ce_weight: float = 0.0,
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
) -> dict[str, losses.Term]:
    """Cross-entropy + Dice on the labelled frames (weights ours), and the auxiliary heads' losses.

    One class: binary cross-entropy and Dice of "something sounds here" (`bce_weight`). More:
    softmax cross-entropy (`ce_weight`) and Dice over the classes present in a frame, and on request
    the cross-entropy that is balanced over these classes (`balanced_ce_weight`, ours). Over frames.
    """
    logits, label = outputs["logits"], batch["label"]
    frames = batch["label_mask"] & batch["frame_mask"]
    if logits.shape[-1] == 1:
        sounding = (label > 0).astype(jnp.float32)
        values = {
            "bce": (losses.bce_with_logits(logits[..., 0], sounding), bce_weight),
            "dice": (losses.dice(logits[..., 0], sounding), dice_weight),
        }
    else:
        values = {
            "ce": (losses.cross_entropy(logits, label), ce_weight),
            "dice": (losses.dice_present(logits, label), dice_weight),
        }
        if balanced_ce_weight:
            balanced = losses.balanced_cross_entropy(logits, label)
            values["balanced_ce"] = (balanced, balanced_ce_weight)
    terms = {name: losses.make_term(x, frames, weight) for name, (x, weight) in values.items()}
    return terms | auxiliary_losses(outputs, label, frames, tag_weight, semantic_weight)
