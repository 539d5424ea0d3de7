"""PCMANet: progressive confident masking attention network for audio-visual segmentation.

Paper: "Progressive Confident Masking Attention Network for Audio-Visual Segmentation"
(arXiv 2406.02345); published code: github.com/PrettyPlate/PCMANet at d3df7b5.

Shapes through the net at 224 x 224, n = b * t, coarse to fine (stage 4, 3, 2, 1):

    picture    pyramid [n 7 7 .] [n 14 14 .] [n 28 28 .] [n 56 56 .] -> 3x3 convolution to 256
    sound      log-mel [n 96 64] -> frozen VGGish [n 128] -> one token a frame [n 256]
    AVGA       the map, each group of channels weighted by its cosine with the sound
    QSCA       the map as 7, 7, 14, 28 squared tokens: uncertain ones ask the clip's sounds, the
               sound asks all pixels of the clip; -> guidance map, and the next stage's sound
    GF         the map + coarser decoding + guidance;  HEAD  logits of the stage
    CIM        1 where these logits are uncertain: the tokens that still ask in the next stage

The four logits at frame size are all supervised; the finest is the answer. Masked attention is
computed for all tokens and multiplied by the mask: equal to gathering the selected tokens (a test
says so) with static shapes, so the whole network is one jit at any share of selected tokens.

The default is what the published code does, which is not always what the paper says. Each
correction is a field, False by default; `configs/pcmanet.py:corrected=true` sets them all:

    restore_token_order                the code reshapes tokens [s c] to a map [c h w] without
                                       transposing, which mixes space and channels
    gradient_through_masked_attention  the code writes the attention of the masked stages (3, 2, 1)
                                       under no_grad: their queries, keys and values never learn
    mask_padded_frames                 in the code frames that do not exist (AVSS) take part in the
                                       attention of their clip and in the statistics of BatchNorm

Deviations that change no output: parameters that the code never uses do not exist here (stage 4's
second fusion convolution, ResNet's second branch of layers 3 and 4). Flax's running variance is the
biased one (PyTorch multiplies by n / (n - 1)): less than 1e-3 from 1000 pixels a batch on.
"""

from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.layers import losses
from avs_jax.layers.auxiliary import AuxiliaryHeads, auxiliary_losses
from avs_jax.layers.frames import flatten_clips, run_backbone
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.layers.resize import resize_bilinear
from avs_jax.layers.torch_init import Conv, Dense
from avs_jax.types import Array, Bool, Float, PyTree

STAGES = (4, 3, 2, 1)  # coarse to fine: strides 32, 16, 8, 4


class ConvNormRelu(nn.Module):
    """Convolution with bias, BatchNorm, ReLU."""

    features: int
    kernel: int = 3
    groups: int = 1
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h w e"]:
        """`frame_mask`: the frames that batch statistics are taken over; None: all."""
        x = Conv(self.features, self.kernel, self.groups, self.dtype, name="conv")(x)
        norm = BatchNorm(self.regime, dtype=self.dtype, name="norm")
        return nn.relu(norm(x, train, frame_mask))


def _length(x):
    """Euclidean along the last axis, at least 1e-12; the gradient at zero is zero, not NaN."""
    squared = jnp.sum(jnp.square(x), -1, keepdims=True)
    positive = squared > 0
    length = jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)
    return jnp.maximum(length, 1e-12)


class AVGA(nn.Module):
    """Audio-visual group attention: each group of channels times its cosine with the sound."""

    groups: int
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        sound: Float[Array, "n d"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h w c"]:
        channels = x.shape[-1]
        conv = partial(ConvNormRelu, channels, 1, regime=self.regime, dtype=self.dtype)
        x = conv(groups=self.groups, name="seq1")(x, train, frame_mask)
        # Two linear layers with nothing between them, as published.
        guide = Dense(channels, dtype=self.dtype, name="fc0")(sound)
        guide = nn.relu(Dense(channels // self.groups, dtype=self.dtype, name="fc1")(guide))
        grouped = x.reshape(*x.shape[:-1], self.groups, -1)
        cosine = jnp.einsum("nhwgc,nc->nhwg", grouped, guide / _length(guide))
        weighted = grouped * (cosine[..., None] / _length(grouped))
        return conv(name="seq2")(weighted.reshape(x.shape), train, frame_mask)


class CrossModalAttention(nn.Module):
    """Sounds ask all pixels of their clip, selected pixels ask all sounds of their clip.

    Added to the input. A pixel that is not selected gets the bias of the output projection alone.
    `gradient_through_mask` False cuts the gradient of selected pixels, as published.
    """

    num_heads: int
    gradient_through_mask: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        sounds: Float[Array, "b t d"],
        pixels: Float[Array, "b t s d"],
        select: Bool[Array, "b t s"] | None = None,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t s d"]]:
        """`select` None: all pixels ask. `frame_mask`: frames that may be attended; None: all."""
        dim = sounds.shape[-1]
        norm = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype, name="norm")
        project = partial(Dense, use_bias=False, dtype=self.dtype)
        a, v = norm(sounds), norm(pixels)
        a = project(3 * dim, name="a_to_qkv")(a).reshape(*a.shape[:-1], 3, self.num_heads, -1)
        q_a, k_a, v_a = jnp.moveaxis(a, -3, 0)  # each [b t h e]
        q_v = project(dim, name="v_to_q")(v).reshape(*v.shape[:-1], self.num_heads, -1)
        v = project(2 * dim, name="v_to_kv")(v).reshape(*v.shape[:-1], 2, self.num_heads, -1)
        k_v, v_v = jnp.moveaxis(v, -3, 0)  # each [b t s h e]
        bias = jnp.zeros((1, 1, 1, 1))  # [b 1 1 t]
        if frame_mask is not None:  # finite, so that a clip without frames stays finite
            bias = jnp.where(frame_mask, 0.0, jnp.finfo(jnp.float32).min)[:, None, None, :]
        scale = (dim // self.num_heads) ** -0.5

        scores = jnp.einsum("bqhe,btshe->bhqts", q_a, k_v).astype(jnp.float32) * scale
        weights = jax.nn.softmax(scores + jnp.expand_dims(bias, -1), axis=(-2, -1))
        attended_pixels = jnp.einsum("bhqts,btshe->bqhe", weights.astype(self.dtype), v_v)

        scores = jnp.einsum("bqshe,bthe->bhqst", q_v, k_a).astype(jnp.float32) * scale
        weights = jax.nn.softmax(scores + jnp.expand_dims(bias, -2), axis=-1)
        attended_sounds = jnp.einsum("bhqst,bthe->bqshe", weights.astype(self.dtype), v_a)
        if select is not None:
            attended_sounds *= select[..., None, None].astype(attended_sounds.dtype)
            if not self.gradient_through_mask:
                attended_sounds = jax.lax.stop_gradient(attended_sounds)

        out = Dense(dim, dtype=self.dtype, name="to_out")
        return (
            sounds + out(attended_pixels.reshape(sounds.shape)),
            pixels + out(attended_sounds.reshape(pixels.shape)),
        )


def pool_tokens(x: Float[Array, "n h w c"], stride: int) -> Float[Array, "n hs ws c"]:
    """Means over stride x stride pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // stride, stride, w // stride, stride, c).mean((2, 4))


def lay_out(
    tokens: Float[Array, "n s c"], grid: tuple[int, int], restore_token_order: bool
) -> Float[Array, "n hs ws c"]:
    """Tokens as a map of rows x columns; the published code reads [s c] as [c rows columns]."""
    n, _, c = tokens.shape
    if restore_token_order:
        return tokens.reshape(n, *grid, c)
    return jnp.moveaxis(tokens.reshape(n, c, *grid), 1, -1)


class QSCA(nn.Module):
    """Query-selected cross-attention over the frames of a clip -> guidance map, sound.

    stride: pixels of the map per token; tokens are means over stride x stride pixels.
    restore_token_order: see the head of this file.
    """

    num_heads: int
    stride: int
    restore_token_order: bool = False
    gradient_through_mask: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        sound: Float[Array, "b t c"],
        select: Bool[Array, "n hs ws"] | None = None,
        frame_mask: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "n h w c"], Float[Array, "b t c"]]:
        (_, h, w, c), (b, t, _) = x.shape, sound.shape
        pooled = pool_tokens(x, self.stride)
        sound = Dense(c, dtype=self.dtype, name="audio_fc")(sound)
        tokens = Dense(c, dtype=self.dtype, name="embed")(pooled)
        attention = CrossModalAttention(
            self.num_heads, self.gradient_through_mask, self.dtype, name="attention"
        )
        select = None if select is None else select.reshape(b, t, -1)
        sound, tokens = attention(sound, tokens.reshape(b, t, -1, c), select, frame_mask)
        tokens = tokens.reshape(b * t, -1, c)
        guidance = lay_out(tokens, pooled.shape[1:3], self.restore_token_order)
        return resize_bilinear(guidance, (h, w)), sound


def uncertain_mask(logits: Float[Array, "*n k"], confidence: float = 0.99) -> Bool[Array, "*n"]:
    """CIM, the confidence-induced mask: True where a pixel is still uncertain.

    The probability (of sound for k = 1, of the likeliest class else) lies in [1 - confidence,
    confidence]. 0.99 is published.
    """
    logits = logits.astype(jnp.float32)
    if logits.shape[-1] == 1:
        p = jax.nn.sigmoid(logits[..., 0])
    else:
        p = jax.nn.softmax(logits).max(-1)
    return (p >= 1 - confidence) & (p <= confidence)


class GF(nn.Module):
    """Guided fusion of a stage's map with the coarser stage's decoding and with the guidance."""

    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        guidance: Float[Array, "n h w c"],
        coarser: Float[Array, "n hc wc c"] | None = None,
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h w c"]:
        def conv(name, maps):
            module = ConvNormRelu(x.shape[-1], regime=self.regime, dtype=self.dtype, name=name)
            return module(maps, train, frame_mask)

        if coarser is None:
            return conv("seq3", x + conv("seq1", guidance))
        coarser = resize_bilinear(coarser, x.shape[1:3])
        return conv("seq3", x + conv("seq1", coarser) + conv("seq2", guidance))


class Head(nn.Module):
    """Logits of a stage at its own resolution."""

    hidden: int
    num_classes: int
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        train: bool = False,
        frame_mask: Bool[Array, "n"] | None = None,
    ) -> Float[Array, "n h w k"]:
        conv = ConvNormRelu(self.hidden, regime=self.regime, dtype=self.dtype, name="seq")
        x = conv(x, train, frame_mask)
        return Conv(self.num_classes, 1, dtype=self.dtype, name="out")(x).astype(jnp.float32)


@flax.struct.dataclass
class Seen:
    """What the picture alone gives: {stage: map [n h/s w/s d]}; size = (h, w)."""

    maps: PyTree
    size: tuple[int, int] = flax.struct.field(pytree_node=False)


class PCMANet(nn.Module):
    """The whole network. The defaults are those of the published code for PVTv2-B5."""

    backbone: nn.Module  # published: ResNet-50 and PVTv2-B5
    audio_backbone: nn.Module  # published: VGGish
    num_classes: int = 1  # 1: does it sound? 71: AVSS
    dim: int = 256
    num_heads: int = 8
    groups: int = 8  # of AVGA; published: 4 for S4 with ResNet-50, 8 elsewhere
    head_width: int = 128  # hidden channels of the output heads
    confidence: float = 0.99  # beyond it, on either side, a token asks no more
    restore_token_order: bool = False  # corrections of the published code, see the file's docstring
    gradient_through_masked_attention: bool = False
    mask_padded_frames: bool = False
    masking: bool = True  # False: every token asks at every stage (for comparison)
    num_tags: int = 0  # auxiliary heads, training only; not of the paper
    num_semantic: int = 0
    remat: str | bool = "none"  # of the decoder's blocks, see layers/remat.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32

    def setup(self):
        for name in ("num_heads", "groups"):
            if self.dim % getattr(self, name):
                raise errors.BadValueError(
                    f"dim={self.dim} is not divisible by {name}={getattr(self, name)}; "
                    "use a divisor of dim."
                )
        common = {"regime": self.regime, "dtype": self.dtype}
        avga = rematerialised(AVGA, self.remat, static_argnums=(3,))
        qsca = rematerialised(QSCA, self.remat)
        gf = rematerialised(GF, self.remat, static_argnums=(4,))
        head = rematerialised(Head, self.remat, static_argnums=(2,))
        self.audio_fc = Dense(self.dim, dtype=self.dtype)
        for stage in STAGES:
            blocks = {
                "conv": ConvNormRelu(self.dim, **common),
                "avga": avga(self.groups, **common),
                "qsca": qsca(
                    self.num_heads,
                    1 if stage == 4 else 2,
                    self.restore_token_order,
                    self.gradient_through_masked_attention,
                    self.dtype,
                ),
                "gf": gf(**common),
                "output_conv": head(self.head_width, self.num_classes, **common),
            }
            for name, block in blocks.items():
                setattr(self, f"{name}{stage}", block)
        self.auxiliary = AuxiliaryHeads(self.num_tags, self.num_semantic)

    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, PyTree]:
        """Frames (normalised) and their log-mel patches -> logits and what led to them.

        Args:
          frames: h and w multiples of 32.
          frame_mask: frames that exist; None = all. The others' features are set to zero first.

        Returns:
          logits: f32[b t h w k], those of stage 1.
          outputs: the logits of stages 1, 2, 3, 4 at frame size; all are supervised.
          stage_logits: the same at their own resolution, h/4 .. h/32.
          masks: bool[b t h/s w/s] made from stages 4, 3, 2 (s = 32, 16, 8): True = uncertain, asks
            in the next stage.
          kept: f32[3], share of True in each of the masks.
          tags, semantic: with `train` and auxiliary heads, see `layers/auxiliary.py`.

        Raises:
          BadValueError: sizes that do not divide.
        """
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(
        self,
        frames: Float[Array, "b t h w 3"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Seen:
        """What the picture alone gives, whatever the sound: the four maps that AVGA takes."""
        height, width = frames.shape[2:4]
        if height % 32 or width % 32:
            raise errors.BadValueError(
                f"frames are {height} x {width}; PCMANet needs multiples of 32, its "
                "coarsest stride: resize or crop them."
            )
        counted = self._counted(frame_mask)
        pyramid = run_backbone(self.backbone, frames, counted, train)
        counted = None if counted is None else counted.reshape(-1)
        maps = {}
        for stage, x in enumerate(pyramid, start=1):
            x = getattr(self, f"conv{stage}")(x, train, counted)
            if frame_mask is not None:
                x = x * frame_mask.reshape(-1, 1, 1, 1)
            maps[stage] = x
        return Seen(maps, (height, width))

    def decide(
        self,
        seen: Seen,
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, PyTree]:
        """What was seen, and log-mel patches -> as `__call__`."""
        b, t = log_mel.shape[:2]
        counted = self._counted(frame_mask)
        sound = run_backbone(self.audio_backbone, log_mel, counted, train)
        if frame_mask is not None:
            sound = sound * frame_mask.reshape(-1, 1)
        token = self.audio_fc(sound).reshape(b, t, -1)
        logits, masks = self._decode(seen.maps, token, counted, train)

        def unfold(x):
            return x.reshape(b, t, *x.shape[1:])

        outputs = [unfold(resize_bilinear(logits[k], seen.size)) for k in (1, 2, 3, 4)]
        masks = tuple(unfold(mask) for mask in masks)
        counted = jnp.ones((b, t), bool) if counted is None else counted
        counted = counted[..., None, None]
        found = {
            "logits": outputs[0],
            "outputs": tuple(outputs),
            "stage_logits": tuple(unfold(logits[k]) for k in (1, 2, 3, 4)),
            "masks": masks,
            "kept": jnp.stack([m.mean(where=jnp.broadcast_to(counted, m.shape)) for m in masks]),
        }
        if train or self.is_initializing():
            found |= self.auxiliary(sound, seen.maps[2], b)
        return found

    def _counted(self, frame_mask):
        """The frames that take part in attention and batch statistics; None: all."""
        return frame_mask if self.mask_padded_frames else None

    def _decode(self, maps, token, frame_mask, train):
        """Maps by stage, the sound's token [b t d] -> logits by stage, masks of stages 4, 3, 2."""
        counted = None if frame_mask is None else frame_mask.reshape(-1)
        logits, masks = {}, []
        sound, decoded, mask = token, None, None
        for stage in STAGES:
            avga, qsca, gf, head = (
                getattr(self, f"{name}{stage}") for name in ("avga", "qsca", "gf", "output_conv")
            )
            x = avga(maps[stage], flatten_clips(token), train, counted)
            guidance, sound = qsca(x, sound, mask, frame_mask)
            decoded = gf(x, guidance, decoded, train, counted)
            logits[stage] = head(decoded, train, counted)
            if stage == 1:
                break
            uncertain = uncertain_mask(logits[stage], self.confidence)
            if mask is not None:  # once certain, always certain
                uncertain &= mask.repeat(2, axis=1).repeat(2, axis=2)
            masks.append(uncertain)
            mask = uncertain if self.masking else None
        return logits, masks


def loss(
    outputs: dict[str, PyTree],
    batch: dict[str, Array],
    *,
    stage_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0),
    balanced_ce_weight: float = 0.0,
    tag_weight: float = 0.0,
    semantic_weight: float = 0.0,
) -> dict[str, losses.Term]:
    """As published: of the four outputs, over the labelled frames (S4: `label_mask` on the first).

    One class: binary cross-entropy (logarithm clamped at -100) + soft IoU. More: cross-entropy.
    Ours: the auxiliary heads, and with classes `balanced_ce_weight` times the cross-entropy that is
    balanced over the classes of a frame, of each output.

    Returns:
      "output1".."output4" (and "balanced1".."balanced4"), "tags", "semantic"; "kept4".."kept2":
      share of tokens that the mask of that stage keeps, only logged.
    """
    label = batch["label"]
    frames = batch["label_mask"] & batch["frame_mask"]
    sounding = (label > 0).astype(jnp.float32)
    terms = {}
    for stage, (logits, weight) in enumerate(
        zip(outputs["outputs"], stage_weights, strict=True), 1
    ):
        if logits.shape[-1] == 1:
            logits = logits[..., 0]
            value = losses.bce_clamped(logits, sounding) + losses.soft_iou(logits, sounding)
        else:
            value = losses.cross_entropy(logits, label)
            if balanced_ce_weight:
                balanced = losses.balanced_cross_entropy(logits, label)
                balanced = losses.make_term(balanced, frames, weight * balanced_ce_weight)
                terms[f"balanced{stage}"] = balanced
        terms[f"output{stage}"] = losses.make_term(value, frames, weight)
    for stage, mask in zip((4, 3, 2), outputs["masks"], strict=True):
        share = mask.mean((2, 3), dtype=jnp.float32)
        terms[f"kept{stage}"] = losses.make_term(share, batch["frame_mask"], 0.0)
    return terms | auxiliary_losses(outputs, label, frames, tag_weight, semantic_weight)
