"""CATR: Combinatorial-Dependence Audio-Queried Transformer for Audio-Visual Video Segmentation.

Published code: github.com/aspirinone/CATR.github.io at aa3615c (a descendant of MTTR and AVSBench).
Of the paper we know the abstract and figure 2, which ships with the code. The two differ, so there
are two modes. Shapes for 224 x 224, n = b * t; 784 visual tokens a frame, of stage 2:

    frame   [n 224 224 3] -> PVTv2-B5 (or ResNet-50) -> 4 stages -> dilated heads [n . . 256]
    log-mel [n 96 64]     -> VGGish (frozen) [n 128] -> Dense, norm -> audio tokens [b t 256]

    mode="reference": what the code does      mode="paper": what the figure shows
    each frame has all t audio tokens         each frame has its own one
    a spatial encoder, and beside it one      blocks in sequence: spatial fusion (self-attention),
      whose blocks also fuse sound and          then temporal fusion of sound and picture
      picture over time
    picture <- sound, then sound <- the       both directions in parallel
      result
    one gate per frame and block, with        one gate per frame, block and channel: the sigmoid of
      convolutions around                       a convolution's mean
    50 learned queries                        50 learned queries, their content is the audio token
    decoder memory: the spatial encoder       decoder memory: the gated maps
    mask features: from the gated maps down   mask features: a pyramid from stage 4 up to 1/4, the
      to stage 4, up to 1/16 [n 14 14 64]       gated maps in it at 1/8 [n 56 56 64]

    decoder [n 50 256] -> per query: class, and a kernel of 64 numbers whose product with the mask
    features is the query's mask. A frame's answer is the mask of its most likely query.

Both modes share the blocks (DETR's post-norm layers), the fusion (a token is multiplied by the
square of what it attended to, as the code does: no residual, no norm) and the criterion. What the
figure leaves open is our choice in `paper`: which maps a gate reads, how the sound enters the
queries, the order of the pyramid (comments in the code claim masks of 56 x 56, i.e. 1/4).

Deviations that change no published number: any number of frames (the code has 5 hard-coded);
parameters that never reach an output do not exist (74 tensors, see `convert`); `frame_mask` keeps
frames that do not exist out of every attention. Two that change training from scratch: no dropout
on attention weights (the code has 0.1 there too), which are never all in memory; linear layers and
1x1 convolutions outside of the transformer start as Linen's do, not as PyTorch's. AVSS is ours, see
`catr_criterion`.
Published for PVTv2-B5 (mIoU, by third parties): S4 81.4, MS3 59.0, AVSS 32.8.
"""

import functools
import itertools
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from avs_jax import errors
from avs_jax.layers.attention import MultiHeadAttention
from avs_jax.layers.auxiliary import AuxiliaryHeads
from avs_jax.layers.dropout import Dropout
from avs_jax.layers.frames import flatten_clips, run_backbone
from avs_jax.layers.norm import BatchNorm
from avs_jax.layers.positions import sine_positions_2d
from avs_jax.layers.regime import Regime
from avs_jax.layers.remat import rematerialised
from avs_jax.layers.resize import resize_bilinear
from avs_jax.models.catr_criterion import answer, loss, query_attention
from avs_jax.types import Array, Bool, Float, PyTree

__all__ = ["CATR", "answer", "loss", "query_attention"]

MODES = ("reference", "paper")
EPSILON = 1e-5  # PyTorch's default, of every norm but the audio tokens'
AUDIO_EPSILON = 1e-12  # as published
xavier = nn.initializers.xavier_uniform()
# Query, key and value were one matrix [3d d] when Xavier's bound was taken.
packed_xavier = nn.initializers.variance_scaling(0.5, "fan_in", "uniform")
_attention = functools.partial(MultiHeadAttention, projection_init=packed_xavier)
_conv3 = functools.partial(nn.Conv, kernel_size=(3, 3), padding=1)
_dense = functools.partial(nn.Dense, kernel_init=xavier)
# Two passes, see backbones/pvt_v2.py.
_layer_norm = functools.partial(nn.LayerNorm, epsilon=EPSILON, use_fast_variance=False)


class DilatedHead(nn.Module):
    """Sum of four 3x3 convolutions that look 3, 6, 12 and 18 cells far."""

    dim: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w d"]:
        def conv(i, dilation):
            return nn.Conv(
                self.dim,
                (3, 3),
                padding=dilation,
                kernel_dilation=dilation,
                kernel_init=nn.initializers.normal(0.01),
                dtype=self.dtype,
                name=f"conv{i}",
            )

        return sum(conv(i, dilation)(x) for i, dilation in enumerate((3, 6, 12, 18)))


class EncoderLayer(nn.Module):
    """DETR's post-norm layer: self-attention with positions on query and key, feed-forward."""

    num_heads: int
    hidden: int
    dropout: float
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n s d"],
        positions: Float[Array, "s d"],
        key_mask: Bool[Array, "n s"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n s d"]:
        dtype, drop = self.dtype, Dropout(self.dropout, regime=self.regime)
        query = x + positions
        y = _attention(self.num_heads, dtype=dtype, name="self_attention")(
            query, query, x, key_mask
        )
        x = _layer_norm(dtype=dtype, name="norm1")(x + drop(y, train))

        flat = x.reshape(-1, x.shape[-1])  # two dimensions, see MultiHeadAttention
        y = drop(_relu(_dense(self.hidden, dtype=dtype, name="linear1")(flat)), train)
        y = _dense(x.shape[-1], dtype=dtype, name="linear2")(y).reshape(x.shape)
        return _layer_norm(dtype=dtype, name="norm2")(x + drop(y, train))


class DecoderLayer(nn.Module):
    """DETR's post-norm layer: queries look at each other, then at the memory of their frame."""

    num_heads: int
    hidden: int
    dropout: float
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n q d"],
        queries: Float[Array, "q d"],
        memory: Float[Array, "n s d"],
        positions: Float[Array, "s d"],
        key_mask: Bool[Array, "n s"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n q d"]:
        dtype, drop = self.dtype, Dropout(self.dropout, regime=self.regime)
        y = _attention(self.num_heads, dtype=dtype, name="self_attention")(
            x + queries, x + queries, x
        )
        x = _layer_norm(dtype=dtype, name="norm1")(x + drop(y, train))
        y = _attention(self.num_heads, dtype=dtype, name="cross_attention")(
            x + queries, memory + positions, memory, key_mask
        )
        x = _layer_norm(dtype=dtype, name="norm2")(x + drop(y, train))

        flat = x.reshape(-1, x.shape[-1])
        y = drop(_relu(_dense(self.hidden, dtype=dtype, name="linear1")(flat)), train)
        y = _dense(x.shape[-1], dtype=dtype, name="linear2")(y).reshape(x.shape)
        return _layer_norm(dtype=dtype, name="norm3")(x + drop(y, train))


def _relu(x):
    # As a maximum XLA's CPU program keeps its zeros, the size of x, in memory.
    return jnp.where(x <= 0, 0.0, x)


class TemporalBlock(nn.Module):
    """An encoder layer within each frame, then sound and picture multiply each other over the clip.

    Takes the visual tokens and the audio tokens that each frame sees: its own one (a = 1, `paper`)
    or a copy of all t (a = t, `reference`; of what the copies become only the first frame's is
    used, as published). Returns both, the audio tokens as one per frame. The `last` block has no
    way from picture to sound: nothing would read it.
    """

    num_heads: int
    hidden: int
    dropout: float
    parallel: bool  # both directions from the same inputs
    last: bool
    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        visual: Float[Array, "b t s d"],
        audio: Float[Array, "b t a d"],
        positions: Float[Array, "s d"],
        frame_mask: Bool[Array, "b t"] | None,
        train: bool = False,
    ) -> tuple[Float[Array, "b t s d"], Float[Array, "b t d"]]:
        b, t, s, d = visual.shape
        layer = EncoderLayer(
            self.num_heads, self.hidden, self.dropout, self.regime, self.dtype, name="layer"
        )
        x = layer(*_frame_tokens(visual, audio, positions, frame_mask), train)
        x = x.reshape(b, t, -1, d)
        sound = x[:, :, s] if audio.shape[2] == 1 else x[:, 0, s:]  # [b t d]
        pixels = x[:, :, :s].reshape(b, t * s, d)

        to_visual = _attention(self.num_heads, dtype=self.dtype, name="audio_to_visual")
        attended = to_visual(pixels, sound, sound, frame_mask)
        fused = pixels * attended * attended
        if not self.last:
            to_audio = _attention(self.num_heads, dtype=self.dtype, name="visual_to_audio")
            value = pixels if self.parallel else fused
            key = value + jnp.tile(positions, (t, 1))
            key_mask = None if frame_mask is None else frame_mask.repeat(s, axis=1)
            attended = to_audio(sound, key, value, key_mask)
            sound = sound * attended * attended
        return fused.reshape(b, t, s, d), sound


def _frame_tokens(visual, audio, positions, frame_mask):
    """Each frame's tokens [n s+a d], their positions (zero for sound), which of them exist."""
    b, t, s, d = visual.shape
    a = audio.shape[2]
    tokens = jnp.concatenate([visual, audio], axis=2).reshape(b * t, s + a, d)
    positions = jnp.concatenate([positions, jnp.zeros((a, d), positions.dtype)])
    if frame_mask is None or a == 1:
        return tokens, positions, None
    own = jnp.ones((b, t, s), bool)
    clip = jnp.broadcast_to(frame_mask[:, None], (b, t, a))
    return tokens, positions, jnp.concatenate([own, clip], axis=2).reshape(b * t, s + a)


class FrameGates(nn.Module):
    """`reference`: one gate per frame for the second and the third block, convolutions around them.

    As published: the second gate is not computed from its blocks but from the first (a sigmoid of a
    sigmoid, mean of its two channels), and of the first only one channel is used.
    """

    regime: Regime = Regime()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        blocks: list[Float[Array, "n h w d"]],
        frame_mask: Bool[Array, "n"] | None = None,
        train: bool = False,
    ) -> Float[Array, "n h w d"]:
        first, second, third = blocks
        conv = functools.partial(_conv3, kernel_init=xavier, dtype=self.dtype)

        def smooth(x, i):
            norm = BatchNorm(self.regime, dtype=self.dtype, name=f"norm{i}")
            x = norm(conv(x.shape[-1], name=f"conv{i}")(x), train, frame_mask)
            return nn.PReLU(negative_slope_init=0.25, name=f"prelu{i}")(x)

        pair = jnp.concatenate([first, second], axis=-1)
        gates = jax.nn.sigmoid(conv(2, name="gate")(pair)).mean((1, 2))  # [n 2]
        again = jax.nn.sigmoid(gates).mean(1)
        x = smooth(gates[:, 0, None, None, None] * second, 1)
        return smooth(x + again[:, None, None, None] * third, 2)


class ChannelGates(nn.Module):
    """`paper`: block i > 0 weighted by a gate per channel made of blocks i - 1 and i; their sum."""

    dtype: Any

    @nn.compact
    def __call__(self, blocks: list[Float[Array, "n h w d"]]) -> Float[Array, "n h w d"]:
        total = 0.0
        for i, (before, block) in enumerate(itertools.pairwise(blocks), start=1):
            conv = _conv3(block.shape[-1], kernel_init=xavier, dtype=self.dtype, name=f"gate{i}")
            gate = conv(jnp.concatenate([before, block], axis=-1)).mean((1, 2))
            total += jax.nn.sigmoid(gate)[:, None, None] * block
        return total


class PixelDecoder(nn.Module):
    """Four convolutions; after the first three a map may join in, whose grid is then the grid."""

    widths: tuple[int, ...]
    out_dim: int
    norm_groups: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w d"], laterals: list[Float[Array, "n _ _ _"] | None]
    ) -> Float[Array, "n _ _ e"]:
        init = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")  # kaiming, a = 1
        conv = functools.partial(_conv3, kernel_init=init, dtype=self.dtype)
        adapters = itertools.count(1)
        steps = zip(self.widths, [None, *laterals], strict=True)
        for i, (width, lateral) in enumerate(steps, start=1):
            if lateral is not None:
                name = f"adapter{next(adapters)}"
                side = nn.Conv(x.shape[-1], (1, 1), kernel_init=init, dtype=self.dtype, name=name)
                x = _resize_nearest(x, lateral.shape[1:3]) + side(lateral)
            x = conv(width, name=f"conv{i}")(x)
            norm = nn.GroupNorm(
                self.norm_groups,
                epsilon=EPSILON,
                use_fast_variance=False,
                dtype=self.dtype,
                name=f"norm{i}",
            )
            x = jax.nn.relu(norm(x))
        return conv(self.out_dim, name="out")(x)


def _resize_nearest(x, size):
    """Cell i is cell floor(i * old / new), as in PyTorch (jax.image.resize takes the middle)."""
    rows, columns = (
        jnp.arange(new) * old // new for new, old in zip(size, x.shape[1:3], strict=True)
    )
    return x[:, rows][:, :, columns]


@flax.struct.dataclass
class Seen:
    """What the picture alone gives: visual tokens as maps [n h/8 w/8 d], {stage: map [n . . d]}.

    size = (h, w); maps are of the enlarged frames.
    """

    maps: PyTree
    stages: PyTree
    size: tuple[int, int] = flax.struct.field(pytree_node=False)


class CATR(nn.Module):
    """The whole network. Defaults as published; what the code leaves open is as in MTTR."""

    backbone: nn.Module  # PVTv2-B5; ResNet-50 in the paper's tables
    audio_backbone: nn.Module  # VGGish
    num_classes: int = 1  # 1: does it sound? 71: AVSS, background is one of them
    mode: str = "reference"  # or "paper"
    input_scale: int = 1  # frames are enlarged first; published: 2, from 224 to 448
    dim: int = 256
    num_heads: int = 8
    hidden: int = 2048
    encoder_layers: int = 3
    decoder_layers: int = 3
    num_queries: int = 50
    pixel_widths: tuple[int, ...] = (256, 128, 64, 32)
    mask_dim: int = 64
    norm_groups: int = 8
    dropout: float = 0.1
    empty_if_silent: bool = False  # ours: empty mask if the frame's query is rather "no object"
    mask_padded_frames: bool = False  # out of the backbones' batch statistics too
    num_tags: int = 0  # auxiliary heads, training only; not of the paper
    num_semantic: int = 0
    remat: str | bool = "none"  # of encoders and decoder, see layers/remat.py
    regime: Regime = Regime()  # of training, see layers/regime.py
    dtype: Any = jnp.float32

    def setup(self):
        self._check()
        dtype, reference = self.dtype, self.mode == "reference"
        layer = (self.num_heads, self.hidden, self.dropout)
        training = {"regime": self.regime, "dtype": dtype}

        self.audio_tokens = nn.Dense(self.dim, dtype=dtype)
        self.audio_norm = _layer_norm(epsilon=AUDIO_EPSILON, dtype=dtype)
        self.audio_dropout = Dropout(self.dropout, regime=self.regime)
        for i in (2, 3, 4) if reference else (1, 2, 3, 4):
            setattr(self, f"stage{i}", DilatedHead(self.dim, dtype=dtype))
        self.visual_tokens = nn.Conv(self.dim, (1, 1), dtype=dtype)

        spatial = rematerialised(EncoderLayer, self.remat, static_argnums=(4,))
        temporal = rematerialised(TemporalBlock, self.remat, static_argnums=(5,))
        for i in range(self.encoder_layers):
            if reference:
                setattr(self, f"spatial{i}", spatial(*layer, **training))
            last = i == self.encoder_layers - 1
            block = temporal(*layer, parallel=not reference, last=last, **training)
            setattr(self, f"temporal{i}", block)
        self.gates = FrameGates(**training) if reference else ChannelGates(dtype=dtype)

        self.queries = self.param(
            "queries", nn.initializers.normal(1.0), (self.num_queries, self.dim)
        )
        decoder = rematerialised(DecoderLayer, self.remat, static_argnums=(6,))
        for i in range(self.decoder_layers):
            setattr(self, f"decoder{i}", decoder(*layer, **training))
        self.decoder_norm = _layer_norm(dtype=dtype)
        self.pixel_decoder = PixelDecoder(
            self.pixel_widths, self.mask_dim, self.norm_groups, dtype=dtype
        )
        self.kernel0 = nn.Dense(self.dim, dtype=dtype)
        self.kernel1 = nn.Dense(self.mask_dim, dtype=dtype)
        self.classes = nn.Dense(self.num_classes + 1)
        self.auxiliary = AuxiliaryHeads(self.num_tags, self.num_semantic)

    def __call__(
        self,
        frames: Float[Array, "b t h w 3"],
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """Frames (normalised; enlarged, their sides are multiples of 32), log-mel -> a dict of

            logits            f32[b t h w k]    of `answer`, at frame size
            query             i32[b t]          the query whose mask a frame shows
            pred_masks        f32[l b t q y x]  mask logits of each decoder layer, at 1/16 or 1/4
            pred_is_referred  f32[l b t q k+1]  class logits; the last class is "no object"

        Frames that `frame_mask` says do not exist stay out of every attention and out of the gates'
        batch statistics; out of the backbones' too with `mask_padded_frames`.

        With `train` and auxiliary heads also "tags" [b t num_tags] and "semantic"
        [b t h/8 w/8 num_semantic]. Raises UnknownNameError for an unknown mode, BadValueError for a
        number of encoder layers that it cannot gate.
        """
        return self.decide(self.see(frames, frame_mask, train), log_mel, frame_mask, train)

    def see(
        self,
        frames: Float[Array, "b t h w 3"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> Seen:
        """What the picture alone gives, whatever the sound: tokens and maps before any fusion."""
        b, t, height, width, _ = frames.shape
        scale = self.input_scale
        enlarged = resize_bilinear(flatten_clips(frames), (height * scale, width * scale))
        counted = frame_mask if self.mask_padded_frames else None
        enlarged = enlarged.reshape(b, t, *enlarged.shape[1:])
        pyramid = run_backbone(self.backbone, enlarged, counted, train)
        stages = {
            i: getattr(self, f"stage{i}")(x)
            for i, x in enumerate(pyramid, start=1)
            if i > 1 or self.mode == "paper"
        }
        return Seen(self.visual_tokens(stages[2]), stages, (height, width))

    def decide(
        self,
        seen: Seen,
        log_mel: Float[Array, "b t 96 64"],
        frame_mask: Bool[Array, "b t"] | None = None,
        train: bool = False,
    ) -> dict[str, Array]:
        """What was seen, and log-mel patches -> as `__call__`."""
        b, t = log_mel.shape[:2]
        counted = frame_mask if self.mask_padded_frames else None
        sound = run_backbone(self.audio_backbone, log_mel, counted, train)
        audio = self.audio_dropout(self.audio_norm(self.audio_tokens(sound)), train)
        audio = audio.reshape(b, t, self.dim)

        _, rows, columns, _ = seen.maps.shape
        positions = sine_positions_2d(rows, columns, self.dim).reshape(-1, self.dim)
        positions = positions.astype(self.dtype)
        visual = seen.maps.reshape(b, t, rows * columns, self.dim)
        fuse = self._fuse_reference if self.mode == "reference" else self._fuse_paper
        gated, content, memory = fuse(visual, audio, positions, frame_mask, (rows, columns), train)

        if self.mode == "reference":
            start, laterals = gated, [None, seen.stages[4], seen.stages[3]]
        else:
            start, laterals = seen.stages[4], [seen.stages[3], gated, seen.stages[1]]
        features = self.pixel_decoder(start, laterals)
        masks, classes = self._predict(self._decode(content, memory, train), features)
        masks, classes = (x.reshape(x.shape[0], b, t, *x.shape[2:]) for x in (masks, classes))
        logits, query = answer(masks[-1], classes[-1], seen.size, self.empty_if_silent)
        outputs = {
            "logits": logits,
            "query": query,
            "pred_masks": masks,
            "pred_is_referred": classes,
        }
        if train or self.is_initializing():
            outputs |= self.auxiliary(sound, seen.maps, b)
        return outputs

    def _check(self):
        if self.mode not in MODES:
            raise errors.unknown_name("mode of catr", self.mode, MODES)
        if self.mode == "reference" and self.encoder_layers != 3:
            raise errors.BadValueError(
                f"encoder_layers={self.encoder_layers}: the published gates read exactly 3 blocks; "
                "use encoder_layers=3, or mode='paper'."
            )
        if self.encoder_layers < 2:
            raise errors.BadValueError(
                f"encoder_layers={self.encoder_layers}: a gate reads two blocks; use 2 or more."
            )

    def _fuse_reference(self, visual, audio, positions, frame_mask, grid, train):
        """-> gated maps; the queries' content; tokens, positions, mask of the decoder's memory."""
        b, t, _ = audio.shape
        copies = jnp.broadcast_to(audio[:, None], (b, t, t, self.dim))
        tokens, places, key_mask = _frame_tokens(visual, copies, positions, frame_mask)
        for i in range(self.encoder_layers):
            tokens = getattr(self, f"spatial{i}")(tokens, places, key_mask, train)
        blocks = []
        for i in range(self.encoder_layers):
            copies = jnp.broadcast_to(audio[:, None], (b, t, t, self.dim))
            block = getattr(self, f"temporal{i}")
            visual, audio = block(visual, copies, positions, frame_mask, train)
            blocks.append(visual.reshape(b * t, *grid, self.dim))
        exists = None if frame_mask is None else frame_mask.reshape(-1)
        gated = self.gates(blocks, exists, train)
        content = jnp.zeros((b * t, self.dim), self.dtype)
        return gated, content, (tokens, places, key_mask)

    def _fuse_paper(self, visual, audio, positions, frame_mask, grid, train):
        """As `_fuse_reference`."""
        b, t, _ = audio.shape
        content, blocks = audio.reshape(b * t, self.dim), []
        for i in range(self.encoder_layers):
            block = getattr(self, f"temporal{i}")
            visual, audio = block(visual, audio[:, :, None], positions, frame_mask, train)
            blocks.append(visual.reshape(b * t, *grid, self.dim))
        gated = self.gates(blocks)
        return gated, content, (gated.reshape(b * t, -1, self.dim), positions, None)

    def _decode(self, content, memory, train):
        """Content [n d] that every query starts from -> all layers' queries, normed [l n q d]."""
        queries = jnp.asarray(self.queries, self.dtype)
        x = jnp.broadcast_to(content[:, None], (content.shape[0], *queries.shape))
        decoded = []
        for i in range(self.decoder_layers):
            x = getattr(self, f"decoder{i}")(x, queries, *memory, train)
            decoded.append(self.decoder_norm(x))
        return jnp.stack(decoded)

    def _predict(self, decoded, features):
        """Queries, mask features [n y x e] -> mask logits [l n q y x], class logits [l n q k+1]."""
        kernels = self.kernel1(jax.nn.relu(self.kernel0(decoded)))
        masks = jnp.einsum(
            "lnqe,nyxe->lnqyx", kernels, features, preferred_element_type=jnp.float32
        )
        return masks, self.classes(decoded.astype(jnp.float32))
