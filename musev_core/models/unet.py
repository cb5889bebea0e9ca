"""MuseV's UNet (musev.md 2)."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..config import UNetConfig
from ..errors import MuseVError
from .blocks import CallState, DownBlock, MidBlock, UpBlock
from .conditions import ClipConditions, ControlResiduals
from .embeddings import EmbeddingMLP, FrameEmbedding
from .hooks import ForwardHooks
from .layers import Layers, new_layers, norm_silu, per_frame, to_batch
from .reference_fusion import ReferenceFusion
from .temporal import TEMPORAL_CONV_GROUPS, TemporalConv, TemporalTransformer
from .transformer import CrossAttention


class MuseVUNet(nn.Module):
    """Predicts the noise in a window of frames, some of which are clean condition frames.

    Args:
        config: sizes and switches; `config.temporal=False` gives the plain Stable Diffusion UNet.
        layers: where the leaf layers come from; new ones by default.
    """

    def __init__(self, config: UNetConfig, layers: Layers | None = None):
        super().__init__()
        layers = layers or Layers(new_layers())
        self.config = config
        widths = config.block_out_channels
        self.conv_in = layers.conv2d("conv_in", config.in_channels, widths[0])
        self.time_embedding = EmbeddingMLP(layers.at("time_embedding"), widths[0], config.time_embed_dim)
        if config.temporal:
            self.frame_embedding = EmbeddingMLP(layers.at("frame_embedding"), widths[0], config.time_embed_dim)
        if config.input_temporal_transformer:
            self.transformer_in = TemporalTransformer(
                layers.at("transformer_in"), widths[0], config.num_heads, TEMPORAL_CONV_GROUPS, config.time_embed_dim
            )
        if config.reference_fusion:
            self.first_refer_emb_attns = ReferenceFusion(
                layers.at("first_refer_emb_attns"), widths[0], config.num_heads
            )
        self.down_blocks = nn.ModuleList(
            DownBlock(layers.at("down_blocks", i), i, widths[max(i - 1, 0)], width, config)
            for i, width in enumerate(widths)
        )
        levels = len(widths)
        self.num_residuals = 1 + levels * config.layers_per_block + levels - 1
        self.mid_block = MidBlock(layers.at("mid_block"), widths[-1], config)
        if config.reference_fusion:
            self.mid_block_refer_emb_attns = ReferenceFusion(
                layers.at("mid_block_refer_emb_attns"), widths[-1], config.num_heads
            )
        rising = widths[::-1]
        self.up_blocks = nn.ModuleList(
            UpBlock(
                layers.at("up_blocks", i),
                i,
                rising[max(i - 1, 0)],
                width,
                rising[min(i + 1, len(rising) - 1)],
                config,
            )
            for i, width in enumerate(rising)
        )
        self.conv_norm_out = layers.group_norm("conv_norm_out", config.norm_groups, widths[0], eps=1e-5)
        self.conv_out = layers.conv2d("conv_out", widths[0], config.out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        clip: ClipConditions,
        *,
        condition_frames: Sequence[int] = (),
        motion_speed: float = 8.0,
        frame_index: Tensor | None = None,
        control: ControlResiduals | None = None,
        skip_temporal: bool = False,
        branches: int = 1,
        motion_strength: float | Tensor | None = None,
        hooks: ForwardHooks | None = None,
    ) -> Tensor:
        """One prediction for `sample (b, 4, t, h, w)`, of the same shape.

        Args:
            sample: noisy frames, scaled for the model, among clean condition frames; b = rows * windows / branches.
            timestep: one number, or `(b,)`.
            clip: prompts and pictures, see `ClipConditions`.
            condition_frames: positions of the clean frames in the window.
            motion_speed: factor of the frame index, which is then truncated; larger means faster motion. The released
                models were trained with 8 to 16; `musev` ignores it.
            frame_index: `(t,)` or `(b, t)`, instead of 0, 1, 2, ... times the motion speed.
            control: additions to the skip connections and the mid block.
            skip_temporal: treat every frame as a picture of its own.
            branches: guidance branches which have the same sample: it is given once, everything before the first layer
                that looks at the prompt is computed once, and the output has `branches * b` rows. The first reference
                feature must not depend on the branch, as is true for ReferenceNet.
            motion_strength: factor of what the temporal layers add, one number or `(t,)`, one per frame; None is 1.
            hooks: a host's places in the forward pass.

        Raises:
            MuseVError: rows, frames or numbers of features which do not belong together.
        """
        config = self.config
        b, _, t, _, _ = sample.shape
        condition_frames = tuple(condition_frames)
        batch = b * branches
        self._check(batch, t, clip, condition_frames, control)
        condition_frames = condition_frames if t > 1 else ()  # a picture alone is no condition (musev.md 8.6)
        x = rearrange(sample, "b c t h w -> b t h w c")
        frames = None
        if config.temporal and not skip_temporal:
            frames = self._frame_embedding(clip, t, motion_speed, frame_index, x)
        emb = self._time_embedding(timestep, t, condition_frames, x, hooks)
        if isinstance(motion_strength, Tensor):
            motion_strength = motion_strength.to(x).reshape(-1, 1, 1, 1)
        elif motion_strength is not None:
            motion_strength = x.new_full((1,), motion_strength)
        state = CallState(clip, emb, frames, condition_frames, batch, hooks, motion_strength)

        x = per_frame(self.conv_in, x)
        if config.input_temporal_transformer and frames is not None:
            x = self.transformer_in(x, frames, clip, motion_strength)
        if config.reference_fusion and clip.reference is not None and clip.fuses_reference:
            rows = clip.reference.down[0].shape[0] // branches
            x = self.first_refer_emb_attns(x, clip.reference.down[0][:rows], clip)
        skip = x
        if hooks is not None:
            skip, x = hooks.input_block(0, x)
        residuals = [to_batch(skip, batch)]
        for block in self.down_blocks:
            x, new = block(x, state)
            residuals += [to_batch(skip, batch) for skip in new]
        if control is not None:
            residuals = [
                x + rearrange(extra, "(b t) c h w -> b t h w c", b=batch)
                for x, extra in zip(residuals, control.down, strict=True)
            ]

        x = self.mid_block(to_batch(x, batch), state)
        if config.reference_fusion and clip.reference is not None and clip.fuses_reference:
            x = self.mid_block_refer_emb_attns(x, clip.reference.mid, clip)
        if hooks is not None:
            x = hooks.middle_block(x)
        if control is not None and control.mid is not None:
            x = x + rearrange(control.mid, "(b t) c h w -> b t h w c", b=batch)

        stack = [*residuals, x]
        del residuals, skip, x
        for block in self.up_blocks:
            block(stack, state)
        x = stack.pop()
        x = per_frame(self.conv_out, norm_silu(self.conv_norm_out, x))
        return rearrange(x, "b t h w c -> b c t h w")

    @torch.no_grad()
    def prepare(self, clip: ClipConditions, num_frames: int, *, motion_speed: float = 8.0, branches: int = 1) -> None:
        """Computes ahead what is constant over the clip for windows of `num_frames` frames.

        Calls do this by themselves where it is missing; a compiled network is compiled for the case that nothing is.
        """
        weight = next(self.parameters())
        frames = None
        if self.config.temporal:
            like = torch.empty((), device=weight.device, dtype=weight.dtype)
            frames = self._frame_embedding(clip, num_frames, motion_speed, None, like)
        for module in self.modules():
            if isinstance(module, CrossAttention) and clip.text.ndim == 3:
                module.constants(clip)
            elif isinstance(module, TemporalConv):
                module.constants(clip, weight)
            elif isinstance(module, TemporalTransformer) and frames is not None:
                module.constants(frames, clip, weight)
        if self.config.reference_fusion and clip.reference is not None:
            first = clip.reference.down[0]
            self.first_refer_emb_attns.constants(first[: first.shape[0] // branches], clip)
            blocks: Any = self.down_blocks
            for block in blocks:
                for fusion, index in zip(block.refer_emb_attns, block.references, strict=True):
                    fusion.constants(clip.reference.down[index], clip)
            self.mid_block_refer_emb_attns.constants(clip.reference.mid, clip)

    def _check(
        self,
        b: int,
        t: int,
        clip: ClipConditions,
        condition_frames: tuple[int, ...],
        control: ControlResiduals | None,
    ) -> None:
        """Refuses inputs which do not belong together: reshaping would mix rows up without a word."""
        if clip.text.ndim == 4 and tuple(clip.text.shape[:2]) != (b, t):
            raise MuseVError(
                f"text per frame must have the shape ({b}, {t}, tokens, dim) for this sample, "
                f"got {tuple(clip.text.shape)}"
            )
        tokens = {"text": clip.text, "image tokens": clip.image_tokens, "face tokens": clip.face_tokens}
        if clip.reference is not None:
            tokens["reference features"] = clip.reference.mid
        for name, x in tokens.items():
            if x is not None and b % x.shape[0]:
                raise MuseVError(f"{name} for {x.shape[0]} rows cannot serve a batch of {b}: it must be a multiple")
        if any(not 0 <= i < t for i in condition_frames):
            raise MuseVError(
                f"condition frames must lie in 0..{t - 1} for a window of {t} frames, got {condition_frames}"
            )
        expected = self.num_residuals
        if control is not None and len(control.down) != expected:
            raise MuseVError(
                f"a ControlNet for this UNet gives {expected} residuals for the skip connections, "
                f"got {len(control.down)}"
            )
        if clip.reference is not None and self.config.reference_fusion and len(clip.reference.down) != expected:
            raise MuseVError(
                f"a ReferenceNet for this UNet gives {expected} features besides the mid block's, "
                f"got {len(clip.reference.down)}"
            )

    def _time_embedding(
        self,
        timestep: Tensor | float,
        t: int,
        condition_frames: tuple[int, ...],
        x: Tensor,
        hooks: ForwardHooks | None,
    ) -> Tensor:
        """`(1 or b, 1 or t, dim)`, after its SiLU and zero for condition frames in the models which want it so."""
        if not isinstance(timestep, Tensor):
            timestep = x.new_full((), timestep, dtype=torch.float32)
        emb = self.time_embedding(timestep.reshape(-1, 1), x.dtype)
        if hooks is not None:
            emb = hooks.time_embedding(emb)
        emb = F.silu(emb)
        if condition_frames and self.config.zero_condition_time_embedding:
            rows = emb.expand(-1, t, -1).unbind(1)
            zero = torch.zeros_like(rows[0])
            emb = torch.stack([zero if i in condition_frames else row for i, row in enumerate(rows)], dim=1)
        return emb

    def _frame_embedding(
        self, clip: ClipConditions, t: int, motion_speed: float, frame_index: Tensor | None, x: Tensor
    ) -> FrameEmbedding:
        speed = motion_speed if self.config.motion_speed else 1.0

        def embed(index: Tensor) -> Tensor:
            emb = self.frame_embedding(index, x.dtype)
            return F.silu(emb) if self.config.silu_on_frame_embedding else emb

        if frame_index is not None:
            return FrameEmbedding(embed(frame_index.reshape(-1, t)), None)
        # the product is truncated, as in training
        key = (t, speed)
        value = clip.once(("frames", key), lambda: embed((torch.arange(t, device=x.device) * speed).long()[None]))
        return FrameEmbedding(value, key)
