"""Resnets, resizing, and the down, mid and up blocks of the UNet (musev.md 2.2).

In every layer: resnet, temporal convolution, spatial transformer, temporal transformer, reference fusion. A block made
without temporal layers and fusion is a block of the Stable Diffusion UNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import UNetConfig
from .conditions import ClipConditions
from .embeddings import FrameEmbedding
from .hooks import ForwardHooks
from .layers import Layers, norm_silu, per_frame, to_batch
from .reference_fusion import ReferenceFusion, reference_indices
from .temporal import TemporalConv, TemporalTransformer
from .transformer import SpatialTransformer


@dataclass(frozen=True)
class CallState:
    """What the blocks of one call share.

    `time_embedding (1 or b, 1 or t, dim)` is after its SiLU; `frames` None switches the temporal layers off;
    `condition_frames` are positions in the window; `batch` is that of the output: up to the first layer which looks at
    the prompt, the guidance branches may share rows. `motion_strength`, `(1)` or `(t, 1, 1, 1)`, multiplies what the
    temporal layers add.
    """

    clip: ClipConditions
    time_embedding: Tensor
    frames: FrameEmbedding | None
    condition_frames: tuple[int, ...]
    batch: int
    hooks: ForwardHooks | None = None
    motion_strength: Tensor | None = None


class ResNet(nn.Module):
    """Two convolutions with the time embedding in between."""

    def __init__(self, layers: Layers, n_in: int, n_out: int, config: UNetConfig):
        super().__init__()
        self.norm1 = layers.group_norm("norm1", config.norm_groups, n_in, eps=1e-5)
        self.conv1 = layers.conv2d("conv1", n_in, n_out)
        self.time_emb_proj = layers.linear("time_emb_proj", config.time_embed_dim, n_out)
        self.norm2 = layers.group_norm("norm2", config.norm_groups, n_out, eps=1e-5)
        self.conv2 = layers.conv2d("conv2", n_out, n_out)
        self.conv_shortcut = layers.conv2d("conv_shortcut", n_in, n_out, kernel=1) if n_in != n_out else None

    def forward(self, x: Tensor, time_embedding: Tensor) -> Tensor:
        """`(b, t, h, w, c_in)` to `(b, t, h, w, c_out)`."""
        h = per_frame(self.conv1, norm_silu(self.norm1, x))
        h = per_frame(self.conv2, norm_silu(self.norm2, h, shift=self.time_emb_proj(time_embedding)))
        return h + (x if self.conv_shortcut is None else per_frame(self.conv_shortcut, x))


class Downsample(nn.Module):
    """Convolution with stride 2."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.conv = layers.conv2d("conv", channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`(b, t, h, w, c)` to half the size, rounded up."""
        return per_frame(self.conv, x)


class Upsample(nn.Module):
    """Nearest neighbour to a given size, then a convolution."""

    def __init__(self, layers: Layers, channels: int):
        super().__init__()
        self.conv = layers.conv2d("conv", channels, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """`(b, t, h, w, c)` to `size` (odd sizes are not exactly twice the half)."""

        def enlarge(frames: Tensor) -> Tensor:  # (b t, c, h, w)
            return F.interpolate(frames, size=size, mode="nearest")

        return per_frame(self.conv, per_frame(enlarge, x))


class _Layered(nn.Module):
    """The layers of one resolution, in the order in which data meets them."""

    def __init__(self, layers: Layers, widths: Sequence[tuple[int, int]], config: UNetConfig, *, attention: bool):
        super().__init__()
        n = len(widths)
        self.resnets = nn.ModuleList(
            ResNet(layers.at("resnets", j), n_in, n_out, config) for j, (n_in, n_out) in enumerate(widths)
        )
        channels = widths[-1][1]
        self.has_attention = attention
        self.has_temporal = config.temporal
        if config.temporal:
            self.temp_convs = nn.ModuleList(TemporalConv(layers.at("temp_convs", j), channels) for j in range(n))
        if attention:
            self.attentions = nn.ModuleList(
                spatial_transformer(layers.at("attentions", j), channels, config) for j in range(n)
            )
        if attention and config.temporal:
            self.temp_attentions = nn.ModuleList(
                temporal_transformer(layers.at("temp_attentions", j), channels, config) for j in range(n)
            )

    def _after_resnet(self, j: int, x: Tensor, state: CallState) -> Tensor:
        # the resnet is called by the blocks themselves: its wide input would live on in this call's arguments
        if self.has_temporal and state.frames is not None:
            x = self.temp_convs[j](x, state.clip, state.motion_strength)
        if self.has_attention:
            x = self.attentions[j](x, state.clip, state.condition_frames, batch=state.batch, hooks=state.hooks)
            if self.has_temporal and state.frames is not None:
                x = self.temp_attentions[j](x, state.frames, state.clip, state.motion_strength)
        return x


def spatial_transformer(layers: Layers, channels: int, config: UNetConfig) -> SpatialTransformer:
    """The spatial transformer of a block."""
    return SpatialTransformer(
        layers,
        channels,
        config.num_heads,
        config.context_dim,
        config.norm_groups,
        image_prompt=config.image_prompt,
        face_prompt=config.face_prompt,
    )


def temporal_transformer(layers: Layers, channels: int, config: UNetConfig) -> TemporalTransformer:
    """The temporal transformer of a block."""
    return TemporalTransformer(layers, channels, config.num_heads, config.norm_groups, config.time_embed_dim)


class DownBlock(_Layered):
    """Layers, each followed by reference fusion, then a downsampler (not in the last block) and one more fusion."""

    def __init__(self, layers: Layers, index: int, n_in: int, n_out: int, config: UNetConfig):
        widths = [(n_in if j == 0 else n_out, n_out) for j in range(config.layers_per_block)]
        super().__init__(layers, widths, config, attention=config.cross_attention_blocks[index])
        final = index == len(config.block_out_channels) - 1
        self.first = 1 + index * (config.layers_per_block + 1)  # number of its first layer among the input blocks
        self.downsamplers = None if final else nn.ModuleList([Downsample(layers.at("downsamplers", 0), n_out)])
        self.refer_emb_attns = None
        if config.reference_fusion:
            self.references = reference_indices(config.layers_per_block, index, final)
            self.refer_emb_attns = nn.ModuleList(
                ReferenceFusion(layers.at("refer_emb_attns", j), n_out, config.num_heads)
                for j in range(len(self.references))
            )

    def forward(self, x: Tensor, state: CallState) -> tuple[Tensor, list[Tensor]]:
        """The output and the residuals for the up path."""
        residuals = []
        for j in range(len(self.resnets)):
            x = self.resnets[j](x, state.time_embedding)
            x = self._keep(j, self._fuse(j, self._after_resnet(j, x, state), state), state, residuals)
        if self.downsamplers is not None:
            j = len(self.resnets)
            x = self._keep(j, self._fuse(j, self.downsamplers[0](x), state), state, residuals)
        return x, residuals

    def _keep(self, j: int, x: Tensor, state: CallState, residuals: list[Tensor]) -> Tensor:
        skip = x
        if state.hooks is not None:
            skip, x = state.hooks.input_block(self.first + j, x)
        residuals.append(skip)
        return x

    def _fuse(self, j: int, x: Tensor, state: CallState) -> Tensor:
        if self.refer_emb_attns is None or state.clip.reference is None or not state.clip.fuses_reference:
            return x
        return self.refer_emb_attns[j](
            to_batch(x, state.batch), state.clip.reference.down[self.references[j]], state.clip
        )


class MidBlock(_Layered):
    """Resnet, temporal convolution, both transformers, resnet, temporal convolution."""

    def __init__(self, layers: Layers, channels: int, config: UNetConfig):
        super().__init__(layers, [(channels, channels)], config, attention=True)
        self.resnets.append(ResNet(layers.at("resnets", 1), channels, channels, config))
        if config.temporal:
            self.temp_convs.append(TemporalConv(layers.at("temp_convs", 1), channels))

    def forward(self, x: Tensor, state: CallState) -> Tensor:
        """`(b, t, h, w, c)`."""
        x = self._after_resnet(0, self.resnets[0](x, state.time_embedding), state)
        x = self.resnets[1](x, state.time_embedding)
        if self.has_temporal and state.frames is not None:
            x = self.temp_convs[1](x, state.clip, state.motion_strength)
        return x


class UpBlock(_Layered):
    """Layers which each take a residual of the down path, then an upsampler (not in the last block)."""

    def __init__(self, layers: Layers, index: int, n_in: int, n_out: int, n_last_skip: int, config: UNetConfig):
        n = config.layers_per_block + 1
        widths = [((n_in if j == 0 else n_out) + (n_last_skip if j == n - 1 else n_out), n_out) for j in range(n)]
        levels = len(config.block_out_channels)
        super().__init__(layers, widths, config, attention=config.cross_attention_blocks[levels - 1 - index])
        last = index == levels - 1
        self.first = index * n  # number of its first layer among the output blocks
        self.upsamplers = None if last else nn.ModuleList([Upsample(layers.at("upsamplers", 0), n_out)])

    def forward(self, stack: list[Tensor], state: CallState) -> None:
        """Takes the present activation and then its residuals from the top of the stack, and leaves its output there.

        Handed over like this, no caller keeps a wide activation alive that is not needed any more.
        """
        x = stack.pop()
        for j in range(len(self.resnets)):
            if state.hooks is not None:
                x, stack[-1] = state.hooks.output_block(self.first + j, x, stack[-1])
            x = torch.cat([x, stack.pop()], dim=-1)
            x = self.resnets[j](x, state.time_embedding)
            x = self._after_resnet(j, x, state)
        if self.upsamplers is not None:
            size = (stack[-1].shape[2], stack[-1].shape[3])
            x = self.upsamplers[0](x, size)
        stack.append(x)
